"""OR, complement and dynamic negative guidance, against mixtures of which the parts in question are kept or left out by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.distributions import Normal

from guidance import (
    CFG,
    DDIM,
    DDPM,
    ByClassifier,
    ByDensity,
    Complement,
    Compose,
    Condition,
    DPMSolver,
    Either,
    Guidance,
    GuidedDenoiser,
    Heun,
    Interval,
    Level,
    Mixture,
    Prediction,
    Sampler,
    Term,
    Tracked,
    UserError,
    Vector,
    on,
    sample,
)
from guidance.config import build
from guidance.evidence import ancestral
from guidance.experiment.cells import Cell, plain
from guidance.guide import Bound
from guidance.hydra import composed
from guidance.noise import Stream, normal
from guidance.process import level
from guidance.schedule import Cosine, inverse
from tests.experiment_fakes import MEANS, mixture, world

CENTRES = torch.tensor([[-2.0, 0.5], [1.0, 3.0], [2.0, -1.0], [-1.0, -3.0]])
STDS, WEIGHTS = torch.tensor([[0.5, 0.8, 0.4, 0.7], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
A, B = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
MIXTURE = Mixture(CENTRES, STDS, WEIGHTS, {"a": A, "b": B, "each": [0, 1, 2, 3]})
DENOISER = MIXTURE.denoiser()
EXACT = ByDensity(DENOISER)
N = 6
NULL = Condition.of(a=[0] * N, b=[0] * N, each=[0] * N).drop()
LEVELS = [-12.0, -3.0, 0.3, 4.0, 10.0]


def at(logsnr: float) -> Level:
    where = torch.tensor(logsnr, dtype=torch.float64)
    return level(Cosine(), inverse(Cosine(), where), where)


LEVEL = at(0.3)


def parts(weights: Sequence[float] | Tensor) -> Mixture:
    """The same components with other weights, of which some are 0: what is left is a mixture of its own."""
    kept = torch.as_tensor(weights).nonzero().flatten()
    return Mixture(CENTRES[kept], STDS[kept], torch.as_tensor(weights)[kept])


def noised(of: Mixture, where: Level, n: int = N) -> Tensor:
    """Samples of a mixture at a noise level: where a run's x_t are."""
    generator = torch.Generator().manual_seed(5)
    k = torch.multinomial(of.weights, n, True, generator=generator)
    clean = of.means[k] + of.stds[k, None] * torch.randn(n, of.means.shape[1], generator=generator, dtype=torch.float64)
    return where.alpha * clean + where.sigma * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def says(guidance: Guidance, x_t: Tensor, where: Level = LEVEL, condition: Condition = NULL, max_rows: int | None = None) -> Prediction:
    return GuidedDenoiser(DENOISER, guidance, condition, len(x_t), max_rows)(x_t, where)


def same(found: Prediction, expected: Prediction, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found.x0, expected.x0, atol=atol, rtol=1e-9)
    torch.testing.assert_close(found.eps, expected.eps, atol=atol, rtol=1e-9)


def only(**values: int) -> Condition:
    return NULL.set(**{name: torch.full((N,), value) for name, value in values.items()})


def alone(condition: Condition, x_t: Tensor, where: Level = LEVEL) -> Prediction:
    return DENOISER(x_t, where, MIXTURE.embed(condition))


# OR


def share(mask: Tensor) -> Tensor:
    """The weights of a class alone."""
    kept = torch.where(mask, WEIGHTS, 0.0)
    return kept / kept.sum()


ORS = {
    "two classes": (on(each=1) | on(each=2), share(A + 2 * B == 2) * 0.5 + share(A + 2 * B == 1) * 0.5),
    "two to one": (2.0 * on(each=1) | on(each=3), torch.tensor([0.0, 2.0, 0.0, 1.0])),
    "overlapping": (on(a=1) | 3.0 * on(b=1), share(A == 1) * 0.25 + share(B == 1) * 0.75),
    "joint conditions": (on(a=0, b=1) | on(a=1, b=0), torch.tensor([0.0, 1.0, 1.0, 0.0])),
    "three": ((on(each=0) | on(each=1)) | on(each=3), torch.tensor([1.0, 1.0, 0.0, 1.0])),
    "three, from the right": (on(each=0) | (on(each=1) | on(each=3)), torch.tensor([1.0, 1.0, 0.0, 1.0])),
    "a share of none": (on(each=1) | 0.0 * on(each=2), torch.tensor([0.0, 1.0, 0.0, 0.0])),
    "twice the same": (on(each=1) | on(each=2) | on(each=1), torch.tensor([0.0, 2.0, 1.0, 0.0])),
}


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("name", ORS)
def test_or_is_the_mixture_at_every_noise_level(name: str, logsnr: float):
    guidance, weights = ORS[name]
    where, of = at(logsnr), parts(weights)
    for x_t in (noised(of, where), noised(MIXTURE, where)):  # where it is, and where it should not be
        same(says(replace(guidance, evidence=EXACT), x_t, where), of.denoiser()(x_t, where, None))


@pytest.mark.parametrize("name", ORS)
def test_the_density_of_or_is_that_of_the_mixture(name: str):
    guidance, weights = ORS[name]
    x_t = noised(MIXTURE, LEVEL)
    found = GuidedDenoiser(DENOISER, replace(guidance, evidence=EXACT), NULL, N).log_density(x_t, LEVEL)
    torch.testing.assert_close(found, parts(weights).denoiser().log_density(x_t, LEVEL, None))


@pytest.mark.parametrize(
    "guidance, rows",
    [
        (on(each=0) | on(each=1) | on(each=2), 3 * N),
        (on(each=0) | 0.0 * on(each=1) | on(each=2), 2 * N),
        (on(each=0) | torch.tensor([0.0, 1.0] * 3) * on(each=1), N + 3),
        (on(each=0) | on(each=1) | on(each=0), 2 * N),
        (replace(~on(each=0), prior=0.1), 2 * N),
        (replace(~(on(each=0) | on(each=1)), prior=0.1), 3 * N),
    ],
    ids=range(6),
)
def test_what_logic_costs(guidance: Guidance, rows: int):
    made = GuidedDenoiser(DENOISER, guidance, NULL, N)
    made(noised(MIXTURE, LEVEL), LEVEL)
    assert (made.rows, made.calls) == (rows, 1)


@pytest.mark.parametrize("max_rows", [1, 4])
def test_or_in_small_calls_is_the_same(max_rows: int):
    guidance, x_t = replace(ORS["overlapping"][0], evidence=EXACT), noised(MIXTURE, LEVEL)
    same(says(guidance, x_t, max_rows=max_rows), says(guidance, x_t))


def test_tracked_evidence_does_not_go_by_what_has_no_share():
    """Of half of the samples one of three conditions has none, be it the first, to which ratios are taken, or another."""
    settings = {"sampler": DDPM(), "steps": 12, "seed": 5}
    some = torch.tensor([0.0, 1.0] * 3)
    two = on(each=1) | on(each=2)
    without, whole = (sample(DENOISER, (N, 2), NULL, guidance, **settings) for guidance in (two, on(each=0) | two))
    expected = torch.where(some[:, None] == 0, without, whole)
    for guidance in (some * on(each=0) | two, two | some * on(each=0)):
        torch.testing.assert_close(sample(DENOISER, (N, 2), NULL, guidance, **settings), expected, atol=1e-4, rtol=1e-4)


def test_values_and_shares_a_sample_are_runs_of_one_sample():
    shares = torch.tensor([1.0, 0.0, 3.0, 0.5, 1.0, 2.0])
    first, second = [0, 1, 2, 3, 0, 1], [1, 1, 3, 0, 2, 0]
    x_t = noised(MIXTURE, LEVEL)
    found = says(Either.read(shares * on(each=first) | 2.0 * on(each=second), EXACT), x_t)
    for k in range(N):
        single = Either.read(float(shares[k]) * on(each=[first[k]]) | 2.0 * on(each=[second[k]]), EXACT)
        row = slice(k, k + 1)
        expected = GuidedDenoiser(DENOISER, single, NULL.rows(row), 1)(x_t[row], LEVEL)
        same(Prediction(found.x0[row], found.eps[row]), expected)


# Complement


NOTS = {
    "one": (~on(each=3), 0.4, NULL, [0.1, 0.2, 0.3, 0.0]),
    "several components": (~on(a=0), 0.3, NULL, [0.0, 0.0, 0.3, 0.4]),
    "two attributes": (~on(a=1, b=0), 0.3, NULL, [0.1, 0.2, 0.0, 0.4]),
    "of a condition": (~on(a=1), 0.4 / 0.6, only(b=1), [0.0, 0.2, 0.0, 0.0]),
}


def exactly(guidance: Complement, prior: float, **settings: Any) -> Complement:
    return replace(guidance, prior=prior, evidence=EXACT, **{"ceiling": 1 - 1e-12, **settings})


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize("name", NOTS)
def test_complement_is_the_mixture_without_it_at_every_noise_level(name: str, logsnr: float):
    guidance, prior, condition, weights = NOTS[name]
    where, of = at(logsnr), parts(weights)
    x_t = noised(of, where)
    same(says(exactly(guidance, prior), x_t, where, condition), of.denoiser()(x_t, where, None), atol=1e-6)


@pytest.mark.parametrize("name", NOTS)
def test_the_density_of_a_complement_is_that_of_what_is_left(name: str):
    guidance, prior, condition, weights = NOTS[name]
    x_t = noised(parts(weights), LEVEL)
    found = GuidedDenoiser(DENOISER, exactly(guidance, prior), condition, N).log_density(x_t, LEVEL)
    torch.testing.assert_close(found - math.log1p(-prior), parts(weights).denoiser().log_density(x_t, LEVEL, None))


@pytest.mark.parametrize("logsnr", LEVELS)
def test_several_conditions_that_exclude_one_another_are_taken_out_together(logsnr: float):
    equal = Mixture(CENTRES, STDS, labels={"each": [0, 1, 2, 3]})
    where, left = at(logsnr), Mixture(CENTRES[:2], STDS[:2])
    x_t = noised(left, where)
    guidance = replace(exactly(~(on(each=2) | on(each=3)), 0.25), evidence=ByDensity(equal.denoiser()))
    found = GuidedDenoiser(equal.denoiser(), guidance, NULL, N)(x_t, where)
    same(found, left.denoiser()(x_t, where, None), atol=1e-6)


def bayes(x_t: Tensor, where: Level, weights: Sequence[float] | Tensor = WEIGHTS) -> Tensor:
    """The posterior of each component, from torch.distributions: weights are those that Bayes' rule is told."""
    spread = (where.alpha**2 * MIXTURE.stds**2 + where.sigma**2).sqrt()
    density = Normal(where.alpha * MIXTURE.means, spread[:, None]).log_prob(x_t[:, None]).sum(-1).exp()
    return density * torch.as_tensor(weights) / (density * WEIGHTS).sum(1, keepdim=True)


def test_a_complement_and_its_condition_are_the_whole():
    """(1 - r) s(not c) + r s(c) = s, whatever the prior: the definition, with r by Bayes' rule from torch.distributions."""
    x_t = noised(MIXTURE, LEVEL)
    r = bayes(x_t, LEVEL)[:, 1:2]
    left, named = says(exactly(~on(each=1), 0.2), x_t), alone(only(each=1), x_t)
    same(Prediction((1 - r) * left.x0 + r * named.x0, (1 - r) * left.eps + r * named.eps), alone(NULL, x_t), atol=1e-7)


@pytest.mark.parametrize("scale", [2.0, -1.0, 0.5], ids=str)
def test_a_scale_multiplies_what_is_added(scale: float):
    x_t = noised(MIXTURE, LEVEL)
    base, whole = alone(NULL, x_t), says(exactly(~on(each=3), 0.4), x_t)
    expected = Prediction(base.x0 + scale * (whole.x0 - base.x0), base.eps + scale * (whole.eps - base.eps))
    same(says(exactly(~on(each=3), 0.4, scale=scale), x_t), expected)
    same(says(exactly(~on(each=3), 0.4, scale=lambda logsnr: scale + logsnr - 0.3), x_t), expected, atol=1e-6)
    each = torch.tensor([scale] * 3 + [0.0] * 3)
    found = says(exactly(~on(each=3), 0.4, scale=each), x_t)
    same(Prediction(found.x0[:3], found.eps[:3]), Prediction(expected.x0[:3], expected.eps[:3]))
    same(Prediction(found.x0[3:], found.eps[3:]), Prediction(base.x0[3:], base.eps[3:]))


def test_the_ceiling_bounds_what_is_added():
    """r / (1 - r) is at most ceiling / (1 - ceiling); of several conditions together, each in its share."""
    x_t = noised(MIXTURE, LEVEL)
    base, two, three = (alone(c, x_t) for c in (NULL, only(each=2), only(each=3)))
    r = bayes(x_t, LEVEL, [0.4] * 4)[:, 2:]
    for guidance, of in ((~on(each=3), torch.tensor([0.0, 1.0])), (~(on(each=2) | on(each=3)), torch.tensor([1.0, 1.0]))):
        all_ = (of * r).sum(1, keepdim=True)
        bounded = of * r * (0.1 / all_).clamp(max=1)
        assert bool((all_ > 0.1).any()) and bool((all_ < 0.1).any())
        first, second = (bounded / (1 - bounded.sum(1, keepdim=True))).split(1, 1)
        expected = [b - first * (t - b) - second * (u - b) for b, t, u in zip(*((p.x0, p.eps) for p in (base, two, three)), strict=True)]
        same(says(replace(guidance, prior=0.4, ceiling=0.1, evidence=EXACT), x_t), Prediction(*expected), atol=1e-6)


# Neutral settings


@pytest.mark.parametrize("evidence", [EXACT, Tracked()], ids=["exact", "tracked"])
def test_or_of_one_is_that_condition_and_complement_of_nothing_the_model(evidence: Any):
    settings = {"sampler": DDPM(), "steps": 20, "seed": 3}
    condition = only(b=1)
    plain_, named = (sample(DENOISER, (N, 2), c, CFG(1.0), **settings) for c in (condition, only(each=2)))
    assert torch.equal(sample(DENOISER, (N, 2), condition, Either.read(on(each=2), evidence), **settings), named)
    for neutral in ({"prior": 0.0}, {"prior": 0.3, "scale": 0.0}):
        found = sample(DENOISER, (N, 2), condition, Complement.read(~on(a=1), evidence=evidence, **neutral), **settings)
        torch.testing.assert_close(found, plain_, atol=1e-6, rtol=1e-6)


def test_of_an_absent_value_nothing_is_taken_out():
    model, n = toy(), 4
    evidence = ByDensity(model.denoisers["main"])
    settings = {"sampler": DDPM(), "steps": 12, "seed": 1}
    for terms in (~on(shade=["low", None, "low", None]), ~(on(shade=["low", None, "low", None]) | on(shade=["mid", None, None, None]))):
        some = model.sample(n, guidance=Complement.read(terms, evidence=evidence), **settings)
        none = model.sample(n, guidance=CFG(1.0), **settings)
        all_ = model.sample(n, guidance=Complement.read(~on(shade="low"), evidence=evidence), **settings)
        torch.testing.assert_close(some[[1, 3]], none[[1, 3]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(some[2], all_[2], atol=1e-5, rtol=1e-5)


# Evidence by a classifier


@dataclass(frozen=True)
class Bayes:
    """p(class | x_t) by torch.distributions, of attributes that restrict one coordinate each."""

    centres: Mapping[str, Sequence[float]]
    prior: Mapping[str, Sequence[float]]
    std: float = 0.5

    def log_prob(self, x_t: Tensor, level: Level) -> Mapping[str, Tensor]:
        spread = float((level.alpha**2 * self.std**2 + level.sigma**2).sqrt())
        found = {}
        for column, (name, centres) in enumerate(self.centres.items()):
            likelihood = Normal(float(level.alpha) * torch.tensor(centres), spread).log_prob(x_t[:, column, None])
            found[name] = (likelihood + torch.tensor(self.prior[name]).log()).log_softmax(-1)
        return found


PLACES = {"a": [-2.0, 1.0], "b": [0.0, 1.5]}
SHARES = {"a": [0.3, 0.7], "b": [0.6, 0.4]}
PRODUCT = Mixture(
    torch.tensor([[PLACES["a"][a], PLACES["b"][b]] for a in (0, 1) for b in (0, 1)]),
    0.5,
    [SHARES["a"][a] * SHARES["b"][b] for a in (0, 1) for b in (0, 1)],
    {"a": A, "b": B},
)
BAYES = ByClassifier(Bayes(PLACES, SHARES), SHARES)
PARTLY = on(a=Bound(torch.zeros(N, dtype=torch.long), torch.arange(N) < 3))


@pytest.mark.parametrize("logsnr", LEVELS)
@pytest.mark.parametrize(
    "guidance, condition",
    [
        (on(a=0) | on(b=1), NULL),
        (2.0 * on(a=0, b=1) | on(a=1), NULL),
        (PARTLY | on(b=1), NULL),
        (~on(a=0, b=1), NULL),
        (~on(a=0), only(b=1)),
    ],
    ids=["or", "or of two attributes", "or, absent for some", "not", "not, of a condition"],
)
def test_an_exact_classifier_says_what_the_density_says(guidance: Any, condition: Condition, logsnr: float):
    where, x_t = at(logsnr), noised(PRODUCT, at(logsnr))
    if isinstance(guidance, Complement):
        guidance = replace(guidance, prior=0.2)
    found, expected = (
        GuidedDenoiser(PRODUCT.denoiser(), replace(guidance, evidence=evidence), condition, N)(x_t, where)
        for evidence in (BAYES, ByDensity(PRODUCT.denoiser()))
    )
    same(found, expected, atol=1e-4)


def test_of_what_all_terms_say_the_classifier_need_not_know():
    class Half(Bayes):
        def log_prob(self, x_t: Tensor, level: Level) -> Mapping[str, Tensor]:
            return {"a": super().log_prob(x_t, level)["a"]}

    x_t, condition = noised(PRODUCT, LEVEL), only(b=1)
    found, expected = (
        GuidedDenoiser(PRODUCT.denoiser(), replace(~on(a=0), prior=0.2, evidence=ByClassifier(of, SHARES)), condition, N)(x_t, LEVEL)
        for of in (Half(PLACES, SHARES), Bayes(PLACES, SHARES))
    )
    same(found, expected)
    with pytest.raises(UserError, match="attribute of the classifier 'b'"):
        says(replace(on(a=0) | on(b=1), evidence=ByClassifier(Half(PLACES, SHARES))), x_t)


def test_a_classifier_of_something_else_is_refused():
    model = toy()

    class Checked(Bayes):
        def check(self, model: Any) -> None:
            raise UserError("of other data")

    with pytest.raises(UserError, match="of other data"):
        model.sample(2, guidance=Either.read(on(side="left"), ByClassifier(Checked(PLACES, SHARES))))
    x_t = noised(MIXTURE, LEVEL)
    for evidence, match in [
        (ByClassifier(Bayes({"each": [0.0, 1.0]}, {"each": [0.5, 0.5]})), "2 classes of each"),
        (ByClassifier(Bayes(PLACES, SHARES), {"a": [0.2, 0.3, 0.5]}), "3 shares for 2 classes"),
    ]:
        with pytest.raises(UserError, match=match):
            says(Either.read(on(each=0) | on(each=3) if "each" in match else on(a=0) | on(a=1), evidence), x_t)
    for wrong in ({"a": [0.5, 0.0]}, {"a": [0.5, -0.5]}):
        with pytest.raises(UserError, match="positive"):
            ByClassifier(Bayes(PLACES, SHARES), wrong)


# Evidence by the path


def test_a_step_says_the_ratio_of_the_reverse_kernels():
    """Two levels of a schedule that keeps no variance, the kernels by Bayes' rule from the forward process, in torch.distributions."""
    now, then = (Level(torch.tensor(0.0).double(), *torch.tensor([alpha, sigma]).double()) for alpha, sigma in [(0.5, 1.7), (0.8, 1.1)])
    before, after = (torch.randn(N, 2, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    guesses = [torch.randn(N, 2, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (2, 3, 4)]
    ratio = now.alpha / then.alpha
    added = now.sigma**2 - ratio**2 * then.sigma**2
    precision = 1 / then.sigma**2 + ratio**2 / added
    kernels = [Normal((then.alpha * x0 / then.sigma**2 + ratio * before / added) / precision, precision**-0.5) for x0 in guesses]
    log = torch.stack([kernel.log_prob(after).flatten(1).sum(1) for kernel in kernels])
    terms, predictions = [Term(1.0, Condition())] * 3, [Prediction(x0, x0) for x0 in guesses]
    for temperature, offset in [(1.0, 0.0), (0.2, 0.03)]:
        tracked = Tracked(temperature, offset).begin(-math.inf, math.inf)
        first = tracked.log_p(terms, predictions, before, now)
        found = tracked.log_p(terms, predictions, after, then)
        more = offset * (then.alpha**2 + then.sigma**2) * precision / 2
        torch.testing.assert_close(first, torch.zeros(3, N).double())
        torch.testing.assert_close(found[1:], temperature * (log[1:] - log[0]) + more)
        assert not bool(found[0].any())


def path_error(monkeypatch: pytest.MonkeyPatch, guidance: Any, sampler: Sampler, steps: int, n: int = 300) -> float:
    """The root mean square error of the tracked posterior, over all levels and samples of a run."""
    errors: list[Tensor] = []
    own = Tracked.log_p

    def watched(self: Tracked, terms: Any, predictions: Any, x_t: Tensor, where: Level) -> Tensor:
        found, exact = own(self, terms, predictions, x_t, where), EXACT.log_p(terms, predictions, x_t, where)
        if isinstance(guidance, Complement):
            posteriors = [(guidance.prior * (log[1] - log[0]).exp()).clamp(max=guidance.ceiling) for log in (found, exact)]
        else:
            posteriors = [log.softmax(0)[0] for log in (found, exact)]
        errors.append(posteriors[0] - posteriors[1])
        return found

    with monkeypatch.context() as watching:
        watching.setattr(Tracked, "log_p", watched)
        sample(DENOISER, (n, 2), Condition.of(each=[0] * n).drop(), guidance, sampler, steps=steps, seed=2)
    return float(torch.stack(errors).square().mean().sqrt())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("guidance", [on(each=1) | on(each=2), replace(~on(each=3), prior=0.4)], ids=["or", "not"])
def test_the_tracked_posterior_converges_to_the_exact_one(monkeypatch: pytest.MonkeyPatch, guidance: Any):
    """With order 1/2 in the steps, strongly (path by path): four times the steps, half the error."""
    coarse, middle, fine = (path_error(monkeypatch, guidance, DDPM(), steps) for steps in (12, 48, 192))
    assert 1.5 < coarse / middle < 2.8 and 1.5 < middle / fine < 2.8, (coarse, middle, fine)
    assert fine < 0.04


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("sampler", [DDPM(1.0), DDIM(1.0), DPMSolver(sde=True), DDIM(), DDIM(0.5)], ids=repr)
def test_the_path_says_what_is_right_where_it_has_the_noise_and_there_alone(monkeypatch: pytest.MonkeyPatch, sampler: Sampler):
    monkeypatch.setattr("guidance.evidence.ancestral", lambda sampler: True)
    few, many = (path_error(monkeypatch, replace(~on(each=3), prior=0.4), sampler, steps) for steps in (30, 120))
    if ancestral(sampler):
        assert few / many > 1.4 and many < 0.06
    else:
        assert few / many < 1.2 and many > 0.08


PRIOR, CEILING = 0.4, 0.8


def dynamic_negative(scale: float, temperature: float, offset: float, steps: int, seed: int) -> Tensor:
    """Koulischer et al.'s algorithm by itself: p <- clamp(p exp((T (|x_s - mu_0|^2 - |x_s - mu_c|^2) + offset) / 2v))."""
    times = [k / steps for k in range(steps, 0, -1)]
    alphas, sigmas = (part.tolist() for part in Cosine()(torch.tensor(times, dtype=torch.float64)))
    x = normal(seed, Stream.START, 0, 0, (N, 2)).double()
    p = torch.full((N, 1), PRIOR, dtype=torch.float64)
    for k, (alpha, sigma) in enumerate(zip(alphas, sigmas, strict=True)):
        where = at(2 * math.log(alpha / sigma))
        plain_, named = (alone(c, x, where).eps for c in (NULL, only(each=3)))
        eps = plain_ - scale * p / (1 - p) * (named - plain_)
        if k + 1 == steps:
            return (x - sigma * eps) / alpha
        next_alpha, next_sigma = alphas[k + 1], sigmas[k + 1]
        ratio = alpha / next_alpha
        added = sigma**2 - (ratio * next_sigma) ** 2
        variance = (next_sigma / sigma) ** 2 * added

        def mean(eps: Tensor, x: Tensor = x, ratio: float = ratio, added: float = added, sigma: float = sigma) -> Tensor:
            return (x - added / sigma * eps) / ratio

        after = mean(eps) + math.sqrt(variance) * normal(seed, Stream.STEP, k + 1, 0, (N, 2)).double()
        squares = (after - mean(plain_)).square().sum(1) - (after - mean(named)).square().sum(1)
        p = (p * ((temperature * squares + offset) / (2 * variance)).exp()[:, None]).clamp(1e-6, CEILING)
        x = after
    raise AssertionError


@pytest.mark.parametrize("scale, temperature, offset", [(1.0, 1.0, 0.0), (3.0, 0.3, 0.0), (1.5, 0.5, 1e-3)])
def test_dynamic_negative_guidance_is_its_algorithm(scale: float, temperature: float, offset: float):
    guidance = Complement.read(~on(each=3), PRIOR, scale, CEILING, Tracked(temperature, offset))
    found = sample(DENOISER, (N, 2), NULL, guidance, DDPM(), steps=30, seed=4)
    torch.testing.assert_close(found.double(), dynamic_negative(scale, temperature, offset, 30, 4), atol=2e-3, rtol=2e-3)


# Samples


LINE = Mixture(torch.tensor([[-2.0], [0.2], [2.5], [-4.0]]), [0.5, 0.8, 0.4, 0.7], [0.1, 0.2, 0.3, 0.4], {"each": [0, 1, 2, 3]})
MANY = 2500


def drawn(weights: Sequence[float], n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(torch.tensor(weights), n, True, generator=generator)
    return LINE.means[k, 0] + LINE.stds[k] * torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "terms, prior, weights",
    [("2 * on(each=1) | on(each=2)", None, [0.0, 2.0, 1.0, 0.0]), ("~on(each=3)", 0.4, [0.1, 0.2, 0.3, 0.0])],
    ids=["or", "not"],
)
@pytest.mark.parametrize(
    "sampler, steps, evidence, times",
    [(Heun(), 25, "exact", 1.3), (DPMSolver(), 40, "exact", 1.3), (DDPM(), 80, "exact", 1.5), (DDPM(), 120, "tracked", 3.0)],
    ids=["heun", "dpm", "ddpm", "tracked"],
)
def test_samples_are_those_of_the_density(
    terms: str, prior: float | None, weights: list[float], sampler: Sampler, steps: int, evidence: str, times: float
):
    """Wasserstein's distance to 200,000 exact samples, in units of what as many exact ones have (the mean over 8 draws)."""
    exact = drawn(weights, 200_000, 100)
    floor = sum(wasserstein_distance(drawn(weights, MANY, seed), exact) for seed in range(8)) / 8
    by = ByDensity(LINE.denoiser()) if evidence == "exact" else Tracked()
    read = Either.read(terms, by) if prior is None else Complement.read(terms, prior, evidence=by)
    if evidence == "exact" and prior is not None:
        read = replace(read, ceiling=0.999)
    found = sample(LINE.denoiser(), (MANY, 1), Condition.of(each=[0] * MANY).drop(), read, sampler, steps=steps, seed=6)
    assert wasserstein_distance(found[:, 0].double(), exact) < times * floor
    whole = drawn([0.1, 0.2, 0.3, 0.4], MANY, 1)
    assert wasserstein_distance(whole, exact) > 10 * floor  # the measure sees the difference


# A run, and a model


def toy() -> Any:
    return mixture({"side": [0.3, 0.7], "shade": [0.5, 0.25, 0.25]})


GUIDANCES = {
    "or": on(side="left") | 2.0 * on(shade="high"),
    "or, each": on(side=["left", "right", None, "left", "right"]) | torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0]) * on(side="right"),
    "not": ~on(side="left"),
    "not, each": Complement.read(~on(side=["left", "right", None, "left", "right"]), scale=torch.tensor([1.0, 0.5, 2.0, 0.0, 1.5])),
    "nor": ~(on(shade="low") | on(shade="high")),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", GUIDANCES)
def test_samples_do_not_depend_on_the_batch_nor_on_earlier_runs(name: str):
    model, guidance = toy(), GUIDANCES[name]
    settings = {"guidance": guidance, "sampler": DDPM(), "steps": 8, "seed": 2}
    whole = model.sample(5, **settings)
    for other in ({"batch_size": 2, "max_rows": 3}, {"batch_size": 1}, {}):
        torch.testing.assert_close(model.sample(5, **{**settings, **other}), whole, atol=1e-4, rtol=1e-4)


def test_the_runs_condition_is_what_a_complement_is_taken_out_of():
    """The attributes are independent here, a coordinate each: side stays as it was asked for, and shade is no longer low."""
    model = toy()
    settings = {"sampler": Heun(), "steps": 20, "seed": 1}
    without = Complement.read(~on(shade="low"), 0.5, ceiling=0.999, evidence=ByDensity(model.denoisers["main"]))
    found, before = (model.sample(400, {"side": "right"}, guidance=guidance, **settings) for guidance in (without, CFG(1.0)))
    shares = [torch.bincount((x[:, 1:] - torch.tensor(MEANS["shade"])).abs().argmin(1), minlength=3) / 400 for x in (found, before)]
    # A fortieth of N(mean, .5) lies nearer to the next mean, 2 away.
    torch.testing.assert_close(shares[1], torch.tensor([0.5, 0.25, 0.25]), atol=0.06, rtol=0.0)
    torch.testing.assert_close(shares[0], torch.tensor([0.0, 0.5, 0.5]), atol=0.06, rtol=0.0)
    assert bool((found[:, 0] > 0).all())


def test_a_models_prior_is_that_of_equally_frequent_classes():
    model = toy()
    sizes = {name: len(spec.classes) for name, spec in model.modality.conditions.items()}
    assert (~on(side="left")).of(model, 2).prior == 1 / sizes["side"]
    assert (~on(side="left", shade="high")).of(model, 2).prior == 1 / (sizes["side"] * sizes["shade"])
    assert Complement.read(~on(side="left"), 0.1).of(model, 2).prior == 0.1
    vectors = replace(world().modality, conditions={"where": Vector(1)})
    with pytest.raises(UserError, match="prior"):
        replace(model, modality=vectors).sample(2, guidance=~on(where=1.0), sampler=DDPM(), steps=2)
    with pytest.raises(UserError, match="prior"):
        says(~on(each=1), noised(MIXTURE, LEVEL))


def test_an_or_names_its_own_conditions_and_a_complement_does_not():
    model = toy()
    with pytest.raises(UserError, match="names its own"):
        model.sample(2, {"shade": "high"}, guidance=GUIDANCES["or"], sampler=DDPM(), steps=2)
    with pytest.raises(UserError, match="already says what side is"):
        model.sample(2, {"side": "right"}, guidance=GUIDANCES["not"], sampler=DDPM(), steps=2)
    with pytest.raises(UserError, match="choose from"):
        model.sample(2, guidance=on(side="left") | on(side="up"), sampler=DDPM(), steps=2)


def test_what_only_one_of_an_or_knows_is_not_put_into_samples():
    """Where a condition says what x0 is, a composition keeps to it; an OR's sample may be of another of its conditions."""
    model = toy()

    def known(condition: Condition) -> tuple[Tensor, Tensor]:
        given = condition.keep["side"] & (condition.values["side"] == 0)
        return given[:, None].expand(-1, 2), torch.full((len(given), 2), 9.0)

    model = replace(model, modality=replace(model.modality, known=known))
    name = model.modality.conditions["side"].classes[0]
    assert bool((model.sample(3, guidance=1.0 * on(side=name), sampler=DDPM(), steps=4) == 9).all())
    assert not bool((model.sample(3, guidance=on(side=name) | on(shade="high"), sampler=DDPM(), steps=4) == 9).any())


def test_an_experiment_may_draw_them():
    for guidance in (GUIDANCES["or"], GUIDANCES["not"]):
        cell, tempered = (Cell({"at": 1.0}, g) for g in (guidance, replace(guidance, evidence=Tracked(0.5))))
        assert plain(guidance) and cell.digest != tempered.digest
        assert not plain(replace(guidance, evidence=EXACT))
    assert Cell({}, GUIDANCES["or"]).composed and not Cell({}, GUIDANCES["not"]).composed


# The algebra


TEXTS = {
    "on(digit=3) | on(digit=8)": on(digit=3) | on(digit=8),
    "2 * on(digit=3) | on(digit=8) * .5": 2.0 * on(digit=3) | 0.5 * on(digit=8),
    "on(a=1) | on(b=x) | 3*on(a=1, b=y)": on(a=1) | on(b="x") | 3.0 * on(a=1, b="y"),
    "~on(digit=3)": ~on(digit=3),
    "~(on(digit=3) | on(digit=8))": ~(on(digit=3) | on(digit=8)),
    "on(a=1) & 2*on(b=2)": on(a=1) + 2.0 * on(b=2),
    "on(a=1) & on(b=2) - on(c=3)": on(a=1) + (on(b=2) - on(c=3)),
    "(2 - 1) * on(a=1) | +on(b=2)": on(a=1) | on(b=2),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_means_what_python_means(text: str):
    assert Compose.read(text) == TEXTS[text]
    assert type(Compose.read(text)) is type(TEXTS[text])


def test_and_is_the_product_of_densities():
    x_t = noised(MIXTURE, LEVEL)
    found, one, two, null = says(on(a=1) & on(b=0), x_t), *(alone(c, x_t) for c in (only(a=1), only(b=0), NULL))
    same(found, Prediction(one.x0 + two.x0 - null.x0, one.eps + two.eps - null.eps))


MEANINGLESS = {
    "~on(a=1) + on(a=2)": "part of no sum",
    "on(a=2) + ~on(a=1)": "part of no sum",
    "on(a=2) - ~on(a=1)": "part of no sum",
    "on(a=2) & ~on(a=1)": "part of no sum",
    "~on(a=1) & ~on(a=2)": "part of no sum",
    "2 * ~on(a=1)": "no weight",
    "~on(a=1) * 2": "no weight",
    "-(~on(a=1))": "no weight",
    "~~on(a=1)": "guidance of its own",
    "~on(a=1) | on(a=2)": "guidance of its own",
    "on(a=2) | ~on(a=1)": "guidance of its own",
    "2 * (on(a=1) | on(a=2))": "no weight",
    "(on(a=1) | on(a=2)) - on(a=3)": "part of no sum",
    "on(a=3) - (on(a=1) | on(a=2))": "part of no sum",
    "on(a=1) & on(b=2) | on(a=3)": "all attributes in one on",
    "on(a=3) | on(a=1) - on(b=2)": "all attributes in one on",
    "~(on(a=1) + on(b=2))": "sum of them",
    "~(2 * on(a=1))": "without weights",
    "~(-on(a=1))": "without weights",
    "~(2 * on(a=1) | on(a=2))": "without weights",
    "~(on(a=1) | on(b=2))": "exclude one another",
    "~(on(a=1, b=1) | on(a=2, b=1))": "exclude one another",
    "~on()": "exclude one another",
    "-on(a=1) | on(a=2)": "0 or larger",
    "on(a=1) | -2 * on(a=2)": "0 or larger",
    "~2": "not understood",
    "2 | on(a=1)": "not understood",
    "on(a=1) & 2": "not understood",
    "on(a=1) ^ on(a=2)": "not understood",
    "not on(a=1)": "not understood",
    "on(a=1) or on(a=2)": "not understood",
}


@pytest.mark.parametrize("text", MEANINGLESS)
def test_what_has_no_meaning_is_refused_with_the_reason(text: str):
    with pytest.raises(UserError, match=MEANINGLESS[text]):
        Compose.read(text)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: Either.read("~on(a=1)"), "is Complement"),
        (lambda: Complement.read("on(a=1)"), "is Compose"),
        (lambda: Complement.read("on(a=1) | on(a=2)"), "is Either"),
        (lambda: Complement.read("~on(a=1)", 1.0), "prior"),
        (lambda: Complement.read("~on(a=1)", -0.1), "prior"),
        (lambda: Complement.read("~on(a=1)", True), "prior"),
        (lambda: Complement.read("~on(a=1)", ceiling=1.0), "ceiling"),
        (lambda: Complement.read("~on(a=1)", ceiling=0), "ceiling"),
        (lambda: Complement.read("~on(a=1)", scale=math.nan), "scale"),
        (lambda: Complement.read("~(on(a=1) | on(a=2))", 0.5), "leave nothing"),
        (lambda: Either.read("on(a=1)", Tracked), "evidence is an object"),
        (lambda: Either.read("on(a=1)", 3), "evidence is an object"),
        (lambda: Either(((lambda logsnr: 1.0, {"a": 1}),)), "0 or larger"),
        (lambda: Either(()), "needs a condition"),
        (lambda: Complement(()), "whole"),
        (lambda: Tracked(temperature=math.inf), "temperature"),
        (lambda: Tracked(offset="much"), "offset"),
        (lambda: ByClassifier(3), "log_prob"),
    ],
    ids=range(18),
)
def test_settings_that_mean_nothing_are_refused(make: Any, match: str):
    with pytest.raises(UserError, match=match):
        make()


@pytest.mark.parametrize("shares", [0.0, torch.tensor([1.0] * 5 + [0.0])], ids=["all", "one sample"])
def test_shares_of_nothing_are_refused(shares: Any):
    with pytest.raises(UserError, match="above 0"):
        says(shares * on(each=1) | shares * on(each=2), noised(MIXTURE, LEVEL))


def test_a_complement_takes_a_value_out_once():
    with pytest.raises(UserError, match="once"):
        says(exactly(~(on(each=[0, 1, 2, 3, 0, 1]) | on(each=[1, 2, 3, 3, 1, 0])), 0.2), noised(MIXTURE, LEVEL))


def test_a_scaled_complement_has_no_density():
    with pytest.raises(UserError, match="scale 1"):
        GuidedDenoiser(DENOISER, exactly(~on(each=1), 0.2, scale=2.0), NULL, N).log_density(noised(MIXTURE, LEVEL), LEVEL)


# What evidence goes together with


@dataclass(frozen=True)
class Corrector:
    sampler: Sampler
    corrects: ClassVar[bool] = True

    def step(self, *arguments: Any) -> Any:
        return self.sampler.step(*arguments)


@dataclass(frozen=True)
class Own:
    """A sampler of somebody's own, which says that its steps have the noise of the reverse process."""

    sde: bool

    def step(self, *arguments: Any) -> Any:
        return DDPM().step(*arguments)


@pytest.mark.parametrize(
    "sampler, match",
    [
        (DDIM(), "noise of the reverse process"),
        (DDIM(0.5), "noise of the reverse process"),
        (Heun(), "noise of the reverse process"),
        (Heun(churn=0.2), "noise of the reverse process"),
        (DPMSolver(), "noise of the reverse process"),
        (Own(False), "noise of the reverse process"),
        (Corrector(DDPM()), "Corrector moves samples"),
    ],
    ids=repr,
)
def test_tracked_evidence_refuses_samplers_whose_path_says_nothing(sampler: Sampler, match: str):
    for guidance in (on(each=1) | on(each=2), replace(~on(each=1), prior=0.2)):
        with pytest.raises(UserError, match=match):
            sample(DENOISER, (N, 2), NULL, guidance, sampler, steps=3)
        sample(DENOISER, (N, 2), NULL, replace(guidance, evidence=EXACT), sampler, steps=3)


@pytest.mark.parametrize("sampler", [DDPM(), DDPM(1.0), DDIM(1.0), DPMSolver(sde=True), Own(True)], ids=repr)
def test_tracked_evidence_takes_ancestral_samplers(sampler: Sampler):
    assert bool(sample(DENOISER, (N, 2), NULL, on(each=1) | on(each=2), sampler, steps=3).isfinite().all())


def test_tracked_evidence_has_to_see_every_step():
    inside = Interval(on(each=1) | on(each=2), low=-3.0)
    with pytest.raises(UserError, match="every step"):
        sample(DENOISER, (N, 2), NULL, inside, DDPM(), steps=5)
    x_t = noised(MIXTURE, LEVEL)
    same(says(Interval(exactly(~on(each=1), 0.2), low=-3.0), x_t), says(exactly(~on(each=1), 0.2), x_t))
    same(says(Interval(exactly(~on(each=1), 0.2), low=3.0, outside=CFG(0.0)), x_t), alone(NULL, x_t))


def test_a_path_that_goes_back_is_refused():
    made = GuidedDenoiser(DENOISER, on(each=1) | on(each=2), NULL, N)
    x_t = noised(MIXTURE, LEVEL)
    made(x_t, at(-1.0))
    made(x_t, at(0.0))
    for logsnr in (0.0, -1.0):
        with pytest.raises(UserError, match="went back"):
            made(x_t, at(logsnr))
    with pytest.raises(UserError, match="begins"):
        Tracked().log_p([], [], x_t, LEVEL)


def test_a_network_without_a_density_is_no_exact_evidence():
    class Blind(torch.nn.Module):
        def embed(self, condition: Condition) -> Any:
            return MIXTURE.embed(condition)

        def forward(self, x_t: Tensor, logsnr: Tensor, context: Any, x0_hat: Tensor | None = None) -> Tensor:
            return MIXTURE(x_t, logsnr, context)

    with pytest.raises(UserError, match="knows no density"):
        says(Either.read(on(each=1) | on(each=2), ByDensity(replace(DENOISER, network=Blind()))), noised(MIXTURE, LEVEL))


# Configs


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["guidance=either", "guidance.terms='on(digit=3) | on(digit=8)'"], on(digit=3) | on(digit=8)),
        (["guidance=compose", "guidance.terms='on(digit=3) | on(digit=8)'"], on(digit=3) | on(digit=8)),
        (["guidance=complement", "guidance.terms='~on(digit=3)'", "guidance.prior=.1"], Complement.read(~on(digit=3), 0.1)),
        (
            ["guidance=dynamic_negative", "guidance.terms='~on(digit=3)'", "guidance.scale=3", "guidance.evidence.temperature=.2"],
            Complement.read(~on(digit=3), scale=3.0, evidence=Tracked(0.2)),
        ),
    ],
    ids=["either", "compose", "complement", "dynamic_negative"],
)
def test_configs_make_them(overrides: list[str], expected: Guidance):
    assert build(composed("sample", ["run=x", "out=y", *overrides])["guidance"], "guidance") == expected


def test_the_evidence_of_a_config_may_be_a_classifier():
    chosen = ["guidance=complement", "guidance/evidence=classifier", "guidance.evidence.classifier.run=z", "guidance.terms='~on(a=1)'"]
    assert composed("sample", ["run=x", "out=y", *chosen])["guidance"]["evidence"] == {
        "_target_": "guidance.evidence.ByClassifier",
        "classifier": {"_target_": "guidance.classifier.Classifier.load", "run": "z"},
    }
