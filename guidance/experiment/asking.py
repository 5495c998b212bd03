"""What the samples of a cell are asked for: attribute -> the class (its number; -1: absent) of each sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from guidance.condition import Condition, Label
from guidance.errors import UserError, one_of
from guidance.evaluate import label_attribute
from guidance.modality import Split
from guidance.model import Model
from guidance.split import pick

Asked = dict[str, list[int]]
GIVEN = ("alone", "train")


def labels(model: Model) -> dict[str, Label]:
    """The attributes with classes. UserError where there is none."""
    label_attribute(model, None)
    return {name: spec for name, spec in model.modality.conditions.items() if isinstance(spec, Label)}


def alone(model: Model, n: int, attribute: str, classes: Sequence[int] | None = None) -> Asked:
    """Classes (all, or some) in turn, all other attributes absent."""
    of = range(len(label_attribute(model, attribute)[1].classes)) if classes is None else classes
    return {attribute: [of[k % len(of)] for k in range(n)]}


def items(model: Model, split: Split, n: int, attributes: Sequence[str]) -> Asked:
    """Attributes of n items, taken from a split at random. UserError where no item has all of the attributes."""
    condition = split.__getitems__(pick(len(split), min(len(split), 4 * n)))[1]
    there = torch.stack([condition.keep[name] for name in attributes]).all(0).nonzero().flatten()
    if not len(there):
        raise UserError(f"no item has {' and '.join(attributes)}")
    rows = there[torch.arange(n) % len(there)]
    return {name: condition.values[name][rows].tolist() for name in attributes}


def given(model: Model, n: int, attribute: str, how: str) -> Asked:
    """ "alone": the classes of the attribute in turn; "train": all attributes of training items that have it."""
    if how not in GIVEN:
        raise one_of("experiment.given", how, GIVEN)
    return alone(model, n, attribute) if how == "alone" else items(model, model.modality.data.train, n, list(labels(model)))


def named(model: Model, asked: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
    """As `Model.sample` takes conditions: the classes' names, None where absent."""
    specs = labels(model)
    return {name: [specs[name].classes[k] if k >= 0 else None for k in classes] for name, classes in asked.items()}


def condition_of(asked: Mapping[str, Sequence[int] | Int[Tensor, "n"]]) -> Condition:
    """As data gives conditions."""
    classes = {name: torch.as_tensor(values) for name, values in asked.items()}
    return Condition({name: of.clamp(min=0) for name, of in classes.items()}, {name: of >= 0 for name, of in classes.items()})


def number(model: Model, attribute: str, value: Any) -> int:
    """The number of a class that is named in a config. UserError where there is none of that name."""
    return int(label_attribute(model, attribute)[1].parse(value))
