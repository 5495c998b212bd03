"""Predicting which token, rather than where its vector lies.

The posterior of a token w at one place is  p(w | x_t) ~ N(x_t; alpha e_w, sigma^2) p(w | the rest), and with vectors e_w of one norm
its logits are  alpha / sigma^2 <x_t, e_w> + log p(w | the rest).  A network that predicts vectors has to learn the first part too, by
heart, a direction for every token of the vocabulary; here it is given (``likelihood`` of `TextDenoiser`), and the network says the
second. Trained with cross-entropy, x0_hat is the mean of the vectors under that posterior, as in CDCD (Dieleman et al., 2211.15089).
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from guidance.errors import UserError
from guidance.parameterization import X0, Parameterization, Prediction
from guidance.process import Level
from modalities.text.codec import Embeddings, cross_entropy


@dataclass(frozen=True)
class Expected(X0):
    """The network's output y [length, width] stands for logits <y, e_w> + b_w; x0_hat = sum_w p(w) e_w, p ~ exp(logits / temperature).

    A temperature below 1 makes samples more likely and less various, as CDCD's score temperature does.
    """

    codec: Embeddings
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"parameterization.temperature is a positive number, got {self.temperature}")

    def read(self, output: Float[Tensor, "b length width"], x_t: Float[Tensor, "b length width"], level: Level) -> Prediction:
        return super().read(self.codec.expected(output, self.temperature), x_t, level)


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(token), the mean over a sentence's places: the loss for `Expected`."""

    codec: Embeddings

    def __call__(
        self, output: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"], level: Level, parameterization: Parameterization
    ) -> Float[Tensor, "b"]:
        return cross_entropy(self.codec.logits(output), self.codec.tokens(target))
