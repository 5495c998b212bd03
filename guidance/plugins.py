"""What is installed: modalities, found by entry point (group ``polyguide.modalities``).

An entry point names a plug-in's ``build`` function; the package that it is in may be called from configs, and its folder
``configs``, where there is one, is searched beside ours.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "polyguide.modalities"


@dataclass(frozen=True)
class Plugin:
    name: str
    target: str  # package.module:function
    distribution: str

    @property
    def package(self) -> str:
        return self.target.split(":")[0].split(".")[0]

    @property
    def folder(self) -> Path | None:
        """Where the module lies; None where it cannot be found."""
        module = self.target.split(":")[0]
        try:
            spec = find_spec(module)
        except (ImportError, ValueError):
            return None
        return Path(spec.origin).parent if spec and spec.origin else None

    @property
    def configs(self) -> Path | None:
        """Its own config folder, beside its build function or at the top of its package."""
        if self.folder is None:
            return None
        spec = find_spec(self.package)
        top = Path(spec.origin).parent if spec and spec.origin else self.folder
        return next((f / "configs" for f in (self.folder, top) if (f / "configs").is_dir()), None)


def commands() -> dict[str, EntryPoint]:
    """Further commands, by name (group ``polyguide.commands``): ``load()`` gives a function of the command line's arguments."""
    return {entry.name: entry for entry in sorted(entry_points(group="polyguide.commands"), key=lambda e: e.name)}


@cache
def plugins() -> tuple[Plugin, ...]:
    """All installed modalities, by name."""
    found = entry_points(group=GROUP)
    return tuple(sorted((Plugin(e.name, e.value, e.dist.name if e.dist else "?") for e in found), key=lambda p: p.name))


def trusted_packages() -> tuple[str, ...]:
    """The packages whose functions a config may call."""
    return tuple(dict.fromkeys(("guidance", "modalities", *(plugin.package for plugin in plugins()))))
