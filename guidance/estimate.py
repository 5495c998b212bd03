"""Measured values with 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CONFIDENCE = 0.95
GROUPS = 10


@dataclass(frozen=True)
class Estimate:
    """A value, the ends of its interval (NaN where one observation gives none), and the number of observations."""

    value: float
    low: float
    high: float
    n: int

    @property
    def above(self) -> bool:
        """Above 0 beyond doubt: the whole interval is."""
        return self.low > 0

    @property
    def below(self) -> bool:
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def _student(value: float, error: float, freedom: int, n: int) -> Estimate:
    from scipy.stats import t  # type: ignore[attr-defined]

    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error if freedom > 0 else math.nan
    return Estimate(value, value - half, value + half, n)


def share(hits: Bool[Tensor, "n"] | Float[Tensor, "n"]) -> Estimate:
    """The share of samples for which something holds (NaN: does not apply), with Wilson's interval."""
    from scipy.stats import binomtest  # type: ignore[attr-defined]

    there = hits[~hits.isnan()] if hits.is_floating_point() else hits
    if not len(there):
        return Estimate(math.nan, math.nan, math.nan, 0)
    count = round(float(there.double().sum()))
    interval = binomtest(count, len(there)).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / len(there), float(interval.low), float(interval.high), len(there))


def mean(values: Float[Tensor, "n"]) -> Estimate:
    """The mean (of what is no NaN), with Student's interval. Paired differences are the mean of differences."""
    there = values[~values.isnan()].double()
    n = len(there)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    return _student(float(there.mean()), float(there.std()) / math.sqrt(n) if n > 1 else math.nan, n - 1, n)


def of(values: Float[Tensor, "n"]) -> Estimate:
    """`share` where all values are 0 or 1, else `mean`."""
    there = values[~values.isnan()]
    return share(values) if bool(((there == 0) | (there == 1)).all()) else mean(values)


def statistic(function: Callable[[Int[Tensor, "m"]], float], n: int, groups: int = GROUPS) -> Estimate:
    """A statistic of all samples together, with the interval of the delete-a-group jackknife.

    Args:
        function: the statistic of the samples of an index. A group is a block of consecutive samples, so that what cycles over the
            samples (the class asked for) is in all groups alike.

    With G groups the squared error is (G - 1) / G sum_g (theta_g - mean)^2, with G - 1 degrees of freedom (Kott, "The delete-a-group
    jackknife", 2001).
    """
    index = torch.arange(n)
    value = function(index)
    groups = min(groups, n // 2)  # what is left has 2 samples or more
    if groups < 2:
        return Estimate(value, math.nan, math.nan, n)
    block = index * groups // n
    parts = torch.tensor([function(index[block != g]) for g in range(groups)], dtype=torch.float64)
    error = float(((groups - 1) / groups * (parts - parts.mean()).square().sum()).sqrt())
    return _student(value, error, groups - 1, n)


def over_seeds(found: Sequence[Estimate]) -> Estimate:
    """Of trainings that differ in their seed: the mean. One alone keeps its own interval.

    The interval is Student's over the trainings, or where that is narrower, as it is by chance where few trainings agree, what the
    trainings' own intervals leave of the mean: sqrt(sum_k d_k^2) / K of their distances d_k to the low (and to the high) end.
    """
    if len(found) == 1:
        return found[0]
    between = mean(torch.tensor([e.value for e in found], dtype=torch.float64))
    below, above = (math.hypot(*(e.value - e.low for e in found)), math.hypot(*(e.high - e.value for e in found)))
    low, high = between.value - below / len(found), between.value + above / len(found)
    return Estimate(between.value, min(between.low, low), max(between.high, high), sum(e.n for e in found))
