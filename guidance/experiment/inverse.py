"""Inverse guidance: the opposite of a condition, or merely something else?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from guidance.errors import UserError, one_of
from guidance.evaluate import label_attribute
from guidance.experiment.asking import alone, labels
from guidance.experiment.cells import Cell
from guidance.experiment.classes import add_classes
from guidance.experiment.findings import Builder, Findings, Result, places
from guidance.experiment.order import ENDS, add_order
from guidance.experiment.tradeoff import check_scales
from guidance.guide import CFG
from guidance.model import Model


@dataclass(frozen=True)
class Inverse:
    """One attribute's classes in turn at scales below and up to 1; and the lowest and the highest level of every ordered attribute.

    Args:
        scales: of `CFG`; 0, the unconditional model, is always among them, and so is 1.
        attribute: whose classes are named in turn; the first by default.
        ordered: attributes with an order; by default all that have one.
        ordered_scales: for those; by default the same scales.
    """

    scales: Sequence[float]
    attribute: str | None = None
    ordered: Sequence[str] | None = None
    ordered_scales: Sequence[float] | None = None

    title: ClassVar[str] = "Inverse guidance"

    def __post_init__(self) -> None:
        for name in ("scales", "ordered_scales"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, tuple(sorted({*check_scales(given, name), 0.0, 1.0})))

    def watched(self, model: Model) -> Sequence[str]:
        first = label_attribute(model, self.attribute)[0]
        return [first, *(name for name in self._ordered(model) if name != first)]

    def _ordered(self, model: Model) -> list[str]:
        known = {name: spec for name, spec in labels(model).items() if spec.levels}
        if self.ordered is None:
            return list(known)
        for name in self.ordered:
            if name in labels(model) and name not in known:
                having = f"; ordered are {', '.join(known)}" if known else ""
                raise UserError(f"experiment.ordered: {name} has no order, so it has no opposite to look for{having}")
            if name not in known:
                raise one_of("ordered attribute", name, list(known))
        return list(self.ordered)

    def cells(self, model: Model, n: int) -> Sequence[Cell]:
        first = label_attribute(model, self.attribute)[0]
        made = [Cell({"named": first, "scale": s}, CFG(s), alone(model, n, first)) for s in self.scales]
        for name in self._ordered(model):
            spec = labels(model)[name]
            for end, level in zip(ENDS, (spec.levels[0], spec.levels[-1]), strict=True):
                asked = alone(model, n, name, [spec.classes.index(c) for c in level])
                scales = [s for s in self.ordered_scales or self.scales if s]  # 0 is the same samples as above
                made += [Cell({"named": f"{name} {end}", "scale": s}, CFG(s), asked) for s in scales]
        return made

    def trainings(self, model: Model) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def findings(self, results: Sequence[Result]) -> Findings:
        built, facts = Builder(), results[0].facts
        first = next(iter(facts["attributes"]))
        there = places(results)
        add_classes(built, results, first, [p for p in there if p["named"] == first])
        for name, spec in facts["attributes"].items():
            if spec["levels"]:
                add_order(built, results, first, name, there)
        return built.findings()
