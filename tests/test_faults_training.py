"""Trainings that are killed, run twice at once, or find the disk full or damaged: the short form of what is in tests/faults."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file, save_file

import guidance
from guidance import Condition, UserError, checkpoint
from guidance.cli import run
from guidance.commands.training import beginning
from guidance.train import train
from guidance.trainer import Trainer
from guidance.upkeep import LOCK, alone, worker_errors

sys.path.insert(0, str(Path(__file__).parent / "faults"))
import checkpoint_bytes
import training_kills

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "threads=1", "trainer.batch_size=4", "trainer.decay=constant"]
TINY += ["trainer.save_every=2", "trainer.log_every=1"]


@pytest.fixture(scope="module", autouse=True)
def as_for_users() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(["train", *TINY, "trainer.steps=4", f"out={out}"]) == 0
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that has failed said, and nothing else but a progress bar."""
    *bar, line = capsys.readouterr().err.strip().splitlines()
    assert all(other.strip().startswith(("train:", "")) and "Error" not in other for other in bar)
    assert line.startswith("polyguide: ")
    return line


# The beginning


def elsewhere(code: str) -> None:
    """Python in a process of its own, which kills itself."""
    process = training_kills.server().Process(target=exec, args=(f"import os, signal\nfrom unittest import mock\n{code}", {}))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def stopped_at(where: str, out: Path, arguments: list[str]) -> None:
    """The command, killed at the first call of a function."""
    code = f"mock.patch({where!r}, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
    elsewhere(code + f"from guidance.cli import main; main({['train', *arguments, f'out={out}']!r})")


@pytest.mark.parametrize(
    "where",
    ["guidance.checkpoint.save_start", "guidance.checkpoint.write_config", "guidance.train.update_average", "guidance.proper.write"],
)
def test_a_training_that_is_killed_goes_on_from_where_it_was(whole: Path, tmp_path: Path, where: str):
    """Before the start is there, between it and the config, within the first step, and after the last."""
    out, arguments = tmp_path / "run", [*TINY, "trainer.steps=4"]
    stopped_at(where, out, arguments)
    assert (out / LOCK).exists() and checkpoint.has_start(out) == (where not in ("guidance.checkpoint.save_start", "guidance.proper.write"))
    again = ["train", *arguments, "resume=true", f"out={out}"]
    assert run(again) == 0
    assert {name: content for name, content in files(out).items() if name not in ("command.txt", "timings.jsonl")} == {
        name: content for name, content in files(whole).items() if name not in ("command.txt", "timings.jsonl")
    }
    assert not checkpoint.has_start(out) and not (out / LOCK).exists()


def test_it_goes_on_from_the_weights_that_it_began_from(monkeypatch: pytest.MonkeyPatch, whole: Path, tmp_path: Path):
    """Not from those that the seed would make anew: they may have come from elsewhere."""
    out = tmp_path / "run"
    save = checkpoint.save_start

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("guidance.train.train", full)
        assert run(["train", *TINY, "trainer.steps=1", "trainer.lr=0", f"out={out}"]) == 2
    start = out / "checkpoints" / "start"
    tensors = {name: tensor + 1 for name, tensor in load_file(start / "model.safetensors").items()}
    save(out, tensors, {"seed": 0, "items": 1442})
    with pytest.raises(UserError, match=r"untrained.*but that of step 0; train it with: polyguide train out=.* resume=true"):
        guidance.load(out)
    assert run(["sample", f"run={out}", "out=s"]) == 2 and not Path("s").exists()
    assert run(["train", f"out={out}", "resume=true"]) == 0
    for which in ("model", "average"):
        found = load_file(checkpoint.latest(out) / f"{which}.safetensors")
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name], tensor)


def test_a_start_that_is_damaged_is_not_begun_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("guidance.train.train", lambda *_, **__: (_ for _ in ()).throw(UserError("no")))
        assert run(["train", *TINY, "trainer.steps=2", f"out={out}"]) == 2
    path = out / "checkpoints" / "start" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert run(["train", f"out={out}", "resume=true"]) == 2
    said = one_line(capsys)
    assert str(path) in said and "not as it was written" in said and "train anew" in said


def test_a_beginning_that_fails_leaves_nothing_and_what_was_there_before_it_may_be_cleared_is_kept(whole: Path, tmp_path: Path, copy: Path):
    with alone(tmp_path / "new"), pytest.raises(OSError, match="full"), beginning(tmp_path / "new", False):
        checkpoint.save_start(tmp_path / "new", {}, {})
        raise OSError(errno.ENOSPC, "full")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match="already holds a run"), beginning(copy, False):  # that came while the data was read
        pass
    assert files(copy) == files(whole)


# Two at once


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("train", ["resume=true", "trainer.steps=6"]),
        ("train", ["resume=true", "trainer.steps=4"]),  # which are done, but perhaps not all that comes after them
        ("train", ["overwrite=true"]),
        ("train-classifier", ["overwrite=true"]),
    ],
)
def test_a_second_training_in_the_same_folder_is_refused(
    whole: Path, copy: Path, capsys: pytest.CaptureFixture[str], how: list[str], command: str
):
    before = files(copy)
    more = TINY if command == "train" else [f"run={whole}", "trainer.steps=1", "trainer.batch_size=2"]
    with alone(copy):
        assert run([command, *more, *how, f"out={copy}"]) == 2
        assert f"out={copy}: another training is at work there" in one_line(capsys)
        assert files(copy) == before | {LOCK: b""}
    assert files(copy) == before
    assert run([command, *more, *how, f"out={copy}"]) == 0


def test_the_lock_is_held_while_it_trains_and_the_system_takes_it_from_a_process_that_is_killed(tmp_path: Path):
    process = training_kills.server().Process(
        target=training_kills.command, args=(tmp_path / "run", ["trainer.steps=1000000"], tmp_path / "said")
    )
    process.start()
    while not checkpoint.saved_steps(tmp_path / "run"):
        assert process.is_alive()
    with pytest.raises(UserError, match="another training"), alone(tmp_path / "run"):
        pass
    process.kill()
    process.join()
    with alone(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()


def test_a_file_system_without_locks_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def none(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", none)
    ran = False
    with pytest.warns(UserWarning, match="no locks"), alone(tmp_path):
        ran = True
    assert ran


def test_who_leaves_does_not_take_away_the_lock_of_who_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file is removed; were it removed after it is released, it would be the next one's."""
    release = FileLock.release
    with contextlib.ExitStack() as others:

        def released(lock: Any, *more: Any, **named: Any) -> None:
            release(lock, *more, **named)
            monkeypatch.undo()
            others.enter_context(alone(tmp_path))

        monkeypatch.setattr(FileLock, "release", released)
        with alone(tmp_path):
            pass
        with pytest.raises(UserError, match="another training"), alone(tmp_path):
            pass
    assert not (tmp_path / LOCK).exists()


# The same, twice


def test_the_same_training_twice_logs_the_same(whole: Path, tmp_path: Path):
    assert run(["train", *TINY, "trainer.steps=4", f"out={tmp_path / 'again'}"]) == 0
    ours, theirs = files(tmp_path / "again"), files(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name] and name != "command.txt"] == ["timings.jsonl"]
    lines = [json.loads(line) for line in theirs["timings.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["samples_per_second"] > 0 for line in lines)
    assert all(json.loads(line).keys() == {"step", "loss", "lr"} for line in theirs["metrics.jsonl"].splitlines())


@pytest.mark.parametrize("rest", [b'{"step": 3, "lo', b"\xff\xfe\n", b"[1]\n5\nnull\n", b'{"step": "x"}\n', b"[" * 5000 + b"\n"])
def test_a_log_that_was_cut_short_goes_on(whole: Path, copy: Path, rest: bytes):
    shutil.rmtree(copy / "checkpoints" / "step-00000004")
    for name in ("metrics.jsonl", "timings.jsonl"):
        path = copy / name
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]) + rest)
    assert run(["train", f"out={copy}", "resume=true"]) == 0
    assert (copy / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert len((copy / "timings.jsonl").read_bytes().splitlines()) == 4


# Checksums


def test_every_file_is_in_a_list_of_checksums(whole: Path):
    import hashlib

    def digest(path: Path) -> str:
        return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]

    listed = json.loads((whole / "checksums.json").read_text())
    assert listed == {name: digest(whole / name) for name in ("config.yaml", "moments.safetensors")}
    for folder in (whole / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        assert state["files"] == {path.name: digest(path) for path in folder.glob("*.safetensors")} and len(state["files"]) == 3
        seal = state.pop("sha256")
        assert hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest() == seal


def test_a_config_that_was_changed_is_refused_until_it_is_accepted(copy: Path, capsys: pytest.CaptureFixture[str]):
    path = copy / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    for command in (["sample", f"run={copy}", "out=s"], ["evaluate", f"run={copy}"], ["train", f"out={copy}", "resume=true"]):
        assert run(command) == 2
        said = one_line(capsys)
        assert f"{path} is cut short or damaged: it is not as it was written" in said and "model.SETTING=VALUE" in said
        assert f"delete its entry in {copy / 'checksums.json'}" in said
    sums = json.loads((copy / "checksums.json").read_text())
    del sums["config.yaml"]
    (copy / "checksums.json").write_text(json.dumps(sums))
    assert guidance.load(copy).config["seed"] == 1
    (copy / "checksums.json").unlink()
    assert guidance.load(copy).config["seed"] == 1
    assert guidance.load(copy, settings={"schedule.logsnr_max": 9.0}).config["schedule"]["logsnr_max"] == 9.0


def test_a_run_of_an_older_version_loads_and_goes_on(whole: Path, copy: Path):
    (copy / "checksums.json").unlink()
    for folder in (copy / "checkpoints").iterdir():
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(json.dumps({key: state[key] for key in ("step", "seed", "items")}))
    entries = [json.loads(a) | json.loads(b) for a, b in zip((copy / "metrics.jsonl").open(), (copy / "timings.jsonl").open(), strict=True)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (copy / "timings.jsonl").unlink()
    assert torch.equal(guidance.load(copy).sample(2, steps=2), guidance.load(whole).sample(2, steps=2))
    seconds = sum(4 / entry["samples_per_second"] for entry in entries)
    guidance.load(copy).save_pretrained("model")
    assert f"in {guidance.card.duration(seconds)};" in Path("model/README.md").read_text()
    assert run(["train", f"out={copy}", "resume=true", "trainer.steps=6"]) == 0
    assert "config.yaml" in json.loads((copy / "checksums.json").read_text())


def test_a_damaged_checkpoint_says_which_and_how_to_go_on(whole: Path, copy: Path, capsys: pytest.CaptureFixture[str]):
    newest = copy / "checkpoints" / "step-00000004"
    path = newest / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    before = files(copy)
    assert run(["train", f"out={copy}", "resume=true", "trainer.steps=6"]) == 2
    said = one_line(capsys)
    assert f"{path} is cut short or damaged: it is not as it was written" in said and f"delete {newest} to go on from step 2" in said
    assert files(copy) == before
    shutil.rmtree(newest)
    assert run(["train", f"out={copy}", "resume=true", "trainer.steps=4"]) == 0
    assert files(copy / "checkpoints") == files(whole / "checkpoints")


def test_a_saved_model_is_checked_too(whole: Path, tmp_path: Path):
    guidance.load(whole).save_pretrained("model")
    assert json.loads(Path("model/checksums.json").read_text()).keys() == {"config.yaml", "model.safetensors", "moments.safetensors"}
    weights = load_file("model/model.safetensors")
    content = bytearray(Path("model/model.safetensors").read_bytes())
    content[-1] ^= 1
    Path("model/model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model/model.safetensors is cut short or damaged.*or delete its entry in model/checksums.json"):
        guidance.load("model")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, "model/model.safetensors")
    with pytest.raises(UserError, match="not as it was written"):
        guidance.load("model")
    Path("model/checksums.json").unlink()
    guidance.load("model")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"config.yaml": "no"}', b'{"config.yaml": 3}', b"{" * 9999, b"\xff"])
def test_checksums_that_cannot_be_read(copy: Path, content: bytes):
    (copy / "checksums.json").write_bytes(content)
    with pytest.raises(UserError, match=r"checksums.json is cut short or damaged.*delete it to accept"):
        guidance.load(copy)


def test_what_is_written_again_is_listed_last(monkeypatch: pytest.MonkeyPatch, copy: Path):
    """A kill between a file and its checksum leaves a run that can be used."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checksums", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write_config(copy, {**checkpoint.read_config(copy), "seed": 7})
    assert checkpoint.read_config(copy)["seed"] == 0
    write, calls = checkpoint.write_checksums, []

    def second(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checksums", second)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write_config(copy, {**checkpoint.read_config(copy), "seed": 7})
    assert checkpoint.read_config(copy)["seed"] == 7


# Bytes


def test_no_damaged_byte_goes_unseen(tmp_path: Path):
    """Loading and the check before resuming, of a run with moments: 200 cases with whole commands are a script."""
    place = tmp_path / "bytes"
    place.mkdir()
    run_folder = checkpoint_bytes.trained(place, "image")
    wanted = guidance.load(run_folder).sample(2, {"digit": 3}, steps=2)
    newest, refused = checkpoint.latest(run_folder).name, 0
    for name, _, content in checkpoint_bytes.cases(run_folder, 40, seed=1):
        path, before = run_folder / name, (run_folder / name).read_bytes()
        path.write_bytes(content)
        for what in ("sample", "resume"):
            needed = checkpoint_bytes.must_refuse(what, name, newest, content, before)
            try:
                if what == "sample":
                    assert torch.equal(guidance.load(run_folder).sample(2, {"digit": 3}, steps=2), wanted) and not needed, name
                else:
                    checkpoint.read_config(run_folder)
                    checkpoint.check(checkpoint.latest(run_folder))
                    assert not needed, name
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and (path.name in str(error) or name == "checksums.json"), (name, error)
        path.write_bytes(before)
    assert refused > 20


# The disk


def test_a_disk_that_is_full_at_any_write(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Whichever flush to the disk fails: one line, status 2, what was complete stays, and resume=true ends as undisturbed."""
    flush = os.fsync
    arguments = ["train", *TINY, "trainer.steps=4", "resume=true"]
    for k in range(1, 60, 7):
        out, count = tmp_path / f"{k}", 0

        def full(number: int, k: int = k) -> None:
            nonlocal count
            count += 1
            if count == k:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(number)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            code = run([*arguments, f"out={out}"])
        if code == 0:
            assert count < k
            break
        assert code == 2 and "the disk is full" in one_line(capsys)
        assert not list(out.rglob("*.partial")) and not (out / LOCK).exists()
        for step in checkpoint.saved_steps(out):
            assert checkpoint.check(checkpoint.checkpoint_folder(out, step)) == step
        assert run([*arguments, f"out={out}"]) == 0
        capsys.readouterr()
        assert files(out / "checkpoints") == files(whole / "checkpoints")
        assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert k > 20


@pytest.mark.parametrize("place", ["new", "copy"])
def test_a_folder_that_cannot_be_written(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
):
    """As root may write everywhere, the system's refusal is put in its place."""
    before, opened, made = files(tmp_path), os.open, Path.mkdir

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *more, **named)

    def no_folder(path: Path, *more: Any, **named: Any) -> None:
        if not path.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        made(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", no_folder)
    how = "resume=true" if place == "copy" else "overwrite=true"
    assert run(["train", *TINY, "trainer.steps=6", how, f"out={tmp_path / place}"]) == 2
    monkeypatch.undo()
    assert f"polyguide: Read-only file system at {tmp_path / place}" in one_line(capsys)
    assert files(tmp_path) == before


# Workers of the data loader


class Items:
    """A split whose items are read by another process, in which something happens at the sixth call: two ahead of the step."""

    def __init__(self, happens: Callable[[], None]):
        self.happens, self.calls = happens, 0

    def __len__(self) -> int:
        return 50

    def __getitems__(self, index: list[int]) -> tuple[Any, Condition]:
        self.calls += 1
        if self.calls == 6:
            self.happens()
        rows = torch.tensor(index)
        return rows[:, None] / 50.0, Condition()


class Line(torch.nn.Module):
    """A part to be trained, whose loss is that of a line."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = torch.nn.ModuleDict({"network": torch.nn.Linear(1, 1)})

    def forward(self, raw: Any, condition: Condition, at: Any) -> torch.Tensor:
        return (self.trained["network"](raw) - 1)[:, 0] ** 2


def own_kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path):
    trainer = Trainer(steps=50, batch_size=4, save_every=2, log_every=1, keep=1, workers=1)
    torch.manual_seed(0)
    said = r"^a DataLoader worker \(pid\(?s?\)? \d+\) .*; the checkpoint of step [24] is kept, and resume=true goes on from it; .*$"
    with pytest.raises(UserError, match=said):
        train(Line(), Items(own_kill), trainer, tmp_path, progress=False)
    assert checkpoint.check(checkpoint.latest(tmp_path)) in (2, 4)
    trainer = Trainer(steps=8, batch_size=4, save_every=2, log_every=1, keep=1)
    train(Line(), Items(lambda: None), trainer, tmp_path, resume=True, progress=False)
    assert checkpoint.saved_steps(tmp_path) == [8]


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "pets/cat/3.png"), RuntimeError("pets/cat/3.png: no")])
def test_an_error_in_a_worker_is_its_last_line(tmp_path: Path, error: Exception):
    """As torch hands it over: with the worker's whole traceback in its text."""
    from torch._utils import ExceptionWrapper

    with pytest.raises(UserError, match=r"^\w+Error: .*pets/cat/3.png.*$") as said, worker_errors(tmp_path):
        try:
            raise error
        except Exception:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()
    assert "\n" not in str(said.value)


class Leaving:
    """A process that is about to die: its ends are closed, and that it is dead is known once it was waited for."""

    pid, exitcode = 77, None

    def __init__(self) -> None:
        self.sentinel, other = os.pipe()
        os.close(other)

    def join(self, timeout: float | None = None) -> None:
        self.exitcode = -9


def test_what_comes_of_a_connection_to_a_worker_that_is_dying_is_the_same_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    worker = Leaving()
    monkeypatch.setattr("multiprocessing.active_children", lambda: [worker])
    with pytest.raises(UserError, match=r"a DataLoader worker \(pid 77\) ended with -9"), worker_errors(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    os.close(worker.sentinel)


def test_other_errors_pass(tmp_path: Path):
    for error in (RuntimeError("mat1 and mat2"), UserError("x"), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)) as found, worker_errors(tmp_path):
            raise error
        assert found.value is error


# Saving a model over one that is there


def test_a_kill_between_two_renames_loses_no_saved_model(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    guidance.load(whole, step=2).save_pretrained("model")
    rename, killed = Path.rename, tmp_path.with_name(f"{tmp_path.name}-killed")

    def seen(path: Path, target: Path) -> Path:
        if path.name == "new":
            shutil.copytree(tmp_path, killed)  # what a kill would leave
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", seen)
        guidance.load(whole).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(killed)
    assert not Path("model").exists()
    with pytest.raises(UserError, match=r"there is no such folder; saving it was cut short, and (.*)/new is what was to be there") as said:
        guidance.load("model")
    (left,) = killed.glob(".model.partial-*")
    assert str(left / "new") in str(said.value) or f"{left.name}/new" in str(said.value)
    assert guidance.load(left / "new").step == 4, "whole, where the message says"
    guidance.load(whole, step=2).save_pretrained("model")
    assert guidance.load("model").step == 2 and [path.name for path in killed.iterdir()] == ["model"]


# Kills


def test_kills_at_chosen_places_change_nothing(tmp_path: Path):
    """Four kills of one training: early, twice while something is being written, and at a change of names; the script does fifty."""
    context, said = training_kills.server(), tmp_path / "said.txt"
    arguments = ["trainer.steps=10"]
    assert not training_kills.killed(context, tmp_path / "whole", arguments, None, said)
    out = tmp_path / "run"
    for when in (training_kills.Trigger(changes=3), *[training_kills.Trigger(partial=True)] * 2, training_kills.Trigger(changes=8)):
        assert training_kills.killed(context, out, arguments, when, said)
    assert not training_kills.killed(context, out, arguments, None, said)
    assert training_kills.differences(out, tmp_path / "whole") == []
    assert "Traceback" not in said.read_text()


def test_the_comparison_sees_a_difference(whole: Path, copy: Path):
    assert training_kills.differences(copy, whole) == []
    (copy / "metrics.jsonl").write_text("")
    (copy / "forward.png").unlink()
    config = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    found = training_kills.differences(copy, whole)
    assert sorted(line.split(" ")[0] for line in found) == ["config.yaml", "forward.png", "metrics.jsonl"]
