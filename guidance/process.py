"""The forward process, and the one place where a noise level is broadcast."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.schedule import Schedule


@dataclass(frozen=True)
class Level:
    """A noise level: ``x_t = alpha x0 + sigma eps``. Made by `level`.

    Either one level for all samples (t, alpha and sigma of no dimension, float64, on the CPU, so that no arithmetic with them
    makes a GPU wait), or one a sample (t [b]; alpha and sigma [b, 1, ..., 1], ready to broadcast).
    """

    t: Float[Tensor, "*b"]
    alpha: Float[Tensor, "*b_and_ones"]
    sigma: Float[Tensor, "*b_and_ones"]

    @property
    def logsnr(self) -> Float[Tensor, "*b"]:
        """2 log(alpha / sigma), of the shape of t."""
        return 2 * (self.alpha.log() - self.sigma.log()).reshape(self.t.shape)

    @property
    def norm(self) -> Float[Tensor, "*b_and_ones"]:
        """sqrt(alpha^2 + sigma^2): the standard deviation of x_t where the data's is 1; 1 for variance-preserving schedules."""
        return torch.hypot(self.alpha, self.sigma)


def level(schedule: Schedule, t: Float[Tensor, "*b"], like: Tensor) -> Level:
    """The level of ``schedule`` at ``t``: [] for one level shared by all samples, or [b] for one a sample of ``like`` [b *d]."""
    alpha, sigma = schedule(t.double())
    if t.ndim == 0:
        return Level(t.double(), alpha, sigma)
    ones = (-1,) + (1,) * (like.ndim - 1)
    return Level(t.to(like), alpha.to(like).view(ones), sigma.to(like).view(ones))


CLEAN = Level(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
"""The level without noise, where every sampler ends."""


def corrupt(x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
    """x_t = alpha x0 + sigma eps."""
    return level.alpha * x0 + level.sigma * eps
