"""polyguide train-classifier."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from guidance import checkpoint, hub
from guidance.classifier import ACCURACY, SECTION, Classifier, Classifying, NoisyClassifier, features_of, held_out
from guidance.commands.output import RUN_FILES, vacant
from guidance.commands.settings import flag, folder, threads, whole_number
from guidance.commands.training import as_written, beginning, resumed, settled, trainer_of
from guidance.condition import Label
from guidance.config import build
from guidance.errors import UserError, one_of
from guidance.holdout import parse, without
from guidance.loss import UniformTimes
from guidance.model import PARTS, Model, assemble, load
from guidance.processes import launched
from guidance.upkeep import alone

FROM_THE_RUN = (*PARTS, "times", "holdout")


@launched()
def train_classifier(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide train-classifier"""
    from accelerate.state import PartialState
    from accelerate.utils.environment import parse_flag_from_env

    from guidance.table import as_text
    from guidance.train import Interrupted, train

    out, resume, overwrite = folder(config, "out"), flag(config, "resume"), flag(config, "overwrite")
    threads(config)
    whole_number(config, "seed", 0)
    model: Model | None = None
    own = {key: config[key] for key in ("run", "attributes", "trainer", "seed")}
    going_on = resume and checkpoint.is_run(out)
    if going_on:
        stored = checkpoint.read_config(out)
        if SECTION not in stored:
            raise UserError(f"out={out} holds a model, not a classifier; choose another out=")
        facts = stored[SECTION]
        before = {"run": facts["run"], "attributes": facts["asked"], "trainer": stored["trainer"], "seed": stored["seed"]}
        own = resumed(own, before, overrides)
        made = {**stored, "trainer": own["trainer"]}
        modality, denoiser = assemble(checkpoint.located(made, out))
    else:
        vacant(out, overwrite, RUN_FILES, resumable=True)
        model = load(config["run"] if hub.named(config["run"]) else folder(config, "run"), precision="no")  # the trainer has its own
        modality, denoiser = model.modality, model.denoisers["main"]
        made = described(model, own)
    classes = made[SECTION]["attributes"]
    trainer = trainer_of(made)
    if not len(modality.data.train):
        raise UserError(f"there is nothing to train on: {modality.data.name} has no training items")
    split = without(modality.data.train, parse(made.get("holdout") or [], modality.conditions))
    steps = checkpoint.saved_steps(out) if going_on else []
    torch.manual_seed(made["seed"])  # the heads' initial weights
    network = NoisyClassifier(denoiser.network, modality.conditions, {k: len(of) for k, of in classes.items()}, made[SECTION]["width"])
    objective = Classifying(network, denoiser, modality.codec, build(made["times"], "times") if made.get("times") else UniformTimes())
    with torch.no_grad():
        item = modality.codec.encode(split.__getitems__([0])[0])
    objective.settle(item)
    place: Any = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator() will
    made, trainer = settled(made, trainer, place.device or torch.device("cpu"), out if going_on else None)
    if steps and checkpoint.check(checkpoint.latest(out), objective.trained) >= trainer.steps and (out / ACCURACY).is_file():
        with alone(out) if place.is_main_process else nullcontext():  # whoever trains it still is not done
            print(f"{out} is trained already, to step {steps[-1]}; trainer.steps={trainer.steps} asks for no more")
        return
    place.wait_for_everyone()  # every process has looked before the first one writes
    with alone(out) if place.is_main_process else nullcontext():
        if place.is_main_process:
            files = {} if model is None or model.run is None else checkpoint.own_contents(model.config, model.run)
            with beginning(out, overwrite) if not going_on else nullcontext():
                with checkpoint.listed(out, *files):
                    for name, content in files.items():
                        checkpoint.write_atomically(out / name, content)
                if not (steps or checkpoint.has_start(out)):
                    checkpoint.save_start(out, objective.trained.state_dict(), {"seed": made["seed"], "items": len(split)})
                if overrides:
                    checkpoint.record_command(out, "polyguide train-classifier", [as_written(override) for override in overrides])
                checkpoint.write_config(out, made)
            size = sum(p.numel() for p in network.parameters() if p.requires_grad)
            names = ", ".join(f"{name} ({len(of)} classes)" for name, of in classes.items())
            print(f"training {size:,} parameters to tell {names} on {len(split):,} noisy samples of {modality.data.name}, into {out}")
        began = time.perf_counter()
        try:
            train(objective, split, trainer, out, made["seed"], resume=going_on)
        except Interrupted as stop:
            where = f"run={shlex.quote(str(config['run']))} out={shlex.quote(str(out))}"
            print(f"stopped at step {stop.step} with a checkpoint; go on with: polyguide train-classifier {where} resume=true")
            raise KeyboardInterrupt from None
        seconds = time.perf_counter() - began
        if place.is_main_process:
            classifier = Classifier.load(str(out))
            classifier.network.to(place.device)
            rows = held_out(classifier, modality.data.test, made["seed"]) if len(modality.data.test) else []
            checkpoint.write_atomically(out / ACCURACY, json.dumps(accuracy(rows, classes), indent=1).encode())
            print(f"trained to step {trainer.steps} in {seconds:.0f} s; held-out accuracy, and -log p of the true class, by log-SNR:")
            print(as_text(rows))
            steer = f"polyguide sample run={config['run']} guidance=classifier guidance.classifier.run={shlex.quote(str(out))}"
            print(f"steer with it: {steer}")


def described(model: Model, own: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a classifier that begins from a model."""
    if missing := [part for part in PARTS if not model.config.get(part)]:
        raise UserError(f"the model was made without a config (it has no {missing[0]!r}), so a classifier of it could not be loaded again")
    labels = {name: list(spec.classes) for name, spec in model.modality.conditions.items() if isinstance(spec, Label)}
    if not labels:
        raise UserError(f"{own['run']} has no attribute with classes, so there is nothing to classify")
    asked = own["attributes"]
    if asked is not None and (not isinstance(asked, list) or not asked):
        raise UserError(f"attributes is a list, e.g. attributes=[{next(iter(labels))}], got {asked!r}")
    for name in asked or []:
        if name not in labels:
            raise one_of("attribute with classes", name, list(labels))
    modality = model.modality
    with torch.no_grad():
        item = modality.codec.encode(modality.data.train.__getitems__([0])[0])
        width = features_of(model.denoisers["main"].network, modality.conditions, item, item.new_zeros(1)).shape[1]
    facts: dict[str, Any] = {"run": str(own["run"]), "step": model.step, "average": model.average, "asked": asked}
    facts |= {"attributes": {name: of for name, of in labels.items() if not asked or name in asked}, "width": width}
    inherited = {key: model.config[key] for key in FROM_THE_RUN if key in model.config}
    return {SECTION: facts, **inherited, "trainer": own["trainer"], "seed": own["seed"]}


def accuracy(rows: Sequence[Mapping[str, float]], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """By attribute and log-SNR, for JSON."""
    kinds = {"accuracy": "", "negative_log_likelihood": "_nll"}
    return {what: {name: {f"{row['logsnr']:g}": row[f"{name}{end}"] for row in rows} for name in classes} for what, end in kinds.items()}
