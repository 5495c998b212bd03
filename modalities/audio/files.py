"""Sound files: read as mono at a rate, in whatever form they come."""

import math
import sys
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError
from modalities.stubs import torchaudio_transforms

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64"})

LARGEST = 4_000_000  # numbers in a resampling filter


class Unreadable(UserError):
    """A file that is no sound, or has nothing in it."""


def read_audio(path: str | Path, rate: int, notice: bool = True) -> Float[Tensor, "samples"]:
    """The sound of a file as mono in [-1, 1] at ``rate`` Hz: channels averaged, resampled with a filter against aliasing.

    Args:
        notice: say on the screen where channels are mixed down.

    Raises: Unreadable for what is not there, not audio, empty, or not finite.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise Unreadable(f"{path}: there is no such sound file")
    if not path.stat().st_size:
        raise Unreadable(f"{path} is an empty file")
    return mono(path, str(path), rate, notice)


def mono(source: Any, path: str, rate: int, notice: bool = True) -> Float[Tensor, "samples"]:
    """As `read_audio`, of a path or an open file; ``path`` is what messages call it."""
    import soundfile

    try:
        samples, own_rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        reason = str(error).split(": ")[-1].rstrip(".") or type(error).__name__
        raise Unreadable(f"{path} is not a sound file that can be read ({reason})") from None
    if not len(samples):
        raise Unreadable(f"{path} holds no samples")
    if not np.isfinite(samples).all():
        raise Unreadable(f"{path} holds samples that are not finite")
    if samples.shape[1] > 1 and notice:
        print(f"{path}: {samples.shape[1]} channels, mixed down to one", file=sys.stderr)
    wave = torch.from_numpy(samples.astype(np.float64).mean(1)).float()
    return wave if own_rate == rate else resampler(own_rate, rate)(wave)


@lru_cache(maxsize=16)
def resampler(from_rate: int, to_rate: int) -> torch.nn.Module:
    """A windowed sinc, with a number for every pair of positions within one period of the two rates. All usual rates have a short
    one; 11127 and 16000 Hz would take gigabytes, so such ratios are rounded, by less than half a cent."""
    ratio = Fraction(from_rate, to_rate).limit_denominator(max(1, math.isqrt(LARGEST * to_rate // from_rate)))
    resample: torch.nn.Module = torchaudio_transforms().Resample(ratio.numerator, ratio.denominator, lowpass_filter_width=16)
    return resample


def fit_length(wave: Float[Tensor, "samples"], length: int) -> Float[Tensor, "length"]:
    """The first ``length`` samples; silence after a shorter wave."""
    return torch.nn.functional.pad(wave[:length], (0, max(0, length - len(wave))))


def write_sound(path: Path, wave: Float[Tensor, "samples"], rate: int) -> Path:
    """A sound file of the kind that the suffix says (16 bits in .wav and .flac), whole or not at all."""
    from io import BytesIO

    import soundfile

    from guidance.checkpoint import write_atomically

    buffer = BytesIO()
    samples = (wave * 32768).round().clamp(-32768, 32767).to(torch.int16)  # left to itself, the library rounds down
    kind = path.suffix[1:].upper()
    soundfile.write(buffer, samples.numpy(), rate, format=kind, subtype="VORBIS" if kind == "OGG" else "PCM_16")
    write_atomically(path, buffer.getvalue())
    return path
