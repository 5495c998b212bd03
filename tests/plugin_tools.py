"""Plug-ins that are visible without being installed: a folder on the path, with what an installer would note of them."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from guidance.plugins import all_commands, everything, plugins


def noted(folder: Path, distribution: str, modalities: Mapping[str, str], commands: Mapping[str, str] | None = None) -> Path:
    """The notes of an installed distribution: its name, and its entry points."""
    info = folder / f"{distribution.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1\n")
    lines = ["[polyguide.modalities]", *(f"{name} = {target}" for name, target in modalities.items())]
    lines += ["[polyguide.commands]", *(f"{name} = {target}" for name, target in (commands or {}).items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def forget(names: set[str]) -> None:
    """As if these packages had never been imported, and nobody had looked for plug-ins."""
    for name in [module for module in sys.modules if module.split(".")[0] in names]:
        del sys.modules[name]
    plugins.cache_clear()
    everything.cache_clear()
    all_commands.cache_clear()


@contextmanager
def visible(*folders: Path) -> Iterator[None]:
    """Within, what lies in the folders is installed."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in folders:
            patch.syspath_prepend(str(folder))
        names = {path.stem for folder in folders for path in folder.iterdir()}
        forget(names)
        yield
    forget(names)
