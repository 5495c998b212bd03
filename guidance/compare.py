"""Several evaluations, of other guidance or of other models, against the same real data: one table, one figure."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guidance.checkpoint import write_atomically
from guidance.errors import UserError
from guidance.estimate import Estimate
from guidance.experiment.figures import Panel, Series, label_of, write
from guidance.table import as_csv, as_text, columns, short

FACTS = "evaluation.json"
READ = ("accuracy", "frechet", "precision", "recall", "diversity", "evaluations")
"""What is printed; the CSV holds everything."""
HELP = """usage: polyguide compare EVALUATION EVALUATION... [out=comparison]

EVALUATION: folders that `polyguide evaluate` wrote, called by their names."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as it was written: its name, the row of real data, and a row a scale."""

    name: str
    real: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    terms: Mapping[str, Any]  # on which it was measured


def command(arguments: Sequence[str]) -> None:
    """polyguide compare EVALUATION... [out=FOLDER]"""
    paths, out = [], Path("comparison")
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument in ("-h", "--help"):
            print(HELP)
            return
        if equals and name == "out" and value:
            out = Path(value).expanduser()
        elif (equals and not Path(argument).exists()) or argument.startswith("-"):
            raise UserError(f"compare takes folders, and out=FOLDER; got {argument}")
        else:
            paths.append(Path(argument).expanduser())
    if len(paths) < 2:
        raise UserError("compare needs two evaluations or more: polyguide compare runs/digits/evaluation runs/digits/interval")
    written([read(path) for path in paths], out)


def read(folder: Path) -> Evaluation:
    """UserError where there is no evaluation in the folder, or none that is whole."""
    path = folder / FACTS
    if not path.is_file():
        raise UserError(f"{folder} holds no evaluation ({FACTS}); measure one with: polyguide evaluate run=RUN out={folder}")
    try:
        facts = json.loads(path.read_text())
        real, *rows = (estimates(row) for row in facts["rows"])
        terms = {"n": rows[0]["n"], "attribute": facts["attribute"], "given": facts["config"]["given"], "real data": facts["rows"][0]}
        return Evaluation(folder.resolve().name, real, rows, terms)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{path} is cut short, or of another version; measure it anew with overwrite=true") from None


def estimates(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the three numbers of each estimate put together again."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if f"{name}_low" in row:
            ends = [row[f"{name}_low"], row[f"{name}_high"]]
            numbers = [float("nan") if number is None else float(number) for number in (value, *ends)]
            found[name] = Estimate(numbers[0], numbers[1], numbers[2], int(row["n"]))
        elif not name.endswith(("_low", "_high")) or name.rpartition("_")[0] not in row:
            found[name] = value
    return found


def written(evaluations: Sequence[Evaluation], out: Path) -> None:
    """comparison.csv, comparison.md, and the figures; the table is printed. UserError where they cannot be compared."""
    first = evaluations[0]
    names = [evaluation.name for evaluation in evaluations]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two evaluations are called {repeated}: folders are told apart by their names")
    for other in evaluations[1:]:
        for what, value in first.terms.items():
            if not same(other.terms[what], value):
                found = "" if what == "real data" else f" ({value} and {other.terms[what]})"
                raise UserError(f"{first.name} and {other.name} cannot be compared: they were measured with another {what}{found}")
    table = [{"guidance": "real data", **first.real, "scale": ""}]
    table += [{"guidance": evaluation.name, **row} for evaluation in evaluations for row in evaluation.rows]
    shown = [{key: row[key] for key in ("guidance", "scale", *READ) if key in row} for row in table]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.csv", as_csv(table).encode())
    write_atomically(out / "comparison.md", markdown(shown).encode())
    panels = [
        panel(evaluations, x, y) for x, y in (("accuracy", "frechet"), ("recall", "precision")) if x in first.real and y in first.real
    ]
    if panels:
        write(panels, out, "comparison")
    print(as_text(shown))
    print(f"\ncomparison.csv, comparison.md{' and comparison.png' if panels else ''} are in {out}")


def same(a: Any, b: Any) -> bool:
    """Equal, numbers up to what another machine, or another number of threads, rounds otherwise."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
    return bool(a == b)


def panel(evaluations: Sequence[Evaluation], x: str, y: str) -> Panel:
    """One measure against another, a line an evaluation, the scale beside each point."""
    series = []
    for evaluation in evaluations:
        rows = [row for row in evaluation.rows if x in row and y in row]
        series.append(Series(evaluation.name, [r[x] for r in rows], [r[y] for r in rows], [f"{r['scale']:g}" for r in rows]))
    return Panel(label_of(x, {}), label_of(y, {}), series, evaluations[0].real[y].value, "real data")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with intervals."""

    def cell(value: Any) -> str:
        if isinstance(value, Estimate):
            return f"{short(value)} [{short(value.low)}, {short(value.high)}]"
        return f"{value:g}" if isinstance(value, float) else str(value)

    names = columns(rows)
    lines = [names, ["---"] * len(names), *([cell(row.get(name, "")) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
