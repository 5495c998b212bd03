"""Other libraries' sampling loops around one of our networks, guided at scale 3 as their users do it: both rows in one batch.

Every function gives a side to be timed; a library that is not installed is left out, and said so.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from peers import alone
from torch import Tensor, nn

from guidance.denoiser import Denoiser
from guidance.process import Level

SCALE = 3.0


class Doubled:
    """(x_t in variance-preserving scale, logsnr) -> guided (x0, eps), from one call with 2 n rows."""

    def __init__(self, network: Callable[..., Tensor], context: Any, denoiser: Denoiser):
        self.network, self.context, self.denoiser = network, context, denoiser
        self.x0_hat: Tensor | None = None

    def __call__(self, x: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        rows = logsnr.to(x.dtype).clamp(-20, 20).expand(2 * len(x))
        twice = torch.cat([x, x])
        more = () if not self.denoiser.self_condition else (None if self.x0_hat is None else torch.cat([self.x0_hat, self.x0_hat]),)
        output = self.network(twice, rows, self.context, *more)
        alpha, sigma = rows[0].sigmoid().sqrt(), (-rows[0]).sigmoid().sqrt()
        prediction = self.denoiser.parameterization.read(output, twice, Level(rows[0], alpha, sigma))
        (x0, x0_null), (eps, eps_null) = prediction.x0.chunk(2), prediction.eps.chunk(2)
        x0, eps = x0_null + SCALE * (x0 - x0_null), eps_null + SCALE * (eps - eps_null)
        self.x0_hat = x0
        return x0, eps


def diffusers_loop(kind: str, make: Callable[[], Doubled], shape: tuple[int, ...], steps: int) -> Callable[[], None]:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    settings = {"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"}
    scheduler: Any = DDIMScheduler(**settings, clip_sample=False) if kind == "ddim" else DPMSolverMultistepScheduler(**settings)

    def sample() -> None:
        with torch.no_grad():
            predict, x = make(), torch.randn(shape)
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                kept = scheduler.alphas_cumprod[t]
                eps = predict(scheduler.scale_model_input(x, t), torch.logit(kept))[1]
                x = scheduler.step(eps, t, x).prev_sample

    return sample


def azula_loop(make: Callable[[], Doubled], shape: tuple[int, ...], steps: int) -> Callable[[], None]:
    from azula.denoise import Denoiser as Theirs
    from azula.denoise import DiracPosterior
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Guided(Theirs):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule, self.predict = VPSchedule(), make()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(mean=self.predict(x_t, 2 * (alpha / sigma).log())[0])

    def sample() -> None:
        with torch.no_grad():
            sampler = DDIMSampler(Guided(), steps=steps, silent=True)
            sampler(torch.randn(shape))

    return sample


def k_diffusion_loop(make: Callable[[], Doubled], shape: tuple[int, ...], steps: int) -> Callable[[], None]:
    sampling = alone("k_diffusion", "sampling")

    class Guided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predict = make()

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.predict(x / (1 + sigma[0] ** 2).sqrt(), -2 * sigma[0].log())[0]

    def sample() -> None:
        with torch.no_grad():
            sigmas = sampling.get_sigmas_karras(steps, 0.01, 80.0)
            sampling.sample_dpmpp_2m(Guided(), torch.randn(shape) * 80.0, sigmas, disable=True)

    return sample


def available(
    network: Callable[..., Tensor], context: Any, shape: tuple[int, ...], denoiser: Denoiser, steps: int
) -> dict[str, Callable[[], None]]:
    def make() -> Doubled:
        return Doubled(network, context, denoiser)

    loops: dict[str, tuple[str, Callable[[], Callable[[], None]]]] = {
        "diffusers, DDIM": ("diffusers", lambda: diffusers_loop("ddim", make, shape, steps)),
        "diffusers, DPM++(2M)": ("diffusers", lambda: diffusers_loop("dpm", make, shape, steps)),
        "azula, DDIM": ("azula", lambda: azula_loop(make, shape, steps)),
        "k-diffusion, DPM++(2M)": ("k_diffusion", lambda: k_diffusion_loop(make, shape, steps)),
    }
    found = {}
    for name, (package, loop) in loops.items():
        if package not in sys.modules and find_spec(package) is None:
            print(f"{name}: not installed, left out")
        else:
            found[name] = loop()
    return found
