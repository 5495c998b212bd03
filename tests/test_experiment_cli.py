"""polyguide experiment and polyguide report on a run: the same as in Python; and what the user can mend, in one line, with nothing lost."""

import csv
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import runs
import torch
from experiment_fakes import sketched

import guidance
from guidance import CFG, checkpoint, machine
from guidance.cli import run
from guidance.experiment.findings import read_result

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=4", "trainer.steps=2", "threads=1"]
QUICK = ["n=20", "sampler.steps=2", "threads=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run with an experiment."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("modalities.image.metrics.LENGTH", {"steps": 5, "batch": 128})
        # Hydra composes a config twice, the first time to see whether it says hydra.mode=MULTIRUN. None of these does.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        patch.setattr("guidance.estimate.statistic.__defaults__", (2,))  # a jackknife of two groups
        patch.setattr("guidance.experiment.figures.write", sketched)
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        assert run(["train", *TINY, "data=digits", "dropout=independent", "out=run"]) == 0
        assert run(["experiment", "run=run", "experiment=tradeoff", "experiment.scales=[1,3]", *QUICK, "out=held"]) == 0
        Path("file.txt").write_text("mine")
        Path("empty").mkdir()
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


def snapshot(folder: Path) -> dict[Path, Any]:
    found = runs.snapshot(folder)
    return {path: of for path, of in found.items() if path.suffix != ".lock" and path.name not in ("cache", "judges", ".claims")}


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which has to be refused, and gives the line."""

    def command(*arguments: str) -> str:
        before = snapshot(place)
        capsys.readouterr()
        code = run(list(arguments))
        said = capsys.readouterr()
        assert code == 2
        assert said.err.startswith("polyguide: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
        assert said.out == "" and snapshot(place) == before
        return said.err

    return command


def test_an_experiment_is_that_of_python(place: Path):
    found = read_result(place / "held")
    model = guidance.load(place / "run")
    assert found.whole and found.facts["run"] == "run" and found.facts["data"] == "digits" and found.facts["trained"] == 2
    assert found.facts["attributes"].keys() == {"digit"} and found.facts["sampler"].startswith("DPMSolver")
    for cell in found.cells:
        classes = [str(k % 10) for k in range(20)]
        samples = model.sample(20, {"digit": classes}, guidance=CFG(float(cell.at["scale"])), steps=2)
        torch.testing.assert_close(cell.arrays["ink"], samples.float().mean((1, 2, 3)) / 255)
        judge = model.modality.metrics.judge(model.modality.data, "digit")
        assert torch.equal(cell.arrays["class.digit"], judge(samples)[1].argmax(1))
    table = place / "held" / "tables" / "digits-fidelity-against-diversity-measures.csv"
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["scale"] for row in rows] == ["real", "1", "3"] and (place / "held" / "report.html").is_file()
    assert [float(row["ink"]) for row in rows[1:]] == pytest.approx([c.estimates["ink"].value for c in found.cells], rel=1e-3)


def test_going_on_from_the_command_line(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Only what is new is drawn, into the run's own folder by default."""
    drawn: list[CFG] = []
    sample = guidance.Model.sample if hasattr(guidance, "Model") else guidance.model.Model.sample

    def counting(self: Any, *of: Any, **more: Any) -> Any:
        drawn.append(more["guidance"])
        return sample(self, *of, **more)

    monkeypatch.setattr("guidance.model.Model.sample", counting)
    monkeypatch.chdir(place)
    for scales, new in (("[0]", [CFG(0.0)]), ("[2,0]", [CFG(2.0)]), ("[2,0]", [])):
        drawn.clear()
        assert run(["experiment", "run=run", "experiment=tradeoff", f"experiment.scales={scales}", *QUICK]) == 0
        assert drawn == new
    assert [c.at["scale"] for c in read_result(place / "run" / "experiments" / "tradeoff").cells] == [2, 0]
    assert run(["report", "run", "out=page"]) == 0 and "digits" in (place / "page" / "report.html").read_text()


def test_a_full_disk_is_one_line_and_loses_nothing(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(place)
    write, before = checkpoint.write_atomically, snapshot(place / "held")

    def full(path: Path, content: bytes) -> None:
        if path.parent.name == "cells":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr("guidance.experiment.cells.write_atomically", full)
    out = "full"
    assert run(["experiment", "run=run", "experiment=tradeoff", "experiment.scales=[1,3]", *QUICK, f"out={out}"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "polyguide: the disk is full at " in said and "what was complete before is kept" in said
    monkeypatch.setattr("guidance.experiment.cells.write_atomically", write)
    assert run(["experiment", "run=run", "experiment=tradeoff", "experiment.scales=[1,3]", *QUICK, f"out={out}"]) == 0
    for path in (place / "held" / "cells").glob("*.safetensors"):
        assert path.read_bytes() == (place / out / "cells" / path.name).read_bytes()
    assert snapshot(place / "held") == before


def test_variants_are_trained_and_anew_where_their_settings_changed(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    variants = "experiment.variants={half:{joint:0.5,each:0.0}}"
    settings = [
        "experiment",
        "run=run",
        "experiment=dropout",
        "~experiment.variants",
        f"+{variants}",
        "experiment.scales=[1]",
        *QUICK,
        "out=study",
    ]
    assert run([*settings, "experiment.steps=1"]) == 0
    assert checkpoint.saved_steps(place / "study" / "variants" / "half") == [1]
    config = checkpoint.read_config(place / "study" / "variants" / "half")
    assert config["dropout"]["joint"] == 0.5 and config["seed"] == checkpoint.read_config(place / "run")["seed"]
    assert run([*settings, "experiment.steps=3"]) == 2, "other trainings"
    assert checkpoint.saved_steps(place / "study" / "variants" / "half") == [1]
    assert run([*settings, "experiment.steps=3", "overwrite=true"]) == 0
    assert checkpoint.saved_steps(place / "study" / "variants" / "half")[-1] == 3
    found = read_result(place / "study")
    model = guidance.load(place / "study" / "variants" / "half")
    cell = found.at(dropout="half", how="alone", scale=1.0)
    assert cell is not None
    samples = model.sample(20, {"digit": [str(k % 10) for k in range(20)]}, guidance=CFG(1.0), steps=2)
    torch.testing.assert_close(cell.arrays["ink"], samples.float().mean((1, 2, 3)) / 255)


BAD = [
    ("tradeoff", "experiment.scales=[1,much]", "much"),
    ("tradeoff", "experiment.scales=[1,nan]", "experiment.scales", "finite", "nan"),
    ("tradeoff", "experiment.scales=[inf]", "experiment.scales", "finite", "inf"),
    ("tradeoff", "experiment.scales=[]", "experiment.scales", "list of numbers", "[]"),
    ("tradeoff", "experiment.scales=3", "experiment.scales", "list", "3"),
    ("tradeoff", "experiment.scales=null", "experiment.scales"),
    ("tradeoff", "experiment.scales=[true]", "experiment.scales", "True"),
    ("tradeoff", "experiment.scales=[1,2,1.0]", "experiment.scales", "twice"),
    ("tradeoff", "experiment.given=test", "experiment.given", "alone or train", "'test'"),
    ("tradeoff", "experiment.attribute=digti", "'digti'", "did you mean 'digit'?"),
    ("tradeoff", "experiment.scals=[1]", "experiment.scals", "did you mean 'experiment.scales'?"),
    ("steps", "experiment.steps=[0]", "experiment.steps", "at least 1"),
    ("steps", "experiment.steps=[2,2]", "experiment.steps", "twice"),
    ("inverse", "experiment.ordered=[digit]", "experiment.ordered", "digit has no order", "stroke"),
    ("inverse", "experiment.ordered=[strok]", "'strok'", "did you mean 'stroke'?"),
    ("inverse", "experiment.ordered_scales=[-1,-1]", "experiment.ordered_scales", "twice"),
    ("inverse", "experiment.attribute=slant", "'slant'", "digit, stroke"),
    ("compose", "experiment.pair=[3,3]", "experiment.pair", "two different classes"),
    ("compose", "experiment.pair=[3,'3']", "experiment.pair", "two different classes"),
    ("compose", "experiment.pair=[3,11]", "11", "0, 1, 2"),
    ("compose", "experiment.weights=[0,0]", "experiment.weights", "twice"),
    ("compose", "experiment.attributes=[digit,digit]", "experiment.attributes", "different"),
    ("compose", "experiment.attributes=[digit,strokes]", "'strokes'", "did you mean 'stroke'?"),
    ("dropout", "~experiment.variants", "experiment.variants", "no variant"),
    ("dropout", "experiment.steps=0", "experiment.steps", "at least 1"),
    ("tradeof", "threads=1", "'tradeof'", "tradeoff"),
    ("tradeoff", "n=1", "n is", "1", "at least 2"),
    ("tradeoff", "n=many", "n is", "'many'"),
    ("tradeoff", "run=empty", "run=empty", "config.yaml"),
    ("tradeoff", "run=nowhere", "nowhere"),
    ("tradeoff", "out=file.txt", "file.txt is a file"),
    ("tradeoff", "sampler=heun sampler.churn=2", "churn"),
    ("tradeoff", "grid=logsnr grid.low=30 grid.high=40", "grid"),
    ("tradeoff", "overwrite=maybe", "overwrite", "'maybe'"),
]


@pytest.mark.parametrize("row", BAD, ids=lambda row: f"{row[0]} {row[1]}")
def test_what_is_wrong_is_said_and_nothing_is_lost(refused: Callable[..., str], row: tuple[str, ...]):
    """Asked to overwrite what is there."""
    said = refused("experiment", "run=run", f"experiment={row[0]}", "out=held", *QUICK, "overwrite=true", *row[1].split(" "))
    assert all(word in said for word in row[2:]), said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["n=21"], ("n=20, not 21", "overwrite=true")),
        (["seed=1"], ("seed_of_samples=0, not 1",)),
        (["sampler.steps=3"], ("2 steps", "3 steps")),
        (["sampler=ddpm"], ("DPMSolver", "DDPM")),
        (["precision=bf16"], ("precision",)),
        (["experiment=inverse"], ("Tradeoff", "Inverse")),
    ],
    ids=str,
)
def test_other_terms_are_refused(refused: Callable[..., str], settings: list[str], words: tuple[str, ...]):
    said = refused("experiment", "run=run", "experiment=tradeoff", "out=held", *QUICK, *settings)
    assert all(word in said for word in words) and "out=held" in said, said


def test_auto_joins_what_was_measured_in(place: Path, monkeypatch: pytest.MonkeyPatch):
    """In fp32, where auto would be bf16 for a new one."""
    monkeypatch.delenv(machine.VARIABLE)
    monkeypatch.setattr(machine, "fast_bf16", lambda device="cpu": True)
    cells = runs.snapshot(place / "held" / "cells")
    assert run(["experiment", "run=run", "experiment=tradeoff", "experiment.scales=[1,3]", *QUICK, "out=held"]) == 0
    assert runs.snapshot(place / "held" / "cells") == cells
    assert json.loads((place / "held" / "experiment.json").read_text())["precision"] == "None"
    assert ", in bf16" not in (place / "held" / "report.html").read_text()


def test_no_experiment_is_chosen(refused: Callable[..., str]):
    assert "experiment is missing" in refused("experiment", "run=run")


def test_the_facts_are_of_the_config_that_was_given(place: Path):
    held = json.loads((place / "held" / "experiment.json").read_text())
    assert held["experiment"]["scales"] == [1, 3] and held["experiment"]["_target_"] == "guidance.experiment.Tradeoff"
