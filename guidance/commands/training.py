"""polyguide train."""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch.nn import ModuleDict

from guidance import checkpoint, proper
from guidance.commands.output import RUN_FILES, clear, vacant
from guidance.commands.settings import flag, folder, threads, whole_number
from guidance.config import build, leaves
from guidance.errors import UserError
from guidance.holdout import parse, without
from guidance.modality import Modality, Split
from guidance.model import PARTS, Model, assemble, with_codec
from guidance.previews import class_table, forward_process

OF_THE_COMMAND = ("out", "resume", "overwrite", "threads")
CHANGEABLE = ("trainer.steps", "trainer.log_every", "trainer.save_every", "trainer.sample_every", "trainer.keep", "trainer.workers")


def resumed(config: Mapping[str, Any], stored: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The stored config, with the settings that a resumed run may change; UserError for any other that was given and differs."""
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
            if name not in CHANGEABLE:
                raise UserError(f"{name} cannot change when a run is resumed (it is {old.get(name)!r}); start another with another out=")
            node = result
            for part in name.split(".")[:-1]:
                node = node[part]
            node[name.split(".")[-1]] = new[name]
    return result


def train(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide train"""
    from accelerate.state import PartialState
    from accelerate.utils.environment import parse_flag_from_env

    from guidance.train import Interrupted, Objective
    from guidance.train import train as run_training
    from guidance.trainer import Trainer

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
        config = resumed(config, stored, overrides)
    seed = whole_number(config, "seed", 0)
    trainer: Trainer = build(config["trainer"], "trainer")
    torch.manual_seed(seed)  # the initial weights
    modality, denoiser = assemble(checkpoint.located(config, out))
    parts = {key: build(config[key], key) for key in ("loss", "times", "dropout")}
    parts["loss"] = with_codec(parts["loss"], modality)
    parts["dropout"].check(list(modality.conditions))
    objective = Objective(denoiser, modality.codec, **parts, conditions=modality.conditions)
    pinned = {"data": modality.data.pinned(), **(modality.pinned() if modality.pinned else {})}
    config |= {section: {**config[section], **found} for section, found in pinned.items()}
    if not len(modality.data.train):
        raise UserError(f"there is nothing to train on: {modality.data.name} has no training items")
    split = without(modality.data.train, parse(config.get("holdout", []), modality.conditions))
    steps = checkpoint.saved_steps(out) if going_on else []
    if steps and checkpoint.check(checkpoint.latest(out)) >= trainer.steps:
        print(f"{out} is trained already, to step {steps[-1]}; trainer.steps={trainer.steps} asks for no more")
        return
    place = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator() will
    place.wait_for_everyone()  # every process has looked before the first one writes
    if not steps:
        modality.codec.fit(split)
        check_shape(modality, split)
    if place.is_main_process:
        if not going_on:
            clear(out, RUN_FILES)
        for name, content in (modality.files() if modality.files else {}).items():
            checkpoint.write_atomically(out / name, content)
        checkpoint.write_config(out, {key: config[key] for key in (*PARTS, *config)})  # the model first
        if overrides:
            checkpoint.record_command(out, "polyguide train", [as_written(override) for override in overrides])
        if not going_on:
            forward_process(modality, denoiser.schedule, split, out)
        size = sum(p.numel() for p in objective.parameters())
        print(f"training {size:,} parameters on {len(split):,} samples of {modality.data.name}, into {out}")

    def preview(modules: ModuleDict, step: int) -> None:
        with borrowed(objective.trained, modules):
            model = Model(modality, {"main": denoiser}, config, out)
            class_table(model, (1.0, 3.0), out / "previews" / f"step-{step:08d}.png", seed=seed)

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
                proper.write(out, moments)
        print(
            f"trained to step {trainer.steps} in {seconds:.0f} s; sample it with: polyguide sample run={shlex.quote(str(out))} out=samples"
        )


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
