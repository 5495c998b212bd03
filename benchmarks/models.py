"""Each modality's small preset as the benchmarks use it: its own config, untrained, with every weight shaken so that nothing is zero."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pairs import Side
from torch import Tensor, nn

from guidance.config import build
from guidance.hydra import composed
from guidance.machine import precision
from guidance.model import Model, assemble

PRESETS: dict[str, list[str]] = {
    "image": ["modality=image", "data=digits"],
    "audio": ["modality=audio", "data=notes"],
    "text": ["modality=text", "data=trec", "modality.codec.kind=random"],  # vectors of a language model cost minutes, and the same time
}
N = {"image": 256, "audio": 64, "text": 64}
"""Samples drawn together; 256 is what `polyguide sample` draws at a time."""

FEW = 16
TERMS: dict[str, list[dict[str, Any]]] = {
    "image": [{"digit": 3}, {"digit": 8}, {"stroke": "bold"}],
    "audio": [{"instrument": "violin"}, {"pitch": 60}, {"loudness": "loud"}],
    "text": [{"topic": "human"}, {"topic": "location"}, {"length": "short"}],
}


class Silent(nn.Module):
    """A network that says x_t itself: what is left is the sampler's own work."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner

    def embed(self, condition: Any) -> Any:
        return self.inner.embed(condition)

    def forward(self, x_t: Tensor, *arguments: Any) -> Tensor:
        return x_t


@dataclass(frozen=True)
class Preset:
    model: Model
    config: dict[str, Any]


def preset(kind: str, *overrides: str, fit: bool = False) -> Preset:
    """The model of a preset. ``fit`` measures what its codec needs of the data, as training does."""
    torch.manual_seed(0)
    config = composed("train", [*PRESETS[kind], "out=unused", *overrides])
    modality, denoiser = assemble(config)
    if fit:
        modality.codec.fit(modality.data.train)
    for parameter in modality.modules().parameters():
        nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else None
    modality.modules().eval()
    return Preset(Model(modality, {"main": denoiser}, config), config)


def trainer_of(config: dict[str, Any], **settings: Any) -> Any:
    trainer = build({**config["trainer"], **settings}, "trainer")
    return replace(trainer, precision=precision(trainer.precision))


class Recorded(nn.Module):
    """A network that keeps what it is called with."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner, self.calls, self.embedded = inner, list[tuple[Any, ...]](), 0

    def embed(self, condition: Any) -> Any:
        self.embedded += 1
        return self.inner.embed(condition)

    def forward(self, *arguments: Any) -> Tensor:
        self.calls.append(arguments)
        made: Tensor = self.inner(*arguments)
        return made


def bare(network: Callable[..., Tensor], call: tuple[Any, ...], times: int, read: Callable[[Tensor], Any] = lambda output: None) -> Side:
    """Nothing but forward passes, with the same input; and ``read``, where reading their output is part of the model."""

    def forward() -> None:
        with torch.no_grad():
            for _ in range(times):
                read(network(*call))

    return forward


def machine() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "instructions": instructions(),
        "time": "of the processor" if torch.get_num_threads() == 1 else "of the wall clock",
    }


def processor() -> str:
    """Its name, as Linux knows it, or its kind."""
    try:
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


PLAIN = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""The environment in which PyTorch, oneDNN and MKL know no AVX-512 and no AMX."""


def instructions() -> str:
    """What PyTorch's own kernels use, and what oneDNN is held to."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return torch.backends.cpu.get_cpu_capability() + (f", oneDNN at most {limit}" if limit else "")
