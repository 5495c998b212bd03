"""How far long work is: all of it says so here, and one display shows it: tqdm's bars, or what `shown_by` names for a while."""

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from guidance.sampler import Progress

T = TypeVar("T")


@runtime_checkable
class Task(Protocol):
    """Work of ``total`` steps that has begun."""

    def advance(self, steps: int = 1) -> None:
        """So many more are done."""
        ...

    def resize(self, total: int) -> None:
        """There are more or fewer than was said."""
        ...

    def note(self, text: str) -> None:
        """What can stand beside it: the loss."""
        ...

    def close(self) -> None:
        """It is over, also where not all of it was done."""
        ...


@runtime_checkable
class Display(Protocol):
    """Shows work."""

    def begin(self, what: str, total: int, unit: str, done: int, stays: bool, delay: float) -> Task: ...


def pace() -> float:
    """Seconds between two looks of a progress bar: in a log, which keeps them all, few."""
    return 0.1 if sys.stderr.isatty() else 20.0


class Drawn:
    """A task as a bar of tqdm's."""

    def __init__(self, bar: Any):
        self.bar = bar

    def advance(self, steps: int = 1) -> None:
        self.bar.update(steps)

    def resize(self, total: int) -> None:
        self.bar.total = total
        self.bar.refresh()

    def note(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        self.bar.close()


class Bars:
    """A bar for each task."""

    def begin(self, what: str, total: int, unit: str, done: int, stays: bool, delay: float) -> Task:
        from tqdm import tqdm

        return Drawn(tqdm(total=total, initial=done, desc=what, unit=unit, leave=stays, delay=delay, mininterval=pace()))


_display: ContextVar[Display] = ContextVar("display", default=Bars())  # noqa: B039  # which holds nothing that changes


@contextmanager
def shown_by(display: Display) -> Iterator[None]:
    """All work that begins within is shown by another display."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


def begin(what: str, total: int, unit: str = "step", *, done: int = 0, stays: bool = False, delay: float = 0.0) -> Task:
    """Say that work begins; whoever calls it closes the task.

    Args:
        what: it is called: "train".
        done: steps of the total that an earlier process did.
        stays: whether its bar is left on the screen.
        delay: seconds within which it is too short to be shown.
    """
    return _display.get().begin(what, total, unit, done, stays, delay)


@contextmanager
def working(
    what: str, total: int, unit: str = "step", *, done: int = 0, stays: bool = False, delay: float = 0.0, silent: bool = False
) -> Iterator[Task]:
    """As `begin`, closed at the end of the block; a ``silent`` one is not shown."""
    task = Silent() if silent else begin(what, total, unit, done=done, stays=stays, delay=delay)
    try:
        yield task
    finally:
        task.close()


class Silent:
    """A task that nobody is shown."""

    def advance(self, steps: int = 1) -> None: ...
    def resize(self, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


def each(items: Iterable[T], what: str, unit: str, total: int | None = None, least: int = 0) -> Iterator[T]:
    """The items, one step each; fewer than ``least`` are not shown."""
    count = len(cast(Sized, items)) if total is None else total
    with working(what, count, unit, silent=count < least) as task:
        for item in items:
            yield item
            task.advance()


def end() -> None:
    """Take unfinished bars off the screen, so that what is said next has a line of its own."""
    if (module := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(module.tqdm, "_instances", ())):
            bar.close()


class Bar:
    """Over all steps of all batches, shown from the first step on; a sampling callback."""

    def __init__(self, total: int, what: str):
        self.total, self.what, self.done = total, what, 0
        self.task: Task | None = None

    def __call__(self, progress: Progress) -> None:
        if self.task is None:
            self.task = begin(self.what, self.total)
        self.done += 1
        self.task.advance()
        if self.done >= self.total:
            self.task.close()

    def skip(self, steps: int) -> None:
        """Steps that another process takes."""
        self.total -= steps
        if self.task is not None:
            self.task.resize(self.total)
