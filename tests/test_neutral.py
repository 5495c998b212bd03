"""Every way to guide, at the setting at which it should change nothing: samples are the plain conditional model's, to 1e-6.

In every modality: networks with weights at random, of the three plug-ins, and an exact denoiser.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guidance import (
    APG,
    CFG,
    DDIM,
    DDPM,
    Autoguidance,
    ByDensity,
    CFGZero,
    Complement,
    Condition,
    Cosine,
    Denoiser,
    DPMSolver,
    DynamicThreshold,
    FeynmanKac,
    Heun,
    Interval,
    Label,
    Langevin,
    Linear,
    Mixture,
    Reconstruction,
    Rescale,
    Reward,
    Smooth,
    Steered,
    Table,
    Threshold,
    V,
    on,
    sample,
)
from guidance.guide import Guidance
from guidance.logic import Either
from guidance.sampler import Sampler
from modalities.audio.network import DiffWave
from modalities.image.network import UNet
from modalities.text.network import TextDenoiser

N = 5
KINDS = Label(("a", "b", "c"))
ASKED = Condition({"kind": torch.tensor([0, 1, 2, 1, 0])}, {"kind": torch.tensor([True, True, True, True, False])})


def shaken(network: nn.Module) -> nn.Module:
    """With weights at random everywhere: networks begin with zeros in their last layer, and would say nothing."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return network.eval()


def made(name: str, seed: int = 0) -> tuple[Denoiser, tuple[int, ...]]:
    conditions: Any = {"kind": KINDS}
    torch.manual_seed(seed)
    if name == "mixture":
        means = torch.tensor([[-1.0, 0.3], [0.2, 1.0], [1.0, -0.5]])
        return Mixture(means, 0.4 + 0.1 * seed, labels={"kind": [0, 1, 2]}).denoiser(), (2,)
    if name == "image":
        return Denoiser(shaken(UNet((1, 4, 4), conditions, channels=8, multipliers=(1,), blocks=1)), Cosine(), V()), (1, 4, 4)  # type: ignore[arg-type]
    if name == "audio":
        return Denoiser(shaken(DiffWave((32,), conditions, channels=8, layers=2, cycle=2)), Cosine(), V()), (32,)  # type: ignore[arg-type]
    encoder = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = shaken(TextDenoiser((6, 4), conditions, encoder))
    return Denoiser(network, Cosine(), V(), self_condition=True), (6, 4)  # type: ignore[arg-type]


def reward(x0: Tensor) -> Tensor:
    return x0.flatten(1).sin().sum(1)


Make = Callable[[Denoiser, tuple[int, ...]], Guidance]

RULES: dict[str, Make] = {
    "linear": lambda d, s: CFG(Linear(-3.0, 3.0, 1.0, 1.0)),
    "smooth": lambda d, s: CFG(Smooth(-3.0, 3.0, 1.0, 1.0)),
    "table": lambda d, s: CFG(Table([[0.0, 1.0]])),
    "composition": lambda d, s: 1.0 * on(kind=ASKED.values["kind"]),
    "interval": lambda d, s: Interval(CFG(5.0), low=100.0, high=101.0),
    "interval inside": lambda d, s: Interval(CFG(1.0), -2.0, 2.0),
    "rescale": lambda d, s: Rescale(CFG(1.0), 0.7),
    "rescale nothing": lambda d, s: Rescale(CFG(1.0), 0.0),
    "threshold": lambda d, s: Threshold(CFG(1.0), 1e6),
    "dynamic threshold": lambda d, s: DynamicThreshold(CFG(1.0), 0.995, 1e6),
    "apg": lambda d, s: APG(1.0, momentum=-0.5, limit=2.0),
    "cfg-zero": lambda d, s: CFGZero(1.0),
    "autoguidance": lambda d, s: Autoguidance(1.0, d),
    "autoguidance by itself": lambda d, s: Autoguidance(3.0, d),
    "reward": lambda d, s: Steered(CFG(1.0), Reward(reward), 0.0),
    "reward that is constant": lambda d, s: Steered(CFG(1.0), Reward(lambda x0: 0.0 * reward(x0)), 2.0),
    "reconstruction": lambda d, s: Steered(CFG(1.0), Reconstruction(torch.zeros(1, *s), torch.zeros(1, *s)), 2.0),
    "complement": lambda d, s: Complement((on(kind=torch.tensor([2] * N))).items, 0.0),
    "nested": lambda d, s: Rescale(Interval(DynamicThreshold(Steered(APG(1.0), Reward(reward), 0.0), 0.9, 1e6), -2.0, 2.0), 0.5),
}


def draw(denoiser: Denoiser, shape: tuple[int, ...], guide: Guidance, sampler: Sampler, condition: Condition = ASKED) -> Tensor:
    return sample(denoiser, (N, *shape), condition, guide, sampler, steps=6, seed=3)


@pytest.mark.parametrize("name", ["mixture", "image", "audio", "text"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_should_change_nothing_changes_nothing(rule: str, name: str):
    denoiser, shape = made(name)
    asked = ASKED if rule not in ("composition", "complement") else Condition.of(kind=ASKED.values["kind"])
    if rule == "complement":  # whose base is what the condition asks for, and takes nothing of the same attribute out
        asked = ASKED.drop()
    sampler: Sampler = DDPM() if rule == "complement" else DPMSolver()
    plain = draw(denoiser, shape, CFG(1.0), sampler, asked)
    torch.testing.assert_close(draw(denoiser, shape, RULES[rule](denoiser, shape), sampler, asked), plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["mixture", "image", "audio", "text"])
@pytest.mark.parametrize("inner", [DDIM(), DDPM(), Heun(), DPMSolver(sde=True)], ids=repr)
def test_no_moves_are_the_sampler_itself(inner: Sampler, name: str):
    denoiser, shape = made(name)
    plain = draw(denoiser, shape, CFG(2.0), inner)
    assert torch.equal(draw(denoiser, shape, CFG(2.0), Langevin(inner, moves=0)), plain)


@pytest.mark.parametrize("name", ["mixture", "image", "audio"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_at_scales_0_and_1_all_particles_weigh_the_same(scale: float, name: str):
    """So the last resampling, which is systematic, keeps every one in its place."""
    denoiser, shape = made(name)
    asked = Condition.of(kind=torch.ones(N, dtype=torch.long))
    for inner in (DDPM(), DPMSolver(sde=True)):
        plain = draw(denoiser, shape, CFG(scale), inner, asked)
        found = draw(denoiser, shape, CFG(scale), FeynmanKac(inner, particles=N), asked)
        torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)


def test_an_or_of_one_is_that_condition():
    denoiser, shape = made("mixture")
    asked = Condition.of(kind=torch.tensor([1] * N))
    one = Either(on(kind=torch.tensor([1] * N)).items, ByDensity(denoiser))
    torch.testing.assert_close(
        draw(denoiser, shape, one, DDIM(), asked.drop()), draw(denoiser, shape, CFG(1.0), DDIM(), asked), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("complement", "composition")])
def test_the_test_would_see_it(rule: str):
    """What is neutral at one setting is not at another: the networks do react."""
    denoiser, shape = made("image")
    other, _ = made("image", seed=1)
    with torch.no_grad():
        for parameter in other.network.parameters():  # type: ignore[attr-defined]
            parameter.mul_(1.3)
    away: dict[str, Guidance] = {
        "linear": CFG(Linear(-3.0, 3.0, 1.0, 3.0)),
        "smooth": CFG(Smooth(-3.0, 3.0, 1.0, 3.0)),
        "table": CFG(Table([[0.0, 3.0]])),
        "interval": Interval(CFG(5.0), low=-1.0, high=1.0),
        "interval inside": Interval(CFG(3.0), -2.0, 2.0),
        "rescale": Rescale(CFG(3.0), 0.7),
        "rescale nothing": Rescale(CFG(3.0), 0.1),
        "threshold": Threshold(CFG(1.0), 0.1),
        "dynamic threshold": DynamicThreshold(CFG(1.0), 0.5, 0.1),
        "apg": APG(3.0, momentum=-0.5, limit=2.0),
        "cfg-zero": CFGZero(1.0, zero=0.3),
        "autoguidance": Autoguidance(2.0, other),
        "autoguidance by itself": Autoguidance(3.0, other),
        "reward": Steered(CFG(1.0), Reward(reward), 1.0),
        "reward that is constant": Steered(CFG(1.0), Reward(reward), 2.0),
        "reconstruction": Steered(CFG(1.0), Reconstruction(torch.zeros(1, *shape)), 2.0),
        "nested": Rescale(Interval(DynamicThreshold(Steered(APG(1.0), Reward(reward), 1.0), 0.9, 1e6), -2.0, 2.0), 0.5),
    }
    plain = draw(denoiser, shape, CFG(1.0), DPMSolver())
    assert (draw(denoiser, shape, away[rule], DPMSolver()) - plain).abs().max() > 1e-3
