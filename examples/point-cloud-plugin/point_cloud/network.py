"""A denoiser of sets."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from guidance import Condition, ConditionEmbedding, NoiseEmbedding
from guidance.condition import ConditionSpec


class SetTransformer(nn.Module):
    """Attention among the points, which have no order: permuted points give permuted outputs."""

    def __init__(self, shape: Sequence[int], conditions: Mapping[str, ConditionSpec], width: int = 64, layers: int = 3, heads: int = 4):
        super().__init__()
        self.noise, self.condition = NoiseEmbedding(width), ConditionEmbedding(conditions, width)
        self.first = nn.Linear(shape[-1], width)
        block = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 2 * width, **block) for _ in range(layers))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, shape[-1]))

    def embed(self, condition: Condition) -> Tensor | None:
        return self.condition(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        level = self.noise(logsnr) if context is None else self.noise(logsnr) + context
        x = self.first(x_t)
        for block in self.blocks:
            x = block(x + level[:, None])
        return self.last(x)
