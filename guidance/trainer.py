"""How to train: settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from guidance.config import fits
from guidance.errors import UserError, one_of
from guidance.machine import check_precision

DECAYS = ("constant", "linear", "cosine")
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Trainer:
    """How long and how fast to train.

    ``batch_size`` is what an optimizer step sees, over all processes and ``accumulate`` micro-batches. ``average`` is the decay of the
    moving average of the weights, reached gradually: min(average, (1 + step) / (10 + step)). The learning rate warms up linearly and
    then is constant or falls to 0 at the last step. ``save_every`` and ``sample_every`` count steps; 0 is only at the end,
    and never. ``keep`` checkpoints are kept. ``precision`` is "no" (fp32), bf16, fp16, or auto: bf16
    where the device does it fast, else "no" (`guidance.machine`).
    """

    steps: int = 1000
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 100
    decay: str = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    accumulate: int = 1
    average: float = 0.999
    precision: str = "auto"
    compile: bool = False
    log_every: int = 50
    save_every: int = 500
    sample_every: int = 0
    keep: int = 2
    workers: int = 0
    trackers: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, least in {"steps": 1, "batch_size": 1, "accumulate": 1, "log_every": 1, "keep": 1, "warmup": 0}.items() | {
            ("save_every", 0),
            ("sample_every", 0),
            ("workers", 0),
        }:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"trainer.{name} is a whole number, at least {least}, got {value!r}")
        for name, low, high in (("lr", 0, 1e3), ("weight_decay", 0, 1e3), ("average", 0, 1), ("clip", 0, 1e9)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UserError(f"trainer.{name} is a number from {low} to {high:g}, got {value!r}")
        betas = list(self.betas) if isinstance(self.betas, Sequence) else self.betas
        if not fits(betas, tuple[float, float]) or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"trainer.betas is two numbers, at least 0 and below 1, got {self.betas!r}")
        check_precision(self.precision, "trainer.precision")
        if self.decay not in DECAYS:
            raise one_of("trainer.decay", self.decay, DECAYS)
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise one_of("tracker", tracker, TRACKERS)
            if find_spec(tracker) is None:  # accelerate would leave it out without a word
                raise UserError(f"trainer.trackers=[{tracker}] needs one more package: pip install 'polyguide[{tracker}]'")
        if self.batch_size % self.accumulate:
            raise UserError(f"trainer.accumulate={self.accumulate} does not divide trainer.batch_size={self.batch_size}")

    def check(self, world: int) -> None:
        """UserError where the batch does not divide among that many processes."""
        if self.batch_size % (self.accumulate * world):
            raise UserError(f"trainer.batch_size={self.batch_size} does not divide into {self.accumulate} parts on {world} processes")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = 1 - step / self.steps
        falls = {"constant": 1.0, "linear": left, "cosine": (1 - torch.tensor(torch.pi * left).cos().item()) / 2}
        return self.lr * warm * falls[self.decay]
