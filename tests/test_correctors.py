"""Langevin steps, their Metropolis test and Feynman-Kac weights, against closed forms of Gaussians and the exact tilts of a mixture.

A product of Gaussian densities to real powers is Gaussian, and so is a Langevin step: what comes out is known exactly. A mixture whose
components have one deviation has every tilt, known on a grid.
"""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from guidance.analytic import Mixture
from guidance.cli import run
from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.guide import CFG, Compose, Guidance, Term, WeightedSum, on
from guidance.guided import GuidedDenoiser
from guidance.parameterization import X0, Prediction
from guidance.process import Level
from guidance.rules import Interval
from guidance.sampler import DDIM, DDPM, DPMSolver, FeynmanKac, Heun, Langevin, LogSNR, Predict, Progress, Sampler, sample
from guidance.sampler.feynman_kac import Particles, Weighted, alike, growth, systematic
from guidance.sampler.loop import further, uniform
from guidance.schedule import Cosine, Rectified, Schedule

# Two Gaussians, p_0^2 / p_1: precision 2 / s_0^2 - 1 / s_1^2
M0, S0, M1, S1 = 1.0, 0.6, 0.0, 0.9
PAIR = Mixture(torch.tensor([[M0], [M1]]), [S0, S1], labels={"side": [0, 1]})
TWICE = 2.0 * on(side=0) - 1.0 * on(side=1)
PRECISION = 2 / S0**2 - 1 / S1**2
TILT_STD, TILT_MEAN = PRECISION**-0.5, (2 * M0 / S0**2 - M1 / S1**2) / PRECISION
NONE = Condition.of(side=[0])


def nothing(n: int) -> Condition:
    return Condition.of(side=[0] * n).drop()


def log_integral(a: float, m0: float, s0: float, m1: float, s1: float) -> float:
    """log of the integral of N(m0, s0^2)^a N(m1, s1^2)^(1 - a)."""
    p, b = a / s0**2 + (1 - a) / s1**2, a * m0 / s0**2 + (1 - a) * m1 / s1**2
    return -math.log(p) / 2 - a * math.log(s0) - (1 - a) * math.log(s1) + (b**2 / p - a * m0**2 / s0**2 - (1 - a) * m1**2 / s1**2) / 2


# A mixture of four components of one deviation, in two attributes
MEANS, WEIGHTS, STD = torch.tensor([-2.0, -0.5, 1.0, 2.5]).double(), torch.tensor([0.2, 0.3, 0.35, 0.15]).double(), 0.5
A, B = [0, 0, 1, 1], [0, 1, 0, 1]
FOUR = Mixture(MEANS[:, None], STD, WEIGHTS, {"a": A, "b": B})
GRID = torch.linspace(-16, 16, 16001, dtype=torch.float64)
TARGETS: dict[str, tuple[Guidance, Condition | None, tuple[float, float, float]]] = {  # the powers of p(x | a = 1), p(x | b = 1), p(x)
    "scale 1": (CFG(1.0), Condition.of(a=[1], b=[0]).drop("b"), (1.0, 0.0, 0.0)),
    "scale 3": (CFG(3.0), Condition.of(a=[1], b=[0]).drop("b"), (3.0, 0.0, -2.0)),
    "A and B": (1.0 * on(a=1) + 1.0 * on(b=1), None, (1.0, 1.0, -1.0)),
    "A not B": (1.0 * on(a=1) - 0.5 * on(b=1), None, (1.0, -0.5, 0.5)),
    "inverse": (CFG(-1.0), Condition.of(a=[1], b=[0]).drop("b"), (-1.0, 0.0, 2.0)),
}


def log_tilt(name: str, logsnr: float = math.inf) -> Tensor:
    """The target's log density at a noise level (variance-preserving) on the grid, up to a constant."""
    alpha2 = 1.0 if math.isinf(logsnr) else 1 / (1 + math.exp(-logsnr))
    each = -((GRID[:, None] - alpha2**0.5 * MEANS) ** 2) / 2 / (alpha2 * STD**2 + 1 - alpha2) + WEIGHTS.log()
    powers = TARGETS[name][2]
    kept = [torch.tensor(A, dtype=torch.bool), torch.tensor(B, dtype=torch.bool), torch.ones(4, dtype=torch.bool)]
    return sum(power * each[:, mask].logsumexp(1) for power, mask in zip(powers, kept, strict=True))


def cdf(log_p: Tensor) -> Tensor:
    p = (log_p - log_p.max()).exp()
    return p.cumsum(0) / p.sum()


def quantiles(log_p: Tensor, shares: Tensor) -> Tensor:
    return torch.from_numpy(np.interp(shares.numpy(), cdf(log_p).numpy(), GRID.numpy()))


def shares(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def draw_target(name: str, sampler: Sampler, n: int = 1000, steps: int = 60, **more: Any) -> Tensor:
    guidance, condition, _ = TARGETS[name]
    rows = (condition or Condition.of(a=[0], b=[0]).drop()).rows(torch.zeros(n, dtype=torch.long))
    return sample(FOUR.denoiser(), (n, 1), rows, guidance, sampler, steps=steps, **more).flatten().double()


def distance(name: str, x: Tensor) -> float:
    """Wasserstein's, to the exact quantiles."""
    return float((x.sort().values - quantiles(log_tilt(name), shares(len(x)))).abs().mean())


class Stay:
    """A sampler that leaves x where it is."""

    def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Any, past: Any) -> tuple[Tensor, Prediction]:
        return x_t, Prediction(x_t, x_t)


def noises(seed: int, shape: tuple[int, ...]) -> Callable[..., Tensor]:
    """A step's noise: another for every number, the same for the same."""
    return lambda again=0: torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + again), dtype=torch.float64)


def move(sampler: Langevin, network: Mixture, guidance: Guidance, condition: Condition, x: Tensor, logsnr: float, seed: int = 0) -> Any:
    """One step of a sampler, to a level at which x lies already."""
    predict = Predict(GuidedDenoiser(network.denoiser(), guidance, condition, len(x)), Cosine(), None)
    at = predict.at(torch.tensor(logsnr, dtype=torch.float64))
    return sampler.step(predict, x, at, at, noises(seed, tuple(x.shape)), None)


# What is drawn is the tilt


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("name, bound", list(zip(TARGETS, (0.06, 0.15, 0.13, 0.08, 0.1), strict=True)))
def test_feynman_kac_draws_the_tilts_of_a_mixture(name: str, bound: float):
    """Without the weights the same steps are .43, .45, .16 and 1.5 away where the scale is not 1."""
    assert distance(name, draw_target(name, FeynmanKac(Langevin(DPMSolver(sde=True), moves=1)))) < bound
    assert name == "scale 1" or distance(name, draw_target(name, DPMSolver(sde=True))) > 0.12


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name, bound", [("scale 1", 0.05), ("scale 3", 0.08), ("A not B", 0.08), ("inverse", 0.12)])
def test_langevin_steps_bring_the_samples_near(name: str, bound: float):
    assert distance(name, draw_target(name, Langevin(moves=5, size=0.4), steps=40)) < bound


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "inner", [DDPM(), DDPM(1.0), DDIM(1.0), DPMSolver(sde=True), Langevin(DDPM(), moves=1)], ids=lambda inner: repr(inner)[:20]
)
def test_feynman_kac_draws_a_gaussian_tilt(inner: Sampler):
    n = 3000
    x = sample(PAIR.denoiser(), (n, 1), nothing(n), TWICE, FeynmanKac(inner, particles=n), steps=60).double()
    assert float(x.mean()) == pytest.approx(TILT_MEAN, abs=0.05)
    assert float(x.std()) == pytest.approx(TILT_STD, abs=0.045)


@pytest.mark.usefixtures("unchecked")
def test_samples_of_several_requests_in_one_batch_do_not_mix():
    """Every third sample asks for another power of its own, and each gets it: N(m, s^2) with m and s of its two weights."""
    n, a = 6000, torch.tensor([2.0, 1.5, -0.3])
    weights = a.repeat(n // 3)
    guidance = Compose(((weights, {"side": 0}), (1 - weights, {"side": 1})))
    seen: list[Progress] = []
    x = sample(PAIR.denoiser(), (n, 1), nothing(n), guidance, FeynmanKac(), steps=60, callbacks=[seen.append]).double().flatten()
    state = seen[-1].prediction
    assert isinstance(state, Weighted)
    assert torch.equal(state.origin % 3, torch.arange(n) % 3), "a sample's starting noise is one of its own group"
    assert len(state.origin.unique()) < n, "something was resampled"
    for k, weight in enumerate(a.tolist()):
        precision = weight / S0**2 + (1 - weight) / S1**2
        mean = (weight * M0 / S0**2 + (1 - weight) * M1 / S1**2) / precision
        assert float(x[k::3].mean()) == pytest.approx(mean, abs=0.12)
        assert float(x[k::3].std()) == pytest.approx(precision**-0.5, abs=0.05)
        assert float(state.log_weight[k]) == pytest.approx(log_integral(weight, M0, S0, M1, S1), abs=0.15)


# The weights


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("threshold", [0.0, 0.9])
@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=repr)
def test_the_weights_mean_is_the_integral_of_the_tilt(schedule: Schedule, threshold: float):
    """Jarzynski's identity: with resampling or without, at every level."""
    n, seen = 3000, []
    sampler = FeynmanKac(DDPM(), threshold)
    sample(PAIR.denoiser(), (n, 1), nothing(n), TWICE, sampler, steps=80, schedule=schedule, callbacks=[seen.append])
    for progress in (seen[40], seen[60], seen[-1]):
        at = progress.level
        alpha, sigma = float(at.alpha), float(at.sigma)
        exact = log_integral(2.0, alpha * M0, math.hypot(alpha * S0, sigma), alpha * M1, math.hypot(alpha * S1, sigma))
        found = float(progress.prediction.log_weight.logsumexp(0)) - math.log(n)
        assert found == pytest.approx(log_integral(2.0, M0, S0, M1, S1) if progress is seen[-1] else exact, abs=0.05)


@pytest.mark.usefixtures("unchecked")
def test_the_weights_integrate_at_second_order_down_to_clean_data():
    """Of two Gaussians of one deviation s the bracket depends on the level alone; that of p_0^2 / p_1 gives exp((m_0 - m_1)^2 / s^2)."""
    apart, s, errors = 0.9, 0.7, []
    network = Mixture(torch.tensor([[apart], [0.0]]), s, labels={"side": [0, 1]})
    for steps in (10, 20, 40):
        seen: list[Progress] = []
        sample(network.denoiser(), (4, 1), nothing(4), TWICE, FeynmanKac(particles=4), steps=steps, callbacks=[seen.append])
        last = seen[-1].prediction.log_weight
        assert float(last.std()) < 1e-5 and float(seen[-1].prediction.effective.min()) > 0.999
        errors.append(abs(float(last[0]) - apart**2 / s**2))
    assert errors[-1] < 0.02
    assert all(later < earlier / 3 for earlier, later in pairwise(errors))


def test_the_last_stretch_is_half_the_last_value():
    """From logsnr 4 on, where it is e^-4 of what it was, to the order of its square."""
    network = Mixture(torch.tensor([[2.0], [0.0]]), 0.7, labels={"side": [0, 1]})
    seen: list[Progress] = []
    grid = LogSNR(-14.0, 4.0)
    sample(network.denoiser(), (4, 1), nothing(4), TWICE, FeynmanKac(particles=4), steps=80, grid=grid, callbacks=[seen.append])
    rest = 2.0**2 / 0.7**2 - float(seen[-2].prediction.log_weight[0])
    assert rest > 0.1
    assert float(seen[-1].prediction.log_weight[0]) == pytest.approx(2.0**2 / 0.7**2, abs=0.02 * rest + 5e-3)


def test_growth_is_the_papers_bracket():
    generator = torch.Generator().manual_seed(0)
    a = torch.tensor([[1.5, -2.0, 0.3], [0.5, 0.0, -0.8], [-1.0, 3.0, 1.5]], dtype=torch.float64)
    eps = torch.randn(3, 3, 2, 5, generator=generator, dtype=torch.float64)
    terms = [Term(w.view(3, 1, 1), NONE) for w in a]
    found = growth(Prediction(eps[0], eps[0], tuple((t, Prediction(e, e)) for t, e in zip(terms, eps, strict=True))))
    expected = torch.einsum("kb,kbij->bij", a, eps).square().sum((1, 2)) - torch.einsum("kb,kbij->b", a, eps.square())
    torch.testing.assert_close(found, expected)


def test_systematic_resampling_is_within_one_and_right_on_average():
    w = torch.rand(37, generator=torch.Generator().manual_seed(1), dtype=torch.float64).pow(3)
    w /= w.sum()
    counts = torch.stack([systematic(w, u).bincount(minlength=37) for u in (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000]).double()
    assert bool(((counts - 37 * w).abs() < 1).all())
    torch.testing.assert_close(counts.mean(0), 37 * w, atol=1e-3, rtol=0.0)
    even = torch.full((37,), 1 / 37, dtype=torch.float64)
    assert torch.equal(systematic(even, torch.tensor(0.3).double()), torch.arange(37)), "equal weights move nothing"


def test_samples_that_ask_for_the_same_are_a_group():
    values = {
        "digit": torch.tensor([3, 3, 8, 3, 5, 4]),
        "place": torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 0.0], [0.0, 0.0], [7.0, 7.0]]),
    }
    keep = {"digit": torch.tensor([True, True, True, True, False, False]), "place": torch.tensor([True, True, True, True, False, False])}
    condition = Condition(values, keep)
    assert alike([Term(1.0, condition)], 6).tolist() == [0, 0, 1, 2, 3, 3]
    weights = torch.tensor([2.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    assert alike([Term(weights, condition), Term(1 - weights, condition.drop())], 6).tolist() == [0, 1, 2, 3, 4, 4]
    nought = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    assert alike([Term(nought, condition), Term(1 - nought, condition.drop())], 6).tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("inner", [DDPM(0.3), DPMSolver(sde=True), Langevin(DDPM(), moves=2)], ids=lambda inner: repr(inner)[:20])
def test_without_guidance_feynman_kac_is_its_sampler(inner: Sampler, scale: float):
    """With the noises that it leaves to it."""

    class Left:
        def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Any, past: Any) -> tuple[Tensor, Prediction]:
            return inner.step(predict, x_t, now, then, further(draw, 1), past)

    condition, seen = Condition.of(side=[0, 1] * 8), []
    sampler = FeynmanKac(inner, 1.0, particles=8)
    found = sample(PAIR.denoiser(), (16, 1), condition, CFG(scale), sampler, steps=7, callbacks=[seen.append])
    assert torch.equal(found, sample(PAIR.denoiser(), (16, 1), condition, CFG(scale), Left(), steps=7))
    assert all(float(p.prediction.effective.min()) > 1 - 1e-12 and not p.prediction.log_weight.any() for p in seen)
    assert torch.equal(seen[-1].prediction.origin, torch.arange(16))


# All that belongs to a particle moves with it


class Remembering:
    """An inner sampler that records what it is given, and steps like `DPMSolver`."""

    sde = True

    def __init__(self) -> None:
        self.given: list[tuple[Tensor, Prediction, Any, Level]] = []
        self.left: list[Tensor] = []

    def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Any, past: Any) -> tuple[Tensor, Prediction]:
        x, prediction = DPMSolver(sde=True).step(predict, x_t, now, then, draw, past)
        self.given.append((x_t, prediction, past, now))
        self.left.append(x)
        return x, prediction


def test_resampling_moves_prediction_parts_and_past_together():
    n, inner = 12, Remembering()
    strong = 5.0 * on(side=0) - 4.0 * on(side=1)
    sample(PAIR.denoiser(), (n, 1), nothing(n), strong, FeynmanKac(inner, 1.0, particles=n), steps=12, seed=3)
    guided = GuidedDenoiser(PAIR.denoiser(), strong, nothing(n), n)
    moved = 0
    for k, (x_t, prediction, past, now) in enumerate(inner.given):
        fresh = guided(x_t, now)
        torch.testing.assert_close(prediction.x0, fresh.x0)
        torch.testing.assert_close(prediction.eps, fresh.eps)
        for (_, found), (_, expected) in zip(prediction.parts, fresh.parts, strict=True):
            torch.testing.assert_close(found.eps, expected.eps)
        if k:
            index = (inner.left[k - 1].flatten()[None] == x_t.flatten()[:, None]).double().argmax(1)
            moved += int((index != torch.arange(n)).any())
            assert torch.equal(past[0].x0, inner.given[k - 1][1].x0[index]) and past[1] is inner.given[k - 1][3]
    assert moved > 3


def test_resampling_moves_the_earlier_guess_too():
    hints: list[Tensor | None] = []

    class Hinted(nn.Module):
        def embed(self, condition: Condition) -> Tensor | None:
            return PAIR.embed(condition)

        def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
            hints.append(x0_hat)
            return PAIR(x_t, logsnr, context)

    seen: list[Progress] = []
    denoiser = Denoiser(Hinted(), Cosine(), X0(), self_condition=True)
    sample(denoiser, (12, 1), nothing(12), TWICE, FeynmanKac(DDPM(), 1.0, particles=12), steps=12, callbacks=[seen.append])
    assert len(seen[-1].prediction.origin.unique()) < 12
    for hint, progress in zip(hints[1:], seen, strict=False):
        assert torch.equal(hint, torch.cat([progress.prediction.x0] * 2))


def test_noise_inside_is_other_noise():
    """FeynmanKac, Langevin and what they are around never use one noise twice."""
    asked: list[int] = []

    class Drawing:
        sde = True

        def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Any, past: Any) -> tuple[Tensor, Prediction]:
            prediction = predict(x_t, now)
            return x_t + 0 * (draw() + draw(1) + draw(2)), prediction

    def draw(again: int = 0) -> Tensor:
        asked.append(again)
        return torch.zeros(4, 1).double()

    for adjusted in (False, True):
        asked.clear()
        guided = GuidedDenoiser(PAIR.denoiser(), CFG(0.0), nothing(4), 4)
        predict = Predict(guided, Cosine(), None)
        now, then = (predict.at(torch.tensor(x).double()) for x in (-1.0, 0.0))
        FeynmanKac(Langevin(Drawing(), moves=3, adjusted=adjusted)).step(predict, torch.ones(4, 1).double(), now, then, draw, None)
        assert len(set(asked)) == len(asked) == 1 + 3 + (6 if adjusted else 3)


@pytest.mark.parametrize(
    "sampler", [Langevin(moves=2), Langevin(moves=2, adjusted=True), FeynmanKac(particles=8)], ids=lambda s: repr(s)[:70]
)
def test_a_run_is_a_function_of_its_seed_whatever_the_rows_a_call(sampler: Sampler):
    def drawn(seed: int, rows: int | None = None) -> Tensor:
        return sample(PAIR.denoiser(), (16, 1), nothing(16), TWICE, sampler, steps=8, seed=seed, max_rows=rows)

    assert torch.equal(drawn(1), drawn(1))
    torch.testing.assert_close(drawn(1, rows=5), drawn(1), atol=1e-5, rtol=1e-5)
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("adjusted", [False, True])
def test_langevin_samples_do_not_depend_on_the_batch(adjusted: bool):
    sampler = Langevin(moves=2, adjusted=adjusted)
    whole = sample(PAIR.denoiser(), (12, 1), nothing(12), TWICE, sampler, steps=5)
    parts = [sample(PAIR.denoiser(), (4, 1), nothing(4), TWICE, sampler, steps=5, first=first) for first in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


# Langevin


def tilt_at(logsnr: float) -> tuple[float, float]:
    """Mean and variance of p_0^2 / p_1 at a noise level."""
    alpha2 = 1 / (1 + math.exp(-logsnr))
    v0, v1 = alpha2 * S0**2 + 1 - alpha2, alpha2 * S1**2 + 1 - alpha2
    precision = 2 / v0 - 1 / v1
    return alpha2**0.5 * (2 * M0 / v0 - M1 / v1) / precision, 1 / precision


@pytest.mark.parametrize("size", [0.05, 0.6, 1.5])
def test_unadjusted_moves_of_a_gaussian_are_an_autoregression(size: float):
    """m + (1 - delta / V)^K (x - m), with the noise of K steps: mean and variance known, and the variance's bias for large steps."""
    logsnr, k = 1.0, 4
    mean, variance = tilt_at(logsnr)
    delta = size * (1 - 1 / (1 + math.exp(-logsnr)))
    keep = 1 - delta / variance
    n = 20000
    x, _ = move(Langevin(Stay(), k, size), PAIR, TWICE, nothing(n), torch.full((n, 1), 2.0).double(), logsnr)
    assert float(x.mean()) == pytest.approx(mean + keep**k * (2.0 - mean), abs=4 * math.sqrt(variance / n) + 1e-3)
    assert float(x.var()) == pytest.approx(2 * delta * (1 - keep ** (2 * k)) / (1 - keep**2), rel=0.05)


@pytest.mark.parametrize("name", ["scale 3", "A not B", "inverse"])
@pytest.mark.parametrize("logsnr, size", [(-1.0, 1.2), (2.0, 4.0)])
def test_adjusted_moves_leave_the_tilt_of_a_level_as_it_is(name: str, logsnr: float, size: float):
    """From exact samples, with steps so large that without the test they are visibly spoilt."""
    n = 4000
    guidance, condition, _ = TARGETS[name]
    rows = (condition or Condition.of(a=[0], b=[0]).drop()).rows(torch.zeros(n, dtype=torch.long))
    target = log_tilt(name, logsnr)
    start = quantiles(target, torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[:, None]

    def p_value(x: Tensor) -> float:
        return float(stats.kstest(np.interp(x.flatten().numpy(), GRID.numpy(), cdf(target).numpy()), "uniform").pvalue)

    adjusted, prediction = move(Langevin(Stay(), 10, size, adjusted=True), FOUR, guidance, rows, start, logsnr)
    assert p_value(start) > 0.01 and p_value(adjusted) > 0.01
    assert float((adjusted != start).double().mean()) > 0.8 and 0.1 < float(prediction.acceptance.mean()) < 0.95
    unadjusted, _ = move(Langevin(Stay(), 10, size), FOUR, guidance, rows, start, logsnr)
    assert p_value(unadjusted) < 1e-4


def test_adjusted_moves_lead_to_the_tilt_from_anywhere():
    n = 4000
    mean, variance = tilt_at(0.0)
    x, _ = move(Langevin(Stay(), 60, 0.5, adjusted=True), PAIR, TWICE, nothing(n), torch.full((n, 1), -1.0).double(), 0.0)
    assert stats.kstest(((x.flatten() - mean) / variance**0.5).numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("size", [0.3, 2.0])
def test_the_acceptance_is_metropolis_and_hastings(size: float):
    """Against the mean of min(1, p(x') q(x | x') / (p(x) q(x' | x))) with scipy's densities."""
    logsnr, n = 1.0, 20000
    mean, variance = tilt_at(logsnr)
    delta = size * (1 - 1 / (1 + math.exp(-logsnr)))
    rng = np.random.default_rng(0)
    p = stats.norm(mean, variance**0.5)
    x = p.rvs(n, random_state=rng)

    def forward(x: np.ndarray) -> Any:
        return stats.norm(x - delta * (x - mean) / variance, math.sqrt(2 * delta))

    new = forward(x).rvs(n, random_state=rng)
    ratio = p.logpdf(new) - p.logpdf(x) + forward(new).logpdf(x) - forward(x).logpdf(new)
    expected = np.minimum(1, np.exp(ratio)).mean()
    _, prediction = move(Langevin(Stay(), 1, size, adjusted=True), PAIR, TWICE, nothing(n), torch.from_numpy(x)[:, None], logsnr)
    assert float(prediction.acceptance.mean()) == pytest.approx(expected, abs=0.015)
    assert expected < 0.98


def test_a_projection_does_not_change_what_adjusted_moves_lead_to():
    n = 4000
    mean, variance = tilt_at(0.0)
    predict = Predict(GuidedDenoiser(PAIR.denoiser(), TWICE, nothing(n), n), Cosine(), lambda x0: x0.clamp(-0.2, 0.5))
    at = predict.at(torch.tensor(0.0).double())
    start = torch.randn(n, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * variance**0.5 + mean
    for adjusted in (True, False):
        x, _ = Langevin(Stay(), 20, 0.4, adjusted=adjusted).step(predict, start, at, at, noises(0, (n, 1)), None)
        p = stats.kstest(((x.flatten() - mean) / variance**0.5).numpy(), "norm").pvalue
        assert p > 0.01 if adjusted else p < 1e-4


def test_langevin_is_its_sampler_without_moves_and_at_levels_left_out():
    condition = Condition.of(side=[0, 1] * 4)
    plain = sample(PAIR.denoiser(), (8, 1), condition, CFG(2.0), DDPM(), steps=9)
    for sampler in (Langevin(DDPM(), 0), Langevin(DDPM(), 3, low=30.0), Langevin(DDPM(), 3, high=-30.0)):
        assert torch.equal(sample(PAIR.denoiser(), (8, 1), condition, CFG(2.0), sampler, steps=9), plain)


@pytest.mark.parametrize(
    "sampler, rows",  # 8 samples, 2 terms, 9 steps, of which the last goes to the clean level, where nothing moves
    [
        (Langevin(DDPM(), 3), 9 + 8 * 3),
        (Langevin(DDPM(), 3, adjusted=True), 9 + 8 * 8),
        (Langevin(DDPM(), 3, low=0.0), 9 + 4 * 3),
        (FeynmanKac(particles=4), 9),
    ],
)
def test_what_correction_costs(sampler: Sampler, rows: int):
    seen: list[Progress] = []
    condition = Condition.of(side=[0, 1] * 4)
    sample(PAIR.denoiser(Cosine(-6.0, 6.0)), (8, 1), condition, CFG(2.0), sampler, steps=9, callbacks=[seen.append])
    assert seen[-1].rows == 2 * 8 * rows


def test_uniform_numbers_are_uniform_and_further_noise_is_further():
    z = torch.randn(4000, 2, 3, generator=torch.Generator().manual_seed(0))
    assert stats.kstest(uniform(z).numpy(), "uniform").pvalue > 0.01
    draw = further(lambda again=0: torch.tensor([float(again)]), 4)
    assert [float(draw(k)) for k in (0, 1, 2)] == [0, 5, 6] and float(draw()) == 0


# What does not go together


class Scores(nn.Module):
    """A network without a density."""

    def embed(self, condition: Condition) -> Tensor | None:
        return PAIR.embed(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        return PAIR(x_t, logsnr, context)


class Halved(WeightedSum):
    """A rule that is no sum."""

    def terms(self, condition: Condition) -> list[Term]:
        return [Term(1.0, condition)]

    def combine(self, terms: Any, predictions: Any, x_t: Tensor, level: Level) -> Prediction:
        return Prediction(predictions[0].x0 / 2, predictions[0].eps)


class Plain(Halved):
    """A rule that says nothing of densities."""

    log_density = property()  # type: ignore[assignment]


class Graded(CFG):
    differentiates = True


class Around:
    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Any, past: Any) -> tuple[Tensor, Prediction]:
        return self.sampler.step(predict, x_t, now, then, draw, past)


@pytest.mark.parametrize(
    "sampler, guidance, match",
    [
        (FeynmanKac(DDIM()), CFG(2.0), "noise of the reverse process"),
        (FeynmanKac(DDIM(0.5)), CFG(2.0), "noise of the reverse process"),
        (FeynmanKac(DPMSolver()), CFG(2.0), "noise of the reverse process"),
        (FeynmanKac(Heun(churn=0.1)), CFG(2.0), "noise of the reverse process"),
        (FeynmanKac(Langevin(DDIM())), CFG(2.0), "noise of the reverse process"),
        (FeynmanKac(Around(DDPM())), CFG(2.0), "Around"),
        (Langevin(FeynmanKac()), CFG(2.0), "not inside Langevin"),
        (FeynmanKac(), CFG(lambda logsnr: 2.0), "change with the noise level"),
        (FeynmanKac(), Interval(CFG(2.0), low=0.0), "Interval"),
        (FeynmanKac(), Halved(), "Halved is not a weighted sum"),
        (FeynmanKac(), Interval(Halved()), "Halved"),
        (FeynmanKac(), Graded(2.0), "gradient"),
        (FeynmanKac(particles=5), CFG(2.0), "at least 5 samples .* only 4: raise n or batch_size"),
        (Langevin(adjusted=True), Plain(), "Plain does not have"),
        (Langevin(adjusted=True), Graded(2.0), "Graded does not have"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_what_does_not_go_together_is_refused_before_anything_is_drawn(sampler: Sampler, guidance: Guidance, match: str):
    def never(progress: Progress) -> None:
        raise AssertionError("a step was made")

    if isinstance(sampler, FeynmanKac) and sampler.particles == 64:
        sampler = FeynmanKac(sampler.sampler, particles=1)
    with pytest.raises(UserError, match=match):
        sample(PAIR.denoiser(), (8, 1), Condition.of(side=[0, 1] * 4), guidance, sampler, steps=4, callbacks=[never])


@pytest.mark.parametrize(
    "denoiser, match",
    [
        (Denoiser(Scores(), Cosine(), X0()), "Scores does not know"),
        (Denoiser(PAIR, Cosine(), X0(), self_condition=True), "earlier guess"),
    ],
    ids=["scores", "guess"],
)
def test_adjusted_moves_need_a_density(denoiser: Denoiser, match: str):
    with pytest.raises(UserError, match=match):
        sample(denoiser, (4, 1), nothing(4), TWICE, Langevin(adjusted=True), steps=4)
    sample(denoiser, (4, 1), nothing(4), TWICE, Langevin(), steps=4)


def test_adjusted_moves_refuse_a_gradient_that_no_density_has():
    class Pulled(CFG):
        def combine(self, terms: Any, predictions: Any, x_t: Tensor, level: Level) -> Prediction:
            found = super().combine(terms, predictions, x_t, level)
            return Prediction(found.x0, found.eps, gradient=torch.ones_like(x_t))

    with pytest.raises(UserError, match="gradient"):
        sample(PAIR.denoiser(), (4, 1), nothing(4), Pulled(2.0), Langevin(adjusted=True), steps=4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "make",
    [
        lambda: Langevin(DDPM),  # type: ignore[arg-type]
        lambda: Langevin(moves=-1),
        lambda: Langevin(moves=2.5),  # type: ignore[arg-type]
        lambda: Langevin(moves=True),
        lambda: Langevin(size=0.0),
        lambda: Langevin(size=math.nan),
        lambda: Langevin(size=math.inf),
        lambda: Langevin(low=1.0, high=0.0),
        lambda: FeynmanKac(CFG(1.0)),  # type: ignore[arg-type]
        lambda: FeynmanKac(threshold=1.1),
        lambda: FeynmanKac(threshold=math.nan),
        lambda: FeynmanKac(particles=0),
        lambda: FeynmanKac(particles=2.0),  # type: ignore[arg-type]
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Any]):
    with pytest.raises(UserError):
        make()


# Models, and the command line


def test_the_callback_keeps_the_lowest_effective_size_of_all_batches():
    kept, seen = Particles(), []
    for first in (0, 16):
        sample(PAIR.denoiser(), (16, 1), nothing(16), TWICE, FeynmanKac(particles=16), steps=6, first=first, callbacks=[kept, seen.append])
    assert kept.effective == min(float(p.prediction.effective.min()) for p in seen) < 1
    assert kept.origins == sum(len(p.prediction.origin.unique()) for p in (seen[5], seen[11])) < 32
    other = Particles()
    sample(PAIR.denoiser(), (16, 1), nothing(16), TWICE, Langevin(), steps=3, callbacks=[other])
    assert other.effective is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    tiny = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        jaxtyping.config.update("jaxtyping_disable", True)
        assert run(["train", *tiny, "data=digits", "trainer.steps=10", "trainer.warmup=0", f"out={out}"]) == 0
        jaxtyping.config.update("jaxtyping_disable", False)
    return out


@pytest.mark.usefixtures("unchecked")
def test_the_command_line_reports_the_effective_sample_size(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["polyguide"])
    ask = ["sample", f"run={trained}", "sampler.steps=3", "threads=1", "condition.digit=[3,8,3,8,3,8,3,8]", "n=8", "guidance.scale=3"]
    out = tmp_path / "particles"
    assert run([*ask, "sampler=feynman_kac", "sampler.particles=4", "batch_size=8", f"out={out}"]) == 0
    facts, said = json.loads((out / "samples.json").read_text()), capsys.readouterr().out
    lowest, origins = facts["lowest_effective_share"], facts["starting_noises"]
    assert 0.25 <= lowest < 1 and 2 <= origins <= 8
    assert f"effective sample size at least {lowest:.2g}" in said and f"{origins} of 8 starting noises" in said
    assert run([*ask, "sampler=feynman_kac", "batch_size=4", f"out={tmp_path / 'few'}"]) == 2
    assert "only 2: raise n or batch_size" in capsys.readouterr().err
    out = tmp_path / "moved"
    assert run([*ask, "sampler=langevin", "sampler.moves=2", f"out={out}"]) == 0
    assert json.loads((out / "samples.json").read_text())["network_evaluations_per_sample_and_step"] == pytest.approx(2 * (3 + 2 * 2) / 3)
    assert "lowest_effective_share" not in json.loads((out / "samples.json").read_text())
    capsys.readouterr()
    assert run([*ask, "sampler=langevin", "sampler.adjusted=true", f"out={tmp_path / 'adjusted'}"]) == 2
    assert "adjusted=false" in capsys.readouterr().err
