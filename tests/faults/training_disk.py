"""Trainings on real disks that are full, or read-only: small ones in memory, mounted for this process alone.

    unshare --mount python tests/faults/training_disk.py        # as root, or: unshare --map-root-user --mount python ...

For every size: one line, status 2, every checkpoint that is there whole; and once there is room, resume=true ends as undisturbed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz_tools import Answer, command
from training_kills import TINY, differences

from guidance import checkpoint

SIZES = range(8, 2000, 40)  # in KiB
STEPS = ["trainer.steps=15", "trainer.keep=9"]


def mount(place: Path, options: str, *more: str) -> None:
    subprocess.run(["mount", *more, "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)


def refused(answer: Answer) -> bool:
    """In one line, but for the progress bar's."""
    lines = [line for line in answer.lines if not line.startswith("train:")]
    return answer.code == 2 and lines == [answer.said] and "Traceback" not in answer.out


def main() -> None:
    found = {"full": 0, "large enough": 0, "read-only": 0}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        assert command("train", *TINY, *STEPS, f"out={whole}").code == 0
        for size in SIZES:
            place = Path(temporary, f"disk-{size}")
            place.mkdir()
            mount(place, f"size={size}k")
            try:
                out = place / "run"
                answer = command("train", *TINY, *STEPS, f"out={out}")
                found["full" if answer.code else "large enough"] += 1
                if answer.code and not (refused(answer) and "the disk is full" in answer.said):
                    wrong.append(f"{size} KiB: {answer}")
                for step in checkpoint.saved_steps(out):
                    checkpoint.check(checkpoint.checkpoint_folder(out, step))
                mount(place, "size=20m", "-o", "remount")
                answer = command("train", *TINY, *STEPS, f"out={out}")
                wrong += [f"{size} KiB, with room: {one}" for one in ([answer.said] if answer.code else differences(out, whole))]
                mount(place, "ro", "-o", "remount")
                for more in (["trainer.steps=20"], ["overwrite=true", "resume=false"]):
                    answer = command("train", *TINY, *STEPS, *more, f"out={out}")
                    found["read-only"] += 1
                    if not refused(answer) or "Read-only file system" not in answer.said:
                        wrong.append(f"{size} KiB, read-only: {answer}")
                wrong += [f"{size} KiB, read-only: {one}" for one in differences(out, whole)]
                if not found["large enough"]:
                    continue
                break
            finally:
                subprocess.run(["umount", place], check=True)
    print(json.dumps({**found, "wrong": wrong}, indent=1))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
