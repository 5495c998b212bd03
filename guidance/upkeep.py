"""What training keeps beside its steps: checkpoints, a log, trackers, and whether it was asked to stop."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
        """The step of the newest checkpoint, whose state is now everybody's; 0 where there is none."""
        if not checkpoint.saved_steps(self.run):
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
    """Metrics as JSON lines; lines that a resumed run will write again are taken out first."""

    def __init__(self, path: Path, start: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= start:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # a line cut short by a kill
        checkpoint.write_atomically(path, "".join(line + "\n" for line in kept).encode())

    def write(self, **values: float) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")
