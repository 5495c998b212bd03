"""CFG-Zero*."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.guide import CFG, Term, Weight, check_weight
from guidance.parameterization import Prediction, Velocity
from guidance.process import Level
from guidance.rules.tools import check_number, inner, moved, ratio


@dataclass(frozen=True)
class CFGZero:
    """u = s u_null + scale (u_c - s u_null), u = eps - x0 the flow's velocity, s = (u_c . u_null) / |u_null|^2 each sample's own.

    Fan et al. (2503.18886). s is the multiple of the null velocity that is nearest to the conditional one, so at scale 1 this is the
    conditional model, and at 0 s times the null velocity rather than the unconditional model. In the first share ``zero`` of the time
    (t > 1 - zero; they mean the first step, or few) the velocity is 0 instead: along a rectified path x stays where it is, on any other it
    changes in scale alone. A codec's ``project`` bounds the x0 that belongs to it, too.
    """

    scale: Weight = 1.0
    zero: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))
        check_number(self.zero, "CFGZero's zero", "a share of the time, from 0 to below 1", lambda zero: 0 <= zero < 1)

    def terms(self, condition: Condition) -> Sequence[Term]:
        conditional, null = CFG(self.scale).terms(condition)
        return replace(conditional, always=True), null

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        if level.t.item() > 1 - self.zero:
            return Velocity().read(torch.zeros_like(x_t), x_t, level)
        if len(predictions) == 1:  # scale 1, for every sample
            return predictions[0]
        conditional, null = (p.eps - p.x0 for p in predictions)
        s = ratio(inner(conditional, null), inner(null, null))
        # A sample of scale 1, or without a condition, has weight 1 here: whatever stands in the null's row, nothing is added.
        return moved(predictions[0], (cast(Tensor, terms[0].weight) - 1) * (conditional - s * null), Velocity(), level)
