"""What inverse guidance on one attribute's classes gives: is the named class avoided, and where do the samples go instead?"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance import estimate
from guidance.estimate import Estimate
from guidance.experiment.cells import Measured
from guidance.experiment.figures import Heat, Panel, Series, label_of
from guidance.experiment.findings import Builder, Figure, Place, Result, Table, Verdict, estimated, over, pooled, sheet_of
from guidance.experiment.tradeoff import classes_shown
from guidance.table import Row

WIDE = 0.2
"""An interval as wide as that says nothing of a difference of shares."""


def add_classes(built: Builder, results: Sequence[Result], first: str, there: Sequence[Place]) -> None:
    facts = results[0].facts
    prior = torch.tensor(facts["priors"][first], dtype=torch.float64)
    free = {"named": first, "scale": 0.0}
    judged = not facts["attributes"][first]["quantity"]
    known = len(prior) > 2 and all("distances" in r.facts for r in results)
    rows: list[Row] = []
    measures = [
        m for m in ("frechet", "precision", "recall", "inception_score", *facts["units"]) if any(m in c.estimates for c in results[0].cells)
    ]
    for place in there:
        row: dict[str, Any] = {"scale": place["scale"], "swapped_from": 1 - place["scale"]}
        row["named_class"] = pooled(results, place, lambda cell: named_share(cell, first))
        row["named_more_than_at_0"] = over(results, place, free, lambda cell, base: more_often(cell, base, first))
        row["named_probability"] = pooled(results, place, lambda cell: named_probability(cell, first)) if judged else None
        row["nats_from_data"] = pooled(results, place, lambda cell: divergence(cell, first, prior))
        row["nats_from_unconditional"] = over(results, place, free, lambda cell, base: divergence(cell, first, seen_share(base, first)))
        row["nats_more_than_at_0"] = over(results, place, free, lambda cell, base: excess(cell, base, first))
        row["correlation_with_distance"] = over(results, place, free, away(results[0], first)) if place["scale"] < 0 and known else None
        row |= {name: pooled(results, place, estimated(name)) for name in measures}
        row["n"] = sum(c.n for r in results if (c := r.at(**place)) is not None)
        rows.append({key: value for key, value in row.items() if value is not None})
    caption = (
        f"The classes of {first} named in turn. swapped from: the scale whose two weights are swapped. nats: the divergence of the classes "
        "seen, the named one left out, from those of the data and of the unconditional model; at scale 0 it is what so few samples give. "
        "correlation with distance: whether the classes that gain are those that are least like the named one, by ranks."
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
        maps = [confusion(results, first, place) for place in {p["scale"]: p for p in shown}.values()]
        built.figures.append(Figure("where", f"Where the samples go: a row is the {first} that inverse guidance names.", maps))
    built.sheets += sheet_of(
        results[0],
        f"{first}: the same noise down each column",
        [(f"scale {p['scale']:g}", p) for p in there],
        classes_shown(results[0]),
    )
    if lowest:
        built.verdicts.append(avoided(results, first, next((r for r in rows if r["scale"] == -1), rows[0]), rows))


def confusion(results: Sequence[Result], first: str, place: Mapping[str, Any]) -> Heat:
    classes = results[0].classes(first)
    values = torch.stack([torch.stack(by_class(r.at(**place), first)) for r in results]).mean(0)
    return Heat(f"scale {place['scale']:g}", f"{first} seen", f"{first} named", classes, classes, values.tolist(), "share of samples")


def avoided(results: Sequence[Result], first: str, row: Mapping[str, Any], rows: Sequence[Row]) -> Verdict:
    """Is the named class avoided, and if so, is the rest as without a condition?"""
    question = f"Does inverse guidance on {first} avoid the named class?"
    free = next((r for r in rows if r["scale"] == 0), None)
    if free is None or "named_class" not in row:
        return Verdict(question, "Cannot be said yet", "Scale 0 has not been measured.")
    less = row["named_more_than_at_0"]
    extra = row["nats_more_than_at_0"].above
    far = row.get("correlation_with_distance")
    most, ranks = "", ""
    if far:
        most = ", most to those that are least like it" if far.above else ", most to those that are most like it" if far.below else ""
        ranks = f"; what a class gains and its distance from the named one, in the judge's features, have a rank correlation of {far}"
    where = f"it goes to some of the other classes more than to others{most}" if extra else "the rest is as without a condition"
    two = len(results[0].classes(first)) == 2
    answer = f"Yes, and {where}" if extra else f"Yes: merely something else, {where}"
    if two:
        answer = "Yes: the other class comes"
    if not less.below:
        answer = "No" if less.high - less.low < WIDE else "Cannot be told: the intervals are too wide"
    others = (
        f"Over the other classes the samples differ from the unconditional model by {row['nats_from_unconditional']} nats "
        f"({row['nats_more_than_at_0']} more than so few samples differ at scale 0) and from the data by {row['nats_from_data']}{ranks}. "
    )
    evidence = (
        f"At scale {row['scale']:g} (w and 1 - w of scale {1 - row['scale']:g} swapped) the named class is seen in {row['named_class']} of "
        f"samples, against {free['named_class']} without a condition (difference {less}). {'' if two else others}"
        f"Frechet distance {row['frechet']}, unconditional {free['frechet']}."
    )
    return Verdict(question, answer, evidence)


def probabilities(cell: Measured, name: str) -> Float[Tensor, "n classes"]:
    return cell.arrays[f"p.{name}"].double()


def named_share(cell: Measured, name: str) -> Estimate:
    return estimate.share(cell.arrays[f"class.{name}"] == cell.arrays[f"asked.{name}"])


def more_often(cell: Measured, base: Measured, name: str) -> Estimate:
    """How much more often the named class is seen than in the unconditional model, sample by sample from the same noise."""
    asked = cell.arrays[f"asked.{name}"]
    one, two = ((c.arrays[f"class.{name}"] == asked).double() for c in (cell, base))
    return estimate.mean(one - two)


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


def away(result: Result, name: str) -> Callable[[Measured, Measured], Estimate]:
    """Spearman's rank correlation, over pairs of a class named and another one, of how much more often the other is seen than without a
    condition, with how far its real items are from the named class's."""
    from scipy.stats import spearmanr

    distance = torch.tensor(result.facts["distances"], dtype=torch.float64)

    def measure(cell: Measured, base: Measured) -> Estimate:
        p, free, asked = probabilities(cell, name), probabilities(base, name), cell.arrays[f"asked.{name}"]

        def function(index: Int[Tensor, "m"]) -> float:
            named, share, pairs = asked[index], free[index].mean(0), []
            for k in named.unique().tolist():
                gained = p[index][named == k].mean(0) - share
                pairs += [(float(gained[c]), float(distance[k, c])) for c in range(len(share)) if c != k]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that all gain the same, there is none: NaN
                return float(spearmanr(*zip(*pairs, strict=True)).statistic)

        return estimate.statistic(function, len(asked))

    return measure


def _divergence(p: Float[Tensor, "n classes"], asked: Int[Tensor, "n"], share: Float[Tensor, "classes"]) -> float:
    share, found = share.clamp(min=1e-6), []
    for k in asked.unique().tolist():
        other = torch.arange(len(share)) != k
        q, base = p[asked == k].mean(0)[other].clamp(min=1e-9), share[other]
        q, base = q / q.sum(), base / base.sum()
        found.append(float((q * (q / base).log()).sum()))
    return sum(found) / len(found)
