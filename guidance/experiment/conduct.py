"""Measuring an experiment's cells: resumable cell by cell, by as many processes as work in its folder."""

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from guidance import checkpoint, proper
from guidance.bar import Bar
from guidance.condition import Label
from guidance.errors import UserError
from guidance.evaluate import Evaluations, chosen
from guidance.experiment.asking import named
from guidance.experiment.beside import SHOWN, Beside, saved
from guidance.experiment.cells import FORMAT, Cell, Cells, Measured, plain
from guidance.experiment.findings import FACTS, Experiment, Result, read_facts, read_result
from guidance.experiment.observer import Observer
from guidance.judge import read
from guidance.model import Model
from guidance.processes import first_alone, rank

OWN = (FACTS, "cells", "samples")
"""What is measured anew with overwrite=true. Figures, tables and the page are written over; trainings are kept."""


def weights(model: Model) -> str:
    """A name for the weights that a model samples with."""
    digest = hashlib.sha256()
    for name, tensor in model.modality.modules().state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def facts_of(
    model: Model, experiment: Experiment, config: Mapping[str, Any], observer: Observer, terms: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the report says of the model, and needs to know of its attributes."""
    modality = model.modality
    priors = {}
    for name, label in observer.labels.items():
        _, values, _ = read(modality.data.train, name)
        priors[name] = (torch.bincount(values, minlength=len(label.classes)).double() / len(values)).tolist()
    run_config = {key: value for key, value in model.config.items() if key != "seed"}
    return {
        "format": FORMAT,
        **terms,
        "experiment": dict(config),
        "title": experiment.title,
        "run": model.source or str(model.run),
        "seed": model.config.get("seed"),
        "config": run_config,
        "modality": modality.name,
        "data": modality.data.name,
        "parameters": sum(p.numel() for p in modality.modules().parameters()),
        "trained": checkpoint.saved_steps(model.run)[-1] if model.run else None,
        "held_out": observer.reference.n,
        "real": {name: [e.value, e.low, e.high, e.n] for name, e in observer.reference.real.items()},
        "units": dict(modality.metrics.units),
        "accuracy": dict(observer.accuracy),
        "attributes": {
            name: {"classes": list(label.classes), "levels": [list(level) for level in label.levels], "quantity": label.quantity}
            for name, label in observer.labels.items()
        },
        "all_classes": {name: list(spec.classes) for name, spec in modality.conditions.items() if isinstance(spec, Label)},
        "priors": priors,
        "distances": observer.distances().tolist(),
    }


def improper(cells: Sequence[Cell], model: Model, n: int) -> list[dict[str, Any]]:
    """The cells that ask for what has no density, with each thing asked for and the scale or weight down to which it would have one."""
    moments, found = proper.known(model), []
    for cell in cells:
        condition = model.condition(n, None if cell.composed else named(model, cell.asked))
        if ones := proper.improper_of(model, moments, cell.guidance, condition, n):
            found.append({"at": dict(cell.at), "asked": [f"{one.asked}{f' ({one.until})' if one.until else ''}" for one in ones]})
    return found


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


OTHER = {"weights": "other weights: the run has been trained since", "trainings": "other settings of its trainings"}


def check_same(out: Path, terms: Mapping[str, Any]) -> None:
    """UserError where a folder holds cells that were measured on other terms."""
    try:
        found = read_facts(out)
    except UserError as error:
        raise UserError(f"{error}; or pass overwrite=true, or another out=") from None
    for name, value in terms.items():
        if found.get(name) != value:
            what = OTHER.get(name, f"{name}={found.get(name)}, not {value}")
            raise UserError(f"out={out} holds an experiment with {what}; pass overwrite=true, or another out=")


def conduct(
    experiment: Experiment,
    config: Mapping[str, Any],
    model: Model,
    out: Path,
    n: int,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    make: Callable[[str, Mapping[str, Any]], Model] | None = None,
) -> Result:
    """Measure what has not been measured yet.

    Args:
        config: that the experiment was built from, stored to build it again.
        settings: of `Model.sample`.
        overwrite: measure everything anew.
        make: trains a variant, by its name and config, or takes it as it was trained.

    Raises: UserError where ``out`` holds cells of another run, or of other settings.
    """
    observed = experiment.watched(model)
    cells, trainings = experiment.cells(model, n), experiment.trainings(model)
    names = [cell.name for cell in cells]
    if not cells or len(set(names)) < len(names):
        raise UserError("the experiment has no cells, or two of the same place")
    if not all(plain(cell.guidance) for cell in cells):
        raise UserError("the cells of an experiment are guided by CFG at a number, or by a composition: others have no name that lasts")
    terms = {
        "kind": config["_target_"],
        "n": n,
        "seed_of_samples": settings["seed"],
        "sampler": f"{settings['sampler']!r}, {settings['steps']} steps, {settings['grid']!r}, schedule {settings['schedule']!r}",
        "precision": str(model.denoisers["main"].precision),
        "model_settings": str(settings.get("model", {})),
        "weights": weights(model),
        "trainings": digest(trainings),
    }
    drawing = {key: value for key, value in settings.items() if key != "model"}
    store, known = Cells(out), out / FACTS
    if known.exists() and not overwrite:
        check_same(out, terms)
    observer: Observer | None = None
    if overwrite or not known.exists() or list(read_facts(out)["attributes"]) != list(observed) or not all(map(store.done, cells)):
        observer = Observer(model, observed)  # what is wrong with the data is said before anything is removed

    working = ExitStack()

    def begin(anew: bool) -> None:
        with store.claim("facts", wait=True):
            if anew and busy(store):
                raise UserError(f"out={out} is being measured by another process; end that first, or help it without overwrite=true")
            working.enter_context(store.claim(f"worker-{socket.gethostname()}-{os.getpid()}"))
            if anew:
                clear(out)
            elif known.exists():  # by now, perhaps, of a process that began at the same time
                check_same(out, terms)
            facts = (
                read_facts(out)
                if observer is None
                else {**facts_of(model, experiment, config, observer, terms), "improper": improper(cells, model, n)}
            )
            checkpoint.write_atomically(known, json.dumps({**facts, "experiment": dict(config), "cells": names}, indent=1).encode())

    with working:
        first_alone(lambda: begin(overwrite))
        if rank():
            begin(False)
        if observer is not None:
            models = {"": model}
            for name in dict.fromkeys(cell.variant for cell in cells if cell.variant and not store.done(cell)):
                models[name] = model if trainings[name] == model.config else trained(name, trainings[name], store, make)
            measure_all(cells, store, models, observer, n, drawing)
    return read_result(out)


def busy(store: Cells) -> bool:
    """Whether another process is measuring here."""
    for path in (store.folder / ".claims").glob("worker-*.lock"):
        with store.claim(path.stem) as free:
            if not free:
                return True
    return False


def trained(name: str, config: Mapping[str, Any], store: Cells, make: Callable[[str, Mapping[str, Any]], Model] | None) -> Model:
    """A variant's model, made by one process while others wait."""
    if make is None:
        raise UserError("this experiment trains models of its own, which needs a way to make them")
    with store.claim(f"variant-{name}", wait=True):
        return make(name, config)


def measure_all(
    cells: Sequence[Cell], store: Cells, models: Mapping[str, Model], observer: Observer, n: int, settings: Mapping[str, Any]
) -> None:
    """Every cell that is not done, until all are, whoever does them."""

    def cost(cell: Cell) -> int:
        return -(-n // (settings["batch_size"] or n)) * (cell.steps or settings["steps"])

    pending = [cell for cell in cells if not store.done(cell)]
    bar, beside = Bar(sum(map(cost, pending)), "experiment"), Beside(observer.model, store.samples, n)
    while pending:
        mine = 0
        for cell in pending:
            with store.claim(cell.name) as claimed:
                if not claimed:
                    continue
                if store.done(cell):
                    bar.skip(cost(cell))
                    continue
                store.write(cell, measure(cell, models[cell.variant], observer, n, settings, store.samples, bar, beside))
                mine += 1
        pending = [cell for cell in pending if not store.done(cell)]
        if pending and not mine:
            time.sleep(1)  # others are at them


def measure(
    cell: Cell, model: Model, observer: Observer, n: int, settings: Mapping[str, Any], folder: Path, bar: Bar, beside: Beside
) -> Measured:
    """Draw a cell's samples, from the same noise as every other's, and measure them."""
    began, counter = time.perf_counter(), Evaluations()
    drawing = {**settings, **({"steps": cell.steps} if cell.steps else {})}
    condition = None if cell.composed else named(model, cell.asked)
    silent = replace(model, moments=None)  # what has no density is said in the report
    samples = silent.sample(n, condition, guidance=cell.guidance, callbacks=[counter, bar], **drawing)
    with torch.no_grad():
        found, arrays = observer(samples, {name: torch.tensor(classes) for name, classes in cell.asked.items()})
    files = saved(model, chosen(samples, torch.arange(min(SHOWN, n))), folder, cell.name)
    evaluations, seconds = counter.rows / (n * counter.steps), time.perf_counter() - began
    return Measured(cell.at, n, found, arrays, files, evaluations, seconds, beside(cell))


def clear(out: Path) -> None:
    """The folder without an experiment's own files; claims stay, they are held by this process."""
    for path in [path for pattern in OWN for path in out.glob(pattern)]:
        if path.name == "cells":
            for file in path.glob("*.*"):
                if file.is_file():
                    file.unlink()
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
