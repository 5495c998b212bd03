"""Bounds on the guided x0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.guide import Guidance, Term, check_guidance
from guidance.parameterization import X0, Prediction
from guidance.process import Level
from guidance.rules.tools import check_number, moved, wide


def _check_limit(limit: float, name: str) -> None:
    check_number(limit, f"{name}'s limit", "a positive number, or inf", lambda limit: limit > 0)


@dataclass(frozen=True)
class Threshold:
    """The guided x0 clipped to [-limit, limit], and eps with it. inf: not at all.

    Static thresholding (Saharia et al., 2205.11487, section 2.3). In the units of x0, which is -1 to 1 for pixels, where a codec's
    ``project`` does the same. A gradient that ``inside`` adds to the score is added afterwards.
    """

    inside: Guidance
    limit: float = 1.0

    def __post_init__(self) -> None:
        check_guidance(self.inside, "guidance.inside")
        _check_limit(self.limit, "Threshold")

    def terms(self, condition: Condition) -> Sequence[Term]:
        return self.inside.terms(condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        guided = self.inside.combine(terms, predictions, x_t, level)
        return moved(guided, guided.x0.clamp(-self.limit, self.limit) - guided.x0, X0(), level)


@dataclass(frozen=True)
class DynamicThreshold:
    """The guided x0 clipped to [-s, s] and multiplied by limit / s, s = max(limit, the ``quantile`` of its |x0|), each sample's own.

    Dynamic thresholding (Saharia et al., 2205.11487, section 2.3). A sample whose quantile is within the limit is only clipped to it.
    ``limit`` inf: not at all. ``quantile`` 1 clips nothing, but shrinks a sample that exceeds the limit until its largest number is there.
    """

    inside: Guidance
    quantile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        check_guidance(self.inside, "guidance.inside")
        check_number(self.quantile, "DynamicThreshold's quantile", "a number from 0 to 1", lambda quantile: 0 <= quantile <= 1)
        _check_limit(self.limit, "DynamicThreshold")

    def terms(self, condition: Condition) -> Sequence[Term]:
        return self.inside.terms(condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        guided = self.inside.combine(terms, predictions, x_t, level)
        if self.limit == math.inf:
            return guided
        s = wide(guided.x0.abs().flatten(1).quantile(self.quantile, dim=1), x_t).clamp(min=self.limit)
        bounded = guided.x0.clamp(-s, s) * (self.limit / s)
        return moved(guided, bounded - guided.x0, X0(), level)
