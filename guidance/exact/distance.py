"""The distance between two sets of samples."""

import torch
from jaxtyping import Float
from torch import Tensor


def directions(dimensions: int, n: int = 128, seed: int = 0) -> Float[Tensor, "k d"]:
    """Unit vectors in random directions, the same for the same seed; on a line there is one."""
    if dimensions == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    drawn = torch.randn(n, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def shadows(x: Float[Tensor, "n d"], along: Float[Tensor, "k d"]) -> Float[Tensor, "k n"]:
    """The samples projected on each direction, in order."""
    return (along @ x.double().cpu().T).sort(1).values


def wasserstein(a: Float[Tensor, "k n"], b: Float[Tensor, "k n"]) -> float:
    """The Wasserstein-1 distance between the `shadows` of two sets of the same size, in the mean over directions.

    On a line that is the mean distance of the sorted samples; above, the sliced distance (Bonneel et al., 2015).
    """
    return float((a - b).abs().mean())
