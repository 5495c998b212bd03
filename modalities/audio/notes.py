"""Notes of sampled instruments, rendered once from a sound font: the audio data set that needs nothing but an installation."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guidance.bar import each
from guidance.condition import ConditionSpec, Label
from guidance.errors import UserError
from modalities import assets
from modalities.audio.clips import Clips, Conditioned

# General MIDI programs whose pitch can be heard within half a second over the two octaves.
INSTRUMENTS = {"piano": 0, "vibraphone": 11, "organ": 20, "guitar": 24, "violin": 40, "trumpet": 56, "clarinet": 71, "flute": 73}
PITCHES = range(55, 80)  # MIDI notes: G3 to G5, 196 to 784 Hz
REGISTERS = tuple(tuple(str(p) for p in part) for part in (range(55, 63), range(63, 72), range(72, 80)))  # low, middle, high
LOUDNESS = {"soft": -36.0, "medium": -28.0, "loud": -20.0}  # dB of full scale, root mean square
VELOCITY = {"soft": 45, "medium": 80, "loud": 115}
TAKES = 4
RATE, LENGTH = 8000, 4096
SHAPE = (len(INSTRUMENTS), len(PITCHES), len(LOUDNESS), TAKES, LENGTH)
FADE = 4800  # samples, 0.1 s, within which a note that is stopped has faded out
OVERSAMPLED = 6  # the synthesizer interpolates linearly: it renders at 48 kHz, and what would alias is filtered out


def held_out(instrument: int, pitch: int) -> bool:
    """Every fifth pitch of an instrument, at all loudnesses; other pitches for each instrument."""
    return (pitch + 2 * instrument) % 5 == 4


def synthesizer(font: Path) -> Any:
    """That plays a sound font, which takes long to load."""
    synth = assets.wheel_module("tinysoundfont", "0.3.7").Synth(gain=0, samplerate=OVERSAMPLED * RATE)
    synth.sfload(str(font))
    return synth


def render(synth: Any, program: int, pitch: int, velocity: int, level: float, seed: int) -> np.ndarray:
    """One note as int16 [LENGTH]: its tuning (up to 10 cents), level (up to 1 dB) and onset (up to 4 ms) vary with the seed.

    Nothing of the note before is left: its channel is reset, and what still sounds has faded out.
    """
    from scipy.signal import resample_poly

    tuning, gain, onset = np.random.default_rng(seed).uniform((-0.1, -1, 0), (0.1, 1, 0.004))
    synth._get_soundfont(0).reset()  # which a Synth itself cannot
    synth.generate(FADE)
    synth.program_select(0, 0, 0, program)
    synth.set_tuning(0, float(tuning))
    synth.noteon(0, pitch, velocity)
    stereo = np.frombuffer(bytes(synth.generate(OVERSAMPLED * LENGTH)), np.float32).reshape(-1, 2).astype(np.float64)
    delay = int(onset * RATE * OVERSAMPLED)
    mono = np.concatenate([np.zeros(delay), stereo.mean(1)])[: OVERSAMPLED * LENGTH]
    note = resample_poly(mono, 1, OVERSAMPLED)
    note[-80:] *= np.linspace(1, 0, 80)  # 10 ms: it does not end in a click
    note *= 10 ** ((level + gain) / 20) / np.sqrt(np.square(note).mean())
    return (note * 32768).round().clip(-32768, 32767).astype(np.int16)


def render_all(font: Path) -> np.ndarray:
    """All notes, int16 [instrument, pitch, loudness, take, sample]."""
    shape = SHAPE[:-1]
    notes = np.zeros(SHAPE, np.int16)
    programs, levels, synth = list(INSTRUMENTS.values()), list(LOUDNESS), synthesizer(font)
    for place in each(np.ndindex(*shape), "rendering notes", "note", total=int(np.prod(shape))):
        i, p, k, _ = place
        seed = int(np.ravel_multi_index(place, shape))
        notes[place] = render(synth, programs[i], PITCHES[p], VELOCITY[levels[k]], LOUDNESS[levels[k]], seed)
    return notes


class Notes(Conditioned):
    """2,400 notes of 8 sampled instruments at 25 pitches and 3 loudnesses, 4 takes of each: 0.5 s at 8 kHz.

    Attributes: instrument; pitch, a MIDI number, and loudness, both ordered. A fifth of the (instrument, pitch) pairs is held out, so that
    samples can be asked for combinations that training never saw.
    """

    name = "notes"
    rate, length = RATE, LENGTH

    @property
    def attributes(self) -> Mapping[str, ConditionSpec]:
        return {
            "instrument": Label(tuple(INSTRUMENTS)),
            "pitch": Label(tuple(str(p) for p in PITCHES), levels=REGISTERS, quantity="pitch"),
            "loudness": Label(tuple(LOUDNESS), levels=tuple((name,) for name in LOUDNESS), quantity="loudness"),
        }

    @cached_property
    def _splits(self) -> tuple[Clips, Clips]:
        path = assets.cache() / "notes" / "notes-2.npy"
        if not path.exists():
            assets.save_array(path, render_all(sound_font()))
        try:
            notes = np.load(path)
            if notes.shape != SHAPE:
                raise ValueError(f"it holds {' x '.join(map(str, notes.shape))} numbers")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete it and it is rendered anew") from None
        places = np.stack(np.meshgrid(*(np.arange(n) for n in notes.shape[:-1]), indexing="ij"), -1).reshape(-1, 4)
        labels = {name: torch.from_numpy(places[:, k].copy()) for k, name in enumerate(self.attributes)}
        everything = self.clips(torch.from_numpy(notes.reshape(-1, LENGTH)).float() / 32768, labels)
        held = torch.tensor([held_out(i, p) for i, p, _, _ in places.tolist()])
        return everything.rows((~held).nonzero().flatten()), everything.rows(held.nonzero().flatten())

    def pinned(self) -> Mapping[str, Any]:
        return {}


def sound_font() -> Path:
    """TimGM6mb, a General MIDI sound font (GPL-2), from the wheel of pretty_midi."""
    return assets.wheel_file(
        "pretty_midi",
        "0.2.11.post0",
        "a3e2321736245a9c92259716d85a4762f16b7bde2f591fb0dba95bdb6e793d8a",
        "pretty_midi/TimGM6mb.sf2",
        "notes/TimGM6mb.sf2",
    )
