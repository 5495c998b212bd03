"""What the fuzzing scripts share: commands in this process, tiny runs, and the rule that every answer has to keep."""

import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np


@dataclass(frozen=True)
class Answer:
    """What a command did. ``escaped``: an exception that would have been a traceback."""

    code: int | None
    out: str
    err: str
    escaped: BaseException | None = None
    asked: int = 0  # characters of the command, of which its answer may repeat some

    @property
    def lines(self) -> list[str]:
        """Of stderr, without what a progress bar wrote over itself."""
        return [line for line in re.sub(r"[^\n]*\r", "", self.err).split("\n") if line.strip()]

    @property
    def said(self) -> str:
        """The line that says what is wrong."""
        return next((line for line in self.lines if line.startswith("polyguide: ")), "")

    def wrong(self) -> str | None:
        """What is wrong with this answer as an answer to anything at all; None where nothing is."""
        if self.escaped is not None:
            return f"{type(self.escaped).__name__} escapes: {' '.join(str(self.escaped).split())[:200]}"
        if self.code not in (0, 2, 130):
            return f"exit status {self.code}"
        if "Traceback" in self.out + self.err:
            return "a traceback is printed"
        if self.code == 2 and (len(self.lines) != 1 or not self.said):
            return f"exit status 2 with {len(self.lines)} lines on stderr: {self.err[:300]!r}"
        if self.code == 2 and len(self.said) > 2000 + self.asked:
            return f"a line of {len(self.said)} characters"
        return None


def command(*arguments: str) -> Answer:
    """A command of the command line, run in this process."""
    from guidance.cli import run

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)  # strict and lenient, as a terminal's are
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)

    def texts() -> tuple[str, str]:
        return tuple(stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined, return-value]

    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        try:
            code = run(list(arguments))
        except SystemExit as stop:  # Hydra, after a usage of its own
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException as error:
            return Answer(None, *texts(), error)
    return Answer(code, *texts(), asked=2 * sum(map(len, arguments)))


@contextmanager
def surroundings(folder: Path) -> Iterator[None]:
    """In a folder, offline, on one thread, without Hydra's first composition (which looks for hydra.mode=MULTIRUN)."""
    import torch

    before, argv = Path.cwd(), sys.argv
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = ["polyguide"]
    try:
        with (
            mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}),
            mock.patch("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None),
        ):
            os.environ.pop("POLYGUIDE_DATA", None)
            yield
    finally:
        os.chdir(before)
        sys.argv = argv


TRAINER = ["trainer.batch_size=4", "trainer.steps=2", "trainer.precision='no'", "threads=1", "sampler.steps=2"]
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "layer_types": "[full_attention]"}
RUNS = {
    "image": ["data=digits", "network.channels=8", "network.multipliers=[1]", "network.blocks=1"],
    "audio": [
        *("modality=audio", "data=audio_folder", "data.root=tones", "data.rate=8000", "data.length=2048"),
        *("data.mel={mels:16,hop:256,window:512}", "data.condition=both", "network.channels=8", "network.layers=2"),
    ],
    "text": [
        *(
            "modality=text",
            "data=text_file",
            "data.path=animals.csv",
            "data.attributes=[colour,animal]",
            "data.length=8",
            "tokenizer=words",
        ),
        *("modality.codec.width=8", *(f"network.encoder.{name}={value}" for name, value in ENCODER.items())),
    ],
}


def tones(root: Path, names: tuple[str, ...] = ("high", "low"), n: int = 5) -> None:
    """A folder of sounds, a sub-folder a class."""
    import soundfile

    for c, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            soundfile.write(root / name / f"{k}.wav", 0.3 * np.sin(2 * np.pi * (1000 - 700 * c + 30 * k) * np.arange(2048) / 8000), 8000)


def pictures(root: Path, names: tuple[str, ...] = ("cat", "dog"), n: int = 5) -> None:
    """A folder of pictures, a sub-folder a class."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            Image.fromarray(draw.integers(0, 256, (4, 6, 3), np.uint8)).save(root / name / f"{k}.png")


def animals(path: Path) -> None:
    """Sentences with attributes; some have no colour."""
    lines = ["text,colour,animal"]
    for k in range(40):
        colour, kind, does = ("blue", "green", "red")[k % 3], ("cat", "dog")[k % 2], ("sleeps", "runs away", "sings today")[k // 2 % 3]
        lines.append(f"The {colour} {kind} {does}.,{'' if k % 7 == 0 else colour},{kind}")
    path.write_text("\n".join(lines) + "\n")


def prepare(kinds: tuple[str, ...] = ("image", "audio", "text")) -> None:
    """Data and a tiny run of each kind, in this folder."""
    pictures(Path("pets"))
    tones(Path("tones"))
    animals(Path("animals.csv"))
    for kind in kinds:
        done = command("train", *RUNS[kind], *TRAINER, f"out={kind}")
        assert done.code == 0, done


def content(folder: Path) -> dict[str, Any]:
    """All that lies below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def renewed(source: Path, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
