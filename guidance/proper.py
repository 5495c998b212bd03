"""Whether what is asked for can be normalised: no sampler can draw from a density that has no finite integral.

Guidance aims at  p(x)^(a_0) prod_k p(x | c_k)^(a_k),  a_0 + sum_k a_k = 1. Far out in direction u a Gaussian with precision P falls off as
u'Pu, and a mixture of Gaussians as its widest component does. With a Gaussian for each class, and their mixture for all data, the product
has a finite integral where its own fall,

    a_0 min_c u'P_c u + sum_k a_k u'P_k u,    is positive in every direction u.

For a_0 >= 0, which inverse guidance has, that is: a_0 P_c + sum_k a_k P_k is positive definite for every class c. Positive weights never
break it, as p(c | x) = p(c) p(x | c) / p(x) is at most 1; a negative one does where its class is narrower than another. Several attributes
c, d of one condition are taken as independent given x: p(x | c, d) is p(x | c) p(x | d) / p(x), up to a factor.

The Gaussians are those of the training data along its two widest directions. With every further direction there is one in which some class
is nearly constant, and what is left is that inverse guidance is improper at once. The docs say what these bounds are worth on digits.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.checkpoint import MOMENTS, read_tensors, write_atomically
from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError, one_of
from guidance.guide import Guidance, PerModel, Term, WeightedSum, evaluate, nested, rebuilt
from guidance.guided import evaluating
from guidance.modality import Modality, Split
from guidance.split import pick

if TYPE_CHECKING:
    from guidance.model import Model

DIRECTIONS = 2
LEAST = 25 * DIRECTIONS
"""Items of a class that give a covariance; and the weight, in items, of the mean covariance within classes, to which each is shrunk."""
ITEMS, HELD, NUMBERS = 4096, 1024, 2**24
"""Training items looked at; of these the ones that the directions are taken from, and the numbers that they may have together."""
CLEAN = 10.0
"""The log-SNR at which weights that change are taken: the noise is a hundredth of a percent of the data, and samples are as good as done.
A guidance that is a density's by then brings back what an earlier level has driven away."""
LOOKED_AT, SAID = 256, 3
"""Different requests of a run that are looked at, and those of them that are named."""

Class = tuple[str, int]


@dataclass(frozen=True)
class Groups:
    """Moments of groups of items in the plane of the directions; of groups of fewer than 2 items they are zero."""

    mean: Float[Tensor, "k m"]
    covariance: Float[Tensor, "k m m"]
    items: Int[Tensor, "k"]

    @classmethod
    def of(cls, x: Float[Tensor, "n m"], group: Int[Tensor, "n"], k: int) -> "Groups":
        """Of n points, the group of each (-1: none)."""
        mean, covariance = x.new_zeros(k, x.shape[1]), x.new_zeros(k, x.shape[1], x.shape[1])
        items = torch.bincount(group[group >= 0], minlength=k)
        for i in (items > 1).nonzero().flatten().tolist():
            mine = x[group == i]
            mean[i], covariance[i] = mine.mean(0), mine.T.cov().reshape(x.shape[1], x.shape[1])
        return cls(mean, covariance, items)


@dataclass(frozen=True)
class Moments:
    """Training data as Gaussians: of all, and of every class, along the directions in which the data varies most.

    ``mean`` and ``directions`` are in the space of x0; the coordinates of x0 are its inner products with the directions, of unit length,
    after the mean is taken off. ``classes`` holds each attribute's groups, in the order of its classes.
    """

    mean: Float[Tensor, "*d"]
    directions: Float[Tensor, "m *d"]
    all: Groups
    classes: Mapping[str, Groups] = field(default_factory=dict)

    @cached_property
    def precisions(self) -> Mapping[Class, Float[Tensor, "m m"]]:
        """Of every class that has items enough, in units of the deviations of all data; covariances shrunk to their mean."""
        unit = self.all.covariance[0].diagonal().sqrt()
        found: dict[Class, Tensor] = {}
        for name, of in self.classes.items():
            covariance = of.covariance / (unit[:, None] * unit)
            n = of.items.double()[:, None, None]
            within = (n * covariance).sum(0) / n.sum().clamp(min=1)
            shrunk = (n * covariance + LEAST * within) / (n + LEAST)
            shrunk = shrunk + 1e-6 * torch.eye(len(unit), dtype=unit.dtype)  # all items of a class may be equal
            found |= {(name, k): torch.linalg.inv(shrunk[k]) for k in range(len(n)) if of.items[k] >= LEAST}
        return found

    def _forms(self, weights: Mapping[Class, float]) -> tuple[float, Float[Tensor, "c m m"]]:
        """a_0, and  a_0 P_c + sum_k a_k P_k  for every class c of the attributes that are named."""
        rest = 1 - sum(weights.values())
        named = {name for name, _ in weights}
        everyone = torch.stack([p for (name, _), p in self.precisions.items() if name in named])
        return rest, rest * everyone + torch.stack([a * self.precisions[k] for k, a in weights.items()]).sum(0)

    def proper(self, weights: Mapping[Class, float]) -> bool:
        """Whether p^(a_0) prod_k p_k^(a_k) has a finite integral; ``weights`` are the a_k of (attribute, number of the class), a_0 is
        what is missing to 1. Exact for a_0 >= 0; below, where only directions found one class at a time are tried, False is certain.

        A class with too few items counts as one that breaks nothing.
        """
        weights = {key: a for key, a in weights.items() if a}
        if not all(key in self.precisions for key in weights) or all(a > 0 for a in weights.values()):
            return True
        rest, forms = self._forms(weights)
        values, vectors = torch.linalg.eigh(forms)
        if rest >= 0:
            return bool((values > 0).all())
        if bool((values > 0).all(-1).any()):
            return True
        tried = vectors[:, :, 0]
        return bool((torch.einsum("ui,cij,uj->uc", tried, forms, tried).amax(1) > 0).all())

    def lowest(self, classes: Mapping[str, int]) -> float:
        """The scale of `CFG` on a condition (attribute -> number of the class) down to which there is a density; -inf where at all scales.

        With M_c = sum_k P_k - j P_c, for j attributes, the forms at scale g < 0 are  P_c + g M_c:  -1 over the largest generalized
        eigenvalue of any (M_c, P_c). There is no highest scale.

        Raises: UserError where a class has too few items to tell.
        """
        for key in classes.items():
            if key not in self.precisions:
                raise one_of("class with a covariance", key[1], [str(k) for name, k in self.precisions if name == key[0]])
        everyone = torch.stack([p for (name, _), p in self.precisions.items() if name in classes])
        asked = torch.stack([self.precisions[key] for key in classes.items()]).sum(0)
        root = torch.linalg.inv(torch.linalg.cholesky(everyone))
        largest = float(torch.linalg.eigvalsh(root @ (asked - len(classes) * everyone) @ root.mT).max())
        return -1 / largest if largest > 1e-12 else -math.inf


def summary(modality: Modality, split: Split, device: torch.device | str = "cpu") -> Moments | None:
    """The moments of up to `ITEMS` items of the training data, taken at random, as the codec encodes them; each is encoded once, and only
    its coordinates are kept. None where no attribute has classes, where x0 is of no fixed size, or where the data does not vary.

    The directions are the principal ones of up to `HELD` items, with their mean as the origin.
    """
    from guidance.train import to_device

    labels = {name: spec for name, spec in modality.conditions.items() if isinstance(spec, Label)}
    if not labels or modality.shape_of is not None or len(split) < LEAST:
        return None
    held = max(LEAST, min(HELD, NUMBERS // math.prod(modality.shape)))
    index = pick(len(split), min(len(split), ITEMS))
    size, conditions = min(256, held), []

    def encoded(rows: Sequence[int]) -> Float[Tensor, "n size"]:
        raw, condition = split.__getitems__(list(rows))
        conditions.append(condition)
        return modality.codec.encode(to_device(raw, torch.device(device))).flatten(1).cpu().double()

    def chunks(rows: Sequence[int]) -> list[list[int]]:
        ordered = sorted(rows)
        return [ordered[k : k + size] for k in range(0, len(ordered), size)]

    with torch.no_grad(), evaluating([modality.codec]):
        x = torch.cat([encoded(rows) for rows in chunks(index[:held])])
        mean = x.mean(0)
        x -= mean
        values, vectors = torch.linalg.eigh(x @ x.T)  # of n x n, where the covariance may be too large to be written down
        first = [k for k in range(len(values) - 1, -1, -1)[:DIRECTIONS] if values[k] > 1e-6 * values[-1]]
        if not bool(values[-1] > 0) or not first:
            return None
        directions = vectors[:, first].T @ x / values[first].sqrt()[:, None]
        points = torch.cat([x @ directions.T, *((encoded(rows) - mean) @ directions.T for rows in chunks(index[held:]))])
    condition = Condition.cat(conditions)
    whole = Groups.of(points, torch.zeros(len(points), dtype=torch.long), 1)
    groups = {name: torch.where(condition.keep[name], condition.values[name], -1).cpu() for name in labels}
    classes = {name: Groups.of(points, groups[name], len(spec.classes)) for name, spec in labels.items()}
    return Moments(mean.view(modality.shape), directions.view(-1, *modality.shape), whole, classes)


PARTS = ("mean", "covariance", "items")


def write(run: Path, moments: Moments) -> None:
    """Into a run, whole or not at all."""
    from safetensors.torch import save

    groups = {"all": moments.all, **{f"class.{name}": of for name, of in moments.classes.items()}}
    tensors = {f"{name}.{part}": getattr(of, part) for name, of in groups.items() for part in PARTS}
    tensors |= {"mean": moments.mean.float(), "directions": moments.directions.float()}
    write_atomically(run / MOMENTS, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read(run: Path) -> Moments | None:
    """A run's; None where it has none, as an older one, and, with a warning, where they cannot be read."""
    if not (run / MOMENTS).is_file():
        return None
    try:
        tensors = read_tensors(run / MOMENTS)
        names = [key.removesuffix(".items") for key in tensors if key.endswith(".items")]
        groups = {name: Groups(*(tensors[f"{name}.{part}"] for part in PARTS)) for name in names}
        classes = {name.removeprefix("class."): of for name, of in groups.items() if name != "all"}
        return Moments(tensors["mean"], tensors["directions"], groups["all"], classes)
    except (UserError, KeyError):
        warnings.warn(f"{run / MOMENTS} cannot be read, so it is not said which guidance has no density", stacklevel=2)
        return None


def known(model: "Model") -> Moments | None:
    """A model's moments; where its run has none, those of its data, which must be there."""
    from guidance.holdout import parse, without

    if model.moments is not None:
        return model.moments
    modality = model.modality
    return summary(modality, without(modality.data.train, parse(model.config.get("holdout", []), modality.conditions)), model.device)


@dataclass(frozen=True)
class Improper:
    """What was asked for, and has no density.

    ``terms``: the weight of every condition, in words. ``term`` is the one of them whose weight breaks it, and ``bound`` the weight down to
    which it would not, the null condition taking the rest; both None where no single one does.
    """

    terms: tuple[tuple[float, str], ...]
    term: int | None
    bound: float | None
    samples: int

    @property
    def asked(self) -> str:
        """ "scale -1 on digit=1", or the composition."""
        if len(self.terms) == 1:
            return f"scale {self.terms[0][0]:.4g} on {self.terms[0][1]}"
        words = [f"{'-' if a < 0 else '+'} {abs(a):.4g} * on({what})" for a, what in self.terms]
        return " ".join(words).removeprefix("+ ")

    @property
    def until(self) -> str:
        if self.term is None or self.bound is None:
            return ""
        if len(self.terms) == 1:
            return f"proper above {self.bound:.2g}"
        return f"proper while {self.terms[self.term][1]} weighs more than {self.bound:.2g}"

    def __str__(self) -> str:
        return (
            f"guidance at {self.asked}: no density is proportional to this on the Gaussian summary of the training data"
            f"{f' ({self.until})' if self.until else ''}; what is drawn has no target, and may leave the data"
        )


def improper(
    moments: Moments, conditions: Mapping[str, ConditionSpec], guidance: Guidance, terms: Sequence[Term], n: int
) -> list[Improper]:
    """Of all that n samples are asked for by a guidance's terms, each different one that has no density, those that break soonest first.

    Terms that name something which has no classes, or a class with too few items, are not judged; nor is what a guidance does beyond
    weighing its terms (a rule that projects or rescales, a gradient). One that has a density of its own (an OR, a complement) is proper.
    """
    own = WeightedSum.log_density
    if any(getattr(type(part), "log_density", own) is not own for part in nested(guidance)):
        return []
    names = [name for name in conditions if any(name in term.condition.keep for term in terms)]
    columns = []
    for term in terms:
        weight = torch.as_tensor(evaluate(term.weight, CLEAN), dtype=torch.float64).cpu().flatten()
        if len(weight) not in (1, n):  # which is refused when it is sampled
            return []
        columns.append(weight.expand(n))
        for name in names:
            spec, there, value = conditions[name], term.condition.keep.get(name), term.condition.values.get(name)
            if there is None or value is None or not len(there):
                columns.append(torch.full((n,), -1.0, dtype=torch.float64))
            else:  # -1: absent; -2: no class
                said = value.double() if isinstance(spec, Label) else there.double() * 0 - 2
                columns.append(torch.where(there, said, -1.0).cpu())
    rows, counts = torch.stack(columns, 1).unique(dim=0, return_counts=True)
    found = []
    for row, count in zip(rows[:LOOKED_AT].tolist(), counts.tolist(), strict=False):
        width = 1 + len(names)
        parts: dict[tuple[Class, ...], float] = {}
        for k in range(len(terms)):
            weight, *values = row[k * width : (k + 1) * width]
            key = tuple((name, int(v)) for name, v in zip(names, values, strict=True) if v != -1)
            parts[key] = parts.get(key, 0.0) + weight
        size = sum(map(abs, parts.values()))
        asked = {key: a for key, a in parts.items() if key and abs(a) > 1e-6 * size}
        if not moments.proper(spread(asked)):
            text = tuple((a, ", ".join(f"{name}={_class(conditions[name], k)}" for name, k in key)) for key, a in asked.items())
            found.append(Improper(text, *broken_by(moments, asked), count))
    return sorted(found, key=lambda one: -math.inf if one.bound is None else -one.bound)


def spread(asked: Mapping[tuple[Class, ...], float]) -> dict[Class, float]:
    """The weight of every class: of a joint condition each has the condition's own, and the null condition what is missing to 1."""
    weights: dict[Class, float] = {}
    for key, a in asked.items():
        for one in key:
            weights[one] = weights.get(one, 0.0) + a
    return weights


def broken_by(moments: Moments, asked: Mapping[tuple[Class, ...], float]) -> tuple[int | None, float | None]:
    """The term without which there would be a density, the one of the least weight where several are, and the weight down to which there is
    one (by bisection: the weights that have one are an interval)."""
    keys = list(asked)
    if len(keys) == 1:
        return 0, moments.lowest(dict(keys[0]))
    for key in sorted((key for key in keys if asked[key] < 0), key=lambda key: asked[key]):
        if not moments.proper(spread({**asked, key: 0.0})):
            continue
        low, high = asked[key], 0.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if moments.proper(spread({**asked, key: middle})) else (middle, high)
        return keys.index(key), high
    return None, None


def _class(spec: ConditionSpec, k: int) -> str:
    return spec.classes[k] if isinstance(spec, Label) else ""


def improper_of(model: "Model", moments: Moments | None, guidance: Guidance, condition: Condition, n: int) -> list[Improper]:
    """As `improper`, of a guidance and conditions as they are given to `Model.sample`."""
    if moments is None:
        return []
    guidance = rebuilt(guidance, lambda part: part.of(model, n) if isinstance(part, PerModel) else part)
    return improper(moments, model.modality.conditions, guidance, guidance.terms(condition), n)


def warn(found: Sequence[Improper]) -> None:
    """A line for each of the first ones, those that break soonest, and one for the rest."""
    for one in found[:SAID]:
        warnings.warn(str(one), stacklevel=3)
    if len(found) > SAID:
        warnings.warn(f"guidance: {len(found) - SAID} more of what is asked for have no density on that summary", stacklevel=3)


def at_scales(found: Sequence[tuple[float, Sequence[Improper]]]) -> str:
    """In a line: the scales at which what is asked for has no density; "" where there is none."""

    def first(ones: Sequence[Improper]) -> str:
        until = f", {ones[0].terms[0][1]} {ones[0].until}" if len(ones[0].terms) == 1 and ones[0].until else ""
        return f"{len(ones)} condition{'s' if len(ones) > 1 else ''}{until}"

    parts = [f"{scale:g} ({first(ones)})" for scale, ones in found if ones]
    return f"no density on the Gaussian summary of the training data at scale {', '.join(parts)}" if parts else ""
