"""The trade-off's verdicts and tables on made-up measures; what it draws; the conditioning dropout of further trainings."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from experiment_fakes import CONFIG, MEANS, SHADE, SIDE, draw, exactly, free, made, result, world

from guidance import CFG, UserError, estimate
from guidance.condition import Dropout
from guidance.estimate import Estimate, over_seeds
from guidance.experiment import DropoutStudy, Tradeoff
from guidance.experiment.cells import Measured
from guidance.experiment.dropout import rate_of
from guidance.experiment.tradeoff import check_scales

PLAIN = {"accuracy": 0.9, "frechet": 5.0, "inception_score": 2.0, "precision": 0.8, "recall": 0.5, "diversity": 1.0}


def cell(scale: float, half: float = 0.05, steps: int | None = None, **values: float) -> Measured:
    at: dict[str, float] = {"scale": scale} if steps is None else {"steps": steps, "scale": scale}
    estimates = {name: exactly(value, half) for name, value in {**PLAIN, **values}.items()}
    return made(at, {"side": [0, 1]}, {"side": [0, 1]}, estimates=estimates)


def shape(*cells: Measured, scales: Sequence[float] = (0, 1, 2, 4)) -> Any:
    (verdict,) = Tradeoff(scales).findings([result(cells)]).verdicts
    assert verdict.question == "Does guidance trade diversity for fidelity?"
    return verdict


SURER, NARROWER, LATER = {"inception_score": 3.0}, {"recall": 0.3}, {"frechet": 9.0}
"""At scale 4 against 1: each a part of what Ho & Salimans found."""


@pytest.mark.parametrize(("surer", "narrower", "later"), list(itertools.product([True, False], repeat=3)))
def test_yes_takes_all_three_and_no_none(surer: bool, narrower: bool, later: bool):
    top = {**(SURER if surer else {}), **(NARROWER if narrower else {}), **(LATER if later else {"frechet": 1.0})}
    found = shape(cell(1.0), cell(2.0, frechet=4.5), cell(4.0, **top))
    assert found.answer == ("Yes" if surer and narrower and later else "In part" if surer or narrower or later else "No")
    best = 2 if later else 4
    assert f"Frechet distance is least at scale {best}" in found.evidence and "From scale 1 to 4" in found.evidence


@pytest.mark.parametrize(("part", "too_wide"), [(SURER, 0.6), (SURER, 2.0), (NARROWER, 0.15), (NARROWER, 2.0)])
def test_a_difference_within_the_intervals_is_none(part: Mapping[str, float], too_wide: float):
    """Half-widths of .05 are told apart; ones that overlap are not."""
    for half, answer in ((0.05, "In part"), (too_wide, "No")):
        assert shape(cell(1.0, half), cell(4.0, half, frechet=1.0, **part)).answer == answer


def test_the_wrong_way_round_is_no():
    assert shape(cell(1.0), cell(4.0, inception_score=1.0, recall=0.9, frechet=1.0)).answer == "No"


def test_the_unconditional_model_is_not_the_best_scale():
    found = shape(cell(0.0, frechet=0.1), cell(1.0, frechet=3.0), cell(4.0, frechet=2.0))
    assert "least at scale 4" in found.evidence


@pytest.mark.parametrize(
    "cells",
    [[], [cell(1.0)], [cell(4.0)], [cell(2.0), cell(4.0)], [cell(0.0), cell(1.0)], [cell(-1.0), cell(0.5)]],
    ids=lambda c: str(len(c)),
)
def test_without_scale_1_and_one_above_it_nothing_can_be_said(cells: list[Measured]):
    assert shape(*cells).answer == "Cannot be said yet"


def test_a_measure_that_is_missing_is_not_made_up():
    lacking = made({"scale": 1.0}, {"side": [0, 1]}, {"side": [0, 1]}, estimates={"frechet": exactly(1.0)})
    assert shape(lacking, cell(4.0)).answer == "Cannot be said yet"


@pytest.mark.parametrize(
    ("few", "many", "half", "answer"),
    [(5.0, 3.0, 0.5, "Yes"), (3.0, 5.0, 0.5, "They do harm"), (5.0, 3.0, 2.0, "Not measurably"), (5.0, 5.0, 0.1, "Not measurably")],
)
def test_do_more_steps_help(few: float, many: float, half: float, answer: str):
    cells = [cell(s, half, t, frechet=f) for t, f in ((16, few), (64, 9.0), (256, many)) for s in (1.0, 4.0)]
    found = Tradeoff([1, 4], steps=[64, 256, 16]).findings([result(cells)]).verdicts
    assert found[-1].question == "Do more steps of the sampler help?" and found[-1].answer == answer
    assert [v.question for v in found[:-1]] == [f"Does guidance trade diversity for fidelity, in {t} steps?" for t in (64, 256, 16)]
    only = Tradeoff([1, 4], steps=[64, 256]).findings([result([c for c in cells if c.at["steps"] == 64])]).verdicts
    assert [v.answer for v in only][1:] == [] and len(only) == 1


def test_the_first_row_is_real_data_and_the_others_their_cells():
    real = {"frechet": [0.5, 0.4, 0.6, 48], "recall": [0.7, 0.6, 0.8, 48]}
    cells = [cell(1.0), cell(4.0, frechet=7.0)]
    (table,) = Tradeoff([1, 4]).findings([result(cells, real=real)]).tables
    first, *rest = table.rows
    assert first["scale"] == "real" and first["n"] == 48 and first["frechet"] == Estimate(0.5, 0.4, 0.6, 48)
    assert [row["scale"] for row in rest] == [1, 4] and [row["frechet"].value for row in rest] == [5, 7] and rest[0]["n"] == 2


def test_trainings_are_pooled_and_only_what_all_have():
    values = (5.0, 6.0, 8.0)
    groups = [[cell(1.0, frechet=v), *([cell(4.0)] if v < 8 else [])] for v in values]
    (table,) = Tradeoff([1, 4]).findings([result(of) for of in groups]).tables
    assert [row["scale"] for row in table.rows] == ["real", 1.0] and table.rows[1]["n"] == 6
    assert table.rows[1]["frechet"] == over_seeds([exactly(v, 0.05) for v in values])
    assert table.rows[1]["frechet"].value == pytest.approx(19 / 3)


def test_the_figure_of_the_trade_off_has_the_scales_beside_its_points():
    cells = [cell(s, recall=0.5 - s / 10, precision=0.5 + s / 10, inception_score=s, frechet=9 - s) for s in (1.0, 2.5, 4.0)]
    figures = {f.name: f for f in Tradeoff([1, 2.5, 4]).findings([result(cells)]).figures}
    (series,) = figures["tradeoff"].draw[0].series  # type: ignore[union-attr]
    assert list(series.notes) == ["1", "2.5", "4"]
    assert [x.value for x in series.x] == pytest.approx([0.4, 0.25, 0.1]) and [y.value for y in series.y] == pytest.approx([0.6, 0.75, 0.9])  # type: ignore[union-attr]
    (other,) = figures["tradeoff"].draw[1].series  # type: ignore[union-attr]
    assert [x.value for x in other.x] == [1, 2.5, 4] and [y.value for y in other.y] == [8, 6.5, 5]  # type: ignore[union-attr]
    labels = [(panel.xlabel.split(":")[0].split(" ")[0], panel.ylabel.split(":")[0].split(" ")[0]) for panel in figures["tradeoff"].draw]
    assert labels == [("recall", "precision"), ("inception", "Frechet"), ("recall", "share")]


# What is drawn


def test_cells_are_every_scale_with_every_number_of_steps():
    model = world()
    cells = Tradeoff([0, 2.5], steps=[4, 9]).cells(model, 5)
    assert [(dict(c.at), c.steps, c.guidance) for c in cells] == [({"steps": t, "scale": s}, t, CFG(s)) for t in (4, 9) for s in (0.0, 2.5)]
    assert all(c.asked == {"side": [0, 1, 0, 1, 0]} for c in cells)
    plain = Tradeoff([3], attribute="shade").cells(model, 4)
    assert [(dict(c.at), c.steps, c.asked) for c in plain] == [({"scale": 3.0}, None, {"shade": [0, 1, 2, 0]})]


def test_given_train_asks_for_and_watches_all():
    model = world()
    made_of = Tradeoff([2], attribute="shade", given="train")
    assert made_of.watched(model) == ["shade", "side"] and Tradeoff([2]).watched(model) == ["side"]
    (cell_of,) = made_of.cells(model, 12)
    pairs = set(zip(cell_of.asked["side"], cell_of.asked["shade"], strict=True))
    assert len(pairs) > 3 and set(cell_of.asked) == {"side", "shade"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scales": []}, "experiment.scales is a list of numbers"),
        ({"scales": 3}, "experiment.scales is a list of numbers"),
        ({"scales": [1, float("nan")]}, "experiment.scales takes finite numbers, got nan"),
        ({"scales": [1, float("inf")]}, "finite numbers, got inf"),
        ({"scales": [True]}, "finite numbers, got True"),
        ({"scales": ["1"]}, "finite numbers, got '1'"),
        ({"scales": [1, 2, 1.0]}, "names a number twice"),
        ({"scales": [0.0, -0.0]}, "names a number twice"),
        ({"steps": [0]}, "experiment.steps are whole numbers, at least 1, got 0"),
        ({"steps": [True]}, "whole numbers"),
        ({"steps": [2.0]}, "whole numbers"),
        ({"steps": [4, 4]}, "experiment.steps names a number twice"),
        ({"given": "test"}, "experiment.given is alone or train, got 'test'"),
    ],
    ids=str,
)
def test_what_is_no_trade_off(settings: dict[str, Any], words: str, unchecked: None):
    with pytest.raises(UserError, match=words):
        Tradeoff(**{"scales": [1], **settings})


def test_scales_are_numbers_in_their_order():
    assert check_scales([3, -1, 0.5]) == [3.0, -1.0, 0.5] and Tradeoff([3, -1]).scales == (3.0, -1.0)


# Conditioning dropout


class InPart:
    """An attribute that may be known in part."""

    draws = 1

    def parse(self, value: object) -> torch.Tensor:
        return torch.zeros(1)

    def absent(self) -> torch.Tensor:
        return torch.zeros(1)

    def embedding(self, width: int) -> torch.nn.Module:
        return torch.nn.Linear(1, width)

    def reveal(self, values: torch.Tensor, keep: torch.Tensor, u: torch.Tensor) -> Any:
        return values, keep


VARIANTS = {"joint-0.1": {"joint": 0.1, "each": 0.0}, "half": {"joint": 0.5}, "each": {"joint": 0.1, "each": {"side": 0.3}}}


def test_variants_are_the_run_s_config_with_other_dropout():
    model = world(extra={"deep": [1]})
    found = DropoutStudy(VARIANTS).trainings(model)
    target = {"_target_": "guidance.condition.Dropout"}
    by_hand = {"joint-0.1": {"joint": 0.1, "each": 0.0}, "half": {"joint": 0.5, "each": 0.0}, "each": {"joint": 0.1, "each": {"side": 0.3}}}
    assert found == {name: {**CONFIG, "extra": {"deep": [1]}, "dropout": {**target, **of}} for name, of in by_hand.items()}
    assert found["joint-0.1"] == model.config, "which need not be trained again"
    found["half"]["extra"]["deep"].append(2)
    assert model.config["extra"] == {"deep": [1]}, "the run's own is not touched"
    longer = DropoutStudy(VARIANTS, steps=77).trainings(model)
    assert all(of["trainer"] == {"steps": 77} for of in longer.values()) and model.config["trainer"] == {"steps": 10}


@pytest.mark.parametrize(("own", "rate"), [({"words": 0.4}, 0.4), ({"*": 0.25}, 0.25), (0.15, 0.15), ({"side": 0.5}, 0.0)])
def test_what_is_known_in_part_keeps_its_rate(own: Any, rate: float):
    model = world(dropout={"_target_": "guidance.condition.Dropout", "joint": 0.2, "each": own})
    model.modality.conditions["words"] = InPart()  # type: ignore[index]
    assert rate_of(own, "words") == rate
    found = {name: of["dropout"]["each"] for name, of in DropoutStudy(VARIANTS).trainings(model).items()}
    names = ["side", "shade", "words"]
    for name, sides in (("joint-0.1", 0.0), ("half", 0.0), ("each", 0.3)):
        Dropout(0.1, found[name]).check(names)
        assert [rate_of(found[name], of) for of in names] == [sides, 0.0, rate]


def test_every_variant_has_every_cell():
    model, n = world(), 6
    study = DropoutStudy(VARIANTS, scales=[0, 2])
    cells = study.cells(model, n)
    places = [("alone", 0.0), ("alone", 2.0), ("joint", 2.0), ("sum", 2.0)]
    assert [dict(c.at) for c in cells] == [{"dropout": v, "how": how, "scale": s} for v in VARIANTS for how, s in places]
    assert [c.variant for c in cells] == [v for v in VARIANTS for _ in places] and len({c.name for c in cells}) == len(cells)
    alone, joint, total = cells[1], cells[2], cells[3]
    assert alone.asked == {"side": [k % 2 for k in range(n)]} and joint.asked == total.asked and set(joint.asked) == {"side", "shade"}
    expected = 2 * torch.stack([torch.tensor(MEANS[a])[torch.tensor(joint.asked[a])] for a in ("side", "shade")], 1)
    torch.testing.assert_close(draw(model, n, total.guidance) - free(model, n), expected, atol=4e-2, rtol=0)
    one = world(("side",))
    assert [c.at["how"] for c in study.cells(one, n)] == ["alone"] * 6, "nothing to sum"


def dropout_cells(
    frechet: Mapping[str, Sequence[float]], right: Mapping[str, Sequence[float]], half: float = 0.1, n: int = 100
) -> list[Measured]:
    cells = []
    for variant, of in frechet.items():
        for scale, value in zip((1.0, 2.0), of, strict=True):
            for how in ("alone", "joint", "sum"):
                share = right[variant][int(scale) - 1] if how == "sum" else 0.5
                seen = {"side": [0 if k < share * n else 1 for k in range(n)], "shade": [0] * n}
                asked = {"side": [0] * n, "shade": [0] * n}
                estimates = {name: exactly(v, half) for name, v in PLAIN.items()} | {
                    "frechet": exactly(value if how == "joint" else 50.0, half)
                }
                cells.append(made({"dropout": variant, "how": how, "scale": scale}, seen, asked, estimates=estimates))
    return cells


def verdicts(cells: Sequence[Measured]) -> Any:
    study = DropoutStudy({name: {} for name in "abc"}, scales=[1, 2])
    return study.findings([result(cells, attributes={"side": SIDE, "shade": SHADE})]).verdicts


def test_the_worst_dropout_and_the_one_that_composes():
    frechet = {"a": (9.0, 2.0), "b": (1.0, 8.0), "c": (5.0, 4.0)}
    right = {"a": (0.1, 0.2), "b": (0.95, 0.1), "c": (0.3, 0.5)}
    best, composing = verdicts(dropout_cells(frechet, right))
    assert (
        best.answer == "c is worst" and "b 1 [0.9, 1.1] at scale 1; a 2 [1.9, 2.1] at scale 2; c 4 [3.9, 4.1] at scale 2." in best.evidence
    )
    assert composing.answer == "b" and composing.evidence.index("b 0.95") < composing.evidence.index("c 0.5") < composing.evidence.index(
        "a 0.2"
    )


@pytest.mark.parametrize(
    ("shares", "answer"), [((0.9, 0.88, 0.3), "a and b alike"), ((0.5, 0.52, 0.48), "All alike"), ((0.2, 0.3, 0.9), "c")]
)
def test_which_dropout_lets_conditions_be_summed(shares: tuple[float, ...], answer: str):
    right = {name: (0.0, share) for name, share in zip("abc", shares, strict=True)}
    assert verdicts(dropout_cells(dict.fromkeys("abc", (1.0, 1.0)), right))[1].answer == answer


def test_a_difference_within_the_intervals_says_nothing_of_dropout():
    cells = dropout_cells({"a": (1.0, 2.0), "b": (1.1, 2.0), "c": (1.2, 2.0)}, dict.fromkeys("abc", (0.5, 0.5)), half=0.5)
    assert verdicts(cells)[0].answer == "No difference that these samples can show"
    (only,) = [dropout_cells({"a": (1.0, 2.0)}, {"a": (0.5, 0.5)})]
    assert verdicts(only) == [], "one is not compared"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variants": {}}, "names no variant"),
        ({"variants": {"a/b": {}}}, "'a/b'"),
        ({"variants": {"a": 3}}, "needs settings of dropout"),
        ({"steps": 0}, "experiment.steps is a whole number"),
        ({"scales": [1, 1]}, "twice"),
    ],
    ids=str,
)
def test_what_is_no_study_of_dropout(settings: dict[str, Any], words: str, unchecked: None):
    with pytest.raises(UserError, match=words):
        DropoutStudy(**{"variants": VARIANTS, **settings})


def test_a_share_of_both_right_is_a_count():
    cells = dropout_cells({"a": (1.0, 2.0)}, {"a": (0.25, 0.75)})
    study = DropoutStudy({"a": {}}, scales=[1, 2])
    (table,) = study.findings([result(cells, attributes={"side": SIDE, "shade": SHADE})]).tables
    of = {(row["how"], row["scale"]): row for row in table.rows}
    assert of["sum", 2.0]["both_right"] == estimate.share(torch.arange(100) < 75) and "both_right" not in of["alone", 1.0]
    assert of["joint", 1.0]["frechet"].value == 1 and of["alone", 1.0]["frechet"].value == 50
