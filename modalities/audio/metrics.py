"""How sounds are measured: a judge that hears log-mel spectrograms; pitch, loudness and distances to a recording, which need none."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.condition import Condition, ConditionSpec, Label
from guidance.judge import TrainedJudge, classes, judge_training, seeded, train_judge
from guidance.modality import Data, Judge, SideTraining
from modalities.audio.mel import Mel

NEAR_SILENCE = -60.0  # dB of full scale, root mean square
IN_TUNE = 50.0  # cents
FFTS = (256, 512, 1024)
LENGTH: Mapping[str, int] = {"steps": 320, "batch": 64}  # of a judge's training


class Listener(nn.Module):
    """Log-mel spectrogram, four convolutions, halving between them, then 64 features and the logits."""

    def __init__(self, spectrogram: Mel, classes: int, width: int = 32, features: int = 64):
        super().__init__()
        self.spectrogram = spectrogram

        def block(inputs: int, outputs: int, pool: bool = True) -> list[nn.Module]:
            made: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            return [*made, nn.MaxPool2d(2, ceil_mode=True)] if pool else made

        self.body = nn.Sequential(
            *block(1, width),
            *block(width, 2 * width),
            *block(2 * width, 2 * width),
            *block(2 * width, 2 * width, pool=False),
            *(nn.AdaptiveAvgPool2d((8, 4)), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * width, features), nn.ReLU()),
        )
        self.head = nn.Linear(features, classes)

    def forward(self, wave: Float[Tensor, "b samples"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b classes"]]:
        wave = nn.functional.pad(wave, (0, max(0, self.spectrogram.length - wave.shape[-1])))  # its last frame filled with silence
        with torch.autocast(wave.device.type, enabled=False):  # 16 bits are too few to add up power in
            mel = self.spectrogram.of(wave.float())[:, None]
        features = self.body(mel)
        return features, self.head(features)


def augment(wave: Float[Tensor, "b samples"], generator: torch.Generator) -> Float[Tensor, "b samples"]:
    """Moved by up to 20 ms at 8 kHz, louder or softer by up to 6 dB, with white noise 10 to 50 dB below the clip, so that a judge
    hears what sounds and not the silence between."""
    u = torch.rand(2, len(wave), 1, generator=generator)
    shift = int(torch.randint(-160, 161, (1,), generator=generator))
    level = wave.square().mean(1, keepdim=True).sqrt()
    noise = torch.randn(wave.shape, generator=generator) * level * 10 ** (-(10 + 40 * u[0]) / 20)
    return (wave.roll(shift, 1) + noise) * 10 ** ((12 * u[1] - 6) / 20)


def pitch(wave: Float[Tensor, "n samples"], rate: int, low: float, high: float) -> Float[Tensor, "n"]:
    """The fundamental in Hz by YIN (de Cheveigne & Kawahara 2002): the median over the clip, without its ends."""
    import librosa

    window = 2 ** int(np.ceil(np.log2(4 * rate / low)))
    found = librosa.yin(wave.numpy(), fmin=low, fmax=high, sr=rate, frame_length=window, hop_length=window // 4)
    inner = found[..., 2:-2] if found.shape[-1] > 6 else found
    return torch.from_numpy(np.median(inner, axis=-1)).float()


def hertz(note: Tensor) -> Tensor:
    """Of a MIDI note number; A4 = 69 is 440 Hz."""
    return 440 * 2 ** ((note - 69) / 12)


def midi(frequency: Tensor) -> Tensor:
    """The MIDI note number, a fraction, of a frequency in Hz."""
    return 69 + 12 * (frequency / 440).log2()


def log_mel_distance(a: Float[Tensor, "n samples"], b: Float[Tensor, "n samples"], spectrogram: Mel) -> Float[Tensor, "n"]:
    """The root mean square difference of two log-mel spectrograms, in dB."""
    return 100 * (spectrogram.of(a) - spectrogram.of(b)).square().mean((1, 2)).sqrt()


def stft_distance(a: Float[Tensor, "n samples"], b: Float[Tensor, "n samples"]) -> Float[Tensor, "n"]:
    """The mean over several resolutions of spectral convergence, |B - A|_F / |B|_F, plus the mean |log B - log A| of the magnitudes
    (Yamamoto et al., 1910.11480); b is the original."""
    total = torch.zeros(len(a))
    for size in FFTS:
        window = torch.hann_window(size)
        one, two = (torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-5) for x in (a, b))
        convergence = (two - one).flatten(1).norm(dim=1) / two.flatten(1).norm(dim=1)
        total += convergence + (two.log() - one.log()).abs().mean((1, 2))
    return total / len(FFTS)


class AudioMetrics:
    """Judges; loudness, silence, clipping; pitch, where the data has the attribute; distances, where a mel spectrogram was given."""

    def __init__(self, rate: int, conditions: Mapping[str, ConditionSpec]):
        self.rate, self.conditions = rate, conditions

    @property
    def units(self) -> Mapping[str, str]:
        return {
            "loudness": "dB of full scale",
            "near_silent": f"share below {NEAR_SILENCE:g} dB of full scale",
            "clipped": "share of the samples of a clip at full scale",
            "pitch": "MIDI number: 100 cents each",
            "cents": "error in pitch, cents",
            "in_tune": f"share within {IN_TUNE:g} cents of the pitch asked for",
            "log_mel_distance": "dB",
            "stft_distance": "spectral convergence and log magnitude",
        }

    def together(self, decoded: Float[Tensor, "n samples"]) -> Mapping[str, float]:
        return {}

    def judge(self, data: Data, attribute: str) -> Judge:
        network = self.listener(data, attribute)
        judge: TrainedJudge = train_judge(network, data, attribute, lambda wave: wave, augment, version="audio-3", **LENGTH)
        return judge

    def judge_training(self, data: Data, attribute: str) -> SideTraining:
        listener = self.listener(data, attribute)
        listener(torch.zeros(1, *data.shape))  # its filters are made on first use, of numbers
        return judge_training(listener, lambda n: torch.zeros(n, *data.shape), **LENGTH)

    def listener(self, data: Data, attribute: str) -> nn.Module:
        """Untrained."""
        count = len(classes(data, attribute))
        hop = 2 ** round(np.log2(self.rate / 62.5))  # about 16 ms: 128 samples at 8 kHz
        length = -(-data.shape[0] // hop) * hop
        return seeded(lambda: Listener(Mel(self.rate, length, 64, hop, 4 * hop), count))

    def measure(
        self, decoded: Float[Tensor, "n samples"], condition: Condition, original: Float[Tensor, "n samples"] | None = None
    ) -> Mapping[str, Float[Tensor, "n"]]:
        """See ``units``. Where the data has an attribute pitch whose quantity that is: pitch, by YIN; and where one is asked for: cents,
        the size of the error; in_tune. With a mel spectrogram asked for, and the original: log_mel_distance, stft_distance."""
        loudness = 10 * decoded.square().mean(1).clamp(min=1e-12).log10()
        found = {
            "loudness": loudness,
            "near_silent": (loudness < NEAR_SILENCE).float(),
            "clipped": (decoded.abs() >= 1).float().mean(1),
        }
        spec = self.conditions.get("pitch")
        if isinstance(spec, Label) and spec.quantity == "pitch":
            notes = torch.tensor([float(name) for name in spec.classes])
            low, high = hertz(notes.min() - 5).item(), hertz(notes.max() + 5).item()
            found["pitch"] = midi(pitch(decoded, self.rate, low, high))
            if "pitch" in condition.keep and bool(condition.keep["pitch"].any()):
                there = condition.keep["pitch"].cpu()
                cents = 100 * (found["pitch"] - notes[condition.values["pitch"].cpu()]).abs()
                found["cents"] = torch.where(there, cents, torch.nan)
                found["in_tune"] = torch.where(there, (cents < IN_TUNE).float(), torch.nan)
        for name, spec in self.conditions.items():
            if isinstance(spec, Mel) and original is not None and bool(condition.keep[name].all()):
                found["log_mel_distance"] = log_mel_distance(decoded, original, spec)
                found["stft_distance"] = stft_distance(decoded, original)
        return found

    def flat(self, decoded: Float[Tensor, "n samples"]) -> Float[Tensor, "n size"]:
        """Waveforms themselves: a copy has the phases too."""
        return decoded
