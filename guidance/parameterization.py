"""What a network predicts, and how to read x0 and eps from it.

Each parameterization is a linear combination ``target = a x0 + b eps``; together with ``x_t = alpha x0 + sigma eps`` it
determines both. Converting one into another is ``Other().target(p.x0, p.eps, level)`` of a prediction ``p``.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from guidance.process import Level

if TYPE_CHECKING:
    from guidance.guide import Term


@dataclass(frozen=True)
class Prediction:
    """What is believed of x_t: its clean part and its noise, always both, with ``alpha x0 + sigma eps = x_t``.

    Of a guided prediction:

    ``parts`` are the terms that it was combined from, with their own predictions;
    ``gradient`` is what was added to the score that follows from the terms, the gradient in x_t of something to be raised (a classifier's
    log-probability, a reward); x0 and eps hold it once the prediction is `steered`;
    ``renoise`` is the noise that a step goes on with where that is not eps (CFG++).
    """

    x0: Float[Tensor, "b *d"]
    eps: Float[Tensor, "b *d"]
    parts: "tuple[tuple[Term, Prediction], ...]" = field(default=(), repr=False)
    gradient: Float[Tensor, "b *d"] | None = field(default=None, repr=False)
    renoise: Float[Tensor, "b *d"] | None = field(default=None, repr=False)


def read_x0(x0: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
    """The prediction of which the clean part is known: eps = (x_t - alpha x0) / sigma."""
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)


def steered(prediction: Prediction, level: Level) -> Prediction:
    """With its gradient g added to the score: x0 + sigma^2 / alpha g, eps - sigma g (Dhariwal & Nichol, 2105.05233, algorithm 2)."""
    g = prediction.gradient
    if g is None:
        return prediction
    return replace(prediction, x0=prediction.x0 + level.sigma**2 / level.alpha * g, eps=prediction.eps - level.sigma * g)


@runtime_checkable
class Parameterization(Protocol):
    """The meaning of a network's output."""

    def target(self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
        """What the network should have said."""
        ...

    def read(self, output: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        """What the network's output says of x_t."""
        ...

    def eps_error(self, level: Level) -> Float[Tensor, "*b_and_ones"]:
        """By what factor an error in the output becomes an error in eps; losses are weighted in units of eps."""
        ...


@dataclass(frozen=True)
class Eps:
    """The noise (DDPM, 2006.11239)."""

    def target(self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
        return eps

    def read(self, output: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        return Prediction((x_t - level.sigma * output) / level.alpha, output)

    def eps_error(self, level: Level) -> Float[Tensor, "*b_and_ones"]:
        return level.alpha / level.alpha


@dataclass(frozen=True)
class X0:
    """The clean data."""

    def target(self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
        return x0

    def read(self, output: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        return read_x0(output, x_t, level)

    def eps_error(self, level: Level) -> Float[Tensor, "*b_and_ones"]:
        return level.alpha / level.sigma


@dataclass(frozen=True)
class V:
    """v = alpha eps - sigma x0 (Salimans & Ho, 2202.00512); EDM's preconditioned target for unit-variance data, up to its sign.

    For any alpha and sigma, with n^2 = alpha^2 + sigma^2: x0 = (alpha x_t - sigma v) / n^2, eps = (sigma x_t + alpha v) / n^2.
    """

    def target(self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
        return level.alpha * eps - level.sigma * x0

    def read(self, output: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        n2 = level.norm**2
        return Prediction(
            (level.alpha / n2) * x_t - (level.sigma / n2) * output,
            (level.sigma / n2) * x_t + (level.alpha / n2) * output,
        )

    def eps_error(self, level: Level) -> Float[Tensor, "*b_and_ones"]:
        return level.alpha / level.norm**2


@dataclass(frozen=True)
class Velocity:
    """u = eps - x0, the velocity of rectified flow: x0 = (x_t - sigma u) / (alpha + sigma), eps = (x_t + alpha u) / (alpha + sigma)."""

    def target(self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
        return eps - x0

    def read(self, output: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        total = level.alpha + level.sigma
        return Prediction((x_t - level.sigma * output) / total, (x_t + level.alpha * output) / total)

    def eps_error(self, level: Level) -> Float[Tensor, "*b_and_ones"]:
        return level.alpha / (level.alpha + level.sigma)
