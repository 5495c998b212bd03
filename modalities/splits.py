"""How items are held out where a data set does not say."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def every_fifth(label: Sequence[int] | Tensor) -> tuple[Int[Tensor, "train"], Int[Tensor, "test"]]:
    """Indices to train on and to hold out: the fifth, tenth, ... item of each class is held out."""
    label = torch.as_tensor(label)
    place = torch.zeros_like(label)
    for value in label.unique():
        place[label == value] = torch.arange(int((label == value).sum()))
    held = place % 5 == 4
    return (~held).nonzero().flatten(), held.nonzero().flatten()
