"""Runs the code blocks of a page: Python in one namespace, commands in one folder, with settings that make minutes seconds.

A page's commands run as written, but for what `cheap` changes: the length of a training, the size of its network, the number of
samples, scales and sampler steps. `polyguide` is a shim, first on the PATH, that hands each command to a server (`serve`); that
has everything imported, and forks for each. `pip install` installs folders of the page's own (plug-ins) into the page's folder, and
only checks whatever else it is told (files, extras and pins exist); `make` is a dry run, and `pytest` only collects. Data sets that
would be downloaded are small made-up ones in the cache. There is no network.
"""

import importlib
import json
import linecache
import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

COMMANDS = ("console", "bash")
NOT_RUN = ("text", "yaml")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for none), its text, and the line of the page at which the text begins."""

    language: str
    text: str
    line: int


class Broken(AssertionError):
    """A block that does not do what it should; the message names the page and the line."""


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of Markdown, also those that are indented (in lists)."""
    opened: tuple[str, str, int] | None = None
    held: list[str] = []
    for number, line in enumerate(page.splitlines(), start=1):
        fence = re.match(r"\s*(`{3,})\s*([\w-]*)", line)
        if opened is None and fence:
            opened, held = (fence[1], fence[2], number + 1), []
        elif opened is not None and line.strip() == opened[0]:
            indent = min((len(row) - len(row.lstrip()) for row in held if row.strip()), default=0)
            yield Block(opened[1], "".join(row[indent:] + "\n" for row in held), opened[2])
            opened = None
        else:
            held.append(line)
    if opened is not None:
        raise Broken(f"line {opened[2] - 1}: a fence is not closed")


def script(text: str) -> str:
    """The commands of a console block, each on the line where it stands: where some lines begin with "$ " the others are output.

    ``python -m pytest`` is the shell's pytest."""
    text = text.replace("python -m pytest", "pytest")
    rows = text.splitlines()
    if not any(row.startswith("$ ") for row in rows):
        return text
    made, going_on = [], False
    for row in rows:
        command = row.removeprefix("$ ") if row.startswith("$ ") or going_on else ""
        going_on = command.endswith("\\")
        made.append(command)
    return "\n".join(made) + "\n"


# What makes a command cheap

ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "layer_types": "[full_attention]"}
TINY = {
    "image": ["network.channels=8", "network.multipliers=[1]", "network.blocks=1"],
    "audio": ["network.channels=8", "network.layers=2", "trainer.precision=no"],
    "text": [*(f"network.encoder.{name}={of}" for name, of in ENCODER.items()), "modality.codec.width=8", "trainer.precision=no"],
}
VARIANTS = "+experiment.variants={a: {joint: 0.1, each: 0.0}, b: {joint: 0.1, each: 0.2}}"
TINY_EXPERIMENT = {
    "tradeoff": ["experiment.scales=[0,1,2]"],
    "inverse": ["experiment.scales=[-1,0,1]", "experiment.ordered_scales=[-1,0,1]"],
    "compose": ["experiment.weights=[-1,1]", "experiment.scales=[1]"],
    "steps": ["experiment.scales=[1]", "experiment.steps=[1,2]"],
    "dropout": ["experiment.scales=[1,2]", "experiment.steps=2", "~experiment.variants", VARIANTS],
}
STEPS = 1000  # of a training, that one stands for


def value(arguments: Sequence[str], key: str, default: str = "") -> str:
    return next((a.partition("=")[2] for a in reversed(arguments) if a.startswith(f"{key}=")), default)


def cheap(arguments: Sequence[str]) -> list[str]:
    """The command with cheaper settings; what it says beside these is kept."""
    if not arguments or "--help" in arguments or "--cfg" in arguments:
        return list(arguments)
    command, *given = arguments
    changes: list[str] = []
    if command == "train":
        recipe = value(given, "recipe")
        modality = value(given, "modality", "text" if recipe.startswith("text") else "audio" if recipe in ("fsdd", "diffwave") else "image")
        going_on = value(given, "resume") == "true" and Path(value(given, "out"), "config.yaml").is_file()
        if not going_on:
            changes = [*TINY.get(modality, []), "trainer.batch_size=4"]
        if steps := value(given, "trainer.steps", "" if going_on else "2000"):
            changes.append(f"trainer.steps={-(-int(steps) // STEPS)}")
    elif command == "demo":
        steps = ["data=digits", *TINY["image"], "trainer.batch_size=4", "trainer.steps=2"]
        few = ["n=20", "sampler.steps=1"]
        each = ",".join(f"{name}:{json.dumps([*few, *TINY_EXPERIMENT[name]])}" for name in ("tradeoff", "inverse"))
        return [command, *given, f"each.image.train={json.dumps(steps)}", f"each.image.experiments={{{each}}}"]
    elif command == "cost":
        changes = ["sampler.steps=2"]
    elif command == "train-classifier":
        changes = ["trainer.steps=2", "trainer.batch_size=4"]
    elif command == "exactness":
        changes = ["n=80", "steps=2", "dims=[1]"]
    elif command in ("sample", "evaluate", "experiment"):
        changes = ["sampler.steps=1"]
        changes += [f"n={min(int(value(given, 'n', '4')), 16)}"] if command == "sample" else ["n=20"]
        if value(given, "sampler") == "feynman_kac":
            changes.append("sampler.particles=1")
        if command == "evaluate":
            changes.append("scales=[-1,1]")
        if command == "experiment":
            changes += TINY_EXPERIMENT.get(value(given, "experiment"), [])
        if value(given, "hydra/launcher"):
            changes.append("hydra.launcher.n_jobs=1")  # in this process
    else:
        return list(arguments)
    changed = {change.partition("=")[0] for change in changes}
    return [command, *(a for a in given if a.partition("=")[0] not in changed), *changes, "threads=1"]


# The server of commands

WARM = (
    *("accelerate", "hydra", "librosa", "matplotlib.pyplot", "sentencepiece", "sklearn.datasets", "soundfile", "torchmetrics.image.fid"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.modernbert.modeling_modernbert"),
)
"""What commands import inside their functions."""


def hasten(patch: Any) -> None:
    """Judges and language models that are hardly trained, on little data; ``patch``: pytest's MonkeyPatch."""
    import torch

    from guidance import judge
    from modalities.text.language import train_language_model

    train_judge = judge.train_judge  # which plug-ins import, too

    def few(*given: Any, **settings: Any) -> Any:
        return train_judge(*given, **(settings | {"steps": 3, "batch": 8}))

    for module in ("guidance.judge", *(f"modalities.{name}.metrics" for name in ("image", "audio", "text"))):
        patch.setattr(f"{module}.train_judge", few)
    patch.setattr("modalities.audio.metrics.pitch", lambda wave, rate, low, high: torch.full((len(wave),), low))
    patch.setattr(
        "modalities.text.metrics.train_language_model", lambda data, cache, epochs, layers: train_language_model(data, cache, 1, batch=16)
    )
    patch.setattr(judge.read, "__defaults__", (None, 60, 512))


def serve(address: str) -> None:
    """Runs `polyguide`, or collects tests, for whoever asks at a socket, in a fork of this process, which has everything imported."""
    import pytest
    import torch
    from experiment_fakes import sketched

    import guidance.commands
    import guidance.experiment.figures
    import guidance.experiment.report
    from modalities import stubs

    torch.set_num_threads(1)
    stubs.transformers()
    for name in WARM:
        importlib.import_module(name)
    hasten(pytest.MonkeyPatch())
    guidance.experiment.figures.write = sketched

    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    print("ready", flush=True)
    while True:
        asked, _ = server.accept()
        if child := os.fork():
            asked.close()
            os.waitpid(child, 0)  # a page's commands come one after the other
            continue
        code = 1
        try:
            server.close()
            message, streams, _, _ = socket.recv_fds(asked, 2**20, 3)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            order = json.loads(message)
            os.chdir(order["folder"])
            os.environ.clear()
            os.environ.update(order["environment"])
            sys.argv = ["polyguide"]
            sys.path.insert(0, str(Path(INSTALLED).absolute()))
            if order["program"] == "pytest":
                code = int(pytest.main(["--collect-only", "-q", *order["arguments"]]))
            else:
                from guidance.cli import run

                code = run(cheap(order["arguments"]))
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            asked.sendall(bytes([code]))
            os._exit(0)


COMMAND = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
order = {{"program": os.path.basename(sys.argv[0]), "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(order).encode()], [0, 1, 2])
sys.exit((server.recv(1) or b"\\1")[0])
"""
PIP = """#!{python}
import sys
sys.path.insert(0, {tests!r})
import docs_runner
docs_runner.pip(sys.argv[1:])
"""
MAKE = """#!/bin/sh
exec {make} -n -C {root} "$@"
"""


def pip(arguments: Sequence[str]) -> None:
    """`pip install`: a folder is installed, without what it needs; all else has to be in this project, or pinned by it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {
        re.sub(r"[-_.]+", "-", row.split("==")[0]).lower() for row in (ROOT / "constraints.txt").read_text().splitlines() if "==" in row
    }
    if not arguments or arguments[0] != "install":
        sys.exit(f"pip {' '.join(arguments)}: only `pip install` is known here")
    rest = iter(arguments[1:])
    for argument in rest:
        if argument in ("-c", "-r"):
            if not (ROOT / next(rest)).is_file():
                sys.exit(f"pip {argument}: there is no such file")
            continue
        if argument in ("-e", "--upgrade", "-U", "--no-deps"):
            continue
        name, extras = re.fullmatch(r"([\w./-]+?)(?:\[([\w, -]+)\])?", argument).groups()  # type: ignore[union-attr]
        if name != "." and Path(name, "pyproject.toml").is_file():
            command = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
            subprocess.run([sys.executable, "-m", "pip", *command, "--target", INSTALLED, f"./{name}"], check=True)
            continue
        own = name in (".", project["name"])
        unknown = (
            {extra.strip() for extra in (extras or "").split(",") if extra} - project["optional-dependencies"].keys() if own else set()
        )
        if unknown:
            sys.exit(f"pip: {project['name']} has no extra {min(unknown)}")
        if not own and re.sub(r"[-_.]+", "-", name).lower() not in pins:
            sys.exit(f"pip: {name} is not pinned by constraints.txt")


INSTALLED = ".installed"
"""Where `pip install FOLDER` installs, in a page's folder."""


class Shell:
    """Where pages run: the shims, the server, the cache, and the files that pages find in their folder."""

    def __init__(self, folder: Path, address: str):
        self.files, self.shims, self.cache = folder / "files", folder / "shims", folder / "cache"
        self.shims.mkdir(parents=True)
        self.environment = {
            **{name: held for name, held in os.environ.items() if not name.startswith(("POLYGUIDE_", "HF_", "WANDB_", "PYTEST_"))},
            "PATH": os.pathsep.join([str(self.shims), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": INSTALLED,
            "POLYGUIDE_CACHE": str(self.cache),
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "agg",
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),  # where nobody answers
        }
        make = subprocess.run(["which", "make"], capture_output=True, text=True, check=False).stdout.strip() or "make"
        known = {"python": sys.executable, "address": address, "tests": str(ROOT / "tests"), "make": make, "root": shlex.quote(str(ROOT))}
        for name, text in {"polyguide": COMMAND, "pytest": COMMAND, "pip": PIP, "make": MAKE}.items():
            shim = self.shims / name
            shim.write_text(text.format(**known))
            shim.chmod(0o755)
        self.server = subprocess.Popen(
            [sys.executable, __file__, address], stdout=subprocess.PIPE, text=True, env=self.environment, cwd=ROOT / "tests"
        )

    def wait(self) -> None:
        assert self.server.stdout is not None
        if self.server.stdout.readline() != "ready\n":
            raise RuntimeError("the server of commands did not start")

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()

    def run(self, text: str, folder: Path) -> tuple[int, int, str]:
        """The exit status of commands, the line of the one that failed, and what was said."""
        path = folder / ".commands"
        path.write_text(f"trap 'echo $LINENO > .failed' ERR\n{text}")
        (folder / ".failed").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-eE", "-o", "pipefail", path.name],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        failed = (folder / ".failed").read_text().split() if (folder / ".failed").exists() else ["2"]
        return done.returncode, int(failed[0]) - 1, done.stdout


def run_page(
    name: str,
    page: str,
    shell: Shell,
    *,
    before: Mapping[str, str] | None = None,
    change: Mapping[str, str] | None = None,
) -> int:
    """Run a page's blocks in the current folder, in order; the number of blocks that were run.

    Args:
        before: text that a block contains -> commands to be run before it, for what the page takes for granted.
        change: text in blocks of commands -> what is run in its place.

    Raises: Broken, which names the page and the line.
    """
    import yaml

    folder, namespace, done = Path.cwd(), {"__name__": "__page__"}, 0
    for block in blocks(page):
        where, language = f"{name}:{block.line}", block.language
        if language not in ("python", *COMMANDS, *NOT_RUN):
            raise Broken(f"{name}:{block.line - 1}: a fence of the language {language!r}; write one of python, console, bash, yaml, text")
        for text, commands in (before or {}).items():
            if text in block.text and language not in NOT_RUN:
                code, _, said = shell.run(commands, folder)
                if code:
                    raise Broken(f"{where}: what comes before it: {said}")
        if language == "yaml":
            try:
                list(yaml.safe_load_all(block.text))
            except yaml.YAMLError as error:
                raise Broken(f"{where}: this is no YAML: {error}") from None
        elif language in COMMANDS:
            text = script(block.text)
            for old, new in (change or {}).items():
                text = text.replace(old, new)
            code, line, said = shell.run(text, folder)
            if code:
                raise Broken(f"{name}:{block.line + line - 1}: exit status {code}\n{block.text.splitlines()[line - 1]}\n{said}")
            done += 1
        elif language == "python":
            source = "\n" * (block.line - 1) + block.text  # so that a traceback's lines are the page's
            linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
            try:
                exec(compile(source, name, "exec"), namespace)
            except Exception as error:
                frames = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
                line = frames[0] if frames else getattr(error, "lineno", block.line)  # a SyntaxError has no frame
                raise Broken(f"{name}:{line}: {type(error).__name__}: {error}") from error
            done += 1
    return done


# What pages find


def make_files(folder: Path) -> None:
    """What a reader has: pictures and sounds in a folder a class, sentences, a recording, a published checkpoint."""
    import numpy as np
    import soundfile
    from PIL import Image

    draw = np.random.default_rng(0)
    for c, kind in enumerate(("cats", "dogs")):
        for k in range(10):
            (folder / "my" / "pictures" / kind).mkdir(parents=True, exist_ok=True)
            (folder / "my" / "sounds" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 128, (40, 36, 3), dtype=np.uint8) + 127 * c).save(
                folder / "my" / "pictures" / kind / f"{k}.png"
            )
            tone = 0.3 * np.sin(2 * np.pi * (300 + 400 * c + 20 * k) * np.arange(16384) / 16000)
            soundfile.write(folder / "my" / "sounds" / kind / f"{k}.wav", tone, 16000)
    soundfile.write(folder / "clip.wav", 0.3 * np.sin(2 * np.pi * 440 * np.arange(4096) / 8000), 8000)
    rows = [f"The {what} was {how} {when}.,{stars}" for when in ("today", "again") for what in ("soup", "tea") for how, stars in OPINIONS]
    (folder / "mine.csv").write_text("\n".join(["review,stars", *rows]) + "\n")
    diffwave(folder / "diffwave-ljspeech.pt")


OPINIONS = (("good", 5), ("very good", 5), ("bad", 1), ("not bad", 3), ("fine", 4), ("cold", 2))


def diffwave(path: Path) -> None:
    """A small network with random weights, as the `diffwave` package stores its own."""
    import diffwave.model
    import torch
    from diffwave.params import AttrDict, params

    torch.manual_seed(0)
    model = diffwave.model.DiffWave(AttrDict({**params, "residual_layers": 2, "residual_channels": 8, "dilation_cycle_length": 2}))
    torch.save({"step": 1, "model": model.state_dict(), "optimizer": {}, "params": dict(model.params), "scaler": {}}, path)


def make_cache(cache: Path) -> None:
    """Data sets as they lie in the cache after their download, small or coarse: what pages do with them runs, whatever it sounds like."""
    import gzip

    import numpy as np
    import soundfile

    from modalities.audio.notes import LENGTH, PITCHES, RATE, SHAPE

    def place(name: str) -> Path:
        path = cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    seconds = np.arange(LENGTH) / RATE
    tones = np.sin(2 * np.pi * 440 * 2 ** ((np.array(PITCHES) - 69) / 12)[:, None] * seconds)
    levels = 0.4 ** np.arange(3)[::-1]
    notes = (16000 * levels[:, None, None] * tones[:, None, None]).astype(np.int16)
    np.save(place("notes/notes-2.npy"), np.broadcast_to(notes, SHAPE))
    draw = np.random.default_rng(0)
    pixels = [[*draw.integers(0, 256, 784), digit] for digit in list(range(10)) * 6]
    with gzip.open(place("mnist/mnist_5k.csv.gz"), "wt") as file:
        np.savetxt(file, pixels, fmt="%d", delimiter=",")
    asked = {"DESC:def": "What is a {} ?", "ENTY:food": "What {} is the best ?", "HUM:ind": "Who was the first {} in space ?"}
    asked |= {"LOC:other": "Where is the {} ?", "NUM:count": "How many people have seen the biggest {} of all in our town ?"}
    things = ("cat", "dog", "bird", "soup", "river", "tea", "town", "song")
    questions = [f"{label} {text.format(thing)}" for label, text in asked.items() for thing in things]
    place("trec/question_labels.txt").write_text("\n".join(questions) + "\n", encoding="latin-1")
    own = {"name": "The Mill", "eatType": "pub", "customer rating": "low", "familyFriendly": "no", "near": "Café Rouge"}
    meals = [(food, price, area) for food in ("Italian", "Chinese") for price in ("cheap", "high") for area in ("riverside", "city centre")]
    given = ", ".join(f"{name}[{value}]" for name, value in own.items())
    for part in ("trainset", "devset", "testset_w_refs"):
        sentences = [
            f'"{given}, food[{food}], priceRange[{price}], area[{area}]",The Mill is a {price} {food} pub {where} {area}.'
            for food, price, area in meals
            for where in ("in the", "near the")
        ]
        place(f"e2e/{part}.csv").write_text("\n".join(["mr,ref", *sentences]) + "\n")
    for digit in range(10):
        for speaker in ("ann", "bob"):
            for k in (0, 5, 6):
                tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * digit + 10 * k) * np.arange(4000) / 8000)
                soundfile.write(place(f"fsdd/recordings/{digit}_{speaker}_{k}.wav"), tone, 8000)


if __name__ == "__main__":
    serve(sys.argv[1])
