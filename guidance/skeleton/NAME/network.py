"""The denoiser: residual convolutions along the curve."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from guidance import Condition, ConditionEmbedding, NoiseEmbedding
from guidance.condition import ConditionSpec


class Denoiser(nn.Module):
    """Polyguide calls ``embed`` once a run and ``forward`` once a step."""

    def __init__(self, shape: Sequence[int], conditions: Mapping[str, ConditionSpec], width: int = 48, layers: int = 6):
        super().__init__()
        self.noise = NoiseEmbedding(width)
        self.condition = ConditionEmbedding(conditions, width)  # a learned null vector wherever an attribute is absent
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=2**k, dilation=2**k) for k in range(layers))
        self.last = nn.Conv1d(width, 1, 1)

    def embed(self, condition: Condition) -> Float[Tensor, "b width"] | None:
        """All that does not depend on the noise level."""
        result: Tensor | None = self.condition(condition)
        return result

    def forward(
        self,
        x_t: Float[Tensor, "b length"],
        logsnr: Float[Tensor, "b"],
        context: Float[Tensor, "b width"] | None,
        x0_hat: Float[Tensor, "b length"] | None = None,
    ) -> Float[Tensor, "b length"]:
        level = self.noise(logsnr) if context is None else self.noise(logsnr) + context
        x = self.first(x_t[:, None])
        for layer in self.layers:
            x = x + layer(functional.silu(x + level[..., None]))
        result: Tensor = self.last(functional.silu(x))[:, 0]
        return result
