"""Classifiers of noisy data, against Bayes' rule, the formula of their loss, and runs of them that are interrupted."""

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from experiment_fakes import DEVIATION, Items, Same, world
from PIL import Image
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn import functional

import guidance
from guidance import (
    CFG,
    DDIM,
    X0,
    Classifier,
    ClassScore,
    Condition,
    Cosine,
    Denoiser,
    Discrete,
    DPMSolver,
    Label,
    LogitNormal,
    Mixture,
    MixtureClassifier,
    NoiseEmbedding,
    Rectified,
    Sqrt,
    Steered,
    Stratified,
    Trainer,
    UserError,
    Vector,
    checkpoint,
    corrupt,
    level,
    sample,
)
from guidance.classifier import Classifying, NoisyClassifier, at, features_of, held_out
from guidance.cli import run
from guidance.config import config_folder
from guidance.noise import Stream, normal, uniform
from guidance.train import Place, train
from modalities.audio.network import DiffWave
from modalities.image.network import UNet
from modalities.text.network import TextDenoiser

SPECS = {"y": Label(("a", "b", "c")), "z": Label(("d", "e")), "size": Vector(1)}


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(network: Any) -> Any:
    torch.manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


# The exact classifier


@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=["Cosine", "Rectified"])
def test_the_exact_classifier_is_bayes_rule(schedule: Any):
    means, stds, weights, labels = [-2.0, 0.0, 1.0, 3.0], [0.5, 0.3, 0.6, 0.4], [0.1, 0.4, 0.3, 0.2], [0, 2, 1, 1]
    exact = MixtureClassifier(Mixture(torch.tensor(means)[:, None], stds, weights, {"y": labels}))
    assert exact.classes == {"y": ("0", "1", "2")}
    x = np.linspace(-4, 4, 17)
    for t in (0.05, 0.5, 0.9):
        here = torch.tensor(t, dtype=torch.float64)
        now = level(schedule, here, here)
        a, s = float(now.alpha), float(now.sigma)
        joint = [w * norm.pdf(x, a * m, math.hypot(a * d, s)) for w, m, d in zip(weights, means, stds, strict=True)]
        of = np.stack([sum(p for p, k in zip(joint, labels, strict=True) if k == c) for c in range(3)], 1)
        found = exact.log_prob(torch.from_numpy(x)[:, None], now)["y"]
        assert np.allclose(found.numpy(), np.log(of / of.sum(1, keepdims=True)), atol=1e-8)


# Features


def test_a_unets_features_are_the_mean_of_its_middle():
    network = shaken(UNet((1, 8, 8), SPECS, channels=8, multipliers=(1, 2), blocks=1, patch=2))
    check_hooked(network, network.middle, (5, 1, 8, 8), lambda seen, made: made.mean((2, 3)), 16)


@pytest.mark.parametrize(("shape", "patch", "mask"), [((64,), 8, False), ((6, 12), 1, True)], ids=["samples", "frames"])
def test_diffwaves_features_are_the_mean_of_its_skips(shape: tuple[int, ...], patch: int, mask: bool):
    network = shaken(DiffWave(shape, SPECS, channels=8, layers=3, cycle=2, patch=patch, mask=mask))
    skips: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda module, given, made: skips.append(made[1])) for layer in network.layers]
    check_hooked(network, network.layers[-1], (5, *shape), lambda seen, made: sum(skips[:3]).mean(1) / 3**0.5, 8)
    assert len(hooks) == 3 and len(skips) == 6, "in the forward pass, and again for the features"


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_a_text_networks_features_are_the_mean_of_its_states(conditioning: str):
    encoder = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = shaken(TextDenoiser((6, 4), SPECS, encoder, conditioning=conditioning, likelihood=True))
    check_hooked(network, network.output, (5, 6, 4), lambda seen, made: seen.mean(1), 16)


def check_hooked(network: Any, part: nn.Module, shape: tuple[int, ...], expected: Any, width: int) -> None:
    """What a part of the network is shown and makes in its forward pass, all attributes absent."""
    seen: list[Tensor] = []
    hook = part.register_forward_hook(lambda module, given, made: seen.append(expected(given[0], made)))
    x, logsnr = draws(*shape), torch.linspace(-3, 3, shape[0])
    values = {"y": torch.tensor([0, 1, 2, 0, 9]), "z": torch.tensor([1, 0, 1, 0, 1]), "size": draws(5, 1)}
    values["y"][4] = 0
    context = network.embed(Condition.of(**values).drop())
    with torch.no_grad():
        network(x, logsnr, context)
        hook.remove()
        found = features_of(network, SPECS, x, logsnr)
    torch.testing.assert_close(found, seen[0])
    assert found.shape == (5, width) and float(found.std(0).max()) > 1e-3


class Small(nn.Module):
    """A network that says nothing of features."""

    def __init__(self, d: int = 2, width: int = 48):
        super().__init__()
        torch.manual_seed(1)
        self.noise, self.first = NoiseEmbedding(width), nn.Linear(d, width)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d * 8))
        self.unused = nn.Linear(2, 2)
        self.d = d

    def embed(self, condition: Condition) -> None:
        return None

    def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
        made: Tensor = self.rest(self.first(x_t) + self.noise(logsnr))
        return made.view(len(x_t), 8, self.d)


def test_a_network_without_features_is_taken_by_its_output():
    network = Small()
    x, logsnr = draws(4, 2), torch.linspace(-2, 2, 4)
    torch.testing.assert_close(features_of(network, {}, x, logsnr), network(x, logsnr, None).reshape(4, 16))


# The loss


class Told(nn.Module):
    """Logits that say the log-SNR and x_t; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, x_t: Tensor, logsnr: Tensor) -> dict[str, Tensor]:
        self.seen.append((x_t.detach(), logsnr.detach()))
        return {"y": torch.stack([logsnr, x_t[:, 0], x_t[:, 1]], 1) * self.weight, "z": torch.stack([x_t[:, 0], 0 * logsnr], 1)}


@pytest.mark.parametrize("schedule", [Cosine(-10, 10), Rectified(-8, 8), Discrete.linear(50)], ids=["Cosine", "Rectified", "Discrete"])
@pytest.mark.parametrize("times", [Stratified(), LogitNormal()], ids=["Stratified", "LogitNormal"])
def test_the_loss_is_the_cross_entropy_of_what_is_known(unchecked: None, schedule: Any, times: Any):
    network, x0 = Told(), draws(6, 2)
    objective = Classifying(network, Denoiser(Small(), schedule, X0()), Same(), times)  # type: ignore[arg-type]
    y, z = torch.tensor([0, 1, 2, 77, 1, 0]), torch.tensor([1, 0, 0, 1, -5, 1])
    keep = {"y": torch.tensor([1, 1, 1, 0, 1, 0]).bool(), "z": torch.tensor([1, 0, 1, 1, 0, 0]).bool()}
    found = objective(x0, Condition({"y": y, "z": z}, keep), Place(4, 9, 54, 6, 18))
    t = times(uniform(4, Stream.TIME, 0, 54, 6)[:, 0], 6 + torch.arange(6), 18)
    alpha, sigma = (part.float()[:, None] for part in schedule(t))
    x_t = (alpha * x0 + sigma * normal(4, Stream.CORRUPT, 0, 54, (6, 2))) / (alpha**2 + sigma**2).sqrt()
    logsnr = 2 * (alpha / sigma).log().flatten()
    torch.testing.assert_close(network.seen[0][0], x_t)
    torch.testing.assert_close(network.seen[0][1], logsnr, rtol=1e-4, atol=1e-4)
    expected = torch.zeros(6)
    for i in range(6):
        logits = torch.stack([network.seen[0][1][i], x_t[i, 0], x_t[i, 1]])
        expected[i] += -float(logits.log_softmax(0)[y[i]]) if keep["y"][i] else 0
        expected[i] += -float(functional.logsigmoid(x_t[i, 0] * (1 if z[i] == 0 else -1))) if keep["z"][i] else 0
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)
    assert float(found[5].detach()) == 0


def classifying(model: Any, classes: dict[str, int], network: Any = None) -> Classifying:
    network = NoisyClassifier(network or Small(), model.modality.conditions, classes, 16)
    return Classifying(network, model.denoisers["main"], Same(), Stratified())  # type: ignore[arg-type]


def test_a_trained_classifier_is_close_to_the_exact_one(unchecked: None, tmp_path: Path):
    """The data is a Gaussian for each of six combinations, so that p(side | x_t) and p(shade | x_t) are known at every noise level."""
    model = world()
    means = torch.tensor([[a, b] for b in (-2.0, 0.0, 2.0) for a in (-2.0, 2.0)])
    exact = MixtureClassifier(Mixture(means, DEVIATION, None, {"side": [0, 1] * 3, "shade": [0, 0, 1, 1, 2, 2]}))
    labels = torch.arange(3000) % 6
    items = Items(means[labels] + DEVIATION * draws(3000, 2), {"side": labels % 2, "shade": labels // 2})
    objective = classifying(model, {"side": 2, "shade": 3})
    objective.settle(items.values[:2])
    average = train(objective, items, Trainer(steps=400, batch_size=64, lr=5e-3, decay="cosine", average=0.99), tmp_path, progress=False)
    classes = {"side": ("left", "right"), "shade": ("low", "mid", "high")}
    classifier = Classifier(average["network"], classes, model.denoisers["main"], Same())  # type: ignore[arg-type]
    x0 = means[labels] + DEVIATION * draws(3000, 2, seed=5)
    for logsnr in (-8.0, -4.0, -2.0, 0.0, 2.0, 6.0):
        now = at(Cosine(), logsnr)
        x_t = corrupt(x0, draws(3000, 2, seed=6), now)
        found, right = classifier.log_prob(x_t, now), exact.log_prob(x_t, now)
        for name in ("side", "shade"):
            p = right[name].exp()
            away = (p * (right[name] - found[name])).sum(1).mean()  # Kullback and Leibler's
            assert 0 <= float(away) < 0.03, (logsnr, name, float(away))
    asked = Condition.of(side=torch.tensor([0, 1] * 100), shade=torch.tensor([0, 1, 2, 1] * 50))
    mixture = exact.mixture.denoiser()
    made = sample(mixture, (200, 2), asked, Steered.by_classifier(classifier), DPMSolver(), steps=20)
    centre = torch.stack([torch.tensor([-2.0, 2.0])[asked.values["side"]], torch.tensor([-2.0, 0.0, 2.0])[asked.values["shade"]]], 1)
    assert float(((made - centre).norm(dim=1) < 1.5).float().mean()) > 0.8  # by chance 1 in 6


def test_in_much_noise_its_gradient_shrinks_with_alpha_as_the_exact_ones_does():
    """x0 moves by sigma^2 / alpha times the gradient: by about as much at every noise level, also before any training."""
    network = NoisyClassifier(Small(), {}, {"side": 2}, 16)
    classifier = Classifier(network, {"side": ("left", "right")}, Denoiser(Small(), Cosine(), X0()), Same())  # type: ignore[arg-type]
    score, moved = ClassScore(classifier).begin(Condition.of(side=[0] * 50)), []
    for logsnr in (-20.0, -10.0, -2.0):
        now, x_t = at(Cosine(), logsnr), draws(50, 2).requires_grad_()
        (g,) = torch.autograd.grad(score(x_t, now).sum(), x_t)
        moved.append(float((now.sigma**2 / now.alpha * g).square().mean().sqrt()))
    assert max(moved) < 5 * min(moved) and 1e-3 < moved[0] < 3


def test_what_no_class_depends_on_is_left_alone(unchecked: None):
    objective = classifying(world(), {"side": 2})
    objective.settle(draws(2, 2))
    still = [name for name, p in objective.network.named_parameters() if not p.requires_grad]
    assert still == ["network.unused.weight", "network.unused.bias"]
    codec = Scaled(2.0)
    codec.more = nn.Linear(2, 2)
    Classifying(objective.network, objective.denoiser, codec, Stratified())
    assert not any(p.requires_grad for p in codec.parameters())


def test_held_out_accuracy_counts_what_is_known(unchecked: None):
    class Sure(nn.Module):
        def forward(self, x_t: Tensor, logsnr: Tensor) -> dict[str, Tensor]:
            return {"y": torch.stack([x_t[:, 0], -x_t[:, 0]], 1) * 50}

    class Part(Items):
        def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
            raw, condition = super().__getitems__(index)
            return raw, Condition(condition.values, {"y": raw[:, 1] > 0})

    x = torch.tensor([[2.0, 1.0], [2.0, 1.0], [-2.0, 1.0], [2.0, 1.0], [2.0, -1.0], [-2.0, -1.0]])
    items = Part(x.repeat(50, 1), {"y": torch.tensor([0, 0, 1, 1, 5, 5]).repeat(50)})
    network = Sure()
    network.register_parameter("w", nn.Parameter(torch.ones(())))
    denoiser = Denoiser(Small(), Sqrt(), X0())
    rows = held_out(Classifier(network, {"y": ("a", "b")}, denoiser, Same()), items, size=70)  # type: ignore[arg-type]
    assert [row["logsnr"] for row in rows] == [-10, -8, -6, -4, -2, 0, 2, 4]  # up to where the schedule ends
    assert rows[-1]["y"] == pytest.approx(0.75) and rows[-1]["y_nll"] > 10
    flipped = norm.cdf(-2 * math.exp(-4 / 2))  # N(2 alpha, sigma^2) is below 0
    assert rows[3]["y"] == pytest.approx(0.75 + flipped * (0.25 - 0.75), abs=0.07)


# Where it does not fit


class Known(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_t: Tensor, logsnr: Tensor) -> dict[str, Tensor]:
        return {"side": torch.stack([x_t[:, 0] * self.weight, -x_t[:, 0]], 1)}


def made(**changes: Any) -> Classifier:
    known: dict[str, Any] = {"classes": {"side": ("left", "right")}, "codec": Same(), "shape": (2,), "run": Path("mine")}
    return Classifier(Known(), denoiser=Denoiser(Small(), changes.pop("schedule", Cosine()), X0()), **{**known, **changes})  # type: ignore[arg-type]


class Scaled(Same):
    def __init__(self, scale: float):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))


@pytest.mark.parametrize(
    ("changes", "asked", "settings", "said"),
    [
        ({}, None, {}, r"needs a condition on what it knows \(side\), and there is none"),
        ({}, {"shade": "low"}, {}, "the classifier knows side, and the condition asks for shade alone"),
        (
            {"classes": {"side": ("right", "left")}},
            {"side": "left"},
            {},
            r"other classes of side \(right, left\) than the model \(left, right\)",
        ),
        ({"classes": {"colour": ("red", "blue")}}, {"side": "left"}, {}, "knows 'colour', which the model does not"),
        ({"shape": (3,)}, {"side": "left"}, {}, r"of x0 of shape \[3\], and the model of \[2\]"),
        ({"codec": Scaled(2.0)}, {"side": "left"}, {}, "another codec than the model"),
        ({"schedule": Cosine(-5.0, 5.0)}, {"side": "left"}, {}, "trained at log-SNRs from -5 to 5, and sampling visits -20"),
        ({"schedule": Cosine(-20.0, 3.0)}, {"side": "left"}, {}, "trained at log-SNRs from -20 to 3, and sampling visits 3.2"),
        ({}, {"side": "left"}, {"schedule": Cosine(-30.0, 30.0)}, ""),  # networks are not shown what is beyond 20
        ({"schedule": Sqrt()}, {"side": "left"}, {"schedule": Sqrt()}, ""),
    ],
    ids=str,
)
def test_a_classifier_that_does_not_fit_is_refused(unchecked: None, changes: Any, asked: Any, settings: Any, said: str):
    model, guidance = world(), Steered.by_classifier(made(**changes), 2.0)
    if not said:
        assert model.sample(2, asked, guidance=guidance, sampler=DDIM(), steps=8, **settings).shape == (2, 2)
        return
    with pytest.raises(UserError, match=said) as told:
        model.sample(2, asked, guidance=guidance, sampler=DDIM(), steps=8)
    assert "\n" not in str(told.value)


def test_codecs_that_encode_the_same_fit(unchecked: None):
    model = world()
    model = replace(model, modality=replace(model.modality, codec=Scaled(2.0)))  # type: ignore[arg-type]
    model.sample(1, {"side": "left"}, guidance=Steered.by_classifier(made(codec=Scaled(2.0))), steps=2)
    with pytest.raises(UserError, match="another codec"):
        model.sample(1, {"side": "left"}, guidance=Steered.by_classifier(made(codec=Scaled(2.5))), steps=2)


def test_a_batch_in_which_nothing_is_asked_for_is_as_unconditional(unchecked: None):
    model = world()
    settings: dict[str, Any] = {"sampler": DDIM(), "steps": 5}
    found = model.sample(4, {"side": ["left", "right", None, None]}, guidance=Steered.by_classifier(made(), 3.0), batch_size=2, **settings)
    plain = model.sample(4, guidance=CFG(0.0), **settings)
    assert torch.equal(found[2:], plain[2:])
    assert float((found - plain)[:2, 0].abs().min()) > 1e-2


# The command


TINY = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1"]
FAST = ["trainer.batch_size=32", "trainer.lr=0.01", "trainer.warmup=0", "trainer.average=0.8", "threads=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run, and a classifier of it."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(folder)
        jaxtyping.config.update("jaxtyping_disable", True)
        assert run(["train", *TINY, "trainer.steps=5", "data=digits", "out=run"]) == 0
        assert run(["train-classifier", "run=run", "out=classifier", *FAST, "trainer.steps=60", "trainer.save_every=30"]) == 0
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(place)
    return tmp_path


def weights(folder: Path | str, which: str = "average", step: int = 60) -> dict[str, Tensor]:
    return checkpoint.read_tensors(checkpoint.checkpoint_folder(Path(folder), step) / f"{which}.safetensors")


def test_the_folder_says_what_it_was_trained_from(inside: Path):
    config = yaml.safe_load(Path("classifier/config.yaml").read_text())
    facts = config["classifier"]
    assert (facts["run"], facts["step"], facts["average"], facts["width"]) == ("run", 5, True, 8)
    assert list(facts["attributes"]) == ["digit", "stroke"] and facts["attributes"]["digit"] == [str(k) for k in range(10)]
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    for part in ("modality", "data", "network", "schedule", "parameterization", "times", "holdout"):
        assert config[part] == stored[part]
    names = {"config.yaml", "command.txt", "metrics.jsonl", "timings.jsonl", "checksums.json", "checkpoints", "accuracy.json"}
    assert {path.name for path in Path("classifier").iterdir()} == names
    assert Path("classifier/command.txt").read_text().startswith("polyguide train-classifier run=run out=classifier")


def test_it_begins_from_the_runs_weights_and_changes_what_features_are_made_of(inside: Path):
    assert run(["train-classifier", "run=run", f"out={inside / 'one'}", *FAST, "trainer.lr=0", "trainer.steps=1"]) == 0
    begun, own, trained = weights(inside / "one", step=1), weights("run", step=5), weights("classifier")
    for name, tensor in own.items():
        mine = f"network.{name}" if name.startswith("network.") else name
        assert torch.equal(begun[mine], tensor), name
        of = name.split(".")[1]
        if of == "condition" and not name.endswith(".null"):  # classes, none of which is there
            continue
        changed = not torch.equal(trained[mine], tensor)
        assert changed == (of in ("first", "down", "middle") or name.startswith("network.noise.layers") or name.endswith(".null")), name


def test_its_accuracy_is_what_it_gets_right(inside: Path):
    classifier = Classifier.load("classifier")
    facts = json.loads(Path("classifier/accuracy.json").read_text())
    assert classifier.accuracy["digit"][4.0] == facts["accuracy"]["digit"]["4"]
    data = guidance.load("run").modality.data.test
    raw, condition = data.__getitems__(list(range(len(data))))
    now = at(Cosine(), 4.0)
    x0 = raw.float() / 127.5 - 1
    said = classifier.log_prob(corrupt(x0, draws(*x0.shape, seed=8), now), now)
    for name in ("digit", "stroke"):
        truth = condition.values[name]
        share, n = float((said[name].argmax(1) == truth).float().mean()), len(data)
        assert abs(classifier.accuracy[name][4.0] - share) < 3 * math.sqrt(share * (1 - share) / n), name
        lost = float(functional.nll_loss(said[name], truth))
        assert facts["negative_log_likelihood"][name]["4"] == pytest.approx(lost, rel=0.1)
    assert classifier.accuracy["stroke"][4.0] > 0.5 and classifier.accuracy["stroke"][-10.0] < 0.45


def test_a_classifier_that_goes_on_is_as_if_it_had_not_stopped(inside: Path):
    more = [*FAST, "trainer.decay=constant"]
    out, whole = inside / "again", inside / "whole"
    assert run(["train-classifier", "run=run", f"out={out}", *more, "trainer.steps=11"]) == 0
    assert run(["train-classifier", "run=run", f"out={out}", "resume=true", "trainer.steps=20", "threads=1"]) == 0
    assert run(["train-classifier", "run=run", f"out={whole}", *more, "trainer.steps=20"]) == 0
    for which in ("average", "model"):
        found, expected = weights(out, which, 20), weights(whole, which, 20)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert (out / "accuracy.json").read_bytes() == (whole / "accuracy.json").read_bytes()


def test_a_classifier_that_is_trained_already_is_left_alone(inside: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.read_bytes() for path in Path("classifier").rglob("*") if path.is_file()}
    assert run(["train-classifier", "run=run", "out=classifier", "resume=true"]) == 0
    assert "trained already, to step 60" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("classifier").rglob("*") if path.is_file()} == before


def test_one_attribute_alone(inside: Path):
    assert run(["train-classifier", "run=run", f"out={inside}/one", *FAST, "trainer.steps=2", "attributes=[stroke]"]) == 0
    assert list(Classifier.load(f"{inside}/one").classes) == ["stroke"]


def pixels(folder: Path) -> Tensor:
    paths = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
    return torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])[:, None]


def test_samples_of_the_command_line_are_those_in_python(inside: Path):
    more = ["n=4", "condition.digit=[3,1,null,0]", "sampler.steps=4", "threads=1"]
    how = ["guidance=classifier", "guidance.classifier.run=classifier", "guidance.scale=3"]
    assert run(["sample", "run=run", f"out={inside}/s", *more, *how]) == 0
    guide = Steered(CFG(0.0), ClassScore(Classifier.load("classifier")), 3.0)
    model = guidance.load("run")
    expected = model.sample(4, {"digit": [3, 1, None, 0]}, guidance=guide, steps=4, sampler=DPMSolver())
    assert torch.equal(pixels(inside / "s"), expected)
    assert not torch.equal(model.sample(4, guidance=CFG(0.0), steps=4, sampler=DPMSolver())[:2], expected[:2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "run=classifier", "out=s"], "run=classifier is a classifier of noisy data"),
        (["train", "out=classifier", "resume=true"], "out=classifier holds a classifier"),
        (["train-classifier", "run=classifier", "out=c"], "run=classifier is a classifier of noisy data"),
        (["train-classifier", "run=nothing", "out=c"], "nothing: there is no such folder"),
        (["train-classifier", "run=run", "out=classifier"], "already holds a run; pass resume=true or overwrite=true"),
        (["train-classifier", "run=run", "out=run", "resume=true"], "out=run holds a model, not a classifier"),
        (["train-classifier", "run=run", "out=classifier", "resume=true", "trainer.lr=3"], "trainer.lr cannot change"),
        (["train-classifier", "run=run", "out=classifier", "resume=true", "attributes=[digit]"], "attributes cannot change"),
        (["train-classifier", "run=run", "out=c", "attributes=[dgit]"], "no attribute with classes 'dgit' .did you mean 'digit'"),
        (["train-classifier", "run=run", "out=c", "attributes=digit"], r"attributes is a list, e.g. attributes=\[digit\]"),
        (["train-classifier", "run=run", "out=c", "trainer.steps=0"], "trainer.steps is a whole number"),
        (["sample", "run=run", "out=s", "guidance=classifier", "condition.digit=3"], "guidance.classifier.run is missing"),
        (
            ["sample", "run=run", "out=s", "guidance=classifier", "guidance.classifier.run=run", "condition.digit=3"],
            "run is a model, not a",
        ),
        (["sample", "run=run", "out=s", "guidance=classifier", "guidance.classifier.run=gone", "condition.digit=3"], "no classifier gone"),
        (["sample", "run=run", "out=s", "guidance=classifier", "guidance.classifier.run=classifier"], "and there is none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(inside: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    before = sorted(Path().rglob("*"))
    assert run(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(said, line), line
    assert sorted(Path().rglob("*")) == before


def test_another_step_and_weights_that_are_not_averaged(inside: Path):
    x, now = draws(3, 1, 8, 8), at(Cosine(), 1.0)
    said = [Classifier.load("classifier", **how).log_prob(x, now)["digit"] for how in ({}, {"step": 30}, {"average": False})]
    assert not torch.allclose(said[0], said[1]) and not torch.allclose(said[0], said[2])
    with pytest.raises(UserError, match="no checkpoint of step 31"):
        Classifier.load("classifier", step=31)


def test_a_classifier_is_replaced_when_it_may_be(inside: Path):
    out = inside / "copy"
    shutil.copytree("classifier", out)
    assert run(["train-classifier", "run=run", f"out={out}", "overwrite=true", *FAST, "trainer.steps=2"]) == 0
    assert checkpoint.saved_steps(out) == [2]
    assert json.loads((out / "accuracy.json").read_text()) != json.loads(Path("classifier/accuracy.json").read_text())


def test_configs_name_what_there_is():
    for name in ("classifier", "steered"):
        config = yaml.safe_load((config_folder() / "guidance" / f"{name}.yaml").read_text())
        assert config["_target_"].startswith("guidance.gradient.Steered")
