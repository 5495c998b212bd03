"""Guidance against the formula written out by hand, on mixtures whose every prediction is known exactly."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from guidance.analytic import Mixture
from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.guide import CFG, Bound, Compose, Term, WeightedSum, on
from guidance.guided import GuidedDenoiser
from guidance.noise import Stream, normal
from guidance.parameterization import X0, Prediction
from guidance.process import Level, level
from guidance.rules import Interval
from guidance.sampler import Heun, sample
from guidance.schedule import Cosine, inverse

SCHEDULE = Cosine()
MEANS = torch.tensor([[-2.0, 0.5], [1.0, 3.0], [2.0, -1.0], [-1.0, -3.0]])
MIXTURE = Mixture(MEANS, [0.5, 0.8, 0.4, 0.7], [0.1, 0.2, 0.3, 0.4], {"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})
WEAK = Mixture(MEANS * 0.5, 1.5, labels={"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})
N = 6
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
HINT = torch.randn(N, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CONDITION = Condition.of(a=[0, 1, 0, 1, 0, 1], b=[0, 0, 1, 1, 0, 1])
NULL = CONDITION.drop()
SCALES = torch.tensor([0.0, 1.0, 2.5, -1.5, 0.5, 1.0])


def at(logsnr: float) -> Level:
    return level(SCHEDULE, inverse(SCHEDULE, torch.tensor(logsnr, dtype=torch.float64)), X)


LEVEL = at(0.3)


def alone(condition: Condition, where: Level = LEVEL, network: Mixture = MIXTURE, rows: slice = slice(None)) -> Prediction:
    """What the model itself says, without any guidance machinery."""
    return network.denoiser()(X[rows], where, network.embed(condition.rows(rows)))


def only(**values: int) -> Condition:
    """These attributes in every row, and no other."""
    return NULL.set(**{name: torch.full((N,), value) for name, value in values.items()})


def guided(guidance: Any, condition: Condition = CONDITION, model: Any = MIXTURE, max_rows: int | None = None) -> GuidedDenoiser:
    denoisers = {k: v.denoiser() for k, v in model.items()} if isinstance(model, dict) else model.denoiser()
    return GuidedDenoiser(denoisers, guidance, condition, N, max_rows)


def says(guidance: Any, condition: Condition = CONDITION, where: Level = LEVEL, **options: Any) -> Prediction:
    return guided(guidance, condition, **options)(X, where)


def cost(guidance: Any, condition: Condition = CONDITION, where: Level = LEVEL, **options: Any) -> int:
    made = guided(guidance, condition, **options)
    made(X, where)
    return made.rows


def same(a: Prediction, b: Prediction, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a.x0, b.x0, atol=atol, rtol=1e-9)
    torch.testing.assert_close(a.eps, b.eps, atol=atol, rtol=1e-9)


def mixed(*weighted: tuple[float | Tensor, Prediction]) -> Prediction:
    """The weighted sum, by hand; weights a number or one a sample."""
    columns = [(w.double().view(-1, 1) if isinstance(w, Tensor) else w, p) for w, p in weighted]
    return Prediction(sum(w * p.x0 for w, p in columns), sum(w * p.eps for w, p in columns))


# Classifier-free guidance


@pytest.mark.parametrize("scale, condition", [(1.0, CONDITION), (0.0, NULL)], ids=["conditional", "null"])
def test_scales_one_and_zero_are_single_models_at_one_row_a_sample(scale: float, condition: Condition):
    same(says(CFG(scale)), alone(condition), atol=0.0)
    assert cost(CFG(scale)) == N


@pytest.mark.parametrize("logsnr", [-6.0, 0.3, 5.0])
@pytest.mark.parametrize("scale", [-3.0, -0.5, 0.25, 1.5, 7.0])
def test_any_scale_is_the_formula(scale: float, logsnr: float):
    where = at(logsnr)
    cond, null = alone(CONDITION, where), alone(NULL, where)
    found = says(CFG(scale), where=where)
    same(found, Prediction(null.x0 + scale * (cond.x0 - null.x0), null.eps + scale * (cond.eps - null.eps)))
    assert cost(CFG(scale), where=where) == 2 * N


@pytest.mark.parametrize("scale", [-3.0, 0.25, 7.0])
def test_guided_data_and_noise_still_make_x_t(scale: float):
    found = says(CFG(scale))
    torch.testing.assert_close(LEVEL.alpha * found.x0 + LEVEL.sigma * found.eps, X)


def test_negative_scale_goes_to_the_other_side():
    """Between two equal modes the null model is undecided; a negative scale must choose the mode that was not named."""
    modes = Mixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5, labels={"a": [0, 1]})
    x, right = torch.zeros(N, 2, dtype=torch.float64), Condition.of(a=[1] * N)
    for scale in (-4.0, -1.0, 1.0, 4.0):
        x0 = GuidedDenoiser(modes.denoiser(), CFG(scale), right, N)(x, LEVEL).x0[:, 0]
        torch.testing.assert_close(x0, scale * modes.denoiser()(x, LEVEL, modes.embed(right)).x0[:, 0])


def test_scales_a_sample_are_runs_of_one_sample():
    found = says(CFG(SCALES))
    for i, scale in enumerate(SCALES.tolist()):
        row = slice(i, i + 1)
        single = GuidedDenoiser(MIXTURE.denoiser(), CFG(scale), CONDITION.rows(row), 1)(X[row], LEVEL)
        same(Prediction(found.x0[row], found.eps[row]), single, atol=1e-6)


def test_scales_a_sample_cost_only_what_they_need():
    assert cost(CFG(SCALES)) == 1 + 1 + 2 + 2 + 2 + 1


@pytest.mark.parametrize("w", [0.0, 3.0, -0.5, SCALES, lambda logsnr: 2.0 + logsnr], ids=["0", "3", "-.5", "each", "changing"])
def test_the_papers_w_is_its_equation(w: Any):
    """Ho & Salimans, eq. 6: (1 + w) eps(x, c) - w eps(x)."""
    number = w(float(LEVEL.logsnr)) if callable(w) else w
    same(says(CFG.from_paper(w)), mixed((1 + number, alone(CONDITION)), (-number, alone(NULL))), atol=1e-6)


@pytest.mark.parametrize("scale", [3.0, -0.5, SCALES, lambda logsnr: 2.0 + logsnr], ids=["3", "-.5", "each", "changing"])
def test_inverse_swaps_the_two_weights_and_undoes_itself(scale: Any):
    number = scale(float(LEVEL.logsnr)) if callable(scale) else scale
    same(says(CFG(scale).inverse()), mixed((1 - number, alone(CONDITION)), (number, alone(NULL))), atol=1e-6)
    same(says(CFG(scale).inverse().inverse()), says(CFG(scale)), atol=1e-6)


# What costs nothing


def test_absent_conditions_are_merged_row_by_row():
    keep = torch.tensor([True, False, True, True, False, True])
    some = Condition(CONDITION.values, {"a": keep, "b": keep})
    assert cost(CFG(3.0), some) == N + 4
    found, null, full = says(CFG(3.0), some), alone(NULL), says(CFG(3.0))
    same(Prediction(found.x0[~keep], found.eps[~keep]), Prediction(null.x0[~keep], null.eps[~keep]))
    same(Prediction(found.x0[keep], found.eps[keep]), Prediction(full.x0[keep], full.eps[keep]))


def test_a_wholly_absent_condition_costs_one_row_at_any_scale():
    scales = torch.tensor([0.1, -7.8, 0.7, 1.0, 3.3, -0.4], dtype=torch.float64)  # s + (1 - s) is not exactly 1 for all
    assert cost(CFG(scales), NULL) == N
    same(says(CFG(scales), NULL), alone(NULL))


def test_terms_that_say_the_same_are_one():
    doubled = 1.5 * on(a=1) - 1.0 * on(b=0) + 0.5 * on(a=1)
    assert cost(doubled) == 2 * N
    same(says(doubled), mixed((2.0, alone(only(a=1))), (-1.0, alone(only(b=0)))))


def test_three_terms_that_say_the_same_are_one():
    assert cost(0.5 * on(a=1) + 0.2 * on(a=1) + 0.3 * on(a=1)) == N
    assert cost(0.5 * on(a=1) + 0.2 * on(a=1) + 1.3 * on(a=1)) == 2 * N


def test_terms_that_cancel_are_not_evaluated():
    assert cost(on(a=1) + 2.0 * on(b=1) - 2.0 * on(b=1)) == N


def test_duplicates_of_some_samples_only_are_merged_there():
    """on(a=1) says of half of the samples what their condition says."""

    @dataclass(frozen=True)
    class Both(WeightedSum):
        def terms(self, condition: Condition) -> Sequence[Term]:
            return Term(3.0, condition.drop("b")), Term(-2.0, only(a=1))

    assert cost(Both()) == N + 3
    same(says(Both()), mixed((3.0, alone(CONDITION.drop("b"))), (-2.0, alone(only(a=1)))))


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (0.1, 0.2, 0.7)], ids=str)
def test_what_rounding_leaves_of_the_null_weight_is_not_evaluated(weights: tuple[float, float, float]):
    terms = [w * on(**values) for w, values in zip(weights, [{"a": 0}, {"a": 1}, {"b": 1}], strict=True)]
    assert cost(terms[0] + terms[1] + terms[2]) == 3 * N


# Composition


@pytest.mark.parametrize(
    "guidance, by_hand",
    [
        (2.0 * on(a=1) - 1.0 * on(b=0), [(2.0, {"a": 1}), (-1.0, {"b": 0})]),
        (2.0 * on(a=1, b=0) - 0.5 * on(a=0), [(2.0, {"a": 1, "b": 0}), (-0.5, {"a": 0}), (-0.5, {})]),
        (on(a=1) * 0.25, [(0.25, {"a": 1}), (0.75, {})]),
        (-on(a=1), [(-1.0, {"a": 1}), (2.0, {})]),
        (-(on(a=1) - 2.0 * on(b=1)), [(-1.0, {"a": 1}), (2.0, {"b": 1})]),
        (3.0 * (on(a=1) - on(b=0)), [(3.0, {"a": 1}), (-3.0, {"b": 0}), (1.0, {})]),
        (3.0 * on(a=1) - 3.0 * on(b=0), [(3.0, {"a": 1}), (-3.0, {"b": 0}), (1.0, {})]),
        (on(a=1) - (on(b=1) - on(a=0)), [(1.0, {"a": 1}), (-1.0, {"b": 1}), (1.0, {"a": 0})]),
        (2.0 * (0.5 * on(a=1) + on(b=1)), [(1.0, {"a": 1}), (2.0, {"b": 1}), (-2.0, {})]),
        (Compose(), [(1.0, {})]),
    ],
    ids=range(10),
)
def test_compositions_are_their_sums(guidance: Compose, by_hand: list[tuple[float, dict[str, int]]]):
    same(says(guidance), mixed(*((w, alone(only(**values))) for w, values in by_hand)))


@pytest.mark.parametrize("product", [lambda w, c: w * c, lambda w, c: c * w], ids=["left", "right"])
def test_weights_a_sample_multiply_compositions(product: Callable[[Any, Compose], Compose]):
    found = says(product(SCALES, on(a=1) - 2.0 * on(b=0)))
    same(found, mixed((SCALES, alone(only(a=1))), (-2 * SCALES, alone(only(b=0))), (1 + SCALES, alone(NULL))), atol=1e-6)


def test_changing_weights_multiply_each_other_and_numbers():
    def rising(logsnr: float) -> float:
        return 1.0 + logsnr

    def squared(logsnr: float) -> float:
        return logsnr**2

    for logsnr in (-2.0, 0.0, 3.0):
        number = 2.0 * rising(logsnr) * squared(logsnr)
        found = says(2.0 * (rising * (squared * on(a=1))) - on(b=1), where=at(logsnr))
        parts = [alone(c, at(logsnr)) for c in (only(a=1), only(b=1), NULL)]
        same(found, mixed((number, parts[0]), (-1.0, parts[1]), (2.0 - number, parts[2])), atol=1e-7)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_values_a_sample_compose(kind: Callable[[list[int]], Any]):
    found = says(2.0 * on(a=kind([0, 1, 0, 1, 0, 1])))
    same(found, mixed((2.0, alone(CONDITION.drop("b"))), (-1.0, alone(NULL))))


def test_composition_needs_no_condition_where_values_are_a_sample():
    values = torch.tensor([0, 1, 0, 1, 0, 1])
    same(says(2.0 * on(a=values), Condition()), mixed((2.0, alone(CONDITION.drop("b"))), (-1.0, alone(NULL))))


def test_composition_adds_attributes_that_the_condition_lacks():
    found = says(on(a=1) + on(b=0), Condition.of(a=[0] * N))
    same(found, mixed((1.0, alone(only(a=1))), (1.0, alone(only(b=0))), (-1.0, alone(NULL))))


def test_bound_values_compose():
    bound = on(a="one").bind(lambda name, value: Bound(torch.full((N,), {"one": 1}[value]), torch.arange(N) < 4))
    expected = mixed((1.0, alone(Condition({"a": torch.ones(N)}, {"a": torch.arange(N) < 4}))))
    same(says(bound), expected)


WEIGHTS = [2.0, -1.5, 0.5]
CENTRES = torch.tensor([[3.0, 0.0], [-1.0, 2.0], [0.0, -2.0]])
EQUAL = Mixture(CENTRES, 0.6, [0.2, 0.5, 0.3], {"k": [0, 1, 2]})
TOGETHER = WEIGHTS[0] * on(k=0) + WEIGHTS[1] * on(k=1) + WEIGHTS[2] * on(k=2)
CENTRE = (torch.tensor(WEIGHTS).double()[:, None] * CENTRES.double()).sum(0)


@pytest.mark.parametrize("logsnr", [-12.0, -3.0, 0.0, 3.0, 12.0])
def test_equal_gaussians_compose_to_the_gaussian_of_the_weighted_mean(logsnr: float):
    """E[x0 | x_t] is m + g (x_t - alpha m), the same g for all: with weights that sum to 1, linear in m."""
    where = at(logsnr)
    gain = where.alpha * 0.6**2 / (where.alpha**2 * 0.6**2 + where.sigma**2)
    found = says(TOGETHER, Condition.of(k=[0] * N), where, model=EQUAL)
    torch.testing.assert_close(found.x0, CENTRE + gain * (X - where.alpha * CENTRE))


def test_samples_of_composed_equal_gaussians_are_the_closed_form():
    """The flow of N(m, s^2) carries (x_t - alpha m) / sqrt(alpha^2 s^2 + sigma^2) unchanged to the data."""
    found = sample(EQUAL.denoiser(), (64, 2), Condition.of(k=[0] * 64), TOGETHER, Heun(), steps=60, seed=3)
    start, first = normal(3, Stream.START, 0, 0, (64, 2)).double(), at(-20.0)
    standard = (start - first.alpha * CENTRE) / (first.alpha**2 * 0.6**2 + first.sigma**2).sqrt()
    torch.testing.assert_close(found.double(), CENTRE + 0.6 * standard, atol=0.01, rtol=0.0)


@pytest.mark.parametrize("logsnr", [-6.0, -1.0, 0.3, 4.0])
def test_classes_weighted_by_their_posterior_are_the_null_model(logsnr: float):
    """sum_c p(c | x_t) E[x0 | x_t, c] = E[x0 | x_t], with the posterior by Bayes' rule from torch.distributions."""
    where = at(logsnr)
    spread = (where.alpha**2 * MIXTURE.stds**2 + where.sigma**2).sqrt()
    density = Normal(where.alpha * MEANS.double(), spread[:, None]).log_prob(X[:, None]).sum(-1).exp() * MIXTURE.weights
    posterior = density / density.sum(1, keepdim=True)
    first, second = posterior[:, :2].sum(1), posterior[:, 2:].sum(1)
    same(says(first * on(a=0) + second * on(a=1), where=where), alone(NULL, where), atol=1e-5)


# Weights that change with the noise level


@pytest.mark.parametrize(
    "logsnr, inside", [(-5.0, False), (-2.1, False), (-1.9, True), (0.0, True), (2.9, True), (3.1, False), (9.0, False)]
)
def test_interval_guides_inside_and_is_the_conditional_model_outside(logsnr: float, inside: bool):
    where, interval = at(logsnr), Interval(CFG(4.0), -2.0, 3.0)
    expected = mixed((4.0, alone(CONDITION, where)), (-3.0, alone(NULL, where))) if inside else alone(CONDITION, where)
    same(says(interval, where=where), expected)
    assert cost(interval, where=where) == (2 * N if inside else N)


def test_interval_without_bounds_is_what_is_inside():
    same(says(Interval(CFG(4.0))), says(CFG(4.0)))


@pytest.mark.parametrize("logsnr, inside", [(-3.0, False), (0.0, True)])
def test_interval_between_two_guidances_pays_for_one(logsnr: float, inside: bool):
    first, second, where = 2.0 * on(a=1) - on(b=0), CFG(SCALES), at(logsnr)
    interval = Interval(first, low=-1.0, outside=second)
    same(says(interval, where=where), says(first if inside else second, where=where))
    assert cost(interval, where=where) == cost(first if inside else second, where=where)


def test_intervals_nest():
    nested = Interval(Interval(CFG(5.0), low=1.0, outside=CFG(3.0)), high=2.0, outside=CFG(0.0))
    for logsnr, scale in [(0.0, 3.0), (1.5, 5.0), (2.5, 0.0)]:
        same(says(nested, where=at(logsnr)), says(CFG(scale), where=at(logsnr)))


def test_a_run_through_an_interval_costs_the_sum_of_its_levels():
    made = guided(Interval(CFG(4.0), -2.0, 3.0))
    for logsnr in (-5.0, 0.0, 1.0, 5.0):
        made(X, at(logsnr))
    assert (made.rows, made.calls) == (6 * N, 4)


@pytest.mark.parametrize("logsnr", [-4.0, -1.0, 0.0, 2.0])
def test_changing_scales_are_evaluated_at_each_level(logsnr: float):
    where = at(logsnr)
    scale = max(logsnr, 0.0) + 1.0  # 1 at and below logsnr 0
    changing = CFG(lambda found: max(round(found, 6), 0.0) + 1.0)
    same(says(changing, where=where), says(CFG(scale), where=where), atol=1e-6)
    assert cost(changing, where=where) == (2 * N if logsnr > 0 else N)


def test_changing_scales_may_be_one_a_sample():
    where = at(2.0)
    same(says(CFG(lambda logsnr: SCALES * logsnr), where=where), says(CFG(SCALES * 2.0), where=where), atol=1e-6)


# One network call


class Counting(nn.Module):
    """A network that counts, remembers its hint, and whose context is a tree."""

    def __init__(self):
        super().__init__()
        self.embedded, self.calls = [], []
        self.inner = MIXTURE

    def denoiser(self) -> Denoiser:
        return Denoiser(self, SCHEDULE, X0(), self_condition=True)

    def embed(self, condition: Condition) -> dict[str, Any]:
        prior = self.inner.embed(condition)
        self.embedded.append(0 if prior is None else len(prior))
        return {"prior": prior, "twice": (torch.stack([prior, 2 * prior], 1), None), "width": 4}

    def forward(self, x_t: Tensor, logsnr: Tensor, context: dict[str, Any], x0_hat: Tensor | None = None) -> Tensor:
        assert torch.equal(context["twice"][0][:, 1], 2 * context["prior"]) and context["width"] == 4
        self.calls.append(len(x_t))
        out = self.inner(x_t, logsnr, context["prior"])
        return out if x0_hat is None else out + 0.5 * x0_hat.tanh() * x_t


GUIDANCES = {
    "cfg": CFG(3.0),
    "each": CFG(SCALES),
    "compose": 2.0 * on(a=1) - 3.0 * on(b=0) + on(a=0, b=1),
    "interval": Interval(CFG(SCALES), -1.0, 1.0, outside=on(a=1) - on(b=1)),
}


@pytest.mark.parametrize("hint", [None, HINT], ids=["no hint", "hint"])
@pytest.mark.parametrize("max_rows", [1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("name", GUIDANCES)
def test_chunked_batched_and_sequential_are_the_same(name: str, max_rows: int, hint: Tensor | None):
    for where in (LEVEL, at(-3.0)):
        whole, chunked = guided(GUIDANCES[name], model=Counting()), guided(GUIDANCES[name], model=Counting(), max_rows=max_rows)
        batched = whole(X, where, hint)
        same(chunked(X, where, hint), batched)
        assert chunked.rows == whole.rows and whole.calls == 1
        assert chunked.calls == math.ceil(whole.rows / max_rows)
        network = Counting()
        sequential = [
            (term.weight, network.denoiser()(X, where, network.embed(term.condition), hint))
            for term, _ in batched.parts  # the live terms, each evaluated by itself for all samples
        ]
        same(batched, Prediction(sum(w * p.x0 for w, p in sequential), sum(w * p.eps for w, p in sequential)))


class Small(Counting):
    """A network on a GPU whose memory is enough for some rows only."""

    def __init__(self, room: int):
        super().__init__()
        self.room = room

    def __call__(self, x_t: Tensor, *arguments: Any) -> Tensor:
        if len(x_t) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(x_t, *arguments)


@pytest.mark.parametrize(("room", "fits"), [(24, 24), (23, 12), (7, 6), (3, 3), (1, 1)])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_calls_shrink_to_what_memory_allows(room: int, fits: int):
    whole, small = guided(GUIDANCES["compose"], model=Counting()), guided(GUIDANCES["compose"], model=(network := Small(room)))
    same(small(X, LEVEL), whole(X, LEVEL))
    assert small.rows == whole.rows == 24 and small.calls == math.ceil(24 / fits) and max(network.calls) == fits
    before = len(network.calls)
    small(X, LEVEL)
    assert network.calls[before:] == [fits] * (24 // fits) + [24 % fits] * bool(24 % fits)  # it is known by now what fits


def test_memory_for_not_even_one_row_is_said():
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match=r"out of memory at 24 rows a network call.*max_rows=12"):
        guided(GUIDANCES["compose"], model=Small(0))(X, LEVEL)


def test_no_call_has_more_than_max_rows():
    network = Counting()
    guided(GUIDANCES["compose"], model=network, max_rows=5)(X, LEVEL)
    assert network.calls == [5, 5, 5, 5, 4]


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_run_embeds_once_and_calls_once_a_step(name: str):
    network = Counting()
    sample(network.denoiser(), (N, 2), CONDITION, GUIDANCES[name], steps=7)
    assert len(network.embedded) == 1 and len(network.calls) == 7


def test_only_rows_that_may_be_live_are_embedded():
    for guidance, rows in [(CFG(1.0), N), (CFG(SCALES), 9), (CFG(lambda logsnr: 1.0), 2 * N), (Interval(CFG(3.0)), 2 * N)]:
        network = Counting()
        guided(guidance, model=network)
        assert network.embedded == [rows]


def test_parts_are_the_live_terms_with_zeros_where_not_evaluated():
    (conditional, theirs), (null, other) = says(CFG(SCALES)).parts
    torch.testing.assert_close(conditional.weight, SCALES.double().view(-1, 1))
    torch.testing.assert_close(null.weight, 1 - SCALES.double().view(-1, 1))
    for part, live, condition in [(theirs, SCALES != 0, CONDITION), (other, SCALES != 1, NULL)]:
        torch.testing.assert_close(part.x0, torch.where(live[:, None], alone(condition).x0, 0.0))
        torch.testing.assert_close(part.eps, torch.where(live[:, None], alone(condition).eps, 0.0))


def test_a_guidance_may_combine_in_its_own_way():
    """`combine` is given the live terms only, in order, and its answer is the prediction."""

    @dataclass(frozen=True)
    class Largest(CFG):
        def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
            assert [term.weight for term in terms] == [3.0, -2.0]
            return Prediction(torch.maximum(*(p.x0 for p in predictions)), predictions[1].eps)

    cond, null = alone(CONDITION), alone(NULL)
    same(says(Largest(3.0)), Prediction(torch.maximum(cond.x0, null.x0), null.eps))


def test_without_any_condition_the_model_runs_once():
    assert cost(CFG(3.0), Condition()) == N
    same(says(CFG(3.0), Condition()), alone(NULL))


def test_a_term_without_attributes_is_the_null_model():
    """`Condition()` says as much as a condition of which everything is absent."""

    @dataclass(frozen=True)
    class Bare(WeightedSum):
        def terms(self, condition: Condition) -> Sequence[Term]:
            return Term(3.0, condition), Term(-2.0, Condition())

    same(says(Bare()), says(CFG(3.0)))


# Two models


@dataclass(frozen=True)
class Auto(WeightedSum):
    """Autoguidance: away from a weaker model with the same condition."""

    scale: float | Tensor

    def terms(self, condition: Condition) -> Sequence[Term]:
        return Term(self.scale, condition), Term(1 - self.scale, condition, "weak")


@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize("scale", [2.5, SCALES], ids=["one", "each"])
def test_two_models_are_guided_by_their_difference(scale: float | Tensor, max_rows: int | None):
    found = says(Auto(scale), model={"main": MIXTURE, "weak": WEAK}, max_rows=max_rows)
    same(found, mixed((scale, alone(CONDITION)), (1 - scale, alone(CONDITION, network=WEAK))), atol=1e-6)


def test_each_of_two_models_is_called_once():
    made = guided(Auto(2.5), model={"main": MIXTURE, "weak": WEAK})
    made(X, LEVEL)
    assert (made.calls, made.rows) == (2, 2 * N)


def test_a_model_that_is_not_needed_is_not_called():
    network = Counting()
    made = guided(Auto(1.0), model={"main": MIXTURE, "weak": network})
    same(made(X, LEVEL), alone(CONDITION))
    assert made.calls == 1 and not network.calls and not network.embedded


def test_an_unknown_model_is_refused_by_name():
    with pytest.raises(UserError, match="weak"):
        guided(Auto(2.0))


# What is refused


@dataclass(frozen=True)
class Unbalanced(WeightedSum):
    total: Any

    def terms(self, condition: Condition) -> Sequence[Term]:
        return Term(2.0, condition), Term(self.total, condition.drop())


@pytest.mark.parametrize(
    "other", [0.0, -0.9, torch.tensor([-1.0] * 5 + [-1.1]), lambda logsnr: -1.5], ids=["0", "-.9", "one row", "changing"]
)
def test_weights_that_do_not_sum_to_one_are_refused(other: Any):
    with pytest.raises(UserError, match="not to 1"):
        says(Unbalanced(other))


def test_weights_that_sum_to_one_up_to_rounding_are_not_refused():
    same(says(CFG(torch.tensor([1e4] * N))), says(CFG(1e4)), atol=1e-2)


BAD = [math.nan, math.inf, -math.inf, "4", "high", None, True, [1.0, math.nan], [[1.0] * N], ["a"] * N, {"scale": 1.0}, 1j]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize(
    "use", [CFG, CFG.from_paper, lambda w: w * on(a=1), lambda w: Compose(((w, {"a": 1}),))], ids=["cfg", "w", "*", "()"]
)
def test_what_is_no_weight_is_refused(use: Callable[[Any], Any], bad: Any):
    with pytest.raises(UserError):
        use(bad)


@pytest.mark.usefixtures("unchecked")
def test_lists_of_scales_are_taken():
    same(says(CFG(SCALES.tolist())), says(CFG(SCALES)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_changing_weight_that_is_not_finite_is_refused_when_it_shows(value: float):
    with pytest.raises(UserError):
        says(CFG(lambda logsnr: value))


@pytest.mark.parametrize(
    "scale", [torch.ones(N + 1) * 2, torch.ones(N - 1) * 2, lambda logsnr: torch.ones(2)], ids=["more", "fewer", "changing"]
)
def test_a_wrong_number_of_scales_is_refused(scale: Any):
    with pytest.raises(UserError, match=f"{N} samples"):
        says(CFG(scale))


def test_a_condition_for_another_batch_is_refused():
    with pytest.raises(UserError, match="5 rows"):
        says(CFG(2.0), CONDITION.rows(slice(0, 5)))


@pytest.mark.parametrize("values", [[0, 1, 0], torch.zeros(N + 1, dtype=torch.long)], ids=["fewer", "more"])
def test_a_composition_for_another_batch_is_refused(values: Any):
    with pytest.raises(UserError):
        says(2.0 * on(a=values))


def test_a_composition_for_an_unknown_batch_is_refused():
    with pytest.raises(UserError, match="how many"):
        says(2.0 * on(a=1), Condition())


@pytest.mark.parametrize("low, high", [(1.0, -1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_empty_interval_is_refused(low: float, high: float):
    with pytest.raises(UserError):
        Interval(CFG(2.0), low, high)


@pytest.mark.parametrize("rows", [0, -1])
def test_a_network_call_needs_a_row(rows: int):
    with pytest.raises(UserError):
        guided(CFG(2.0), max_rows=rows)
