"""polyguide new-modality: a package that works, to be changed into one's own."""

import keyword
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from guidance.errors import UserError
from guidance.plugins import plugins

SKELETON = Path(__file__).parent / "skeleton"
PLACEHOLDER = "NAME"
USAGE = "new-modality takes a name, and a folder if it shall not be ./NAME: polyguide new-modality NAME [out=FOLDER]"


def new_modality(name: str, out: Path) -> list[Path]:
    """Write the skeleton of a plug-in under a name of its own; returns its files.

    Raises: UserError for a name that cannot be a package's, or is one already, and for a folder that is not empty.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise UserError(f"a modality is called by a word of small letters, digits and underscores, such as point_cloud; got {name!r}")
    if name in sys.stdlib_module_names or find_spec(name) is not None:
        raise UserError(f"there is a Python package {name!r} already; choose another name")
    if (taken := next((plugin for plugin in plugins() if plugin.name == name), None)) is not None:
        raise UserError(f"there is a modality {name!r} already, in {taken.distribution}; choose another name")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} exists already; choose another folder with out=")
    for place in out.parents:
        if place.exists() and not place.is_dir():
            raise UserError(f"out={out}: {place} is a file, not a folder")
    made = []
    for source in sorted(SKELETON.rglob("*")):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        target = out / str(source.relative_to(SKELETON)).replace(PLACEHOLDER, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text(encoding="utf-8").replace(PLACEHOLDER, name), encoding="utf-8")
        made.append(target)
    return made


def command(arguments: Sequence[str]) -> None:
    """polyguide new-modality NAME [out=FOLDER]"""
    settings = [a.removeprefix("out=") for a in arguments if a.startswith("out=")]
    names = [a for a in arguments if not a.startswith("out=")]
    if any(a in ("-h", "--help") for a in arguments):
        print(USAGE)
        return
    if len(names) != 1 or len(settings) > 1 or "=" in names[0] or "" in settings:
        raise UserError(USAGE)
    out = Path(settings[0] if settings else names[0]).expanduser()
    made = new_modality(names[0], out)
    print("\n".join(str(path) for path in made))
    print(f"\nnow: pip install -e {out}    then: polyguide train modality={names[0]} out=runs/{names[0]}")
