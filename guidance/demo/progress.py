"""One progress over many commands: what each says of its own work becomes its share of the whole."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from guidance.bar import Task, pace
from guidance.demo.forecast import Forecast

CALLED = {"train": "training", "sample": "sampling"}
"""What work is called here, by the name that it says."""

UNREPORTED = 0.95
"""The share that work which does not say how far it is can reach before it ends."""


@dataclass(frozen=True)
class Piece:
    """Planned work.

    Args:
        part: of the demo.
        stage: of the part; "" for what any of its stages may come to (a judge that is trained first).
        what: the name by which the work says how far it is; "" for all else in the stage.
        flops: of products of matrices; seconds: here.
        before: the share that was done before.
    """

    part: str
    stage: str
    what: str
    flops: float
    seconds: float
    before: float = 0.0


def spoken(seconds: float) -> str:
    """A length of time in words: "3 min", "40 s"."""
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return f"{max(5 * round(seconds / 5), 5):.0f} s"


class Line:
    """One line that is written over on a terminal; in a log, a new one every now and then."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream, self.clock = stream or sys.stderr, clock
        self.next = self.clock()
        self.there = False

    @property
    def over(self) -> bool:
        """Whether lines are written over."""
        return self.stream.isatty()

    def show(self, text: str) -> None:
        if self.clock() < self.next:
            return
        self.next = self.clock() + pace()
        if self.over:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r{text[:width]}\x1b[K")
            self.there = True
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Make room for something else."""
        if self.there:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
        self.there, self.next = False, self.clock()


class Whole:
    """A `Display` of all work as a share of what was planned."""

    def __init__(self, pieces: Sequence[Piece], line: Line, clock: Callable[[], float] = time.monotonic):
        self.pieces, self.line, self.clock = list(pieces), line, clock
        self.forecast = Forecast([piece.seconds for piece in pieces], [piece.before for piece in pieces])
        self.part = self.stage = ""
        self.open: list[Share] = []
        self.since = clock()

    @contextmanager
    def doing(self, part: str, stage: str) -> Iterator[None]:
        """A stage of a part; at its end all of it is done."""
        self.part, self.stage, self.since = part, stage, self.clock()
        self.show(self.doing_what)
        try:
            yield
            self.tick()
            for k, piece in enumerate(self.pieces):
                if (piece.part, piece.stage) == (part, stage):
                    self.forecast.finish(k)
        finally:
            self.open.clear()

    def ended(self, part: str) -> None:
        """All of a part is done, what it did not come to, too."""
        for k, piece in enumerate(self.pieces):
            if piece.part == part:
                self.forecast.finish(k)

    def begin(self, what: str, total: int, unit: str, done: int, stays: bool, delay: float) -> Task:
        self.tick()
        share = Share(self, self.find(what), what, max(total, 1), unit, done)
        if what == "experiment":
            for k, piece in enumerate(self.pieces):  # before samples are measured, all that measures is there
                if piece.part == self.part and not piece.stage:
                    self.forecast.finish(k)
        self.open.append(share)
        self.moved(share)
        return share

    def find(self, what: str) -> int | None:
        """The planned piece of this name, of this stage or of the part."""
        known = {(piece.part, piece.stage, piece.what): k for k, piece in enumerate(self.pieces)}
        return known.get((self.part, self.stage, what), known.get((self.part, "", what)))

    def tick(self) -> None:
        """The time since the last look goes to the work that is under way: the innermost that was planned, or the rest of the stage."""
        now = self.clock()
        at = next((share.piece for share in reversed(self.open) if share.piece is not None), self.find(""))
        if at is not None:
            self.forecast.spend(at, now - self.since)
            if not self.pieces[at].what and (planned := self.pieces[at].seconds):
                self.forecast.reach(at, min(self.forecast.spent[at] / planned, UNREPORTED))
        self.since = now

    def moved(self, share: "Share") -> None:
        """A share says how far it is."""
        self.tick()
        if share.piece is not None:
            self.forecast.reach(share.piece, share.reached)
        self.show(lambda: f"{self.part}: {self.name(share.what)}, {share.unit} {share.at:,} of {share.total:,}")

    def closed(self, share: "Share") -> None:
        self.tick()
        if share in self.open:
            self.open.remove(share)

    def name(self, what: str) -> str:
        return self.stage if what == "experiment" else CALLED.get(what, what)

    def doing_what(self) -> str:
        return f"{self.part}: {self.name(self.stage)}"

    def show(self, now: Callable[[], str]) -> None:
        if self.line.clock() >= self.line.next:
            self.line.show(f"{100 * self.forecast.done:3.0f} %, {spoken(self.forecast.left)} left; {now()}")


class Share:
    """A `Task` that is a share of the whole, or nothing of what was planned."""

    def __init__(self, whole: Whole, piece: int | None, what: str, total: int, unit: str, done: int):
        self.whole, self.piece, self.what, self.total, self.unit = whole, piece, what, total, unit
        self.first = self.at = done
        self.base = 0.0 if piece is None else whole.forecast.share[piece]

    @property
    def reached(self) -> float:
        """Of the piece: what was done before, and of the rest the share of the steps taken."""
        return self.base + (1 - self.base) * (self.at - self.first) / max(self.total - self.first, 1)

    def advance(self, steps: int = 1) -> None:
        self.at += steps
        self.whole.moved(self)

    def resize(self, total: int) -> None:
        self.total = max(total, 1)

    def note(self, text: str) -> None:
        return

    def close(self) -> None:
        self.whole.closed(self)
