"""Measures against closed forms, other implementations and counting by hand; judges."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from torch import Tensor

from guidance import Condition
from guidance.judge import TrainedJudge, fingerprint, read, train_judge
from guidance.measures import copy_distance, diversity, frechet, inception_score, nearest, precision_recall, radii, within
from guidance.split import InMemory, pick
from modalities.image.data import Digits
from modalities.image.metrics import Classifier, augment, prepare


def draws(seed: int, n: int, width: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return scale * torch.randn(n, width, generator=generator) @ mix + shift


# Frechet distance


@pytest.mark.parametrize(("n", "m", "width"), [(200, 300, 5), (40, 1000, 1), (50, 60, 20), (12, 400, 16)])
def test_frechet_distance_is_that_of_gaussians_of_the_same_moments(n: int, m: int, width: int):
    a, b = draws(0, n, width), draws(1, m, width, 1.5, 0.3)
    s, t = np.cov(a.double().numpy().T).reshape(width, width), np.cov(b.double().numpy().T).reshape(width, width)
    root = scipy.linalg.sqrtm(s @ t).real
    gap = (a.double().mean(0) - b.double().mean(0)).numpy()
    assert frechet(a, b) == pytest.approx(gap @ gap + np.trace(s + t - 2 * root), rel=1e-4)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_stretch_that_of_the_deviations():
    a = draws(0, 400, 3)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + torch.tensor([3.0, 0.0, -4.0])) == pytest.approx(25, rel=1e-4)
    mean = a.mean(0)
    assert frechet(a, mean + 3 * (a - mean)) == pytest.approx(4 * a.var(0).sum().item(), rel=1e-4)  # (3 - 1)^2 tr S


# Inception score


@pytest.mark.parametrize("classes", [2, 10])
def test_inception_score_of_ignorance_is_one_and_of_sure_and_even_classes_their_number(classes: int):
    assert inception_score(torch.zeros(60, classes)) == pytest.approx(1, abs=1e-6)
    assert inception_score(1e3 * torch.eye(classes).repeat(6, 1)) == pytest.approx(classes, rel=1e-6)
    assert inception_score(1e3 * torch.eye(classes)[:1].repeat(60, 1)) == pytest.approx(1, abs=1e-6)


def test_inception_score_is_the_exponential_of_the_mean_divergence_and_draws_nothing():
    logits = draws(0, 70, 4)
    p = scipy.special.softmax(logits.double().numpy(), axis=1)
    state = torch.get_rng_state()
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert inception_score(logits) == pytest.approx(expected, rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


# Precision and recall


def on_a_line(*points: float) -> Tensor:
    return torch.tensor(points, dtype=torch.float64)[:, None]


def test_precision_and_recall_of_the_same_and_of_other_points():
    real = draws(0, 50, 3)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1e3) == (0, 0)


def test_precision_and_recall_of_half():
    real, samples = on_a_line(0, 1, 2, 3, 100, 101, 102, 103), on_a_line(0.5, 1.5, 1.6, 2.5, 501, 502, 503, 504)
    assert precision_recall(samples, real, k=1) == (0.5, 0.5)  # half of the samples lie there, and cover half of it
    narrow = on_a_line(1.45, 1.5, 1.55, 1.6)
    assert precision_recall(narrow, real, k=1) == (1, 0)  # all of one place: right, and covering nothing
    assert precision_recall(narrow, real, k=3)[1] == 0 and precision_recall(real, narrow, k=1) == (0, 1)


@pytest.mark.parametrize("k", [1, 3, 5, 100])
def test_precision_and_recall_count_points_within_balls(k: int):
    samples, real = draws(1, 40, 2, 0.7, 0.5).double(), draws(2, 55, 2).double()

    def inside(points: np.ndarray, manifold: np.ndarray) -> float:
        found = 0
        for point in points:
            for centre in manifold:
                distances = sorted(float(np.linalg.norm(centre - other)) for other in manifold)  # the first is its own: 0
                if np.linalg.norm(point - centre) <= distances[min(k, len(manifold) - 1)]:
                    found += 1
                    break
        return found / len(points)

    expected = inside(samples.numpy(), real.numpy()), inside(real.numpy(), samples.numpy())
    assert precision_recall(samples, real, k) == pytest.approx(expected)
    assert float(within(samples, real, radii(real, k)).double().mean()) == pytest.approx(expected[0])


def test_radii_reach_to_the_kth_nearest_neighbour_and_balls_hold_their_border():
    points = on_a_line(0, 1, 3, 7)
    assert radii(points, 1).tolist() == [1, 1, 2, 4] and radii(points, 2).tolist() == [3, 2, 3, 6]
    assert radii(points).tolist() == radii(points, 99).tolist() == [7, 6, 4, 7], "the third, or the last there is"
    assert radii(points[:1]).tolist() == [0]
    radius = torch.tensor([1.0, 0.0, 0.5, 0.25], dtype=torch.float64)
    asked = on_a_line(-1, -1.01, 1, 1.01, 2.5, 3.51, 7.25, 7.26)
    assert within(asked, points, radius).tolist() == [True, False, True, False, True, False, True, False]


# Diversity


def test_diversity_is_the_mean_distance_within_classes():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 2.0], [0.0, 4.0], [9.0, 9.0]])
    label = torch.tensor([7, 7, 1, 1, 1, 4])
    assert diversity(features, label) == pytest.approx((5 + (1 + 2 + 3) / 3) / 2)  # a class of one has none
    assert diversity(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])) == 0
    assert np.isnan(diversity(features[:2], torch.tensor([0, 1])))


# Copies


def test_nearest_distances():
    points, among = draws(0, 1030, 2), draws(1, 40, 2)
    expected = [min(float(np.linalg.norm(p - a)) for a in among.numpy()) for p in points[-5:].numpy()]
    torch.testing.assert_close(nearest(points, among)[-5:], torch.tensor(expected), atol=1e-5, rtol=1e-5)


def copies(samples: Tensor, train: Tensor, held_out: Tensor, q: float = 0.01) -> float:
    return float((nearest(samples, train) <= copy_distance(train, held_out, q)).double().mean())


def test_the_distance_of_copies_is_a_quantile_of_that_of_held_out_items():
    train, held_out = on_a_line(0, 100), on_a_line(10, 20, 30, 40, 51, 61, 72, 83, 94, 105)
    far = [5, 6, 10, 17, 20, 28, 30, 39, 40, 49]  # to the nearer of 0 and 100, sorted
    for q in (0.0, 0.01, 0.1, 0.5, 0.77, 1.0):
        assert copy_distance(train, held_out, q).item() == pytest.approx(np.quantile(far, q)), "as numpy's"
    assert copy_distance(train, held_out).item() == pytest.approx(np.quantile(far, 0.01))


def test_copies_of_training_data_are_counted():
    train, held_out = draws(0, 300, 6), draws(0, 400, 6)[300:]
    assert copies(train[:50], train, held_out) == 1
    assert copies(torch.cat([train[:10], train[:30] + 50]), train, held_out) == 0.25
    assert copies(held_out, train, held_out, q=0.1) == pytest.approx(0.1)
    assert copies(held_out, train, held_out, q=0.01) == pytest.approx(0.01)


def test_an_exact_copy_is_one_even_where_held_out_data_holds_copies():
    """In as many dimensions as images have, where a distance by way of a product is not 0 between equals."""
    pixels = torch.rand(400, 784, generator=torch.Generator().manual_seed(0))
    train, held_out = pixels[:300], torch.cat([pixels[300:], pixels[:10]])
    assert torch.equal(nearest(train, train), torch.zeros(300))
    assert copies(train, train, held_out) == 1


# Judges

digits = Digits()


@dataclass
class Some:
    """A part of the digits as a data set."""

    train: InMemory = field(default_factory=lambda: digits.train)
    test: InMemory = field(default_factory=lambda: digits.test)
    name: str = "some"
    shape: tuple[int, ...] = (1, 8, 8)
    conditions: Any = field(default_factory=lambda: {"digit": digits.conditions["digit"]})

    def pinned(self) -> dict[str, Any]:
        return {}


def judge(cache: Path, data: Any = None, version: str = "1", steps: int = 5) -> TrainedJudge:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier(1, 10, width=8, features=16)
    return train_judge(network, data or Some(), "digit", prepare, augment, cache=cache, version=version, steps=steps, batch=64, lr=1e-2)


def test_a_judge_knows_the_digits_and_its_own_accuracy(tmp_path: Path):
    made = judge(tmp_path, steps=150)
    images, condition = digits.test.__getitems__(list(range(len(digits.test))))
    features, logits = made(images)
    assert features.shape == (355, 16)
    hits = sum(int(row.argmax()) == int(label) for row, label in zip(logits, condition.values["digit"], strict=True))
    assert made.accuracy == pytest.approx(hits / 355) and made.accuracy > 0.9
    torch.testing.assert_close(made(images[100:101]), (features[100:101], logits[100:101]))  # one by one as all together


def test_a_cached_judge_says_exactly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, _ = digits.test.__getitems__(list(range(20)))
    made = judge(tmp_path / "a")
    trained_again = judge(tmp_path / "b")
    monkeypatch.setattr(torch.optim, "AdamW", None)  # not trained
    cached = judge(tmp_path / "a")
    for other in (trained_again, cached):
        assert other.accuracy == made.accuracy
        assert all(torch.equal(a, b) for a, b in zip(other(images), made(images), strict=True))


@pytest.mark.parametrize("kind", ["safetensors", "json"])
@pytest.mark.parametrize("left", [0, 1 / 2], ids=["empty", "cut short"])
def test_a_judge_whose_file_is_broken_is_trained_again(tmp_path: Path, kind: str, left: float):
    images, _ = digits.test.__getitems__(list(range(20)))
    expected = judge(tmp_path)(images)
    (path,) = tmp_path.glob(f"*.{kind}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(left * len(whole))])
    assert all(torch.equal(a, b) for a, b in zip(judge(tmp_path)(images), expected, strict=True)), "the same data gives the same judge"
    assert path.read_bytes() == whole


def changed(images: InMemory, row: int) -> InMemory:
    pixels = images.raw.clone()
    pixels[row] = 255 - pixels[row]
    return replace(images, raw=pixels)


def test_a_fingerprint_changes_with_what_a_judge_depends_on():
    label = digits.train.condition.values["digit"]
    relabelled = replace(digits.train, condition=Condition.of(digit=label.roll(1)))
    sets = [
        fingerprint(Some(), "digit", "1"),
        fingerprint(Some(), "digit", "2"),
        fingerprint(Some(train=changed(digits.train, 0)), "digit", "1"),
        fingerprint(Some(train=relabelled), "digit", "1"),
        fingerprint(Some(test=digits.test.rows(torch.arange(300))), "digit", "1"),
        fingerprint(Some(train=replace(digits.train, condition=Condition.of(number=label))), "number", "1"),
    ]
    assert len(set(sets)) == len(sets)
    assert fingerprint(Some(name="another"), "digit", "1") == sets[0]


@pytest.mark.parametrize("row", [1, 700, 1441])
def test_a_fingerprint_changes_with_every_item(row: int):
    label = digits.train.condition.values["digit"].clone()
    label[row] = (label[row] + 1) % 10
    relabelled = replace(digits.train, condition=Condition.of(digit=label))
    before = fingerprint(Some(), "digit", "1")
    assert fingerprint(Some(train=changed(digits.train, row)), "digit", "1") != before
    assert fingerprint(Some(train=relabelled), "digit", "1") != before


def test_of_a_large_split_items_are_read_at_random_in_order():
    class Count:
        def __len__(self) -> int:
            return 10

        def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
            return torch.tensor(index), Condition.of(digit=torch.tensor(index) % 2)

    raw, label, _ = read(Count(), "digit", most=4, chunk=3)
    some = sorted(pick(10, 4))
    assert [part.tolist() for part in raw] == [some[:3], some[3:]] and label.tolist() == [k % 2 for k in some]
    assert len(torch.cat(read(Count())[0])) == 10


def test_facts_of_a_judge_are_stored_beside_it(tmp_path: Path):
    made = judge(tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text()) == {"accuracy": made.accuracy, "attribute": "digit", "data": "some"}


def test_augmentation_is_repeatable_and_in_the_middle_of_its_range_nothing(monkeypatch: pytest.MonkeyPatch):
    x = prepare(digits.test.__getitems__(list(range(20)))[0])
    once = augment(x, torch.Generator().manual_seed(0))
    assert torch.equal(augment(x, torch.Generator().manual_seed(0)), once)
    assert not torch.equal(augment(x, torch.Generator().manual_seed(1)), once)
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.5))
    torch.testing.assert_close(augment(x, torch.Generator()), x, atol=1e-5, rtol=0)


def test_augmentation_moves_by_at_most_seven_percent(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.tensor([[0.5], [0.5], [1.0], [0.0]]))
    moved = augment(x, torch.Generator())  # as far as it goes to the right in x, up in y
    torch.testing.assert_close(moved[..., 7:, :-7], x[..., :-7, 7:], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("size", "expected"), [(8, 8), (32, 32), (64, 32)])
def test_judges_see_at_most_32_pixels(size: int, expected: int):
    half = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    half[..., size // 2 :] = 255
    seen = prepare(half)
    assert seen.shape == (1, 1, expected, expected)
    assert torch.allclose(seen.sign(), torch.tensor([-1.0, 1.0]).repeat_interleave(expected // 2).expand_as(seen))
