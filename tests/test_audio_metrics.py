"""What is measured of sounds, against closed forms and librosa; the judge that hears; sounds as files and pictures."""

import json
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn

from guidance import Condition, Label, UserError, Vector
from guidance.judge import TrainedJudge, train_judge
from modalities.audio.clips import Clips
from modalities.audio.files import write_sound
from modalities.audio.mel import Mel
from modalities.audio.metrics import AudioMetrics, Listener, augment, hertz, log_mel_distance, midi, pitch, stft_distance
from modalities.audio.render import INK, MELS, WAVE_HEIGHT, WIDTH, AudioRender

RATE = 8000
METRICS = AudioMetrics(RATE, {})


def sine(frequency: float | list[float], samples: int = 4096, amplitude: float = 0.5) -> Tensor:
    """A row a frequency."""
    phase = 2 * math.pi * torch.arange(samples, dtype=torch.float64) / RATE
    return (amplitude * torch.sin(torch.tensor(frequency, dtype=torch.float64).reshape(-1, 1) * phase)).float()


def noise(seed: int, *shape: int, deviation: float = 0.1) -> Tensor:
    return deviation * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Loudness, silence, clipping


def test_a_sine_is_as_loud_as_its_amplitude_says():
    amplitudes = torch.tensor([1.0, 0.5, 0.01, 1e-4])
    waves = torch.cat([sine(500, amplitude=float(a)) for a in amplitudes])  # whole periods
    measured = METRICS.measure(waves, Condition())
    assert set(measured) == {"loudness", "near_silent", "clipped"}
    torch.testing.assert_close(measured["loudness"], 20 * (amplitudes / math.sqrt(2)).log10(), atol=1e-3, rtol=0)
    assert measured["near_silent"].tolist() == [0, 0, 0, 1]
    assert METRICS.measure(torch.zeros(1, 100), Condition())["loudness"].item() == pytest.approx(-120)


def test_silence_begins_at_sixty_decibels_below_full_scale():
    levels = torch.tensor([-59.9, -60.1])
    square = torch.ones(2, 64) * 10 ** (levels[:, None] / 20)
    square[:, ::2] *= -1
    assert METRICS.measure(square, Condition())["near_silent"].tolist() == [0, 1]


def test_clipped_is_the_share_at_full_scale_on_either_side():
    waves = torch.tensor([[1.0, -1.0, 0.999, 0.0], [0.5, -0.5, 0.9999, -0.99], [1.0, 1.0, 1.0, -1.0], [0.0, 1.0, 0.0, 0.0]])
    assert METRICS.measure(waves, Condition())["clipped"].tolist() == [0.5, 0, 1, 0.25]


# Pitch

SCALE = Label(("55", "60", "69", "79"), quantity="pitch")


def test_notes_in_hertz():
    torch.testing.assert_close(hertz(torch.tensor([69.0, 57.0, 81.0, 60.0])), torch.tensor([440.0, 220.0, 880.0, 261.6256]))


@pytest.mark.parametrize("detuned", [-300, -60, -40, -10, 0, 10, 40, 60, 300])
def test_cents_are_how_far_from_the_note_that_was_asked_for(detuned: int):
    notes = torch.tensor([55.0, 60.0, 69.0])
    # The fundamental, and two overtones that are louder together.
    waves = sum(sine((k * hertz(notes + detuned / 100)).tolist(), amplitude=0.3 / k) for k in (1, 2, 3))
    condition = Condition({"pitch": torch.tensor([0, 1, 2])}, {"pitch": torch.ones(3, dtype=torch.bool)})
    measured = AudioMetrics(RATE, {"pitch": SCALE}).measure(waves, condition)
    torch.testing.assert_close(measured["cents"], torch.full((3,), float(abs(detuned))), atol=7, rtol=0)
    assert measured["in_tune"].tolist() == [float(abs(detuned) < 50)] * 3


def test_cents_are_for_those_that_were_asked_for_a_pitch():
    waves, values = sine([440.0, 440.0, 466.16]), {"pitch": torch.tensor([2, 0, 2])}
    some = AudioMetrics(RATE, {"pitch": SCALE}).measure(waves, Condition(values, {"pitch": torch.tensor([True, False, True])}))
    assert some["cents"][[0, 2]].tolist() == pytest.approx([0, 100], abs=7) and some["cents"].isnan().tolist() == [False, True, False]
    assert some["in_tune"][[0, 2]].tolist() == [1, 0] and bool(some["in_tune"][1].isnan())
    none = AudioMetrics(RATE, {"pitch": SCALE}).measure(waves, Condition(values, {"pitch": torch.zeros(3, dtype=torch.bool)}))
    other = AudioMetrics(RATE, {"pitch": Vector(1)}).measure(waves, Condition.of(pitch=torch.zeros(3, 1)))
    assert "cents" not in none and "cents" not in other
    assert some["pitch"].tolist() == none["pitch"].tolist() == pytest.approx([69, 69, 70], abs=0.07), "whatever was asked for"
    assert "in_tune" not in none and "pitch" not in other


def test_a_pitch_is_measured_where_the_attribute_says_that_it_is_one():
    wave = sine([440.0])
    named = AudioMetrics(RATE, {"pitch": Label(SCALE.classes)}).measure(wave, Condition.of(pitch=torch.tensor([2])))
    other = AudioMetrics(RATE, {"pitch": Label(SCALE.classes, quantity="loudness")}).measure(wave, Condition.of(pitch=torch.tensor([2])))
    assert set(named) == set(other) == {"loudness", "near_silent", "clipped"}
    unasked = AudioMetrics(RATE, {"pitch": SCALE}).measure(wave, Condition())
    assert set(unasked) == {"loudness", "near_silent", "clipped", "pitch"} and unasked["pitch"].item() == pytest.approx(69, abs=0.07)


def test_note_numbers_and_hertz_are_inverse_and_a_hundred_cents_each():
    notes = torch.tensor([21.0, 57.0, 60.5, 69.0, 108.0])
    torch.testing.assert_close(midi(hertz(notes)), notes)
    torch.testing.assert_close(midi(torch.tensor([440.0, 220.0, 261.6256])), torch.tensor([69.0, 57.0, 60.0]))


def test_every_measure_of_sounds_has_a_unit():
    metrics = AudioMetrics(RATE, {"pitch": SCALE, "mel": SPECTROGRAM})
    wave = noise(0, 2, 2048)
    found = metrics.measure(wave, Condition.of(pitch=torch.tensor([0, 1]), mel=SPECTROGRAM.of(wave)), wave)
    assert set(found) == set(metrics.units) and metrics.together(wave) == {} and all(metrics.units.values())
    assert all(value.shape == (2,) for value in found.values())


def test_a_pitch_is_that_of_most_of_a_clip():
    waves = sine([300.0, 500.0], 8000)
    waves[:, :2000] = noise(0, 2, 2000)
    torch.testing.assert_close(pitch(waves, RATE, 150, 900), torch.tensor([300.0, 500.0]), rtol=0.005, atol=0)


# Distances

SPECTROGRAM = Mel(RATE, 2048, mels=20, hop=128, window=512)


def test_a_distance_to_itself_is_nothing():
    wave = noise(0, 2, 2048)
    assert log_mel_distance(wave, wave, SPECTROGRAM).tolist() == stft_distance(wave, wave).tolist() == [0, 0]


@pytest.mark.parametrize("gain", [-12.0, -3.0, 6.0])
def test_a_gain_is_as_far_as_it_says(gain: float):
    """In every band of every frame alike: g dB. |(1 - k) B| / |B| = |1 - k|, and log k, at every resolution."""
    wave, k = noise(0, 3, 2048), 10 ** (gain / 20)
    assert SPECTROGRAM.of(wave).min() > 0.1 and SPECTROGRAM.of(2 * wave).max() < 0.95, "away from both ends of the range"
    torch.testing.assert_close(log_mel_distance(k * wave, wave, SPECTROGRAM), torch.full((3,), abs(gain)), atol=1e-3, rtol=0)
    torch.testing.assert_close(stft_distance(k * wave, wave), torch.full((3,), abs(1 - k) + abs(math.log(k))), atol=1e-3, rtol=0)


def test_distances_are_of_each_pair_alone_and_grow_with_what_is_added():
    wave, more = noise(0, 1, 2048), noise(1, 1, 2048)
    worse = torch.cat([wave + level * more for level in (0.0, 0.03, 0.1, 0.3, 1.0)])
    for distance in (partial(log_mel_distance, spectrogram=SPECTROGRAM), stft_distance):
        far = distance(worse, wave.expand(5, -1))
        assert far[0] == 0 and bool((far.diff() > 0).all()) and bool((far[2:] > 2 * far[1]).all())
        torch.testing.assert_close(distance(worse[3:4], wave)[0], far[3])
    squares = (SPECTROGRAM.of(worse[3:4]) - SPECTROGRAM.of(wave)).double().numpy() ** 2
    assert log_mel_distance(worse[3:4], wave, SPECTROGRAM).item() == pytest.approx(100 * np.sqrt(squares.mean()), rel=1e-4)


def test_the_spectral_distance_is_as_defined_over_three_resolutions():
    a, b = noise(0, 1, 2048), noise(1, 1, 2048, deviation=0.2)
    total = 0.0
    for size in (256, 512, 1024):
        one, two = (np.abs(librosa.stft(x[0].double().numpy(), n_fft=size, hop_length=size // 4, pad_mode="reflect")) for x in (a, b))
        total += np.sqrt(((two - one) ** 2).sum() / (two**2).sum()) + np.abs(np.log(two) - np.log(one)).mean()
    assert stft_distance(a, b).item() == pytest.approx(total / 3, rel=1e-4)
    assert stft_distance(b, a).item() != pytest.approx(total / 3, rel=1e-2), "the second is the original"


def test_distances_are_measured_where_all_were_given_a_spectrogram_and_the_original_is_known():
    metrics = AudioMetrics(RATE, {"kind": Label(("a", "b")), "mel": SPECTROGRAM})
    decoded, original = noise(0, 2, 2048), noise(1, 2, 2048)
    condition = Condition.of(kind=torch.tensor([0, 1]), mel=SPECTROGRAM.of(original))
    measured = metrics.measure(decoded, condition, original)
    assert torch.equal(measured["log_mel_distance"], log_mel_distance(decoded, original, SPECTROGRAM))
    assert torch.equal(measured["stft_distance"], stft_distance(decoded, original))
    partly = Condition(condition.values, condition.keep | {"mel": torch.tensor([True, False])})
    for given in (metrics.measure(decoded, condition), metrics.measure(decoded, partly, original)):
        assert set(given) == {"loudness", "near_silent", "clipped"}
    assert torch.equal(metrics.flat(decoded), decoded)


# Spectrograms


@pytest.mark.parametrize(
    ("rate", "mels", "hop", "window"), [(8000, 64, 128, 512), (22050, 80, 256, 1024), (16000, 40, 64, 1024), (8000, 20, 256, 256)], ids=str
)
def test_spectrograms_are_librosas(rate: int, mels: int, hop: int, window: int):
    wave = noise(0, 2, 16 * hop) * torch.linspace(0, 1, 16 * hop) ** 4  # from silence
    length = min(4 * hop, window)
    settings = {"n_fft": window, "hop_length": hop, "win_length": length, "n_mels": mels, "fmin": 20.0, "fmax": rate / 2, "htk": True}
    bands = librosa.feature.melspectrogram(y=wave.numpy(), sr=rate, norm=None, power=1.0, pad_mode="reflect", **settings)
    bands /= np.sqrt(np.square(librosa.filters.get_window("hann", length)).sum())
    expected = np.clip((20 * np.log10(np.maximum(bands[..., :16], 1e-10)) + 80) / 100, 0, 1)
    spectrogram = Mel(rate, 16 * hop, mels, hop, window)
    made = spectrogram.of(wave)
    assert made.shape == (2, mels, 16) == (2, mels, spectrogram.frames)
    np.testing.assert_allclose(made.numpy(), expected, atol=2e-4)
    assert made.min() == 0 and made.max() > 0.4, "both quiet and loud"
    assert bool((spectrogram.of(1e4 * wave) <= 1).all()) and spectrogram.absent().shape == (mels, 16)


def test_the_whole_spectrogram_as_one_vector():
    embedding = Mel(RATE, 512, mels=3, hop=128, window=256).embedding(5)
    mel = torch.randn(2, 3, 4)
    linear = next(m for m in embedding.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(embedding(mel), mel.reshape(2, 12) @ linear.weight.T + linear.bias)


# The judge


def tones(seed: int, n: int) -> Clips:
    """Two kinds: below 600 Hz and above 1,500, with noise; another attribute says nothing."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(n) % 2
    frequency = 300 + 250 * torch.rand(n, generator=generator) + 1300 * kind
    waves = sine(frequency.tolist(), 1000) + 0.02 * torch.randn(n, 1000, generator=generator)
    return Clips(waves, {"kind": kind, "other": torch.zeros(n, dtype=torch.long)})


@dataclass
class Tones:
    train: Clips = field(default_factory=lambda: tones(0, 60))
    test: Clips = field(default_factory=lambda: tones(1, 30))
    name: str = "tones"
    shape: tuple[int, ...] = (1000,)
    conditions: Any = field(default_factory=lambda: {"kind": Label(("low", "high")), "other": Label(("x",)), "place": Vector(2)})

    def pinned(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that needs less patience."""

    def few(*given: Any, **settings: Any) -> TrainedJudge:
        return train_judge(*given, **(settings | {"steps": 80, "batch": 16}))

    monkeypatch.setattr("modalities.audio.metrics.train_judge", few)
    monkeypatch.setattr("modalities.audio.metrics.Listener", partial(Listener, width=4))


def test_a_judge_hears_what_is_easily_told_apart(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = Tones()
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "a"))
    state = torch.get_rng_state()
    made = METRICS.judge(data, "kind")
    assert torch.equal(torch.get_rng_state(), state)
    features, logits = made(data.test.waves)
    assert made.accuracy == 1 and logits.argmax(1).tolist() == data.test.labels["kind"].tolist() and features.shape == (30, 64)
    torch.testing.assert_close(made(data.test.waves[7:8]), (features[7:8], logits[7:8]))  # one by one as all together
    assert made(tones(2, 20).waves * 0.1)[1].argmax(1).tolist() == [0, 1] * 10, "softer ones too"

    def says_the_same(other: Any) -> bool:
        return all(torch.equal(a, b) for a, b in zip(other(data.test.waves), (features, logits), strict=True))

    (facts,) = (tmp_path / "a" / "judges").glob("*.json")
    assert json.loads(facts.read_text()) == {"accuracy": 1.0, "attribute": "kind", "data": "tones"}
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "b"))
    torch.manual_seed(99)
    assert says_the_same(METRICS.judge(data, "kind")), "trained again"
    monkeypatch.setattr(torch.optim, "AdamW", None)  # not trained
    cached = METRICS.judge(data, "kind")
    assert says_the_same(cached) and cached.accuracy == 1


def test_what_has_no_classes_is_not_judged(quick: None):
    with pytest.raises(UserError, match="'place' has no classes"):
        METRICS.judge(Tones(), "place")


@pytest.mark.parametrize(("rate", "samples"), [(8000, 512), (16000, 16000), (8000, 64), (22050, 3000)])
def test_listeners_hear_clips_of_any_length(quick: None, rate: int, samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path))
    monkeypatch.setattr("modalities.audio.metrics.train_judge", lambda network, *_, **__: network.eval())
    listener = AudioMetrics(rate, {}).judge(Tones(shape=(samples,)), "kind")
    waves = noise(0, 3, samples)
    (features, logits), (alone, _) = listener(waves), listener(waves[1:2])
    assert logits.shape == (3, 2) and features.isfinite().all()
    torch.testing.assert_close(alone[0], features[1])


def test_augmentation_moves_scales_and_adds_noise_within_bounds():
    waves, generator = noise(0, 4, 8000), torch.Generator().manual_seed(0)
    assert torch.equal(augment(waves, torch.Generator().manual_seed(5)), augment(waves, torch.Generator().manual_seed(5)))
    shifts, gains, ratios = [], [], []
    for _ in range(60):
        made = augment(waves, generator)
        # The shift is where the cross-correlation peaks; the gain is the projection; what is left is the noise.
        together = torch.fft.irfft(torch.fft.rfft(made) * torch.fft.rfft(waves).conj()).sum(0)
        shift = int(together.argmax())
        moved = waves.roll(shift, 1)
        gain = (made * moved).sum(1) / moved.square().sum(1)
        left = made / gain[:, None] - moved
        shifts.append(shift if shift < 4000 else shift - 8000)
        gains += (20 * gain.log10()).tolist()
        ratios += (10 * (waves.square().mean(1) / left.square().mean(1)).log10()).tolist()
    assert -160 <= min(shifts) < -100 and 100 < max(shifts) <= 160
    assert -6.1 < min(gains) < -5 and 5 < max(gains) < 6.1
    assert 9.5 < min(ratios) < 14 and 46 < max(ratios) < 51
    assert torch.equal(augment(torch.zeros(2, 400), generator), torch.zeros(2, 400)), "silence stays silence"


# Files and pictures


def test_sounds_are_read_back_to_the_bit(tmp_path: Path):
    samples = torch.randint(-32768, 32768, (2, 500), generator=torch.Generator().manual_seed(0))
    paths = AudioRender(22050).save(samples / 32768, tmp_path, ["one", "two"])
    assert [path.name for path in paths] == ["one.wav", "two.wav"]
    for path, expected in zip(paths, samples, strict=True):
        read, rate = soundfile.read(path, dtype="int16")
        assert rate == 22050 and soundfile.info(path).subtype == "PCM_16" and read.tolist() == expected.tolist()


def test_flac_loses_nothing_and_ogg_little(tmp_path: Path):
    wave = (torch.cat([sine(440.0), sine(1000.0)]) * 32768).round() / 32768
    render = AudioRender(RATE)
    assert render.formats[0] == "wav"
    for path, expected in zip(render.save(wave, tmp_path, ["one", "two"], "flac"), wave, strict=True):
        read, rate = soundfile.read(path, dtype="int16")
        assert path.suffix == ".flac" and soundfile.info(path).format == "FLAC" and rate == RATE
        assert read.tolist() == (expected * 32768).int().tolist()
    for path, expected in zip(render.save(wave, tmp_path, ["one", "two"], "ogg"), wave, strict=True):
        read, rate = soundfile.read(path, dtype="float32")
        assert path.suffix == ".ogg" and soundfile.info(path).format == "OGG" and (rate, len(read)) == (RATE, len(expected))
        error = np.sqrt(np.mean((read - expected.numpy()) ** 2))
        assert error < 0.05 * float(expected.square().mean().sqrt())


def test_samples_between_two_values_are_rounded_and_full_scale_stays_full(tmp_path: Path):
    steps = torch.tensor([0.4, 0.6, -0.4, -0.6, 1000.7, -1000.7, 32767.9, 32768, -32768])
    read, _ = soundfile.read(write_sound(tmp_path / "x.wav", steps / 32768, RATE), dtype="int16")
    assert read.tolist() == [0, 1, 0, -1, 1001, -1001, 32767, 32767, -32768]


def parts(waves: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where there is ink [n, h, w], and the spectrogram as shares of its range, the lowest band first [n, mels, w]."""
    pictures = AudioRender(RATE).pictures(waves).permute(0, 2, 3, 1).numpy()
    assert pictures.shape[1:] == (WAVE_HEIGHT + MELS, WIDTH, 3)
    colours = colormaps["magma"](np.arange(256), bytes=True)[:, :3].astype(int)
    below = pictures[:, WAVE_HEIGHT:].astype(int)
    values = np.abs(below[..., None, :] - colours).sum(-1)
    assert (values.min(-1) == 0).all(), "all are colours of the scale"
    return (pictures[:, :WAVE_HEIGHT] == INK).all(-1), values.argmin(-1)[:, ::-1] / 255


@pytest.mark.parametrize("frequency", [200, 500, 1000, 2000, 3500])
def test_a_sine_is_seen_where_its_frequency_is(frequency: int):
    _, mels = parts(sine(frequency, 4096))
    centres = librosa.mel_frequencies(MELS + 2, fmin=20, fmax=RATE / 2, htk=True)[1:-1]
    rows = np.median(mels[0].argmax(0)[8:-8])
    assert abs(rows - np.abs(centres - frequency).argmin()) <= 1


def test_louder_is_brighter_and_by_as_much_as_it_is_louder():
    _, mels = parts(torch.cat([sine(1000, 4096, amplitude=a) for a in (0.05, 0.1, 0.2)]))
    row = int(mels[0, :, 64].argmax())
    assert mels[:, row, 64].tolist() == pytest.approx([mels[0, row, 64] + k * 6.0206 / 100 for k in range(3)], abs=1.01 / 255)
    assert parts(torch.zeros(1, 4096))[1].max() == 0


def test_waveforms_share_a_scale_and_silence_is_a_line():
    waves = torch.zeros(3, 1000)
    waves[0, ::2], waves[0, 1::2] = 0.8, -0.8
    waves[1, :500] = 0.4
    ink, _ = parts(waves)
    assert ink.shape == (3, WAVE_HEIGHT, WIDTH)
    shown = 1000 * WIDTH // 1024  # the rest fills the last column
    assert ink[0, :, : shown - 1].all(), "the loudest fills the height"
    heights = ink[1, :, : WIDTH * 500 // 1024 - 1].any(1).nonzero()[0]
    assert abs(heights.mean() - (WAVE_HEIGHT - 1) / 4) <= 0.5 and len(heights) <= 2, "half as high, above the middle"
    for quiet in (ink[2], ink[1][:, WIDTH * 500 // 1024 + 2 :]):
        rows = quiet.any(1).nonzero()[0]
        assert quiet.any(0).all() and set(rows) <= {WAVE_HEIGHT // 2 - 1, WAVE_HEIGHT // 2}


@pytest.mark.parametrize("samples", [16, 100, 128, 300, 512])
def test_short_sounds_have_pictures_too(samples: int):
    ink, mels = parts(torch.cat([sine(1000, samples), torch.zeros(1, samples)]))
    assert ink.any() and mels[0].max() > 0.3 and mels[1].max() == 0


def test_tables_and_animations_show_the_pictures(tmp_path: Path):
    render, waves = AudioRender(RATE), sine([300.0, 600.0, 1200.0, 2400.0], 2048)
    sheet = np.asarray(Image.open(render.table(waves, tmp_path / "t.png", ["a", "b"], ["low", "high"])))
    corners = []
    for picture in render.pictures(waves).permute(0, 2, 3, 1).numpy():
        # Where the top left part of it is found, the rest of it is.
        windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)[:, :, 0]
        first = (windows[..., WAVE_HEIGHT:, 64, :] == picture[WAVE_HEIGHT:, 64]).all((2, 3))
        at = [tuple(place) for place in np.argwhere(first) if (windows[tuple(place)] == picture).all()]
        assert len(at) == 1
        corners += at
    (a, b, c, d) = corners
    assert a[0] == b[0] < c[0] == d[0] and a[1] == c[1] < b[1] == d[1]
    gif = Image.open(render.animate([waves, waves / 2, waves / 4], tmp_path / "x.gif"))
    assert gif.n_frames == 3
    many = Image.open(render.animate([waves.repeat(5, 1)] * 2, tmp_path / "y.gif"))
    assert many.size[0] < 5 * WIDTH, "at most sixteen of them, four in a row"
