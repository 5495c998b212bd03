"""Conditions: null is a mask and never a value; dropout is a pure function of uniform numbers."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from guidance.condition import Condition, ConditionEmbedding, Dropout, Label, NullEmbedding, Vector
from guidance.errors import UserError
from guidance.noise import Stream, uniform

SPECS = {"digit": Label(("zero", "one", "two")), "pitch": Vector(2)}


def mixed() -> Condition:
    """Four rows: both attributes, only the digit, only the pitch, neither."""
    return Condition(
        {"digit": torch.tensor([2, 1, 0, 1]), "pitch": torch.tensor([[0.5, -1.0], [2.0, 3.0], [1.0, 1.0], [0.0, 4.0]])},
        {"digit": torch.tensor([True, True, False, False]), "pitch": torch.tensor([True, False, True, False])},
    )


def spoiled(condition: Condition, pitch: float, digit: int) -> Condition:
    """The same, with something else under what is absent."""
    digits = torch.where(condition.keep["digit"], condition.values["digit"], digit)
    pitches = torch.where(condition.keep["pitch"][:, None], condition.values["pitch"], pitch)
    return Condition({"digit": digits, "pitch": pitches}, condition.keep)


# What an absent value does: nothing


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -1e30])
def test_values_under_absent_attributes_never_reach_the_embedding(garbage: float):
    torch.manual_seed(0)
    embed = ConditionEmbedding(SPECS, 6)
    assert torch.equal(embed(spoiled(mixed(), garbage, 10**9)), embed(mixed()))


def test_values_under_absent_attributes_never_reach_the_gradient():
    torch.manual_seed(0)
    embed = NullEmbedding(Vector(2).embedding(3), (3,))
    embed(torch.tensor([[1.0, 2.0], [math.nan, math.inf]]), torch.tensor([True, False])).sum().backward()
    expected = torch.autograd.grad(embed.embed(torch.tensor([[1.0, 2.0]])).sum(), list(embed.embed.parameters()))
    for parameter, gradient in zip(embed.embed.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert torch.equal(embed.null.grad, torch.ones(3))


def test_present_rows_are_embedded_and_absent_rows_are_null():
    torch.manual_seed(0)
    embed, condition = ConditionEmbedding(SPECS, 6), mixed()
    digit, pitch = embed.attributes["digit"], embed.attributes["pitch"]
    a = digit.embed(condition.values["digit"])
    b = pitch.embed(condition.values["pitch"])
    expected = torch.stack([a[0] + b[0], a[1] + pitch.null, digit.null + b[2], digit.null + pitch.null])
    torch.testing.assert_close(embed(condition), expected)


@pytest.mark.parametrize("shape", [(4,), (3, 4)], ids=str)
def test_null_takes_the_shape_of_what_is_embedded(shape: tuple[int, ...]):
    """A text of three tokens has a null of three tokens."""

    class Tile(torch.nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return values.view(-1, *(1,) * len(shape)).expand(-1, *shape)

    embed = NullEmbedding(Tile(), shape)
    out = embed(torch.tensor([7.0, math.nan]), torch.tensor([True, False]))
    assert torch.equal(out, torch.stack([torch.full(shape, 7.0), embed.null]))


def test_embedding_refuses_a_condition_without_its_attribute():
    with pytest.raises(UserError, match="pitch"):
        ConditionEmbedding(SPECS, 6)(Condition.of(digit=[0, 1]))


# Dropout

N = 40_000


def dropped(dropout: Dropout, **keep: Tensor) -> dict[str, Tensor]:
    """Which rows lost which attribute."""
    condition = Condition({name: torch.zeros(N) for name in ("a", "b")}, {name: keep.get(name, torch.ones(N) > 0) for name in ("a", "b")})
    after = dropout(condition, uniform(0, Stream.DROP, 0, 0, N, 3))
    return {name: ~mask for name, mask in after.keep.items()}


def rate(rows: Tensor, expected: float) -> None:
    """The share of rows is what it should be, by an exact binomial test; 0 and 1 are exact."""
    count = int(rows.sum())
    assert count == expected * N if expected in (0.0, 1.0) else stats.binomtest(count, N, expected).pvalue > 1e-3


@pytest.mark.parametrize("joint", [0.0, 0.1, 0.7, 1.0])
def test_joint_dropout_loses_all_or_nothing(joint: float):
    lost = dropped(Dropout(joint))
    rate(lost["a"], joint)
    assert torch.equal(lost["a"], lost["b"])


@pytest.mark.parametrize("a, b", [(0.3, 0.3), (0.2, 0.6), (0.0, 1.0)])
def test_independent_dropout_is_independent(a: float, b: float):
    lost = dropped(Dropout(0.0, a if a == b else {"a": a, "b": b}))
    rate(lost["a"], a)
    rate(lost["b"], b)
    rate(lost["a"] & lost["b"], a * b)


def test_both_kinds_together_lose_what_either_does():
    lost = dropped(Dropout(0.1, {"a": 0.3}))
    rate(lost["b"], 0.1)
    rate(lost["a"] & ~lost["b"], 0.9 * 0.3)
    assert bool(lost["a"][lost["b"]].all())


def test_a_star_is_the_rate_of_all_others():
    lost = dropped(Dropout(0.0, {"*": 0.3, "b": 0.6}))
    rate(lost["a"], 0.3)
    rate(lost["b"], 0.6)
    rate(lost["a"] & lost["b"], 0.18)
    for each, same in (({"*": 0.3}, 0.3), ({"*": 0.0, "a": 0.5}, {"a": 0.5}), ({"*": 0.9, "a": 0.1, "b": 0.2}, {"a": 0.1, "b": 0.2})):
        one, other = dropped(Dropout(0.2, each)), dropped(Dropout(0.2, same))
        assert all(torch.equal(one[name], other[name]) for name in one), each
    spared = dropped(Dropout(0.0, {"*": 1.0, "b": 0.0}))
    assert bool(spared["a"].all()) and not bool(spared["b"].any()), "a rate of 0 is one, too"


def test_dropout_keeps_absent_what_was_absent():
    there = torch.arange(N) % 2 == 0
    lost = dropped(Dropout(0.0, 0.25), a=there)
    assert bool(lost["a"][~there].all())
    assert stats.binomtest(int(lost["a"][there].sum()), N // 2, 0.25).pvalue > 1e-3


def test_dropout_decides_each_sample_by_its_own_row():
    u = torch.tensor([[0.05, 0.9, 0.9], [0.5, 0.1, 0.9], [0.5, 0.9, 0.1], [0.5, 0.9, 0.9]])
    after = Dropout(0.1, 0.2)(Condition.of(a=[0, 0, 0, 0], b=[0, 0, 0, 0]), u)
    assert after.keep["a"].tolist() == [False, False, True, True]
    assert after.keep["b"].tolist() == [False, True, False, True]


def test_dropout_is_pure():
    condition, u = mixed(), uniform(0, Stream.DROP, 0, 0, 4, 3)
    before = {name: mask.clone() for name, mask in condition.keep.items()}
    first, again = Dropout(0.5, 0.5)(condition, u), Dropout(0.5, 0.5)(condition, u)
    assert all(torch.equal(first.keep[name], again.keep[name]) for name in before)
    assert all(torch.equal(condition.keep[name], before[name]) for name in before)


@pytest.mark.parametrize("whole", [0.0, 0.25, 0.9])
def test_some_samples_are_kept_whole_and_the_rest_drop_as_before(whole: float):
    lost = dropped(Dropout(0.1, {"a": 0.5, "b": 0.2}, whole))
    rate(~lost["a"] & ~lost["b"], whole + (0.9 - whole) * 0.5 * 0.8)
    rate(lost["a"] & lost["b"], 0.1 + (0.9 - whole) * 0.5 * 0.2)
    rate(lost["a"] & ~lost["b"], (0.9 - whole) * 0.5 * 0.8)
    rate(lost["b"] & ~lost["a"], (0.9 - whole) * 0.5 * 0.2)


@pytest.mark.parametrize(
    "joint, each, whole",
    [
        *(
            (joint, each, 0.0)
            for joint, each in [(-0.1, 0.0), (1.1, 0.0), (math.nan, 0.0), (0.1, 2.0), (0.1, {"a": -1.0}), (0.1, {"*": 1.5})]
        ),
        *((joint, 0.0, whole) for joint, whole in [(0.1, -0.1), (0.1, 1.1), (0.6, 0.5), (0.0, math.nan)]),
    ],
)
def test_impossible_probabilities_are_refused(joint: float, each: float | dict, whole: float):
    with pytest.raises(UserError):
        Dropout(joint, each, whole)


def test_dropout_of_an_unknown_attribute_is_refused_by_name():
    with pytest.raises(UserError, match="digitt"):
        Dropout(0.1, {"digitt": 0.1})(Condition.of(digit=[1]), torch.rand(1, 2))
    dropout = Dropout(0.1, {"*": 0.1, "digitt": 0.1})
    with pytest.raises(UserError, match=r"no attribute to drop 'digitt' \(did you mean 'digit'\?\); choose from: digit, size, \*"):
        dropout.check(["digit", "size"])
    Dropout(0.1, {"*": 0.1, "size": 0.2}).check(["digit", "size"])
    Dropout(0.1, {"*": 0.1}).check([])


# Rows, cat, same


def test_drop_takes_the_named_attributes_or_all():
    condition = mixed()
    assert condition.drop("digit").keep["digit"].tolist() == [False] * 4
    assert torch.equal(condition.drop("digit").keep["pitch"], condition.keep["pitch"])
    assert not any(bool(mask.any()) for mask in condition.drop().keep.values())
    with pytest.raises(UserError, match="digit"):
        condition.drop("digits")


def test_cat_stacks_rows_and_leaves_missing_attributes_absent():
    a, b = Condition.of(digit=[1, 2]), Condition.of(pitch=torch.tensor([[0.5, 0.5]]))
    both = Condition.cat([a, mixed(), b])
    assert len(both) == 7
    assert both.keep["digit"].tolist() == [True, True, True, True, False, False, False]
    assert both.keep["pitch"].tolist() == [False, False, True, False, True, False, True]
    assert both.values["digit"][:6].tolist() == [1, 2, 2, 1, 0, 1]
    assert both.values["pitch"][2:].tolist() == [*mixed().values["pitch"].tolist(), [0.5, 0.5]]


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([3, 0, 0])], ids=["slice", "index"])
def test_rows_selects_values_and_masks_alike(index: slice | Tensor):
    some = mixed().rows(index)
    for name in ("digit", "pitch"):
        assert torch.equal(some.values[name], mixed().values[name][index])
        assert torch.equal(some.keep[name], mixed().keep[name][index])


def test_cat_of_rows_is_the_whole():
    assert bool(Condition.cat([mixed().rows(slice(0, 1)), mixed().rows(slice(1, 4))]).same(mixed()).all())


def test_same_ignores_what_stands_under_absent_attributes():
    assert mixed().same(spoiled(mixed(), math.nan, 10**9)).tolist() == [True] * 4


def test_same_sees_values_and_masks():
    other = Condition({**mixed().values, "digit": torch.tensor([2, 0, 1, 0])}, mixed().keep)
    assert mixed().same(other).tolist() == [True, False, True, True]
    assert mixed().same(mixed().drop("digit")).tolist() == [False, False, True, True]
    pitch = mixed().values["pitch"].clone()
    pitch[:, 1] += 1
    assert mixed().same(Condition({**mixed().values, "pitch": pitch}, mixed().keep)).tolist() == [False, True, False, True]


def test_same_takes_a_lacking_attribute_for_an_absent_one():
    only = Condition({"digit": mixed().values["digit"]}, {"digit": mixed().keep["digit"]})
    expected = [False, True, False, True]
    assert mixed().same(only).tolist() == expected == only.same(mixed()).tolist()
    assert mixed().same(Condition()).tolist() == [False, False, False, True]


def test_set_makes_attributes_present():
    new = mixed().set(digit=torch.tensor([0, 0, 0, 0]), size=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert bool(new.keep["digit"].all()) and bool(new.keep["size"].all())
    assert new.values["digit"].tolist() == [0] * 4
    assert torch.equal(new.keep["pitch"], mixed().keep["pitch"])


@pytest.mark.parametrize(
    "values, keep",
    [
        ({"a": torch.zeros(2)}, {}),
        ({"a": torch.zeros(2)}, {"b": torch.ones(2, dtype=torch.bool)}),
        ({"a": torch.zeros(2)}, {"a": torch.ones(3, dtype=torch.bool)}),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, {"a": torch.ones(2, dtype=torch.bool), "b": torch.ones(3, dtype=torch.bool)}),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_conditions_that_do_not_fit_together_are_refused(values: dict, keep: dict):
    with pytest.raises(UserError):
        Condition(values, keep)


# What people write


@pytest.mark.parametrize("value, index", [("7", 1), (7, 1), (7.0, 1), ("thin", 0), ("2.0", 2), (2.0, 2)], ids=repr)
def test_labels_are_found_by_their_names(value: object, index: int):
    assert int(Label(("thin", "7", "2.0")).parse(value)) == index


@pytest.mark.parametrize("value", ["thim", 8, 7.5, None, True], ids=repr)
def test_unknown_labels_are_refused_with_the_choices(value: object):
    with pytest.raises(UserError, match="thin"):
        Label(("thin", "7")).parse(value)


@pytest.mark.parametrize("size, value", [(2, [1, 2.5]), (1, 3.0), (3, torch.tensor([1.0, 2.0, 3.0]))])
def test_vectors_are_read_as_numbers(size: int, value: object):
    assert torch.equal(Vector(size).parse(value), torch.as_tensor(value, dtype=torch.float32).reshape(size))


@pytest.mark.parametrize("value", [[1.0], [1.0, 2.0, 3.0], "loud", ["a", "b"], [1.0, math.nan], None, [[1.0], [2.0, 3.0]]], ids=repr)
def test_what_is_no_vector_is_refused(value: object):
    with pytest.raises(UserError):
        Vector(2).parse(value)


# Levels


ORDERED = Label(("a", "b", "c", "d", "e"), levels=(("c",), ("e", "a"), ("b",)))


def test_the_level_of_a_class_is_the_place_of_its_group():
    assert ORDERED.level(torch.tensor([0, 1, 2, 3, 4, 2])).tolist() == [1, 2, 0, -1, 1, 0], "d has none"
    assert ORDERED.level(torch.tensor([], dtype=torch.long)).tolist() == []
    assert Label(("a", "b")).level(torch.tensor([1, 0])).tolist() == [-1, -1], "without an order"


def test_levels_are_names_as_classes_are(unchecked: None):
    made = Label([1, 2, 3], levels=[[2], [3, 1]], quantity="size")
    assert made == Label(("1", "2", "3"), (("2",), ("3", "1")), "size") and made.level(torch.tensor([0, 1, 2])).tolist() == [1, 0, 1]
    assert hash(made) == hash(Label(("1", "2", "3"), (("2",), ("3", "1")), "size")) and made != Label(("1", "2", "3"))
    assert made.parse(3).item() == 2 and made.quantity == "size" and Label(("a",)).quantity == "" and Label(("a",)).levels == ()


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((("a",),), "levels are two groups of classes or more"),
        ((("a", "b", "c"),), "levels are two groups of classes or more"),
        ((("a",), ("b", "a")), r"each class in one; got \(\('a',\), \('b', 'a'\)\)"),
        ((("a", "a"), ("b",)), "each class in one"),
        ((("a",), ()), "two groups of classes or more"),
        ((("a",), ("bb",)), r"no class 'bb'.*did you mean 'b'\?.*choose from: a, b, c"),
    ],
    ids=str,
)
def test_levels_that_are_none_are_refused(levels: tuple, said: str, unchecked: None):
    with pytest.raises(UserError, match=said) as error:
        Label(("a", "b", "c"), levels=levels)
    assert "\n" not in str(error.value)
