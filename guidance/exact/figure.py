"""Samples of every method over the exact target."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance.checkpoint import write_atomically
from guidance.exact.measure import Found
from guidance.plots import figure_of

SHOWN = 1000  # points in a plane
SAMPLED, TRUTH = "#b9531c", "#555555"


def draw(found: Sequence[Found], path: Path) -> Path:
    """Of one dimension: a column a target, with its methods. On a line the exact density and a histogram of the samples; else both sets
    of samples in the plane of the means."""
    of_target = {name: [f for f in found if f.target.name == name] for name in dict.fromkeys(f.target.name for f in found)}
    columns, rows = len(of_target), max(map(len, of_target.values()))
    figure, axes = figure_of(columns, rows, (1.7, 1.25))
    for column, mine in enumerate(of_target.values()):
        for row, axis in enumerate(axes[column::columns]):
            if row >= len(mine):
                axis.remove()
                continue
            f = mine[row]
            (on_line if f.exact.problem.means.shape[1] == 1 else in_plane)(axis, f)
            axis.set_title(f"{f.target.name}\n{f.method}: {f.distance.value:.3f}", fontsize=6)
            axis.tick_params(labelsize=5, length=2)
    figure.suptitle("grey: the exact target; orange: samples; the number is their distance", fontsize=7)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
    return path


def on_line(axis: Any, f: Found) -> None:
    cells = f.exact.cells
    low, high = float(cells.low[0]), float(cells.low[0]) + cells.size * cells.shape[0]
    x = low + cells.size * (torch.arange(cells.shape[0]) + 0.5)
    places = f.samples.flatten().double().nan_to_num(0.0, 0.0, 0.0)
    width = max(high - low, 1e-9) / 60
    left, right = min(low, float(places.quantile(0.001))), max(high, float(places.quantile(0.999)))
    bins = max(1, min(400, round((right - left) / width)))
    axis.hist(places, bins=bins, range=(left, right), density=True, color=SAMPLED, alpha=0.55)
    axis.plot(x, cells.density, color=TRUTH, linewidth=0.8)
    axis.set_yticks([])


def in_plane(axis: Any, f: Found) -> None:
    def points(x: Tensor, colour: str) -> None:
        axis.scatter(*f.exact.problem.plane(x)[:SHOWN].T, s=0.6, color=colour, alpha=0.5, linewidths=0)

    points(f.exact.draw(SHOWN, 0), TRUTH)
    points(f.samples, SAMPLED)
