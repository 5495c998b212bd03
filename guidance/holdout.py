"""Combinations of attributes that training shall not see, to ask for them afterwards.

What is made of a data set as a whole, such as a vocabulary, token vectors or a judge, still is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from guidance.condition import ConditionSpec, Label
from guidance.errors import UserError, one_of
from guidance.modality import Split
from guidance.split import Part


def parse(combinations: Any, conditions: Mapping[str, ConditionSpec]) -> list[dict[str, int]]:
    """``[{digit: 3, stroke: bold}, ...]`` as classes' numbers. UserError for what is no combination of classes."""
    if not isinstance(combinations, list) or not all(isinstance(c, Mapping) and c for c in combinations):
        raise UserError(f"holdout is a list of combinations, e.g. holdout='[{{digit: 3, stroke: bold}}]', got {combinations!r}")
    labels = {name: spec for name, spec in conditions.items() if isinstance(spec, Label)}
    found = []
    for combination in combinations:
        for name in combination:
            if name not in labels:
                raise one_of("attribute with classes in holdout", name, list(labels))
        found.append({str(name): int(labels[name].parse(value)) for name, value in combination.items()})
    return found


def without(split: Split, combinations: Sequence[Mapping[str, int]], chunk: int = 512) -> Split:
    """The items that are of none of the combinations. UserError where there is nothing of one, or nothing else."""
    if not combinations:
        return split
    count, held = [0] * len(combinations), []
    for first in range(0, len(split), chunk):
        rows = list(range(first, min(first + chunk, len(split))))
        condition = split.__getitems__(rows)[1]
        gone = torch.zeros(len(rows), dtype=torch.bool)
        for k, combination in enumerate(combinations):
            of = torch.ones(len(rows), dtype=torch.bool)
            for name, value in combination.items():
                of &= condition.keep[name] & (condition.values[name] == value)
            count[k] += int(of.sum())
            gone |= of
        held += [row for row, out in zip(rows, gone.tolist(), strict=True) if not out]
    if 0 in count:
        raise UserError(f"holdout: there is no training item of combination {count.index(0) + 1} of {len(count)}")
    if not held:
        raise UserError("holdout leaves nothing to train on")
    return Part(split, held)
