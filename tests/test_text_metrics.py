"""What is measured of sentences, by hand; the judge; the language model, against sums over all texts and one forward pass a prefix."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guidance import Condition, Label, UserError
from guidance.estimate import Estimate
from guidance.evaluate import Cases, Reference
from guidance.judge import train_judge
from guidance.measures import copy_distance, nearest
from guidance.table import as_csv, as_text
from modalities.text import metrics as module
from modalities.text.data import Sentence, TextData
from modalities.text.language import LanguageModel, train_language_model
from modalities.text.metrics import BUCKETS, TextMetrics, bucket, distinct, drop_grams, entropy, grams, hashed, repetition, words
from modalities.text.tokenizer import PAD, UNKNOWN, Words

PETS, TOWNS = ("cat", "dog", "hen"), ("rome", "oslo", "bern")


@dataclass
class Talk(TextData):
    """Sentences that are either of pets or of towns, and may be said to be loud."""

    name = "talk"

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        parts: list[list[Sentence]] = [[], []]
        for k, (a, b) in enumerate(itertools.product(range(3), repeat=2)):
            for topic, nouns in (("pet", PETS), ("town", TOWNS)):
                text = f"a {nouns[a]} and a {nouns[b]}" + ("!" if k % 2 else ".")
                parts[k % 4 == 3].append(Sentence(text, {"topic": topic} | ({"tone": "loud"} if k % 2 else {})))
        return parts[0] * 4, parts[1] * 2

    @property
    def phrases(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {"topic": {"pet": ("a cat", "a dog", "hen"), "town": TOWNS}, "tone": {"loud": ("!", "loudly")}, "size": {}}


DATA = Talk(length=8, tokenizer=Words(least=1), infill=False)
METRICS = TextMetrics(DATA)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("POLYGUIDE_CACHE", str(folder))
    return folder


# Words


def test_words_are_letters_or_single_signs_in_small_letters():
    assert words("The Cat's £20-25, NO_one?!") == ["the", "cat", "'", "s", "£", "20", "-", "25", ",", "no_one", "?", "!"]
    assert words("  ") == [] and words("Ça va") == ["ça", "va"]


def test_grams_are_all_runs_of_words():
    assert grams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert grams(["a", "b", "c"], 3) == [("a", "b", "c")] and grams(["a"], 2) == []


# Variety


def test_entropy_is_shannons_with_miller_and_madows_correction():
    assert entropy(["a b", "A c."]) == pytest.approx(-(2 / 5 * math.log(2 / 5) + 3 / 5 * math.log(1 / 5)) + 3 / 10)
    assert entropy(["a a a"]) == 0 and entropy(["", " "]) == 0


def test_the_correction_removes_most_of_the_bias_of_small_samples():
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        kinds = torch.randint(8, (40,), generator=draw).tolist()
        found.append(entropy([" ".join(f"w{k}" for k in kinds)]))
    mean = sum(found) / len(found)
    assert abs(mean - math.log(8)) < 0.02 < 7 / 80  # which is what the bias is without


def test_distinct_is_the_share_of_different_grams_in_each_hundred_texts():
    assert distinct(["a b c", "a b d"], 2) == 3 / 4  # ab bc, ab bd
    assert distinct(["a b c", "a b d"], 1) == 4 / 6
    assert distinct(["a"], 2) == 0 and distinct([], 2) == 0
    first, second = [f"a{k} b{k}" for k in range(100)], ["x y"] * 100
    assert distinct(first, 2) == 1 and distinct(second, 2) == 1 / 100
    assert distinct(first + second, 2) == pytest.approx((1 + 1 / 100) / 2)
    assert distinct(first + second + ["x y"] * 99, 2) == distinct(first + second, 2)  # an unfinished hundred does not count
    assert distinct(first * 3, 2) == 1  # the same in every hundred is no repetition


def test_repetition_is_the_share_of_pairs_said_before_or_of_one_word_twice():
    assert repetition("a b a b c") == 1 / 4  # ab ba [ab] bc
    assert repetition("a a a") == 1 and repetition("a b c d") == 0
    assert repetition("the the cat") == 1 / 2
    assert repetition("a b A B a b") == 3 / 5  # ab ba [ab] [ba] [ab]
    assert repetition("word") == 0 and repetition("") == 0


# The judge


def test_hashes_are_of_all_grams_between_marks():
    found = hashed(["a b", ""], most=3)
    assert found.shape == (2, 15)
    expected = [("<s>",), ("a",), ("b",), ("</s>",), ("<s>", "a"), ("a", "b"), ("b", "</s>"), ("<s>", "a", "b"), ("a", "b", "</s>")]
    assert found[0].tolist() == [1 + bucket(gram, BUCKETS) for gram in expected] + [0] * 6
    assert (
        found[1, :3].tolist() == [1 + bucket(gram, BUCKETS) for gram in [("<s>",), ("</s>",), ("<s>", "</s>")]] and not found[1, 3:].any()
    )
    assert torch.equal(hashed(["a b c d e"], most=2), hashed(["a b"], most=2))
    assert int(hashed([" ".join(f"w{k}" for k in range(3000))], 3000).max()) <= BUCKETS


def test_a_tenth_of_the_grams_is_left_out():
    ids = torch.ones(100, 100, dtype=torch.long)
    kept = drop_grams(ids, torch.Generator().manual_seed(0))
    assert set(kept.unique().tolist()) == {0, 1} and 0.89 < kept.float().mean() < 0.91


def test_a_judge_tells_topics_apart_that_share_no_noun(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "train_judge", short)
    monkeypatch.setattr(module, "BUCKETS", 2**10)
    state = torch.get_rng_state()
    judge = METRICS.judge(DATA, "topic")
    assert torch.equal(torch.get_rng_state(), state)
    assert judge.accuracy == 1
    texts = ["a hen and a hen", "a bern and a bern", "Dog!", "oslo"]
    features, logits = judge(texts)
    assert logits.argmax(-1).tolist() == [0, 1, 0, 1] and features.shape == (4, 64)
    ids = torch.tensor([DATA.vocabulary.encode(text) + [PAD] * (8 - len(DATA.vocabulary.encode(text))) for text in texts[:2]])
    assert torch.equal(judge(ids)[1], judge([DATA.vocabulary.decode(row[: row.index(PAD)]) for row in ids.tolist()])[1])
    again = METRICS.judge(DATA, "topic")
    assert torch.equal(again(texts)[1], logits) and len(list(cache.rglob("*.safetensors"))) == 1
    with pytest.raises(UserError, match="'infill' has no classes to judge"):
        data = Talk(length=8, tokenizer=Words(least=1))
        TextMetrics(data).judge(data, "infill")


def short(*args: Any, **settings: Any) -> Any:
    """Fewer steps are enough."""
    return train_judge(*args, **{**settings, "steps": 60})


# The language model

SIZE, LENGTH = 4, 3
CLASSES = {"topic": 2, "tone": 3}


def small(seed: int = 0, size: int = SIZE, length: int = LENGTH, classes: Mapping[str, int] = CLASSES) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel(size, length, classes, width=16, layers=2).eval()
    for parameter in model.parameters():  # so that nothing is near uniform
        torch.nn.init.normal_(parameter, std=0.4) if parameter.ndim > 1 else None
    return model


def every_text(size: int = SIZE, length: int = LENGTH) -> Tensor:
    """All rows of tokens with nothing but padding after the first."""
    rows = [[*text, *[PAD] * (length - n)] for n in range(length + 1) for text in itertools.product(range(1, size), repeat=n)]
    return torch.tensor(rows)


def known(n: int, topic: int | None = None, tone: int | None = None) -> Condition:
    given = {"topic": topic, "tone": tone}
    values = {name: torch.full((n,), value or 0) for name, value in given.items()}
    return Condition(values, {name: torch.full((n,), value is not None) for name, value in given.items()})


ASKED = [None, known(1), known(1, topic=1), known(1, tone=2), known(1, topic=0, tone=1)]


def spread(of: Condition | None, n: int) -> Condition | None:
    return None if of is None else of.rows(torch.zeros(n, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("of", ASKED, ids=str)
def test_the_probabilities_of_all_texts_sum_to_one(of: Condition | None):
    """Of those that end and those that are as long as can be, but for the share of tokens that are none of the vocabulary."""
    model, texts = small(), every_text()
    nll, counts = model.nll(texts, spread(of, len(texts)))
    assert counts.tolist() == [min(int((row != PAD).sum()) + 1, LENGTH) for row in texts]
    assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert nll.std() > 0.3


@torch.no_grad()
@pytest.mark.parametrize("of", ASKED, ids=str)
def test_the_likelihood_is_the_product_over_prefixes(of: Condition | None):
    """One forward pass for each token, of what is before it only."""
    model = small()
    begin = {"topic": SIZE + 1, "tone": SIZE + 1 + 3}
    first = [begin[n] + (0 if of is None or not of.keep[n][0] else 1 + int(of.values[n][0])) for n in CLASSES] + [SIZE]
    for text in ([], [2], [3, 1], [1, 2, 3]):
        ids = torch.tensor([text + [PAD] * (LENGTH - len(text))])
        total, seen = 0.0, list(first)
        for token in [*text, PAD][:LENGTH]:
            logits = model.model(torch.tensor([seen])).logits[0, -1, :SIZE]
            total -= logits.log_softmax(-1)[token].item()
            seen.append(token)
        nll, count = model.nll(ids, of)
        assert nll.item() == pytest.approx(total, abs=1e-4) and count.item() == min(len(text) + 1, LENGTH)


def test_every_attribute_has_a_token_for_each_class_and_one_for_its_absence():
    model = small()
    texts = [model.prefix(known(1, a, b), 1)[0].tolist() for a in (None, 0, 1) for b in (None, 0, 1, 2)]
    assert texts == [[SIZE + 1 + a, SIZE + 4 + b, SIZE] for a in range(3) for b in range(4)]
    assert model.model.config.vocab_size == SIZE + 1 + 3 + 4 and model.model.config.n_positions == 2 + 1 + LENGTH
    nothing = [[SIZE + 1, SIZE + 4, SIZE]] * 2
    assert model.prefix(None, 2).tolist() == model.prefix(known(2), 2).tolist() == model.prefix(Condition(), 2).tolist() == nothing
    assert model.prefix(Condition.of(tone=[2, 0]), 2).tolist() == [[SIZE + 1, SIZE + 7, SIZE], [SIZE + 1, SIZE + 5, SIZE]]
    strange = Condition({"topic": torch.tensor([77])}, {"topic": torch.tensor([False])})
    assert model.prefix(strange, 1).tolist() == nothing[:1]


def test_what_stands_after_the_end_counts_for_nothing():
    model = small()
    with torch.no_grad():
        (a, n), (b, m) = (model.nll(torch.tensor([[2, PAD, last]])) for last in (PAD, 3))
    assert torch.equal(a, b) and n.item() == m.item() == 2


def test_samples_are_drawn_with_the_models_probabilities():
    model, n = small(3), 4000
    texts = every_text()
    state = torch.get_rng_state()
    for of in (None, known(1, topic=1, tone=0)):
        made = model.sample(n, spread(of, n), seed=1)
        with torch.no_grad():
            p = (-model.nll(texts, spread(of, len(texts)))[0].double()).exp()
        assert made.shape == (n, LENGTH) and int(made.max()) < SIZE
        index = {tuple(row): k for k, row in enumerate(texts.tolist())}
        found = torch.bincount(torch.tensor([index[tuple(row)] for row in made.tolist()]), minlength=len(texts)) / n
        exact = torch.multinomial(p, 20 * n, replacement=True, generator=torch.Generator().manual_seed(0)).view(20, n)
        chance = max(float((torch.bincount(row, minlength=len(p)) / n - p).abs().sum()) for row in exact)
        assert float((found - p).abs().sum()) < 1.1 * chance < 0.2
        assert torch.equal(made, model.sample(n, spread(of, n), seed=1)) and not torch.equal(made, model.sample(n, spread(of, n), seed=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_that_all_end_early_are_padded():
    model = small()
    with torch.no_grad():
        model.model.lm_head.weight.zero_()
        model.model.lm_head.weight[PAD] = 0
        model.model.transformer.ln_f.bias.fill_(1)
        model.model.lm_head.weight[1:] = -10
    assert torch.equal(model.sample(5), torch.zeros(5, LENGTH, dtype=torch.long))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def smaller(*args: Any, layers: int) -> LanguageModel:
        return LanguageModel(*args, width=64, layers=1)

    monkeypatch.setattr("modalities.text.language.LanguageModel", smaller)

    def longer(data: Any, cache: Path, epochs: int, layers: int) -> LanguageModel:
        return train_language_model(data, cache, 70, batch=32, lr=0.01)

    monkeypatch.setattr(module, "train_language_model", longer)


def test_training_teaches_the_data_and_its_attributes(unchecked: None, quick: None, cache: Path):
    state = torch.get_rng_state()
    model = METRICS.language
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    ids = torch.cat([DATA.train.ids, DATA.test.ids])
    pets = torch.cat([DATA.train.labels["topic"], DATA.test.labels["topic"]]) == 0
    with torch.no_grad():
        plain = model.nll(ids)[0].mean()
        told = [model.nll(ids, Condition.of(topic=torch.full((len(ids),), k)))[0] for k in (0, 1)]
    # Of either topic by chance, two of three nouns, and one of two signs: each tells something.
    assert plain < math.log(2 * 9 * 2) + 0.5
    assert (told[0] - told[1])[pets].max() < -3 and (told[0] - told[1])[~pets].min() > 3
    assert torch.where(pets, told[0], told[1]).mean() < plain - 0.4
    seen = METRICS.plain(model.sample(64, Condition.of(topic=[1] * 64)))
    assert sum(any(town in text for town in TOWNS) for text in seen) > 54 > 6 > sum(any(pet in text for pet in PETS) for text in seen)
    files = sorted(cache.rglob("*"))
    again = TextMetrics(DATA).language
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert sorted(cache.rglob("*")) == files


def test_a_cut_cache_is_made_again(unchecked: None, quick: None, cache: Path):
    make = partial(train_language_model, DATA, cache, epochs=1, batch=16)
    first = make()
    weights = next(cache.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    again = make()
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert weights.stat().st_size > 100


def test_it_runs_in_what_auto_is_and_its_cache_tells_them_apart(quick: None, cache: Path, monkeypatch: pytest.MonkeyPatch):
    made = {}
    for precision in ("no", "bf16"):
        monkeypatch.setenv("POLYGUIDE_PRECISION", precision)
        made[precision] = train_language_model(DATA, cache, epochs=1, batch=16)
        assert made[precision].precision == precision
    assert len(list(cache.rglob("*.json"))) == 2
    ids = DATA.train.ids[:4]
    one, other = (made[precision].nll(ids)[0].detach() for precision in ("no", "bf16"))
    torch.testing.assert_close(other, one, rtol=0.05, atol=0.05)
    assert not torch.equal(one, other)


# All together


class Even:
    """A language model for which each token of the vocabulary is as likely."""

    def nll(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        counts = ((ids == PAD).long().cumsum(1) <= 1).sum(1)
        self.seen = ids
        return counts * math.log(DATA.vocabulary.size) + ids[:, 0], counts


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> Even:
    model = Even()
    monkeypatch.setitem(METRICS.__dict__, "language", model)
    return model


def test_nll_is_a_token_of_what_the_text_is_cut_to(even: Even):
    texts = ["a cat", "", "zebra a", "a cat and a dog . ! . ! . !"]
    found = METRICS.nll(texts)
    code = DATA.vocabulary.encode
    assert even.seen.tolist() == [
        [*code("a cat"), *[PAD] * 6],
        [PAD] * 8,
        [UNKNOWN, *code("a"), *[PAD] * 6],
        code(texts[3])[:8],
    ]
    base = math.log(DATA.vocabulary.size)
    expected = [base + code("a")[0] / 3, base, base + UNKNOWN / 3, base + code("a")[0] / 8]
    torch.testing.assert_close(found, torch.tensor(expected))
    many = METRICS.nll([*["a cat"] * 130, "."])
    torch.testing.assert_close(many[[0, 129]], found[[0, 0]])
    torch.testing.assert_close(many[130], torch.tensor(base + code(".")[0] / 2))


SAID = [
    ("A CAT sat, and loudly", {"topic": 0, "tone": 0}, 1.0),
    ("a cat sat", {"topic": 0, "tone": 0}, 0.5),
    ("a cat sat", {"topic": 0}, 1.0),
    ("a cat sat", {"topic": 1}, 0.0),
    ("cat", {"topic": 0}, 0.0),  # the phrase is "a cat"
    ("hens", {"topic": 0}, 0.0),  # a whole word
    ("the hen!", {"topic": 0, "tone": 0}, 1.0),
    ("a cat sat", {}, math.nan),
]


def asked(rows: Sequence[Mapping[str, int]]) -> Condition:
    names = ("topic", "tone")
    values = {name: torch.tensor([row.get(name, 0) for row in rows]) for name in names}
    return Condition(values, {name: torch.tensor([name in row for row in rows]) for name in names})


def test_what_was_asked_for_is_said_where_one_of_its_phrases_is_there():
    texts, rows, expected = zip(*SAID, strict=True)
    torch.testing.assert_close(METRICS.said(texts, asked(rows)), torch.tensor(expected), equal_nan=True)
    assert METRICS.said(["a cat"], Condition()).isnan().all()


def test_values_without_phrases_are_not_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Talk, "phrases", {"topic": {"pet": ("cat",)}, "tone": {"loud": ("!",)}})
    found = METRICS.said(["a town", "a town!", "a town"], asked([{"topic": 1}, {"topic": 1, "tone": 0}, {"topic": 1, "tone": 0}]))
    torch.testing.assert_close(found, torch.tensor([math.nan, 1, 0]), equal_nan=True)


def test_everything_is_measured_a_text_or_for_all_together(even: Even):
    texts = ["a cat and a cat.", "A Cat and a Dog .", "a cat and a cat and", ""]
    found = METRICS.measure(texts, asked([{"topic": 0}] * 4))
    assert list(found) == ["length", "nll", "copied", "repetition", "said"]
    assert set(METRICS.units) == {*found, *METRICS.together(texts)}
    assert found["length"].tolist() == [6, 6, 6, 0]
    # Sentence 0 is of the training data, as is sentence 1 but for letters and spacing.
    trained = {" ".join(words(s.text)) for s in DATA.read()[0]}
    assert "a cat and a cat ." in trained and "a cat and a dog ." not in trained and "a cat and a dog !" in trained
    assert found["copied"].tolist() == [1, 0, 0, 0]
    assert METRICS.measure(["A  CAT and a dog!"], asked([{}]))["copied"].tolist() == [1]
    torch.testing.assert_close(found["repetition"], torch.tensor([1 / 5, 0, 2 / 5, 0]))
    together = METRICS.together(texts)
    assert together == {"entropy": entropy(texts), "distinct_2": distinct(texts, 2)} and isinstance(together["entropy"], float)
    assert torch.equal(found["nll"], METRICS.nll(texts)) and found["said"].tolist() == [1, 1, 1, 0]


def test_said_is_left_out_where_nothing_can_be_recognised(even: Even, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Talk, "phrases", {})
    assert "said" not in METRICS.measure(["a cat"], Condition())


def test_texts_are_far_apart_by_their_words_and_pairs():
    flat = METRICS.flat(["a b", "A b", "b a", "a b c", ""])
    squares = torch.cdist(flat, flat).square().round().tolist()
    assert squares[0] == [0, 0, 2, 2, 3]  # of one pair each; of a word and a pair; of two words and a pair
    assert flat.sum(1).tolist() == [3, 3, 3, 5, 0] and flat.shape == (5, 512)
    train, test = (METRICS.flat([s.text for s in part]) for part in DATA.read())
    assert bool((nearest(train, train) <= copy_distance(train, test)).all())
    assert not bool((nearest(METRICS.flat(["something else entirely"]), train) <= copy_distance(train, test)).any())


def test_quantities_of_all_together_stand_in_a_table_beside_means(even: Even):
    texts = ["a cat and a cat.", "a cat"]
    flat = METRICS.flat(texts)
    ref = Reference(None, None, None, torch.zeros(2, dtype=torch.long), flat, copy_distance(flat, METRICS.flat(["b", "c"])), {}, 2)
    row = ref.measured(METRICS, texts, Cases(asked([{"topic": 0}, {}]), torch.zeros(2, dtype=torch.long)))
    assert row["entropy"].value == entropy(texts) and row["distinct_2"].value == distinct(texts, 2)
    assert row["length"].value == 4 and row["said"].value == 1 and row["copied"].value == 0.5
    assert row["said"].n == 1 and row["length"].n == 2, "said: of those that were asked"
    assert all(isinstance(value, Estimate) for value in row.values())
    assert f",{entropy(texts):.5g}," in as_csv([row]) and f"{entropy(texts):.3f}" in as_text([row]) and "distinct 2" in as_text([row])


def test_labels_are_as_the_data_has_them():
    assert {name: spec.classes for name, spec in DATA.conditions.items() if isinstance(spec, Label)} == {
        "topic": ("pet", "town"),
        "tone": ("loud",),
    }
