"""Images in tar shards: any number of them, without unpacking."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from guidance.condition import Condition, ConditionSpec, Label
from guidance.streaming import ShardSet, Streamed, check_source
from modalities.image.files import PROMPT, captioned, check, prompt_of, to_pixels

KINDS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "pgm", "ppm")


@dataclass
class Shards:
    """Images in tar files of webdataset's form; `guidance.streaming` says how they are read.

    Args:
        shards: a folder of tar files, a glob, or "train-{000..041}.tar"; also below POLYGUIDE_DATA.
        size: side to scale and crop to; channels: 1, 3 or 4.
        held_out: other shards, to test on; without them, every fifth image of each class of the first attribute is.
        image: the extension of the image, where samples have several; else the first of `KINDS`.
        labels: attribute -> where its classes are: an extension (cls, txt), or an entry of the JSON member (json.artist).
        captions: where a caption is (txt, json.caption): the attribute ``prompt``; encoder, tokens: what reads them, as for `Folder`.
        together: shards whose images are mixed.
        skip_broken: take the next image of the shard in place of one that cannot be read, instead of stopping at it.
        classes: names of the classes of each attribute; a number in a shard is a place in them (found by looking).
        content: what the shards are, so that a run is not resumed with others (found by looking).
    """

    shards: str
    size: int
    channels: int = 3
    held_out: str | None = None
    image: str | None = None
    labels: Mapping[str, str] | None = None
    captions: str | None = None
    encoder: str | None = None
    tokens: int = 77
    together: int = 16
    skip_broken: bool = False
    classes: Mapping[str, Sequence[str]] | None = None
    content: str | None = None

    def __post_init__(self) -> None:
        check(self.size, self.channels, [])
        self._prompt = prompt_of(self.captions, self.encoder, self.tokens)
        if self.captions is not None:
            check_source(self.captions, "data.captions")
        kinds = (self.image.lower(),) if self.image else KINDS
        self._set = ShardSet(self.shards, self.held_out, kinds, "image", self.labels, self.classes, self.content, self.together)

    @property
    def name(self) -> str:
        return Path(self.shards).name.removesuffix(".tar")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.channels, self.size, self.size

    @property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        labels: dict[str, ConditionSpec] = {name: Label(classes) for name, classes in self._set.names.items()}
        return labels | ({PROMPT: self._prompt} if self._prompt else {})

    def _decode(self, content: bytes) -> Tensor:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return to_pixels(image if image.mode != "P" else image.convert("RGB"), self.size, self.channels)
        except UnidentifiedImageError:
            raise ValueError("it is no image of a known kind") from None
        except Exception as error:  # the library raises many kinds for a broken file
            raise ValueError(str(error)) from None

    def _more(self, raw: Tensor, texts: Sequence[str | None]) -> Condition:
        return captioned({}, self._prompt, texts)

    @cached_property
    def _splits(self) -> tuple[Streamed, Streamed]:
        return self._set.splits(self._decode, self._more, self.captions, self.skip_broken)

    @property
    def train(self) -> Streamed:
        return self._splits[0]

    @property
    def test(self) -> Streamed:
        return self._splits[1]

    def pinned(self) -> Mapping[str, Any]:
        return self._set.pinned()
