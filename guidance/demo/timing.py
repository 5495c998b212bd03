"""How fast this machine does what a demo does: a few steps of each kind of work, on data of the right shape."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from guidance import machine
from guidance.commands.settings import device_of
from guidance.commands.training import objective_of, trainer_of
from guidance.condition import Condition
from guidance.cost import SELF_CONDITIONED, conditions, raw_batch
from guidance.denoiser import Denoiser
from guidance.fake import counter
from guidance.modality import Data, Modality, SideTraining, Split
from guidance.model import Model, assemble
from guidance.process import level
from guidance.train import Objective, Place

ROWS = 64  # of a network call that is timed
LEAST, MOST = 1, 20  # calls that are timed


@dataclass(frozen=True)
class Speed:
    """FLOP of a call, of products of matrices, and the seconds that it takes here."""

    flops: float
    seconds: float

    def times(self, number: float) -> "Speed":
        return Speed(number * self.flops, number * self.seconds)

    def plus(self, other: "Speed") -> "Speed":
        return Speed(self.flops + other.flops, self.seconds + other.seconds)


def timed(call: Callable[[], object], device: torch.device, budget: float) -> Speed:
    """A call, timed for about ``budget`` seconds, after a first one that counts its FLOP and makes what is made once."""
    with counter() as counted:
        call()
    seconds: list[float] = []
    while len(seconds) < LEAST or (sum(seconds) < budget and len(seconds) < MOST):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return Speed(counted.get_total_flops(), sum(seconds) / len(seconds))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Blank:
    """Items of the right shape that say nothing, every attribute there."""

    def __init__(self, modality: Modality):
        self.modality = modality

    def __len__(self) -> int:
        return 1000

    def __getitems__(self, index: list[int]) -> tuple[Any, Condition]:
        return None, conditions(self.modality, len(index))


@dataclass(frozen=True)
class Unread:
    """A data set whose items are not read."""

    of: Data
    blank: Blank

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def conditions(self) -> Mapping[str, Any]:
        return self.of.conditions

    @property
    def train(self) -> Split:
        return self.blank

    @property
    def test(self) -> Split:
        return self.blank

    def pinned(self) -> Mapping[str, Any]:
        return {}


class Bench:
    """The untrained model of a training config, and how fast it is trained and asked here."""

    def __init__(self, config: Mapping[str, Any]):
        self.config, self.device = config, device_of({})
        self.trainer = trainer_of(config)
        with torch.random.fork_rng(devices=[]):
            self.modality, self.denoiser = assemble(config)
        self.modality.modules().to(self.device)
        blank = replace(self.modality, data=Unread(self.modality.data, Blank(self.modality)))
        self.model = Model(blank, {"main": self.denoiser}, config)
        self.sampling: dict[str, Speed] = {}

    def step(self, budget: float = 0.8) -> Speed:
        """A training step: of its whole batch, the optimizer's included."""
        objective = objective_of(self.config, self.modality, replace(self.denoiser, self_condition=False)).train()
        n = self.trainer.batch_size // self.trainer.accumulate
        raw = raw_batch(self.modality, n)
        if raw is None:
            bare = Objective(objective.denoiser, None, objective.loss, objective.times, objective.dropout, objective.conditions)
            objective, raw = bare.train(), torch.zeros(n, *self.modality.shape)
        optimizer = torch.optim.AdamW(objective.parameters(), lr=0.0, fused=True)
        condition, raw = conditions(self.modality, n).to(self.device), raw.to(self.device)
        precision = machine.precision(self.trainer.precision, self.device, what="trainer.precision", training=True)

        def once() -> None:
            with torch.enable_grad(), machine.autocast(precision, self.device):
                loss = objective(raw, condition, Place(0, 0, 0, 0, n)).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        found = timed(once, self.device, budget).times(self.trainer.accumulate)
        self.modality.modules().eval()
        if not self.denoiser.self_condition:
            return found
        guessing = replace(self.denoiser, precision=machine.dtype_of(precision))
        return found.plus(self.row(guessing, n, budget / 2).times(SELF_CONDITIONED * self.trainer.batch_size))

    def drawn(self, precision: str) -> Speed:
        """A row when samples are drawn in a precision, timed once."""
        if precision not in self.sampling:
            dtype = machine.dtype_of(machine.precision(precision, self.device))
            self.sampling[precision] = self.row(replace(self.denoiser, precision=dtype))
        return self.sampling[precision]

    def row(self, denoiser: Denoiser, rows: int = ROWS, budget: float = 0.5) -> Speed:
        """One row of a network call that samples."""
        network = self.modality.network
        with torch.no_grad():
            condition = conditions(self.modality, rows)
            shape = self.modality.shape if self.modality.shape_of is None else self.modality.shape_of(condition)
            x = torch.zeros(rows, *shape, device=self.device)
            now, context = level(denoiser.schedule, torch.tensor(0.5), x), network.embed(condition.to(self.device))
            guess = x if denoiser.self_condition else None

            def once() -> Tensor:
                return denoiser(x, now, context, guess).x0

            return timed(once, self.device, budget).times(1 / rows)

    def side(self, training: SideTraining, budget: float = 0.4) -> Speed:
        """All steps of what is trained beside the model; without its optimizer."""

        def once() -> None:
            with torch.enable_grad():
                with machine.autocast(machine.auto()):
                    loss = training.loss()
                loss.backward()

        return timed(once, torch.device("cpu"), budget).times(training.steps)
