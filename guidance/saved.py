"""A model as a folder to share.

folder/config.yaml          as in a run, without the paths of the machine that it was trained on
folder/NAME                 the run's own files (a vocabulary)
folder/model.safetensors    the weights to sample with
folder/moments.safetensors  the training data as Gaussians, where the run has it
folder/checksums.json       the SHA-256 of these
folder/README.md            the model card, written from what the run has measured
"""

import json
import re
import shutil
import tempfile
from pathlib import Path

from guidance import checkpoint
from guidance.card import CARD, card, of_run
from guidance.errors import UserError
from guidance.model import PARTS, Model
from guidance.portable import portable


def check_folder(folder: Path) -> None:
    """UserError unless a model may be saved there: in a new or empty folder, or in place of one that was saved before."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; save the model into another")
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not held:
        return
    own: set[str] = set()
    if checkpoint.is_saved(folder):
        named = checkpoint.own_files(checkpoint.read_config(folder), folder)
        own = {checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.MOMENTS, checkpoint.CHECKSUMS, CARD, *named}
    if other := held - own:
        raise UserError(f"{folder} holds something else ({min(other)}); save the model into another folder")


def save(model: Model, folder: Path, name: str | None = None) -> Path:
    """See `Model.save_pretrained`. ``name``: by which the card loads it, the folder's own by default."""
    place = folder.expanduser().absolute()
    place = place.resolve() if place.is_symlink() else place
    put_back(place)
    check_folder(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.partial-") as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        files = contents(model, name or place.name)
        with checkpoint.listed(new, *(file for file in (*files, checkpoint.CONFIG, checkpoint.WEIGHTS) if file != CARD)):
            for file, content in files.items():
                checkpoint.write_atomically(new / file, content)
            checkpoint.write_config(new, portable(model.config))
            checkpoint.save_weights(new, model.modality.modules().state_dict(), model.step or 0, model.average)
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except BaseException:
            if old.exists():
                old.rename(place)
            raise
    return folder


def put_back(place: Path) -> None:
    """What was saved and not yet given its name when a kill came between two renames, is given it now."""
    for new in checkpoint.unplaced(place):
        if not place.exists():
            new.rename(place)
        shutil.rmtree(new.parent)


def contents(model: Model, name: str) -> dict[str, bytes]:
    """The run's own files, and the card; UserError where the model cannot be saved."""
    if missing := [part for part in PARTS if not model.config.get(part)]:
        raise UserError(f"this model was made without a config (it has no {missing[0]!r}), so nothing could load it again")
    if model.run is None or model.step is None:
        raise UserError("this model was not loaded from a run; load the run and save that")
    if other := [key for key in model.denoisers if key != "main"]:
        raise UserError(f"only one model can be saved, and this one refers to others: {', '.join(other)}; save each by itself")
    files = checkpoint.own_contents(model.config, model.run)
    if (model.run / checkpoint.MOMENTS).is_file():
        files[checkpoint.MOMENTS] = (model.run / checkpoint.MOMENTS).read_bytes()
    saved_before = checkpoint.is_saved(model.run) and (model.run / CARD).is_file()
    text = renamed((model.run / CARD).read_text(encoding="utf-8"), name) if saved_before else card(model, name)
    return {**files, CARD: text.encode()}


def renamed(text: str, name: str) -> str:
    """The card that a saved model has, loading it by another name."""
    found = re.search(r'guidance\.load\(("(?:[^"\\\n]|\\.)+")\)', text)
    if found is None:
        return text
    text = text.replace(found[0], f"guidance.load({json.dumps(name)})")
    return text.replace(f" {of_run(json.loads(found[1]))} ", f" {of_run(name)} ")
