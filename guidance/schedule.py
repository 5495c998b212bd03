"""Noise schedules: t in [0, 1] -> (alpha, sigma), with x_t = alpha x0 + sigma eps and logsnr = 2 log(alpha / sigma).

t = 0 is the least noisy level and t = 1 the noisiest; logsnr falls as t grows. A schedule works on a tensor of any shape and
keeps its dtype; `guidance.process.level` calls it in float64. The level without any noise is not part of a schedule:
samplers end there by themselves (`guidance.process.CLEAN`).

The continuous schedules are truncated so that logsnr stays finite: t is first mapped to the part of the schedule's own time
where logsnr lies in the stated range, as Ho & Salimans (2207.12598) do for the cosine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError


@runtime_checkable
class Schedule(Protocol):
    """t -> (alpha, sigma), elementwise; logsnr strictly decreasing in t."""

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]: ...


def logsnr(schedule: Schedule, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """2 log(alpha / sigma); infinite where sigma is 0."""
    alpha, sigma = schedule(t)
    return 2 * (alpha.log() - sigma.log())


def inverse(schedule: Schedule, value: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The t with logsnr(t) = value, by bisection in float64; values outside of the schedule's range give 0 or 1."""
    low, high = torch.zeros_like(value, dtype=torch.float64), torch.ones_like(value, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        noisier = logsnr(schedule, middle) < value
        low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
    return (low + high) / 2


def _check_range(logsnr_min: float, logsnr_max: float) -> None:
    if not -60 <= logsnr_min < logsnr_max <= 60:
        raise UserError(f"a schedule needs -60 <= logsnr_min < logsnr_max <= 60, got logsnr_min={logsnr_min}, logsnr_max={logsnr_max}")


@dataclass(frozen=True)
class Cosine:
    """alpha = cos(a t + b), sigma = sin(a t + b), so logsnr = -2 log tan(a t + b), truncated to [logsnr_min, logsnr_max].

    Nichol & Dhariwal (2102.09672) in the log-SNR form of Ho & Salimans (2207.12598, section 2).
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        _check_range(self.logsnr_min, self.logsnr_max)

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        b = math.atan(math.exp(-self.logsnr_max / 2))
        a = math.atan(math.exp(-self.logsnr_min / 2)) - b
        angle = a * t + b
        return angle.cos(), angle.sin()


@dataclass(frozen=True)
class LinearBeta:
    """log alpha^2 = -(beta_max - beta_min) u^2 / 2 - beta_min u, u = t_min + (1 - t_min) t; sigma^2 = 1 - alpha^2.

    The variance-preserving SDE of Song et al. (2011.13456, appendix C), the continuous form of DDPM's linear betas.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.beta_min <= self.beta_max and 0 < self.t_min < 1):
            raise UserError(
                f"LinearBeta needs 0 < beta_min <= beta_max and 0 < t_min < 1, got {self.beta_min}, {self.beta_max}, {self.t_min}"
            )

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        u = self.t_min + (1 - self.t_min) * t
        log_alpha2 = -(self.beta_max - self.beta_min) * u**2 / 2 - self.beta_min * u
        return (log_alpha2 / 2).exp(), (-torch.expm1(log_alpha2)).sqrt()


@dataclass(frozen=True)
class Sqrt:
    """alpha^2 = 1 - sqrt(u + s), u from 0 to where logsnr reaches logsnr_min. Li et al. (Diffusion-LM, 2205.14217)."""

    s: float = 1e-4
    logsnr_min: float = -20.0

    def __post_init__(self) -> None:
        if not 0 < self.s < 0.5:
            raise UserError(f"Sqrt needs 0 < s < 0.5, got {self.s}")
        _check_range(self.logsnr_min, 0.0)

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        alpha2 = 1 / (1 + math.exp(-self.logsnr_min))  # at t = 1, where sigma^4 = (1 - alpha2)^2
        rest = alpha2 * (2 - alpha2) + ((1 - alpha2) ** 2 - self.s) * (1 - t)  # 1 - sigma^4, without cancellation
        sigma2 = (1 - rest).sqrt()
        return (rest / (1 + sigma2)).sqrt(), sigma2.sqrt()


@dataclass(frozen=True)
class Rectified:
    """alpha = 1 - u, sigma = u: the straight path of rectified flow (Liu et al., 2209.03003), truncated in logsnr."""

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self) -> None:
        _check_range(self.logsnr_min, self.logsnr_max)

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        first = 1 / (1 + math.exp(self.logsnr_max / 2))
        rest = 1 / (1 + math.exp(-self.logsnr_min / 2))  # alpha at t = 1, exactly
        span = 1 - rest - first
        return rest + span * (1 - t), first + span * t


@dataclass(frozen=True)
class Karras:
    """The noise range of EDM (Karras et al., 2206.00364, eq. 5) in variance-preserving form.

    s(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho is their sigma; alpha = 1 / sqrt(1 + s^2) and
    sigma = s / sqrt(1 + s^2), so that x_t here is theirs times their c_in for unit-variance data.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max and self.rho > 0):
            raise UserError(f"Karras needs 0 < sigma_min < sigma_max and rho > 0, got {self.sigma_min}, {self.sigma_max}, {self.rho}")

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        s = (low + t * (high - low)) ** self.rho
        norm = torch.rsqrt(1 + s**2)
        return norm, s * norm


@dataclass(frozen=True)
class Discrete:
    """The schedule of a list of betas: at t = k / T exactly alpha^2 = prod_{i <= k} (1 - beta_i), for k = 0 .. T.

    Between its own steps log alpha^2 is a monotone cubic through them (Fritsch & Carlson 1980), continuously differentiable.
    At t = 0 there is no noise at all.
    """

    betas: Sequence[float] = field(repr=False)
    _knots: Float[Tensor, "4 steps"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        beta = torch.tensor(list(self.betas), dtype=torch.float64)
        if beta.ndim != 1 or len(beta) < 2 or not bool(((beta > 0) & (beta < 1)).all()):
            raise UserError("Discrete needs a list of at least two betas, each between 0 and 1")
        from scipy.interpolate import PchipInterpolator

        log_alpha2 = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-beta).cumsum(0)])
        cubic: Any = PchipInterpolator(torch.arange(len(log_alpha2)).numpy(), log_alpha2.numpy())
        object.__setattr__(self, "betas", tuple(float(b) for b in beta))
        object.__setattr__(self, "_knots", torch.from_numpy(cubic.c.copy()))

    def __call__(self, t: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        steps = len(self.betas)
        position = t * steps
        left = position.floor().clamp(0, steps - 1)
        c3, c2, c1, c0 = self._knots.to(t)[:, left.long()]
        d = position - left
        log_alpha2 = ((c3 * d + c2) * d + c1) * d + c0
        return (log_alpha2 / 2).exp(), (-torch.expm1(log_alpha2)).clamp(min=0).sqrt()

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> "Discrete":
        """Evenly spaced betas: DDPM (2006.11239) with the defaults; DiffWave (2009.09761) with (50, 1e-4, .05) or (200, 1e-4, .02)."""
        return cls(torch.linspace(first, last, steps, dtype=torch.float64).tolist())

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> "Discrete":
        """beta_k = min(1 - f(k) / f(k - 1), beta_max), f(k) = cos^2((k / T + s) / (1 + s) pi / 2): Nichol & Dhariwal (2102.09672)."""
        k = torch.arange(steps + 1, dtype=torch.float64)
        f = torch.cos((k / steps + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=beta_max).tolist())

    @classmethod
    def diffwave_fast(cls) -> "Discrete":
        """DiffWave's six inference betas."""
        return cls((1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5))
