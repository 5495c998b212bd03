"""Clips of sound in memory, and what every audio data set can be conditioned on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.condition import Condition, ConditionSpec
from guidance.errors import one_of
from guidance.modality import Split
from modalities.audio.mel import Mel

CONDITIONS = ("classes", "mel", "both", "none")


@dataclass(frozen=True)
class Clips:
    """Clips with the values of their attributes: a `Split`. The mel spectrogram, where one is asked for, is made of the clip."""

    waves: Float[Tensor, "n samples"]
    labels: Mapping[str, Int[Tensor, "n"]]
    mel: Mel | None = None

    def __len__(self) -> int:
        return len(self.waves)

    def __getitems__(self, index: list[int]) -> tuple[Float[Tensor, "b samples"], Condition]:
        rows = torch.as_tensor(index)
        waves = self.waves[rows]
        mel = {} if self.mel is None else {"mel": self.mel.of(waves)}
        return waves, Condition.of(**{name: labels[rows] for name, labels in self.labels.items()}, **mel)

    def rows(self, index: Int[Tensor, "m"]) -> "Clips":
        return Clips(self.waves[index], {name: labels[index] for name, labels in self.labels.items()}, self.mel)


@dataclass
class Conditioned:
    """An audio data set: what its clips are conditioned on.

    Args:
        condition: "classes" (its own attributes), "mel" (a vocoder), "both", or "none".
        mel: settings of the spectrogram: mels, hop, window.
    """

    condition: str = "classes"
    mel: Mapping[str, int] = field(default_factory=lambda: {"mels": 64, "hop": 256, "window": 1024})

    rate = 0
    length = 0

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise one_of("data.condition", self.condition, CONDITIONS)
        unknown = set(self.mel) - {"mels", "hop", "window"}
        if unknown:
            raise one_of("setting of data.mel", min(unknown), ("mels", "hop", "window"))

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def attributes(self) -> Mapping[str, ConditionSpec]:
        """What the data set itself tells of its clips."""
        raise NotImplementedError

    @property
    def _splits(self) -> tuple[Split, Split]:
        """To train on, and held out."""
        raise NotImplementedError

    @property
    def train(self) -> Split:
        return self._splits[0]

    @property
    def test(self) -> Split:
        return self._splits[1]

    @property
    def spectrogram(self) -> Mel | None:
        return Mel(self.rate, self.length, **self.mel) if self.condition in ("mel", "both") else None

    @property
    def labelled(self) -> bool:
        return self.condition in ("classes", "both")

    def clips(self, waves: Float[Tensor, "n samples"], labels: Mapping[str, Int[Tensor, "n"]]) -> Clips:
        """With what they are conditioned on."""
        return Clips(waves, labels if self.labelled else {}, self.spectrogram)

    @property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        own = self.attributes if self.labelled else {}
        return {**own, **({"mel": self.spectrogram} if self.spectrogram else {})}
