"""The DiffWave network: against the published package's model, and what conditions, patches, masks and lengths do to it."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import diffwave.model
import numpy as np
import pytest
import torch
from diffwave.params import AttrDict
from diffwave.params import params as base
from einops import rearrange
from torch import Tensor, nn

from guidance import (
    CFG,
    Condition,
    Cosine,
    Denoiser,
    Discrete,
    Eps,
    GuidedDenoiser,
    Label,
    Modality,
    UserError,
    Vector,
    level,
    on,
    sample,
)
from guidance.condition import ConditionSpec
from guidance.guide import Bound
from modalities.audio import build
from modalities.audio.codec import MDCT, Waveform
from modalities.audio.mel import Mel
from modalities.audio.network import DiffWave, convolution, convolved, gated
from modalities.audio.published import Published, renamed

HOP, MELS, LENGTH = 256, 6, 512
BETAS = list(base.noise_schedule)
ROOTS = np.sqrt(np.cumprod(1 - np.array(BETAS)))
KIND, PLACE = Label(("a", "b", "c")), Vector(2)


def mel_of(length: int = LENGTH, hop: int = HOP) -> Mel:
    return Mel(22050, length, MELS, hop, 4 * hop)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(network: nn.Module) -> Any:
    """With nothing left at zero, so that every part of it has an effect."""
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return network.eval()


def package(layers: int = 5, seed: int = 0) -> Any:
    """The package's model, small."""
    torch.manual_seed(seed)
    settings = {"residual_layers": layers, "residual_channels": 8, "dilation_cycle_length": 3, "n_mels": MELS}
    return stirred(diffwave.model.DiffWave(AttrDict({**base, **settings})))


def ours(conditions: Mapping[str, ConditionSpec], shape: tuple[int, ...] = (LENGTH,), seed: int = 1, **settings: Any) -> DiffWave:
    torch.manual_seed(seed)
    network: DiffWave = stirred(DiffWave(shape, conditions, **({"channels": 8, "layers": 5, "cycle": 3} | settings)))
    return network


def twin(theirs: Any, conditions: Mapping[str, ConditionSpec], shape: tuple[int, ...] = (LENGTH,), **settings: Any) -> DiffWave:
    """A network of ours with the package's weights, as far as it has them."""
    network = ours(conditions, shape, **({"steps": Discrete(BETAS), "layers": len(theirs.residual_layers)} | settings))
    own, weights = network.state_dict(), renamed(theirs.state_dict())
    for name, tensor in own.items():
        given = weights.get(f"network.{name}", tensor)
        tensor.copy_(given if given.shape == tensor.shape else tensor)
    return network


def logsnr_of(root: Any) -> Tensor:
    """Of levels given by sqrt(alpha-bar)."""
    square = np.asarray(root, dtype=np.float64) ** 2
    return torch.from_numpy(np.log(square / (1 - square))).float()


def said(network: DiffWave, x: Tensor, logsnr: Tensor, condition: Condition) -> Tensor:
    with torch.no_grad():
        return network(x, logsnr, network.embed(condition))


def assert_near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest."""
    assert a.shape == b.shape and bool(b.any())
    assert ((a - b).abs().max() / b.abs().max()).item() < tolerance


# Against the published package


@pytest.mark.parametrize("layers", [1, 5])
def test_the_network_is_the_packages_at_the_steps_of_training(layers: int):
    steps, theirs = torch.tensor([0, 1, 17, 49]), package(layers)
    x, mel = normal(4, LENGTH), normal(4, MELS, LENGTH // HOP, seed=1).sigmoid()
    with torch.no_grad():
        expected = theirs(x, mel, steps)[:, 0]
    network = twin(theirs, {"mel": mel_of()})
    assert_near(said(network, x, logsnr_of(ROOTS[steps.numpy()]), Condition.of(mel=mel)), expected)


def test_between_steps_the_network_is_the_packages_at_the_step_interpolated_in_the_root_of_alpha_bar():
    fast = np.sqrt(np.cumprod(1 - np.array(base.inference_noise_schedule)))
    roots = np.concatenate([fast, (ROOTS[:-1] + 0.3 * np.diff(ROOTS))[::9]])
    steps = []
    for root in roots:  # as in the package's inference
        t = next(t for t in range(len(ROOTS) - 1) if ROOTS[t + 1] <= root <= ROOTS[t])
        steps.append(t + (ROOTS[t] - root) / (ROOTS[t] - ROOTS[t + 1]))
    assert len(roots) == 12 and sum(abs(step - round(step)) > 0.01 for step in steps) >= 10
    theirs, x, mel = package(), normal(12, LENGTH), normal(12, MELS, 2, seed=1).sigmoid()
    with torch.no_grad():
        parts = [theirs(x[i : i + 1], mel[i : i + 1], torch.tensor([step], dtype=torch.float32))[:, 0] for i, step in enumerate(steps)]
        expected = torch.cat(parts)
    assert_near(said(twin(theirs, {"mel": mel_of()}), x, logsnr_of(roots), Condition.of(mel=mel)), expected, 2e-5)


def test_levels_beyond_the_steps_of_training_count_as_the_first_and_the_last():
    network, x, mel = twin(package(), {"mel": mel_of()}), normal(1, LENGTH), Condition.of(mel=normal(1, MELS, 2).sigmoid())
    first, last = logsnr_of(ROOTS[:1]), logsnr_of(ROOTS[-1:])
    for beyond, end in ((first + 0.5, first), (first + 30, first), (last - 0.5, last), (last - 30, last)):
        assert_near(said(network, x, beyond, mel), said(network, x, end, mel), 1e-6)
    assert not torch.allclose(said(network, x, first, mel), said(network, x, last, mel), atol=1e-2)


def shifted(theirs: Any, bias: Tensor, deaf: bool = False) -> Any:
    """The package's model with a bias [layers, 2 channels] added to each layer's condition, and not hearing the spectrogram."""
    theirs = deepcopy(theirs)
    with torch.no_grad():
        for layer, own in zip(theirs.residual_layers, bias, strict=True):
            layer.conditioner_projection.bias.copy_(own if deaf else layer.conditioner_projection.bias + own)
            layer.conditioner_projection.weight.mul_(not deaf)
    return theirs


def biases(network: DiffWave, condition: Condition) -> Tensor:
    """[b, layers, 2 channels]: what attributes with classes or numbers add, written out."""
    rows = []
    for i in range(len(condition)):
        total = torch.zeros(128)
        for name, part in network.labels.attributes.items():
            total += part.embed(condition.values[name][i : i + 1])[0] if condition.keep[name][i] else part.null
        rows.append((network.label_projection.weight @ total + network.label_projection.bias).view(len(network.layers), -1))
    return torch.stack(rows)


def attributes(n: int = 3) -> Condition:
    values = {"kind": torch.tensor([2, 0, 1]), "place": normal(3, 2, seed=5)}
    return Condition(values, {"kind": torch.tensor([True, True, False]), "place": torch.tensor([True, False, True])}).rows(slice(0, n))


def test_labels_are_a_bias_of_each_layer_shared_by_all_samples_of_a_clip():
    theirs, x, condition, steps = package(), normal(3, HOP), attributes(), torch.tensor([3, 20, 40])
    network = twin(theirs, {"kind": KIND, "place": PLACE}, (HOP,))
    with torch.no_grad():
        own = [shifted(theirs, bias, deaf=True) for bias in biases(network, condition)]
        expected = torch.cat([own[i](x[i : i + 1], torch.rand(1, MELS, 1), steps[i : i + 1])[:, 0] for i in range(3)])
    assert_near(said(network, x, logsnr_of(ROOTS[steps.numpy()]), condition), expected)


def test_labels_and_a_spectrogram_add_up():
    theirs, x, steps = package(), normal(3, LENGTH), torch.tensor([3, 20, 40])
    mel = normal(3, MELS, 2, seed=1).sigmoid()
    network, condition = twin(theirs, {"kind": KIND, "mel": mel_of(), "place": PLACE}), attributes().set(mel=mel)
    with torch.no_grad():
        own = [shifted(theirs, bias) for bias in biases(network, condition)]
        expected = torch.cat([own[i](x[i : i + 1], mel[i : i + 1], steps[i : i + 1])[:, 0] for i in range(3)])
    assert_near(said(network, x, logsnr_of(ROOTS[steps.numpy()]), condition), expected)


def test_an_absent_spectrogram_is_one_learned_frame_again_and_again():
    theirs, x, steps = package(), normal(1, LENGTH), torch.tensor([20])
    network = twin(theirs, {"mel": mel_of()})
    null = network.mels["mel"]["given"].null
    condition = Condition.of(mel=torch.rand(1, MELS, 2)).drop()
    with torch.no_grad():
        null.copy_(normal(MELS, 1, seed=4))
        expected = theirs(x, null.expand(1, -1, 2), steps)[:, 0]
    assert_near(said(network, x, logsnr_of(ROOTS[steps.numpy()]), condition), expected)


class Given(nn.Module):
    """An embedding of the noise level that was computed before."""

    def __init__(self, value: Tensor):
        super().__init__()
        self.value = value

    def forward(self, step: Tensor) -> Tensor:
        return self.value


def test_without_steps_the_network_sees_the_log_snr():
    theirs, x, logsnr = package(), normal(4, LENGTH), torch.tensor([-19.0, -2.0, 3.0, 18.0])
    mel = normal(4, MELS, 2, seed=1).sigmoid()
    network = twin(theirs, {"mel": mel_of()}, steps=None)
    with torch.no_grad():
        theirs.diffusion_embedding = Given(network.noise(logsnr))
        expected = theirs(x, mel, torch.zeros(4))[:, 0]
    assert_near(said(network, x, logsnr, Condition.of(mel=mel)), expected)
    assert expected.std() > 0.01


# Shapes of the input


@pytest.mark.parametrize("patch", [2, 6])
def test_patches_are_rows_of_a_shorter_input(patch: int):
    specs = {"kind": KIND, "place": PLACE, "mel": mel_of(96, 24)}
    network, rows = ours(specs, (96,), patch=patch), ours(specs, (patch, 96 // patch), seed=2)
    rows.load_state_dict(network.state_dict())
    x, logsnr, condition = normal(3, 96), torch.tensor([-3.0, 0.5, 4.0]), attributes().set(mel=normal(3, MELS, 4, seed=1))
    expected = said(rows, rearrange(x, "b (l p) -> b p l", p=patch), logsnr, condition)
    assert_near(said(network, x, logsnr, condition), rearrange(expected, "b p l -> b (l p)"), 1e-6)


@pytest.mark.parametrize(("shape", "patch"), [((24,), 1), ((24,), 4), ((3, 8), 1)], ids=str)
def test_a_mask_scales_x_and_adds_to_it_and_the_network_is_shown_its_size(shape: tuple[int, ...], patch: int):
    """It is a network without a mask of twice the rows, between the two."""
    rows = patch if len(shape) == 1 else shape[0]
    network = ours({"kind": KIND}, shape, patch=patch, mask=True)
    plain = ours({"kind": KIND}, (2 * rows, shape[-1] // patch), seed=2)
    plain.load_state_dict(network.state_dict())
    x, logsnr, condition = normal(3, *shape), torch.tensor([-3.0, 0.5, 4.0]), Condition.of(kind=[0, 1, 2])
    cut = x.view(3, -1, patch).transpose(1, 2) if len(shape) == 1 else x
    mask, rest = said(plain, torch.cat([cut, cut.abs() - math.sqrt(2 / math.pi)], 1), logsnr, condition).chunk(2, 1)
    expected = mask * cut + rest
    assert_near(said(network, x, logsnr, condition), expected.transpose(1, 2).flatten(1) if len(shape) == 1 else expected, 1e-6)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("shape", [(24,), (3, 8)], ids=str)
def test_a_new_network_says_zero(shape: tuple[int, ...], mask: bool):
    network, x = DiffWave(shape, {"kind": KIND}, 8, 2, 2, mask=mask), normal(2, *shape)
    assert torch.equal(said(network, x, torch.zeros(2), Condition.of(kind=[0, 1])), torch.zeros_like(x))


def test_a_vocoder_takes_clips_of_any_length():
    theirs, steps = package(), torch.tensor([20, 5])
    network = twin(theirs, {"mel": mel_of()})
    for frames in (1, 3, 4):
        x, mel = normal(2, HOP * frames), normal(2, MELS, frames, seed=1).sigmoid()
        with torch.no_grad():
            expected = theirs(x, mel, steps)[:, 0]
        assert_near(said(network, x, logsnr_of(ROOTS[steps.numpy()]), Condition.of(mel=mel)), expected)


def modality(codec: Any, condition: str = "mel", **settings: Any) -> Modality:
    data = Published(rate=8000, length=64, condition=condition, mel={"mels": MELS, "hop": 16, "window": 64})
    torch.manual_seed(0)
    made = build(data, partial(DiffWave, **({"channels": 8, "layers": 2, "cycle": 2} | settings)), codec)
    stirred(made.network)
    return made


@pytest.mark.parametrize(
    ("codec", "settings", "whole", "longer"),
    [
        (Waveform, {}, (64,), (96,)),
        (Waveform, {"patch": 4}, (64,), (96,)),
        (partial(MDCT, bins=8), {}, (8, 8), (8, 12)),
        (partial(MDCT, bins=16), {}, (16, 4), (16, 6)),
    ],
    ids=["wave", "patches", "two positions a frame", "one"],
)
def test_a_sample_is_as_long_as_the_spectrogram_it_is_made_for(codec: Any, settings: Any, whole: Sequence[int], longer: Sequence[int]):
    made = modality(codec, **settings)
    mel = normal(2, MELS, 6).sigmoid()
    assert made.shape == whole and made.shape_of(Condition.of(mel=mel[..., :4])) == whole
    assert made.shape_of(Condition.of(mel=mel)) == longer and made.shape_of(Condition()) == whole
    denoiser = Denoiser(made.network, Cosine(), Eps())
    x0 = sample(denoiser, (2, *longer), Condition.of(mel=mel), CFG(2.0), steps=2, project=made.codec.project)
    assert made.codec.decode(0 * x0).shape == (2, 96)
    # The layers see 1 + 2 positions to each side, so the end of a clip does not hear what is at its beginning.
    x, other = normal(2, *longer), mel.clone()
    other[..., 0] = 1 - other[..., 0]
    a, b = (said(made.network, x, torch.zeros(2), Condition.of(mel=m)) for m in (mel, other))
    third = longer[-1] // 3
    assert not torch.allclose(a[..., :third], b[..., :third], atol=1e-4) and torch.equal(a[..., -third:], b[..., -third:])


def test_a_spectrogram_whose_length_the_codec_cannot_cut_is_refused():
    made = modality(partial(MDCT, bins=16))
    assert modality(Waveform, "none").shape_of is None
    with pytest.raises(UserError, match="72 samples cannot be cut into frames of 16"):
        made.codec.shape_of(72)


# Conditions


SPECS = {"kind": KIND, "place": PLACE, "mel": mel_of(64, 16)}


def everything() -> tuple[Tensor, Tensor, Condition]:
    """Three clips of 64 samples, and every attribute there in some and absent in some."""
    mel = normal(3, MELS, 4, seed=1).sigmoid()
    both = attributes()
    condition = Condition({**both.values, "mel": mel}, {**both.keep, "mel": torch.tensor([True, False, True])})
    return normal(3, 64), torch.tensor([-3.0, 0.5, 4.0]), condition


@pytest.mark.parametrize("steps", [None, Discrete(BETAS)], ids=["log-SNR", "steps"])
def test_what_stands_where_a_condition_is_absent_reaches_nothing(steps: Discrete | None):
    network, (x, logsnr, condition) = ours(SPECS, (64,), steps=steps), everything()
    spoiled = {
        "kind": torch.where(condition.keep["kind"], condition.values["kind"], 1 - condition.values["kind"]),
        "place": torch.where(condition.keep["place"][:, None], condition.values["place"], torch.nan),
        "mel": torch.where(condition.keep["mel"][:, None, None], condition.values["mel"], torch.nan),
    }
    assert all(not torch.equal(spoiled[name], condition.values[name]) for name in SPECS)
    assert torch.equal(said(network, x, logsnr, Condition(spoiled, condition.keep)), said(network, x, logsnr, condition))


@pytest.mark.parametrize("name", SPECS)
def test_every_present_attribute_has_an_effect_and_so_has_its_absence(name: str):
    network, (x, logsnr, condition) = ours(SPECS, (64,)), everything()
    values = {**condition.values, name: (condition.values[name] + 1) % 3 if name == "kind" else condition.values[name] + 1}
    before, there = said(network, x, logsnr, condition), condition.keep[name].tolist()
    for changed in (Condition(values, condition.keep), condition.drop(name)):
        assert ((said(network, x, logsnr, changed) - before).abs().amax(1) > 1e-4).tolist() == there


def test_samples_do_not_see_each_other_and_training_changes_nothing():
    network, (x, logsnr, condition), order = ours(SPECS, (64,), mask=True), everything(), torch.tensor([2, 0, 1])
    once = said(network, x, logsnr, condition)
    assert torch.equal(said(network, x, logsnr, condition), once)
    assert_near(said(network, x[order], logsnr[order], condition.rows(order)), once[order], 1e-6)
    for i in range(3):
        one = slice(i, i + 1)
        assert_near(said(network, x[one], logsnr[one], condition.rows(one)), once[one], 1e-6)
    network.train()
    assert_near(network(x, logsnr, network.embed(condition)), once, 1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_kept_of_weights_that_were_replaced(training: bool):
    network, (x, logsnr, condition), other = ours(SPECS, (64,)), everything(), ours(SPECS, (64,), seed=7)
    before, expected = said(network, x, logsnr, condition), said(other, x, logsnr, condition)
    network.train(training).load_state_dict(other.state_dict())
    assert torch.equal(said(network, x, logsnr, condition), expected) and not torch.allclose(before, expected, atol=1e-3)


class Counted:
    """A network that counts what it is asked."""

    def __init__(self, network: DiffWave):
        self.network, self.embedded, self.called = network, [], 0

    def embed(self, condition: Condition) -> Any:
        self.embedded.append(len(condition))
        return self.network.embed(condition)

    def __call__(self, *inputs: Any) -> Tensor:
        self.called += 1
        return self.network(*inputs)


@pytest.mark.parametrize("max_rows", [None, 2])
def test_all_terms_of_guidance_are_embedded_together_once_a_run(max_rows: int | None):
    network, whole = ours(SPECS, (64,)), Condition.of(**everything()[2].values)
    guidance = 3.0 * on(kind="c") - 1.0 * on(place=[0.3, 0.2]) + 0.5 * on(kind="b", place=[1.0, 2.0])
    guidance = guidance.bind(lambda name, value: bound(name, value, 3))
    counted = Counted(network)
    x0 = sample(Denoiser(counted, Cosine(), Eps()), (3, 64), whole, guidance, steps=4, max_rows=max_rows, device="cpu")
    assert len(counted.embedded) == 1 and counted.called == (4 if max_rows is None else 4 * -(-counted.embedded[0] // 2))
    assert_near(sample(Denoiser(network, Cosine(), Eps()), (3, 64), whole, guidance, steps=4), x0, 1e-4)


def bound(name: str, value: Any, n: int) -> Any:
    return Bound(torch.stack([SPECS[name].parse(value)] * n), torch.ones(n, dtype=torch.bool))


@pytest.mark.parametrize("specs", [SPECS, {"mel": SPECS["mel"]}, {"kind": KIND}, {}], ids=lambda specs: "+".join(specs) or "none")
def test_guided_predictions_are_the_weighted_sums_of_predictions_made_apart(specs: Mapping[str, ConditionSpec]):
    """One scale a sample: the second is conditional alone, the third unconditional alone."""
    network, (x, _, condition) = ours(specs, (64,)), everything()
    condition = Condition({n: condition.values[n] for n in specs}, {n: condition.keep[n] for n in specs})
    scale, at = torch.tensor([3.0, 1.0, 0.0]), level(Cosine(), torch.tensor(0.4), x)
    guided = GuidedDenoiser(Denoiser(network, Cosine(), Eps()), CFG(scale), condition, 3)
    logsnr = torch.full((3,), at.logsnr.item())
    eps_c, eps_0 = said(network, x, logsnr, condition), said(network, x, logsnr, condition.drop())
    assert_near(guided(x, at).eps, scale[:, None] * eps_c + (1 - scale[:, None]) * eps_0)
    assert guided.rows == (4 if specs else 3)


# Training


@pytest.mark.parametrize(
    ("shape", "settings"), [((64,), {"steps": Discrete(BETAS)}), ((64,), {"patch": 4, "mask": True}), ((8, 8), {"mask": True})], ids=str
)
def test_every_parameter_is_trained(shape: tuple[int, ...], settings: dict[str, Any]):
    network, (_, logsnr, condition) = ours(SPECS, shape, **settings).train(), everything()
    spoiled = {**condition.values, "place": torch.where(condition.keep["place"][:, None], condition.values["place"], torch.nan)}
    network(normal(3, *shape), logsnr, network.embed(Condition(spoiled, condition.keep))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        rows = parameter.grad.flatten(1).abs().amax(1) if parameter.ndim > 1 else parameter.grad
        unseen = 0
        if name.startswith("layers.4.output"):
            unseen = 8  # the last layer's residual half leads nowhere
        if name == "labels.attributes.kind.embed.weight":
            unseen = 1  # a class that no row has
        assert int((rows == 0).sum()) == unseen, name


def test_gradients_are_those_of_the_packages_model():
    theirs, x, mel, steps = package(), normal(2, LENGTH), normal(2, MELS, 2, seed=1).sigmoid(), torch.tensor([9, 30])
    network, target = twin(theirs, {"mel": mel_of()}).train(), normal(2, LENGTH, seed=9)
    (theirs(x, mel, steps)[:, 0] * target).sum().backward()
    (network(x, logsnr_of(ROOTS[steps.numpy()]), network.embed(Condition.of(mel=mel))) * target).sum().backward()
    expected = renamed({name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in network.named_parameters():
        if name != "mels.mel.given.null":
            assert_near(parameter.grad, expected[f"network.{name}"], 2e-4)


@pytest.mark.parametrize(("dilation", "length"), [(1, 40), (8, 40), (64, 256), (128, 1024), (128, 1000), (256, 256), (512, 384)])
def test_a_dilated_convolution_is_pytorchs_with_its_gradients(dilation: int, length: int):
    torch.manual_seed(0)
    layer, x, target = convolution(6, 10, 3, dilation).double(), normal(2, 6, length).double(), normal(2, 10, length, seed=1).double()
    found = []
    for apply in (layer, lambda x: convolved(layer, x.mT.contiguous()).mT):
        seen = x.clone().requires_grad_()
        made = apply(seen)
        found.append((made, *torch.autograd.grad((made * target).sum(), (seen, *layer.parameters()))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.bfloat16, 4e-3)])
def test_a_gate_is_a_sigmoid_times_a_tanh(dtype: torch.dtype, tolerance: float):
    gate, filtered = (part.to(dtype) for part in torch.meshgrid(torch.linspace(-90, 90, 37), torch.linspace(-90, 90, 361), indexing="ij"))
    expected = gate.double().sigmoid() * filtered.double().tanh()
    assert float((gated(gate, filtered).double() - expected).abs().max()) < tolerance
    small = torch.linspace(-1e-2, 1e-2, 11).to(dtype)
    assert float((gated(torch.full_like(small, 90), small).double() - small.double().tanh()).abs().max()) < 2e-7 + tolerance * 1e-2


# What cannot be


@pytest.mark.parametrize(
    ("shape", "specs", "settings", "words"),
    [
        ((16,), {}, {"channels": 0}, "network.channels"),
        ((16,), {}, {"layers": 0}, "layers"),
        ((16,), {}, {"cycle": 0}, "cycle"),
        ((16,), {}, {"patch": 0}, "patch"),
        ((16,), {}, {"patch": 3}, r"16 samples.*patches of 3.*network\.patch"),
        ((4, 4), {}, {"patch": 2}, r"network\.patch.*leave it at 1"),
        ((63,), {"mel": mel_of(63, 21)}, {}, r"21 positions.*data\.mel\.hop"),
        ((64,), {"mel": mel_of(64, 8)}, {"patch": 16}, r"0\.5 positions.*data\.mel\.hop"),
        ((68,), {"mel": mel_of(68, 34)}, {}, r"positions.*data\.mel\.hop"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused(shape: tuple[int, ...], specs: Any, settings: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words) as error:
        ours(specs, shape, **settings)
    assert "\n" not in str(error.value)


def test_a_condition_that_lacks_an_attribute_is_refused():
    with pytest.raises(UserError, match="kind"):
        ours({"kind": KIND}).embed(Condition())
