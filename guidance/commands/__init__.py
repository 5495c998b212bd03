"""What each command does with its config: `commands.NAME(config, overrides)`, imported when it is first asked for."""

from importlib import import_module
from typing import Any

HOMES = {
    "cost": "costing",
    "demo": "demonstrating",
    "evaluate": "evaluating",
    "exactness": "exact",
    "experiment": "experimenting",
    "sample": "sampling",
    "train": "training",
    "train_classifier": "classifying",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'guidance.commands' has no attribute {name!r}")
    command = getattr(import_module(f"guidance.commands.{HOMES[name]}"), name)
    globals()[name] = command
    return command
