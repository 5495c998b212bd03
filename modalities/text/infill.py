"""Sentences given in part: words that stand, and blanks that are written."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from guidance.errors import UserError
from modalities.text.tokenizer import PAD, UNKNOWN, Vocabulary

BLANK = -1
BLANKS = re.compile(r"(_+|\.\.\.$)")


@dataclass(frozen=True)
class Infill:
    """The tokens of a sentence [length], -1 where one is to be written.

    People write ``"The ___ is a cheap ___ near the river"``: each underscore is one token to write, and three dots at the end any number
    of them. In training a random part of each sentence is given (`reveal`).

    Args:
        spans: at most so many spans a sentence, of which every other one is given.
    """

    length: int
    vocabulary: Vocabulary = field(repr=False, compare=False)
    spans: int = 5

    @property
    def draws(self) -> int:
        return self.spans + 1

    def parse(self, value: object) -> Tensor:
        if not isinstance(value, str):
            raise UserError(f"is a text such as 'The ___ is near ...', got {value!r}")
        text = " ".join(value.split())
        ids: list[int] = []
        unknown: list[str] = []
        open_end = False
        for part in BLANKS.split(text):
            if part == "...":
                open_end = True
            elif part.startswith("_"):
                ids += [BLANK] * len(part)
            elif part.strip():
                joined = bool(ids) and not part[0].isspace()
                words = [(word, self.tokens(word, joined and k == 0)) for k, word in enumerate(part.split())]
                unknown += [word for word, piece in words if UNKNOWN in piece or not piece]
                ids += self.tokens(part.strip(), joined)
        if unknown or UNKNOWN in ids:
            raise UserError(f"the model does not know {', '.join(map(repr, unknown)) or repr(text)}, so that it cannot be given")
        if len(ids) > self.length - open_end:
            raise UserError(f"has {len(ids)} tokens, and the model's sentences have at most {self.length}")
        if BLANK not in ids and not open_end:
            raise UserError(f"has nothing to fill in; write an underscore for each token to be written, or end with ..., got {text!r}")
        ids += [BLANK if open_end else PAD] * (self.length - len(ids))
        return torch.tensor(ids)

    def tokens(self, text: str, joined: bool) -> list[int]:
        """Of a text; where a sign joins it to the blank before, without the space that tokenizers put before a text."""
        if joined and not text[0].isalnum():
            for before in ("a", "."):
                start, ids = self.vocabulary.encode(before), self.vocabulary.encode(before + text)
                rest = ids[len(start) :]
                if ids[: len(start)] == start and self.vocabulary.decode(rest) == text:
                    return rest
        return self.vocabulary.encode(text)

    def absent(self) -> Tensor:
        return torch.full((self.length,), BLANK)

    def embedding(self, width: int) -> nn.Module:
        """[b, length] -> [b, length, width]."""
        return TokenEmbedding(self.vocabulary.size, width)

    def reveal(
        self, values: Int[Tensor, "b length"], keep: Bool[Tensor, "b"], u: Float[Tensor, "b draws"]
    ) -> tuple[Int[Tensor, "b length"], Bool[Tensor, "b"]]:
        """SED's span masking (Strudel et al., 2211.04236): n ~ U{1 .. spans} spans with random borders, every other one given, the first
        as likely as not; where there is one only, nothing is given."""
        _b, length = values.shape
        n = 1 + (u[:, 0] * self.spans).floor().clamp(max=self.spans - 1)
        first = (u[:, 1] < 0.5).long()
        borders = 1 + (u[:, 2:] * (length - 1)).floor()  # of which the first n - 1 count
        counts = torch.arange(self.spans - 1) < n[:, None] - 1
        place = torch.arange(length)
        span = ((borders[:, :, None] <= place) & counts[:, :, None]).sum(1)
        given = ((span + first[:, None]) % 2 == 1).to(values.device)
        several = (n > 1).to(keep.device)
        return torch.where(given, values, BLANK), keep & several


class TokenEmbedding(nn.Module):
    """Given tokens, and the blank, as learned vectors."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.table = nn.Embedding(size + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, values: Int[Tensor, "b length"]) -> Float[Tensor, "b length width"]:
        made: Any = self.table(values - BLANK)
        return made
