"""A progress bar with the time left, for all that samples."""

import sys
from typing import Any

from guidance.sampler import Progress


def pace() -> float:
    """Seconds between two looks of a progress bar: in a log, which keeps them all, few."""
    return 0.1 if sys.stderr.isatty() else 20.0


def end() -> None:
    """Take unfinished bars off the screen, so that what is said next has a line of its own."""
    if (module := sys.modules.get("tqdm")) is not None:
        for bar in list(getattr(module.tqdm, "_instances", ())):
            bar.close()


class Bar:
    """Over all steps of all batches, shown from the first step on; a sampling callback."""

    def __init__(self, total: int, what: str):
        self.total, self.what = total, what
        self.bar: Any = None

    def __call__(self, progress: Progress) -> None:
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, desc=self.what, unit="step", leave=False, mininterval=pace())
        self.bar.update()
        if self.bar.n >= self.total:
            self.bar.close()

    def skip(self, steps: int) -> None:
        """Steps that another process takes."""
        self.total -= steps
        if self.bar is not None:
            self.bar.total = self.total
            self.bar.refresh()
