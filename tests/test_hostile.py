"""Runs that mean harm: nothing in them is executed, nothing is written, and the answer comes at once, in one line, without much memory."""

import json
import os
import pickle
import resource
import shutil
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from safetensors.torch import save

import guidance
from guidance import UserError, checkpoint
from guidance.cli import run

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "threads=1", "trainer.batch_size=4", "trainer.steps=1"]
MEMORY = 200 * 2**20  # that an answer may take, beyond what the process has; what is asked for is a hundred times as much


@pytest.fixture(scope="module", autouse=True)
def as_for_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made")
    assert run(["train", *TINY, f"out={place / 'run'}"]) == 0
    guidance.load(place / "run").save_pretrained(place / "saved")
    return place


@pytest.fixture
def hostile(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run and a saved model, without checksums: who means harm writes fitting ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "saved"):
        shutil.copytree(made / name, tmp_path / name)
        (tmp_path / name / "checksums.json").unlink()
    state = checkpoint.latest(tmp_path / "run") / "state.json"
    state.write_text('{"step": 1}')
    (tmp_path / "secret").write_text("secret")
    return tmp_path


def everything(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.stat().st_size < 10**8}


class Watch:
    """Resident memory while something runs, looked at a thousand times a second."""

    def __enter__(self) -> "Watch":
        self.before = self.most = self.now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over.wait(0.001):
            self.most = max(self.most, self.now())

    def now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    @property
    def grown(self) -> int:
        return self.most - self.before


@pytest.fixture
def refused(hostile: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A run or a saved model is not loaded, with one line, nothing executed or written, and memory small; nor do commands, if asked."""

    def refused(*folders: str, commands: bool = False) -> str:
        said, before = "", everything(hostile)
        asked = [["sample", f"run={folder}", "n=1", "sampler.steps=1", "out=out"] for folder in folders] if commands else []
        asked += [["train", "out=run", "resume=true", "trainer.steps=2"]] if commands and "run" in folders else []
        events: list[str] = []
        capsys.readouterr()
        with Watch() as watch, audited(events):
            for folder in folders:
                with pytest.raises(UserError) as error:
                    guidance.load(folder)
                assert "\n" not in str(error.value)
                said += str(error.value)
            for command in asked:
                assert run(command) == 2, command
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == len(asked) and all(line.startswith("polyguide: ") for line in lines), lines
        assert watch.grown < MEMORY, f"{watch.grown / 2**20:.0f} MiB"
        assert everything(hostile) == before and not Path("out").exists() and events == []
        return said + "".join(lines)

    return refused


class audited:
    """What is executed meanwhile, as the interpreter's own audit events tell."""

    watched: "list[str] | None" = None

    def __init__(self, events: list[str]):
        self.events = events

    def __enter__(self) -> None:
        audited.watched = self.events

    def __exit__(self, *_: object) -> None:
        audited.watched = None


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if audited.watched is not None and event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class"):
        audited.watched.append(f"{event} {arguments!r}")


sys.addaudithook(hook)


class Executed:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def weights(place: Path) -> list[Path]:
    return [place / "saved" / "model.safetensors", checkpoint.latest(place / "run") / "average.safetensors"]


def put(place: Path, content: bytes) -> None:
    """In place of the weights, wherever they are read."""
    for path in weights(place):
        path.write_bytes(content)


def header(tensors: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GIGANTIC = 10 * 2**30
OTHERS = {f"{name}{k}": tensor([4], [0, 16]) for name in ("a", "b") for k in range(50)}


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Executed()),
        pickle.dumps({"network.weight": torch.zeros(2)}),
        struct.pack("<Q", GIGANTIC) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        header({"a": tensor([GIGANTIC // 4], [0, GIGANTIC])}),
        header({"a": tensor([GIGANTIC, GIGANTIC], [0, 16])}, bytes(16)),
        header({"a": tensor([4], [0, 16]), "b": tensor([4], [0, 16])}, bytes(16)),
        header({"a": tensor([4], [0, 16]), "b": tensor([4], [8, 24])}, bytes(24)),
        header({"a": tensor([4], [16, 0])}, bytes(16)),
        header({"a": tensor([-4], [0, 16])}, bytes(16)),
        header({"a": tensor([4], [0, 16], "O")}, bytes(16)),
        header(OTHERS, bytes(16)),
        header({"a": tensor([4], [0, 16])}, bytes(16), 2**20),
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        save({"network.extra": torch.zeros(3)}),
        b"",
        b"PK\x03\x04" + bytes(100),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_weights_that_are_none(hostile: Path, refused: Callable[..., str], content: bytes):
    put(hostile, content)
    said = refused("saved", "run", commands=content[:1] in (b"\x80", b"P") or b"extra" in content)
    assert "model.safetensors" in said and "average.safetensors" in said


def test_ten_gigabytes_of_holes_are_not_read(hostile: Path, refused: Callable[..., str]):
    """A file that takes no room, with a header that fits it, of tensors that the config's model does not have."""
    start = header({"network.first.weight": tensor([GIGANTIC // 4], [0, GIGANTIC])})
    for path in weights(hostile):
        path.write_bytes(start)
        os.truncate(path, len(start) + GIGANTIC)
    assert "does not fit its config" in refused("saved")
    os.truncate(weights(hostile)[1], 0)


def test_weights_that_are_no_file(hostile: Path, refused: Callable[..., str]):
    for path in weights(hostile):
        path.unlink()
        path.symlink_to("/dev/zero")
    refused("run")
    for path in weights(hostile):
        path.unlink()
        path.mkdir()
    refused("run")


def changed(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    for name in ("run", "saved"):
        path = place / name / "config.yaml"
        config = yaml.safe_load(path.read_text())
        change(config)
        path.write_text(yaml.safe_dump(config, sort_keys=False))


CALL = {"_target_": "os.system", "command": "touch executed"}


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(schedule=CALL),
        lambda config: config["network"].update(channels=CALL),
        lambda config: config["network"].update(multipliers=[1, [CALL]]),
        lambda config: config["data"].update(extra={"deep": {"deeper": [{"more": CALL}]}}),
        lambda config: config["modality"].update(codec=[CALL]),
        lambda config: config.update(parameterization={**CALL, "_partial_": True}),
        lambda config: config["network"].update(_target_="guidance.checkpoint.shutil.rmtree", path="."),
        lambda config: config["schedule"].update(_target_="guidance.checkpoint.write_checksums", run=".", sums={}),
        lambda config: config["schedule"].update(_target_="guidance.upkeep.Log", path="hacked", start=0),
    ],
)
def test_calls_in_a_config(hostile: Path, refused: Callable[..., str], change: Callable[[dict[str, Any]], Any]):
    changed(hostile, change)
    said = refused("run", "saved")
    assert "refused" in said or "settings are" in said


def test_commands_refuse_them_too(hostile: Path, refused: Callable[..., str]):
    changed(hostile, lambda config: config["network"].update(multipliers=[1, [CALL]]))
    assert refused("run", "saved", commands=True).count("refused") == 5
    changed(hostile, lambda config: config["network"].update(multipliers=["run:../secret"]))
    assert refused("run", "saved", commands=True).count("names no file of the run") == 5
    (hostile / "run" / "config.yaml").write_text(bomb())
    assert refused("run", commands=True).count("refers to itself, or holds more than") == 3


@pytest.mark.parametrize("sampler", [{**CALL, "steps": 2}, {"_target_": "guidance.sampler.DDIM", "eta": CALL, "steps": 2}])
def test_calls_in_the_sampler(hostile: Path, capsys: pytest.CaptureFixture[str], sampler: dict[str, Any]):
    changed(hostile, lambda config: config.update(sampler=sampler))
    events: list[str] = []
    for name in ("run", "saved"):
        with audited(events):
            assert run(["sample", f"run={name}", "n=1", "out=out"]) == 2
            with pytest.raises(UserError, match="refused"):
                guidance.load(name).sample(1)
    assert not Path("out").exists() and not Path("executed").exists() and events == []
    assert all("refused" in line for line in capsys.readouterr().err.strip().splitlines())


@pytest.mark.parametrize("name", ["../secret", "../../secret", "/etc/passwd", "..", ".", "", "a/../../secret", "se\0cret", "x" * 5000])
def test_files_outside_of_the_run(hostile: Path, refused: Callable[..., str], name: str):
    changed(hostile, lambda config: config["modality"].update(more=[{"file": f"run:{name}"}]))
    said = refused("run", "saved")
    assert "names no file of the run" in said or "settings are" in said or len(name) == 5000
    with pytest.raises(UserError, match=r"names no file|cannot be read"):
        checkpoint.own_contents({"file": f"run:{name}"}, hostile / "run")
    for wrong in (hostile / "run", hostile / "saved"):
        (wrong / "checksums.json").write_text(json.dumps({name: "0" * 64}))
    if name and len(name) < 5000:
        changed(hostile, lambda config: config["modality"].pop("more"))
        assert "checksums.json is cut short or damaged" in refused("run", "saved")


def test_steps_outside_of_the_run(hostile: Path):
    run_folder = hostile / "run"
    for name in ("step-../../secret", "step-٣", "step-1", "step--1", "step-0x1", "step-99999999999999999999", f"step-{'9' * 200}"):
        (run_folder / "checkpoints" / name.replace("/", "_")).mkdir()
    assert checkpoint.saved_steps(run_folder)[0] == 1
    assert not [step for step in checkpoint.saved_steps(run_folder) if step < 1]


def bomb(levels: int = 9) -> str:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for k in range(1, levels):
        text += f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n"
    return text


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        bomb(30),
        "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 12)),
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a: " + "[" * 100_000 + "]" * 100_000 + "\n",
        "- " * 5000 + "a\n",
        "a: [" + "x, " * 500_000 + "x]\n",
        "a: " + "{b: " * 5000 + "}" * 5000 + "\n",
        "a: !!python/object/apply:os.system ['touch executed']\n",
        "a: !!python/object/new:os.system ['touch executed']\n",
        "a: !!python/name:os.system ''\n",
        "a: !!python/module:antigravity ''\n",
        "a: !include /etc/passwd\n",
        "a: 2020-99-99\n",
        "a: !!int ''\n",
        "? [a]\n: b\n",
        "a: '\\xff\n",
        "%YAML 9.9\n---\na: 1\n",
        "--- a\n--- b\n",
    ],
    ids=lambda text: text[:20],
)
def test_configs_that_explode(hostile: Path, refused: Callable[..., str], text: str):
    for name in ("run", "saved"):
        path = hostile / name / "config.yaml"
        path.write_text((path.read_text() if not text.startswith(("%", "---")) else "") + text)
    assert "config.yaml" in refused("run", "saved")


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"step": ' + b"9" * 10_000 + b"}", b'{"step": 1, "files": 3}', b'{"step": 1, "files": {}}']
)
def test_states_that_are_none(hostile: Path, refused: Callable[..., str], content: bytes):
    (checkpoint.latest(hostile / "run") / "state.json").write_bytes(content)
    assert "state.json is missing, cut short or damaged" in refused("run")


def test_a_config_may_name_a_part_twice(hostile: Path):
    """What YAML writes where one object is in two places is no bomb."""
    shared = {"deep": [1, 2, 3]}
    text = yaml.safe_dump({"modality": {}, "one": shared, "two": shared})
    (hostile / "run" / "config.yaml").write_text(text)
    assert "&id001" in text and checkpoint.read_config(hostile / "run") == {"modality": {}, "one": shared, "two": shared}
