"""DPM-Solver++(2M) (Lu et al., 2211.01095), as ODE and as SDE."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.loop import Draw, Past, Predict


@dataclass(frozen=True)
class DPMSolver:
    """The second-order multistep solver in half log-SNR, h = (logsnr_s - logsnr_t) / 2, exact in its linear part:

        ODE   x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D
        SDE   x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z

    with D = x0 + (h / 2 h_previous) (x0 - x0_previous), and D = x0 at the first and at the last step. One evaluation a step.
    """

    sde: bool = False

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        prediction = predict(x_t, now)
        if then.sigma == 0:
            return prediction.x0, prediction
        h = (then.logsnr - now.logsnr) / 2
        d = prediction.x0
        if past is not None:
            before, where = past
            ratio = (then.logsnr - now.logsnr) / (now.logsnr - where.logsnr)
            d = d + ratio / 2 * (d - before.x0)
        rate = 2 if self.sde else 1  # the SDE forgets x_t twice as fast, and makes up for it with noise
        forgotten = -(-rate * h).expm1()
        x = then.sigma / now.sigma * (-(rate - 1) * h).exp() * x_t + then.alpha * forgotten * d
        if self.sde:
            x = x + then.sigma * forgotten.sqrt() * draw()
        return x, prediction
