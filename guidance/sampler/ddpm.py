"""Ancestral sampling (Ho et al., 2006.11239), between any two levels."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.loop import Draw, Past, Predict


def transition_variance(now: Level, then: Level) -> Tensor:
    """The variance that the forward process adds from ``then`` to ``now``: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2.

    From the log-SNRs, for precision: sigma_t^2 (1 - snr_t / snr_s).
    """
    return now.sigma**2 * -(now.logsnr - then.logsnr).expm1()


def posterior_mean(x_t: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """The mean of q(x_s | x_t, x0): (alpha_t/alpha_s) (sigma_s/sigma_t)^2 x_t + alpha_s (sigma_ts/sigma_t)^2 x0."""
    of_x = now.alpha / then.alpha * (then.sigma / now.sigma) ** 2
    of_x0 = then.alpha * transition_variance(now, then) / now.sigma**2
    return of_x * x_t + of_x0 * x0


@dataclass(frozen=True)
class DDPM:
    """x_s ~ N(posterior mean, variance = lower^(1 - v) upper^v), the last step without noise.

    lower = (sigma_s/sigma_t)^2 sigma_ts^2 is the variance of q(x_s | x_t, x0), upper = sigma_ts^2 that of the forward step; v
    interpolates their logarithms (Ho & Salimans, 2207.12598, eq. 4; they use 0.3 and 0.2).

    A gradient g shifts the mean by variance * g, where the mean is that of the prediction without it (Dhariwal & Nichol, 2105.05233,
    algorithm 1); the last step is not shifted.
    """

    v: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.v, int | float) and 0 <= self.v <= 1):
            raise UserError(f"DDPM's variance interpolation v lies between 0 and 1, got {self.v!r}")

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        prediction = predict(x_t, now)
        g, x0 = prediction.gradient, prediction.x0
        mean = posterior_mean(x_t, x0 if g is None else x0 - now.sigma**2 / now.alpha * g, now, then)
        if then.sigma == 0:
            return mean, prediction
        deviation = transition_variance(now, then).sqrt() * (then.sigma / now.sigma) ** (1 - self.v)
        if g is not None:
            mean = mean + deviation**2 * g
        return mean + deviation * draw(), prediction
