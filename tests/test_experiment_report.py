"""The report: one page that needs nothing else and holds all that was found; runs are put together only where they belong together."""

import base64
import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from textwrap import fill
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from experiment_fakes import LABELS, cheaply, drawn, exactly, made, measure, result, sketched, world
from PIL import Image

from guidance import Label
from guidance.cli import run
from guidance.estimate import Estimate
from guidance.experiment import DropoutStudy, Inverse, Mixing, Tradeoff
from guidance.experiment.figures import Heat, Panel, Series
from guidance.experiment.figures import draw as real_draw
from guidance.experiment.figures import write as real_write
from guidance.experiment.findings import FACTS, Result, read_result, sheet_of
from guidance.experiment.report import MARK, findings_of, grouped, results_of, slug, written

EXPERIMENTS: dict[str, Any] = {
    "tradeoff": Tradeoff([0, 1, 3]),
    "steps": Tradeoff([1, 2], steps=[3, 6]),
    "inverse": Inverse([-1, 1]),
    "compose": Mixing(weights=[-1, 1], scales=[1, 2]),
    "dropout": DropoutStudy({"a": {"joint": 0.2}, "b": {"joint": 0.3}}, scales=[0, 1]),
}
HELD = [{"side": "left", "shade": "high"}]


@pytest.fixture(scope="module", autouse=True)
def as_for_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        cheaply(patch)
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all experiments; and two more trainings of the same, with one."""
    folder = tmp_path_factory.mktemp("runs")
    for name, experiment in EXPERIMENTS.items():
        of = world(("side", "shade", "tone"), holdout=HELD)
        measure(experiment, of, folder / "run-0" / "experiments" / name, 12, steps=3, make=lambda name, config: of)  # noqa: B023
    for seed in (1, 2):
        of = world(("side", "shade", "tone"), holdout=HELD, seed=seed)
        measure(EXPERIMENTS["tradeoff"], of, folder / f"run-{seed}" / "experiments" / "tradeoff", 12, steps=3)
    return folder


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes long, and is what few of these tests are about."""
    monkeypatch.setattr("guidance.experiment.figures.write", sketched)


@pytest.fixture
def runs(place: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    shutil.copytree(place, tmp_path / "runs")
    return tmp_path / "runs"


def edited(folder: Path, **more: Any) -> None:
    path = folder / FACTS
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a browser would make of it: the open tags, all addresses, the text, the tables."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.attributes: set[str] = set()
        self.styles = ""
        self.text = ""
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            self.ids += [str(value)] if name == "id" else []
            self.addresses += [str(value)] if name in ("src", "href", "action", "data", "poster", "srcset") else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles += data
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th", "small") and self.tables and "table" in self.open:
            text, ends = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text, ends + data) if self.open[-1] == "small" else (text + data, ends)


def shown(groups: Sequence[Sequence[Result]], out: Path, title: str = "A title") -> Page:
    return Page(written(groups, out, title))


def near(text: str, value: float) -> bool:
    """Whether a number as it is read is that of the CSV."""
    return float(text) == pytest.approx(value, rel=6e-3, abs=6e-4)


def test_the_page_holds_everything_and_needs_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "report"
    assert run(["report", str(place / "run-0"), f"out={out}", "title=All & more"]) == 0
    said, page = capsys.readouterr().out, Page(out / "report.html")
    text = (out / "report.html").read_text()
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "http" not in re.sub(r"data:[^\"]*", "", text) and not re.search(r"url\(|@import", page.styles)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags) and not any(
        name.startswith("on") for name in page.attributes
    )
    assert all(address[1:] in page.ids for address in page.addresses if address.startswith("#")) and len(set(page.ids)) == len(page.ids)
    assert "All & more" in page.text and "not measured" not in page.text and "cells measured so far" not in page.text
    flowing = " ".join(page.text.split())
    tables, figures = 0, 0
    for name, experiment in EXPERIMENTS.items():
        (of,) = results_of(place / "run-0" / "experiments" / name)
        found = findings_of([of])
        assert type(experiment).__name__ in of.facts["kind"] and found.verdicts and found.tables and found.figures
        for verdict in found.verdicts:
            for part in (verdict.question, verdict.answer, verdict.evidence):
                assert " ".join(part.split()) in flowing
            assert f"{verdict.question} {verdict.answer}." in said
        for table in found.tables:
            assert " ".join(table.caption.split()) in flowing
            tables += 1
        figures += len(found.figures)
    # Every table of the page is one of the CSV files, number by number.
    numbers = [rows for rows in page.tables if rows[0] and rows[0][0][0] and all(rows)]
    files = sorted((out / "tables").glob("*.csv"))
    assert tables == len(files) and figures == len(list((out / "figures").glob("*.png"))) == len(list((out / "figures").glob("*.svg")))
    for path in files:
        wide = list(csv.DictReader(path.read_text().splitlines()))
        names = [name for name in wide[0] if not re.search(r"_(low|high)$", name) or name.rsplit("_", 1)[0] not in wide[0]]
        candidates = [
            rows
            for rows in numbers
            if [text for text, _ in rows[0]] == [name.replace("_", " ") for name in names] and len(rows) == len(wide) + 1
        ]
        assert any(all(agrees(row, cells, names) for row, cells in zip(wide, rows[1:], strict=True)) for rows in candidates), path.name


def agrees(row: dict[str, str], cells: list[tuple[str, str]], names: Sequence[str]) -> bool:
    for name, (text, ends) in zip(names, cells, strict=True):
        value = row[name]
        try:
            number = float(value)
        except ValueError:
            if text != value:
                return False
            continue
        if number != number:
            if text:
                return False
            continue
        if not near(text, number):
            return False
        if ends:
            low, high = ends.split(" to ")
            if not near(low, float(row[f"{name}_low"])) or not near(high, float(row[f"{name}_high"])):
                return False
        elif row.get(f"{name}_low") not in (None, "nan", ""):
            return False
    return True


def test_every_figure_is_a_picture_and_a_drawing_with_its_labels(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guidance.experiment.figures.write", real_write)
    for name in ("inverse", "compose"):
        groups = grouped(results_of(place / "run-0" / "experiments" / name))
        written(groups, tmp_path / name, "A title")
        for figure in findings_of(groups[0]).figures:
            drawing = tmp_path / name / "figures" / f"numbers-{slug(groups[0][0].facts['title'])}-{figure.name}.svg"
            assert Image.open(drawing.with_suffix(".png")).size[0] > 300
            words = drawing.read_text()
            for part in figure.draw:
                assert part.xlabel and part.ylabel
                for label, width in ((part.xlabel, 44), (part.ylabel, 34)):
                    for line in fill(label, width).splitlines():
                        assert f">{line}</" in words, (figure.name, line)
                if isinstance(part, Heat):
                    assert part.label in words and all(f">{tick}</" in words for tick in (*part.rows, *part.columns))
                else:
                    assert isinstance(part, Panel) and all(f">{series.label}</" in words for series in part.series if series.label)


def test_the_drawing_in_the_page_is_the_one_beside_it(place: Path, tmp_path: Path):
    page = shown([results_of(place / "run-0" / "experiments" / "inverse")], tmp_path)
    inside = {base64.b64decode(address.split(",", 1)[1]) for address in page.addresses if address.startswith("data:image/svg+xml;base64,")}
    assert inside == {path.read_bytes() for path in (tmp_path / "figures").glob("*.svg")} and inside


def test_samples_stand_side_by_side(place: Path, tmp_path: Path):
    (of,) = results_of(place / "run-0" / "experiments" / "tradeoff")
    page = shown([[of]], tmp_path)
    pictures = [base64.b64decode(address.split(",", 1)[1]) for address in page.addresses if address.startswith("data:image/png")]
    expected = [path.read_bytes() for scale in (0.0, 1.0, 3.0) for path in of.at(scale=scale).samples]  # type: ignore[union-attr]
    expected += [path.read_bytes() for path in of.cells[0].real["real, held out"]]
    assert len(expected) == 40 and pictures == expected
    sheet = next(rows for rows in page.tables if rows[0][0] == ("", ""))
    assert [text for text, _ in sheet[0]] == ["", *(("left", "right")[k % 2] for k in range(10))]
    assert [row[0][0] for row in sheet[1:]] == ["scale 0", "scale 1", "scale 3", "real, held out"]


HELD_OUT = drawn(("side", "shade", "tone"), 48, 12)  # the world's


def greys(files: Sequence[Path]) -> list[int]:
    return [int(np.asarray(Image.open(file))[0, 0]) for file in files]


def fits(file: Path, **classes: str) -> bool:
    """Whether a picture is that of a held-out item of these classes."""
    there = torch.stack([HELD_OUT.labels[name] == LABELS[name].classes.index(value) for name, value in classes.items()]).all(0)
    return greys([file])[0] in [int((value.clamp(-5, 5) + 5) * 25) for value in HELD_OUT.values[there][:, 0]]


def real_rows(of: Result) -> dict[str, list[tuple[str, Sequence[Path]]]]:
    """Of every sheet, by its caption: the rows below the samples."""
    sheets = findings_of([of]).sheets
    assert all([row[0][:4] == "real" for row in sheet.rows] == sorted(row[0][:4] == "real" for row in sheet.rows) for sheet in sheets)
    return {sheet.caption: [row for row in sheet.rows if row[0].startswith("real")] for sheet in sheets}


def test_a_sheet_ends_in_held_out_items_of_what_its_columns_name(place: Path):
    (of,) = results_of(place / "run-0" / "experiments" / "inverse")
    (classes,), *ends = real_rows(of).values()
    assert classes[0] == "real, held out" and len(classes[1]) == 10
    assert all(fits(file, side=("left", "right")[k % 2]) for k, file in enumerate(classes[1]))
    assert len(ends) == 2
    for ((title, files),), level in zip(ends, ("low", "high"), strict=True):
        assert title == "real, held out" and all(fits(file, shade=level) for file in files)
        assert len(set(greys(files))) > 8, "ten items, though all are asked for the same"


def test_sums_show_held_out_items_of_what_they_name(place: Path):
    (of,) = results_of(place / "run-0" / "experiments" / "compose")
    rows = real_rows(of)
    (two,) = rows["Weights of side and of shade; the same noise down each column"]
    arrays = of.cells[0].arrays
    for k, file in enumerate(two[1]):
        assert fits(file, **{name: of.classes(name)[int(arrays[f"asked.{name}"][k])] for name in ("side", "shade")})
    left, right = rows["Weights of left and of right; the same noise down each column"]
    assert (left[0], right[0]) == ("real, held out, left", "real, held out, right")
    assert all(fits(file, side="left") for file in left[1]) and all(fits(file, side="right") for file in right[1])


def test_real_items_are_not_those_of_the_cell_that_names_nothing_of_the_sheet():
    free, named = ({"named": name, "scale": scale} for name, scale in (("side", 0.0), ("shade top", 1.0)))
    cells = [
        replace(made(at, {"side": [0]}), samples=[Path(f"{at['scale']:g}.png")], real={"real": [Path(f"{at['named']}.png")]})
        for at in (free, named)
    ]
    rows = [("scale 0", free), ("scale 1", named)]
    for first, file in ((free, "shade top.png"), (None, "side.png")):
        (sheet,) = sheet_of(result(cells), "A caption", rows, ["sample 1"], first)
        assert sheet.rows == [("scale 0", [Path("0.png")]), ("scale 1", [Path("1.png")]), ("real", [Path(file)])]


def test_folders_that_hold_no_real_items_are_reported_without(runs: Path, tmp_path: Path):
    folder = runs / "run-1" / "experiments" / "tradeoff"
    for file in (folder / "samples").glob("real-*"):
        file.unlink()
    for path in (folder / "cells").glob("*.json"):
        path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "real"}))
    page = shown([results_of(folder)], tmp_path / "report")
    sheet = next(rows for rows in page.tables if rows[0][0] == ("", ""))
    assert [row[0][0] for row in sheet[1:]] == ["scale 0", "scale 1", "scale 3"]
    assert sum(address.startswith("data:image/png") for address in page.addresses) == 30
    (folder / "cells" / f"{read_result(folder).facts['cells'][1]}.json").unlink()
    again = measure(EXPERIMENTS["tradeoff"], world(("side", "shade", "tone"), holdout=HELD, seed=1), folder, 12, steps=3)
    assert len(next(iter(real_rows(again).values()))) == 1, "of the cell that has them"


def test_the_same_figure_again_is_the_same_file(tmp_path: Path):
    part = Panel("scale", "share", [Series("one", [0.0, 1.0], [exactly(0.5, 0.1), exactly(0.75, 0.1)], ["0", "1"])], 0.5, "chance")
    one, other = (real_write([part], tmp_path / name, "a") for name in ("one", "other"))
    assert [path.suffix for path in one] == [".png", ".svg"] and [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


def test_a_heat_map_has_rows_from_top_to_bottom_and_its_numbers():
    figure = real_draw(
        [Heat("a title", "to the right", "down", ["x", "y", "z"], ["p", "q"], [[0.0, 0.25, 1.0], [0.5, float("nan"), 0.99]], "share")]
    )
    axis = figure.axes[0]
    written_in = {tuple(int(v) for v in text.get_position()): text.get_text() for text in axis.texts}
    assert written_in == {(0, 0): ".00", (1, 0): ".25", (2, 0): "1.00", (0, 1): ".50", (1, 1): "nan", (2, 1): ".99"}
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["x", "y", "z"] and [
        tick.get_text() for tick in axis.get_yticklabels()
    ] == ["p", "q"]
    assert (
        axis.yaxis_inverted()
        and axis.get_xlabel() == "to the right"
        and axis.get_ylabel() == "down"
        and axis.images[0].get_clim() == (0, 1)
    )


def test_a_panel_has_its_points_intervals_and_level():
    series = [
        Series("one", [0.0, 2.0], [Estimate(0.5, 0.25, 1.0, 9), Estimate(0.75, 0.5, 0.875, 9)], ["here", "there"]),
        Series("two", [exactly(1.0)], [exactly(0.125)]),
    ]
    axis = real_draw([Panel("across", "up", series, 0.375, "chance", "a title")]).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["chance"].get_ydata()) == [0.375, 0.375] and axis.get_title() == "a title"
    first, second = axis.containers
    assert [list(map(float, d)) for d in first.lines[0].get_data()] == [[0, 2], [0.5, 0.75]]
    assert [[list(map(float, end)) for end in bar] for bar in first.lines[2][0].get_segments()] == [
        [[0, 0.25], [0, 1]],
        [[2, 0.5], [2, 0.875]],
    ]
    assert float(second.lines[0].get_xdata()[0]) == 1 and [text.get_text() for text in axis.texts] == ["here", "there"]
    one, two = first.lines[0], second.lines[0]
    assert one.get_marker() != two.get_marker() and one.get_linestyle() != two.get_linestyle(), "to be told apart without colour"


HOSTILE = '<script>alert("1")</script>'
QUOTED = '\' onload="x" <b>&amp;'
LABELS["hostile"] = Label((HOSTILE, QUOTED, "</table>"))


def test_hostile_text_is_text(tmp_path: Path):
    files = []
    for k, (suffix, content) in enumerate((("txt", HOSTILE.encode()), ("wav", b"RIFF"), ("png", b"PNG"))):
        files.append(tmp_path / f"a-{k}.{suffix}")
        files[-1].write_bytes(content)
    beside = tmp_path / "a-1.png"
    beside.write_bytes(b"beside")
    kinds = []
    for kind in range(3):
        cells = [
            replace(
                made({"mix": "same", "first": HOSTILE, "second": QUOTED, "a": a, "b": a}, {"hostile": [0, 1, 2]}, {"hostile": [0] * 3}),
                samples=[files[kind]],
            )
            for a in (1.0, 2.0)
        ]
        config = {"_target_": "guidance.experiment.Mixing", "weights": [1, 2]}
        more = {"data": HOSTILE + str(kind), "title": QUOTED, "run": HOSTILE, "modality": "<i>", "experiment": config}
        kinds.append([result(cells, tmp_path, attributes={"hostile": LABELS["hostile"]}, **more)])
    asked = {"hostile": [0, 1, 2]}  # the titles of columns, and so what a picture is called
    named = [replace(made({"scale": 1.0}, {"hostile": [0, 1, 2]}, asked), samples=[beside] * 3)]
    kinds.append([result(named, tmp_path, attributes={"hostile": LABELS["hostile"]}, data="pictures")])
    page = shown(kinds, tmp_path / "out", HOSTILE)
    assert not {"script", "b", "i"} & set(page.tags) and not any(name.startswith("on") for name in page.attributes)
    plain = {
        "lang",
        "charset",
        "name",
        "content",
        "href",
        "class",
        "scope",
        "src",
        "alt",
        "style",
        "id",
        "aria-label",
        "controls",
        "preload",
    }
    assert page.attributes <= plain | {"open"}, "no name or title ends an attribute"
    assert page.text.count(HOSTILE) > 5 and QUOTED in page.text and "What do <script>" in page.text
    assert {"blockquote", "audio"} <= set(page.tags)
    found = {address for address in page.addresses if not address.startswith("#")}
    for content, kind in ((b"RIFF", "audio/"), (b"beside", "image/png"), (b"PNG", "image/png")):
        assert any(address.startswith(f"data:{kind}") and address.endswith(base64.b64encode(content).decode()) for address in found)


# Together and apart


def test_trainings_of_several_seeds_are_one_section(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = [str(place / f"run-{seed}") for seed in (0, 1, 2)]
    assert run(["report", *folders, f"out={tmp_path}"]) == 0
    page = Page(tmp_path / "report.html")
    assert page.text.count("3 trainings (seeds 0, 1, 2)") == 1 and "95 % intervals over the 3 trainings" in page.text
    assert len(page.ids) == len(EXPERIMENTS) and page.ids.count("numbers-fidelity-against-diversity") == 1
    groups = grouped([of for folder in folders for of in results_of(Path(folder))])
    (three,) = (group for group in groups if len(group) == 3)
    assert [of.facts["seed"] for of in three] == [0, 1, 2] and sum(map(len, groups)) == len(EXPERIMENTS) + 2


@pytest.mark.parametrize(
    "more",
    [
        {"config": {"other": 1}},
        {"n": 13},
        {"sampler": "DDPM"},
        {"seed_of_samples": 9},
        {"precision": "bf16"},
        {"model_settings": "{'a': 1}"},
        {"experiment": {"_target_": "guidance.experiment.Tradeoff", "scales": [1, 3]}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_differs_in_more_than_the_seed_stands_apart(runs: Path, tmp_path: Path, more: dict[str, Any]):
    edited(runs / "run-1" / "experiments" / "tradeoff", **more)
    groups = grouped([*results_of(runs / "run-1"), *results_of(runs / "run-2")])
    assert [len(group) for group in groups] == [1, 1]
    page = shown(groups, tmp_path / "out")
    assert len(set(page.ids)) == 2 and page.text.count("one training of") == 2


def two_classes(runs: Path) -> list[str]:
    edited(runs / "run-2" / "experiments" / "tradeoff", all_classes={"side": ["up", "down"]})
    return ["run-1", "run-2"]


def cut(runs: Path) -> list[str]:
    path = runs / "run-1" / "experiments" / "tradeoff" / FACTS
    path.write_text(path.read_text()[:99])
    return ["run-1"]


def cut_cell(runs: Path) -> list[str]:
    path = min((runs / "run-1" / "experiments" / "tradeoff" / "cells").glob("*.json"))
    path.write_text(path.read_text()[:30])
    return ["run-1"]


def other_format(runs: Path) -> list[str]:
    edited(runs / "run-1" / "experiments" / "tradeoff", format=77)
    return ["run-1"]


def copied(runs: Path) -> list[str]:
    shutil.copytree(runs / "run-1", runs / "copy")
    return ["run-1", "copy"]


def empty(runs: Path) -> list[str]:
    (runs / "empty").mkdir()
    return ["run-1", "empty"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (lambda runs: ["run-1", "nowhere"], ("nowhere", "no such folder")),
        (empty, ("empty", "holds no experiments", "polyguide experiment run=")),
        (lambda runs: ["run-1", "run-2", "run-1"], ("run-1", "named twice")),
        (lambda runs: ["run-1", "run-1/experiments/tradeoff"], ("run-1", "named twice")),
        (lambda runs: ["run-1", "../runs/run-1"], ("run-1", "named twice")),
        (copied, ("copy", "same seed", "leave one out")),
        (two_classes, ("different classes", "up, down", "left, right", "report them apart")),
        (cut, (FACTS, "cut short")),
        (cut_cell, ("cells", "cut short")),
        (other_format, (FACTS, "format 77")),
        (lambda runs: [], ("at least one run",)),
        (lambda runs: ["run-1", "--fast"], ("--fast",)),
        (lambda runs: ["run-1", "scales=3"], ("scales=3", "out=FOLDER")),
        (lambda runs: ["run-1", "out=taken"], ("taken", "is a file")),
        (lambda runs: ["run-1", "out=foreign"], ("report.html", "not written by this program", "out=")),
    ],
)
def test_what_cannot_be_reported(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: Callable[[Path], list[str]],
    words: Sequence[str],
):
    monkeypatch.chdir(runs)
    (runs / "taken").write_text("mine")
    (runs / "foreign").mkdir()
    (runs / "foreign" / "report.html").write_text("<p>mine</p>")
    arguments = names(runs)
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    assert run(["report", *arguments]) == 2
    said = capsys.readouterr()
    assert (
        said.err.startswith("polyguide: ") and said.err.count("\n") == 1 and said.out == "" and all(word in said.err for word in words)
    ), said.err
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_a_page_of_its_own_is_written_over(place: Path, tmp_path: Path):
    (tmp_path / "report.html").write_text(f"<html>{MARK}")
    assert run(["report", str(place / "run-1"), f"out={tmp_path}"]) == 0 and "Frechet" in (tmp_path / "report.html").read_text()


# What is not whole


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_however_far_an_experiment_is_there_is_a_report(place: Path, name: str):
    (whole,) = results_of(place / "run-0" / "experiments" / name)
    last = findings_of([whole])
    for done in range(len(whole.cells)):
        for cells in (whole.cells[:done], whole.cells[len(whole.cells) - done :]):
            found = findings_of([replace(whole, cells=cells)])
            assert {table.name for table in found.tables} <= {table.name for table in last.tables}
            assert {verdict.question for verdict in found.verdicts} <= {verdict.question for verdict in last.verdicts} | {
                v.question.replace(f", in {t} steps", "") for v in last.verdicts for t in (3, 6)
            }
    again = findings_of([whole, replace(whole, facts={**whole.facts, "seed": 5}, cells=[])])
    assert all(not v.answer.startswith("Yes") for v in again.verdicts), "a training without cells: nothing is in all of them"


@pytest.mark.parametrize(
    ("name", "done"), [("tradeoff", 0), ("tradeoff", 1), ("steps", 1), ("inverse", 2), ("compose", 3), ("compose", 10), ("dropout", 2)]
)
def test_what_is_missing_is_said(place: Path, tmp_path: Path, name: str, done: int, capsys: pytest.CaptureFixture[str]):
    (whole,) = results_of(place / "run-0" / "experiments" / name)
    page = shown([[replace(whole, cells=whole.cells[:done])]], tmp_path)
    line = f"{done} of {len(whole.cells)} cells measured so far"
    assert line in page.text and line in capsys.readouterr().out


def test_what_is_missing_is_counted_over_all_trainings(runs: Path, tmp_path: Path):
    for path in sorted((runs / "run-2" / "experiments" / "tradeoff" / "cells").glob("*.json"))[:2]:
        path.unlink()
    partly = read_result(runs / "run-2" / "experiments" / "tradeoff")
    assert not partly.whole and len(partly.cells) == 1
    page = shown(grouped([*results_of(runs / "run-1"), partly]), tmp_path / "out")
    assert "4 of 6 cells measured so far" in page.text and "2 trainings" in page.text


def test_a_measure_without_an_interval_has_none(tmp_path: Path):
    nan = float("nan")
    cells = [
        made(
            {"scale": s},
            {"side": [0, 1]},
            {"side": [0, 1]},
            estimates={"frechet": Estimate(2.0, nan, nan, 1), "recall": exactly(0.5, 0.25)},
        )
        for s in (1.0, 2.0)
    ]
    page = shown([[result(cells, tmp_path)]], tmp_path / "out")
    rows = next(rows for rows in page.tables if rows[0][0][0] == "scale")
    place = {text: k for k, (text, _) in enumerate(rows[0])}
    assert rows[2][place["frechet"]] == ("2.000", "") and rows[2][place["recall"]] == ("0.500", "0.250 to 0.750")
    assert (
        rows[1][place["scale"]][0] == "real"
        and rows[2][place["scale"]][0] == "1"
        and "nan" not in " ".join(t for row in rows for t, _ in row)
    )
