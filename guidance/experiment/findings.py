"""What an experiment found: verdicts in words, tables, figures, and samples side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from guidance import machine
from guidance.errors import UserError
from guidance.estimate import Estimate, over_seeds
from guidance.experiment.cells import Cell, Cells, Measured, check_format
from guidance.experiment.figures import Draw
from guidance.model import Model
from guidance.table import Row

FACTS = "experiment.json"


@dataclass(frozen=True)
class Verdict:
    """A question that the experiment asks, the answer in words, and the figures that it rests on."""

    question: str
    answer: str
    evidence: str


@dataclass(frozen=True)
class Table:
    name: str
    caption: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Figure:
    name: str
    caption: str
    draw: Draw


@dataclass(frozen=True)
class Sheet:
    """Samples in rows and columns; down a column the same starting noise."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Path]]]


@dataclass(frozen=True)
class Findings:
    verdicts: Sequence[Verdict] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    sheets: Sequence[Sheet] = ()


@dataclass(frozen=True)
class Result:
    """An experiment's folder, as far as it has been measured."""

    folder: Path
    facts: Mapping[str, Any]
    cells: Sequence[Measured]

    @property
    def whole(self) -> bool:
        return len(self.cells) == len(self.facts["cells"])

    def at(self, **place: float | str) -> Measured | None:
        """The cell of a place."""
        return next((cell for cell in self.cells if dict(cell.at) == place), None)

    def classes(self, attribute: str) -> list[str]:
        return list(self.facts["attributes"][attribute]["classes"])

    def levels(self, attribute: str) -> list[list[str]]:
        return [list(level) for level in self.facts["attributes"][attribute]["levels"]]


def read_facts(folder: Path) -> dict[str, Any]:
    """What is known of an experiment without its cells. UserError where there is none, or one of another version."""
    path = folder / FACTS
    if not path.is_file():
        raise UserError(f"{folder}: no {FACTS} in it, so no experiment was measured there")
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{path} is cut short; run the experiment again: what it measured is kept") from None
    check_format(facts, path)
    return dict(facts)


def precision_named(said: object) -> str | None:
    """A precision as facts hold it (the type that networks are cast to), by its name; None for another."""
    return next((name for name in machine.PRECISIONS[1:] if str(machine.dtype_of(name)) == said), None)


def stored_precision(folder: Path) -> str | None:
    """That of the experiment in a folder; None where there is none, or none that can be read."""
    try:
        return precision_named(read_facts(folder).get("precision"))
    except UserError:
        return None


def read_result(folder: Path) -> Result:
    """An experiment with what has been measured of it."""
    facts, cells = read_facts(folder), Cells(folder)
    return Result(folder, facts, [found for name in facts["cells"] if (found := cells.read(name)) is not None])


@runtime_checkable
class Experiment(Protocol):
    """What to draw, and what follows from it. A frozen dataclass of plain settings; a config of the group ``experiment`` makes it."""

    @property
    def title(self) -> str: ...

    def watched(self, model: Model) -> Sequence[str]:
        """Those whose classes are seen; the first carries the distances."""
        ...

    def cells(self, model: Model, n: int) -> Sequence[Cell]: ...

    def trainings(self, model: Model) -> Mapping[str, Mapping[str, Any]]:
        """Further models to be trained first: by the name that cells have for a variant, the config of each."""
        ...

    def findings(self, results: Sequence[Result]) -> Findings:
        """From one run, or from trainings that differ in their seed only; from those cells that all of them have."""
        ...


Place = Mapping[str, Any]
Measure = Callable[[Measured], Estimate | None]


def pooled(results: Sequence[Result], place: Place, measure: Measure) -> Estimate | None:
    """A measure of the cell of a place over all trainings; None where one of them has not measured it."""
    found = []
    for result in results:
        cell = result.at(**place)
        value = None if cell is None else measure(cell)
        if value is None:
            return None
        found.append(value)
    return over_seeds(found)


def over(results: Sequence[Result], place: Place, base: Place, measure: Callable[[Measured, Measured], Estimate]) -> Estimate | None:
    """A measure of two cells together, over all trainings; None where one of them has not measured both."""
    found = []
    for result in results:
        cell, other = result.at(**place), result.at(**base)
        if cell is None or other is None:
            return None
        found.append(measure(cell, other))
    return over_seeds(found)


def places(results: Sequence[Result]) -> list[dict[str, float | str]]:
    """The places that all trainings have measured, in the experiment's order."""
    return [dict(cell.at) for cell in results[0].cells if all(r.at(**cell.at) is not None for r in results)]


def estimated(name: str) -> Measure:
    return lambda cell: cell.estimates.get(name)


def sheet_of(
    result: Result, caption: str, rows: Sequence[tuple[str, Place]], columns: Sequence[str], free: Place | None = None
) -> list[Sheet]:
    """The first samples of some cells side by side, and below them real items that have what all of these name, but for the cell at
    ``free``, which names nothing that counts; nothing where there are no samples."""
    cells = [(title, cell) for title, place in rows if (cell := result.at(**place)) is not None and cell.samples]
    if not cells:
        return []
    real = next((cell.real for _, cell in cells if cell.real and dict(cell.at) != free), {})
    found = [*((title, cell.samples) for title, cell in cells), *real.items()]
    width = min([len(columns), *(len(samples) for _, samples in found)])
    return [Sheet(caption, columns[:width], [(title, samples[:width]) for title, samples in found])]


@dataclass
class Builder:
    """Findings in the making."""

    verdicts: list[Verdict] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)

    def findings(self) -> Findings:
        return Findings(self.verdicts, self.tables, self.figures, self.sheets)
