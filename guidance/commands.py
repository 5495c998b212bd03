"""What each command does with its config."""

import inspect
import json
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch.nn import ModuleDict

from guidance import checkpoint, hub
from guidance.bar import Bar
from guidance.config import build, leaves, resolve
from guidance.errors import UserError, one_of
from guidance.guide import Guidance
from guidance.holdout import parse, without
from guidance.modality import Modality, Split
from guidance.model import PARTS, SAMPLER, Model, assemble, load, with_codec
from guidance.previews import class_table, forward_process
from guidance.sampler import Callback


def device_of(config: Mapping[str, Any]) -> torch.device:
    """device=auto is a GPU where there is one; of several processes on a machine, each has its own."""
    name = config.get("device", "auto")
    if name == "auto":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")
    try:
        torch.zeros(1, device=name).cpu()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from None


def threads(config: Mapping[str, Any]) -> None:
    if config.get("threads") is not None:
        torch.set_num_threads(whole_number(config, "threads"))


def whole_number(config: Mapping[str, Any], key: str, least: int = 1) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise UserError(f"{key} is a whole number, at least {least}, got {value!r}")
    return value


def flag(config: Mapping[str, Any], key: str) -> bool:
    value = config[key]
    if not isinstance(value, bool):
        raise UserError(f"{key} is true or false, got {value!r}")
    return value


def folder(config: Mapping[str, Any], key: str) -> Path:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{key} names a folder, got {value!r}")
    return Path(str(value)).expanduser()


def settings_of(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A group of settings that may be empty."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is given by setting, {key}.SETTING=VALUE, got {key}={value!r}")
    return value


def check_number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key} takes finite numbers, got {value!r}")
    return float(value)


def vacant(out: Path, overwrite: bool, own: Sequence[str], resumable: bool = False) -> None:
    """UserError where an output folder holds what an earlier command wrote there (``own``), unless it may be overwritten."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"out={out}: {place} is a file, not a folder" if place != out else f"out={out} is a file, not a folder")
    held = next((path for pattern in own for path in out.glob(pattern)), None)
    if held and not overwrite:
        what = "a run" if checkpoint.is_run(out) else f"results ({held.name})"
        hint = "resume=true or overwrite=true" if resumable and checkpoint.is_run(out) else "overwrite=true"
        raise UserError(f"out={out} already holds {what}; pass {hint}, or another out=")


def clear(out: Path, own: Sequence[str]) -> None:
    """The folder, without what an earlier command wrote there."""
    for path in [path for pattern in own for path in out.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)


RUN_FILES = (
    *(checkpoint.CONFIG, checkpoint.METRICS, checkpoint.CHECKPOINTS, checkpoint.COMMANDS),
    *("previews", "forward.*", "schedule.png"),
    *("polyguide/events.out.tfevents.*", "polyguide/[0-9]*.[0-9]*", "wandb/*run-[0-9]*"),  # the trackers'
)
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
        config = resumed(config, checkpoint.read_config(out), overrides)
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
        run_training(objective, split, trainer, out, seed, resume=going_on, preview=preview)
    except Interrupted as stop:
        print(f"stopped at step {stop.step} with a checkpoint; go on with: polyguide train out={shlex.quote(str(out))} resume=true")
        raise KeyboardInterrupt from None
    seconds = time.perf_counter() - began
    if place.is_main_process:
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


def loaded(config: Mapping[str, Any]) -> Model:
    """The model of a command that draws samples."""
    settings = leaves(settings_of(config, "model"))
    run = config["run"] if hub.named(config["run"]) else folder(config, "run")
    return load(run, device=device_of(config), settings=settings, precision=str(config["precision"]))


def measured(config: Mapping[str, Any]) -> Path:
    """The folder for what is measured: in the run, or for a model of the hub, whose name is no folder here, in one named as the model."""
    run, out = folder(config, "run"), folder(config, "out")
    if (name := hub.named(config["run"])) and out.is_relative_to(run):
        return Path(name.name) / out.relative_to(run)
    return out


def sampling(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The settings that all commands which draw samples share, as `Model.sample` takes them; the run's own sampler by default."""
    chosen = settings_of(config, "sampler")
    if "_target_" not in chosen:
        chosen = {**(model.config.get("sampler") or SAMPLER), **chosen}
    chosen = dict(chosen)
    known = [name for name in inspect.signature(resolve(chosen["_target_"])).parameters if name != "self"]
    for name in chosen.keys() - {"steps", "_target_", *known}:
        raise one_of("config key", f"sampler.{name}", [f"sampler.{name}" for name in ("steps", *known)])
    if "steps" not in chosen:
        raise UserError("sampler.steps is missing; give it, e.g. sampler.steps=50")
    steps = whole_number({"sampler.steps": chosen.pop("steps")}, "sampler.steps")
    return {
        "sampler": build(chosen, "sampler"),
        "steps": steps,
        "grid": build(config["grid"], "grid"),
        "schedule": build(config["schedule"], "schedule") if config.get("schedule") else None,
        "seed": whole_number(config, "seed", 0),
        "batch_size": None if config["batch_size"] is None else whole_number(config, "batch_size"),
        "max_rows": None if config["max_rows"] is None else whole_number(config, "max_rows"),
    }


def nth(value: Any, k: int, n: int) -> Any:
    """Of one value for all, or a list of n."""
    return value[k] if isinstance(value, list) and len(value) == n else value


SAMPLE_FILES = ("[0-9]" * 6 + ".*", "grid.*", "denoising.*", "samples.json", "samples.jsonl", "index.html")
EVALUATION_FILES = ("metrics.csv", "curves.png", "table.*", "evaluation.json")
SHOWN = 64  # samples printed, where they are words


def sample(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide sample"""
    from guidance.card import called
    from guidance.evaluate import Evaluations
    from guidance.page import gallery, shown_as
    from guidance.seen import Seen

    threads(config)
    n, out, overwrite, animate = whole_number(config, "n"), folder(config, "out"), flag(config, "overwrite"), flag(config, "animate")
    guidance = build(config["guidance"], "guidance")
    if not isinstance(guidance, Guidance):
        raise UserError(f"guidance={config['guidance']} is no guidance; `polyguide list` shows what can be chosen")
    if not isinstance(config["condition"], Mapping):
        raise UserError(f"condition is given by attribute, e.g. condition.digit=3, got condition={config['condition']!r}")
    model = loaded(config)
    settings = sampling(config, model)
    render, codec = model.modality.render, model.modality.codec
    if (wanted := config["format"]) not in (None, *render.formats):
        raise one_of("format", wanted, render.formats)
    counter, frames = Evaluations(), []
    condition = {name: value for name, value in config["condition"].items() if value is not None}
    vacant(out, overwrite, SAMPLE_FILES)
    bar = Bar(-(-n // (settings["batch_size"] or n)) * settings["steps"], "sample")
    callbacks: list[Callback] = [counter, bar]
    if animate:
        callbacks.append(lambda p: frames.append(p.prediction.x0[:64].clone()))
    done, shown, files, seen = 0, [], [], Seen(model, config["judge"])
    with torch.no_grad():
        for x0 in model.latents(n, condition, guidance=guidance, callbacks=callbacks, **settings):
            if not done:  # nothing of an earlier command is removed before it is known that this one works
                clear(out, SAMPLE_FILES)
            decoded = codec.decode(x0)
            files += render.save(decoded, out, [f"{k:06d}" for k in range(done, done + len(x0))], wanted)
            seen(decoded)
            if done < 64:
                shown.append(x0[: 64 - done])
            done += len(x0)
        together = torch.cat(shown)
        columns = min(8, len(together))
        rows = -(-len(together) // columns)
        drawn = render.table(codec.decode(together), out / "grid.png", [""] * rows, [""] * columns)
        if frames:
            render.animate([codec.decode(frame) for frame in frames[: settings["steps"]]], out / "denoising.gif")
    evaluations = counter.rows / (n * settings["steps"])
    facts = {"config": config, "network_evaluations_per_sample_and_step": evaluations, "network_calls": counter.calls}
    checkpoint.write_atomically(out / "samples.json", json.dumps(facts, indent=1, default=str).encode())
    given = [{name: nth(value, k, n) for name, value in condition.items()} for k in range(n)]
    named = [{"file": file.name} for file in files] or [{} for _ in range(n)]
    lines = [{**file, "asked": asked, **what} for file, asked, what in zip(named, given, seen.rows(n), strict=True)]
    checkpoint.write_atomically(out / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    asked = [shorten(", ".join(f"{name}={value}" for name, value in of.items()), 80) for of in given]
    about = f"guidance {called(config['guidance']).strip('`')}, {settings['steps']} steps, seed {settings['seed']}"
    if files:
        if not shown_as(files[0]):  # a page has to show something
            asked = [": ".join(filter(None, parts)) for parts in zip(asked, seen.texts or [""] * n, strict=True)]
        page = gallery(f"{n} samples of {config['run']}", about, files, asked, None if shown_as(files[0]) else drawn)
        checkpoint.write_atomically(out / "index.html", page.encode())
    for line in lines[:SHOWN]:
        if "text" in line:
            print("\t".join([", ".join(f"{c} {p:.2f}" for c, p in line.get("seen", {}).values()), line["text"]]).strip())
    if n > SHOWN and seen.texts:
        print(f"... and {n - SHOWN} more")
    print(f"{n} samples in {out}; {evaluations:.3g} network evaluations a sample and step, in {counter.calls} calls")


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def varied(config: Any, vary: Any) -> Callable[[float], Guidance]:
    """The guidance of a config, as a function of one of its settings, by dotted name."""
    names = [name for name in leaves(config) if not name.endswith("_")]
    if vary not in names:
        raise one_of("setting of the guidance to vary", vary, names)

    def at(scale: float) -> Guidance:
        made = deepcopy(config)
        node = made
        *path, last = str(vary).split(".")
        for part in path:
            node = node[part]
        node[last] = scale
        guidance = build(made, "guidance")
        if not isinstance(guidance, Guidance):
            raise UserError(f"guidance={config} is no guidance; `polyguide list` shows what can be chosen")
        return guidance

    return at


def evaluate(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide evaluate"""
    from guidance.evaluate import GIVEN, default_attribute, reference
    from guidance.evaluate import evaluate as measure
    from guidance.experiment.conduct import weights
    from guidance.plots import quality_curves
    from guidance.table import as_csv, as_text, flat

    threads(config)
    n, overwrite, out = whole_number(config, "n", 2), flag(config, "overwrite"), measured(config)
    if not isinstance(config["scales"], list) or not config["scales"]:
        raise UserError(f"scales is a list of numbers, e.g. scales=[-1,0,1,3], got {config['scales']!r}")
    scales = [check_number(scale, "scales") for scale in config["scales"]]
    model = loaded(config)
    settings = sampling(config, model)
    name, given = default_attribute(model, config["attribute"]), config["given"]
    if given not in GIVEN:
        raise one_of("given", given, GIVEN)
    guide = varied(config["guidance"], config["vary"])
    guide(scales[0])
    vacant(out, overwrite, EVALUATION_FILES)
    settings["grid"](settings["schedule"] or model.denoisers["main"].schedule, settings["steps"])  # a grid that does not fit is refused
    ref = reference(model, name)  # what is wrong with the data is said before anything is removed
    bar = Bar(len(scales) * -(-n // (settings["batch_size"] or n)) * settings["steps"], "evaluate")
    draw = partial(model.sample, **settings)
    rows, _ = measure(model, scales, n, attribute=name, given=given, guide=guide, draw=draw, ref=ref, callbacks=[bar])
    clear(out, EVALUATION_FILES)
    drawn = class_table(model, scales, out / "table.png", attribute=name, given=given, guide=guide, **settings)
    table = [{"scale": "real", "n": ref.n, **ref.real}, *rows]
    checkpoint.write_atomically(out / "metrics.csv", as_csv(table).encode())
    quality_curves(rows, ref.real, out / "curves.png")
    judged = None if ref.judge is None else ref.judge.accuracy
    of = {"weights": weights(model), "sampler": f"{settings['sampler']!r}, {settings['steps']} steps"}
    facts = {"config": config, **of, "attribute": name, "judge_accuracy": judged, "rows": [finite(flat(row)) for row in table]}
    checkpoint.write_atomically(out / "evaluation.json", json.dumps(facts, indent=1, default=str).encode())
    print(as_text(table))
    about = f"; the judge is right on {judged:.1%} of held-out data" if judged is not None else ""
    print(f"\n{name or 'all'}: {n} samples a scale from the same noise, {settings['steps']} steps{about}")
    print(f"metrics.csv, curves.png and {drawn.name} are in {out}")


def experiment(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide experiment"""
    from guidance.experiment.cells import Cells
    from guidance.experiment.conduct import conduct
    from guidance.experiment.findings import Experiment
    from guidance.experiment.report import written

    threads(config)
    n, overwrite, out = whole_number(config, "n", 2), flag(config, "overwrite"), measured(config)
    asked = config.get("experiment")
    if asked is None:
        raise UserError("experiment is missing; choose one, e.g. experiment=inverse; `polyguide list` shows them all")
    made = build(asked, "experiment")
    if not isinstance(made, Experiment):
        raise UserError(f"experiment={asked!r} is no experiment; `polyguide list` shows what can be chosen")
    vacant(out, True, ())
    model = loaded(config)
    settings = sampling(config, model) | {"model": settings_of(config, "model")}
    settings["grid"](settings["schedule"] or model.denoisers["main"].schedule, settings["steps"])  # a grid that does not fit is refused

    def variant(name: str, of: Mapping[str, Any]) -> Model:
        place = out / "variants" / name
        wanted = {key: value for key, value in of.items() if key not in OF_THE_COMMAND}
        other = checkpoint.is_run(place) and any(checkpoint.read_config(place).get(key) != value for key, value in wanted.items())
        if other or checkpoint.saved_steps(place)[-1:] != [wanted["trainer"]["steps"]]:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise UserError(f"{name} is still to be trained, which one process does: start the experiment once without a launcher")
            train({**deepcopy(wanted), "out": str(place), "resume": not other, "overwrite": other, "threads": None}, [])
        return loaded({**config, "run": str(place)})

    result = conduct(made, asked, model, out, n, settings, overwrite=overwrite, make=variant)
    with Cells(out).claim("report", wait=True):
        written([[result]], out, f"{made.title}: {model.modality.data.name}")
