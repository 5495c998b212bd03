"""The limited interval."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.guide import CFG, Guidance, Term, Weight, check_guidance, evaluate
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.rules.tools import check_number


@dataclass(frozen=True)
class Interval:
    """``inside`` where low <= logsnr <= high, ``outside`` elsewhere; what is not in force costs nothing.

    The limited interval of Kynkäänniemi et al. (2404.07724), in units of noise rather than of steps; their guidance is off,
    which is the conditional model, outside.
    """

    inside: Guidance
    low: float = -math.inf
    high: float = math.inf
    outside: Guidance = field(default_factory=CFG)

    def __post_init__(self) -> None:
        check_guidance(self.inside, "guidance.inside")
        check_guidance(self.outside, "guidance.outside")
        for name in ("low", "high"):
            check_number(getattr(self, name), f"guidance.{name}", "a number of logsnr", lambda bound: True)
        if not self.low <= self.high:
            raise UserError(f"an interval of logsnr needs low <= high, got {self.low} and {self.high}")

    def terms(self, condition: Condition) -> Sequence[Term]:
        def here(logsnr: float, within: bool) -> bool:
            return (self.low <= logsnr <= self.high) == within

        def during(weight: Weight, within: bool) -> Weight:
            return lambda logsnr: evaluate(weight, logsnr) if here(logsnr, within) else 0.0

        def made(term: Term, within: bool) -> bool | Callable[[float], bool]:
            always = term.always
            return (lambda logsnr: here(logsnr, within) and (not callable(always) or always(logsnr))) if always else False

        return [
            replace(term, weight=during(term.weight, within), always=made(term, within))
            for guidance, within in ((self.inside, True), (self.outside, False))
            for term in guidance.terms(condition)
        ]

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        active = self.inside if self.low <= level.logsnr.item() <= self.high else self.outside
        return active.combine(terms, predictions, x_t, level)
