"""What commands write, and where they may."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from guidance import checkpoint
from guidance.errors import UserError
from guidance.upkeep import LOCK

RUN_FILES = (
    *(checkpoint.CONFIG, checkpoint.METRICS, checkpoint.TIMINGS, checkpoint.CHECKPOINTS, checkpoint.COMMANDS),
    *(checkpoint.CHECKSUMS, checkpoint.MOMENTS),
    "accuracy.json",  # of a classifier
    *("previews", "forward.*", "schedule.png"),
    *("polyguide/events.out.tfevents.*", "polyguide/[0-9]*.[0-9]*", "wandb/*run-[0-9]*"),  # the trackers'
)
SAMPLE_FILES = ("[0-9]" * 6 + ".*", "real-[0-9].*", "grid.*", "denoising.*", "samples.json", "samples.jsonl", "index.html")
EVALUATION_FILES = ("metrics.csv", "curves.png", "table.*", "evaluation.json")
EXACTNESS_FILES = ("table.csv", "table.md", "exactness.json", "samples-*d.png")


def vacant(out: Path, overwrite: bool, own: Sequence[str], resumable: bool = False) -> None:
    """UserError where an output folder holds what an earlier command wrote there (``own``), unless it may be overwritten."""
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"out={out}: {place} is a file, not a folder" if place != out else f"out={out} is a file, not a folder")
    held = next((path for pattern in own for path in out.glob(pattern)), None)
    if resumable and (out / LOCK).exists() and not checkpoint.is_run(out):
        return  # a training that was killed as it began
    if held and not overwrite:
        what = "a run" if checkpoint.is_run(out) else f"results ({held.name})"
        hint = "resume=true or overwrite=true" if resumable and checkpoint.is_run(out) else "overwrite=true"
        raise UserError(f"out={out} already holds {what}; pass {hint}, or another out=")


def clear(out: Path, own: Sequence[str]) -> None:
    """The folder, without what an earlier command wrote there."""
    for path in [path for pattern in own for path in out.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
