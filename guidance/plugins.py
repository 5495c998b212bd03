"""What is installed: modalities, found by entry point (group ``polyguide.modalities``).

An entry point names a plug-in's ``build`` function. The module that holds it states the version of the contract that it was
written for (``INTERFACE = 1``); the package that it is in may be called from configs; and its folder ``configs``, where there is
one, is searched beside ours. Nothing of a plug-in is imported before it is used: one that is broken breaks nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from guidance.errors import UserError

GROUP = "polyguide.modalities"
OURS = "polyguide"

INTERFACE = 1
"""The version of the contract in `guidance.modality`; raised whenever a plug-in would have to change."""


@dataclass(frozen=True)
class Plugin:
    name: str
    target: str  # package.module:function
    distribution: str
    version: str = ""

    def __str__(self) -> str:
        return f"the plug-in {self.name!r} ({self.distribution})"

    @property
    def module(self) -> str:
        return self.target.split(":")[0]

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def top(self) -> Path | None:
        """Where its package lies; None where it cannot be found."""
        try:
            spec = find_spec(self.package)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
        return Path(places[0]) if places else Path(spec.origin).parent if spec.origin else None

    @property
    def folder(self) -> Path | None:
        """Where the module of its build function lies; None where it cannot be found."""
        if self.top is None:
            return None
        place = self.top.joinpath(*self.module.split(".")[1:])
        return place if place.is_dir() else place.parent if place.with_suffix(".py").is_file() else None

    @property
    def configs(self) -> Path | None:
        """Its own config folder, beside its build function or at the top of its package."""
        places = [place / "configs" for place in (self.folder, self.top) if place is not None]
        return next((place for place in places if place.is_dir()), None)

    def load(self) -> Callable[..., Any]:
        """Its build function. UserError where it cannot be imported, or was written for another version of the contract."""
        module = imported(self.module, str(self))
        stated = getattr(module, "INTERFACE", None)
        if stated != INTERFACE:
            says = f"states no INTERFACE in {self.module}" if stated is None else f"was written for version {stated!r} of the interface"
            raise UserError(f"{self} {says}; this polyguide has version {INTERFACE}: update one of them, or uninstall {self.distribution}")
        found: Any = module
        for part in self.target.split(":")[1].split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise UserError(f"{self} has no function {self.target}; reinstall {self.distribution}")
        build: Callable[..., Any] = found
        return build


def imported(module: str, what: str) -> Any:
    """A module of a plug-in, or a UserError that says why not."""
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{what} cannot be imported: {type(error).__name__}: {told}") from error


def commands() -> dict[str, EntryPoint]:
    """Further commands, by name (group ``polyguide.commands``): ``load()`` gives a function of the command line's arguments."""
    return {entry.name: entry for entry in sorted(entry_points(group="polyguide.commands"), key=lambda e: e.name)}


@cache
def plugins() -> tuple[Plugin, ...]:
    """All installed modalities, by name."""

    def read(entry: EntryPoint) -> Plugin:
        return Plugin(entry.name, entry.value, *((entry.dist.name, entry.dist.version) if entry.dist else ("?", "")))

    return tuple(sorted(dict.fromkeys(map(read, entry_points(group=GROUP))), key=lambda p: (p.name, p.distribution)))


def trusted_packages() -> tuple[str, ...]:
    """The packages whose functions a config may call."""
    return tuple(dict.fromkeys(("guidance", "modalities", *(plugin.package for plugin in plugins()))))


def responsible(target: str) -> list[Plugin]:
    """The plug-ins that a dotted name belongs to: those of its module, or else of its package."""
    mine = [plugin for plugin in plugins() if plugin.package == target.split(".", maxsplit=1)[0]]
    return [plugin for plugin in mine if f"{target}.".startswith(f"{plugin.module}.")] or mine


def choices(folder: Path) -> set[tuple[str, str]]:
    """Of a config folder: (group, name) of all that can be chosen there."""
    return {(path.parent.relative_to(folder).as_posix(), path.stem) for path in folder.glob("*/**/*.yaml")}


def check_choice(group: str, name: str, own: Path) -> None:
    """UserError where more than one plug-in brings a choice of this name; those of our own config folder ``own`` come first."""
    found = [p for p in plugins() if p.configs and p.configs.resolve() != own.resolve() and (group, name) in choices(p.configs)]
    of = {plugin.distribution for plugin in found}
    if group == "modality":
        of |= {plugin.distribution for plugin in plugins() if plugin.name == name}
    elif (group, name) in choices(own):
        return
    if len(of) > 1:
        raise UserError(f"{group}={name} is brought by more than one package: {', '.join(sorted(of))}; uninstall all but one of them")


def problems(plugin: Plugin, own: Path) -> list[str]:
    """What is wrong with a plug-in, to be told beside it. Those of other distributions are imported to see."""
    found = []
    others = [p.distribution for p in plugins() if p.name == plugin.name and p.distribution != plugin.distribution]
    if others:
        found.append(f"modality={plugin.name} cannot be chosen: {', '.join(others)} brings one of that name, too")
    if plugin.distribution == OURS:
        return found
    try:
        plugin.load()
    except UserError as error:
        found.append(str(error))
    if plugin.configs and plugin.configs.resolve() != own.resolve():
        hidden = sorted(f"{group}={name}" for group, name in choices(plugin.configs) & choices(own))
        found += [f"its {', '.join(hidden)} cannot be chosen: polyguide's own of that name come first"] if hidden else []
    return found
