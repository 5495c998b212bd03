"""Evaluations side by side."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from guidance.cli import run

REAL = {"scale": "real", "n": 90, "accuracy": 0.98, "accuracy_low": 0.95, "accuracy_high": 0.99, "frechet": 0.5} | {
    "frechet_low": 0.4,
    "frechet_high": 0.6,
}


def row(scale: float, accuracy: float, frechet: float, **more: Any) -> dict[str, Any]:
    ends = {"accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02, "frechet_low": frechet - 1, "frechet_high": None}
    return {"scale": scale, "n": 50, "accuracy": accuracy, "frechet": frechet, **ends, "evaluations": 2.0, **more}


def evaluation(folder: Path, *rows: dict[str, Any], attribute: str = "digit", real: dict[str, Any] = REAL, **config: Any) -> Path:
    folder.mkdir()
    facts = {"config": {"given": "alone", **config}, "attribute": attribute, "judge_accuracy": 0.98, "rows": [real, *rows]}
    (folder / "evaluation.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_row_is_in_the_table_with_its_intervals(here: Path, capsys: pytest.CaptureFixture[str]):
    evaluation(here / "cfg", row(1.0, 0.9, 3.25), row(2.0, 0.97, 5.0))
    evaluation(here / "by-classifier", row(1.5, 0.8, 4.0, copies=0.01))
    assert run(["compare", "cfg", "by-classifier", "out=both"]) == 0
    table = list(csv.DictReader((here / "both" / "comparison.csv").open()))
    assert [(r["guidance"], r["scale"]) for r in table] == [("real data", ""), ("cfg", "1"), ("cfg", "2"), ("by-classifier", "1.5")]
    assert [float(r["frechet"]) for r in table] == [0.5, 3.25, 5.0, 4.0]
    assert [float(r["accuracy_low"]) for r in table] == pytest.approx([0.95, 0.88, 0.95, 0.78])
    assert math.isnan(float(table[1]["frechet_high"])) and float(table[3]["copies"]) == 0.01 and table[1]["copies"] == ""
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["cfg", "2", "0.970", "5.000", "2.000"] in lines and ["real", "data", "0.980", "0.500"] in lines
    markdown = (here / "both" / "comparison.md").read_text().splitlines()
    assert markdown[0] == "| guidance | scale | accuracy | frechet | evaluations |"
    assert "| cfg | 1 | 0.900 [0.880, 0.920] | 3.250 [2.250, ] | 2 |" in markdown
    assert (here / "both" / "comparison.png").stat().st_size > 5000


def test_the_figure_has_a_line_an_evaluation_and_says_each_scale(here: Path):
    from guidance.compare import panel, read

    found = [
        read(evaluation(here / "cfg", row(1.0, 0.9, 3.25), row(2.0, 0.97, 5.0))),
        read(evaluation(here / "interval", row(1.5, 0.8, 4.0))),
    ]
    part = panel(found, "accuracy", "frechet")
    assert [(s.label, [x.value for x in s.x], [y.value for y in s.y], list(s.notes)) for s in part.series] == [  # type: ignore[union-attr]
        ("cfg", [0.9, 0.97], [3.25, 5.0], ["1", "2"]),
        ("interval", [0.8], [4.0], ["1.5"]),
    ]
    assert part.level == 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attribute": "stroke"}, "another attribute (digit and stroke)"),
        ({"given": "test"}, "another given (alone and test)"),
        ({"real": {**REAL, "frechet": 0.7}}, "another real data"),
    ],
)
def test_what_was_measured_otherwise_is_refused(change: dict[str, Any], words: str, here: Path, capsys: pytest.CaptureFixture[str]):
    evaluation(here / "a", row(1.0, 0.9, 3.25))
    evaluation(here / "b", row(1.0, 0.9, 3.25), **change)
    assert run(["compare", "a", "b"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a and b cannot be compared" in error and words in error and not (here / "comparison").exists()


def test_what_another_machine_rounds_otherwise_is_the_same(here: Path):
    evaluation(here / "a", row(1.0, 0.9, 3.25))
    evaluation(here / "b", row(1.0, 0.9, 3.25), real={**REAL, "frechet": 0.5 * (1 + 1e-6)})
    assert run(["compare", "a", "b"]) == 0
    evaluation(here / "c", row(1.0, 0.9, 3.25), real={**REAL, "frechet": 0.5 * (1 + 1e-3)})
    assert run(["compare", "a", "c"]) == 2


def test_another_number_of_samples_is_refused(here: Path, capsys: pytest.CaptureFixture[str]):
    evaluation(here / "a", row(1.0, 0.9, 3.25))
    evaluation(here / "b", {**row(1.0, 0.9, 3.25), "n": 51})
    assert run(["compare", "a", "b"]) == 2
    assert "another n (50 and 51)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "two evaluations"),
        (["a"], "two evaluations"),
        (["a", "nowhere"], "nowhere holds no evaluation"),
        (["a", "cut"], "cut short"),
        (["a", "a"], "called a"),
        (["a", "b", "n=3"], "got n=3"),
    ],
)
def test_bad_arguments_get_one_line(arguments: list[str], words: str, here: Path, capsys: pytest.CaptureFixture[str]):
    evaluation(here / "a", row(1.0, 0.9, 3.25))
    evaluation(here / "b", row(1.0, 0.9, 3.25))
    evaluation(here / "cut", row(1.0, 0.9, 3.25))
    (here / "cut" / "evaluation.json").write_text((here / "a" / "evaluation.json").read_text()[:200])
    assert run(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
