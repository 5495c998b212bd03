"""Sounds from files, folders and the sound font, and what is said of those that cannot be used."""

import functools
import http.server
import io
import math
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from guidance import Condition, Label, UserError
from modalities import assets
from modalities.audio import notes
from modalities.audio.clips import Clips
from modalities.audio.data import DIGITS, FSDD, Folder, SpeechCommands
from modalities.audio.files import Unreadable, fit_length, read_audio, resampler
from modalities.audio.mel import Mel
from modalities.audio.metrics import hertz, pitch
from modalities.audio.notes import INSTRUMENTS, LOUDNESS, TAKES, Notes


def sine(frequency: float, rate: int, seconds: float = 0.5, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)


def write(path: Path, wave: np.ndarray, rate: int = 8000, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)
    return path


def whole(split: Any) -> tuple[Tensor, Condition]:
    return split.__getitems__(list(range(len(split))))


# Files in every form


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_U8", 1 / 128),
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "PCM_32", 2**-24),
        ("wav", "FLOAT", 0),
        ("wav", "DOUBLE", 0),
        ("wav", "ULAW", 0.02),
        ("flac", "PCM_16", 2**-15),
        ("flac", "PCM_24", 2**-23),
        ("ogg", "VORBIS", 0.02),
        ("aiff", "PCM_24", 2**-23),
        ("mp3", "MPEG_LAYER_III", 0.06),
    ],
)
def test_every_kind_of_file_gives_the_samples_that_were_written(tmp_path: Path, suffix: str, subtype: str, error: float):
    wave = sine(440, 8000).astype(np.float32)
    read = read_audio(write(tmp_path / f"x.{suffix}", wave, subtype=subtype), 8000)
    inner = slice(500, 3500)  # compressed sound may ring at its ends
    assert np.abs(read.numpy()[: len(wave)] - wave)[inner].max() <= error
    assert len(read) == len(wave) or suffix == "mp3"  # which fills its last frame


@pytest.mark.parametrize("count", range(1, 9))
def test_channels_are_averaged_and_that_is_said(tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]):
    channels = np.random.default_rng(count).uniform(-1, 1, (50, count)).astype(np.float32)
    path = write(tmp_path / "x.wav", channels, subtype="FLOAT")
    read = read_audio(path, 8000)
    said = capsys.readouterr().err
    torch.testing.assert_close(read, torch.from_numpy(channels.mean(1)), atol=1e-6, rtol=0)
    assert said == ("" if count == 1 else f"{path}: {count} channels, mixed down to one\n")
    assert torch.equal(read_audio(path, 8000, notice=False), read) and not capsys.readouterr().err


RATES = (4000, 8000, 11025, 11127, 12000, 22050, 22255, 32000, 44056, 44100, 44101, 48000, 88200, 96000, 192000)


@pytest.mark.parametrize("rate", RATES)
def test_a_sine_is_the_same_sine_at_another_rate(tmp_path: Path, rate: int):
    read = read_audio(write(tmp_path / "x.wav", sine(1000, rate, 0.25), rate, subtype="FLOAT"), 16000)
    assert abs(len(read) - 4000) <= 1
    assert np.abs(read.numpy() - sine(1000, 16000, 0.25)[: len(read)])[300:-300].max() < 5e-4  # 66 dB below it, phase and all


@pytest.mark.parametrize(("rate", "above"), [(48000, 9200), (44100, 12000), (192000, 50000), (192000, 14500)])
def test_what_the_new_rate_cannot_hold_is_gone(tmp_path: Path, rate: int, above: float):
    high = sine(above, rate, 0.25)
    inner = slice(300, 3700)
    alone = read_audio(write(tmp_path / "high.wav", high, rate, subtype="FLOAT"), 16000)[inner]
    assert alone.abs().max() < 0.5e-3, "60 dB below what it was, and no alias of it"
    mixed = read_audio(write(tmp_path / "both.wav", (high + sine(700, rate, 0.25)) / 2, rate, subtype="FLOAT"), 16000)[inner]
    assert np.abs(mixed.numpy() - sine(700, 16000, 0.25)[inner] / 2).max() < 1e-3


@pytest.mark.parametrize("to", [1000, 8000, 16000, 22050, 44100, 48000])
def test_no_pair_of_rates_takes_a_large_filter_or_moves_a_pitch_by_half_a_cent(to: int):
    for rate in (*RATES, 1, 999, 15999, 16001, 44099, 47952, 655350):
        filters = resampler(rate, to)
        cents = 1200 * math.log2(filters.new_freq / filters.orig_freq * rate / to)
        assert abs(cents) < 0.5 and filters.new_freq * filters.orig_freq <= 4_000_000, rate
    for rate in (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000):
        assert resampler(rate, to).new_freq * rate == resampler(rate, to).orig_freq * to, "usual rates are exact"


def test_clips_are_cut_or_followed_by_silence():
    wave = torch.arange(1.0, 6.0)
    assert fit_length(wave, 3).tolist() == [1, 2, 3] and fit_length(wave, 5).tolist() == wave.tolist()
    assert fit_length(wave, 7).tolist() == [1, 2, 3, 4, 5, 0, 0] and fit_length(wave[5:], 2).tolist() == [0, 0]


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no sound, and what has to be said of each."""
    folder.mkdir(exist_ok=True)
    (folder / "text.wav").write_text("this is no sound\n" * 20)
    (folder / "empty.wav").touch()
    write(folder / "silent.wav", np.zeros(0))
    write(folder / "nan.wav", np.array([0, np.nan, 0.1]), subtype="FLOAT")
    write(folder / "inf.flac", np.zeros(3))
    write(folder / "inf.wav", np.array([0, np.inf]), subtype="DOUBLE")
    write(folder / "too large.wav", np.array([0, 1e300]), subtype="DOUBLE")
    content = write(folder / "whole.wav", sine(440, 8000)).read_bytes()
    (folder / "cut.wav").write_bytes(content[:30])
    (folder / "rate.wav").write_bytes(content[:24] + bytes(4) + content[28:])  # 0 Hz
    (folder / "folder.wav").mkdir()
    said = {
        "text.wav": "not a sound file that can be read",
        "empty.wav": "is an empty file",
        "silent.wav": "holds no samples",
        "nan.wav": "not finite",
        "inf.wav": "not finite",
        "too large.wav": "not finite",
        "cut.wav": "not a sound file that can be read",
        "rate.wav": "not a sound file that can be read",
        "folder.wav": "no such sound file",
        "missing.wav": "no such sound file",
    }
    return {name: (folder / name, words) for name, words in said.items()}


def test_files_that_are_no_sound_are_named_with_what_is_wrong(tmp_path: Path):
    for path, words in broken_files(tmp_path).values():
        with pytest.raises(Unreadable) as error:
            read_audio(path, 8000)
        assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


# Folders


def ramp(start: int, samples: int) -> np.ndarray:
    """16-bit samples start, start + 1, ...: they say where in which file they were."""
    return np.arange(start, start + samples, dtype=np.int16)


def numbers(waves: Tensor) -> list[list[int]]:
    return (waves * 32768).round().int().tolist()


def ramps(root: Path, per: int = 6, samples: int = 16) -> None:
    """A file starts at 1000 * its class + 100 * its place + 1."""
    for c, name in enumerate(("low", "high")):
        for k in range(per):
            write(root / name / f"{k}.wav", ramp(1000 * c + 100 * k + 1, samples))


def folder(root: Path, **settings: Any) -> Folder:
    return Folder(root=str(root), **({"rate": 8000, "length": 16} | settings))


def test_sub_folders_are_classes_and_every_fifth_file_is_held_out(tmp_path: Path):
    ramps(tmp_path)
    (tmp_path / "low" / "notes.txt").write_text("no sound")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "low" / "deeper" / "X.WAV", ramp(600, 16), format="WAV")  # after 0 .. 5 in order
    data = folder(tmp_path)
    assert data.shape == (16,) and data.conditions == {"label": Label(("high", "low"))} and data.name == tmp_path.name
    (train, labels), (test, held) = whole(data.train), whole(data.test)
    assert [row[0] for row in numbers(test)] == [1401, 401] and held.values["label"].tolist() == [0, 1]
    assert [row[0] for row in numbers(train)] == [1001, 1101, 1201, 1301, 1501, 1, 101, 201, 301, 501, 600]
    assert labels.values["label"].tolist() == [0] * 5 + [1] * 6 and bool(labels.keep["label"].all())
    picked, condition = data.train.__getitems__([7, 0])
    assert numbers(picked) == [ramp(201, 16).tolist(), ramp(1001, 16).tolist()] and condition.values["label"].tolist() == [1, 0]


def test_long_sounds_are_cut_into_clips_that_stay_together_and_short_ones_end_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ramps(tmp_path, 5)
    write(tmp_path / "low" / "1.wav", ramp(101, 3 * 16 + 15))  # three clips; what is left over is too short for another
    write(tmp_path / "low" / "4.wav", ramp(401, 2 * 16))  # the fifth: all of it is held out
    write(tmp_path / "low" / "2.wav", ramp(201, 7))
    write(tmp_path / "low" / "3.wav", np.stack([ramp(301, 16)] * 2, 1))
    data = folder(tmp_path)
    made, held = numbers(whole(data.train)[0])[4:], numbers(whole(data.test)[0])[1:]
    assert [row[0] for row in made] == [1, 101, 117, 133, 201, 301] and [row[0] for row in held] == [401, 417]
    assert made[3] == ramp(133, 16).tolist() and made[4] == [*ramp(201, 7).tolist(), *[0] * 9] and made[5] == ramp(301, 16).tolist()
    said = capsys.readouterr().err
    assert "2 of 10 sounds are longer than 0.00 s: cut into clips" in said and "1 of 10 files have several channels" in said


def test_a_set_that_is_too_large_to_keep_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ramps(tmp_path, 6, samples=40)
    kept = folder(tmp_path, condition="both", mel={"mels": 2, "hop": 4, "window": 16})
    expected = whole(kept.train)
    monkeypatch.setattr("modalities.audio.data.KEPT", 2 * 16 * 4)  # two clips
    read = folder(tmp_path, condition="both", mel={"mels": 2, "hop": 4, "window": 16})
    made = whole(read.train)
    assert len(read._kept) == 2 and torch.equal(made[0], expected[0]) and len(made[0]) == 20
    assert torch.equal(made[1].values["mel"], expected[1].values["mel"])


def test_a_folder_without_sub_folders_has_no_attributes(tmp_path: Path):
    for k in range(5):
        write(tmp_path / f"{k}.flac", ramp(100 * k, 16))
    data = folder(tmp_path)
    assert data.conditions == {} and len(data.train) == 4 and whole(data.train)[1] == Condition()
    assert numbers(whole(data.test)[0]) == [ramp(400, 16).tolist()] and data.pinned() == {"classes": {}}
    assert folder(Path("gone"), **data.pinned()).conditions == {}


def test_a_stored_folder_is_not_read_again_and_keeps_its_numbers(tmp_path: Path):
    ramps(tmp_path)
    first = folder(tmp_path, attribute="pitch_class")
    again = Folder(root="gone/away", rate=8000, length=16, attribute="pitch_class", **first.pinned())
    assert (again.shape, again.conditions, again.pinned()) == (first.shape, first.conditions, first.pinned())
    write(tmp_path / "extra" / "0.wav", ramp(5000, 16))  # a class that came later, the first in order
    later = folder(tmp_path, attribute="pitch_class", **first.pinned())
    for split in ("train", "test"):
        assert numbers(whole(getattr(later, split))[0]) == numbers(whole(getattr(first, split))[0])
        assert torch.equal(whole(getattr(later, split))[1].values["pitch_class"], whole(getattr(first, split))[1].values["pitch_class"])
    with pytest.raises(UserError, match=r"has changed since.*were pitch_class, and are register"):
        folder(tmp_path, attribute="register", **first.pinned()).train  # noqa: B018


def test_names_may_be_in_any_script(tmp_path: Path):
    root = tmp_path / "Größe 音"
    for name in ("тихо", "大声"):
        for k in range(5):
            write(root / name / f"clip ü {k}.wav", ramp(100 * k, 16))
    data = folder(root)
    assert data.conditions == {"label": Label(("тихо", "大声"))} and len(data.train) == 8
    assert torch.equal(data.conditions["label"].parse("大声"), torch.tensor(1))


def test_folders_below_the_users_own_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ramps(tmp_path / "data" / "tones")
    (tmp_path / "tones").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYGUIDE_DATA", str(tmp_path / "data"))
    assert len(Folder(root="tones", rate=8000, length=16).train) == 10


@pytest.mark.parametrize("name", ["text.wav", "empty.wav", "silent.wav", "nan.wav", "cut.wav"])
def test_broken_files_stop_a_folder_unless_they_are_to_be_left_out(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    ramps(tmp_path / "tones")
    path, words = broken_files(tmp_path / "broken")[name]
    path.rename(tmp_path / "tones" / "low" / "2.wav")
    with pytest.raises(UserError, match=rf"low/2\.wav.*{words}.*data\.skip_broken=true"):
        folder(tmp_path / "tones").train  # noqa: B018
    data = folder(tmp_path / "tones", skip_broken=True)
    assert [row[0] for row in numbers(whole(data.train)[0])] == [1001, 1101, 1201, 1301, 1501, 1, 101, 301, 501]
    assert "low/2.wav" in capsys.readouterr().err


def test_a_folder_of_nothing_but_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "tones" / "low").mkdir(parents=True)
    (tmp_path / "tones" / "low" / "1.wav").write_text("x")
    with pytest.raises(UserError, match="tones: no sound file to train on"):
        folder(tmp_path / "tones", skip_broken=True).train  # noqa: B018
    assert "1.wav" in capsys.readouterr().err


def test_a_class_without_a_sound_and_a_root_that_is_none(tmp_path: Path):
    ramps(tmp_path / "tones")
    (tmp_path / "tones" / "middle").mkdir()
    (tmp_path / "tones" / "middle" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no sound file in .*tones/middle.*\.wav.*remove the folder or fill it"):
        folder(tmp_path / "tones").train  # noqa: B018
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no sound file in .*nothing"):
        folder(tmp_path / "nothing").train  # noqa: B018
    for root in ("nowhere", "tones/low/0.wav"):
        with pytest.raises(UserError, match=rf"data\.root=.*{root}: there is no such folder"):
            folder(tmp_path / root).conditions  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rate": 0}, "data.rate is in Hz.*0"),
        ({"rate": 900}, "data.rate is in Hz.*900"),
        ({"length": 0}, "data.length in samples.*0"),
        ({"length": -16}, "-16"),
        ({"attribute": "a.b"}, "a.b"),
        ({"attribute": ""}, "attribute"),
        ({"condition": "mels"}, "'mels'.*did you mean 'mel'.*classes, mel, both, none"),
        ({"mel": {"hopp": 3}}, "'hopp'.*did you mean 'hop'"),
    ],
    ids=str,
)
def test_impossible_settings(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Folder(root="anywhere", **settings)


@pytest.mark.parametrize(
    ("mel", "said"),
    [
        ({"hop": 0}, "mels, hop and window are whole numbers.*0"),
        ({"hop": -128}, "whole numbers.*-128"),
        ({"hop": 1.5}, "whole numbers.*1.5"),
        ({"hop": "short"}, "whole numbers.*'short'"),
        ({"mels": 0}, "whole numbers.*0"),
        ({"mels": True}, "whole numbers.*True"),
        ({"window": 0}, "whole numbers.*0"),
        ({"hop": 3}, "clips of 16 samples.*frames of 3.*data.mel.hop"),
    ],
    ids=str,
)
def test_impossible_spectrograms(tmp_path: Path, mel: dict[str, Any], said: str):
    ramps(tmp_path)
    with pytest.raises(UserError, match=said):
        folder(tmp_path, condition="mel", mel={"mels": 2, "hop": 4, "window": 16} | mel).conditions  # noqa: B018


@pytest.mark.parametrize(("condition", "names"), [("classes", ["label"]), ("mel", ["mel"]), ("both", ["label", "mel"]), ("none", [])])
def test_what_clips_are_conditioned_on(tmp_path: Path, condition: str, names: list[str]):
    ramps(tmp_path)
    data = folder(tmp_path, condition=condition, mel={"mels": 2, "hop": 4, "window": 16})
    waves, given = data.train.__getitems__([7, 2])
    assert list(data.conditions) == list(given.values) == names and data.pinned() == {"classes": {"label": ["high", "low"]}}
    assert "label" not in names or given.values["label"].tolist() == [1, 0]
    if "mel" in names:
        assert data.conditions["mel"] == Mel(8000, 16, 2, 4, 16)
        assert torch.equal(given.values["mel"], Mel(8000, 16, 2, 4, 16).of(waves)) and given.values["mel"].shape == (2, 2, 4)


# Spoken digits


def test_spoken_digits_are_told_by_their_names(tmp_path: Path):
    for digit in (3, 0):
        for s, speaker in enumerate(("zoe", "al")):
            for index in (0, 4, 5, 11):
                write(tmp_path / f"{digit}_{speaker}_{index}.wav", ramp(1000 * digit + 100 * s + index, 20))
    write(tmp_path / "10_al_7.wav", ramp(0, 20))
    write(tmp_path / "notes.wav", ramp(0, 20))
    data = FSDD(root=str(tmp_path), length=16)
    assert data.conditions == {"digit": Label(tuple("0123456789")), "speaker": Label(("al", "zoe"))}
    for split, indices in (("train", (5, 11)), ("test", (0, 4))):
        waves, condition = whole(getattr(data, split))
        found = {(row[0] // 1000, row[0] // 100 % 10, row[0] % 100) for row in numbers(waves)}
        assert found == {(digit, s, index) for digit in (3, 0) for s in (0, 1) for index in indices}
        assert condition.values["digit"].tolist() == [row[0] // 1000 for row in numbers(waves)]
        assert condition.values["speaker"].tolist() == [1 - row[0] // 100 % 10 for row in numbers(waves)]
    again = FSDD(root="gone", length=16, **data.pinned())
    assert again.conditions == data.conditions
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no recording DIGIT_SPEAKER_INDEX.wav in .*empty"):
        FSDD(root=str(tmp_path / "empty")).train  # noqa: B018


@pytest.mark.parametrize("listed", [True, False], ids=["with the list", "without"])
def test_speech_commands_hold_out_what_the_list_says(tmp_path: Path, listed: bool):
    for d, digit in enumerate(DIGITS):
        for k in range(10):
            write(tmp_path / digit / f"{k:02d}.wav", ramp(100 * d + k, 16), 16000)
    write(tmp_path / "bed" / "00.wav", ramp(0, 16), 16000)
    if listed:
        (tmp_path / "testing_list.txt").write_text("three/04.wav\nbed/00.wav\nnine/00.wav\n")
    data = SpeechCommands(root=str(tmp_path), length=16)
    waves, condition = whole(data.test)
    starts = [row[0] for row in numbers(waves)]
    assert starts == ([304, 900] if listed else [100 * d + 9 for d in range(10)])
    assert condition.values["digit"].tolist() == [start // 100 for start in starts]
    assert len(data.train) == 100 - len(starts) and data.conditions == {"digit": Label(DIGITS)}
    (tmp_path / "four").rename(tmp_path / "fore")
    with pytest.raises(UserError, match=r"no sound in .*four; data\.root"):
        SpeechCommands(root=str(tmp_path), length=16).train  # noqa: B018


# Spectrograms that people give

MEL = Mel(8000, 512, mels=6, hop=64, window=256)


@pytest.mark.parametrize("samples", [1, 63, 64, 100, 129, 512, 5000])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_as_a_spectrogram_is_all_of_it_in_whole_frames(tmp_path: Path, samples: int, kind: Any):
    wave = sine(700, 8000, samples / 8000).astype(np.float32)
    path = write(tmp_path / "x.wav", wave, subtype="FLOAT")
    made = MEL.parse(kind(path))
    frames = -(-samples // 64)
    padded = np.pad(wave, (0, max(frames * 64, 129) - samples))  # at least as long as the transform can mirror
    assert made.shape == (6, frames) and torch.equal(made, MEL.of(torch.from_numpy(padded)[None])[0, :, :frames])


@pytest.mark.parametrize("form", [torch.tensor, np.array, list], ids=["tensor", "array", "lists"])
def test_numbers_as_a_spectrogram_are_taken_as_they_are(form: Any):
    values = np.random.default_rng(0).uniform(0, 1, (6, 3)).tolist()
    torch.testing.assert_close(MEL.parse(form(values)), torch.tensor(values), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((5, 8)), "6 bands x frames.*5 x 8"),
        (np.zeros((6, 0)), "6 x 0"),
        (np.zeros(6), "got 6"),
        (np.zeros((1, 6, 8)), "1 x 6 x 8"),
        (np.full((6, 8), np.nan), "finite"),
        (3, "one number"),
        ([[1, 2], [3]], "path of a sound file, or 6 x frames numbers"),
        ({}, "path of a sound file, or 6 x frames numbers"),
        ("nowhere.wav", "nowhere.wav: there is no such sound file"),
    ],
    ids=lambda value: getattr(value, "shape", None) and str(value.shape),
)
def test_what_is_no_spectrogram_is_refused(value: Any, said: str):
    with pytest.raises(UserError, match=said):
        MEL.parse(value)


# Notes


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("POLYGUIDE_DATA", raising=False)
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_a_synthesizer(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes whose first samples are what they were asked to be."""

    def note(synth: None, *asked: float) -> np.ndarray:
        return np.array([*map(int, asked), *[0] * (notes.LENGTH - len(asked))], np.int16)

    monkeypatch.setattr(notes, "render", note)
    monkeypatch.setattr(notes, "sound_font", lambda: Path("font"))
    monkeypatch.setattr(notes, "synthesizer", lambda font: None)


def test_notes_are_labelled_with_what_was_rendered_and_whole_pairs_are_held_out(
    without_a_synthesizer: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    data, pairs, seeds = Notes(), {}, []
    assert data.shape == (4096,) and data.pinned() == {}
    for split in ("train", "test"):
        waves, condition = whole(getattr(data, split))
        asked = (waves[:, :5] * 32768).round().int()
        instrument, note, loudness = (condition.values[name] for name in ("instrument", "pitch", "loudness"))
        assert asked[:, 0].tolist() == [INSTRUMENTS[data.attributes["instrument"].classes[k]] for k in instrument]
        assert asked[:, 1].tolist() == [int(data.attributes["pitch"].classes[k]) for k in note]
        assert asked[:, 3].tolist() == [LOUDNESS[data.attributes["loudness"].classes[k]] for k in loudness]
        assert asked[:, 2].tolist() == [(45, 80, 115)[k] for k in loudness], "louder notes are struck harder"
        pairs[split] = list(zip(instrument.tolist(), note.tolist(), strict=True))
        seeds += asked[:, 4].tolist()
        counted = {pair: pairs[split].count(pair) for pair in pairs[split]}
        assert set(counted.values()) == {len(LOUDNESS) * TAKES}, "a pair lies on one side with all its loudnesses and takes"
    assert not set(pairs["train"]) & set(pairs["test"]) and sorted(seeds) == list(range(2400))
    assert len(set(pairs["test"])) == 8 * 25 // 5
    for k, count in ((0, 8), (1, 25)):
        assert {pair[k] for pair in pairs["train"]} == {pair[k] for pair in pairs["test"]} == set(range(count))
    monkeypatch.setattr(notes, "render", None)  # not rendered again
    assert torch.equal(whole(Notes().test)[0], whole(data.test)[0])
    assert [path.name for path in (own_cache / "notes").iterdir()] == ["notes-2.npy"]


@pytest.mark.parametrize("kind", ["empty", "cut short", "of something else", "of another shape", "of objects"])
def test_a_cache_that_cannot_be_read_is_said_in_one_line(own_cache: Path, kind: str):
    path = own_cache / "notes" / "notes-2.npy"
    assets.save_array(path, np.zeros(notes.SHAPE if kind == "cut short" else (8, 3, 4), np.int16))
    content = path.read_bytes()
    if kind == "of objects":
        np.save(path, np.array([{}], dtype=object))
    elif kind != "of another shape":
        path.write_bytes({"empty": b"", "cut short": content[:-7], "of something else": b"RIFF" * 99}[kind])
    with pytest.raises(UserError, match=rf"{path} cannot be read \(.+\); delete it and it is rendered anew") as error:
        Notes().train  # noqa: B018
    assert "\n" not in str(error.value)


def test_notes_can_be_conditioned_on_their_spectrograms(without_a_synthesizer: None):
    data = Notes(condition="both", mel={"mels": 16, "hop": 256, "window": 512})
    waves, condition = data.train.__getitems__([5, 1000])
    assert list(data.conditions) == list(condition.values) == ["instrument", "pitch", "loudness", "mel"]
    assert torch.equal(condition.values["mel"], Mel(8000, 4096, 16, 256, 512).of(waves))
    for choice, names in (("none", []), ("mel", ["mel"])):
        data = Notes(condition=choice)
        assert list(data.conditions) == list(data.test.__getitems__([0])[1].values) == names


@pytest.fixture(scope="module")
def font() -> Path:
    try:
        assets.wheel_module("tinysoundfont", "0.3.7")
        return notes.sound_font()
    except UserError as error:  # offline, and never fetched before
        pytest.skip(str(error))


def test_a_note_is_rendered_the_same_again_and_differs_from_take_to_take(font: Path):
    synth = notes.synthesizer(font)
    once, other = (notes.render(synth, 24, 64, 80, -28.0, seed) for seed in (7, 8))
    assert once.dtype == np.int16 and once.shape == (4096,)
    assert notes.render(synth, 24, 64, 80, -28.0, 7).tobytes() == once.tobytes() and not np.array_equal(once, other)
    for program in (20, 56, 40):  # that sound on
        notes.render(synth, program, 70, 115, -20.0, 3)
    new = notes.synthesizer(font)
    assert notes.render(synth, 24, 64, 80, -28.0, 7).tobytes() == notes.render(new, 24, 64, 80, -28.0, 7).tobytes(), "of no note before"


def test_notes_sound_at_their_pitch_and_loudness(font: Path):
    program = list(INSTRUMENTS.values())
    asked = [(i, note, level) for i in range(8) for note in (57, 63, 70, 76) for level in (-36.0, -20.0)]
    synth = notes.synthesizer(font)
    made = np.stack([notes.render(synth, program[i], note, 80, level, k) for k, (i, note, level) in enumerate(asked)]) / 32768
    loudness = 10 * np.log10(np.square(made).mean(1))
    assert np.abs(loudness - [level for _, _, level in asked]).max() < 1.1, "up to 1 dB, and what a late onset cuts off"
    found = pitch(torch.from_numpy(made).float(), 8000, 147, 1046)
    cents = (1200 * (found / hertz(torch.tensor([float(note) for _, note, _ in asked]))).log2()).view(8, -1)
    assert (cents.abs() < 50).float().mean() >= 0.85 and bool((cents.abs().median(1).values < 50).all())
    assert cents.abs().median() > 0.5, "tunings vary"
    assert np.abs(made[:, -1]).max() < 1e-3, "faded out"


# Where data comes from


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of archives, whole and broken."""
    (tmp_path / "www").mkdir()
    with tarfile.open(tmp_path / "www" / "whole.tar.gz", "w:gz") as file:
        content = np.random.default_rng(0).bytes(3000)
        member = tarfile.TarInfo("set/data.bin")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    packed = (tmp_path / "www" / "whole.tar.gz").read_bytes()
    (tmp_path / "www" / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "www" / "page.tar.gz").write_text("<html>please log in</html>")
    (tmp_path / "www" / "empty.tar.gz").touch()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_an_archive_is_fetched_and_unpacked_once(server: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    made = assets.archive(f"{server}/whole.tar.gz", "tones")
    assert made == own_cache / "tones" and (made / "set" / "data.bin").read_bytes() == np.random.default_rng(0).bytes(3000)
    assert assets.archive("http://127.0.0.1:9/not asked", "tones") == made
    assert list(own_cache.iterdir()) == [made], "the archive itself is not kept"


@pytest.mark.parametrize("name", ["cut", "page", "empty", "missing"])
def test_an_archive_that_does_not_come_whole_is_said_in_one_line(server: str, own_cache: Path, name: str):
    with pytest.raises(UserError, match=rf"cannot download tones from {server}/{name}.*data\.root=.*POLYGUIDE_DATA") as error:
        assets.archive(f"{server}/{name}.tar.gz", "tones")
    assert "\n" not in str(error.value) and not list(own_cache.iterdir())


def test_an_archive_of_another_hash_is_refused(server: str, own_cache: Path):
    with pytest.raises(UserError, match=r"cannot download tones.*SHA256"):
        assets.archive(f"{server}/whole.tar.gz", "tones", "0" * 64)
    assert not list(own_cache.iterdir())


def test_a_module_is_fetched_once_and_not_left_on_the_path(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    index, info = tmp_path / "index", "polyguide_tone-1.0.dist-info"
    index.mkdir()
    with zipfile.ZipFile(index / "polyguide_tone-1.0-py3-none-any.whl", "w") as file:
        file.writestr("polyguide_tone/__init__.py", "answer = 440")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: polyguide-tone\nVersion: 1.0\nRequires-Dist: polyguide-nothing\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    path = list(sys.path)
    try:
        assert assets.wheel_module("polyguide_tone", "1.0").answer == 440
        del sys.modules["polyguide_tone"]
        monkeypatch.setattr("subprocess.run", None)  # not asked again
        assert assets.wheel_module("polyguide_tone", "1.0").answer == 440 and sys.path == path
    finally:
        sys.modules.pop("polyguide_tone", None)
    monkeypatch.undo()
    monkeypatch.setenv("POLYGUIDE_CACHE", str(own_cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"cannot fetch polyguide_none 9: .*pip install --no-deps polyguide_none==9") as error:
        assets.wheel_module("polyguide_none", "9")
    assert "\n" not in str(error.value) and len(list((own_cache / "modules").iterdir())) == 1


def test_parts_of_clips_keep_waves_and_labels_together():
    clips = Clips(torch.arange(12.0).view(6, 2), {"k": torch.arange(6)})
    waves, condition = clips.rows(torch.tensor([4, 1])).__getitems__([1, 0])
    assert waves.tolist() == [[2, 3], [8, 9]] and condition.values["k"].tolist() == [1, 4] and len(clips) == 6
