"""Audio: waveforms or their lapped transform, DiffWave, data sets of sound."""

from collections.abc import Callable

from guidance.condition import Condition
from guidance.denoiser import Network
from guidance.errors import UserError
from guidance.modality import Codec, Data, Modality

INTERFACE = 1


def build(data: Data, network: Callable[..., Network], codec: Callable[..., Codec]) -> Modality:
    """The audio modality for a data set, with a codec that is still to be told the length of a clip, and a network that is still
    to be told the codec's shape and the attributes."""
    from modalities.audio.mel import Mel
    from modalities.audio.metrics import AudioMetrics
    from modalities.audio.render import AudioRender

    if not hasattr(data, "rate") or not hasattr(data, "length"):
        raise UserError(f"data={data.name} is no sound: modality=audio needs data with a rate and a length, such as data=notes")
    waves = codec(length=data.length)
    conditions = data.conditions
    mels = {name: spec for name, spec in conditions.items() if isinstance(spec, Mel)}

    def shape_of(condition: Condition) -> tuple[int, ...]:
        """As long as the spectrogram that it is made for."""
        for name, spec in mels.items():
            if name in condition.values:
                return waves.shape_of(condition.values[name].shape[-1] * spec.hop)
        return waves.shape

    return Modality(
        name="audio",
        shape=waves.shape,
        codec=waves,
        network=network(shape=waves.shape, conditions=conditions),
        conditions=conditions,
        data=data,
        metrics=AudioMetrics(data.rate, conditions),
        render=AudioRender(data.rate),
        shape_of=shape_of if mels else None,
    )
