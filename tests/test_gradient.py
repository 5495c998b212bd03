"""Guidance by gradients, against exact classifiers, Gaussians whose tilts are known, and the papers' algorithms written anew."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from experiment_fakes import mixture
from torch import Tensor, nn

from guidance import (
    CFG,
    CLEAN,
    DDIM,
    DDPM,
    X0,
    ClassScore,
    Condition,
    Cosine,
    Denoiser,
    Discrete,
    DPMSolver,
    Eps,
    GuidedDenoiser,
    Heun,
    Interval,
    Karras,
    Label,
    Mixture,
    MixtureClassifier,
    NoisyReward,
    Prediction,
    Reconstruction,
    Rectified,
    Reward,
    Steered,
    UserError,
    level,
    on,
    sample,
)
from guidance.condition import ConditionEmbedding
from guidance.noise import Stream, normal
from guidance.parameterization import steered
from guidance.schedule import inverse

MEANS = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, -2.0]])
WORLD = Mixture(MEANS, [0.5, 0.3, 0.6, 0.4], [0.1, 0.4, 0.3, 0.2], {"y": [0, 1, 2, 1], "z": [0, 0, 1, 1]})
EXACT = MixtureClassifier(WORLD)
GAUSSIAN = Mixture(torch.tensor([[1.5, -0.5]]), 0.7)
ASKED = Condition.of(y=torch.tensor([0, 1, 2, 1, 2, 0, 1, 2]))


def draws(n: int = 8, seed: int = 0, d: int = 2) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at(schedule: Any, t: float) -> Any:
    here = torch.tensor(t, dtype=torch.float64)
    return level(schedule, here, here)


def close(found: Tensor, expected: Tensor, within: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=within)


class Curved(nn.Module):
    """A network that is no one's denoiser, and no straight line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.condition = ConditionEmbedding({"y": Label(("a", "b", "c"))}, 3).double()
        self.graphs: list[bool] = []

    def embed(self, condition: Condition) -> Tensor | None:
        return self.condition(condition) if len(condition) else None

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        self.graphs.append(x_t.requires_grad)
        said = self.layers(torch.cat([x_t.double(), logsnr.double()[:, None] / 10], 1))
        return (said if context is None else said + context).to(x_t)


# Classifiers


@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), Karras()], ids=["Cosine", "Rectified", "Karras"])
@pytest.mark.parametrize("attribute", ["y", "z"])
def test_an_exact_classifier_makes_the_conditional_model_of_the_unconditional_one(schedule: Any, attribute: str):
    """grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t), at every noise level."""
    denoiser = WORLD.denoiser(schedule)
    asked = Condition.of(**{attribute: torch.tensor([0, 1, 1, 0, 1, 0, 1, 1])})
    guided = GuidedDenoiser(denoiser, Steered.by_classifier(EXACT), asked, 8)
    for t in (0.02, 0.2, 0.4, 0.5, 0.6, 0.8, 0.97):
        now = at(schedule, t)
        x_t = now.alpha * WORLD.means[[0, 1, 2, 3, 3, 2, 1, 0]] + now.sigma * draws()
        found, expected = steered(guided(x_t, now), now), denoiser(x_t, now, WORLD.embed(asked))
        close(found.eps, expected.eps)
        close(now.alpha * found.x0, now.alpha * expected.x0)
    assert not guided.differentiates


def test_its_samples_are_the_conditional_models(unchecked: None):
    denoiser, settings = WORLD.denoiser(), {"steps": 20, "seed": 3}
    for sampler in (DDIM(), Heun(), DPMSolver(sde=True)):
        found = sample(denoiser, (8, 2), ASKED, Steered.by_classifier(EXACT), sampler, **settings)
        close(found, sample(denoiser, (8, 2), ASKED, CFG(), sampler, **settings), 2e-4)


def test_ancestral_steps_by_algorithm_1_approach_the_conditional_models_as_they_get_shorter(unchecked: None):
    """Both shift the mean by the same, to first order in the step: the difference falls with it."""
    denoiser, away = WORLD.denoiser(Cosine(-10, 10)), []
    for steps in (40, 120):
        parts = []
        for guidance in (Steered.by_classifier(EXACT), CFG()):
            made = DDPM(v=0.5)
            parts.append(sample(denoiser, (8, 2), ASKED, guidance, made, steps=steps, seed=1))
        away.append(float((parts[0] - parts[1]).abs().mean()))
    assert 0 < away[1] < 0.1 and away[1] < 0.5 * away[0]


def test_a_scale_of_a_classifier_is_that_of_cfg():
    """Unconditional + s grad log p(y | x_t) is CFG at s."""
    denoiser, now = WORLD.denoiser(), at(Cosine(), 0.45)
    x_t = 1.5 * draws()
    for scale in (-1.0, 0.5, 3.0, torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 4.0, 1.0, 1.5]), lambda logsnr: 2 - logsnr):
        found = GuidedDenoiser(denoiser, Steered.by_classifier(EXACT, scale), ASKED, 8)(x_t, now)
        close(steered(found, now).x0, GuidedDenoiser(denoiser, CFG(scale), ASKED, 8)(x_t, now).x0)


def test_what_is_not_asked_for_does_not_count():
    y = torch.tensor([0, 1, 2, 1, 2, 0, 1, 2])
    keep = torch.tensor([True, False, True, False, True, True, False, True])
    asked = Condition({"y": torch.where(keep, y, 9), "other": y}, {"y": keep, "other": keep})
    now = at(Cosine(), 0.4)
    x_t, alone = draws(), WORLD.denoiser()
    found = GuidedDenoiser(alone, Steered.by_classifier(EXACT, 2.0), asked, 8)(x_t, now)
    assert found.gradient is not None
    assert torch.equal((found.gradient != 0).any(1), keep)
    both = Condition.of(y=y, z=y % 2)
    parts = [GuidedDenoiser(alone, Steered.by_classifier(EXACT), c, 8)(x_t, now).gradient for c in (both, both.drop("z"), both.drop("y"))]
    close(parts[0], parts[1] + parts[2])


# Rewards of x0


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolver(), DDPM(v=0.5)], ids=["DDIM", "DPMSolver", "DDPM"])
def test_a_linear_reward_shifts_a_gaussian_by_what_it_should(unchecked: None, sampler: Any):
    """N(m, s^2) tilted by exp(a x) is N(m + a s^2, s^2); through x0_hat that is exact at every noise level."""
    a = torch.tensor([2.0, -1.0])
    guidance = Steered(CFG(), Reward(lambda x0: x0 @ a.to(x0), low=-math.inf))
    found = sample(GAUSSIAN.denoiser(), (4000, 2), None, guidance, sampler, steps=100, seed=2)
    close(found.mean(0), torch.tensor([1.5, -0.5]) + 0.49 * a, 0.06 if isinstance(sampler, DDPM) else 0.03)
    close(found.std(0), torch.full((2,), 0.7), 0.02)


@pytest.mark.parametrize("schedule", [Cosine(), Rectified(), Karras()], ids=["Cosine", "Rectified", "Karras"])
def test_it_is_the_tilted_gaussians_denoiser(schedule: Any):
    a = torch.tensor([2.0, -1.0], dtype=torch.float64)
    tilted = Mixture(GAUSSIAN.means + 0.49 * a, 0.7).denoiser(schedule)
    guided = GuidedDenoiser(GAUSSIAN.denoiser(schedule), Steered(CFG(), Reward(lambda x0: x0 @ a, low=-math.inf), 1.0), Condition(), 8)
    for t in (0.05, 0.3, 0.6, 0.95):
        now = at(schedule, t)
        x_t = now.norm * draws()
        close(steered(guided(x_t, now), now).x0, tilted(x_t, now, None).x0)


def test_a_reconstruction_of_the_right_deviation_is_bayes_rule(unchecked: None):
    """y = x0 + d z is observed of the first number; given x_t, x0 is N(x0_hat, s^2 sigma^2 / (alpha^2 s^2 + sigma^2)), and y d^2 wider."""
    d, s, y = 0.5, 0.7, 3.0

    def deviation(logsnr: float) -> float:
        alpha2 = 1 / (1 + math.exp(-logsnr))
        return math.sqrt(d**2 + s**2 * (1 - alpha2) / (alpha2 * s**2 + 1 - alpha2))

    score = Reconstruction(torch.tensor([[y, 77.0]]), torch.tensor([[1.0, 0.0]]), deviation)
    found = sample(GAUSSIAN.denoiser(), (4000, 2), None, Steered(CFG(), score), DPMSolver(), steps=60, seed=4)
    precision = 1 / s**2 + 1 / d**2
    close(found.mean(0), torch.tensor([(1.5 / s**2 + y / d**2) / precision, -0.5]), 0.03)
    close(found.std(0), torch.tensor([precision**-0.5, s]), 0.02)


def test_reconstruction_guidance_is_ho_and_others():
    """x0_hat - (w alpha / 2) grad_x_t |x - x0_hat|^2 over what is known (2204.03458, eq. 7), through any network."""
    network, schedule = Curved(), Cosine()
    denoiser, values, mask = Denoiser(network, schedule, Eps()), draws(8, 1, 3), torch.tensor([[True, False, True]])
    w = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0, -1.0, 3.0, 1.5], dtype=torch.float64)
    guidance = Steered(CFG(), Reconstruction(values, mask, lambda logsnr: math.exp(-logsnr / 2)), w)
    now, x_t = at(schedule, 0.6), draws(8, 2, 3)
    found = GuidedDenoiser(denoiser, guidance, ASKED, 8)(x_t, now)
    leaf = x_t.clone().requires_grad_()
    guess = (leaf - now.sigma * network(leaf, now.logsnr.expand(8), network.embed(ASKED))) / now.alpha
    (of,) = torch.autograd.grad(((values - guess)[:, [0, 2]] ** 2).sum(), leaf)
    close(steered(found, now).x0, (guess - w[:, None] * now.alpha / 2 * of).detach(), 1e-9)
    close(found.x0, guess.detach(), 1e-9)
    assert network.graphs[0] and not found.x0.requires_grad and found.gradient is not None and not found.gradient.requires_grad


def test_deviations_and_values_one_a_sample(unchecked: None):
    x, values = draws(4, 3), draws(4, 4)
    score = Reconstruction(values, None, torch.tensor([1.0, 2.0, 0.5, 3.0]))
    expected = [-float(((a - b) ** 2).sum()) / (2 * d**2) for a, b, d in zip(x, values, (1.0, 2.0, 0.5, 3.0), strict=True)]
    close(score(x, CLEAN), torch.tensor(expected, dtype=torch.float64))
    part = score.rows(slice(1, 3), 4)
    close(part(x[1:3], CLEAN), torch.tensor(expected[1:3], dtype=torch.float64))
    with pytest.raises(UserError, match="4 values to reconstruct were given for 5 samples"):
        score.rows(slice(0, 2), 5)
    with pytest.raises(UserError, match=r"values of a reconstruction are \[4, 2\], and x0 is \[3, 2\]"):
        score(x[:3], CLEAN)


def test_rewards_of_noisy_data_see_it_variance_preserving():
    seen: list[tuple[Tensor, float]] = []

    def look(x: Tensor, logsnr: float) -> Tensor:
        seen.append((x.detach().clone(), logsnr))
        return 3 * x[:, 0]

    schedule = Rectified()
    now, x_t = at(schedule, 0.7), draws()
    guided = GuidedDenoiser(WORLD.denoiser(schedule), Steered(CFG(), NoisyReward(look)), ASKED, 8)
    found = guided(x_t, now)
    norm = math.hypot(float(now.alpha), float(now.sigma))
    assert norm < 0.8
    close(seen[0][0], x_t / norm)
    assert seen[0][1] == pytest.approx(2 * math.log(float(now.alpha) / float(now.sigma)))
    close(found.gradient, torch.tensor([3 / norm, 0.0], dtype=torch.float64).expand(8, 2))  # in x_t, not in what was seen


# Together with other guidance


def square(x0: Tensor) -> Tensor:
    return -x0.square().sum(1)


def third(x: Tensor, logsnr: float) -> Tensor:
    return x.pow(3).sum(1)


def test_a_scale_of_zero_is_the_plain_model_and_asks_for_nothing():
    def never(x0: Tensor) -> Tensor:
        raise AssertionError

    network = Curved()
    denoiser, settings = Denoiser(network, Cosine(), X0()), {"steps": 5, "seed": 1}
    for sampler in (DDIM(), DDPM(), DPMSolver()):
        found = sample(denoiser, (8, 3), ASKED, Steered(CFG(1.5), Reward(never), 0.0), sampler, **settings)
        assert torch.equal(found, sample(denoiser, (8, 3), ASKED, CFG(1.5), sampler, **settings))
    assert not any(network.graphs)


def test_gradients_of_several_scores_add_up():
    denoiser, now, x_t = Denoiser(Curved(), Cosine(), Eps()), at(Cosine(), 0.5), draws(8, 6, 3)

    def of(guidance: Any) -> Tensor:
        found = GuidedDenoiser(denoiser, guidance, ASKED, 8)(x_t, now)
        assert found.gradient is not None
        return found.gradient

    one, other = Steered(CFG(2.0), Reward(square), 0.7), Steered(CFG(2.0), NoisyReward(third), -0.3)
    linear = Steered(CFG(2.0), Reward(lambda x0: x0[:, 0]), 2.0)
    expected = of(one) + of(other) + of(linear)
    for nest in (
        Steered(Steered(one, NoisyReward(third), -0.3), linear.score, 2.0),
        Steered(Steered(Steered(CFG(2.0), NoisyReward(third), -0.3), Reward(square), 0.7), linear.score, 2.0),
        Steered(CFG(2.0), Reward(lambda x0: 0.7 * square(x0) + 2 * x0[:, 0]), 1.0),
    ):
        found = of(nest) + (of(other) if isinstance(nest.inside, CFG) else 0)
        close(found, expected, 1e-9)


def test_parts_of_a_network_call_are_as_good_as_one():
    denoiser, now, x_t = Denoiser(Curved(), Cosine(), X0()), at(Cosine(), 0.4), draws(8, 7, 3)
    scales = torch.tensor([[3.0, 1.0, 0.0, -1.0, 2.0, 1.0, 0.5, 3.0], [1.0, 2.0, 0.0, 1.0, -1.0, 0.5, 1.0, 1.0]])
    guidance = Steered(CFG(scales[0]), Reward(square), scales[1])
    whole = GuidedDenoiser(denoiser, guidance, ASKED, 8)(x_t, now)
    for rows in (1, 3, 5):
        part = GuidedDenoiser(denoiser, guidance, ASKED, 8, max_rows=rows)(x_t, now)
        close(part.gradient, whole.gradient, 1e-12)
        close(part.x0, whole.x0, 1e-12)


def test_it_acts_within_an_interval_only():
    inside = Steered(CFG(), Reward(square), 2.0)
    guided = GuidedDenoiser(Denoiser(Curved(), Cosine(), X0()), Interval(inside, -1.0, 1.0), ASKED, 8)
    for t, acts in ((0.5, True), (0.3, False), (0.7, False)):
        assert (guided(draws(8, 8, 3), at(Cosine(), t)).gradient is not None) == acts


def test_scales_and_values_of_each_sample_stay_with_it_in_batches(unchecked: None):
    model, n = mixture({"side": (0.3, 0.7), "shade": (0.5, 0.2, 0.3)}), 7
    values = draws(n, 9).float()
    classifier = MixtureClassifier(model.denoisers["main"].network)  # type: ignore[arg-type]
    scales = [0.0, 1.0, 2.0, -1.0, 0.5, 3.0, 1.0]
    changing = torch.tensor(scales)
    for guidance in (
        Steered(CFG(), Reconstruction(values, deviation=[1.0, 2.0, 3.0, 0.5, 1.0, 2.0, 4.0]), scales),
        Steered(CFG(), Reconstruction(values), lambda logsnr: changing * (logsnr > 0)),
        Steered.by_classifier(classifier, scales),
        Interval(Steered(CFG(2.0), ClassScore(classifier), scales), -2.0, 4.0),
    ):
        settings: dict[str, Any] = {"guidance": guidance, "sampler": DDPM(), "steps": 4, "seed": 1}
        asked = {"side": ["left", None, "right", None, None, "left", "right"]}
        whole = model.sample(n, asked, **settings)
        for size in (2, 3):
            close(model.sample(n, asked, batch_size=size, **settings), whole, 1e-5)
    with pytest.raises(UserError, match="3 guidance scales were given for 7 samples"):
        model.sample(n, guidance=Steered(CFG(), Reward(square), [1.0, 2.0, 3.0]))
    with pytest.raises(UserError, match="3 guidance scales were given for 8 samples"):
        sample(WORLD.denoiser(), (8, 2), None, Steered(CFG(), Reward(square), [1.0, 2.0, 3.0]))


def test_composed_conditions_are_steered():
    """A composition names its own conditions; what the classifier raises is the condition that is given beside it."""
    denoiser, now, x_t = WORLD.denoiser(), at(Cosine(), 0.45), draws()
    guidance = Steered(1.5 * on(z=torch.ones(8, dtype=torch.long)), ClassScore(EXACT), 0.5)
    found = steered(GuidedDenoiser(denoiser, guidance, ASKED, 8)(x_t, now), now)
    terms = [WORLD.embed(c) for c in (Condition.of(z=torch.ones(8, dtype=torch.long)), ASKED)] + [None]
    z, y, null = (denoiser(x_t, now, context).eps for context in terms)
    close(found.eps, 1.5 * z - 0.5 * null + 0.5 * (y - null))


# Dhariwal and Nichol's algorithms


@pytest.mark.parametrize("v", [0.0, 1.0])
@pytest.mark.parametrize("clip", [None, 0.4])
def test_ancestral_sampling_is_algorithm_1(v: float, clip: float | None):
    """x_{t-1} ~ N(mu + s Sigma grad log p(y | x_t), Sigma), mu of the clipped x0 (2105.05233), on DDPM's own steps."""
    steps, scale, n = 20, 3.0, 5
    schedule = Discrete.linear(steps, 0.001, 0.3)
    beta = torch.linspace(0.001, 0.3, steps, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    network, a = Curved(), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def log_h(x: Tensor, logsnr: float) -> Tensor:
        return torch.sin(x @ a.to(x)) * (1 + math.tanh(logsnr))

    x = normal(7, Stream.START, 0, 0, (n, 3))
    for k, t in enumerate(reversed(range(steps)), start=1):
        before = bar[t - 1] if t else torch.ones((), dtype=torch.float64)
        logsnr = torch.log(bar[t] / (1 - bar[t])).float()
        with torch.no_grad():
            eps = network(x, logsnr.expand(n), None)
        x0 = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        mean = before.sqrt() * beta[t] / (1 - bar[t]) * x0 + (1 - beta[t]).sqrt() * (1 - before) / (1 - bar[t]) * x
        variance = (beta[t] if v else beta[t] * (1 - before) / (1 - bar[t])) if t else torch.zeros(())
        gradient = torch.cos(x.double() @ a)[:, None] * a * (1 + torch.tanh(logsnr))
        x = (mean + scale * variance * gradient).float()
        if t:
            x = x + variance.sqrt().float() * normal(7, Stream.STEP, k, 0, (n, 3))
    project: Callable[[Tensor], Tensor] | None = None if clip is None else (lambda x0: x0.clamp(-clip, clip))
    guidance = Steered(CFG(), NoisyReward(log_h), scale)
    found = sample(Denoiser(network, schedule, Eps()), (n, 3), None, guidance, DDPM(v), steps=steps, seed=7, project=project)
    close(found, x, 2e-4)


@pytest.mark.parametrize("clip", [None, 0.4])
def test_ddim_is_algorithm_2(clip: float | None):
    """eps - sqrt(1 - bar) s grad log p(y | x_t), and the x0 that goes with it; clipped before the gradient is added."""
    steps, scale, n = 12, 2.0, 5
    schedule, network = Discrete.linear(steps, 0.001, 0.4), Curved()
    bar = torch.cumprod(1 - torch.linspace(0.001, 0.4, steps, dtype=torch.float64), 0)
    a = torch.tensor([1.0, -2.0, 0.5])
    x = normal(7, Stream.START, 0, 0, (n, 3))
    for t in reversed(range(steps)):
        before = bar[t - 1] if t else torch.ones((), dtype=torch.float64)
        with torch.no_grad():
            eps = network(x, torch.log(bar[t] / (1 - bar[t])).float().expand(n), None)
        if clip is not None:
            x0 = ((x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()).clamp(-clip, clip)
            eps = (x - bar[t].sqrt() * x0) / (1 - bar[t]).sqrt()
        eps = eps - (1 - bar[t]).sqrt() * scale * torch.cos(x @ a)[:, None] * a
        x0 = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
        x = (before.sqrt() * x0 + (1 - before).sqrt() * eps).float()
    project: Callable[[Tensor], Tensor] | None = None if clip is None else (lambda x0: x0.clamp(-clip, clip))
    guidance = Steered(CFG(), NoisyReward(lambda x, logsnr: torch.sin(x @ a)), scale)
    found = sample(Denoiser(network, schedule, Eps()), (n, 3), None, guidance, DDIM(), steps=steps, seed=7, project=project)
    close(found, x, 2e-4)


def test_the_last_ancestral_step_is_not_shifted():
    seen: list[Prediction] = []
    guidance = Steered(CFG(), Reward(lambda x0: 5 * x0[:, 0]))
    keep = [lambda p: seen.append(p.prediction)]
    found = sample(GAUSSIAN.denoiser(), (4, 2), None, guidance, DDPM(), steps=3, callbacks=keep)  # type: ignore[arg-type]
    now = at(Cosine(), 1 / 3)
    g = seen[-1].gradient
    assert g is not None and float(g.abs().max()) > 0.1
    close(found, seen[-1].x0 - (now.sigma**2 / now.alpha * g).to(found), 1e-5)


# What is no score


RIGHT = "one finite number a sample, by operations that can be differentiated"


def total(x0: Tensor) -> Tensor:
    return x0.sum()


def each(x0: Tensor) -> Tensor:
    return x0


def missing(x0: Tensor) -> Tensor:
    return x0.log().sum(1)


def fails(x0: Tensor) -> Tensor:
    raise RuntimeError("a and b\nmust match")


def constant(x0: Tensor) -> Tensor:
    return torch.zeros(len(x0))


def cut(x0: Tensor) -> Tensor:
    return x0.detach().sum(1).requires_grad_()


def steep(x0: Tensor) -> Tensor:
    return (x0 - x0.detach()).square().sum(1).sqrt()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (total, r"Reward\(total\) gives shape \[\] for 3 samples"),
        (each, r"Reward\(each\) gives shape \[3, 2\] for 3 samples"),
        (lambda x0: 1.0, r"Reward\(.*lambda.*\) gives float for 3 samples"),
        (missing, r"Reward\(missing\) gives (nan|-inf) at logsnr -20"),
        (fails, r"Reward\(fails\) failed on x0 of shape \[3, 2\]: RuntimeError: a and b must match"),
        (constant, r"Reward\(constant\) does not depend on x0"),
        (cut, r"Reward\(cut\) does not depend on x0"),
        (steep, r"the gradient of the score Reward\(steep\) is NaN or infinite at logsnr -20"),
    ],
    ids=["total", "each", "number", "missing", "fails", "constant", "cut", "steep"],
)
def test_what_is_no_score_is_told_in_one_line(unchecked: None, function: Any, said: str):
    with pytest.raises(UserError, match=said) as told:
        sample(WORLD.denoiser(), (3, 2), None, Steered(CFG(), Reward(function, low=-math.inf)), steps=2)
    assert "\n" not in str(told.value) and (RIGHT in str(told.value) or "gradient of" in str(told.value))
    if function is fails:
        assert isinstance(told.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Steered(CFG(), Reward, 1.0), "guidance.score is an object such as"),
        (lambda: Steered(CFG(), square, 1.0), "guidance.score is an object such as"),
        (lambda: Steered(CFG(), Reward(square), math.nan), "guidance.scale is a finite number"),
        (lambda: Reconstruction(MEANS, deviation=0.0), "above 0, got 0.0"),
        (lambda: Reconstruction(MEANS, deviation=[1.0, -1.0, 1.0, 1.0]), "above 0"),
        (lambda: Reconstruction(MEANS, deviation="wide"), "deviation of a reconstruction is a finite number"),
    ],
    ids=["class", "function", "scale", "zero", "below", "word"],
)
def test_settings_that_cannot_be(unchecked: None, make: Callable[[], Any], said: str):
    with pytest.raises(UserError, match=said):
        make()


def test_a_deviation_that_changes_has_to_be_positive_too():
    guidance = Steered(CFG(), Reconstruction(torch.zeros(1, 2), deviation=lambda logsnr: -logsnr))
    with pytest.raises(UserError, match="above 0"):
        sample(WORLD.denoiser(), (3, 2), None, guidance, steps=4)


def test_there_is_no_density_of_a_gradient():
    with pytest.raises(UserError, match="Steered has no density"):
        GuidedDenoiser(WORLD.denoiser(), Steered(CFG(), Reward(square)), Condition(), 4).log_density(draws(4), at(Cosine(), 0.5))


@pytest.mark.parametrize(("logsnr", "counts"), [(-6.5, False), (-5.5, True)])
@pytest.mark.parametrize("score", [Reward(square), Reconstruction(torch.zeros(1, 2))], ids=["reward", "reconstruction"])
def test_below_its_log_snr_a_score_of_clean_data_does_not_count(score: Any, logsnr: float, counts: bool):
    """There a trained network's gradient is its error, and sigma^2 / alpha is large."""
    t = inverse(Cosine(), torch.tensor(logsnr, dtype=torch.float64))
    for low, expected in ((score.low, counts), (-math.inf, True), (0.0, False)):
        guided = GuidedDenoiser(WORLD.denoiser(), Steered(CFG(), dataclasses.replace(score, low=low), 2.0), Condition(), 4)
        found = guided(draws(4), at(Cosine(), float(t))).gradient
        assert (found is not None) is expected
        assert found is None or bool((found != 0).any())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Steered(None, Reward(square)), "guidance.inside is a guidance, such as CFG"),
        (lambda: Steered(CFG, Reward(square)), "guidance.inside is a guidance, such as CFG"),
        (lambda: Steered.by_classifier("folder"), "guidance.classifier is a classifier of noisy data"),
        (lambda: Reconstruction([[0.0, 0.0]]), "values of a reconstruction are a tensor"),
        (lambda: Reconstruction(torch.zeros(1, 2), mask=[1.0, 0.0]), "mask of a reconstruction are a tensor"),
        (lambda: Reconstruction(torch.zeros(1, 2, dtype=torch.uint8)), "got torch.uint8"),
    ],
    ids=["none", "class", "classifier", "list", "mask", "bytes"],
)
def test_parts_of_another_kind_are_refused(unchecked: None, make: Callable[[], Any], said: str):
    with pytest.raises(UserError, match=said) as told:
        make()
    assert "\n" not in str(told.value)
