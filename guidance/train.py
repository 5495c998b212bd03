"""Training: the loss of a batch in one short function, and the loop around it."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance import checkpoint
from guidance.condition import Condition, ConditionSpec, Dropout, reveal
from guidance.config import fits
from guidance.denoiser import Denoiser
from guidance.errors import UserError, one_of
from guidance.loss import Criterion, Loss, Times, UniformTimes
from guidance.modality import Codec, Split
from guidance.noise import Stream, bits, normal, permutation, uniform
from guidance.process import corrupt, level


@dataclass(frozen=True)
class Place:
    """Where a micro-batch stands in a run: all that its random numbers depend on."""

    seed: int
    step: int
    first: int  # of the samples seen since training began
    offset: int  # of its samples within the whole batch of the step
    batch: int  # size of that whole batch


class Objective(nn.Module):
    """The training loss of a denoiser and its codec: everything that is trained, in one module.

    Args:
        codec: None where the data is x0 already.
        dropout: of the conditions.
        times: where t is drawn from.
        conditions: the attributes, of which some may be shown in part only.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Codec | None = None,
        loss: Criterion | None = None,
        times: Times | None = None,
        dropout: Dropout | None = None,
        conditions: Mapping[str, ConditionSpec] | None = None,
    ):
        super().__init__()
        self.denoiser, self.codec, self.conditions = denoiser, codec, conditions or {}
        parts: dict[str, Any] = {"network": denoiser.network, "codec": codec}
        self.trained = nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
        self.loss, self.times, self.dropout = loss or Loss(), times or UniformTimes(), dropout or Dropout()

    def forward(self, raw: Any, condition: Condition, at: Place) -> Float[Tensor, "b"]:
        """The loss of each sample."""
        denoiser, codec = self.denoiser, self.codec
        x0 = raw if codec is None else codec.encode(raw)
        b = len(x0)

        def draw(stream: Stream, width: int = 1) -> Float[Tensor, "b width"]:
            return uniform(at.seed, stream, 0, at.first, b, width)

        condition = self.dropout(condition, draw(Stream.DROP, 1 + len(condition.keep)))
        condition = reveal(self.conditions, condition, partial(draw, Stream.REVEAL))
        t = self.times(draw(Stream.TIME)[:, 0], at.offset + torch.arange(b), at.batch)
        eps = normal(at.seed, Stream.CORRUPT, 0, at.first, tuple(x0.shape)).to(x0)
        now = level(denoiser.schedule, t, x0)
        x_t = corrupt(x0, eps, now)
        context = denoiser.network.embed(condition)
        x0_hat = None
        if denoiser.self_condition and uniform(at.seed, Stream.SELF_CONDITION, at.step, 0, 1).item() < 0.5:
            with torch.no_grad():
                x0_hat = denoiser(x_t, now, context).x0
        output, shown_x_t, shown = denoiser.output(x_t, now, context, x0_hat)
        target = denoiser.parameterization.target(x0, eps, shown)
        loss = self.loss(output.float(), target, shown, denoiser.parameterization)
        if codec is not None:
            loss = loss + codec.anchor_loss(raw, denoiser.parameterization.read(output, shown_x_t, shown).x0, now)
        return loss


PRECISIONS = ("no", "bf16", "fp16")
DECAYS = ("constant", "linear", "cosine")
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True)
class Trainer:
    """How long and how fast to train.

    ``batch_size`` is what an optimizer step sees, over all processes and ``accumulate`` micro-batches. ``average`` is the decay of the
    moving average of the weights, reached gradually: min(average, (1 + step) / (10 + step)). The learning rate warms up linearly and
    then is constant or falls to 0 at the last step. ``save_every`` and ``sample_every`` count steps; 0 is only at the end,
    and never. ``keep`` checkpoints are kept.
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
    precision: str = "no"
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
        for what, value, known in (("precision", self.precision, PRECISIONS), ("decay", self.decay, DECAYS)):
            if value not in known:
                raise one_of(f"trainer.{what}", value, known)
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise one_of("tracker", tracker, TRACKERS)
            if find_spec(tracker) is None:  # accelerate would leave it out without a word
                raise UserError(f"trainer.trackers=[{tracker}] needs one more package: pip install 'polyguide[{tracker}]'")
        if self.batch_size % self.accumulate:
            raise UserError(f"trainer.accumulate={self.accumulate} does not divide trainer.batch_size={self.batch_size}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        left = 1 - step / self.steps
        falls = {"constant": 1.0, "linear": left, "cosine": (1 - torch.tensor(torch.pi * left).cos().item()) / 2}
        return self.lr * warm * falls[self.decay]


def batches(split: Split, seed: int, start: int, steps: int, size: int, rank: int, world: int, accumulate: int) -> Iterator[list[int]]:
    """This process's item indices, micro-batch after micro-batch, from step ``start`` on.

    The stream of samples is epoch after epoch, each in its own order; sample p of the run is item ``order[p % n]`` of epoch
    ``p // n``, whatever the batch size, the number of processes, and where the run was interrupted.
    """
    n = len(split)
    orders: dict[int, Any] = {}
    micro = size // (accumulate * world)
    for step in range(start, steps):
        for part in range(accumulate):
            first = step * size + (part * world + rank) * micro
            chosen = []
            for p in range(first, first + micro):
                epoch = p // n
                if epoch not in orders:
                    orders = {e: o for e, o in orders.items() if e >= epoch - 1} | {epoch: permutation(seed, epoch, n)}
                chosen.append(int(orders[epoch][p % n]))
            yield chosen


class _Items(torch.utils.data.Dataset[Any]):
    """A split as the DataLoader wants it."""

    def __init__(self, split: Split):
        self.split = split

    def __getitems__(self, index: list[int]) -> Any:
        return self.split.__getitems__(index)


def _identity(batch: Any) -> Any:
    return batch


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, parameters and buffers."""
    for mine, theirs in ((list(average.parameters()), list(current.parameters())), (list(average.buffers()), list(current.buffers()))):
        floating = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
        if floating:
            torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1 - decay)
        for a, b in zip(mine, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
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
def _trackers(accelerator: Any, trainer: Trainer, run: Path, seed: int) -> Iterator[None]:
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


class Interrupted(Exception):
    """Training was asked to stop and did, with a checkpoint at ``step``."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


def train(
    objective: Objective,
    split: Split,
    trainer: Trainer,
    run: Path,
    seed: int = 0,
    *,
    resume: bool = False,
    preview: Callable[[nn.ModuleDict, int], None] | None = None,
    progress: bool = True,
) -> nn.ModuleDict:
    """Train, logging and saving into the folder ``run``; the averaged weights are returned.

    The result depends on (objective, split, trainer, seed) alone: not on where it was interrupted, nor on the number of processes
    beyond rounding. ``resume`` goes on from the newest checkpoint, where there is one. ``preview(averaged modules, step)`` is called
    every ``trainer.sample_every`` steps.

    Raises: UserError when the loss is no longer finite (the last good checkpoint stays), Interrupted after Ctrl-C.
    """
    from accelerate.accelerator import Accelerator
    from accelerate.state import AcceleratorState
    from tqdm import tqdm

    accelerator: Any = Accelerator(
        mixed_precision=trainer.precision,
        gradient_accumulation_steps=trainer.accumulate,
        log_with=list(trainer.trackers) or None,
        project_dir=run,
    )
    world, rank, main, device = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process, accelerator.device
    if trainer.batch_size % (trainer.accumulate * world):
        raise UserError(f"trainer.batch_size={trainer.batch_size} does not divide into {trainer.accumulate} parts on {world} processes")
    if len(split) == 0:
        raise UserError("there is nothing to train on: the training split is empty")
    on_gpu = device.type == "cuda"
    modules = objective.trained.to(device)
    average = deepcopy(modules).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=trainer.lr, betas=(trainer.betas[0], trainer.betas[1]), weight_decay=trainer.weight_decay, fused=on_gpu
    )
    saved = _Saved(run, modules, average, optimizer, len(split))
    start = saved.restore() if resume else 0
    if trainer.compile:
        modules["network"].compile()
    model, ready = accelerator.prepare(objective, optimizer)
    items: Any = batches(split, seed, start, trainer.steps, trainer.batch_size, rank, world, trainer.accumulate)
    loader = iter(
        torch.utils.data.DataLoader(
            _Items(split),
            batch_sampler=items,
            num_workers=trainer.workers,
            collate_fn=_identity,
            pin_memory=on_gpu,
            generator=torch.Generator(),
        )
    )
    log = _Log(run / checkpoint.METRICS, start) if main else None
    micro = trainer.batch_size // (trainer.accumulate * world)
    total, counted, since = torch.zeros((), device=device), 0, time.perf_counter()
    broken = torch.full((), torch.inf, device=device)  # the first step whose loss was not finite: known without waiting for a GPU
    model.train()
    with (
        _interrupts() as interrupted,
        _trackers(accelerator, trainer, run, seed),
        torch.random.fork_rng(devices=[device] if on_gpu else []),
        tqdm(total=trainer.steps, initial=start, desc="train", unit="step", disable=not (progress and main)) as bar,
    ):
        for step in range(start, trainer.steps):
            for group in optimizer.param_groups:
                group["lr"] = trainer.rate(step)
            for part in range(trainer.accumulate):
                raw, condition = next(loader)
                raw, condition = to_device(raw, device), condition.to(device)
                offset = (part * world + rank) * micro
                torch.manual_seed(int(bits(seed, Stream.NETWORK, step, offset, 1, 1)[0, 0] >> 1))  # for dropout inside a network
                with accelerator.accumulate(model):
                    at = Place(seed, step, step * trainer.batch_size + offset, offset, trainer.batch_size)
                    loss = model(raw, condition, at).mean()
                    accelerator.backward(loss)
                    if trainer.clip and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), trainer.clip)
                    ready.step()
                    ready.zero_grad()
                total, counted = total + loss.detach(), counted + 1
                broken = torch.where(loss.detach().isfinite(), broken, broken.clamp(max=step + 1))
            done = step + 1
            update_average(average, modules, min(trainer.average, done / (9 + done)))
            stop = interrupted()
            if world > 1:  # all stop at the same step, when any of them was asked to
                stop = bool(accelerator.reduce(torch.tensor(float(stop), device=device), "sum") > 0)
            saving = done == trainer.steps or stop or bool(trainer.save_every and done % trainer.save_every == 0)
            if done % trainer.log_every == 0 or saving:
                if world > 1:
                    broken = accelerator.gather(broken).min()
                if bool(broken < torch.inf):
                    raise saved.lost(int(broken))
                mean, now = (accelerator.reduce(total, "mean") / counted).item(), time.perf_counter()
                values = {"loss": mean, "lr": trainer.rate(step), "samples_per_second": counted * micro * world / (now - since)}
                if log is not None:
                    log.write(step=done, **values)
                if trainer.trackers:
                    accelerator.log(values, step=done)
                bar.set_postfix(loss=f"{mean:.4f}")
                total, counted, since = torch.zeros_like(total), 0, now
            bar.update()
            if saving:
                if main:
                    saved.write(done, seed, trainer.keep)
                accelerator.wait_for_everyone()
            if preview is not None and main and trainer.sample_every and done % trainer.sample_every == 0:
                preview(average, done)
            if stop and done < trainer.steps:
                raise Interrupted(done)
    AcceleratorState._reset_state()  # so that another training in this process may choose another precision
    return average


@dataclass(frozen=True)
class _Saved:
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


def to_device(raw: Any, device: torch.device) -> Any:
    """Whatever tensors a raw batch consists of, on the device."""
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, raw)


class _Log:
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
