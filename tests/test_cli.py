"""The command line from end to end, against the same in Python."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import guidance
from guidance import CFG, DDIM, DDPM, Cosine, Interval, LogSNR, UserError, checkpoint, on
from guidance.cli import COMMANDS, run
from guidance.config import config_folder
from guidance.evaluate import evaluate
from guidance.previews import class_columns, class_table

TINY = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1"]


@pytest.fixture(scope="module", autouse=True)
def as_for_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No checks of types, a cache of its own, and a judge that needs less patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("modalities.image.metrics.LENGTH", {"steps": 40, "batch": 128})
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, long enough for conditions to matter."""
    out = tmp_path_factory.mktemp("trained") / "run"
    trainer = ["trainer.steps=60", "trainer.lr=0.01", "trainer.warmup=0", "trainer.average=0.8", "trainer.save_every=30"]
    assert run(["train", *TINY, *trainer, "data=digits", "dropout=independent", f"out={out}"]) == 0
    return out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pixels(folder: Path | str) -> Tensor:
    """The samples in a folder, in the order of their names."""
    paths = sorted(path for path in Path(folder).glob("*.png") if path.stem.isdigit())
    return torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])[:, None]


def sample(trained: Path, *more: str, out: str = "out") -> Tensor:
    assert run(["sample", f"run={trained}", f"out={out}", "sampler.steps=4", "threads=1", *more]) == 0
    return pixels(out)


def model(trained: Path) -> guidance.Model:
    return guidance.load(trained)


# Train


def test_a_run_folder_holds_all_that_was_chosen(trained: Path):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["network"]["channels"] == 8 and config["trainer"]["lr"] == 0.01 and config["dropout"]["each"] == 0.2
    assert config["data"] == {"_target_": "modalities.image.data.Digits"} and not {"out", "resume", "overwrite"} & config.keys()
    assert checkpoint.saved_steps(trained) == [30, 60]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [30, 50, 60] and lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert {path.name for path in trained.iterdir()} == {
        *(
            "config.yaml",
            "command.txt",
            "metrics.jsonl",
            "timings.jsonl",
            "checksums.json",
            "moments.safetensors",
            "checkpoints",
            "forward.png",
            "schedule.png",
        )
    }


def test_the_forward_process_is_drawn_over_training_data(trained: Path):
    sheet = np.asarray(Image.open(trained / "forward.png").convert("L"))
    digit = model(trained).modality.data.train.raw[0, 0].numpy().repeat(7, 0).repeat(7, 1)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, digit.shape)
    assert (windows == digit).all((2, 3)).any(), "the first training digit, enlarged"


def test_a_run_that_is_trained_already_is_left_alone(trained: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert run(["train", f"out={trained}", "resume=true"]) == 0
    assert run(["train", f"out={trained}", "resume=true", "trainer.steps=20"]) == 0
    assert capsys.readouterr().out.count("trained already, to step 60") == 2
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("network.channels=9", "network.channels"),
        ("trainer.lr=0.5", "trainer.lr"),
        ("schedule=sqrt", "schedule._target_"),
        ("seed=4", "seed"),
        ("loss=min_snr", "loss.weighting._target_"),
        ("dropout=joint", "dropout.joint"),
        ("holdout=[{digit: 3, stroke: bold}]", "holdout"),
        ("+trainer.foo=3", "trainer.foo"),
    ],
)
def test_resuming_with_another_setting_is_refused(trained: Path, capsys: pytest.CaptureFixture[str], change: str, key: str):
    assert run(["train", f"out={trained}", "resume=true", "trainer.steps=70", change]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"polyguide: {key}") and "cannot change when a run is resumed" in said
    assert checkpoint.saved_steps(trained)[-1] == 60


def test_resuming_with_the_same_settings_and_more_steps_goes_on():
    settings = [*TINY, "trainer.lr=0.02", "trainer.decay=constant"]
    for steps in (2, 5):
        assert run(["train", *settings, "out=parts", "resume=true", f"trainer.steps={steps}"]) == 0
    assert run(["train", "out=parts", "resume=true", "trainer.steps=6"]) == 0  # what was chosen need not be said again
    assert run(["train", *settings, "out=whole", "trainer.steps=6"]) == 0
    one, other = ((checkpoint.latest(Path(run)) / "average.safetensors").read_bytes() for run in ("parts", "whole"))
    assert one == other
    assert yaml.safe_load(Path("parts/config.yaml").read_text()) == yaml.safe_load(Path("whole/config.yaml").read_text())


def test_overwriting_replaces_the_run_and_nothing_beside_it():
    assert run(["train", *TINY, "out=run", "trainer.steps=3", "trainer.save_every=1"]) == 0
    Path("run/notes.txt").write_text("mine")
    assert run(["train", *TINY, "out=run", "trainer.steps=2", "seed=1"]) == 2
    assert run(["train", *TINY, "out=run", "trainer.steps=2", "seed=1", "overwrite=true"]) == 0
    assert checkpoint.saved_steps(Path("run")) == [2] and Path("run/notes.txt").read_text() == "mine"
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seed"] == 1


def test_a_run_needs_no_data_to_be_sampled(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for k in range(5):
            Image.new("RGB", (6, 4), (k, 100, 7)).save(tmp_path / "pets" / name / f"{k}.png")
    assert run(["train", *TINY, "data=image_folder", "data.root=pets", "data.attribute=pet", "out=run", "trainer.steps=1"]) == 0
    (tmp_path / "pets").rename(tmp_path / "gone")
    assert run(["sample", "run=run", "out=out", "n=2", "sampler.steps=2", "condition.pet=dog"]) == 0
    assert np.asarray(Image.open("out/000001.png")).shape == (4, 6, 3)


def test_previews_are_drawn_and_change_nothing():
    for out, every in (("a", 0), ("b", 2)):
        assert run(["train", *TINY, f"out={out}", "trainer.steps=4", f"trainer.sample_every={every}"]) == 0
    assert sorted(path.name for path in Path("b/previews").iterdir()) == ["step-00000002.png", "step-00000004.png"]
    one, other = ((checkpoint.latest(Path(run)) / "average.safetensors").read_bytes() for run in "ab")
    assert one == other


# Sample


def test_samples_are_those_of_the_same_call_in_python(trained: Path, capsys: pytest.CaptureFixture[str]):
    made = sample(trained, "n=3", "condition.digit=3", "guidance.scale=2.5", "seed=7")
    said = capsys.readouterr().out
    assert torch.equal(made, model(trained).sample(3, {"digit": 3}, guidance=CFG(2.5), steps=4, seed=7))
    assert "3 samples in out; 2 network evaluations a sample and step, in 4 calls" in said
    facts = json.loads(Path("out/samples.json").read_text())
    assert facts["network_evaluations_per_sample_and_step"] == 2 and facts["config"]["condition"] == {"digit": 3}


@pytest.mark.parametrize(
    ("settings", "python"),
    [
        (["sampler=ddpm", "sampler.v=0.3"], {"sampler": DDPM(0.3)}),
        (["sampler=ddim", "sampler.eta=0.5", "max_rows=2"], {"sampler": DDIM(0.5), "max_rows": 2}),
        (["grid=logsnr", "grid.low=-5"], {"grid": LogSNR(-5.0, 10.0)}),
        (["schedule=cosine", "schedule.logsnr_max=8"], {"schedule": Cosine(-20.0, 8.0)}),
        (["guidance.scale=[0,1,-2,3]"], {"guidance": CFG(torch.tensor([0.0, 1.0, -2.0, 3.0]))}),
    ],
    ids=str,
)
def test_choices_are_the_objects_that_they_name(trained: Path, settings: list[str], python: dict[str, Any]):
    made = sample(trained, "n=4", "condition.digit=[1,null,8,9]", "guidance.scale=2", *settings)
    assert torch.equal(made, model(trained).sample(4, {"digit": [1, None, 8, 9]}, **({"guidance": CFG(2.0), "steps": 4} | python)))


def test_conditions_matter_and_leaving_them_out_is_unconditional(trained: Path):
    plain = sample(trained, "n=2", out="plain")
    three, eight = (sample(trained, "n=2", f"condition.digit={digit}", out=f"{digit}") for digit in (3, 8))
    assert not torch.equal(three, eight) and not torch.equal(three, plain)
    assert torch.equal(plain, sample(trained, "n=2", "condition.digit=3", "guidance.scale=0", out="zero"))
    assert torch.equal(three, sample(trained, "n=2", "+condition.digit=3", out="plus"))  # Hydra's own way


@pytest.mark.parametrize(
    ("terms", "python"),
    [
        ("2*on(digit=3) - 1*on(digit=8)", 2.0 * on(digit=3) - 1.0 * on(digit=8)),
        ("-on(digit=3)", -on(digit=3)),
        ("0.5 * (on(digit=3) + 3*on(digit=[1, 2, None, 4]))", 0.5 * (on(digit=3) + 3 * on(digit=[1, 2, None, 4]))),
    ],
)
def test_compositions_are_the_algebra_of_python(trained: Path, terms: str, python: Any):
    made = sample(trained, "n=4", "guidance=compose", f'guidance.terms="{terms}"')
    assert torch.equal(made, model(trained).sample(4, guidance=python, steps=4))


def test_a_composition_of_one_is_classifier_free_guidance(trained: Path):
    composed = sample(trained, "n=3", "guidance=compose", 'guidance.terms="2.5*on(digit=3)"')
    assert torch.equal(composed, sample(trained, "n=3", "condition.digit=3", "guidance.scale=2.5", out="cfg"))


def test_batches_change_nothing(trained: Path):
    settings = ["n=7", "condition.digit=[0,1,2,3,4,5,null]", "guidance.scale=[1,2,3,0,-1,5,2]", "sampler=ddpm"]
    whole, parts = sample(trained, *settings, out="whole"), sample(trained, *settings, "batch_size=3", out="parts")
    assert len(whole) == len(parts) == 7 and (whole.int() - parts.int()).abs().max() <= 1
    assert (whole != parts).float().mean() < 0.01, "but for rounding"


def test_fewer_samples_are_the_first_of_more(trained: Path):
    more, fewer = sample(trained, "n=6", out="more"), sample(trained, "n=2", out="fewer")
    assert (more[:2].int() - fewer.int()).abs().max() <= 1


def test_within_an_interval(trained: Path):
    settings = ["n=2", "condition.digit=3", "guidance=interval", "guidance.inside.scale=4"]
    everywhere = sample(trained, *settings, "guidance.low=-99", "guidance.high=99", out="everywhere")
    assert torch.equal(everywhere, sample(trained, "n=2", "condition.digit=3", "guidance.scale=4", out="cfg"))
    nowhere = sample(trained, *settings, "guidance.low=50", "guidance.high=60", out="nowhere")
    assert torch.equal(nowhere, sample(trained, "n=2", "condition.digit=3", out="plain"))
    some = sample(trained, *settings, "guidance.low=-1", "guidance.high=3", out="some")
    assert torch.equal(some, model(trained).sample(2, {"digit": 3}, guidance=Interval(CFG(4.0), -1.0, 3.0), steps=4))
    times = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    within = sum(-1 <= float(value) <= 3 for value in guidance.schedule.logsnr(Cosine(), times))
    assert within in (1, 2), "or this tests nothing"
    assert json.loads(Path("some/samples.json").read_text())["network_evaluations_per_sample_and_step"] == (4 + within) / 4


def test_overwriting_samples_removes_those_of_before_and_nothing_else(trained: Path):
    sample(trained, "n=5", "animate=true")
    assert Image.open("out/denoising.gif").n_frames == 4
    own = {"notes.txt": "mine", "2024.txt": "mine too", "123.photos/me.txt": "and this", "samples.zip": "and that"}
    for name, content in own.items():
        Path("out", name).parent.mkdir(exist_ok=True)
        Path("out", name).write_text(content)
    assert run(["sample", f"run={trained}", "out=out", "n=2", "sampler.steps=2"]) == 2
    assert len(pixels("out")) == 5
    sample(trained, "n=2", "overwrite=true")
    left = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    assert left == {"000000.png", "000001.png", "grid.png", "samples.json", "samples.jsonl", "index.html", *own}
    assert {name: Path("out", name).read_text() for name in own} == own


@pytest.mark.parametrize("kind", ["webp", "tiff", "png"])
def test_samples_in_a_format_without_loss_are_the_same(trained: Path, kind: str):
    assert run(["sample", f"run={trained}", "out=out", "n=3", "sampler.steps=2", f"format={kind}"]) == 0
    files = sorted(path.name for path in Path("out").iterdir() if path.stem.isdigit())
    assert files == [f"{k:06d}.{kind}" for k in range(3)]
    read = [torch.from_numpy(np.array(Image.open(Path("out", file)).convert("L"))) for file in files]
    assert torch.equal(torch.stack(read)[:, None], model(trained).sample(3, steps=2))
    lines = [json.loads(line) for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == files and all(file in Path("out/index.html").read_text() for file in files)


def test_another_format_replaces_the_files_of_the_one_before_and_an_unknown_one_nothing(trained: Path, capsys: pytest.CaptureFixture[str]):
    settings = ["sample", f"run={trained}", "out=out", "n=2", "sampler.steps=1", "overwrite=true"]
    assert run([*settings, "format=jpeg"]) == run([*settings, "format=png"]) == 0
    before = sorted(path.name for path in Path("out").iterdir())
    assert [name for name in before if name[0] == "0"] == ["000000.png", "000001.png"]
    capsys.readouterr()
    assert run([*settings, "format=pgn"]) == 2
    assert capsys.readouterr().err == "polyguide: there is no format 'pgn' (did you mean 'png'?); choose from: png, webp, jpeg, tiff\n"
    assert sorted(path.name for path in Path("out").iterdir()) == before


def test_the_grid_shows_the_samples_row_after_row(trained: Path):
    made, sheet = sample(trained, "n=10"), np.asarray(Image.open("out/grid.png").convert("L"))
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (56, 56))
    at = [np.argwhere((windows == image[0].numpy().repeat(7, 0).repeat(7, 1)).all((2, 3)))[0].tolist() for image in made]
    assert at == sorted(at) and [len({row for row, _ in part}) for part in (at[:8], at[8:])] == [1, 1]


def test_earlier_checkpoints_and_raw_weights_can_be_loaded(trained: Path):
    latest = guidance.load(trained).sample(2, steps=2)
    assert torch.equal(guidance.load(trained, step=60).sample(2, steps=2), latest)
    assert not torch.equal(guidance.load(trained, step=30).sample(2, steps=2), latest)
    assert not torch.equal(guidance.load(trained, average=False).sample(2, steps=2), latest)
    with pytest.raises(UserError, match=r"step '?31'?.*30, 60"):
        guidance.load(trained, step=31)


# Evaluate


def test_an_evaluation_measures_the_samples_of_every_scale(trained: Path, capsys: pytest.CaptureFixture[str]):
    settings = ["scales=[-1,0,1,2.5]", "n=24", "seed=3", "sampler.steps=2", "batch_size=10", "threads=1"]
    assert run(["evaluate", f"run={trained}", "out=out", *settings]) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader(Path("out/metrics.csv").read_text().splitlines()))
    assert [row["scale"] for row in rows] == ["real", "-1", "0", "1", "2.5"]
    assert [row["evaluations"] for row in rows] == ["", "2", "1", "1", "2"], "none for real data"
    assert {row["n"] for row in rows[1:]} == {"24"}
    classes = [str(k % 10) for k in range(24)]
    for row, scale in zip(rows[1:], (-1.0, 0.0, 1.0, 2.5), strict=True):
        made = model(trained).sample(24, {"digit": classes}, guidance=CFG(scale), steps=2, seed=3)
        assert float(row["ink"]) == pytest.approx(made.float().mean().item() / 255, abs=1e-4)
        judge = model(trained).modality.metrics.judge(model(trained).modality.data, "digit")
        hits = judge(made)[1].argmax(1) == torch.arange(24) % 10
        assert float(row["accuracy"]) == pytest.approx(hits.float().mean().item(), abs=1 / 23)
    measured = [name for name in rows[0] if not name.endswith(("_low", "_high")) and name not in ("scale", "n", "evaluations")]
    assert list(rows[0]) == ["scale", "n", *(f"{name}{end}" for name in measured for end in ("", "_low", "_high")), "evaluations"]
    assert {"accuracy", "frechet", "inception_score", "precision", "recall", "diversity", "copies", "ink", "slant"} <= set(measured)
    assert all(float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"]) for row in rows for name in measured)
    held_out = model(trained).modality.data.test.raw
    assert float(rows[0]["ink"]) == pytest.approx(held_out.float().mean().item() / 255, abs=1e-4) and rows[0]["n"] == "355"
    assert f"the judge is right on {judge.accuracy:.1%} of held-out data" in said
    facts = json.loads(Path("out/evaluation.json").read_text())
    assert facts["judge_accuracy"] == judge.accuracy and facts["attribute"] == "digit" and len(facts["rows"]) == 5
    for name in rows[1]:
        assert facts["rows"][1][name] == pytest.approx(float(rows[1][name]), rel=1e-4), "the same to more digits"
    draw = partial(model(trained).sample, steps=2, seed=3, batch_size=10)
    python, _ = evaluate(model(trained), [-1.0, 2.5], 24, draw=draw)
    assert [row["frechet"].value for row in python] == pytest.approx([float(rows[1]["frechet"]), float(rows[4]["frechet"])], rel=1e-4)


def test_an_evaluation_goes_into_the_run_by_default(trained: Path):
    assert run(["evaluate", f"run={trained}", "scales=[1]", "n=4", "sampler.steps=1"]) == 0
    assert (trained / "evaluation" / "metrics.csv").is_file()
    sheet = Image.open(trained / "evaluation" / "table.png")
    assert sheet.size[0] > 10 * 56 and 2 * 56 < sheet.size[1] < 3 * 56, "ten classes at one scale, and real ones"


@pytest.mark.parametrize("given", ["alone", "test"])
def test_a_table_of_classes_ends_in_held_out_items(trained: Path, given: str):
    of = model(trained)
    columns = class_columns(of, "digit", given)
    raw, condition = of.modality.data.test.__getitems__(list(columns.real.index))
    assert columns.real.split == "test" and condition.values["digit"].tolist() == list(range(10))
    assert given == "alone" or torch.equal(condition.values["stroke"], columns.condition.values["stroke"])
    whole = np.asarray(Image.open(class_table(of, [0.0, 2.0], Path("t.png"), columns, steps=2)))
    row = np.asarray(Image.open(of.modality.render.table(raw, Path("r.png"), [columns.real.title], columns.titles)))
    height = row.shape[0] - 20  # without the columns' titles
    assert columns.real.title == "real" and np.array_equal(whole[-height:], row[-height:])


def test_samples_with_real_items_of_the_same_condition(trained: Path, capsys: pytest.CaptureFixture[str]):
    made = sample(trained, "n=3", "condition.digit=[3,8,3]", "real=true")
    real = torch.stack([torch.from_numpy(np.array(Image.open(f"out/real-{k}.png"))) for k in range(3)])[:, None]
    test = model(trained).modality.data.test
    items = [int((test.raw == picture).flatten(1).all(1).nonzero()[0]) for picture in real]
    assert test.condition.values["digit"][items].tolist() == [3, 8, 3] and items[0] != items[2]
    sheet = model(trained).modality.render.table(torch.cat([real, made]), Path("t.png"), ["real", ""], [""] * 3)
    assert sheet.read_bytes() == Path("out/grid.png").read_bytes()
    page = Path("out/index.html").read_text()
    assert page.index("real-0.png") < page.index("000000.png") and page.count("real, held out: digit=3") == 4, "captions, and their images'"
    assert torch.equal(sample(trained, "n=3", "condition.digit=[3,8,3]", "overwrite=true"), made) and not list(Path("out").glob("real*"))
    capsys.readouterr()
    assert run(["sample", f"run={trained}", "out=other", "real=true"]) == 2
    assert capsys.readouterr().err == "polyguide: real=true shows real items that have what is asked for: give condition.ATTRIBUTE=VALUE\n"


# Sweeps


def test_a_sweep_trains_a_run_for_every_value():
    assert run(["train", "--multirun", *TINY, "seed=0,1", "trainer.steps=2", "out=runs/${seed}"]) == 0
    assert run(["train", *TINY, "seed=1", "trainer.steps=2", "out=single"]) == 0
    weights = [(checkpoint.latest(Path(f)) / "average.safetensors").read_bytes() for f in ("runs/0", "runs/1", "single")]
    assert weights[1] == weights[2] != weights[0]


def test_a_sweep_over_samples(trained: Path):
    assert run(["sample", "-m", f"run={trained}", "n=2", "sampler.steps=4", "condition.digit=3,8", "out='s/${condition.digit}'"]) == 0
    for digit in (3, 8):
        assert torch.equal(pixels(f"s/{digit}"), model(trained).sample(2, {"digit": digit}, steps=4))


def test_a_sweep_over_precisions():
    assert run(["train", "-m", *TINY, "trainer.precision='no',bf16", "trainer.steps=2", "out=runs/${trainer.precision}"]) == 0
    one, other = (load_file(checkpoint.latest(Path(f"runs/{precision}")) / "model.safetensors") for precision in ("no", "bf16"))
    torch.testing.assert_close(other, one, atol=0.01, rtol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one), "one was trained in bf16"


def test_a_sweep_says_what_is_wrong(trained: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["sample", "-m", f"run={trained}", "n=0,1", "out='s/${n}'"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == "polyguide: n is a whole number, at least 1, got 0"


# Help, lists, places


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "experiment"])
def test_help_lists_groups_choices_and_defaults(capsys: pytest.CaptureFixture[str], command: str):
    with pytest.raises(SystemExit) as left:
        sys.exit(run([command, "--help"]))  # Hydra exits by itself
    assert left.value.code == 0
    said = capsys.readouterr().out
    listed = {group: set(choices.split(", ")) for group, choices in re.findall(r"^([\w/]+): (.+)$", said, re.MULTILINE)}
    for folder in config_folder().iterdir():
        if folder.is_dir() and any(folder.glob("*.yaml")):
            assert listed[folder.name] == {path.stem for path in folder.glob("*.yaml")}
    assert "seed: 0" in said and ("weight_decay: 0" in said) == (command == "train")


def test_the_list_names_every_choice_and_where_it_is(capsys: pytest.CaptureFixture[str]):
    assert run(["list"]) == 0
    said = capsys.readouterr().out
    for path in config_folder().glob("*/*.yaml"):
        assert str(path) in said and re.search(rf"^  {path.stem} ", said, re.MULTILINE)
    assert "image            modalities.image:build" in said and "DDPM's 1,000 linear betas" in said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"], ["-h"]], ids=str)
def test_help_names_the_commands(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert run(arguments) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^  {command} ", said, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", ["--help", "list", "--version"])
def test_as_a_module_and_without_anything_heavy(capsys: pytest.CaptureFixture[str], command: str):
    """python -m guidance says the same, and imports neither torch nor hydra for it."""
    script = "import runpy, sys, atexit; sys.argv = ['polyguide', *sys.argv[1:]]\n"
    script += "atexit.register(lambda: print(sorted({'torch', 'hydra', 'omegaconf', 'numpy'} & sys.modules.keys())))\n"
    script += "runpy.run_module('guidance', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script, command], capture_output=True, text=True, check=True)
    assert run([command]) == 0
    assert done.stdout == capsys.readouterr().out + "[]\n" and not done.stderr


def test_choices_of_ones_own_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine" / "network").mkdir(parents=True)
    network = {"_target_": "modalities.image.network.UNet", "_partial_": True, "channels": 4, "multipliers": [1], "blocks": 1}
    (tmp_path / "mine" / "network" / "nano.yaml").write_text(yaml.safe_dump(network))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    command = ["train", "--config-dir", str(tmp_path / "mine"), "network=nano", "trainer.steps=1", "trainer.batch_size=4", "out=run"]
    assert run(command) == 0
    assert {p.name for p in (tmp_path / "elsewhere").iterdir()} == {"run"}, "nothing but the run is written where one stands"
    assert model(tmp_path / "elsewhere" / "run").modality.network.first.out_channels == 4
