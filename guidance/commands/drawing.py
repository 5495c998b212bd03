"""What the commands that draw samples share."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from guidance import hub, machine
from guidance.commands.settings import device_of, folder, settings_of, whole_number
from guidance.config import build, leaves, resolve
from guidance.errors import UserError, one_of
from guidance.model import SAMPLER, Model, load
from guidance.processes import first_alone


def loaded(config: Mapping[str, Any]) -> Model:
    """The model of a command that draws samples."""
    settings = leaves(settings_of(config, "model"))
    run = config["run"] if hub.named(config["run"]) else folder(config, "run")
    return load(run, device=device_of(config), settings=settings, precision=str(config["precision"]))


def settle_precision(config: dict[str, Any], stored: Callable[[], object]) -> None:
    """The precision of a command that draws samples, in place, as what it becomes: auto is that of the samples which are gone on with, or
    else what is fast on the device; of a launch, on the first process's.

    ``stored``: that of what the folder of results holds, if the command goes on with it.

    Raises: UserError for a precision that there is not, or that the device does not have.
    """
    asked, device = str(config["precision"]), device_of(config)
    machine.check_precision(asked)

    def found() -> str:
        known = stored()
        return str(known) if known in machine.PRECISIONS[1:] else machine.auto(device)

    config["precision"] = machine.chosen(first_alone(found) if asked == machine.AUTO else asked, device)


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
        own = SAMPLER if model.config.get("sampler") is None else model.config["sampler"]
        if not isinstance(own, Mapping) or "_target_" not in own:
            raise UserError(f"{model.source}: its config.yaml has no sampler, but sampler={own!r}; give another, e.g. sampler=dpm")
        chosen = {**own, **chosen}
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
