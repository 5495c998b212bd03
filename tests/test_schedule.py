"""Schedules against their closed forms, numerical integration and diffusers' own lists."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from scipy.integrate import quad

from guidance.errors import UserError
from guidance.process import CLEAN, corrupt, level
from guidance.schedule import Cosine, Discrete, Karras, LinearBeta, Rectified, Schedule, Sqrt, inverse, logsnr

T = torch.linspace(0, 1, 101, dtype=torch.float64)
CONTINUOUS = [Cosine(), Cosine(-7.0, 9.0), LinearBeta(), Sqrt(), Rectified(), Rectified(-5.0, 8.0), Karras()]
DISCRETE = [Discrete.linear(), Discrete.cosine(), Discrete.linear(50, 1e-4, 0.05), Discrete.diffwave_fast()]


def name(schedule: Schedule) -> str:
    return f"Discrete({len(schedule.betas)})" if isinstance(schedule, Discrete) else repr(schedule)


def close(a: torch.Tensor, b: object, atol: float = 1e-12, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype).expand(a.shape), atol=atol, rtol=rtol)


@pytest.mark.parametrize("schedule", [s for s in [*CONTINUOUS, *DISCRETE] if not isinstance(s, Rectified)], ids=name)
def test_variance_is_preserved(schedule: Schedule):
    alpha, sigma = schedule(T)
    close(alpha**2 + sigma**2, 1.0)


@pytest.mark.parametrize("low, high", [(-20.0, 20.0), (-7.0, 9.0)])
def test_cosine_is_the_log_tangent_with_exact_ends(low: float, high: float):
    found = logsnr(Cosine(low, high), T)
    b = math.atan(math.exp(-high / 2))
    a = math.atan(math.exp(-low / 2)) - b
    close(found, [-2 * math.log(math.tan(a * t + b)) for t in T.tolist()], atol=1e-10)
    close(found[[0, -1]], [high, low], atol=1e-10)


def test_cosine_is_nichol_and_dhariwals_up_to_the_truncation():
    alpha, _ = Cosine(-60.0, 60.0)(T)
    close(alpha, (T * math.pi / 2).cos(), atol=1e-12)


@pytest.mark.parametrize("first, last, start", [(0.1, 20.0, 1e-3), (1.0, 1.0, 0.1)])
def test_linear_beta_integrates_its_rate(first: float, last: float, start: float):
    alpha, _ = LinearBeta(first, last, start)(T)
    for t, found in zip(T.tolist()[::10], alpha.tolist()[::10], strict=True):
        integral, _ = quad(lambda u: first + u * (last - first), 0, start + (1 - start) * t, epsabs=1e-13)
        assert found == pytest.approx(math.exp(-integral / 2), rel=1e-12)


def test_sqrt_is_diffusion_lms_on_its_own_time():
    s, low = 1e-4, -20.0
    alpha, sigma = Sqrt(s, low)(T)
    u = T * (torch.tensor(-low, dtype=torch.float64).sigmoid() ** 2 - s)
    close(alpha**2, 1 - (u + s).sqrt(), atol=1e-14)
    close(sigma[0], s**0.25)


@pytest.mark.parametrize("low", [-5.0, -20.0, -50.0])
def test_sqrt_ends_at_its_lowest_logsnr(low: float):
    close(logsnr(Sqrt(logsnr_min=low), T)[-1], low, atol=1e-9)


@pytest.mark.parametrize("low, high", [(-20.0, 20.0), (-5.0, 8.0)])
def test_rectified_is_a_straight_line_between_its_ends(low: float, high: float):
    alpha, sigma = Rectified(low, high)(T)
    close(alpha + sigma, 1.0, atol=1e-15)
    close(sigma.diff(n=2), 0.0, atol=1e-14)
    close(logsnr(Rectified(low, high), T)[[0, -1]], [high, low], atol=1e-9)


@pytest.mark.parametrize("low, high, rho", [(0.002, 80.0, 7.0), (0.05, 10.0, 3.0)])
def test_karras_ratio_is_edms_sigma(low: float, high: float, rho: float):
    alpha, sigma = Karras(low, high, rho)(T)
    n = len(T)
    edm = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]  # eq. 5: noisiest first
    close((sigma / alpha).flip(0), edm, rtol=1e-11)


@pytest.mark.parametrize(
    "schedule, theirs",
    [
        (Discrete.linear(), {"beta_schedule": "linear"}),
        (Discrete.linear(200, 1e-4, 0.05), {"beta_schedule": "linear", "num_train_timesteps": 200, "beta_end": 0.05}),
        (Discrete.cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (Discrete.cosine(50), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}),
    ],
    ids=["linear", "linear 200", "cosine", "cosine 50"],
)
def test_discrete_is_diffusers_at_its_own_steps(schedule: Discrete, theirs: dict):
    # diffusers multiplies in float32: its betas are taken, and multiplied in float64.
    betas = DDPMScheduler(**theirs).betas.double()
    steps = len(betas)
    close(torch.tensor(schedule.betas, dtype=torch.float64), betas, atol=1e-7, rtol=1e-6)
    alpha, _ = Discrete(betas.tolist())(torch.arange(1, steps + 1, dtype=torch.float64) / steps)
    close(alpha**2, (1 - betas).cumprod(0), atol=0.0, rtol=1e-12)


@pytest.mark.parametrize("schedule", DISCRETE, ids=name)
def test_discrete_steps_are_the_products_exactly(schedule: Discrete):
    steps, product = len(schedule.betas), 1.0
    for k, beta in enumerate(schedule.betas, start=1):
        product *= 1 - beta
        alpha, sigma = schedule(torch.tensor(k / steps, dtype=torch.float64))
        assert (float(alpha**2), float(sigma**2)) == pytest.approx((product, 1 - product), rel=1e-11)


def test_discrete_begins_without_noise():
    alpha, sigma = Discrete.linear()(torch.zeros((), dtype=torch.float64))
    assert (float(alpha), float(sigma)) == (1.0, 0.0)


@pytest.mark.parametrize("schedule", DISCRETE, ids=name)
def test_discrete_falls_between_its_steps_too(schedule: Discrete):
    t = torch.linspace(0, 1, 20 * len(schedule.betas) + 1, dtype=torch.float64)
    alpha, _ = schedule(t)
    assert bool((alpha.diff() < 0).all())


@pytest.mark.parametrize("schedule", DISCRETE, ids=name)
def test_discrete_has_no_kinks_at_its_steps(schedule: Discrete):
    """One-sided derivatives of log alpha, by second-order differences on both sides of a step, agree."""
    steps = len(schedule.betas)
    at, h = torch.arange(1, steps, dtype=torch.float64) / steps, 1e-3 / steps

    def slope(side: int) -> torch.Tensor:
        f0, f1, f2 = (schedule(at + side * k * h)[0].log() for k in range(3))
        return side * (-3 * f0 + 4 * f1 - f2) / (2 * h)

    close(slope(1), slope(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "schedule, end", [(Discrete.linear(50, 1e-4, 0.05), 0.53), (Discrete.linear(200, 1e-4, 0.02), 0.36), (Discrete.diffwave_fast(), 0.61)]
)
def test_diffwave_lists_end_where_they_should(schedule: Discrete, end: float):
    alpha, _ = schedule(torch.ones((), dtype=torch.float64))
    assert float(alpha) == pytest.approx(end, abs=0.006)


@pytest.mark.parametrize("schedule", [*CONTINUOUS, *DISCRETE], ids=name)
def test_inverse_inverts(schedule: Schedule):
    t = T[1:-1]
    close(inverse(schedule, logsnr(schedule, t)), t, atol=1e-9)


@pytest.mark.parametrize("schedule", [Cosine(), Karras(), Discrete.linear(50)], ids=name)
def test_inverse_outside_of_the_range_is_the_nearer_end(schedule: Schedule):
    close(inverse(schedule, torch.tensor([-90.0, 90.0], dtype=torch.float64)), [1.0, 0.0], atol=1e-8)


@pytest.mark.parametrize("schedule", [*CONTINUOUS, *DISCRETE], ids=name)
def test_logsnr_falls(schedule: Schedule):
    assert bool((logsnr(schedule, T).diff() < 0).all())


@pytest.mark.parametrize("schedule", [*CONTINUOUS, *DISCRETE], ids=name)
def test_single_precision_agrees_with_double(schedule: Schedule):
    for mine, exact in zip(schedule(T.float()), schedule(T), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, exact.float(), atol=2e-5, rtol=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cosine(5.0, 5.0),
        lambda: Cosine(float("nan"), 5.0),
        lambda: Cosine(-100.0, 5.0),
        lambda: Rectified(3.0, -3.0),
        lambda: LinearBeta(beta_min=0.0),
        lambda: LinearBeta(beta_min=2.0, beta_max=1.0),
        lambda: LinearBeta(t_min=1.0),
        lambda: Sqrt(s=0.0),
        lambda: Sqrt(logsnr_min=1.0),
        lambda: Karras(sigma_min=0.0),
        lambda: Karras(sigma_min=2.0, sigma_max=1.0),
        lambda: Karras(rho=0.0),
        lambda: Discrete([0.1]),
        lambda: Discrete([0.1, 1.0]),
        lambda: Discrete([0.1, -0.1]),
        lambda: Discrete([0.1, float("nan")]),
    ],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 4, 5)])
def test_each_sample_is_corrupted_at_its_own_level(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.5, 0.9])
    x_t = corrupt(x0, eps, level(Rectified(), t, x0))
    for i, alpha, sigma in zip(range(3), *Rectified()(t.double()), strict=True):
        close(x_t[i], alpha * x0[i] + sigma * eps[i], atol=1e-7)


def test_a_level_is_of_its_schedule():
    shared = level(LinearBeta(), torch.tensor(0.3), torch.zeros(2, 3))
    close(shared.logsnr, logsnr(LinearBeta(), torch.tensor(0.3).double()))
    assert float(CLEAN.alpha) == 1 and float(CLEAN.sigma) == 0 and CLEAN.logsnr == math.inf


def test_the_norm_is_the_deviation_of_unit_data():
    alpha, sigma = Rectified()(T)
    close(level(Rectified(), T, torch.zeros(len(T))).norm, (alpha**2 + sigma**2).sqrt(), atol=1e-7, rtol=1e-6)
