"""A model measured over a range of guidance scales, from the same starting noise at every scale."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance import measures
from guidance.condition import Condition, Label, Partial
from guidance.errors import UserError, one_of
from guidance.guide import CFG
from guidance.judge import read
from guidance.modality import Judge, Metrics, Split
from guidance.model import Model
from guidance.sampler import Callback, Progress
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
            split, evenly taken (held-out data may hold combinations that training did not), but for those that may be known in
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
    raw, condition = split.__getitems__([k * len(split) // n for k in range(n)])
    if attribute and not bool(condition.keep[attribute].all()):
        known = with_attribute(split, attribute)
        raw, condition = split.__getitems__([known[k * len(known) // n] for k in range(n)])
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
    label: Int[Tensor, "n"]
    train_flat: Tensor
    test_flat: Tensor
    real: Mapping[str, Any]  # the measures of the held-out data themselves: the floor

    def measured(self, metrics: Metrics, samples: Any, of: Cases) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.judge is not None and self.features is not None:
            features, logits = self.judge(samples)
            precision, recall = measures.precision_recall(features, self.features)
            found = {
                "accuracy": (logits.argmax(-1) == of.label).float().mean().item(),
                "frechet": measures.frechet(features, self.features),
                "inception_score": measures.inception_score(logits),
                "modified_inception_score": measures.modified_inception_score(logits),
                "am_score": measures.am_score(logits, self.label),
                "precision": precision,
                "recall": recall,
                "diversity": measures.diversity(features, of.label),
            }
        found["copies"] = measures.copies(metrics.flat(samples), self.train_flat, self.test_flat)
        own = metrics.measure(samples, of.condition, of.original)
        return found | {name: value.nanmean().item() if isinstance(value, Tensor) else value for name, value in own.items()}


def reference(model: Model, attribute: str | None) -> Reference:
    """Judge and real data of a model's data set. The held-out data, measured like samples, is what samples can hope for."""
    data, metrics = model.modality.data, model.modality.metrics
    if len(data.test) < 2:
        raise UserError(f"{data.name} has {len(data.test)} held out samples; measuring takes at least 2")
    judge = metrics.judge(data, attribute) if attribute else None
    (train, label, _), (test, test_label, condition) = (read(part, attribute) for part in (data.train, data.test))
    known, held_out = decoded(model, train), decoded(model, test)
    features = judge(known)[0] if judge else None
    found = Reference(judge, features, label, metrics.flat(known), metrics.flat(held_out), {})
    real = found.measured(metrics, held_out, Cases(condition, test_label, held_out))
    return replace(found, real={"scale": "real", "n": len(test_label), **real, "evaluations": 0.0})


def evaluate(
    model: Model,
    scales: Sequence[float],
    n: int = 500,
    *,
    attribute: str | None = None,
    given: str = "alone",
    draw: Callable[..., Any] | None = None,
    ref: Reference | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[list[dict[str, Any]], Reference]:
    """One row a scale: accuracy of the asked-for class, Frechet distance to the training data, inception, modified inception and AM
    score, precision and recall, diversity within class, share of near-copies of training data, the modality's own measures, and
    the network evaluations a sample and step. n samples, asked for as `cases` says.

    Args:
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
        samples = draw(n, of.condition, guidance=CFG(scale), callbacks=[counter, *callbacks])
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


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that was measured in any row, the evaluations last; what does not apply to a row stays empty there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name != "evaluations"] + [name for name in names if name == "evaluations"]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same for reading: columns aligned, four digits."""

    def cell(key: str, value: Any) -> str:
        if not isinstance(value, float):
            return "" if value is None else str(value)
        return f"{value:g}" if key == "scale" else f"{value:.3f}"

    names = columns(rows)
    cells = [[name.replace("_", " ") for name in names], *([cell(name, row.get(name)) for name in names] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells)
