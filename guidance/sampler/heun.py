"""EDM's second-order sampler (Karras et al., 2206.00364, algorithms 1 and 2)."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.loop import Draw, Past, Predict


@dataclass(frozen=True)
class Heun:
    """Heun's rule for the probability-flow ODE, Euler at the last step.

    With s = sigma / alpha the ODE is d(x / alpha)/ds = eps, and as well d(x / sigma)/d(1/s) = x0. EDM steps in the first form
    everywhere, which is ``mirror=False``; with ``mirror``, steps that begin at s > 1 take the second, its mirror image, since the
    trapezium rule in s has a large error where s starts in the thousands (as on a cosine schedule truncated at logsnr -20).

    Two evaluations a step but the last. With ``churn`` (their S_churn over the number of steps: the relative increase of s), noise
    of deviation ``noise`` raises the level before the step, where low <= s <= high (their S_min, S_max, S_noise).
    """

    churn: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0
    mirror: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.churn <= math.sqrt(2) - 1 + 1e-9 and self.low <= self.high and self.noise >= 0):
            raise UserError(
                "Heun needs 0 <= churn <= sqrt(2) - 1, low <= high and noise >= 0, "
                f"got churn={self.churn}, low={self.low}, high={self.high}, noise={self.noise}"
            )

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        if self.churn and self.low <= (s := now.sigma / now.alpha) <= self.high:
            raised = predict.at(now.logsnr - 2 * math.log1p(self.churn))
            more = ((raised.sigma / raised.alpha) ** 2 - s**2).clamp(min=0).sqrt()
            x_t = raised.alpha * (x_t / now.alpha + more * self.noise * draw())
            now = raised
        prediction = predict(x_t, now)
        x = then.alpha * prediction.x0 + then.sigma * prediction.eps
        if then.sigma == 0:
            return x, prediction
        later = predict(x, then)
        if self.mirror and now.sigma > now.alpha:
            return x + (then.alpha - then.sigma * now.alpha / now.sigma) * (later.x0 - prediction.x0) / 2, prediction
        return x + (then.sigma - then.alpha * now.sigma / now.alpha) * (later.eps - prediction.eps) / 2, prediction
