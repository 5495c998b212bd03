"""Tables of what was measured: as CSV with every interval, and aligned for reading."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from guidance.estimate import Estimate

Row = Mapping[str, Any]
"""Values by column: an `Estimate`, a number or a text; what does not apply to a row is left out of it."""


def columns(rows: Sequence[Row]) -> list[str]:
    """All that is in any row, the evaluations last."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name != "evaluations"] + [name for name in names if name == "evaluations"]


def flat(row: Row) -> dict[str, Any]:
    """Each estimate as three columns: its value, NAME_low and NAME_high."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            found[name] = value
    return found


def as_csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    wide = [flat(row) for row in rows]
    writer = csv.DictWriter(out, columns(wide), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in wide)
    return out.getvalue()


def short(value: Any) -> str:
    """A value as it is read: three digits behind the point below 10, fewer above; an estimate without its interval."""
    if isinstance(value, Estimate):
        value = value.value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, float):
        return str(value)
    if abs(value) < 5e-4:
        return "0.000"
    if abs(value) >= 1e5:
        return f"{value:.2e}"
    return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0}f}"


def as_text(rows: Sequence[Row]) -> str:
    """For reading in a terminal: columns aligned."""

    def cell(key: str, value: Any) -> str:
        return f"{value:g}" if key == "scale" and isinstance(value, int | float) else short(value)

    names = columns(rows)
    cells = [[name.replace("_", " ") for name in names], *([cell(name, row.get(name)) for name in names] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells)
