"""Solids, seen as points on their surfaces."""

from dataclasses import dataclass
from functools import cached_property
from math import pi

import torch
from torch import Tensor

from guidance import Condition, Label
from guidance.split import InMemory, every_fifth

SOLIDS = Label(("ball", "cube", "cylinder", "cone", "ring"))
HEIGHT = Label(("flat", "even", "tall"), levels=(("flat",), ("even",), ("tall",)), quantity="height")


def surface(solid: int, n: int, generator: torch.Generator) -> Tensor:
    """n points on the surface of a solid of about radius 1 about the origin: [n, 3]."""
    u, v, w, axis, end = torch.rand(5, n, generator=generator)
    if solid == 1:  # one coordinate of each point at an end, the cube's side
        points = torch.stack([u, v, w], 1) * 1.6 - 0.8
        return points.scatter(1, (3 * axis)[:, None].long(), torch.where(end < 0.5, -0.8, 0.8)[:, None])
    z, r = {
        0: (2 * v - 1, (1 - (2 * v - 1).square()).sqrt()),
        2: (torch.where(w < 0.5, 2 * v - 1, (8 * w).floor() % 2 * 2 - 1), torch.where(w < 0.5, 1.0, v.sqrt())),  # half of it its ends
        3: (torch.where(w < 0.3, -1.0, 1 - 2 * v.sqrt()), v.sqrt()),  # 0.3 of it its base
        4: (0.35 * (2 * pi * v).sin(), 0.75 + 0.35 * (2 * pi * v).cos()),
    }[solid]
    return torch.stack([r * (2 * pi * u).cos(), r * (2 * pi * u).sin(), z], 1)


@dataclass
class Solids:
    """``count`` clouds of ``points`` points: solids turned about the vertical, flat, even or tall. A fifth is held out."""

    count: int = 3000
    points: int = 64

    name = "solids"
    conditions = {"solid": SOLIDS, "height": HEIGHT}  # noqa: RUF012

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.points, 3)

    @cached_property
    def _splits(self) -> list[InMemory]:
        generator = torch.Generator().manual_seed(0)
        solid, height = torch.arange(self.count) % 5, torch.arange(self.count) // 5 % 3
        x, y, z = torch.stack([surface(int(kind), self.points, generator) for kind in solid]).unbind(2)
        angle, u = 2 * pi * torch.rand(self.count, 1, generator=generator), torch.rand(self.count, 1, generator=generator)
        z = z * torch.tensor([0.4, 0.9, 1.8])[height, None] * (1 + 0.25 * u)
        clouds = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos(), z], 2)
        return [InMemory(clouds, Condition.of(solid=solid, height=height)).rows(index) for index in every_fifth(5 * height + solid)]

    @property
    def train(self) -> InMemory:
        return self._splits[0]

    @property
    def test(self) -> InMemory:
        return self._splits[1]

    def pinned(self) -> dict[str, object]:
        return {}
