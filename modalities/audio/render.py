"""Sounds as files, and as pictures of waveforms and mel spectrograms."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from guidance.pictures import animation, sheet, write
from modalities.audio.files import write_sound
from modalities.audio.mel import Mel

WIDTH, WAVE_HEIGHT, MELS = 128, 36, 64  # pixels
INK = (31, 119, 180)


class AudioRender:
    """Sound files, PNG tables of waveforms above spectrograms, GIF animations of those."""

    formats = ("wav", "flac", "ogg")  # all but ogg without loss

    def __init__(self, rate: int):
        self.rate = rate

    def save(self, decoded: Float[Tensor, "n samples"], folder: Path, names: Sequence[str], format: str | None = None) -> list[Path]:
        suffix = format or self.formats[0]
        return [write_sound(folder / f"{name}.{suffix}", wave, self.rate) for wave, name in zip(decoded, names, strict=True)]

    def words(self, decoded: Float[Tensor, "n samples"]) -> Sequence[str]:
        return ()

    def table(self, decoded: Float[Tensor, "n samples"], path: Path, rows: Sequence[str], columns: Sequence[str]) -> Path:
        return write(sheet(self.pictures(decoded), rows, columns), path)

    def animate(self, frames: Sequence[Float[Tensor, "n samples"]], path: Path) -> Path:
        return animation([self.pictures(frame[:16]) for frame in frames], path, milliseconds=150)

    def pictures(self, decoded: Float[Tensor, "n samples"]) -> UInt8[Tensor, "n 3 h w"]:
        """The waveforms, all on one scale, and below each its log-mel spectrogram, from -80 dB (black) to 20 dB."""
        from matplotlib import colormaps

        decoded = functional.pad(decoded, (0, -decoded.shape[1] % WIDTH))
        heights = torch.linspace(1, -1, WAVE_HEIGHT)[:, None] * decoded.abs().max().clamp(min=1e-3)
        columns = decoded.unflatten(1, (WIDTH, -1))
        low, high = columns.amin(2)[:, None], columns.amax(2)[:, None]
        line = 2 * float(heights.abs().max()) / (WAVE_HEIGHT - 1)  # at least a pixel high
        inked = (heights <= high + line / 2) & (heights >= low - line / 2)
        waves = torch.where(inked[:, None], torch.tensor(INK).view(3, 1, 1), 255).to(torch.uint8)

        hop = decoded.shape[1] // WIDTH
        window = max(512, 1 << (4 * hop - 1).bit_length())
        mels = Mel(self.rate, decoded.shape[1], MELS, hop, window).of(decoded).flip(1)
        colours = torch.from_numpy(colormaps["magma"](mels.numpy(), bytes=True)[..., :3]).permute(0, 3, 1, 2)
        return torch.cat([waves, colours], 2)
