"""Images that are decoded when they are asked for: any folder, any data set of the hub; with captions, where there are some."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from guidance.bar import each
from guidance.bridges.transformers import Prompt
from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError, one_of
from guidance.modality import Blocks
from guidance.split import every_fifth
from modalities import assets

PROMPT = "prompt"


def load_hub(dataset: str, config: str | None = None) -> Any:
    """A data set of the Hugging Face hub, or a local one of the same form."""
    try:
        import datasets
    except ImportError:
        raise UserError("data sets of the hub need one more package: pip install 'polyguide[hub]'") from None
    try:
        if Path(dataset, "dataset_dict.json").is_file():  # as save_to_disk leaves it
            return datasets.load_from_disk(dataset)
        return datasets.load_dataset(dataset, config)
    except Exception as error:  # the library raises many kinds: offline, not found, gated, no such config
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot load the data set {dataset!r}: {reason}") from None


MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_pixels(image: Any, size: int | None, channels: int) -> UInt8[Tensor, "c h w"]:
    """A PIL image as pixels: converted to the number of channels, and where a size is given, its shorter side scaled to it and
    its middle cut out."""
    from PIL import Image, ImageOps

    if image.mode.startswith("I"):  # 16 bits, which convert would clip to 255
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    image = image.convert(MODES[channels])
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Opened:
    """Images that are decoded when they are asked for: a `Split`. ``open(i)`` gives a PIL image, ``condition`` is of all images.

    ``more(rows)`` gives further attributes, which are too large to be held for all images; ``blocks`` says where the images lie.
    """

    open: Any
    index: Int[Tensor, "n"]
    size: int | None
    channels: int
    condition: Condition
    more: Callable[[Sequence[int]], Condition] | None = None
    blocks: Blocks | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: list[int]) -> tuple[UInt8[Tensor, "b c h w"], Condition]:
        rows = self.index[torch.as_tensor(index)]
        pixels = torch.stack([to_pixels(self.open(int(row)), self.size, self.channels) for row in rows])
        condition = self.condition.rows(rows)
        if self.more is not None:
            more = self.more(rows.tolist())
            condition = Condition({**condition.values, **more.values}, {**condition.keep, **more.keep})
        return pixels, condition


def captioned(labels: Mapping[str, Tensor], prompt: Prompt | None, captions: Sequence[str | None]) -> Condition:
    """The attributes of all images; one without a caption has no prompt."""
    condition = Condition.of(**labels)
    if prompt is None:
        return condition
    ids = torch.stack([prompt.ids(text or "") for text in captions])
    there = torch.tensor([bool(text) for text in captions])
    return Condition({**condition.values, PROMPT: ids}, {**condition.keep, PROMPT: there})


def prompt_of(captions: str | None, encoder: str | None, tokens: int) -> Prompt | None:
    """How captions are read; UserError where there are captions without an encoder, or the other way round."""
    if (captions is None) != (encoder is None):
        given, lacking = ("captions", "encoder") if encoder is None else ("encoder", "captions")
        raise UserError(f"data.{given} needs data.{lacking}: captions are read by a text encoder, such as CLIP's or T5's")
    return None if encoder is None else Prompt(encoder, tokens)


def read_captions(path: Path) -> dict[str, str]:
    """JSON lines with "file_name" and "text", as Hugging Face's image folders have them."""
    if not path.is_file():
        raise UserError(f"data.captions: there is no file {path}")
    found = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}: 0x{error.object[error.start]:02x})") from None
    for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                found[str(row["file_name"])] = str(row["text"])
            except (ValueError, KeyError, TypeError):
                needed = '{"file_name": "a/1.png", "text": "a caption"}'
                raise UserError(f"{path}, line {number} is no JSON line like {needed}") from None
    return found


def check(size: int | None, channels: int | None, attributes: Sequence[str]) -> None:
    if channels is not None and channels not in MODES:
        raise UserError(f"data.channels is 1 (grey), 3 (colour) or 4 (with alpha), got {channels!r}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UserError(f"data.size is a positive number of pixels, got {size!r}")
    for name in attributes:
        if not name.isidentifier():
            raise UserError(f"an attribute's name is a word, for condition.NAME=...; got {name!r}")


@dataclass
class Folder:
    """A folder with a sub-folder a class, or with images directly (then without attributes).

    Args:
        root: the folder, also below POLYGUIDE_DATA.
        size: side to scale and crop to; needed where images differ in size.
        channels: 1 or 3; needed where images differ in mode.
        attribute: what the sub-folders tell.
        skip_broken: leave out files that cannot be read, instead of stopping at them.
        captions: a file in the folder, JSON lines with "file_name" and "text"; they are the attribute ``prompt``.
        encoder: what reads captions, a text encoder of transformers: see `guidance.bridges.transformers.Prompt`; tokens: of a caption.
        classes: the sub-folders, in order (found by looking).
        height, width: of the images (found by looking).

    Every fifth image of a class is held out. All files are decoded once before training starts.
    """

    root: str
    size: int | None = None
    channels: int | None = None
    attribute: str = "label"
    skip_broken: bool = False
    captions: str | None = None
    encoder: str | None = None
    tokens: int = 77
    classes: Sequence[str] | None = None
    height: int | None = None
    width: int | None = None

    SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})

    def __post_init__(self) -> None:
        check(self.size, self.channels, [self.attribute])
        self._prompt = prompt_of(self.captions, self.encoder, self.tokens)

    @property
    def name(self) -> str:
        return Path(self.root).name

    @cached_property
    def _folder(self) -> Path:
        folder = assets.local(self.root) or Path(self.root).expanduser()
        if not folder.is_dir():
            raise UserError(f"data.root={self.root}: there is no such folder")
        return folder

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        if self.classes is not None:
            return tuple(self.classes)
        return tuple(sorted(p.name for p in self._folder.iterdir() if p.is_dir() and not p.name.startswith(".")))

    @cached_property
    def _files(self) -> list[tuple[Path, int]]:
        """All readable images and their class, checked."""
        places = [(self._folder / name, k) for k, name in enumerate(self._classes)] or [(self._folder, 0)]
        candidates = [(path, k) for place, k in places for path in sorted(place.rglob("*")) if path.suffix.lower() in self.SUFFIXES]
        good, first = [], None
        for path, k in each(candidates, "checking images", "image", least=2000):
            try:
                image = self._decode(path)
            except Exception as error:  # of a broken file, whatever the format's reader comes upon
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                if self.skip_broken:
                    print(f"skipped {path}: {reason}")
                    continue
                raise UserError(f"{path} is not a readable image ({reason}); mend it, or pass data.skip_broken=true") from None
            kind = (image.size if self.size is None else None, image.mode if self.channels is None else None)
            if first is None:
                first = (path, *kind)
            if kind != first[1:]:
                what, option = ("sizes", "data.size=64") if kind[0] != first[1] else ("modes", "data.channels=3")
                one, other = ((f"{s[0]}x{s[1]}" if s else m) if what == "sizes" else m for s, m in (first[1:], kind))
                raise UserError(f"images of mixed {what}: {first[0]} is {one}, {path} is {other}; make them alike with e.g. {option}")
            good.append((path, k))
        if not good:
            raise UserError(f"no readable image in {self._folder} or its sub-folders (looked for {', '.join(sorted(self.SUFFIXES))})")
        return good

    @staticmethod
    def _decode(path: Path) -> Any:
        """The first picture of a file, upright as its EXIF data says."""
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return upright if upright.mode != "P" else upright.convert("RGB")

    @cached_property
    def shape(self) -> tuple[int, ...]:
        if self.height is not None and self.width is not None and self.channels is not None:
            return self.channels, self.height, self.width
        image = self._decode(self._files[0][0])
        bands = self.channels or next((c for c, mode in MODES.items() if mode == image.mode), 3)
        width, height = image.size if self.size is None else (self.size, self.size)
        return bands, height, width

    @property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        label: dict[str, ConditionSpec] = {self.attribute: Label(self._classes)} if self._classes else {}
        return label | ({PROMPT: self._prompt} if self._prompt else {})

    @cached_property
    def _condition(self) -> Condition:
        label = {self.attribute: torch.tensor([k for _, k in self._files])} if self._classes else {}
        captions = read_captions(self._folder / self.captions) if self.captions else {}
        return captioned(label, self._prompt, [captions.get(path.relative_to(self._folder).as_posix()) for path, _ in self._files])

    def _split(self, part: int) -> Opened:
        index = every_fifth([k for _, k in self._files])[part]
        return Opened(lambda i: self._decode(self._files[i][0]), index, self.size, self.shape[0], self._condition)

    @cached_property
    def train(self) -> Opened:
        return self._split(0)

    @cached_property
    def test(self) -> Opened:
        return self._split(1)

    def pinned(self) -> Mapping[str, Any]:
        channels, height, width = self.shape
        return {"classes": list(self._classes), "channels": channels, "height": height, "width": width}


PIECES = 16  # of images that lie together, which are mixed


def one_caption(caption: Any) -> str | None:
    """Of several captions for an image."""
    return next(iter(caption), None) if isinstance(caption, list) else caption


@dataclass
class Hub:
    """An image data set of the Hugging Face hub, by name, or a local one of the same form.

    Args:
        dataset, config: as `datasets.load_dataset` takes them.
        image: the column of the images; labels: the columns to be guided by, each of class labels.
        captions: the column of captions, which are the attribute ``prompt`` (of several for an image, the first); encoder, tokens: what
            reads them, as for `Folder`.
        size, channels: what images are made to be.
        together: images of which so many, as they lie, are mixed in training, so that a data set larger than memory is read nearly in
            turn; None mixes all.
        classes: the names of each label column's classes (found by looking).

    Where the data set has no test split, every fifth item of the first label is held out.
    """

    dataset: str
    size: int
    channels: int = 3
    image: str = "image"
    labels: Sequence[str] = ("label",)
    captions: str | None = None
    encoder: str | None = None
    tokens: int = 77
    config: str | None = None
    together: int | None = None
    classes: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        check(self.size, self.channels, self.labels)
        if self.together is not None and self.together < PIECES:
            raise UserError(f"data.together is a number of images that are mixed, at least {PIECES}, got {self.together}")
        self._prompt = prompt_of(self.captions, self.encoder, self.tokens)

    @property
    def name(self) -> str:
        return self.dataset

    @property
    def shape(self) -> tuple[int, ...]:
        return self.channels, self.size, self.size

    @cached_property
    def _parts(self) -> Any:
        parts = load_hub(self.dataset, self.config)
        columns = parts["train"].column_names
        for column in (self.image, *self.labels, *([self.captions] if self.captions else [])):
            if column not in columns:
                raise one_of(f"column of {self.dataset}", column, columns)
        return parts

    @cached_property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        prompt = {PROMPT: self._prompt} if self._prompt else {}
        if self.classes is not None:
            return {name: Label(tuple(classes)) for name, classes in self.classes.items()} | prompt
        features = self._parts["train"].features
        for name in self.labels:
            if not hasattr(features[name], "names"):
                raise UserError(f"the column {name!r} of {self.dataset} is {features[name]}, not a class label")
        return {name: Label(tuple(features[name].names)) for name in self.labels} | prompt

    def _split(self, rows: Any, index: Tensor | None = None) -> Opened:
        labels = {name: torch.tensor(rows[name]) for name in self.labels}
        index = torch.arange(len(rows)) if index is None else index
        blocks = None
        if self.together is not None:
            piece = self.together // PIECES
            blocks = Blocks(np.searchsorted(index.numpy(), np.arange(0, len(rows) + piece, piece)), PIECES)

        def prompts(of: Sequence[int]) -> Condition:
            texts = rows.select_columns([self.captions])[list(of)][self.captions]
            return captioned({}, self._prompt, [one_caption(text) for text in texts])

        more = prompts if self.captions else None
        return Opened(lambda i: rows[i][self.image], index, self.size, self.channels, captioned(labels, None, []), more, blocks)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        rows = self._parts["train"]
        return every_fifth(rows[self.labels[0]] if self.labels else torch.zeros(len(rows), dtype=torch.long))

    @cached_property
    def train(self) -> Opened:
        return self._split(self._parts["train"], None if "test" in self._parts else self._held_out[0])

    @cached_property
    def test(self) -> Opened:
        return self._split(self._parts["test"]) if "test" in self._parts else self._split(self._parts["train"], self._held_out[1])

    def pinned(self) -> Mapping[str, Any]:
        return {"classes": {name: list(spec.classes) for name, spec in self.conditions.items() if isinstance(spec, Label)}}
