"""CFG++."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.guide import CFG, Term, Weight, check_weight, weighted_sum
from guidance.guided import GuidedDenoiser
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.ddim import DDIM
from guidance.sampler.loop import Sampler


@dataclass(frozen=True)
class CFGPlusPlus:
    """x_s = alpha_s x0 + sigma_s eps_null: x0 from the guided noise eps_null + scale (eps_c - eps_null), the step on with the null's own.

    Chung et al. (2406.08070, algorithm 2), whose lambda is ``scale``, from 0 to 1; any number is taken. Scale 0 is the unconditional
    model, where x0 is not clipped. No scale is the conditional one: at 1 x0 is its own, but the noise is still the null's. For the sampler
    `DDIM` alone.
    """

    scale: Weight = 0.6

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        if not isinstance(sampler, DDIM):
            raise UserError(
                f"CFG++ is a change to DDIM's step, which takes x0 and noise from different predictions; {type(sampler).__name__} has no "
                "place for that: take sampler=ddim, or guidance=cfg"
            )

    def terms(self, condition: Condition) -> Sequence[Term]:
        conditional, null = CFG(self.scale).terms(condition)
        return conditional, replace(null, always=True)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        return replace(weighted_sum(terms, predictions), renoise=predictions[-1].eps)
