"""Langevin steps at every level, after another sampler's step to it; with a Metropolis test where the density is known."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.denoiser import Density
from guidance.errors import UserError
from guidance.guided import GuidedDenoiser
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.ddpm import DDPM
from guidance.sampler.loop import Draw, Past, Predict, Sampler, further, uniform


@dataclass(frozen=True, kw_only=True)
class Moved(Prediction):
    """A prediction, with each sample's share of accepted moves at the level after it."""

    acceptance: Float[Tensor, "b"]


@dataclass(frozen=True)
class Langevin:
    """``moves`` Langevin steps with the guided score s, after ``sampler``'s step, at every level but the clean one:

        x <- x + delta s(x) + sqrt(2 delta) z,    delta = size sigma^2,    s = -eps / sigma

    which leave the guided density of the level, prod_k p_t(x | c_k)^(w_k), as it is, up to a bias of the order of ``size``: annealed
    Langevin, the corrector of Song et al. (2011.13456, algorithms 4 and 5) with a step that does not depend on the batch. With guidance it
    is the predictor-corrector of Bradley & Nakkiran (2408.09000): at every level a guided density is approached that the sampler's own
    steps miss. Each move is one evaluation of every term.

    ``adjusted`` accepts a move from x to x' with probability min(1, p(x') q(x | x') / (p(x) q(x' | x))), q being the move's own Gaussian
    (Roberts & Tweedie 1996), which takes the bias away. It needs a network that knows its density and a guidance that makes one density of
    them, and costs 2 (moves + 1) evaluations of every term. A projection of x0 makes the moves worse but, being the same function there
    and back, not wrong: what they lead to is the density without it. ``Progress.prediction.acceptance`` is the share accepted.

    Args:
        sampler: the steps from level to level.
        moves: at each level.
        size: of a move; 1 is as wide as the noise itself.
        adjusted: whether moves are accepted or refused by the density.
        low, high: there are no moves at levels outside of low <= logsnr <= high.
    """

    corrects: ClassVar[bool] = True  # it asks for a prediction several times a level

    sampler: Sampler = field(default_factory=DDPM)
    moves: int = 5
    size: float = 0.2
    adjusted: bool = False
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler) or isinstance(self.sampler, type):
            raise UserError(f"Langevin's sampler is an object such as DDPM(), got {self.sampler!r}")
        if isinstance(self.moves, bool) or not isinstance(self.moves, int) or self.moves < 0:
            raise UserError(f"Langevin's moves is a whole number, at least 0, got {self.moves!r}")
        if not (isinstance(self.size, int | float) and 0 < self.size < math.inf and self.low <= self.high):
            raise UserError(f"Langevin needs a size above 0 and low <= high, got size={self.size!r}, low={self.low!r}, high={self.high!r}")

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        if not self.adjusted:
            return
        why = "Langevin's adjusted=true goes by the guided density, which"
        for model in dict.fromkeys(term.model for term in guided.terms):
            denoiser = guided.denoisers[str(model)]
            network = type(denoiser.network).__name__
            if not isinstance(denoiser.network, Density):
                raise UserError(f"{why} {network} does not know, only its score; use adjusted=false, or give it log_density")
            if denoiser.self_condition:
                raise UserError(f"{why} changes with the earlier guess that {network} is shown; use adjusted=false")
        if guided.differentiates or not hasattr(guided.guidance, "log_density"):
            raise UserError(f"{why} {type(guided.guidance).__name__} does not have; use adjusted=false")

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        x, prediction = self.sampler.step(predict, x_t, now, then, further(draw, 2 * self.moves), past)
        if then.sigma == 0 or not self.moves or not self.low <= then.logsnr.item() <= self.high:
            return x, prediction
        if self.adjusted:
            x, acceptance = self._adjusted(predict, x, then, draw)
            p = prediction
            return x, Moved(p.x0, p.eps, p.parts, p.gradient, p.renoise, acceptance=acceptance)
        for k in range(self.moves):
            x = self._drifted(x, predict(x, then).eps, then) + self._width(then) * draw(1 + k)
        return x, prediction

    def _drifted(self, x: Tensor, eps: Tensor, at: Level) -> Tensor:
        return x - self.size * at.sigma * eps

    def _width(self, at: Level) -> Tensor:
        return math.sqrt(2 * self.size) * at.sigma

    def _adjusted(self, predict: Predict, x: Tensor, at: Level, draw: Draw) -> tuple[Tensor, Float[Tensor, "b"]]:
        """x after the accepted ones of the moves, and the share of them."""

        def seen(x: Tensor) -> tuple[Tensor, Tensor]:
            prediction = predict(x, at)
            if prediction.gradient is not None:
                raise UserError("Langevin's adjusted=true goes by the guided density, of which an added gradient is no part")
            return prediction.eps, predict.guided.log_density(x, at).double()

        eps, log_p = seen(x)
        accepted = torch.zeros_like(log_p)
        for k in range(self.moves):
            there = draw(1 + 2 * k)
            new = self._drifted(x, eps, at) + self._width(at) * there
            new_eps, new_log_p = seen(new)
            back = (x - self._drifted(new, new_eps, at)) / self._width(at)
            log_q = (_squares(there) - _squares(back)) / 2  # log q(x | x') - log q(x' | x)
            yes = uniform(draw(2 + 2 * k)).log() < new_log_p - log_p + log_q
            accepted += yes
            wide = yes.view(-1, *(1,) * (x.ndim - 1))
            x, eps, log_p = torch.where(wide, new, x), torch.where(wide, new_eps, eps), torch.where(yes, new_log_p, log_p)
        return x, accepted / self.moves


def _squares(x: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    return x.double().square().flatten(1).sum(1)
