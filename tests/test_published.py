"""Checkpoints of the `diffwave` package: they say and sample the same here, and what is none is refused."""

import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffwave.model
import jaxtyping
import numpy as np
import pytest
import torch
from diffwave.params import AttrDict
from diffwave.params import params as base
from safetensors.torch import load_file
from torch import Tensor, nn

import guidance
from guidance import DDPM, Condition, Discrete, Model, UserError, checkpoint
from guidance.cli import run
from guidance.noise import Stream
from guidance.noise import normal as addressed
from modalities.audio import published
from modalities.audio.mel import Mel
from modalities.stubs import torchaudio_transforms

torchaudio_transforms()  # torchaudio, which the package's modules import too, without its compiled part where that does not load
import diffwave.inference  # noqa: E402
import diffwave.preprocess  # noqa: E402

HOP, MELS, FRAMES = 256, 6, 3
ROOTS = np.sqrt(np.cumprod(1 - np.array(base.noise_schedule)))


@pytest.fixture(autouse=True)
def as_for_users() -> Iterator[None]:
    """No checks of types; the core is not what is tested here."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def package(**more: Any) -> Any:
    """The package's model, small, its last layer no longer zero."""
    torch.manual_seed(0)
    small = {"residual_layers": 4, "residual_channels": 8, "dilation_cycle_length": 3, "n_mels": MELS, "crop_mel_frames": FRAMES}
    model = diffwave.model.DiffWave(AttrDict({**base, **small, **more}))
    nn.init.normal_(model.output_projection.weight, std=0.2)
    return model.eval()


def stored(model: Any) -> dict[str, Any]:
    """What the package writes, after a step of training."""
    optimizer = torch.optim.Adam(model.parameters())
    model(normal(1, HOP), normal(1, MELS, 1), torch.tensor([3])).sum().backward()
    rate, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rate
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    params = dict(model.params)
    return {
        "step": 1234,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "params": params,
        "scaler": scaler.state_dict(),
    }


def imported(folder: Path, content: Any, **how: Any) -> Model:
    torch.save(content, folder / "weights.pt", **how)
    assert run(["import-diffwave", str(folder / "weights.pt"), f"out={folder / 'run'}"]) == 0
    return guidance.load(folder / "run")


def said(model: Model, x: Tensor, steps: Any, mel: Tensor | None) -> Tensor:
    square = ROOTS[np.asarray(steps)] ** 2
    network = model.denoisers["main"].network
    condition = Condition() if mel is None else Condition.of(mel=mel)
    with torch.no_grad():
        return network(x, torch.from_numpy(np.log(square / (1 - square))).float(), network.embed(condition))


def assert_near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest."""
    assert a.shape == b.shape and bool(b.any())
    assert ((a - b).abs().max() / b.abs().max()).item() < tolerance


# What is imported


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "older"])
def test_an_imported_model_says_what_the_packages_says(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: dict[str, Any]):
    theirs, steps = package(), [0, 1, 17, 49]
    model = imported(tmp_path, stored(theirs), **how)
    x, mel = normal(4, FRAMES * HOP), normal(4, MELS, FRAMES, seed=1).sigmoid()
    with torch.no_grad():
        expected = theirs(x, mel, torch.tensor(steps))[:, 0]
    assert_near(said(model, x, steps, mel), expected)
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "run"))["step"] == 1234 and checkpoint.saved_steps(tmp_path / "run") == [1234]
    assert (model.modality.shape, model.modality.data.rate) == ((768,), 22050)
    assert model.modality.conditions["mel"] == Mel(22050, 768, MELS, HOP, 1024)
    size = sum(p.numel() for p in theirs.parameters()) + MELS  # and what stands for no spectrogram
    told = capsys.readouterr().out
    assert told.startswith(f"{size:,} parameters of step 1234") and "condition.mel=clip.wav" in told


def test_weights_are_the_files_to_the_last_bit(tmp_path: Path):
    theirs = package()
    imported(tmp_path, stored(theirs))
    weights = published.renamed(theirs.state_dict())
    for name in ("model", "average"):
        held = load_file(tmp_path / "run" / "checkpoints" / "step-00001234" / f"{name}.safetensors")
        assert held.keys() - weights.keys() == {"network.mels.mel.given.null", "codec.scale"} and held["codec.scale"] == 1
        assert all(torch.equal(held[name], tensor) for name, tensor in weights.items())
    assert sum(tensor.numel() for tensor in weights.values()) == sum(p.numel() for p in theirs.parameters())


def test_what_a_checkpoint_does_not_say_is_as_in_the_package(tmp_path: Path):
    """Bare weights: then the published model's settings, of which only the layers' sizes can be seen."""
    theirs = package(n_mels=80, dilation_cycle_length=10, crop_mel_frames=62, residual_layers=12)
    model = imported(tmp_path, theirs.state_dict())
    x, mel, steps = normal(2, FRAMES * HOP), normal(2, 80, FRAMES, seed=1).sigmoid(), [7, 30]
    with torch.no_grad():
        expected = theirs(x, mel, torch.tensor(steps))[:, 0]
    assert_near(said(model, x, steps, mel), expected)
    assert model.modality.shape == (base.hop_samples * base.crop_mel_frames,)
    assert model.modality.conditions["mel"] == Mel(base.sample_rate, 62 * 256, base.n_mels, base.hop_samples, base.n_fft)
    betas = model.denoisers["main"].schedule.betas
    np.testing.assert_allclose(betas, base.noise_schedule, rtol=1e-12)


def test_a_model_without_a_spectrogram_is_one_whose_spectrogram_adds_nothing(tmp_path: Path):
    theirs = package()
    for layer in theirs.residual_layers:
        nn.init.zeros_(layer.conditioner_projection.weight)
        nn.init.zeros_(layer.conditioner_projection.bias)
    whole = stored(theirs)
    whole["model"] = {name: t for name, t in whole["model"].items() if "spectrogram" not in name and "conditioner" not in name}
    model = imported(tmp_path, whole)
    assert model.modality.conditions == {} and model.modality.shape_of is None
    x, steps = normal(2, FRAMES * HOP), [7, 30]
    with torch.no_grad():
        expected = theirs(x, normal(2, MELS, FRAMES), torch.tensor(steps))[:, 0]
    assert_near(said(model, x, steps, None), expected)
    assert model.sample(2, steps=2).shape == (2, 768)


def test_no_spectrogram_is_that_of_silence(tmp_path: Path):
    theirs = package()
    model = imported(tmp_path, stored(theirs))
    x, steps, network = normal(1, 5 * HOP), torch.tensor([20]), model.denoisers["main"].network
    with torch.no_grad():
        expected = theirs(x, torch.zeros(1, MELS, 5), steps)[:, 0]
        logsnr = torch.tensor([math.log(ROOTS[20] ** 2 / (1 - ROOTS[20] ** 2))])
        absent = network(x, logsnr, network.embed(Condition.of(mel=torch.rand(1, MELS, 5)).drop()))
    assert_near(absent, expected)


def test_spectrograms_are_those_that_the_package_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wave = 0.3 * normal(2, 12 * 256) * torch.linspace(0, 1, 12 * 256) ** 4
    wave[1, 1000:] = 0
    ours = Mel(22050, 12 * 256).of(wave)
    for row, mel in zip(wave, ours, strict=True):
        monkeypatch.setattr(diffwave.preprocess.T, "load_wav", lambda name, row=row: (32767.5 * row[None], 22050), raising=False)
        diffwave.preprocess.transform(str(tmp_path / "x"))
        theirs = torch.from_numpy(np.load(tmp_path / "x.spec.npy"))[:, :12]
        torch.testing.assert_close(mel, theirs, atol=1e-5, rtol=0)
    assert ours.min() == 0 and ours.max() > 0.5


# Sampling


@pytest.mark.parametrize("fast", [False, True], ids=["published schedule", "fast"])
def test_sampling_is_the_packages_ancestral_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool):
    """With the same noise, and without the clamps, which lie elsewhere: theirs at x_t after each step, ours at what x0 is taken for."""
    theirs, n, seed = package(), 2, 5
    model, mel = imported(tmp_path, stored(theirs)), normal(n, MELS, FRAMES + 1, seed=1).sigmoid()
    shape, betas = (n, (FRAMES + 1) * HOP), base.inference_noise_schedule if fast else base.noise_schedule
    draws = [addressed(seed, Stream.START, 0, 0, shape), *(addressed(seed, Stream.STEP, k, 0, shape) for k in range(1, len(betas)))]
    with monkeypatch.context() as patch:
        patch.setitem(diffwave.inference.models, "ours", theirs)
        patch.setattr(torch, "randn", lambda *size, device: draws.pop(0).reshape(size))
        patch.setattr(torch, "randn_like", lambda x: draws.pop(0).view_as(x))
        patch.setattr(torch, "clamp", lambda x, low, high: x)
        expected, rate = diffwave.inference.predict(mel, "ours", device=torch.device("cpu"), fast_sampling=fast)
    assert not draws and rate == model.modality.data.rate
    settings = {"sampler": DDPM(), "steps": len(betas), "seed": seed, "project": False, "schedule": Discrete(betas) if fast else None}
    assert_near(torch.cat(list(model.latents(n, Condition.of(mel=mel), **settings))), expected, 2e-4)


def test_an_imported_vocoder_is_sampled_from_a_sound_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import soundfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["polyguide"])
    imported(tmp_path, stored(package()))
    soundfile.write("clip.wav", 0.1 * normal(1000).numpy(), 22050)
    assert run(["sample", "run=run", "condition.mel=clip.wav", "out=out", "n=2", "sampler.steps=2", "threads=1"]) == 0
    sounds = [soundfile.read(path) for path in sorted(Path("out").glob("0*.wav"))]
    assert [(len(samples), rate) for samples, rate in sounds] == [(1024, 22050)] * 2, "to the end of the last frame"


# What is refused


class Bomb:
    """Executes something where it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.target),)


def without(key: str) -> Callable[[Any], Any]:
    return lambda whole: {**whole, "model": {name: t for name, t in whole["model"].items() if not name.startswith(key)}}


def with_weights(**more: Any) -> Callable[[Any], Any]:
    return lambda whole: {**whole, "model": {**whole["model"], **{name.replace("__", "."): t for name, t in more.items()}}}


def with_params(**more: Any) -> Callable[[Any], Any]:
    return lambda whole: {**whole, "params": {**whole["params"], **more}}


NONE = "no DiffWave checkpoint"
SPOILED = {
    "a list": (lambda whole: [1, 2], f"{NONE}.*list"),
    "no weights": (lambda whole: {**whole, "model": {}}, f"{NONE}.*input_projection"),
    "weights in a list": (lambda whole: {**whole, "model": [1]}, f"{NONE}.*input_projection"),
    "of another kind": (lambda whole: {"model": {"conv1.weight": torch.zeros(3)}}, f"{NONE}.*input_projection"),
    "a number for a tensor": (with_weights(skip_projection__bias=3), f"{NONE}.*skip_projection.bias.*no tensor"),
    "a number for a name": (lambda whole: {**whole, "model": {**whole["model"], 7: torch.zeros(1)}}, f"{NONE}.*7.*no tensor"),
    "no layers": (without("residual_layers"), "no residual_layers"),
    "a tensor missing": (without("residual_layers.2.dilated_conv.weight"), r"no residual_layers\.2\.dilated_conv\.weight"),
    "a layer missing": (without("residual_layers.1."), r"no residual_layers\.1\."),
    "the last layer missing": (without("residual_layers.3."), "3 residual_layers.*params say 4"),
    "the output missing": (without("output_projection.bias"), r"no output_projection\.bias"),
    "half an upsampler": (without("spectrogram_upsampler.conv2"), r"no spectrogram_upsampler\.conv2"),
    "another shape": (with_weights(skip_projection__weight=torch.zeros(9, 8, 1)), r"does not fit.*skip.*\(9, 8, 1\).*\(8, 8, 1\)"),
    "no shape": (with_weights(input_projection__weight=torch.tensor(1.0)), r"does not fit.*input.*\(8, 1, 1\)"),
    "another width": (with_weights(diffusion_embedding__projection1__weight=torch.zeros(512, 64)), r"does not fit.*noise.*512, 64"),
    "layers that differ": (
        with_weights(residual_layers__1__diffusion_projection__weight=torch.zeros(8, 256)),
        r"residual_layers differ.*diffusion_projection\.weight",
    ),
    "layers without a shape": (
        with_weights(**{f"residual_layers__{k}__diffusion_projection__bias": torch.tensor(1.0) for k in range(4)}),
        r"residual_layers differ.*diffusion_projection\.bias",
    ),
    "params in a list": (lambda whole: {**whole, "params": [1]}, f"{NONE}.*params.*list"),
    "text for a number": (with_params(sample_rate="fast"), f"{NONE}.*sample_rate.*fast"),
    "no hop": (with_params(hop_samples=0), f"{NONE}.*hop_samples.*0"),
    "no cycle": (with_params(dilation_cycle_length=None), f"{NONE}.*dilation_cycle_length.*None"),
    "a step that is none": (lambda whole: {**whole, "step": "late"}, f"{NONE}.*step.*late"),
    "another hop": (with_params(hop_samples=128), "does not fit.*upsampler"),
    "other mels": (with_params(n_mels=80), "does not fit.*mels"),
    "a schedule of words": (with_params(noise_schedule=["much", "little"]), "noise_schedule"),
    "a schedule beyond 1": (with_params(noise_schedule=[0.1, 1.5]), "betas"),
}


def refused(path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says: one line; an earlier run in its way is left alone, and a new folder is not made."""
    old = folder / "old"
    (old / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
    (old / "config.yaml").write_text("mine\n")
    (old / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"mine")
    before = sorted(folder.rglob("*"))
    lines = set()
    for out in (f"out={folder / 'new'}", f"out={old}"):
        assert run(["import-diffwave", str(path), out, "overwrite=true"]) == 2
        lines.add(capsys.readouterr().err)
    assert sorted(folder.rglob("*")) == before and (old / "config.yaml").read_text() == "mine\n"
    (line,) = lines
    assert line.startswith("polyguide: ") and line.endswith("\n") and line.count("\n") == 1 and len(line) < 300 + len(str(path))
    return line


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return stored(package())


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: dict[str, Any], spoil: Callable[[Any], Any], words: str
):
    path = tmp_path / "weights.pt"
    torch.save(spoil(whole), path)
    line = refused(path, tmp_path, capsys)
    with pytest.raises(UserError, match=words) as error:
        published.convert(path, tmp_path / "new")
    assert line == f"polyguide: {error.value}\n"


def test_names_that_mean_nothing_are_passed_over(tmp_path: Path, whole: dict[str, Any]):
    more = {name: torch.zeros(1) for name in ("residual_layers", "residual_layers.x.y", "residual_layers.9", "more.weight")}
    assert imported(tmp_path, with_weights(**more)(whole)).modality.shape == (768,)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_a_checkpoint_cut_short_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: dict[str, Any], share: float, zipped: bool
):
    path = tmp_path / "weights.pt"
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{path} is cut short" in refused(path, tmp_path, capsys)


@pytest.mark.parametrize(
    "content", [b"hello\n", b"\x89PNG\r\n", bytes(64), pickle.dumps([1], protocol=4)], ids=["text", "picture", "zeros", "pickle"]
)
def test_a_file_of_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder, content: bytes
):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert f"{path} is cut short, or is no checkpoint" in refused(path, tmp_path, capsys)
    assert not recwarn, "the command line would print it as a second line"


@pytest.mark.parametrize("where", ["step", "scaler", "params", "alone"])
def test_code_in_a_checkpoint_is_refused_and_not_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: dict[str, Any], where: str
):
    path, bomb = tmp_path / "weights.pt", Bomb(tmp_path / "executed")
    if where == "alone":
        path.write_bytes(pickle.dumps(bomb, protocol=2))
    else:
        torch.save({**whole, where: {**whole["params"], "n_fft": bomb} if where == "params" else bomb}, path)
    line = refused(path, tmp_path, capsys)
    assert not bomb.target.exists() and f"{path} is refused" in line and "mkdir" in line and "weights_only" not in line
    pickle.loads(path.read_bytes()) if where == "alone" else torch.load(path, weights_only=False)
    assert bomb.target.exists(), "it would have been"


def test_what_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for path in (tmp_path / "nowhere.pt", tmp_path):
        assert "there is no such checkpoint" in refused(path, tmp_path, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: polyguide import-diffwave"),
        (["weights.pt"], "usage"),
        (["out=new"], "usage"),
        (["weights.pt", "out="], "usage"),
        (["weights.pt", "more.pt", "out=new"], "usage"),
        (["weights.pt", "out=new", "overwrite=maybe"], "usage"),
        (["weights.pt", "out=new", "steps=3"], "no setting 'steps'"),
        (["weights.pt", "out=weights.pt"], "is a file, not a folder"),
        (["weights.pt", "out=old"], "already holds a run"),
        (["weights.pt", "out=old", "overwrite=false"], "already holds a run"),
    ],
    ids=str,
)
def test_a_command_that_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    whole: dict[str, Any],
    arguments: list[str],
    words: str,
):
    monkeypatch.chdir(tmp_path)
    torch.save(whole, "weights.pt")
    Path("old").mkdir()
    Path("old/config.yaml").write_text("mine\n")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert run(["import-diffwave", *arguments]) == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_run_is_overwritten_only_when_asked_to_and_then_wholly(tmp_path: Path, whole: dict[str, Any]):
    model = imported(tmp_path, whole)
    (tmp_path / "run" / "previews").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("the user's own")
    spoken = {**whole, "step": 7, "model": {name: 2 * tensor for name, tensor in whole["model"].items()}}
    torch.save(spoken, tmp_path / "other.pt")
    assert run(["import-diffwave", str(tmp_path / "other.pt"), f"out={tmp_path / 'run'}", "overwrite=true"]) == 0
    assert checkpoint.saved_steps(tmp_path / "run") == [7] and not (tmp_path / "run" / "previews").exists()
    assert (tmp_path / "run" / "notes.txt").exists()
    again, before = guidance.load(tmp_path / "run").modality.network, model.modality.network
    assert torch.equal(again.input.weight, 2 * before.input.weight)


def test_published_data_has_nothing_to_train_on():
    data = published.Published(rate=8000, length=64)
    assert (len(data.train), len(data.test), data.shape, data.conditions, data.pinned()) == (0, 0, (64,), {}, {})
