"""DDIM (Song et al., 2010.02502)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.ddpm import DDPM, transition_variance
from guidance.sampler.loop import Draw, Past, Predict, Sampler


@dataclass(frozen=True)
class DDIM:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z, with c = eta (sigma_s / sigma_t) sigma_ts.

    eta = 0 is deterministic: the exponential Euler step of the probability-flow ODE. eta = 1 is `DDPM` with v = 0. A prediction that
    says so goes on with another noise than eps (`Prediction.renoise`, CFG++).
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.eta, int | float) and 0 <= self.eta <= 1):
            raise UserError(f"DDIM's eta lies between 0 and 1, got {self.eta!r}")

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        prediction = predict(x_t, now)
        noise = prediction.eps if prediction.renoise is None else prediction.renoise
        if self.eta == 0 or then.sigma == 0:
            return then.alpha * prediction.x0 + then.sigma * noise, prediction
        c = self.eta * then.sigma / now.sigma * transition_variance(now, then).sqrt()
        kept = (then.sigma**2 - c**2).clamp(min=0).sqrt()
        return then.alpha * prediction.x0 + kept * noise + c * draw(), prediction


def ancestral(sampler: Sampler) -> bool:
    """Whether every step adds the noise of the reverse process; a sampler of one's own says so by an attribute ``sde = True``."""
    return isinstance(sampler, DDPM) or (isinstance(sampler, DDIM) and sampler.eta == 1) or bool(getattr(sampler, "sde", False))
