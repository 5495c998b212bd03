"""polyguide train."""

import inspect
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import ModuleDict

from guidance import checkpoint, machine, proper
from guidance.commands.output import RUN_FILES, clear, vacant
from guidance.commands.settings import flag, folder, threads, whole_number
from guidance.config import build, leaves
from guidance.errors import UserError
from guidance.holdout import parse, without
from guidance.machine import AUTO
from guidance.modality import Modality, Split
from guidance.model import PARTS, Model, assemble, with_codec
from guidance.previews import class_columns, class_table, forward_process
from guidance.processes import launched, world
from guidance.trainer import Trainer
from guidance.upkeep import LOCK, alone

if TYPE_CHECKING:
    from guidance.denoiser import Denoiser
    from guidance.train import Objective

OF_THE_COMMAND = ("out", "resume", "overwrite", "threads")
CHANGEABLE = ("trainer.steps", "trainer.log_every", "trainer.save_every", "trainer.sample_every", "trainer.keep", "trainer.workers")


def resumed(config: Mapping[str, Any], stored: Mapping[str, Any], overrides: Sequence[str], begun: Sequence[str] = ()) -> dict[str, Any]:
    """The stored config, with the settings that a resumed run may change; UserError for any other that was given and differs.

    Args:
        begun: the commands that trained the run. What they gave, too, differs only where the run has resolved it (the architecture of
            weights that it began from).
    """
    said = {word for line in begun for word in words(line)}
    result, old, new = deepcopy(dict(stored)), leaves(stored), leaves(config)
    for override in overrides:
        key = override.split("=")[0].lstrip("+~").split("@")[0]
        if key in OF_THE_COMMAND:
            continue
        # A choice like recipe=mnist is no setting itself: it stands for all that are now so.
        given = [name for name in new if f"{name}.".startswith(f"{key}.") or key.split(".")[0] not in config]
        for name in given:
            if name in OF_THE_COMMAND or new[name] is None or old.get(name) == new[name]:
                continue
            if name not in old and name != key:  # a setting that came after the run, which no one asked for
                continue
            if name == "trainer.precision" and new[name] == AUTO:  # which is what the run has
                continue
            if name not in CHANGEABLE and name == key and as_written(override) in said:
                continue
            if name not in CHANGEABLE:
                raise UserError(f"{name} cannot change when a run is resumed (it is {old.get(name)!r}); start another with another out=")
            node = result
            for part in name.split(".")[:-1]:
                node = node[part]
            node[name.split(".")[-1]] = new[name]
    return result


def trainer_of(config: Mapping[str, Any]) -> Trainer:
    """The trainer of a config. UserError where it is something else, or its batch does not divide among the processes."""
    trainer = build(config["trainer"], "trainer")
    if not isinstance(trainer, Trainer):
        raise UserError(f"the config's trainer is none: {config['trainer']['_target_']} is something else")
    trainer.check(world())
    return trainer


def objective_of(config: Mapping[str, Any], modality: Modality, denoiser: "Denoiser") -> "Objective":
    """What a config trains. UserError where its loss, times or dropout is something else, or the dropout is of other attributes."""
    from guidance.condition import Dropout
    from guidance.loss import Loss, UniformTimes
    from guidance.train import Objective

    parts = {key: build(config[key], key) for key in ("loss", "times", "dropout")}
    parts["loss"] = with_codec(parts["loss"], modality)
    for key, is_one in {
        "loss": arity(parts["loss"]) == arity(Loss()),
        "times": arity(parts["times"]) == arity(UniformTimes()),
        "dropout": isinstance(parts["dropout"], Dropout),
    }.items():
        if not is_one:
            raise UserError(f"the config's {key} is none: {config[key]['_target_']} is something else")
    parts["dropout"].check(list(modality.conditions))
    return Objective(denoiser, modality.codec, **parts, conditions=modality.conditions)


def settled(config: Mapping[str, Any], trainer: Trainer, device: torch.device, out: Path | None) -> tuple[dict[str, Any], Trainer]:
    """The config and its trainer with the precision that auto becomes on the device, the same in all processes of a launch.

    ``out``: the run that is gone on with, which keeps its precision. UserError where the device does not train in it.
    """
    from accelerate.utils.operations import broadcast_object_list

    asked = trainer.precision
    if out is not None and asked != AUTO and not machine.has(asked, str(device), training=True):
        raise UserError(
            f"out={out} is trained in {asked}, which no {machine.named(device)} trains in: go on with it on a device that does, or start "
            "another with another out="
        )
    chosen = [machine.chosen(asked, device, what="trainer.precision", training=True)]
    broadcast_object_list(chosen)
    return {**config, "trainer": {**config["trainer"], "precision": chosen[0]}}, replace(trainer, precision=chosen[0])


def arity(part: Any) -> int:
    """How many arguments it is called with, which tells losses, times and schedules from each other; 0 where it cannot be called."""
    return len(inspect.signature(part).parameters) if callable(part) else 0


def words(line: str) -> list[str]:
    """Of a command; none where a quote is not closed."""
    try:
        return shlex.split(line)
    except ValueError:
        return []


@launched()
def train(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide train"""
    from accelerate.state import PartialState
    from accelerate.utils.environment import parse_flag_from_env

    from guidance.train import Interrupted
    from guidance.train import train as run_training

    out, resume, overwrite = folder(config, "out"), flag(config, "resume"), flag(config, "overwrite")
    threads(config)
    for key in ("out", "resume", "overwrite"):
        del config[key]
    if checkpoint.is_saved(out):
        raise UserError(f"out={out} holds a saved model, which is not trained further; choose another out=")
    going_on = resume and checkpoint.is_run(out)
    if not going_on:
        vacant(out, overwrite, RUN_FILES, resumable=True)
    else:
        stored = checkpoint.read_config(out)
        if "classifier" in stored:
            raise UserError(f"out={out} holds a classifier, which polyguide train-classifier trains; choose another out=")
        config = resumed(config, stored, overrides, checkpoint.read_commands(out))
    seed = whole_number(config, "seed", 0)
    trainer = trainer_of(config)
    torch.manual_seed(seed)  # the initial weights
    modality, denoiser = assemble(checkpoint.located(config, out))
    objective = objective_of(config, modality, denoiser)
    pinned = {"data": modality.data.pinned(), **(modality.pinned() if modality.pinned else {})}
    config |= {section: {**config[section], **found} for section, found in pinned.items()}
    if not len(modality.data.train):
        raise UserError(f"there is nothing to train on: {modality.data.name} has no training items")
    split = without(modality.data.train, parse(config.get("holdout", []), modality.conditions))
    steps = checkpoint.saved_steps(out) if going_on else []
    place: Any = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator() will
    config, trainer = settled(config, trainer, place.device or torch.device("cpu"), out if going_on else None)
    if steps and checkpoint.check(checkpoint.latest(out), objective.trained) >= trainer.steps and ended(out, trainer):
        with alone(out) if place.is_main_process else nullcontext():  # whoever trains it still is not done
            print(f"{out} is trained already, to step {steps[-1]}; trainer.steps={trainer.steps} asks for no more")
        return
    place.wait_for_everyone()  # every process has looked before the first one writes
    begun = bool(steps) or (going_on and checkpoint.has_start(out))
    if not begun:
        modality.codec.fit(split)
        check_shape(modality, split)
    with alone(out) if place.is_main_process else nullcontext():
        if place.is_main_process:
            files = modality.files() if modality.files else {}
            with beginning(out, overwrite) if not going_on else nullcontext():
                with checkpoint.listed(out, *files):
                    for name, content in files.items():
                        checkpoint.write_atomically(out / name, content)
                if not begun:  # before the config, so that what has a config can be gone on with
                    checkpoint.save_start(out, objective.trained.state_dict(), {"seed": seed, "items": len(split)})
                if overrides:
                    checkpoint.record_command(out, "polyguide train", [as_written(override) for override in overrides])
                checkpoint.write_config(out, {key: config[key] for key in (*PARTS, *config)})  # the model first
            if not steps:
                forward_process(modality, denoiser.schedule, split, out)
            size = sum(p.numel() for p in objective.parameters())
            print(f"training {size:,} parameters on {len(split):,} samples of {modality.data.name}, into {out}")

        drawing = replace(denoiser, precision=machine.dtype_of(trainer.precision))
        model = Model(modality, {"main": drawing}, config, out)
        shown = class_columns(model) if trainer.sample_every and place.is_main_process else None

        def preview(modules: ModuleDict, step: int) -> None:
            assert shown is not None
            with borrowed(objective.trained, modules):
                class_table(model, (1.0, 3.0), out / "previews" / f"step-{step:08d}.png", shown, seed=seed)

        began = time.perf_counter()
        try:
            average = run_training(objective, split, trainer, out, seed, resume=going_on, preview=preview)
        except Interrupted as stop:
            print(f"stopped at step {stop.step} with a checkpoint; go on with: polyguide train out={shlex.quote(str(out))} resume=true")
            raise KeyboardInterrupt from None
        seconds = time.perf_counter() - began
        if place.is_main_process:
            with borrowed(objective.trained, average):
                device = next((p.device for p in objective.parameters()), torch.device("cpu"))
                if (moments := proper.summary(modality, split, device)) is not None:
                    with checkpoint.listed(out, checkpoint.MOMENTS):
                        proper.write(out, moments)
    if place.is_main_process:
        print(
            f"trained to step {trainer.steps} in {seconds:.0f} s; sample it with: polyguide sample run={shlex.quote(str(out))} out=samples"
        )


def ended(out: Path, trainer: Trainer) -> bool:
    """Whether the training that came to its last step did the rest, too: after a kill its lock is left."""
    return not (out / LOCK).exists() or checkpoint.saved_steps(out)[-1] != trainer.steps


@contextmanager
def beginning(out: Path, overwrite: bool) -> Iterator[None]:
    """A run is begun within, in a folder without what was there before; what was written is removed where it fails."""
    vacant(out, overwrite, RUN_FILES, resumable=True)  # still, now that nobody else may write there
    clear(out, RUN_FILES)
    try:
        yield
    except BaseException:
        clear(out, RUN_FILES)
        raise


def check_shape(modality: Modality, split: Split) -> None:
    """UserError where the codec makes x0 of another shape than the modality says, and so the network was made for."""
    with torch.no_grad():
        raw, condition = split.__getitems__([0])
        made = tuple(modality.codec.encode(raw).shape[1:])
    shape = modality.shape if modality.shape_of is None else modality.shape_of(condition)
    if made != tuple(shape):
        raise UserError(f"the codec of {modality.name} gives x0 of shape {list(made)}, and the modality says {list(shape)}: shape= is x0's")


def as_written(override: str) -> str:
    """A setting as it was given, where `free` put plus signs before it."""
    from guidance.hydra import free

    bare = override.removeprefix("++")
    return bare if free(bare) == override else override


@contextmanager
def borrowed(modules: ModuleDict, weights: ModuleDict) -> Iterator[None]:
    """The modules with the weights of others, for a while."""
    own = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    modules.load_state_dict(weights.state_dict())
    try:
        yield
    finally:
        modules.load_state_dict(own)
