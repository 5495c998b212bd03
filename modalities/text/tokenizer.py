"""Tokenizers: words, SentencePiece, or any of Hugging Face's, with one small face.

A configured tokenizer (`Words`, `SentencePiece`, `HuggingFace`) becomes a `Vocabulary` by being fitted to texts, or by reading the
file that an earlier fit left in a run. Token 0 is padding, which also ends a text; token 1 stands for what is unknown.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from guidance.errors import UserError

PAD, UNKNOWN = 0, 1
SPECIAL = 2  # tokens below this are no text


@runtime_checkable
class Vocabulary(Protocol):
    """Between text and token ids."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Without padding."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Of ids without padding."""
        ...

    def content(self) -> bytes:
        """What a run keeps: the tokenizer's own file."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer's settings."""

    filename: ClassVar[str]

    def fit(self, texts: Sequence[str]) -> Vocabulary: ...

    def load(self) -> Vocabulary | None:
        """From ``file``, where that is set."""
        ...

    def pinned(self, vocabulary: Vocabulary) -> Mapping[str, Any]:
        """The config by which a run finds this vocabulary again."""
        ...


def squeeze(text: str) -> str:
    """Single spaces only."""
    return " ".join(text.split())


PIECE = re.compile(r" ?\w+(?:['’-]\w+)*| ?[^\w\s]")  # noqa: RUF001


@dataclass(frozen=True)
class WordVocabulary:
    """Words and signs, each with the space before it, so that decoding gives the text back."""

    pieces: tuple[str, ...]

    @cached_property
    def index(self) -> Mapping[str, int]:
        return {piece: k for k, piece in enumerate(self.pieces, start=SPECIAL)}

    @property
    def size(self) -> int:
        return SPECIAL + len(self.pieces)

    def encode(self, text: str) -> list[int]:
        return [self.index.get(piece, UNKNOWN) for piece in PIECE.findall(f" {squeeze(text)}")]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[k - SPECIAL] if k >= SPECIAL else " ⁇" for k in ids).strip()

    def content(self) -> bytes:
        return json.dumps(self.pieces, ensure_ascii=False, indent=0).encode()


class SentencePieceVocabulary:
    """A SentencePiece model."""

    def __init__(self, proto: bytes):
        import sentencepiece

        self.proto = proto
        self.processor: Any = sentencepiece.SentencePieceProcessor()
        self.processor.LoadFromSerializedProto(proto)

    @property
    def size(self) -> int:
        return int(self.processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self.processor.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return squeeze(str(self.processor.decode([int(k) for k in ids])))

    def content(self) -> bytes:
        return self.proto


class HuggingFaceVocabulary:
    """A tokenizer of the tokenizers library; its ids follow the two special ones."""

    def __init__(self, content: str):
        import tokenizers

        self.tokenizer: Any = tokenizers.Tokenizer.from_str(content)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @property
    def size(self) -> int:
        return SPECIAL + 1 + max(self.tokenizer.get_vocab().values(), default=-1)  # ids may leave gaps

    @cached_property
    def unknown(self) -> int | None:
        """The tokenizer's own unknown token, where it has one: by name, or of unigrams by number."""
        model = json.loads(self.tokenizer.to_str())["model"]
        name = model.get("unk_token")
        found: int | None = model.get("unk_id") if name is None else self.tokenizer.token_to_id(name)
        return found

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [UNKNOWN if k == self.unknown else k + SPECIAL for k in ids]

    def decode(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        known: list[int] = []
        for k in [*ids, None]:
            if k is not None and k >= SPECIAL:
                known.append(k - SPECIAL)
                continue
            if known:
                parts.append(self.tokenizer.decode(known, skip_special_tokens=False))
            known = []
            if k is not None:
                parts.append("⁇")
        return squeeze(" ".join(parts))

    def content(self) -> bytes:
        return str(self.tokenizer.to_str()).encode()


def reason(error: Exception) -> str:
    """The first line of what another library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def read(file: str, sha256: str | None) -> bytes:
    """A tokenizer's file; UserError where it is not the one that a model was trained with."""
    try:
        content = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"the tokenizer {file} cannot be read: {error.strerror}") from None
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(
            f"the tokenizer {file} does not fit the model: its SHA-256 is {found[:12]}..., the model was trained with {sha256[:12]}..."
        )
    return content


@dataclass(frozen=True)
class _Settings:
    file: str | None = None
    sha256: str | None = None

    filename: ClassVar[str]

    def open(self, content: bytes) -> Vocabulary:
        raise NotImplementedError

    def load(self) -> Vocabulary | None:
        if self.file is None:
            return None
        content = read(self.file, self.sha256)
        try:
            return self.open(content)
        except Exception as error:  # of three libraries' own kinds
            raise UserError(f"{self.file} is no {type(self).__name__} tokenizer: {reason(error)}") from None

    def pinned(self, vocabulary: Vocabulary) -> Mapping[str, Any]:
        kind = type(self)
        digest = hashlib.sha256(vocabulary.content()).hexdigest()
        settings = {"file": f"run:{self.filename}", "sha256": digest}
        return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(self), **settings}


@dataclass(frozen=True)
class Words(_Settings):
    """Words and punctuation signs of the training texts.

    Args:
        size: at most so many, the most frequent first.
        least: each found at least so often.
        file: a JSON list of words instead, as a run holds it.
    """

    size: int = 30_000
    least: int = 2

    filename = "words.json"

    def __post_init__(self) -> None:
        for what, value in (("size", self.size), ("least", self.least)):
            if value < 1:
                raise UserError(f"data.tokenizer.{what} is at least 1, got {value}")

    def fit(self, texts: Sequence[str]) -> Vocabulary:
        counts = Counter(piece for text in texts for piece in PIECE.findall(f" {squeeze(text)}"))
        kept = sorted((piece for piece, n in counts.items() if n >= self.least), key=lambda piece: (-counts[piece], piece))
        if not kept:
            raise UserError(f"no word is found {self.least} times in the texts; choose a smaller data.tokenizer.least")
        return WordVocabulary(tuple(kept[: self.size]))

    def open(self, content: bytes) -> Vocabulary:
        pieces = json.loads(content)
        if not isinstance(pieces, list) or not pieces or not all(isinstance(piece, str) for piece in pieces):
            raise ValueError("not a JSON list of words")
        return WordVocabulary(tuple(pieces))


@dataclass(frozen=True)
class SentencePiece(_Settings):
    """SentencePiece (Kudo & Richardson, 1808.06226), trained on the training texts.

    Args:
        size: pieces, at most; fewer where the texts do not hold so many.
        kind: unigram, bpe, word or char.
        file: a SentencePiece model instead; its padding token must be 0 and its unknown token 1.
    """

    size: int = 2000
    kind: str = "unigram"

    filename = "sentencepiece.model"

    def __post_init__(self) -> None:
        kinds = ("unigram", "bpe", "word", "char")
        if self.kind not in kinds:
            from guidance.errors import one_of

            raise one_of("data.tokenizer.kind", self.kind, kinds)

    def fit(self, texts: Sequence[str]) -> Vocabulary:
        import sentencepiece

        model = io.BytesIO()
        ids = {"pad_id": PAD, "unk_id": UNKNOWN, "bos_id": -1, "eos_id": -1}
        more = {"hard_vocab_limit": False, "character_coverage": 1.0, "num_threads": 1, "minloglevel": 2}
        settings: dict[str, Any] = {"vocab_size": self.size, "model_type": self.kind, **ids, **more}
        try:
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **settings)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"SentencePiece cannot make {self.size} pieces of these texts ({reason(error)}); choose another data.tokenizer.size"
            ) from None
        return SentencePieceVocabulary(model.getvalue())

    def open(self, content: bytes) -> Vocabulary:
        vocabulary = SentencePieceVocabulary(content)
        found = vocabulary.processor.pad_id(), vocabulary.processor.unk_id()
        if found != (PAD, UNKNOWN):
            raise ValueError(f"its padding and unknown tokens are {found}, and should be {(PAD, UNKNOWN)}")
        return vocabulary


@dataclass(frozen=True)
class HuggingFace(_Settings):
    """Any fast tokenizer of Hugging Face's: a name on the hub, a local folder, or a tokenizer.json."""

    name: str | None = None

    filename = "tokenizer.json"

    def fit(self, texts: Sequence[str]) -> Vocabulary:
        if not self.name:
            raise UserError("data.tokenizer.name is missing; give a tokenizer's name on the hub, its folder, or a tokenizer.json")
        path = Path(self.name).expanduser()
        path = path / self.filename if path.is_dir() else path
        if path.is_file():
            try:
                return self.open(path.read_bytes())
            except Exception as error:
                raise UserError(f"{path} is no tokenizer: {reason(error)}") from None
        import tokenizers

        try:
            return HuggingFaceVocabulary(tokenizers.Tokenizer.from_pretrained(self.name).to_str())
        except Exception as error:  # of the hub: offline, not found, gated
            raise UserError(f"cannot load the tokenizer {self.name!r}: {reason(error)}") from None

    def open(self, content: bytes) -> Vocabulary:
        return HuggingFaceVocabulary(content.decode())
