"""What is kept to be looked at: the first samples of a cell, and beside them real items that have what these are asked for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from guidance.evaluate import chosen
from guidance.experiment.asking import condition_of
from guidance.experiment.cells import Cell
from guidance.model import Model
from guidance.page import shown_as
from guidance.real import real_items

SHOWN = 10  # samples of every cell that are kept


def saved(model: Model, shown: Any, folder: Path, name: str) -> list[Path]:
    """Decoded samples as files, NAME-K."""
    folder.mkdir(parents=True, exist_ok=True)
    files = model.modality.render.save(shown, folder, [f"{name}-{k}" for k in range(len(shown))])
    if shown_as(files[0]) not in ("image", "text"):  # a picture beside what only plays
        for k, file in enumerate(files):
            model.modality.render.table(chosen(shown, torch.tensor([k])), file.with_suffix(".png"), [""], [""])
    return files


class Beside:
    """Real items that have what the first samples of cells name, as files beside these: row by row, by title. Cells that name the same
    share them."""

    def __init__(self, model: Model, folder: Path, n: int):
        self.model, self.folder, self.n = model, folder, min(SHOWN, n)
        self.known: dict[str, tuple[str, list[Path]]] = {}

    def __call__(self, cell: Cell) -> dict[str, list[Path]]:
        rows = {"": cell.asked} if cell.named is None else cell.named
        return {f"real, {origin}{more}": files for more, (origin, files) in ((more, self.row(asked)) for more, asked in rows.items())}

    def row(self, asked: Mapping[str, Sequence[int]]) -> tuple[str, list[Path]]:
        """Where the items of a row are from, and their files."""
        first = {name: list(classes)[: self.n] for name, classes in asked.items()}
        digest = hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]
        name = f"real-{digest}"
        if name not in self.known:
            found = real_items(self.model, condition_of(first), self.n, next(iter(first), None))
            with torch.no_grad():
                decoded = self.model.modality.codec.decode(found.x0(self.model))
            self.known[name] = found.origin, saved(self.model, decoded, self.folder, name)
        return self.known[name]
