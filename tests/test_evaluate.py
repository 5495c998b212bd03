"""What is asked for in an evaluation, and evaluations of models without classes, on a data set of numbers."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor, nn

from guidance import CFG, Condition, Cosine, Label, UserError, V, Vector
from guidance.denoiser import Denoiser
from guidance.estimate import Estimate
from guidance.evaluate import Cases, cases, chosen, default_attribute, evaluate, label_attribute, reference, with_attribute
from guidance.judge import read
from guidance.modality import Modality
from guidance.model import Model
from guidance.split import pick


@dataclass
class Numbers:
    """Items first, first + 1, ...: two equal numbers each, and a fraction."""

    first: int
    labels: dict[str, Tensor]
    n: int

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        rows = torch.tensor(index)
        return (rows + self.first + 0.25)[:, None].expand(-1, 2), Condition.of(**{k: v[rows] for k, v in self.labels.items()})


@dataclass
class Data:
    conditions: dict[str, Any]
    train: Numbers
    test: Numbers
    name: str = "numbers"
    shape: tuple[int, ...] = (2,)

    def pinned(self) -> dict[str, Any]:
        return {}


class Tenfold(nn.Module):
    """Decoding gives back what was encoded, in whole numbers: the fraction is lost."""

    def fit(self, split: Any) -> None:
        pass

    def encode(self, raw: Tensor) -> Tensor:
        return raw / 10

    def decode(self, x0: Tensor) -> Tensor:
        return (10 * x0).round()

    def project(self, x0: Tensor) -> Tensor:
        return x0

    def anchor_loss(self, raw: Any, x0_hat: Tensor, level: Any) -> Tensor:
        return x0_hat.new_zeros(len(x0_hat))


class Unused(nn.Module):
    """A network that is not called."""

    def embed(self, condition: Condition) -> None:
        return None

    def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
        raise AssertionError


class Parity:
    """Says 1 for odd numbers."""

    accuracy = 1.0

    def __call__(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        return decoded, 100 * nn.functional.one_hot(decoded[:, 0].long() % 2, 2).float()


@dataclass
class Recorder:
    """Metrics that keep what they were asked."""

    asked: list[tuple[Tensor, Condition, Any]] = field(default_factory=list)
    units: ClassVar[dict[str, str]] = {"first": "itself", "total": "of all"}

    def judge(self, data: Any, attribute: str) -> Parity:
        assert attribute == "parity"
        return Parity()

    def measure(self, decoded: Tensor, condition: Condition, original: Any = None) -> dict[str, Tensor]:
        self.asked.append((decoded, condition, original))
        some = torch.where(torch.arange(len(decoded)) % 2 == 0, decoded[:, 0], torch.nan)
        return {"first": some} | ({} if original is None else {"distance": (decoded - original).abs().mean(1)})

    def together(self, decoded: Tensor) -> dict[str, float]:
        return {"total": decoded[:, 0].sum().item()}

    def flat(self, decoded: Tensor) -> Tensor:
        return decoded


class Nothing:
    formats = ("nothing",)

    def save(self, decoded: Any, folder: Path, names: Any, format: str | None = None) -> list[Path]:
        return []

    def words(self, decoded: Any) -> list[str]:
        return []

    def table(self, decoded: Any, path: Path, rows: Any, columns: Any) -> Path:
        return path

    def animate(self, frames: Any, path: Path) -> Path:
        return path


LABELS = {"size": Vector(1), "parity": Label(("even", "odd")), "third": Label(("a", "b", "c"))}


def model(names: tuple[str, ...] = ("size", "parity", "third"), train: int = 20, test: int = 6) -> Model:
    def split(first: int, n: int) -> Numbers:
        numbers = torch.arange(first, first + n)
        values = {"size": numbers.float()[:, None], "parity": numbers % 2, "third": numbers % 3}
        return Numbers(first, {name: values[name] for name in names}, n)

    conditions = {name: LABELS[name] for name in names}
    data, network = Data(conditions, split(0, train), split(100, test)), Unused()
    modality = Modality("toy", (2,), Tenfold(), network, conditions, data, Recorder(), Nothing())
    return Model(modality, {"main": Denoiser(network, Cosine(), V())}, {})


# What is asked for


@pytest.mark.parametrize(("attribute", "classes"), [("parity", 2), ("third", 3)])
def test_alone_asks_for_the_classes_in_turn_and_nothing_else(attribute: str, classes: int):
    made = cases(model(), 7, attribute)
    assert made.label.tolist() == [k % classes for k in range(7)] and made.original is None
    assert made.condition.values[attribute].tolist() == made.label.tolist()
    assert {name: keep.tolist() for name, keep in made.condition.keep.items()} == {name: [name == attribute] * 7 for name in LABELS}


@pytest.mark.parametrize(("given", "first", "length"), [("train", 0, 20), ("test", 100, 6)])
@pytest.mark.parametrize("n", [1, 4, 6, 9, 40])
def test_given_a_split_all_attributes_of_its_items_are_asked_for(given: str, first: int, length: int, n: int):
    made = cases(model(), n, "third", given)
    items = [first + k for k in pick(length, n)]
    assert made.label.tolist() == [item % 3 for item in items] and all(bool(keep.all()) for keep in made.condition.keep.values())
    assert made.condition.values["size"].tolist() == [[float(item)] for item in items]
    assert made.condition.values["parity"].tolist() == [item % 2 for item in items]
    assert made.original.tolist() == [[item, item] for item in items], "as the codec gives it back"


@pytest.mark.parametrize("names", [("size",), ()])
def test_a_model_without_classes_is_asked_by_what_it_has(names: tuple[str, ...]):
    made = cases(model(names), 3, None, "test")
    assert list(made.condition.values) == list(names) and made.label.tolist() == [0, 0, 0]
    assert made.original[:, 0].tolist() == [100 + k for k in pick(6, 3)]


def test_what_cannot_be_asked():
    with pytest.raises(UserError, match=r"'trian'.*did you mean 'train'.*alone, train, test"):
        cases(model(), 3, "parity", "trian")
    with pytest.raises(UserError, match=r"no attribute with classes.*given=test"):
        cases(model(("size",)), 3, None)
    with pytest.raises(UserError, match="numbers has no test items"):
        cases(model(test=0), 3, "parity", "test")


def test_the_attribute_to_evaluate_by():
    assert default_attribute(model(), None) == "parity", "the first that has classes"
    assert default_attribute(model(), "third") == "third" and default_attribute(model(("size",)), None) is None
    with pytest.raises(UserError, match=r"'size'.*parity, third"):
        default_attribute(model(), "size")
    for ask in (default_attribute, label_attribute):
        with pytest.raises(UserError, match="no attribute with classes"):
            ask(model(("size",)), "size")


# Measuring


def test_real_data_is_measured_against_itself():
    with_classes, without = model(), model(("size",))
    judged, plain = reference(with_classes, "parity"), reference(without, None)
    assert judged.real["accuracy"].value == 1 and judged.real["accuracy"].n == judged.n == plain.n == 6
    assert plain.judge is None and plain.features is None and plain.radius is None
    assert set(plain.real) == {"copies", "first", "distance", "total"} and all(isinstance(e, Estimate) for e in plain.real.values())
    assert judged.features is not None and judged.radius is not None and judged.features[:, 0].tolist() == list(range(20))
    ends = [min(3, k, 19 - k) for k in range(20)]  # a point has neighbours at 1, 1, 2 on either side, fewer at the ends
    assert judged.radius.tolist() == pytest.approx([2**0.5 * (3 - min(1, end)) for end in ends], rel=1e-5)
    for ref, of in ((judged, with_classes), (plain, without)):
        ((decoded, condition, original),) = of.modality.metrics.asked
        order = decoded[:, 0].tolist()
        assert sorted(order) == list(range(100, 106)) != order, "mixed: data may come class by class, and intervals are over blocks"
        assert decoded.tolist() == original.tolist() == [[k, k] for k in order] and ref.real["distance"].value == 0
        assert condition.values["size"].tolist() == [[float(k)] for k in order] and bool(condition.keep["size"].all())
        first = ref.real["first"]
        assert (first.value, first.n) == (sum(order[::2]) / 3, 3), "the mean of those to which it applies, every second one"
        assert ref.real["total"].value == sum(range(100, 106)) and ref.real["total"].n == 6
        assert torch.equal(ref.flat, torch.arange(20.0)[:, None].expand(-1, 2))
        # Of six held-out items the nearest is 81 from the last training item, the next 82, in both coordinates.
        assert ref.copy_distance.item() == pytest.approx(2**0.5 * 81.05) and ref.real["copies"].value == pytest.approx(1 / 6)


@pytest.mark.parametrize("held", [0, 1])
def test_measuring_takes_held_out_data(held: int):
    with pytest.raises(UserError, match=rf"numbers has {held} held out samples.*at least 2"):
        reference(model(("size",), test=held), None)


@pytest.mark.parametrize(("names", "given"), [(("size",), "test"), (("size",), "train"), ((), "test"), (("size", "parity"), "train")])
def test_samples_are_drawn_for_and_measured_by_what_was_asked(names: tuple[str, ...], given: str):
    of = model(names)
    expected = cases(of, 4, "parity" if "parity" in names else None, given)
    drawn = []

    def draw(n: int, condition: Condition, *, guidance: CFG, callbacks: Any) -> Tensor:
        drawn.append((n, condition, guidance))
        callbacks[0].steps, callbacks[0].rows = 5, 30
        return expected.original + float(guidance.scale)

    rows, _ = evaluate(of, [0.0, 3.0], 4, given=given, draw=draw)
    assert [(n, float(guide.scale)) for n, _, guide in drawn] == [(4, 0), (4, 3)]
    for (_, condition, _), row, (decoded, seen, original) in zip(drawn, rows, of.modality.metrics.asked[1:], strict=True):
        assert len(condition) == len(expected.condition) and (not names or bool(condition.same(expected.condition).all()))
        assert seen.values.keys() == set(names) and torch.equal(original, expected.original)
        assert row["distance"].value == row["scale"] and row["evaluations"] == 30 / 20 and row["n"] == 4
        assert row["first"].value == decoded[::2, 0].mean().item() and ("accuracy" in row) == ("parity" in names)
        assert row["total"].value == decoded[:, 0].sum().item()
        assert all(isinstance(value, Estimate) == (name not in ("scale", "n", "evaluations")) for name, value in row.items())
        # Training data ends at 19; one in a hundred held-out items lies within 81.05 of that.
        assert row["copies"].value == (decoded[:, 0] - 19 <= 81.05).float().mean().item()
    assert "parity" not in names or [row["accuracy"].value for row in rows] == [1, 0], "three more is the other parity"


# Every measure, against a direct computation


class Thirds:
    """Three numbers decide the class, all five are features."""

    accuracy = 0.9

    def __call__(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        return decoded, 3 * decoded[:, :3]


class Own:
    """Measures of some samples, of all of them, and none of the sort that is a share."""

    units: ClassVar[dict[str, str]] = {}

    def judge(self, data: Any, attribute: str) -> Thirds:
        return Thirds()

    def measure(self, decoded: Tensor, condition: Condition, original: Any = None) -> dict[str, Tensor]:
        return {
            "mean": decoded.mean(1),
            "some": torch.where(decoded[:, 0] > 0, decoded[:, 1], torch.nan),
            "positive": (decoded[:, 4] > 0).float(),
            "original": (decoded - original).abs().mean(1),
        }

    def together(self, decoded: Tensor) -> dict[str, float]:
        return {"spread": decoded.std().item(), "largest": decoded.max().item()}

    def flat(self, decoded: Tensor) -> Tensor:
        return decoded[:, :2]


def points(seed: int, n: int, spread: float = 1.0, cycle: int = 3) -> tuple[Tensor, Tensor]:
    """n points and the class that was asked for, which most of them are of; the last class is the most frequent."""
    draw = torch.Generator().manual_seed(seed)
    label = (torch.arange(n) % cycle).clamp(max=2)
    return spread * torch.randn(n, 5, generator=draw) + nn.functional.one_hot(label, 5), label


@dataclass
class Points:
    points: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        return self.points[index], Condition.of(kind=self.label[index])


class Same(Tenfold):
    def decode(self, x0: Tensor) -> Tensor:
        return 10 * x0


@pytest.fixture(scope="module")
def measured() -> tuple[Any, Tensor, Tensor, Tensor, dict[str, Estimate]]:
    conditions = {"kind": Label(("a", "b", "c"))}
    data: Any = Data(conditions, Points(*points(0, 90, cycle=5)), Points(*points(1, 50)))  # type: ignore[arg-type]
    network = Unused()
    of = Model(Modality("toy", (5,), Same(), network, conditions, data, Own(), Nothing()), {"main": Denoiser(network, Cosine(), V())}, {})
    ref = reference(of, "kind")
    made, label = points(2, 60, 1.4, cycle=4)
    made[7] = data.train.points[3]
    original = points(3, 60)[0]
    return ref, data.train.points, made, label, ref.measured(Own(), made, Cases(Condition.of(kind=label), label, original))


def reach(of: np.ndarray) -> np.ndarray:
    return np.sort(np.linalg.norm(of[:, None] - of[None], axis=2), axis=1)[:, 3]


def covered(points: np.ndarray, balls: np.ndarray) -> np.ndarray:
    return (np.linalg.norm(points[:, None] - balls[None], axis=2) <= reach(balls)[None]).any(1)


def by_hand(made: np.ndarray, label: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """The measures that are of all samples together, from their definitions."""
    s, t = np.cov(made.T), np.cov(real.T)
    p = np.exp(3 * made[:, :3]) / np.exp(3 * made[:, :3]).sum(1, keepdims=True)
    pairs = (p[:, None] * np.log(p[:, None] / p[None])).sum(2)
    classes = np.array([1, 1, 3]) / 5  # of the training data
    gaps = [np.linalg.norm(a - b) for k in range(3) for a in made[label == k] for b in made[label == k]]
    sizes = np.bincount(label)
    return {
        "frechet": float(((made.mean(0) - real.mean(0)) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)),
        "inception_score": float(np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))),
        "modified_inception_score": float(np.exp(np.mean(pairs))),
        "am_score": float(scipy.stats.entropy(classes, p.mean(0)) + np.mean([scipy.stats.entropy(row) for row in p])),
        "recall": float(covered(real, made).mean()),
        "diversity": float(
            np.mean([sum(gaps[sum(sizes[:k] ** 2) : sum(sizes[: k + 1] ** 2)]) / (m * (m - 1)) for k, m in enumerate(sizes)])
        ),
        "spread": float(made.std(ddof=1)),
        "largest": float(made.max()),
    }


def test_every_measure_of_samples_is_a_direct_computation_with_its_interval(measured: Any):
    _, train, made, label, found = measured
    real, x, k, held = train.double().numpy(), made.double().numpy(), label.numpy(), points(1, 50)[0].double().numpy()
    expected = by_hand(x, k, real)
    groups = [np.delete(np.arange(60), range(6 * g, 6 * g + 6)) for g in range(10)]
    parts = [by_hand(x[rows], k[rows], real) for rows in groups]
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-4), name
        left = np.array([part[name] for part in parts])
        half = scipy.stats.t.ppf(0.975, 9) * (9 / 10 * ((left - left.mean()) ** 2).sum()) ** 0.5
        assert half > 0 and (found[name].low, found[name].high) == pytest.approx((value - half, value + half), rel=1e-3), name
    nearest = np.linalg.norm(x[:, None, :2] - real[None, :, :2], axis=2).min(1)
    threshold = np.quantile(np.linalg.norm(held[:, None, :2] - real[None, :, :2], axis=2).min(1), 0.01)
    shares = {
        "accuracy": x[:, :3].argmax(1) == k,
        "precision": covered(x, real),
        "copies": nearest <= threshold,
        "positive": x[:, 4] > 0,
    }
    for name, hits in shares.items():
        interval = scipy.stats.binomtest(int(hits.sum()), 60).proportion_ci(method="wilson")
        assert found[name].value == pytest.approx(hits.mean()) and (found[name].low, found[name].high) == pytest.approx(tuple(interval)), (
            name
        )
    assert shares["copies"][7] and 0 < shares["accuracy"].mean() < 1 and 0 < shares["precision"].mean() < 1, "or this tests nothing"
    means = {"mean": x.mean(1), "some": x[x[:, 0] > 0, 1], "original": np.abs(x - points(3, 60)[0].double().numpy()).mean(1)}
    for name, values in means.items():
        interval = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
        assert found[name].value == pytest.approx(values.mean(), rel=1e-5) and found[name].n == len(values)
        assert (found[name].low, found[name].high) == pytest.approx(interval, rel=1e-4), name
    assert set(found) == {*expected, *shares, *means} and next(iter(found)) == "accuracy"
    assert all(e.low <= e.value <= e.high for e in found.values()) and all(e.n == 60 for name, e in found.items() if name != "some")


def test_quantities_that_are_measured_already_are_not_measured_again(measured: Any):
    ref, _, made, label, found = measured
    of = Cases(Condition.of(kind=label), label)  # no original, which measuring would need
    given = {"mean": made.mean(1), "other": torch.ones(60)}
    again = ref.measured(Own(), made, of, given)
    assert again.keys() == (found.keys() - {"some", "positive", "original"}) | {"other"}
    assert again["other"].value == 1 and all(again[name] == found[name] for name in again.keys() - {"other"})


def test_without_a_judge_nothing_of_one_is_measured(measured: Any):
    ref, _, made, label, found = measured
    plain = replace(ref, judge=None, features=None, radius=None)
    again = plain.measured(Own(), made, Cases(Condition.of(kind=label), label, points(3, 60)[0]))
    assert list(again) == ["copies", "mean", "some", "positive", "original", "spread", "largest"]
    assert all(again[name] == found[name] for name in again)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_samples_are_measured_too(measured: Any, n: int):
    ref, _, made, label, _ = measured
    found = ref.measured(Own(), made[:n], Cases(Condition.of(kind=label[:n]), label[:n], made[:n]))
    assert found["frechet"].n == n and found["accuracy"].low <= found["accuracy"].value <= found["accuracy"].high
    assert bool(found["frechet"].low <= found["frechet"].value) == (n > 3), "two groups of two samples are the fewest"


def test_an_exact_copy_is_one_where_held_out_data_holds_copies_too(measured: Any):
    ref, _, made, label, _ = measured
    ref = replace(ref, copy_distance=torch.tensor(0.0))
    again = ref.measured(Own(), made, Cases(Condition.of(kind=label), label, made))
    assert again["copies"].value == pytest.approx(1 / 60), "the one that was put there"


def test_some_of_a_list_and_of_a_tensor():
    index = torch.tensor([2, 0, 2])
    assert chosen(["a", "b", "c"], index) == ["c", "a", "c"] and chosen(torch.tensor([5, 6, 7]), index).tolist() == [7, 5, 7]


def test_items_without_the_attribute_are_neither_asked_for_nor_judged():
    class Partly:
        """Ten items, of which the attribute of every third is not known."""

        def __len__(self) -> int:
            return 10

        def __getitems__(self, index: list[int]) -> tuple[torch.Tensor, Condition]:
            keep = torch.tensor([k % 3 != 0 for k in index])
            return torch.tensor(index), Condition({"parity": torch.tensor(index) % 2}, {"parity": keep})

    known = [1, 2, 4, 5, 7, 8]
    assert with_attribute(Partly(), "parity", chunk=4) == known
    raw, label, condition = read(Partly(), "parity", chunk=4)
    assert torch.cat(raw).tolist() == known and label.tolist() == [k % 2 for k in known] and bool(condition.keep["parity"].all())
    assert torch.cat(read(Partly(), chunk=4)[0]).tolist() == list(range(10))
