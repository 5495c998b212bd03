"""What a guidance may have beside terms and combine: terms of no weight, a memory for a run, the way back to x_t, a density."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from guidance import (
    CFG,
    DDIM,
    Condition,
    DynamicThreshold,
    GuidedDenoiser,
    Interval,
    Level,
    Mixture,
    Prediction,
    Rescale,
    Term,
    Threshold,
    UserError,
    level,
    on,
    sample,
)
from guidance.guide import Guidance, WeightedSum, nested, rebuilt, weighted_sum
from guidance.noise import Stream, normal
from guidance.parameterization import read_x0
from guidance.sampler import Past, Predict
from guidance.schedule import Cosine

MIXTURE = Mixture(torch.tensor([[-2.0], [0.5], [3.0]]), [0.3, 0.5, 0.4], weights=[0.3, 0.4, 0.3], labels={"side": [0, 1, 1]})
DENOISER = MIXTURE.denoiser()
SIDES = Condition.of(side=torch.tensor([0, 1, 1, 0]))
X = torch.tensor([[-1.0], [0.2], [1.0], [2.0]])


def at(t: float) -> Level:
    return level(Cosine(), torch.tensor(t), X)


def own(condition: Condition, x: Tensor = X, t: float = 0.5) -> Tensor:
    return GuidedDenoiser(DENOISER, CFG(1.0), condition, len(x))(x, at(t)).x0


@dataclass(frozen=True)
class Sees:
    """The conditional model, beside which it looks at the unconditional one."""

    always: Any = True
    seen: list[Any] = field(default_factory=list)
    order: tuple[int, int] = (0, 1)

    def terms(self, condition: Condition) -> Sequence[Term]:
        terms = Term(1.0, condition), Term(0.0, condition.drop(), always=self.always)
        return [terms[k] for k in self.order]

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
        self.seen.append((terms, predictions))
        return predictions[self.order.index(0) if len(predictions) > 1 else 0]


def test_a_term_that_is_always_made_is_seen_though_its_weight_is_0():
    guide = Sees()
    guided = GuidedDenoiser(DENOISER, guide, SIDES, 4)
    prediction = guided(X, at(0.5))
    terms, predictions = guide.seen[0]
    assert guided.rows == 8 and guided.calls == 1 and [term.weight for term in terms] == [1.0, 0.0]
    torch.testing.assert_close(predictions[1].x0, own(SIDES.drop()))
    torch.testing.assert_close(prediction.x0, own(SIDES))
    none = Sees(always=False)
    guided = GuidedDenoiser(DENOISER, none, SIDES, 4)
    guided(X, at(0.5))
    assert guided.rows == 4 and len(none.seen[0][0]) == 1


def test_it_may_depend_on_the_noise_level():
    guide = Sees(always=lambda logsnr: logsnr > 0)
    guided = GuidedDenoiser(DENOISER, guide, SIDES, 4)
    for t, rows in ((0.9, 4), (0.1, 12)):
        guided(X, at(t))
        assert guided.rows == rows
    assert [len(terms) for terms, _ in guide.seen] == [1, 2]


def test_outside_its_interval_nothing_is_made_for_it():
    guide = Sees()
    guided = GuidedDenoiser(DENOISER, Interval(guide, low=0.0), SIDES, 4)
    rows = []
    for t in (0.9, 0.1):
        before = guided.rows
        guided(X, at(t))
        rows.append(guided.rows - before)
    assert rows == [4, 8] and len(guide.seen) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("max_rows", [None, 1, 3])
def test_what_another_term_says_of_a_sample_too_is_evaluated_once_and_copied(order: tuple[int, int], max_rows: int | None):
    some = Condition({"side": SIDES.values["side"]}, {"side": torch.tensor([True, False, True, False])})
    guide = Sees(order=order)
    guided = GuidedDenoiser(DENOISER, guide, some, 4, max_rows)
    prediction = guided(X, at(0.5))
    terms, predictions = guide.seen[0]
    conditional, null = (predictions[order.index(k)] for k in (0, 1))
    assert guided.rows == 6
    torch.testing.assert_close(null.x0, own(some.drop()))
    torch.testing.assert_close(null.eps, read_x0(own(some.drop()), X, at(0.5)).eps, atol=1e-5, rtol=1e-5)
    weight = terms[order.index(0)].weight
    torch.testing.assert_close(torch.where(torch.as_tensor(weight).view(-1, 1) != 0, conditional.x0, null.x0), own(some))
    if order == (0, 1):  # the first has the weight of both
        torch.testing.assert_close(prediction.x0, own(some))


@dataclass(frozen=True)
class Positions(WeightedSum):
    """Goes by the places of its terms: the null first."""

    scale: float
    seen: list[int] = field(default_factory=list)

    def terms(self, condition: Condition) -> Sequence[Term]:
        return Term(1 - self.scale, condition.drop()), Term(self.scale, condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
        self.seen.append(len(terms))
        null, conditional = predictions
        x0 = null.x0 + self.scale * (conditional.x0 - null.x0)
        return read_x0(x0, x_t, level)


@pytest.mark.parametrize("t", [0.9, 0.1])
def test_a_guidance_gets_its_own_terms_in_its_own_order_though_another_has_the_same(t: float):
    """Within and outside the interval the same two conditions are asked for, in another order."""
    both = Interval(CFG(3.0), low=0.0, outside=Positions(2.0))
    found = GuidedDenoiser(DENOISER, both, SIDES, 4)(X, at(t)).x0
    null, conditional = own(SIDES.drop(), t=t), own(SIDES, t=t)
    scale = 3.0 if t == 0.1 else 2.0
    torch.testing.assert_close(found, null + scale * (conditional - null))


@dataclass(frozen=True)
class Counts:
    """Remembers how often it was asked, and what for."""

    inside: Guidance = field(default_factory=CFG)
    memory: list[Any] | None = None

    def begin(self, condition: Condition) -> "Counts":
        return replace(self, memory=[condition])

    def terms(self, condition: Condition) -> Sequence[Term]:
        return self.inside.terms(condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
        assert self.memory is not None
        self.memory.append(float(level.logsnr))
        found = self.inside.combine(terms, predictions, x_t, level)
        return replace(found, x0=found.x0 + len(self.memory))


def test_every_run_begins_with_an_empty_memory_that_is_its_own():
    guide = Counts()
    first, second = (GuidedDenoiser(DENOISER, guide, SIDES, 4) for _ in range(2))
    for guided, expected in ((first, 2), (first, 3), (second, 2), (first, 4)):
        torch.testing.assert_close(guided(X, at(0.5)).x0, own(SIDES) + expected)
    assert guide.memory is None
    assert first.guidance.memory[0] is SIDES  # type: ignore[attr-defined]


def test_it_is_begun_wherever_it_is_within_another():
    guide = Interval(Counts(), outside=Counts(Counts()))
    guided = GuidedDenoiser(DENOISER, guide, SIDES, 4)
    torch.testing.assert_close(guided(X, at(0.5)).x0, own(SIDES) + 2)
    drawn = [sample(DENOISER, (4, 1), SIDES, guide, DDIM(), steps=3) for _ in range(2)]
    assert torch.equal(*drawn)


@dataclass(frozen=True)
class Several(WeightedSum):
    members: tuple[Guidance, ...]
    name: str = "several"

    def terms(self, condition: Condition) -> Sequence[Term]:
        return self.members[0].terms(condition)


def test_parts_are_found_and_replaced_at_every_depth():
    deep = Several((CFG(1.0), Interval(CFG(2.0), outside=Several((CFG(3.0),)))))
    scales = [part.scale for part in nested(deep) if isinstance(part, CFG)]
    assert scales == [1.0, 2.0, 3.0] and list(nested(deep))[-1] is deep
    new = rebuilt(deep, lambda part: CFG(part.scale * 10) if isinstance(part, CFG) else part)  # type: ignore[operator]
    assert [part.scale for part in nested(new) if isinstance(part, CFG)] == [10.0, 20.0, 30.0]
    assert new.name == "several" and rebuilt(deep, lambda part: part) is deep  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Uphill:
    """The gradient of (x0_hat)^3 in x_t."""

    scale: float = 1.0
    differentiates: bool = True

    def terms(self, condition: Condition) -> Sequence[Term]:
        return CFG(self.scale).terms(condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
        found = weighted_sum(terms, predictions)
        (gradient,) = torch.autograd.grad((found.x0**3).sum(), x_t)
        return replace(found, gradient=gradient)


@pytest.mark.parametrize("max_rows", [None, 1, 3])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_way_back_to_x_t_goes_through_the_network(scale: float, max_rows: int | None):
    guided = GuidedDenoiser(DENOISER, Uphill(scale), SIDES, 4, max_rows)
    found, h = guided(X, at(0.5)), 1e-3
    up, down = (GuidedDenoiser(DENOISER, CFG(scale), SIDES, 4)(X.double() + d, at(0.5)).x0 ** 3 for d in (h, -h))
    assert found.gradient is not None
    torch.testing.assert_close(found.gradient.double(), (up - down) / (2 * h), atol=1e-4, rtol=1e-3)
    for t in (found.x0, found.eps, found.gradient, *(p.x0 for _, p in found.parts)):
        assert not t.requires_grad
    assert not X.requires_grad


@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_density_of_a_mixture_is_torchs_own(t: float):
    here = at(t)
    for labels, keep in (([0, 0, 0, 0], False), ([0, 1, 1, 0], True)):
        condition = Condition({"side": torch.tensor(labels)}, {"side": torch.full((4,), keep)})
        found = DENOISER.log_density(X, here, MIXTURE.embed(condition))
        for k in range(4):
            of = torch.tensor([0, 1, 1]) == labels[k] if keep else torch.tensor([True, True, True])
            deviation = (here.alpha**2 * MIXTURE.stds**2 + here.sigma**2).sqrt()
            law = torch.distributions.MixtureSameFamily(
                torch.distributions.Categorical(MIXTURE.weights[of]),
                torch.distributions.Normal(here.alpha * MIXTURE.means[of, 0], deviation[of]),
            )
            assert found[k].item() == pytest.approx(law.log_prob(X[k, 0].double()).item(), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("weights", [(3.0, -2.0), (-1.0, 2.0), (1.0, 0.0), (torch.tensor([1.0, 0.0, 2.0, -1.0]),) * 2])
def test_the_guided_score_is_the_gradient_of_the_guided_density(weights: tuple[Any, Any]):
    x, h, here = X.double(), 1e-4, at(0.4)
    guide = CFG(weights[0])
    guided = GuidedDenoiser(DENOISER, guide, SIDES, 4)
    slope = (guided.log_density(x + h, here) - guided.log_density(x - h, here)) / (2 * h)
    torch.testing.assert_close(-guided(x, here).eps[:, 0] / here.sigma, slope, atol=1e-5, rtol=1e-5)
    composed = GuidedDenoiser(DENOISER, 2 * on(side=torch.tensor([1, 1, 1, 1])) - 0.5 * on(side=torch.tensor([0, 0, 0, 0])), SIDES, 4)
    slope = (composed.log_density(x + h, here) - composed.log_density(x - h, here)) / (2 * h)
    torch.testing.assert_close(-composed(x, here).eps[:, 0] / here.sigma, slope, atol=1e-5, rtol=1e-5)


def test_a_guidance_or_a_network_without_a_density_says_so():
    with pytest.raises(UserError, match="Interval has no density"):
        GuidedDenoiser(DENOISER, Interval(CFG(2.0)), SIDES, 4).log_density(X, at(0.5))

    class Silent(torch.nn.Module):
        def embed(self, condition: Condition) -> None:
            return None

        def forward(self, x_t: Tensor, logsnr: Tensor, context: Any, x0_hat: Any = None) -> Tensor:
            return x_t

    silent = replace(DENOISER, network=Silent())
    with pytest.raises(UserError, match="Silent knows no density"):
        GuidedDenoiser(silent, CFG(2.0), Condition(), 4).log_density(X, at(0.5))


def test_a_step_may_draw_more_noise_than_one():
    """draw() is the step's noise as it always was; draw(1), draw(2) ... are others, independent of it, the same in every batch."""
    drawn: list[list[Tensor]] = []

    @dataclass(frozen=True)
    class Draws:
        def step(self, predict: Predict, x_t: Tensor, now: Level, then: Level, draw: Any, past: Past | None) -> tuple[Tensor, Prediction]:
            drawn.append([draw(), draw(0), draw(1), draw(2)])
            prediction = predict(x_t, now)
            return prediction.x0, prediction

    n = 4000
    sample(DENOISER, (n, 1), None, sampler=Draws(), steps=3, seed=5)
    for step, (plain, zeroth, first, second) in enumerate(drawn, start=1):
        assert torch.equal(plain, zeroth) and torch.equal(plain, normal(5, Stream.STEP, step, 0, (n, 1)))
        noises = torch.cat([plain, first, second], 1)
        assert (torch.corrcoef(noises.T) - torch.eye(3)).abs().max() < 5 / n**0.5
        assert noises.std(0).sub(1).abs().max() < 0.05
    assert torch.corrcoef(torch.cat([noises[2] for noises in drawn], 1).T).triu(1).abs().max() < 5 / n**0.5
    whole, drawn[:] = list(drawn), []
    sample(DENOISER, (10, 1), None, sampler=Draws(), steps=3, seed=5, first=90)
    assert all(torch.equal(a[90:100], b) for x, y in zip(whole, drawn, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("wrap", [Rescale, Threshold, DynamicThreshold, Interval, lambda inside: Interval(CFG(), outside=inside)])
@pytest.mark.parametrize("inside", [None, 3.0, "apg", DDIM(), CFG])
def test_what_is_no_guidance_goes_inside_no_rule(wrap: Any, inside: Any, unchecked: None):
    with pytest.raises(UserError, match=r"guidance\.(inside|outside) is a guidance, such as CFG\(2\.0\), got .*guidance@guidance\."):
        wrap(inside)


def test_a_weight_that_is_no_number_is_refused_when_it_is_asked_for(unchecked: None):
    with pytest.raises(UserError, match="a guidance weight is a number at every noise level, got 'a'"):
        sample(DENOISER, (2, 1), Condition.of(side=[0, 1]), CFG(lambda logsnr: "a"), steps=2)  # type: ignore[arg-type,return-value]
    with pytest.raises(UserError, match=r"guidance\.low is a number of logsnr, got 'a'"):
        Interval(CFG(), "a", 3.0)  # type: ignore[arg-type]
