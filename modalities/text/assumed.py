"""A vocabulary of which only the size is known: for what a model costs, before there is any text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from guidance.errors import UserError
from modalities.text.tokenizer import Vocabulary


@dataclass(frozen=True)
class AssumedVocabulary:
    """``size`` tokens, and no text: everything else is a UserError."""

    size: int

    def _without_text(self) -> NoReturn:
        raise UserError("an assumed vocabulary knows its size and no words; choose tokenizer=words, sentencepiece or huggingface")

    def encode(self, text: str) -> list[int]:
        self._without_text()

    def decode(self, ids: Sequence[int]) -> str:
        self._without_text()

    def content(self) -> bytes:
        self._without_text()


@dataclass(frozen=True)
class Assumed:
    """The tokenizer of an `AssumedVocabulary`."""

    size: int

    filename = "assumed"

    def __post_init__(self) -> None:
        if self.size < 3:
            raise UserError(f"a vocabulary has at least 3 tokens, got {self.size}")

    def fit(self, texts: Sequence[str]) -> Vocabulary:
        return AssumedVocabulary(self.size)

    def load(self) -> Vocabulary | None:
        return AssumedVocabulary(self.size)

    def pinned(self, vocabulary: Vocabulary) -> Mapping[str, Any]:
        raise UserError("an assumed vocabulary cannot be stored with a run; choose tokenizer=words, sentencepiece or huggingface")
