"""The command line with sounds, from end to end, against the same in Python; what cannot be used is said in one line."""

import csv
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from runs import snapshot
from torch import Tensor

import guidance
from guidance import CFG, checkpoint
from guidance.cli import run
from guidance.judge import TrainedJudge, train_judge
from guidance.previews import class_columns
from guidance.split import pick
from modalities.audio.files import fit_length, read_audio
from modalities.audio.mel import Mel
from modalities.audio.metrics import Listener, log_mel_distance, stft_distance

RATE, LENGTH, HOP = 8000, 2048, 256
# A rate at which a few steps are enough for conditions to matter.
TINY = ["modality=audio", "network.channels=8", "network.layers=2", "trainer.batch_size=4", "trainer.steps=3", "threads=1"]
TINY += ["trainer.lr=0.03", "trainer.warmup=0", "trainer.average=0", "trainer.decay=constant"]
TONES = ["data=audio_folder", "data.root=tones", f"data.rate={RATE}", f"data.length={LENGTH}"]
TONES += [f"data.mel={{mels:16,hop:{HOP},window:512}}"]


def tone(path: Path, frequency: float, samples: int = LENGTH, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate), rate)


def tones(root: Path, names: tuple[str, ...] = ("high", "low"), n: int = 5) -> None:
    for c, name in enumerate(names):
        for k in range(n):
            tone(root / name / f"{k}.wav", 1000 - 700 * c + 30 * k)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with sounds, and a run of each kind of condition."""
    folder = tmp_path_factory.mktemp("place")

    def few(*given: Any, **settings: Any) -> TrainedJudge:
        return train_judge(*given, **(settings | {"steps": 10, "batch": 8}))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        patch.delenv("POLYGUIDE_DATA", raising=False)
        patch.setattr("modalities.audio.metrics.train_judge", few)
        patch.setattr("modalities.audio.metrics.Listener", partial(Listener, width=4))
        # Hydra composes a config twice, the first time to see whether it says hydra.mode=MULTIRUN. None of these does.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        tones(folder / "tones")
        for condition in ("classes", "mel", "both", "none"):
            assert run(["train", *TINY, *TONES, f"data.condition={condition}", f"out={condition}"]) == 0
        assert run(["sample", "run=classes", "out=held", "n=2", "sampler.steps=1"]) == 0
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def out(place: Path) -> Iterator[Path]:
    yield place / "out"
    shutil.rmtree(place / "out", ignore_errors=True)


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which has to be refused, and gives the line."""

    def command(*arguments: str) -> str:
        before = snapshot(place)
        capsys.readouterr()
        code = run(list(arguments))
        said = capsys.readouterr()
        assert code == 2 and said.out == ""
        assert said.err.startswith("polyguide: ") and said.err.endswith("\n") and said.err.count("\n") == 1, said.err
        assert snapshot(place) == before, "nothing is written, overwritten or removed"
        return said.err

    return command


def sounds(folder: Path) -> Tensor:
    """The samples in a folder, in the order of their names, all at the model's rate."""
    read = [soundfile.read(path) for path in sorted(folder.glob("*.wav"))]
    assert {rate for _, rate in read} == {RATE}
    return torch.from_numpy(np.stack([wave for wave, _ in read]))


def sample(name: str, *more: str) -> None:
    assert run(["sample", f"run={name}", "out=out", "sampler.steps=3", "threads=1", *more]) == 0


def same(made: Tensor, expected: Tensor) -> bool:
    """But for rounding to 16 bits."""
    return made.shape == expected.shape and bool((made - expected).abs().max() <= 0.51 / 32768 + 1e-6)


# Samples


def test_samples_are_wav_files_of_the_same_call_in_python(place: Path, out: Path):
    sample("classes", "n=5", "condition.label=[low,high,low,high,null]", "guidance.scale=2.5", "seed=7", "animate=true")
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{k:06d}.wav" for k in range(5)),
        *("denoising.gif", "grid.png", "index.html", "samples.json", "samples.jsonl"),
    ]
    made, model = sounds(out), guidance.load("classes")
    labels = ["low", "high", "low", "high", None]
    assert made.shape == (5, LENGTH) and same(made, model.sample(5, {"label": labels}, guidance=CFG(2.5), steps=3, seed=7))
    plain = model.sample(5, {"label": labels}, steps=3, seed=7)
    assert [bool((row > 1e-3).any()) for row in (made - plain).abs()] == [True] * 4 + [False], "guidance matters where there is a label"
    assert json.loads((out / "samples.json").read_text())["network_evaluations_per_sample_and_step"] == 9 / 5
    assert Image.open(out / "denoising.gif").n_frames == 3 and Image.open(out / "grid.png").size[0] > 5 * 128


def test_a_page_lists_every_sample_with_what_it_was_asked_for(place: Path, out: Path):
    sample("classes", "n=3", "condition.label=[low,null,high]", "batch_size=2")
    page = (out / "index.html").read_text()
    figures = re.findall(r"<figure>(.*?)<figcaption>(.*?)</figcaption></figure>", page)
    assert [re.findall(r'<audio [^>]*src="([^"]+)"', shown) for shown, _ in figures] == [[f"{k:06d}.wav"] for k in range(3)]
    assert [caption for _, caption in figures] == ["label=low", "label=None", "label=high"]
    assert all((out / f"{k:06d}.wav").is_file() for k in range(3)) and "3 samples of classes" in page
    sample("none", "n=1", "overwrite=true")
    assert (out / "index.html").read_text().count("<figure>") == len(list(out.glob("*.wav"))) == 1


def test_a_page_shows_names_as_they_are(place: Path, out: Path):
    name = '<b>"größe" & 音'
    tones(place / "odd", ("low", name.replace("/", "")))
    settings = [*TONES, "data.root=odd", "out=odd_run"]
    assert run(["train", *TINY, *settings]) == 0
    sample("odd_run", "n=1", f"condition.label='{name}'")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert f"<figcaption>{html.escape(f'label={name}')}</figcaption>" in page and name not in page
    assert same(sounds(out), guidance.load("odd_run").sample(1, {"label": name}, steps=3))


@pytest.mark.parametrize(("samples", "rate"), [(100, 8000), (2048, 8000), (3000, 8000), (6000, 16000)])
def test_a_vocoders_clips_are_as_long_as_the_file_that_was_given(place: Path, out: Path, samples: int, rate: int):
    tone(place / "clip.wav", 500, samples, rate)
    sample("mel", "n=2", "condition.mel=clip.wav", "guidance.scale=3", "seed=2")
    wave = read_audio(place / "clip.wav", RATE)
    frames = -(-len(wave) // HOP)
    assert len(wave) == samples * RATE // rate and sounds(out).shape == (2, frames * HOP)
    mel = Mel(RATE, LENGTH, 16, HOP, 512).of(fit_length(wave, max(frames * HOP, 257))[None])[0, :, :frames].tolist()
    model = guidance.load("mel")
    assert same(sounds(out), model.sample(2, {"mel": mel}, guidance=CFG(3.0), steps=3, seed=2))
    assert (sounds(out) - model.sample(2, {"mel": mel}, steps=3, seed=2)).abs().max() > 1e-3, "guidance matters"
    nothing = np.zeros_like(mel).tolist()
    assert (sounds(out) - model.sample(2, {"mel": nothing}, guidance=CFG(3.0), steps=3, seed=2)).abs().max() > 1e-3, "and what was given"


def test_a_vocoder_takes_a_list_of_files_and_none(place: Path, out: Path, refused: Any):
    listed = "condition.mel=[tones/low/0.wav,null,tones/high/1.wav]"
    sample("mel", "n=3", listed)
    paths = ["tones/low/0.wav", None, "tones/high/1.wav"]
    assert same(sounds(out), guidance.load("mel").sample(3, {"mel": paths}, steps=3)) and sounds(out).shape == (3, LENGTH)
    tone(place / "longer.wav", 500, 3000)
    said = refused("sample", "run=mel", "out=held", "overwrite=true", "n=2", "condition.mel=[tones/low/0.wav,longer.wav]")
    assert "condition.mel: values of different sizes" in said and "one at a time" in said


def test_a_vocoder_with_classes_takes_both(place: Path, out: Path):
    tone(place / "clip.wav", 500, 3000)
    sample("both", "n=2", "condition.mel=clip.wav", "condition.label=low", "guidance.scale=0.5")
    expected = guidance.load("both").sample(2, {"mel": "clip.wav", "label": "low"}, guidance=CFG(0.5), steps=3)
    assert same(sounds(out), expected) and expected.shape == (2, 3072)


def test_in_python_a_spectrogram_may_be_a_tensor(place: Path):
    model = guidance.load("mel")
    mel = model.modality.conditions["mel"].parse("tones/low/1.wav")
    assert torch.equal(model.sample(3, {"mel": mel}, steps=1), model.sample(3, {"mel": mel.tolist()}, steps=1))


def test_a_composition_of_a_file_is_as_long_as_the_file(place: Path, out: Path):
    tone(place / "clip.wav", 500, 3000)
    sample("mel", "n=1", "guidance=compose", "guidance.terms=\"2*on(mel='clip.wav')\"")
    assert same(sounds(out), guidance.load("mel").sample(1, {"mel": "clip.wav"}, guidance=CFG(2.0), steps=3))


def test_a_composition_of_sounds_as_long_as_the_models(place: Path, out: Path):
    sample("mel", "n=1", "guidance=compose", "guidance.terms=\"2*on(mel='tones/low/1.wav')\"")
    assert same(sounds(out), guidance.load("mel").sample(1, {"mel": "tones/low/1.wav"}, guidance=CFG(2.0), steps=3))


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        (["codec=waveform", "network.patch=16"], 16),
        (["codec=waveform", "network=diffwave_base", "network.channels=8", "network.layers=2", "data.condition=mel"], 1),
        (["codec=waveform", "network=diffwave_large", "network.channels=8", "network.layers=2", "schedule=ddpm"], 1),
        (["modality.codec.bins=64", "modality.codec.power=1"], 1),
    ],
    ids=str,
)
def test_other_codecs_and_networks(place: Path, out: Path, settings: list[str], patch: int):
    assert run(["train", *TINY, *TONES, *settings, "out=other", "overwrite=true"]) == 0
    model = guidance.load("other")
    assert model.modality.network.patch == patch and model.modality.shape == (
        (64, LENGTH // 64) if patch == 1 and len(settings) == 2 else (LENGTH,)
    )
    condition = {"mel": "tones/low/1.wav"} if "data.condition=mel" in settings else {"label": "low"}
    (asked,) = (f"condition.{name}={value}" for name, value in condition.items())
    sample("other", "n=2", asked, "guidance.scale=2")
    assert same(sounds(out), model.sample(2, condition, guidance=CFG(2.0), steps=3)) and sounds(out).shape == (2, LENGTH)
    scale = torch.cat([model.modality.data.train.__getitems__([k])[0] for k in range(8)]).square().mean().sqrt()
    assert "codec=waveform" not in settings or model.modality.codec.scale.item() == pytest.approx(scale.item(), rel=1e-5)


# Runs


def test_a_run_needs_no_sounds_to_be_sampled(place: Path, out: Path, refused: Any):
    tones(place / "lent", ("soft", "harsh"))
    assert run(["train", *TINY, *TONES, "data.root=lent", "data.attribute=timbre", "out=lent_run"]) == 0
    assert yaml.safe_load(Path("lent_run/config.yaml").read_text())["data"]["classes"] == {"timbre": ["harsh", "soft"]}
    sample("lent_run", "n=1", "condition.timbre=soft")
    before = sounds(out)
    (place / "lent").rename(place / "gone")
    sample("lent_run", "n=1", "condition.timbre=soft", "overwrite=true")
    assert torch.equal(sounds(out), before)
    assert "data.root=lent: there is no such folder" in refused("evaluate", "run=lent_run", "n=2", "scales=[1]", "sampler.steps=1")


def test_resuming_goes_on_and_keeps_the_numbers_of_classes(place: Path):
    tones(place / "growing")
    settings = [*TINY, *TONES, "data.root=growing", "data.condition=both"]
    for folder, steps in (("whole", 5), ("parts", 2)):
        assert run(["train", *settings, f"trainer.steps={steps}", f"out={folder}"]) == 0
    tones(place / "growing", ("extra",))  # the first in order: without the stored names all others would move
    assert run(["train", *settings, "trainer.steps=5", "out=parts", "resume=true"]) == 0
    one, other = ((checkpoint.latest(Path(folder)) / "model.safetensors").read_bytes() for folder in ("whole", "parts"))
    assert one == other


def test_previews_of_a_vocoder_are_of_held_out_sounds(place: Path):
    assert run(["train", *TINY, *TONES, "data.condition=mel", "trainer.sample_every=2", "out=previewed"]) == 0
    (path,) = Path("previewed/previews").iterdir()
    assert path.name == "step-00000002.png" and 8 * 128 < Image.open(path).size[0] < 9 * 128
    one, other = ((checkpoint.latest(Path(folder)) / "model.safetensors").read_bytes() for folder in ("mel", "previewed"))
    assert one == other, "they change nothing"


def test_broken_files_are_left_out_when_asked_to(place: Path, capsys: pytest.CaptureFixture[str]):
    tones(place / "worn")
    (place / "worn" / "low" / "2.wav").write_text("no sound")
    assert run(["train", *TINY, *TONES, "data.root=worn", "data.skip_broken=true", "out=worn_run"]) == 0
    said = capsys.readouterr()
    assert "skipped worn/low/2.wav" in said.err and "on 7 samples of worn" in said.out


# Evaluations


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def evaluate(name: str, *more: str) -> list[dict[str, str]]:
    assert run(["evaluate", f"run={name}", "out=out", "n=3", "sampler.steps=2", "threads=1", *more]) == 0
    assert {path.name for path in Path("out").iterdir()} == {"metrics.csv", "curves.png", "table.png", "evaluation.json"}
    return rows(Path("out"))


@pytest.mark.parametrize("given", ["train", "test"])
def test_a_vocoder_is_measured_against_what_it_was_given(place: Path, out: Path, given: str):
    real, *measured = evaluate("mel", f"given={given}", "scales=[0,1,2]", "seed=3")
    model = guidance.load("mel")
    split = getattr(model.modality.data, given)
    original, condition = split.__getitems__(pick(len(split), 3))
    spec = model.modality.conditions["mel"]
    for row, scale in zip(measured, (0.0, 1.0, 2.0), strict=True):
        made = model.sample(3, condition, guidance=CFG(scale), steps=2, seed=3)
        assert float(row["log_mel_distance"]) == pytest.approx(log_mel_distance(made, original, spec).mean().item(), abs=1e-2)
        assert float(row["stft_distance"]) == pytest.approx(stft_distance(made, original).mean().item(), rel=1e-3)
        assert float(row["loudness"]) == pytest.approx(10 * made.square().mean(1).log10().mean().item(), abs=1e-2)
        assert float(row["log_mel_distance"]) > 1
    assert float(real["log_mel_distance"]) < 0.05 and "accuracy" not in real and real["n"] == "2"
    assert json.loads((out / "evaluation.json").read_text())["judge_accuracy"] is None
    width, height = Image.open(out / "table.png").size
    assert 8 * 128 < width < 9 * 128 and 4 * 100 < height < 5 * 100, "eight held-out conditions at three scales, and real"
    shown = class_columns(model)
    _, of = model.modality.data.test.__getitems__(list(shown.real.index))
    assert torch.equal(of.values["mel"], shown.condition.values["mel"]), "which is the recordings themselves"


def test_what_is_given_by_classes_and_sound_is_judged_by_both(place: Path, out: Path):
    _, row = evaluate("both", "given=test", "scales=[1]")
    model = guidance.load("both")
    _, condition = model.modality.data.test.__getitems__(pick(2, 3))
    made = model.sample(3, condition, steps=2)
    hits = model.modality.metrics.judge(model.modality.data, "label")(made)[1].argmax(1) == condition.values["label"]
    assert float(row["accuracy"]) == pytest.approx(hits.float().mean().item(), abs=1e-4) and float(row["log_mel_distance"]) > 1


def test_what_is_given_by_classes_alone_is_measured_without_what_needs_more(place: Path, out: Path):
    real, row = evaluate("both", "scales=[1]")
    assert row["log_mel_distance"] == "" and 0 <= float(row["accuracy"]) <= 1 and float(real["accuracy"]) >= 0


def test_an_unconditional_model_is_measured(place: Path, out: Path):
    real, row = evaluate("none", "given=test", "scales=[1]")
    measured = [f"{name}{end}" for name in ("copies", "loudness", "near_silent", "clipped") for end in ("", "_low", "_high")]
    assert list(real) == ["scale", "n", *measured, "evaluations"]
    made = guidance.load("none").sample(3, steps=2)
    assert float(row["loudness"]) == pytest.approx(10 * made.square().mean(1).log10().mean().item(), abs=1e-2)
    assert float(real["loudness"]) == pytest.approx(20 * np.log10(0.3 / np.sqrt(2)), abs=0.1)


# What cannot be used


def refusals(*rows: tuple[str, ...]) -> Any:
    """(settings, what the line has to contain, ...)"""
    return pytest.mark.parametrize(("settings", "words"), [(row[0].split(), row[1:]) for row in rows], ids=[row[0] for row in rows])


@refusals(
    ("given=tests", "'tests'", "did you mean 'test'?", "alone, train, test"),
    ("given=alone", "no attribute with classes", "given=test"),
    ("attribute=label given=test", "no attribute with classes"),
)
def test_evaluations(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused("evaluate", "run=mel", "out=held", "n=2", "sampler.steps=1", "scales=[1]", *settings)
    assert all(word in said for word in words), said


@refusals(
    ("condition.mel=nowhere.wav", "condition.mel", "nowhere.wav: there is no such sound file"),
    ("condition.mel=classes/config.yaml", "condition.mel", "config.yaml is not a sound file that can be read"),
    ("condition.mel=3", "condition.mel", "16 bands x frames", "one number"),
    ("condition.mel=[[1,2],[3,4]]", "condition.mel", "16 bands x frames"),
    ("condition.mel=[tones/low/0.wav,nowhere.wav]", "condition.mel", "nowhere.wav"),
    ("condition.mel=[tones/low/0.wav]", "condition.mel", "n=2", "1 values"),
    ("condition.label=low", "'label'", "mel"),
)
def test_samples(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused("sample", "run=mel", "out=held", "overwrite=true", "n=2", "sampler.steps=1", *settings)
    assert all(word in said for word in words), said


@refusals(
    ("data.root=nowhere", "data.root=nowhere: there is no such folder"),
    ("data.root=tones/low/0.wav", "there is no such folder"),
    ("data.root=classes", "no sound file in classes", ".wav", "fill it"),
    ("data.rate=0", "data.rate is in Hz", "0"),
    ("data.length=0", "data.length in samples", "0"),
    ("data.length=2000", "2000 samples", "frames of 256", "bins"),
    ("data.length=2000 codec=waveform network.patch=16 data.condition=mel", "2000 samples", "mel frames of 256", "data.mel.hop"),
    ("data.length=2056 codec=waveform network.patch=16", "2056 samples", "patches of 16", "network.patch"),
    ("data.condition=mell", "'mell'", "did you mean 'mel'?"),
    ("data.condition=mel data.mel.hop=0", "data.mel.mels, hop and window are whole numbers", "0"),
    ("data.condition=mel data.mel.hop=long", "each a whole number", "'long'"),
    ("data.condition=mel data.mel.mels=0", "whole numbers", "0"),
    ("data.condition=mel data.mel.hop=96", "2048 samples", "mel frames of 96"),
    ("data.attribute=a.b", "'a.b'"),
    ("network.patch=16", "network.patch", "leave it at 1"),
    ("data=fsdd data.root=tones", "no recording DIGIT_SPEAKER_INDEX.wav in tones"),
    ("data=speech_commands data.root=tones", "no sound in", "zero", "data.root"),
    ("data=notes data.condition=mel data.mel.hop=100", "4096 samples", "mel frames of 100"),
)
def test_trainings(refused: Any, settings: list[str], words: tuple[str, ...]):
    own = [word for word in TONES if not any(choice.startswith("data=") for choice in settings)]
    said = refused("train", *TINY, *own, "out=classes", "overwrite=true", *settings)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no sound\n" * 9, "not a sound file that can be read"),
        (b"", "is an empty file"),
        (np.zeros(0), "holds no samples"),
        (np.array([0.1, np.nan]), "not finite"),
    ],
    ids=["text", "empty", "no samples", "nan"],
)
def test_broken_sounds(refused: Any, place: Path, content: Any, words: str):
    path = place / "tones" / "low" / "9.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, RATE, subtype="FLOAT")
    try:
        said = refused("train", *TINY, *TONES, "out=classes", "overwrite=true")
        assert "low/9.wav" in said and words in said and "mend it, or pass data.skip_broken=true" in said
        said = refused("sample", "run=mel", "out=held", "overwrite=true", "n=2", f"condition.mel={path.relative_to(place)}")
        assert "condition.mel: tones/low/9.wav" in said and words in said
    finally:
        path.unlink()


def test_a_class_without_a_sound(refused: Any, place: Path):
    (place / "tones" / "middle").mkdir()
    try:
        said = refused("train", *TINY, *TONES, "out=classes", "overwrite=true")
    finally:
        (place / "tones" / "middle").rmdir()
    assert "no sound file in tones/middle" in said and "remove the folder or fill it" in said


def test_too_few_sounds_to_hold_any_out(refused: Any, place: Path):
    tones(place / "few", n=2)
    assert run(["train", *TINY, *TONES, "data.root=few", "data.condition=mel", "out=few_run"]) == 0
    said = refused("evaluate", "run=few_run", "given=test", "n=2", "scales=[1]", "sampler.steps=1")
    assert "few has 0 held out samples; measuring takes at least 2" in said


def test_what_is_there_is_not_overwritten_unasked(refused: Any):
    assert "out=held already holds results" in refused("sample", "run=mel", "out=held", "n=2")
    assert "out=classes already holds a run" in refused("train", *TINY, *TONES, "out=classes")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["modality=audio", "data=digits"], "data=digits is no sound"),
        (["modality=audio", "data=notes", "network=unet"], "is for images"),
        (["modality=image", "data=notes"], "is for images"),
        (["modality=image", "data=digits", "network=diffwave_small"], "is for sound"),
    ],
)
def test_parts_of_different_modalities_are_told_apart(arguments: list[str], said: str, refused: Callable[..., str]):
    assert said in refused("train", *arguments, "out=run")
