"""Random numbers that are a function of (seed, stream, step, sample index) and of nothing else.

A counter-based generator (Philox 4x64: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) gives random access:
sample ``i`` at step ``k`` reads the same counters whatever the batch it is computed in, the process that computes it, or the
place where an interrupted run went on. The numbers are drawn on the CPU, so that they are the same for every device.
"""

import math
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_WORDS = 4  # 64-bit words a Philox counter yields


class Stream(IntEnum):
    """Independent uses of one seed."""

    START = 0  # the noise that sampling starts from
    STEP = 1  # the noise that a stochastic sampler adds at a step
    CORRUPT = 2  # the noise of a training sample
    TIME = 3
    DROP = 4
    ORDER = 5  # the order of the data, an epoch as the step
    SELF_CONDITION = 6
    NETWORK = 7  # what a network draws in training (its own dropout)
    REVEAL = 8  # the part of a condition that training shows
    AGAIN = 9  # further noise of a sampling step


def bits(seed: int, stream: int, step: int, first: int, n: int, words: int) -> np.ndarray:
    """``n`` rows of ``words`` 64-bit words: row ``i`` belongs to sample ``first + i``."""
    blocks = -(-words // _WORDS)
    start = first * blocks
    key = np.array([seed & (2**64 - 1), stream], dtype=np.uint64)
    counter = np.array([start & (2**64 - 1), start >> 64, step, 0], dtype=np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(n * blocks * _WORDS)
    return raw.reshape(n, blocks * _WORDS)[:, :words]


def uniform(seed: int, stream: int, step: int, first: int, n: int, width: int = 1) -> Float[Tensor, "{n} {width}"]:
    """Uniform numbers in (0, 1), float64."""
    words = bits(seed, stream, step, first, n, width) >> np.uint64(11)
    return torch.from_numpy((words + 0.5) * 2.0**-53)


def normal(seed: int, stream: int, step: int, first: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers of ``shape = (n, *event)``, float32, by Box and Muller's transform."""
    n, size = shape[0], math.prod(shape[1:])
    pairs = -(-size // 2)
    words = np.ascontiguousarray(bits(seed, stream, step, first, n, pairs)).view(np.uint32).reshape(n, pairs, 2)
    u = (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)  # (0, 1]
    radius = np.sqrt(np.float32(-2.0) * np.log(u[..., 0]))
    angle = np.float32(2 * math.pi) * u[..., 1]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(n, 2 * pairs)
    return torch.from_numpy(np.ascontiguousarray(z[:, :size])).reshape(shape)


def permutation(seed: int, epoch: int, n: int, part: int = 0) -> np.ndarray:
    """The order of ``n`` items in an epoch, or in a ``part`` of one."""
    key = np.array([seed & (2**64 - 1), Stream.ORDER], dtype=np.uint64)
    counter = np.array([0, 0, epoch, part], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).permutation(n)
