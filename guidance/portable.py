"""Configs and commands without the folders of this machine."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def absolute(value: str) -> bool:
    """Whether this is a path from a root, a drive, or a home: not a lone slash, and no address."""
    return bool(re.match(r"(~\w*)?/+[^/]|\\\\\w|[A-Za-z]:[\\/]", value))


def last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def portable(config: Any) -> Any:
    """The config without the folders of this machine: of an absolute path only the last part is kept.

    Data is looked for below POLYGUIDE_DATA, and here; sampling reads none. In lists, which may hold names of classes, only what exists
    here is a path.
    """
    if isinstance(config, Mapping):
        return {key: portable(value) for key, value in config.items()}
    if isinstance(config, list):
        return [portable(value) if not isinstance(value, str) or there(value) else value for value in config]
    return last(config) if isinstance(config, str) and absolute(config) else config


def there(value: str) -> bool:
    try:
        return absolute(value) and Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def said(command: str) -> str:
    """A command line as a card shows it: without the folders of this machine."""
    words = []
    try:
        given = shlex.split(command)
    except ValueError:  # somebody else's line
        given = command.split()
    for word in given:
        key, _, value = word.partition("=")
        if absolute(value):
            word = f"{key}={last(value)}"
        words.append(re.sub(r"(?<![\w.~/-])(?!//)~?/[^\s,;:'\"\[\]{}()]+", lambda found: last(found[0]), word))
    return shlex.join(words)
