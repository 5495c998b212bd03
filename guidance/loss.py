"""The diffusion loss  E_t,eps  w(logsnr) |eps - eps_hat|^p, and where t is drawn from.

Weights are stated for the error in eps, as in Kingma & Gao (2303.00848), whatever the network predicts: an error in its own
output counts as the error in eps that it makes. `Native` alone is stated in the network's own target.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.errors import UserError, one_of
from guidance.parameterization import Parameterization
from guidance.process import Level


@runtime_checkable
class Criterion(Protocol):
    """What training makes small: a number a sample, of the network's output and what it should have said."""

    def __call__(
        self, output: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"], level: Level, parameterization: Parameterization
    ) -> Float[Tensor, "b"]: ...


@runtime_checkable
class Weighting(Protocol):
    """Factor on the squared error of the network's output, one a sample."""

    def __call__(self, level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]: ...


def _eps_squared(level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]:
    """(error in eps / error in the output)^2."""
    return parameterization.eps_error(level).square().reshape(-1)


@dataclass(frozen=True)
class Native:
    """1 in the space of the network's own target: plain MSE on eps, x0 or v."""

    def __call__(self, level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]:
        return torch.ones_like(level.logsnr)


@dataclass(frozen=True)
class UniformEps:
    """1 in eps: DDPM's simple loss. In x0 this is the SNR."""

    def __call__(self, level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]:
        return _eps_squared(level, parameterization)


@dataclass(frozen=True)
class SNR:
    """max(snr, floor) + offset in x0, so (max(snr, floor) + offset) / snr in eps.

    offset 1 is the SNR+1 weighting (uniform in v), floor 1 the truncated SNR, both of Salimans & Ho (2202.00512); with neither
    it is uniform in eps.
    """

    offset: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (self.offset >= 0 and self.floor >= 0):
            raise UserError(f"SNR's offset and floor are at least 0, got {self.offset} and {self.floor}")

    def __call__(self, level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]:
        snr = level.logsnr.exp()
        return (snr.clamp(min=self.floor) + self.offset) / snr * _eps_squared(level, parameterization)


@dataclass(frozen=True)
class MinSNR:
    """min(snr, gamma) in x0, so min(1, gamma / snr) in eps (Hang et al., 2303.09556)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise UserError(f"min-SNR's gamma is positive, got {self.gamma}")

    def __call__(self, level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]:
        return (self.gamma * (-level.logsnr).exp()).clamp(max=1) * _eps_squared(level, parameterization)


@dataclass(frozen=True)
class Sigmoid:
    """sigmoid(bias - logsnr) in eps (Kingma & Gao, 2303.00848; Hoogeboom et al., 2410.19324)."""

    bias: float = 2.0

    def __call__(self, level: Level, parameterization: Parameterization) -> Float[Tensor, "b"]:
        return torch.sigmoid(self.bias - level.logsnr) * _eps_squared(level, parameterization)


NORMS = ("l1", "l2", "huber")


@dataclass(frozen=True)
class Loss:
    """The mean over a sample's elements of |output - target|, its square, or Huber's between them; times the weighting.

    An l1 error grows with the error itself rather than with its square, and so is weighted by the root.
    """

    norm: str = "l2"
    weighting: Weighting = Native()
    delta: float = 1.0  # where Huber's loss turns from square to linear

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise one_of("norm for the loss", self.norm, NORMS)
        if not self.delta > 0:
            raise UserError(f"Huber's delta is positive, got {self.delta}")

    def __call__(
        self, output: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"], level: Level, parameterization: Parameterization
    ) -> Float[Tensor, "b"]:
        error = (output - target).flatten(1)
        weight = self.weighting(level, parameterization)
        if self.norm == "l1":
            return error.abs().mean(1) * weight.sqrt()
        if self.norm == "huber":
            return torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta).mean(1) * weight
        return error.square().mean(1) * weight


@runtime_checkable
class Times(Protocol):
    """Where training draws t: from uniform numbers, and each sample's place in the whole batch."""

    def __call__(self, u: Float[Tensor, "b"], place: Int[Tensor, "b"], batch: int) -> Float[Tensor, "b"]: ...


@dataclass(frozen=True)
class UniformTimes:
    """t ~ U(0, 1)."""

    def __call__(self, u: Float[Tensor, "b"], place: Int[Tensor, "b"], batch: int) -> Float[Tensor, "b"]:
        return u


@dataclass(frozen=True)
class Stratified:
    """t ~ U(place / batch, (place + 1) / batch): one sample of the batch in each stratum, for a less noisy loss."""

    def __call__(self, u: Float[Tensor, "b"], place: Int[Tensor, "b"], batch: int) -> Float[Tensor, "b"]:
        return (place + u) / batch


@dataclass(frozen=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2) (Esser et al., 2403.03206).

    ``stratified``: one sample of the batch in each of as many equal shares of the distribution.
    """

    mean: float = 0.0
    std: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.mean)):
            raise UserError(f"LogitNormal needs a finite mean and std > 0, got {self.mean} and {self.std}")

    def __call__(self, u: Float[Tensor, "b"], place: Int[Tensor, "b"], batch: int) -> Float[Tensor, "b"]:
        share = Stratified()(u, place, batch) if self.stratified else u
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(share))
