"""Whole processes: how long commands take to answer, and how much memory sampling takes.

    python benchmarks/processes.py [--rounds 5]

Start-up: `polyguide --help` and `polyguide list` (under 1 s is asked for), and `import guidance` over `import torch` (under 1.5).
Memory: the largest resident size of `polyguide sample` with max_rows set, for more and more samples of the 8 x 8 digits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from models import machine
from pairs import ratio, report, rounds

COMMANDS = {
    "polyguide --help": ["-m", "guidance.cli", "--help"],
    "polyguide list": ["-m", "guidance.cli", "list"],
    "import guidance": ["-c", "import guidance"],
    "import guidance, and its sampler": ["-c", "from guidance import CFG, DDIM, sample"],
    "import torch": ["-c", "import torch"],
}


def call(arguments: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def peak(arguments: Sequence[str]) -> float:
    """MB that a command takes at most, its own children's not among them."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv(sys.executable, [sys.executable, *arguments])
    _, status, usage = os.wait4(child, 0)
    assert status == 0, arguments
    return float(usage.ru_maxrss) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = rounds({name: (lambda a=arguments: call(a)) for name, arguments in COMMANDS.items()}, options.rounds)
    rows = [
        {"command": name, "seconds": statistics.median(s), "/ import torch": ratio(s, found["import torch"])} for name, s in found.items()
    ]
    report("start-up", rows, machine(), options.out)
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        call(["-m", "guidance.cli", "train", "data=digits", "trainer.steps=2", f"out={run}"])
        rows = []
        for n in (64, 512, 4096):
            for max_rows in (128, None):
                settings = [
                    f"run={run}",
                    f"out={folder}/{n}-{max_rows}",
                    f"n={n}",
                    "guidance.scale=3",
                    "condition.digit=3",
                    "sampler.steps=4",
                ]
                taken = peak(["-m", "guidance.cli", "sample", *settings, f"max_rows={max_rows or 'null'}"])
                rows.append({"samples": n, "max_rows": max_rows or "none", "peak MB": taken})
                print(rows[-1], flush=True)
        report("memory", rows, machine(), options.out)


if __name__ == "__main__":
    main()
