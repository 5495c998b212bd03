"""Inverse guidance: the opposite of a condition, or merely something else?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance import estimate
from guidance.errors import UserError, one_of
from guidance.estimate import Estimate, over_seeds
from guidance.evaluate import label_attribute
from guidance.experiment.asking import alone, labels
from guidance.experiment.cells import Cell, Measured
from guidance.experiment.figures import Heat, Panel, Series, label_of
from guidance.experiment.findings import (
    Builder,
    Figure,
    Findings,
    Measure,
    Place,
    Result,
    Table,
    Verdict,
    estimated,
    places,
    pooled,
    sheet_of,
)
from guidance.experiment.tradeoff import check_scales, classes_shown
from guidance.guide import CFG
from guidance.model import Model
from guidance.table import Row

ENDS = ("bottom", "top")


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
        self._classes(built, results, first, [p for p in there if p["named"] == first])
        for name, spec in facts["attributes"].items():
            if spec["levels"]:
                self._order(built, results, first, name, there)
        return built.findings()

    # The classes of one attribute

    def _classes(self, built: Builder, results: Sequence[Result], first: str, there: Sequence[Place]) -> None:
        facts = results[0].facts
        prior = torch.tensor(facts["priors"][first], dtype=torch.float64)
        free = {"named": first, "scale": 0.0}
        judged = all(f"p.{first}" in cell.arrays for r in results for cell in r.cells)
        rows: list[Row] = []
        measures = [
            m
            for m in ("frechet", "precision", "recall", "inception_score", *facts["units"])
            if any(m in c.estimates for c in results[0].cells)
        ]
        for place in there:
            row: dict[str, Any] = {"scale": place["scale"], "swapped_from": 1 - place["scale"]}
            row["named_class"] = pooled(results, place, lambda cell: named_share(cell, first))
            row["named_probability"] = pooled(results, place, lambda cell: named_probability(cell, first)) if judged else None
            row["nats_from_data"] = pooled(results, place, lambda cell: divergence(cell, first, prior))
            row["nats_from_unconditional"] = over(results, place, free, lambda cell, base: divergence(cell, first, seen_share(base, first)))
            row["nats_more_than_at_0"] = over(results, place, free, lambda cell, base: excess(cell, base, first))
            row |= {name: pooled(results, place, estimated(name)) for name in measures}
            row["n"] = sum(c.n for r in results if (c := r.at(**place)) is not None)
            rows.append({key: value for key, value in row.items() if value is not None})
        caption = (
            f"The classes of {first} named in turn. swapped from: the scale whose two weights are swapped. nats: the divergence of the classes "
            "seen, the named one left out, from those of the data and of the unconditional model; at scale 0 it is what so few samples give."
        )
        built.tables.append(Table("classes", caption, rows))

        def line(column: str, label: str = "") -> Series:
            kept = [row for row in rows if column in row]
            return Series(label, [row["scale"] for row in kept], [row[column] for row in kept])

        chance = float((prior * prior).sum())
        panels = [
            Panel("guidance scale", f"share of samples seen as the named {first}", [line("named_class")], chance, "chance"),
            Panel(
                "guidance scale",
                "divergence over the other classes, nats",
                [line("nats_from_data", "from the data"), line("nats_from_unconditional", "from the unconditional model")],
            ),
            Panel("guidance scale", label_of("frechet", facts["units"]), [line("frechet")]),
        ]
        built.figures.append(Figure("classes", f"Inverse guidance on {first}: bars are 95 % intervals.", panels))
        lowest = [p for p in there if p["scale"] < 0]
        shown = [p for p in (lowest[:1] + [q for q in lowest if q["scale"] == -1]) if p]
        if shown:
            maps = [self._confusion(results, first, place) for place in {p["scale"]: p for p in shown}.values()]
            built.figures.append(Figure("where", f"Where the samples go: a row is the {first} that inverse guidance names.", maps))
        sheet = sheet_of(
            results[0],
            f"{first}: the same noise down each column",
            [(f"scale {p['scale']:g}", p) for p in there],
            classes_shown(results[0]),
        )
        built.sheets += [sheet] if sheet else []
        if lowest:
            built.verdicts.append(self._other(results, first, next((r for r in rows if r["scale"] == -1), rows[0]), rows))

    def _confusion(self, results: Sequence[Result], first: str, place: Mapping[str, Any]) -> Heat:
        classes = results[0].classes(first)
        values = torch.stack([torch.stack(by_class(r.at(**place), first)) for r in results]).mean(0)
        return Heat(f"scale {place['scale']:g}", f"{first} seen", f"{first} named", classes, classes, values.tolist(), "share of samples")

    def _other(self, results: Sequence[Result], first: str, row: Mapping[str, Any], rows: Sequence[Row]) -> Verdict:
        """Is the named class avoided, and if so, is the rest as without a condition?"""
        question = f"Does inverse guidance on {first} avoid the named class?"
        free = next((r for r in rows if r["scale"] == 0), None)
        if free is None or "named_class" not in row:
            return Verdict(question, "Cannot be said yet", "Scale 0 has not been measured.")
        avoided = row["named_class"].high < free["named_class"].low or (row["named_class"].value == 0 and free["named_class"].value > 0.01)
        extra = row["nats_more_than_at_0"].above
        where = "it goes to some of the other classes more than to others" if extra else "the rest is as without a condition"
        answer = (f"Yes, and {where}" if extra else f"Yes: merely something else, {where}") if avoided else "No"
        evidence = (
            f"At scale {row['scale']:g} (w and 1 - w of scale {1 - row['scale']:g} swapped) the named class is seen in {row['named_class']} of samples, against "
            f"{free['named_class']} without a condition. Over the other classes the samples differ from the unconditional model by "
            f"{row['nats_from_unconditional']} nats ({row['nats_more_than_at_0']} more than so few samples differ at scale 0) and from the data by {row['nats_from_data']}. "
            f"Frechet distance {row['frechet']}, unconditional {free['frechet']}."
        )
        return Verdict(question, answer, evidence)

    # Attributes with an order

    def _order(self, built: Builder, results: Sequence[Result], first: str, name: str, there: Sequence[Place]) -> None:
        facts, free = results[0].facts, {"named": first, "scale": 0.0}
        levels, quantity = results[0].levels(name), facts["attributes"][name]["quantity"]
        if free not in there:
            return
        rows: list[Row] = []
        for end in ENDS:
            own, far = (0, len(levels) - 1) if end == "bottom" else (len(levels) - 1, 0)
            scales = sorted(float(p["scale"]) for p in there if p["named"] == f"{name} {end}")
            for scale in sorted({*scales, 0.0}):
                place: Place = {"named": f"{name} {end}", "scale": scale} if scale else free
                row: dict[str, Any] = {"named": " or ".join(levels[own]), "end": end, "scale": scale}
                for title, k in (("named_level", own), ("opposite", far)):
                    row[title] = pooled(results, place, share_at(results[0], name, k))
                row["opposite_of_the_rest"] = pooled(results, place, opposite(results[0], name, far, own))
                row["more_than_unconditional"] = over(
                    results, place, free, lambda cell, base, k=far: paired(cell, base, results[0], name, k)
                )
                row["of_the_rest_more_than_unconditional"] = over(
                    results, place, free, lambda cell, base, k=far, o=own: paired_rest(cell, base, results[0], name, k, o)
                )
                if quantity:
                    row[quantity] = pooled(results, place, lambda cell: estimate.mean(cell.arrays[quantity]))
                    row[f"{quantity}_change"] = over(
                        results, place, free, lambda cell, base: estimate.mean(cell.arrays[quantity] - base.arrays[quantity])
                    )
                rows.append({key: value for key, value in row.items() if value is not None})
        seen = f"its {quantity} ({facts['units'].get(quantity, '')})" if quantity else "a judge"
        caption = (
            f"{name}, seen by {seen}: the lowest or the highest level named. opposite: the share of samples at the other end; of the rest: among "
            "those that are not at the named level; more than unconditional: the difference from scale 0, paired by noise."
        )
        built.tables.append(Table(f"order-{name}", caption, rows))

        def line(end: str, column: str, label: str) -> Series:
            of = [row for row in rows if row["end"] == end and column in row]
            return Series(label, [row["scale"] for row in of], [row[column] for row in of])

        titles = {
            end: " or ".join(levels[0 if end == "bottom" else -1][:2]) + (" ..." if len(levels[0 if end == "bottom" else -1]) > 2 else "")
            for end in ENDS
        }
        base = next((row for row in rows if row["scale"] == 0), {})
        panels = [
            Panel("guidance scale", "share at the named level", [line(end, "named_level", f"{titles[end]} named") for end in ENDS]),
            Panel("guidance scale", "share at the opposite level", [line(end, "opposite", f"{titles[end]} named") for end in ENDS]),
        ]
        if quantity:
            level = base[quantity].value if quantity in base else None
            panels.append(
                Panel(
                    "guidance scale",
                    label_of(quantity, facts["units"]),
                    [line(end, quantity, f"{titles[end]} named") for end in ENDS],
                    level,
                    "unconditional",
                )
            )
        built.figures.append(Figure(f"order-{name}", f"Inverse guidance on the ends of {name}: does one end give the other?", panels))
        below = [row for row in rows if row["scale"] < 0]
        if below:
            built.verdicts.append(self._opposite(name, levels, quantity, rows))
        for end in ENDS:
            scales = sorted(float(p["scale"]) for p in there if p["named"] == f"{name} {end}")
            picked = [(f"scale {s:g}", {"named": f"{name} {end}", "scale": s} if s else free) for s in sorted({*scales, 0.0})]
            columns = [f"sample {k + 1}" for k in range(10)]
            sheet = sheet_of(results[0], f"{name}: {titles[end]} named; the same noise down each column", picked, columns)
            built.sheets += [sheet] if sheet else []

    def _opposite(self, name: str, levels: Sequence[Sequence[str]], quantity: str, rows: Sequence[Row]) -> Verdict:
        question = f"Is inverse guidance on {name} its opposite?"
        answers, evidence = [], []
        free = next(row for row in rows if row["scale"] == 0)
        for end in ENDS:
            of = [row for row in rows if row["end"] == end and row["scale"] < 0]
            row = next((r for r in of if r["scale"] == -1), of[-1] if of else None)
            if row is None:
                continue
            base = next(r for r in rows if r["end"] == end and r["scale"] == 0)
            answers.append(judged(row, base))
            best = max(of, key=lambda r: r["opposite"].value)
            change = f"; {quantity} changes by {row[f'{quantity}_change']}" if f"{quantity}_change" in row else ""
            evidence.append(
                f"Named {row['named'] if len(levels[0]) < 4 else 'the ' + ('lowest' if end == 'bottom' else 'highest') + ' third'}, scale "
                f"{row['scale']:g}: {answers[-1]}. The other end in {row['opposite']} of samples, unconditional {base['opposite']} (difference "
                f"{row['more_than_unconditional']}); among samples that are not at the named level {row['opposite_of_the_rest']}, unconditional "
                f"{base['opposite_of_the_rest']}{change}. Most at scale {best['scale']:g}: {best['opposite']}."
            )
        assert free is not None
        if len(set(answers)) == 1:
            return Verdict(question, ANSWERS[answers[0]], " ".join(evidence))
        return Verdict(question, "It depends on the end: " + "; ".join(dict.fromkeys(answers)), " ".join(evidence))


ANSWERS = {
    "the opposite": "Yes, at both ends: the other end comes more often, also among what is left",
    "something else": "No: the named level is avoided, and what is left keeps its proportions",
    "the neighbour": "No: the named level is avoided, and its neighbour comes instead of the other end",
    "no effect": "No: the named level is not even avoided",
}


def judged(row: Row, free: Row) -> str:
    """What inverse guidance did, in words: by the intervals of the paired differences."""
    if row["of_the_rest_more_than_unconditional"].above and row["more_than_unconditional"].above:
        return "the opposite"
    if not row["named_level"].value < free["named_level"].value:
        return "no effect"
    return "the neighbour" if row["of_the_rest_more_than_unconditional"].below else "something else"


def over(results: Sequence[Result], place: Place, base: Place, measure: Any) -> Estimate | None:
    """A measure of a cell and the unconditional one, over all trainings."""
    pairs = [(r.at(**place), r.at(**base)) for r in results]
    if any(cell is None or other is None for cell, other in pairs):
        return None
    return over_seeds([measure(cell, other) for cell, other in pairs])


def probabilities(cell: Measured, name: str) -> Float[Tensor, "n classes"]:
    """A judge's, or 1 for the class that a ruler sees."""
    if f"p.{name}" in cell.arrays:
        return cell.arrays[f"p.{name}"].double()
    seen = cell.arrays[f"class.{name}"]
    made = torch.zeros(len(seen), max(int(seen.max()), int(cell.arrays[f"asked.{name}"].max())) + 1, dtype=torch.float64)
    return made.scatter(1, seen.clamp(min=0)[:, None], (seen >= 0).double()[:, None])


def named_share(cell: Measured, name: str) -> Estimate:
    return estimate.share(cell.arrays[f"class.{name}"] == cell.arrays[f"asked.{name}"])


def named_probability(cell: Measured, name: str) -> Estimate:
    p = probabilities(cell, name)
    return estimate.mean(p.gather(1, cell.arrays[f"asked.{name}"].clamp(min=0)[:, None])[:, 0])


def seen_share(cell: Measured, name: str) -> Float[Tensor, "classes"]:
    """The classes seen over all samples."""
    return probabilities(cell, name).mean(0)


def by_class(cell: Measured | None, name: str) -> list[Float[Tensor, "classes"]]:
    """The classes seen, for each class named."""
    assert cell is not None
    p, asked = probabilities(cell, name), cell.arrays[f"asked.{name}"]
    return [p[asked == k].mean(0) if bool((asked == k).any()) else torch.full((p.shape[1],), torch.nan) for k in range(p.shape[1])]


def divergence(cell: Measured, name: str, share: Float[Tensor, "classes"]) -> Estimate:
    """KL(classes seen || share) in nats, over the classes that are not named; the mean over the classes that are."""
    p, asked = probabilities(cell, name), cell.arrays[f"asked.{name}"]
    return estimate.statistic(lambda index: _divergence(p[index], asked[index], share), len(asked))


def excess(cell: Measured, base: Measured, name: str) -> Estimate:
    """How much more a cell diverges from the unconditional model than that model's own samples do, sorted by the same names: what a finite
    number of samples gives in any case is in both."""
    p, free, asked = probabilities(cell, name), probabilities(base, name), cell.arrays[f"asked.{name}"]

    def function(index: Int[Tensor, "m"]) -> float:
        share, named = free[index].mean(0), asked[index]
        return _divergence(p[index], named, share) - _divergence(free[index], named, share)

    return estimate.statistic(function, len(asked))


def _divergence(p: Float[Tensor, "n classes"], asked: Int[Tensor, "n"], share: Float[Tensor, "classes"]) -> float:
    share, found = share.clamp(min=1e-6), []
    for k in asked.unique().tolist():
        other = torch.arange(len(share)) != k
        q, base = p[asked == k].mean(0)[other].clamp(min=1e-9), share[other]
        q, base = q / q.sum(), base / base.sum()
        found.append(float((q * (q / base).log()).sum()))
    return sum(found) / len(found)


def at_level(cell: Measured, result: Result, name: str) -> Int[Tensor, "n"]:
    """The level that each sample is seen at; -1 for none."""
    classes, levels = result.classes(name), result.levels(name)
    of = torch.tensor([next((k for k, level in enumerate(levels) if c in level), -1) for c in classes])
    seen = cell.arrays[f"class.{name}"]
    return torch.where(seen >= 0, of[seen.clamp(min=0)], -1)


def share_at(result: Result, name: str, k: int) -> Measure:
    return lambda cell: estimate.share(at_level(cell, result, name) == k)


def opposite(result: Result, name: str, far: int, own: int) -> Measure:
    """The share at the other end among those that are not at the named level."""

    def measure(cell: Measured) -> Estimate:
        level = at_level(cell, result, name)
        return estimate.share(level[level != own] == far)

    return measure


def paired(cell: Measured, base: Measured, result: Result, name: str, far: int) -> Estimate:
    """How much larger the share at the other end is than in the unconditional model, sample by sample from the same noise."""
    one, two = ((at_level(c, result, name) == far).double() for c in (cell, base))
    return estimate.mean(one - two)


def paired_rest(cell: Measured, base: Measured, result: Result, name: str, far: int, own: int) -> Estimate:
    """The same among those that are not at the named level: a difference of ratios, with the jackknife over the noises."""
    one, two = (at_level(c, result, name) for c in (cell, base))

    def ratio(level: Tensor) -> float:
        rest = (level != own).sum()
        return float((level == far).sum() / rest) if rest else torch.nan

    return estimate.statistic(lambda index: ratio(one[index]) - ratio(two[index]), len(one))
