"""Mixing conditions with weights of either sign: of different attributes, of one, and in combinations that training never saw."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from guidance import estimate
from guidance.errors import UserError
from guidance.evaluate import label_attribute
from guidance.experiment.asking import Asked, items, labels, named, number
from guidance.experiment.cells import Cell, Measured
from guidance.experiment.figures import Heat, Panel, Series
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
from guidance.experiment.tradeoff import check_scales
from guidance.guide import CFG, Compose, on
from guidance.holdout import parse
from guidance.modality import Split
from guidance.model import Model
from guidance.table import Row

LARGEST = 50_000  # training items that are looked through for combinations that are not there


@dataclass(frozen=True)
class Mixing:
    """Sums of conditions: two attributes, all of the given ones, two classes of one attribute, and what was held out of training.

    Args:
        attributes: to mix, the first two in a grid; by default the first three (or two) that have classes.
        weights: of each of two conditions; every pair of them is measured.
        scales: of the jointly conditioned model, which composition is held against; and of the sums of conditions of equal weights.
        pair: two classes of the first attribute, mixed with the same weights; by default the first two.
        held_out: whether to ask for combinations that training never saw, where there are any: those of the run's ``holdout``, or else
            of the held-out data.
    """

    attributes: Sequence[str] | None = None
    weights: Sequence[float] = (-1, 0, 1, 2, 3)
    scales: Sequence[float] = (1, 2, 3)
    pair: Sequence[Any] | None = None
    held_out: bool = True

    title: ClassVar[str] = "Mixing conditions"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(check_scales(self.weights, "weights")))
        object.__setattr__(self, "scales", tuple(check_scales(self.scales, "scales")))
        if self.pair is not None and (isinstance(self.pair, str) or len(self.pair) != 2):
            raise UserError(f"experiment.pair is two different classes, e.g. [3,8], got {self.pair!r}")

    def watched(self, model: Model) -> Sequence[str]:
        known = list(labels(model))
        if self.attributes is None:
            return known[:3]
        for name in self.attributes:
            label_attribute(model, name)
        if len(set(self.attributes)) < len(self.attributes) or not self.attributes:
            raise UserError(f"experiment.attributes names different attributes, got {list(self.attributes)}")
        return list(self.attributes)

    def cells(self, model: Model, n: int) -> Sequence[Cell]:
        names = list(self.watched(model))
        made: list[Cell] = []
        if len(names) > 1:
            one, two = names[:2]
            asked = items(model, model.modality.data.train, n, [one, two])
            made += [
                Cell({"mix": "two", **on_weights({one: a, two: b})}, sum_of(model, asked, {one: a, two: b}), asked) for a, b in self._grid()
            ]
            made += self._against_joint(model, "two", asked)
        if len(names) > 2:
            made += self._against_joint(model, "three", items(model, model.modality.data.train, n, names[:3]))
            asked = items(model, model.modality.data.train, n, names[:3])
            for signs in ((1, 1, -1), (1, -1, 1), (-1, 1, 1)):
                weights = {
                    name: self.scales[len(self.scales) // 2] * sign if sign > 0 else -1.0 for name, sign in zip(names, signs, strict=False)
                }
                made.append(Cell({"mix": "signed", **on_weights(weights)}, sum_of(model, asked, weights), asked))
        made += self._same(model, names[0], n)
        if self.held_out and len(names) > 1 and (never := unseen(model, n, names[:2])):
            made += self._against_joint(model, "never seen", never)
        return made

    def _grid(self) -> list[tuple[float, float]]:
        return list(itertools.product(self.weights, self.weights))

    def _against_joint(self, model: Model, mix: str, asked: Asked) -> list[Cell]:
        """The same conditions asked for jointly, and one by one with equal weights."""
        made = [Cell({"mix": mix, "how": "joint", "scale": s}, CFG(s), asked) for s in self.scales]
        return made + [
            Cell({"mix": mix, "how": "sum", "scale": s}, sum_of(model, asked, dict.fromkeys(asked, s)), asked) for s in self.scales
        ]

    def _same(self, model: Model, name: str, n: int) -> list[Cell]:
        classes = label_attribute(model, name)[1].classes
        pair = list(classes[:2]) if self.pair is None else [classes[number(model, name, value)] for value in self.pair]
        if len(classes) < 2:
            return []
        if pair[0] == pair[1]:
            raise UserError(f"experiment.pair is two different classes of {name}, got {pair[0]} twice")
        asked = {name: [classes.index(pair[0])] * n}
        both = {f", {one}": {name: [classes.index(one)] * n} for one in pair}
        return [
            Cell(
                {"mix": "same", "first": pair[0], "second": pair[1], "a": a, "b": b},
                a * on(**{name: pair[0]}) + b * on(**{name: pair[1]}),
                asked,
                named=both,
            )
            for a, b in self._grid()
        ]

    def trainings(self, model: Model) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def findings(self, results: Sequence[Result]) -> Findings:
        built, there = Builder(), places(results)
        names = list(results[0].facts["attributes"])
        if len(names) > 1:
            self._two(built, results, names[:2], [p for p in there if p["mix"] == "two" and "how" not in p])
        for mix in ("two", "three", "never seen"):
            self._joint(built, results, mix, names[: 3 if mix == "three" else 2], [p for p in there if p["mix"] == mix and "how" in p])
        self._signed(built, results, names, [p for p in there if p["mix"] == "signed"])
        self._pair(built, results, names[0], [p for p in there if p["mix"] == "same"])
        return built.findings()

    def _two(self, built: Builder, results: Sequence[Result], names: Sequence[str], there: Sequence[Place]) -> None:
        if not there:
            return
        rows = weighted(results, names, there)
        caption = (
            "Two conditions with a weight each: shares of samples seen as named; as asked: as named where the weight is above 0, and not "
            "where it is below."
        )
        built.tables.append(Table("two", caption, rows))
        one, two = names

        def field(column: str) -> list[list[float]]:
            found = {(row[f"weight_of_{one}"], row[f"weight_of_{two}"]): row[column].value for row in rows}
            return [[found.get((a, b), float("nan")) for b in self.weights] for a in self.weights]

        ticks = [f"{w:g}" for w in self.weights]
        titles = {one: f"{one} as named", two: f"{two} as named", "as_asked": "both as asked"}
        heats = [
            Heat(title, f"weight of {two}", f"weight of {one}", ticks, ticks, field(column), "share of samples")
            for column, title in titles.items()
        ]
        built.figures.append(
            Figure("two", f"{one} and {two}, each with its own weight; what is missing to 1 is the unconditional model's.", heats)
        )
        diagonal = [
            (f"{w:g}, {v:g}", {"mix": "two", **on_weights({one: w, two: v})})
            for w, v in self._grid()
            if w in (-1, 1, 2) and v in (-1, 1, 2)
        ]
        first = results[0].at(**there[0])
        assert first is not None
        titles_of = [
            ", ".join(results[0].classes(name)[int(first.arrays[f"asked.{name}"][k])] for name in names) for k in range(len(first.samples))
        ]
        built.sheets += sheet_of(results[0], f"Weights of {one} and of {two}; the same noise down each column", diagonal, titles_of)

    def _joint(self, built: Builder, results: Sequence[Result], mix: str, names: Sequence[str], there: Sequence[Place]) -> None:
        if not there:
            return
        rows: list[Row] = []
        for place in there:
            row: dict[str, Any] = {"how": place["how"], "scale": place["scale"]}
            row |= {name: pooled(results, place, share_right(name)) for name in names}
            row["all"] = pooled(results, place, share_as_asked(dict.fromkeys(names, 1.0)))
            if mix != "never seen":  # those are a few combinations: their distance to all of the data says nothing
                row["frechet"] = pooled(results, place, estimated("frechet"))
            rows.append(row)
        what = {
            "two": "of training items",
            "three": "of training items",
            "never seen": "in combinations that training never saw",
        }[mix]
        together = " and ".join([", ".join(names[:-1]), names[-1]])
        caption = f"{together} {what}: asked for jointly (CFG at a scale), and as a sum of single conditions, each with that weight."
        built.tables.append(Table(f"joint-{mix.replace(' ', '-')}", caption, rows))
        lines = [
            Series(how, [r["scale"] for r in rows if r["how"] == how], [r["all"] for r in rows if r["how"] == how])
            for how in ("joint", "sum")
        ]
        panel = Panel("scale, or weight of each condition", f"share of samples with {together} right", lines)
        built.figures.append(Figure(f"joint-{mix.replace(' ', '-')}", caption, [panel]))
        jointly, summed = ([row for row in rows if row["how"] == how] for how in ("joint", "sum"))
        if not jointly or not summed:
            return
        first, second = (max(of, key=lambda row: row["all"].value) for of in (jointly, summed))
        joint, total = first["all"], second["all"]
        answer = (
            "Yes, and better than the jointly conditioned model"
            if total.low > joint.high
            else "Yes, as well as the jointly conditioned model"
            if total.high >= joint.low
            else "Less well than the jointly conditioned model"
        )
        question = {
            "two": f"Can {together} be mixed from single conditions?",
            "three": f"Can {together} be mixed from single conditions?",
            "never seen": f"Does mixing reach combinations of {together} that training never saw?",
        }[mix]
        at_best = f"at best as a sum (weight {second['scale']:g}), {joint} jointly (scale {first['scale']:g})"
        evidence = f"All right in {total} of samples {at_best}."
        built.verdicts.append(Verdict(question, answer, evidence))

    def _signed(self, built: Builder, results: Sequence[Result], names: Sequence[str], there: Sequence[Place]) -> None:
        rows = weighted(results, names, there)
        if rows:
            built.tables.append(Table("signed", "Three conditions, one of them negative: shares seen as named, and all as asked.", rows))

    def _pair(self, built: Builder, results: Sequence[Result], name: str, there: Sequence[Place]) -> None:
        if not there:
            return
        classes = results[0].classes(name)
        first, second = (str(there[0][key]) for key in ("first", "second"))
        numbers = classes.index(first), classes.index(second)
        rows: list[Row] = []
        for place in there:
            row: dict[str, Any] = {"weight_of_first": place["a"], "weight_of_second": place["b"]}
            for column, wanted in (("first", numbers[:1]), ("second", numbers[1:]), ("either", numbers)):
                row[column] = pooled(results, place, share_seen(name, wanted))
            rows.append(row)
        built.tables.append(Table("same", f"Two classes of {name} at once, first {first} and second {second}: what is seen.", rows))

        def field(column: str) -> list[list[float]]:
            found = {(row["weight_of_first"], row["weight_of_second"]): row[column].value for row in rows}
            return [[found.get((a, b), float("nan")) for b in self.weights] for a in self.weights]

        ticks = [f"{w:g}" for w in self.weights]
        heats = [
            Heat(f"seen as {title}", f"weight of {second}", f"weight of {first}", ticks, ticks, field(column), "share of samples")
            for column, title in (("first", first), ("second", second), ("either", "either"))
        ]
        built.figures.append(Figure("same", f"Two classes of {name} at once.", heats))
        shown = [
            (f"{a:g}, {b:g}", p)
            for p in there
            if (a := p["a"], b := p["b"]) and (a, b) in ((1, 0), (1, 1), (2, 2), (2, -1), (-1, 2), (-1, -1), (0, 1))
        ]
        built.sheets += sheet_of(
            results[0],
            f"Weights of {first} and of {second}; the same noise down each column",
            shown,
            [f"sample {k + 1}" for k in range(10)],
        )
        even = [row for row in rows if row["weight_of_first"] == row["weight_of_second"] > 0]
        if even:
            best = max(even, key=lambda row: min(row["first"].value, row["second"].value))
            one, two = best["first"], best["second"]
            mixed = min(one.value, two.value) > 0.1
            answer = (
                "Samples become one or the other"
                if best["either"].value > 0.8 and mixed
                else "One of them wins"
                if best["either"].value > 0.8
                else "Often neither is seen"
            )
            shares = f"{first} in {one}, {second} in {two}, either in {best['either']} of samples"
            evidence = f"With a weight of {best['weight_of_first']:g} each: {shares}."
            built.verdicts.append(Verdict(f"What do {first} and {second} make, mixed?", answer, evidence))


def weighted(results: Sequence[Result], names: Sequence[str], there: Sequence[Place]) -> list[Row]:
    """Of sums with a weight for each attribute: the shares seen as named, and all as asked."""
    rows: list[Row] = []
    for place in there:
        weights = {name: float(place[f"on {name}"]) for name in names}
        row: dict[str, Any] = {f"weight_of_{name}": weight for name, weight in weights.items()}
        row |= {name: pooled(results, place, share_right(name)) for name in names}
        row["as_asked"] = pooled(results, place, share_as_asked(weights))
        rows.append(row)
    return rows


def on_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """As a place names them: whatever an attribute is called, it is no other key."""
    return {f"on {name}": weight for name, weight in weights.items()}


def sum_of(model: Model, asked: Asked, weights: Mapping[str, float]) -> Compose:
    """sum_k weight_k * on(attribute k = what is asked for of it)."""
    names = named(model, asked)
    return Compose(tuple((weight, {name: names[name]}) for name, weight in weights.items()))


def unseen(model: Model, n: int, names: Sequence[str]) -> Asked:
    """Combinations of two attributes that training never saw: of the run's ``holdout``, or else of the held-out data, where it has any."""
    combinations = parse(model.config.get("holdout") or [], model.modality.conditions)
    if combinations:
        having = [c for c in combinations if c.keys() == set(names)]
        return {name: [having[k % len(having)][name] for k in range(n)] for name in names} if having else {}
    data = model.modality.data
    if len(data.train) > LARGEST:
        return {}
    seen = pairs(data.train, names)
    new = sorted(pairs(data.test, names) - seen)
    if len(new) < 2:
        return {}
    return {name: [new[k % len(new)][column] for k in range(n)] for column, name in enumerate(names)}


def pairs(split: Split, names: Sequence[str], chunk: int = 512) -> set[tuple[int, ...]]:
    """The combinations of attributes that the items of a split have."""
    found: set[tuple[int, ...]] = set()
    for first in range(0, len(split), chunk):
        condition = split.__getitems__(list(range(first, min(first + chunk, len(split)))))[1]
        there = torch.stack([condition.keep[name] for name in names]).all(0)
        values = torch.stack([condition.values[name] for name in names], 1)[there]
        found |= {tuple(row) for row in values.unique(dim=0).tolist()}
    return found


def right(cell: Measured, name: str) -> Bool[Tensor, "n"]:
    return cell.arrays[f"class.{name}"] == cell.arrays[f"asked.{name}"]


def as_asked(cell: Measured, weights: Mapping[str, float]) -> Bool[Tensor, "n"]:
    """Whether every attribute of positive weight is seen as named, and none of negative weight."""
    wanted = [right(cell, name) if weight > 0 else ~right(cell, name) for name, weight in weights.items() if weight]
    return torch.stack(wanted).all(0) if wanted else torch.ones(cell.n, dtype=torch.bool)


def share_right(name: str) -> Measure:
    return lambda cell: estimate.share(right(cell, name))


def share_as_asked(weights: Mapping[str, float]) -> Measure:
    return lambda cell: estimate.share(as_asked(cell, weights))


def share_seen(name: str, classes: Sequence[int]) -> Measure:
    """The share of samples that are seen as any of the classes."""
    return lambda cell: estimate.share(torch.isin(cell.arrays[f"class.{name}"], torch.tensor(list(classes))))
