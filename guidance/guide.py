"""Guidance: from one condition to weighted terms.

Everything here is the weighted sum  sum_k w_k eps(x_t, c_k)  with  sum_k w_k = 1.  Because the weights sum to 1, combining x0, eps, v
or the score is the same thing. With CFG's terms it is Ho & Salimans' (2207.12598, eq. 6) guidance, ``scale = 1 + w``; with
several conditions it is composable diffusion (Liu et al., 2206.01714). Any real weight is legal.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.parameterization import Prediction
from guidance.process import Level

if TYPE_CHECKING:
    from guidance.logic import Complement, Either
    from guidance.model import Model

Weight = float | Float[Tensor, "b *ones"] | Callable[[float], float | Float[Tensor, "b"]]
"""A number, a number a sample (to be combined, of shape [b, 1, ..., 1]), or a function of logsnr that gives either."""


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


def weight_rows(weight: Weight, rows: slice, n: int, what: str) -> Any:
    """Some of n samples' part of a weight."""

    def part(value: float | Tensor) -> Any:
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if len(value) != n:
            raise UserError(f"{len(value)} {what} were given for {n} samples")
        return value[rows]

    return (lambda logsnr: part(weight(logsnr))) if callable(weight) else part(weight)


@dataclass(frozen=True)
class Term:
    """One prediction to make and its weight in the sum.

    ``model`` is the denoiser that makes it, or the name of one. ``always``, or a function of logsnr that says so: it is made where its
    weight is 0, too, because the guidance needs to see it.
    """

    weight: Weight
    condition: Condition
    model: str | Denoiser = "main"
    always: bool | Callable[[float], bool] = False


@runtime_checkable
class Guidance(Protocol):
    """A way to steer. Its terms' weights sum to 1 at every noise level."""

    def terms(self, condition: Condition) -> Sequence[Term]:
        """What is to be predicted, and with which weights: asked once a run, with the conditions of all its samples."""
        ...

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        """One prediction from those of the live terms, in the order of `terms`; their weights are now numbers, or [b, 1, ..., 1].

        A term that no sample gives a weight at this noise level, and that is not `always` made, was not evaluated, and is not among them;
        in one that only some samples do, the other samples' rows are zeros. Of two live terms that say the same of a sample the first has
        the weight of both; the second's row is zeros, or a copy where it is `always` made.
        """
        ...


@runtime_checkable
class PerRun(Protocol):
    """A `Guidance` that has to know what a run asks for, or that remembers what it saw at earlier steps."""

    def begin(self, condition: Condition) -> Guidance:
        """Itself for one run of these samples, with a memory of its own that is empty."""
        ...


@runtime_checkable
class PerModel(Protocol):
    """A `Guidance` that has to know the model: to read values of its attributes, or to refuse what does not fit it."""

    def of(self, model: "Model", n: int) -> Guidance:
        """Itself for n samples of a model. UserError where it does not fit."""
        ...


@runtime_checkable
class PerSample(Protocol):
    """A `Guidance` that holds more of each sample than the weights of its terms."""

    def rows(self, rows: slice, n: int) -> Guidance:
        """Itself for some of a run's n samples, which are drawn at a time."""
        ...


def nested(guidance: Guidance) -> Iterator[Guidance]:
    """A guidance and all those that it is made of, which are fields of its dataclass; the innermost first."""
    for value in _fields(guidance).values():
        for part in value if isinstance(value, tuple) else (value,):
            if is_guidance(part):
                yield from nested(part)
    yield guidance


def rebuilt(guidance: Guidance, change: Callable[[Guidance], Guidance]) -> Guidance:
    """A guidance with every part of it, and itself at last, replaced by what ``change`` makes of it."""

    def new(value: Any) -> Any:
        if isinstance(value, tuple):
            made = tuple(map(new, value))
            return made if any(a is not b for a, b in zip(made, value, strict=True)) else value
        return rebuilt(value, change) if is_guidance(value) else value

    made = {name: new(value) for name, value in _fields(guidance).items()}
    changed = {name: value for name, value in made.items() if value is not getattr(guidance, name)}
    return change(replace(cast(Any, guidance), **changed) if changed else guidance)


def is_guidance(value: Any) -> bool:
    return isinstance(value, Guidance) and not isinstance(value, type)


def check_guidance(value: Any, name: str) -> None:
    """UserError where a part of a guidance is none."""
    if not is_guidance(value):
        raise UserError(f"{name} is a guidance, such as CFG(2.0), got {value!r}; it is chosen by guidance@{name}=NAME")


def _fields(guidance: Guidance) -> dict[str, Any]:
    return {f.name: getattr(guidance, f.name) for f in fields(guidance)} if is_dataclass(guidance) else {}


def weighted_sum(terms: Sequence[Term], predictions: Sequence[Prediction]) -> Prediction:
    """sum_k w_k x0_k and sum_k w_k eps_k."""
    if len(terms) == 1:  # of weight 1, then
        return predictions[0]
    weighted = [(cast(Tensor, term.weight), p) for term, p in zip(terms, predictions, strict=True)]
    x0, eps = (reduce(operator.add, parts) for parts in ([w * p.x0 for w, p in weighted], [w * p.eps for w, p in weighted]))
    return Prediction(x0, eps)


class WeightedSum:
    """The default way to combine: at each noise level the density  prod_k p_t(x_t | c_k)^(w_k), up to its integral."""

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        return weighted_sum(terms, predictions)

    def log_density(self, terms: Sequence[Term], log_p: Sequence[Float[Tensor, "b"]], level: Level) -> Float[Tensor, "b"]:
        """sum_k w_k log p_t(x_t | c_k)."""
        weights = [w.flatten() if isinstance(w := term.weight, Tensor) else w for term in terms]
        return reduce(operator.add, [cast(Tensor, w) * p for w, p in zip(weights, log_p, strict=True)])


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
        """The condition with the scale, the null condition with the rest to 1."""
        return Term(self.scale, condition), Term(self.inverse().scale, condition.drop())


@dataclass(frozen=True)
class Bound:
    """An attribute's values [b, ...] and where they are present."""

    values: Tensor
    keep: Bool[Tensor, "b"]


@dataclass(frozen=True)
class Compose(WeightedSum):
    """sum_k w_k * (condition k), and what is missing to 1 for the null condition.

    Each condition names only some attributes; the others are absent in it. Written with `on`:
    ``2.0 * on(digit=3) - 1.0 * on(digit=8)``. ``a & b`` is a + b; ``a | b`` and ``~a`` are of another kind (`guidance.logic`).
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

    def __and__(self, other: "Compose") -> "Compose":
        return self + other if isinstance(other, Compose) else NotImplemented

    def __or__(self, other: "Compose | Either") -> "Either":
        from guidance.logic import either

        return either(self) | other if isinstance(other, Compose) else NotImplemented

    def __invert__(self) -> "Complement":
        from guidance.logic import complement

        return complement(self)

    @classmethod
    def read(cls, terms: str | float) -> "Compose | Either | Complement":
        """From text: ``Compose.read("2*on(digit=3) - on(digit=8)")``. Only this algebra is read; nothing is executed."""
        from guidance.algebra import read

        return read(str(terms))

    def of(self, model: "Model", n: int) -> "Compose":
        return self.bind(lambda name, value: model.attribute(name, value, n))

    def bind(self, parse: Callable[[str, Any], "Bound"]) -> "Compose":
        """Every value replaced by what ``parse(attribute, value)`` makes of it."""
        return Compose(tuple((w, {name: parse(name, value) for name, value in values.items()}) for w, values in self.items))

    def terms(self, condition: Condition) -> Sequence[Term]:
        """A term for each condition, whose other attributes are absent, and the null condition with the rest to 1."""
        items = [{name: _bound(name, value, condition) for name, value in values.items()} for _, values in self.items]
        known = {name: bound for values in items for name, bound in values.items()}
        n = len(condition) or next((len(b.keep) for b in known.values()), 0)
        for name, bound in known.items():
            if len(bound.keep) != n:
                raise UserError(f"{name} has {len(bound.keep)} values for {n} samples")
        new = Condition({name: b.values for name, b in known.items()}, {name: b.keep for name, b in known.items()})
        null = Condition({**condition.values, **new.values}, {**condition.keep, **new.keep}).drop()
        terms = []
        for (weight, _), values in zip(self.items, items, strict=True):
            given, keep = {n: b.values for n, b in values.items()}, {n: b.keep for n, b in values.items()}
            terms.append(Term(weight, Condition({**null.values, **given}, {**null.keep, **keep})))

        def rest(logsnr: float) -> float | Float[Tensor, "b"]:
            return 1 - sum(evaluate(w, logsnr) for w, _ in self.items)

        changing = any(callable(w) for w, _ in self.items)
        return *terms, Term(rest if changing else rest(0.0), null)


def _bound(name: str, value: Any, condition: Condition) -> Bound:
    """A value as tensors, for as many samples as the condition has."""
    if isinstance(value, Bound):
        return value
    tensor = torch.as_tensor(value)
    if name in condition.values:
        like = condition.values[name]
        tensor = tensor.to(like)
        if tensor.shape != like.shape:
            try:
                tensor = tensor.expand(like.shape)
            except RuntimeError:
                raise UserError(f"{name}: values of shape {list(tensor.shape)} do not fit {list(like.shape)}, one a sample") from None
    elif tensor.ndim == 0:
        if not len(condition):
            raise UserError(f"how many samples {name}={value!r} is for is not known: give a condition or a list")
        tensor = tensor.expand(len(condition))
    return Bound(tensor, torch.ones(len(tensor), dtype=torch.bool, device=tensor.device))


def on(**values: Any) -> Compose:
    """A condition as a term of a composition: ``2.0 * on(digit=3) - 1.0 * on(digit=8, stroke="bold")``."""
    return Compose(((1.0, values),))
