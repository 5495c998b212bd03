"""Logic on conditions: one of several (OR), and anything but one (NOT), as densities at every noise level.

Noising is linear in the density: the noised mixture is the mixture of the noised, and what is left of the data when a class is taken
out is noised to what is left. So both have a score that follows from those of their parts, and from how likely x_t is under each of
them, which is the `Evidence`. With exact scores and exact evidence the samples are exact, with any sampler and no correction. (AND, a
product of densities, and NOT as a negative weight have no such score: they are `Compose`.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.evidence import Evidence, Remembering, Tracked
from guidance.guide import Bound, Compose, Guidance, Term, Weight, check_weight, weighted_sum
from guidance.guided import GuidedDenoiser
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.loop import Choosy, Sampler

if TYPE_CHECKING:
    from guidance.model import Model

LEAST = 1e-6
"""A tracked posterior is kept above this, as in the paper, so that it can rise again."""


def _refuse(*_: object) -> NoReturn:
    raise UserError(
        "an OR or a complement is a guidance of its own, which takes no weight and is part of no sum: "
        "write on(digit=3) | on(digit=8), ~on(digit=3) or ~(on(digit=3) | on(digit=8)), and what else is asked for as the run's condition"
    )


@dataclass(frozen=True)
class Either:
    """OR: one of several conditions, in given shares. Written ``on(digit=3) | on(digit=8)``; ``2 * on(digit=3) | on(digit=8)``: two to one.

    The density is the mixture  p_t(x_t) = sum_k pi_k p_t(x_t | c_k),  whose score is  sum_k r_k s_k,  where r_k, the probability of c_k
    given x_t, is proportional to  pi_k p_t(x_t | c_k). Each condition names only some attributes; the others are absent in it.
    One evaluation a condition of a share above 0, and step.

    Args:
        items: the conditions with their shares pi (normalised): a number, or a list of one a sample.
        evidence: where p_t(x_t | c_k) is from. Tracked, it is near SuperDiff's OR (Skreta et al., 2412.17762), which follows each log p_t.
    """

    items: tuple[tuple[Weight, Mapping[str, Any]], ...]
    evidence: Evidence = field(default_factory=Tracked)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = __and__ = __rand__ = _refuse

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", Compose(self.items).items)
        _check_evidence(self.evidence)
        shares = [weight for weight, _ in self.items]
        if any(callable(share) or bool((torch.as_tensor(share) < 0).any()) for share in shares):
            raise UserError("the shares of an OR are numbers, 0 or larger: write 2 * on(digit=3) | on(digit=8)")
        if not shares:
            raise UserError("an OR needs a condition")

    def __or__(self, other: "Compose | Either") -> "Either":
        if not isinstance(other, Compose | Either):
            return NotImplemented
        return Either((*self.items, *either(other).items), self.evidence)

    def __ror__(self, other: "Compose | Either") -> "Either":
        return either(other) | self if isinstance(other, Compose) else NotImplemented

    def __invert__(self) -> "Complement":
        return complement(self)

    @classmethod
    def read(cls, terms: Any, evidence: Evidence | None = None) -> "Either":
        """From text, or from what `on` and ``|`` give: ``Either.read("on(digit=3) | on(digit=8)", evidence)``."""
        made = either(_read(terms, "on(digit=3) | on(digit=8)", Compose, Either))
        return made if evidence is None else replace(made, evidence=evidence)

    def of(self, model: "Model", n: int) -> "Either":
        return replace(self, items=Compose(self.items).of(model, n).items, evidence=_fitted(self.evidence, model, n))

    def begin(self, condition: Condition) -> "Either":
        return replace(self, evidence=_begun(self.evidence, -math.inf, math.inf))

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        if isinstance(self.evidence, Choosy):
            self.evidence.check(guided, sampler)

    def terms(self, condition: Condition) -> Sequence[Term]:
        """A term for each condition, with its share as the weight."""
        *members, _null = Compose(self.items).terms(condition)
        total = cast(Tensor, sum(cast(Tensor, term.weight) for term in members))
        if not bool((torch.as_tensor(total) > 0).all()):
            raise UserError("an OR needs a condition with a share above 0, for every sample")
        return [replace(term, weight=cast(Tensor, term.weight) / total) for term in members]

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        log_p = self.evidence.log_p(terms, predictions, x_t, level)
        r = (_weights(terms, log_p).log() + log_p).softmax(0)
        return weighted_sum([replace(t, weight=_wide(w, x_t)) for t, w in zip(terms, r, strict=True)], predictions)

    def log_density(self, terms: Sequence[Term], log_p: Sequence[Float[Tensor, "b"]], level: Level) -> Float[Tensor, "b"]:
        """log sum_k pi_k p_t(x_t | c_k)."""
        each = torch.stack(list(log_p))
        return (_weights(terms, each).log() + each).logsumexp(0)


@dataclass(frozen=True)
class Complement:
    """NOT: anything but a condition, or but several that exclude one another. Written ``~on(digit=3)``; ``~(on(digit=3) | on(digit=8))``.

    What is left of the data when those of c are taken out, which has the score of the second line at every noise level:

        p(x | not c) = (p(x) - p(c) p(x | c)) / (1 - p(c))
        s = (s_0 - r s_c) / (1 - r) = s_0 - r / (1 - r) (s_c - s_0),    r = p(c | x_t) = p(c) p_t(x_t | c) / p_t(x_t)

    p(x) is what the run's own condition asks for, and c says that and the complement's attributes: ``condition.stroke=bold`` with
    ``~on(digit=3)`` is p(x | bold, not 3). Where the condition is absent for a sample (None), nothing is taken out. One evaluation a
    condition and step, and one more.

    With `Tracked` evidence this is dynamic negative guidance (Koulischer et al., 2410.14398), which has a ``scale`` as well.

    Args:
        items: the conditions, with weights of 1.
        prior: p(c | the run's condition) of each of them; by default one over the number of classes of the model's attribute.
        scale: a factor of r / (1 - r): a number, a list of one a sample, or a function of logsnr. 1 is the complement, 0 the model itself.
        ceiling: r is at most this, since near 1 the difference of two scores is divided by next to nothing.
        evidence: where p_t(x_t | c) / p_t(x_t) is from.
    """

    items: tuple[tuple[Weight, Mapping[str, Any]], ...]
    prior: float | None = None
    scale: Weight = 1.0
    ceiling: float = 0.95
    evidence: Evidence = field(default_factory=Tracked)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = __and__ = __rand__ = __or__ = __ror__ = __invert__ = _refuse

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", Compose(self.items).items)
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))
        _check_evidence(self.evidence)
        if not self.items or any(not isinstance(weight, float) or weight != 1 for weight, _ in self.items):
            raise UserError("a complement takes conditions out whole, without weights: write ~on(digit=3), and a scale beside it")
        names = [set(values) for _, values in self.items]
        if not all(names) or (len(names) > 1 and any(len(name) != 1 or name != names[0] for name in names)):
            raise UserError("what is taken out together has to exclude one another: values of one attribute, ~(on(digit=3) | on(digit=8))")
        for what, number in (("prior", 0.0 if self.prior is None else self.prior), ("ceiling", self.ceiling)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1 or (what, number) == ("ceiling", 0):
                raise UserError(f"the {what} of a complement is a probability below 1, got {number!r}")
        if self.prior is not None and self.prior * len(self.items) >= 1:
            raise UserError(f"{len(self.items)} conditions of prior {self.prior:g} each leave nothing")

    @classmethod
    def read(
        cls,
        terms: Any,
        prior: float | None = None,
        scale: Weight = 1.0,
        ceiling: float = 0.95,
        evidence: Evidence | None = None,
    ) -> "Complement":
        """From text, or from what `on` and ``~`` give: ``Complement.read("~on(digit=3)", prior=0.1)``."""
        made = _read(terms, "~on(digit=3)", Complement)
        return Complement(made.items, prior, scale, ceiling, evidence or made.evidence)

    def of(self, model: "Model", n: int) -> "Complement":
        """With values as the model reads them, and where no prior is given that of equally frequent classes."""
        prior = self.prior
        if prior is None:
            counts = [len(getattr(model.modality.conditions.get(name), "classes", ())) for name in self.items[0][1]]
            prior = 1 / math.prod(counts) if all(counts) else None
        return replace(self, items=Compose(self.items).of(model, n).items, prior=prior, evidence=_fitted(self.evidence, model, n))

    def begin(self, condition: Condition) -> "Complement":
        prior = self._prior
        low, high = (math.log(LEAST / prior), math.log(self.ceiling / prior)) if prior else (-math.inf, math.inf)
        return replace(self, evidence=_begun(self.evidence, low, high))

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        if isinstance(self.evidence, Choosy):
            self.evidence.check(guided, sampler)

    @property
    def _prior(self) -> float:
        if self.prior is None:
            raise UserError(f"how frequent {_written(self.items)} is, is not known: give the complement a prior, such as 0.1")
        return self.prior

    def terms(self, condition: Condition) -> Sequence[Term]:
        """The run's condition, and it with each condition that is taken out, with minus the scale as the weight: all are always made."""
        *named, _null = Compose(self.items).terms(condition)
        name, *_ = self.items[0][1]
        for first, second in ((a.condition, b.condition) for a, b in combinations(named, 2)):
            if bool((first.same(second) & first.keep[name].cpu()).any()):
                raise UserError(f"{name}: a complement takes a value out once; {_written(self.items)} names one twice")
        scale, k = self.scale, len(named)
        base: Weight = (lambda logsnr: 1 + k * scale(logsnr)) if callable(scale) else 1 + k * scale
        less: Weight = (lambda logsnr: -scale(logsnr)) if callable(scale) else -scale
        return Term(base, condition, always=True), *(Term(less, _joined(condition, t.condition), always=True) for t in named)

    def posterior(self, terms: Sequence[Term], log_p: Float[Tensor, "k b"]) -> Float[Tensor, "kept b"]:
        """p(c | x_t) of each condition that is taken out, 0 where it is absent, together at most the ceiling."""
        out = _weights(terms, log_p)[1:] != 0  # one that says what the run's condition says is merged with it, and has no weight
        prior = self._prior
        log_r = log_p[1:] - log_p[0] + (math.log(prior) if prior else -math.inf)
        r = torch.where(out, log_r.clamp(max=50.0).exp(), 0.0)
        return r * (self.ceiling / r.sum(0).clamp(min=1e-300)).clamp(max=1.0)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        log_p = self.evidence.log_p(terms, predictions, x_t, level)
        r = self.posterior(terms, log_p)
        away = -_weights(terms, log_p)[1:] * r / (1 - r.sum(0))
        weights = [1 + away.sum(0), *-away]
        return weighted_sum([replace(t, weight=_wide(w, x_t)) for t, w in zip(terms, weights, strict=True)], predictions)

    def log_density(self, terms: Sequence[Term], log_p: Sequence[Float[Tensor, "b"]], level: Level) -> Float[Tensor, "b"]:
        """log (p_t(x_t) - p(c) p_t(x_t | c)). UserError at scales other than 1, which have no density."""
        each = torch.stack(list(log_p))
        weights = _weights(terms, each)[1:]
        if not bool(((weights == 0) | (weights == -1)).all()):
            raise UserError("a complement has a density at scale 1 alone")
        return each[0] + torch.log1p(-self.posterior(terms, each).sum(0))


def either(guidance: "Compose | Either") -> Either:
    """A condition as an OR of one. UserError for a sum of several, which is not noised data of any kind."""
    if isinstance(guidance, Either):
        return guidance
    if len(guidance.items) != 1:
        raise UserError(
            f"| joins conditions, and {_written(guidance.items)} is a sum of them: name all attributes in one on(...), "
            "or write the sum without |"
        )
    return Either(guidance.items)


def complement(guidance: "Compose | Either") -> Complement:
    """What is left when a condition, or each of an OR, is taken out."""
    if isinstance(guidance, Compose) and len(guidance.items) != 1:
        raise UserError(f"~ takes conditions out, and {_written(guidance.items)} is a sum of them: write ~on(digit=3)")
    return Complement(guidance.items, evidence=guidance.evidence) if isinstance(guidance, Either) else Complement(guidance.items)


def _read(terms: Any, example: str, *kinds: type) -> Any:
    guidance = terms if isinstance(terms, Guidance) else Compose.read(terms)
    if not isinstance(guidance, kinds):
        raise UserError(f"guidance.terms={terms} is {type(guidance).__name__}; write e.g. {example!r}")
    return guidance


def _check_evidence(evidence: object) -> None:
    if isinstance(evidence, type) or not isinstance(evidence, Evidence):
        raise UserError(f"evidence is an object such as Tracked() or ByClassifier(...), got {evidence!r}")


def _fitted(evidence: Evidence, model: "Model", n: int) -> Evidence:
    of: Callable[[Model, int], Evidence] | None = getattr(evidence, "of", None)
    return evidence if of is None else of(model, n)


def _begun(evidence: Evidence, low: float, high: float) -> Evidence:
    return evidence.begin(low, high) if isinstance(evidence, Remembering) else evidence


def _joined(condition: Condition, more: Condition) -> Condition:
    """The condition, and what ``more`` says beside it. UserError where both say something of an attribute."""
    values, keep = dict(condition.values), dict(condition.keep)
    for name, there in more.keep.items():
        if name not in keep:
            values[name], keep[name] = more.values[name], there
            continue
        if bool((there & keep[name]).any()):
            raise UserError(f"the run's condition already says what {name} is: a complement takes something else out")
        wide = there.view(-1, *(1,) * (values[name].ndim - 1))
        values[name], keep[name] = torch.where(wide, more.values[name], values[name]), there | keep[name]
    return Condition(values, keep)


def _weights(terms: Sequence[Term], like: Float[Tensor, "k b"]) -> Float[Tensor, "k b"]:
    """The terms' weights."""
    weights = [torch.as_tensor(term.weight, dtype=like.dtype, device=like.device).flatten() for term in terms]
    return torch.stack([weight.expand(like.shape[1]) for weight in weights])


def _wide(weight: Float[Tensor, "b"], x_t: Tensor) -> Tensor:
    return weight.to(x_t).view(-1, *(1,) * (x_t.ndim - 1))


def _written(items: Sequence[tuple[Weight, Mapping[str, Any]]]) -> str:
    def one(weight: Weight, values: Mapping[str, Any]) -> str:
        given = (name if isinstance(value, Bound) else f"{name}={value}" for name, value in values.items())
        named = f"on({', '.join(given)})"
        return named if isinstance(weight, float) and weight == 1 else f"{weight} * {named}"

    return " + ".join(one(weight, values) for weight, values in items)
