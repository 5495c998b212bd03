"""Several processes: those of one launch (torchrun, accelerate launch), which is the first and who speaks, and claims among any."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from guidance.errors import UserError

GRACE = 10.0
"""Seconds that a process which is not the first waits before it says what is wrong: the launcher ends it when another has said so."""


def world() -> int:
    """How many processes were launched together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one among them, 0 for the first."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def on_cpus() -> bool:
    """Whether several processes were launched on a machine without an accelerator, which accelerate has to be told."""
    import torch

    return world() > 1 and not (torch.cuda.is_available() or torch.xpu.is_available())


@contextmanager
def launched() -> Iterator[None]:
    """A command as one process of a launch: what is wrong for all is said by the first; another one says it where nobody ended it."""
    if on_cpus():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    except UserError:
        if rank():
            time.sleep(GRACE)
        raise


T = TypeVar("T")


def first_alone(action: Callable[[], T]) -> T:
    """The first process acts, while the others wait; what it found is given to all. They end without a word where it is refused."""
    if world() == 1:
        return action()
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(days=1))
    found: list[Any] = [False, None]
    try:
        if rank() == 0:
            found = [True, action()]
    finally:
        dist.broadcast_object_list(found, src=0)
        dist.barrier()
        dist.destroy_process_group()  # torchmetrics would gather over a group that is there, and mix what each process measures
    if not found[0]:
        raise SystemExit(2)
    result: T = found[1]
    return result


@contextmanager
def peers(run: Path) -> Iterator[None]:
    """UserError where another process of the launch has ended, which one learns from the next thing that is done together."""
    from guidance.checkpoint import saved_steps

    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not re.search(r"gloo|nccl|connection|peer|socket|process group", str(error), re.IGNORECASE):
            raise
        steps = saved_steps(run)
        kept = f"the checkpoint of step {steps[-1]} is kept; go on with resume=true" if steps else "there is no checkpoint yet"
        raise UserError(f"another process of this training has ended; {kept}") from error


@contextmanager
def claim(folder: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """Whether this process may do what is named so; the system takes a claim back from a process that died."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{name}.lock")
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except FileNotFoundError:  # who was waited for has removed the folder
            continue
    try:
        yield True
    finally:
        lock.release()
