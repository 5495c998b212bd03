"""The data: waves of three forms, slow or fast."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import pi
from typing import Any

import torch

from guidance import Condition, Label
from guidance.condition import ConditionSpec
from guidance.split import InMemory, every_fifth

FORM = Label(("sine", "square", "saw"))
# Levels have an order, and a quantity that grows with them: then no judge is needed to see what a sample is.
PACE = Label(("slow", "fast"), levels=(("slow",), ("fast",)), quantity="crossings")


@dataclass
class Waves:
    """``count`` waves of ``length`` numbers; a fifth of them is held out."""

    count: int = 1500
    length: int = 64

    name = "waves"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        return {"form": FORM, "pace": PACE}

    @cached_property
    def _whole(self) -> InMemory:
        generator = torch.Generator().manual_seed(0)
        form, pace = torch.arange(self.count) % 3, torch.arange(self.count) // 3 % 2
        u = torch.rand(3, self.count, 1, generator=generator)
        cycles, start, strength = (1.5 + 2.5 * pace[:, None]) * (1 + 0.2 * u[0]), u[1], 0.7 + 0.3 * u[2]
        phase = cycles * torch.linspace(0, 1, self.length) + start
        sine = (2 * pi * phase).sin()
        waves = torch.stack([sine, sine.sign(), 2 * (phase % 1) - 1])[form, torch.arange(self.count)]
        noise = 0.05 * torch.randn(waves.shape, generator=generator)
        return InMemory(strength * waves + noise, Condition.of(form=form, pace=pace))

    def _part(self, k: int) -> InMemory:
        return self._whole.rows(every_fifth(3 * self._whole.condition.values["pace"] + self._whole.condition.values["form"])[k])

    @property
    def train(self) -> InMemory:
        return self._part(0)

    @property
    def test(self) -> InMemory:
        return self._part(1)

    def pinned(self) -> Mapping[str, Any]:
        """Settings that were found by looking at the data, for a run to remember; here none."""
        return {}
