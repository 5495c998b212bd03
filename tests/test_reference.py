"""Another model as reference: autoguidance."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

import guidance
from guidance import (
    CFG,
    DDIM,
    Autoguidance,
    Checkpoint,
    Condition,
    Cosine,
    Denoiser,
    GuidedDenoiser,
    Interval,
    Mixture,
    UserError,
    level,
    load,
    sample,
)
from guidance.cli import run
from guidance.sampler import LogSNR
from modalities.image.network import UNet

MEAN, STD, WORSE = 0.6, 0.5, 0.9
MAIN = Mixture(torch.tensor([[MEAN], [-MEAN]]), STD, labels={"side": [0, 1]}).denoiser()
REFERENCE = Mixture(torch.tensor([[MEAN], [-MEAN]]), WORSE, labels={"side": [0, 1]}).denoiser()
SIDE = Condition.of(side=torch.zeros(4, dtype=torch.long))


def at(logsnr: float) -> guidance.Level:
    a2 = torch.tensor(logsnr, dtype=torch.float64).sigmoid()
    return guidance.Level(torch.tensor(0.5, dtype=torch.float64), a2.sqrt(), (1 - a2).sqrt())


@pytest.mark.parametrize("logsnr", [-6.0, 0.0, 5.0])
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0, torch.tensor([0.0, 1.0, 2.0, -3.0])])
def test_the_score_is_that_of_gaussians_to_the_power_of_their_weights(scale: float | Tensor, logsnr: float):
    """d/dx (s log N(x; alpha m, alpha^2 v + sigma^2) + (1 - s) log N(x; alpha m, alpha^2 w + sigma^2))."""
    here, x = at(logsnr), torch.tensor([[-1.0], [0.1], [0.7], [2.0]], dtype=torch.float64)
    found = GuidedDenoiser(MAIN, Autoguidance(scale, REFERENCE), SIDE, 4)(x, here)
    s = torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1)
    precision = s / (here.alpha**2 * STD**2 + here.sigma**2) + (1 - s) / (here.alpha**2 * WORSE**2 + here.sigma**2)
    score = -precision * (x - here.alpha * MEAN)
    torch.testing.assert_close(-found.eps / here.sigma, score, atol=1e-5, rtol=1e-6)


def draw(guide: guidance.Guidance, n: int = 4, steps: int = 30) -> Tensor:
    condition = Condition.of(side=torch.arange(n) % 2)
    return sample(MAIN, (n, 1), condition, guide, DDIM(), steps=steps, grid=LogSNR())


def test_at_scale_1_samples_are_the_plain_models_and_the_reference_is_not_asked():
    plain = draw(CFG(1.0))
    torch.testing.assert_close(draw(Autoguidance(1.0, REFERENCE)), plain, atol=1e-6, rtol=0)
    guided = GuidedDenoiser(MAIN, Autoguidance(1.0, REFERENCE), SIDE, 4)
    guided(torch.zeros(4, 1), at(0.0))
    assert guided.rows == 4
    assert (draw(Autoguidance(2.0, REFERENCE)) - plain).abs().max() > 0.05


def test_a_reference_that_is_as_good_changes_nothing():
    twin = Mixture(torch.tensor([[MEAN], [-MEAN]]), STD, labels={"side": [0, 1]}).denoiser()
    torch.testing.assert_close(draw(Autoguidance(4.0, twin)), draw(CFG(1.0)), atol=1e-5, rtol=0)


def test_gaussians_end_where_their_differential_equation_says():
    """One class: dx = of a linear ODE, so the samples are normal; the deviation by integrating its logarithm on a fine grid."""
    scale, n = 2.0, 4000
    drawn = sample(MAIN, (n, 1), Condition.of(side=torch.zeros(n, dtype=torch.long)), Autoguidance(scale, REFERENCE), DDIM(), steps=400)
    # With u = x / alpha - m and s = sigma / alpha: du/ds = eps = u s (g / (v + s^2) + (1 - g) / (w + s^2)), from s(1) down to 0.
    top = (Cosine()(torch.tensor([1.0]))[1] / Cosine()(torch.tensor([1.0]))[0]).item()
    shrink = ((STD**2 / (STD**2 + top**2)) ** (scale / 2)) * ((WORSE**2 / (WORSE**2 + top**2)) ** ((1 - scale) / 2))
    assert float(drawn.std()) == pytest.approx(top * shrink, rel=0.04)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.03)


def test_inside_an_interval_it_is_asked_within_only():
    guided = GuidedDenoiser(MAIN, Interval(Autoguidance(3.0, REFERENCE), -1.0, 1.0), SIDE, 4)
    rows = []
    for logsnr in (-4.0, 0.0, 4.0):
        before = guided.rows
        guided(torch.zeros(4, 1), at(logsnr))
        rows.append(guided.rows - before)
    assert rows == [4, 8, 4]


def test_the_reference_is_in_eval_mode_while_it_is_asked_and_afterwards_as_it_was():
    shape = (1, 4, 4)
    networks = [UNet(shape, {}, channels=8, multipliers=(1,), blocks=1, dropout=0.9) for _ in range(2)]
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    main, other = (Denoiser(network, Cosine(), guidance.V()) for network in networks)
    networks[1].train()
    first, second = (sample(main, (2, *shape), None, Autoguidance(2.0, other), steps=3) for _ in range(2))
    assert torch.equal(first, second) and networks[1].training


# Of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("reference")
    tiny = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        jaxtyping.config.update("jaxtyping_disable", True)
        train = partial(lambda name, *more: run(["train", *tiny, "trainer.lr=0.01", "trainer.warmup=0", *more, f"out={folder / name}"]))
        steps = ["trainer.steps=30", "trainer.save_every=10", "trainer.keep=9"]
        assert train("run", "data=digits", *steps) == 0
        assert train("large", "data=mnist", "network.patch=7", "trainer.steps=1") == 0
        yield folder / "run"
        jaxtyping.config.update("jaxtyping_disable", False)


def test_an_earlier_checkpoint_of_the_same_run(trained: Path):
    model, earlier = load(trained), load(trained, step=10)
    guide = Autoguidance(2.5, Checkpoint(step=10))
    found = model.latents(3, {"digit": [1, 2, 3]}, guidance=guide, steps=4, batch_size=2)
    by_hand = model.latents(3, {"digit": [1, 2, 3]}, guidance=Autoguidance(2.5, earlier.denoisers["main"]), steps=4)
    torch.testing.assert_close(torch.cat(list(found)), torch.cat(list(by_hand)), atol=1e-5, rtol=0)
    plain = torch.cat(list(model.latents(3, {"digit": [1, 2, 3]}, steps=4)))
    torch.testing.assert_close(
        torch.cat(list(model.latents(3, {"digit": [1, 2, 3]}, guidance=Autoguidance(1.0, Checkpoint(step=10)), steps=4))),
        plain,
        atol=1e-6,
        rtol=0,
    )
    # One step from one level: the prediction is the weighted sum of both models' own.
    guided = GuidedDenoiser(model.denoisers["main"], guide.of(model, 3), model.condition(3, {"digit": [1, 2, 3]}), 3)
    x = torch.randn(3, *model.modality.shape, generator=torch.Generator().manual_seed(0))
    here = level(Cosine(), torch.tensor(0.6), x)
    parts = [
        GuidedDenoiser(of.denoisers["main"], CFG(1.0), of.condition(3, {"digit": [1, 2, 3]}), 3)(x, here).x0 for of in (model, earlier)
    ]
    torch.testing.assert_close(guided(x, here).x0, 2.5 * parts[0] - 1.5 * parts[1], atol=1e-5, rtol=0)


def test_on_the_command_line(trained: Path, tmp_path: Path):
    from PIL import Image

    def shown(*more: str) -> np.ndarray:
        out = tmp_path / "out"
        common = [f"run={trained}", "n=2", "condition.digit=3", "sampler.steps=3", "threads=1", f"out={out}", "overwrite=true"]
        assert run(["sample", *common, *more]) == 0
        return np.stack([np.array(Image.open(out / f"{k:06d}.png")) for k in range(2)])

    guided = shown("guidance=autoguidance", "guidance.scale=4", "guidance.reference.step=10")
    model = load(trained)
    same = model.sample(2, {"digit": 3}, guidance=Autoguidance(4.0, Checkpoint(step=10)), steps=3)
    assert np.array_equal(guided, same[:, 0].numpy()) and not np.array_equal(guided, shown())


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ((), ("the guided model itself", "earlier step")),
        (("guidance.reference.step=30",), ("the guided model itself",)),
        (("guidance.reference.step=15",), ("15", "10, 20, 30")),
        (("guidance.reference.run={}/../nowhere",), ("nowhere", "no such folder")),
        (("guidance.reference.run={}/../large",), ("shape [1, 28, 28]", "[1, 8, 8]")),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    reference: tuple[str, ...], words: tuple[str, ...], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = [part.format(trained) for part in reference]
    out = tmp_path / "out"
    assert run(["sample", f"run={trained}", "n=2", "condition.digit=3", "guidance=autoguidance", *settings, f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert len([line for line in error.splitlines() if line.startswith("polyguide:")]) == 1 and "Traceback" not in error
    assert all(word in error for word in words) and not out.exists()


def test_models_of_other_attributes_or_codecs_are_refused(trained: Path):
    from dataclasses import replace

    from guidance.codec import Standardized
    from guidance.reference import check_alike

    model, other = load(trained), load(trained, step=10)
    check_alike(model, other, "it")
    fewer = replace(other, modality=replace(other.modality, conditions={"digit": other.modality.conditions["digit"]}))
    with pytest.raises(UserError, match="attribute 'stroke'"):
        check_alike(model, fewer, "it")
    with pytest.raises(UserError, match="another codec"):
        check_alike(model, replace(other, modality=replace(other.modality, codec=Standardized())), "it")
    a, b = Standardized(), Standardized()
    for buffer in b.buffers():
        buffer.data += 1
    codecs = [replace(of, modality=replace(of.modality, codec=codec)) for of, codec in ((model, a), (other, b))]
    with pytest.raises(UserError, match="another codec"):
        check_alike(*codecs, "it")


def test_what_is_no_reference_is_refused():
    with pytest.raises(UserError, match="a Denoiser or a Checkpoint"):
        Autoguidance(2.0, "runs/digits")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not loaded yet"):
        sample(MAIN, (2, 1), Condition.of(side=[0, 1]), Autoguidance(2.0))
    with pytest.raises(UserError, match=r"guidance\.scale"):
        Autoguidance(float("nan"), REFERENCE)
