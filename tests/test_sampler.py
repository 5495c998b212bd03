"""Samplers against exact flows, exact Gaussian propagation, the textbook and diffusers.

On a one-dimensional mixture the exact map of the probability-flow ODE from one level to another is the monotone map between the
two marginals' quantiles. On a Gaussian every step is affine in (x, z, previous prediction), so that the distribution which a
sampler draws from is known exactly, without drawing.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from scipy import stats
from torch import Tensor, nn

from guidance.analytic import Mixture
from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.guide import CFG
from guidance.guided import GuidedDenoiser
from guidance.noise import Stream, normal
from guidance.parameterization import X0, Eps, Parameterization, Prediction, V, Velocity
from guidance.process import CLEAN, Level, level
from guidance.sampler import DDIM, DDPM, DPMSolver, Heun, LogSNR, Predict, Progress, Rho, Sampler, Uniform, sample
from guidance.schedule import Cosine, Discrete, Karras, LinearBeta, Rectified, Schedule, Sqrt, logsnr

MILD, STRAIGHT = Cosine(-6.0, 6.0), Rectified(-6.0, 6.0)
SCHEDULES = [Cosine(), LinearBeta(), Sqrt(), Rectified(), Karras(), Discrete.linear()]
TWO = Mixture(torch.tensor([[-1.0], [1.5]]), [0.5, 0.7], [0.4, 0.6], {"side": [0, 1]})
MEAN, STD = 1.5, 0.6
ONE = Mixture(torch.tensor([[MEAN]]), STD)
STOCHASTIC = [DDPM(0.3), DDIM(0.7), Heun(churn=0.2), DPMSolver(sde=True)]


def name(thing: Any) -> str:
    return type(thing).__name__ if isinstance(thing, Discrete) else repr(thing)


def levels(schedule: Schedule, times: Sequence[float] | Tensor) -> list[Level]:
    return [level(schedule, t, t) for t in torch.as_tensor(times, dtype=torch.float64)]


def predict(network: Mixture, schedule: Schedule, n: int, project: Callable[[Tensor], Tensor] | None = None) -> Predict:
    return Predict(GuidedDenoiser(network.denoiser(schedule), CFG(), Condition(), n), schedule, project)


class Given(Predict):
    """A model that always says this x0."""

    def __init__(self, x0: Tensor):
        self.said = x0

    def __call__(self, x_t: Tensor, level: Level) -> Prediction:
        return Prediction(self.said, (x_t - level.alpha * self.said) / level.sigma)


def walk(sampler: Sampler, says: Predict, x: Tensor, at: Sequence[Level]) -> Tensor:
    """A deterministic sampler's steps through these levels, in the precision of x; noise would spoil it."""
    past, spoiling = None, torch.full_like(x, math.nan)
    for now, then in pairwise(at):
        x, prediction = sampler.step(says, x, now, then, lambda: spoiling, past)
        past = prediction, now
    return x


def slope(errors: Sequence[float], steps: Sequence[int]) -> float:
    """The order of convergence: minus the slope of log error against log steps."""
    return -float(np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0])


# The exact flow of the two-component mixture


def cdf(x: Tensor, at: Level) -> Tensor:
    spread = (at.alpha**2 * TWO.stds**2 + at.sigma**2).sqrt()
    return (torch.special.ndtr((x - at.alpha * TWO.means.flatten()) / spread) * TWO.weights).sum(-1, keepdim=True)


def flow(x: Tensor, start: Level, end: Level) -> Tensor:
    """The point with the same share of the marginal below it, by bisection."""
    share = cdf(x, start)
    low, high = torch.full_like(x, -50.0), torch.full_like(x, 50.0)
    for _ in range(100):
        middle = (low + high) / 2
        below = cdf(middle, end) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("schedule", [MILD, STRAIGHT, Cosine()], ids=name)
@pytest.mark.parametrize("sampler, order", [(DDIM(), 1), (Heun(), 2), (DPMSolver(), 2)], ids=name)
def test_deterministic_samplers_converge_at_their_order(sampler: Sampler, order: int, schedule: Schedule):
    steps, errors = (48, 96, 192), []
    for n in steps:
        ends = logsnr(schedule, torch.tensor([0.95, 0.1], dtype=torch.float64))
        at = levels(schedule, LogSNR(*ends.tolist())(schedule, n + 1))
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None] * at[0].norm
        errors.append(float((walk(sampler, predict(TWO, schedule, 9), x, at) - flow(x, at[0], at[-1])).abs().max()))
    assert slope(errors, steps) == pytest.approx(order, abs=0.15)
    assert errors[-1] < (0.02 if order == 1 else 5e-4)


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("sampler, order", [(DDIM(), 1), (Heun(), 2)], ids=name)
def test_the_order_holds_down_to_clean_data(sampler: Sampler, order: int):
    """Also where the last step is Euler's: the uniform grid's last level nears the data at the rate of the grid."""
    steps, errors = (16, 32, 64, 128), []
    for n in steps:
        at = [*levels(Cosine(), Uniform()(Cosine(), n)), CLEAN]
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        errors.append(float((walk(sampler, predict(TWO, Cosine(), 9), x, at) - flow(x, at[0], CLEAN)).abs().max()))
    assert slope(errors, steps) == pytest.approx(order, abs=0.15)


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta(), Sqrt(1e-8), Rectified(), Karras(), Discrete.linear()], ids=name)
@pytest.mark.parametrize("sampler", [Heun(), DPMSolver()], ids=name)
def test_samples_are_where_the_flow_carries_their_noise(sampler: Sampler, schedule: Schedule):
    """On every schedule, whatever the one the denoiser was made for."""
    n, steps = 200, 80
    found = sample(TWO.denoiser(Cosine()), (n, 1), None, None, sampler, steps=steps, grid=Rho(), schedule=schedule, seed=2)
    first = level(schedule, Rho()(schedule, steps)[0], torch.zeros(()))
    exact = flow(normal(2, Stream.START, 0, 0, (n, 1)).double() * first.norm, first, CLEAN)
    torch.testing.assert_close(found.double(), exact, atol=0.01, rtol=0.0)


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=name)
@pytest.mark.parametrize("sampler", [DDPM(), DDPM(1.0), DDIM(0.5), DDIM(1.0), DPMSolver(sde=True), Heun(churn=0.1)], ids=name)
def test_stochastic_samples_follow_the_density(sampler: Sampler, schedule: Schedule):
    found = sample(TWO.denoiser(), (4000, 1), sampler=sampler, steps=100, schedule=schedule, seed=1).double()
    assert stats.kstest(cdf(found, CLEAN).flatten().numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("scale, side", [(1.0, 1), (0.0, None)])
def test_conditional_samples_follow_the_conditional_density(scale: float, side: int | None):
    right = Condition.of(side=[1] * 4000)
    found = sample(TWO.denoiser(), (4000, 1), right, CFG(scale), DDPM(), steps=120, seed=4).double()
    share = cdf(found, CLEAN) if side is None else torch.special.ndtr((found - 1.5) / 0.7)
    assert stats.kstest(share.flatten().numpy(), "uniform").pvalue > 1e-3


# The exact distribution on a Gaussian


def drawn(sampler: Sampler, schedule: Schedule, at: Sequence[Level]) -> tuple[float, float]:
    """Mean and variance, relative to the exact marginal's, of what a sampler draws at the last of these levels.

    The state is (x, previous x0); its next value is affine in itself and in the noise, which four probes read off.
    """
    probe = torch.cat([torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)])
    x, before, z = probe.T.unsqueeze(-1)
    mean = torch.stack([at[0].alpha * MEAN, torch.zeros((), dtype=torch.float64)])
    covariance = torch.zeros(2, 2, dtype=torch.float64)
    covariance[0, 0] = at[0].alpha ** 2 * STD**2 + at[0].sigma ** 2
    says = predict(ONE, schedule, 4)
    for k, (now, then) in enumerate(pairwise(at)):
        past = (Prediction(before, torch.zeros_like(before)), at[k - 1]) if k else None
        after, prediction = sampler.step(says, x, now, then, lambda: z, past)
        rows = torch.cat([after, prediction.x0], 1).T  # of x and x0: at the four probes
        transition, noise = rows[:, 1:3] - rows[:, :1], rows[:, 3:] - rows[:, :1]
        mean = rows[:, 0] + transition @ mean
        covariance = transition @ covariance @ transition.T + noise @ noise.T
    exact = at[-1].alpha ** 2 * STD**2 + at[-1].sigma ** 2
    return float(mean[0] - at[-1].alpha * MEAN), float(covariance[0, 0] - exact)


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("schedule", [MILD, STRAIGHT], ids=name)
@pytest.mark.parametrize(
    "sampler, order",
    [
        (lambda n: DDPM(0.0), 1),
        (lambda n: DDPM(0.3), 1),
        (lambda n: DDPM(1.0), 1),
        (lambda n: DDIM(1.0), 1),
        (lambda n: DDIM(0.5), 1),
        (lambda n: DPMSolver(sde=True), 2),
        (lambda n: DPMSolver(), 2),
        (lambda n: Heun(), 2),
        (lambda n: Heun(churn=4.0 / n), 2),
    ],
    ids=["ddpm 0", "ddpm .3", "ddpm 1", "ddim 1", "ddim .5", "dpm sde", "dpm", "heun", "heun churn"],
)
def test_the_variance_drawn_converges_at_the_weak_order(sampler: Callable[[int], Sampler], order: int, schedule: Schedule):
    steps = (32, 64, 128)
    runs = [drawn(sampler(n), schedule, levels(schedule, torch.linspace(0.9, 0.1, n + 1))) for n in steps]
    assert max(abs(mean) for mean, _ in runs) < 1e-12  # a mean is drawn exactly by any steps
    assert slope([variance for _, variance in runs], steps) == pytest.approx(order, abs=0.15)


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("churn", [0.05, 0.2, math.sqrt(2) - 1])
@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), Karras()], ids=name)
def test_churn_keeps_the_variance(schedule: Schedule, churn: float):
    at = [*levels(schedule, Rho()(schedule, 60)), CLEAN]
    assert abs(drawn(Heun(churn=churn), schedule, at)[1]) < 0.04 * STD**2


@pytest.mark.usefixtures("unchecked")  # for speed
def test_too_much_or_too_little_churn_noise_shows_in_the_variance():
    at = [*levels(Cosine(), Rho()(Cosine(), 60)), CLEAN]
    less, right, more = (drawn(Heun(churn=0.2, noise=noise), Cosine(), at)[1] for noise in (0.9, 1.0, 1.1))
    assert less < right - 0.01 < right + 0.01 < more


# Ancestral steps


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("steps, last", [(50, 0.05), (1000, 0.02)])
def test_ddpm_on_its_own_list_is_the_textbook(steps: int, last: float, stride: int, v: float):
    """Ho et al., eq. 6 and 7, from betas; every ``stride``-th step, whose betas are 1 - the product of the alphas between."""
    betas = [1e-4 + (last - 1e-4) * k / (steps - 1) for k in range(steps)]
    at = [*levels(Discrete.linear(steps, 1e-4, last), Uniform()(Discrete.linear(steps, 1e-4, last), steps // stride)), CLEAN]
    bars = [1.0]
    for k in range(0, steps, stride):
        bars.append(bars[-1] * math.prod(1 - beta for beta in betas[k : k + stride]))
    x0, x, z = (torch.tensor([[value]], dtype=torch.float64) for value in (0.7, -1.3, 0.9))
    for now, then, bar, before in zip(at, at[1:], bars[:0:-1], bars[-2::-1], strict=False):
        alpha = bar / before
        beta = 1 - alpha
        mean = math.sqrt(before) * beta / (1 - bar) * x0 + math.sqrt(alpha) * (1 - before) / (1 - bar) * x
        variance = ((1 - before) / (1 - bar) * beta) ** (1 - v) * beta**v if before < 1 else 0.0
        found, _ = DDPM(v).step(Given(x0), x, now, then, lambda: z, None)
        torch.testing.assert_close(found, mean + math.sqrt(variance) * z, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("t, s", [(0.9, 0.6), (0.5, 0.49), (0.3, 0.05)])
def test_ddpm_is_bayes_rule_on_any_schedule(schedule: Schedule, t: float, s: float):
    """q(x_s | x_t, x0) by adding the precisions of q(x_s | x0) and q(x_t | x_s)."""
    now, then = levels(schedule, [t, s])
    x0, x, z = (torch.tensor([[value]], dtype=torch.float64) for value in (0.7, -1.3, 0.9))
    scale = now.alpha / then.alpha
    added = now.sigma**2 - scale**2 * then.sigma**2
    precision = 1 / then.sigma**2 + scale**2 / added
    mean = (then.alpha * x0 / then.sigma**2 + scale * x / added) / precision
    lower, _ = DDPM(0.0).step(Given(x0), x, now, then, lambda: z, None)
    upper, _ = DDPM(1.0).step(Given(x0), x, now, then, lambda: z, None)
    torch.testing.assert_close(lower, mean + precision**-0.5 * z, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(upper, mean + added.sqrt() * z, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_ddim_with_eta_one_is_ddpm(schedule: Schedule):
    at = [*levels(schedule, Uniform()(schedule, 10)), CLEAN]
    x0, x, z = (torch.tensor([[value]], dtype=torch.float64) for value in (0.7, -1.3, 0.9))
    for now, then in pairwise(at):
        ancestral, _ = DDPM(0.0).step(Given(x0), x, now, then, lambda: z, None)
        implicit, _ = DDIM(1.0).step(Given(x0), x, now, then, lambda: z, None)
        torch.testing.assert_close(implicit, ancestral, atol=1e-8, rtol=1e-8)


# Other people's code


def exactly(scheduler: Any) -> Any:
    """diffusers' scheduler with its products in double precision."""
    scheduler.alphas_cumprod = (1 - scheduler.betas.double()).cumprod(0)
    return scheduler


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [200, 50, 10])
def test_ddim_is_diffusers(steps: int, eta: float):
    theirs = exactly(DDIMScheduler(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, prediction_type="sample"))
    theirs.set_timesteps(steps)
    schedule = Discrete(theirs.betas.double().tolist())
    at = [*levels(schedule, Uniform()(schedule, steps)), CLEAN]
    says, sampler, x = predict(TWO, schedule, 5), DDIM(eta), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    mine = x
    for k, (t, now, then) in enumerate(zip(theirs.timesteps, at, at[1:], strict=False)):
        z = normal(0, Stream.STEP, k, 0, (5, 1)).double()
        mine, _ = sampler.step(says, mine, now, then, lambda z=z: z, None)
        x = theirs.step(says(x, now).x0, int(t), x, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(mine, x, atol=1e-8, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' own
@pytest.mark.parametrize("sde", [False, True], ids=["ode", "sde"])
@pytest.mark.parametrize("steps", [100, 20, 8])
def test_dpm_solver_is_diffusers(steps: int, sde: bool):
    theirs = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        prediction_type="sample",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    schedule = Discrete(theirs.betas.double().tolist())
    at = [*levels(schedule, Uniform()(schedule, steps)), CLEAN]
    torch.testing.assert_close(theirs.sigmas.double(), torch.stack([lv.sigma / lv.alpha for lv in at]), atol=0.0, rtol=1e-4)
    theirs.sigmas = torch.stack([lv.sigma / lv.alpha for lv in at])  # in double precision
    says, sampler, x, past = predict(TWO, schedule, 5), DPMSolver(sde), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None], None
    mine = x
    for k, (t, now, then) in enumerate(zip(theirs.timesteps, at, at[1:], strict=False)):
        z = normal(0, Stream.STEP, k, 0, (5, 1)).double()
        given = says(mine, now).x0
        mine, prediction = sampler.step(Given(given), mine, now, then, lambda z=z: z, past)
        past = prediction, now
        x = theirs.step(given, t, x, variance_noise=z).prev_sample.double()
        torch.testing.assert_close(mine, x, atol=2e-5, rtol=1e-5)  # diffusers steps in float32


@pytest.mark.parametrize("churn", [0.0, 0.3])
@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=name)
def test_heun_is_edms_algorithm(schedule: Schedule, churn: float):
    """Algorithm 2 of Karras et al. in their own variables, x / alpha and sigma / alpha, at low noise."""
    now, then = levels(schedule, [0.3, 0.2])
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    z = torch.linspace(1, -1, 5, dtype=torch.float64)[:, None] ** 3

    def denoise(y: Tensor, s: Tensor) -> Tensor:
        at = Level(now.t, 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt())
        return predict(TWO, Cosine(), 5)(y * at.alpha, at).x0

    s, s_next = now.sigma / now.alpha, then.sigma / then.alpha
    s_hat = s * (1 + churn)
    y_hat = x / now.alpha + (s_hat**2 - s**2).sqrt() * 0.8 * z
    d = (y_hat - denoise(y_hat, s_hat)) / s_hat
    y = y_hat + (s_next - s_hat) * d
    d_next = (y - denoise(y, s_next)) / s_next
    y = y_hat + (s_next - s_hat) * (d + d_next) / 2
    found, _ = Heun(churn=churn, noise=0.8).step(predict(TWO, schedule, 5), x, now, then, lambda: z, None)
    torch.testing.assert_close(found, then.alpha * y, atol=1e-8, rtol=1e-8)


def test_heun_at_high_noise_is_its_mirror_image():
    """Heun's rule for d(x / sigma) / d(alpha / sigma) = x0."""
    now, then = levels(MILD, [0.9, 0.8])
    says, x = predict(TWO, MILD, 5), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    h = then.alpha / then.sigma - now.alpha / now.sigma
    first = says(x, now).x0
    second = says(then.sigma * (x / now.sigma + h * first), then).x0
    found, _ = Heun().step(says, x, now, then, lambda: x, None)
    torch.testing.assert_close(found, then.sigma * (x / now.sigma + h * (first + second) / 2), atol=1e-10, rtol=1e-10)


def test_churn_is_in_force_between_its_bounds_only():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    now, then = levels(MILD, [0.4, 0.3])
    s, says = float(now.sigma / now.alpha), predict(TWO, MILD, 5)
    calm, _ = Heun().step(says, x, now, then, lambda: x, None)
    for low, high, stirs in [(0.9 * s, 1.1 * s, True), (1.1 * s, 2 * s, False), (0.1 * s, 0.9 * s, False)]:
        found, _ = Heun(churn=0.2, low=low, high=high).step(says, x, now, then, lambda: x, None)
        assert torch.equal(found, calm) != stirs


@pytest.mark.parametrize("sampler, calls", [(DDIM(), 10), (DDPM(), 10), (DPMSolver(), 10), (Heun(), 19), (Heun(churn=0.1), 19)], ids=name)
def test_evaluations_a_run(sampler: Sampler, calls: int):
    seen: list[Progress] = []
    sample(TWO.denoiser(), (3, 1), sampler=sampler, steps=10, callbacks=[seen.append])
    assert (seen[-1].calls, seen[-1].rows) == (calls, 3 * calls)


# What the model predicts does not matter


class Saying(nn.Module):
    """The exact denoiser in the terms of any parameterization."""

    def __init__(self, parameterization: Parameterization):
        super().__init__()
        self.parameterization = parameterization

    def embed(self, condition: Condition) -> Tensor | None:
        return TWO.embed(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        alpha, sigma = logsnr.sigmoid().sqrt().view(-1, 1), (-logsnr).sigmoid().sqrt().view(-1, 1)
        x0 = TWO(x_t, logsnr, context)
        return self.parameterization.target(x0, (x_t - alpha * x0) / sigma, Level(logsnr, alpha, sigma))


@pytest.mark.parametrize("schedule", [MILD, STRAIGHT], ids=name)
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), Heun(), DPMSolver()], ids=name)
@pytest.mark.parametrize("parameterization", [Eps(), V(), Velocity()], ids=name)
def test_any_parameterization_draws_the_same(parameterization: Parameterization, sampler: Sampler, schedule: Schedule):
    condition = Condition.of(side=[0, 1] * 4)
    expected = sample(TWO.denoiser(schedule), (8, 1), condition, CFG(1.5), sampler, steps=20)
    found = sample(Denoiser(Saying(parameterization), schedule, parameterization), (8, 1), condition, CFG(1.5), sampler, steps=20)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_network_sees_unit_scale_and_a_bounded_logsnr():
    seen: list[tuple[Tensor, Tensor]] = []

    class Looking(Saying):
        def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
            seen.append((x_t, logsnr))
            return super().forward(x_t, logsnr, context, x0_hat)

    schedule = Rectified(-50.0, 50.0)
    x, t = torch.linspace(-2, 2, 3, dtype=torch.float64)[:, None], torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    together = Denoiser(Looking(V()), schedule, V())(x, level(schedule, t, x), None)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(seen[0][0], x / (alpha**2 + sigma**2).sqrt()[:, None])
    torch.testing.assert_close(seen[0][1], torch.tensor([20.0, 2 * math.log(0.7 / 0.3), -20.0], dtype=torch.float64), atol=1e-6, rtol=0.0)
    for i in range(3):  # each sample at its own level is one sample at a shared level
        single = Denoiser(Saying(V()), schedule, V())(x[i : i + 1], level(schedule, t[i], x), None)
        torch.testing.assert_close(together.x0[i : i + 1], single.x0)
        torch.testing.assert_close(together.eps[i : i + 1], single.eps)


# The loop


class Recording(nn.Module):
    """An exact denoiser that remembers what it was given and what it said, and listens to its hint."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.hints: list[Tensor | None] = []
        self.said: list[Tensor] = []
        self.modes: list[bool] = []

    def embed(self, condition: Condition) -> Tensor | None:
        return TWO.embed(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        out = TWO(x_t, logsnr, context)
        out = out if x0_hat is None else out + 0.1 * x0_hat
        self.hints.append(x0_hat)
        self.said.append(self.dropout(out))
        self.modes.append(self.dropout.training)
        return self.said[-1]


@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), DPMSolver(), Heun()], ids=name)
def test_the_hint_is_the_previous_prediction(sampler: Sampler):
    network = Recording()
    sample(Denoiser(network, MILD, X0(), self_condition=True), (4, 1), sampler=sampler, steps=6)
    assert network.hints[0] is None
    assert all(torch.equal(hint, said) for hint, said in zip(network.hints[1:], network.said, strict=False))


def test_the_hint_is_guided_and_projected_and_the_same_for_all_terms():
    network, seen = Recording(), []
    denoiser = Denoiser(network, MILD, X0(), self_condition=True)
    condition = Condition.of(side=[0, 1, 1])
    sample(denoiser, (3, 1), condition, CFG(4.0), DDIM(), steps=6, project=lambda x0: x0.clamp(-1, 1), callbacks=[seen.append])
    for hint, progress in zip(network.hints[1:], seen, strict=False):
        assert torch.equal(hint, torch.cat([progress.prediction.x0] * 2))
        assert float(hint.abs().max()) <= 1


def test_no_hint_is_given_to_a_network_that_was_not_trained_with_one():
    network = Recording()
    sample(Denoiser(network, MILD, X0()), (4, 1), steps=3)
    assert network.hints == [None] * 3


def test_projection_reaches_every_step():
    """DDIM with clipped x0, written out."""
    found = sample(TWO.denoiser(MILD), (32, 1), steps=12, project=lambda x0: x0.clamp(-0.8, 0.8), seed=5)
    at = [*levels(MILD, Uniform()(MILD, 12)), CLEAN]
    x = normal(5, Stream.START, 0, 0, (32, 1)).double()
    for now, then in pairwise(at):
        x0 = predict(TWO, MILD, 32)(x, now).x0.clamp(-0.8, 0.8)
        x = then.alpha * x0 + then.sigma * (x - now.alpha * x0) / now.sigma
    torch.testing.assert_close(found.double(), x, atol=1e-4, rtol=0.0)


def test_ddpms_noise_is_the_seeds_own():
    """The whole ancestral run by hand, each step's noise from its own counter."""
    schedule = Discrete.linear(50, 1e-4, 0.05)
    found = sample(TWO.denoiser(schedule), (8, 1), sampler=DDPM(), steps=50, seed=9, first=3)
    at = [*levels(schedule, Uniform()(schedule, 50)), CLEAN]
    x = normal(9, Stream.START, 0, 3, (8, 1)).double()
    for k, (now, then) in enumerate(pairwise(at), start=1):
        noise = normal(9, Stream.STEP, k, 3, (8, 1)).double()
        x, _ = DDPM().step(predict(TWO, schedule, 8), x, now, then, lambda z=noise: z, None)
    torch.testing.assert_close(found.double(), x, atol=1e-4, rtol=0.0)


@pytest.mark.usefixtures("unchecked")  # for speed
@pytest.mark.parametrize("sampler, batch", [(STOCHASTIC[0], 1), *((sampler, 7) for sampler in STOCHASTIC)], ids=name)
def test_samples_do_not_depend_on_the_batch(sampler: Sampler, batch: int):
    sides, scales = torch.arange(64) % 2, torch.linspace(-2, 3, 64)

    def draw(first: int, last: int) -> Tensor:
        condition, guidance = Condition.of(side=sides[first:last]), CFG(scales[first:last])
        return sample(TWO.denoiser(), (last - first, 1), condition, guidance, sampler, steps=3, seed=11, first=first)

    parts = [draw(first, min(first + batch, 64)) for first in range(0, 64, batch)]
    torch.testing.assert_close(torch.cat(parts), draw(0, 64), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=name)
def test_samples_do_not_depend_on_the_rows_a_call(sampler: Sampler):
    condition = Condition.of(side=[0, 1, 1, 0, 1])
    whole, chunked = (sample(TWO.denoiser(), (5, 1), condition, CFG(3.0), sampler, steps=8, max_rows=rows) for rows in (None, 3))
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sampler", [DDIM(), *STOCHASTIC], ids=name)
def test_a_run_is_a_function_of_its_seed(sampler: Sampler):
    first, again, other = (sample(TWO.denoiser(), (64, 1), sampler=sampler, steps=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert float((first == other).double().mean()) == 0


def test_callbacks_see_every_step():
    seen: list[Progress] = []
    out = sample(TWO.denoiser(MILD), (3, 1), steps=9, callbacks=[seen.append])
    assert [(p.step, p.steps, p.calls, p.rows) for p in seen] == [(k, 9, k, 3 * k) for k in range(1, 10)]
    assert [float(p.level.t) for p in seen] == pytest.approx([k / 9 for k in range(9, 0, -1)])
    assert torch.equal(seen[-1].x_t, out)
    for now, then in pairwise(seen):
        expected = then.level.alpha * now.prediction.x0 + then.level.sigma * now.prediction.eps
        torch.testing.assert_close(now.x_t, expected)


def test_a_callback_may_end_the_run_with_the_latest_prediction():
    seen: list[Progress] = []

    def stop(progress: Progress) -> bool:
        return progress.step == 4

    out = sample(TWO.denoiser(MILD), (3, 1), steps=9, callbacks=[stop, seen.append])
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert torch.equal(out, seen[-1].prediction.x0)


def test_one_step_is_the_prediction_from_noise():
    """At logsnr -20 nothing is known of the data but its mean."""
    found = sample(TWO.denoiser(), (16, 1), steps=1)
    torch.testing.assert_close(found, torch.full((16, 1), 0.4 * -1.0 + 0.6 * 1.5), atol=1e-3, rtol=0.0)


def test_the_network_is_in_evaluation_mode_and_afterwards_as_it_was():
    class Frozen(Recording):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Dropout(0.5)

    network = Frozen().train()
    network.frozen.eval()
    sample(Denoiser(network, MILD, X0()), (4, 1), steps=3)
    assert network.modes == [False] * 3
    assert (network.training, network.dropout.training, network.frozen.training) == (True, True, False)


def test_the_mode_is_restored_after_an_error():
    network = Recording().train()
    with pytest.raises(ZeroDivisionError):
        sample(Denoiser(network, MILD, X0()), (4, 1), steps=3, callbacks=[lambda progress: 1 / 0])
    assert network.dropout.training


# Grids


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_uniform_grid_ends_one_step_before_clean(steps: int):
    assert Uniform()(Cosine(), steps).tolist() == pytest.approx([1 - k / steps for k in range(steps)], abs=1e-15)


@pytest.mark.parametrize("steps, stride", [(50, 1), (1000, 1), (1000, 20)])
def test_the_uniform_grid_is_on_a_lists_own_steps(steps: int, stride: int):
    schedule = Discrete.linear(steps)
    alpha, _ = schedule(Uniform()(schedule, steps // stride))
    bars = (1 - torch.tensor(schedule.betas, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(alpha**2, bars.flip(0)[::stride], atol=0.0, rtol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("low, high", [(-10.0, 10.0), (-3.0, 30.0), (-30.0, 2.0)])
def test_the_logsnr_grid_is_even_in_logsnr_as_far_as_the_schedule_goes(schedule: Schedule, low: float, high: float):
    noisiest, cleanest = logsnr(schedule, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    cleanest = min(cleanest, 20.0)  # a list ends without noise, where no network goes
    expected = torch.linspace(max(low, noisiest), min(high, cleanest), 12, dtype=torch.float64)
    torch.testing.assert_close(logsnr(schedule, LogSNR(low, high)(schedule, 12)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rho", [3.0, 7.0])
@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=name)
def test_the_rho_grid_is_edms(schedule: Schedule, rho: float):
    """Eq. 5: sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho."""
    n, most, least = 15, math.exp(4.0), math.exp(-3.0)
    alpha, sigma = schedule(Rho(rho, low=-8.0, high=6.0)(schedule, n))
    edm = [(most ** (1 / rho) + i / (n - 1) * (least ** (1 / rho) - most ** (1 / rho))) ** rho for i in range(n)]
    assert (sigma / alpha).tolist() == pytest.approx(edm, rel=1e-9)


def test_a_rho_grid_over_karras_range_is_the_karras_schedule_itself():
    schedule = Karras(0.01, 50.0, 5.0)
    times = Rho(5.0, low=-2 * math.log(50.0), high=-2 * math.log(0.01))(schedule, 9)
    assert times.tolist() == pytest.approx([1 - i / 8 for i in range(9)], abs=1e-9)


@pytest.mark.parametrize("grid", [LogSNR(7.0, 9.0), LogSNR(-9.0, -7.0), LogSNR(2.0, 1.0), Rho(low=7.0)], ids=repr)
def test_a_grid_beside_the_schedule_is_refused(grid: Any):
    with pytest.raises(UserError):
        sample(TWO.denoiser(MILD), (2, 1), grid=grid, steps=5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "10", None], ids=str)
def test_impossible_steps_are_refused(steps: Any):
    with pytest.raises(UserError, match="steps"):
        sample(TWO.denoiser(), (2, 1), steps=steps)


@pytest.mark.parametrize("shape", [(), (0, 1), (4, 0), (-1, 1)], ids=str)
def test_impossible_shapes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(UserError, match="shape"):
        sample(TWO.denoiser(), shape)


def test_models_without_a_main_one_are_refused():
    with pytest.raises(UserError, match="main"):
        sample({"weak": TWO.denoiser()}, (2, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIM(-0.1),
        lambda: DDIM(1.5),
        lambda: DDIM("0"),
        lambda: DDIM(math.nan),
        lambda: DDPM(-0.1),
        lambda: DDPM(1.5),
        lambda: DDPM(math.nan),
        lambda: Heun(churn=-0.1),
        lambda: Heun(churn=0.5),
        lambda: Heun(low=2.0, high=1.0),
        lambda: Heun(noise=-1.0),
        lambda: Rho(0.0),
    ],
)
def test_impossible_samplers_are_refused(make: Callable[[], Any]):
    with pytest.raises(UserError):
        make()
