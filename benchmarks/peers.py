"""One module of another package, without what else the package imports."""

import importlib
import sys
import types
from importlib.util import find_spec
from typing import Any


def alone(package: str, module: str) -> Any:
    """``package.module``, with the package's own ``__init__`` left out: it imports what is trained and measured with, too.

    Where there is no torchvision (a CPU-only torch may have none that fits), an empty one stands in: the modules taken here import it, and
    do not use it.
    """
    if "torchvision" not in sys.modules and find_spec("torchvision") is None:
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        for name in names:
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules[names[1]].functional = sys.modules[names[2]]  # type: ignore[attr-defined]
    if package not in sys.modules:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        empty = types.ModuleType(package)
        empty.__path__ = list(spec.submodule_search_locations)
        sys.modules[package] = empty
    return importlib.import_module(f"{package}.{module}")
