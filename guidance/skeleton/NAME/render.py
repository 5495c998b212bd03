"""How samples are shown: as curves in pictures."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from guidance.pictures import Pictures

HEIGHT = 48  # pixels


def draw(waves: Float[Tensor, "n length"]) -> UInt8[Tensor, "n 1 48 width"]:
    """Black curves on white, from -1.2 below to 1.2 above, two pixels a number."""
    row = ((1.2 - waves) / 2.4 * HEIGHT).clamp(0, HEIGHT - 1).repeat_interleave(2, 1)
    before = torch.cat([row[:, :1], row[:, :-1]], 1)  # up to where it was, so that steep curves hold together
    low, high = torch.minimum(row, before) - 0.5, torch.maximum(row, before) + 0.5
    height = torch.arange(HEIGHT).view(-1, 1)
    inked = (height >= low[:, None]) & (height <= high[:, None])
    return torch.where(inked, 0, 255).to(torch.uint8)[:, None]


def render() -> Pictures:
    return Pictures(draw)
