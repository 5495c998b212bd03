"""Images: pixels, a U-Net, data sets of images."""

from collections.abc import Callable

from guidance.denoiser import Network
from guidance.modality import Data, Modality

INTERFACE = 1


def build(data: Data, network: Callable[..., Network]) -> Modality:
    """The image modality for a data set, with a network that is still to be told the shape and the attributes."""
    from modalities.image.codec import Pixels
    from modalities.image.metrics import ImageMetrics
    from modalities.image.render import image_render

    return Modality(
        name="image",
        shape=data.shape,
        codec=Pixels(),
        network=network(shape=data.shape, conditions=data.conditions),
        conditions=data.conditions,
        data=data,
        metrics=ImageMetrics(),
        render=image_render(),
    )
