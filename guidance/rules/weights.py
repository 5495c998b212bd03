"""Weights that change with the noise level, for any `scale`: functions of logsnr, which grows from noise (-20) to data (20).

Wang et al. (2404.13040) compare such functions of time; scales that grow as the noise falls did best.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from guidance.errors import UserError
from guidance.rules.tools import check_number


@dataclass(frozen=True)
class Linear:
    """``at_low`` up to logsnr ``low``, ``at_high`` from ``high`` on, and a straight line between."""

    low: float
    high: float
    at_low: float
    at_high: float

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, logsnr: float) -> float:
        return self.at_low + _share(self, logsnr) * (self.at_high - self.at_low)


@dataclass(frozen=True)
class Smooth:
    """As `Linear`, with half a period of the cosine between: at_low + (1 - cos(pi u)) / 2 (at_high - at_low), u from 0 to 1."""

    low: float
    high: float
    at_low: float
    at_high: float

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, logsnr: float) -> float:
        return self.at_low + (1 - math.cos(math.pi * _share(self, logsnr))) / 2 * (self.at_high - self.at_low)


@dataclass(frozen=True)
class Table:
    """Straight lines through ``points``, pairs of (logsnr, weight); constant before the first and after the last."""

    points: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        if not isinstance(self.points, Sequence) or not self.points:
            raise UserError(f"a Table's points are a list of pairs (logsnr, weight), got {self.points!r}")
        for point in self.points:
            if not isinstance(point, Sequence) or len(point) != 2:
                raise UserError(f"a Table's point is a pair (logsnr, weight), got {point!r}")
            check_number(point[0], "the logsnr of a Table's point")
            check_number(point[1], "the weight of a Table's point")
        object.__setattr__(self, "points", tuple((point[0], point[1]) for point in self.points))
        where = [logsnr for logsnr, _ in self.points]
        if any(after <= before for before, after in pairwise(where)):
            raise UserError(f"the points of a Table are in the order of logsnr, each once, got {where}")

    def __call__(self, logsnr: float) -> float:
        k = bisect_right(self.points, logsnr, key=lambda point: point[0])
        if k in (0, len(self.points)):
            return self.points[max(k - 1, 0)][1]
        (low, at_low), (high, at_high) = self.points[k - 1], self.points[k]
        return at_low + (logsnr - low) / (high - low) * (at_high - at_low)


def _check(schedule: Linear | Smooth) -> None:
    for name in ("low", "high", "at_low", "at_high"):
        check_number(getattr(schedule, name), f"{type(schedule).__name__}'s {name}")
    if not schedule.low < schedule.high:
        raise UserError(f"{type(schedule).__name__} needs low < high, got {schedule.low} and {schedule.high}")


def _share(schedule: Linear | Smooth, logsnr: float) -> float:
    """How far from low to high, between 0 and 1."""
    return min(max((logsnr - schedule.low) / (schedule.high - schedule.low), 0.0), 1.0)
