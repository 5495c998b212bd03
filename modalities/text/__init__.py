"""Text: diffusion on token embeddings."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from guidance.condition import Condition
from guidance.denoiser import Network
from guidance.errors import UserError
from guidance.modality import Codec, Data, Modality

INTERFACE = 1


def build(
    data: Data,
    network: Callable[..., Network],
    codec: Callable[..., Codec],
    language_epochs: int = 12,
    language_layers: int = 4,
) -> Modality:
    """The text modality for a data set, with a codec that is still to be told the vocabulary, and a network that is still to be told the
    codec's shape and the attributes. The language model that measures, and makes vectors, has ``language_layers`` and is trained for
    ``language_epochs``."""
    from modalities.text.data import INFILL, TextData
    from modalities.text.metrics import TextMetrics
    from modalities.text.network import TextDenoiser
    from modalities.text.render import TextRender

    if not isinstance(data, TextData):
        raise UserError(f"data={data.name} is no text: modality=text needs data such as data=trec")
    metrics = TextMetrics(data, language_epochs, language_layers)
    embeddings = codec(vocabulary=data.vocabulary, length=data.length, language=lambda: metrics.language.vectors)
    denoiser = network(shape=embeddings.shape, conditions=data.conditions)
    if not isinstance(denoiser, TextDenoiser):
        raise UserError(f"network={type(denoiser).__name__} is none for text: modality=text needs a network such as network=text_small")

    def known(condition: Condition) -> tuple[Bool[Tensor, "b length 1"], Float[Tensor, "b length width"]]:
        """The tokens that are given."""
        ids, keep = condition.values[INFILL], condition.keep[INFILL]
        with torch.no_grad():
            return ((ids >= 0) & keep[:, None])[..., None], embeddings.encode(ids.clamp(min=0))

    return Modality(
        name="text",
        shape=embeddings.shape,
        codec=embeddings,
        network=denoiser,
        conditions=data.conditions,
        data=data,
        metrics=metrics,
        render=TextRender(),
        known=known if data.infill else None,
        files=data.files,
        pinned=lambda: {"network": denoiser.pinned()},
        beside={"language model": metrics.language_training},
    )
