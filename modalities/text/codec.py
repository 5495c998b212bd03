"""Token embeddings as x0."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from guidance.errors import UserError, one_of
from guidance.modality import Split
from guidance.process import Level
from modalities.text.tokenizer import PAD, Vocabulary
from modalities.text.vectors import cooccurrence, read_table, reduced, unit

KINDS = ("random", "learned", "cooccurrence", "language", "pretrained")
PROJECTIONS = ("none", "nearest")


class Embeddings(nn.Module):
    """x0 [length, width]: a vector e_w for every token, and decoding by the nearest one.

    SED (Strudel et al., 2211.04236) fixes vectors of norm sqrt(width), random or reduced from a pretrained table, and adds the
    cross-entropy of a linear readout of x0_hat to the loss. Diffusion-LM (Li et al., 2205.14217) learns them, unnormalised, and adds the
    cross-entropy of reading x0 itself back with the same vectors, which keeps them apart; predicted x0 are clamped to the nearest.

    Args:
        vocabulary, length: of the data.
        width: D.
        kind: random, learned, pretrained (see ``table``); cooccurrence: made of the tokens' neighbours in the training data; language:
            those that ``language`` gives.
        normalise: to norm sqrt(width), learned vectors too.
        table: of kind pretrained: a .npy or .safetensors file with a matrix [vocabulary size, any width].
        readout: weight of the cross-entropy of x0_hat's readout.
        rounding: weight of the cross-entropy of x0's own.
        project: of every predicted x0: none, or nearest, the clamping trick.
        language: vectors [vocabulary size, any width] that a language model of the training data has learned, made when they are wanted.
    """

    table: Tensor
    bias: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        length: int,
        width: int = 64,
        kind: str = "random",
        normalise: bool = True,
        table: str | None = None,
        readout: float = 0.0,
        rounding: float = 0.0,
        project: str = "none",
        language: Callable[[], Float[Tensor, "size any"]] | None = None,
    ):
        super().__init__()
        for what, value, known in (("kind", kind, KINDS), ("project", project, PROJECTIONS)):
            if value not in known:
                raise one_of(f"modality.codec.{what}", value, known)
        if width < 1:
            raise UserError(f"modality.codec.width is at least 1, got {width}")
        for what, weight in (("readout", readout), ("rounding", rounding)):
            if not 0 <= weight < math.inf:
                raise UserError(f"modality.codec.{what} is a weight of the loss, from 0 on, got {weight}")
        if (kind == "pretrained") != (table is not None):
            raise UserError("modality.codec.table, a .npy or .safetensors file, goes with modality.codec.kind=pretrained")
        self.vocabulary, self.shape = vocabulary, (length, width)
        self.kind, self.source, self.normalise, self.projection = kind, table, normalise, project
        self.language = language
        self.weights = {"readout": readout, "rounding": rounding}
        vectors = torch.randn(vocabulary.size, width)
        if kind == "learned":
            self.table = nn.Parameter(vectors)
        else:
            self.register_buffer("table", vectors)
        self.register_buffer("bias", torch.zeros(vocabulary.size))
        self.read = nn.Linear(width, vocabulary.size) if readout else None

    def fit(self, split: Split) -> None:
        """A pretrained table is read; readouts begin with the tokens' frequencies."""
        counts = torch.ones(len(self.bias))
        for k in range(0, len(split), 512):
            counts += torch.bincount(split.__getitems__(list(range(k, min(k + 512, len(split)))))[0].flatten(), minlength=len(counts))
        with torch.no_grad():
            if self.kind == "cooccurrence":
                self.table.copy_(cooccurrence(split, *self.table.shape, noise=self.table))
            if self.kind == "language" and self.language is not None:
                self.table.copy_(reduced(self.language(), *self.table.shape))
            if self.source is not None:
                self.table.copy_(reduced(read_table(self.source), *self.table.shape))
            self.bias.copy_((counts / counts.sum()).log())  # of every token, whatever the rest says
            if self.read is not None:
                self.read.weight.copy_(self.vectors / math.sqrt(self.shape[1]))
                self.read.bias.copy_(self.bias)

    @property
    def vectors(self) -> Float[Tensor, "size width"]:
        return unit(self.table) if self.normalise else self.table

    def encode(self, raw: Int[Tensor, "b length"]) -> Float[Tensor, "b length width"]:
        return functional.embedding(raw, self.vectors)

    def tokens(self, x0: Float[Tensor, "b length width"]) -> Int[Tensor, "b length"]:
        """The token of the nearest vector."""
        with torch.no_grad():
            vectors = self.vectors.float()
            half = vectors.square().sum(1) / 2  # |x - e|^2 / 2 = |x|^2 / 2 - <x, e> + |e|^2 / 2
            parts = x0.flatten(0, 1).split(128)  # so few that what is compared stays in a processor's cache
            return torch.cat([torch.addmm(-half, part.float(), vectors.T).argmax(-1) for part in parts]).view(x0.shape[:2])

    def decode(self, x0: Float[Tensor, "b length width"]) -> list[str]:
        return [self.text(row) for row in self.tokens(x0).tolist()]

    def text(self, ids: list[int]) -> str:
        """Without padding, wherever it is: a blank between given words may stay empty."""
        return self.vocabulary.decode([k for k in ids if k != PAD])

    def project(self, x0: Float[Tensor, "b length width"]) -> Float[Tensor, "b length width"]:
        return self.encode(self.tokens(x0)).to(x0) if self.projection == "nearest" else x0

    def logits(self, y: Float[Tensor, "b length width"], temperature: float = 1.0) -> Float[Tensor, "b length size"]:
        """(<y, e_w> + b_w) / temperature, in single precision: near certainty they are differences of large numbers."""
        with torch.autocast(y.device.type, enabled=False):
            flat = y.float().flatten(0, 1) / temperature  # before there are as many numbers as words
            return torch.addmm(self.bias / temperature, flat, self.vectors.T).unflatten(0, y.shape[:2])

    def expected(self, y: Float[Tensor, "b length width"], temperature: float = 1.0) -> Float[Tensor, "b length width"]:
        """The mean vector under the probabilities that these logits, divided by the temperature, stand for.

        That is y's attention to the vectors, and PyTorch's kernel for it never writes down as many numbers as there are words.
        """
        with torch.autocast(y.device.type, enabled=False):
            vectors, query = self.vectors, y.float().flatten(0, 1) / temperature
            bias = (self.bias / temperature).expand(len(query), -1)
            mean = functional.scaled_dot_product_attention(*(t[None, None] for t in (query, vectors, vectors, bias)), scale=1.0)
            return mean[0, 0].unflatten(0, y.shape[:2])

    @property
    def anchored(self) -> bool:
        return self.read is not None or bool(self.weights["rounding"])

    def anchor_loss(self, raw: Int[Tensor, "b length"], x0_hat: Float[Tensor, "b length width"], level: Level) -> Float[Tensor, "b"]:
        loss = x0_hat.new_zeros(len(x0_hat))
        if self.read is not None:
            loss = loss + self.weights["readout"] * cross_entropy(self.read(x0_hat), raw)
        if self.weights["rounding"]:
            loss = loss + self.weights["rounding"] * cross_entropy(self.logits(self.encode(raw)), raw)
        return loss


def cross_entropy(logits: Float[Tensor, "b length size"], ids: Int[Tensor, "b length"]) -> Float[Tensor, "b"]:
    """-log p(ids), the mean over a sentence's places."""
    each = functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none")
    return each.view(ids.shape).mean(1)
