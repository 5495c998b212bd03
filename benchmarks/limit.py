"""How near each network comes to what the machine can multiply.

    python benchmarks/limit.py [--kinds image,audio,text,diffwave] [--rounds 7] [--threads N] [--device cpu] [--top 8]

Floating-point operations are counted by PyTorch's own counter (a multiplication and an addition are two; convolutions, matrix
products, attention; nothing else). The machine's rate is that of a product of two 2,048 x 2,048 matrices in the same rounds, in fp32
and in bf16. Then where the time goes: the dearest operations of a forward pass, by PyTorch's profiler.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from models import PRESETS, TERMS, N, machine, preset
from pairs import report, rounds, run
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from guidance import DDIM
from guidance.memory import keep_freed

SIZE = 2048


def product(dtype: torch.dtype, device: str) -> tuple[Callable[[], None], float]:
    a, b = (torch.randn(SIZE, SIZE, device=device, dtype=dtype) for _ in range(2))
    return waited(lambda: a @ b, device), 2.0 * SIZE**3


def waited(side: Callable[[], Any], device: str) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            side()
            if device.startswith("cuda"):
                torch.cuda.synchronize()

    return call


def forward(kind: str, half: bool, device: str) -> tuple[Callable[[], None], float]:
    """A forward pass of a modality's small preset, or of DiffWave BASE, and its operations."""
    if kind == "diffwave":
        made, n, asked = preset("audio", "recipe=diffwave"), 2, {}
    else:
        made, n, asked = preset(kind), N[kind], TERMS[kind][0]
    made.model.modality.modules().to(device)
    network, calls = made.model.modality.network, []
    hook = network.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    main = made.model.denoisers["main"]
    model = replace(made.model, denoisers={"main": replace(main, precision=torch.bfloat16 if half else None)})
    list(model.latents(n, asked, sampler=DDIM(), steps=2))
    hook.remove()

    def call() -> None:
        with torch.autocast(device.split(":", maxsplit=1)[0], torch.bfloat16) if half else nullcontext():
            network(*calls[-1])

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*calls[-1])
    return waited(call, device), float(counter.get_total_flops())


def top(call: Callable[[], None], count: int) -> list[dict[str, Any]]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(5):
            call()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [{"operation": e.key, "share": e.self_cpu_time_total / total, "calls": e.count // 5} for e in events[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join([*PRESETS, "diffwave"]))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, costs = [], []
    for kind in options.kinds.split(","):
        for half in (False, True):
            call, flops = forward(kind, half, options.device)
            multiply, its_flops = product(torch.bfloat16 if half else torch.float32, options.device)
            found = rounds({"network": call, "product": multiply}, options.rounds, warm=2)
            rate = flops / statistics.median(found["network"]) / 1e9
            limit = its_flops / statistics.median(found["product"]) / 1e9
            rows.append(
                {
                    "network": kind,
                    "precision": "bf16" if half else "fp32",
                    "GFLOP a forward": flops / 1e9,
                    "ms": 1e3 * statistics.median(found["network"]),
                    "GFLOP/s": rate,
                    "product GFLOP/s": limit,
                    "share": rate / limit,
                }
            )
            print(rows[-1], flush=True)
            if options.device == "cpu":
                run(call)
                costs += [{"network": kind, "precision": "bf16" if half else "fp32", **one} for one in top(call, options.top)]
    report("limit", rows, machine(), options.out)
    report("costs", costs, machine(), options.out)


if __name__ == "__main__":
    main()
