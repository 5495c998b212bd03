"""What is installed: modalities, found by entry point (group ``polyguide.modalities``), and packages that bring other choices, such as a
guidance rule or a sampler (group ``polyguide.packages``).

An entry point names a plug-in's ``build`` function. The module that holds it states the version of the contract that it was
written for (``INTERFACE = 1``); the package that it is in may be called from configs; and its folder ``configs``, where there is
one, is searched beside ours. Nothing of a plug-in is imported before it is used: one that is broken breaks nothing else.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from guidance.errors import UserError

GROUP, PACKAGES, COMMANDS = "polyguide.modalities", "polyguide.packages", "polyguide.commands"
OURS = "polyguide"

INTERFACE = 1
"""The version of the contract in `guidance.modality`; raised whenever a plug-in would have to change."""


@dataclass(frozen=True)
class Plugin:
    name: str
    target: str  # package.module:function; of a package without a modality, package
    distribution: str
    version: str = ""
    modality: bool = True

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
        """The folder of its package, or the file of a module that is in none; None where it cannot be found."""
        try:
            spec = find_spec(self.package)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
        return Path(places[0]) if places else Path(spec.origin) if spec.origin else None

    @property
    def folder(self) -> Path | None:
        """Where the module of its build function lies; None where it cannot be found."""
        if self.top is None:
            return None
        if self.top.is_file():
            return self.top.parent
        place = self.top.joinpath(*self.module.split(".")[1:])
        return place if place.is_dir() else place.parent if place.with_suffix(".py").is_file() else None

    @property
    def configs(self) -> Path | None:
        """Its own config folder, beside its build function or at the top of its package; what lies beside a lone module is not its own."""
        if self.top is None or self.top.is_file():
            return None
        places = [place / "configs" for place in (self.folder, self.top) if place is not None]
        return next((place for place in places if place.is_dir()), None)

    def load(self) -> Callable[..., Any]:
        """Its build function. UserError where it cannot be imported, or was written for another version of the contract."""
        return function(self.check(), self.target, str(self), self.distribution)

    def check(self) -> Any:
        """Its module. UserError as for `load`."""
        module = imported(self.module, str(self))
        stated = getattr(module, "INTERFACE", None)
        if stated != INTERFACE:
            says = f"states no INTERFACE in {self.module}" if stated is None else f"was written for version {stated!r} of the interface"
            raise UserError(f"{self} {says}; this polyguide has version {INTERFACE}: update one of them, or uninstall {self.distribution}")
        return module


@dataclass(frozen=True)
class Command:
    """A further command of the command line (group ``polyguide.commands``)."""

    name: str
    target: str
    distribution: str

    def __str__(self) -> str:
        return f"the command {self.name!r} ({self.distribution})"

    def load(self) -> Callable[..., Any]:
        """A function of the command line's arguments. UserError where it cannot be imported, or where two packages bring it."""
        others = {command.distribution for command in all_commands() if command.name == self.name and command != self}
        if others:
            names = ", ".join(sorted({*others, self.distribution}))
            raise UserError(f"the command {self.name!r} is brought by more than one package: {names}; uninstall all but one of them")
        return function(imported(self.target.split(":")[0], str(self)), self.target, str(self), self.distribution)


def function(module: Any, target: str, what: str, distribution: str) -> Callable[..., Any]:
    """What an entry point names in its module, or a UserError where there is no such function."""
    found: Any = module
    for part in target.partition(":")[2].split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(f"{what} has no function {target}; reinstall {distribution}")
    build: Callable[..., Any] = found
    return build


def imported(module: str, what: str) -> Any:
    """A module of a plug-in, or a UserError that says why not."""
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{what} cannot be imported: {type(error).__name__}: {told}") from error


def origin(entry: EntryPoint) -> tuple[str, str, str]:
    """Of an entry point: its target, without extras, and the distribution with its version, as far as they are known."""
    target = "".join(entry.value.split("[")[0].split())
    if entry.dist is None or "Name" not in entry.dist.metadata:
        return target, "a package without a name", ""
    return target, entry.dist.metadata["Name"], entry.dist.version


@cache
def all_commands() -> tuple[Command, ...]:
    """All further commands, by name."""
    found = (Command(entry.name, *origin(entry)[:2]) for entry in entry_points(group=COMMANDS))
    return tuple(sorted(dict.fromkeys(found), key=lambda c: (c.name, c.distribution)))


def commands() -> dict[str, Command]:
    """Further commands, by name."""
    return {command.name: command for command in all_commands()}


@cache
def plugins() -> tuple[Plugin, ...]:
    """All installed modalities, by name."""
    found = (Plugin(entry.name, *origin(entry)) for entry in entry_points(group=GROUP))
    return tuple(sorted(dict.fromkeys(found), key=lambda p: (p.name, p.distribution)))


@cache
def everything() -> tuple[Plugin, ...]:
    """All installed modalities, and the packages that bring other choices."""
    found = (Plugin(entry.name, *origin(entry), modality=False) for entry in entry_points(group=PACKAGES))
    return *plugins(), *sorted(dict.fromkeys(found), key=lambda p: (p.name, p.distribution))


def trusted_packages() -> tuple[str, ...]:
    """The packages whose functions a config may call."""
    return tuple(dict.fromkeys(("guidance", "modalities", *(plugin.package for plugin in everything()))))


def responsible(target: str) -> list[Plugin]:
    """The plug-ins that a dotted name belongs to: those of its module, or else of its package."""
    mine = [plugin for plugin in everything() if plugin.package == target.split(".", maxsplit=1)[0]]
    return [plugin for plugin in mine if f"{target}.".startswith(f"{plugin.module}.")] or mine


def choices(folder: Path) -> set[tuple[str, str]]:
    """Of a config folder: (group, name) of all that can be chosen there."""
    return {(path.parent.relative_to(folder).as_posix(), path.stem) for path in folder.glob("*/**/*.yaml")}


def check_choice(group: str, name: str, own: Path) -> None:
    """UserError where more than one plug-in brings a choice of this name; those of our own config folder ``own`` come first."""
    found = [p for p in everything() if p.configs and p.configs.resolve() != own.resolve() and (group, name) in choices(p.configs)]
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
    if others and plugin.modality:
        found.append(f"modality={plugin.name} cannot be chosen: {', '.join(others)} brings one of that name, too")
    if plugin.distribution == OURS:
        return found
    try:
        plugin.load() if plugin.modality else plugin.check()
    except UserError as error:
        found.append(str(error))
    if plugin.configs and plugin.configs.resolve() != own.resolve():
        mine = choices(plugin.configs)
        hidden = named(mine & choices(own))
        found += [f"its {hidden} cannot be chosen: polyguide's own of that name come first"] if hidden else []
        for name in sorted({p.distribution for p in everything()} - {plugin.distribution}):
            folders = [p.configs for p in everything() if p.distribution == name and p.configs and p.configs.resolve() != own.resolve()]
            both = named({choice for folder in folders for choice in choices(folder) & mine} - choices(own))
            found += [f"its {both} cannot be chosen: {name} brings the same, too"] if both else []
    return found


def command_problems(command: Command, own: Container[str]) -> list[str]:
    """What is wrong with a command, to be told beside it. Those of other distributions are imported to see."""
    if command.name in own:
        return [f"polyguide {command.name} is polyguide's own command"]
    try:
        if command.distribution != OURS:
            command.load()
    except UserError as error:
        return [str(error)]
    return []


def named(choices: set[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{group}={name}" for group, name in choices))
