"""Tokenizers, sentences from files, data sets of text, and sentences given in part."""

import hashlib
import itertools
import json
import math
import random
import re
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
import yaml
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from guidance import Condition, Label, UserError
from guidance.checkpoint import located
from guidance.condition import reveal
from guidance.config import build, config_folder
from guidance.page import element
from modalities.text import files
from modalities.text.data import E2E, INFILL, LEVELS, SAID, SIZES, Sentence, TextData, TextFile, Trec, words
from modalities.text.infill import Infill
from modalities.text.metrics import TextMetrics
from modalities.text.render import TextRender
from modalities.text.tokenizer import HuggingFace, SentencePiece, Words, WordVocabulary

TEXTS = [
    "The Eagle is a cheap pub near the river.",
    "the  cat\truns ,  sleeps; it's well-known: isn't it?",
    "He said: “no”, then … left (for £20-25)!",
    "Größe, naïve, 音楽 は, тихо — 3.5% of #1 & co_op",
    "e\u0301tude a\u200bb 🎉🎉 ¿qué? 'quoted' ''x'' -dash- 'tis",
]


def squeezed(text: str) -> str:
    return " ".join(text.split())


def whole(split: Any) -> tuple[Tensor, Condition]:
    return split.__getitems__(list(range(len(split))))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    said = str(error.value)
    assert "\n" not in said and len(said) < 400
    return said


# Words


def test_words_give_the_text_back():
    vocabulary = Words(least=1).fit(TEXTS)
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert min(ids) >= 2 and vocabulary.decode(ids) == squeezed(text)
    letters = "ab1ü音 \t'-’.,!?()“_\u0301"  # noqa: RUF001
    draw = random.Random(0)
    made = ["".join(draw.choices(letters, k=draw.randint(1, 30))) for _ in range(300)]
    made = [text for text in made if text.strip()]
    vocabulary = Words(least=1).fit(made)
    assert [vocabulary.decode(vocabulary.encode(text)) for text in made] == [squeezed(text) for text in made]


def test_words_and_signs_are_tokens_with_the_space_before_them():
    vocabulary = Words(least=1).fit(["it's a b-c, d. a (a)"])
    assert isinstance(vocabulary, WordVocabulary)
    assert vocabulary.pieces == (" a", " (", " b-c", " d", " it's", ")", ",", ".", "a")
    assert vocabulary.size == 11
    assert vocabulary.encode("a  b-c, d.") == [2, 4, 8, 5, 9]
    assert vocabulary.encode("a zebra (a) d,") == [2, 1, 3, 10, 7, 5, 8]
    assert vocabulary.decode([2, 1, 3, 10, 7]) == "a ⁇ (a)"
    assert vocabulary.encode("") == vocabulary.encode("  \n") == [] and vocabulary.decode([]) == ""


@pytest.mark.parametrize("least", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_the_most_frequent_words_are_kept(least: int, size: int):
    draw = random.Random(1)
    texts = [" ".join(draw.choices("abcdefghij", weights=range(1, 11), k=draw.randint(1, 4))) for _ in range(25)]
    counts = Counter(word for text in texts for word in text.split())
    kept = sorted((word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word))[:size]
    vocabulary = Words(size=size, least=least).fit(texts)
    assert isinstance(vocabulary, WordVocabulary)
    assert vocabulary.pieces == tuple(f" {word}" for word in kept)
    for text in texts:
        assert vocabulary.encode(text) == [kept.index(word) + 2 if word in kept else 1 for word in text.split()]


def test_words_that_are_all_rare():
    with pytest.raises(UserError, match=r"no word is found 3 times.*data.tokenizer.least"):
        Words(least=3).fit(["a b c", "a b"])


# SentencePiece


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word", "char"])
def test_sentencepiece_is_the_librarys(kind: str):
    texts = TEXTS[:3] * 3
    vocabulary = SentencePiece(size=90, kind=kind).fit(texts)
    library: Any = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(vocabulary.content())
    assert vocabulary.size == library.vocab_size() <= 90
    assert (library.pad_id(), library.unk_id(), library.bos_id(), library.eos_id()) == (0, 1, -1, -1)
    for text in [*texts, "The  Eagle sleeps.", "zebra 音"]:
        assert vocabulary.encode(text) == library.encode(text)
        assert vocabulary.decode(vocabulary.encode(text)) == squeezed(library.decode(library.encode(text)))
    plain = TEXTS[:2]
    assert [vocabulary.decode(vocabulary.encode(text)) for text in plain] == [squeezed(text) for text in plain]
    unknown = vocabulary.encode("音")
    assert unknown == ([1] if kind == "word" else [library.piece_to_id("▁"), 1]) and vocabulary.decode(unknown) == "⁇"
    again = SentencePiece(size=90, kind=kind).fit(iter(texts))  # type: ignore[arg-type]
    assert again.content() == vocabulary.content(), "training has no chance in it"


def test_sentencepiece_is_quiet_and_says_what_it_cannot_do(capfd: pytest.CaptureFixture[str], tmp_path: Path):
    for settings, said in (({"size": 4}, "cannot make 4 pieces"), ({"size": 0}, "cannot make 0 pieces")):
        with pytest.raises(UserError, match=f"{said}.*data.tokenizer.size") as error:
            SentencePiece(**settings).fit(["a b c d e f g"])
        one_line(error)
    with pytest.raises(UserError, match=r"'unigramm'.*did you mean 'unigram'\?.*unigram, bpe, word, char"):
        SentencePiece(kind="unigramm")
    (tmp_path / "none.model").write_bytes(b"\x00\x01none")
    with pytest.raises(UserError, match="is no SentencePiece tokenizer"):
        SentencePiece(file=str(tmp_path / "none.model")).load()
    assert capfd.readouterr() == ("", "")


def test_a_sentencepiece_model_of_others_must_have_our_special_tokens(tmp_path: Path):
    for name, ids in (("ours", {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}), ("theirs", {})):
        prefix = str(tmp_path / name)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"] * 9), model_prefix=prefix, vocab_size=9, hard_vocab_limit=False, minloglevel=2, **ids
        )
    vocabulary = SentencePiece(file=str(tmp_path / "ours.model")).load()
    assert vocabulary is not None and vocabulary.decode(vocabulary.encode("a b c")) == "a b c"
    with pytest.raises(UserError, match=r"theirs.model is no SentencePiece tokenizer: .*\(-1, 0\), and should be \(0, 1\)"):
        SentencePiece(file=str(tmp_path / "theirs.model")).load()


# Hugging Face's


def saved(path: Path, made: tokenizers.Tokenizer) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return path


def bpe() -> tokenizers.Tokenizer:
    """Of bytes: it knows every text."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    return made


def word_level(words: Mapping[str, int], unknown: str | None = "[UNK]") -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel(dict(words), unk_token=unknown))  # type: ignore[arg-type]
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return made


def test_a_byte_level_tokenizer_is_the_librarys_two_further(tmp_path: Path):
    library = bpe()
    path = saved(tmp_path / "folder" / "tokenizer.json", library)
    for name in (path, path.parent):
        vocabulary = HuggingFace(name=str(name)).fit([])
        assert vocabulary.size == library.get_vocab_size() + 2
        for text in [*TEXTS, "zebra 音 xyz", ""]:
            assert vocabulary.encode(text) == [k + 2 for k in library.encode(text).ids]
            assert vocabulary.decode(vocabulary.encode(text)) == squeezed(text)


def test_words_that_a_tokenizer_does_not_know_are_our_unknown_token(tmp_path: Path):
    words = saved(tmp_path / "words.json", word_level({"the": 0, "[UNK]": 1, "cat": 2}))
    vocabulary = HuggingFace(name=str(words)).fit([])
    assert vocabulary.encode("the big cat cat big") == [2, 1, 4, 4, 1] and vocabulary.size == 5
    assert vocabulary.decode([2, 1, 4, 4, 1]) == "the ⁇ cat cat ⁇" and vocabulary.decode([1, 1]) == "⁇ ⁇"
    assert vocabulary.decode([0, 2]) == "⁇ the", "padding is no word"
    pieces = tokenizers.Tokenizer(models.Unigram([("▁", -3.0), ("<u>", 0.0), ("▁cat", -1.0)], unk_id=1))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    pieces.decoder = decoders.Metaspace()  # type: ignore[assignment]
    vocabulary = HuggingFace(name=str(saved(tmp_path / "pieces.json", pieces))).fit([])
    assert vocabulary.encode("cat x cat") == [4, 2, 1, 4] and vocabulary.decode([4, 2, 1, 4]) == "cat ⁇ cat"


def test_a_tokenizers_own_padding_truncation_and_marks_are_left_out(tmp_path: Path):
    made = word_level({"[CLS]": 0, "the": 1, "[UNK]": 2, "cat": 3})
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 0)])  # type: ignore[assignment]
    made.enable_padding(length=9, pad_id=2, pad_token="[UNK]")
    made.enable_truncation(2)
    assert len(made.encode("the cat the cat").ids) == 9
    vocabulary = HuggingFace(name=str(saved(tmp_path / "t.json", made))).fit([])
    assert vocabulary.encode("the cat the cat") == [3, 5, 3, 5]


def test_the_ids_of_a_tokenizer_may_leave_gaps(tmp_path: Path):
    path = saved(tmp_path / "t.json", word_level({"[UNK]": 0, "the": 4, "cat": 9}))
    vocabulary = HuggingFace(name=str(path)).fit([])
    assert vocabulary.encode("cat the") == [11, 6] and vocabulary.size == 12, "every id is below the size"


def test_a_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"data.tokenizer.name is missing"):
        HuggingFace().fit([])

    def offline(name: str) -> None:
        raise OSError(f"{name} cannot be reached\nmore\nand more")

    monkeypatch.setattr("tokenizers.Tokenizer.from_pretrained", offline)
    with pytest.raises(UserError, match=r"^cannot load the tokenizer 'some/name': some/name cannot be reached$"):
        HuggingFace(name="some/name").fit([])
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(UserError, match=r"none\.json is no tokenizer") as error:
        HuggingFace(name=str(tmp_path / "none.json")).fit([])
    one_line(error)


# What a run keeps of each kind


def tokenizer(kind: str, folder: Path) -> Any:
    if kind == "huggingface":
        return HuggingFace(name=str(saved(folder / "theirs" / "tokenizer.json", bpe())))
    return {"words": Words(least=1, size=40), "sentencepiece": SentencePiece(size=70, kind="bpe")}[kind]


KINDS = ("words", "sentencepiece", "huggingface")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_finds_its_vocabulary_again(tmp_path: Path, kind: str):
    settings = tokenizer(kind, tmp_path)
    assert settings.load() is None
    made = settings.fit(TEXTS)
    run = tmp_path / "run"
    run.mkdir()
    (run / settings.filename).write_bytes(made.content())
    pinned = settings.pinned(made)
    digest = hashlib.sha256(made.content()).hexdigest()
    assert (pinned["file"], pinned["sha256"]) == (f"run:{settings.filename}", digest)
    run = run.rename(tmp_path / "moved")
    again = build(located(yaml.safe_load(yaml.safe_dump(dict(pinned))), run))
    assert again == replace(settings, file=str(run / settings.filename), sha256=digest)
    loaded = again.load()
    assert loaded is not None and loaded.content() == made.content() and loaded.size == made.size
    for text in [*TEXTS, "a zebra"]:
        assert loaded.encode(text) == made.encode(text) and loaded.decode(made.encode(text)) == made.decode(made.encode(text))
    assert dict(again.pinned(loaded)) == dict(pinned), "and again"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizers_file_that_is_not_the_models(tmp_path: Path, kind: str):
    settings = tokenizer(kind, tmp_path)
    content = settings.fit(TEXTS).content()
    path = tmp_path / "file"
    path.write_bytes(content + b" ")
    digest, found = (hashlib.sha256(of).hexdigest() for of in (content, content + b" "))
    with pytest.raises(UserError, match="does not fit the model") as error:
        type(settings)(file=str(path), sha256=digest).load()
    assert found[:12] in one_line(error) and digest[:12] in one_line(error) and str(path) in one_line(error)
    path.unlink()
    with pytest.raises(UserError, match="file cannot be read: No such file"):
        type(settings)(file=str(path), sha256=digest).load()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        type(settings)(file=str(tmp_path)).load()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", [*KINDS, "empty", "text", "bytes", "number", "nothing", "deep"])
def test_files_of_another_kind(tmp_path: Path, kind: str, of: str):
    if kind == of:
        return
    contents = {
        "empty": b"",
        "text": b"no tokenizer\nat all\n",
        "bytes": b"\xff\xfe\x00",
        "number": b"[3]",
        "nothing": b"[]",
        "deep": b"[" * 100_000,
    }
    content = contents[of] if of in contents else tokenizer(of, tmp_path).fit(TEXTS).content()
    path = tmp_path / "file"
    path.write_bytes(content)
    settings = type(tokenizer(kind, tmp_path))
    with pytest.raises(UserError, match=f"file is no {settings.__name__} tokenizer: .") as error:
        settings(file=str(path)).load()
    one_line(error)


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": -3}, {"least": 0}], ids=str)
def test_impossible_numbers_of_words(settings: dict[str, int]):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=rf"data\.tokenizer\.{name} is at least 1, got {value}"):
        Words(**settings)


# Files


def written(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def rows(path: Path, *attributes: str, column: str = "text", encoding: str = "utf-8") -> list[tuple[str, dict[str, str]]]:
    return files.rows(str(path), column, attributes, encoding)


SENTENCES = [("Hello, “world”", {"a": "x y", "b": "1"}), ('He said "no"', {"b": "2"}), ("two lines ü", {"a": "z"})]
TABLE = "\n".join(["text,b,a", '"Hello,  “world”",1, x  y', '"He said ""no""",2,', '"two', 'lines ü",,z', ",3,w", '"  ",4,w', ""])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "prefix"), [("utf-8", ""), ("utf-8", "\ufeff"), ("utf-8-sig", ""), ("utf-16", ""), ("utf-16-le", "\ufeff")]
)
def test_tables_with_quotes_lines_and_marks(tmp_path: Path, encoding: str, prefix: str, end: str):
    path = written(tmp_path / "t.CSV", prefix + TABLE.replace("\n", end), encoding)
    assert rows(path, "a", "b", encoding=encoding) == SENTENCES
    tabs = re.sub(r'("(?:[^"]|"")*")|,', lambda found: found[1] or "\t", TABLE)
    assert rows(written(tmp_path / "t.tsv", prefix + tabs.replace("\n", end), encoding), "a", "b", encoding=encoding) == SENTENCES
    assert rows(path, encoding=encoding) == [(text, {}) for text, _ in SENTENCES]
    assert [text for text, _ in rows(path, column="b", encoding=encoding)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "JSONL"])
def test_json_lines(tmp_path: Path, suffix: str):
    lines = [
        '{"text": "Hello,  “world”", "a": "x  y", "b": 1, "c": [2]}',
        "",
        '{"b": 2, "text": "He said \\"no\\"", "a": null}',
        '{"text": "two\\nlines \\u00fc", "a": "z", "b": ""}',
        '{"text": "", "a": "w", "b": 3}',
        '{"text": null, "a": "w", "b": 3}',
    ]
    for end in ("\n", "\r\n"):
        assert rows(written(tmp_path / f"t.{suffix}", "\ufeff" + end.join(lines)), "a", "b") == SENTENCES
    path = written(tmp_path / "u.jsonl", '{"text": "a \\ud83c\\udf89 b", "x": true, "y": 2.0}\n')
    assert rows(path, "x", "y") == [("a 🎉 b", {"x": "True", "y": "2.0"})]


def test_plain_text_has_a_sentence_a_line(tmp_path: Path):
    content = "\ufefffirst  one\r\n\n   \nsecond, \t“two”\rthird\u2028still, and \x85 still\n"
    expected = ["first one", "second, “two”", "third still, and still"]
    for name in ("t.txt", "t", "t.md"):
        assert rows(written(tmp_path / name, content)) == [(text, {}) for text in expected]
    assert rows(written(tmp_path / "w.txt", b"wait\x85 for it\nnow\n"), encoding="latin-1") == [("wait for it", {}), ("now", {})]
    with pytest.raises(UserError, match=r"w\.txt is plain text, without attributes such as 'topic'; give a \.csv"):
        rows(tmp_path / "w.txt", "topic", encoding="latin-1")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "t.txt", "a\n")
    assert files.rows("~/t.txt", "text", []) == [("a", {})]


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        ("Größe\n".encode("latin-1"), "utf-8", r"t\.txt is not utf-8 \(byte 2: 0xf6\); give data\.encoding="),
        (b"a\n" * 30_000 + b"\xe4\n", "utf-8", r"\(byte 60000: 0xe4\)"),
        ("音楽\n".encode()[:-2], "utf-8", r"\(byte 3: 0xe6\)"),
        ("Größe\n".encode("utf-16"), "utf-8", r"\(byte 0: 0xff\); give data\.encoding="),
        ("Größe\n".encode("utf-16-le"), "latin-1", r"t\.txt holds zero bytes.*data\.encoding=, e\.g\. utf-16"),
        (b"plain\n", "utf-16", r"t\.txt is not utf-16 .*data\.encoding="),
        (b"plain\n", "ascii-8", r"data\.encoding=ascii-8 is unknown"),
        (b"plain\n", "base64", r"data\.encoding=base64 is unknown"),
        (b"a\0b\n", "utf-8", "zero bytes"),
        (b"", "utf-8", r"t\.txt is empty"),
        (b" \n\t\n", "utf-8", r"t\.txt is empty"),
        ("\ufeff".encode(), "utf-8", r"t\.txt is empty"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, encoding: str, said: str):
    path = written(tmp_path / "t.txt", content)
    for read in (lambda: rows(path, encoding=encoding), lambda: TextFile(path=str(path), encoding=encoding).conditions):
        with pytest.raises(UserError, match=said) as error:
            read()
        one_line(error)


def test_latin_1(tmp_path: Path):
    path = written(tmp_path / "t.csv", "text,größe\nnaïve,groß\n", "latin-1")
    assert rows(path, "größe", encoding="latin-1") == [("naïve", {"größe": "groß"})]


def test_files_that_cannot_be_read(tmp_path: Path):
    for path, said in ((tmp_path, "Is a directory"), (tmp_path / "none.csv", "No such file or directory")):
        with pytest.raises(UserError, match=f"{path} cannot be read: {said}") as error:
            rows(path)
        one_line(error)


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl"])
def test_a_line_that_is_no_sentence_is_not_read_to_its_end(tmp_path: Path, name: str):
    path = written(tmp_path / name, "text\nfine\n")
    with open(path, "r+b") as file:
        file.truncate(10**8)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=rf"{name}: line 3 is longer than 1,000,000 characters: no sentence") as error:
            rows(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
    finally:
        tracemalloc.stop()
    one_line(error)


def test_the_longest_line(tmp_path: Path):
    longest = "x" * (files.LONGEST - 1)
    assert rows(written(tmp_path / "t.txt", f"a\n{longest}\n")) == [("a", {}), (longest, {})]
    assert rows(written(tmp_path / "t.csv", f"text\n{longest}\n")) == [(longest, {})]
    with pytest.raises(UserError, match="line 2 is longer than"):
        rows(written(tmp_path / "t.txt", f"a\n{longest}xx\n"))
    with pytest.raises(UserError, match=r"t\.csv: line \d+: field larger than field limit"):  # of many lines, each short enough
        rows(written(tmp_path / "t.csv", 'text\n"' + f"{longest[:1000]}\n" * 1001 + '"\n'))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "text,a\n", r"t\.csv holds no sentence in the column 'text'"),
        ("t.csv", "text,a\n ,x\n,y\n", r"t\.csv holds no sentence in the column 'text'"),
        ("t.csv", "txt,a\nhello,1\n", r"no column in .*t\.csv \(line 2\) 'text' \(did you mean 'txt'\?\); choose from: txt, a"),
        ("t.csv", "text,b\nhello,1\n", r"no column in .*'a'.*choose from: text, b"),
        ("t.csv", "text;a\nhello;1\n", r"no column in .*'text'.*choose from: text;a"),
        ("t.csv", "text,a\nhello,\nyou,  \n", r"t\.csv: no row has a value in the column 'a'"),
        ("t.csv", "text,a\n,x\nyou,\n", r"t\.csv: no row has a value in the column 'a'"),
        ("t.tsv", "text,a\nhello,1\n", r"no column in .*'text'"),
        ("t.jsonl", '{"text": "x", "a": 1}\n\n{"text": "x", "a"\n', r"t\.jsonl: line 3 is no JSON: "),
        ("t.jsonl", '{"text": "x", "a": 1}\n{"text": "y"}\n', r"no column in .*t\.jsonl \(line 2\) 'a'; choose from: text"),
        ("t.jsonl", '["x", 1]\n', r"t\.jsonl: line 1 is no JSON object"),
        ("t.json", '[\n{"text": "x"}\n]\n', r"t\.json: line 1 is no JSON"),
        ("t.jsonl", '{"text": ' + "[" * 100_000 + "\n", r"t\.jsonl: line 1 is no JSON"),
        ("t.jsonl", '{"text": "a", "a": 1}\n{"text": "half \\ud83c", "a": 1}\n', r"t\.jsonl: line 2 holds half a character, \\ud83c"),
        ("t.jsonl", '{"text": "a", "a": "\\udf89"}\n', r"t\.jsonl: line 1 holds half a character, \\udf89"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, content: str, said: str):
    with pytest.raises(UserError, match=said) as error:
        rows(written(tmp_path / name, content), "a")
    one_line(error)


def test_rows_that_are_too_long_or_too_short(tmp_path: Path):
    path = written(tmp_path / "t.csv", "a,text\n1,one,more,and more\n2\n3,three\n")
    assert rows(path, "a") == [("one", {"a": "1"}), ("three", {"a": "3"})]


# TREC


@pytest.mark.parametrize(
    ("treebank", "text"),
    [
        ("How far is it from Denver to Aspen ?", "How far is it from Denver to Aspen?"),
        ("What does the `` c '' stand for in the equation E=mc2 ?", 'What does the "c" stand for in the equation E=mc2?'),
        ("`` Cats '' and `` Evita '' , `` both '' ?", '"Cats" and "Evita", "both"?'),
        ("What 's the poem , `` The Three Hermits ? ''", 'What\'s the poem, "The Three Hermits?"'),
        ("Who was President Cleveland 's wife ; and whose ?", "Who was President Cleveland's wife; and whose?"),
        ("I do n't know : they 've gone , we 'll see !", "I don't know: they've gone, we'll see!"),
        ("I 'm sure you 're right and he 'd say so .", "I'm sure you're right and he'd say so."),
        ("I ca n't , he can 't .", "I can't, he can't."),
        ("What is the boys ' team ?", "What is the boys' team?"),
        ("How much is $ 5 ( or 5 % ) of # 3 ?", "How much is $5 (or 5%) of #3?"),
        ("What `` stands ( alone ) '' here ?", 'What "stands (alone)" here?'),
        ("An `` open quote ?", 'An " open quote?'),
        ("non-stop and one 1,000 .", "non-stop and one 1,000."),
        ("Plain   words", "Plain words"),
    ],
)
def test_the_treebanks_spacing_is_undone(treebank: str, text: str):
    assert files.unspaced(treebank) == text
    assert files.unspaced(text) == text or "``" in treebank, "text as people write it is left alone"


QUESTIONS = [("DESC:manner", f"How is it done {k} ?") for k in range(7)]
QUESTIONS += [("LOC:city", f"Where in Zürich 's {k} ?") for k in range(5)]
QUESTIONS += [("ABBR:exp", "What is `` O.K. '' ?"), ("HUM:ind", "Who is it ?")]
QUESTIONS += [("LOC:city", "How is it done 3 ?"), ("HUM:ind", "Who is it ?")]  # again


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGUIDE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    lines = [f"{label} {text}" for label, text in QUESTIONS]
    written(tmp_path / "data" / "trec" / "question_labels.txt", "\n".join([*lines, "NUM:date", ""]) + "\n", "latin-1")


def test_questions_are_read_once_each(questions: None):
    found = files.trec()
    assert found[:7] == [("DESC", f"How is it done {k}?") for k in range(7)]
    assert found[7:] == [*[("LOC", f"Where in Zürich's {k}?") for k in range(5)], ("ABBR", 'What is "O.K."?'), ("HUM", "Who is it?")]


def test_every_fifth_question_of_a_topic_is_held_out(questions: None):
    data = Trec(length=9, tokenizer=Words(least=1))
    train, test = data.read()
    assert [s.text for s in test] == ["How is it done 4?", "Where in Zürich's 4?"]
    assert [s.attributes["topic"] for s in test] == ["description", "location"]
    assert [s.text for s in train] == [f"How is it done {k}?" for k in (0, 1, 2, 3, 5, 6)] + [
        *[f"Where in Zürich's {k}?" for k in range(4)],
        "Who is it?",
    ]
    assert data.labels == {"topic": Label(("description", "human", "location"))}, "abbreviations are left out"
    with pytest.warns(UserWarning, match="2 of 11 tokens are unknown"):
        ids, condition = whole(data.test)
    assert condition.values["topic"].tolist() == [0, 2] and bool(condition.keep["topic"].all())
    assert [data.vocabulary.decode([k for k in row if k]) for row in ids.tolist()] == ["How is it done ⁇?", "Where in Zürich's ⁇?"]
    assert data.name == "trec"


def test_questions_have_a_length_where_that_is_asked_for(questions: None):
    config = yaml.safe_load((config_folder() / "data" / "trec.yaml").read_text())
    assert config["sized"] is True and Trec().sized is False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Trec(length=9, tokenizer=Words(least=1), sized=True)
        assert list(data.labels) == ["topic", "length"], "the topic is still the first"
        # How is it done 0 ? has six words and signs, Where in Zürich ' s 0 ? seven, Who is it ? four: of 11, the terciles are 6 and 7.
        assert lengths(data.train) == ["short"] * 6 + ["medium"] * 4 + ["short"]


# E2E


def meaning(name: str, **more: str) -> str:
    return ", ".join([f"name[{name}]", *(f"{key}[{value}]" for key, value in more.items())])


def restaurants(path: Path, items: Sequence[tuple[str, str]]) -> None:
    written(path, "\ufeffmr,ref\n" + "".join(f'"{mr}","{ref}"\n' for mr, ref in items))


def test_restaurants_are_held_out_by_whole_meanings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    meanings = [meaning(f"Place {k}", food="French") for k in range(11)]
    dev = [(mr, f"{k} dev {j}") for k, mr in enumerate(meanings[:7]) for j in range(2)]
    test = [(mr, f"{k + 4} test") for k, mr in enumerate(meanings[4:])] + [(meanings[0], "0 test")]
    restaurants(tmp_path / "e2e" / "devset.csv", dev)
    restaurants(tmp_path / "e2e" / "testset_w_refs.csv", test)
    monkeypatch.setenv("POLYGUIDE_DATA", str(tmp_path))
    for root in (None, str(tmp_path / "e2e")):
        train, held = files.e2e(root)
        assert [text for _, text in held] == ["4 dev 0", "4 dev 1", "4 test", "9 test"], "the fifth and the tenth meaning, in any part"
        assert len(train) + len(held) == len(dev) + len(test) and not {mr for mr, _ in train} & {mr for mr, _ in held}
        assert ("0 dev 0" in {text for _, text in train}) and ("0 test" in {text for _, text in train})
    parts = E2E(root=str(tmp_path / "e2e")).read()
    assert [s.attributes for s in parts[1]] == [{"name": f"Place {k}", "food": "French"} for k in (4, 4, 4, 9)]


def test_restaurants_with_a_training_set_hold_out_the_test_set(tmp_path: Path):
    eagle = meaning(
        "The Eagle", **{"eatType": "coffee shop", "customer rating": "3 out of 5", "familyFriendly": "no", "area": "city centre"}
    )
    empty = [(meaning("X"), ""), (meaning("X"), "  ")]
    restaurants(tmp_path / "trainset.csv", [(eagle, "The Eagle\n is  fine."), ("", "Nothing known."), *empty])
    restaurants(tmp_path / "devset.csv", [(meaning("Dev"), "Dev.")])
    restaurants(tmp_path / "testset_w_refs.csv", [(meaning("Vaults", near="Café Adriatic, Soho"), "Vaults.")])
    data = E2E(root=str(tmp_path), tokenizer=Words(least=1))
    train, test = data.read()
    rating = {"name": "The Eagle", "eatType": "coffee shop", "customer_rating": "3 out of 5", "familyFriendly": "no", "area": "city centre"}
    assert list(train) == [Sentence("The Eagle is fine.", rating), Sentence("Nothing known.", {})]
    assert list(test) == [Sentence("Vaults.", {"name": "Vaults", "near": "Café Adriatic, Soho"})]
    assert {name: label.classes for name, label in data.labels.items()} == {
        "name": ("The Eagle", "Vaults"),
        "eatType": ("coffee shop",),
        "customer_rating": ("3 out of 5",),
        "familyFriendly": ("no",),
        "area": ("city centre",),
        "near": ("Café Adriatic, Soho",),
    }
    assert data.phrases["near"] == {"Café Adriatic, Soho": ("Café Adriatic, Soho",)}
    assert set(data.phrases) == set(data.labels) - {"familyFriendly"}, "which no phrase tells"
    assert "river" not in data.phrases["area"] and "center of the city" in data.phrases["area"]["city centre"]
    _, condition = whole(data.train)
    assert condition.keep["area"].tolist() == condition.keep["customer_rating"].tolist() == [True, False]


def test_prices_and_ratings_have_an_order_of_what_is_there(tmp_path: Path):
    prices = ["moderate", "high", "£20-25", "cheap", "more than £30"]
    ratings = ["5 out of 5", "high", "average"]
    rows = [(meaning(f"P{k}", priceRange=p, **{"customer rating": r}), f"P{k}.") for k, p in enumerate(prices) for r in ratings]
    restaurants(tmp_path / "trainset.csv", rows)
    restaurants(tmp_path / "testset_w_refs.csv", [(meaning("T", food="French"), "T.")])
    data = E2E(root=str(tmp_path), tokenizer=Words(least=1))
    price, rating = data.labels["priceRange"], data.labels["customer_rating"]
    assert price.levels == (("cheap",), ("moderate", "£20-25"), ("high", "more than £30"))
    assert price.level(torch.tensor([price.classes.index(p) for p in prices])).tolist() == [1, 2, 1, 0, 2]
    assert rating.levels == (("average",), ("high", "5 out of 5")), "nothing low is there"
    assert data.labels["food"].levels == data.labels["name"].levels == () and not any(label.quantity for label in data.labels.values())
    stored = E2E(root="nowhere", classes=data.pinned()["classes"], tokenizer=Words(least=1))
    assert stored.labels == data.labels
    few = E2E(classes={"priceRange": ["£20-25", "moderate"]})
    assert few.labels["priceRange"].levels == (), "one level is no order"
    for name, levels in LEVELS.items():
        said = {value for attribute, value in SAID if attribute == name}
        assert {value for level in levels for value in level} == said, "all values that the data has"


def test_restaurants_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: there is no such folder"):
        files.e2e(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds neither trainset.csv nor devset.csv nor testset_w_refs.csv"):
        files.e2e(str(tmp_path))
    monkeypatch.setenv("POLYGUIDE_DATA", str(written(tmp_path / "data" / "e2e", "").parent))
    with pytest.raises(UserError, match=r"data/e2e: there is no such folder"):
        files.e2e(None)
    for header, lacks in (("mr,text", "'ref'"), ("meaning,ref", "'mr'"), ("a,b", "'mr'")):
        written(tmp_path / "devset.csv", f"{header}\nx,y\n")
        with pytest.raises(UserError, match=rf"no column in .*devset\.csv \(line 2\) {lacks}.*choose from: {header.replace(',', ', ')}"):
            files.e2e(str(tmp_path))


def test_restaurants_are_fetched_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def download(url: str, path: Path) -> None:
        asked.append(url.rpartition("/")[2])
        restaurants(path, [(meaning(path.stem), f"{path.stem}.")])

    monkeypatch.delenv("POLYGUIDE_DATA", raising=False)
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path))
    monkeypatch.setattr("modalities.assets.download", download)
    train, test = files.e2e(None)
    assert asked == ["trainset.csv", "devset.csv", "testset_w_refs.csv"] and (tmp_path / "e2e" / "devset.csv").is_file()
    assert [text for _, text in train] == ["trainset."] and [text for _, text in test] == ["testset_w_refs."]


# Data sets


class Made(TextData):
    """Sentences from a test."""

    name = "made"

    def __init__(self, train: Sequence[Sentence], test: Sequence[Sentence] = (), **settings: Any):
        super().__init__(**({"length": 4, "tokenizer": Words(least=1)} | settings))
        self.parts = train, test

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        return self.parts


def test_sentences_are_tokens_padding_and_attributes_that_may_be_absent():
    data = Made(
        [Sentence("a b c", {"mood": "sad", "topic": "x"}), Sentence("b", {"topic": "y"}), Sentence("c c b a", {"mood": "glad"})],
        [Sentence("a b", {"mood": "calm"})],
    )
    assert data.labels == {"mood": Label(("calm", "glad", "sad")), "topic": Label(("x", "y"))} and data.shape == (4,)
    a, b, c = (data.vocabulary.encode(word)[0] for word in "abc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids, condition = whole(data.train)
    assert ids.tolist() == [[a, b, c, 0], [b, 0, 0, 0], [c, c, b, a]]
    assert list(condition.values) == ["mood", "topic", INFILL]
    assert condition.keep["mood"].tolist() == [True, False, True] and condition.keep["topic"].tolist() == [True, True, False]
    assert condition.values["mood"][[0, 2]].tolist() == [2, 1] and condition.values["topic"][:2].tolist() == [0, 1]
    assert torch.equal(condition.values[INFILL], ids) and bool(condition.keep[INFILL].all())
    some, of = data.train.__getitems__([2, 0])
    assert some.tolist() == ids[[2, 0]].tolist() and of.values["mood"].tolist() == [1, 2]
    assert whole(data.test)[1].values["mood"].tolist() == [0] and len(data.test) == 1
    plain = Made(data.parts[0], infill=False)
    assert list(plain.conditions) == list(whole(plain.train)[1].keep) == ["mood", "topic"]


def test_what_is_left_out_and_unknown_is_said_in_numbers():
    common = [Sentence("a b c")] * 3
    others = [Sentence("a x b"), Sentence("y a b c"), Sentence("a a a a b"), Sentence("a x y z a b c")]
    data = Made([*common, *others], tokenizer=Words(least=3))
    with pytest.warns(UserWarning) as told:
        assert len(data.train) == 5
    text = "2 of 7 training sentences are longer than 4 tokens and left out; 2 of 16 tokens are unknown"
    assert [str(warning.message) for warning in told] == [f"made: {text}"]
    data = Made(common, [Sentence("a q"), Sentence("b"), Sentence("a b c b a")])
    with pytest.warns(UserWarning, match="1 of 3 held-out sentences are longer than 4 tokens and left out; 1 of 3 tokens are unknown"):
        assert len(data.test) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.train) == 3 and whole(data.train)[0].shape == (3, 4)


def test_sentences_that_are_all_too_long():
    data = Made([Sentence("a b c d e")] * 3)
    with pytest.raises(UserError, match=r"every training sentence of made is longer than data.length=4 tokens"):
        data.train  # noqa: B018
    data = Made([Sentence("a")], [Sentence("a a a a a")])
    assert len(data.train) == 1
    with pytest.raises(UserError, match="every held-out sentence of made is longer"):
        data.test  # noqa: B018
    with pytest.raises(UserError, match="made holds no sentence to train on"):
        Made([], [Sentence("a")]).vocabulary  # noqa: B018
    assert len(Made([Sentence("a")]).test) == 0


def test_a_value_that_is_none_of_the_classes():
    data = Made([Sentence("a", {"mood": "sad"}), Sentence("b", {"mood": "glad"}), Sentence("b", {})], classes={"mood": ["sad", "calm"]})
    assert data.labels == {"mood": Label(("sad", "calm"))}, "in the order that was given"
    with pytest.raises(UserError, match=r"made: mood='glad' is none of its classes: sad, calm"):
        data.train  # noqa: B018


# The number of words as an attribute


def of_words(*counts: int, **attributes: str) -> list[Sentence]:
    """Sentences of so many words and signs, of which an apostrophe, a hyphen and a full stop are three."""
    return [Sentence("It's-" + " w" * (n - 5) + "." if n > 5 else " ".join("abcde"[:n]), attributes) for n in counts]


def lengths(split: Any) -> list[str]:
    return [SIZES[k] for k in whole(split)[1].values["length"].tolist()]


def test_lengths_are_terciles_of_the_training_sentences():
    counts = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    shuffled = random.Random(0).sample(counts, 12)
    data = Made(of_words(*shuffled), of_words(1, 4, 5, 8, 9, *[30] * 20), length=40, sized=True, tokenizer=Words(least=1))
    expected = {n: SIZES[(n - 1) // 4] for n in counts}
    assert lengths(data.train) == [expected[n] for n in shuffled]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert lengths(data.test) == ["short", "short", "medium", "medium", *["long"] * 21], "by the training data's thirds"
    assert bool(whole(data.train)[1].keep["length"].all())
    label = data.labels["length"]
    assert label == Label(SIZES, levels=(("short",), ("medium",), ("long",)), quantity="length") and SIZES == ("short", "medium", "long")
    assert label.level(torch.tensor([0, 1, 2])).tolist() == [0, 1, 2] and "length" in TextMetrics(data).units
    assert [len(words(s.text)) for s in of_words(*counts)] == counts, "or this tests nothing"


def test_where_nothing_is_said_of_it_length_is_no_attribute():
    data = Made(of_words(1, 2, 3, topic="x"))
    assert list(data.labels) == ["topic"] and data.pinned()["classes"] == {"topic": ["x"]}


def test_sentences_of_one_length_are_short():
    data = Made(of_words(3, 3, 3), [Sentence("a b c a")], sized=True)
    assert lengths(data.train) == ["short"] * 3 and lengths(data.test) == ["long"] and data.labels["length"].classes == SIZES


def test_the_length_stands_beside_other_attributes_which_may_be_absent():
    data = Made([*of_words(1, 2, mood="sad"), *of_words(3, 4), *of_words(1, 2, topic="x")], sized=True)
    _, condition = whole(data.train)
    assert set(condition.values) == {"mood", "topic", "length", INFILL}
    assert lengths(data.train) == ["short", "medium", "long", "long", "short", "medium"]
    assert condition.keep["mood"].tolist() == [True] * 2 + [False] * 4 and bool(condition.keep["length"].all())


def test_a_stored_data_set_gives_the_same_lengths_and_needs_no_data_to_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = [f"{s.text},{'red' if k % 2 else 'blue'}" for k, s in enumerate(of_words(*range(1, 16)))]
    path = written(tmp_path / "t.csv", "\n".join(["text,colour", *lines]))
    first = TextFile(path=str(path), attributes=["colour"], sized=True, tokenizer=Words(least=1), length=30)
    assert list(first.labels) == ["colour", "length"], "the length comes last, so that the first is still the data's own"
    pinned, before, tested = first.pinned(), lengths(first.train), lengths(first.test)
    assert pinned["classes"] == {"colour": ["blue", "red"], "length": ["short", "medium", "long"]} and len(set(before)) == 3
    for name, content in first.files().items():
        written(tmp_path / "run" / name, content)
    settings = {"_target_": "modalities.text.data.TextFile", "path": str(path), "attributes": ["colour"], "sized": True, "length": 30}
    stored = yaml.safe_load(yaml.safe_dump(settings | pinned))
    read = files.rows
    monkeypatch.setattr(files, "rows", None)
    again: TextFile = build(located(stored, tmp_path / "run"))
    assert again.labels == first.labels and again.conditions["length"].parse("long").item() == 2 and again.pinned() == pinned
    monkeypatch.setattr(files, "rows", read)
    assert (lengths(again.train), lengths(again.test)) == (before, tested)


def test_a_column_of_its_own_called_length(tmp_path: Path):
    path = str(written(tmp_path / "t.csv", "text,length\na b,3\nb a c,4\n"))
    data = TextFile(path=path, attributes=["length"], sized=True, tokenizer=Words(least=1))
    with pytest.raises(UserError, match=r"^text_file has an attribute 'length' of its own: pass data.sized=false$"):
        data.labels  # noqa: B018
    plain = TextFile(path=path, attributes=["length"], tokenizer=Words(least=1))
    assert plain.labels == {"length": Label(("3", "4"))}, "which is no other's business"


def test_a_single_sentence_has_a_length_too():
    assert lengths(Made([Sentence("a b")], sized=True).train) == ["short"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 1}, "data.length is a whole number, at least 2, got 1"),
        ({"spans": 1}, "data.spans.*at least 2, got 1"),
        ({"length": 2.5}, "data.length.*2.5"),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Made([], **settings)


def colours(path: Path, n: int = 14) -> Path:
    lines = [f"{k} is {('red', 'blue')[k % 2]},{('red', 'blue')[k % 2]},{'yes' if k % 3 == 1 else ''}" for k in range(n)]
    return written(path, "\n".join(["text,colour,third", *lines]) + "\n")


def test_every_fifth_sentence_of_a_class_of_the_first_attribute_is_held_out(tmp_path: Path):
    path = colours(tmp_path / "t.csv")
    for attributes, held in ((["colour"], [8, 9]), ([], [4, 9]), (["third", "colour"], [6, 13])):
        train, test = TextFile(path=str(path), attributes=attributes).read()
        assert [int(s.text.split()[0]) for s in test] == held, attributes
        assert [int(s.text.split()[0]) for s in train] == [k for k in range(14) if k not in held]
    first, second, *_ = TextFile(path=str(path), attributes=["third", "colour"]).read()[0]
    assert first.attributes == {"colour": "red"} and second.attributes == {"third": "yes", "colour": "blue"}
    for attributes in (["third", "colour"], ["colour", "third"]):
        assert list(TextFile(path=str(path), attributes=attributes).labels) == attributes, "in the order that was asked for"


def test_held_out_sentences_of_their_own(tmp_path: Path):
    path, other = colours(tmp_path / "t.csv"), colours(tmp_path / "o.csv", 3)
    train, test = TextFile(path=str(path), test_path=str(other), attributes=["colour"]).read()
    assert len(train) == 14 and [s.text for s in test] == ["0 is red", "1 is blue", "2 is red"]
    with pytest.raises(UserError, match=r"data.path is missing"):
        TextFile().conditions  # noqa: B018


def test_names_of_attributes_that_cannot_be_asked_for(tmp_path: Path):
    path = str(written(tmp_path / "t.csv", "text,a b,a.b,infill\nx,1,2,3\n"))
    for name in ("a b", "a.b"):
        with pytest.raises(UserError, match=f"an attribute's name is a word.*got '{name}'"):
            TextFile(path=path, attributes=[name])
    with pytest.raises(UserError, match=r"'infill' is that of given words: rename the column, or pass data.infill=false"):
        TextFile(path=path, attributes=["infill"])
    assert list(TextFile(path=path, attributes=["infill"], infill=False, tokenizer=Words(least=1)).conditions) == ["infill"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_data_set_is_not_read_to_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    path = colours(tmp_path / "t.csv")
    size = {"size": 40} if kind == "sentencepiece" else {}
    settings = {"words": Words(least=1), "sentencepiece": SentencePiece(**size), "huggingface": tokenizer("huggingface", tmp_path)}[kind]
    first = TextFile(path=str(path), attributes=["colour", "third"], tokenizer=settings, length=20)
    pinned, before = first.pinned(), whole(first.train)[0]
    assert pinned["classes"] == {"colour": ["blue", "red"], "third": ["yes"]}
    run = tmp_path / "run"
    for name, content in first.files().items():
        written(run / name, content)
    read = files.rows

    def forbidden(*_: Any) -> None:
        raise AssertionError("the data is read")

    monkeypatch.setattr(files, "rows", forbidden)
    stored = yaml.safe_load(yaml.safe_dump({"_target_": "modalities.text.data.TextFile", "path": str(path), "length": 20, **pinned}))
    again: TextFile = build(located(stored, run))
    assert (again.shape, again.conditions, again.pinned()) == (first.shape, first.conditions, pinned)
    assert again.conditions["colour"].parse("red").item() == 1 and again.files() == first.files()
    infill = again.conditions[INFILL]
    assert torch.equal(infill.parse("1 is _ ..."), first.conditions[INFILL].parse("1 is _ ..."))
    with pytest.raises(AssertionError, match="the data is read"):
        again.train  # noqa: B018
    monkeypatch.setattr(files, "rows", read)
    (tmp_path / "t.csv").write_text(path.read_text() + "zebra is red,red,aaa\n" * 50)
    later: TextFile = build(located({**stored, "attributes": ["colour"]}, run))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is unknown was said when the run was made
        assert len(later.train) > 40
    assert torch.equal(whole(later.train)[0][: len(before) // 2], before[: len(before) // 2]), "tokens keep their numbers"


# Sentences given in part


def infill(length: int = 12, spans: int = 5) -> Infill:
    text = "The Eagle is a cheap pub near the river, what is it? well isn't cheap 'quoted' (yes). a"
    return Infill(length, Words(least=1).fit([text]), spans)


def words_of(spec: Infill, ids: Tensor) -> str:
    """With _ for a token to be written, and without the padding at the end."""
    found = ids.tolist()
    while found and found[-1] == 0:
        found.pop()
    groups = [(blank, list(group)) for blank, group in itertools.groupby(found, lambda k: k == -1)]
    return "".join("_" * len(group) if blank else f"[{spec.vocabulary.decode(group)}]" for blank, group in groups)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The ___ is a cheap ___ near the river", "[The]___[is a cheap]___[near the river]"),
        ("The  _   is ", "[The]_[is]"),
        ("_ is _", "_[is]_"),
        ("___", "___"),
        ("The Eagle ...", "[The Eagle]" + "_" * 11),
        ("The Eagle...", "[The Eagle]" + "_" * 11),
        ("The _ is...", "[The]_[is]" + "_" * 10),
        ("...", "_" * 13),
        ("The _ ...", "[The]" + "_" * 12),
        ("_" * 13, "_" * 13),
        ("The Eagle is a " * 3 + "...", "[The Eagle is a The Eagle is a The Eagle is a]_"),
        ("what is ___?", "[what is]___[?]"),
        ("The _, a pub", "[The]_[, a pub]"),
        ("cheap_ (yes).", "[cheap]_[(yes).]"),
        ("_'quoted' pub", "_['quoted' pub]"),
        ("_ 'quoted' pub", "_['quoted' pub]"),
        ("_cheap pub", "_[cheap pub]"),
    ],
)
def test_sentences_with_blanks(text: str, expected: str):
    spec = infill(13)
    ids = spec.parse(text)
    assert ids.shape == (13,) and ids.dtype == torch.long and words_of(spec, ids) == expected


def test_a_sign_that_follows_a_blank_has_no_space_before_it():
    spec = infill()
    encode = spec.vocabulary.encode
    comma = encode("river,")[1]
    assert spec.parse("The _, a").tolist()[:4] == [encode("The")[0], -1, comma, encode("a")[0]] and encode(",") == [1]
    assert spec.parse("_'quoted'").tolist()[1] == encode("'quoted'")[2] != spec.parse("_ 'quoted'").tolist()[1]
    few = Infill(9, Words(least=1).fit(["the 'quoted' pub,"]))  # which knows none of the words that may be put before a sign
    assert words_of(few, few.parse("_'quoted' pub _, the")) == "_['quoted' pub]_[, the]"
    for kind in ("unigram", "bpe", "char"):
        vocabulary = SentencePiece(size=60, kind=kind).fit(["what is the river? the pub, or the river."] * 3)
        library: Any = sentencepiece.SentencePieceProcessor()
        library.LoadFromSerializedProto(vocabulary.content())
        ids = Infill(12, vocabulary).parse("the _?").tolist()
        assert library.id_to_piece(ids[ids.index(-1) + 1]) == "?", kind


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("The Eagle is a pub", "has nothing to fill in; write an underscore for each token.*'The Eagle is a pub'"),
        ("", "has nothing to fill in"),
        ("The zebra _ Eagle xylophone.", r"the model does not know 'zebra', 'xylophone\.', so that it cannot be given"),
        ("The _, zebra ...", r"the model does not know 'zebra', so"),
        ("The _, a ? ...", r"the model does not know '\?', so"),
        ("The ... is", r"does not know '\.\.\.'"),
        ("_" * 13, "has 13 tokens, and the model's sentences have at most 12"),
        ("The Eagle is " * 4 + "_", "has 13 tokens"),
        ("The Eagle is " * 4 + "...", "has 12 tokens"),
        (3, "is a text such as .*, got 3"),
        (["The _", "a _"], "is a text such as"),
        (None, "is a text such as"),
        (True, "is a text such as"),
    ],
)
def test_sentences_that_cannot_be_given(value: Any, said: str):
    with pytest.raises(UserError, match=said) as error:
        infill().parse(value)
    one_line(error)


def test_a_list_of_sentences_is_no_sentence_even_where_every_sign_is_known(tmp_path: Path):
    vocabulary = HuggingFace(name=str(saved(tmp_path / "t.json", bpe()))).fit([])
    with pytest.raises(UserError, match="is a text such as"):
        Infill(60, vocabulary).parse(["The _", "a _"])


def test_words_that_a_tokenizer_leaves_out_cannot_be_given(tmp_path: Path):
    made = tokenizers.Tokenizer(models.BPE())  # without an unknown token
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.train_from_iterator(["the cat"] * 5, trainers.BpeTrainer(vocab_size=30, show_progress=False))
    vocabulary = HuggingFace(name=str(saved(tmp_path / "t.json", made))).fit([])
    assert vocabulary.encode("the xyz") == vocabulary.encode("the")
    with pytest.raises(UserError, match="the model does not know 'xyz', so"):
        Infill(9, vocabulary).parse("the xyz _")


def test_an_absent_sentence_is_all_blank():
    assert infill(5).absent().tolist() == [-1] * 5


def shown(u: Sequence[float], length: int, spans: int) -> tuple[list[bool], bool]:
    """SED's span masking as its paper says it: which tokens are given, and whether there is more than one span."""
    n = 1 + min(int(u[0] * spans), spans - 1)
    borders = sorted(1 + int(v * (length - 1)) for v in u[2 : 2 + n - 1])
    given, mine = [], u[1] < 0.5
    for place in range(length):
        for _ in range(borders.count(place)):
            mine = not mine
        given.append(mine)
    return given, n > 1


@pytest.mark.parametrize(("length", "spans"), [(2, 2), (7, 3), (12, 5), (30, 9)])
def test_what_is_shown_in_training_is_computed_by_hand(length: int, spans: int):
    spec = infill(length, spans)
    generator = torch.Generator().manual_seed(length)
    b = 400
    u = torch.rand(b, spec.draws, generator=generator, dtype=torch.float64)
    values = torch.randint(0, 9, (b, length), generator=generator)
    keep = torch.rand(b, generator=generator) < 0.8
    made, there = spec.reveal(values, keep, u)
    assert spec.draws == spans + 1
    for row, kept, line, v, result in zip(u.tolist(), keep.tolist(), made.tolist(), values.tolist(), there.tolist(), strict=True):
        given, several = shown(row, length, spans)
        assert line == [value if g else -1 for value, g in zip(v, given, strict=True)]
        assert result == (kept and several)
    again = spec.reveal(values, keep, u)
    assert torch.equal(again[0], made) and torch.equal(again[1], there), "a pure function"
    assert bool((there <= keep).all()) and not torch.equal(there, keep)


def test_the_number_of_spans_is_uniform_and_either_half_is_given():
    spec = infill(30, 5)
    n = 1000
    u = torch.zeros(n, 6, dtype=torch.float64)
    u[:, 0] = (torch.arange(n) + 0.5) / n
    u[:, 1] = (torch.arange(n) % 2) * 0.5  # 0, 0.5: the first span is given, is not
    u[:, 2:] = torch.tensor([0.9, 0.1, 0.5, 0.3])  # borders at 27, 3, 15, 9
    values = torch.full((n, 30), 7)
    made, there = spec.reveal(values, torch.ones(n, dtype=torch.bool), u)
    spans = 1 + ((made[:, 1:] == -1) != (made[:, :-1] == -1)).sum(1)
    assert torch.bincount(spans).tolist() == [0, 200, 200, 200, 200, 200]
    assert torch.equal(there, spans > 1)
    assert ((made[:, 0] == 7) == (u[:, 1] < 0.5)).all() and set(made.unique().tolist()) == {-1, 7}
    for k, borders in ((1, []), (2, [27]), (3, [3, 27]), (4, [3, 15, 27]), (5, [3, 9, 15, 27])):
        row = made[(spans == k) & (u[:, 1] == 0)][0]
        assert [p for p in range(1, 30) if (row[p] == -1) != (row[p - 1] == -1)] == borders


def test_borders_fall_on_every_place_alike_and_numbers_near_one_are_in_range():
    spec = infill(9, 2)
    n = 8 * 50
    u = torch.stack([torch.full((n,), 0.75), torch.zeros(n), (torch.arange(n) + 0.5) / n], 1)
    made, _ = spec.reveal(torch.full((n, 9), 3), torch.ones(n, dtype=torch.bool), u)
    assert torch.bincount((made == 3).sum(1), minlength=10).tolist() == [0, *[50] * 8, 0], "the first span has 1 to 8 tokens"
    most = torch.full((1, 3), math.nextafter(1, 0), dtype=torch.float64)
    made, there = spec.reveal(torch.full((1, 9), 3), torch.ones(1, dtype=torch.bool), most)
    assert made.tolist() == [[-1] * 8 + [3]] and there.tolist() == [True]


def test_training_shows_a_part_of_what_a_split_gives():
    data = Made([Sentence("a b c d"), Sentence("d c b a")], spans=3)
    _, condition = whole(data.train)
    u = torch.tensor([[0.5, 0.0, 0.4, 0.9], [0.0, 0.0, 0.4, 0.9]])
    made = reveal(data.conditions, condition, lambda columns: u[:, :columns])
    a, b = data.train.__getitems__([0])[0][0, :2].tolist()
    assert made.values[INFILL][0].tolist() == [a, b, -1, -1] and made.keep[INFILL].tolist() == [True, False]


# What is written


def test_sentences_are_files_of_text(tmp_path: Path):
    render, texts = TextRender(), ["größe & <b>", "", "音"]
    saved_as = render.save(texts, tmp_path, ["0", "1", "2"])
    assert [path.name for path in saved_as] == ["0.txt", "1.txt", "2.txt"]
    assert [path.read_bytes().decode("utf-8") for path in saved_as] == ["größe & <b>\n", "\n", "音\n"]
    assert render.words(texts) == texts
    assert element(saved_as[0]) == element(saved_as[0], alone=True) == "<blockquote>größe &amp; &lt;b&gt;</blockquote>"


def test_tables_of_sentences(tmp_path: Path):
    render = TextRender()
    made = render.table(["a", "b", "c", "d"], tmp_path / "t.png", ["1", "3"], ["x", "long"])
    assert made == tmp_path / "t.txt" and made.read_text() == "1\nx     a\nlong  b\n\n3\nx     c\nlong  d\n"
    render.table(["a", "b", "c"], tmp_path / "t.png", ["", ""], ["", ""])
    assert made.read_text() == "a\nb\nc\n"
    path = render.animate([["a1", "b1"], ["a2", "b2"], ["a3", "b3"]], tmp_path / "d.gif")
    assert path.name == "d.txt" and path.read_text() == "a1\na2\na3\n\nb1\nb2\nb3\n"


def test_vocabularies_are_plain_files():
    vocabulary = Words(least=1).fit(["ü a"])
    assert json.loads(vocabulary.content()) == [" a", " ü"]
