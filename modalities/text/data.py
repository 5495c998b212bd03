"""Text data sets: TREC's questions, E2E's restaurants, any CSV, JSON lines or plain text file."""

import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError
from modalities.text import files
from modalities.text.infill import Infill
from modalities.text.tokenizer import PAD, UNKNOWN, Tokenizer, Vocabulary, Words

INFILL, SIZE = "infill", "length"
SIZES = ("short", "medium", "long")


def words(text: str) -> list[str]:
    """Words and signs, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


@dataclass(frozen=True)
class Sentence:
    """A text and what is known of it; an attribute that is not there is absent."""

    text: str
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sentences:
    """Tokens of padded sentences with their attributes: a `Split`."""

    ids: Int[Tensor, "n length"]
    labels: Mapping[str, Int[Tensor, "n"]]
    keep: Mapping[str, Bool[Tensor, "n"]]
    infill: bool

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, index: list[int]) -> tuple[Int[Tensor, "b length"], Condition]:
        rows = torch.as_tensor(index)
        ids = self.ids[rows]
        values, keep = ({name: t[rows] for name, t in of.items()} for of in (self.labels, self.keep))
        if self.infill:  # of which training shows a random part
            values[INFILL], keep[INFILL] = ids, torch.ones(len(ids), dtype=torch.bool)
        return ids, Condition(values, keep)


@dataclass
class TextData:
    """What all text data sets share: they read sentences, and this makes tokens and conditions of them.

    Args:
        length: tokens of the longest sentence; longer ones are left out, and counted.
        tokenizer: see `modalities.text.tokenizer`.
        classes: names of every attribute's classes; found by looking at the data where it is not given.
        infill: whether parts of sentences can be given.
        spans: see `Infill`.
        sized: whether the number of words is an attribute too: ``length``, short, medium or long, by terciles of the training data
            (whatever is left out for its length afterwards).
    """

    length: int = 32
    tokenizer: Tokenizer = field(default_factory=Words)
    classes: Mapping[str, Sequence[str]] | None = None
    infill: bool = True
    spans: int = 5
    sized: bool = False

    name: ClassVar[str]

    @property
    def phrases(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Attribute -> value -> phrases, any of which says it: where a sentence can be checked without a judge."""
        return {}

    @property
    def levels(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """Attributes with an order, see `Label`."""
        return {}

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        """To train on, and held out."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        for what, value, least in (("length", self.length, 2), ("spans", self.spans, 2)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"data.{what} is a whole number, at least {least}, got {value!r}")
        if self.classes is not None and not isinstance(self.classes, Mapping):
            raise UserError(f"data.classes are lists of names by attribute, got {self.classes!r}")
        if not isinstance(self.tokenizer, Tokenizer):
            raise UserError(
                f"data.tokenizer is made by what its _target_ names, such as modalities.text.tokenizer.Words; got {self.tokenizer!r}"
            )

    @cached_property
    def _sentences(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        train, test = self.read()
        if not train:
            raise UserError(f"{self.name} holds no sentence to train on")
        if not self.sized:
            return train, test
        if any(SIZE in s.attributes for s in (*train, *test)):
            raise UserError(f"{self.name} has an attribute {SIZE!r} of its own: pass data.sized=false")
        low, high = statistics.quantiles(2 * [len(words(s.text)) for s in train], n=3)  # twice: one sentence has no quantiles

        def sized(sentence: Sentence) -> Sentence:
            count = len(words(sentence.text))
            return replace(sentence, attributes={**sentence.attributes, SIZE: SIZES[(count > low) + (count > high)]})

        return [sized(s) for s in train], [sized(s) for s in test]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.load() or self.tokenizer.fit([s.text for s in self._sentences[0]])

    @cached_property
    def labels(self) -> Mapping[str, Label]:
        if self.classes is not None:
            return {name: self._label(name, names) for name, names in self.classes.items()}
        found: dict[str, set[str]] = {}
        for sentence in (*self._sentences[0], *self._sentences[1]):
            for name, value in sentence.attributes.items():
                found.setdefault(name, set()).add(value)
        if SIZE in found and self.sized:
            found[SIZE] = found.pop(SIZE)  # after the data's own
        return {name: self._label(name, sorted(values)) for name, values in found.items()}

    def _label(self, name: str, classes: Sequence[str]) -> Label:
        if self.sized and name == SIZE:
            return Label(SIZES, tuple((size,) for size in SIZES), quantity="length")
        there = [tuple(value for value in level if value in classes) for level in self.levels.get(name, ())]
        levels = tuple(level for level in there if level)
        return Label(tuple(classes), levels if len(levels) > 1 else ())

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def conditions(self) -> Mapping[str, ConditionSpec]:
        given = {INFILL: Infill(self.length, self.vocabulary, self.spans)} if self.infill else {}
        return {**self.labels, **given}

    def pinned(self) -> Mapping[str, Any]:
        return {
            "classes": {name: list(label.classes) for name, label in self.labels.items()},
            "tokenizer": self.tokenizer.pinned(self.vocabulary),
        }

    def files(self) -> Mapping[str, bytes]:
        """What a run keeps beside its config."""
        return {self.tokenizer.filename: self.vocabulary.content()}

    @cached_property
    def train(self) -> Sentences:
        return self._split(self._sentences[0], "training")

    @cached_property
    def test(self) -> Sentences:
        return self._split(self._sentences[1], "held-out")

    def _split(self, sentences: Sequence[Sentence], what: str) -> Sentences:
        encoded = [(self.vocabulary.encode(s.text), s) for s in sentences]
        kept = [(ids, s) for ids, s in encoded if 0 < len(ids) <= self.length]
        tokens = [k for ids, _ in kept for k in ids]
        longer, unknown = len(encoded) - len(kept), tokens.count(UNKNOWN)
        if encoded and not kept:
            raise UserError(f"every {what} sentence of {self.name} is longer than data.length={self.length} tokens")
        made = getattr(self.tokenizer, "sha256", None) is None  # said when a run is made, and not whenever its data is read again
        if made and (longer or unknown):
            shares = f"{longer} of {len(encoded)} {what} sentences are longer than {self.length} tokens and left out; "
            warnings.warn(f"{self.name}: {shares}{unknown} of {len(tokens)} tokens are unknown", stacklevel=3)
        ids = torch.full((len(kept), self.length), PAD)
        for k, (row, _) in enumerate(kept):
            ids[k, : len(row)] = torch.tensor(row)
        index = {name: {value: k for k, value in enumerate(label.classes)} for name, label in self.labels.items()}
        values, keep = {}, {}
        for name, classes in index.items():
            given = [s.attributes.get(name) for _, s in kept]
            unheard = {value for value in given if value is not None} - classes.keys()
            if unheard:
                raise UserError(f"{self.name}: {name}={min(unheard)!r} is none of its classes: {', '.join(classes)}")
            values[name] = torch.tensor([0 if value is None else classes[value] for value in given], dtype=torch.long)
            keep[name] = torch.tensor([value is not None for value in given], dtype=torch.bool)
        return Sentences(ids, values, keep, self.infill)


TOPICS = {"DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location", "NUM": "number"}


@dataclass
class Trec(TextData):
    """5,295 real questions in English about five topics: description, entity, human, location, number (Li & Roth 2002). Where ``sized``
    (as in its config), their ``length`` is an attribute, too.

    The sixth class of the original, abbreviations, has 86 questions and is left out. Every fifth question of a topic is held out.
    """

    name = "trec"

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        return files.held_out([Sentence(text, {"topic": TOPICS[topic]}) for topic, text in files.trec() if topic in TOPICS], "topic")


SAID = {
    ("area", "city centre"): ("city centre", "centre of the city", "city center", "center of the city", "city"),
    ("area", "riverside"): ("riverside", "river"),
    ("food", "Fast food"): ("fast food",),
    ("priceRange", "cheap"): ("cheap", "cheaply", "low price", "low prices", "low priced", "inexpensive", "low cost"),
    ("priceRange", "less than £20"): (
        "less than £20",
        "under £20",
        "below £20",
        "less than 20",
        "under 20",
        "cheap",
        "low price",
        "low priced",
    ),
    ("priceRange", "£20-25"): ("20-25", "£20-£25", "20 to 25", "20 to £25", "20 - 25", "20 and £25", "20 and 25"),
    ("priceRange", "moderate"): ("moderate", "moderately", "mid", "medium", "average"),
    ("priceRange", "high"): ("high", "expensive", "higher", "pricey", "upper", "highly priced"),
    ("priceRange", "more than £30"): ("more than £30", "over £30", "above £30", "more than 30", "over 30", "£30", "high", "expensive"),
    ("customer_rating", "1 out of 5"): ("1 out of 5", "one out of five", "1 star", "one star", "1 of 5", "low", "1/5", "1"),
    ("customer_rating", "3 out of 5"): ("3 out of 5", "three out of five", "3 star", "three star", "3 of 5", "average", "3/5", "3"),
    ("customer_rating", "5 out of 5"): ("5 out of 5", "five out of five", "5 star", "five star", "5 of 5", "high", "5/5", "5 stars"),
    ("customer_rating", "low"): ("low", "poor", "poorly", "lowly", "bad"),
    ("customer_rating", "average"): ("average", "averagely", "decent"),
    ("customer_rating", "high"): ("high", "highly", "excellent", "great", "well"),
}


LEVELS = {
    "priceRange": (("cheap", "less than £20"), ("moderate", "£20-25"), ("high", "more than £30")),
    "customer_rating": (("low", "1 out of 5"), ("average", "3 out of 5"), ("high", "5 out of 5")),
}


@dataclass
class E2E(TextData):
    """Descriptions of restaurants (Novikova et al., 1706.09254) with up to eight attributes: name, eatType, food, priceRange,
    customer_rating, area, familyFriendly, near.

    Args:
        root: the folder of the CSV files; null: below POLYGUIDE_DATA, or downloaded. Where it has trainset.csv, that is trained on and
            the test set is held out; else development and test set are trained on, without every fifth of their meanings.
    """

    root: str | None = None

    name = "e2e"

    @property
    def phrases(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """A value's own words; for the areas, prices and ratings also those by which the data says them. familyFriendly has none."""
        own = {name: {value: (value,) for value in label.classes} for name, label in self.labels.items() if name != "familyFriendly"}
        return {name: {value: SAID.get((name, value), words) for value, words in values.items()} for name, values in own.items()}

    @property
    def levels(self) -> Mapping[str, Sequence[Sequence[str]]]:
        return LEVELS

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        train, test = files.e2e(self.root)
        return tuple([Sentence(text, dict(meaning)) for meaning, text in part] for part in (train, test))


@dataclass
class TextFile(TextData):
    """Your own sentences: a CSV, TSV or JSON lines file with a header, or plain text, a sentence a line.

    Args:
        path: the file.
        text: the column of the sentence.
        attributes: the columns to condition on; an empty cell is an absent attribute.
        test_path: a file of held-out sentences; without, every fifth (of each class of the first attribute) is held out.
        encoding: of the file.
    """

    path: str | None = None
    text: str = "text"
    attributes: Sequence[str] = ()
    test_path: str | None = None
    encoding: str = "utf-8"

    name = "text_file"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.attributes:
            if not name.isidentifier():
                raise UserError(f"an attribute's name is a word, for condition.NAME=...; got {name!r}: rename the column")
            if name == INFILL and self.infill:
                raise UserError(f"the attribute {INFILL!r} is that of given words: rename the column, or pass data.infill=false")

    @cached_property
    def labels(self) -> Mapping[str, Label]:
        """In the order of ``attributes``."""
        found = super().labels
        return {name: found[name] for name in (*self.attributes, *found) if name in found}

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        if not self.path:
            raise UserError("data.path is missing; give a .csv, .tsv, .jsonl or .txt file")
        parts = []
        for key, path in (("path", self.path), ("test_path", self.test_path)):
            if path and not Path(path).expanduser().exists():
                raise UserError(f"data.{key}={path} cannot be read: No such file or directory")
            rows = files.rows(path, self.text, self.attributes, self.encoding) if path else []
            parts.append([Sentence(text, attributes) for text, attributes in rows])
        if self.test_path:
            return parts[0], parts[1]
        return files.held_out(parts[0], self.attributes[0] if self.attributes else None)
