"""Curves, by matplotlib, without a display and without its global state."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from guidance.checkpoint import write_atomically
from guidance.estimate import Estimate
from guidance.schedule import Schedule, logsnr


def figure_of(columns: int, rows: int = 1, size: tuple[float, float] = (3.2, 2.6)) -> tuple[Any, Any]:
    """A figure and its axes, each of that size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).flatten()


def _write(figure: Any, path: Path) -> Path:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
    return path


def schedule_curves(schedule: Schedule, path: Path) -> Path:
    """alpha and sigma, and logsnr, over t."""
    t = torch.linspace(0, 1, 401, dtype=torch.float64)[1:]
    alpha, sigma = schedule(t)
    figure, (left, right) = figure_of(2)
    left.plot(t, alpha, label="alpha")
    left.plot(t, sigma, label="sigma")
    left.set(xlabel="t", title=type(schedule).__name__)
    left.legend()
    right.plot(t, logsnr(schedule, t))
    right.set(xlabel="t", title="logsnr")
    return _write(figure, path)


def quality_curves(rows: Sequence[Mapping[str, Any]], real: Mapping[str, Estimate], path: Path) -> Path:
    """Every measure over the guidance scale with its interval, and real held-out data as a dashed line."""
    names = [n for n in real if any(n in r for r in rows)]
    columns = min(4, len(names))
    figure, axes = figure_of(columns, -(-len(names) // columns))
    for axis, name in zip(axes, names, strict=False):
        measured = [r for r in rows if name in r]
        values: list[Estimate] = [r[name] for r in measured]
        ends = [[e.value - e.low for e in values], [e.high - e.value for e in values]]
        axis.errorbar([r["scale"] for r in measured], [e.value for e in values], ends, marker="o", capsize=2)
        axis.axhline(real[name].value, color="grey", linestyle="--", linewidth=1)
        axis.set(title=name.replace("_", " "), xlabel="guidance scale")
    for axis in axes[len(names) :]:
        axis.remove()
    axes[0].plot([], [], color="grey", linestyle="--", linewidth=1, label="real held-out data")
    axes[0].legend(fontsize=7)
    return _write(figure, path)
