"""Fidelity against diversity, over guidance scales and numbers of steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guidance.errors import UserError
from guidance.estimate import Estimate
from guidance.evaluate import label_attribute
from guidance.experiment.asking import GIVEN, given, labels
from guidance.experiment.cells import Cell
from guidance.experiment.figures import Panel, Series, label_of
from guidance.experiment.findings import Builder, Figure, Findings, Result, Table, Verdict, estimated, places, pooled, sheet_of
from guidance.guide import CFG
from guidance.model import Model
from guidance.table import Row

FIDELITY = ("accuracy", "frechet", "inception_score", "precision", "recall", "diversity")


def check_scales(scales: Any, what: str = "scales") -> list[float]:
    """UserError for what is no list of finite numbers, none twice."""
    if not isinstance(scales, list | tuple) or not scales:
        raise UserError(f"experiment.{what} is a list of numbers, e.g. [-1,0,1,3], got {scales!r}")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise UserError(f"experiment.{what} takes finite numbers, got {scale!r}")
    if len({float(s) for s in scales}) < len(scales):
        raise UserError(f"experiment.{what} names a number twice: {list(scales)}")
    return [float(scale) for scale in scales]


@dataclass(frozen=True)
class Tradeoff:
    """Every scale with every number of steps, the classes of one attribute in turn.

    Args:
        scales: of `CFG`.
        steps: of the sampler; none: the run's own.
        attribute: whose classes are asked for; the first by default.
        given: "alone", or "train": with the other attributes of training items.
    """

    scales: Sequence[float]
    steps: Sequence[int] = ()
    attribute: str | None = None
    given: str = "alone"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(check_scales(self.scales)))
        for steps in self.steps:
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
                raise UserError(f"experiment.steps are whole numbers, at least 1, got {steps!r}")
        if len(set(self.steps)) < len(self.steps):
            raise UserError(f"experiment.steps names a number twice: {list(self.steps)}")
        if self.given not in GIVEN:
            raise UserError(f"experiment.given is {' or '.join(GIVEN)}, got {self.given!r}")

    @property
    def title(self) -> str:
        return "Fidelity against diversity" + (", by steps" if self.steps else "")

    def watched(self, model: Model) -> Sequence[str]:
        first = label_attribute(model, self.attribute)[0]
        return [first, *(name for name in labels(model) if name != first)] if self.given == "train" else [first]

    def cells(self, model: Model, n: int) -> Sequence[Cell]:
        asked = given(model, n, self.watched(model)[0], self.given)
        if not self.steps:
            return [Cell({"scale": scale}, CFG(scale), asked) for scale in self.scales]
        return [Cell({"steps": steps, "scale": scale}, CFG(scale), asked, steps) for steps in self.steps for scale in self.scales]

    def trainings(self, model: Model) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def findings(self, results: Sequence[Result]) -> Findings:
        there, built = places(results), Builder()
        facts = results[0].facts
        units, real = facts["units"], {name: Estimate(*values) for name, values in facts["real"].items()}
        measures = list(dict.fromkeys(name for cell in results[0].cells for name in cell.estimates))
        rows: list[Row] = [{"scale": "real", "n": facts["held_out"], **real}]
        for place in there:
            values = {name: pooled(results, place, estimated(name)) for name in measures}
            n = sum(cell.n for r in results if (cell := r.at(**place)) is not None)
            rows.append({**place, "n": n, **{name: v for name, v in values.items() if v is not None}, **evaluations(results, place)})
        built.tables.append(Table("measures", "Every measure at every scale; the first row is real held-out data.", rows))
        lines = self._lines(there)

        def series(measure: str, against: str | None = None) -> list[Series]:
            made = []
            for name, of in lines:
                points = [(p, pooled(results, p, estimated(measure)), pooled(results, p, estimated(against or measure))) for p in of]
                kept = [(p, y, x) for p, y, x in points if y is not None and x is not None]
                xs: list[float | Estimate] = [x if against else float(p["scale"]) for p, _, x in kept]
                made.append(Series(name, xs, [y for _, y, _ in kept], [f"{p['scale']:g}" for p, _, _ in kept] if against else []))
            return made

        built.figures.append(
            Figure(
                "tradeoff",
                "Fidelity against diversity: the numbers beside the points are guidance scales. Bars are 95 % intervals.",
                [
                    Panel(label_of("recall", units), label_of("precision", units), series("precision", "recall")),
                    Panel(label_of("inception_score", units), label_of("frechet", units), series("frechet", "inception_score")),
                    Panel(label_of("recall", units), label_of("accuracy", units), series("accuracy", "recall")),
                ],
            )
        )
        shown = [name for name in (*FIDELITY, *units) if name in measures]
        panels = [
            Panel(
                "guidance scale", label_of(name, units), series(name), *((real[name].value, "real held-out data") if name in real else ())
            )
            for name in shown
        ]
        built.figures.append(Figure("scales", "Each measure over the guidance scale.", panels))
        built.verdicts += [self._shape(results, of, name) for name, of in lines]
        if len(lines) > 1:
            built.verdicts.append(self._steps(results))
        steps = {"steps": lines[-1][1][0]["steps"]} if self.steps and there else {}
        asked = classes_shown(results[0])
        built.sheets += sheet_of(
            results[0], "The same noise down each column", [(f"scale {s:g}", {**steps, "scale": s}) for s in self.scales], asked
        )
        return built.findings()

    def _lines(self, there: Sequence[Mapping[str, float | str]]) -> list[tuple[str, list[dict[str, Any]]]]:
        if not self.steps:
            return [("", [dict(p) for p in there])]
        found = [(f"{steps} steps", [dict(p) for p in there if p["steps"] == steps]) for steps in self.steps]
        return [(name, of) for name, of in found if of]

    def _shape(self, results: Sequence[Result], of: Sequence[Mapping[str, Any]], name: str) -> Verdict:
        """Ho & Salimans' tables: fidelity grows with the scale, diversity falls, and the Frechet distance is least at a small one."""
        question = f"Does guidance trade diversity for fidelity{f', in {name}' if name else ''}?"
        values = {p["scale"]: {m: pooled(results, p, estimated(m)) for m in FIDELITY} for p in of}
        found = {s: {m: v for m, v in row.items() if v is not None} for s, row in values.items()}
        if len(found) < 2 or 1.0 not in found or max(found) <= 1 or any(len(row) < len(FIDELITY) for s, row in found.items() if s):
            return Verdict(question, "Cannot be said yet", "It takes scale 1 and one above it.")
        top = max(found)
        surer, narrower = (
            (found[top]["inception_score"].low > found[1.0]["inception_score"].high),
            found[top]["recall"].high < found[1.0]["recall"].low,
        )
        best = min((s for s in found if s > 0), key=lambda s: found[s]["frechet"].value)
        holds = [surer, narrower, best < top]
        answer = "Yes" if all(holds) else "In part" if any(holds) else "No"
        one, far = found[1.0], found[top]
        evidence = (
            f"From scale 1 to {top:g} the inception score goes from {one['inception_score']} to {far['inception_score']}, recall from "
            f"{one['recall']} to {far['recall']}, accuracy from {one['accuracy']} to {far['accuracy']}. The Frechet distance is least at "
            f"scale {best:g}: {found[best]['frechet']}, against {one['frechet']} at 1 and {far['frechet']} at {top:g}."
        )
        return Verdict(question, answer, evidence)

    def _steps(self, results: Sequence[Result]) -> Verdict:
        scale = 1.0 if 1.0 in self.scales else self.scales[0]
        found = {t: pooled(results, {"steps": t, "scale": scale}, estimated("frechet")) for t in self.steps}
        known = {t: v for t, v in found.items() if v is not None}
        question = "Do more steps of the sampler help?"
        if len(known) < 2:
            return Verdict(question, "Cannot be said yet", "It takes two numbers of steps.")
        few, many = min(known), max(known)
        answer = "Yes" if known[many].high < known[few].low else "They do harm" if known[many].low > known[few].high else "Not measurably"
        return Verdict(
            question, answer, f"Frechet distance at scale {scale:g}: " + "; ".join(f"{t} steps {v}" for t, v in known.items()) + "."
        )


def evaluations(results: Sequence[Result], place: Mapping[str, float | str]) -> dict[str, float]:
    cell = results[0].at(**place)
    return {} if cell is None else {"evaluations": cell.evaluations}


def classes_shown(result: Result) -> list[str]:
    """What the first samples of the first cell were asked for."""
    if not result.cells:
        return []
    arrays = result.cells[0].arrays
    attributes = [name for name in result.facts["attributes"] if f"asked.{name}" in arrays and bool((arrays[f"asked.{name}"] >= 0).any())]

    def title(k: int) -> str:
        return ", ".join(result.classes(name)[c] for name in attributes if (c := int(arrays[f"asked.{name}"][k])) >= 0)

    return [title(k) for k in range(len(result.cells[0].samples))]
