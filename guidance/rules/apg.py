"""Adaptive projected guidance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.guide import CFG, Guidance, Term, Weight, check_weight
from guidance.guided import GuidedDenoiser
from guidance.parameterization import X0, Prediction
from guidance.process import Level
from guidance.rules.tools import check_number, inner, moved, ratio
from guidance.sampler.loop import Sampler, layers


@dataclass
class Memory:
    """The running difference at the latest noise level, and at the one before it."""

    logsnr: float = math.nan
    latest: Tensor | None = None
    before: Tensor | None = None

    def running(self, difference: Float[Tensor, "b *d"], logsnr: float, momentum: float) -> Float[Tensor, "b *d"]:
        """difference + momentum * (that of the level before); a step that asks twice at a level is one."""
        if logsnr != self.logsnr:
            self.logsnr, self.before = logsnr, self.latest
        self.latest = difference if self.before is None else difference + momentum * self.before
        return self.latest


@dataclass(frozen=True)
class APG:
    """x0 = x0_c + (scale - 1) (orthogonal + ``parallel`` * along), the difference that guidance adds split at the direction of x0_c.

        d = (x0_c - x0_null) + ``momentum`` * d of the level before,  shortened to the length ``limit`` where it is longer,
        along = (d . x0_c / |x0_c|^2) x0_c,  orthogonal = d - along

    Sadat et al. (2410.02416), who take parallel (eta) 0, momentum (beta) -0.5 to -0.75, and a limit (r) from 2.5 to 15. The length is
    that of a whole sample in the units of x0. With parallel 1, limit inf and momentum 0 it is `CFG`. At scale 1 it is the conditional
    model; the condition is evaluated at scale 0, too, and with momentum everything everywhere.
    """

    scale: Weight = 1.0
    parallel: float = 0.0
    limit: float = math.inf
    momentum: float = 0.0
    memory: Memory | None = field(default=None, init=False, repr=False, compare=False)  # of a run; settings have none

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))
        check_number(self.parallel, "APG's parallel")
        check_number(self.limit, "APG's limit", "a positive number, or inf", lambda limit: limit > 0)
        check_number(self.momentum, "APG's momentum", "a number between -1 and 1", lambda momentum: -1 < momentum < 1)

    def begin(self, condition: Condition) -> Guidance:
        begun = replace(self)
        object.__setattr__(begun, "memory", Memory())
        return begun

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        for layer in layers(sampler):
            if self.momentum and getattr(layer, "corrects", False):
                raise UserError(
                    f"APG's momentum does not go together with {type(layer).__name__}: what it asks for at one noise level has to be a "
                    "function of x_t, and not of what came before; take momentum=0"
                )

    def terms(self, condition: Condition) -> Sequence[Term]:
        conditional, null = CFG(self.scale).terms(condition)
        return replace(conditional, always=True), replace(null, always=self.momentum != 0)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        conditional = predictions[0]
        if len(predictions) == 1:  # scale 1, for every sample
            return conditional
        d = conditional.x0 - predictions[1].x0
        if self.memory is not None and self.momentum:
            d = self.memory.running(d, level.logsnr.item(), self.momentum)
        if self.limit < math.inf:
            d = d * ratio(inner(d, d).sqrt().clamp(max=self.limit), inner(d, d).sqrt())
        along = ratio(inner(d, conditional.x0), inner(conditional.x0, conditional.x0)) * conditional.x0
        # A sample of scale 1, or without a condition, has weight 1 here: whatever stands in the null's row, nothing is added.
        return moved(conditional, (cast(Tensor, terms[0].weight) - 1) * (d + (self.parallel - 1) * along), X0(), level)
