"""Fuzz the files that data are read from: pictures, sounds, texts, lists of captions.

    python tests/faults/fuzz_files.py [HOW MANY]        200 spoiled files of every kind by default, about a minute on one core

Good files of every format have bytes changed, cut off, doubled or removed. Right is what an independent library reads (PIL, soundfile,
csv), or a UserError of one line that names the file; never another exception.
"""

import csv
import io
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from fuzz_tools import surroundings
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

Reader = Callable[[Path], Any]
TEXT = 'text,kind\nA cat sleeps.,cat\n"A dog, or two, ""runs"" away.",dog\nÜber 3 Katzen.,\n'


def picture(suffix: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, suffix, **options)
    return file.getvalue()


def deep() -> bytes:
    """16 bits a pixel."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (12, 10), np.uint16)).save(file, "png")
    return file.getvalue()


def animation() -> bytes:
    frames = [Image.fromarray(np.full((12, 10, 3), 80 * k, np.uint8)) for k in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "gif", save_all=True, append_images=frames[1:])
    return file.getvalue()


def sound(kind: str, subtype: str, channels: int = 1) -> bytes:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(800)[:, None] / (5 + np.arange(channels)))
    soundfile.write(file, wave, 8000, format=kind, subtype=subtype)
    return file.getvalue()


GOOD: Mapping[str, Mapping[str, bytes]] = {
    "picture": {
        "rgb.png": picture("png"),
        "grey.png": picture("png", "L"),
        "palette.png": picture("png", "P"),
        "deep.png": deep(),
        "colour.jpg": picture("jpeg"),
        "cmyk.jpg": picture("jpeg", "CMYK"),
        "turned.jpg": picture("jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        "many.gif": animation(),
        "lossless.webp": picture("webp", lossless=True),
        "plain.bmp": picture("bmp"),
        "strips.tif": picture("tiff", compression="tiff_lzw"),
        "plain.ppm": picture("ppm"),
    },
    "sound": {
        "a.wav": sound("WAV", "PCM_16"),
        "float.wav": sound("WAV", "FLOAT"),
        "two.wav": sound("WAV", "PCM_24", 2),
        "many.wav": sound("WAV", "PCM_16", 32),
        "a.flac": sound("FLAC", "PCM_16"),
        "a.ogg": sound("OGG", "VORBIS"),
        "a.aiff": sound("AIFF", "PCM_16"),
        "a.au": sound("AU", "ULAW"),
        "a.mp3": sound("MP3", "MPEG_LAYER_III"),
    },
    "text": {
        "a.csv": TEXT.encode(),
        "mark.csv": b"\xef\xbb\xbf" + TEXT.encode(),
        "a.tsv": TEXT.replace(",", "\t").encode(),
        "a.jsonl": b'{"text": "A cat sleeps.", "kind": "cat"}\n{"text": "\xc3\x9cber", "kind": null}\n'
        b'{"text": "A \\ud83d\\ude00.", "kind": "dog"}\n',
        "a.txt": b"A cat sleeps.\r\nA dog runs away.\n\n  \xc3\x9cber\n",
    },
    "captions": {"a.jsonl": b'{"file_name": "a.png", "text": "a cat"}\n{"file_name": "b/c.png", "text": "a dog"}\n'},
}


def spoiled(content: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes of a file changed, cut off, doubled or removed."""
    place = st.integers(0, len(content) - 1)
    early = st.integers(0, min(64, len(content)) - 1)  # headers are where formats are delicate

    def change(at: list[tuple[int, int]]) -> bytes:
        made = bytearray(content)
        for k, value in at:
            made[k] = value
        return bytes(made)

    byte = st.one_of(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), st.integers(0, 255))
    return st.one_of(
        st.builds(change, st.lists(st.tuples(st.one_of(early, place), byte), min_size=1, max_size=6)),
        st.builds(change, st.lists(st.tuples(place, byte), min_size=1, max_size=3)),
        st.builds(lambda k: content[:k], place),
        st.builds(lambda k, n: content[:k] + content[k + n :], place, st.integers(1, 20)),
        st.builds(lambda k, n: content[: k + n] + content[k:], place, st.integers(1, 20)),
    )


def read_picture(path: Path) -> Any:
    """As the data set reads it, in colour."""
    from modalities.image.files import Folder

    data = Folder(str(path.parent), channels=3)
    return data.train.__getitems__([0])[0][0].permute(1, 2, 0).numpy()


def expected_picture(path: Path) -> Any:
    with Image.open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.float64) / 257
        upright = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return np.asarray(upright.convert("RGB"))


def read_sound(path: Path) -> Any:
    from modalities.audio.files import read_audio

    return read_audio(path, soundfile.info(path).samplerate, notice=False).numpy()


def expected_sound(path: Path) -> Any:
    wave = soundfile.read(path, dtype="float32", always_2d=True)[0]
    if not len(wave) or not np.isfinite(wave).all():
        raise ValueError("nothing in it")
    return wave.astype(np.float64).mean(1).astype(np.float32)


def read_table(path: Path) -> Any:
    from modalities.text.files import rows

    return rows(str(path), "text", [] if path.suffix == ".txt" else ["kind"])


def expected_table(path: Path) -> Any:
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".txt":
        found: list[Any] = [{"text": line} for line in io.StringIO(text, newline=None)]
    elif path.suffix == ".jsonl":
        found = [json.loads(line) for line in io.StringIO(text, newline=None) if line.strip()]
    else:
        found = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="," if path.suffix == ".csv" else "\t"))
    made = []
    for row in found:
        given = {} if path.suffix == ".txt" else {"kind": " ".join(str(row["kind"]).split())} if row["kind"] is not None else {}
        if words := " ".join(str(row["text"] or "").split()):
            made.append((words, {name: value for name, value in given.items() if value}))
    return made


def read_list(path: Path) -> Any:
    from modalities.image.files import read_captions

    return read_captions(path)


def expected_list(path: Path) -> Any:
    rows = [json.loads(line) for line in io.StringIO(path.read_bytes().decode(), newline=None) if line.strip()]
    return {row["file_name"]: row["text"] for row in rows}


READERS: Mapping[str, tuple[Reader, Reader]] = {
    "picture": (read_picture, expected_picture),
    "sound": (read_sound, expected_sound),
    "text": (read_table, expected_table),
    "captions": (read_list, expected_list),
}


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=True))
    return bool(one == other)


def judged(kind: str, path: Path) -> tuple[str, str | None]:
    """What became of a file, and what is wrong with it."""
    from guidance.errors import UserError

    read, expected = READERS[kind]
    try:
        found = read(path)
    except UserError as error:
        said = str(error)
        if "\n" in said or path.name not in said or len(said) > 1000:
            return "wrong", f"not one line that names the file: {said[:300]!r}"
        return "refused", None
    except soundfile.SoundFileError:  # of the rate, which this script itself asks for
        return "refused", None
    except Exception as error:
        return "wrong", f"{type(error).__name__} escapes: {error}"
    try:
        wanted = expected(path)
    except Exception as error:
        return "wrong", f"read, though the library says {type(error).__name__}: {error}"
    return ("read", None) if alike(found, wanted) else ("wrong", "read otherwise than the library reads it")


def fuzz(kind: str, examples: int) -> tuple[Counter[str], list[str]]:
    """Fuzz the files of a kind, in this folder."""
    counts, wrong = Counter[str](), []
    names = sorted(GOOD[kind])
    for name in names:  # the good ones are read
        path = Path(kind, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(GOOD[kind][name])
        result = judged(kind, path)
        assert result == ("read", None), (name, result)
        path.unlink()

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), spoiled(GOOD[kind][name]))))
    def check(case: tuple[str, bytes]) -> None:
        path = Path(kind, case[0])
        path.write_bytes(case[1])
        what, problem = judged(kind, path)
        counts[what] += 1
        if problem:
            wrong.append(f"{kind}: {case[0]}: {problem}: {case[1][:60]!r}")
        path.unlink()

    check()
    return counts, wrong


def main(asked: list[str]) -> int:
    status = 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, surroundings(Path(folder)):
        for kind in GOOD:
            began = time.perf_counter()
            counts, wrong = fuzz(kind, int(asked[0]) if asked else 200)
            print(f"{kind}: {sum(counts.values())} files in {time.perf_counter() - began:.0f} s: {dict(counts)}", flush=True)
            for line in wrong:
                print("  " + line)
            status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
