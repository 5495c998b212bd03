"""Intervals against the formulas, other implementations and how often they hold the truth."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from guidance import estimate
from guidance.estimate import Estimate


def hits(count: int, n: int) -> Tensor:
    return torch.arange(n) < count


def ends(found: Estimate) -> tuple[float, float]:
    return found.low, found.high


def student(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The t interval of the mean."""
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return float(low), float(high)


def unknown(found: Estimate) -> bool:
    return math.isnan(found.low) and math.isnan(found.high)


# Shares


def wilson(count: int, n: int) -> tuple[float, float]:
    """The p of which count is at most z deviations away: |count / n - p| = z sqrt(p (1 - p) / n), solved for p."""
    z = NormalDist().inv_cdf(0.975)
    a, b, c = n + z * z, -(2 * count + z * z), count * count / n
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 7), (7, 7), (1, 2), (3, 10), (150, 300), (299, 300), (1, 5000)])
def test_a_share_has_wilsons_interval(count: int, n: int):
    found = estimate.share(hits(count, n))
    assert (found.value, found.n) == (count / n, n)
    assert ends(found) == pytest.approx(wilson(count, n), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert estimate.share(hits(count, n).float()) == estimate.share(hits(count, n).flip(0)) == found


@pytest.mark.parametrize("n", [10, 40, 300])
def test_the_interval_of_a_share_holds_the_truth_in_95_of_100_cases(n: int):
    """Summed over all outcomes, for many true shares: about right on average, and nowhere far off."""
    intervals = [ends(estimate.share(hits(count, n))) for count in range(n + 1)]
    coverage = []
    for p in np.linspace(0.02, 0.98, 49):
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        coverage.append(sum(c for c, (low, high) in zip(chance, intervals, strict=True) if low <= p <= high))
    assert np.mean(coverage) == pytest.approx(0.953, abs=0.006) and min(coverage) > 0.83


def test_what_a_share_does_not_apply_to_is_not_counted():
    nan = math.nan
    assert estimate.share(torch.tensor([1.0, nan, 0.0, nan, 1.0])) == estimate.share(torch.tensor([True, False, True]))
    for nothing in (torch.tensor([nan, nan]), torch.zeros(0), torch.zeros(0, dtype=torch.bool)):
        found = estimate.share(nothing)
        assert math.isnan(found.value) and unknown(found) and found.n == 0


# Means


@pytest.mark.parametrize("n", [2, 3, 30, 500])
def test_a_mean_has_students_interval(n: int):
    values = torch.from_numpy(np.random.default_rng(n).gamma(2.0, 3.0, n))
    found = estimate.mean(values)
    assert found.value == pytest.approx(values.mean().item()) and found.n == n
    assert ends(found) == pytest.approx(student(values.numpy()))


def test_what_a_mean_does_not_apply_to_is_not_counted():
    nan = math.nan
    found = estimate.mean(torch.tensor([nan, 1.0, 4.0, nan, 10.0]))
    assert (found.value, found.n) == (5, 3) and ends(found) == pytest.approx(student([1, 4, 10]))
    one = estimate.mean(torch.tensor([nan, 4.0]))
    assert (one.value, one.n) == (4, 1) and unknown(one) and not one.above and not one.below
    none = estimate.mean(torch.tensor([nan]))
    assert math.isnan(none.value) and unknown(none) and none.n == 0


def test_single_precision_is_summed_in_double():
    values = torch.tensor([2.0**24, 1.0, 2.0**24 + 2, 3.0])
    found = estimate.mean(values)
    assert found.value == (2**25 + 6) / 4 and ends(found) == pytest.approx(student(values.double().numpy()), rel=1e-12)


def test_what_is_always_the_same_has_an_interval_of_no_width():
    assert estimate.mean(torch.full((9,), 2.5)) == Estimate(2.5, 2.5, 2.5, 9)


def test_zeros_and_ones_are_a_share_and_all_else_is_averaged():
    nan = math.nan
    for values in ([0.0, 1.0, 1.0], [1.0, nan], [0.0, 0.0]):
        assert estimate.of(torch.tensor(values)) == estimate.share(torch.tensor(values))
    for values in ([0.0, 1.0, 0.5], [0.0, 2.0, nan], [-1.0, 1.0]):
        assert estimate.of(torch.tensor(values)) == estimate.mean(torch.tensor(values))
    assert estimate.of(torch.tensor([0.0, 1.0, 1.0])) != estimate.mean(torch.tensor([0.0, 1.0, 1.0]))
    assert estimate.of(torch.tensor([nan, nan])).n == 0


# Statistics of all samples


def asked(n: int, groups: int = 10) -> list[list[int]]:
    indices: list[list[int]] = []

    def function(index: Tensor) -> float:
        indices.append(index.tolist())
        return 0.0

    estimate.statistic(function, n, groups)
    return indices


@pytest.mark.parametrize(("n", "groups"), [(100, 10), (23, 10), (300, 10), (7, 10), (12, 5), (4, 10)])
def test_every_sample_is_left_out_once_in_blocks_of_neighbours(n: int, groups: int):
    everything, *parts = asked(n, groups)
    assert everything == list(range(n)) and len(parts) == min(n // 2, groups)
    left_out = [sorted(set(everything) - set(part)) for part in parts]
    assert [k for block in left_out for k in block] == everything, "consecutive, in order, each once"
    assert all(part == sorted(part) and len(part) + len(out) == n for part, out in zip(parts, left_out, strict=True))
    sizes = [len(block) for block in left_out]
    assert max(sizes) - min(sizes) <= 1


def test_classes_asked_for_in_turn_are_in_all_blocks_alike():
    label = np.arange(300) % 10
    for part in asked(300)[1:]:
        assert np.bincount(label[part]).tolist() == [27] * 10


@pytest.mark.parametrize(("n", "groups"), [(100, 10), (60, 5), (40, 20), (6, 2)])
def test_the_jackknife_of_a_mean_is_students_interval_of_the_means_of_groups(n: int, groups: int):
    values = torch.from_numpy(np.random.default_rng(0).gamma(2.0, 3.0, n))
    found = estimate.statistic(lambda index: values[index].mean().item(), n, groups)
    assert found.value == pytest.approx(values.mean().item()) and found.n == n
    assert ends(found) == pytest.approx(student(values.view(groups, -1).mean(1).numpy()))


def test_of_few_samples_groups_are_fewer_and_two_samples_are_left_at_least():
    values = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0, 2.0], dtype=torch.float64)
    for n, groups in ((6, 3), (4, 2)):
        found = estimate.statistic(lambda index: values[index].mean().item(), n)
        assert ends(found) == pytest.approx(student(values[:n].view(groups, 2).mean(1).numpy()))
    assert all(len(part) >= 2 for n in range(2, 12) for part in asked(n))
    for n in (1, 2, 3):
        found = estimate.statistic(lambda index: 7.0, n)
        assert (found.value, found.n) == (7, n) and unknown(found) and len(asked(n)) == 1


def test_the_jackknife_is_kotts_formula_where_groups_differ_in_size():
    values = np.random.default_rng(0).normal(size=23)
    found = estimate.statistic(lambda index: float(np.var(values[index.numpy()])), 23, 4)
    parts = [np.var(np.delete(values, range(first, last))) for first, last in ((0, 6), (6, 12), (12, 18), (18, 23))]
    half = stats.t.ppf(0.975, 3) * math.sqrt(3 / 4 * sum((part - np.mean(parts)) ** 2 for part in parts))
    assert found.value == pytest.approx(np.var(values)) and ends(found) == pytest.approx((np.var(values) - half, np.var(values) + half))


@pytest.mark.parametrize("kind", ["variance", "ratio", "correlation"])
def test_the_interval_of_a_statistic_holds_the_truth_in_about_95_of_100_cases(kind: str):
    generator, held, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        x, y = generator.normal(size=(2, 120))
        if kind == "variance":
            truth, function = 4.0, lambda rows, x=2 * x: float(x[rows].var(ddof=1))
        elif kind == "ratio":
            truth, function = 3.0, lambda rows, a=6 + y + x, b=2 + x / 3: float(a[rows].mean() / b[rows].mean())
        else:
            truth, function = 0.6, lambda rows, a=x, b=0.6 * x + 0.8 * y: float(np.corrcoef(a[rows], b[rows])[0, 1])
        found = estimate.statistic(lambda index, of=function: of(index.numpy()), 120)
        held += found.low <= truth <= found.high
    assert stats.binomtest(held, trials, 0.945).pvalue > 0.01, held / trials


# Trainings


def test_over_seeds_the_values_are_observations():
    found = [Estimate(0.5, 0.4, 0.6, 100), Estimate(0.7, 0.6, 0.9, 50), Estimate(0.9, 0.8, 1.0, 100)]
    together = estimate.over_seeds(found)
    assert together.value == pytest.approx(0.7) and ends(together) == pytest.approx(student([0.5, 0.7, 0.9])) and together.n == 250
    assert estimate.over_seeds(found[:1]) is found[0], "one keeps its own interval"


def test_trainings_that_agree_by_chance_are_as_unsure_as_their_samples():
    """The mean of K independent values has their variances' sum, over K squared; each end by its own distances."""
    found = [Estimate(0.7, 0.4, 0.8, 10), Estimate(0.7, 0.6, 0.9, 10), Estimate(0.7, 0.5, 0.75, 10)]
    together = estimate.over_seeds(found)
    below, above = math.sqrt(0.3**2 + 0.1**2 + 0.2**2) / 3, math.sqrt(0.1**2 + 0.2**2 + 0.05**2) / 3
    assert ends(together) == pytest.approx((0.7 - below, 0.7 + above)) and together.value == pytest.approx(0.7)
    nan = math.nan
    alone = estimate.over_seeds([Estimate(1.0, nan, nan, 1), Estimate(2.0, nan, nan, 1), Estimate(4.0, nan, nan, 1)])
    assert ends(alone) == pytest.approx(student([1, 2, 4])), "where they have no intervals of their own"


def test_beyond_doubt_is_the_whole_interval():
    for low, high, above, below in (
        (0.1, 0.3, True, False),
        (-0.1, 0.3, False, False),
        (-0.3, 0.1, False, False),
        (-0.3, -0.1, False, True),
        (0, 1, False, False),
    ):
        found = Estimate((low + high) / 2, low, high, 9)
        assert (found.above, found.below) == (above, below)
    assert str(Estimate(0.12345, -1.5, 1234.5, 3)) == "0.123 [-1.5, 1.23e+03]"
