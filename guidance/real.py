"""Real items that have what samples are asked for: the row of a table that shows what the others should look like."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.model import Model
from guidance.split import pick
from guidance.train import to_device

MOST = 10_000  # items of a split that are looked through
FEW, MANY = 64, 512  # items read at a time: at first, and at most


@dataclass(frozen=True)
class Real:
    """A real item for each row of a condition.

    Args:
        split: "test", the held-out items; "train" where the data set holds nothing out.
        index: of the items in that split.
        exact: whether an item has every attribute that its row names.
    """

    split: str
    index: tuple[int, ...]
    exact: Bool[Tensor, "n"]

    @property
    def origin(self) -> str:
        """Where the items are from, in words."""
        return "held out" if self.split == "test" else "trained on"

    @property
    def title(self) -> str:
        """Of a row in a picture."""
        return "real" if self.split == "test" else f"real, {self.origin}"

    @torch.no_grad()
    def x0(self, model: Model) -> Float[Tensor, "n *d"]:
        """The items as the codec encodes them; decoded, they have the form of samples."""
        raw, _ = getattr(model.modality.data, self.split).__getitems__(list(self.index))
        x0: Tensor = model.modality.codec.encode(to_device(raw, model.device))
        return x0


def real_items(model: Model, condition: Condition, n: int, first: str | None = None) -> Real:
    """An item for each of the ``n`` rows of a condition, always the same ones, from up to ``MOST`` items taken at random.

    An item fits where it has every attribute that the row names; an absent attribute fits any. Where no item fits, it is one that has
    the attribute ``first``, and of the others the most. Rows take different items as long as there are such that fit as well.

    Raises: UserError where there is no data.
    """
    data = model.modality.data
    name = "test" if len(data.test) else "train"
    split = getattr(data, name)
    if not len(split):
        raise UserError(f"{data.name} has no items")
    order = pick(len(split), min(len(split), MOST))
    condition = condition.to("cpu")
    whole = sum((keep.long() * weight(condition, name, first) for name, keep in condition.keep.items()), torch.zeros(n, dtype=torch.long))
    found: list[Int[Tensor, "n items"]] = []
    seen, size = 0, FEW
    while True:
        rows = order[seen : seen + size]
        found.append(scores(condition, split.__getitems__(rows)[1], first, n, len(rows)))
        seen, size = seen + len(rows), min(2 * size, MANY)
        score = torch.cat(found, 1)
        taken = assigned(score)
        exact = score[torch.arange(n), taken] == whole
        if seen == len(order) or (bool(exact.all()) and len(taken.unique()) == n):
            return Real(name, tuple(order[k] for k in taken.tolist()), exact)


def weight(condition: Condition, name: str, first: str | None) -> int:
    """What an attribute counts: ``first`` more than all others together."""
    return len(condition.keep) if name == first else 1


def scores(condition: Condition, items: Condition, first: str | None, n: int, count: int) -> Int[Tensor, "n count"]:
    """How many of the attributes that each of n rows names each of some items has, as they count."""
    total = torch.zeros(n, count, dtype=torch.long)
    for name, keep in condition.keep.items():
        if name not in items.keep or condition.values[name].shape[1:] != items.values[name].shape[1:]:
            continue
        values, there = items.values[name], items.keep[name]
        has = torch.stack([(values == value).reshape(count, -1).all(1) & there for value in condition.values[name]])
        total += (has & keep[:, None]) * weight(condition, name, first)
    return total


def assigned(score: Int[Tensor, "n items"]) -> Int[Tensor, "n"]:
    """For each row one of the items that suit it best: of those one that the fewest rows have, and of those the first. Rows that fewer
    items suit choose before others."""
    suits = score == score.amax(1, keepdim=True)
    taken, used = torch.zeros(len(score), dtype=torch.long), torch.zeros(score.shape[1], dtype=torch.long)
    for row in suits.sum(1).argsort(stable=True).tolist():
        taken[row] = torch.where(suits[row], used, len(score)).argmin()
        used[taken[row]] += 1
    return taken
