"""Audio data sets of files: any folder, spoken digits (FSDD), Speech Commands. `modalities.audio.notes` has the embedded one."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.bar import each
from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError
from guidance.split import every_fifth
from modalities import assets
from modalities.audio.clips import Conditioned
from modalities.audio.files import SUFFIXES, Unreadable, fit_length, read_audio
from modalities.audio.mel import Mel

KEPT = 2**30  # bytes of clips that are kept in memory; a larger set is read from its files each time


@dataclass(frozen=True)
class Sound:
    """A piece of a file, with the classes of its attributes."""

    path: Path
    start: int  # in samples at the data set's rate
    labels: tuple[int, ...]


@dataclass(frozen=True)
class FileClips:
    """Clips that are read when they are asked for: a `Split`."""

    sounds: Sequence[Sound]
    attributes: Sequence[str]
    read: Callable[[Sound], Float[Tensor, "samples"]]
    mel: Mel | None

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitems__(self, index: list[int]) -> tuple[Float[Tensor, "b samples"], Condition]:
        chosen = [self.sounds[k] for k in index]
        waves = torch.stack([self.read(sound) for sound in chosen])
        labels = {name: torch.tensor([sound.labels[k] for sound in chosen]) for k, name in enumerate(self.attributes)}
        mel = {} if self.mel is None else {"mel": self.mel.of(waves)}
        return waves, Condition.of(**labels, **mel)


@dataclass
class Files(Conditioned):
    """What data sets of files share. A subclass says where they are, and what their names tell.

    Args:
        rate: in Hz; files of another rate are resampled.
        length: of a clip, in samples; shorter sounds are followed by silence.
        skip_broken: leave out files that cannot be read, instead of stopping at them.

    All files are read once before training starts, so that what is wrong with one is said then.
    """

    rate: int = 16000
    length: int = 16384
    skip_broken: bool = False
    classes: Mapping[str, Sequence[str]] | None = None
    _kept: dict[Sound, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and not isinstance(self.classes, Mapping):
            raise UserError(f"data.classes are lists of names by attribute, got {self.classes!r}")
        if self.rate < 1000 or self.length < 16:
            raise UserError(f"data.rate is in Hz and data.length in samples, got {self.rate} and {self.length}")

    def look(self) -> tuple[Mapping[str, Sequence[str]], Sequence[tuple[Path, tuple[int, ...], bool]]]:
        """The classes of each attribute, and each file with its classes and whether it is held out."""
        raise NotImplementedError

    pieces = False
    """Whether a long file is cut into several clips, or only its beginning is taken."""

    @property
    def attributes(self) -> Mapping[str, ConditionSpec]:
        classes = self.classes if self.classes is not None else self.look()[0]
        return {name: Label(tuple(names)) for name, names in classes.items()}

    def _numbered(
        self, found: Mapping[str, Sequence[str]], files: Sequence[tuple[Path, tuple[int, ...], bool]]
    ) -> Sequence[tuple[Path, tuple[int, ...], bool]]:
        """With the numbers that classes had when a run was made; files of a class that came later are left out."""
        if self.classes is None:
            return files
        if found.keys() != self.classes.keys():
            was, now = (", ".join(names) or "none" for names in (self.classes, found))
            raise UserError(f"{self.name} has changed since the run was made: its attributes were {was}, and are {now}")
        numbers = [{k: list(self.classes[a]).index(c) for k, c in enumerate(names) if c in self.classes[a]} for a, names in found.items()]
        known = [file for file in files if all(k in of for k, of in zip(file[1], numbers, strict=True))]
        return [(path, tuple(of[k] for k, of in zip(labels, numbers, strict=True)), held) for path, labels, held in known]

    def _read(self, sound: Sound) -> Float[Tensor, "samples"]:
        if sound in self._kept:
            return self._kept[sound]
        return fit_length(read_audio(sound.path, self.rate, notice=False)[sound.start :], self.length)

    @cached_property
    def _splits(self) -> tuple[FileClips, FileClips]:
        files = self._numbered(*self.look())
        parts: tuple[list[Sound], list[Sound]] = ([], [])
        longer = stereo = 0
        for path, labels, held in each(files, "reading sounds", "file", least=2000):
            try:
                wave = read_audio(path, self.rate, notice=False)
            except Unreadable as error:
                if self.skip_broken:
                    print(f"skipped {error}", file=sys.stderr)
                    continue
                raise Unreadable(f"{error}; mend it, or pass data.skip_broken=true") from None
            stereo += channels(path) > 1
            longer += len(wave) > self.length
            starts = range(0, max(1, len(wave) - len(wave) % self.length), self.length) if self.pieces else range(1)
            for start in starts:
                sound = Sound(path, start, labels)
                parts[held].append(sound)
                if len(self._kept) * self.length * 4 < KEPT:
                    self._kept[sound] = fit_length(wave[start:], self.length)
        if not parts[0]:
            raise UserError(f"{self.name}: no sound file to train on")
        if longer:
            done = "cut into clips of that length" if self.pieces else "only their beginning is taken"
            print(f"{longer} of {len(files)} sounds are longer than {self.length / self.rate:.2f} s: {done}", file=sys.stderr)
        if stereo:
            print(f"{stereo} of {len(files)} files have several channels, which are mixed down to one", file=sys.stderr)
        names = list(self.attributes) if self.labelled else []
        train, test = (FileClips(part, names, self._read, self.spectrogram) for part in parts)
        return train, test

    def pinned(self) -> Mapping[str, Any]:
        return {"classes": {name: list(spec.classes) for name, spec in self.attributes.items() if isinstance(spec, Label)}}


def channels(path: Path) -> int:
    import soundfile

    return int(soundfile.info(path).channels)


def existing(root: str) -> Path:
    """A folder of the user's, as it is written or below POLYGUIDE_DATA."""
    folder = assets.local(root) or Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.root={root}: there is no such folder")
    return folder


@dataclass
class Folder(Files):
    """A folder with a sub-folder a class, or with sounds directly (then without attributes).

    Args:
        root: the folder, also below POLYGUIDE_DATA.
        attribute: what the sub-folders tell.

    Every fifth file of a class is held out. A sound longer than ``length`` is cut into clips.
    """

    root: str = ""
    attribute: str = "label"

    pieces = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.root:
            raise UserError("data.root is missing; give the folder of the sounds")
        if not self.attribute.isidentifier():
            raise UserError(f"an attribute's name is a word, for condition.NAME=...; got {self.attribute!r}")

    @property
    def name(self) -> str:
        return Path(self.root).name

    def look(self) -> tuple[Mapping[str, Sequence[str]], Sequence[tuple[Path, tuple[int, ...], bool]]]:
        folder = existing(self.root)

        def sounds(place: Path) -> list[Path]:
            return sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())

        places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = {place.name: sounds(place) for place in places} if places else {"": sounds(folder)}
        if empty := [name for name, files in found.items() if not files]:
            where = folder / empty[0]
            raise UserError(f"no sound file in {where} (looked for {', '.join(sorted(SUFFIXES))}); remove the folder or fill it")
        labels = torch.tensor([k for k, files in enumerate(found.values()) for _ in files])
        held = set(every_fifth(labels)[1].tolist())
        files = [path for of in found.values() for path in of]
        listed = [(path, (int(label),) if places else (), k in held) for k, (path, label) in enumerate(zip(files, labels, strict=True))]
        return ({self.attribute: list(found)} if places else {}), listed


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class FSDD(Files):
    """The Free Spoken Digit Dataset: 3,000 recordings of digits by six speakers, 8 kHz (CC BY-SA 4.0); the recordings 0 to 4 of
    each digit and speaker are its test split.

    Args:
        root: the folder of recordings; found below POLYGUIDE_DATA as fsdd, or downloaded.
    """

    rate: int = 8000
    length: int = 5120
    root: str | None = None

    name = "fsdd"
    ARCHIVE = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"

    def look(self) -> tuple[Mapping[str, Sequence[str]], Sequence[tuple[Path, tuple[int, ...], bool]]]:
        folder = existing(self.root) if self.root else (assets.local("fsdd") or assets.archive(self.ARCHIVE, "fsdd"))
        parts = [(path, path.stem.split("_")) for path in sorted(folder.rglob("*.wav"))]
        named = [(path, stem) for path, stem in parts if len(stem) == 3 and stem[0] in "0123456789" and stem[2].isdigit()]
        if not named:
            raise UserError(f"no recording DIGIT_SPEAKER_INDEX.wav in {folder}")
        speakers = sorted({speaker for _, (_, speaker, _) in named})
        files = [(path, (int(digit), speakers.index(speaker)), int(index) < 5) for path, (digit, speaker, index) in named]
        return {"digit": list("0123456789"), "speaker": speakers}, files


@dataclass
class SpeechCommands(Files):
    """The ten digits of Speech Commands (Warden, 1804.03209; CC BY 4.0), known as SC09: one second at 16 kHz.

    Args:
        root: the unpacked folder (with zero/, one/, ..., and testing_list.txt); found below POLYGUIDE_DATA as speech_commands,
            or downloaded (2.3 GB).
    """

    root: str | None = None

    name = "speech_commands"
    ARCHIVE = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"

    def look(self) -> tuple[Mapping[str, Sequence[str]], Sequence[tuple[Path, tuple[int, ...], bool]]]:
        folder = (
            existing(self.root)
            if self.root
            else (assets.local("speech_commands") or assets.archive(self.ARCHIVE, "speech_commands", self.SHA256))
        )
        listed = folder / "testing_list.txt"
        held = set(listed.read_text().split()) if listed.is_file() else None
        files = []
        for k, digit in enumerate(DIGITS):
            sounds = sorted((folder / digit).glob("*.wav"))
            if not sounds:
                raise UserError(f"no sound in {folder / digit}; data.root is the unpacked folder of Speech Commands")
            # Without the list, every tenth is held out, which is about what the list does.
            files += [(p, (k,), f"{digit}/{p.name}" in held if held is not None else i % 10 == 9) for i, p in enumerate(sounds)]
        return {"digit": list(DIGITS)}, files
