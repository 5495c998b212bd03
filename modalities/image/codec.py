"""Pixels as x0."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from guidance.modality import Split
from guidance.process import Level


class Pixels(nn.Module):
    """uint8 pixels 0 .. 255 as x0 from -1 to 1, and back by rounding."""

    def fit(self, split: Split) -> None:
        """Nothing: pixels have their range."""

    def encode(self, raw: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return raw.float() / 127.5 - 1

    def decode(self, x0: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        return ((x0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()

    def project(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x0.clamp(-1, 1)

    def anchor_loss(self, raw: Tensor, x0_hat: Float[Tensor, "b c h w"], level: Level) -> Float[Tensor, "b"]:
        return x0_hat.new_zeros(len(x0_hat))
