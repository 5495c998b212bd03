"""Random numbers are a function of (seed, stream, step, sample): of nothing else, and with the right distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from guidance.noise import Stream, bits, normal, permutation, uniform


@pytest.mark.parametrize("event", [(1,), (2,), (3, 5), (8,), (9,), ()], ids=str)
@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (5, 7), (3, 4, 4, 1)], ids=str)
def test_a_samples_noise_does_not_depend_on_its_batch(event: tuple[int, ...], sizes: tuple[int, ...]):
    whole = normal(3, Stream.STEP, 7, 100, (12, *event))
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [normal(3, Stream.STEP, 7, 100 + int(start), (size, *event)) for start, size in zip(starts, sizes, strict=True)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("width", [1, 4, 5])
def test_a_samples_uniforms_do_not_depend_on_its_batch(width: int):
    whole = uniform(3, Stream.DROP, 2, 10, 9, width)
    assert torch.equal(torch.cat([uniform(3, Stream.DROP, 2, 10 + i, 1, width) for i in range(9)]), whole)


def test_samples_past_two_to_the_64_counters_are_reachable_and_different():
    far = bits(0, Stream.START, 0, 2**64, 2, 4)
    assert np.array_equal(far[1:], bits(0, Stream.START, 0, 2**64 + 1, 1, 4))
    assert not np.array_equal(far, bits(0, Stream.START, 0, 0, 2, 4))


def test_bits_are_philox_at_the_counter():
    """NumPy's generator, advanced to sample 5's first counter, says the same."""
    generator = np.random.Philox(key=np.array([42, Stream.CORRUPT], dtype=np.uint64), counter=[0, 0, 3, 0])
    expected = generator.advance(5 * 2).random_raw(8)
    assert np.array_equal(bits(42, Stream.CORRUPT, 3, 5, 1, 7)[0], expected[:7])


@pytest.mark.parametrize("event", [(1,), (2,), (7,)], ids=str)
def test_normal_is_standard_normal(event: tuple[int, ...]):
    n = 200_000
    z = normal(0, Stream.START, 0, 0, (n // event[0], *event)).double().flatten().numpy()
    error = 1 / np.sqrt(len(z))
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < 4 * error * np.sqrt(variance)


def test_normal_elements_of_a_sample_are_independent():
    """Both of Box and Muller's pair, and the pairs among each other: neither they nor their squares correlate."""
    z = normal(1, Stream.START, 0, 0, (100_000, 5)).double()
    for values in (z, z**2):
        correlation = torch.corrcoef(values.T) - torch.eye(5, dtype=torch.float64)
        assert float(correlation.abs().max()) < 4.5 / np.sqrt(len(z))


def test_uniform_is_uniform():
    u = uniform(0, Stream.TIME, 0, 0, 100_000, 3)
    for column in u.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert float(torch.corrcoef(u.T).triu(1).abs().max()) < 4.5 / np.sqrt(len(u))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"seed": 2**63},
        {"stream": Stream.STEP},
        {"stream": Stream.ORDER},
        {"step": 1},
        {"step": 2**40},
        {"first": 4096},
    ],
    ids=str,
)
def test_seeds_streams_steps_and_samples_are_independent(other: dict):
    base = {"seed": 0, "stream": Stream.START, "step": 0, "first": 0, "shape": (4096, 4)}
    a, b = normal(**base).flatten().double(), normal(**base | other).flatten().double()
    assert abs(float((a * b).mean())) < 4.5 / np.sqrt(len(a))
    assert float((a == b).double().mean()) < 1e-3


def test_every_stream_has_its_own_number():
    assert len({int(stream) for stream in Stream}) == len(Stream)


def test_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(0)
    first, state = normal(5, Stream.STEP, 1, 0, (3, 2)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(normal(5, Stream.STEP, 1, 0, (3, 2)), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_permutation_is_one_and_its_own_in_each_epoch(n: int):
    orders = [permutation(0, epoch, n) for epoch in range(3)]
    assert all(np.array_equal(np.sort(order), np.arange(n)) for order in orders)
    assert np.array_equal(orders[1], permutation(0, 1, n))
    if n > 2:
        assert len({tuple(order) for order in [*orders, permutation(1, 0, n)]}) == 4


def test_permutation_puts_every_item_everywhere_alike():
    counts = np.zeros((5, 5))
    for epoch in range(2000):
        counts[permutation(0, epoch, 5), np.arange(5)] += 1
    assert stats.chisquare(counts.flatten(), ddof=8).pvalue > 1e-3
