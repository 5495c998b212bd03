"""Trainings that are killed with SIGKILL, again and again, against ones that were left alone: every file in the end, byte for byte.

    python tests/faults/training_kills.py --kills 50

Kills come after a random time, at the n-th change of the names in the run's folder, while something is being written there, or between
the folder's first file and its config. Processes
are forked from one that has imported everything, so that a kill costs no four seconds of imports; what they do is the whole command.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SLOW = ["accelerate", "hydra.main", "matplotlib.backends.backend_agg", "sklearn.datasets", "torch._dynamo"]  # to import
TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "network.dropout=0.3", "threads=1"]
TINY += ["trainer.batch_size=4", "trainer.decay=constant", "trainer.save_every=5", "trainer.log_every=2", "resume=true"]

LONG, SHORT = 300, 10
"""Steps: of the first run, which takes most kills; and of the others, which are short enough to be killed as they begin and end."""


def server() -> Any:
    """Processes of their own, that share the time of importing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["guidance.commands", "guidance.train", "modalities.image", *SLOW])
    return context


def command(out: Path, arguments: Sequence[str], said: Path) -> None:
    """The whole command, in a process of its own; what it says is added to a file."""
    with said.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from guidance.cli import main

    main(["train", *TINY, *arguments, f"out={out}"])


def names(out: Path) -> list[str]:
    """All that is in a folder now, in whatever state."""
    return sorted(os.path.relpath(os.path.join(at, name), out) for at, folders, files in os.walk(out) for name in (*folders, *files))


def unfinished(out: Path) -> list[str]:
    return [name for name in names(out) if name.endswith(".partial") or ".partial/" in name]


@dataclass
class Trigger:
    """When to kill: after some seconds, at the n-th change of the names, while something is being written, or before there is a config."""

    seconds: float = 0.0
    changes: int = 0
    partial: bool = False
    beginning: bool = False
    seen: list[list[str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        if self.beginning:
            return "beginning"
        return "while writing" if self.partial else "change of names" if self.changes else "random moment"

    def __call__(self, elapsed: float, out: Path) -> bool:
        if elapsed < self.seconds:
            return False
        if self.beginning:
            return out.exists() and any(out.iterdir()) and not (out / "config.yaml").exists()
        if self.partial:
            return bool(unfinished(out))
        if self.changes:
            if (now := names(out)) not in self.seen[-1:]:
                self.seen.append(now)
            return len(self.seen) > self.changes
        return True


def killed(context: Any, out: Path, arguments: Sequence[str], when: Callable[[float, Path], bool] | None, said: Path) -> bool:
    """Whether the command was killed before it came to its end, which it must come to in good order."""
    process = context.Process(target=command, args=(out, arguments, said))
    process.start()
    began = time.perf_counter()
    while not multiprocessing.connection.wait([process.sentinel], 0.0005 if when else None):
        if when is not None and when(time.perf_counter() - began, out):
            process.kill()
            process.join()
            break
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the command ended with {process.exitcode}:\n{said.read_text()[-3000:]}")
    return bool(process.exitcode)


def trigger(kind: int, moments: random.Random, longest: float, begun: bool) -> Trigger:
    if kind == 0:
        return Trigger(seconds=moments.uniform(0, longest))
    if kind == 1:
        return Trigger(changes=moments.randint(1, 25))
    if kind == 2 and not begun:
        return Trigger(beginning=True)
    return Trigger(seconds=moments.uniform(0, longest), partial=True)


def differences(out: Path, whole: Path) -> list[str]:
    """The files that are not the same in both; of the timings, whether they are of the same steps."""
    found = [f"{name} is in one alone" for name in {*names(out)} ^ {*names(whole)}]
    for path in sorted(path for path in whole.rglob("*") if path.is_file() and (out / path.relative_to(whole)).is_file()):
        one, other = path.read_bytes(), (out / path.relative_to(whole)).read_bytes()
        if path.name == "command.txt":
            other = other.replace(str(out).encode(), str(whole).encode())
        if path.name == "timings.jsonl":
            one, other = (b" ".join(str(json.loads(line)["step"]).encode() for line in part.splitlines()) for part in (one, other))
        found += [f"{path.relative_to(whole)} differs"] if one != other else []
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    context, moments, began = server(), random.Random(given.seed), time.perf_counter()
    kinds = {"random moment": 0, "change of names": 0, "while writing": 0, "beginning": 0}
    kills = runs = writing = before_config = 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        wholes, took = {}, {}
        for steps in (LONG, SHORT):
            wholes[steps] = place / f"whole-{steps}"
            start = time.perf_counter()
            killed(context, wholes[steps], [f"trainer.steps={steps}"], None, place / "said.txt")
            took[steps] = time.perf_counter() - start
        while kills < given.kills:
            steps, out, last = (LONG if runs == 0 else SHORT), place / f"run-{runs}", False
            most = 0.6 * given.kills if steps == LONG else given.kills
            while not last:
                when = trigger(kills % 4, moments, took[SHORT], (out / "config.yaml").exists()) if kills < most else None
                last = not killed(context, out, [f"trainer.steps={steps}"], when, place / "said.txt")
                if not last:
                    assert when is not None
                    kills += 1
                    kinds[when.kind] += 1
                    writing += bool(unfinished(out)) if out.exists() else 0
                    before_config += not (out / "config.yaml").exists()
            wrong += [f"{out.name}: {one}" for one in differences(out, wholes[steps])]
            runs += 1
        traces = (place / "said.txt").read_text().count("Traceback")
    summary = {
        "kills": kills,
        "by": kinds,
        "left something half written": writing,
        "before config.yaml was there": before_config,
        "runs": runs,
        "steps": f"{LONG}, then {SHORT} each",
        "tracebacks": traces,
        "files that differ from undisturbed runs": wrong,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(summary, indent=1))
    sys.exit(1 if wrong or traces else 0)


if __name__ == "__main__":
    main()
