"""A network together with the meaning of what it says."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.parameterization import Parameterization, Prediction
from guidance.process import Level
from guidance.schedule import Schedule

Context = Any
"""A pytree of tensors, batch first: all that a network makes of a condition without knowing the noise level."""

LOGSNR_LIMIT = 20.0
"""Networks are shown log-SNRs within plus and minus this: beyond it x_t is noise, or data, to float precision."""


@runtime_checkable
class Network(Protocol):
    """An nn.Module that denoises. It sees x_t in variance-preserving scale, and the noise level as logsnr."""

    def embed(self, condition: Condition) -> Context:
        """Everything that does not depend on the noise level, computed once a run."""
        ...

    def __call__(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: Context, x0_hat: Float[Tensor, "b *d"] | None = None
    ) -> Float[Tensor, "b *d"]:
        """``x0_hat``: an earlier guess of x0, given only by a Denoiser with ``self_condition``; None, or a row of zeros, is no guess."""
        ...


@runtime_checkable
class Density(Protocol):
    """A `Network` that knows the density whose score it gives."""

    def log_density(self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: Context) -> Float[Tensor, "b"]:
        """log p_t(x_t | c), in variance-preserving scale, up to a constant that depends on the noise level alone."""
        ...


@dataclass(frozen=True)
class Denoiser:
    """(x_t, level, context) -> Prediction.

    The network always sees ``x_t / sqrt(alpha^2 + sigma^2)``. x0 and eps do not depend on that scale, so a network that was
    trained on one schedule can be sampled on any other, variance-preserving or not.

    With ``self_condition`` the network sees its earlier, guided, guess of x0 (Chen et al., 2208.04202). Without ``null_self_condition``
    guidance withholds it from the null condition's rows, whose guess would otherwise carry the condition into them (Strudel et al.,
    2211.04236); a sample that is guided by the null condition alone keeps it.

    ``precision`` is the network's own when it is sampled (torch.bfloat16, say; None: that of its weights), what it embeds included; all
    around it stays float32.
    """

    network: Network
    schedule: Schedule
    parameterization: Parameterization
    self_condition: bool = False
    null_self_condition: bool = True
    precision: torch.dtype | None = None

    def cast(self, device: torch.device | str) -> AbstractContextManager[Any]:
        """Within it the network has its precision; without one of its own, that of whoever calls: training's, for the earlier guess."""
        return nullcontext() if self.precision is None else torch.autocast(torch.device(device).type, self.precision)

    def output(
        self, x_t: Float[Tensor, "b *d"], level: Level, context: Context, x0_hat: Float[Tensor, "b *d"] | None = None
    ) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b *d"], Level]:
        """What the network says, with the x_t and the level that it was shown."""
        norm = level.norm
        shown = Level(level.t, level.alpha / norm, level.sigma / norm)
        x_t, rows = self.seen(x_t, level)
        if self.self_condition:
            return self.network(x_t, rows, context, x0_hat), x_t, shown
        return self.network(x_t, rows, context), x_t, shown

    def seen(self, x_t: Float[Tensor, "b *d"], level: Level) -> tuple[Float[Tensor, "b *d"], Float[Tensor, "b"]]:
        """x_t in variance-preserving scale, and each sample's log-SNR: what networks are shown."""
        logsnr = level.logsnr.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)
        # One level for all stays a number, so that a GPU need not be waited for.
        rows = torch.full((len(x_t),), logsnr.item(), dtype=x_t.dtype, device=x_t.device) if logsnr.ndim == 0 else logsnr
        return x_t / level.norm, rows

    def log_density(self, x_t: Float[Tensor, "b *d"], level: Level, context: Context) -> Float[Tensor, "b"]:
        """The network's own log p_t(x_t | c). UserError where it knows none."""
        if not isinstance(self.network, Density):
            raise UserError(f"{type(self.network).__name__} knows no density (log_density), only scores")
        return self.network.log_density(*self.seen(x_t, level), context)

    def __call__(
        self, x_t: Float[Tensor, "b *d"], level: Level, context: Context, x0_hat: Float[Tensor, "b *d"] | None = None
    ) -> Prediction:
        with self.cast(x_t.device):
            output, x_t, shown = self.output(x_t, level, context, x0_hat)
        return self.parameterization.read(output.to(x_t.dtype), x_t, shown)


class NoiseEmbedding(nn.Module):
    """logsnr [b] -> [b, width]: sines and cosines of geometric frequencies, then a two-layer perceptron.

    The wavelengths run from 1 to 200 in logsnr, whose range is 40.
    """

    frequencies: Tensor

    def __init__(self, width: int, features: int = 64):
        super().__init__()
        wavelengths = torch.logspace(0, math.log10(200), features // 2)
        self.register_buffer("frequencies", 2 * math.pi / wavelengths, persistent=False)
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, logsnr: Float[Tensor, "b"]) -> Float[Tensor, "b width"]:
        angles = logsnr[:, None] * self.frequencies
        result: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))
        return result
