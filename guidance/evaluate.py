"""A model measured over a range of guidance scales, from the same starting noise at every scale."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidance import measures
from guidance.condition import Label
from guidance.errors import UserError, one_of
from guidance.guide import CFG
from guidance.judge import read
from guidance.modality import Judge
from guidance.model import Model
from guidance.sampler import Callback, Progress


def label_attribute(model: Model, attribute: str | None) -> tuple[str, Label]:
    """The attribute to evaluate (the first one with classes by default) and its classes."""
    labels = {name: spec for name, spec in model.modality.conditions.items() if isinstance(spec, Label)}
    if not labels:
        raise UserError("this model has no attribute with classes, so there is nothing to evaluate guidance by")
    name = next(iter(labels)) if attribute is None else attribute
    if name not in labels:
        raise one_of("attribute with classes", name, list(labels))
    return name, labels[name]


@dataclass(frozen=True)
class Reference:
    """Real data, as the judge sees it, to measure samples against."""

    judge: Judge
    train: Tensor  # features
    train_flat: Tensor
    test_flat: Tensor
    real: Mapping[str, Any]  # the measures of the held-out data themselves: the floor


def _measured(model: Model, decoded: Any, label: Tensor, ref: tuple[Judge, Tensor, Tensor, Tensor]) -> dict[str, Any]:
    judge, train, train_flat, test_flat = ref
    features, logits = judge(decoded)
    precision, recall = measures.precision_recall(features, train)
    flat = model.modality.metrics.flat(decoded)
    return {
        "accuracy": (logits.argmax(-1) == label).float().mean().item(),
        "frechet": measures.frechet(features, train),
        "inception_score": measures.inception_score(logits),
        "precision": precision,
        "recall": recall,
        "diversity": measures.diversity(features, label),
        "copies": measures.copies(flat, train_flat, test_flat),
        **{name: values.mean().item() for name, values in model.modality.metrics.measure(decoded).items()},
    }


def reference(model: Model, attribute: str) -> Reference:
    """Judge and real data of a model's data set. The held-out data, measured like samples, is what samples can hope for."""
    data, metrics = model.modality.data, model.modality.metrics
    if len(data.test) < 2:
        raise UserError(f"{data.name} has {len(data.test)} held out samples; measuring takes at least 2")
    judge = metrics.judge(data, attribute)
    codec = model.modality.codec
    with torch.no_grad():
        train, _ = read(data.train, attribute)
        test, test_label = read(data.test, attribute)
        decoded_train, decoded_test = (codec.decode(torch.cat([codec.encode(raw) for raw in part])) for part in (train, test))
    features, _ = judge(decoded_train)
    flat_train, flat_test = metrics.flat(decoded_train), metrics.flat(decoded_test)
    real = _measured(model, decoded_test, test_label, (judge, features, flat_train, flat_test))
    return Reference(judge, features, flat_train, flat_test, {"scale": "real", "n": len(test_label), **real, "evaluations": 0.0})


def evaluate(
    model: Model,
    scales: Sequence[float],
    n: int = 500,
    *,
    attribute: str | None = None,
    draw: Callable[..., Any] | None = None,
    ref: Reference | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[list[dict[str, Any]], Reference]:
    """One row a scale: accuracy of the named class, Frechet distance to the training data, inception score, precision and recall,
    diversity within class, share of near-copies of training data, the modality's own measures, and the network evaluations a
    sample and step. n samples, classes in turn; further attributes are absent.

    Args:
        draw: `model.sample`, with any of its settings bound (`functools.partial`).
        ref: the real data, where `reference` has been called for it already.
        callbacks: called after every sampling step of every scale.
    """
    name, spec = label_attribute(model, attribute)
    ref = ref or reference(model, name)
    label = torch.arange(n) % len(spec.classes)
    draw = draw or model.sample
    rows = []
    for scale in scales:
        counter = Evaluations()
        decoded = draw(n, {name: [spec.classes[k] for k in label]}, guidance=CFG(scale), callbacks=[counter, *callbacks])
        measured = _measured(model, decoded, label, (ref.judge, ref.train, ref.train_flat, ref.test_flat))
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


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same for reading: columns aligned, four digits."""

    def cell(key: str, value: Any) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:g}" if key == "scale" else f"{value:.3f}"

    cells = [[key.replace("_", " ") for key in rows[0]], *([cell(k, v) for k, v in row.items()] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells)
