"""Conditions: named attributes with a mask that says which are there. Null is a mask, never a value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from guidance.errors import UserError, one_of


@dataclass(frozen=True)
class Condition:
    """Attributes of a batch: ``values[name]`` [b, ...], and ``keep[name]`` [b], False where the attribute is absent.

    Where an attribute is absent its value means nothing, and a network puts its learned null embedding there.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    keep: Mapping[str, Bool[Tensor, "b"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.keys() != self.keep.keys():
            raise UserError(f"a condition has values for {sorted(self.values)} but masks for {sorted(self.keep)}")
        sizes = {name: len(tensor) for name, tensor in self.values.items()} | {
            f"keep of {name}": len(tensor) for name, tensor in self.keep.items()
        }
        if len(set(sizes.values())) > 1:
            raise UserError(f"the attributes of a condition differ in batch size: {sizes}")

    @classmethod
    def of(cls, **values: Tensor | Sequence[int] | Sequence[float]) -> "Condition":
        """All attributes present: ``Condition.of(digit=labels)``."""
        tensors = {name: torch.as_tensor(value) for name, value in values.items()}
        return cls(tensors, {n: torch.ones(len(v), dtype=torch.bool, device=v.device) for n, v in tensors.items()})

    def __len__(self) -> int:
        """The batch size; 0 for a condition without any attribute, which fits every batch."""
        return next((len(keep) for keep in self.keep.values()), 0)

    def drop(self, *names: str) -> "Condition":
        """Without these attributes; without any name, the null condition."""
        unknown = [name for name in names if name not in self.keep]
        if unknown:
            raise one_of("attribute", unknown[0], list(self.keep))
        gone = names or tuple(self.keep)
        return replace(self, keep={n: torch.zeros_like(k) if n in gone else k for n, k in self.keep.items()})

    def set(self, **values: Tensor) -> "Condition":
        """With these attributes present in every row, replaced or added."""
        new = Condition.of(**values)
        return Condition({**self.values, **new.values}, {**self.keep, **new.keep})

    def rows(self, index: Int[Tensor, "r"] | slice) -> "Condition":
        """The rows of ``index``."""
        return Condition({n: v[index] for n, v in self.values.items()}, {n: k[index] for n, k in self.keep.items()})

    def to(self, device: torch.device | str) -> "Condition":
        """On a device."""
        return Condition({n: v.to(device) for n, v in self.values.items()}, {n: k.to(device) for n, k in self.keep.items()})

    @staticmethod
    def cat(conditions: "Sequence[Condition]") -> "Condition":
        """Row after row; an attribute that one of them lacks is absent there."""
        models: dict[str, Tensor] = {}
        for condition in conditions:
            models = {**condition.values, **models}

        def value(condition: Condition, name: str) -> Tensor:
            model = models[name]
            return condition.values.get(name, model.new_zeros((len(condition), *model.shape[1:])))

        def keep(condition: Condition, name: str) -> Tensor:
            absent = torch.zeros(len(condition), dtype=torch.bool, device=models[name].device)
            return condition.keep.get(name, absent)

        return Condition(
            {name: torch.cat([value(c, name) for c in conditions]) for name in models},
            {name: torch.cat([keep(c, name) for c in conditions]) for name in models},
        )

    def same(self, other: "Condition") -> Bool[Tensor, "b"]:
        """Row by row, on the CPU: do both say the same? Absent attributes are equal whatever their values."""
        equal = torch.ones(max(len(self), len(other)), dtype=torch.bool)
        for name in self.keep.keys() | other.keep.keys():
            mine, theirs = self.keep.get(name), other.keep.get(name)
            if mine is None or theirs is None:
                present = mine if mine is not None else theirs
                assert present is not None
                equal &= ~present.cpu()
                continue
            a, b = self.values[name], other.values[name]
            alike = (a == b).flatten(1).all(1) if a.ndim > 1 else a == b
            equal &= ((mine == theirs) & (~mine | alike)).cpu()
        return equal


OTHERS = "*"


@dataclass(frozen=True)
class Dropout:
    """Conditioning dropout, a pure function. A sample loses all attributes with probability ``joint`` and keeps all with probability
    ``whole``; of the others each attribute is lost by itself with probability ``each``: one number, or one an attribute, ``"*"`` for all
    others.

    Joint dropout is Ho & Salimans' p_uncond. Independent dropout trains the single-attribute models that composition needs. Where there
    are several attributes it leaves few samples whole, which are what most people ask for: ``whole`` says how many.
    """

    joint: float = 0.1
    each: float | Mapping[str, float] = 0.0
    whole: float = 0.0

    def __post_init__(self) -> None:
        rates = [self.joint, self.whole, *(self.each.values() if isinstance(self.each, Mapping) else [self.each])]
        if not all(isinstance(rate, int | float) and 0 <= rate <= 1 for rate in rates) or self.joint + self.whole > 1:
            raise UserError(
                "dropout probabilities lie between 0 and 1, joint and whole together too, got "
                f"joint={self.joint!r}, whole={self.whole!r}, each={self.each!r}"
            )

    def check(self, attributes: Sequence[str]) -> None:
        """UserError where a rate is given for an attribute that is not among these."""
        if isinstance(self.each, Mapping) and (unknown := self.each.keys() - {*attributes, OTHERS}):
            raise one_of("attribute to drop", min(unknown), [*attributes, OTHERS])

    def __call__(self, condition: Condition, u: Float[Tensor, "b columns"]) -> Condition:
        """``u``: uniform numbers, one column for the joint decision and one for each attribute, in the condition's order."""
        self.check(list(condition.keep))
        some, spared = u[:, 0] >= self.joint, u[:, 0] >= 1 - self.whole
        keep = {}
        for column, (name, mask) in enumerate(condition.keep.items(), start=1):
            rate = self.each.get(name, self.each.get(OTHERS, 0.0)) if isinstance(self.each, Mapping) else self.each
            keep[name] = mask & (some & (spared | (u[:, column] >= rate))).to(mask.device)
        return replace(condition, keep=keep)


@runtime_checkable
class ConditionSpec(Protocol):
    """What an attribute may be: it parses what people write, and embeds what a batch holds."""

    def parse(self, value: object) -> Tensor:
        """The tensor of one sample's value; a UserError says what would be right."""
        ...

    def absent(self) -> Tensor:
        """What stands where the attribute is absent: any tensor of a value's shape and dtype."""
        ...

    def embedding(self, width: int) -> nn.Module:
        """A module from values [b, ...] to [b, width]."""
        ...


@runtime_checkable
class Partial(Protocol):
    """A `ConditionSpec` of which training shows a random part (spans of a sentence, a region of a picture)."""

    @property
    def draws(self) -> int:
        """Uniform numbers that `reveal` takes, a sample."""
        ...

    def reveal(self, values: Tensor, keep: Bool[Tensor, "b"], u: Float[Tensor, "b draws"]) -> tuple[Tensor, Bool[Tensor, "b"]]:
        """The part that is shown, and where the attribute is still there: a pure function, as `Dropout` is."""
        ...


def reveal(specs: Mapping[str, ConditionSpec], condition: Condition, draw: Callable[[int], Float[Tensor, "b draws"]]) -> Condition:
    """The condition with a random part of each `Partial` attribute; ``draw(n)`` gives n columns of uniform numbers."""
    partial = {name: spec for name, spec in specs.items() if isinstance(spec, Partial) and name in condition.keep}
    if not partial:
        return condition
    columns = torch.split(draw(sum(spec.draws for spec in partial.values())), [spec.draws for spec in partial.values()], dim=1)
    shown = {n: spec.reveal(condition.values[n], condition.keep[n], u) for (n, spec), u in zip(partial.items(), columns, strict=True)}
    values, keep = ({n: pair[k] for n, pair in shown.items()} for k in (0, 1))
    return Condition({**condition.values, **values}, {**condition.keep, **keep})


@dataclass(frozen=True)
class Label:
    """One of some classes, by name.

    Args:
        levels: where they have an order, the classes from least to most, those of a level together: (("thin",), ("medium",), ("bold",)).
        quantity: of the modality's own measures, the one that grows with the level (ink), so that no judge is needed to see it.
    """

    classes: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...] = ()
    quantity: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        object.__setattr__(self, "levels", tuple(tuple(str(name) for name in level) for level in self.levels))
        names = [name for level in self.levels for name in level]
        for name in names:
            if name not in self.classes:
                raise one_of("class", name, self.classes)
        if len(names) != len(set(names)) or len(self.levels) == 1 or not all(self.levels):
            raise UserError(f"levels are two groups of classes or more, each class in one; got {self.levels}")

    def level(self, classes: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """The level of each class; -1 where it has none."""
        of = {name: k for k, names in enumerate(self.levels) for name in names}
        return torch.tensor([of.get(name, -1) for name in self.classes])[classes.cpu()]

    def parse(self, value: object) -> Tensor:
        if isinstance(value, float) and value.is_integer() and str(value) not in self.classes:
            value = int(value)
        if isinstance(value, bool) and str(value).lower() in self.classes:  # YAML's true for a class "true"
            value = str(value).lower()
        if str(value) not in self.classes:
            raise one_of("class", value, self.classes)
        return torch.tensor(self.classes.index(str(value)))

    def absent(self) -> Tensor:
        return torch.tensor(0)

    def embedding(self, width: int) -> nn.Module:
        return nn.Embedding(len(self.classes), width)


@dataclass(frozen=True)
class Vector:
    """A continuous vector of ``size`` numbers (a single number is a vector of size 1)."""

    size: int

    def parse(self, value: object) -> Tensor:
        try:
            vector = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"{value!r} is not a vector of {self.size} numbers") from None
        if len(vector) != self.size or not bool(vector.isfinite().all()):
            raise UserError(f"needs {self.size} finite numbers, got {value!r}")
        return vector

    def absent(self) -> Tensor:
        return torch.zeros(self.size)

    def embedding(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(self.size, width), nn.SiLU(), nn.Linear(width, width))


class NullEmbedding(nn.Module):
    """``embed(values)`` where an attribute is there, and a learned null vector of the same shape where it is not."""

    def __init__(self, embed: nn.Module, shape: tuple[int, ...]):
        super().__init__()
        self.embed = embed
        self.null = nn.Parameter(torch.randn(shape) * 0.02)

    def forward(self, values: Tensor, keep: Bool[Tensor, "b"]) -> Tensor:
        there = keep.view(-1, *(1,) * self.null.ndim)
        # Absent values are blanked before they are embedded, so that whatever stands there (NaN too) reaches nothing.
        blank = values.new_zeros(())
        clean = torch.where(keep.view(-1, *(1,) * (values.ndim - 1)), values, blank)
        return torch.where(there, self.embed(clean), self.null)


class ByName(nn.ModuleDict):
    """Modules by any name, also by one that nn.ModuleDict itself has for something else (type, keys, train); weights are named the same."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module  # which is all that add_module does, but refuse such names

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # the flag, whatever module is called so
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class ConditionEmbedding(nn.Module):
    """The sum of all attributes' embeddings: Condition -> [b, width], or None for a network without attributes."""

    def __init__(self, specs: Mapping[str, ConditionSpec], width: int):
        super().__init__()
        self.attributes = ByName({n: NullEmbedding(s.embedding(width), (width,)) for n, s in specs.items()})

    def forward(self, condition: Condition) -> Float[Tensor, "b width"] | None:
        missing = self.attributes.keys() - condition.values.keys()
        if missing:
            raise UserError(f"the condition lacks {min(missing)!r}, which the network knows (an absent attribute is dropped, not left out)")
        parts = [embed(condition.values[name], condition.keep[name]) for name, embed in self.attributes.items()]
        return torch.stack(parts).sum(0) if parts else None
