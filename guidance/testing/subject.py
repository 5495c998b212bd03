"""What is asked: a modality made from its training config, with some of its data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from guidance.condition import Condition, Partial
from guidance.denoiser import Denoiser, Network
from guidance.hydra import composed
from guidance.modality import Codec, Data, Metrics, Modality, Render, Split
from guidance.model import Model, assemble
from guidance.noise import Stream, normal

N = 4  # items that are looked at
STEPS = 3  # of sampling


class Broken(AssertionError):
    """A modality does not do what the contract says."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


def keeps_the_protocols(modality: Modality) -> None:
    """Has every part all that is asked of it, and can each method be called as its protocol says?"""
    for part in ("network", "codec"):
        require(isinstance(getattr(modality, part), nn.Module), f"its {part} is no nn.Module, so nothing of it would be stored or moved")
    for part, protocol in {"codec": Codec, "network": Network, "data": Data, "metrics": Metrics, "render": Render}.items():
        made = getattr(modality, part)
        for name in (name for name in dir(protocol) if not name.startswith("_")):
            require(hasattr(made, name), f"its {part} has no {name}; see guidance.modality.{protocol.__name__}")
            of = getattr(protocol, name)
            if not isinstance(of, FunctionType):
                continue
            _, *arguments = signature(of).parameters
            try:
                signature(getattr(made, name)).bind(*arguments)
            except TypeError:
                raise Broken(f"its {part}.{name} does not take ({', '.join(arguments)})") from None
    for which in ("train", "test"):
        require(isinstance(getattr(modality.data, which), Split), f"its data.{which} has no __len__ or no __getitems__")


@dataclass(frozen=True)
class Subject:
    """A modality made from its training config, with some of its data."""

    config: Mapping[str, Any]
    modality: Modality
    denoiser: Denoiser
    raw: Any
    condition: Condition

    @classmethod
    def of(cls, name: str, overrides: Sequence[str] = ()) -> "Subject":
        """As ``polyguide train modality=NAME OVERRIDES`` would make it, with the codec fitted. UserError where that fails."""
        config = composed("train", [f"modality={name}", *overrides, "out=unused"])
        torch.manual_seed(0)
        modality, denoiser = assemble(config)
        keeps_the_protocols(modality)
        require(len(modality.data.train) >= N, f"{modality.data.name} has fewer than {N} training items")
        modality.codec.fit(modality.data.train)
        count = len(modality.data.train)
        raw, condition = modality.data.train.__getitems__([k * (count - 1) // (N - 1) for k in range(N)])
        shake(modality.modules())
        modality.modules().eval()
        return cls(config, modality, denoiser, raw, condition)

    @property
    def model(self) -> Model:
        return Model(self.modality, {"main": self.denoiser}, self.config)

    @property
    def x0(self) -> Tensor:
        with torch.no_grad():
            return self.modality.codec.encode(self.raw)

    @property
    def asked(self) -> Condition:
        """What can be asked for: no attribute that is known in part."""
        partial = [name for name, spec in self.modality.conditions.items() if isinstance(spec, Partial) and name in self.condition.keep]
        return self.condition.drop(*partial) if partial else self.condition

    @torch.no_grad()
    def output(self, condition: Condition, logsnr: float | Tensor = 0.0, rows: Tensor | None = None) -> Tensor:
        """What the network says of the items at a noise level, or at one a sample."""
        rows = torch.arange(N) if rows is None else rows
        x_t = (self.x0 + normal(0, Stream.CORRUPT, 0, 0, tuple(self.x0.shape)))[rows] / 2**0.5
        context = self.modality.network.embed(condition.rows(rows))
        return self.modality.network(x_t, torch.as_tensor(logsnr).expand(N)[rows], context)


@torch.no_grad()
def shake(module: nn.Module, by: float = 0.02) -> None:
    """Some noise on every weight that is trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def close(a: Tensor, b: Tensor, within: float = 1e-3) -> bool:
    """Equal up to rounding, which many layers add up."""
    return a.shape == b.shape and bool((a - b).abs().max() <= within * (1 + b.abs().max()))
