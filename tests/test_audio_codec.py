"""What stands between a wave and x0: its scale, or the lapped transform, each against closed forms."""

import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from guidance import Condition, UserError
from guidance.split import pick
from modalities.audio import codec as module
from modalities.audio.codec import MDCT, Waveform


@dataclass(frozen=True)
class Waves:
    """A split without conditions."""

    waves: Tensor

    def __len__(self) -> int:
        return len(self.waves)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        return self.waves[torch.tensor(index)], Condition()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coloured(n: int, length: int) -> Tensor:
    """Waves within full scale whose low bins hold far more than the high ones."""
    waves = noise(n, length).cumsum(1)
    return 0.9 * waves / waves.abs().amax(1, keepdim=True)


def fitted(length: int = 96, bins: int = 8, power: float = 0.5) -> MDCT:
    codec = MDCT(length, bins, power)
    codec.fit(Waves(coloured(40, length)))
    return codec


def basis(length: int, bins: int) -> Tensor:
    """[bins, frames, samples] of the definition: frame f covers samples fN - N/2 to fN + 3N/2 under a sine window, whose slopes at the
    ends of the clip are steps."""
    n, k = torch.arange(2 * bins, dtype=torch.float64), torch.arange(bins, dtype=torch.float64)[:, None]
    cosine = math.sqrt(2 / bins) * torch.cos(math.pi / bins * (n + 0.5 - bins / 2) * (k + 0.5))
    frames, window = length // bins, torch.sin(math.pi / (2 * bins) * (n + 0.5))
    result = torch.zeros(bins, frames, length + bins, dtype=torch.float64)
    for f in range(frames):
        w = window.clone()
        if f == 0:
            w[:bins] = (n[:bins] >= bins / 2).double()
        if f == frames - 1:
            w[bins:] = (n[bins:] < 3 * bins / 2).double()
        result[:, f, f * bins : (f + 2) * bins] = w * cosine
    return result[..., bins // 2 : length + bins // 2]


def spoken(codec: Any, x0: Tensor) -> Tensor:
    """Decoded, without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded: Tensor = codec.decode(x0)
    return decoded


# The lapped transform


@pytest.mark.parametrize(("length", "bins"), [(12, 2), (48, 8), (20, 10), (128, 32), (16, 16)])
def test_coefficients_are_those_of_the_definition(length: int, bins: int):
    wave = noise(3, length)
    expected = torch.einsum("bn,kfn->bkf", wave.double(), basis(length, bins))
    encoded = MDCT(length, bins, power=1).encode(wave)
    assert encoded.shape == (3, *MDCT(length, bins).shape)
    torch.testing.assert_close(encoded.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("length", "bins"), [(12, 2), (48, 8), (20, 10), (128, 32)])
def test_the_transform_is_orthonormal(length: int, bins: int):
    rows = MDCT(length, bins, power=1).encode(torch.eye(length)).flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(length), atol=2e-6, rtol=0)
    torch.testing.assert_close(rows.T @ rows, torch.eye(length), atol=2e-6, rtol=0)


@pytest.mark.parametrize("power", [0.3, 0.5, 1])
def test_compression_raises_sizes_to_the_power_and_keeps_signs(power: float):
    wave = noise(2, 48)
    plain, compressed = MDCT(48, 8, 1).encode(wave), MDCT(48, 8, power).encode(wave)
    torch.testing.assert_close(compressed.abs(), plain.abs() ** power)
    assert torch.equal(compressed.sign(), plain.sign())


@pytest.mark.parametrize("power", [0.3, 0.5, 1])
@pytest.mark.parametrize("bins", [2, 8, 16, 48])
def test_decoding_undoes_encoding(bins: int, power: float):
    codec = fitted(96, bins, power)
    waves = torch.cat([coloured(3, 96), torch.zeros(1, 96), 1e-3 * coloured(1, 96)])
    torch.testing.assert_close(spoken(codec, codec.encode(waves)), waves, atol=3e-6, rtol=0)
    assert not codec.encode(torch.zeros(1, 96)).any() and not spoken(codec, torch.zeros(1, *codec.shape)).any()


@pytest.mark.parametrize("power", [0.3, 1])
def test_every_bin_has_unit_variance_over_the_training_data(power: float):
    x0 = fitted(power=power).encode(coloured(40, 96))
    torch.testing.assert_close(x0.square().mean((0, 2)), torch.ones(8))


def test_fitting_to_silence_and_to_a_bin_that_is_silent_stays_finite():
    codec = MDCT(96, 8)
    codec.fit(Waves(torch.zeros(2, 96)))
    assert codec.encode(coloured(1, 96)).isfinite().all() and bool((codec.scale > 0).all())
    frames = torch.zeros(1, 8, 12)
    frames[:, :3] = 0.1
    only_low = spoken(MDCT(96, 8), frames)
    codec.fit(Waves(only_low))
    x0 = codec.encode(only_low)
    torch.testing.assert_close(x0[:, :3], torch.ones(1, 3, 12), atol=1e-3, rtol=0)
    assert x0[:, 3:].abs().max() < 1, "what rounding leaves is not made as loud as the rest"


@pytest.mark.parametrize("power", [0.5, 1])
@pytest.mark.parametrize("bins", [2, 8, 32])
def test_waves_of_full_scale_are_within_the_bound_and_barely(bins: int, power: float):
    """The wave that gives a coefficient its largest size is the sign of its basis function."""
    codec = fitted(96, bins, power)
    worst = basis(96, bins).sign().float().flatten(0, 1)
    worst[worst == 0] = 1
    x0 = codec.encode(worst)
    assert torch.equal(codec.project(x0), x0)
    own = x0.flatten(1).diagonal().view(codec.shape)  # each coefficient of its own worst wave
    bound = codec.project(torch.full((1, *codec.shape), 1e9))[0]
    assert torch.equal(codec.project(torch.full((1, *codec.shape), -1e9))[0], -bound)
    size = (bound * codec.scale[:, None]) ** (1 / power)
    torch.testing.assert_close(size, torch.full_like(size, math.sqrt(2 * bins)))
    share = (own / bound) ** (1 / power)
    assert share.min() > 0.6 and share.max() <= 1


def test_projecting_touches_only_what_lies_beyond():
    codec = fitted()
    x0 = 100 * noise(2, *codec.shape)
    projected, bound = codec.project(x0), codec.project(torch.full_like(x0, 1e9))
    within = x0.abs() <= bound
    assert 0 < within.float().mean() < 1
    assert torch.equal(projected, torch.where(within, x0, x0.sign() * bound))


# Waveforms


def test_a_waveform_is_brought_to_unit_variance():
    waves = 0.05 * noise(30, 64)
    codec = Waveform(64)
    codec.fit(Waves(waves))
    x0 = codec.encode(waves)
    assert x0.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert codec.scale.item() == pytest.approx(waves.double().square().mean().sqrt().item(), rel=1e-5)
    torch.testing.assert_close(spoken(codec, x0), waves)


def test_a_scale_that_was_given_stays():
    codec = Waveform(64, scale=0.25)
    codec.fit(Waves(0.05 * noise(30, 64)))
    wave = 0.1 * noise(2, 64)
    assert torch.equal(codec.encode(wave), 4 * wave) and torch.equal(spoken(codec, 4 * wave), wave)
    assert torch.equal(Waveform(64).encode(wave), wave), "and before anything is known it is 1"


def test_fitting_to_silence_leaves_a_scale_that_can_be_divided_by():
    codec = Waveform(16)
    codec.fit(Waves(torch.zeros(2, 16)))
    assert codec.encode(torch.ones(1, 16)).isfinite().all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_cannot_be_is_refused(scale: float):
    with pytest.raises(UserError, match=r"codec\.scale.*positive"):
        Waveform(16, scale)


def test_a_waveform_is_projected_into_full_scale():
    codec = Waveform(5, scale=0.3)
    x0 = codec.encode(torch.tensor([[-3.0, -1.0, 0.2, 1.0, 1.5]]))
    expected = torch.tensor([[-1.0, -1.0, 0.2, 1.0, 1.0]]) / 0.3
    torch.testing.assert_close(codec.project(x0), expected)
    assert torch.equal(codec.project(x0)[:, 1:4], x0[:, 1:4])


def test_the_scale_is_measured_on_clips_from_the_whole_split(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST", 4)
    loudness = torch.full((10,), 9.0)
    loudness[torch.tensor(pick(10, 4))] = torch.tensor([1.0, 2, 3, 4])
    codec = Waveform(8)
    codec.fit(Waves(loudness[:, None].expand(10, 8)))
    assert codec.scale.item() == pytest.approx(math.sqrt((1 + 4 + 9 + 16) / 4))
    monkeypatch.setattr(module, "MOST", 4096)
    codec.fit(Waves((torch.arange(1100) < 600).float()[:, None].expand(1100, 8)))  # more than are read at a time
    assert codec.scale.item() == pytest.approx(math.sqrt(600 / 1100))


# Both


CODECS = [lambda: Waveform(96, 0.3), lambda: fitted(96, 8, 1)]


@pytest.mark.parametrize("make", CODECS, ids=["wave", "mdct"])
def test_what_lies_beyond_full_scale_is_clipped_and_its_share_said(make: Any):
    codec = make()
    wave = coloured(2, 96)
    wave[0, 3:8], wave[1, 50] = 1.5, -7.0
    with pytest.warns(UserWarning) as said:
        decoded = codec.decode(codec.encode(wave))
    assert len(said) == 1 and re.match(r"3\.12 % of the samples were beyond full scale", str(said[0].message)), "6 of 192"
    torch.testing.assert_close(decoded, wave.clamp(-1, 1), atol=1e-5, rtol=0)
    assert decoded.abs().max() == 1


@pytest.mark.parametrize("make", [*CODECS, lambda: Waveform(96, 0.07), lambda: fitted(96, 16, 0.5)], ids=["wave", "mdct", "quiet", "power"])
def test_full_scale_itself_is_not_beyond_it_whatever_rounding_does(make: Any):
    codec, square = make(), noise(8, 96).sign()
    decoded = spoken(codec, codec.encode(square))
    torch.testing.assert_close(decoded, square, atol=1e-5, rtol=0)
    assert decoded.abs().max() <= 1


def test_projected_waveforms_are_never_beyond_full_scale():
    for scale in torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist():
        codec = Waveform(2, scale)
        assert spoken(codec, codec.project(torch.tensor([[1e6, -1e6]]))).abs().max() <= 1


@pytest.mark.parametrize("make", [Waveform, lambda length: MDCT(length, 8)], ids=["wave", "mdct"])
def test_the_scale_is_stored_with_the_weights_and_nothing_else_is(make: Any):
    codec, other, wave = make(96), make(96), coloured(2, 96)
    codec.fit(Waves(coloured(40, 96)))
    assert list(codec.state_dict()) == ["scale"] and not list(codec.parameters())
    assert not torch.equal(other.encode(wave), codec.encode(wave))
    other.load_state_dict(codec.state_dict())
    assert torch.equal(other.encode(wave), codec.encode(wave))


@pytest.mark.parametrize("make", CODECS, ids=["wave", "mdct"])
def test_other_lengths_than_the_datas_are_encoded_too(make: Any):
    codec, wave = make(), coloured(2, 240)
    x0 = codec.encode(wave)
    assert x0.shape[1:] == codec.shape_of(240) and codec.shape_of(96) == codec.shape
    torch.testing.assert_close(spoken(codec, x0), wave, atol=3e-6, rtol=0)
    assert torch.equal(codec.anchor_loss(wave, x0, None), torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MDCT(100, 8), r"100 samples.*frames of 8.*data\.length"),
        (lambda: MDCT(96, 8).shape_of(100), "100 samples.*frames of 8"),
        (lambda: MDCT(99, 9), r"codec\.bins.*even.*9"),
        (lambda: MDCT(96, 0), r"codec\.bins.*0"),
        (lambda: MDCT(96, -2), r"codec\.bins.*-2"),
        (lambda: MDCT(96, 8, 0), r"codec\.power.*0"),
        (lambda: MDCT(96, 8, 1.5), r"codec\.power.*1\.5"),
    ],
    ids=["length", "shape_of", "odd", "none", "negative", "power 0", "power"],
)
def test_what_does_not_fit_is_refused(make: Any, said: str):
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
