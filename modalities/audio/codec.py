"""Waveforms as x0: raw samples, or an orthonormal lapped transform of them with its dynamic range compressed."""

import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.errors import UserError
from guidance.modality import Split
from guidance.process import Level
from guidance.split import pick

MOST = 4096  # clips that are looked at to find the scale
STEP = 2**-15  # of 16 bits: a full-scale wave is beyond full scale by less, by rounding alone


def full_scale(wave: Float[Tensor, "n samples"]) -> Float[Tensor, "n samples"]:
    """The wave within [-1, 1]; what lies beyond is clipped, and that is said."""
    beyond = (wave.abs() > 1 + STEP).float().mean().item()
    if beyond:
        warnings.warn(f"{100 * beyond:.3g} % of the samples were beyond full scale and are clipped", stacklevel=3)
    return wave.clamp(-1, 1)


def training_waves(split: Split) -> Float[Tensor, "n samples"]:
    """Up to MOST clips of the split, taken at random."""
    count = min(len(split), MOST)
    index = sorted(pick(len(split), count))
    return torch.cat([split.__getitems__(index[k : k + 512])[0] for k in range(0, count, 512)])


class Waveform(nn.Module):
    """x0 = wave / scale: raw samples of unit variance over the training data.

    Unit variance matters beyond taste: schedules like DiffWave's leave sqrt(alpha-bar_T) = .36 to .61 of the signal at their last
    level, where sampling starts from N(0, 1); with unit variance, x_T of training has that scale at least.

    Args:
        length: of a clip, in samples.
        scale: the root mean square of the data; found by `fit` where it is not given.
    """

    anchored = False

    scale: Tensor

    def __init__(self, length: int, scale: float | None = None):
        super().__init__()
        if scale is not None and not 0 < scale < math.inf:
            raise UserError(f"modality.codec.scale is a positive number, got {scale}")
        self.shape = (length,)
        self.given = scale
        self.register_buffer("scale", torch.tensor(1.0 if scale is None else float(scale)))

    def shape_of(self, samples: int) -> tuple[int, ...]:
        return (samples,)

    def fit(self, split: Split) -> None:
        if self.given is None:
            self.scale.fill_(training_waves(split).square().mean().sqrt().clamp(min=1e-4))

    def encode(self, raw: Float[Tensor, "b samples"]) -> Float[Tensor, "b samples"]:
        return raw / self.scale

    def decode(self, x0: Float[Tensor, "b samples"]) -> Float[Tensor, "b samples"]:
        return full_scale((x0.float() * self.scale).cpu())

    def project(self, x0: Float[Tensor, "b samples"]) -> Float[Tensor, "b samples"]:
        """Within full scale."""
        limit = 1 / self.scale
        return torch.minimum(torch.maximum(x0, -limit), limit)

    def anchor_loss(self, raw: Tensor, x0_hat: Float[Tensor, "b samples"], level: Level) -> Float[Tensor, "b"]:
        return x0_hat.new_zeros(len(x0_hat))


def cosine_transform(size: int) -> Float[Tensor, "size size"]:
    """The orthonormal, symmetric DCT-IV: sqrt(2/N) cos(pi/N (n + 1/2)(k + 1/2))."""
    half = torch.arange(size, dtype=torch.float64) + 0.5
    return (math.sqrt(2 / size) * torch.cos(math.pi / size * half[:, None] * half)).float()


class MDCT(nn.Module):
    """x0 [bins, frames]: the modified discrete cosine transform of the wave, |c|^power sign(c), each bin of unit variance.

    The transform is orthonormal and as large as the wave (Princen & Bradley 1986; Malvar 1990): across every border between two
    blocks of N = bins samples, mirrored samples are rotated into each other by the angles of the sine window, then a DCT-IV is
    taken of every block. At the ends of the clip nothing is rotated. Noise stays white under it, and decoding undoes it exactly.

    A waveform's energy lies in a few low bins, and the timbre of a note, and all of a quiet one, is drowned by noise long before
    those are. The compression (the power law of spectrograms, with the signs kept) and one deviation a bin bring all to one scale.

    Args:
        length: of a clip, in samples; a multiple of ``bins``.
        bins: N, samples a frame.
        power: 1 leaves the range as it is.
    """

    anchored = False

    scale: Tensor
    transform: Tensor
    angles: Tensor

    def __init__(self, length: int, bins: int = 256, power: float = 0.5):
        super().__init__()
        if bins < 2 or bins % 2:
            raise UserError(f"modality.codec.bins is an even number, at least 2, got {bins}")
        if not 0 < power <= 1:
            raise UserError(f"modality.codec.power lies between 0 and 1, got {power}")
        if length % bins:
            raise UserError(
                f"clips of {length} samples cannot be cut into frames of {bins}; choose data.length a multiple of modality.codec.bins"
            )
        self.bins, self.power = bins, power
        self.shape = (bins, length // bins)
        self.register_buffer("scale", torch.ones(bins))
        self.register_buffer("transform", cosine_transform(bins), persistent=False)
        # The sine window's value at n samples past the middle of its slope is sin(pi/4 + pi/(2N) (n + 1/2)).
        angles = math.pi / 4 + math.pi / (2 * bins) * (torch.arange(bins // 2, dtype=torch.float64) + 0.5)
        self.register_buffer("angles", angles.float(), persistent=False)

    def shape_of(self, samples: int) -> tuple[int, ...]:
        if samples % self.bins:
            raise UserError(f"a clip of {samples} samples cannot be cut into frames of {self.bins}")
        return self.bins, samples // self.bins

    def fit(self, split: Split) -> None:
        deviation = self._compress(self._forward(training_waves(split))).square().mean((0, 2)).sqrt()
        self.scale.copy_(deviation.clamp(min=1e-3 * float(deviation.max()) + 1e-6))

    def _rotate(self, blocks: Float[Tensor, "b frames bins"], sign: float) -> Float[Tensor, "b frames bins"]:
        """Mirrored samples about each border, before and after it, rotated into each other."""
        half = self.bins // 2
        sin, cos = self.angles.sin(), sign * self.angles.cos()
        after, before = blocks[:, 1:, :half], blocks[:, :-1, half:].flip(-1)
        rotated = blocks.clone()
        rotated[:, 1:, :half] = sin * after + cos * before
        rotated[:, :-1, half:] = (sin * before - cos * after).flip(-1)
        return rotated

    def _forward(self, wave: Float[Tensor, "b samples"]) -> Float[Tensor, "b bins frames"]:
        blocks = wave.unflatten(-1, (-1, self.bins))
        return (self._rotate(blocks, 1.0) @ self.transform).transpose(1, 2)

    def _inverse(self, coefficients: Float[Tensor, "b bins frames"]) -> Float[Tensor, "b samples"]:
        return self._rotate(coefficients.transpose(1, 2) @ self.transform, -1.0).flatten(1)

    def _compress(self, c: Float[Tensor, "b bins frames"]) -> Float[Tensor, "b bins frames"]:
        return c.sign() * c.abs() ** self.power

    def encode(self, raw: Float[Tensor, "b samples"]) -> Float[Tensor, "b bins frames"]:
        return self._compress(self._forward(raw)) / self.scale[:, None]

    def decode(self, x0: Float[Tensor, "b bins frames"]) -> Float[Tensor, "b samples"]:
        c = x0.float() * self.scale[:, None]
        return full_scale(self._inverse(c.sign() * c.abs() ** (1 / self.power)).cpu())

    def project(self, x0: Float[Tensor, "b bins frames"]) -> Float[Tensor, "b bins frames"]:
        """A coefficient of a wave within full scale is below sqrt(2N): so is the absolute sum of its basis function."""
        limit = math.sqrt(2 * self.bins) ** self.power / self.scale[:, None]
        return torch.minimum(torch.maximum(x0, -limit), limit)

    def anchor_loss(self, raw: Tensor, x0_hat: Float[Tensor, "b bins frames"], level: Level) -> Float[Tensor, "b"]:
        return x0_hat.new_zeros(len(x0_hat))
