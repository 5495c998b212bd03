"""Rules, samplers and codecs of one's own: from a package without a modality, measured by `evaluate`, refused where wrong."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from plugin_tools import noted, visible
from torch import Tensor

import guidance
from guidance import CFG, DDIM, Condition, Level, Mixture, Prediction, Term, UserError, sample
from guidance.cli import run
from guidance.commands.evaluating import varied
from guidance.commands.training import check_shape, resumed
from guidance.experiment.classes import avoided
from guidance.guide import CFG as Plain
from guidance.judge import train_judge
from guidance.listing import listing
from guidance.model import assemble
from guidance.page import gallery, shown_as
from guidance.plugins import everything

RULES = """
from dataclasses import dataclass
from guidance import CFG, Prediction, Term

@dataclass(frozen=True)
class Damped:
    scale: float = 1.0
    by: float = 1.0

    def terms(self, condition):
        weight = 1 + (self.scale - 1) * self.by
        return Term(weight, condition), Term(1 - weight, condition.drop())

    def combine(self, terms, predictions, x_t, level):
        return CFG(1.0).combine(terms, predictions, x_t, level)
"""
CONFIG = "# The guidance's difference, damped\n_target_: test_rules.rules.Damped\nscale: 1.0\nby: 1.0\n"


def package(folder: Path, interface: str = "INTERFACE = 1\n") -> Path:
    place = folder / "of_rules"
    (place / "test_rules" / "configs" / "guidance").mkdir(parents=True)
    (place / "test_rules" / "__init__.py").write_text(interface)
    (place / "test_rules" / "rules.py").write_text(RULES)
    (place / "test_rules" / "configs" / "guidance" / "damped.yaml").write_text(CONFIG)
    noted(place, "my-rules", {})
    notes = place / "my_rules-0.1.dist-info" / "entry_points.txt"
    notes.write_text(notes.read_text() + "[polyguide.packages]\ntest_rules = test_rules\n")
    return place


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small run, with a package of rules in sight."""
    folder = tmp_path_factory.mktemp("extending")
    with visible(package(folder)), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        patch.setattr("modalities.image.metrics.train_judge", lambda *given, **settings: train_judge(*given, **(settings | {"steps": 5})))
        jaxtyping.config.update("jaxtyping_disable", True)
        assert run(["train", "data=digits", "network.channels=8", "trainer.steps=20", "trainer.batch_size=8", "out=run", "threads=1"]) == 0
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


def test_a_package_without_a_modality_is_listed_with_what_it_brings(trained: Path):
    said = listing()
    assert (
        re.search(r"\nfurther packages\n  test_rules       test_rules  \(my-rules 0.1, .*/test_rules\)\n", said) and "problem" not in said
    )
    assert "  damped           The guidance's difference, damped\n" in said.split("\nguidance=\n")[1]


def test_its_rule_is_sampled_with(trained: Path):
    asked = ["run=run", "n=3", "condition.digit=3", "sampler.steps=3", "overwrite=true"]
    assert run(["sample", *asked, "guidance=damped", "guidance.scale=5", "guidance.by=0.5", "out=damped"]) == 0
    assert run(["sample", *asked, "guidance.scale=3", "out=plain"]) == 0  # 1 + 4 * 0.5
    names = [f"{k:06d}.png" for k in range(3)]
    assert [Path("damped", name).read_bytes() for name in names] == [Path("plain", name).read_bytes() for name in names]
    assert "guidance Damped(scale=5, by=0.5)" in Path("damped/index.html").read_text()


def rows(folder: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "metrics.csv").open()))


def test_any_guidance_is_measured_over_any_of_its_settings(trained: Path):
    common = ["evaluate", "run=run", "n=12", "sampler.steps=3", "overwrite=true"]
    assert run([*common, "scales=[1,3]", "out=plain_measured"]) == 0
    assert run([*common, "scales=[0,0.5]", "guidance=damped", "guidance.scale=5", "vary=by", "out=damped_measured"]) == 0
    plain, damped = rows("plain_measured"), rows("damped_measured")
    for one, other in zip(plain, damped, strict=True):
        assert {k: v for k, v in one.items() if k != "scale"} == {k: v for k, v in other.items() if k != "scale"}
    assert [row["scale"] for row in damped[1:]] == ["0", "0.5"]
    assert Path("plain_measured/table.png").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["guidance=interval"], "no setting of the guidance to vary 'scale'; choose from: inside.scale, outside.scale, low, high"),
        (["vary=scael"], "'scael' (did you mean 'scale'?)"),
        (
            ["guidance=interval", "guidance.inside._target_=guidance.sampler.DDIM", "~guidance.inside.scale", "vary=low"],
            "guidance.inside is a guidance, such as CFG(2.0), got DDIM",
        ),
    ],
)
def test_what_cannot_be_varied_is_said(trained: Path, settings: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    assert run(["evaluate", "run=run", "n=4", "out=no", "scales=[1]", *settings]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not Path("no").exists()


def test_a_config_is_not_changed_by_being_varied():
    config = {"_target_": "guidance.rules.Interval", "inside": {"_target_": "guidance.guide.CFG", "scale": 1.0}, "low": -3.0}
    before = json.dumps(config)
    made = varied(config, "inside.scale")
    assert [made(scale).inside for scale in (2.0, -1.0)] == [CFG(2.0), CFG(-1.0)] and json.dumps(config) == before


@pytest.mark.parametrize(("interface", "said"), [("", "states no INTERFACE"), ("INTERFACE = 2\n", "version 2 of the interface")])
def test_a_package_of_another_interface_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], interface: str, said: str
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["polyguide"])
    with visible(package(tmp_path, interface)):
        assert [plugin.name for plugin in everything() if not plugin.modality] == ["test_rules"]
        assert said in listing()
        with pytest.raises(UserError, match=said):
            guidance.config.build({"_target_": "test_rules.rules.Damped"})


# What is wrong with a guidance or a sampler


@dataclass(frozen=True)
class Wrong(Plain):
    """CFG, but for what it makes of the predictions."""

    makes: Any = None

    def combine(self, terms: Any, predictions: Any, x_t: Tensor, level: Level) -> Any:
        return self.makes(predictions[0])


DENOISER = Mixture(torch.tensor([[-2.0], [2.0]]), stds=0.5, labels={"side": [0, 1]}).denoiser()
SIDE = Condition.of(side=torch.tensor([0, 1]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("makes", "said"),
    [
        (lambda p: p.x0, r"combine of the guidance gives Tensor, not a Prediction of shape \[2, 1\]"),
        (lambda p: Prediction(p.x0[:1], p.eps[:1]), r"gives x0 \[1, 1\], not a Prediction of shape \[2, 1\]"),
        (lambda p: Prediction(p.x0, p.eps[0]), r"not a Prediction of shape \[2, 1\]"),
        (lambda p: None, "gives NoneType"),
    ],
)
def test_what_a_rule_makes_has_to_be_a_prediction(makes: Any, said: str):
    with pytest.raises(UserError, match=said):
        sample(DENOISER, (2, 1), SIDE, Wrong(2.0, makes), steps=2)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_guidance_or_no_sampler_is_said(trained: Path):
    model = guidance.load("run")
    for wrong in (3.0, CFG, "cfg", DDIM()):
        with pytest.raises(UserError, match=r"guidance is an object"):
            model.sample(2, {"digit": 3}, guidance=wrong, steps=1)  # type: ignore[arg-type]
    for wrong in ("ddim", DDIM, CFG(1.0)):
        with pytest.raises(UserError, match=r"sampler is an object such as DDIM\(\)"):
            model.sample(2, {"digit": 3}, sampler=wrong, steps=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="guidance is an object with terms and combine"):
        sample(DENOISER, (2, 1), SIDE, CFG, steps=1)  # type: ignore[arg-type]


def test_a_rule_sees_live_terms_only_and_zeros_for_the_rows_of_others():
    seen: list[tuple[int, list[float]]] = []

    @dataclass(frozen=True)
    class Look:
        scale: Any

        def terms(self, condition: Condition) -> list[Term]:
            return list(CFG(self.scale).terms(condition))

        def combine(self, terms: Any, predictions: Any, x_t: Tensor, level: Level) -> Prediction:
            seen.append((len(predictions), [float(p.x0[0].abs().sum()) for p in predictions]))
            return CFG(1.0).combine(terms, predictions, x_t, level)

    sample(DENOISER, (2, 1), SIDE, Look(1.0), steps=1)
    sample(DENOISER, (2, 1), SIDE, Look(2.0), steps=1)
    sample(DENOISER, (2, 1), SIDE, Look(torch.tensor([1.0, 2.0])), steps=1)
    (one, _), (two, _), (mixed, first) = seen
    assert (one, two, mixed) == (1, 2, 2) and first[0] > 0 and first[1] == 0


# A codec of another shape


def test_a_codec_that_makes_another_shape_than_the_modality_says_is_refused_before_training(trained: Path):
    modality, _ = assemble(guidance.load("run").config)
    check_shape(modality, modality.data.train)
    with pytest.raises(UserError, match=r"codec of image gives x0 of shape \[1, 8, 8\], and the modality says \[1, 8, 9\]: shape= is x0's"):
        check_shape(replace(modality, shape=(1, 8, 9)), modality.data.train)


def test_a_run_is_resumed_by_its_own_command_although_a_choice_has_a_new_setting():
    stored = {"data": {"_target_": "a.B", "root": "x"}, "trainer": {"steps": 5}}
    now = {"data": {"_target_": "a.B", "root": "x", "tokens": 77}, "trainer": {"steps": 5}}
    assert resumed(now, stored, ["data=image_folder", "data.root=x"]) == stored
    with pytest.raises(UserError, match=r"data\.tokens cannot change"):
        resumed(now, stored, ["data=image_folder", "data.tokens=77"])
    with pytest.raises(UserError, match=r"data\._target_ cannot change"):
        resumed({**now, "data": {"_target_": "a.C"}}, stored, ["data=other"])


# Pages and verdicts


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image"),
        ("a.tiff", ""),
        ("a.wav", "audio"),
        ("a.flac", "audio"),
        ("a.ogg", "audio"),
        ("a.mid", ""),
        ("a.ply", ""),
        ("a.txt", "text"),
    ],
)
def test_a_page_shows_what_browsers_can_show(name: str, kind: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"x")
    assert shown_as(Path(name)) == kind
    page = gallery("t", "", [tmp_path / name], ["c"], None if kind else tmp_path / "grid.png")
    assert ("<img" in page) == (kind in ("image", "")) and ("<audio" in page) == (kind == "audio") and ("download=" in page) == (kind == "")


@pytest.mark.usefixtures("unchecked")
def test_of_two_classes_the_other_one_comes():
    from guidance.estimate import Estimate

    class Two:
        def classes(self, name: str) -> list[str]:
            return ["major", "minor"]

    class Three(Two):
        def classes(self, name: str) -> list[str]:
            return ["major", "minor", "none"]

    known = Estimate(0.1, 0.05, 0.15, 10)
    keys = ("named_class", "nats_from_unconditional", "nats_more_than_at_0", "nats_from_data", "frechet")
    row = {"scale": -1.0, **dict.fromkeys(keys, known), "named_more_than_at_0": Estimate(-0.3, -0.4, -0.2, 10)}
    every = [row, {**row, "scale": 0.0}]
    two = avoided([Two()], "mode", row, every)  # type: ignore[list-item]
    assert two.answer == "Yes: the other class comes" and "nats" not in two.evidence
    assert "nats" in avoided([Three()], "mode", row, every).evidence  # type: ignore[list-item]
