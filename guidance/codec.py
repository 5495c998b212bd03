"""Codecs that several modalities share: for data that is tensors already, and for pixels."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from guidance.modality import Split
from guidance.process import Level


class Standardized(nn.Module):
    """x0 = (raw - mean) / deviation, one mean and one deviation for all elements, as the training data has them.

    `project` keeps every element within the range of the training data.
    """

    anchored = False

    mean: Tensor
    deviation: Tensor
    least: Tensor
    most: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"mean": 0.0, "deviation": 1.0, "least": -torch.inf, "most": torch.inf}.items():
            self.register_buffer(name, torch.tensor(value))

    def fit(self, split: Split, chunk: int = 512) -> None:
        """Two passes over the training data, in double precision: moments and range."""
        rows = [list(range(k, min(k + chunk, len(split)))) for k in range(0, len(split), chunk)]
        count = total = square = 0.0
        least, most = torch.inf, -torch.inf
        for index in rows:
            raw = split.__getitems__(index)[0].double()
            count, total = count + raw.numel(), total + float(raw.sum())
            least, most = min(least, float(raw.min())), max(most, float(raw.max()))
        mean = total / count
        for index in rows:
            square += float((split.__getitems__(index)[0].double() - mean).square().sum())
        self.mean.fill_(mean)
        self.deviation.fill_(max(square / count, 1e-24) ** 0.5)
        self.least.fill_(least)
        self.most.fill_(most)

    def encode(self, raw: Tensor) -> Float[Tensor, "b *d"]:
        return (raw - self.mean) / self.deviation

    def decode(self, x0: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        return (x0 * self.deviation + self.mean).cpu()

    def project(self, x0: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        return x0.clamp((self.least - self.mean) / self.deviation, (self.most - self.mean) / self.deviation)

    def anchor_loss(self, raw: Tensor, x0_hat: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b"]:
        return x0_hat.new_zeros(len(x0_hat))


class Pixels(nn.Module):
    """uint8 pixels 0 .. 255 as x0 from -1 to 1, and back by rounding; projected by a clamp to [-clip, clip], where there is one."""

    anchored = False

    def __init__(self, clip: float | None = 1.0):
        super().__init__()
        self.clip = clip

    def fit(self, split: Split) -> None:
        """Nothing: pixels have their range."""

    def encode(self, raw: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return raw.float() / 127.5 - 1

    def decode(self, x0: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
        return ((x0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()

    def project(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def anchor_loss(self, raw: Tensor, x0_hat: Float[Tensor, "b c h w"], level: Level) -> Float[Tensor, "b"]:
        return x0_hat.new_zeros(len(x0_hat))
