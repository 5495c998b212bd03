"""Launches of several processes, forked from this one, which spares each the time of importing."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.cli import run

FORK = multiprocessing.get_context("fork")


@dataclass
class Started:
    """A process, and where what it says is written."""

    process: Any
    out: Path
    err: Path

    @property
    def code(self) -> int | None:
        code: int | None = self.process.exitcode
        return code

    def said(self) -> list[str]:
        """The lines on its standard error, the progress bars' apart."""
        lines = self.err.read_text().replace("\r", "\n").splitlines()
        return [line for line in lines if line.startswith("polyguide") or "Error" in line or "Traceback" in line]


def _child(task: Callable[[], int | None], out: Path, err: Path, place: dict[str, str]) -> None:
    from accelerate.state import AcceleratorState, PartialState

    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    import sys

    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(place)
    AcceleratorState._reset_state()
    PartialState._reset_state()
    torch.set_num_threads(1)
    code = task()
    sys.stdout.flush()
    os._exit(code or 0)  # what the process that it was forked from would do at its end is not for this one


def start(task: Callable[[], int | None], folder: Path, name: str, **place: str) -> Started:
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    process = FORK.Process(target=_child, args=(task, out, err, place))
    process.start()
    return Started(process, out, err)


def launch(count: int, command: Sequence[str] | Callable[[], int | None], folder: Path, **more: str) -> list[Started]:
    """A command in ``count`` processes, as torchrun and `accelerate launch --cpu` start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true", **more}
    task = command if callable(command) else lambda: run(list(command))
    return [start(task, folder, f"{count}-{rank}", **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]


def wait(started: Sequence[Started], seconds: float = 120) -> list[int | None]:
    """Their exit statuses. As a launcher does, what is left is ended when one has failed, a moment later."""
    end = time.monotonic() + seconds
    while any(one.process.is_alive() for one in started) and time.monotonic() < end:
        if any(one.code not in (None, 0) for one in started):
            break
        multiprocessing.connection.wait([one.process.sentinel for one in started if one.process.is_alive()], 1)
    stop = time.monotonic() + 1
    for one in started:
        one.process.join(max(0.0, stop - time.monotonic()) if any(o.code not in (None, 0) for o in started) else 0.01)
    for one in started:
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
    return [one.code for one in started]
