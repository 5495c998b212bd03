"""A world in which every guided sample is known, and cells that are made up.

Each attribute moves one number of a sample: a condition's denoiser is that of N(m, DEVIATION^2), where m is what its attributes say, and
0 where none is there. So guidance by any weighted sum of conditions is the denoiser of the weighted sum of their means, at every noise
level: samples from the same noise differ by exactly what the weights say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from guidance import CFG, X0, Condition, Cosine, Label
from guidance.analytic import Mixture
from guidance.denoiser import Denoiser
from guidance.estimate import Estimate
from guidance.experiment.cells import FORMAT, Measured
from guidance.experiment.conduct import conduct
from guidance.experiment.findings import Result
from guidance.modality import Modality
from guidance.model import Model
from guidance.noise import normal
from guidance.sampler import DPMSolver, Uniform

DEVIATION = 0.5
SIDE = Label(("left", "right"))
SHADE = Label(("low", "mid", "high"), levels=(("low",), ("mid",), ("high",)), quantity="grey")
TONE = Label(("flat", "sharp"))
MEANS = {"side": (-2.0, 2.0), "shade": (-2.0, 0.0, 2.0), "tone": (-2.0, 2.0)}
LABELS = {"side": SIDE, "shade": SHADE, "tone": TONE}


class Shifted(nn.Module):
    """E[x0 | x_t] of N(m, DEVIATION^2); the mean m is the embedding of a condition. Counts the rows that it sees."""

    def __init__(self, names: Sequence[str], scale: float = 1.0):
        super().__init__()
        self.names, self.rows = list(names), 0
        self.register_buffer("scale", torch.tensor(scale))

    def embed(self, condition: Condition) -> Tensor | None:
        if not len(condition):
            return None
        return torch.stack([torch.tensor(MEANS[n])[condition.values[n]] * condition.keep[n] for n in self.names], 1) * self.scale

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        self.rows += len(x_t)
        alpha2 = logsnr.double().sigmoid()[:, None]
        m = torch.zeros_like(x_t) if context is None else context
        gain = alpha2.sqrt() * DEVIATION**2 / (alpha2 * DEVIATION**2 + 1 - alpha2)
        return (m + gain * (x_t.double() - alpha2.sqrt() * m)).to(x_t)


class Same(nn.Module):
    """Samples are what is diffused."""

    def fit(self, split: Any) -> None:
        pass

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def project(self, x0: Tensor) -> Tensor:
        return x0

    def anchor_loss(self, raw: Any, x0_hat: Tensor, level: Any) -> Tensor:
        return x0_hat.new_zeros(len(x0_hat))


@dataclass
class Items:
    values: Tensor
    labels: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.values)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        rows = torch.tensor(index)
        return self.values[rows], Condition.of(**{name: of[rows] for name, of in self.labels.items()})


@dataclass
class Data:
    conditions: dict[str, Any]
    train: Items
    test: Items
    name: str = "numbers"
    shape: tuple[int, ...] = (2,)

    def pinned(self) -> dict[str, Any]:
        return {}


class Nearest:
    """Sees the class whose mean is nearest; its features are the numbers themselves."""

    accuracy = 0.875

    def __init__(self, column: int, means: Sequence[float]):
        self.column, self.means = column, torch.tensor(means)

    def __call__(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        return decoded, -(decoded[:, self.column, None] - self.means).square() / (2 * DEVIATION**2)


@dataclass
class Numbers:
    """How numbers are measured; ``grey`` is that which orders the shades. A judge that is asked for calls ``judging``."""

    names: Sequence[str]
    units: Mapping[str, str] = field(default_factory=lambda: {"grey": "0 is mid"})
    judging: Callable[[], None] = lambda: None

    def judge(self, data: Any, attribute: str) -> Nearest:
        self.judging()
        return Nearest(list(self.names).index(attribute), MEANS[attribute])

    def measure(self, decoded: Tensor, condition: Condition, original: Any = None) -> dict[str, Tensor]:
        column = list(self.names).index("shade") if "shade" in self.names else 0
        return {"grey": decoded[:, column].clone()}

    def together(self, decoded: Tensor) -> dict[str, float]:
        return {}

    def flat(self, decoded: Tensor) -> Tensor:
        return decoded


@dataclass
class Files:
    """A picture a sample; each set of samples gets a line in ``saved``. ``failing`` is raised when ``after`` sets have been saved."""

    saved: list[str] = field(default_factory=list)
    failing: BaseException | None = None
    after: int = 0

    formats = ("png",)

    def save(self, decoded: Tensor, folder: Path, names: Sequence[str], format: str | None = None) -> list[Path]:
        if not names[0].startswith("real-"):
            if self.failing is not None and len(self.saved) == self.after:
                raise self.failing
            self.saved.append(names[0].rsplit("-", 1)[0])
        paths = []
        for values, name in zip(decoded, names, strict=True):
            level = int((values[0].clamp(-5, 5) + 5) * 25)
            Image.new("L", (2, 2), level).save(folder / f"{name}.png")
            paths.append(folder / f"{name}.png")
        return paths

    def words(self, decoded: Any) -> list[str]:
        return []

    def table(self, decoded: Any, path: Path, rows: Any, columns: Any) -> Path:
        return path

    def animate(self, frames: Any, path: Path) -> Path:
        return path


CONFIG = {
    "seed": 0,
    "dropout": {"_target_": "guidance.condition.Dropout", "joint": 0.1, "each": 0.0},
    "trainer": {"steps": 10},
    "data": {"_target_": "numbers"},
}


def drawn(names: Sequence[str], n: int, seed: int) -> Items:
    """Items of all combinations in turn."""
    labels, rest = {}, torch.arange(n)
    for name in names:
        labels[name] = rest % len(MEANS[name])
        rest = rest // len(MEANS[name])
    centre = torch.stack([torch.tensor(MEANS[name])[of] for name, of in labels.items()], 1)
    return Items(centre + DEVIATION * normal(seed, 0, 0, 0, (n, len(labels))), labels)


def world(names: Sequence[str] = ("side", "shade"), network: nn.Module | None = None, data: Data | None = None, **config: Any) -> Model:
    """A model of it: exact where no other network is given."""
    network = network or Shifted(names)
    conditions = {name: LABELS[name] for name in names}
    data = data or Data(conditions, drawn(names, 60, 11), drawn(names, 48, 12), shape=(len(names),))
    modality = Modality("toy", (len(names),), Same(), network, conditions, data, Numbers(names), Files())  # type: ignore[arg-type]
    return Model(modality, {"main": Denoiser(network, Cosine(), X0())}, {**CONFIG, **config})  # type: ignore[arg-type]


def mixture(shares: Mapping[str, Sequence[float]]) -> Model:
    """A model of the mixture over all combinations of two attributes, each class with its share."""
    pairs = [(a, b) for a in range(len(shares["side"])) for b in range(len(shares["shade"]))]
    means = torch.tensor([[MEANS["side"][a], MEANS["shade"][b]] for a, b in pairs])
    weights = [shares["side"][a] * shares["shade"][b] for a, b in pairs]
    return world(network=Mixture(means, DEVIATION, weights, {"side": [a for a, _ in pairs], "shade": [b for _, b in pairs]}))


SETTINGS: dict[str, Any] = {
    "sampler": DPMSolver(),
    "steps": 6,
    "grid": Uniform(),
    "schedule": None,
    "seed": 3,
    "batch_size": None,
    "max_rows": None,
    "model": {},
}


def experiment_config(experiment: Any) -> dict[str, Any]:
    """As the command line would have it."""
    of = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(experiment).items()}
    return {"_target_": f"guidance.experiment.{type(experiment).__name__}", **of}


def measure(experiment: Any, of: Model, out: Path, n: int = 24, config: Mapping[str, Any] | None = None, **more: Any) -> Result:
    """`conduct` with settings that may be named: seed=..., steps=...; overwrite and make are its own."""
    own = {key: more.pop(key) for key in ("overwrite", "make") if key in more}
    return conduct(experiment, config or experiment_config(experiment), of, out, n, {**SETTINGS, **more}, **own)


def free(model: Model, n: int, **more: Any) -> Tensor:
    """The unconditional samples of the same noise."""
    return draw(model, n, CFG(0.0), {}, **more)


def draw(model: Model, n: int, guidance: Any, condition: Any = None, **more: Any) -> Tensor:
    settings = {key: value for key, value in {**SETTINGS, **more}.items() if key != "model"}
    return model.sample(n, condition, guidance=guidance, **settings)


def nearest(values: Tensor, name: str) -> Tensor:
    """The class whose mean is nearest, by hand."""
    return (values[:, None] - torch.tensor(MEANS[name])).abs().argmin(1)


def cheaply(patch: Any) -> None:
    """Distances and scores that cost nothing, where a test is not about them: they are tested elsewhere."""
    patch.setattr("guidance.measures.frechet", lambda a, b: float((a.mean(0) - b.mean(0)).square().sum()))
    patch.setattr("guidance.measures.inception_score", lambda logits: float(logits.softmax(-1).max(-1).values.mean()))


def sketched(parts: Any, folder: Path, name: str) -> list[Path]:
    """Files as of a figure, without the drawing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        path.write_text(f"{path.name}: {len(parts)}")
    return paths


# Made up


def made(
    at: Mapping[str, Any],
    seen: Mapping[str, Sequence[int]],
    asked: Mapping[str, Sequence[int]] | None = None,
    p: Mapping[str, Any] | None = None,
    estimates: Mapping[str, Estimate] | None = None,
    **quantities: Sequence[float],
) -> Measured:
    """A cell in which these classes were seen."""
    n = len(next(iter(seen.values())))
    arrays = {f"class.{name}": torch.tensor(of) for name, of in seen.items()}
    for name in seen:
        arrays[f"asked.{name}"] = torch.tensor((asked or {}).get(name, [-1] * n))
    for name, of in seen.items():
        sure = torch.tensor(of)[:, None] == torch.arange(len(LABELS[name].classes))
        arrays[f"p.{name}"] = torch.as_tensor((p or {}).get(name, sure)).float()
    arrays |= {name: torch.tensor(of).float() for name, of in quantities.items()}
    return Measured(at, n, estimates or {}, arrays, [], 1.0, 0.1)


def facts(cells: int, attributes: Mapping[str, Label] | None = None, **more: Any) -> dict[str, Any]:
    known = attributes or {"side": SIDE}
    count = len(next(iter(known.values())).classes)
    return {
        "format": FORMAT,
        "kind": "guidance.experiment.Tradeoff",
        "experiment": {"_target_": "guidance.experiment.Tradeoff", "scales": [1, 2]},
        "title": "A title",
        "n": 10,
        "seed_of_samples": 0,
        "sampler": "DPMSolver(), 5 steps, grid",
        "precision": "None",
        "model_settings": "{}",
        "weights": "w",
        "trainings": "t",
        "run": "runs/x",
        "seed": 0,
        "config": {"a": 1},
        "modality": "toy",
        "data": "numbers",
        "parameters": 1234,
        "trained": 10,
        "held_out": 48,
        "real": {},
        "units": {},
        "accuracy": dict.fromkeys(known, 0.875),
        "attributes": {
            name: {"classes": list(of.classes), "levels": [list(level) for level in of.levels], "quantity": of.quantity}
            for name, of in known.items()
        },
        "all_classes": {name: list(of.classes) for name, of in known.items()},
        "priors": {name: [1 / len(of.classes)] * len(of.classes) for name, of in known.items()},
        "distances": [[float(abs(k - c)) for c in range(count)] for k in range(count)],
        "cells": [f"cell-{k}" for k in range(cells)],
        **more,
    }


def result(cells: Sequence[Measured], folder: Path = Path("made-up"), **more: Any) -> Result:
    return Result(folder, facts(len(cells), **more), cells)


def exactly(value: float, half: float = 0.0, n: int = 10) -> Estimate:
    return Estimate(value, value - half, value + half, n)
