"""Modalities from outside: one that is healthy does all that ours do; what is broken is told, and breaks nothing else."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
import yaml
from PIL import Image
from plugin_tools import noted, visible
from runs import unsealed

import guidance
from guidance import UserError, plugins
from guidance.cli import COMMANDS, run
from guidance.config import config_folder, resolve
from guidance.hydra import composed
from guidance.judge import train_judge
from guidance.listing import listing
from guidance.scaffold import new_modality

ROOT = Path(__file__).parent.parent
TINY = ["data.count=240", "data.length=16", "network.width=12", "network.layers=2", "threads=1", "trainer.batch_size=8"]
IMAGE = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "threads=1", "trainer.batch_size=8", "trainer.steps=1"]


@pytest.fixture(scope="module", autouse=True)
def as_for_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Hydra composes a config twice, the first time to see whether it says hydra.mode=MULTIRUN. None of these does.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def outside(folder: Path, name: str, distribution: str = "") -> Path:
    """A healthy plug-in under a name: the skeleton."""
    place = folder / f"of_{name}"
    new_modality(name, place)
    return noted(place, distribution or f"polyguide-{name}", {name: f"{name}:build"})


def package(folder: Path, name: str, files: dict[str, str], modalities: dict[str, str], commands: dict[str, str] | None = None) -> Path:
    """A distribution ``name`` with these files."""
    place = folder / f"of_{name}"
    for file, text in files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
    return noted(place, name, modalities, commands)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says which writes nothing."""
    capsys.readouterr()
    before = sorted(Path().rglob("*"))
    assert run(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("polyguide: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    assert sorted(Path().rglob("*")) == before
    return said.err


def told(name: str) -> list[str]:
    """What the list says of a modality."""
    lines = listing().split("\n\n")[0].splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith(f"  {name:16} "))
    rest = lines[first + 1 :]
    return [line.strip() for line in rest[: next((k for k, line in enumerate(rest) if line[2] != " "), len(rest))]]


# A healthy one


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A modality from outside, and a run of it; gives the run."""
    folder = tmp_path_factory.mktemp("pulse")
    with visible(outside(folder, "test_pulse")), pytest.MonkeyPatch.context() as patch:
        few = lambda *given, **settings: train_judge(*given, **(settings | {"steps": 60, "batch": 32}))  # noqa: E731
        import test_pulse.metrics

        patch.setattr(test_pulse.metrics, "train_judge", few)
        settings = ["modality=test_pulse", *TINY, "trainer.steps=3", "trainer.sample_every=3"]
        assert run(["train", *settings, f"out={folder / 'run'}"]) == 0
        yield folder / "run"


def test_a_modality_from_outside_is_listed_with_its_choices(pulse: Path):
    said = listing()
    assert re.search(
        r"^  test_pulse       test_pulse:build  \(polyguide-test_pulse 0.1, .*/of_test_pulse/test_pulse\)$", said, re.MULTILINE
    )
    assert told("test_pulse") == [] and "problem" not in said
    for group, name in (("modality", "test_pulse"), ("data", "test_pulse_waves"), ("network", "test_pulse_convolutions")):
        part = said.split(f"\n{group}=\n")[1].split("\n\n")[0]
        assert f"  {name:16} " in part and f"/test_pulse/configs/{group}/{name}.yaml" in part


def test_it_trains_from_its_config(pulse: Path):
    config = yaml.safe_load((pulse / "config.yaml").read_text())
    assert config["modality"] == {"_target_": "test_pulse.build"} and config["data"]["count"] == 240
    assert config["trainer"]["batch_size"] == 8 and config["dropout"]["each"] == 0.2, "its own choice of dropout"
    assert (pulse / "previews" / "step-00000003.png").is_file() and (pulse / "forward.png").is_file()


def test_it_samples_under_guidance_as_in_python(pulse: Path, capsys: pytest.CaptureFixture[str]):
    settings = ["n=3", "condition.form=square", "guidance.scale=2.5", "sampler.steps=3", "format=webp"]
    assert run(["sample", f"run={pulse}", "out=out", *settings]) == 0
    assert "2 network evaluations a sample and step, in 3 calls" in capsys.readouterr().out
    model = guidance.load(pulse)
    made = model.sample(3, {"form": "square"}, guidance=guidance.CFG(2.5), steps=3)
    drawn = model.modality.render.draw(made)
    for k in range(3):
        assert torch.equal(
            torch.frombuffer(bytearray(Image.open(f"out/{k:06d}.webp").convert("L").tobytes()), dtype=torch.uint8), drawn[k].flatten()
        )


def test_it_is_composed_evaluated_and_experimented_with(pulse: Path):
    assert run(["sample", f"run={pulse}", "out=out", "n=2", "guidance=compose", 'guidance.terms="2*on(form=saw) - on(pace=fast)"']) == 0
    assert run(["evaluate", f"run={pulse}", "out=measured", "scales=[0,2]", "n=6", "sampler.steps=2"]) == 0
    facts = json.loads(Path("measured/evaluation.json").read_text())
    assert facts["attribute"] == "form" and [row["scale"] for row in facts["rows"]] == ["real", 0, 2]
    assert {"crossings", "strength", "frechet", "accuracy"} <= facts["rows"][1].keys()
    settings = ["experiment.scales=[-1,1]", "experiment.ordered_scales=[-1,1]", "n=6", "sampler.steps=2"]
    assert run(["experiment", f"run={pulse}", "experiment=inverse", "out=found", *settings]) == 0
    assert "crossings" in Path("found/report.html").read_text(), "pace is seen by its quantity"


def test_nothing_of_polyguide_names_it():
    for folder in ("guidance", "modalities", "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml") and "skeleton" not in path.parts:
                assert "point_cloud" not in path.read_text() or path.name == "scaffold.py", "an example of a name"


def test_its_run_is_refused_once_it_is_gone(pulse: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "of_test_pulse" not in place])
    plugins.plugins.cache_clear()
    plugins.everything.cache_clear()
    try:
        said = refused(capsys, "sample", f"run={pulse}", "out=out")
        assert "'test_pulse.data.Waves' is refused" in said and "where it is of a plug-in that is not installed, install that" in said
        assert "there is no choice for modality 'test_pulse'" in refused(capsys, "train", "modality=test_pulse", "out=other")
    finally:
        plugins.plugins.cache_clear()
        plugins.everything.cache_clear()


# Broken ones

BROKEN = {
    "an import of what is not there": ({"broken/__init__.py": "import nothing_of_that_name\n"}, "cannot be imported: ModuleNotFoundError"),
    "no Python": ({"broken/__init__.py": "INTERFACE = = 1\n"}, "cannot be imported: SyntaxError: invalid syntax"),
    "exit": ({"broken/__init__.py": "import sys\nsys.exit('no GPU here')\n"}, "cannot be imported: SystemExit: no GPU here"),
    "an error of its own": ({"broken/__init__.py": "raise Warning('two\\nlines')\n"}, "cannot be imported: Warning: two lines"),
    "no function": ({"broken/__init__.py": "INTERFACE = 1\n"}, "has no function broken:build; reinstall broken"),
    "no interface": (
        {"broken/__init__.py": "def build(data, network): ...\n"},
        "states no INTERFACE in broken; this polyguide has version 1",
    ),
    "another interface": (
        {"broken/__init__.py": "INTERFACE = 2\ndef build(data, network): ...\n"},
        "was written for version 2 of the interface",
    ),
    "files that are gone": ({}, "cannot be imported: ModuleNotFoundError: No module named 'broken'"),
    "no callable": ({"broken/__init__.py": "INTERFACE = 1\nbuild = 'build'\n"}, "has no function broken:build; reinstall broken"),
}
CONFIG = "# @package _global_\n# broken\ndefaults:\n  - /data: digits\n  - /network: unet\nmodality:\n  _target_: broken.build\n"


@pytest.mark.parametrize(("files", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_one_is_told_in_one_line_and_others_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], says: str
):
    files = {**files, "broken/configs/modality/broken.yaml": CONFIG} if files else {}
    with visible(package(tmp_path, "broken", files, {"broken": "broken:build"})):
        (problem,) = told("broken")
        assert problem.startswith("problem: the plug-in 'broken' (broken) ") and says in problem
        assert told("image") == told("audio") == told("text") == []
        assert run(["--help"]) == 0
        said = refused(capsys, "train", *(["modality=broken"] if files else ["modality._target_=broken.build"]), "out=run")
        assert says in said and "the plug-in 'broken' (broken)" in said
        assert run(["train", *IMAGE, "out=image"]) == 0
        config = unsealed(Path("image")) / "config.yaml"
        config.write_text(config.read_text().replace("modalities.image.build", "broken.build"))
        assert says in refused(capsys, "sample", "run=image", "out=samples")


TARGETS = {
    "no function at all": ("odd_target", "has no function odd_target"),
    "extras": ("odd_target:build [fast]", ""),
    "spaces": ("odd_target : build", ""),
    "a method": ("odd_target:Made.build", ""),
    "a deeper module": ("odd_target.below:build", "cannot be imported: ModuleNotFoundError: No module named 'odd_target.below'"),
}


@pytest.mark.parametrize(("target", "says"), TARGETS.values(), ids=TARGETS)
def test_entry_points_of_all_sorts(tmp_path: Path, target: str, says: str):
    made = "INTERFACE = 1\ndef build(data, network): ...\nclass Made:\n    build = staticmethod(build)\n"
    with visible(package(tmp_path, "odd", {"odd_target/__init__.py": made}, {"odd": target})):
        assert [says in line for line in told("odd")] == ([True] if says else [])


def test_one_without_notes_of_its_name_is_listed(tmp_path: Path):
    place = package(
        tmp_path, "nameless", {"nameless/__init__.py": "INTERFACE = 1\ndef build(data, network): ...\n"}, {"nameless": "nameless:build"}
    )
    (place / "nameless-0.1.dist-info" / "METADATA").write_text("")
    with visible(place):
        assert told("nameless") == [] and "(a package without a name" in listing()


def test_a_lone_module_brings_no_configs_but_what_is_beside_it_is_not_taken_for_its_own(tmp_path: Path):
    files = {"lone.py": "INTERFACE = 1\ndef build(data, network): ...\n", "configs/data/of_somebody.yaml": "_target_: somebody\n"}
    with visible(package(tmp_path, "lone", files, {"lone": "lone:build"})):
        assert told("lone") == [] and "of_somebody" not in listing() and str(tmp_path / "of_lone") in listing()


LATE = {
    "missing library": ("import nothing_of_that_name", "needs the package 'nothing_of_that_name', which is not installed"),
    "missing name": ("from os import nothing_of_that_name", "cannot import name 'nothing_of_that_name'"),
    "exit": ("raise SystemExit('no licence')", "no licence"),
    "its own error": ("raise RuntimeError('no such device')", "no such device"),
}


@pytest.mark.parametrize(("line", "says"), LATE.values(), ids=LATE)
@pytest.mark.parametrize("where", ["when it is made", "when a part is imported"])
def test_one_that_breaks_late_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, says: str, where: str):
    if (line.startswith("raise SystemExit"), where) == (True, "when it is made"):
        pytest.skip("who asks to leave may leave")
    late = where == "when it is made"
    files = {
        "late/__init__.py": f"INTERFACE = 1\ndef build(data, network):\n    {line if late else 'pass'}\n",
        "late/network.py": "pass\n" if late else f"{line}\n",
        "late/configs/modality/late.yaml": CONFIG.replace("broken", "late").replace("/network: unet", "/network: late"),
        "late/configs/network/late.yaml": "_target_: late.network.Net\n",
    }
    if late:
        files["late/configs/modality/late.yaml"] = CONFIG.replace("broken", "late")
    with visible(package(tmp_path, "late", files, {"late": "late:build"})):
        assert told("late") == []
        assert says in refused(capsys, "train", "modality=late", "out=run")


# Names that two have


def choice(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A healthy package that brings configs."""
    made = {f"{name}/__init__.py": "INTERFACE = 1\ndef build(data, network): ...\n"}
    return package(folder, name, made | {f"{name}/configs/{file}": text for file, text in files.items()}, {name: f"{name}:build"})


DIGITS = "# ours\n_target_: modalities.image.data.Digits\n"


def test_a_choice_that_two_bring_is_refused_at_the_top_and_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    nested = {"recipe/nested.yaml": "# @package _global_\ndefaults:\n  - override /data: shared\n"}
    one, two = (
        choice(tmp_path, name, {"data/shared.yaml": DIGITS, f"data/{name}.yaml": DIGITS} | more)
        for name, more in (("aa", {}), ("bb", nested))
    )
    with visible(one, two):
        says = "data=shared is brought by more than one package: aa, bb; uninstall all but one of them"
        assert says in refused(capsys, "train", *IMAGE, "data=shared", "out=run")
        assert says in refused(capsys, "train", *IMAGE, "recipe=nested", "out=run")
        assert run(["train", *IMAGE, "data=aa", "out=run"]) == 0
        assert told("aa") == ["problem: its data=shared cannot be chosen: bb brings the same, too"]
        assert told("bb") == ["problem: its data=shared cannot be chosen: aa brings the same, too"]


def test_a_choice_that_polyguide_has_is_polyguides_and_that_is_told(tmp_path: Path):
    with visible(choice(tmp_path, "cc", {"data/digits.yaml": "_target_: os.system\n", "sampler/ddim.yaml": "steps: 1\n"})):
        assert told("cc") == ["problem: its data=digits, sampler=ddim cannot be chosen: polyguide's own of that name come first"]
        assert composed("train", ["data=digits", "out=x"])["data"] == {"_target_": "modalities.image.data.Digits"}
    with visible(choice(tmp_path, "c1", {"data/digits.yaml": "a: 1\n"}), choice(tmp_path, "c2", {"data/digits.yaml": "a: 1\n"})):
        assert run(["train", *IMAGE, "data=digits", "sampler=ddim", "out=run"]) == 0, "whoever else brings it"


def test_two_modalities_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    places = [outside(tmp_path / who, "test_twin", f"twin-{who}") for who in ("a", "b")]
    with visible(*places):
        assert "modality=test_twin is brought by more than one package: twin-a, twin-b" in refused(
            capsys, "train", "modality=test_twin", *TINY, "out=run"
        )
        lines = [line for line in listing().splitlines() if "cannot be chosen: twin-" in line and "modality=test_twin" in line]
        assert len(lines) >= 2
        assert run(["train", *IMAGE, "out=run"]) == 0


def test_one_that_calls_itself_image_is_refused_with_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["train", *IMAGE, "out=run"]) == 0
    files = {"impostor/__init__.py": "INTERFACE = 1\ndef build(data, network): ...\n"}
    with visible(package(tmp_path, "impostor", files, {"image": "impostor:build"})):
        assert "modality=image is brought by more than one package: impostor, polyguide" in refused(capsys, "train", *IMAGE, "out=other")
        said = listing()
        assert "modality=image cannot be chosen: impostor brings one of that name, too" in said
        assert "modality=image cannot be chosen: polyguide brings one of that name, too" in said
        assert run(["sample", "run=run", "out=samples", "n=1", "sampler.steps=1"]) == 0, "a run says what it was made with"


def test_two_modalities_of_one_package_are_no_clash(tmp_path: Path):
    files = {"both/__init__.py": "INTERFACE = 1\ndef build(data, network): ...\n", "both/configs/data/both.yaml": DIGITS}
    with visible(package(tmp_path, "both", files, {"one": "both:build", "other": "both:build"})):
        assert told("one") == told("other") == []
        assert run(["train", *IMAGE, "data=both", "out=run"]) == 0


@pytest.mark.parametrize("folder", ["my own, and (other) [things]", "it's", "a=b", "$HOME ~ % #1"], ids=str)
def test_configs_are_found_wherever_a_package_lies(tmp_path: Path, folder: str):
    with visible(choice(tmp_path / folder, "dd", {"data/dd.yaml": DIGITS})):
        assert composed("train", ["data=dd", "out=x"])["data"] == {"_target_": "modalities.image.data.Digits"}
        assert run(["train", *IMAGE, "data=dd", "out=run"]) == 0


def test_a_config_that_cannot_be_read_is_listed(tmp_path: Path):
    place = choice(tmp_path, "ee", {"data/ee.yaml": DIGITS})
    (place / "ee" / "configs" / "data" / "latin.yaml").write_bytes("# für Töne\n".encode("latin-1"))
    with visible(place):
        assert "  latin            f" in listing()


# Commands


def test_a_command_of_a_plugin_is_run_and_a_broken_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = {"cmds.py": "def greet(arguments):\n    print('hello', *arguments)\nnothing = 3\n", "bad.py": "import nothing_of_that_name\n"}
    commands = {"greet": "cmds:greet", "bad": "bad:command", "none": "cmds:missing", "three": "cmds:nothing", "train": "cmds:greet"}
    with visible(package(tmp_path, "cmds", files, {}, commands)):
        assert run(["greet", "you"]) == 0 and capsys.readouterr().out == "hello you\n"
        assert "the command 'bad' (cmds) cannot be imported: ModuleNotFoundError" in refused(capsys, "bad")
        for name, target in (("none", "cmds:missing"), ("three", "cmds:nothing")):
            assert f"the command {name!r} (cmds) has no function {target}; reinstall cmds" in refused(capsys, name)
        said = listing()
        assert (
            "problem: the command 'bad' (cmds) cannot be imported" in said and "problem: the command 'none' (cmds) has no function" in said
        )
        assert "problem: polyguide train is polyguide's own command" in said
        assert run(["--help"]) == 0
        said = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +brought by a plug-in$", said, re.MULTILINE) for name in ("greet", "bad", "import-diffwave"))


def test_a_command_that_two_bring_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    places = [package(tmp_path, name, {f"{name}.py": "greet = print\n"}, {}, {"greet": f"{name}:greet"}) for name in ("ff", "gg")]
    with visible(*places):
        assert "the command 'greet' is brought by more than one package: ff, gg" in refused(capsys, "greet")
        assert listing().count("problem: the command 'greet' is brought by more than one package") == 2


# What a config may call


def test_only_what_is_installed_may_be_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "no_plugin.py").write_text("class Data:\n    def __init__(self, command=''):\n        open('done', 'w')\n")
    targets = [
        *("os.system", "subprocess.Popen", "builtins.eval", "eval", "no_plugin.Data", "torch.load", "pathlib.Path", "", "guidance"),
        *(
            "guidance.checkpoint.os.system",
            "guidance.checkpoint.shutil.rmtree",
            "guidance.checkpoint.Path",
            "guidance.plugins.import_module",
        ),
        *("guidance.config.importlib.import_module", "guidance.config.functools.partial", "guidance.checkpoint.write_atomically"),
        *("guidance.checkpoint.write_atomically.__globals__", "guidance.condition.Condition.__init__", "guidance.cli.COMMANDS.update"),
        *("guidance.condition.Condition.of.__func__", "guidance.train._Log", "guidance.cli.run", "guidance.condition.Label.mro"),
        *("guidance.scaffold.new_modality", "modalities.assets.Path", "guidance..checkpoint", ".guidance", "guidance.nothing.Data"),
    ]
    with visible(tmp_path / "there"):
        assert run(["train", *IMAGE, "out=run"]) == 0
        text = (unsealed(Path("run")) / "config.yaml").read_text()
        for target in targets:
            Path("run/config.yaml").write_text(
                text.replace("modalities.image.data.Digits", repr(target)).replace("data:\n", "data:\n  command: touch done\n")
            )
            said = refused(capsys, "sample", "run=run", "out=samples")
            assert repr(target) in said and ("refused" in said or "does not exist" in said), said
            assert not Path("done").exists() and Path("run/config.yaml").is_file()


@pytest.mark.parametrize("target", [3, None, ["os.system"], {"a": "b"}, True], ids=str)
def test_a_target_that_is_no_name_is_refused(target: object):
    with pytest.raises(UserError, match=r"_target_ .* is refused"):
        resolve(target)  # type: ignore[arg-type]


def test_what_may_be_called_is_a_class_a_class_method_or_a_build_function(tmp_path: Path):
    assert resolve("guidance.Cosine") is guidance.Cosine and resolve("guidance.condition.Condition.of") == guidance.Condition.of
    made = "import os\nfrom pathlib import Path\nINTERFACE = 1\ndef build(data, network): ...\ndef other(): ...\nclass Data:\n    pass\n"
    with visible(package(tmp_path, "hh", {"hh/__init__.py": made}, {"hh": "hh:build"})):
        assert resolve("hh.build").__name__ == "build" and resolve("hh.Data").__name__ == "Data"
        with pytest.raises(UserError, match=r"'hh.other' is refused: it is neither a class nor a plug-in's build function"):
            resolve("hh.other")
        for target in ("hh.os.system", "hh.Path"):
            with pytest.raises(UserError, match=f"'{target}' is refused: only guidance., modalities., hh., test_pulse. may be called"):
                resolve(target)


# Nothing heavy


def test_a_broken_plugin_does_not_slow_the_help(tmp_path: Path):
    """Nothing of a plug-in is imported for it, nor anything heavy."""
    heavy = "import torch\nraise RuntimeError\n"
    place = package(tmp_path, "slow", {"slow/__init__.py": heavy}, {"slow": "slow:build"}, {"slow": "slow:command"})
    script = "import sys, guidance.cli as cli\nassert cli.run(sys.argv[1:]) == 0\n"
    script += "print(sorted({'torch', 'hydra', 'omegaconf', 'numpy', 'slow'} & sys.modules.keys()), file=sys.stderr)"
    for arguments in (["--help"], ["--version"]):
        settings = {**os.environ, "PYTHONPATH": str(place)}
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, env=settings)
        assert done.stderr == "[]\n" and ("  slow " in done.stdout) == (arguments == ["--help"])


def test_our_own_choices_are_unchanged_by_who_is_installed():
    assert [plugin.name for plugin in plugins.plugins() if plugin.distribution == "polyguide"] == ["audio", "image", "text"]
    assert {"train", "sample", "list"} < set(COMMANDS) and config_folder().is_dir()
