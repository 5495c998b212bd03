"""How the conditioning dropout of training shapes guidance: models of one config, trained with different dropout."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

from guidance.condition import OTHERS, Partial
from guidance.errors import UserError
from guidance.estimate import Estimate
from guidance.experiment.asking import alone, items, labels
from guidance.experiment.cells import Cell
from guidance.experiment.figures import Panel, Series, label_of
from guidance.experiment.findings import Builder, Figure, Findings, Result, Table, Verdict, estimated, places, pooled
from guidance.experiment.mixing import share_as_asked, sum_of
from guidance.experiment.tradeoff import check_scales
from guidance.guide import CFG
from guidance.model import Model
from guidance.table import Row


@dataclass(frozen=True)
class DropoutStudy:
    """Each variant at every scale, with one attribute and, where there are several, with all jointly, and with the first two as a sum.

    Args:
        variants: name -> ``joint`` and ``each`` of `Dropout`; each is a training like the run's own. What is known in part (given words)
            keeps its rate.
        scales: of `CFG`, and the weights of the sums.
        steps: of the trainings, where they shall not be as long as the run's.
    """

    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scales: Sequence[float] = (0, 1, 1.5, 2, 3)
    steps: int | None = None

    title: ClassVar[str] = "Conditioning dropout"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(check_scales(self.scales)))
        if not self.variants:
            raise UserError("experiment.variants names no variant, e.g. {joint-0.1: {joint: 0.1, each: 0}}")
        for name, settings in self.variants.items():
            if not all(c.isalnum() or c in "-_." for c in name) or not isinstance(settings, Mapping):
                raise UserError(f"experiment.variants: {name!r} needs settings of dropout: joint, whole and each; got {settings!r}")
        if self.steps is not None and (isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1):
            raise UserError(f"experiment.steps is a whole number, at least 1, got {self.steps!r}")

    def watched(self, model: Model) -> Sequence[str]:
        return list(labels(model))[:2]

    def cells(self, model: Model, n: int) -> Sequence[Cell]:
        names, made = list(self.watched(model)), []
        every = items(model, model.modality.data.train, n, list(labels(model))) if len(names) > 1 else {}
        both = {name: every[name] for name in names if name in every}
        for variant in self.variants:
            asked = alone(model, n, names[0])
            made += [Cell({"dropout": variant, "how": "alone", "scale": s}, CFG(s), asked, variant=variant) for s in self.scales]
            if both:
                made += [Cell({"dropout": variant, "how": "joint", "scale": s}, CFG(s), every, variant=variant) for s in self.scales if s]
                made += [
                    Cell(
                        {"dropout": variant, "how": "sum", "scale": s}, sum_of(model, both, dict.fromkeys(names, s)), both, variant=variant
                    )
                    for s in self.scales
                    if s
                ]
        return made

    def trainings(self, model: Model) -> Mapping[str, Mapping[str, Any]]:
        own = model.config["dropout"]
        kept = {n: rate_of(own["each"], n) for n, spec in model.modality.conditions.items() if isinstance(spec, Partial)}
        made = {}
        for name, settings in self.variants.items():
            one = deepcopy(dict(model.config))
            each = settings.get("each", 0.0)
            if kept:
                each = {**(each if isinstance(each, Mapping) else {OTHERS: each}), **kept}
            whole = {"whole": settings["whole"]} if settings.get("whole") else {}
            one["dropout"] = {"_target_": own["_target_"], "joint": settings.get("joint", 0.0), **whole, "each": each}
            if self.steps is not None:
                one["trainer"] = {**one["trainer"], "steps": self.steps}
            made[name] = one
        return made

    def findings(self, results: Sequence[Result]) -> Findings:
        built, there = Builder(), places(results)
        names = list(results[0].facts["attributes"])
        rows: list[Row] = []
        for place in there:
            row: dict[str, Any] = dict(place)
            for measure in ("accuracy", "frechet", "inception_score", "recall"):
                row[measure] = pooled(results, place, estimated(measure))
            if place["how"] != "alone":
                row["both_right"] = pooled(results, place, share_as_asked(dict.fromkeys(names, 1.0)))
            rows.append({key: value for key, value in row.items() if value is not None})
        both = " and ".join(names)
        caption = f"alone: the classes of {names[0]} in turn; joint: all attributes of training items; sum: {both}, from single conditions."
        built.tables.append(Table("dropout", caption, rows))

        def lines(how: str, measure: str) -> list[Series]:
            made = []
            for variant in self.variants:
                of = [r for r in rows if r["dropout"] == variant and r["how"] == how and measure in r]
                made += [Series(variant, [r["scale"] for r in of], [r[measure] for r in of])] if of else []
            return made

        units = results[0].facts["units"]
        panels = [
            Panel("guidance scale", label_of("frechet", units), lines("alone", "frechet"), title=f"{names[0]} alone"),
            Panel("guidance scale", label_of("accuracy", units), lines("alone", "accuracy"), title=f"{names[0]} alone"),
        ]
        if len(names) > 1:
            both = f"share of samples with {both} right"
            panels += [
                Panel("guidance scale", label_of("frechet", units), lines("joint", "frechet"), title="jointly conditioned"),
                Panel("guidance scale", both, lines("joint", "both_right"), title="jointly conditioned"),
                Panel("weight of each condition", both, lines("sum", "both_right"), title="sum of single conditions"),
            ]
        built.figures.append(Figure("dropout", "The same model, trained with different conditioning dropout.", panels))
        built.verdicts += [v for v in (self._best(rows), self._composing(rows)) if v]
        return built.findings()

    def _best(self, rows: Sequence[Row]) -> Verdict | None:
        """Which variant has the least Frechet distance, jointly conditioned where that was measured: at its best scale."""
        how = "joint" if any(row["how"] == "joint" for row in rows) else "alone"
        best: dict[str, Row] = {}
        for variant in self.variants:
            of = [row for row in rows if row["dropout"] == variant and row["how"] == how and row["scale"] > 0]
            if of:
                best[variant] = min(of, key=lambda row: row["frechet"].value)
        if len(best) < 2:
            return None
        order = sorted(best, key=lambda name: best[name]["frechet"].value)
        first, last = (best[name]["frechet"] for name in (order[0], order[-1]))
        answer = f"{order[-1]} is worst" if last.low > first.high else "No difference that these samples can show"
        evidence = (
            "Least Frechet distance: "
            + "; ".join(f"{name} {best[name]['frechet']} at scale {best[name]['scale']:g}" for name in order)
            + "."
        )
        return Verdict("Which conditioning dropout gives the best samples?", answer, evidence)

    def _composing(self, rows: Sequence[Row]) -> Verdict | None:
        best: dict[str, Estimate] = {}
        for variant in self.variants:
            of = [row["both_right"] for row in rows if row["dropout"] == variant and row["how"] == "sum"]
            if of:
                best[variant] = max(of, key=lambda e: e.value)
        if len(best) < 2:
            return None
        order = sorted(best, key=lambda name: -best[name].value)
        first, second = best[order[0]], best[order[1]]
        answer = (
            f"{order[0]}"
            if first.low > second.high
            else f"{order[0]} and {order[1]} alike"
            if first.low > best[order[-1]].high
            else "All alike"
        )
        evidence = "Both attributes right in a sum, at the best weight: " + "; ".join(f"{name} {best[name]}" for name in order) + "."
        return Verdict("Which conditioning dropout lets single conditions be summed?", answer, evidence)


def rate_of(each: float | Mapping[str, float], name: str) -> float:
    return each.get(name, each.get(OTHERS, 0.0)) if isinstance(each, Mapping) else each
