"""What can be said of samples: their words, and what judges see in them."""

from collections.abc import Mapping
from typing import Any

from guidance.condition import Label
from guidance.errors import UserError
from guidance.modality import Judge
from guidance.model import Model


class Seen:
    """What is said of samples, batch after batch: their words, and the class that each attribute's judge sees, with its probability.

    Args:
        wanted: whether to ask judges; None: where samples are words, unless the data to train judges on is not there.
    """

    def __init__(self, model: Model, wanted: bool | None):
        self.model, self.wanted = model, wanted
        self.texts: list[str] = []
        self.classes: dict[str, list[tuple[str, float]]] = {}
        self.judges = self._judges() if wanted else None

    def _judges(self) -> Mapping[str, Judge]:
        modality = self.model.modality
        labels = [name for name, spec in modality.conditions.items() if isinstance(spec, Label)]
        return {name: modality.metrics.judge(modality.data, name) for name in labels}

    def __call__(self, decoded: Any) -> None:
        modality = self.model.modality
        words = modality.render.words(decoded)
        self.texts += words
        if self.wanted is None and words and self.judges is None:
            try:
                self.judges = self._judges()
            except UserError as error:
                self.judges = {}
                print(f"no judge's view of the samples: {error}")
        for name, judge in (self.judges or {}).items():
            spec = modality.conditions[name]
            assert isinstance(spec, Label)
            best = judge(decoded)[1].softmax(-1).max(-1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            self.classes.setdefault(name, []).extend((spec.classes[k], round(p, 4)) for k, p in pairs)

    def rows(self, n: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"text": text} for text in self.texts] or [{} for _ in range(n)]
        for name, found in self.classes.items():
            for row, pair in zip(rows, found, strict=False):
                row.setdefault("seen", {})[name] = pair
        return rows
