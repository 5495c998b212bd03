"""Rescaled guidance."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError, one_of
from guidance.guide import Guidance, Term, check_guidance
from guidance.parameterization import X0, Eps, Parameterization, Prediction, V
from guidance.process import Level
from guidance.rules.tools import check_number, moved, ratio, wide

SPACES: dict[str, Parameterization] = {"v": V(), "eps": Eps(), "x0": X0()}


@dataclass(frozen=True)
class Rescale:
    """The guided output g brought to the deviation that its first term's own output c has, by a share ``factor`` (0: not at all):

        factor (std(c) / std(g)) g + (1 - factor) g

    Lin et al. (2305.08891, eq. 15 and 16; they use 0.7). std is over all numbers of a sample. ``space`` is the output that is meant:
    "v", as theirs, "eps" or "x0". The first term is `CFG`'s condition, or a composition's first; it is evaluated where its weight is 0,
    too. A gradient that ``inside`` adds to the score is added afterwards.
    """

    inside: Guidance
    factor: float = 0.7
    space: str = "v"

    def __post_init__(self) -> None:
        check_guidance(self.inside, "guidance.inside")
        check_number(self.factor, "Rescale's factor", "a number from 0 to 1", lambda factor: 0 <= factor <= 1)
        if self.space not in SPACES:
            raise one_of("space to rescale in", self.space, list(SPACES))

    def terms(self, condition: Condition) -> Sequence[Term]:
        terms = self.inside.terms(condition)
        if not self.factor:
            return terms
        # The last of them, so that the weights of those before it are where `inside` left them.
        return *terms, Term(0.0, terms[0].condition, terms[0].model, always=True)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        if not self.factor:
            return self.inside.combine(terms, predictions, x_t, level)
        if x_t[0].numel() < 2:
            raise UserError("Rescale goes by the standard deviation of each sample's numbers, and here a sample is one number")
        space, conditional = SPACES[self.space], predictions[-1]
        guided = self.inside.combine(terms[:-1], predictions[:-1], x_t, level)
        output, wanted = (space.target(p.x0, p.eps, level) for p in (guided, conditional))
        relative = ratio(*(wide(t.flatten(1).std(1), t) for t in (wanted, output)))
        return moved(guided, self.factor * (relative - 1) * output, space, level)
