"""Tar files of samples (webdataset's form), and the index of each: where its members lie, and the classes of its samples.

A shard is a plain tar file. Its members that follow each other and have one name up to the first dot are a sample: ``a/7.png``,
``a/7.cls``, ``a/7.json``. The index is made once by reading the headers; it is kept in ``.polyguide/`` beside the shard, or in the cache
where that cannot be written, and made again when the shard has another size or date. Nothing is ever unpacked to the disk.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from guidance.cache import cache
from guidance.checkpoint import write_atomically
from guidance.errors import UserError

VERSION = 1  # of the index files
BLOCK = 512  # bytes of a tar header
CLASSES = 10_000  # more values are no classes

Place = tuple[int, int]
"""Where a member begins, and how long it is; -1 where there is none."""


def expanded(pattern: str, where: str) -> list[Path]:
    """The shards of a folder, a glob, or a name with numbers in braces, "train-{000..041}.tar", in order. UserError for a missing one."""
    root = os.environ.get("POLYGUIDE_DATA")
    path = Path(pattern).expanduser()
    for place in [Path(root, pattern).expanduser(), path] if root else [path]:
        braces = re.search(r"\{(\d+)\.\.(\d+)\}", str(place))
        if place.is_dir():
            found = sorted(place.glob("*.tar"))
        elif braces is not None:
            numbers = (str(k).zfill(len(braces[1])) for k in range(int(braces[1]), int(braces[2]) + 1))
            named = [Path(str(place).replace(braces[0], number)) for number in numbers]
            found = [each for each in named if each.is_file()]
            if found and (gone := [each for each in named if each not in set(found)]):
                raise UserError(f"{where}={pattern}: the shard {gone[0]} is missing")
        elif any(character in place.name for character in "*?["):
            found = sorted(place.parent.glob(place.name))
        else:
            found = [place] if place.is_file() else []
        if found:
            return found
    raise UserError(f"{where}={pattern}: there is no such shard; give a folder of tar files, train-*.tar, or train-{{000..041}}.tar")


@dataclass(frozen=True)
class Index:
    """Where everything in a shard is.

    Args:
        size, changed: of the shard, in bytes and nanoseconds, when it was indexed.
        extensions: of its members, after the first dot of their names.
        members: the `Place` of a sample's member of each extension.
        classes: a source of classes ("cls", "json.speaker") -> each sample's number, -1 where it has none, and the names.
    """

    size: int
    changed: int
    extensions: tuple[str, ...]
    members: Int[np.ndarray, "samples extensions 2"]
    classes: Mapping[str, tuple[Int[np.ndarray, "samples"], tuple[str, ...]]]

    def member(self, row: int, extension: str) -> Place:
        if extension not in self.extensions:
            return -1, -1
        offset, size = self.members[row, self.extensions.index(extension)]
        return int(offset), int(size)


def members(path: Path, file: Any) -> Iterator[tuple[str, int, int]]:
    """Name, place and size of the files in a tar file, by its headers. UserError where it is cut short, or no tar file."""
    size = os.fstat(file.fileno()).st_size
    try:
        opened: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        with opened as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or they would all be kept
                if member.offset_data + member.size > size:
                    raise UserError(f"{path} is cut short: it ends within {member.name!r}; copy it again")
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            end = tar.offset
    except tarfile.TarError as error:
        if header(file.fileno(), 0) is not None:
            raise UserError(f"{path} is cut short or damaged ({error}); copy it again") from None
        raise UserError(f"{path} is no plain tar file ({error}); a compressed one has to be unpacked to .tar first") from None
    if os.pread(file.fileno(), BLOCK, end) != bytes(BLOCK):
        raise UserError(f"{path} is cut short or damaged: there is no end mark after its last member; copy or write it again")


def split_name(name: str) -> tuple[str, str] | None:
    """A member's sample and extension, as webdataset has them; None for one that has no extension."""
    found = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", name, flags=re.DOTALL)
    return (found[1], found[2].lower()) if found else None


def extension(source: str) -> str:
    return source.split(".", maxsplit=1)[0]


def value(content: bytes, source: str) -> Any:
    """What a member says: the whole of a text, or an entry of a JSON object, "json.speaker"; None where it has no such entry."""
    _, *keys = source.split(".")
    try:
        found: Any = json.loads(content) if keys else content.decode().strip()
    except ValueError as error:
        raise ValueError(f"this is no {'JSON' if keys else 'text'} ({error})") from None
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def made(path: Path, sources: Sequence[str]) -> Index:
    """The index of a shard, by one pass over its headers and over the small members that say classes."""
    rows: list[dict[str, Place]] = []
    with open(path, "rb") as file:
        stat, last = os.fstat(file.fileno()), None
        for name, offset, size in members(path, file):
            if (found := split_name(name)) is None:
                continue
            if found[0] != last:
                rows.append({})
                last = found[0]
            if found[1] in rows[-1]:
                raise UserError(f"{path}: {name!r} is there twice; samples need names of their own")
            rows[-1][found[1]] = (offset, size)
        extensions = tuple(sorted({extension for row in rows for extension in row}))
        places = np.array([[row.get(e, (-1, -1)) for e in extensions] for row in rows], dtype=np.int64)
        classes = {source: numbered(path, file.fileno(), rows, source) for source in sources}
    return Index(stat.st_size, stat.st_mtime_ns, extensions, places.reshape(len(rows), len(extensions), 2), classes)


def numbered(path: Path, file: int, rows: Sequence[Mapping[str, Place]], source: str) -> tuple[Int[np.ndarray, "samples"], tuple[str, ...]]:
    """Each sample's class by a source, and their names."""
    names: dict[str, int] = {}
    numbers = np.full(len(rows), -1, dtype=np.int32)
    for k, row in enumerate(rows):
        if (place := row.get(extension(source))) is None:
            continue
        try:
            found = value(os.pread(file, place[1], place[0]), source)
        except ValueError as error:
            raise UserError(f"{path}: {named(file, place[0])!r}: {error}") from None
        if found is None or found == "":
            continue
        if not isinstance(found, str | int | float):
            raise UserError(f"{path}: {named(file, place[0])!r}: {source} is {str(found)[:60]!r}, and not one word or number")
        numbers[k] = names.setdefault(str(found), len(names))
        few(names, source)
    return numbers, tuple(names)


def few(names: Any, source: str) -> None:
    if len(names) > CLASSES:
        raise UserError(f"{source} has more than {CLASSES:,} values, which are no classes; texts are given as data.captions")


def header(file: int, offset: int) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(os.pread(file, BLOCK, offset), "utf-8", "surrogateescape")
    except tarfile.TarError:
        return None


def named(file: int, offset: int) -> str:
    """A member's name, by the header before it (the first hundred letters of a long one)."""
    found = header(file, offset - BLOCK)
    return f"the member at byte {offset}" if found is None else found.name


def index(path: Path, sources: Sequence[str]) -> Index:
    """The stored index of a shard, if it is of this shard and knows the sources; else a new one, which is stored.

    Processes that make it at once write the same, each in one piece.
    """
    path = path.absolute()
    try:
        stat = path.stat()
        places = [path.parent / ".polyguide" / f"{path.name}.npz", cache() / "shards" / f"{digest(str(path))}.npz"]
        known: set[str] = set()
        for place in places:
            found = stored(place)
            if found is not None and (found.size, found.changed) == (stat.st_size, stat.st_mtime_ns):
                if set(sources) <= found.classes.keys():
                    return found
                known |= found.classes.keys()
        result = made(path, sorted(known | set(sources)))
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read: {error.strerror}") from None
    content = as_file(result)
    for place in places:
        try:
            place.parent.mkdir(exist_ok=True, parents=True)
            write_atomically(place, content)
            break
        except OSError:  # a folder that is not ours to write to
            continue
    return result


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def as_file(of: Index) -> bytes:
    names = {source: names for source, (_, names) in of.classes.items()}
    said = {"version": VERSION, "size": of.size, "changed": of.changed, "extensions": of.extensions, "classes": names}
    numbers = {f"classes.{source}": numbers for source, (numbers, _) in of.classes.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, said=np.frombuffer(json.dumps(said).encode(), np.uint8), members=of.members, **numbers)
    return buffer.getvalue()


def stored(place: Path) -> Index | None:
    """An index file; None where there is none, or none that can be used."""
    try:
        with np.load(place, allow_pickle=False) as file:
            said = json.loads(bytes(file["said"]))
            if said["version"] != VERSION:
                return None
            classes = {source: (file[f"classes.{source}"], tuple(names)) for source, names in said["classes"].items()}
            return Index(said["size"], said["changed"], tuple(said["extensions"]), file["members"], classes)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
