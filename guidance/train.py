"""Training: the loss of a batch in one short function, and the loop around it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance import checkpoint, machine, shards
from guidance.bar import working
from guidance.condition import Condition, ConditionSpec, Dropout, reveal
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.loading import batches, loaded
from guidance.loss import Criterion, Loss, Times, UniformTimes
from guidance.modality import Codec, Split
from guidance.noise import Stream, bits, normal, uniform
from guidance.process import corrupt, level
from guidance.processes import on_cpus, peers
from guidance.shards import Shards
from guidance.trainer import Trainer
from guidance.upkeep import Log, Saved, interrupts, trackers, worker_errors


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
        if codec is not None and getattr(codec, "anchored", True):
            loss = loss + codec.anchor_loss(raw, denoiser.parameterization.read(output, shown_x_t, shown).x0, now)
        return loss


@runtime_checkable
class Trainable(Protocol):
    """An nn.Module that says the loss of each item of a batch, as `Objective` does."""

    trained: nn.ModuleDict
    """Its parts, by name, that are trained and stored."""

    def __call__(self, raw: Any, condition: Condition, at: Place) -> Float[Tensor, "b"]: ...


def paired(average: nn.Module, current: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each parameter and buffer of the average with the one that it follows: found once, for walking through modules takes time."""
    mine, theirs = ([*module.parameters(), *module.buffers()] for module in (average, current))
    return list(zip(mine, theirs, strict=True))


@torch.no_grad()
def update_average(pairs: Sequence[tuple[Tensor, Tensor]], decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, of all pairs (average, current)."""
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    if floating:
        torch._foreach_lerp_([average for average, _ in floating], [current for _, current in floating], 1 - decay)
    for average, current in pairs:
        if not average.is_floating_point():
            average.copy_(current)


class Interrupted(Exception):
    """Training was asked to stop and did, with a checkpoint at ``step``."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step


def train(
    objective: Trainable,
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

    Raises: UserError for a precision that the device does not train in; when the loss is no longer finite (the last good checkpoint stays),
    or another process of the launch has ended;
    Interrupted after Ctrl-C, of several processes in the first, while the others exit.
    """
    from accelerate.accelerator import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    where = PartialState(cpu=on_cpus()).device or "cpu"
    chosen = machine.precision(trainer.precision, where, what="trainer.precision", training=True)
    accelerator: Any = Accelerator(
        cpu=on_cpus(),
        mixed_precision=chosen,
        gradient_accumulation_steps=trainer.accumulate,
        log_with=list(trainer.trackers) or None,
        project_dir=run,
    )
    world, rank, main, device = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process, accelerator.device
    trainer.check(world)
    if len(split) == 0:
        raise UserError("there is nothing to train on: the training split is empty")
    on_gpu = device.type == "cuda"
    parts: Shards | None = None
    if shards.wanted() and world > 1:
        shards.check(trainer)
        parts = Shards(objective, device, run if resume else None)
        modules = average = parts.modules
    else:
        modules = objective.trained.to(device)
        average = deepcopy(modules).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(
        modules.parameters(), lr=trainer.lr, betas=(trainer.betas[0], trainer.betas[1]), weight_decay=trainer.weight_decay, fused=True
    )
    saved = Saved(run, modules, average, optimizer, len(split))
    if parts is not None:
        start = parts.fill_optimizer(optimizer)
        model, ready = parts.objective, accelerator.prepare_optimizer(optimizer)
    else:
        start = saved.restore() if resume else 0
        if trainer.compile:
            modules["network"].compile()
        model, ready = accelerator.prepare(objective, optimizer)
    weights, followed = list(model.parameters()), paired(average, modules)
    items = batches(split, seed, start, trainer.steps, trainer.batch_size, rank, world, trainer.accumulate)
    loader = loaded(split, items, trainer.workers, on_gpu)
    log = Log(run / checkpoint.METRICS, start) if main else None
    micro = trainer.batch_size // (trainer.accumulate * world)
    total, counted, since = torch.zeros((), device=device), 0, time.perf_counter()
    broken = torch.full((), torch.inf, device=device)  # the first step whose loss was not finite: known without waiting for a GPU
    model.train()
    with (
        peers(run),
        interrupts() as interrupted,
        worker_errors(run),
        trackers(accelerator, trainer, run, seed),
        torch.random.fork_rng(devices=[device] if on_gpu else []),
        working("train", trainer.steps, done=start, stays=True, silent=not (progress and main)) as bar,
    ):
        for step in range(start, trainer.steps):
            for group in optimizer.param_groups:
                group["lr"] = trainer.rate(step)
            for part in range(trainer.accumulate):
                raw, condition = next(loader)
                raw, condition = to_device(raw, device), condition.to(device)
                offset = (part * world + rank) * micro
                reseed(int(bits(seed, Stream.NETWORK, step, offset, 1, 1)[0, 0] >> 1), on_gpu)  # for dropout inside a network
                with accelerator.accumulate(model):
                    at = Place(seed, step, step * trainer.batch_size + offset, offset, trainer.batch_size)
                    with nullcontext() if parts is None else accelerator.autocast():
                        loss = model(raw, condition, at).mean()
                    accelerator.backward(loss)
                    if trainer.clip and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(weights, trainer.clip)
                    ready.step()
                    ready.zero_grad()
                total, counted = total + loss.detach(), counted + 1
                broken = torch.where(loss.detach().isfinite(), broken, broken.clamp(max=step + 1))
            done = step + 1
            decay = min(trainer.average, done / (9 + done))
            if parts is None:
                update_average(followed, decay)
            else:
                parts.update_average(decay)
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
                bar.note(f"loss={mean:.4f}")
                total, counted, since = torch.zeros_like(total), 0, now
            bar.advance()
            if saving:
                if parts is not None:
                    parts.write(run, optimizer, {"step": done, "seed": seed, "items": len(split)}, trainer.keep, main)
                elif main:
                    saved.write(done, seed, trainer.keep)
                accelerator.wait_for_everyone()
            if preview is not None and main and trainer.sample_every and done % trainer.sample_every == 0:
                preview(average, done)
            if stop and done < trainer.steps:
                raise Interrupted(done) if main else SystemExit(130)
    AcceleratorState._reset_state()  # so that another training in this process may choose another precision
    return average if parts is None else parts.give_back()


def reseed(seed: int, on_gpu: bool) -> None:
    """As torch.manual_seed, which also looks for every kind of device that there is, for a millisecond."""
    torch.default_generator.manual_seed(seed)
    if on_gpu:
        torch.cuda.manual_seed(seed)


def to_device(raw: Any, device: torch.device) -> Any:
    """Whatever tensors a raw batch consists of, on the device."""
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf, raw)
