"""A model measured over a range of guidance scales, from the same starting noise at every scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance import estimate, measures
from guidance.condition import Condition, Label, Partial
from guidance.errors import UserError, one_of
from guidance.estimate import Estimate
from guidance.guide import CFG, Guidance
from guidance.judge import read
from guidance.modality import Judge, Metrics, Split
from guidance.model import Model
from guidance.noise import permutation
from guidance.sampler import Callback, Progress
from guidance.split import pick
from guidance.train import to_device


def label_attribute(model: Model, attribute: str | None) -> tuple[str, Label]:
    """The attribute to evaluate (the first one with classes by default) and its classes."""
    labels = {name: spec for name, spec in model.modality.conditions.items() if isinstance(spec, Label)}
    if not labels:
        raise UserError("this model has no attribute with classes, so there is nothing to evaluate guidance by")
    name = next(iter(labels)) if attribute is None else attribute
    if name not in labels:
        raise one_of("attribute with classes", name, list(labels))
    return name, labels[name]


GIVEN = ("alone", "train", "test")


def default_attribute(model: Model, attribute: str | None) -> str | None:
    """The attribute to evaluate by: the one named, or the first with classes; None for a model that has none."""
    if attribute is None and not any(isinstance(spec, Label) for spec in model.modality.conditions.values()):
        return None
    return label_attribute(model, attribute)[0]


@dataclass(frozen=True)
class Cases:
    """What n samples are asked for, the class that a judge should see in each, and the real data that the conditions come from."""

    condition: Condition
    label: Int[Tensor, "n"]
    original: Any = None  # decoded


def cases(model: Model, n: int, attribute: str | None, given: str = "alone") -> Cases:
    """Conditions to measure by.

    Args:
        attribute: the one whose accuracy is taken; None where there is no attribute with classes.
        given: "alone": its classes in turn, all other attributes absent; "train" or "test": all attributes of n items of that
            split, taken at random (held-out data may hold combinations that training did not), but for those that may be known in
            part: they would give the item itself.
    """
    if given not in GIVEN:
        raise one_of("given", given, GIVEN)
    if given == "alone":
        if attribute is None:
            raise UserError("this model has no attribute with classes: evaluate it with given=test, the conditions of held-out data")
        _, spec = label_attribute(model, attribute)
        label = torch.arange(n) % len(spec.classes)
        return Cases(model.condition(n, {attribute: [spec.classes[k] for k in label]}), label)
    split = getattr(model.modality.data, given)
    if not len(split):
        raise UserError(f"{model.modality.data.name} has no {given} items")
    raw, condition = split.__getitems__(pick(len(split), n))
    if attribute and not bool(condition.keep[attribute].all()):
        known = with_attribute(split, attribute)
        raw, condition = split.__getitems__([known[k] for k in pick(len(known), n)])
    partial = [name for name, spec in model.modality.conditions.items() if isinstance(spec, Partial) and name in condition.keep]
    condition = condition.drop(*partial) if partial else condition
    label = condition.values[attribute] if attribute else torch.zeros(n, dtype=torch.long)
    return Cases(condition, label, decoded(model, [raw]))


def with_attribute(split: Split, attribute: str, chunk: int = 512) -> Sequence[int]:
    """The items of which an attribute is known."""
    chunks = (list(range(k, min(k + chunk, len(split)))) for k in range(0, len(split), chunk))
    keep = torch.cat([split.__getitems__(rows)[1].keep[attribute] for rows in chunks])
    if not bool(keep.any()):
        raise UserError(f"there is no item whose {attribute} is known to measure by")
    found: list[int] = keep.nonzero().flatten().tolist()
    return found


@torch.no_grad()
def decoded(model: Model, raw: Sequence[Any]) -> Any:
    """Raw batches as the codec gives them back: real data in the form of samples."""
    codec = model.modality.codec
    return codec.decode(torch.cat([codec.encode(to_device(part, model.device)) for part in raw]))


@dataclass(frozen=True)
class Reference:
    """Real data, as the judge sees it, to measure samples against."""

    judge: Judge | None  # None for a model without an attribute that has classes
    features: Float[Tensor, "n f"] | None  # of the training data
    radius: Float[Tensor, "n"] | None  # of its manifold
    label: Int[Tensor, "n"]
    flat: Float[Tensor, "n size"]  # the training data, as copies of it are told
    copy_distance: Float[Tensor, ""]
    real: Mapping[str, Estimate]  # the measures of the held-out data themselves: the floor
    n: int  # held-out items

    def measured(
        self, metrics: Metrics, samples: Any, of: Cases, quantities: Mapping[str, Float[Tensor, "n"]] | None = None
    ) -> dict[str, Estimate]:
        """Every measure of some samples, with its interval; what a judge sees of them first. ``quantities``: the modality's own, where
        they have been measured already."""
        found: dict[str, Estimate] = {}
        if self.judge is not None:
            found = self.judged(*self.judge(samples), of.label)
        found["copies"] = estimate.share(measures.nearest(metrics.flat(samples), self.flat) <= self.copy_distance)
        own = metrics.measure(samples, of.condition, of.original) if quantities is None else quantities
        found |= {name: estimate.of(value) for name, value in own.items()}
        return found | self.together(metrics, samples)

    def judged(self, features: Float[Tensor, "n f"], logits: Float[Tensor, "n classes"], label: Int[Tensor, "n"]) -> dict[str, Estimate]:
        assert self.features is not None and self.radius is not None
        real, radius = self.features, self.radius

        def recall(index: Tensor) -> float:
            chosen = features[index]
            return float(measures.within(real, chosen, measures.radii(chosen)).float().mean())

        statistics: dict[str, Callable[[Tensor], float]] = {
            "frechet": lambda index: measures.frechet(features[index], real),
            "inception_score": lambda index: measures.inception_score(logits[index]),
            "modified_inception_score": lambda index: measures.modified_inception_score(logits[index]),
            "am_score": lambda index: measures.am_score(logits[index], self.label),
            "recall": recall,
            "diversity": lambda index: measures.diversity(features[index], label[index]),
        }
        with torch.random.fork_rng(devices=[]):  # torchmetrics' inception score sums in a random order: let it be the same one for all
            torch.manual_seed(0)
            return {
                "accuracy": estimate.share(logits.argmax(-1) == label),
                "precision": estimate.share(measures.within(features, real, radius)),
                **{name: estimate.statistic(function, len(features)) for name, function in statistics.items()},
            }

    def together(self, metrics: Metrics, samples: Any) -> dict[str, Estimate]:
        known: dict[bytes, Mapping[str, float]] = {}  # all quantities of a group of samples are made at once

        def of(index: Tensor) -> Mapping[str, float]:
            key = index.numpy().tobytes()
            if key not in known:
                known[key] = metrics.together(chosen(samples, index))
            return known[key]

        def one(name: str) -> Estimate:
            return estimate.statistic(lambda index: of(index)[name], len(samples))

        return {name: one(name) for name in of(torch.arange(len(samples)))}


def chosen(samples: Any, index: Int[Tensor, "m"]) -> Any:
    """Some of decoded samples, which are a tensor or a list."""
    return samples[index] if isinstance(samples, Tensor) else [samples[k] for k in index.tolist()]


def reference(model: Model, attribute: str | None) -> Reference:
    """Judge and real data of a model's data set. The held-out data, measured like samples, is what samples can hope for."""
    data, metrics = model.modality.data, model.modality.metrics
    if len(data.test) < 2:
        raise UserError(f"{data.name} has {len(data.test)} held out samples; measuring takes at least 2")
    judge = metrics.judge(data, attribute) if attribute else None
    (train, label, _), (test, test_label, condition) = (read(part, attribute) for part in (data.train, data.test))
    known, held_out = decoded(model, train), decoded(model, test)
    features = judge(known)[0] if judge else None
    radius = None if features is None else measures.radii(features)
    flat = metrics.flat(known)
    copy_distance = measures.copy_distance(flat, metrics.flat(held_out))
    found = Reference(judge, features, radius, label, flat, copy_distance, {}, len(test_label))
    mixed = torch.from_numpy(permutation(0, 0, len(test_label)))  # data may come class by class, and intervals are over blocks
    held_out, of = chosen(held_out, mixed), Cases(condition.rows(mixed), test_label[mixed], chosen(held_out, mixed))
    return replace(found, real=found.measured(metrics, held_out, of))


def evaluate(
    model: Model,
    scales: Sequence[float],
    n: int = 500,
    *,
    attribute: str | None = None,
    given: str = "alone",
    guide: Callable[[float], Guidance] = CFG,
    draw: Callable[..., Any] | None = None,
    ref: Reference | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[list[dict[str, Any]], Reference]:
    """One row a scale: accuracy of the asked-for class, Frechet distance to the training data, inception, modified inception and AM
    score, precision and recall, diversity within class, share of near-copies of training data, the modality's own measures, and
    the network evaluations a sample and step. n samples, asked for as `cases` says.

    Args:
        guide: the guidance at a scale.
        draw: `model.sample`, with any of its settings bound (`functools.partial`).
        ref: the real data, where `reference` has been called for it already.
        callbacks: called after every sampling step of every scale.
    """
    name = default_attribute(model, attribute)
    ref = ref or reference(model, name)
    of = cases(model, n, name, given)
    draw = draw or model.sample
    rows = []
    for scale in scales:
        counter = Evaluations()
        samples = draw(n, of.condition, guidance=guide(scale), callbacks=[counter, *callbacks])
        measured = ref.measured(model.modality.metrics, samples, of)
        rows.append({"scale": float(scale), "n": n, **measured, "evaluations": counter.rows / (n * counter.steps)})
    return rows, ref


class Evaluations:
    """A callback that counts network evaluations (rows) and calls, over all batches of a run of ``steps`` steps."""

    def __init__(self) -> None:
        self.steps = self.rows = self.calls = 0
        self._before = (0, 0)

    def __call__(self, progress: Progress) -> None:
        if progress.step == 1:
            self._before = self.rows, self.calls
        self.steps, self.rows, self.calls = progress.steps, self._before[0] + progress.rows, self._before[1] + progress.calls
