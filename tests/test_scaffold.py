"""new-modality: the package that it writes trains at once, passes its own tests, builds. And the example of a modality from outside."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from plugin_tools import noted, visible

import guidance
from guidance import UserError, checkpoint
from guidance.cli import run
from guidance.listing import listing
from guidance.scaffold import PLACEHOLDER, SKELETON, USAGE, new_modality

EXAMPLE = Path(__file__).parent.parent / "examples" / "point-cloud-plugin"
FILES = [
    "README.md",
    "pyproject.toml",
    "tests/test_NAME.py",
    *(f"NAME/{name}.py" for name in ("__init__", "data", "metrics", "network", "render")),
]
FILES += ["NAME/configs/data/NAME_waves.yaml", "NAME/configs/modality/NAME.yaml", "NAME/configs/network/NAME_convolutions.yaml"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["polyguide"])
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def python(*arguments: str, path: tuple[Path, ...] = (), cwd: Path | None = None) -> str:
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=settings, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# What is written


def test_a_package_of_that_name_is_written_with_nothing_left_to_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["new-modality", "test_ripples"]) == 0
    said = capsys.readouterr().out
    assert written(tmp_path / "test_ripples") == {file.replace("NAME", "test_ripples") for file in FILES}
    for path in (tmp_path / "test_ripples").rglob("*"):
        assert PLACEHOLDER not in str(path.relative_to(tmp_path))
        if path.is_file():
            skeleton = SKELETON / str(path.relative_to(tmp_path / "test_ripples")).replace("test_ripples", PLACEHOLDER)
            assert path.read_text().replace("test_ripples", PLACEHOLDER) == skeleton.read_text() and PLACEHOLDER not in path.read_text()
            assert f"test_ripples/{path.relative_to(tmp_path / 'test_ripples')}\n" in said
    assert said.endswith("now: pip install -e test_ripples    then: polyguide train modality=test_ripples out=runs/test_ripples\n")


def test_it_is_written_where_one_says(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    for out, place in (("deep/er", "deep/er"), ("empty", "empty"), ("~/mine", "home/mine")):
        assert run(["new-modality", f"out={out}", "test_ripples"]) == 0
        assert written(tmp_path / place) == {file.replace("NAME", "test_ripples") for file in FILES}
        assert f"pip install -e {tmp_path / 'home/mine' if out[0] == '~' else out}" in capsys.readouterr().out


WORD = "a modality is called by a word of small letters, digits and underscores, such as point_cloud; got "
REFUSED = {
    ("new-modality",): USAGE,
    ("new-modality", "one", "two"): USAGE,
    ("new-modality", "test_ripples", "out=a", "out=b"): USAGE,
    ("new-modality", "test_ripples", "out="): USAGE,
    ("new-modality", "name=test_ripples"): USAGE,
    **{
        ("new-modality", name): WORD + repr(name) for name in ("Ripples", "my-ripples", "2d", "a.b", "_hidden", "class", "", "../up", "a b")
    },
    ("new-modality", "json"): "there is a Python package 'json' already; choose another name",
    ("new-modality", "torch"): "there is a Python package 'torch' already; choose another name",
    ("new-modality", "guidance"): "there is a Python package 'guidance' already; choose another name",
    ("new-modality", "image"): "there is a modality 'image' already, in polyguide; choose another name",
    ("new-modality", "test_ripples", "out=full"): "out=full exists already; choose another folder with out=",
    ("new-modality", "test_ripples", "out=file"): "out=file exists already; choose another folder with out=",
    ("new-modality", "test_ripples", "out=file/below/it"): "out=file/below/it: file is a file, not a folder",
    ("new-modality", "test_taken"): "out=test_taken exists already; choose another folder with out=",
}


@pytest.mark.parametrize(("arguments", "says"), REFUSED.items(), ids=[" ".join(arguments) for arguments in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str):
    for folder in ("full", "test_taken"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert run(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"polyguide: {says}\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_help_says_how(capsys: pytest.CaptureFixture[str]):
    for arguments in (["--help"], ["-h"], ["name", "-h"]):
        assert run(["new-modality", *arguments]) == 0 and capsys.readouterr().out == USAGE + "\n"


def test_a_modality_of_that_name_from_elsewhere_is_named(tmp_path: Path):
    place = noted(tmp_path / "other", "somebodys", {"test_ripples": "elsewhere:build"})
    with visible(place), pytest.raises(UserError, match="there is a modality 'test_ripples' already, in somebodys"):
        new_modality("test_ripples", tmp_path / "mine")


# What it is good for


def test_its_wheel_holds_its_configs_and_trains_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    new_modality("test_surf", tmp_path / "surf")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "surf")
    (wheel,) = (tmp_path / "dist").glob("polyguide_test_surf-0.1.0-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    held = {name for name in written(tmp_path / "site") if "dist-info" not in name}
    assert held == {file.replace("NAME", "test_surf") for file in FILES if file.startswith("NAME/")}
    with visible(tmp_path / "site"):
        line = next(line for line in listing().splitlines() if line.startswith("  test_surf "))
        assert line.endswith(f"test_surf:build  (polyguide-test_surf 0.1.0, {tmp_path / 'site' / 'test_surf'})")
        assert run(["train", "modality=test_surf", "trainer.steps=2", "trainer.batch_size=4", "threads=1", "out=run"]) == 0
        assert checkpoint.saved_steps(tmp_path / "run") == [2]
        assert guidance.load("run").sample(2, {"form": "saw", "pace": "slow"}, steps=1).shape == (2, 64)
    assert "training" in capsys.readouterr().out


def test_its_own_tests_pass(tmp_path: Path):
    """The conformance suite among them."""
    new_modality("test_swell", tmp_path / "swell")
    noted(tmp_path / "swell", "polyguide-test-swell", {"test_swell": "test_swell:build"})
    said = python("-m", "pytest", "-p", "no:cacheprovider", "tests", path=(tmp_path / "swell",), cwd=tmp_path / "swell")
    assert "3 passed" in said


# The example of a modality from outside


def test_point_clouds_take_at_most_200_lines_and_nothing_of_polyguide():
    sources = list((EXAMPLE / "point_cloud").rglob("*.py"))
    assert sum(len(path.read_text().splitlines()) for path in sources) <= 200
    assert not any("modalities" in path.read_text() for path in sources), "the core is all that it takes"


def test_point_clouds_are_what_they_say(tmp_path: Path):
    """Its own tests."""
    noted(tmp_path / "notes", "polyguide-point-cloud", {"point_cloud": "point_cloud:build"})
    python("-m", "pytest", "-p", "no:cacheprovider", str(EXAMPLE / "tests"), path=(EXAMPLE, tmp_path / "notes"), cwd=tmp_path)
