"""Point clouds, for polyguide: sets of points on the surfaces of solids, in any order."""

from collections.abc import Callable

from guidance.codec import Standardized
from guidance.denoiser import Network
from guidance.modality import Data, Modality

INTERFACE = 1


def build(data: Data, network: Callable[..., Network]) -> Modality:
    """The modality for a data set, with a network that is still to be told the shape and the attributes."""
    from point_cloud.metrics import CloudMetrics
    from point_cloud.render import CloudRender

    denoiser = network(shape=data.shape, conditions=data.conditions)
    return Modality("point_cloud", data.shape, Standardized(), denoiser, data.conditions, data, CloudMetrics(), CloudRender())
