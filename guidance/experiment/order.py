"""What inverse guidance on the ends of an ordered attribute gives: the other end, or merely something else?"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from guidance import estimate
from guidance.estimate import Estimate
from guidance.experiment.cells import Measured
from guidance.experiment.classes import WIDE
from guidance.experiment.figures import Panel, Series, label_of
from guidance.experiment.findings import Builder, Figure, Measure, Place, Result, Table, Verdict, over, pooled, sheet_of
from guidance.table import Row

ENDS = ("bottom", "top")

Pair = Callable[[Measured, Measured], Estimate]
"""A measure of a cell and of the unconditional one, from the same noise."""

ANSWERS = {
    "the opposite": "Yes, at both ends: the other end comes more often, also among what is left",
    "something else": "No: the named level is avoided, and what is left keeps its proportions",
    "the neighbour": "No: the named level is avoided, and its neighbour comes instead of the other end",
    "no effect": "No: the named level is not even avoided",
    "cannot be told": "Cannot be told: the intervals are too wide",
}


def add_order(built: Builder, results: Sequence[Result], first: str, name: str, there: Sequence[Place]) -> None:
    """The findings on one ordered attribute; the unconditional cell is that of the attribute ``first`` at scale 0."""
    free = {"named": first, "scale": 0.0}
    if free not in there:
        return
    facts, levels = results[0].facts, results[0].levels(name)
    quantity = str(facts["attributes"][name]["quantity"])
    scales = {end: sorted({0.0, *(float(p["scale"]) for p in there if p["named"] == f"{name} {end}")}) for end in ENDS}

    def place(end: str, scale: float) -> Place:
        return {"named": f"{name} {end}", "scale": scale} if scale else free

    rows: list[Row] = []
    for end in ENDS:
        own, far = (0, len(levels) - 1) if end == "bottom" else (len(levels) - 1, 0)
        for scale in scales[end]:
            at = place(end, scale)
            row: dict[str, Any] = {"named": title_of(levels[own]), "end": end, "scale": scale}
            row["named_level"] = pooled(results, at, share_at(results[0], name, own))
            row["opposite"] = pooled(results, at, share_at(results[0], name, far))
            row["opposite_of_the_rest"] = pooled(results, at, opposite(results[0], name, far, own))
            row["more_than_unconditional"] = over(results, at, free, paired(results[0], name, far))
            row["of_the_rest_more_than_unconditional"] = over(results, at, free, paired_rest(results[0], name, far, own))
            if quantity:
                row[quantity] = pooled(results, at, lambda cell: estimate.mean(cell.arrays[quantity]))
                row[f"{quantity}_change"] = over(results, at, free, change(quantity))
            rows.append({key: value for key, value in row.items() if value is not None})
    seen = f"its {quantity} ({facts['units'].get(quantity, '')})" if quantity else "a judge"
    caption = (
        f"{name}, seen by {seen}: the lowest or the highest level named. opposite: the share of samples at the other end; of the rest: "
        "among those that are not at the named level; more than unconditional: the difference from scale 0, paired by noise."
    )
    built.tables.append(Table(f"order-{name}", caption, rows))
    names = {"bottom": title_of(levels[0]), "top": title_of(levels[-1])}

    def lines(column: str) -> list[Series]:
        made = []
        for end in ENDS:
            of = [row for row in rows if row["end"] == end and column in row]
            made.append(Series(f"{names[end]} named", [row["scale"] for row in of], [row[column] for row in of]))
        return made

    panels = [
        Panel("guidance scale", "share at the named level", lines("named_level")),
        Panel("guidance scale", "share at the opposite level", lines("opposite")),
    ]
    if quantity:
        level = next(row[quantity].value for row in rows if not row["scale"])
        panels.append(Panel("guidance scale", label_of(quantity, facts["units"]), lines(quantity), level, "unconditional"))
    built.figures.append(Figure(f"order-{name}", f"Inverse guidance on the ends of {name}: does one end give the other?", panels))
    if any(row["scale"] < 0 for row in rows):
        built.verdicts.append(verdict(name, quantity, rows))
    for end in ENDS:
        picked = [(f"scale {scale:g}", place(end, scale)) for scale in scales[end]]
        caption = f"{name}: {names[end]} named; the same noise down each column"
        built.sheets += sheet_of(results[0], caption, picked, [f"sample {k + 1}" for k in range(10)], free)


def title_of(level: Sequence[str]) -> str:
    """A level's classes, or of many the first and the last."""
    return " or ".join(level) if len(level) < 4 else f"{level[0]} to {level[-1]}"


def verdict(name: str, quantity: str, rows: Sequence[Row]) -> Verdict:
    """At scale -1, where it was measured, else at the inverse scale that is nearest to it."""
    answers, evidence = [], []
    for end in ENDS:
        below = [row for row in rows if row["end"] == end and row["scale"] < 0]
        if not below:
            continue
        row = min(below, key=lambda r: abs(r["scale"] + 1))
        free = next(r for r in rows if r["end"] == end and r["scale"] == 0)
        most = max(below, key=lambda r: r["opposite"].value)
        answers.append(judged(row, free))
        changed = f"; {quantity} changes by {row[f'{quantity}_change']}" if quantity else ""
        evidence.append(
            f"Named {row['named']}, scale {row['scale']:g}: {answers[-1]}. The other end in {row['opposite']} of samples, unconditional "
            f"{free['opposite']} (difference {row['more_than_unconditional']}); among samples that are not at the named level "
            f"{row['opposite_of_the_rest']}, unconditional {free['opposite_of_the_rest']}{changed}. Most at scale {most['scale']:g}: "
            f"{most['opposite']}."
        )
    question = f"Is inverse guidance on {name} its opposite?"
    if len(answers) < len(ENDS):
        return Verdict(question, "Cannot be said yet: one end has been measured", " ".join(evidence))
    alike = len(set(answers)) == 1
    answer = ANSWERS[answers[0]] if alike else f"It depends on the end; bottom: {answers[0]}, top: {answers[1]}"
    return Verdict(question, answer, " ".join(evidence))


def judged(row: Row, free: Row) -> str:
    """What inverse guidance did, in words, by the intervals of the paired differences.

    "Merely something else" would leave the other levels in their proportions: then the other end comes more often than without a
    condition, too, but not among the samples that are not at the named level. So both differences have to be above 0.
    """
    if row["of_the_rest_more_than_unconditional"].above and row["more_than_unconditional"].above:
        return "the opposite"
    if not row["named_level"].value < free["named_level"].value:
        return "no effect"
    rest = row["of_the_rest_more_than_unconditional"]
    if rest.below:
        return "the neighbour"
    return "something else" if rest.high - rest.low < 2 * WIDE else "cannot be told"


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


def paired(result: Result, name: str, far: int) -> Pair:
    """How much larger the share at the other end is than in the unconditional model, sample by sample from the same noise."""

    def measure(cell: Measured, base: Measured) -> Estimate:
        one, two = ((at_level(c, result, name) == far).double() for c in (cell, base))
        return estimate.mean(one - two)

    return measure


def paired_rest(result: Result, name: str, far: int, own: int) -> Pair:
    """The same among those that are not at the named level: a difference of ratios, with the jackknife over the noises."""

    def ratio(level: Tensor) -> float:
        rest = int((level != own).sum())
        return int((level == far).sum()) / rest if rest else float("nan")

    def measure(cell: Measured, base: Measured) -> Estimate:
        one, two = (at_level(c, result, name) for c in (cell, base))
        return estimate.statistic(lambda index: ratio(one[index]) - ratio(two[index]), len(one))

    return measure


def change(quantity: str) -> Pair:
    return lambda cell, base: estimate.mean(cell.arrays[quantity] - base.arrays[quantity])
