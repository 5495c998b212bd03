"""Shapes in the core's signatures are enforced in all tests: this has to run before anything imports `guidance`."""

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs a network; without one, what is not on the hub takes twenty seconds to be so

import jaxtyping
import pytest
import torch

# An int is a float here, as PEP 484 says; beartype asks to be told.
jaxtyping.install_import_hook(["guidance"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
# The tensors are small, and threads that wait for each other on a shared core cost milliseconds a call, also in processes begun here.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# The same numbers on every machine, also in processes begun here; what auto becomes is tested where that is what is tested.
os.environ["POLYGUIDE_PRECISION"] = "no"


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Signatures not enforced, as for a user: to see what the library itself says of a wrong type, or to take many steps fast."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
