"""Log-mel spectrograms: as a condition, as what judges hear, as pictures."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.errors import UserError
from modalities.stubs import torchaudio_transforms


@dataclass(frozen=True)
class Mel:
    """A log-mel spectrogram [mels, frames] of a clip: what a vocoder is conditioned on.

    20 log10 of mel magnitudes, from -80 to 20 dB mapped to 0 .. 1, as the published DiffWave vocoder takes it.

    Args:
        rate: of the wave, in Hz.
        length: of the wave, in samples; a multiple of ``hop``.
        mels: bands from 20 Hz to half the rate.
        hop: samples a frame; the window has 4 hops.
        window: points of the Fourier transform.
    """

    rate: int
    length: int
    mels: int = 80
    hop: int = 256
    window: int = 1024

    def __post_init__(self) -> None:
        if not all(type(size) is int and size > 0 for size in (self.mels, self.hop, self.window)):
            sizes = f"{self.mels!r}, {self.hop!r} and {self.window!r}"
            raise UserError(f"data.mel.mels, hop and window are whole numbers, at least 1, got {sizes}")
        if self.length % self.hop:
            raise UserError(f"clips of {self.length} samples cannot be cut into mel frames of {self.hop}; choose data.mel.hop to divide it")

    @property
    def frames(self) -> int:
        return self.length // self.hop

    def of(self, wave: Float[Tensor, "n samples"]) -> Float[Tensor, "n mels frames"]:
        """The frames of waves whose length is a multiple of the hop."""
        frames, least = wave.shape[-1] // self.hop, self.window // 2 + 1  # what the transform can mirror at its ends
        with torch.no_grad():
            wave = nn.functional.pad(wave, (0, max(0, least - wave.shape[-1])))
            mel = _mel(self.rate, self.mels, self.hop, self.window)(wave)[..., :frames]
        return ((20 * mel.clamp(min=1e-5).log10() + 80) / 100).clamp(0, 1)

    def parse(self, value: object) -> Tensor:
        """A sound file's, all of it, silence filling its last frame; or numbers [mels, any frames] as they are."""
        from modalities.audio.files import fit_length, read_audio

        if isinstance(value, str | Path):
            wave = read_audio(value, self.rate)
            return self.of(fit_length(wave, -(-len(wave) // self.hop) * self.hop)[None])[0]
        try:
            mel = torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"takes the path of a sound file, or {self.mels} x frames numbers, got {value!r}") from None
        if mel.ndim != 2 or len(mel) != self.mels or not mel.shape[1] or not bool(mel.isfinite().all()):
            shape = " x ".join(map(str, mel.shape))
            raise UserError(f"a mel spectrogram here has {self.mels} bands x frames, all finite; got {shape or 'one number'}")
        return mel

    def absent(self) -> Tensor:
        return torch.zeros(self.mels, self.frames)

    def embedding(self, width: int) -> nn.Module:
        """The whole spectrogram as one vector, for networks that have no place for it frame by frame."""
        return nn.Sequential(nn.Flatten(), nn.Linear(self.mels * self.frames, width))


@lru_cache
def _mel(rate: int, mels: int, hop: int, window: int) -> nn.Module:
    """torchaudio's, with no state that training could change."""
    settings: dict[str, Any] = {"win_length": min(4 * hop, window), "hop_length": hop, "n_fft": window, "n_mels": mels}
    transform: nn.Module = torchaudio_transforms().MelSpectrogram(rate, f_min=20.0, f_max=rate / 2, power=1.0, normalized=True, **settings)
    return transform
