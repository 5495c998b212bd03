"""A U-Net for images of any size and number of channels, after DDPM (2006.11239) and ADM (2105.05233)."""

from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from guidance.condition import Condition, ConditionEmbedding, ConditionSpec
from guidance.denoiser import NoiseEmbedding
from guidance.errors import UserError, one_of

RESAMPLING = ("convolution", "block")


def norm(channels: int) -> nn.GroupNorm:
    """Groups of at least 4 channels, at most 32 of them."""
    groups = next(g for g in range(min(32, max(channels // 4, 1)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def zero(module: nn.Conv2d) -> nn.Conv2d:
    """The convolution, starting at zero, so that its residual branch starts as the identity."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


class ResBlock(nn.Module):
    """x + conv(drop(silu(scale-shift norm(conv(silu(norm(x))))))), the scale and shift from the embedding (ADM).

    Not ``adaptive``, a shift alone is added before the second norm (DDPM). Told a ``size``, it resizes x, and what it adds to x, to that.
    """

    def __init__(self, channels: int, out: int, embedding: int, dropout: float, adaptive: bool = True):
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), zero(nn.Conv2d(out, out, 3, padding=1))
        self.adaptive = adaptive
        self.scale_shift = nn.Linear(embedding, 2 * out if adaptive else out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], embedding: Float[Tensor, "b e"], size: Sequence[int] | None = None
    ) -> Float[Tensor, "b out h2 w2"]:
        h = functional.silu(self.norm1(x))
        if size is not None:
            h, x = resized(h, size), resized(x, size)
        h, told = self.conv1(h), self.scale_shift(embedding)[:, :, None, None]
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))
        else:
            h = functional.silu(self.norm2(h + told))
        return self.skip(x) + self.conv2(self.dropout(h))


def resized(x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c h2 w2"]:
    """Larger by repeating positions, smaller by averaging them."""
    height, width = size
    if height > x.shape[2] or width > x.shape[3]:
        return functional.interpolate(x, size=(height, width), mode="nearest")
    return functional.adaptive_avg_pool2d(x, (height, width))


class Attention(nn.Module):
    """x + self-attention over all positions (SDPA), with heads of ``head`` channels."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        if head < 1 or channels % head:
            raise UserError(f"attention over {channels} channels cannot have heads of {head}; network.head must divide {channels}")
        self.heads = channels // head
        self.norm, self.qkv, self.out = norm(channels), nn.Conv2d(channels, 3 * channels, 1), zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # In one piece, which PyTorch's fast kernel for attention asks for.
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three n c) h w -> three b n (h w) c", three=3, n=self.heads).contiguous()
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(mixed, "b n (h w) c -> b (n c) h w", h=x.shape[2]))


class Stage(nn.Module):
    """A residual block, with attention at the named resolutions."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float, head: int | None, adaptive: bool = True):
        super().__init__()
        self.block = ResBlock(channels, out, embedding, dropout, adaptive)
        self.attention = nn.Identity() if head is None else Attention(out, head)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """eps, x0 or v from a noisy image.

    Args:
        shape: (channels, height, width) of the image. Sizes need not be powers of two: a level halves, rounding up.
        conditions: the attributes; their embeddings are added to that of the noise level.
        channels: of the finest level; level i has ``channels * multipliers[i]``.
        blocks: residual blocks a level (the way up has one more).
        attention: the heights at which to attend, e.g. (7,) or (16, 8).
        head: channels of an attention head.
        patch: squares of patch x patch pixels become the channels of one position, for a patch^2 times cheaper network.
        dropout: within the residual blocks.
        middle: residual blocks between the ways down and up: 1, with attention where its height is named; or 2, with attention between them
            at any height, as published.
        adaptive: whether the embedding scales and shifts within a block (ADM), or only shifts (DDPM).
        resampling: how a level is left: by a "convolution" (DDPM), or by a residual "block" that resizes (BigGAN, ADM).
        self_condition: whether an earlier guess of x0 is a second input.
    """

    def __init__(
        self,
        shape: Sequence[int],
        conditions: Mapping[str, ConditionSpec],
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (),
        head: int = 32,
        patch: int = 1,
        dropout: float = 0.0,
        self_condition: bool = False,
        middle: int = 1,
        adaptive: bool = True,
        resampling: str = "convolution",
    ):
        super().__init__()
        if channels < 1 or blocks < 1 or not multipliers or min(multipliers) < 1:
            raise UserError(f"a U-Net needs positive channels, blocks and multipliers, got {channels}, {blocks}, {list(multipliers)}")
        if not 0 <= dropout < 1:
            raise UserError(f"network.dropout is at least 0 and below 1, got {dropout}")
        if middle not in (1, 2):
            raise UserError(f"network.middle is 1 or 2 blocks, got {middle}")
        if resampling not in RESAMPLING:
            raise one_of("network.resampling", resampling, RESAMPLING)
        if len(shape) != 3:
            raise UserError(f"network=unet is for images, of channels, height and width; this data is of shape {list(shape)}")
        if patch < 1 or shape[1] % patch or shape[2] % patch:
            raise UserError(f"network.patch={patch} does not divide images of {shape[1]} x {shape[2]} pixels")
        heights = [shape[1] // patch]
        for _ in multipliers[1:]:
            heights.append(-(-heights[-1] // 2))
        unknown = set(attention) - set(heights)
        if unknown:
            raise UserError(f"network.attention={list(attention)}: the U-Net has the resolutions {heights}, not {sorted(unknown)}")
        width = 4 * channels
        self.noise = NoiseEmbedding(width)
        self.condition = ConditionEmbedding(conditions, width)
        self.self_condition, self.patch = self_condition, patch
        bands = shape[0] * patch**2
        self.first = nn.Conv2d(bands * (2 if self_condition else 1), channels, 3, padding=1)

        def stage(inner: int, outer: int, level: int, attends: bool | None = None) -> Stage:
            attends = heights[level] in attention if attends is None else attends
            return Stage(inner, outer, width, dropout, head if attends else None, adaptive)

        def leaving(inner: int, stride: int) -> nn.Module:
            """The layer between two levels."""
            if resampling == "block":
                return ResBlock(inner, inner, width, dropout, adaptive)
            return nn.Conv2d(inner, inner, 3, stride=stride, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = channels, [channels]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(current, current := channels * multiplier, level))
                skips.append(current)
            if level < len(multipliers) - 1:
                self.down.append(leaving(current, stride=2))
                skips.append(current)
        self.middle = stage(current, current, len(multipliers) - 1, True if middle == 2 else None)
        self.middle2 = stage(current, current, len(multipliers) - 1, False) if middle == 2 else None
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(stage(current + skips.pop(), current := channels * multiplier, level))
            if level:
                self.up.append(leaving(current, stride=1))
        self.last = nn.Sequential(norm(current), nn.SiLU(), zero(nn.Conv2d(current, bands, 3, padding=1)))

    def embed(self, condition: Condition) -> Float[Tensor, "b e"] | None:
        return self.condition(condition)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        logsnr: Float[Tensor, "b"],
        context: Float[Tensor, "b e"] | None,
        x0_hat: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        x, skips, embedding = self._downward(x_t, logsnr, context, x0_hat)
        for layer in self.up:
            if isinstance(layer, Stage):
                x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
            elif isinstance(layer, ResBlock):
                x = layer(x, embedding, skips[-1].shape[-2:])
            else:
                x = layer(functional.interpolate(x, size=skips[-1].shape[-2:], mode="nearest"))
        return functional.pixel_shuffle(self.last(x), self.patch)

    def features(
        self,
        x_t: Float[Tensor, "b c h w"],
        logsnr: Float[Tensor, "b"],
        context: Float[Tensor, "b e"] | None,
        x0_hat: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b width"]:
        """What the way down and the middle make of an image, the mean over positions."""
        return self._downward(x_t, logsnr, context, x0_hat)[0].mean((2, 3))

    def _downward(
        self,
        x_t: Float[Tensor, "b c h w"],
        logsnr: Float[Tensor, "b"],
        context: Float[Tensor, "b e"] | None,
        x0_hat: Float[Tensor, "b c h w"] | None,
    ) -> tuple[Tensor, list[Tensor], Float[Tensor, "b e"]]:
        """The way down and the middle: where it ends, what the way up is shown beside that, and the embedding."""
        embedding = self.noise(logsnr)
        embedding = functional.silu(embedding if context is None else embedding + context)
        if self.self_condition:
            x_t = torch.cat([x_t, torch.zeros_like(x_t) if x0_hat is None else x0_hat], dim=1)
        x = self.first(functional.pixel_unshuffle(x_t, self.patch))
        skips = [x]
        for layer in self.down:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding, [-(-side // 2) for side in x.shape[-2:]])
            else:
                x = layer(x, embedding) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        x = self.middle(x, embedding)
        return x if self.middle2 is None else self.middle2(x, embedding), skips, embedding
