"""What has to be done before some libraries can be imported on a machine without their compiled parts."""

import importlib
import sys
import types
from functools import lru_cache
from typing import Any

from guidance.errors import UserError


@lru_cache
def torchaudio_transforms() -> Any:
    """torchaudio.transforms; where torchaudio's compiled extension does not load, with an empty module in its place.

    Its published wheels are built with CUDA, and beside a CPU build of torch the extension cannot be loaded; the transforms are pure
    PyTorch and do not need it.
    """
    try:
        return importlib.import_module("torchaudio.transforms")
    except OSError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        stub = types.ModuleType("torchaudio._extension")
        stub.__dict__.update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=lambda function: function, _check_cuda_version=lambda: None
        )
        sys.modules["torchaudio._extension"] = stub
        return importlib.import_module("torchaudio.transforms")


@lru_cache
def transformers() -> Any:
    """transformers, which imports torchaudio wherever that is installed."""
    torchaudio_transforms()
    module = importlib.import_module("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@lru_cache
def diffusers() -> Any:
    """diffusers, which imports transformers wherever that is installed. UserError where diffusers is not."""
    transformers()
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise UserError("this needs the package diffusers, which is not installed: pip install 'polyguide[diffusers]'") from None
