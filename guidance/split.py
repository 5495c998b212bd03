"""Parts of data sets: in memory, some of another's items, and what is held out where a data set does not say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.modality import Split
from guidance.noise import permutation


@dataclass(frozen=True)
class InMemory:
    """Raw data [n, ...] and its conditions, row by row: a `Split`."""

    raw: Tensor
    condition: Condition

    def __post_init__(self) -> None:
        if len(self.condition) not in (0, len(self.raw)):
            raise UserError(f"a split of {len(self.raw)} items was given conditions for {len(self.condition)}")

    def __len__(self) -> int:
        return len(self.raw)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        rows = torch.as_tensor(index, dtype=torch.long)
        return self.raw[rows], self.condition.rows(rows)

    def rows(self, index: Int[Tensor, "m"]) -> "InMemory":
        return InMemory(self.raw[index], self.condition.rows(index))


@dataclass(frozen=True)
class Part:
    """Some items of a split."""

    whole: Split
    index: Sequence[int]

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, index: list[int]) -> tuple[Any, Condition]:
        return self.whole.__getitems__([self.index[k] for k in index])


def pick(size: int, n: int) -> list[int]:
    """n of ``size`` items: at random, but always the same and in the same order; where n is more, each as often as any other, within one.

    A fixed stride would fall in with data whose classes come in turn, and see some of them only.
    """
    rounds = [permutation(0, k, size) for k in range(-(-n // size))]
    return [int(item) for order in rounds for item in order][:n]


def every_fifth(label: Sequence[int] | Tensor | np.ndarray) -> tuple[Int[Tensor, "train"], Int[Tensor, "test"]]:
    """Indices to train on and to hold out: the fifth, tenth, ... item of each class is held out."""
    label = torch.as_tensor(label)
    place = torch.zeros_like(label)
    for value in label.unique():
        place[label == value] = torch.arange(int((label == value).sum()))
    held = place % 5 == 4
    return (~held).nonzero().flatten(), held.nonzero().flatten()
