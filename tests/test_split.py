"""Splits, standardized tensors, pictures, the cache folder: what plug-ins are made of."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from guidance import Condition, UserError
from guidance.cache import cache
from guidance.codec import Standardized
from guidance.modality import Codec, Render, Split
from guidance.pictures import Pictures
from guidance.split import InMemory, Part, every_fifth, pick

RAW = torch.arange(21.0).view(7, 3)
LABELS = Condition(
    {"kind": torch.tensor([0, 1, 2, 0, 1, 2, 0]), "place": torch.arange(14.0).view(7, 2)},
    {"kind": torch.tensor([True, True, False, True, True, True, True]), "place": torch.tensor([True] * 6 + [False])},
)


# Splits


def test_items_in_memory_are_the_rows_that_are_asked_for_in_that_order():
    split = InMemory(RAW, LABELS)
    assert isinstance(split, Split) and len(split) == 7
    raw, condition = split.__getitems__([5, 2, 5])
    assert raw.tolist() == [[15, 16, 17], [6, 7, 8], [15, 16, 17]]
    assert condition.values["kind"].tolist() == [2, 2, 2] and condition.keep["kind"].tolist() == [True, False, True]
    assert condition.values["place"].tolist() == [[10, 11], [4, 5], [10, 11]] and condition.keep["place"].tolist() == [True] * 3


def test_rows_of_a_split_are_a_split():
    some = InMemory(RAW, LABELS).rows(torch.tensor([6, 1, 0]))
    assert len(some) == 3 and torch.equal(some.raw, RAW[[6, 1, 0]])
    raw, condition = some.__getitems__([0])
    assert raw.tolist() == [[18, 19, 20]] and condition.keep["place"].tolist() == [False]
    assert bool(condition.same(LABELS.rows(torch.tensor([6]))).all())


def test_data_without_attributes_is_a_split():
    raw, condition = InMemory(RAW, Condition()).__getitems__([3, 1])
    assert raw.tolist() == [[9, 10, 11], [3, 4, 5]] and condition == Condition()


def test_conditions_for_another_number_of_items_are_refused():
    with pytest.raises(UserError, match="a split of 6 items was given conditions for 7"):
        InMemory(RAW[:6], LABELS)


def test_a_part_is_those_items_of_the_whole():
    part = Part(InMemory(RAW, LABELS), [6, 0, 3])
    assert isinstance(part, Split) and len(part) == 3
    raw, condition = part.__getitems__([2, 0, 2])
    assert torch.equal(raw, RAW[[3, 6, 3]]) and bool(condition.same(LABELS.rows(torch.tensor([3, 6, 3]))).all())
    assert torch.equal(Part(part, [1]).__getitems__([0])[0], RAW[[0]]), "a part of a part"


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_every_fifth_of_each_class_is_held_out(kind: Any):
    label = [0, 0, 1, 0, 0, 7, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0]
    train, test = every_fifth(kind(label))
    assert test.tolist() == [6, 11, 16], "the fifth and tenth 0, the fifth 1; there is but one 7"
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(17)) and train.tolist() == sorted(train.tolist())


def test_every_fifth_is_a_fifth_of_each_class_whatever_the_order():
    label = torch.randint(6, (1000,), generator=torch.Generator().manual_seed(0))
    _, test = every_fifth(label)
    assert torch.bincount(label[test]).tolist() == (torch.bincount(label) // 5).tolist()


# Standardized


@dataclass(frozen=True)
class Chunks:
    """A split that remembers what it was asked for."""

    raw: Tensor
    asked: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.raw)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        self.asked.append(index)
        return self.raw[index], Condition()


def fitted(raw: Tensor, chunk: int = 512) -> Standardized:
    codec = Standardized()
    codec.fit(Chunks(raw), chunk)
    return codec


OFFSETS = {"about zero": (0.0, 1.0), "small": (-3e-5, 1e-6), "far from zero": (1e4, 2.0), "large": (2e7, 5e6)}


@pytest.mark.parametrize(("mean", "deviation"), OFFSETS.values(), ids=OFFSETS)
def test_mean_and_deviation_are_numpys(mean: float, deviation: float):
    raw = mean + deviation * torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    codec, oracle = fitted(raw, 64), raw.double().numpy()
    assert float(codec.mean) == pytest.approx(oracle.mean(), rel=1e-6, abs=1e-6 * deviation)
    assert float(codec.deviation) == pytest.approx(oracle.std(), rel=1e-6)
    assert (float(codec.least), float(codec.most)) == (raw.min(), raw.max())
    x0 = codec.encode(raw).double()
    # float32 knows the data itself to 6e-8 of its size.
    blur = 1e-7 * (abs(mean) + deviation) / deviation
    assert float(x0.mean()) == pytest.approx(0, abs=1e-6 + 2 * blur) and float(x0.std()) == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(codec.decode(x0.float()), raw, rtol=3e-7, atol=1e-6 * deviation)


def test_every_item_is_read_twice_in_chunks_the_last_one_shorter():
    split = Chunks(torch.randn(10, 2))
    Standardized().fit(split, 4)
    assert split.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


def test_chunks_change_nothing():
    raw = torch.rand(101, 3, generator=torch.Generator().manual_seed(1)) ** 3
    whole = fitted(raw, 1000).state_dict()
    for chunk in (1, 10, 101):
        for name, value in fitted(raw, chunk).state_dict().items():
            torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=0)


def test_whole_numbers_and_several_dimensions_are_standardized():
    raw = torch.arange(24).view(4, 2, 3)
    codec = fitted(raw)
    assert (float(codec.mean), float(codec.deviation)) == (pytest.approx(11.5), pytest.approx(np.arange(24).std()))
    torch.testing.assert_close(codec.encode(raw)[3, 1, 2], torch.tensor(11.5 / np.arange(24).std(), dtype=torch.float32))


def test_constant_data_stays_finite():
    codec = fitted(torch.full((5, 3), 0.7))
    x0 = codec.encode(torch.full((2, 3), 0.7))
    assert x0.tolist() == [[0.0] * 3] * 2
    assert codec.decode(codec.project(torch.randn(2, 3))).tolist() == torch.full((2, 3), 0.7).tolist()


def test_projecting_is_a_clamp_to_the_range_of_the_training_data():
    raw = torch.tensor([[-1.0, 0.5], [2.0, 1.5]])
    codec = fitted(raw)
    samples = torch.tensor([[-5.0, 0.3], [2.5, 1.9]])
    decoded = codec.decode(codec.project(codec.encode(samples)))
    torch.testing.assert_close(decoded, torch.from_numpy(np.clip(samples.numpy(), -1, 2)))
    once = codec.project(codec.encode(samples))
    assert torch.equal(codec.project(once), once)


def test_before_it_is_fitted_it_changes_nothing():
    codec, x = Standardized(), torch.tensor([[-1e9, 0.0, 3.0]])
    assert isinstance(codec, Codec)
    assert torch.equal(codec.encode(x), x) and torch.equal(codec.decode(x), x) and torch.equal(codec.project(x), x)


def test_what_was_fitted_is_kept_with_the_weights():
    codec, other = fitted(torch.tensor([[3.0, 5.0, 9.0]])), Standardized()
    other.load_state_dict(codec.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(other.project(other.encode(x)), codec.project(codec.encode(x)))
    assert not list(codec.parameters()), "nothing of it is trained"


# Pictures


def drawn(channels: int, n: int = 3, height: int = 5, width: int = 7) -> Tensor:
    return torch.randint(0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(channels)).to(torch.uint8)


PICTURES = Pictures(lambda samples: samples)


def read(path: Path) -> Tensor:
    array = np.array(Image.open(path))
    return torch.from_numpy(array[..., None] if array.ndim == 2 else array).permute(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3, 4], ids=["grey", "colour", "transparent"])
@pytest.mark.parametrize("format", [None, "png", "webp", "tiff"])
def test_formats_without_loss_give_every_pixel_back(tmp_path: Path, format: str | None, channels: int):
    assert isinstance(PICTURES, Render) and PICTURES.formats == ("png", "webp", "jpeg", "tiff")
    made = drawn(channels)
    if channels == 4:
        made[:, 3] = made[:, 3].clamp(min=1)
        made[0, 3, :2] = 0  # what cannot be seen has a colour, too
    files = PICTURES.save(made, tmp_path, ["a", "b", "c"], format)
    assert [file.name for file in files] == [f"{name}.{format or 'png'}" for name in "abc"]
    for file, picture in zip(files, made, strict=True):
        found = read(file)
        if format == "webp" and channels == 1:  # which knows colours only
            found = found[:1]
        seen = torch.ones_like(picture[:1]) if channels < 4 else picture[3:]
        assert torch.equal(torch.where(seen > 0, found, 0), torch.where(seen > 0, picture, 0))
        assert channels < 4 or torch.equal(found[3], picture[3])
        assert Image.open(file).format == (format or "png").upper()


def test_jpeg_is_near_and_drops_what_is_transparent(tmp_path: Path):
    smooth = torch.linspace(0, 255, 16 * 16).view(1, 1, 16, 16).expand(1, 4, 16, 16).to(torch.uint8)
    (file,) = PICTURES.save(smooth, tmp_path, ["a"], "jpeg")
    found = read(file)
    assert Image.open(file).format == "JPEG" and found.shape == (3, 16, 16)
    assert (found.float() - smooth[0, :3].float()).abs().max() < 6


def test_what_is_drawn_is_saved_and_shown(tmp_path: Path):
    def bars(numbers: Sequence[int]) -> Tensor:
        return torch.stack([torch.full((1, 4, 4), number, dtype=torch.uint8) for number in numbers])

    pictures = Pictures(bars)
    files = pictures.save([10, 200], tmp_path, ["x", "y"])
    assert [read(file).unique().tolist() for file in files] == [[10], [200]]
    sheet = np.asarray(Image.open(pictures.table([10, 200, 90], tmp_path / "t.png", [""], ["", "", ""])).convert("L"))
    assert [value for value in (10, 90, 200) if (sheet == value).sum() == 56 * 56] == [10, 90, 200], "each enlarged to 56 pixels"
    middles = [int(np.argwhere(sheet == value)[:, 1].mean()) for value in (10, 200, 90)]
    assert middles == sorted(middles), "in their order"
    moving = Image.open(pictures.animate([[10], [90], [200]], tmp_path / "steps.gif"))
    assert moving.n_frames == 3 and pictures.words([10]) == ()


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path):
    with pytest.raises(ValueError, match="zip"):
        PICTURES.save(drawn(1), tmp_path, ["a", "b"])
    assert not list(tmp_path.glob(".*")), "nothing half written"


# The cache folder


def test_the_cache_is_where_the_environment_says_and_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache() == tmp_path / "deep" / "cache" and cache().is_dir()
    (cache() / "judge").write_text("kept")
    assert cache().joinpath("judge").read_text() == "kept"


@pytest.mark.skipif(sys.platform != "linux", reason="where other systems have it")
@pytest.mark.parametrize("said", [None, ""])
def test_without_a_word_it_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("POLYGUIDE_CACHE", raising=False)
    if said is not None:
        monkeypatch.setenv("POLYGUIDE_CACHE", said)
    assert cache() == tmp_path / "polyguide" and cache().is_dir()


def test_a_cache_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    for place, why in (("file", "File exists"), ("file/below", "Not a directory")):
        monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / place))
        with pytest.raises(UserError, match=rf"cannot use the cache folder {tmp_path / place}: {why}; set POLYGUIDE_CACHE"):
            cache()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_in_a_folder_of_others_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="Permission denied; set POLYGUIDE_CACHE"):
        cache()


def test_items_are_picked_without_falling_in_with_classes_that_come_in_turn():
    assert sorted(pick(7, 7)) == list(range(7)) and pick(50, 20) == pick(50, 40)[:20], "the same, however many"
    twice = pick(7, 18)
    assert sorted(twice[:7]) == sorted(twice[7:14]) == list(range(7)) and len(set(twice[14:])) == 4
    for classes, n in ((3, 100), (6, 120), (25, 120)):
        share = torch.bincount(torch.tensor(pick(1200, n)) % classes, minlength=classes) / n
        assert (share > 0).all() and share.max() < 1 / classes + 3 * (1 / classes / n) ** 0.5, "as many of each as chance gives"
    assert pick(5, 0) == []
