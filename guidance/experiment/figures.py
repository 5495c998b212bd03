"""Figures of experiments: readable without colour, units on every axis. Each is a function that draws on axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any

from guidance.checkpoint import write_atomically
from guidance.estimate import Estimate
from guidance.plots import figure_of

MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
COLOURS = ("#1b4f72", "#b9531c", "#3c7a3c", "#6c4a8a", "#555555", "#a3334a", "#2b8a8a", "#8a7a1e")

UNITS = {
    "accuracy": "share of samples with the named class, by the judge",
    "frechet": "Frechet distance to the training data, in the judge's features",
    "inception_score": "inception score by the judge",
    "modified_inception_score": "modified inception score by the judge",
    "am_score": "AM score by the judge, nats",
    "precision": "precision: share of samples on the data's manifold",
    "recall": "recall: share of the data on the samples' manifold",
    "diversity": "mean distance within a class, in the judge's features",
    "copies": "share of samples that are near-copies of training data",
    "scale": "guidance scale",
}


@dataclass(frozen=True)
class Series:
    """A line of points with intervals."""

    label: str
    x: Sequence[float | Estimate]
    y: Sequence[Estimate]
    notes: Sequence[str] = ()  # beside the points


@dataclass(frozen=True)
class Panel:
    """Axes with some series."""

    xlabel: str
    ylabel: str
    series: Sequence[Series]
    level: float | None = None  # a dashed line across
    level_label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Heat:
    """A grid of numbers, each written in its field."""

    title: str
    xlabel: str
    ylabel: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float]]
    label: str
    limits: tuple[float, float] | None = (0.0, 1.0)


Draw = Sequence[Panel | Heat]
"""A figure: its axes, one after the other."""


COLUMNS = 3  # panels beside one another


def draw(parts: Draw, columns: int = COLUMNS) -> Any:
    """The matplotlib figure."""
    columns = min(columns, len(parts))
    wide = any(isinstance(part, Heat) for part in parts)
    figure, axes = figure_of(columns, -(-len(parts) // columns), (4.6, 3.9) if wide else (4.2, 3.2))
    for axis, part in zip(axes, parts, strict=False):
        heat(figure, axis, part) if isinstance(part, Heat) else panel(axis, part)
    for axis in axes[len(parts) :]:
        axis.remove()
    return figure


def value_of(x: float | Estimate) -> float:
    return x.value if isinstance(x, Estimate) else float(x)


def panel(axis: Any, part: Panel) -> None:
    for k, series in enumerate(part.series):
        x, y = [value_of(v) for v in series.x], [e.value for e in series.y]
        ends = [[max(0.0, e.value - e.low) for e in series.y], [max(0.0, e.high - e.value) for e in series.y]]
        style = {"marker": MARKERS[k % len(MARKERS)], "linestyle": LINES[k % len(LINES)], "color": COLOURS[k % len(COLOURS)]}
        axis.errorbar(x, y, ends, label=series.label, capsize=2.5, markersize=5, linewidth=1.4, elinewidth=0.9, **style)
        for note, a, b in zip(series.notes, x, y, strict=False):
            axis.annotate(note, (a, b), textcoords="offset points", xytext=(6, 4), fontsize=8)
    if part.level is not None:
        axis.axhline(part.level, color="black", linestyle=(0, (1, 2)), linewidth=1, label=part.level_label or None)
    axis.set(xlabel=fill(part.xlabel, 44), ylabel=fill(part.ylabel, 34), title=part.title)
    axis.grid(alpha=0.25)
    if any(series.label for series in part.series) or part.level_label:
        axis.legend(fontsize=8)


def heat(figure: Any, axis: Any, part: Heat) -> None:
    low, high = part.limits or (None, None)
    image = axis.imshow(part.values, cmap="Greys", vmin=low, vmax=high, aspect="auto")
    axis.set_xticks(range(len(part.columns)), part.columns, rotation=45 if max(map(len, part.columns)) > 3 else 0, fontsize=8)
    axis.set_yticks(range(len(part.rows)), part.rows, fontsize=8)
    axis.set(xlabel=fill(part.xlabel, 44), ylabel=fill(part.ylabel, 34))
    axis.set_title(part.title, fontsize=10)
    small = max(len(part.columns), len(part.rows)) > 8
    for r, row in enumerate(part.values):
        for c, value in enumerate(row):
            dark = image.norm(value) > 0.55
            axis.text(
                c,
                r,
                f"{value:.2f}".replace("0.", "."),
                ha="center",
                va="center",
                fontsize=6 if small else 8,
                color="white" if dark else "black",
            )
    figure.colorbar(image, ax=axis, label=part.label, shrink=0.85)


def write(parts: Draw, folder: Path, name: str) -> list[Path]:
    """As PNG and as SVG."""
    from matplotlib import rc_context

    figure = draw(parts)
    paths = []
    for suffix, options in (("png", {"dpi": 150}), ("svg", {"metadata": {"Date": None}})):
        buffer = BytesIO()
        with rc_context({"svg.hashsalt": "polyguide", "svg.fonttype": "none"}):  # the same figure is the same file; text stays text
            figure.savefig(buffer, format=suffix, **options)
        path = folder / f"{name}.{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
        paths.append(path)
    return paths


def label_of(name: str, units: Mapping[str, str]) -> str:
    """A measure's name with what it is and its unit."""
    if name in UNITS:
        return UNITS[name]
    return f"{name.replace('_', ' ')}: {units[name]}" if name in units else name.replace("_", " ")
