"""NAME, a modality for polyguide."""

from collections.abc import Callable

from guidance.codec import Standardized
from guidance.denoiser import Network
from guidance.modality import Data, Modality

INTERFACE = 1  # the version of polyguide's contract that this was written for


def build(data: Data, network: Callable[..., Network]) -> Modality:
    """The modality for a data set, with a network that is still to be told the shape and the attributes."""
    from .metrics import Metrics
    from .render import render

    return Modality(
        name="NAME",
        shape=data.shape,  # of x0, which is the data's own with this codec
        codec=Standardized(),
        network=network(shape=data.shape, conditions=data.conditions),
        conditions=data.conditions,
        data=data,
        metrics=Metrics(),
        render=render(),
    )
