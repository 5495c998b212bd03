"""What is seen of samples: the class of each attribute by a judge or, where something measurable orders its classes, by a ruler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance import estimate
from guidance.condition import Label
from guidance.errors import UserError
from guidance.estimate import Estimate
from guidance.evaluate import Cases, Reference, decoded, label_attribute, reference
from guidance.experiment.asking import condition_of
from guidance.judge import read
from guidance.modality import Judge, Split
from guidance.model import Model

MOST = 1500  # items that a ruler is marked by


@dataclass(frozen=True)
class Ruler:
    """Tells an attribute's classes apart by a quantity that orders them; no judge is needed."""

    order: tuple[int, ...]  # the classes, from least to most
    marks: tuple[float, ...]  # between neighbours
    accuracy: float  # on held-out data

    def __call__(self, quantity: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
        """The class of each value; -1 for NaN."""
        place = torch.bucketize(quantity.double(), torch.tensor(self.marks, dtype=torch.float64))
        return torch.where(quantity.isnan(), -1, torch.tensor(self.order)[place])


def mark(less: Float[Tensor, "n"], more: Float[Tensor, "m"]) -> float:
    """Where to cut so that the mean of both sides' shares of errors is least; in the middle of all places that are as good. NaN, a quantity
    that does not apply, says nothing."""
    less, more = less[~less.isnan()], more[~more.isnan()]
    values = torch.cat([less, more]).double().unique()
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    errors = (less.double() > cuts[:, None]).double().mean(1) + (more.double() <= cuts[:, None]).double().mean(1)
    best = cuts[errors <= errors.min() + 1e-12]
    return float((best[0] + best[-1]) / 2)


class Observer:
    """The judges, rulers and real data that a model's samples are measured by.

    Args:
        attributes: those to see; the first is the one whose judge carries the distances to real data.
    """

    def __init__(self, model: Model, attributes: Sequence[str]):
        self.model, self.attributes = model, list(attributes)
        self.labels = {name: label_attribute(model, name)[1] for name in self.attributes}
        self.reference: Reference = reference(model, self.attributes[0])
        self.judges: dict[str, Judge] = {}
        self.rulers: dict[str, Ruler] = {}
        for name, label in self.labels.items():
            if label.quantity:
                self.rulers[name] = self._ruler(name, label)
            else:
                self.judges[name] = model.modality.metrics.judge(model.modality.data, name)

    def _quantity(self, split: Split, name: str, label: Label) -> tuple[Tensor, Tensor]:
        """A quantity, and the attribute's classes, of real items."""
        raw, values, condition = read(split, name, MOST)
        measured = self.model.modality.metrics.measure(decoded(self.model, raw), condition.drop())
        if label.quantity not in measured:
            raise UserError(f"{name} is ordered by {label.quantity!r}, which is not among the measures: {', '.join(measured)}")
        return measured[label.quantity], values

    def _ruler(self, name: str, label: Label) -> Ruler:
        data = self.model.modality.data
        order = tuple(label.classes.index(c) for level in label.levels for c in level) or tuple(range(len(label.classes)))
        quantity, values = self._quantity(data.train, name, label)
        of = [quantity[values == k] for k in order]
        for k, part in zip(order, of, strict=True):
            if bool(part.isnan().all()):
                raise UserError(f"there is no training item of {name}={label.classes[k]} to mark a ruler by")
        marks = tuple(mark(a, b) for a, b in pairwise(of))
        marks = tuple(torch.tensor(marks, dtype=torch.float64).cummax(0).values.tolist())
        quantity, values = self._quantity(data.test, name, label)
        ruler = Ruler(order, marks, 0.0)
        return Ruler(order, marks, float((ruler(quantity) == values).double().mean()))

    def distances(self) -> Float[Tensor, "classes classes"]:
        """How far the classes of the first attribute are from each other: the means of real items in the judge's features."""
        ref, count = self.reference, len(self.labels[self.attributes[0]].classes)
        assert ref.features is not None
        means = torch.stack([ref.features[ref.label == k].mean(0) for k in range(count)])
        return torch.cdist(means, means)

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Of how each attribute is seen, on held-out data."""
        return {name: self.rulers[name].accuracy if name in self.rulers else self.judges[name].accuracy for name in self.attributes}

    def __call__(self, samples: Any, asked: Mapping[str, Int[Tensor, "n"]]) -> tuple[dict[str, Estimate], dict[str, Tensor]]:
        """Estimates of the samples together, and arrays of each (see `Measured`)."""
        n, metrics = len(samples), self.model.modality.metrics
        main = self.attributes[0]
        absent = torch.full((n,), -1)
        condition = condition_of(asked)
        quantities = metrics.measure(samples, condition)
        arrays: dict[str, Tensor] = {name: value.float() for name, value in quantities.items()}
        for name in self.attributes:
            arrays[f"asked.{name}"] = asked.get(name, absent)
            if name in self.rulers:
                arrays[f"class.{name}"] = seen = self.rulers[name](quantities[self.labels[name].quantity])
                arrays[f"p.{name}"] = (seen[:, None] == torch.arange(len(self.labels[name].classes))).float()
            else:
                logits = self.judges[name](samples)[1]
                arrays[f"class.{name}"], arrays[f"p.{name}"] = logits.argmax(-1), logits.double().softmax(-1).float()
        found = self.reference.measured(metrics, samples, Cases(condition, asked.get(main, absent)), quantities)
        if main not in asked:  # nothing was named: there is nothing to be right about
            del found["accuracy"], found["diversity"]
        for name in self.attributes:
            if name in asked:
                found[f"right.{name}"] = estimate.share(arrays[f"class.{name}"] == asked[name])
        return found, arrays
