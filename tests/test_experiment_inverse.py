"""Inverse guidance: divergences, paired differences and verdicts, against the same by hand on made-up cells."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from experiment_fakes import LABELS, SHADE, SIDE, exactly, made, result, world
from scipy.special import rel_entr
from scipy.stats import t as student

from guidance import CFG, Label, UserError
from guidance.estimate import Estimate
from guidance.experiment import Inverse
from guidance.experiment.cells import Measured
from guidance.experiment.classes import away, by_class, divergence, excess, named_probability, named_share, seen_share
from guidance.experiment.figures import Heat
from guidance.experiment.findings import Findings, Result
from guidance.experiment.order import ANSWERS, at_level, judged, opposite, paired, paired_rest, share_at

FIVE = Label(tuple("vwxyz"))
LABELS["five"] = FIVE


def random_cell(seed: int, n: int = 40, at: Mapping[str, Any] | None = None) -> Measured:
    """Probabilities of five classes, named in turn."""
    p = torch.rand(n, 5, generator=torch.Generator().manual_seed(seed)) ** 3
    p = p / p.sum(1, keepdim=True)
    return made(at or {"named": "five", "scale": -1.0}, {"five": p.argmax(1).tolist()}, {"five": [k % 5 for k in range(n)]}, {"five": p})


def without(p: Sequence[float], k: int) -> list[float]:
    rest = [value for j, value in enumerate(p) if j != k]
    return [value / sum(rest) for value in rest]


def by_hand(cell: Measured, share: Sequence[float]) -> float:
    """The mean over the classes named of KL(seen || share), both without the named one."""
    found = []
    for k in range(5):
        rows = cell.arrays["p.five"][cell.arrays["asked.five"] == k].double()
        q = without(rows.mean(0).tolist(), k)
        found.append(float(rel_entr(q, without(share, k)).sum()))
    return sum(found) / 5


@pytest.mark.parametrize("seed", range(4))
def test_the_divergence_is_that_of_kullback_and_leibler(seed: int):
    cell, share = random_cell(seed), [0.1, 0.3, 0.05, 0.35, 0.2]
    found = divergence(cell, "five", torch.tensor(share, dtype=torch.float64))
    assert found.value == pytest.approx(by_hand(cell, share), rel=1e-5) and found.low < found.value < found.high


def test_the_divergence_is_0_where_the_rest_keeps_its_proportions():
    """Whatever becomes of the named class."""
    share = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2], dtype=torch.float64)
    asked, rows = [k % 5 for k in range(20)], []
    for k in asked:
        row = share.clone()
        row[k] = 0
        rows.append(row / row.sum())
    cell = made({}, {"five": [0] * 20}, {"five": asked}, {"five": torch.stack(rows)})
    assert divergence(cell, "five", share).value == pytest.approx(0, abs=1e-6)
    assert named_share(cell, "five").value == 0.2 and named_probability(cell, "five").value == 0


def test_two_classes_have_no_rest_to_differ_in():
    cell = made({}, {"side": [0, 1, 1, 1]}, {"side": [0, 1, 0, 1]})
    assert divergence(cell, "side", torch.tensor([0.3, 0.7], dtype=torch.float64)).value == 0


def test_the_excess_of_the_same_samples_is_0():
    cell = random_cell(1)
    found = excess(cell, cell, "five")
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_excess_is_the_difference_of_two_divergences_from_the_unconditional_share(seed: int):
    cell, base = random_cell(seed), random_cell(seed + 50)
    share = base.arrays["p.five"].double().mean(0).tolist()
    assert seen_share(base, "five").tolist() == pytest.approx(share)
    sorted_alike = made({}, {"five": [0] * 40}, {"five": cell.arrays["asked.five"].tolist()}, {"five": base.arrays["p.five"]})
    assert excess(cell, base, "five").value == pytest.approx(by_hand(cell, share) - by_hand(sorted_alike, share), abs=1e-6)


def test_the_excess_has_the_jackknife_s_interval_over_the_noises():
    cell, base, n = random_cell(3), random_cell(9), 40
    parts = []
    for g in range(10):
        rows = [k for k in range(n) if not 4 * g <= k < 4 * g + 4]
        one, two = (
            made({}, {"five": [0] * 36}, {"five": [k % 5 for k in rows]}, {"five": of.arrays["p.five"][rows]}) for of in (cell, base)
        )
        share = two.arrays["p.five"].double().mean(0).tolist()
        parts.append(by_hand(one, share) - by_hand(two, share))
    mean = sum(parts) / 10
    half = student.ppf(0.975, 9) * math.sqrt(0.9 * sum((x - mean) ** 2 for x in parts))
    found = excess(cell, base, "five")
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-4)


def test_whether_what_is_far_gains_is_a_rank_correlation():
    cell, base = random_cell(5), random_cell(6)
    distance = torch.rand(5, 5, generator=torch.Generator().manual_seed(8))
    share = base.arrays["p.five"].double().mean(0)
    gains, far = [], []
    for k in range(5):
        seen = cell.arrays["p.five"][cell.arrays["asked.five"] == k].double().mean(0)
        for c in range(5):
            if c != k:
                gains.append(float(seen[c] - share[c]))
                far.append(float(distance[k, c]))
    ranks = [[sorted(of).index(x) for x in of] for of in (gains, far)]
    expected = 1 - 6 * sum((a - b) ** 2 for a, b in zip(*ranks, strict=True)) / (20 * (20**2 - 1))
    found = away(result([], attributes={"five": FIVE}, distances=distance.tolist()), "five")(cell, base)
    assert found.value == pytest.approx(expected) and found.low < expected < found.high


def test_the_classes_seen_for_each_class_named():
    cell = made({}, {"shade": [0, 1, 2, 2, 2, 0]}, {"shade": [0, 0, 1, 1, 1, 1]})
    found = torch.stack(by_class(cell, "shade"))
    assert found[:2].tolist() == [[0.5, 0.5, 0], [0.25, 0, 0.75]] and bool(found[2].isnan().all())


def test_what_a_ruler_does_not_see_is_no_class():
    """And classes that are neither seen nor named have their place."""
    cell = made({}, {"shade": [0, -1]}, {"shade": [0, 0]})
    assert seen_share(cell, "shade").tolist() == [0.5, 0, 0] and named_share(cell, "shade").value == 0.5


# Levels


WIDE = Label(tuple("abcdef"), levels=(("b", "a"), ("c",), ("f", "d")))
LABELS["wide"] = WIDE


def test_levels_are_those_of_the_classes():
    cell = made({}, {"wide": [0, 1, 2, 3, 4, 5, -1]})
    of = result([cell], attributes={"wide": WIDE})
    assert at_level(cell, of, "wide").tolist() == [0, 0, 1, 2, -1, 2, -1], "e has none"
    assert [share_at(of, "wide", k)(cell).value for k in range(3)] == pytest.approx([2 / 7, 1 / 7, 2 / 7])
    assert opposite(of, "wide", 2, 0)(cell).value == pytest.approx(2 / 5), "of those not at the named level"
    assert opposite(of, "wide", 0, 2)(cell).value == pytest.approx(2 / 5)


ONE, TWO = [2, 2, 2, 1, 0, 1, 2, 0, 2, 1], [0, 2, 1, 1, 0, 0, 2, 0, 1, 1]


def shade_cells() -> tuple[Result, Measured, Measured]:
    one, two = made({}, {"shade": ONE}), made({}, {"shade": TWO})
    return result([one, two], attributes={"shade": SHADE}), one, two


def test_paired_is_the_mean_of_differences_sample_by_sample():
    of, one, two = shade_cells()
    found = paired(of, "shade", 2)(one, two)
    differences = torch.tensor([float((a == 2) - (b == 2)) for a, b in zip(ONE, TWO, strict=True)])
    half = student.ppf(0.975, 9) * float(differences.std()) / math.sqrt(10)
    assert found.value == pytest.approx(0.3) and found.high - found.value == pytest.approx(half)
    assert paired(of, "shade", 2)(one, one).value == 0


def test_of_the_rest_is_a_difference_of_shares_with_the_jackknife():
    seen, free = ONE + TWO[::-1] + ONE[:4], TWO + ONE + TWO[:4]
    one, two = made({}, {"shade": seen}), made({}, {"shade": free})
    of = result([one, two], attributes={"shade": SHADE})

    def ratio(seen: Sequence[int]) -> float:
        return seen.count(2) / (len(seen) - seen.count(0))

    found = paired_rest(of, "shade", 2, 0)(one, two)
    assert found.value == pytest.approx(ratio(seen) - ratio(free))
    blocks = [{i for i in range(24) if i * 10 // 24 == g} for g in range(10)]
    parts = [ratio([c for i, c in enumerate(seen) if i not in b]) - ratio([c for i, c in enumerate(free) if i not in b]) for b in blocks]
    mean = sum(parts) / 10
    half = student.ppf(0.975, 9) * math.sqrt(0.9 * sum((x - mean) ** 2 for x in parts))
    assert found.high - found.value == pytest.approx(half)
    all_named = made({}, {"shade": [0] * 24})
    assert math.isnan(paired_rest(of, "shade", 2, 0)(all_named, two).value)


# Words


def row(named: float, more: Estimate, rest: Estimate) -> dict[str, Any]:
    return {"named_level": exactly(named), "more_than_unconditional": more, "of_the_rest_more_than_unconditional": rest}


@pytest.mark.parametrize(
    ("named", "more", "rest", "word"),
    [
        (0.0, exactly(0.2, 0.1), exactly(0.3, 0.1), "the opposite"),
        (0.0, exactly(0.2, 0.1), exactly(0.05, 0.1), "something else"),
        (0.0, exactly(0.2, 0.1), exactly(-0.3, 0.1), "the neighbour"),
        (0.0, exactly(-0.2, 0.1), exactly(0.3, 0.1), "something else"),
        (0.3, exactly(0.0, 0.1), exactly(0.0, 0.1), "no effect"),
        (0.4, exactly(-0.2, 0.1), exactly(-0.3, 0.1), "no effect"),
        (0.0, exactly(0.2, 0.1), Estimate(math.nan, math.nan, math.nan, 0), "cannot be told"),
        (0.0, exactly(0.2, 0.1), exactly(0.05, 0.5), "cannot be told"),
    ],
)
def test_the_word_for_what_inverse_guidance_did(named: float, more: Estimate, rest: Estimate, word: str):
    assert judged(row(named, more, rest), {"named_level": exactly(0.3)}) == word and word in ANSWERS


FREE = [0] * 20 + [1] * 20 + [2] * 20
SEEN = {
    # In place of what was seen without a condition: for low named; high named is the same mirrored.
    "the opposite": [2] * 20 + [1] * 8 + [2] * 12 + [2] * 20,
    "something else": [1] * 10 + [2] * 10 + [1] * 20 + [2] * 20,
    "the neighbour": [1] * 20 + [1] * 20 + [2] * 20,
    "no effect": FREE,
}


def shuffled(seen: Sequence[int]) -> list[int]:
    """So that every block of samples has some of each."""
    return [seen[k * 7 % 60] for k in range(60)]


def order_cells(bottom: str, top: str, scale: float = -1.0) -> list[Measured]:
    mirrored = [2 - k for k in FREE[::-1]]
    assert sorted(mirrored) == sorted(FREE)
    names = {"bottom": SEEN[bottom], "top": [2 - k for k in SEEN[top]][::-1]}
    asked = {"side": [k % 2 for k in range(60)]}
    estimates = {"frechet": exactly(1.0, 0.1)}
    cells = [
        made({"named": "side", "scale": 0.0}, {"side": [0] * 60, "shade": shuffled(FREE)}, asked, estimates=estimates, grey=[0.0] * 60)
    ]
    for end, seen in names.items():
        grey = [float(k) for k in range(60)]
        at = {"named": f"shade {end}", "scale": scale}
        cells.append(made(at, {"side": [0] * 60, "shade": shuffled(seen)}, {"shade": [0] * 60}, estimates=estimates, grey=grey))
    return cells


def findings(*cells: Sequence[Measured], **more: Any) -> Findings:
    more = {"attributes": {"side": SIDE, "shade": SHADE}, "units": {"grey": "0 is mid"}, **more}
    return Inverse([-1]).findings([result(of, **more) for of in cells])


@pytest.mark.parametrize("word", list(SEEN))
def test_the_same_at_both_ends(word: str):
    found = findings(order_cells(word, word))
    verdict = next(v for v in found.verdicts if "shade" in v.question)
    assert verdict.question == "Is inverse guidance on shade its opposite?" and verdict.answer == ANSWERS[word]
    assert verdict.evidence.count(f"scale -1: {word}.") == 2
    assert "Named low" in verdict.evidence and "Named high" in verdict.evidence


@pytest.mark.parametrize(("bottom", "top"), [("the opposite", "no effect"), ("something else", "the neighbour")])
def test_another_thing_at_the_other_end(bottom: str, top: str):
    verdict = next(v for v in findings(order_cells(bottom, top)).verdicts if "shade" in v.question)
    assert verdict.answer.startswith("It depends on the end") and verdict.answer.index(bottom) < verdict.answer.index(top)
    assert f"scale -1: {bottom}." in verdict.evidence and f"scale -1: {top}." in verdict.evidence


@pytest.mark.parametrize("missing", [1, 2])
def test_of_one_end_alone_nothing_is_said_of_both(missing: int):
    cells = order_cells("the opposite", "the opposite")
    del cells[missing]
    for verdict in findings(cells).verdicts:
        assert "both ends" not in verdict.answer and not ("shade" in verdict.question and verdict.answer.startswith(("Yes", "No")))


def test_the_table_of_an_order():
    found = findings(order_cells("the opposite", "the neighbour"))
    table = next(table for table in found.tables if table.name == "order-shade")
    rows = {(r["end"], r["scale"]): r for r in table.rows}
    assert list(rows) == [("bottom", -1.0), ("bottom", 0.0), ("top", -1.0), ("top", 0.0)]
    low = rows["bottom", -1.0]
    assert (low["named_level"].value, low["opposite"].value, low["opposite_of_the_rest"].value) == pytest.approx((0, 52 / 60, 52 / 60))
    assert low["more_than_unconditional"].value == pytest.approx(32 / 60)
    assert low["of_the_rest_more_than_unconditional"].value == pytest.approx(52 / 60 - 1 / 2)
    assert low["grey"].value == low["grey_change"].value == pytest.approx(29.5) and rows["top", 0.0]["grey_change"].value == 0
    high = rows["top", -1.0]
    assert (high["named_level"].value, high["opposite"].value) == pytest.approx((0, 1 / 3)) and high["named"] == "high"


def test_trainings_are_pooled_with_an_interval_over_them():
    words = ("the opposite", "something else", "the opposite")
    groups = [order_cells(word, word) for word in words]
    found = findings(*groups)
    table = next(table for table in found.tables if table.name == "order-shade")
    low = table.rows[0]
    one = {"the opposite": 32 / 60, "something else": 10 / 60}
    values = torch.tensor([one[word] for word in words])
    half = student.ppf(0.975, 2) * float(values.std()) / math.sqrt(3)
    more = low["more_than_unconditional"]
    assert (
        more.value == pytest.approx(float(values.mean()), rel=1e-5)
        and more.high - more.value == pytest.approx(half, rel=1e-5)
        and more.n == 180
    )
    assert findings(*groups[:1]).tables[1].rows[0]["more_than_unconditional"].n == 60


# The classes of one attribute


def class_cells(seen: Sequence[int], n: int = 60) -> list[Measured]:
    """Named in turn; unconditional samples are of all three alike."""
    asked, estimates = {"tri": [k % 3 for k in range(n)]}, {"frechet": exactly(1.0, 0.1), "recall": exactly(0.5, 0.1)}
    free = [k // 3 % 3 for k in range(n)]
    return [
        made({"named": "tri", "scale": -2.0}, {"tri": free}, asked, estimates=estimates),
        made({"named": "tri", "scale": -1.0}, {"tri": seen}, asked, estimates=estimates),
        made({"named": "tri", "scale": 0.0}, {"tri": free}, asked, estimates=estimates),
    ]


LABELS["tri"] = TRI = Label(("x", "y", "z"))
CLASSES = {
    "No": [k // 3 % 3 for k in range(60)],
    "Yes: merely something else, the rest is as without a condition": [(k % 3 + 1 + k // 3 % 2) % 3 for k in range(60)],
    "Yes, and it goes to some of the other classes more than to others": [(k % 3 + 1 + (k // 3 % 10 == 0)) % 3 for k in range(60)],
}


@pytest.mark.parametrize("answer", list(CLASSES))
def test_is_the_named_class_avoided(answer: str):
    found = Inverse([-1]).findings([result(class_cells(CLASSES[answer]), attributes={"tri": TRI})])
    (verdict,) = found.verdicts
    assert verdict.answer.startswith(answer) and verdict.question == "Does inverse guidance on tri avoid the named class?"
    assert "At scale -1 (w and 1 - w of scale 2 swapped)" in verdict.evidence
    (table,) = found.tables
    named = sum(k % 3 == c for k, c in enumerate(CLASSES[answer])) / 60
    assert [r["scale"] for r in table.rows] == [-2, -1, 0] and table.rows[1]["named_class"].value == pytest.approx(named)
    assert table.rows[1]["swapped_from"] == 2 and table.rows[2]["nats_more_than_at_0"].value == 0 and table.rows[0]["recall"].value == 0.5


def test_the_maps_say_where_the_samples_go():
    seen = CLASSES["Yes, and it goes to some of the other classes more than to others"]
    found = Inverse([-1]).findings([result(class_cells(seen), attributes={"tri": TRI})])
    heats: Any = next(figure for figure in found.figures if figure.name == "where").draw
    assert [heat.title for heat in heats] == ["scale -2", "scale -1"] and all(isinstance(heat, Heat) for heat in heats)
    for named in range(3):
        of = [c for k, c in enumerate(seen) if k % 3 == named]
        assert heats[1].values[named] == pytest.approx([of.count(c) / 20 for c in range(3)])
    assert heats[1].ylabel == "tri named" and heats[1].xlabel == "tri seen"


def test_without_scale_0_nothing_can_be_said():
    cells = class_cells(CLASSES["No"])[:2]
    (verdict,) = Inverse([-1]).findings([result(cells, attributes={"tri": TRI})]).verdicts
    assert verdict.answer == "Cannot be said yet"


# What is drawn


def test_both_ends_of_what_is_ordered_and_the_classes_in_turn():
    model = world(("side", "shade", "tone"))
    cells = Inverse([-2, 3], ordered_scales=[-1]).cells(model, 6)
    turn = {"side": [0, 1, 0, 1, 0, 1]}
    assert [(dict(c.at), c.asked) for c in cells] == [
        *(({"named": "side", "scale": s}, turn) for s in (-2, 0, 1, 3)),
        *(({"named": "shade bottom", "scale": s}, {"shade": [0] * 6}) for s in (-1, 1)),
        *(({"named": "shade top", "scale": s}, {"shade": [2] * 6}) for s in (-1, 1)),
    ]
    assert all(cell.guidance == CFG(float(cell.at["scale"])) for cell in cells)
    assert Inverse([-1]).watched(model) == ["side", "shade"] and Inverse([-1], attribute="tone").watched(model) == ["tone", "shade"]
    assert Inverse([-1], attribute="shade").watched(model) == ["shade"] and Inverse([-1], ordered=[]).watched(model) == ["side"]


def test_a_level_of_several_classes_names_them_in_turn():
    model = world()
    model.modality.conditions["shade"] = Label(("low", "mid", "high"), levels=(("mid", "low"), ("high",)), quantity="grey")  # type: ignore[index]
    cells = [c for c in Inverse([-1]).cells(model, 5) if c.at["named"] == "shade bottom"]
    assert cells[0].asked == {"shade": [1, 0, 1, 0, 1]}


@pytest.mark.parametrize(
    ("ordered", "words"),
    [
        (["side"], r"experiment.ordered: side has no order.*ordered are shade"),
        (["shdae"], r"'shdae'.*did you mean 'shade'"),
    ],
)
def test_what_has_no_order_has_no_opposite(ordered: list[str], words: str):
    for ask in (Inverse([-1], ordered=ordered).watched, lambda model: Inverse([-1], ordered=ordered).cells(model, 4)):
        with pytest.raises(UserError, match=words):
            ask(world())


def test_an_order_without_a_quantity_is_seen_by_a_judge():
    plain = Label(SHADE.classes, SHADE.levels)
    found = findings(order_cells("the opposite", "the opposite"), attributes={"side": SIDE, "shade": plain})
    table = next(table for table in found.tables if table.name == "order-shade")
    assert "a judge" in table.caption and "grey" not in table.rows[0] and found.verdicts[-1].answer == ANSWERS["the opposite"]
