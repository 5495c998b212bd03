"""Time grids: at which levels a sampler evaluates the network.

A grid gives ``steps`` times, from the noisiest down; after the last of them the sampler goes to the level without noise.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.denoiser import LOGSNR_LIMIT
from guidance.errors import UserError
from guidance.schedule import Schedule, inverse, logsnr


@runtime_checkable
class Grid(Protocol):
    """(schedule, steps) -> the times to evaluate at, strictly decreasing, float64."""

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "{steps}"]: ...


@dataclass(frozen=True)
class Uniform:
    """t = 1, 1 - 1/n, ..., 1/n. On a `Discrete` schedule of T steps with n = T: every one of its steps; with n dividing T, a sub-grid."""

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "{steps}"]:
        return torch.arange(steps, 0, -1, dtype=torch.float64) / steps


def _range(schedule: Schedule, low: float, high: float) -> tuple[float, float]:
    """The part of [low, high] that the schedule reaches."""
    noisiest, cleanest = logsnr(schedule, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    low, high = max(low, noisiest), min(high, cleanest, LOGSNR_LIMIT)  # a list of betas ends without noise
    if not low < high:
        raise UserError(f"no logsnr between the grid's bounds is on the schedule, whose own range is {noisiest:.3g} to {cleanest:.3g}")
    return low, high


@dataclass(frozen=True)
class LogSNR:
    """Evenly spaced in logsnr, over the part of [low, high] that the schedule reaches."""

    low: float = -10.0
    high: float = 10.0

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "{steps}"]:
        low, high = _range(schedule, self.low, self.high)
        return inverse(schedule, torch.linspace(low, high, steps, dtype=torch.float64))


@dataclass(frozen=True)
class Rho:
    """Evenly spaced in (sigma / alpha)^(1 / rho): Karras et al. (2206.00364, eq. 5), over the same range as `LogSNR`."""

    rho: float = 7.0
    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise UserError(f"rho is positive, got {self.rho}")

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "{steps}"]:
        low, high = _range(schedule, self.low, self.high)
        ends = torch.exp(-torch.tensor([low, high], dtype=torch.float64) / 2) ** (1 / self.rho)
        ramp = ends[0] + torch.linspace(0, 1, steps, dtype=torch.float64) * (ends[1] - ends[0])
        return inverse(schedule, -2 * self.rho * ramp.log())
