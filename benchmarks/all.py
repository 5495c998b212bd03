"""Every benchmark in turn, each in a process of its own; tables and JSON in one folder.

python benchmarks/all.py [--out outputs/bench] [--rounds 7] [--threads N] [--plain]

--plain: as on a processor with AVX2 alone, into OUT/plain.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from models import PLAIN, machine

HERE = Path(__file__).parent
PARTS = {
    "sampler.py": [],
    "training.py": [],
    "unet": ["training.py", "--peer"],
    "text.py": [],
    "limit.py": [],
    "diffwave_base.py": ["--compile"],
    "processes.py": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    if options.plain and any(os.environ.get(name) != value for name, value in PLAIN.items()):  # read once, when PyTorch is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PLAIN})
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out / "plain" if options.plain else options.out
    print(machine())
    for name, more in PARTS.items():
        script, *flags = more if more and more[0].endswith(".py") else [name, *more]
        rounds = "--pairs" if script == "diffwave_base.py" else "--rounds"
        threads = ["--threads", str(options.threads)] if options.threads and script != "processes.py" else []
        began = time.perf_counter()
        subprocess.run([sys.executable, str(HERE / script), *flags, rounds, str(options.rounds), *threads, "--out", str(out)], check=True)
        print(f"({name}: {time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
