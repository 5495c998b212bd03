"""Problems of which everything is known: mixtures of Gaussians, and exact samples of what guidance aims at.

All Gaussians have one deviation s, so that every tilt of them has a finite integral: where |x| is large it falls as one Gaussian of
deviation s does. In 16 dimensions the means lie in a plane. There the tilt is a product of its part in the plane and N(0, s^2) in the
14 others, and all is then rotated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.analytic import Mixture
from guidance.codec import Standardized
from guidance.condition import Condition, Label
from guidance.errors import one_of
from guidance.exact.target import LABELS, NAMED, STD, WEIGHTS, Target
from guidance.modality import Modality
from guidance.model import Model

LINE = ((-1.2,), (0.8,), (-0.2,), (1.6,), (0.4,), (-1.8,))
PLANE = ((-1.2, 0.3), (0.8, -0.9), (-0.2, -0.5), (1.5, 0.6), (0.3, 1.2), (-1.5, -1.0))
DIMENSIONS: Mapping[int, tuple[tuple[float, ...], ...]] = {1: LINE, 2: PLANE, 16: PLANE}
"""The dimensions in which there is a problem, with the means of its Gaussians on the line or in the plane."""
FINE = {1: STD / 400, 2: STD / 24}
"""The size of the cells on a line and in a plane."""
DEEP = 40.0
"""Cells whose density is less than the highest by a factor of exp(DEEP) are left out."""


@dataclass(frozen=True)
class Cells:
    """A density on a line or in a plane as cells of one size, constant in each: an error of the order of the size's square."""

    low: Float[Tensor, "p"]
    size: float
    shape: tuple[int, ...]
    cumulative: Float[Tensor, "cells"]

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, size: float) -> "Cells":
        """Of a density up to its integral, within a box. Looked at first in cells 6 times as large, to find where it is."""
        coarse, shape = _centres(low, high, 6 * size)
        log = log_density(coarse)
        there = coarse[log > log.max() - DEEP]
        low, high = (there.amin(0) - 6 * size).maximum(low), (there.amax(0) + 6 * size).minimum(high)
        fine, shape = _centres(low, high, size)
        return cls(low, size, shape, log_density(fine).softmax(0).cumsum(0))

    @property
    def density(self) -> Float[Tensor, "cells"]:
        """In each cell."""
        return self.cumulative.diff(prepend=self.cumulative.new_zeros(1)) / self.size ** len(self.shape)

    def draw(self, n: int, generator: torch.Generator) -> Float[Tensor, "n p"]:
        """A cell by the inverse of the cumulative distribution, and a uniform place in it."""
        u = torch.rand(n, dtype=torch.float64, generator=generator) * self.cumulative[-1]
        cell = torch.searchsorted(self.cumulative, u, right=True).clamp(max=len(self.cumulative) - 1)
        index = torch.stack(torch.unravel_index(cell, self.shape), 1)
        return self.low + self.size * (index + torch.rand(index.shape, dtype=torch.float64, generator=generator))


def _centres(low: Tensor, high: Tensor, size: float) -> tuple[Float[Tensor, "cells p"], tuple[int, ...]]:
    """The middles of the cells that cover a box, row by row."""
    shape = tuple(math.ceil(float(width) / size) for width in high - low)
    axes = [float(start) + size * (torch.arange(k, dtype=torch.float64) + 0.5) for start, k in zip(low, shape, strict=True)]
    return torch.cartesian_prod(*axes).view(-1, len(shape)), shape


@dataclass(frozen=True)
class Problem:
    """Six Gaussians in d dimensions, each of a class of the attributes a (three) and b (two).

    ``means`` lie on the line or in the plane; the first p rows of ``rotation`` are its directions in d dimensions.
    """

    means: Float[Tensor, "k p"]
    rotation: Float[Tensor, "d d"]

    @property
    def dimensions(self) -> int:
        return len(self.rotation)

    def mixture(self, std: float = STD) -> Mixture:
        """The exact denoiser's network."""
        return Mixture(self.means @ self.rotation[: self.means.shape[1]], std, WEIGHTS, LABELS)

    def model(self) -> Model:
        """As a trained model, for guidance that asks one for its attributes and classes. It has no data, and draws no pictures."""
        classes = {name: Label(tuple(str(k) for k in range(max(of) + 1))) for name, of in LABELS.items()}
        none = cast(Any, None)
        modality = Modality("mixture", (self.dimensions,), Standardized(), self.mixture(), classes, none, none, none)
        return Model(modality, {"main": self.mixture().denoiser()}, {})

    def condition(self, n: int, *named: str) -> Condition:
        """n rows that name the class of these attributes; the other attributes are absent."""
        everything = Condition.of(**{name: torch.full((n,), of) for name, of in NAMED.items()})
        gone = [name for name in NAMED if name not in named]
        return everything.drop(*gone) if gone else everything

    def log_p(self, u: Float[Tensor, "n p"], named: tuple[str, ...] = (), std: float = STD) -> Float[Tensor, "n"]:
        """log p(u | the named classes) on the line or in the plane."""
        kept = torch.tensor([all(LABELS[name][k] == NAMED[name] for name in named) for k in range(len(self.means))])
        log_share = torch.tensor(WEIGHTS, dtype=torch.float64).log()[kept]
        away = torch.cdist(u, self.means[kept]) / std
        log = (log_share - away.square() / 2).logsumexp(1) - log_share.logsumexp(0)
        return log - u.shape[1] / 2 * math.log(2 * math.pi * std**2)

    def log_density(self, target: Target, u: Float[Tensor, "n p"]) -> Float[Tensor, "n"]:
        """Of a target on the line or in the plane; of a tilt, up to its integral."""
        parts = torch.stack([self.log_p(u, factor.named, factor.std) for factor in target.factors])
        weights = torch.tensor([factor.weight for factor in target.factors], dtype=torch.float64).view(-1, 1)
        if target.tilt:
            return (weights * parts).sum(0)
        highest = parts.max(0).values
        return highest + (weights * (parts - highest).exp()).sum(0).clamp(min=0).log()

    def exact(self, target: Target) -> "Exact":
        """The target, ready to be sampled.

        A tilt is locally a Gaussian around  (sum_k w_k m_k / s_k^2) / (sum_k w_k / s_k^2),  m_k one of factor k's means: it lies between.
        """
        lows, highs = self.means.amin(0), self.means.amax(0)
        shares = [factor.weight * (target.off_plane / factor.std) ** 2 for factor in target.factors] if target.tilt else [1.0]
        corners = [(share * lows, share * highs) for share in shares]
        centres = torch.stack([sum(ends, torch.zeros_like(lows)) for ends in product(*corners)])
        margin = 9 * max(STD, target.off_plane)
        size = FINE[self.means.shape[1]]
        return Exact(
            self, target, Cells.of(lambda u: self.log_density(target, u), centres.amin(0) - margin, centres.amax(0) + margin, size)
        )

    def plane(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Samples' places on the line or in the plane of the means."""
        return x.double() @ self.rotation[: self.means.shape[1]].T


@dataclass(frozen=True)
class Exact:
    """A target of a problem, to be sampled."""

    problem: Problem
    target: Target
    cells: Cells

    def draw(self, n: int, seed: int) -> Float[Tensor, "n d"]:
        """n independent samples."""
        generator = torch.Generator().manual_seed(seed)
        u = self.cells.draw(n, generator)
        rest = torch.randn(n, self.problem.dimensions - u.shape[1], dtype=torch.float64, generator=generator)
        return torch.cat([u, self.target.off_plane * rest], 1) @ self.problem.rotation


def problem(dimensions: int) -> Problem:
    """The problem in so many dimensions. UserError where there is none."""
    if dimensions not in DIMENSIONS:
        raise one_of("problem in dimensions", dimensions, [str(d) for d in DIMENSIONS])
    means = torch.tensor(DIMENSIONS[dimensions], dtype=torch.float64)
    if dimensions == means.shape[1]:
        return Problem(means, torch.eye(dimensions, dtype=torch.float64))
    drawn = torch.randn(dimensions, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(means, torch.linalg.qr(drawn).Q)
