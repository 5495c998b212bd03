"""What a network predicts, and how to read x0 and eps from it.

Each parameterization is a linear combination ``target = a x0 + b eps``; together with ``x_t = alpha x0 + sigma eps`` it
determines both. Converting one into another is ``Other().target(p.x0, p.eps, level)`` of a prediction ``p``.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from guidance.process import Level

if TYPE_CHECKING:
    from guidance.guide import Term


@dataclass(frozen=True)
class Prediction:
    """What is believed of x_t: its clean part and its noise, always both, with ``alpha x0 + sigma eps = x_t``.

    ``parts`` are the terms that a guided prediction was combined from, with their own predictions.
    """

    x0: Float[Tensor, "b *d"]
    eps: Float[Tensor, "b *d"]
    parts: "tuple[tuple[Term, Prediction], ...]" = field(default=(), repr=False)


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
        return Prediction(output, (x_t - level.alpha * output) / level.sigma)

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
