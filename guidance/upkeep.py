"""What training keeps beside its steps: checkpoints, a log, trackers, its folder to itself, and whether it was asked to stop."""

import errno
import json
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidance import checkpoint
from guidance.errors import UserError
from guidance.trainer import Trainer


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C, or a polite kill, has asked to stop; a second one stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LOCK = ".training.lock"
"""In a run, from before anything is written there until training has ended in good order; after a kill it is left, and free."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """No other training works in the folder meanwhile; the system takes the claim back from a process that died.

    Raises: UserError where another one does. Of a file system that has no locks it is warned.
    """
    from filelock import FileLock, Timeout

    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"out={run}: another training is at work there; let it end, or choose another out=") from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"out={run}: this file system has no locks, so see to it that no other training works there", stacklevel=3)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (run / LOCK).unlink()  # while it is held: who has opened it finds that it is gone
        lock.release()


@contextmanager
def worker_errors(run: Path) -> Iterator[None]:
    """Whatever ends a worker of the data loader, as a UserError of one line. The workers are those that there are already."""
    workers = multiprocessing.active_children()
    try:
        try:
            yield
        except (OSError, EOFError) as error:
            if str(error).startswith("Caught ") or not (how := dead(workers, error)):
                raise
            raise RuntimeError(how) from None
    except (RuntimeError, OSError) as error:  # torch's handler of SIGCHLD raises RuntimeError wherever it is, so above, too
        said = str(error)
        if said.startswith("Caught ") and " in DataLoader worker" in said:  # an error of the data, with its whole story
            raise UserError(said.strip().splitlines()[-1]) from None
        if not said.startswith("DataLoader worker (pid"):
            raise
        for worker in workers:
            worker.join(timeout=0)  # who is dead is no longer found by that handler
        steps = checkpoint.saved_steps(run)
        kept = f"; the checkpoint of step {steps[-1]} is kept, and resume=true goes on from it" if steps else ""
        raise UserError(f"a {said.splitlines()[0].strip().rstrip('.')}{kept}; with trainer.workers=0 there are none") from None


def dead(workers: Sequence[BaseProcess], error: BaseException) -> str:
    """What is known of a worker that has died, where it is behind an error; "" where none is."""
    if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        ends = {worker.sentinel: worker for worker in workers}
        for end in connection.wait(list(ends), timeout=5):
            ends[end].join()  # type: ignore[index]  # its ends are closed a moment before it is gone
    found = [worker for worker in workers if worker.exitcode]
    return f"DataLoader worker (pid {found[0].pid}) ended with {found[0].exitcode}" if found else ""


@contextmanager
def trackers(accelerator: Any, trainer: Trainer, run: Path, seed: int) -> Iterator[None]:
    """What they keep on this machine goes into the run; they are told of the end, however training ends."""
    if not trainer.trackers:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere where there is no such folder
    try:
        accelerator.init_trackers("polyguide", config={"seed": seed}, init_kwargs={"wandb": {"dir": str(run)}})
    except Exception as error:  # of theirs: nobody is logged in, no answer
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"trainer.trackers=[{','.join(trainer.trackers)}] cannot be used: {reason}") from error
    try:
        yield
    finally:
        accelerator.end_training()


@dataclass(frozen=True)
class Saved:
    """What a checkpoint of a training run holds."""

    run: Path
    modules: nn.ModuleDict
    average: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    items: int  # that it is trained on

    def write(self, step: int, seed: int, keep: int) -> None:
        tensors = {
            "model": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
        }
        checkpoint.save_checkpoint(self.run, step, tensors, {"step": step, "seed": seed, "items": self.items}, keep)

    def restore(self) -> int:
        """The step of the newest checkpoint, whose state is now everybody's; 0 where there is none but perhaps what training began from."""
        if not checkpoint.saved_steps(self.run):
            if checkpoint.has_start(self.run):
                for modules in (self.modules, self.average):
                    checkpoint.fill(modules, self.run / checkpoint.CHECKPOINTS / checkpoint.START / "model.safetensors")
            return 0
        folder = checkpoint.latest(self.run)
        checkpoint.fill(self.modules, folder / "model.safetensors")
        checkpoint.fill(self.average, folder / "average.safetensors")
        checkpoint.fill_optimizer(self.optimizer, folder / "optimizer.safetensors")
        return int(checkpoint.read_state(folder)["step"])

    def lost(self, step: int) -> UserError:
        steps = checkpoint.saved_steps(self.run)
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint before it"
        return UserError(f"the loss became NaN or infinite at step {step}; {kept}; try a smaller trainer.lr")


class Log:
    """Metrics as JSON lines; lines that a resumed run will write again are taken out first.

    What no two runs have alike, the time that they take, goes into a file beside it.
    """

    timings = ("samples_per_second",)

    def __init__(self, path: Path, start: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (path, path.with_name(checkpoint.TIMINGS)):
            kept = [line for line in checkpoint.read_lines(file) if json.loads(line)["step"] <= start]
            checkpoint.write_atomically(file, "".join(line + "\n" for line in kept).encode())

    def write(self, step: int, **values: float) -> None:
        times = {name: value for name, value in values.items() if name in self.timings}
        others = {name: value for name, value in values.items() if name not in self.timings}
        for path, found in ((self.path, others), (self.path.with_name(checkpoint.TIMINGS), times)):
            with open(path, "a") as file:
                file.write(json.dumps({"step": step, **found}) + "\n")
