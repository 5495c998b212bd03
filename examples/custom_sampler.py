"""A sampler of one's own: a two-step Adams-Bashforth rule, and how fast its error falls.

    python examples/custom_sampler.py

A `Sampler` has one method: from x at the level ``now`` to x at the cleaner level ``then``. With s = sigma / alpha the probability-flow
ODE is d(x / alpha)/ds = eps, so that a rule for ODEs is a line or two. Guidance, conditions, batches and projections are not its
business.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from guidance import DDIM, Condition, Level, LogSNR, Mixture, Prediction, Sampler, sample
from guidance.guide import CFG
from guidance.sampler import Past, Predict
from guidance.sampler.loop import Draw


@dataclass(frozen=True)
class AdamsBashforth:
    """y_s = y_t + h (eps + (h / 2 h_previous) (eps - eps_previous)), y = x / alpha, h = s - t: of order 2, one evaluation a step."""

    def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Draw, past: Past | None) -> tuple[Tensor, Prediction]:
        prediction = predict(x_t, now)
        if then.sigma == 0:
            return prediction.x0, prediction
        h, eps = then.sigma / then.alpha - now.sigma / now.alpha, prediction.eps
        if past is not None:
            before, where = past
            h_before = now.sigma / now.alpha - where.sigma / where.alpha
            eps = eps + h / (2 * h_before) * (eps - before.eps)
        return then.alpha * (x_t / now.alpha + h * eps), prediction


def main(n: int = 500) -> dict[str, list[float]]:
    """The mean error against a run of 1,280 steps, for 20, 40, 80 and 160 steps."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    denoiser = Mixture(means, stds=0.6, labels={"side": [0, 1]}).denoiser()
    side, grid, errors = Condition.of(side=torch.ones(n, dtype=torch.long)), LogSNR(-8, 8), {}

    def drawn(sampler: Sampler, steps: int) -> Tensor:
        return sample(denoiser, (n, 2), side, CFG(1.5), sampler, steps=steps, grid=grid)

    exact = drawn(AdamsBashforth(), 1280)
    for name, sampler in {"DDIM": DDIM(), "Adams-Bashforth": AdamsBashforth()}.items():
        errors[name] = [(drawn(sampler, steps) - exact).norm(dim=1).mean().item() for steps in (20, 40, 80, 160)]
        print(f"{name:16} " + "  ".join(f"{error:.5f}" for error in errors[name]))
    return errors


if __name__ == "__main__":
    main()
