"""Measures of sentences: judges, likelihood under a language model, variety, copies, and whether what was asked for is said."""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.judge import TrainedJudge, classes, judge_training, seeded, train_judge
from guidance.modality import Data, Judge, SideTraining
from modalities import assets
from modalities.text.data import TextData, words
from modalities.text.language import LanguageModel, language_training, train_language_model
from modalities.text.tokenizer import PAD

BUCKETS, GRAMS = 2**15, 3
LENGTH: Mapping[str, int] = {"steps": 600, "batch": 64}  # of a judge's training
WINDOW = 100  # sentences over which variety is counted, so that it does not depend on their number


def grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]


def bucket(gram: tuple[str, ...], buckets: int) -> int:
    return zlib.crc32(" ".join(gram).encode()) % buckets


def hashed(texts: Sequence[str], most: int) -> Int[Tensor, "n grams"]:
    """Bucket numbers, from 1, of all 1- to 3-grams of a text's first ``most`` words between marks of beginning and end; then 0."""
    rows = []
    for text in texts:
        tokens = ["<s>", *words(text)[:most], "</s>"]
        rows.append([1 + bucket(gram, BUCKETS) for n in range(1, GRAMS + 1) for gram in grams(tokens, n)])
    made = torch.zeros(len(rows), GRAMS * (most + 2), dtype=torch.long)
    for k, row in enumerate(rows):
        made[k, : len(row)] = torch.tensor(row)
    return made


class Reader(nn.Module):
    """A classifier of texts: the sum of learned vectors of their word n-grams, and one hidden layer."""

    def __init__(self, classes: int, width: int = 64, features: int = 64):
        super().__init__()
        self.bag = nn.EmbeddingBag(BUCKETS + 1, width, mode="sum", padding_idx=0)
        nn.init.normal_(self.bag.weight, std=0.02)
        self.body = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    def forward(self, ids: Int[Tensor, "n grams"]) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n classes"]]:
        features = self.body(self.bag(ids))
        return features, self.head(features)


def drop_grams(ids: Int[Tensor, "n grams"], generator: torch.Generator) -> Int[Tensor, "n grams"]:
    """A tenth of the n-grams left out, so that no single one decides."""
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.1, 0, ids)


def entropy(texts: Sequence[str]) -> float:
    """Of the words' distribution in nats, with Miller and Madow's correction (kinds - 1) / (2 tokens) for the number of tokens."""
    counts = Counter(word for text in texts for word in words(text))
    total = sum(counts.values())
    if not total:
        return 0.0
    return -sum(n / total * math.log(n / total) for n in counts.values()) + (len(counts) - 1) / (2 * total)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams as a share of all (Li et al., 1510.03055), in each WINDOW texts; the mean over those."""
    shares = []
    for first in range(0, max(1, len(texts) - WINDOW + 1), WINDOW):
        found = [gram for text in texts[first : first + WINDOW] for gram in grams(words(text), n)]
        shares.append(len(set(found)) / len(found) if found else 0.0)
    return sum(shares) / len(shares)


def repetition(text: str) -> float:
    """The share of a text's words that follow the same word, or are in a pair of words that was there before."""
    tokens = words(text)
    pairs = grams(tokens, 2)
    if not pairs:
        return 0.0
    return sum(a == b or (a, b) in pairs[:k] for k, (a, b) in enumerate(pairs)) / len(pairs)


class TextMetrics:
    """Judges, and the measures below, of a data set's sentences.

    ``phrases``: words by which an attribute's value can be recognised without a judge.
    """

    def __init__(self, data: TextData, language_epochs: int = 12, language_layers: int = 4):
        for what, value in ("epochs", language_epochs), ("layers", language_layers):
            if value < 1:
                raise UserError(f"modality.language_{what} is at least 1, got {value}")
        self.data, self.language_epochs, self.language_layers = data, language_epochs, language_layers

    @property
    def units(self) -> Mapping[str, str]:
        return {
            "length": "words and signs",
            "nll": "nats a token, under a language model",
            "copied": "share of sentences that are in the training data",
            "repetition": "share of words that repeat",
            "entropy": "of single words, nats",
            "distinct_2": f"different pairs of words, share in {WINDOW} sentences",
            "said": "share of the attributes asked for that are said",
        }

    def plain(self, decoded: Sequence[str] | Tensor) -> Sequence[str]:
        """Texts, of tokens or of texts."""
        if not isinstance(decoded, Tensor):
            return decoded
        decode = self.data.vocabulary.decode
        return [decode([k for k in row if k != PAD]) for row in decoded.tolist()]

    def judge(self, data: Data, attribute: str) -> Judge:
        network = seeded(lambda: Reader(len(classes(data, attribute))))

        def prepare(texts: Sequence[str] | Tensor) -> Int[Tensor, "n grams"]:
            return hashed(self.plain(texts), 2 * self.data.length)

        judge: TrainedJudge = train_judge(network, data, attribute, prepare, drop_grams, version="text-1", lr=5e-3, **LENGTH)
        return judge

    def judge_training(self, data: Data, attribute: str) -> SideTraining:
        network = seeded(lambda: Reader(len(classes(data, attribute))))

        def inputs(n: int) -> Int[Tensor, "n grams"]:
            return torch.zeros(n, hashed([""], 2 * self.data.length).shape[1], dtype=torch.long)

        return judge_training(network, inputs, **LENGTH)

    def language_training(self) -> SideTraining:
        """Of `language`."""
        return language_training(self.data, self.language_epochs, self.language_layers)

    @cached_property
    def language(self) -> LanguageModel:
        return train_language_model(self.data, assets.cache() / "judges", self.language_epochs, self.language_layers)

    @cached_property
    def known(self) -> frozenset[str]:
        """The training sentences, as compared with samples."""
        return frozenset(" ".join(words(text)) for text in self.plain(self.data.train.ids))

    def nll(self, texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Of each text under the language model, without attributes, in nats a token."""
        rows = [self.data.vocabulary.encode(text)[: self.data.length] for text in texts]
        ids = torch.full((len(rows), self.data.length), PAD)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row, dtype=torch.long)
        with torch.no_grad():
            parts = [self.language.nll(part) for part in ids.split(128)]
        return torch.cat([total / count for total, count in parts])

    def measure(
        self, decoded: Sequence[str], condition: Condition, original: Sequence[str] | None = None
    ) -> Mapping[str, Float[Tensor, "n"]]:
        """length: words and signs. nll: see there. copied: whether the sentence is one of the training data. repetition: see there.
        Where the data names phrases for its attributes, said: the share of the attributes asked for whose phrases the sentence
        holds."""
        found = {
            "length": torch.tensor([float(len(words(text))) for text in decoded]),
            "nll": self.nll(decoded),
            "copied": torch.tensor([float(" ".join(words(text)) in self.known) for text in decoded]),
            "repetition": torch.tensor([repetition(text) for text in decoded]),
        }
        if self.data.phrases:
            found["said"] = self.said(decoded, condition)
        return found

    def together(self, decoded: Sequence[str]) -> Mapping[str, float]:
        return {"entropy": entropy(decoded), "distinct_2": distinct(decoded, 2)}

    def said(self, texts: Sequence[str], condition: Condition) -> Float[Tensor, "n"]:
        """Of the attributes asked for that have phrases, the share of which a phrase is there; NaN where there is none."""
        shares = []
        for k, text in enumerate(texts):
            spoken = f" {' '.join(words(text))} "
            hits = []
            for name, of in self.data.phrases.items():
                if name in condition.keep and bool(condition.keep[name][k]):
                    value = self.data.labels[name].classes[int(condition.values[name][k])]
                    if value in of:
                        hits.append(any(f" {' '.join(words(phrase))} " in spoken for phrase in of[value]))
            shares.append(sum(hits) / len(hits) if hits else math.nan)
        return torch.tensor(shares)

    def flat(self, decoded: Sequence[str]) -> Float[Tensor, "n size"]:
        """Counts of hashed single words and pairs."""
        size = 512
        made = torch.zeros(len(decoded), size)
        for k, text in enumerate(decoded):
            tokens = words(text)
            for gram in (*grams(tokens, 1), *grams(tokens, 2)):
                made[k, bucket(gram, size)] += 1
        return made
