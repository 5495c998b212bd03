"""Samplings in several processes that are killed with SIGKILL, again and again, against one of one process that was left alone.

    python tests/faults/sampling_kills.py --kills 20

Two processes draw at a time, joined by resume=true; one of them is killed, after a random time or while it writes a file, and another takes
its place. In the end every file has the same bytes, every batch was kept once, and what was drawn in vain is at most a batch a kill.
Processes are forked from one that has imported everything, so that a kill costs no seconds of imports; what they do is the whole command.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from launches import Started, start

from guidance.cli import run

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "threads=1", "trainer.batch_size=8", "trainer.steps=4"]


def note(log: Path, *words: object) -> None:
    """A line that is there whole, whenever the process is killed."""
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(number, (" ".join(map(str, words)) + "\n").encode())
    os.close(number)


def noted(command: Sequence[str], place: Path, log: Path) -> Callable[[], int]:
    """A command that notes when it begins to draw, to save, and when it has kept a unit."""

    def task() -> int:
        import guidance.model as module
        from guidance.commands.work import Work
        from guidance.pictures import Pictures

        os.chdir(place)
        sample, save, write = module.sample, Pictures.save, Work.write

        def drawing(*args: Any, **kwargs: Any) -> Any:
            note(log, "draw", kwargs["first"])
            return sample(*args, **kwargs)

        def saving(self: Any, decoded: Any, folder: Path, names: Sequence[str], *more: Any) -> Any:
            note(log, "save", int(names[0]))
            return save(self, decoded, folder, names, *more)

        def keeping(self: Any, unit: str, *more: Any) -> None:
            note(log, "keep", unit)
            write(self, unit, *more)
            note(log, "kept", unit)

        module.sample, Pictures.save, Work.write = drawing, saving, keeping  # type: ignore[method-assign,assignment]
        return run(list(command))

    return task


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def killings(begin: Callable[[str], Started], log: Path, kills: int, seed: int, say: Callable[[str], None]) -> dict[str, int]:
    """Two processes at a time; one is killed and replaced, until there were so many kills or all is done, and the rest is waited for."""
    moments, found, alive = random.Random(seed), {"random": 0, "writing": 0, "ended": 0}, list[Started]()
    for k in range(kills):
        while len(alive) < 2:
            alive.append(begin(f"{k}-{len(alive)}"))
        before, kind = len(lines(log)), "writing" if k % 2 else "random"
        if kind == "random":
            time.sleep(moments.random() * 0.4)
        else:  # when something is written for the n-th time from now
            n, end = moments.randint(1, 3), time.monotonic() + 20
            while time.monotonic() < end and any(one.process.is_alive() for one in alive):
                if sum(line[0] in ("save", "keep") for line in lines(log)[before:]) >= n:
                    break
                time.sleep(0.0005)
            time.sleep(moments.random() * 0.004)
        victim = alive.pop(moments.randrange(2))
        victim.process.kill()
        victim.process.join()
        found[kind if victim.code == -9 else "ended"] += 1
        still = []
        for one in alive:
            if one.process.is_alive():
                still.append(one)
            elif one.code != 0:
                raise AssertionError(f"a process ended with {one.code}: {one.err.read_text()[-2000:]}")
        alive = still
        say(f"kill {k + 1}: {kind}, {victim.code}")
    alive.append(begin("last"))
    for one in alive:
        one.process.join()
        assert one.code == 0, one.err.read_text()[-2000:]
    return found


def tried(folder: Path, kills: int, n: int, seed: int = 0, say: Callable[[str], None] = lambda line: None) -> str:
    """Kill, and compare; what was found, in a line. AssertionError where anything was lost, or done twice."""
    runs, log = folder / "run", folder / "log"
    if not runs.exists():
        assert run(["train", *TINY, f"out={runs}"]) == 0
    command = [
        "sample",
        f"run={runs}",
        f"n={n}",
        "batch_size=4",
        "sampler.steps=10",
        "threads=1",
        "out=out",
        "condition.digit=3",
        "animate=true",
    ]
    for place in ("whole", "killed"):
        (folder / place).mkdir()
    before = Path.cwd()
    os.chdir(folder / "whole")
    assert run(command) == 0
    os.chdir(before)
    begin = lambda name: start(noted([*command, "resume=true"], folder / "killed", log), folder / "said", name)  # noqa: E731
    found = killings(begin, log, kills, seed, say)
    assert contents(folder / "killed" / "out") == contents(folder / "whole" / "out"), "the files differ"
    said = lines(log)
    kept = Counter(line[1] for line in said if line[0] == "kept")
    draws = [line for line in said if line[0] == "draw"]
    batches, killed = -(-n // 4), found["random"] + found["writing"]
    assert len(kept) <= batches and set(kept.values()) <= {1}, "a batch was kept twice"
    assert batches <= len(draws) <= batches + killed, (len(draws), batches, killed)
    for path in (folder / "said").glob("*.err"):
        assert "Traceback" not in path.read_text(), path.read_text()
    return (
        f"{killed} SIGKILLs ({found['random']} at random, {found['writing']} while writing; {found['ended']} came after the end), "
        f"{batches} batches: {len(draws)} drawn, {len(draws) - batches} of them in vain, every file the same"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        print(tried(Path(made), arguments.kills, arguments.samples, say=lambda line: print(line, flush=True)))
