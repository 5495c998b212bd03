"""Pictures that commands draw: what is trained on, and samples of every class at some scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from guidance.condition import Condition
from guidance.guide import CFG, Guidance
from guidance.modality import Modality, Split
from guidance.model import Model
from guidance.noise import Stream, normal
from guidance.process import corrupt, level
from guidance.real import Real, real_items
from guidance.schedule import Schedule


def forward_process(modality: Modality, schedule: Schedule, split: Split, out: Path) -> None:
    """What the model will be trained on: the forward process over some training samples, and the schedule's curves."""
    from guidance.plots import schedule_curves

    columns = 9
    levels = [level(schedule, t, t) for t in torch.linspace(0, 1, columns, dtype=torch.float64)[1:]]
    raw, _ = split.__getitems__(list(range(min(4, len(split)))))
    with torch.no_grad():
        x0 = modality.codec.encode(raw)
        eps = normal(0, Stream.START, 0, 0, tuple(x0.shape))
        shown = torch.stack([x0, *(corrupt(x0, eps, at) / at.norm for at in levels)], dim=1).flatten(0, 1).to(x0)
        titles = ["data", *(f"{at.logsnr:.1f}" for at in levels)]
        modality.render.table(modality.codec.decode(shown), out / "forward.png", [""] * len(x0), titles)
    schedule_curves(schedule, out / "schedule.png")


@dataclass(frozen=True)
class Columns:
    """What each column of a table of samples asks for, its title, and real items that have it."""

    titles: Sequence[str]
    condition: Condition
    real: Real


def class_columns(model: Model, attribute: str | None = None, given: str = "alone") -> Columns:
    """The classes of an attribute (``given`` "train" or "test": with the other attributes of an item of that class), or where there are
    none, conditions of held-out items."""
    from guidance.evaluate import cases, default_attribute, label_attribute

    name = default_attribute(model, attribute)
    if name is None:
        titles, condition = (
            [f"item {k}" for k in range(1, 9)],
            cases(model, 8, None, "test" if len(model.modality.data.test) else "train").condition,
        )
    elif given == "alone":
        titles = list(label_attribute(model, name)[1].classes[:16])
        condition = cases(model, len(titles), name).condition
    else:
        of = cases(model, min(512, len(getattr(model.modality.data, given))), name, given)
        found = of.label.unique().tolist()[:16]
        titles = [label_attribute(model, name)[1].classes[k] for k in found]
        condition = of.condition.rows(torch.tensor([int((of.label == k).nonzero()[0]) for k in found]))
    return Columns(titles, condition, real_items(model, condition, len(titles), name))


def class_table(
    model: Model, scales: Sequence[float], path: Path, columns: Columns, *, guide: Callable[[float], Guidance] = CFG, **settings: Any
) -> Path:
    """Rows: guidance scales, and below them real items; every column from the same noise at every scale."""
    titles = columns.titles
    cells = [torch.cat(list(model.latents(len(titles), columns.condition, guidance=guide(scale), **settings))) for scale in scales]
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        decoded = model.modality.codec.decode(torch.cat([*cells, columns.real.x0(model)]))
    return model.modality.render.table(decoded, path, [*(f"{scale:g}" for scale in scales), columns.real.title], titles)
