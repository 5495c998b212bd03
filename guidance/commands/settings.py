"""Settings of a command, checked."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guidance import machine
from guidance.errors import UserError


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
    """As many threads as asked for, or as there are cores for."""
    machine.use_threads(None if config.get("threads") is None else whole_number(config, "threads"))


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
