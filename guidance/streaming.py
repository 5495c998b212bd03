"""Samples of tar shards as splits: at random access, without unpacking and without holding them in memory."""

import itertools
import json
import os
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from guidance.bar import each
from guidance.condition import Condition
from guidance.errors import UserError
from guidance.modality import Blocks
from guidance.tars import Index, Place, digest, expanded, extension, few, index, named, value

AHEAD = 2**22  # bytes around a sample that the system is asked to read
STRIDE = 2**17  # bytes at once: of longer advice, Linux takes the beginning only
AGAIN = 8  # times in an epoch that this is asked for
OPEN = 8  # shards held open beyond those that are mixed


@dataclass(frozen=True)
class Seen:
    """What one look at the indices of some shards finds."""

    paths: Sequence[Path]
    stamps: Sequence[tuple[int, int]]
    """Size and date of each."""
    usable: Sequence[UInt8[np.ndarray, "_"]]
    """The samples of each that have what is wanted (an image), a bit each."""
    held: Sequence[UInt8[np.ndarray, "_"]]
    """Every fifth of these of each class, over all shards."""
    names: Mapping[str, set[str]]
    digest: str
    """Of names, sizes and samples of the shards."""


def looked(paths: Sequence[Path], sources: Sequence[str], kinds: Sequence[str], what: str) -> Seen:
    """The shards, each indexed. Sample after sample, the first source says the class."""
    stamps, usable, held, said = [], [], [], []
    counts, lacking = Counter[str](), 0
    names: dict[str, set[str]] = {source: set() for source in sources}
    for path in each(paths, "indexing shards", "shard", least=20):
        of = index(path, sources)
        columns = [k for k, extension in enumerate(of.extensions) if extension in kinds]
        there = np.any(of.members[:, columns, 1] >= 0, axis=1)
        if not there.any():
            raise UserError(f"{path} holds no {what} (looked for {', '.join(f'.{kind}' for kind in kinds)})")
        lacking += int((~there).sum())
        for source in sources:
            numbers, own = of.classes[source]
            names[source] |= {own[k] for k in np.unique(numbers[there]) if k >= 0}
            few(names[source], source)
        numbers, own = of.classes[sources[0]] if sources else (np.full(len(there), -1), ())
        fifth = np.zeros(len(there), dtype=bool)
        for k in np.unique(numbers[there]):
            rows, name = np.flatnonzero(there & (numbers == k)), own[k] if k >= 0 else ""
            fifth[rows] = (counts[name] + np.arange(len(rows))) % 5 == 4
            counts[name] += len(rows)
        stamps.append((of.size, of.changed))
        usable.append(np.packbits(there))
        held.append(np.packbits(fifth))
        said.append([path.name, of.size, len(there)])
    if lacking:
        print(f"{lacking} samples have no {what} and are left out", file=sys.stderr)
    return Seen(paths, stamps, usable, held, names, digest(json.dumps(said)))


def changed(path: Path) -> UserError:
    return UserError(f"the shard {path} has changed since training began to read it; put the old one back, or start again")


@dataclass
class Shard:
    """A shard that is being read, and the samples of it that are items of a split."""

    path: Path
    file: Any
    index: Index
    rows: Int[np.ndarray, "items"]
    asked: set[int] = field(default_factory=set)
    """The pieces of it that the system was asked to read ahead,"""
    since: int = 0
    """and the reads since these were forgotten."""

    def read(self, place: Place) -> bytes:
        offset, size = place
        self.ahead(offset // AHEAD)
        found, stat = os.pread(self.file.fileno(), size, offset), os.fstat(self.file.fileno())
        if len(found) < size or (stat.st_size, stat.st_mtime_ns) != (self.index.size, self.index.changed):
            raise changed(self.path)
        return found

    def ahead(self, piece: int) -> None:
        """A sample's neighbours are asked for soon, in another order: they are read in one go, where the system takes advice."""
        self.since += 1
        if self.since * AGAIN > len(self.rows):  # later, or in the next epoch, it may no longer be in memory
            self.asked, self.since = set(), 0
        if piece in self.asked or not hasattr(os, "posix_fadvise"):
            return
        self.asked.add(piece)
        for start in range(piece * AHEAD, (piece + 1) * AHEAD, STRIDE):
            os.posix_fadvise(self.file.fileno(), start, STRIDE, os.POSIX_FADV_WILLNEED)

    def where(self, offset: int) -> str:
        return f"{self.path}: {named(self.file.fileno(), offset)!r}"


class OpenShards:
    """The shards that were read last, up to ``most``. Reading leaves no position behind, so forked processes may share them.

    Args:
        seen: the shards, as they were found; rows: of each the samples that are items, a bit each.
        sources: of classes.
    """

    def __init__(self, seen: Seen, rows: Sequence[UInt8[np.ndarray, "_"]], sources: Sequence[str], most: int):
        self.seen, self.rows, self.sources, self.most = seen, rows, sources, most
        self.shards: OrderedDict[int, Shard] = OrderedDict()

    def __getitem__(self, k: int) -> Shard:
        if k in self.shards:
            self.shards.move_to_end(k)
            return self.shards[k]
        path = self.seen.paths[k]
        known = index(path, self.sources)
        if (known.size, known.changed) != self.seen.stamps[k]:
            raise changed(path)
        try:
            file = open(path, "rb", buffering=0)  # noqa: SIM115  # until it is the one that was not read for longest
        except OSError as error:
            raise UserError(f"the shard {path} cannot be read: {error.strerror}") from None
        self.shards[k] = Shard(path, file, known, np.flatnonzero(np.unpackbits(self.rows[k])))
        while len(self.shards) > self.most:
            self.shards.popitem(last=False)[1].file.close()
        return self.shards[k]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "shards": OrderedDict()}


@dataclass(frozen=True)
class Streamed:
    """Samples of shards that are read when they are asked for: a `Split`.

    Args:
        shards: that they are in; blocks: the items of each.
        kinds: the extensions of the member that is the raw data; the first one that is there.
        classes: attribute -> where its classes are, and their numbers by name.
        caption: where a sample's text is.
        decode: the member as raw data; ValueError, OSError where it is none.
        more: conditions made of raw data and texts.
        skip: take the next readable sample of the shard in place of one that is broken.
    """

    shards: OpenShards
    blocks: Blocks
    kinds: Sequence[str]
    classes: Mapping[str, tuple[str, Mapping[str, int]]]
    caption: str | None
    decode: Callable[[bytes], Tensor]
    more: Callable[[Tensor, Sequence[str | None]], Condition]
    skip: bool
    skipped: set[str] = field(default_factory=set, compare=False)

    def __len__(self) -> int:
        return int(self.blocks.edges[-1])

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        found = [self._sample(item) for item in index]
        raw = torch.stack([sample for sample, _, _ in found])
        own = self.more(raw, [text for _, _, text in found])
        labels = {name: torch.tensor([numbers[k] for _, numbers, _ in found]) for k, name in enumerate(self.classes)}
        return raw, Condition(
            {**{name: label.clamp(min=0) for name, label in labels.items()}, **own.values},
            {**{name: label >= 0 for name, label in labels.items()}, **own.keep},
        )

    def _sample(self, item: int) -> tuple[Tensor, Sequence[int], str | None]:
        """Raw data, the class of each attribute (-1: none), the text."""
        k = int(np.searchsorted(self.blocks.edges, item, side="right")) - 1
        shard, place = self.shards[k], item - int(self.blocks.edges[k])
        for row in map(int, itertools.chain(shard.rows[place:], shard.rows[:place])):
            offset, size = next(found for kind in self.kinds if (found := shard.index.member(row, kind))[1] >= 0)
            content = shard.read((offset, size))
            try:
                raw = self.decode(content)
            except (OSError, ValueError) as error:
                where, reason = shard.where(offset), " ".join(str(error).split())[:120]
                if not self.skip:
                    raise UserError(f"{where} cannot be read ({reason}); mend the shard, or pass data.skip_broken=true") from None
                if where not in self.skipped:
                    self.skipped.add(where)
                    print(f"skipped {where}: it cannot be read ({reason})", file=sys.stderr)
                continue
            return raw, [self._number(shard, row, *of) for of in self.classes.values()], self._text(shard, row)
        raise UserError(f"{shard.path}: none of its samples can be read")

    @staticmethod
    def _number(shard: Shard, row: int, source: str, numbers: Mapping[str, int]) -> int:
        own, names = shard.index.classes[source]
        return numbers[names[own[row]]] if own[row] >= 0 else -1

    def _text(self, shard: Shard, row: int) -> str | None:
        if self.caption is None:
            return None
        offset, size = shard.index.member(row, extension(self.caption))
        try:
            text = value(shard.read((offset, size)), self.caption) if size >= 0 else None
        except ValueError as error:
            raise UserError(f"{shard.where(offset)}: {error}") from None
        return str(text) if text else None


def in_order(names: set[str]) -> tuple[str, ...]:
    """Numbers by their size, words by the alphabet."""
    return tuple(sorted(names, key=int) if all(re.fullmatch(r"-?\d+", name) for name in names) else sorted(names))


def check_source(source: object, setting: str) -> None:
    if not isinstance(source, str) or not re.fullmatch(r"json(\.[^.]+)+|[^.]+", source):
        raise UserError(f"{setting} is an extension such as txt, or an entry such as json.caption; got {source!r}")


@dataclass
class ShardSet:
    """The shards of a data set: what they say of their samples, and the splits.

    Args:
        shards, held_out: to train on, and to test on; without the latter, every fifth sample of each class of the first attribute is held
            out.
        kinds: extensions that the raw data may have; what: they are.
        labels: attribute -> where its classes are: "cls", "json.speaker"; None: ``label`` is in .cls, where samples have one.
        classes: of each attribute, by name; a number that is no name is the place of one.
        content: what the shards were when a run was made; None takes them as they are.
        together: shards that are mixed in training.
    """

    shards: str
    held_out: str | None
    kinds: Sequence[str]
    what: str
    labels: Mapping[str, str] | None = None
    classes: Mapping[str, Sequence[str]] | None = None
    content: str | None = None
    together: int = 16

    def __post_init__(self) -> None:
        if self.together < 1:
            raise UserError(f"data.together is a number of shards, at least 1, got {self.together}")
        for name, source in (self.labels or {}).items():
            if not str(name).isidentifier():
                raise UserError(f"an attribute's name is a word, for condition.NAME=...; got {name!r}")
            check_source(source, f"data.labels.{name}")
        for name in self.classes or {}:
            if name not in self.sources:
                raise UserError(f"data.classes.{name}: data.labels has no {name!r}")

    @property
    def sources(self) -> Mapping[str, str]:
        return {"label": "cls"} if self.labels is None else self.labels

    @cached_property
    def _seen(self) -> Sequence[Seen]:
        """The training shards, and those that are held out, where there are such."""
        given = {"data.shards": self.shards} | ({"data.held_out": self.held_out} if self.held_out else {})
        found = [looked(expanded(pattern, of), list(self.sources.values()), self.kinds, self.what) for of, pattern in given.items()]
        if self.content is not None and self.content != self._digest(found):
            raise UserError(
                f"data.shards={self.shards}: these are not the shards that the run was made with, by their names, sizes and numbers of "
                "samples; give it those, or start a new run"
            )
        return found

    @staticmethod
    def _digest(found: Sequence[Seen]) -> str:
        return ".".join(seen.digest for seen in found)

    def _found(self, name: str) -> set[str]:
        return set[str]().union(*(seen.names[self.sources[name]] for seen in self._seen))

    @cached_property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        """The classes of each attribute. Nothing is read where they are all given."""
        given = {name: tuple(map(str, classes)) for name, classes in (self.classes or {}).items()}
        if self.classes is not None and (self.labels is None or set(self.labels) <= given.keys()):
            return given
        result = {}
        for name in self.sources:
            found = self._found(name)
            if not found and self.labels is not None:
                raise UserError(f"data.labels.{name}: no sample has a {self.sources[name]} in {self.shards}; data.labels={{}} takes none")
            if found or name in given:
                result[name] = given.get(name) or in_order(found)
        return result

    def _number(self, name: str, found: str) -> int:
        classes = self.names[name]
        if found in classes:
            return classes.index(found)
        if found.isdecimal() and int(found) < len(classes):
            return int(found)
        said = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise UserError(f"{self.shards}: {self.sources[name]} says {found!r}, which is none of data.classes.{name}: {said}")

    def pinned(self) -> Mapping[str, Any]:
        return {
            "classes": {name: list(classes) for name, classes in self.names.items()},
            "content": self.content or self._digest(self._seen),
        }

    def splits(
        self,
        decode: Callable[[bytes], Tensor],
        more: Callable[[Tensor, Sequence[str | None]], Condition],
        caption: str | None = None,
        skip: bool = False,
    ) -> tuple[Streamed, Streamed]:
        """To train on, and held out; see `Streamed`."""
        train, test = self._seen[0], self._seen[-1]
        kept = train.usable
        if test is train:
            kept = [np.bitwise_and(there, ~held) for there, held in zip(train.usable, train.held, strict=True)]
        classes = {name: (self.sources[name], {found: self._number(name, found) for found in self._found(name)}) for name in self.names}
        made = []
        for seen, rows in ((train, kept), (test, test.held if test is train else test.usable)):
            sizes = [int(np.unpackbits(bits).sum()) for bits in rows]
            blocks = Blocks(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]), self.together)
            shards = OpenShards(seen, rows, list(self.sources.values()), self.together + OPEN)
            made.append(Streamed(shards, blocks, self.kinds, classes, caption, decode, more, skip))
        return made[0], made[1]
