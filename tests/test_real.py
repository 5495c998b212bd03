"""Real items beside samples: which ones, where they are from, and where they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from experiment_fakes import world
from torch import Tensor

from guidance import Condition, UserError
from guidance.real import FEW, assigned, real_items


@dataclass
class Marked:
    """Items whose one number is their index, with two classes and a vector each."""

    kind: Sequence[int]
    shade: Sequence[int]
    there: Sequence[bool] = ()
    fetched: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.kind)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        self.fetched += index
        rows = torch.tensor(index)
        size = torch.stack([rows.float(), -rows.float()], 1)
        keep = torch.tensor([not self.there or self.there[k] for k in index])
        values = {"kind": torch.tensor(self.kind)[rows], "shade": torch.tensor(self.shade)[rows], "size": size}
        return rows.float()[:, None], Condition(values, {"kind": keep, "shade": torch.ones_like(keep), "size": torch.ones_like(keep)})


def having(test: Marked, train: Marked | None = None) -> Any:
    """A model of such data; of anything else nothing is asked."""
    of = world()
    of.modality.data.train, of.modality.data.test = train if train is not None else Marked([0], [0]), test  # type: ignore[misc, assignment]
    return of


def asked(**classes: Sequence[int]) -> Condition:
    """-1: absent."""
    return Condition({k: torch.tensor(v).clamp(min=0) for k, v in classes.items()}, {k: torch.tensor(v) >= 0 for k, v in classes.items()})


KINDS = [k % 5 for k in range(300)]
SHADES = [k // 5 % 3 for k in range(300)]


def test_items_have_every_attribute_that_is_named_and_are_held_out():
    test = Marked(KINDS, SHADES)
    wanted = {"kind": [0, 1, 4, 4, -1, 2], "shade": [2, -1, 0, 0, 1, -1]}
    found = real_items(having(test), asked(**wanted), 6)
    assert found.split == "test" and (found.title, found.origin) == ("real", "held out") and bool(found.exact.all())
    for k, item in enumerate(found.index):
        assert wanted["kind"][k] in (-1, KINDS[item]) and wanted["shade"][k] in (-1, SHADES[item]), k
    assert len(set(found.index)) == 6, "also of the two that name the same"
    assert found.index == real_items(having(test), asked(**wanted), 6).index, "always the same"
    model = having(test)
    assert found.x0(model).flatten().tolist() == list(found.index), "which is what is fetched"


def test_no_more_is_read_than_is_needed_but_all_where_it_is():
    plenty = Marked(KINDS, SHADES)
    real_items(having(plenty), asked(kind=[0, 1, 2]), 3)
    assert len(plenty.fetched) == FEW
    one = Marked([0] * 299 + [1], [0] * 300)
    found = real_items(having(one), asked(kind=[1, 0]), 2)
    assert found.index[0] == 299 and bool(found.exact.all())
    none = Marked([0] * 300, [0] * 300)
    assert real_items(having(none), asked(kind=[1, 0]), 2).exact.tolist() == [False, True] and sorted(none.fetched) == list(range(300))


def test_where_no_item_has_all_the_attribute_that_a_table_is_about_goes_before_the_number():
    """Item 0 has the kind alone, item 1 shade and size, but another kind."""
    test = Marked([0, 1], [0, 1])
    size = torch.tensor([[1.0, -1.0]])
    values = {"kind": torch.tensor([0]), "shade": torch.tensor([1]), "size": size}
    condition = Condition(values, dict.fromkeys(values, torch.tensor([True])))
    assert real_items(having(test), condition, 1).index == (1,)
    found = real_items(having(test), condition, 1, "kind")
    assert found.index == (0,) and not bool(found.exact)


def test_an_attribute_that_an_item_lacks_is_not_what_was_named():
    test = Marked([1, 1, 1], [0, 0, 0], there=[False, True, False])
    found = real_items(having(test), asked(kind=[1, -1, -1]), 3)
    assert found.index[0] == 1 and bool(found.exact.all()) and set(found.index) == {0, 1, 2}


def test_an_item_comes_twice_rather_than_one_of_another_class():
    found = real_items(having(Marked([0, 1, 1], [0, 0, 0])), asked(kind=[0, 0, 1, 1]), 4)
    assert found.index[:2] == (0, 0) and set(found.index[2:]) == {1, 2} and bool(found.exact.all())


def test_rows_that_few_items_suit_choose_first():
    assert assigned(torch.tensor([[2, 2, 2], [0, 1, 0], [3, 3, 0]])).tolist() == [2, 1, 0]


def test_what_data_does_not_have_is_not_matched():
    test = Marked([0, 1], [0, 0])
    for condition in (Condition.of(prompt=[1, 1]), Condition.of(size=torch.zeros(2, 3))):
        assert real_items(having(test), condition, 2).exact.tolist() == [False, False]


def test_a_vector_is_matched_by_all_its_numbers():
    test = Marked(KINDS, SHADES)
    sizes = torch.tensor([[7.0, -7.0], [250.0, -250.0], [7.0, 7.0]])
    found = real_items(having(test), Condition.of(size=sizes), 3)
    assert found.index[:2] == (7, 250) and found.exact.tolist() == [True, True, False]


def test_without_held_out_items_it_says_that_they_were_trained_on():
    found = real_items(having(Marked([], []), Marked([0, 1, 2], [0, 0, 0])), asked(kind=[2, 0]), 2)
    assert (found.split, found.index, found.title, found.origin) == ("train", (2, 0), "real, trained on", "trained on")
    with pytest.raises(UserError, match="numbers has no items"):
        real_items(having(Marked([], []), Marked([], [])), asked(kind=[0]), 1)


def test_a_model_without_attributes_has_real_items_too():
    found = real_items(having(Marked(KINDS, SHADES)), Condition(), 8)
    assert len(set(found.index)) == 8 and bool(found.exact.all())
