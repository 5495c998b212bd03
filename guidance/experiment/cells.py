"""Cells: what an experiment draws and measures, one set of samples each; kept in a folder, each as soon as it is measured.

cells/NAME.safetensors    what was seen of each sample: the class of every attribute, probabilities, quantities
cells/NAME.json           where the cell stands in the experiment, its estimates; written last, so that a cell that has it is whole
samples/NAME-K.SUFFIX     the first samples, as the modality saves them; real-DIGEST-K.SUFFIX: real items that have what is named
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from guidance.checkpoint import read_tensors, write_atomically
from guidance.errors import UserError
from guidance.estimate import Estimate
from guidance.evidence import Tracked
from guidance.guide import CFG, Compose, Guidance
from guidance.logic import Complement, Either
from guidance.processes import claim

FORMAT = 1
"""Of what is stored. Raised whenever the same name would mean something else."""

Place = Mapping[str, float | str]


@dataclass(frozen=True)
class Cell:
    """Samples to draw and to measure.

    Args:
        at: its place in the experiment ({"scale": 2.0}); no two cells have the same.
        guidance: `CFG`, which steers by the classes that are asked for, or a `Compose` or `Either`, which names its own.
        asked: attribute -> the class (its number) that each of the n samples is asked for.
        steps: of the sampler, where they are not those of the other cells.
        variant: the model that draws them, where it is not the run's own.
        named: what real items beside the samples have, where it is not ``asked``: one row or several, each with what its title adds.
    """

    at: Place
    guidance: Guidance
    asked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    steps: int | None = None
    variant: str = ""
    named: Mapping[str, Mapping[str, Sequence[int]]] | None = None

    @property
    def composed(self) -> bool:
        return isinstance(self.guidance, Compose | Either)

    @property
    def name(self) -> str:
        parts = [f"{key}={value:g}" if isinstance(value, int | float) else f"{key}={value}" for key, value in self.at.items()]
        slug = "".join(c if c.isalnum() or c in "=.,-+_" else "_" for c in ",".join(parts))
        return f"{slug[:100]}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """Of all that its samples depend on, the model and the seed apart."""
        what = [dict(self.at), repr(self.guidance), {k: list(v) for k, v in self.asked.items()}, self.steps, self.variant]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def plain(guidance: Guidance) -> bool:
    """Whether its settings can be told by their text, as a cell's name needs."""
    if isinstance(guidance, Either | Complement):
        return isinstance(guidance.evidence, Tracked) and not callable(getattr(guidance, "scale", None))
    return isinstance(guidance, Compose) or (isinstance(guidance, CFG) and isinstance(guidance.scale, int | float))


@dataclass(frozen=True)
class Measured:
    """A cell as it was measured.

    ``real``: rows of real items to be shown below the samples, by title; none in folders of versions that kept none.
    ``arrays``, a row a sample: "class.ATTRIBUTE", the class that is seen (-1: none); "p.ATTRIBUTE", the classes' probabilities;
    "asked.ATTRIBUTE"; and the modality's own quantities by name.
    """

    at: Place
    n: int
    estimates: Mapping[str, Estimate]
    arrays: Mapping[str, Tensor]
    samples: Sequence[Path]
    evaluations: float  # of the network, a sample and step
    seconds: float
    real: Mapping[str, Sequence[Path]] = field(default_factory=dict)


class Cells:
    """The cells of an experiment's folder. Several processes may work in one: each claims the cell that it measures."""

    def __init__(self, folder: Path):
        self.folder, self.samples = folder / "cells", folder / "samples"

    def done(self, cell: Cell) -> bool:
        return (self.folder / f"{cell.name}.json").is_file()

    def claim(self, name: str, wait: bool = False) -> AbstractContextManager[bool]:
        """Whether this process may do what is named so; the system takes a claim back from a process that died."""
        return claim(self.folder / ".claims", name, wait)

    def write(self, cell: Cell, found: Measured) -> None:
        from safetensors.torch import save

        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{cell.name}.safetensors", save({k: v.clone() for k, v in found.arrays.items()}))
        facts = {
            "format": FORMAT,
            "at": dict(found.at),
            "n": found.n,
            "estimates": {name: [e.value, e.low, e.high, e.n] for name, e in found.estimates.items()},
            "samples": [path.name for path in found.samples],
            "real": {title: [path.name for path in files] for title, files in found.real.items()},
            "evaluations": found.evaluations,
            "seconds": round(found.seconds, 3),
        }
        write_atomically(self.folder / f"{cell.name}.json", json.dumps(facts, indent=1).encode())

    def read(self, name: str) -> Measured | None:
        """A measured cell; None where it is not there. UserError where it cannot be read."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_text())
        except (OSError, ValueError):
            raise cut_short(path) from None
        check_format(facts, path)
        try:
            arrays = read_tensors(self.folder / f"{name}.safetensors")
            return Measured(
                facts["at"],
                facts["n"],
                {key: Estimate(*values) for key, values in facts["estimates"].items()},
                arrays,
                [self.samples / file for file in facts["samples"]],
                facts["evaluations"],
                facts["seconds"],
                {title: [self.samples / file for file in files] for title, files in facts.get("real", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise cut_short(path) from None


def cut_short(path: Path) -> UserError:
    return UserError(f"{path} is cut short; delete it and run the experiment again: only that cell is measured anew")


def check_format(facts: Any, path: Path) -> None:
    """UserError for what another version of this program stored."""
    version = facts.get("format") if isinstance(facts, Mapping) else None
    if version != FORMAT:
        raise UserError(
            f"{path} was written by another version (format {version}, this one reads {FORMAT}); measure it anew with overwrite=true"
        )
