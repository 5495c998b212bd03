"""What a modality brings: the contract between the core and a plug-in. The core is written against these protocols only.

A plug-in is a function ``build(...) -> Modality`` that its config names; what it bundles is found under the same names in
every plug-in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from guidance.condition import Condition, ConditionSpec
from guidance.denoiser import Network
from guidance.process import Level


@runtime_checkable
class Codec(Protocol):
    """Between what people have and what is diffused. An nn.Module, trained with the network where it has parameters."""

    def fit(self, split: "Split") -> None:
        """Measure on the training data what `encode` needs (a scale), into buffers; called once, before training."""
        ...

    def encode(self, raw: Any) -> Float[Tensor, "b *d"]:
        """A batch of raw data as x0, of about unit scale."""
        ...

    def decode(self, x0: Float[Tensor, "b *d"]) -> Any:
        """x0 as people have it: uint8 [n, channels, h, w]; float [n, samples] in [-1, 1]; list[str]."""
        ...

    def project(self, x0: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """The nearest x0 that data can have (a clamp; the nearest embedding)."""
        ...

    def anchor_loss(self, raw: Any, x0_hat: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b"]:
        """What is added to the diffusion loss of each sample: 0, or for text the rounding cross-entropy.

        A codec that says ``anchored = False`` adds nothing, and is not asked: x0_hat need not be made for it.
        """
        ...


@runtime_checkable
class Split(Protocol):
    """A part of a data set, at random access."""

    def __len__(self) -> int: ...

    def __getitems__(self, index: list[int]) -> tuple[Any, Condition]:
        """The raw batch of these items, as the codec takes it, and their condition."""
        ...


@dataclass(frozen=True)
class Blocks:
    """Where the items of a split lie: block k holds the items edges[k] to edges[k + 1] - 1, which are best read together.

    ``together``: blocks whose items are mixed in training.
    """

    edges: Int[np.ndarray, "blocks_and_1"]
    together: int


@runtime_checkable
class Blocked(Protocol):
    """What a split may say besides, whose items lie in files one after another: training takes them nearly in turn then."""

    @property
    def blocks(self) -> Blocks | None:
        """None where all places are alike."""
        ...


@runtime_checkable
class Data(Protocol):
    """A data set. Shape and conditions are known before any data is read, once `pinned` has been stored with a run."""

    @property
    def name(self) -> str:
        """What it is called in reports."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one raw sample."""
        ...

    @property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        """The attributes that can be named, and what each may be."""
        ...

    @property
    def train(self) -> Split:
        """What is trained on, and what judges learn from."""
        ...

    @property
    def test(self) -> Split:
        """Held out: never trained on."""
        ...

    def pinned(self) -> Mapping[str, Any]:
        """Config values that were found by looking at the data (sizes, class names): a run stores them."""
        ...


@runtime_checkable
class Judge(Protocol):
    """A classifier of one attribute, trained on clean real training data; its features carry the distances."""

    accuracy: float  # on held-out data

    def __call__(self, decoded: Any) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n classes"]]:
        """Features and class logits."""
        ...


@runtime_checkable
class Metrics(Protocol):
    """How samples of a modality are measured."""

    def judge(self, data: Data, attribute: str) -> Judge:
        """The judge of an attribute, trained or taken from the cache."""
        ...

    @property
    def units(self) -> Mapping[str, str]:
        """What each of the modality's own measures is, with its unit, to be read beside its name: {"loudness": "dB of full scale"}."""
        ...

    def measure(self, decoded: Any, condition: Condition, original: Any = None) -> Mapping[str, Float[Tensor, "n"]]:
        """Quantities of the modality's own: a number a sample (ink; the error in pitch; length), NaN where one does not apply.

        Args:
            condition: what was asked for.
            original: real data of that condition, where it was taken from real data.
        """
        ...

    def together(self, decoded: Any) -> Mapping[str, float]:
        """Quantities of a set of samples (the entropy of their words)."""
        ...

    def flat(self, decoded: Any) -> Float[Tensor, "n size"]:
        """As vectors in which the Euclidean distance tells copies from new samples."""
        ...


@dataclass(frozen=True)
class SideTraining:
    """What is trained beside a model (a judge, a language model that measures), so that its cost can be counted before it is paid.

    ``steps`` steps, each the gradients of ``loss()``, which runs ``module`` on a batch of zeros that it makes itself. Whoever counts makes
    the module's weights fake (shapes, no numbers) first, so nothing may look at a number.
    """

    module: nn.Module
    steps: int
    loss: Callable[[], Float[Tensor, ""]]


@runtime_checkable
class CountedJudges(Protocol):
    """What `Metrics` may say besides: what it takes to train a judge, which `polyguide cost` counts."""

    def judge_training(self, data: Data, attribute: str) -> SideTraining:
        """As `Metrics.judge` would train it; see `guidance.judge.judge_training`."""
        ...


@runtime_checkable
class Render(Protocol):
    """How samples of a modality are shown and written."""

    @property
    def formats(self) -> Sequence[str]:
        """The files that samples can be saved as, by suffix, the usual one first: ("png", "webp")."""
        ...

    def save(self, decoded: Any, folder: Path, names: Sequence[str], format: str | None = None) -> list[Path]:
        """One file a sample, in what people open: NAME.png. No file where the format is that of `samples.jsonl`, which says all."""
        ...

    def words(self, decoded: Any) -> Sequence[str]:
        """What a terminal can show of each sample; nothing where that is nothing."""
        ...

    def table(self, decoded: Any, path: Path, rows: Sequence[str], columns: Sequence[str]) -> Path:
        """len(rows) x len(columns) samples, row after row, with the titles of both; returns where (the suffix may be another)."""
        ...

    def animate(self, frames: Sequence[Any], path: Path) -> Path:
        """The decoded x0 estimates of a run, one batch a frame; returns where (the suffix may be another)."""
        ...


@dataclass(frozen=True)
class Modality:
    """A bundle of parts; ``network`` and ``codec`` are nn.Modules.

    ``shape`` is that of one sample of x0, as the codec's `encode` gives it: the raw data's own only where the codec keeps it.
    """

    name: str
    shape: tuple[int, ...]
    codec: Codec
    network: Network
    conditions: Mapping[str, ConditionSpec]
    data: Data
    metrics: Metrics
    render: Render
    shape_of: Callable[[Condition], tuple[int, ...]] | None = None
    """Of one sample, where it follows from the condition (a vocoder's clip is as long as its spectrogram)."""
    known: Callable[[Condition], tuple[Bool[Tensor, "b *ones"], Float[Tensor, "b *d"]]] | None = None
    """Where a condition says what x0 is, and what it is there (the given words of a sentence): sampling keeps to it."""
    files: Callable[[], Mapping[str, bytes]] | None = None
    """What a run keeps beside its config, by file name (a vocabulary); its config refers to one as "run:NAME"."""
    pinned: Callable[[], Mapping[str, Mapping[str, Any]]] | None = None
    """As `Data.pinned`, for other sections of the config: section -> settings that were found when the model was made."""
    beside: Mapping[str, Callable[[], SideTraining]] = field(default_factory=dict)
    """What is trained beside the model before it can be trained or measured (a language model), by name; `polyguide cost` counts it."""

    def modules(self) -> nn.ModuleDict:
        """All that is trained and stored."""
        parts = {"network": self.network, "codec": self.codec}
        return nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
