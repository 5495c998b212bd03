"""Which items of a split training takes, and their loading."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from guidance.errors import UserError
from guidance.modality import Blocked, Blocks, Split
from guidance.noise import permutation
from guidance.split import Part


class InWindows:
    """The order of an epoch of items that lie in blocks: an item for each place, a function of (blocks, seed, epoch) alone.

    The blocks are permuted; as many as are mixed with each other are a window, and the items of a window are permuted. Only the window
    that was asked for last is held, so what is kept grows with the number of blocks, not of items.
    """

    def __init__(self, blocks: Blocks, seed: int, epoch: int):
        self.edges, self.seed, self.epoch = np.asarray(blocks.edges, dtype=np.int64), seed, epoch
        shuffled = permutation(seed, epoch, len(self.edges) - 1)
        self.windows = [shuffled[k : k + blocks.together] for k in range(0, len(shuffled), blocks.together)]
        sizes = [int((self.edges[window + 1] - self.edges[window]).sum()) for window in self.windows]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.held, self.items = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, place: int) -> int:
        window = int(np.searchsorted(self.starts, place, side="right")) - 1
        if window != self.held:
            items = np.concatenate([np.arange(self.edges[block], self.edges[block + 1]) for block in self.windows[window]])
            self.held, self.items = window, items[permutation(self.seed, self.epoch, len(items), 1 + window)]
        return int(self.items[place - self.starts[window]])


def blocks_of(split: Split) -> Blocks | None:
    """Where a split's items lie, or a part of such a split's; None where all places are alike."""
    if not isinstance(split, Part):
        return split.blocks if isinstance(split, Blocked) else None
    whole, index = blocks_of(split.whole), np.asarray(split.index)
    if whole is None or bool((np.diff(index) < 0).any()):
        return None
    return Blocks(np.searchsorted(index, whole.edges), whole.together)


def order(split: Split, seed: int, epoch: int) -> Any:
    """The items of an epoch, by their place in it."""
    blocks = blocks_of(split)
    return permutation(seed, epoch, len(split)) if blocks is None else InWindows(blocks, seed, epoch)


def batches(split: Split, seed: int, start: int, steps: int, size: int, rank: int, world: int, accumulate: int) -> Iterator[list[int]]:
    """This process's item indices, micro-batch after micro-batch, from step ``start`` on.

    The stream of samples is epoch after epoch, each in its own order; sample p of the run is item ``order[p % n]`` of epoch
    ``p // n``, whatever the batch size, the number of processes, and where the run was interrupted.
    """
    n = len(split)
    orders: dict[int, Any] = {}
    micro = size // (accumulate * world)
    for step in range(start, steps):
        for part in range(accumulate):
            first = step * size + (part * world + rank) * micro
            chosen = []
            for p in range(first, first + micro):
                epoch = p // n
                if epoch not in orders:
                    orders = {e: o for e, o in orders.items() if e >= epoch - 1} | {epoch: order(split, seed, epoch)}
                chosen.append(int(orders[epoch][p % n]))
            yield chosen


class Items(torch.utils.data.Dataset[Any]):
    """A split as the DataLoader wants it. What a user can mend is handed over: raised in a worker, it would come with a traceback."""

    def __init__(self, split: Split):
        self.split = split

    def __getitems__(self, index: list[int]) -> Any:
        try:
            return self.split.__getitems__(index)
        except UserError as error:
            return str(error)


def _identity(batch: Any) -> Any:
    return batch


def loaded(split: Split, batches: Iterable[Sequence[int]], workers: int = 0, pinned: bool = False) -> Iterator[Any]:
    """The raw batch and the condition of each list of items; read by ``workers`` processes ahead of time, where there are any.

    Raises: UserError for what the split finds wrong with its data.
    """
    sampler: Any = batches
    loader = torch.utils.data.DataLoader(
        Items(split), batch_sampler=sampler, num_workers=workers, collate_fn=_identity, pin_memory=pinned, generator=torch.Generator()
    )
    return map(checked, iter(loader))  # workers start at once


def checked(batch: Any) -> Any:
    if isinstance(batch, str):
        raise UserError(batch)
    return batch
