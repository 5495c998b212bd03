"""What this modality promises beside polyguide's contract: clouds lie on their solids, and measures mean what they say."""

from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import point_cloud.metrics
import pytest
import torch
from point_cloud.data import HEIGHT, SOLIDS, Solids, surface
from point_cloud.metrics import CloudMetrics
from point_cloud.network import SetTransformer
from point_cloud.render import CloudRender, draw
from torch import Tensor

from guidance import Condition
from guidance.judge import train_judge

MEASURE = CloudMetrics().measure


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def near(a: Tensor, b: Tensor | float) -> Tensor:
    return (a - b).abs() < 1e-5


@pytest.mark.parametrize("solid", range(5), ids=SOLIDS.classes)
def test_points_lie_on_the_surface_of_their_solid(solid: int):
    points = surface(solid, 5000, generator())
    (x, y, z), r = points.unbind(1), points[:, :2].norm(dim=1)
    size = points.abs().amax(1)
    within = {
        "ball": near(points.norm(dim=1), 1),
        "cube": near(size, 0.8),
        "cylinder": (near(r, 1) & (z.abs() <= 1)) | (near(z.abs(), 1) & (r <= 1)),
        "cone": (near(z, -1) & (r <= 1)) | near(z, 1 - 2 * r),
        "ring": near((r - 0.75).square() + z.square(), 0.35**2),
    }[SOLIDS.classes[solid]]
    assert bool(within.all())
    assert all(bool((part > 0.3 * part.max()).any()) and bool((part < -0.3 * part.max()).any()) for part in (x, y, z)), "on all sides"


# Variances along z and across: a sphere's are equal; of a cylinder, half of it its ends, 2/3 and 3/8; of a cone whose base is .3 of it,
# .3 + .7/3 - (.3 + .7/3)^2 and 1/4; of a ring of radii .75 and .35, .35^2/2 and (.75^2 + .35^2/2)/2.
HEIGHTS = {0: 1.0, 2: 4 / 3, 3: sqrt((8 / 15 - (8 / 15) ** 2) / 0.25), 4: sqrt(0.06125 / 0.311875)}


@pytest.mark.parametrize(("solid", "height"), HEIGHTS.items(), ids=[SOLIDS.classes[k] for k in HEIGHTS])
def test_height_is_that_of_the_solid_and_grows_with_it(solid: int, height: float):
    cloud = surface(solid, 100_000, generator())
    deviation = cloud.std(0)  # as MEASURE takes it, without all pairs of points
    assert float(deviation[2] / deviation[:2].square().mean().sqrt()) == pytest.approx(height, rel=0.01)
    few = cloud[:500][None]
    plain, tall = (MEASURE(few * torch.tensor([1, 1, s]), Condition())["height"] for s in (1.0, 3.0))
    assert float(plain) == pytest.approx(height, rel=0.15) and float(tall) == pytest.approx(3 * float(plain), rel=1e-4)


def test_gap_is_the_spacing_of_a_lattice_and_the_mean_over_points():
    row = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    assert MEASURE(row[None], Condition())["gap"].tolist() == pytest.approx([4 / 3])
    lattice = torch.cartesian_prod(*[torch.arange(4.0)] * 3) / 2
    assert MEASURE(lattice[None], Condition())["gap"].tolist() == pytest.approx([0.5], abs=1e-3)


def test_height_orders_the_classes_of_every_solid():
    for part in (Solids(600).train, Solids(600).test):
        height, labels = MEASURE(part.raw, part.condition)["height"], part.condition.values
        for solid in range(5):
            of = [height[(labels["solid"] == solid) & (labels["height"] == level)] for level in range(3)]
            assert of[0].max() < of[1].min() and of[1].max() < of[2].min()
    assert HEIGHT.levels == (("flat",), ("even",), ("tall",)) and HEIGHT.quantity in MEASURE(part.raw, part.condition)


def test_balls_are_spheres_stretched_along_z_alone():
    part = Solids(600).train
    for level, least in enumerate((0.4, 0.9, 1.8)):
        chosen = (part.condition.values["solid"] == 0) & (part.condition.values["height"] == level)
        x, y, z = part.raw[chosen].unbind(2)
        inside = 1 - x.square() - y.square()
        stretch = (z.square().sum(1) / inside.sum(1)).sqrt()
        assert bool(((stretch > least - 1e-3) & (stretch < 1.25 * least + 1e-3)).all()) and float(stretch.std()) > 0.05 * least
        torch.testing.assert_close(z.square(), stretch[:, None].square() * inside, atol=1e-4, rtol=1e-4)


def test_a_fifth_of_every_class_is_held_out():
    data = Solids(300, points=8)
    for part, count in ((data.train, 16), (data.test, 4)):
        both = 3 * part.condition.values["solid"] + part.condition.values["height"]
        assert torch.bincount(both).tolist() == [count] * 15 and part.raw.shape == (15 * count, 8, 3)


def turned(clouds: Tensor, angle: float) -> Tensor:
    c, s = np.cos(angle), np.sin(angle)
    return clouds @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=clouds.dtype)


def test_flat_knows_neither_order_nor_direction_but_tells_clouds_apart():
    clouds, flat = Solids(90, points=20).train.raw, CloudMetrics().flat
    shuffled = clouds[:, torch.randperm(20, generator=generator(1))]
    torch.testing.assert_close(flat(shuffled), flat(clouds), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(flat(turned(clouds, 1.1)), flat(clouds), atol=1e-5, rtol=1e-5)
    apart = torch.cdist(flat(clouds), flat(clouds)) + 99 * torch.eye(len(clouds))
    assert float(apart.min()) > 0.1
    pairs = torch.linalg.norm(clouds[3][:, None] - clouds[3][None], dim=2).flatten().sort().values
    torch.testing.assert_close(flat(clouds[3:4])[0], pairs, atol=1e-5, rtol=1e-5)


def test_the_judge_tells_held_out_solids_apart_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        point_cloud.metrics, "train_judge", lambda *given, **named: train_judge(*given, **(named | {"steps": 500, "batch": 64}))
    )
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path))
    data = Solids(900)
    judge = CloudMetrics().judge(data, "solid")
    seen, truth = judge(data.test.raw)[1].argmax(1), data.test.condition.values["solid"]
    assert judge.accuracy == pytest.approx(float((seen == truth).float().mean())) and judge.accuracy > 0.85, "guessing is .2"
    again = judge(data.test.raw.flip(1))
    torch.testing.assert_close(again[1], judge(data.test.raw)[1], atol=1e-4, rtol=1e-4)


def test_permuted_points_give_permuted_outputs():
    torch.manual_seed(0)
    data = Solids(45, points=12)
    network = SetTransformer(data.shape, data.conditions, width=16, layers=2).eval()
    raw, condition = data.train.__getitems__([0, 1, 2])
    order, logsnr = torch.randperm(12, generator=generator()), torch.tensor([-2.0, 0.0, 3.0])
    with torch.no_grad():
        context = network.embed(condition)
        output = network(raw, logsnr, context)
        torch.testing.assert_close(network(raw[:, order], logsnr, context), output[:, order], atol=1e-5, rtol=1e-4)
        moved = replace(condition, values={**condition.values, "solid": (condition.values["solid"] + 1) % 5})
        assert (network(raw, logsnr, network.embed(moved)) - output).abs().max() > 1e-3
        others = torch.cat([raw[:, :1], raw[:, 1:] + 1], 1)
        assert (network(others, logsnr, context) - output)[:, 0].abs().max() > 1e-3, "a point sees the others"


def test_ply_files_hold_the_points(tmp_path: Path):
    clouds = Solids(45, points=9).train.raw[:2]
    for name in (None, "ply"):
        files = CloudRender().save(clouds, tmp_path, ["a", "b"], name)
        assert [file.name for file in files] == ["a.ply", "b.ply"]
        for file, cloud in zip(files, clouds, strict=True):
            header, _, body = file.read_text().partition("end_header\n")
            assert header.splitlines() == [
                *("ply", "format ascii 1.0", "element vertex 9", "property float x", "property float y", "property float z")
            ]
            read = np.array([line.split() for line in body.splitlines()], dtype=float)
            np.testing.assert_allclose(read, cloud.numpy(), rtol=1e-4, atol=1e-6)


def test_a_point_is_drawn_where_it_is():
    def place(x: float, y: float, z: float) -> tuple[float, float]:
        picture = draw(torch.tensor([[[x, y, z]]]))[0, 0]
        assert int((picture < 255).sum()) == 4
        rows, columns = (picture < 255).nonzero().float().mean(0).tolist()
        return rows, columns

    row, column = place(0, 0, 0)
    assert place(0, 0, 1)[0] < row < place(0, 0, -1)[0] and place(0, 0, 1)[1] == column, "up is up"
    assert place(1, 0, 0)[1] > column > place(-1, 0, 0)[1] and place(1, 0, 0)[0] == row
    front, back = (draw(torch.tensor([[[0.0, y, 0.0]]])).min() for y in (-1, 1))
    assert front < back, "near points are dark"


def test_samples_are_written_as_pictures_too(tmp_path: Path):
    from PIL import Image

    clouds = Solids(45, points=9).train.raw[:2]
    files = CloudRender().save(clouds, tmp_path, ["a", "b"], "png")
    for file, picture in zip(files, draw(clouds), strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), picture[0].numpy())
