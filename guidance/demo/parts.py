"""What the parts of a demo are: plain data, composed into the configs of the commands that they are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidance import checkpoint
from guidance.errors import UserError, one_of
from guidance.experiment.findings import FACTS
from guidance.hydra import composed
from guidance.upkeep import LOCK

SECONDS: Mapping[str, float] = {"train": 4.0, "sample": 2.0, "experiment": 4.0, "cell": 0.3, "report": 4.0}
"""Seconds that a part takes besides products of matrices, measured on one plain core: reading data and the pictures of a new run; loading a
model to draw samples, or for an experiment, with the real data that it is held against; a cell's measures; the page with its figures."""


@dataclass(frozen=True)
class Stage:
    """One command of a part, its config composed."""

    name: str
    command: str  # train, sample or experiment
    config: Mapping[str, Any]
    overrides: Sequence[str]
    out: Path

    @property
    def whole(self) -> bool:
        """Whether nothing of it is left to be done."""
        if self.command == "train":
            steps = checkpoint.saved_steps(self.out)
            return bool(steps) and steps[-1] >= self.config["trainer"]["steps"] and not (self.out / LOCK).exists()
        if self.command == "sample":
            return (self.out / "samples.json").is_file()
        return bool(states := cells_done(self.out)) and all(states)


@dataclass(frozen=True)
class Part:
    """A model, and what is done with it, in this order."""

    name: str
    stages: Sequence[Stage]
    seconds: Mapping[str, float]

    @property
    def run(self) -> Path:
        return self.stages[0].out

    @property
    def whole(self) -> bool:
        return all(stage.whole for stage in self.stages)


def cells_done(out: Path) -> list[bool]:
    """Of an experiment's folder, which of its cells are measured; nothing where it has not begun."""
    import json

    try:
        names = json.loads((out / FACTS).read_text())["cells"]
        return [(out / "cells" / f"{name}.json").is_file() for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def parts_of(config: Mapping[str, Any], out: Path) -> list[Part]:
    """The parts that are asked for. UserError for one that is not known, or is no part."""
    each, names = config["each"], config["parts"]
    if not isinstance(each, Mapping):
        raise UserError(f"each is what the parts do, by name, got each={each!r}")
    if not isinstance(names, list) or not names:
        raise UserError(f"parts is a list of some of {', '.join(map(str, each))}, e.g. parts=[{next(iter(each), '')}]; got parts={names!r}")
    for name in names:
        if name not in each:
            raise one_of("part", name, list(map(str, each)))
    if len(set(names)) < len(names):
        raise UserError(f"parts names one twice: {names}")
    return [part_of(str(name), each[name], out / str(name)) for name in names]


def part_of(name: str, of: Any, folder: Path) -> Part:
    known = ("train", "samples", "experiments", "seconds")
    if not isinstance(of, Mapping) or "train" not in of:
        raise UserError(f"each.{name} has train, the settings of its training, and may have {', '.join(known[1:])}; got {of!r}")
    for key in of:
        if key not in known:
            raise one_of(f"key of each.{name}", key, known)
    run = folder / "run"
    stages = [stage("train", "train", settings(of["train"], f"each.{name}.train"), run, {"out": str(run), "resume": True})]
    for kind, command, where in (("samples", "sample", folder), ("experiments", "experiment", run / "experiments")):
        given = of.get(kind) or {}
        if not isinstance(given, Mapping):
            raise UserError(f"each.{name}.{kind} are settings of polyguide {command}, by a name for each; got {given!r}")
        for title, lines in given.items():
            place = where / str(title)
            more = {"run": str(run), "out": str(place), **({"resume": True} if command == "sample" else {})}
            chosen = [f"experiment={title}"] if command == "experiment" else []
            stages.append(stage(str(title), command, [*chosen, *settings(lines, f"each.{name}.{kind}.{title}")], place, more))
    seconds = of.get("seconds") or {}
    if not isinstance(seconds, Mapping) or not all(
        key in SECONDS and isinstance(value, int | float) and value >= 0 for key, value in seconds.items()
    ):
        raise UserError(f"each.{name}.seconds are numbers for some of {', '.join(SECONDS)}; got {seconds!r}")
    return Part(name, stages, {**SECONDS, **seconds})


def settings(given: Any, where: str) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(line, str) for line in given):
        raise UserError(f"{where} is a list of settings as on the command line, e.g. [data=digits]; got {given!r}")
    return list(given)


def stage(name: str, command: str, overrides: list[str], out: Path, more: Mapping[str, Any]) -> Stage:
    """With what the demo sets itself put into the composed config, where no path needs quotes."""
    places = [f"{key}=here" for key in more if key in ("out", "run")]
    return Stage(name, command, {**composed(command, [*overrides, *places]), **more}, overrides, out)
