"""Rules on the combination against their papers' formulas, written out anew or by diffusers, and against what they must leave as it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

from guidance import (
    APG,
    CFG,
    DDIM,
    DDPM,
    CFGPlusPlus,
    CFGZero,
    Condition,
    Cosine,
    DPMSolver,
    DynamicThreshold,
    FeynmanKac,
    Guidance,
    GuidedDenoiser,
    Heun,
    Interval,
    Karras,
    Langevin,
    Level,
    Linear,
    Mixture,
    Prediction,
    Rectified,
    Rescale,
    Sampler,
    Schedule,
    Smooth,
    Table,
    Term,
    Threshold,
    UserError,
    level,
    load,
    on,
    sample,
)
from guidance.cli import run
from guidance.noise import Stream, normal
from guidance.parameterization import read_x0
from guidance.sampler import Progress
from guidance.schedule import inverse

N, EVENT = 6, (2, 3)
SEEDED = torch.Generator().manual_seed(0)
MEANS = torch.randn(4, *EVENT, generator=SEEDED) * 1.5
MIXTURE = Mixture(MEANS, [0.5, 0.8, 0.4, 0.7], [0.1, 0.2, 0.3, 0.4], {"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})
X = torch.randn(N, *EVENT, generator=SEEDED, dtype=torch.float64) * 1.2
CONDITION = Condition.of(a=[0, 1, 0, 1, 0, 1], b=[0, 0, 1, 1, 0, 1])
KEEP = torch.tensor([True, False, True, True, False, True])
SOME = Condition(CONDITION.values, {"a": KEEP, "b": KEEP})
SCALES = torch.tensor([0.0, 2.0, 1.0, -1.5, 0.3, 4.0])


def at(logsnr: float, schedule: Schedule | None = None) -> Level:
    schedule = schedule or Cosine()
    return level(schedule, inverse(schedule, torch.tensor(logsnr, dtype=torch.float64)), X)


def alone(condition: Condition, where: Level, x: Tensor = X) -> Prediction:
    """What the model itself says, without any guidance machinery."""
    return MIXTURE.denoiser()(x, where, MIXTURE.embed(condition))


def guided(guidance: Guidance, condition: Condition = CONDITION, max_rows: int | None = None) -> GuidedDenoiser:
    return GuidedDenoiser(MIXTURE.denoiser(), guidance, condition, N, max_rows)


def says(guidance: Guidance, where: Level, condition: Condition = CONDITION) -> Prediction:
    found = guided(guidance, condition)(X, where)
    torch.testing.assert_close(where.alpha * found.x0 + where.sigma * found.eps, X, atol=1e-6, rtol=1e-6)  # of the same x_t, by any rule
    return found


def same(found: Tensor, expected: Tensor | np.ndarray, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), torch.as_tensor(expected).double(), atol=atol, rtol=1e-6)


def both(where: Level, x: Tensor = X) -> tuple[Prediction, Prediction]:
    return alone(CONDITION, where, x), alone(CONDITION.drop(), where, x)


def draw(guidance: Guidance, sampler: Sampler | None = None, condition: Condition = CONDITION, steps: int = 8, **more: Any) -> Tensor:
    return sample(MIXTURE.denoiser(), (len(condition), *EVENT), condition, guidance, sampler or DDIM(), steps=steps, **more)


LEVELS = pytest.mark.parametrize("where", [at(-6.0), at(-0.7), at(3.0), at(0.4, Rectified()), at(-2.0, Karras())], ids=lambda _: "")

# Weights that change with the noise level


@pytest.mark.parametrize("logsnr, weight", [(-math.inf, 1.0), (-3.0, 1.0), (-2.0, 1.0), (0.0, 2.0), (1.0, 2.5), (4.0, 4.0), (20.0, 4.0)])
def test_linear_is_a_line_between_two_levels(logsnr: float, weight: float):
    assert Linear(-2.0, 4.0, 1.0, 4.0)(logsnr) == pytest.approx(weight)
    assert Linear(-2.0, 4.0, -1.0, -4.0)(logsnr) == pytest.approx(-weight)


def test_smooth_is_half_a_cosine():
    smooth, u = Smooth(-2.0, 4.0, 1.0, 5.0), np.linspace(0, 1, 13)
    found = np.array([smooth(-2 + 6 * x) for x in u])
    np.testing.assert_allclose(found, 1 + 4 * np.sin(np.pi * u / 2) ** 2)  # sin^2(a / 2) = (1 - cos a) / 2
    assert smooth(-9.0) == 1.0 and smooth(9.0) == 5.0


def test_a_table_is_numpys_interpolation():
    points = [[-4.0, 1.0], [-1.0, 3.0], [0.5, -2.0], [6.0, 0.5]]
    for logsnr in np.linspace(-8, 8, 65):
        assert Table(points)(logsnr) == pytest.approx(np.interp(logsnr, *zip(*points, strict=True)))
    assert Table([[0.0, 2.5]])(-3.0) == Table([[0.0, 2.5]])(3.0) == 2.5


@pytest.mark.parametrize("schedule", [Linear(-5.0, 5.0, 0.5, 6.0), Smooth(-5.0, 5.0, 0.5, 6.0), Table([(-5.0, 1.0), (1.0, 4.0)])], ids=repr)
@pytest.mark.parametrize("logsnr", [-7.0, -1.3, 2.0])
def test_schedules_are_scales(schedule: Any, logsnr: float):
    here, number = at(logsnr), schedule(at(logsnr).logsnr.item())
    for changing, constant in [
        (CFG(schedule), CFG(number)),
        (CFG(schedule).inverse(), CFG(1 - number)),
        (CFG(schedule).inverse().inverse(), CFG(number)),
        (CFG.from_paper(schedule), CFG(1 + number)),
        (schedule * on(a=1) - on(b=0), number * on(a=1) - on(b=0)),
        (APG(schedule, 0.2, 1.5), APG(number, 0.2, 1.5)),
        (CFGZero(schedule), CFGZero(number)),
        (CFGPlusPlus(schedule), CFGPlusPlus(number)),
    ]:
        same(says(changing, here).x0, says(constant, here).x0)
    assert repr(CFG(schedule)) == f"CFG(scale={schedule!r})" and eval(repr(schedule)) == schedule


# Rescale: Lin et al., equations 15 and 16


def as_output(space: str, p: Prediction, where: Level) -> Tensor:
    """The output that a network of this kind would have had, in variance-preserving scale."""
    norm = (where.alpha**2 + where.sigma**2).sqrt()
    return {"eps": p.eps, "x0": p.x0, "v": (where.alpha * p.eps - where.sigma * p.x0) / norm}[space]


@LEVELS
@pytest.mark.parametrize("space", ["v", "eps", "x0"])
@pytest.mark.parametrize("scale, factor", [(4.0, 0.7), (-2.0, 1.0), (0.0, 0.4)])
def test_rescale_is_the_papers_equation_and_diffusers(scale: float, factor: float, space: str, where: Level):
    cond, null = both(where)
    c, n = as_output(space, cond, where), as_output(space, null, where)
    g = n + scale * (c - n)
    by_hand = torch.stack([factor * g[i] * c[i].std() / g[i].std() + (1 - factor) * g[i] for i in range(N)])
    found = as_output(space, says(Rescale(CFG(scale), factor, space), where), where)
    same(found, by_hand)
    same(found, rescale_noise_cfg(g, c, factor))


def test_rescale_sees_the_condition_at_no_weight_and_pays_for_it_only_there():
    for scale, rows in [(0.0, 2), (1.0, 1), (3.0, 2)]:
        made = guided(Rescale(CFG(scale)))
        made(X, at(0.0))
        assert made.rows == rows * N
        off = guided(Rescale(CFG(scale), 0.0))
        off(X, at(0.0))
        assert off.rows == (2 if scale == 3.0 else 1) * N


def test_rescale_goes_by_the_first_term_of_a_composition():
    where, composed = at(0.4), 2.5 * on(a=1) - 1.0 * on(b=0)
    first = alone(CONDITION.drop().set(a=torch.ones(N, dtype=torch.long)), where)
    plain = says(composed, where)
    same(says(Rescale(composed, 1.0, "eps"), where).eps, rescale_noise_cfg(plain.eps, first.eps, 1.0))


# Thresholds


@LEVELS
@pytest.mark.parametrize("scale", [5.0, -2.0])
def test_threshold_clips_x0_and_takes_eps_with_it(scale: float, where: Level):
    plain = says(CFG(scale), where)
    for limit in (0.3, 1.0):
        found = says(Threshold(CFG(scale), limit), where)
        expected = read_x0(torch.from_numpy(np.clip(plain.x0.numpy(), -limit, limit)), X, where)
        same(found.x0, expected.x0)
        same(found.eps, expected.eps)
    assert (plain.x0.abs() > 1).any()


def imagen(x0: np.ndarray, quantile: float, limit: float) -> np.ndarray:
    """Sample by sample: s = the quantile of |x0|, not below the limit; clip to [-s, s]; divide by s (in units of the limit)."""
    found = []
    for one in x0:
        s = max(np.quantile(np.abs(one), quantile), limit)
        found.append(np.clip(one, -s, s) / s * limit)
    return np.stack(found)


@LEVELS
@pytest.mark.parametrize("quantile, limit", [(0.8, 1.0), (0.5, 0.4), (0.995, 1.0), (1.0, 0.7), (0.0, 1.0), (0.8, 50.0)])
def test_dynamic_threshold_is_imagens_and_diffusers(quantile: float, limit: float, where: Level):
    plain = says(CFG(5.0), where)
    found = says(DynamicThreshold(CFG(5.0), quantile, limit), where)
    same(found.x0, imagen(plain.x0.numpy(), quantile, limit))
    same(found.eps, read_x0(found.x0, X, where).eps)
    if limit == 1.0:
        theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e9)
        same(found.x0, theirs._threshold_sample(plain.x0))


# APG


def projected(c: Tensor, n: Tensor, w: float, eta: float, limit: float, memory: MomentumBuffer | None) -> Tensor:
    """diffusers' own, whose scale is w - 1 in the paper's form and whose limit 0 is none."""
    return normalized_guidance(c, n, w - 1, memory, eta, 0.0 if limit == math.inf else limit, use_original_formulation=True)


@pytest.mark.parametrize("scale", [4.0, -2.0, 0.0, 0.5])
@pytest.mark.parametrize(
    "parallel, limit, momentum", [(0.0, math.inf, 0.0), (0.3, 0.8, 0.0), (-1.0, 1.5, -0.5), (1.0, math.inf, 0.7), (0.0, 0.6, -0.75)]
)
def test_apg_is_diffusers_along_a_run_of_levels(scale: float, parallel: float, limit: float, momentum: float):
    made, memory = guided(APG(scale, parallel, limit, momentum)), MomentumBuffer(momentum) if momentum else None
    for k, logsnr in enumerate((-6.0, -2.0, 0.0, 1.5, 5.0)):
        where, x = at(logsnr), X + 0.1 * k
        cond, null = both(where, x)
        found = made(x, where)
        same(found.x0, projected(cond.x0, null.x0, scale, parallel, limit, memory))
        same(found.eps, read_x0(found.x0, x, where).eps, atol=1e-5)


def test_apg_adds_nothing_along_x0_and_no_more_than_the_limit():
    where = at(0.0)
    x0 = alone(CONDITION, where).x0.flatten(1)
    added = says(APG(5.0), where).x0.flatten(1) - x0
    assert ((added * x0).sum(1).abs() < 1e-9 * added.norm(dim=1) * x0.norm(dim=1) + 1e-9).all()
    only = says(APG(5.0, parallel=1.0, limit=0.2), where).x0.flatten(1) - x0
    whole = says(CFG(5.0), where).x0.flatten(1) - x0
    same(only.norm(dim=1), whole.norm(dim=1).clamp(max=4 * 0.2))


def test_momentum_counts_a_level_once_however_often_it_is_asked():
    """As in a step of Heun's, whose trial at the next level is forgotten when that level comes."""
    made, beta = guided(APG(3.0, 1.0, momentum=-0.6)), -0.6
    first, second, third = at(-3.0), at(0.0), at(2.0)

    def difference(where: Level, x: Tensor) -> Tensor:
        cond, null = both(where, x)
        return cond.x0 - null.x0

    made(X, first)
    made(X + 0.7, second)
    d = difference(second, X - 0.2) + beta * difference(first, X)
    same(made(X - 0.2, second).x0, alone(CONDITION, second, X - 0.2).x0 + 2.0 * d)
    same(made(X, third).x0, alone(CONDITION, third).x0 + 2.0 * (difference(third, X) + beta * d))


@pytest.mark.parametrize("first", [1.0, 0.0])
def test_momentum_remembers_levels_at_which_nothing_was_added(first: float):
    made, beta = guided(APG(Table([(0.0, first), (1.0, 3.0)]), 1.0, momentum=-0.6)), -0.6
    (c, n), (later_c, later_n) = both(at(-2.0)), both(at(2.0))
    made(X, at(-2.0))
    same(made(X, at(2.0)).x0, later_c.x0 + 2.0 * (later_c.x0 - later_n.x0 + beta * (c.x0 - n.x0)))


def test_a_run_forgets_what_another_saw():
    rule = APG(4.0, momentum=-0.5)
    first, again = draw(rule), draw(rule)
    assert torch.equal(first, again) and rule.memory is None and rule == APG(4.0, momentum=-0.5)
    assert (draw(APG(4.0)) - first).abs().max() > 0.01
    part = sample(MIXTURE.denoiser(), (2, *EVENT), CONDITION.rows(slice(4, 6)), rule, steps=8, first=4)
    torch.testing.assert_close(part, first[4:], atol=1e-5, rtol=1e-5)


# CFG-Zero*


@LEVELS
@pytest.mark.parametrize("scale", [4.0, -2.0, 0.0, 1.0])
def test_cfg_zero_is_its_equation_and_diffusers(scale: float, where: Level):
    cond, null = both(where)
    c, n = (p.eps - p.x0 for p in (cond, null))
    by_hand = []
    for i in range(N):
        s = float((c[i] * n[i]).sum() / (n[i] * n[i]).sum())
        by_hand.append(s * n[i] + scale * (c[i] - s * n[i]))
    found = says(CFGZero(scale), where)
    same(found.eps - found.x0, torch.stack(by_hand))
    theirs = n * cfg_zero_star_scale(c.flatten(1), n.flatten(1)).view(-1, 1, 1)
    same(found.eps - found.x0, theirs + scale * (c - theirs), atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps, zero, still", [(50, 0.04, 2), (50, 0.02, 1), (10, 0.25, 3), (10, 0.0, 0)])
def test_the_first_steps_stand_still(steps: int, zero: float, still: int):
    """Along a rectified path x stays; on a variance-preserving one x / (alpha + sigma), which is the same path in another scale, does."""
    for schedule in (Rectified(), Cosine()):
        seen: list[Progress] = []
        draw(CFGZero(3.0, zero), steps=steps, schedule=schedule, callbacks=[seen.append])
        start = normal(0, Stream.START, 0, 0, (N, *EVENT)) * seen[0].level.norm
        where = [p.level for p in seen] + [Level(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0))]
        path = [x / (there.alpha + there.sigma) for x, there in zip([start, *(p.x_t for p in seen)], where, strict=True)]
        changed = [not torch.allclose(after, before, atol=1e-5) for before, after in pairwise(path)]
        assert changed == [False] * still + [True] * (steps - still)


# CFG++


def chung(scale: float, steps: int, eta: float = 0.0, clamp: float = math.inf, seed: int = 0) -> Tensor:
    """Algorithm 2 of the paper with alpha-bar, in its own words; sigma_t of DDIM (Song et al., eq. 16) where eta is not 0."""
    bars = [Cosine()(torch.tensor(1 - k / steps, dtype=torch.float64))[0] ** 2 for k in range(steps)]
    x = normal(seed, Stream.START, 0, 0, (N, *EVENT)).double()
    contexts = MIXTURE.embed(CONDITION), MIXTURE.embed(CONDITION.drop())
    for k, bar in enumerate(bars):
        logsnr = torch.full((N,), float((bar / (1 - bar)).log()), dtype=torch.float64)
        eps_c, eps_0 = ((x - bar.sqrt() * MIXTURE(x, logsnr, context)) / (1 - bar).sqrt() for context in contexts)
        eps_lambda = eps_0 + scale * (eps_c - eps_0)
        x0 = ((x - (1 - bar).sqrt() * eps_lambda) / bar.sqrt()).clamp(-clamp, clamp)
        before = bars[k + 1] if k + 1 < steps else torch.ones(())
        sigma = eta * ((1 - before) / (1 - bar) * (1 - bar / before)).sqrt()
        z = normal(seed, Stream.STEP, k + 1, 0, (N, *EVENT))
        x = before.sqrt() * x0 + (1 - before - sigma**2).clamp(min=0).sqrt() * eps_0 + sigma * z
    return x


@pytest.mark.parametrize(
    "scale, eta, clamp", [(0.6, 0.0, math.inf), (3.0, 0.0, 1.0), (0.6, 0.5, 1.0), (-0.5, 1.0, math.inf), (1.0, 1.0, 1.0)]
)
def test_cfg_plus_plus_is_the_papers_algorithm(scale: float, eta: float, clamp: float):
    project = None if clamp == math.inf else lambda x0: x0.clamp(-clamp, clamp)
    same(draw(CFGPlusPlus(scale), DDIM(eta), project=project), chung(scale, 8, eta, clamp), atol=1e-4)


def test_what_no_scale_of_cfg_plus_plus_is():
    """0 is the unconditional model; 1 is neither model, nor any scale of CFG."""
    torch.testing.assert_close(draw(CFGPlusPlus(0.0)), draw(CFG(0.0)), atol=1e-6, rtol=0)
    assert min((draw(CFGPlusPlus(1.0)) - draw(CFG(scale))).abs().max() for scale in (0.5, 1.0, 2.0)) > 0.1


@pytest.mark.parametrize("scale, rows", [(0.6, 2), (0.0, 1), (1.0, 2)])
def test_cfg_plus_plus_always_sees_the_null(scale: float, rows: int):
    made = guided(CFGPlusPlus(scale))
    cond, null = both(at(0.5))
    found = made(X, at(0.5))
    assert made.rows == rows * N and found.renoise is not None
    same(found.renoise, null.eps)
    same(found.eps, null.eps + scale * (cond.eps - null.eps))


# What leaves a model as it is


NEUTRAL: dict[str, tuple[Guidance, Guidance]] = {
    "rescale": (Rescale(CFG(3.0), 0.0), CFG(3.0)),
    "rescale 1": (Rescale(CFG(1.0), 1.0), CFG(1.0)),
    "rescale 1 eps": (Rescale(CFG(1.0), 1.0, "eps"), CFG(1.0)),
    "threshold": (Threshold(CFG(3.0), math.inf), CFG(3.0)),
    "dynamic": (DynamicThreshold(CFG(3.0), 0.5, math.inf), CFG(3.0)),
    "dynamic, wide": (DynamicThreshold(CFG(3.0), 1.0, 1e3), CFG(3.0)),
    "apg": (APG(3.0, parallel=1.0), CFG(3.0)),
    "apg 0": (APG(0.0, parallel=1.0), CFG(0.0)),
    "apg each": (APG(SCALES, parallel=1.0), CFG(SCALES)),
    "apg 1": (APG(1.0, 0.0, 0.1, -0.5), CFG(1.0)),
    "zero": (CFGZero(1.0), CFG(1.0)),
    "linear": (CFG(Linear(-5.0, 5.0, 3.0, 3.0)), CFG(3.0)),
    "table": (CFG(Table([[0.0, 3.0]])), CFG(3.0)),
    "nested": (Threshold(Rescale(DynamicThreshold(APG(3.0, 1.0), limit=math.inf), 0.0), math.inf), CFG(3.0)),
    "interval": (Interval(Rescale(CFG(3.0)), 2.0, 2.0), CFG(1.0)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("condition, sampler", [(CONDITION, DDIM()), (SOME, DPMSolver()), (SOME, DDPM()), (CONDITION, Heun())], ids="abcd")
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_settings_change_no_sample(name: str, sampler: Sampler, condition: Condition):
    """In double precision from the first step on, so that samplers do not enlarge what single precision rounds."""
    found, plain = (draw(guidance, sampler, condition, project=Tensor.double) for guidance in NEUTRAL[name])
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)


# Any samples at any scales, in any nesting


def nested(scale: Any) -> Guidance:
    return Interval(DynamicThreshold(Rescale(APG(scale, 0.2, 1.5, -0.5), 0.6, "x0"), 0.8, 0.9), -3.0, 3.0, outside=CFGZero(scale))


RULES: dict[str, Callable[[Any], Guidance]] = {
    "rescale": lambda scale: Rescale(CFG(scale)),
    "rescale eps": lambda scale: Rescale(CFG(scale), 1.0, "eps"),
    "threshold": lambda scale: Threshold(CFG(scale)),
    "dynamic": lambda scale: DynamicThreshold(CFG(scale), 0.7, 0.8),
    "apg": lambda scale: APG(scale, 0.1, 1.2),
    "apg, momentum": lambda scale: APG(scale, 0.1, 1.2, -0.6),
    "zero": lambda scale: CFGZero(scale, 0.1),
    "plus plus": CFGPlusPlus,
    "rescale plus plus": lambda scale: Threshold(Rescale(CFGPlusPlus(scale)), 1.1),
    "rescale interval": lambda scale: Rescale(Interval(CFG(scale), -2.0, 2.0, outside=APG(scale, 0.3))),
    "rescale twice": lambda scale: Rescale(Rescale(CFG(scale), 0.5, "x0"), 0.5, "eps"),
    "nested": nested,
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("max_rows", [None, 5])
@pytest.mark.parametrize("name", RULES)
def test_a_batch_is_its_samples_one_by_one(name: str, max_rows: int | None):
    """With a scale of its own each, 0 and 1 among them, and two conditions absent; along a run, so that memories count."""
    rule = RULES[name]
    together, each = guided(rule(SCALES), SOME, max_rows), []
    for i, scale in enumerate(SCALES.tolist()):
        each.append(GuidedDenoiser(MIXTURE.denoiser(), rule(scale), SOME.rows(slice(i, i + 1)), 1))
    for k, logsnr in enumerate((-8.0, -2.5, 0.0, 2.0, 2.9, 6.0)):
        where, x = at(logsnr), X + 0.2 * k
        found = together(x, where)
        for i, one in enumerate(each):
            row = slice(i, i + 1)
            expected = one(x[row], where)
            same(found.x0[row], expected.x0, atol=1e-5)
            same(found.eps[row], expected.eps, atol=1e-5)
            assert (found.renoise is None) == (expected.renoise is None)
            if found.renoise is not None and expected.renoise is not None:
                same(found.renoise[row], expected.renoise)


@pytest.mark.parametrize("name", [name for name in RULES if name != "threshold"])
def test_absent_conditions_are_the_unconditional_model_where_rules_bound_nothing(name: str):
    """Guidance has nothing to add there; only bounds on x0 still hold, and the standing still of CFG-Zero* at the start."""
    if "dynamic" in name or name in ("nested", "rescale plus plus"):
        return
    null = alone(CONDITION.drop(), at(0.0))
    found = guided(RULES[name](torch.tensor([3.0, -2.0, 0.0, 1.0, 0.5, 7.0])), CONDITION.drop())(X, at(0.0))
    same(found.x0, null.x0)
    same(found.eps, null.eps)


def test_nested_rules_are_their_formulas_one_after_the_other():
    where = at(0.7)
    cond, null = both(where)
    inside = projected(cond.x0, null.x0, 4.0, 0.2, 1.5, None)
    bounded = imagen(rescale_noise_cfg(inside, cond.x0, 0.6).numpy(), 0.8, 0.9)
    same(says(nested(4.0), where).x0, bounded)
    c, n = (p.eps - p.x0 for p in both(at(4.0)))
    s = ((c * n).flatten(1).sum(1) / (n * n).flatten(1).sum(1)).view(-1, 1, 1)
    outside = says(nested(4.0), at(4.0))
    same(outside.eps - outside.x0, s * n + 4.0 * (c - s * n))


def test_what_is_outside_of_an_interval_costs_nothing():
    made, rows = guided(Interval(Rescale(APG(3.0, momentum=-0.5)), -1.0, 1.0)), []
    for logsnr in (-4.0, 0.0, 4.0):
        before = made.rows
        made(X, at(logsnr))
        rows.append(made.rows - before)
    assert rows == [N, 2 * N, N]


@pytest.mark.parametrize(
    "rule, rows",
    [(APG(1.0), 1), (APG(0.0), 2), (APG(3.0), 2), (APG(1.0, momentum=0.5), 2), (CFGZero(1.0), 1), (CFGZero(0.0), 2), (CFGZero(3.0), 2)],
    ids=str,
)
def test_what_rules_cost(rule: Guidance, rows: int):
    made = guided(rule)
    made(X, at(0.0))
    assert made.rows == rows * N


@dataclass(frozen=True)
class Pushed:
    """CFG with a gradient beside it, as guidance by a classifier has one."""

    inside: Guidance

    def terms(self, condition: Condition) -> Sequence[Term]:
        return self.inside.terms(condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
        found = self.inside.combine(terms, predictions, x_t, level)
        return Prediction(found.x0, found.eps, gradient=torch.ones_like(x_t), renoise=7 * x_t)


@pytest.mark.parametrize("rule", [lambda g: Rescale(g, 0.5), lambda g: Threshold(g, 0.2), lambda g: DynamicThreshold(g, 0.5, 0.2)])
def test_rules_that_wrap_keep_what_else_a_prediction_says(rule: Callable[[Guidance], Guidance]):
    found = says(rule(Pushed(CFG(3.0))), at(0.0))
    assert found.gradient is not None and torch.equal(found.gradient, torch.ones_like(X))
    assert found.renoise is not None and torch.equal(found.renoise, 7 * X)
    same(found.x0, says(rule(CFG(3.0)), at(0.0)).x0)


def test_samples_that_are_zero_are_not_divided_by():
    """x0 of a model of nothing is 0: no direction to project on, no deviation, no velocity to speak of."""
    empty = Mixture(torch.zeros(2, *EVENT), 0.0, labels={"a": [0, 1]}).denoiser()
    some = Condition.of(a=[0, 1])
    for rule in (APG(3.0, 0.0, 0.5), Rescale(CFG(3.0), 1.0, "x0"), CFGZero(3.0), DynamicThreshold(CFG(3.0), 0.5, 1.0)):
        assert GuidedDenoiser(empty, rule, some, 2)(torch.zeros(2, *EVENT), at(0.0)).x0.eq(0).all()


# What is refused


@pytest.mark.parametrize("sampler", [DPMSolver(), DDPM(), Heun(), Langevin(DDIM())], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rule", [CFGPlusPlus(0.6), Interval(Rescale(CFGPlusPlus(0.6)))], ids=["alone", "nested"])
def test_cfg_plus_plus_takes_no_other_sampler_than_ddim(rule: Guidance, sampler: Sampler):
    with pytest.raises(UserError, match=rf"change to DDIM's step.*{type(sampler).__name__}.*sampler=ddim"):
        draw(rule, sampler)


@pytest.mark.parametrize("sampler", [Langevin(DDIM()), FeynmanKac(DDPM())], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("rule", [APG(3.0, momentum=-0.5), Threshold(APG(3.0, momentum=-0.5))], ids=["alone", "nested"])
def test_momentum_takes_no_corrector(rule: Guidance, sampler: Sampler):
    with pytest.raises(UserError, match=rf"APG's momentum does not go together with {type(sampler).__name__}.*momentum=0"):
        draw(rule, sampler)


def test_without_momentum_apg_may_be_corrected():
    assert draw(APG(3.0), Langevin(DDIM()), steps=3).isfinite().all()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "linear order": (lambda: Linear(2.0, 2.0, 1.0, 3.0), "low < high"),
    "linear nan": (lambda: Linear(math.nan, 2.0, 1.0, 3.0), "Linear's low is a finite number, got nan"),
    "linear inf": (lambda: Linear(-1.0, 2.0, 1.0, math.inf), "Linear's at_high is a finite number, got inf"),
    "smooth text": (lambda: Smooth(-1.0, 2.0, "much", 3.0), "Smooth's at_low is a finite number, got 'much'"),
    "table empty": (lambda: Table([]), "list of pairs"),
    "table text": (lambda: Table("12"), "a pair"),
    "table number": (lambda: Table([1.0, 2.0]), "a pair"),
    "table order": (lambda: Table([[1.0, 2.0], [0.0, 1.0]]), r"order of logsnr.*\[1.0, 0.0\]"),
    "table twice": (lambda: Table([[1.0, 2.0], [1.0, 1.0]]), "each once"),
    "table nan": (lambda: Table([[1.0, math.nan]]), "weight of a Table's point"),
    "factor": (lambda: Rescale(CFG(2.0), 1.2), "Rescale's factor is a number from 0 to 1, got 1.2"),
    "factor nan": (lambda: Rescale(CFG(2.0), math.nan), "Rescale's factor"),
    "space": (lambda: Rescale(CFG(2.0), 0.5, "V"), "there is no space to rescale in 'V'.*choose from: v, eps, x0"),
    "limit 0": (lambda: Threshold(CFG(2.0), 0.0), "Threshold's limit is a positive number, or inf, got 0.0"),
    "limit true": (lambda: Threshold(CFG(2.0), True), "Threshold's limit"),
    "dynamic limit": (lambda: DynamicThreshold(CFG(2.0), 0.9, -1.0), "DynamicThreshold's limit"),
    "quantile": (lambda: DynamicThreshold(CFG(2.0), 99.5), "DynamicThreshold's quantile is a number from 0 to 1, got 99.5"),
    "apg scale": (lambda: APG("much"), "guidance.scale is a finite number"),
    "apg parallel": (lambda: APG(2.0, math.inf), "APG's parallel is a finite number"),
    "apg limit": (lambda: APG(2.0, 0.0, 0.0), "APG's limit is a positive number, or inf"),
    "apg momentum": (lambda: APG(2.0, momentum=1.0), "APG's momentum is a number between -1 and 1, got 1.0"),
    "zero": (lambda: CFGZero(2.0, 1.0), "CFGZero's zero is a share of the time"),
    "zero scale": (lambda: CFGZero(math.nan), "guidance.scale"),
    "plus plus": (lambda: CFGPlusPlus([[1.0]]), "guidance.scale"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_in_one_line(name: str):
    make, match = BAD[name]
    with pytest.raises(UserError, match=match) as error:
        make()
    assert "\n" not in str(error.value)


def test_rescale_needs_more_than_a_number():
    single = Mixture(torch.tensor([[1.0], [-1.0]]), 0.5, labels={"a": [0, 1]}).denoiser()
    with pytest.raises(UserError, match=r"standard deviation.*one number"):
        sample(single, (2, 1), Condition.of(a=[0, 1]), Rescale(CFG(2.0)), steps=3)


@pytest.mark.parametrize("name", [name for name in RULES if name != "nested"])
def test_a_wrong_number_of_scales_is_refused(name: str):
    with pytest.raises(UserError, match=rf"{N} samples"):
        guided(RULES[name](torch.ones(N + 1) * 2))(X, at(0.0))


# On a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rules")
    tiny = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1", "trainer.steps=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        jaxtyping.config.update("jaxtyping_disable", True)
        assert run(["train", "data=digits", *tiny, "trainer.lr=0.01", "trainer.warmup=0", f"out={folder / 'run'}"]) == 0
        yield folder / "run"
        jaxtyping.config.update("jaxtyping_disable", False)


ON_A_RUN: dict[str, tuple[list[str], Guidance]] = {
    "apg": (["guidance.scale=3", "guidance.limit=2.5", "guidance.momentum=-0.5"], APG(3.0, limit=2.5, momentum=-0.5)),
    "apg each": (["guidance.scale=[3,0,1]"], APG(torch.tensor([3.0, 0.0, 1.0]))),
    "cfg_zero": (["guidance.scale=3", "guidance.zero=0.25"], CFGZero(3.0, 0.25)),
    "cfg_plus_plus": (["guidance.scale=0.8", "sampler=ddim"], CFGPlusPlus(0.8)),
    "rescale": (["guidance.inside.scale=3", "guidance.space=x0"], Rescale(CFG(3.0), 0.7, "x0")),
    "threshold": (["guidance.inside.scale=3", "guidance.limit=0.5"], Threshold(CFG(3.0), 0.5)),
    "dynamic_threshold": (["guidance.inside.scale=3", "guidance.quantile=0.9"], DynamicThreshold(CFG(3.0), 0.9)),
    "scheduled": (["guidance.scale.at_high=4"], CFG(Linear(-5.0, 5.0, 1.0, 4.0))),
    "scheduled smooth": (["guidance.scale._target_=guidance.rules.Smooth", "guidance.scale.at_low=-1"], CFG(Smooth(-5.0, 5.0, -1.0, 1.0))),
    "cfg table": (["guidance.scale={_target_:guidance.rules.Table,points:[[-5,1],[0,3],[5,1]]}"], CFG(Table([[-5, 1], [0, 3], [5, 1]]))),
    "rescale apg": (
        ["guidance@guidance.inside=apg", "guidance.inside.scale=3", "guidance.inside.momentum=-0.5"],
        Rescale(APG(3.0, momentum=-0.5)),
    ),
    "interval dynamic": (
        ["guidance@guidance.inside=dynamic_threshold", "guidance.inside.inside.scale=4", "guidance.outside.scale=0"],
        Interval(DynamicThreshold(CFG(4.0)), -3.0, 5.0, CFG(0.0)),
    ),
}


@pytest.mark.parametrize("name", ON_A_RUN)
def test_configs_on_the_command_line_are_the_rules_in_python(name: str, trained: Path, tmp_path: Path):
    """The same pictures, in batches on the command line and in one batch here."""
    settings, rule = ON_A_RUN[name]
    command = ["sample", f"run={trained}", "n=3", "condition.digit=[1,2,3]", "sampler.steps=4", f"out={tmp_path / 'out'}", "batch_size=2"]
    sampler = [s for s in settings if s.startswith("sampler")]
    assert run([*command, *sampler, f"guidance={name.split(maxsplit=1)[0]}", *(s for s in settings if s not in sampler)]) == 0
    model = load(trained)
    drawn = model.sample(3, {"digit": [1, 2, 3]}, guidance=rule, sampler=DDIM() if sampler else None, steps=4)
    from PIL import Image

    saved = np.stack([np.array(Image.open(path)) for path in sorted((tmp_path / "out").glob("0*.png"))])
    expected = drawn[:, 0].numpy().astype(int)
    assert np.abs(saved - expected).max() <= 1
    plain = model.sample(3, {"digit": [1, 2, 3]}, sampler=DDIM() if sampler else None, steps=4)[:, 0].numpy().astype(int)
    assert np.abs(expected - plain).max() > 1  # which is to say that the rule did something


@pytest.mark.parametrize("name", ["apg", "apg each", "rescale apg"])
def test_batches_of_a_model_do_not_share_a_memory(name: str, trained: Path):
    model, rule = load(trained), ON_A_RUN[name][1]
    whole = torch.cat(list(model.latents(3, {"digit": [1, 2, 3]}, guidance=rule, steps=4)))
    parts = torch.cat(list(model.latents(3, {"digit": [1, 2, 3]}, guidance=rule, steps=4, batch_size=1, max_rows=1)))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings, said",
    [
        (["guidance=cfg_plus_plus", "sampler=dpm"], "DDIM's step"),
        (["guidance=rescale", "guidance.factor=2"], "factor is a number from 0 to 1"),
        (["guidance=rescale", "guidance.space=u"], "choose from: v, eps, x0"),
        (["guidance=apg", "guidance.momentum=high"], "guidance.momentum is a number"),
        (["guidance=scheduled", "guidance.scale.low=9"], "low < high"),
        (["guidance=dynamic_threshold", "guidance.quantile=.inf"], "quantile"),
        (["guidance=cfg", "guidance.scale={_target_:guidance.rules.Table,points:[1,2]}"], "points"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_the_command_line_says_in_a_line_what_is_wrong(
    settings: list[str], said: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["sample", f"run={trained}", "n=1", "sampler.steps=2", f"out={tmp_path / 'out'}", *settings]) == 2
    message = capsys.readouterr().err.strip()
    assert said in message and "\n" not in message
    assert not (tmp_path / "out").exists()
