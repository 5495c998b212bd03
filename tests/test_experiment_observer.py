"""Observers: rulers are marked at the best cut, and what is seen of samples is what is there."""

from typing import Any

import pytest
import torch
from experiment_fakes import DEVIATION, LABELS, MEANS, Data, Items, drawn, nearest, world
from torch import Tensor

from guidance import Label, UserError
from guidance.experiment.observer import Observer, Ruler, mark
from guidance.noise import normal


def errors(less: Tensor, more: Tensor, cut: float) -> float:
    """Of both sides alike."""
    return sum(float(v) > cut for v in less) / len(less) + sum(float(v) <= cut for v in more) / len(more)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("n", "m", "apart"), [(1, 1, 1.0), (7, 4, 0.5), (30, 9, 0.1), (12, 12, -1.0), (20, 20, 8.0)])
def test_a_mark_is_the_best_cut(n: int, m: int, apart: float, seed: int):
    values = normal(seed, 0, 0, 0, (n + m, 1))[:, 0]
    less, more = values[:n], values[n:] + apart
    found = mark(less, more)
    grid = torch.cat([less, more]).double().sort().values
    candidates = [float(grid[0]) - 1, *((grid[1:] + grid[:-1]) / 2).tolist(), float(grid[-1]) + 1]
    best = min(errors(less, more, cut) for cut in candidates)
    at_best = [cut for cut in candidates if errors(less, more, cut) <= best + 1e-9]
    assert at_best[0] <= found <= at_best[-1] and found == pytest.approx((at_best[0] + at_best[-1]) / 2)
    if len(at_best) == 1 or at_best[-1] - at_best[0] < 1e-9:
        assert errors(less, more, found) == pytest.approx(best)


def test_a_mark_between_separable_data_is_in_the_middle_and_errs_on_neither_side():
    assert mark(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 9.0])) == 3.0
    assert mark(torch.tensor([0.0]), torch.tensor([2.0] * 50)) == 1.0, "however many there are of each"


def test_a_few_items_count_as_much_as_many():
    """The shares of errors are of each side's own items: 8 low, of which one is above all but the rarest."""
    less, more = torch.tensor([0.0] * 7 + [10.0]), torch.tensor([5.0, 6.0])
    assert 0 < mark(less, more) < 5
    many = torch.tensor([0.0, 10.0])
    assert errors(many, more, mark(many, more)) == 0.5


def test_what_does_not_apply_marks_nothing():
    nan = float("nan")
    assert mark(torch.tensor([1.0, nan, 2.0]), torch.tensor([nan, 3.0, 4.0])) == 2.5


def test_a_ruler_reads_between_its_marks():
    ruler = Ruler((2, 0, 1), (-1.0, 1.0), 0.0)
    values = [-5.0, -1.0, -0.99, 0.0, 1.0, 1.01, float("inf"), float("-inf"), float("nan")]
    assert ruler(torch.tensor(values)).tolist() == [2, 2, 0, 0, 0, 1, 1, 2, -1]


# On data


def shaded(values: list[float], classes: list[int]) -> Items:
    """Items of two numbers, of which the second is grey."""
    return Items(torch.tensor([[0.0, v] for v in values]), {"side": torch.tensor([0] * len(values)), "shade": torch.tensor(classes)})


def observer(train: Items, test: Items, label: Label = LABELS["shade"], attributes: Any = ("side", "shade")) -> Observer:
    conditions = {"side": LABELS["side"], "shade": label}
    model = world(data=Data(conditions, train, test))
    model.modality.conditions.update(conditions)  # type: ignore[attr-defined]
    return Observer(model, attributes)


def test_a_ruler_is_marked_by_training_data_and_right_by_held_out_data():
    train = shaded([-3, -2, -1, 0, 1, 2, 3, 4], [0, 0, 1, 1, 1, 2, 2, 2])
    test = shaded([-9, -1.4, -1.6, 1.4, 1.6, 9, 0, float("nan")], [0, 1, 1, 1, 2, 2, 2, 0])
    found = observer(train, test)
    assert found.rulers["shade"].marks == (-1.5, 1.5) and found.rulers["shade"].order == (0, 1, 2)
    # -1.6 is seen as low, 0 as mid, and NaN as nothing.
    assert found.accuracy == {"side": 0.875, "shade": 5 / 8}


def test_the_order_is_that_of_the_levels():
    """And not that of the classes: a level of two classes has their order."""
    label = Label(("high", "low", "mid"), levels=(("low", "mid"), ("high",)), quantity="grey")
    train = shaded([-3, -2, -1, 0, 1, 2, 3, 4], [1, 1, 2, 2, 2, 0, 0, 0])
    found = observer(train, train, label)
    assert found.rulers["shade"].order == (1, 2, 0) and found.accuracy["shade"] == 1
    assert found.rulers["shade"](torch.tensor([-9.0, 0.0, 9.0])).tolist() == [1, 2, 0]


def test_marks_never_go_back():
    """Where the middle class is out of order, the second mark alone would be below the first."""
    low, mid, high = [0.0] * 4, [-20.0, -20.0, -20.0, 10.0], [-5.0] * 4
    assert (mark(torch.tensor(low), torch.tensor(mid)), mark(torch.tensor(mid), torch.tensor(high))) == (5.0, -12.5)
    train = shaded([*low, *mid, *high], [0] * 4 + [1] * 4 + [2] * 4)
    found = observer(train, train).rulers["shade"]
    assert found.marks == (5.0, 5.0)
    assert found(torch.linspace(-30, 15, 46)).tolist() == [0] * 36 + [2] * 10, "none is seen out of order"


def test_the_held_out_accuracy_is_a_count():
    train, test = drawn(("side", "shade"), 900, 1), drawn(("side", "shade"), 300, 2)
    found = observer(train, test)
    marks = found.rulers["shade"].marks
    assert marks == pytest.approx((-1, 1), abs=0.25), "halfway between means, as of two Gaussians alike"
    values, classes = test.values[:, 1].tolist(), test.labels["shade"].tolist()
    hits = sum(k == (v > marks[0]) + (v > marks[1]) for v, k in zip(values, classes, strict=True))
    assert found.accuracy["shade"] == pytest.approx(hits / 300)


def test_a_class_without_items_has_no_mark():
    with pytest.raises(UserError, match="no training item of shade=mid"):
        observer(shaded([1, 2, 3, 4], [0, 2, 0, 2]), shaded([1, 2, 3, 4], [0, 2, 0, 2]))
    with pytest.raises(UserError, match="no training item of shade=high"):
        observer(shaded([1, 2, 3, float("nan")], [0, 1, 0, 2]), shaded([1, 2, 3], [0, 2, 1]))


def test_a_quantity_that_is_not_measured_is_named():
    label = Label(("low", "mid", "high"), levels=(("low",), ("high",)), quantity="gray")
    with pytest.raises(UserError, match=r"shade is ordered by 'gray'.*grey"):
        observer(shaded([1, 2, 3], [0, 1, 2]), shaded([1, 2, 3], [0, 1, 2]), label)


def test_what_is_seen_of_samples():
    samples = torch.stack([torch.tensor([s, g]) for s in MEANS["side"] for g in MEANS["shade"]]) + 0.3 * DEVIATION
    asked = {"side": torch.tensor([0, 0, 1, 1, -1, 0])}
    estimates, arrays = Observer(world(), ["side", "shade"])(samples, asked)
    assert arrays["class.side"].tolist() == nearest(samples[:, 0], "side").tolist() == [0, 0, 0, 1, 1, 1]
    assert arrays["class.shade"].tolist() == [0, 1, 2, 0, 1, 2] and torch.equal(arrays["grey"], samples[:, 1])
    assert arrays["asked.side"].tolist() == [0, 0, 1, 1, -1, 0] and arrays["asked.shade"].tolist() == [-1] * 6
    p = (-(samples[:, :1].double() - torch.tensor(MEANS["side"])).square() / (2 * DEVIATION**2)).exp()
    torch.testing.assert_close(arrays["p.side"].double(), p / p.sum(1, keepdim=True), atol=1e-6, rtol=0)
    assert arrays["p.shade"].tolist() == torch.eye(3).repeat(2, 1).tolist()
    assert estimates["accuracy"].value == estimates["right.side"].value == 3 / 6, "the absent one is not right"
    assert estimates["grey"].value == pytest.approx(float(samples[:, 1].mean())) and "right.shade" not in estimates


def test_nothing_named_is_nothing_to_be_right_about():
    estimates, _ = Observer(world(), ["side", "shade"])(drawn(("side", "shade"), 12, 5).values, {"shade": torch.tensor([0, 1, 2] * 4)})
    assert not {"accuracy", "diversity", "right.side"} & estimates.keys() and {"frechet", "right.shade"} <= estimates.keys()


def test_classes_are_as_far_from_each_other_as_the_means_of_their_items():
    model = world()
    train = model.modality.data.train
    means = [train.values[train.labels["shade"] == k].mean(0) for k in range(3)]  # type: ignore[attr-defined]
    found = Observer(model, ["shade", "side"]).distances()
    for k in range(3):
        for c in range(3):
            assert float(found[k, c]) == pytest.approx(float((means[k] - means[c]).square().sum().sqrt()), abs=1e-5)
