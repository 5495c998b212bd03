"""Sounds in tar shards: any number of them, without unpacking."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError
from guidance.streaming import ShardSet, Streamed
from modalities.audio.clips import Conditioned
from modalities.audio.files import SUFFIXES, fit_length, mono

KINDS = ("wav", "flac", *sorted(suffix[1:] for suffix in SUFFIXES - {".wav", ".flac"}))


@dataclass
class Shards(Conditioned):
    """Sounds in tar files of webdataset's form; `guidance.streaming` says how they are read. The beginning of a longer sound is taken.

    Args:
        shards: a folder of tar files, a glob, or "train-{000..041}.tar"; also below POLYGUIDE_DATA.
        rate: in Hz; sounds of another rate are resampled.
        length: of a clip, in samples; shorter sounds are followed by silence.
        held_out: other shards, to test on; without them, every fifth sound of each class of the first attribute is.
        sound: the extension of the sound, where samples have several; else the first of `KINDS`.
        labels, together, skip_broken, classes, content: as for images.
    """

    shards: str = ""
    rate: int = 16000
    length: int = 16384
    held_out: str | None = None
    sound: str | None = None
    labels: Mapping[str, str] | None = None
    together: int = 16
    skip_broken: bool = False
    classes: Mapping[str, Sequence[str]] | None = None
    content: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate < 1000 or self.length < 16:
            raise UserError(f"data.rate is in Hz and data.length in samples, got {self.rate} and {self.length}")
        kinds = (self.sound.lower(),) if self.sound else KINDS
        labels = self.labels if self.labelled else {}
        classes = self.classes if self.labelled else {}
        self._set = ShardSet(self.shards, self.held_out, kinds, "sound", labels, classes, self.content, self.together)

    @property
    def name(self) -> str:
        return Path(self.shards).name.removesuffix(".tar")

    @property
    def attributes(self) -> Mapping[str, ConditionSpec]:
        return {name: Label(classes) for name, classes in self._set.names.items()}

    def _decode(self, content: bytes) -> Float[Tensor, "samples"]:
        return fit_length(mono(io.BytesIO(content), "it", self.rate, notice=False), self.length)

    def _more(self, raw: Float[Tensor, "b samples"], texts: Sequence[str | None]) -> Condition:
        return Condition.of(mel=self.spectrogram.of(raw)) if self.spectrogram else Condition()

    @cached_property
    def _splits(self) -> tuple[Streamed, Streamed]:
        return self._set.splits(self._decode, self._more, skip=self.skip_broken)

    def pinned(self) -> Mapping[str, Any]:
        return self._set.pinned()
