"""Timing several sides against each other: each round runs all of them in turn, so that what slows the machine slows them alike.

A comparison is the median over the rounds of the ratio of two sides of one round; with its smallest and largest. With one thread, time is
the processor's, which others' work on the machine does not lengthen; with several it is the wall clock's.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Side = Callable[[], Any]
"""Runs once. What it returns, where it is a number, is its time in seconds; otherwise it is timed from outside."""


@dataclass(frozen=True)
class Ratio:
    """Of two sides, over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


def clock() -> float:
    """Seconds: of the processor where there is one thread, of the wall clock where there are several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def run(side: Side) -> float:
    began = clock()
    said = side()
    return said if isinstance(said, float) else clock() - began


def rounds(sides: Mapping[str, Side], count: int = 7, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of every side in every round; every round begins with another side. ``warm`` rounds before are not counted."""
    names, found = list(sides), {name: [] for name in sides}
    for k in range(-warm, count):
        for j in range(len(names)):
            name = names[(j + k) % len(names)]
            seconds = run(sides[name])
            if k >= 0:
                found[name].append(seconds)
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    each = [a / b for a, b in zip(over, under, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each), len(each))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table; columns as the first row has them, and what later ones add."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([shown(row.get(name, "")) for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(name: str, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], out: Path | None) -> None:
    """The table printed, and beside its JSON in ``out``."""
    print(f"\n## {name}\n\n{markdown(rows)}", flush=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        plain = [{key: asdict(value) if isinstance(value, Ratio) else value for key, value in row.items()} for row in rows]
        (out / f"{name}.json").write_text(json.dumps({"facts": dict(facts), "rows": plain}, indent=1) + "\n")
        (out / f"{name}.md").write_text(markdown(rows))
