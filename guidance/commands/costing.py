"""polyguide cost."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from guidance import checkpoint
from guidance.commands.settings import flag, folder
from guidance.config import build, config_folder
from guidance.errors import UserError, one_of
from guidance.model import SAMPLER, with_codec
from guidance.trainer import Trainer

if TYPE_CHECKING:
    from guidance.cost import Cost

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PIP_NO_INDEX": "1"}


def cost(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide cost"""
    from guidance.cost_table import row, table

    one_row, as_json, recipe = flag(config, "row"), flag(config, "json"), chosen(overrides)
    if one_row and as_json:
        raise UserError("row=true and json=true exclude each other; give one of them")
    out = None if config["out"] is None else folder(config, "out")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"out={out}: that is a folder, or its folder is not there; name a file, such as out=cost.json")
    if out is not None and out.exists() and not flag(config, "overwrite"):
        raise UserError(f"out={out} is there already; pass overwrite=true, or another out=")
    made = found(with_facts(with_facts(config, shipped(recipe)), config["assumed"] or {}), recipe)
    facts = json.dumps(made.facts(), indent=2) + "\n"
    print(facts if as_json else f"{row(made)}\n" if one_row else table(made), end="", flush=True)
    if out is not None:
        try:
            checkpoint.write_atomically(out, facts.encode())
        except OSError as error:
            raise UserError(f"out={out} cannot be written: {error.strerror}") from None


def training_tflop(config: Mapping[str, Any]) -> float | None:
    """TFLOP of the training that a composed config of `polyguide train` describes, with what is trained beside the model (a language model)
    and without judges. None where data that says how long a part takes is not here."""
    return found({"device": "h100", "utilisation": 0.4, **config}).training_tflop


def found(config: Mapping[str, Any], recipe: str = "") -> "Cost":
    """What the model of a config costs."""
    from guidance.cost import cost as of
    from guidance.cost import imagined

    trainer: Trainer = build(config["trainer"], "trainer")
    settings = dict(config.get("sampler") or SAMPLER)
    steps = settings.pop("steps")
    sampler = build(settings, "sampler")
    with offline() as refused:
        try:
            modality, denoiser = imagined(config)
        except UserError:
            if not refused:
                raise
            raise UserError(
                "the data is not here, and nothing is downloaded to say what a model costs; give what reading it would tell, e.g. "
                "+assumed.data.classes.label=10 (docs/scaling.md)"
            ) from None
        parts = {key: build(config[key], key) for key in ("loss", "times", "dropout")}
        parts["loss"] = with_codec(parts["loss"], modality)
        parts["dropout"].check(list(modality.conditions))
        place = {"name": recipe or modality.data.name, "device": config["device"], "utilisation": config["utilisation"]}
        return of(modality, denoiser, trainer, sampler, steps, **parts, **place)


def chosen(overrides: Sequence[str]) -> str:
    """The recipe of a command line, if there is one."""
    return next((value for key, _, value in (o.partition("=") for o in reversed(overrides)) if key == "recipe"), "")


def shipped(recipe: str) -> Mapping[str, Any]:
    """What reading the data of a recipe would tell, where a file beside the recipes says it."""
    import yaml

    path = config_folder() / "assumed" / f"{recipe}.yaml"
    if not recipe or not path.is_file():
        return {}
    found: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def with_facts(config: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The config with settings that a run would find in its data and pin; classes may be given by their number."""
    result = deepcopy(dict(config))
    if not isinstance(facts, Mapping):
        raise UserError(f"assumed is what reading the data would tell, e.g. +assumed.data.classes.label=10; got {facts!r}")
    for section, settings in facts.items():
        if not isinstance(result.get(section), Mapping) or not isinstance(settings, Mapping):
            raise UserError(f"assumed.{section} is no section of settings that a model has, such as assumed.data; got {settings!r}")
        where, known = f"assumed.{section}.classes", result[section].get("labels")
        if unknown := [name for name in settings.get("classes") or () if isinstance(known, list) and name not in known]:
            raise one_of(f"attribute in {where}", unknown[0], known)
        named = {key: numbered(value, where) if key == "classes" else value for key, value in settings.items()}
        result[section] = {**result[section], **named}
    return result


def numbered(classes: Any, where: str) -> Any:
    """A number of classes as so many names."""
    if isinstance(classes, Mapping):
        return {name: numbered(of, f"{where}.{name}") for name, of in classes.items()}
    if isinstance(classes, int) and (isinstance(classes, bool) or classes < 1):
        raise UserError(f"{where} is a number of classes, at least 1, or their names; got {classes!r}")
    return [str(k) for k in range(classes)] if isinstance(classes, int) else classes


@contextmanager
def offline() -> Iterator[list[str]]:
    """Nothing is downloaded meanwhile, by this process or by pip; what was asked for is listed."""
    refused: list[str] = []

    def refuse(*where: object, **_: object) -> Any:
        refused.append(str(where))
        raise ConnectionRefusedError("polyguide cost downloads nothing")

    environment, asked, connect = dict(os.environ), socket.getaddrinfo, socket.socket.connect
    os.environ.update(OFFLINE)
    socket.getaddrinfo, socket.socket.connect = refuse, refuse  # type: ignore[method-assign]
    try:
        yield refused
    finally:
        socket.getaddrinfo, socket.socket.connect = asked, connect  # type: ignore[method-assign]
        os.environ.clear()
        os.environ.update(environment)
