"""Guidance: from one condition to weighted terms, and from K terms to one prediction in one network call.

Everything here is the weighted sum  sum_k w_k eps(x_t, c_k)  with  sum_k w_k = 1.  Because the weights sum to 1, combining x0, eps, v
or the score is the same thing. With CFG's terms it is Ho & Salimans' (2207.12598, eq. 6) guidance, ``scale = 1 + w``; with
several conditions it is composable diffusion (Liu et al., 2206.01714). Any real weight is legal.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map

from guidance.condition import Condition
from guidance.denoiser import Context, Denoiser
from guidance.errors import UserError, one_of
from guidance.parameterization import Prediction
from guidance.process import Level

Weight = float | Float[Tensor, "b"] | Callable[[float], float | Float[Tensor, "b"]]
"""A number, a number a sample, or a function of logsnr that gives either."""


def check_weight(weight: Any, name: str = "weight") -> Any:
    """The weight, if it is one: a finite number, a sequence or tensor [b] of them, or a function of logsnr."""
    if callable(weight):
        return weight
    if not isinstance(weight, bool | str | None):
        try:
            tensor = torch.as_tensor(weight, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            tensor = torch.tensor(math.nan)
        if bool(tensor.isfinite().all()) and tensor.ndim <= 1:
            return tensor if tensor.ndim else float(tensor)
    raise UserError(f"{name} is a finite number, a list of one a sample, or a function of logsnr; got {weight!r}")


def evaluate(weight: Weight, logsnr: float) -> float | Float[Tensor, "b"]:
    """The weight at a noise level."""
    return weight(logsnr) if callable(weight) else weight


@dataclass(frozen=True)
class Term:
    """One prediction to make and its weight in the sum; ``model`` names the denoiser that makes it."""

    weight: Weight
    condition: Condition
    model: str = "main"


class Guidance(Protocol):
    """A way to steer. Its terms' weights sum to 1 at every noise level."""

    def terms(self, condition: Condition) -> Sequence[Term]: ...

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        """One prediction from those of the live terms, whose weights are now numbers or [b, 1, ..., 1]."""
        ...


def weighted_sum(terms: Sequence[Term], predictions: Sequence[Prediction]) -> Prediction:
    """sum_k w_k x0_k and sum_k w_k eps_k."""
    if len(terms) == 1 and terms[0].weight == 1:
        return predictions[0]
    weighted = [(cast(Tensor, term.weight), p) for term, p in zip(terms, predictions, strict=True)]
    x0, eps = (reduce(operator.add, parts) for parts in ([w * p.x0 for w, p in weighted], [w * p.eps for w, p in weighted]))
    return Prediction(x0, eps)


class WeightedSum:
    """The default way to combine."""

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        return weighted_sum(terms, predictions)


@dataclass(frozen=True)
class CFG(WeightedSum):
    """scale * conditional + (1 - scale) * unconditional.

    1 is the conditional model, 0 the unconditional one, above 1 sharper, below 0 inverse: away from the condition. Numbers
    between are a mixture of the two scores. ``scale`` is a number, a list of one a sample, or a function of logsnr.
    """

    scale: Weight = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))

    @classmethod
    def from_paper(cls, w: Weight) -> "CFG":
        """Ho & Salimans' w: eps = (1 + w) eps_c - w eps_0, so scale = 1 + w."""
        w = check_weight(w, "w")
        return cls((lambda logsnr: 1 + evaluate(w, logsnr)) if callable(w) else 1 + w)

    def inverse(self) -> "CFG":
        """The two weights swapped: scale -> 1 - scale. Its own inverse."""
        scale = self.scale
        return CFG((lambda logsnr: 1 - evaluate(scale, logsnr)) if callable(scale) else 1 - scale)

    def terms(self, condition: Condition) -> Sequence[Term]:
        return Term(self.scale, condition), Term(self.inverse().scale, condition.drop())


@dataclass(frozen=True)
class Compose(WeightedSum):
    """sum_k w_k * (condition k), and what is missing to 1 for the null condition.

    Each condition names only some attributes; the others are absent in it. Written with `on`:
    ``2.0 * on(digit=3) - 1.0 * on(digit=8)``.
    """

    items: tuple[tuple[Weight, Mapping[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple((check_weight(w), dict(values)) for w, values in self.items))

    def __add__(self, other: "Compose") -> "Compose":
        return Compose((*self.items, *other.items)) if isinstance(other, Compose) else NotImplemented

    def __mul__(self, factor: Weight) -> "Compose":
        factor = check_weight(factor)

        def times(weight: Weight) -> Weight:
            if callable(weight) or callable(factor):
                return lambda logsnr: evaluate(weight, logsnr) * evaluate(factor, logsnr)
            return weight * factor

        return Compose(tuple((times(weight), values) for weight, values in self.items))

    __rmul__ = __mul__

    def __neg__(self) -> "Compose":
        return self * -1.0

    def __sub__(self, other: "Compose") -> "Compose":
        return self + (-other) if isinstance(other, Compose) else NotImplemented

    @classmethod
    def read(cls, terms: str) -> "Compose":
        """From text: ``Compose.read("2*on(digit=3) - on(digit=8)")``. Only this algebra is read; nothing is executed."""
        from guidance.algebra import read

        return read(terms)

    def bind(self, parse: Callable[[str, Any], tuple[Tensor, Bool[Tensor, "b"]]]) -> "Compose":
        """Every value replaced by what ``parse(attribute, value)`` makes of it: the tensor [b, ...] and where it is present."""
        return Compose(tuple((w, {name: parse(name, value) for name, value in values.items()}) for w, values in self.items))

    def terms(self, condition: Condition) -> Sequence[Term]:
        null = condition.drop()
        terms = []
        for weight, values in self.items:
            c = null
            for name, value in values.items():
                if isinstance(value, tuple):  # bound: (values, keep)
                    tensor, keep = value
                else:
                    tensor = torch.as_tensor(value)
                    if name in null.values:
                        model = null.values[name]
                        tensor = tensor.to(model).expand(model.shape)
                    elif tensor.ndim == 0:
                        if not len(null):
                            raise UserError(f"how many samples {name}={value!r} is for is not known: give a condition or a list")
                        tensor = tensor.expand(len(null))
                    keep = torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
                c = Condition({**c.values, name: tensor}, {**c.keep, name: keep})
            terms.append(Term(weight, c))

        def rest(logsnr: float) -> float | Float[Tensor, "b"]:
            return 1 - sum(evaluate(w, logsnr) for w, _ in self.items)

        changing = any(callable(w) for w, _ in self.items)
        return *terms, Term(rest if changing else rest(0.0), null)


def on(**values: Any) -> Compose:
    """A condition as a term of a composition: ``2.0 * on(digit=3) - 1.0 * on(digit=8, stroke="bold")``."""
    return Compose(((1.0, values),))


@dataclass(frozen=True)
class Interval:
    """``inside`` where low <= logsnr <= high, ``outside`` elsewhere; what is not in force costs nothing.

    The limited interval of Kynkäänniemi et al. (2404.07724), in units of noise rather than of steps; their guidance is off,
    which is the conditional model, outside.
    """

    inside: Guidance
    low: float = -math.inf
    high: float = math.inf
    outside: Guidance = field(default_factory=CFG)

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise UserError(f"an interval of logsnr needs low <= high, got {self.low} and {self.high}")

    def terms(self, condition: Condition) -> Sequence[Term]:
        def during(weight: Weight, within: bool) -> Weight:
            return lambda logsnr: evaluate(weight, logsnr) if (self.low <= logsnr <= self.high) == within else 0.0

        return [
            replace(term, weight=during(term.weight, within))
            for guidance, within in ((self.inside, True), (self.outside, False))
            for term in guidance.terms(condition)
        ]

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        active = self.inside if self.low <= level.logsnr.item() <= self.high else self.outside
        return active.combine(terms, predictions, x_t, level)


def _rows(context: Context, index: Int[Tensor, "r"]) -> Context:
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, context)


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class _Embedded:
    """One model's embedded conditions: ``row[k, i]`` is the row of term k and sample i, where that may ever be evaluated."""

    context: Context
    row: Int[Tensor, "k b"]
    rows: int


@dataclass(frozen=True)
class _Call:
    """One network call: which samples (None: all, in order), how many rows, and their context."""

    samples: Int[Tensor, "r"] | None
    rows: int
    context: Context


class GuidedDenoiser:
    """K terms -> one network call -> one Prediction.

    Made for one run of ``n`` samples: terms that say the same of a sample are merged, and all conditions are embedded once.
    At each level only rows of non-zero weight are evaluated, in one call, or in calls of at most ``max_rows`` rows.

    ``rows`` counts the network evaluations so far (one row of one call each), ``calls`` the calls.
    """

    def __init__(
        self,
        denoisers: Denoiser | Mapping[str, Denoiser],
        guidance: Guidance,
        condition: Condition,
        n: int,
        max_rows: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.denoisers = denoisers if isinstance(denoisers, Mapping) else {"main": denoisers}
        if max_rows is not None and max_rows < 1:
            raise UserError(f"max_rows is at least 1, got {max_rows}")
        self.guidance, self.n, self.max_rows, self.device = guidance, n, max_rows, device
        self.rows = self.calls = 0
        self.terms = list(guidance.terms(condition))
        for term in self.terms:
            if term.model not in self.denoisers:
                raise one_of("model for guidance", term.model, list(self.denoisers))
            if len(term.condition) not in (0, n):
                raise UserError(f"a condition of {len(term.condition)} rows cannot guide {n} samples")
        self._changing = any(callable(term.weight) for term in self.terms)
        self._same = self._equal_terms()
        self._static = None if self._changing else self._weights(0.0)
        self._embedded = self._embed()
        self._calls: dict[bytes, dict[str, list[_Call]]] = {}

    def _equal_terms(self) -> dict[tuple[int, int], Bool[Tensor, "b"]]:
        """For each pair of terms j < k of the same model: the samples of which both say the same."""
        same = {}
        for k, later in enumerate(self.terms):
            for j, earlier in enumerate(self.terms[:k]):
                if earlier.model == later.model:
                    rows = earlier.condition.same(later.condition).expand(self.n)
                    if bool(rows.any()):
                        same[j, k] = rows
        return same

    def _merge(self, weights: Float[Tensor, "k b"]) -> Float[Tensor, "k b"]:
        """Each duplicate's weight moved to the first term that says the same."""
        weights = weights.clone()
        for (j, k), rows in self._same.items():
            weights[j] += torch.where(rows, weights[k], 0.0)
            weights[k] = torch.where(rows, 0.0, weights[k])
        return weights

    def _weights(self, logsnr: float) -> Float[Tensor, "k b"]:
        rows = []
        for term in self.terms:
            weight = torch.as_tensor(evaluate(term.weight, logsnr), dtype=torch.float64).cpu()
            if weight.ndim and len(weight) != self.n:
                raise UserError(f"{len(weight)} guidance weights were given for {self.n} samples")
            rows.append(weight.expand(self.n))
        weights = torch.stack(rows)
        excess = (weights.sum(0) - 1).abs() / weights.abs().sum(0).clamp(min=1)
        if not bool((excess < 1e-4).all()):
            total = weights.sum(0)[excess.argmax()]
            raise UserError(f"the weights of {type(self.guidance).__name__} sum to {total:.4g} at logsnr {logsnr:.3g}, not to 1")
        return self._merge(weights)

    def _of(self, model: str) -> Bool[Tensor, "k 1"]:
        return torch.tensor([term.model == model for term in self.terms]).view(-1, 1)

    def _embed(self) -> dict[str, _Embedded]:
        """Embed every row that can ever be live, once: under changing weights, all but the duplicates."""
        ones = torch.ones(len(self.terms), self.n, dtype=torch.float64)
        possible = (self._merge(ones) if self._static is None else self._static) != 0
        embedded = {}
        for model, denoiser in self.denoisers.items():
            mine = self._of(model) & possible
            used = mine.any(1)
            if not bool(used.any()):
                continue
            together = Condition.cat([term.condition for term, u in zip(self.terms, used, strict=True) if u]).to(self.device)
            kept = mine[used].flatten()
            if len(together) and not bool(kept.all()):
                together = together.rows(kept.nonzero().flatten().to(self.device))
            context = denoiser.network.embed(together)
            embedded[model] = _Embedded(context, (mine.flatten().cumsum(0) - 1).view(mine.shape), int(kept.sum()))
        return embedded

    def _plan(self, live: Bool[Tensor, "k b"]) -> dict[str, list[_Call]]:
        """The calls that evaluate the live rows of every model; made once for each set of live rows."""
        key = live.numpy().tobytes()
        if key not in self._calls:
            self._calls[key] = {model: self._split(model, live) for model in self._embedded}
        return self._calls[key]

    def _split(self, model: str, live: Bool[Tensor, "k b"]) -> list[_Call]:
        embedded, mine = self._embedded[model], self._of(model) & live
        rows, samples = embedded.row[mine], mine.nonzero()[:, 1]
        size = self.max_rows or max(len(rows), 1)
        calls = []
        for part, who in zip(torch.split(rows, size), torch.split(samples, size), strict=True):
            if not len(part):
                continue
            context = embedded.context
            if len(part) < embedded.rows:
                context = _rows(context, part.to(self.device))
            everyone = len(who) == self.n and bool((who == torch.arange(self.n)).all())
            calls.append(_Call(None if everyone else who.to(self.device), len(who), context))
        return calls

    @torch.no_grad()
    def __call__(self, x_t: Float[Tensor, "b *d"], level: Level, x0_hat: Float[Tensor, "b *d"] | None = None) -> Prediction:
        """The guided prediction at a level shared by all samples; its ``parts`` are the live terms' own.

        A part's rows of zero weight are zeros: they were not evaluated.
        """
        weights = self._weights(level.logsnr.item()) if self._static is None else self._static
        live = weights != 0
        counts = live.sum(1).tolist()
        parts: dict[int, Prediction] = {}
        for model, calls in self._plan(live).items():
            outputs = []
            for call in calls:
                x, hint = (t if t is None or call.samples is None else t[call.samples] for t in (x_t, x0_hat))
                assert x is not None
                outputs.append(self.denoisers[model](x, level, call.context, hint))
                self.calls, self.rows = self.calls + 1, self.rows + call.rows
            mine = [k for k, term in enumerate(self.terms) if term.model == model and counts[k]]
            if mine:
                sizes = [counts[k] for k in mine]
                x0, eps = (torch.split(_cat(t), sizes) for t in ([p.x0 for p in outputs], [p.eps for p in outputs]))
                parts |= {k: self._whole(Prediction(a, b), live[k], x_t) for k, a, b in zip(mine, x0, eps, strict=True)}
        order = sorted(parts)
        terms = [replace(self.terms[k], weight=self._spread(weights[k], x_t)) for k in order]
        combined = self.guidance.combine(terms, [parts[k] for k in order], x_t, level)
        return replace(combined, parts=tuple(zip(terms, (parts[k] for k in order), strict=True)))

    def _whole(self, part: Prediction, live: Bool[Tensor, "b"], x_t: Float[Tensor, "b *d"]) -> Prediction:
        if len(part.x0) == self.n:
            return part
        index = live.nonzero().flatten().to(x_t.device)
        x0, eps = (torch.zeros_like(x_t).index_copy(0, index, t) for t in (part.x0, part.eps))
        return Prediction(x0, eps)

    def _spread(self, weight: Float[Tensor, "b"], x_t: Float[Tensor, "b *d"]) -> float | Tensor:
        """A number where all samples have the same weight, else [b, 1, ..., 1]."""
        if bool((weight == weight[0]).all()):
            return float(weight[0])
        return weight.to(x_t).view(-1, *(1,) * (x_t.ndim - 1))
