"""Mixing: sums that are those written by hand, what counts as asked, combinations that training never saw, numbers in their places."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from experiment_fakes import MEANS, SHADE, SIDE, TONE, draw, drawn, exactly, free, made, result, world

from guidance import CFG, Compose, Label, UserError, on
from guidance.estimate import over_seeds, share
from guidance.experiment import Mixing
from guidance.experiment.cells import Measured
from guidance.experiment.figures import Heat
from guidance.experiment.findings import Findings
from guidance.experiment.mixing import as_asked, on_weights, right, share_as_asked, share_right, share_seen, sum_of, unseen
from guidance.holdout import parse, without

ASKED = {"side": [0, 1, 1, 0], "shade": [2, 1, 0, 0]}


def test_a_sum_is_the_composition_written_by_hand():
    model = world()
    by_hand = 2.0 * on(side=["left", "right", "right", "left"]) - 0.5 * on(shade=["high", "mid", "low", "low"])
    weights = {"side": 2.0, "shade": -0.5}
    found = sum_of(model, ASKED, weights)
    assert found == by_hand and torch.equal(draw(model, 4, found), draw(model, 4, by_hand))
    expected = torch.stack([w * torch.tensor(MEANS[name])[torch.tensor(ASKED[name])] for name, w in weights.items()], 1)
    torch.testing.assert_close(draw(model, 4, found) - free(model, 4), expected, atol=3e-2, rtol=0)
    assert sum_of(model, {"side": [0, -1]}, {"side": 3.0}) == Compose(((3.0, {"side": ["left", None]}),))


def test_every_cell_is_what_its_place_says():
    """Each against the same by hand, in all three attributes."""
    model, n = world(("side", "shade", "tone")), 6
    mixing = Mixing(weights=[-1, 0, 2], scales=[1, 3, 2], held_out=False)
    base, cells = free(model, n), mixing.cells(model, n)
    count: dict[str, int] = {}
    for cell in cells:
        at: Mapping[str, Any] = cell.at
        count[f"{at['mix']} {at.get('how', '')}"] = count.get(f"{at['mix']} {at.get('how', '')}", 0) + 1
        moved = (
            draw(
                model,
                n,
                cell.guidance,
                None if cell.composed else {k: [model.modality.conditions[k].classes[c] for c in v] for k, v in cell.asked.items()},
            )
            - base
        )  # type: ignore[attr-defined]
        expected = torch.zeros(n, 3)
        for column, name in enumerate(("side", "shade", "tone")):
            of = torch.tensor(MEANS[name])
            if at["mix"] == "same":
                if name == "side":
                    assert (at["first"], at["second"]) == ("left", "right") and cell.asked == {"side": [0] * n}
                    expected[:, column] = at["a"] * of[0] + at["b"] * of[1]
            elif name in cell.asked:
                expected[:, column] = at.get(f"on {name}", at.get("scale")) * of[torch.tensor(cell.asked[name])]
        torch.testing.assert_close(moved, expected, atol=5e-2, rtol=0)
        assert isinstance(cell.guidance, CFG) == (at.get("how") == "joint")
        assert set(cell.asked) == {"two ": {"side", "shade"}, "two": {"side", "shade"}, "same": {"side"}}.get(
            at["mix"], {"side", "shade", "tone"}
        )
    assert count == {"two ": 9, "two joint": 3, "two sum": 3, "three joint": 3, "three sum": 3, "signed ": 3, "same ": 9}
    signed = [dict(cell.at) for cell in cells if cell.at["mix"] == "signed"]
    signs = [
        {"side": 3.0, "shade": 3.0, "tone": -1.0},
        {"side": 3.0, "shade": -1.0, "tone": 3.0},
        {"side": -1.0, "shade": 3.0, "tone": 3.0},
    ]
    assert signed == [{"mix": "signed", **on_weights(of)} for of in signs]
    assert len({cell.name for cell in cells}) == len(cells)


def test_the_pair_is_the_one_that_is_named():
    cells = Mixing(attributes=["shade"], weights=[1], scales=[1], pair=["high", "low"]).cells(world(), 5)
    assert [dict(cell.at) for cell in cells] == [{"mix": "same", "first": "high", "second": "low", "a": 1, "b": 1}]
    assert cells[0].asked == {"shade": [2] * 5} and cells[0].guidance == on(shade="high") + on(shade="low")


def test_attributes_are_those_that_are_named():
    model = world(("side", "shade", "tone"))
    assert Mixing().watched(model) == ["side", "shade", "tone"] and Mixing(["tone", "side"]).watched(model) == ["tone", "side"]
    cell = Mixing(["tone", "side"], weights=[2], held_out=False).cells(model, 4)[0]
    assert dict(cell.at) == {"mix": "two", "on tone": 2.0, "on side": 2.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pair": ["low"]}, "two different classes"),
        ({"pair": ["left", "left"]}, "two different classes"),
        ({"pair": ["left", "middle"]}, "'middle'.*left, right"),
        ({"attributes": ["side", "side"]}, "different attributes"),
        ({"attributes": []}, "different attributes"),
        ({"attributes": ["sied"]}, "'sied'.*did you mean 'side'"),
        ({"weights": [1, 1.0]}, "experiment.weights names a number twice"),
        ({"scales": []}, "experiment.scales is a list of numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_mixed(settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        mixing = Mixing(**settings)
        mixing.watched(world())
        mixing.cells(world(), 4)


# What training never saw


def seen_by_training(model: Any, names: Sequence[str]) -> set[tuple[int, ...]]:
    split = without(model.modality.data.train, parse(model.config.get("holdout") or [], model.modality.conditions))
    condition = split.__getitems__(list(range(len(split))))[1]
    return set(zip(*(condition.values[name].tolist() for name in names), strict=True))


HELD = [{"side": "right", "shade": "low"}, {"shade": "high", "side": "left"}]


def test_never_seen_are_the_combinations_of_the_run_s_holdout():
    model = world(holdout=HELD)
    asked = unseen(model, 5, ["side", "shade"])
    assert asked == {"side": [1, 0, 1, 0, 1], "shade": [0, 2, 0, 2, 0]}
    assert unseen(model, 3, ["shade", "side"]) == {"shade": [0, 2, 0], "side": [1, 0, 1]}
    assert not set(zip(*asked.values(), strict=True)) & seen_by_training(model, ["side", "shade"])
    cells = [cell for cell in Mixing(weights=[1], scales=[1, 2]).cells(model, 5) if cell.at["mix"] == "never seen"]
    assert [(cell.at["how"], cell.at["scale"], cell.asked) for cell in cells] == [
        (how, s, asked) for how in ("joint", "sum") for s in (1, 2)
    ]
    assert not any(cell.at["mix"] == "never seen" for cell in Mixing(weights=[1], held_out=False).cells(model, 5))


def test_a_combination_of_three_says_nothing_of_two():
    """Training saw its parts with others."""
    names = ["side", "shade", "tone"]
    for more in ([], HELD):
        model = world(tuple(names), holdout=[{"side": "left", "shade": "low", "tone": "flat"}, *more])
        try:
            asked = unseen(model, 6, names[:2])
        except UserError as error:
            assert "holdout" in str(error)
            continue
        assert not set(zip(*asked.values(), strict=True)) & seen_by_training(model, names[:2])


def test_a_holdout_of_other_attributes_is_said():
    model = world(("side", "shade", "tone"), holdout=[{"side": "left", "tone": "flat"}])
    assert unseen(model, 2, ["side", "tone"]) == {"side": [0, 0], "tone": [0, 0]}


def test_never_seen_are_else_those_that_only_held_out_data_has():
    model = world()
    data: Any = model.modality.data
    assert unseen(model, 6, ["side", "shade"]) == {}, "all have been seen"
    keep = torch.tensor([k for k in range(60) if k % 6 not in (3, 4)])  # items are the six combinations in turn
    for of in data.train.labels:
        data.train.labels[of] = data.train.labels[of][keep]
    data.train.values = data.train.values[keep]
    asked = unseen(model, 5, ["side", "shade"])
    new = {(3 % 2, 3 // 2), (4 % 2, 4 // 2)}
    found = list(zip(asked["side"], asked["shade"], strict=True))
    assert set(found) == new and [found.count(of) for of in found[:2]] == [3, 2]
    keep = torch.tensor([k for k in range(48) if k % 6 != 3])
    data.test = drawn(("side", "shade"), 48, 12)
    data.test.labels = {name: of[keep] for name, of in data.test.labels.items()}
    data.test.values = data.test.values[keep]
    assert unseen(model, 5, ["side", "shade"]) == {}, "one combination is too few"


# What is asked for


def cell(at: Mapping[str, Any], right_side: float, right_shade: float, n: int = 8) -> Measured:
    """Asked for left and low, of which these shares are seen: those of the shade from the other end."""
    side = [0 if k < right_side * n else 1 for k in range(n)]
    shade = [0 if k >= n - right_shade * n else 2 for k in range(n)]
    return made(at, {"side": side, "shade": shade}, {"side": [0] * n, "shade": [0] * n}, estimates={"frechet": exactly(1.0)})


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ({"side": 1.0, "shade": 1.0}, 2 / 8),  # left and low
        ({"side": 1.0, "shade": -1.0}, 4 / 8),  # left and not low
        ({"side": -2.0, "shade": 0.5}, 2 / 8),  # not left and low
        ({"side": -1.0, "shade": -1.0}, 0 / 8),
        ({"side": 0.0, "shade": 3.0}, 4 / 8),
        ({"side": 1.0, "shade": 0.0}, 6 / 8),
        ({"side": 0.0, "shade": 0.0}, 1.0),
    ],
    ids=str,
)
def test_as_asked_is_seen_where_the_weight_is_positive_and_not_where_it_is_negative(weights: dict[str, float], share: float):
    of = cell({"mix": "two"}, 6 / 8, 4 / 8)
    assert float(as_asked(of, weights).double().mean()) == share == share_as_asked(weights)(of).value
    by_hand = [
        all((w > 0) == bool(of.arrays[f"class.{name}"][k] == of.arrays[f"asked.{name}"][k]) for name, w in weights.items() if w)
        for k in range(8)
    ]
    assert as_asked(of, weights).tolist() == by_hand
    assert share_right("side")(of).value == float(right(of, "side").double().mean()) == 6 / 8
    assert share_seen("shade", (2, 1))(of).value == 4 / 8 and share_seen("shade", (0, 2))(of).value == 1


def findings(cells: Sequence[Measured], mixing: Mixing, **attributes: Any) -> Findings:
    return mixing.findings([result(cells, attributes=attributes or {"side": SIDE, "shade": SHADE})])


def answers(found: Findings) -> list[str]:
    return [verdict.answer for verdict in found.verdicts]


def test_a_heat_map_s_rows_are_the_first_attribute_s_weights():
    mixing = Mixing(weights=[-1, 0, 2])
    share = {(a, b): (1 + i + 3 * j) / 10 for i, a in enumerate(mixing.weights) for j, b in enumerate(mixing.weights)}
    cells = [cell({"mix": "two", **on_weights({"side": a, "shade": b})}, share[a, b], 0.5, 10) for a, b in reversed(share)]
    found = findings(cells, mixing)
    heats: Any = next(figure for figure in found.figures if figure.name == "two").draw
    side, shade, both = heats
    assert side.rows == side.columns == ["-1", "0", "2"] and side.ylabel == "weight of side" and side.xlabel == "weight of shade"
    for r, a in enumerate(mixing.weights):
        for c, b in enumerate(mixing.weights):
            assert side.values[r][c] == pytest.approx(share[a, b]) and shade.values[r][c] == 0.5
            of = next(x for x in cells if x.at == {"mix": "two", "on side": a, "on shade": b})
            assert both.values[r][c] == pytest.approx(float(as_asked(of, {"side": a, "shade": b}).double().mean()))
    table = next(table for table in found.tables if table.name == "two")
    assert {(row["weight_of_side"], row["weight_of_shade"]): round(row["side"].value, 3) for row in table.rows} == pytest.approx(share)


def pair_cells(shares: Mapping[tuple[float, float], tuple[float, float]], first: str = "low", second: str = "high") -> list[Measured]:
    """The shares seen as the first and as the second class of shade; what is left is mid."""
    made_cells = []
    for (a, b), (one, two) in shares.items():
        seen = [SHADE.classes.index(first)] * round(20 * one) + [SHADE.classes.index(second)] * round(20 * two)
        of = {"shade": seen + [1] * (20 - len(seen))}
        made_cells.append(made({"mix": "same", "first": first, "second": second, "a": a, "b": b}, of, {"shade": [0] * 20}))
    return made_cells


def test_the_heat_maps_of_two_classes_of_one_attribute():
    mixing = Mixing(["shade"], weights=[1, 2], pair=["high", "low"])
    shares = {(1.0, 1.0): (0.2, 0.3), (1.0, 2.0): (0.1, 0.8), (2.0, 1.0): (0.7, 0.05), (2.0, 2.0): (0.4, 0.5)}
    found = findings(pair_cells(shares, "high", "low"), mixing, shade=SHADE)
    heats: Any = next(figure for figure in found.figures if figure.name == "same").draw
    assert all(isinstance(heat, Heat) and heat.ylabel == "weight of high" and heat.xlabel == "weight of low" for heat in heats)
    for r, a in enumerate((1.0, 2.0)):
        for c, b in enumerate((1.0, 2.0)):
            one, two = shares[a, b]
            assert [heat.values[r][c] for heat in heats] == pytest.approx([one, two, one + two])


@pytest.mark.parametrize(
    ("one", "two", "answer"),
    [
        (0.5, 0.4, "Samples become one or the other"),
        (0.95, 0.0, "One of them wins"),
        (0.3, 0.2, "Often neither is seen"),
        (0.0, 0.0, "Often neither is seen"),
    ],
)
def test_what_two_classes_make(one: float, two: float, answer: str):
    found = findings(pair_cells({(1.0, 1.0): (one, two), (2.0, 1.0): (1.0, 0.0), (-1.0, -1.0): (0.5, 0.5)}), Mixing(["shade"]), shade=SHADE)
    (verdict,) = found.verdicts
    assert verdict.question == "What do low and high make, mixed?" and verdict.answer == answer
    assert f"low in {one:.3g} [" in verdict.evidence and f"high in {two:.3g} [" in verdict.evidence


def test_two_classes_at_their_best_common_weight():
    shares = {(1.0, 1.0): (0.9, 0.05), (2.0, 2.0): (0.5, 0.45), (3.0, 3.0): (0.1, 0.3)}
    (verdict,) = findings(pair_cells(shares), Mixing(["shade"], weights=[1, 2, 3]), shade=SHADE).verdicts
    assert "0.45" in verdict.evidence and "weight of 2 " in verdict.evidence and verdict.answer == "Samples become one or the other"


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("either", "first", "second"), ("n", "how", "scale")])
def test_classes_may_be_called_anything(classes: tuple[str, ...]):
    cells = [
        made({"mix": "same", "first": classes[0], "second": classes[1], "a": a, "b": a}, {"side": [0, 1, 1, 0]}, {"side": [0] * 4})
        for a in (1.0, 2.0)
    ]
    found = findings(cells, Mixing(["side"], weights=[1, 2]), side=Label(classes))
    assert answers(found) == ["Samples become one or the other"]
    heats: Any = found.figures[0].draw
    assert [heat.values[0][0] for heat in heats] == [0.5, 0.5, 1]


def joint_cells(mix: str, joint: Mapping[float, float], total: Mapping[float, float], n: int = 100) -> list[Measured]:
    return [
        cell({"mix": mix, "how": how, "scale": scale}, share, 1.0, n)
        for how, of in (("joint", joint), ("sum", total))
        for scale, share in of.items()
    ]


@pytest.mark.parametrize(
    ("joint", "total", "answer"),
    [
        ({1.0: 0.2, 2.0: 0.4}, {1.0: 0.9, 2.0: 0.1}, "Yes, and better than the jointly conditioned model"),
        ({1.0: 0.2, 2.0: 0.8}, {1.0: 0.78, 2.0: 0.1}, "Yes, as well as the jointly conditioned model"),
        ({1.0: 0.9, 2.0: 0.8}, {1.0: 0.1, 2.0: 0.4}, "Less well than the jointly conditioned model"),
    ],
)
def test_sums_against_the_jointly_conditioned_model(joint: dict[float, float], total: dict[float, float], answer: str):
    for mix, question in (("two", "Can side and shade be mixed"), ("never seen", "combinations of side and shade that training never saw")):
        found = findings(joint_cells(mix, joint, total), Mixing(scales=[1, 2]))
        (verdict,) = found.verdicts
        assert verdict.answer == answer and question in verdict.question
        best = max(joint, key=joint.__getitem__), max(total, key=total.__getitem__)
        assert f"(weight {best[1]:g}), {joint[best[0]]:.3g} [" in verdict.evidence and f"(scale {best[0]:g})" in verdict.evidence
        (table,) = found.tables
        assert [(row["how"], row["scale"], row["all"].value) for row in table.rows] == [
            (how, s, pytest.approx(v)) for how, of in (("joint", joint), ("sum", total)) for s, v in of.items()
        ]


def test_nothing_is_said_of_a_half():
    assert findings(joint_cells("two", {1.0: 0.5}, {}), Mixing()).verdicts == []


def test_three_with_one_negative():
    n = 10
    seen = {"side": [0] * 7 + [1] * 3, "shade": [0] * n, "tone": [0] * 4 + [1] * 6}
    asked = {name: [0] * n for name in seen}
    at = {"mix": "signed", **on_weights({"side": 3.0, "shade": 3.0, "tone": -1.0})}
    found = findings([made(at, seen, asked)], Mixing(), side=SIDE, shade=SHADE, tone=TONE)
    (table,) = found.tables
    assert table.rows[0]["as_asked"].value == 0.3, "left, and not flat"
    assert table.rows[0]["tone"].value == 0.4 and table.rows[0]["weight_of_tone"] == -1


def test_several_trainings_are_pooled():
    shares = (0.2, 0.5, 0.6)
    results = [result(joint_cells("two", {1.0: s}, {1.0: 1 - s}), attributes={"side": SIDE, "shade": SHADE}) for s in shares]
    (table,) = Mixing().findings(results).tables
    expected = over_seeds([share(torch.arange(100) < 100 * s) for s in shares])
    assert table.rows[0]["all"] == expected and table.rows[0]["side"] == expected
