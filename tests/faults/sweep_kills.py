"""Experiments in several processes that are killed with SIGKILL, again and again, against one of one process that was left alone.

    python tests/faults/sweep_kills.py --kills 20

As `sampling_kills.py`, with an experiment's cells for batches, in a world in which every guided sample is known: nothing is trained.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from experiment_fakes import cheaply, measure, world
from launches import Started, start
from sampling_kills import killings, lines, note

from guidance.experiment import Tradeoff
from guidance.experiment.cells import Cells


class Patch:
    def setattr(self, name: str, value: Any) -> None:
        import guidance.measures

        setattr(guidance.measures, name.rpartition(".")[2], value)


def contents(folder: Path) -> dict[str, bytes]:
    """All that was measured; how long it took, and the claims, are another matter."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "seconds"}, sort_keys=True).encode()
        found[str(path.relative_to(folder))] = content
    return found


def noted(asked: Tradeoff, out: Path, log: Path, n: int) -> Callable[[], int]:
    def task() -> int:
        import guidance.model as module

        sample, write = module.sample, Cells.write
        model = world()
        save = type(model.modality.render).save

        def drawing(*args: Any, **kwargs: Any) -> Any:
            note(log, "draw", kwargs["first"])
            time.sleep(0.03)  # a network would take longer
            return sample(*args, **kwargs)

        def saving(self: Any, decoded: Any, folder: Path, names: Sequence[str], *more: Any) -> Any:
            note(log, "save", names[0].rsplit("-", 1)[0])
            return save(self, decoded, folder, names, *more)

        def keeping(self: Any, cell: Any, found: Any) -> None:
            note(log, "keep", cell.name)
            write(self, cell, found)
            note(log, "kept", cell.name)

        module.sample, type(model.modality.render).save, Cells.write = drawing, saving, keeping  # type: ignore[method-assign,assignment]
        measure(asked, model, out, n)
        return 0

    return task


def tried(folder: Path, kills: int, cells: int, seed: int = 0, say: Callable[[str], None] = lambda line: None) -> str:
    """Kill, and compare; what was found, in a line. AssertionError where anything was lost, or done twice."""
    asked, n, log = Tradeoff([k / 10 for k in range(cells)]), 12, folder / "log"
    measure(asked, world(), folder / "whole", n)

    def begin(name: str) -> Started:
        return start(noted(asked, folder / "killed", log, n), folder / "said", name)

    found = killings(begin, log, kills, seed, say)
    assert contents(folder / "killed") == contents(folder / "whole"), "the files differ"
    said = lines(log)
    kept = Counter(line[1] for line in said if line[0] == "kept")
    draws, killed = sum(line[0] == "draw" for line in said), found["random"] + found["writing"]
    assert len(kept) <= cells and set(kept.values()) <= {1}, "a cell was measured twice"
    assert cells <= draws <= cells + killed, (draws, cells, killed)
    return (
        f"{killed} SIGKILLs ({found['random']} at random, {found['writing']} while writing; {found['ended']} came after the end), "
        f"{cells} cells: {draws} drawn, {draws - cells} of them in vain, every file the same"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cells", type=int, default=60)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cheaply(Patch())
    with tempfile.TemporaryDirectory() as made:
        print(tried(Path(made), arguments.kills, arguments.cells, say=lambda line: print(line, flush=True)))
