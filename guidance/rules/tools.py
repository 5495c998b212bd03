"""What the rules share."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError
from guidance.parameterization import Parameterization, Prediction
from guidance.process import Level


def moved(prediction: Prediction, by: Float[Tensor, "b *d"], space: Parameterization, level: Level) -> Prediction:
    """The prediction with ``by`` added to what ``space`` calls the output; of the same x_t, so that x0 and eps move together.

    As the difference of two readings, so that where ``by`` is 0 nothing is rounded.
    """
    change = space.read(by, torch.zeros_like(by), level)
    return replace(prediction, x0=prediction.x0 + change.x0, eps=prediction.eps + change.eps)


def inner(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"]) -> Float[Tensor, "b *ones"]:
    """Each sample's inner product, ready to broadcast."""
    return wide((a * b).flatten(1).sum(1), a)


def wide(each: Float[Tensor, "b"], like: Float[Tensor, "b *d"]) -> Float[Tensor, "b *ones"]:
    """A number a sample, ready to broadcast over the event."""
    return each.view(-1, *(1,) * (like.ndim - 1))


def ratio(a: Float[Tensor, "b *ones"], b: Float[Tensor, "b *ones"]) -> Float[Tensor, "b *ones"]:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def check_number(value: Any, name: str, wanted: str = "a finite number", allowed: Callable[[float], bool] = math.isfinite) -> None:
    """UserError where a setting is not a number that is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not allowed(value):
        raise UserError(f"{name} is {wanted}, got {value!r}")
