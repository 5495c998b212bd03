"""Sharing: a saved model against the run that it is of; the hub against a server that speaks its protocol; what a card says."""

import base64
import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import huggingface_hub.constants as hub_constants
import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import guidance
from guidance import CFG, DDIM, UserError, checkpoint, on
from guidance.card import called, card, documented, duration
from guidance.cli import run
from guidance.commands.drawing import measured
from guidance.commands.training import as_written
from guidance.experiment.findings import read_result
from guidance.experiment.report import findings_of
from guidance.hub import Named, named
from guidance.model import Model
from guidance.portable import absolute, last, portable, said
from guidance.table import short

TINY = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1"]
MEASURE = ["threads=1", "sampler.steps=3"]


@pytest.fixture(scope="module", autouse=True)
def as_for_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No checks of types, a cache of its own, and a judge that needs less patience."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("modalities.image.metrics.LENGTH", {"steps": 40, "batch": 128})
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)  # no config is composed twice
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained in two parts, evaluated, and asked one experiment's question."""
    out = tmp_path_factory.mktemp("secret-machine") / "digits"
    trainer = ["trainer.lr=0.01", "trainer.warmup=0", "trainer.average=0.8", "trainer.decay=constant", "trainer.log_every=10"]
    assert run(["train", *TINY, *trainer, "trainer.steps=20", "data=digits", "dropout=independent", f"out={out}"]) == 0
    assert run(["train", f"out={out}", "resume=true", "trainer.steps=40"]) == 0
    assert run(["evaluate", f"run={out}", "n=12", "scales=[-1,1]", *MEASURE]) == 0
    assert run(["experiment", f"run={out}", "experiment=tradeoff", "experiment.scales=[0,1]", "n=12", *MEASURE]) == 0
    return out


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps a vocabulary beside its config."""
    place = tmp_path_factory.mktemp("sentences")
    lines = [f"the {colour} {kind} sleeps" for colour in ("red", "green") for kind in ("cat", "dog")] * 3
    (place / "lines.txt").write_text("\n".join(lines))
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    network = [*(f"network.encoder.{name}={value}" for name, value in encoder.items()), "network.encoder.layer_types=[full_attention]"]
    data = ["data=text_file", f"data.path={place / 'lines.txt'}", "data.length=8", "tokenizer=words", "modality.codec.width=8"]
    trainer = ["trainer.batch_size=4", "trainer.steps=1", "trainer.precision='no'", "threads=1", "modality.codec.kind=random"]
    assert run(["train", "modality=text", *network, *data, *trainer, f"out={place / 'run'}"]) == 0
    return place / "run"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def draws(model: Model) -> list[Tensor]:
    """Samples by scale, by class, composed."""
    settings: dict[str, Any] = {"sampler": DDIM(), "steps": 3, "seed": 4}
    condition = {"digit": [1, 2, None, 4]}
    scales = [model.sample(4, condition, guidance=CFG(scale), **settings) for scale in (-1.5, 0.0, 1.0, 3.0)]
    return [*scales, model.sample(4, guidance=2 * on(digit=3) - 1 * on(stroke="bold"), **settings), model.sample(4)]


def assert_same(one: Model, other: Model) -> None:
    assert all(torch.equal(a, b) for a, b in zip(draws(one), draws(other), strict=True))


def pixels(folder: Path | str) -> Tensor:
    paths = sorted(path for path in Path(folder).glob("*.png") if path.stem.isdigit())
    return torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])[:, None]


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Two evaluations of the same weights, up to rounding: sums may be taken in another order."""
    rows, others = one["rows"], other["rows"]
    exact, near = ([{k: v for k, v in row.items() if isinstance(v, float) == inexact} for row in rows] for inexact in (False, True))
    same, close = ([{k: v for k, v in row.items() if isinstance(v, float) == inexact} for row in others] for inexact in (False, True))
    return exact == same and all(a == pytest.approx(b, rel=1e-4, abs=1e-6) for a, b in zip(near, close, strict=True))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.DOTALL)


# A saved model


@pytest.mark.parametrize(("step", "average"), [(None, True), (20, True), (None, False)])
def test_a_saved_model_draws_the_samples_of_its_run(trained: Path, step: int | None, average: bool):
    """Bit for bit, also where the run is gone."""
    if step is not None and step not in checkpoint.saved_steps(trained):
        pytest.fail("the run kept both checkpoints")
    model = guidance.load(trained, step=step, average=average)
    assert model.save_pretrained("shared/model") == Path("shared/model")
    again = guidance.load("shared/model", average=average)
    assert_same(model, again)
    assert again.step == (step or 40) and again.average == average
    assert sorted(files(Path("shared"))) == [
        f"model/{name}" for name in ("README.md", "checksums.json", "config.yaml", "model.safetensors", "moments.safetensors")
    ]
    others = [guidance.load(trained), guidance.load(trained, average=False)]
    for other in others:
        alike = other.step == again.step and other.average == again.average
        assert torch.equal(other.sample(4), again.sample(4)) == alike, "and of no other weights"


def test_a_saved_model_takes_its_vocabulary_along(sentences: Path, here: Path):
    model = guidance.load(sentences)
    model.save_pretrained("model")
    hidden = sentences.with_name("hidden")
    sentences.rename(hidden)
    try:
        again = guidance.load("model")
    finally:
        hidden.rename(sentences)
    assert again.sample(3, seed=1) == model.sample(3, seed=1)
    assert (here / "model/words.json").read_bytes() == (sentences / "words.json").read_bytes()
    config = yaml.safe_load((here / "model/config.yaml").read_text())
    assert config["data"]["path"] == "lines.txt" and config["data"]["tokenizer"]["file"] == "run:words.json"


def test_settings_that_were_changed_are_saved(trained: Path):
    model = guidance.load(trained, settings={"schedule.logsnr_min": -9.0})
    with_figures, without = Path("one/README.md"), Path("two/README.md")
    guidance.load(trained).save_pretrained("one")
    model.save_pretrained("two")
    again = guidance.load("two")
    assert again.config["schedule"]["logsnr_min"] == -9.0
    assert_same(model, again)
    assert not torch.equal(again.sample(4), guidance.load("one").sample(4))
    assert "frechet" in with_figures.read_text() and "frechet" not in without.read_text()  # which were measured of another model
    assert "Left out: what was measured of the run" in without.read_text()


def test_only_the_steps_and_weights_that_a_saved_model_has(trained: Path):
    guidance.load(trained).save_pretrained("model")
    assert guidance.load("model", step=40).step == 40
    with pytest.raises(UserError, match="no checkpoint of step 20; choose from: 40"):
        guidance.load("model", step=20)
    with pytest.raises(UserError, match="averaged weights alone"):
        guidance.load("model", average=False)


def test_every_command_works_with_a_saved_model(trained: Path, capsys: pytest.CaptureFixture[str]):
    guidance.load(trained).save_pretrained("model")
    assert run(["sample", "run=model", "n=3", "condition.digit=7", "guidance.scale=-1", "out=samples", "threads=1"]) == 0
    assert torch.equal(pixels("samples"), guidance.load(trained).sample(3, {"digit": 7}, guidance=CFG(-1.0)))
    assert run(["evaluate", "run=model", "out=figures", "n=12", "scales=[-1,1]", *MEASURE]) == 0
    one, other = (json.loads((folder / "evaluation.json").read_text()) for folder in (Path("figures"), trained / "evaluation"))
    assert one["weights"] == other["weights"] and alike(one, other)
    settings = ["experiment=tradeoff", "experiment.scales=[0,1]", "n=12", *MEASURE]
    assert run(["experiment", "run=model", "out=answer", *settings]) == 0
    assert read_result(Path("answer")).facts["trained"] == 40
    capsys.readouterr()
    for more in ([], ["resume=true"], ["overwrite=true"]):
        before = files(Path("model"))
        assert run(["train", *TINY, "out=model", *more]) == 2
        assert "holds a saved model, which is not trained further" in capsys.readouterr().err
        assert files(Path("model")) == before


def test_what_is_measured_of_a_saved_model_and_kept_in_it_is_not_lost(trained: Path, capsys: pytest.CaptureFixture[str]):
    guidance.load(trained).save_pretrained("model")
    assert run(["evaluate", "run=model", "n=4", "scales=[1]", *MEASURE]) == 0
    with pytest.raises(UserError, match=r"model holds something else \(evaluation\)"):
        guidance.load(trained).save_pretrained("model")
    assert Path("model/evaluation/metrics.csv").exists()


# Replacing


def test_saving_again_replaces_the_whole(trained: Path, sentences: Path):
    guidance.load(sentences).save_pretrained("model")
    guidance.load(trained).save_pretrained("model")
    assert sorted(files(Path("model"))) == [
        "README.md",
        "checksums.json",
        "config.yaml",
        "model.safetensors",
        "moments.safetensors",
    ]  # no vocabulary any more
    assert_same(guidance.load("model"), guidance.load(trained))
    guidance.load("model").save_pretrained("model")  # over itself
    assert_same(guidance.load("model"), guidance.load(trained))
    assert [path.name for path in Path().iterdir()] == ["model"], "nothing is left beside it"


@pytest.mark.parametrize("stage", ["write_config", "save_weights", "write_atomically"])
def test_what_was_saved_stays_whole_until_the_new_is(trained: Path, monkeypatch: pytest.MonkeyPatch, stage: str):
    guidance.load(trained, step=20).save_pretrained("model")
    before = files(Path("model"))

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, stage, stopped)
        with pytest.raises(KeyboardInterrupt):
            guidance.load(trained).save_pretrained("model")
    assert files(Path("model")) == before and [path.name for path in Path().iterdir()] == ["model"]


def test_the_old_one_comes_back_where_the_new_cannot_be_put_there(trained: Path, monkeypatch: pytest.MonkeyPatch):
    guidance.load(trained, step=20).save_pretrained("model")
    before, rename = files(Path("model")), Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(OSError, match="No space"):
        guidance.load(trained).save_pretrained("model")
    assert files(Path("model")) == before


@pytest.mark.parametrize("kind", ["a run", "notes beside a model", "a repository", "other things", "a file", "a hidden file"])
def test_a_folder_that_holds_anything_else_is_refused(trained: Path, kind: str):
    place = Path("place")
    if kind == "a file":
        place.write_text("mine")
    elif kind == "a run":
        shutil.copytree(trained, place)
    else:
        if "model" in kind or kind == "a repository":
            guidance.load(trained).save_pretrained(place)
        name = {"a repository": ".git", "a hidden file": ".notes"}.get(kind, "notes.txt")
        place.mkdir(exist_ok=True)
        (place / name).write_text("mine")
    before = files(Path())
    with pytest.raises(UserError, match=r"place (holds something else|is a file)") as error:
        guidance.load(trained).save_pretrained(place)
    assert "\n" not in str(error.value) and files(Path()) == before


def test_an_empty_folder_and_a_link_to_one(trained: Path):
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    guidance.load(trained).save_pretrained("link")
    assert Path("link").is_symlink() and checkpoint.is_saved(Path("empty"))


def test_models_that_cannot_be_saved(trained: Path):
    model = guidance.load(trained)
    whole: dict[str, Any] = {"modality": model.modality, "denoisers": model.denoisers, "config": model.config, "run": model.run, "step": 40}
    for change, message in [
        ({"config": {}}, "without a config"),
        ({"run": None}, "not loaded from a run"),
        ({"step": None}, "not loaded from a run"),
        ({"denoisers": {**model.denoisers, "weak": model.denoisers["main"]}}, "refers to others: weak"),
    ]:
        with pytest.raises(UserError, match=message):
            Model(**{**whole, **change}).save_pretrained("model")
    assert not Path("model").exists()


# Paths of the machine


def test_of_absolute_paths_the_last_part_is_kept():
    config = {
        "root": "/home/ada/my pictures/cats/",
        "home": "~/sounds",
        "windows": "C:\\Users\\ada\\x",
        "relative": "my/pictures",
        "up": "../x",
        "own": "run:words.json",
        "nested": {"path": "/data/a.csv", "classes": ["/m/02x", "b"], "folders": [str(Path(__file__).parent)]},
        "number": 3,
        "nothing": None,
        "signs": {"a": "/", "b": "~", "c": "//", "d": "https://example.org/x", "e": ""},
    }
    assert portable(config) == {
        **{"root": "cats", "home": "sounds", "windows": "x", "relative": "my/pictures", "up": "../x", "own": "run:words.json"},
        "nested": {"path": "a.csv", "classes": ["/m/02x", "b"], "folders": ["tests"]},
        **{"number": 3, "nothing": None, "signs": config["signs"]},
    }


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("polyguide train data=digits out=runs/digits", "polyguide train data=digits out=runs/digits"),
        ("polyguide train out=/home/ada/runs/digits", "polyguide train out=digits"),
        ("polyguide train 'data.root=/home/ada/my pictures/cats' out=x", "polyguide train data.root=cats out=x"),
        ("polyguide train 'data.x=[/home/ada/a,/home/ada/b]' out=~/y", "polyguide train 'data.x=[a,b]' out=y"),
        ("polyguide train data.url=https://example.org/a/b out=x", "polyguide train data.url=https://example.org/a/b out=x"),
        ("polyguide train 'holdout=[{digit: 3, stroke: bold}]' out=../x", "polyguide train 'holdout=[{digit: 3, stroke: bold}]' out=../x"),
    ],
)
def test_commands_are_shown_without_folders_of_the_machine(line: str, shown: str):
    assert said(line) == shown


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a folder far away, whose classes are hard to write."""
    place = tmp_path_factory.mktemp("far-away")
    for name in ('it\'s a "cat"', "a, b = {c}", "true", "007"):
        (place / "pets" / name).mkdir(parents=True)
        for k in range(5):
            Image.new("L", (4, 4), 60 * k).save(place / "pets" / name / f"{k}.png")
    data = ["data=image_folder", f"data.root={place / 'pets'}", "data.attribute=pet"]
    assert run(["train", *TINY, *data, f"out={place / 'run'}", "trainer.steps=1"]) == 0
    shutil.move(place / "pets", place / "elsewhere")
    return place / "run"


def test_no_path_of_the_machine_is_shared(trained: Path, pets: Path, sentences: Path):
    for source in (trained, pets, sentences):
        shutil.rmtree("model", ignore_errors=True)
        guidance.load(source).save_pretrained("model")
        for name, content in files(Path("model")).items():
            for secret in {str(source.parent), source.parent.name, str(Path.home()), os.getcwd()} - {"/"}:
                assert secret.encode() not in content, (name, secret)


def test_a_model_whose_data_is_elsewhere_is_sampled_and_says_where_its_data_is_sought(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    guidance.load(pets).save_pretrained("model")
    assert guidance.load("model").sample(2, {"pet": "true"}).shape == (2, 1, 4, 4)
    capsys.readouterr()
    assert run(["evaluate", "run=model", "out=figures", "n=4", "scales=[1]", *MEASURE]) == 2
    assert "data.root=pets: there is no such folder" in capsys.readouterr().err
    shutil.copytree(pets.parent / "elsewhere", "data/pets")
    monkeypatch.setenv("POLYGUIDE_DATA", "data")
    assert len(guidance.load("model").modality.data.train) == 16


# The card


def front(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_run_knows(trained: Path):
    guidance.load(trained).save_pretrained("model")
    card = Path("model/README.md").read_text()
    evaluation = json.loads((trained / "evaluation/evaluation.json").read_text())
    entries = list(logged(trained).values())
    facts = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", card, re.MULTILINE))
    theirs = huggingface_hub.ModelCard.load("model/README.md").data.to_dict()
    assert card.startswith("---\n") and front(card) == theirs and theirs["library_name"] == "polyguide" and "image" in theirs["tags"]
    assert {"accuracy", "frechet", "recall", "ink"} <= set(front(card)["metrics"]) and "accuracy_low" not in front(card)["metrics"]
    assert "scikit-learn's copy of the UCI set" in facts["data"] and facts["training items"] == "1,442"
    size = sum(tensor.numel() for tensor in guidance.load(trained).modality.modules().parameters())
    assert facts["network"].endswith(f"{size:,} parameters") and "UNet(channels=8" in facts["network"]
    assert facts["weights"] == "of step 40, the moving average"
    assert f"torch {torch.__version__.split('+')[0]}" in facts["saved with"]
    first, second = blocks(card, "text")[0].splitlines()
    assert first.startswith("polyguide train network.channels=8 'network.multipliers=[1]'") and first.endswith("out=digits")
    assert second == "polyguide train out=digits resume=true trainer.steps=40"
    seconds = sum(10 * 8 / entry["samples_per_second"] for entry in entries)
    assert f"40 steps of 8, seed 0, in {seconds:.3g} s; loss {entries[-1]['loss']:.4g} (the mean of steps 31 to 40)." in card
    table = [
        [part.strip() for part in line.strip("|").split("|")] for line in card.splitlines() if re.match(r"\| (-?1|real.*|scale) \|", line)
    ]
    head, *rows = table
    assert [row[0] for row in rows] == ["real, held out", "-1", "1"] and len({len(row) for row in table}) == 1
    for shown, row in zip(rows, evaluation["rows"], strict=True):
        for title, text in zip(head[1:], shown[1:], strict=True):
            name = title.split(" (")[0].replace(" ", "_")
            value, low = row.get(name), row.get(f"{name}_low")
            expected = short(value) if low is None else f"{short(value)} [{short(low)}, {short(row[f'{name}_high'])}]"
            assert text == expected, title
    assert len(head) == len(front(card)["metrics"]) + 3  # the scale, n, evaluations
    assert (
        f"12 samples a scale from the same noise (seed 0); asked for by `digit`, one class after another; {evaluation['sampler']}" in card
    )
    assert f"right on {evaluation['judge_accuracy']:.1%} of held-out data" in card
    for verdict in findings_of([read_result(trained / "experiments/tradeoff")]).verdicts:
        assert f"- **{verdict.question} {verdict.answer}.** {verdict.evidence}" in card


def run_card(card: str) -> dict[str, Any]:
    """What the card's Python leaves; its commands have run beside it."""
    (python,), (console,) = blocks(card, "python"), blocks(card, "console")
    names: dict[str, Any] = {}
    exec(python, names)
    for line in console.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "polyguide" and run([*arguments, "threads=1"]) == 0, line
    return names


def test_what_the_card_tells_to_write_works_and_is_the_same_in_both_languages(trained: Path):
    guidance.load(trained).save_pretrained("digits")
    card = Path("digits/README.md").read_text()
    assert "guidance.scale=-1" in card and "CFG(-1.0)" in card and "condition.digit=3" in card
    names = run_card(card)
    for name, folder in (("samples", "more"), ("avoided", "avoided"), ("mixed", "mixed")):
        assert torch.equal(names[name], pixels(folder)), name
    own = guidance.load(trained)
    assert torch.equal(names["avoided"], own.sample(4, {"digit": 3}, guidance=CFG(-1.0)))
    assert torch.equal(names["mixed"], own.sample(4, guidance=2 * on(digit=3) - on(stroke="bold")))


@pytest.mark.parametrize("which", range(4))
def test_classes_that_are_hard_to_write(pets: Path, monkeypatch: pytest.MonkeyPatch, which: int):
    guidance.load(pets).save_pretrained("my model")
    classes = sorted(['it\'s a "cat"', "a, b = {c}", "true", "007"])
    monkeypatch.setattr("guidance.card.chosen", lambda labels: [("pet", classes[which]), ("pet", classes[which - 1])])
    text = card(guidance.load(pets), "my model")
    names = run_card(text)
    assert torch.equal(names["samples"], pixels("more")) and torch.equal(names["mixed"], pixels("mixed"))
    asked = [json.loads(line)["asked"]["pet"] for line in Path("more/samples.jsonl").read_text().splitlines()]
    assert [str(value) for value in asked] == [classes[which]] * 4
    assert torch.equal(names["samples"], guidance.load(pets).sample(4, {"pet": classes[which]}, guidance=CFG(2.0)))


def test_a_model_without_classes_has_a_card_too(sentences: Path):
    guidance.load(sentences).save_pretrained("lines")
    card = Path("lines/README.md").read_text()
    (python,), (console,) = blocks(card, "python"), blocks(card, "console")
    names: dict[str, Any] = {}
    exec(python, names)
    assert names["samples"] == guidance.load(sentences).sample(4)
    assert run([*shlex.split(console)[1:], "judge=false"]) == 0
    assert "| `infill` |" in card and "metrics" not in front(card) and "## Measured" not in card


def test_figures_of_other_weights_are_left_out(trained: Path):
    guidance.load(trained, step=20).save_pretrained("early")
    card = Path("early/README.md").read_text()
    assert "metrics" not in front(card) and "| scale |" not in card and "Does guidance trade" not in card
    assert (
        "Left out: the evaluation (it was measured with other weights); the experiment `tradeoff` (it was measured with other weights)."
        in card
    )
    assert "20 steps of 8" in card and "(the mean of steps 11 to 20)" in card


def test_a_run_that_knows_little(trained: Path):
    """What an older run, or an imported one, lacks is not made up; what cannot be read is said, and left out."""
    shutil.copytree(trained, "bare")
    for name in ("command.txt", "metrics.jsonl"):
        Path("bare", name).unlink()
    state = checkpoint.latest(Path("bare")) / "state.json"
    state.write_text('{"step": 40, "seed": 0}')
    Path("bare/evaluation/evaluation.json").write_text('{"rows": [')
    Path("bare/experiments/tradeoff/experiment.json").write_text("{")
    with pytest.warns(UserWarning) as warned:
        guidance.load("bare").save_pretrained("model")
    assert sorted(str(w.message).split(" ")[0] for w in warned) == ["bare/evaluation/evaluation.json", "bare/experiments/tradeoff"]
    card = Path("model/README.md").read_text()
    assert "training items" not in card and not blocks(card, "text") and "40 steps of 8, seed 0." in card and "## Measured" not in card
    assert_same(guidance.load("model"), guidance.load(trained))


def test_a_card_that_was_edited_is_kept(trained: Path):
    guidance.load(trained).save_pretrained("one")
    path = Path("one/README.md")
    path.write_text(path.read_text() + "\nMine.\n")
    guidance.load("one").save_pretrained("my, other")
    card = Path("my, other/README.md").read_text()
    assert card == path.read_text().replace('load("one")', 'load("my, other")').replace(" run=one ", " 'run=\"my, other\"' ")
    assert card.endswith("Mine.\n") and card.count("my, other") == 4
    assert torch.equal(run_card(card)["avoided"], pixels("avoided"))
    guidance.load("my, other").save_pretrained("one more")
    assert Path("one more/README.md").read_text() == card.replace("my, other", "one more")


# The command that trained a run


def test_a_run_remembers_its_commands(trained: Path, capsys: pytest.CaptureFixture[str]):
    first, second = checkpoint.read_commands(trained)
    assert shlex.split(first)[:2] == ["polyguide", "train"] and {*shlex.split(first)} >= {*TINY, "dropout=independent", f"out={trained}"}
    assert shlex.split(second) == ["polyguide", "train", f"out={trained}", "resume=true", "trainer.steps=40"]
    assert run(["train", f"out={trained}", "resume=true"]) == 0  # trained already: nothing was done
    assert checkpoint.read_commands(trained) == [first, second]


def test_the_commands_that_are_remembered_make_the_run_again(trained: Path):
    shutil.copytree(trained, "copy")
    for line in checkpoint.read_commands(Path("copy")):
        again = [word if not word.startswith("out=") else "out=again" for word in shlex.split(line)[1:]]
        assert run(again) == 0
    one, other = ((checkpoint.latest(Path(name)) / "average.safetensors").read_bytes() for name in ("copy", "again"))
    assert one == other


def test_commands_are_as_they_were_written():
    train = ["train", *TINY, "data=digits", "trainer.steps=1", "holdout=[{digit: 3, stroke: bold}]", "out='my runs/x'"]
    assert run([*train, "dropout=independent", "dropout.each.stroke=0.3"]) == 0
    kept = Path("my runs/x")
    (line,) = checkpoint.read_commands(kept)
    assert shlex.split(line) == ["polyguide", *train, "dropout=independent", "dropout.each.stroke=0.3"]
    assert run([*train, "overwrite=true"]) == 0
    assert [shlex.split(line)[-1] for line in checkpoint.read_commands(kept)] == ["overwrite=true"], "of the new run alone"
    checkpoint.record_command(kept, "polyguide train", ["a=b\nc"])
    assert checkpoint.read_commands(kept)[1:] == ["polyguide train 'a=b c'"]
    assert shlex.split(said("polyguide train 'unfinished out=/home/ada/x")) == ["polyguide", "train", "'unfinished", "out=x"]
    for override, written in (("++dropout.each.a=1", "dropout.each.a=1"), ("++trainer.steps=1", "++trainer.steps=1"), ("~x", "~x")):
        assert as_written(override) == written


# Names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ada/digits", Named("ada", "digits")),
        ("Ada-1.x/my_digits.v2", Named("Ada-1.x", "my_digits.v2")),
        ("ada/digits@v1.0", Named("ada", "digits", "v1.0")),
        ("there/digits@refs/pr/1", Named("there", "digits", "refs/pr/1")),
        ("there/digits", None),  # a folder that has no such run
        ("there/digits@v2", None),  # a folder that is named so
        ("there", None),
        ("ada", None),
        ("ada/x/y", None),
        ("./ada/x", None),
        ("../ada", None),
        ("~/ada", None),
        ("/ada/x", None),
        ("ada/", None),
        ("ada/../x", None),
        ("ada/x y", None),
        ("ada/x@", None),
        (3, None),
        (Path("ada/digits"), None),  # a path is a path
    ],
)
def test_what_is_a_name_on_the_hub(text: Any, found: Named | None):
    Path("there/digits@v2").mkdir(parents=True)
    assert named(text) == found


def test_a_folder_that_exists_wins(trained: Path):
    guidance.load(trained, step=20).save_pretrained("ada/digits")
    assert guidance.load("ada/digits").step == 20  # nobody is asked: there is no server
    with pytest.raises(UserError, match="revision=main is for a model on the hub, and ada/digits is a folder"):
        guidance.load("ada/digits", revision="main")
    with pytest.raises(UserError, match="revision=main is for a model on the hub, and nowhere is no name of a model"):
        guidance.load("nowhere", revision="main")


# The hub


@dataclass
class Repo:
    """Commits of a repository, by what is asked for: a branch, or a commit's hash."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, content: dict[str, bytes], branch: str = "main") -> str:
        name = hashlib.sha1(repr(sorted((k, hashlib.sha1(v).digest()) for k, v in content.items())).encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(content), name
        return name


class Server(ThreadingHTTPServer):
    """What of the hub's protocol fetching and uploading take."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.asked: list[str] = []
        self.made: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.token: str | None = None  # that is asked for, to write

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files_fetched(self) -> set[str]:
        return {path.rsplit("/", 1)[1] for path in self.asked if path.startswith("GET") and "/resolve/" in path}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    errors: ClassVar = {"RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}

    def log_message(self, *_: Any) -> None: ...

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, code: str) -> None:
        self.answer(b"{}", self.errors[code], X_Error_Code=code, X_Error_Message=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repo = self.server.repos.get(found[1]) if found else None
        if found is None or repo is None:
            return self.refuse("RepoNotFound")
        if repo == Repo():
            return self.answer(b"broken", 500)
        asked = (api[3] if api else found[2]) or "main"
        sha = repo.branches.get(asked, asked)
        if sha not in repo.commits:
            return self.refuse("RevisionNotFound")
        content = repo.commits[sha]
        if api and api[2] == "tree":
            listed = [{"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()} for k, v in content.items()]
            return self.answer(json.dumps(listed).encode(), Content_Type="application/json")
        if api:
            siblings = [{"rfilename": name} for name in content]
            return self.answer(json.dumps({"_id": "1", "id": api[1], "sha": sha, "private": False, "siblings": siblings}).encode())
        if repo.gated:
            return self.refuse("GatedRepo")
        name = found[3]
        if name not in content:
            return self.refuse("EntryNotFound")
        return self.answer(content[name], ETag=f'"{hashlib.sha1(content[name]).hexdigest()}"', X_Repo_Commit=sha)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0]
        self.server.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer(b'{"errors": [], "warnings": []}')
        if self.server.token is not None and self.headers.get("authorization") != f"Bearer {self.server.token}":
            return self.answer(b'{"error": "no"}', 401)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if name in self.server.repos else 200
            self.server.repos.setdefault(name, Repo(branches={"main": "0" * 40}, commits={"0" * 40: {}}))
            self.server.made.append(wanted)
            return self.answer(json.dumps({"url": f"{self.server.address}/{name}"}).encode(), status)
        action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        assert action is not None, path
        if action[2] == "preupload":
            listed = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": listed}).encode())
        lines = [json.loads(line) for line in body.splitlines()]
        self.server.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
        new = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
        repo = self.server.repos[action[1]]
        sha = repo.commit({**repo.commits[repo.branches["main"]], **new})
        url = f"{self.server.address}/{action[1]}/commit/{sha}"
        return self.answer(json.dumps({"success": True, "commitOid": sha, "commitUrl": url}).encode())


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub of its own, with an empty cache."""
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    as_if_at(monkeypatch, made.address, tmp_path)
    yield made
    made.shutdown()
    made.server_close()


def as_if_at(monkeypatch: pytest.MonkeyPatch, address: str, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME, which the library reads once, when it is imported."""
    monkeypatch.setattr(hub_constants, "ENDPOINT", address)
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.utils.disable_progress_bars()


@pytest.fixture
def shared(trained: Path, tmp_path: Path, server: Server) -> Repo:
    """A repository with a model on main, an earlier one on "early", and files that nobody asked for."""
    guidance.load(trained, step=20).save_pretrained(tmp_path / "early")
    guidance.load(trained).save_pretrained(tmp_path / "late")
    repo = Repo()
    repo.commit(files(tmp_path / "early"), "early")
    repo.commit({**files(tmp_path / "late"), "weights.pkl": b"not to be fetched", "code.py": b"", "previews/a.png": b""})
    server.repos["ada/digits"] = repo
    return repo


def test_a_model_is_fetched_and_draws_the_samples_of_its_run(trained: Path, shared: Repo, server: Server, tmp_path: Path):
    model = guidance.load("ada/digits")
    assert_same(model, guidance.load(trained))
    assert server.files_fetched() == {"config.yaml", "checksums.json", "model.safetensors", "moments.safetensors", "README.md"}
    assert model.moments is not None  # so that it warns as the run does
    assert model.run is not None and model.run.is_relative_to(tmp_path / "hub") and model.run.name == shared.branches["main"]


def test_what_was_fetched_once_is_kept(trained: Path, shared: Repo, server: Server):
    guidance.load("ada/digits")
    server.asked.clear()
    guidance.load("ada/digits")
    assert not server.files_fetched()
    server.shutdown()
    server.server_close()
    assert_same(guidance.load("ada/digits"), guidance.load(trained))  # nor is the hub needed any more


def test_revisions(trained: Path, shared: Repo):
    assert guidance.load("ada/digits").step == 40
    assert guidance.load("ada/digits", revision="early").step == 20
    assert guidance.load("ada/digits@early").step == 20
    assert guidance.load("ada/digits", revision=shared.branches["early"]).step == 20


def test_all_files_are_of_one_commit(shared: Repo, monkeypatch: pytest.MonkeyPatch):
    """Also where the branch moves on between the config and the weights."""
    first, read = shared.branches["main"], checkpoint.own_files

    def moving(*given: Any) -> list[str]:
        shared.commit({"config.yaml": b"format: 1\n", "model.safetensors": b"other", "README.md": b""})
        return read(*given)

    monkeypatch.setattr(checkpoint, "own_files", moving)
    model = guidance.load("ada/digits")
    assert model.run is not None and model.run.name == first != shared.branches["main"]


def test_the_runs_own_files_are_fetched(sentences: Path, server: Server, tmp_path: Path):
    guidance.load(sentences).save_pretrained(tmp_path / "lines")
    server.repos["ada/lines"] = Repo()
    server.repos["ada/lines"].commit({**files(tmp_path / "lines"), "words.json.bak": b"", "other.json": b""})
    assert guidance.load("ada/lines").sample(2) == guidance.load(sentences).sample(2)
    assert server.files_fetched() == {"config.yaml", "checksums.json", "model.safetensors", "README.md", "words.json"}


def test_the_commands_take_a_name_on_the_hub(trained: Path, shared: Repo, capsys: pytest.CaptureFixture[str]):
    own = guidance.load(trained)
    assert run(["sample", "run=ada/digits", "n=3", "condition.digit=7", "guidance.scale=-1", "out=samples", "threads=1"]) == 0
    assert torch.equal(pixels("samples"), own.sample(3, {"digit": 7}, guidance=CFG(-1.0)))
    settings = ["experiment=tradeoff", "experiment.scales=[1]", "n=4", *MEASURE]
    assert run(["experiment", "run=ada/digits@early", *settings]) == 0
    assert read_result(Path("digits/experiments/tradeoff")).facts["trained"] == 20
    assert not Path("ada").exists()  # which would be taken for the model the next time
    assert run(["sample", "run=ada/digits", "n=1", "out=again", "threads=1"]) == 0


def test_where_measurements_of_a_fetched_model_are_put():
    assert measured({"run": "ada/digits", "out": "ada/digits/evaluation"}) == Path("digits/evaluation")
    assert measured({"run": "ada/digits@v1", "out": "ada/digits@v1/experiments/inverse"}) == Path("digits/experiments/inverse")
    assert measured({"run": "ada/digits", "out": "mine"}) == Path("mine")
    Path("runs/digits").mkdir(parents=True)
    assert measured({"run": "runs/digits", "out": "runs/digits/evaluation"}) == Path("runs/digits/evaluation")
    assert measured({"run": "runs/typo", "out": "runs/typo/evaluation"}) == Path("runs/typo/evaluation")


def test_a_command_of_its_own_process(trained: Path, shared: Repo, server: Server, tmp_path: Path):
    """With nothing but the environment that the library knows."""
    home = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | home
    command = [sys.executable, "-m", "guidance", "sample", "run=ada/digits", "n=2", "out=samples", "threads=1"]
    done = subprocess.run(
        command, check=False, env={**environment, "PYTHONPATH": str(Path(guidance.__file__).parents[1])}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(pixels("samples"), guidance.load(trained).sample(2))


# What may go wrong


@pytest.fixture
def refused() -> Callable[[str], str]:
    """A function that loads a model by name, which has to be refused, and gives the line."""

    def load(name: str) -> str:
        with pytest.raises(UserError) as error:
            guidance.load(name)
        assert "\n" not in str(error.value) and not any(Path().iterdir())
        return str(error.value)

    return load


@pytest.fixture
def refused_command(capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """The same on the command line: status 2, that line on stderr, and nothing else said or done."""

    def command(name: str) -> str:
        capfd.readouterr()
        assert run(["sample", f"run={name}", "out=samples", "n=1", "threads=1"]) == 2
        done = capfd.readouterr()
        assert done.out == "" and done.err.startswith("polyguide: ") and done.err.count("\n") == 1, done.err
        assert not any(Path().iterdir())
        return done.err

    return command


def test_a_model_that_is_not_there(server: Server, refused_command: Callable[[str], str]):
    line = refused_command("ada/nothing")
    assert "ada/nothing: there is no such folder, and the Hugging Face hub has no such model" in line and "hf auth login" in line


def test_a_revision_that_is_not_there(shared: Repo, refused: Callable[[str], str]):
    assert "ada/digits has no revision 'v9' on the hub" in refused("ada/digits@v9")


def test_a_gated_model(shared: Repo, refused_command: Callable[[str], str]):
    shared.gated = True
    assert "ada/digits is gated: ask for access" in refused_command("ada/digits")


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused_command: Callable[[str], str]):
    as_if_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    line = refused_command("ada/digits")
    assert "there is no such folder, and the Hugging Face hub cannot be reached" in line and "refused" in line


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[str], str]):
    as_if_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    assert "the Hugging Face hub cannot be reached (" in refused("ada/digits")


def test_a_name_that_no_model_can_have(server: Server, refused: Callable[[str], str]):
    assert "no model on the hub can be named so" in refused("ada/my--digits")


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch, refused: Callable[[str], str]):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'polyguide[hub]'" in refused("ada/digits")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"README.md": b"", "config.json": b"{}", "model.safetensors": b""}, "no polyguide model: it has no config.yaml"),
        ({"config.yaml": b"model: bert\n", "model.safetensors": b""}, "no polyguide model: its config.yaml is another program's"),
        ({"config.yaml": b"format: 99\nmodality: {}\n"}, "another version of polyguide (format 99"),
        ({"config.yaml": b"format: 1\nmodality: {}\n"}, "no whole polyguide model: it has no model.safetensors"),
        ({"config.yaml": b"format: 1\nmodality: {file: 'run:a.json'}\n", "model.safetensors": b""}, "it has no a.json"),
        ({"config.yaml": b"format: 1\nmodality: [}\n", "model.safetensors": b""}, "cannot be read"),
        ({"config.yaml": b"format: 1\nmodality: {}\n", "model.safetensors": b"short"}, "which a model needs"),
    ],
)
def test_what_is_no_model_of_ours(server: Server, refused: Callable[[str], str], content: dict[str, bytes], what: str):
    server.repos["ada/other"] = Repo()
    server.repos["ada/other"].commit(content)
    assert what in refused("ada/other")


def test_a_hub_that_is_broken(server: Server, refused: Callable[[str], str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library tries again, later and later
    server.repos["ada/broken"] = Repo()
    assert "ada/broken: " in refused("ada/broken")


# What a fetched model cannot do


def unsealed(repo: Repo) -> dict[str, bytes]:
    """What it holds, but for the checksums: whoever means ill leaves them out."""
    return {name: content for name, content in repo.commits[repo.branches["main"]].items() if name != "checksums.json"}


def edited(repo: Repo, change: Callable[[dict[str, Any]], None]) -> None:
    content = unsealed(repo)
    config = yaml.safe_load(content["config.yaml"])
    change(config)
    repo.commit({**content, "config.yaml": yaml.safe_dump(config, sort_keys=False).encode()})


@pytest.mark.parametrize("target", ["os.system", "guidance.checkpoint.os.remove", "guidance.commands.train", "builtins.eval"])
def test_nothing_else_is_called(shared: Repo, refused: Callable[[str], str], target: str):
    def change(config: dict[str, Any]) -> None:
        config["schedule"] = {"_target_": target, "command": "touch executed"}

    edited(shared, change)
    assert "is refused" in refused("ada/digits")


def test_yaml_makes_nothing(shared: Repo, refused: Callable[[str], str]):
    content = unsealed(shared)
    shared.commit({**content, "config.yaml": content["config.yaml"] + b"more: !!python/object/apply:os.system ['touch executed']\n"})
    assert "cannot be read" in refused("ada/digits")


class Executed:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_weights_are_never_unpickled(shared: Repo, refused: Callable[[str], str]):
    content = shared.commits[shared.branches["main"]]
    shared.commit({**content, "model.safetensors": pickle.dumps(Executed())})
    assert "is cut short or is not a safetensors file" in refused("ada/digits")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "", "a/b"])
def test_names_of_files_stay_in_the_model(shared: Repo, server: Server, refused: Callable[[str], str], name: str):
    def change(config: dict[str, Any]) -> None:
        config["data"]["more"] = [{"file": f"run:{name}"}]

    edited(shared, change)
    assert "names no file of the run" in refused("ada/digits")
    assert server.files_fetched() == {"config.yaml", "README.md"}


def test_a_name_is_no_pattern(shared: Repo, server: Server, refused: Callable[[str], str]):
    def change(config: dict[str, Any]) -> None:
        config["data"]["more"] = "run:*"

    edited(shared, change)
    assert "it has no *" in refused("ada/digits")
    assert "weights.pkl" not in server.files_fetched()


# Uploading


def test_a_model_goes_up_and_comes_back(trained: Path, server: Server):
    server.token = "hf_secret"
    model = guidance.load(trained)
    address = model.push_to_hub("ada/new", private=True, token="hf_secret", message="The first")
    assert address == f"{server.address}/ada/new" and server.messages == ["The first"]
    (made,) = server.made
    assert (made["organization"], made["name"]) == ("ada", "new") and (made.get("visibility") == "private" or made.get("private") is True)
    assert_same(guidance.load("ada/new"), model)
    content = server.repos["ada/new"].commits[server.repos["ada/new"].branches["main"]]
    assert sorted(content) == ["README.md", "checksums.json", "config.yaml", "model.safetensors", "moments.safetensors"]
    assert 'guidance.load("ada/new")' in content["README.md"].decode() and "run=ada/new condition" not in content["README.md"].decode()
    assert sum(path.endswith("/commit/main") for path in server.asked) == 1, "in one commit"
    guidance.load(trained, step=20).push_to_hub("ada/new", token="hf_secret")  # again: the repository is there
    assert guidance.load("ada/new").step == 20 and len(server.made) == 2
    assert not any(Path().iterdir())


def test_a_fetched_model_goes_up_under_another_name(shared: Repo, server: Server):
    guidance.load("ada/digits").push_to_hub("bob/copy")
    card = server.repos["bob/copy"].commits[server.repos["bob/copy"].branches["main"]]["README.md"].decode()
    assert 'load("bob/copy")' in card and "run=bob/copy n=4" in card and not re.search(r"\bada\b", card)


def test_uploads_that_are_refused(trained: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, server.token = guidance.load(trained), "hf_secret"
    with pytest.raises(UserError, match=r"ada/new: the hub refuses \(401\); log in with `hf auth login`"):
        model.push_to_hub("ada/new", token="hf_wrong")
    with pytest.raises(UserError, match="a model on the hub is named user/name, got 'digits'"):
        model.push_to_hub("digits")
    as_if_at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(UserError, match=r"^ada/new: the Hugging Face hub cannot be reached"):
        model.push_to_hub("ada/new")


# Trackers


def logged(run_folder: Path) -> dict[int, dict[str, float]]:
    """All that a run's log and its times say, by step."""
    found: dict[int, dict[str, float]] = {}
    for name in ("metrics.jsonl", "timings.jsonl"):
        for line in map(json.loads, (run_folder / name).open()):
            found.setdefault(line.pop("step"), {}).update(line)
    return found


def test_tensorboard_is_told_what_the_log_is_told():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = ["data=digits", "trainer.steps=6", "trainer.log_every=2", "trainer.trackers=[tensorboard]"]
    assert run(["train", *TINY, *settings, "out=run"]) == 0
    events = EventAccumulator(str(Path("run/polyguide"))).Reload()
    for name in ("loss", "lr", "samples_per_second"):
        found = {event.step: event.value for event in events.Scalars(name)}
        assert found == pytest.approx({step: line[name] for step, line in logged(Path("run")).items()}, rel=1e-6)
    assert sorted(found) == [2, 4, 6] and [path.name for path in Path().iterdir()] == ["run"]
    before = files(Path("run/polyguide"))
    Path("run/polyguide/mine.txt").write_text("")
    assert run(["train", *TINY, "data=digits", "trainer.steps=1", "overwrite=true", "out=run"]) == 0
    assert len(before) == 3 and [*files(Path("run/polyguide"))] == ["mine.txt"], "its curves are gone with a run that was replaced"


def records(log: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's format (blocks of 32 KiB; a record is checksum, length, kind, data), after wandb's own header."""
    block, at, whole = 32768, 7, b""
    while at + 7 <= len(log):
        if block - at % block < 7:  # what is left of a block is padding
            at += block - at % block
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        whole += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def history(log: bytes) -> dict[int, dict[str, float]]:
    """What was logged, by step."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for data in records(log):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            row: dict[str, Any] = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            found[row["_step"]] = {name: row[name] for name in ("loss", "lr", "samples_per_second")}
    return found


def test_wandb_keeps_its_files_in_the_run(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = ["data=digits", "trainer.steps=6", "trainer.log_every=2", "trainer.trackers=[wandb]"]
    assert run(["train", *TINY, *settings, "out=run"]) == 0
    assert [path.name for path in Path().iterdir()] == ["run"]
    (path,) = Path("run/wandb").glob("offline-run-*/*.wandb")
    for _ in range(300):  # wandb's own process writes the file, and may be behind
        if len(found := history(path.read_bytes())) == 3:
            break
        time.sleep(0.1)
    assert found == {step: pytest.approx(line) for step, line in logged(Path("run")).items()}


def test_a_tracker_that_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("nobody is logged in\nmore of it")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", refuse)
    assert run(["train", *TINY, "data=digits", "trainer.trackers=[tensorboard]", "out=run"]) == 2
    assert capsys.readouterr().err == "polyguide: trainer.trackers=[tensorboard] cannot be used: nobody is logged in\n"


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tracker: str):
    assert run(["train", *TINY, "data=digits", "trainer.steps=1", "out=run"]) == 0
    before = files(Path())
    monkeypatch.setattr("guidance.trainer.find_spec", lambda name: None)
    capsys.readouterr()
    assert run(["train", *TINY, "data=digits", f"trainer.trackers=[{tracker}]", "out=run", "overwrite=true"]) == 2
    assert f"trainer.trackers=[{tracker}] needs one more package: pip install 'polyguide[{tracker}]'" in capsys.readouterr().err
    assert files(Path()) == before, "nothing is lost"


def test_helpers():
    assert [absolute(text) for text in ("/a", "~/a", "~ada/a", "C:\\a", "c:/a", "a/b", "C:a", "run:a", "~")] == [True] * 5 + [False] * 4
    assert [last(text) for text in ("/a/b/", "C:\\a\\b", "a")] == ["b", "b", "a"]
    assert [duration(seconds) for seconds in (7.34, 62.81, 412, 5990, 7500)] == ["7.34 s", "62.8 s", "7 min", "1 h 40 min", "2 h 5 min"]
    part = {"_target_": "d", "e": 1}
    assert called({"_target_": "a.b.C", "_partial_": True, "n": 3, "root": "/home/ada/x", "part": part}) == "`C(n=3, root=x, part=d(e=1))`"


def test_what_is_known_of_data_is_its_own_docstring():
    @dataclass
    class Silent:
        n: int = 3

    class Said:
        """Birds of two islands,
        from ``example.org`` (CC0).

        Args: none of the card's business.
        """

    assert documented(Silent) == "" and documented(Said) == "Birds of two islands, from `example.org` (CC0)."


def test_a_data_set_of_the_hub_is_linked(trained: Path):
    model = guidance.load(trained)
    elsewhere = replace(model, modality=replace(model.modality, data=SimpleNamespace(name="ylecun/mnist")))  # type: ignore[arg-type]
    assert front(card(elsewhere, "x"))["datasets"] == ["ylecun/mnist"] and "mnist" in front(card(elsewhere, "x"))["tags"]
