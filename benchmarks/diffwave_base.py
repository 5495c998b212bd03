"""DiffWave BASE against the `diffwave` package: the same weights and input, both sides in turn in one run.

    python benchmarks/diffwave_base.py [--threads 2] [--pairs 5] [--compile]

Both evaluate 4 clips of 8,192 samples with a mel spectrogram. Ours has the spectrogram embedded already, as in a sampling run, which
does it once. Each side runs in a process of its own, as its users run it: ours keeps freed memory (guidance/memory.py), the
package does not; --same gives that to both. Prints JSON: the median time of each side, their ratio, and our relative error.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from diffwave.model import DiffWave as Published
from diffwave.params import params
from models import machine
from pairs import clock, ratio, report

from guidance import Condition, load
from guidance.memory import keep_freed
from modalities.audio.published import convert

BATCH, SAMPLES, STEP = 4, 8192, 20


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = BATCH, params.n_mels, SAMPLES // params.hop_samples
    return torch.randn(BATCH, SAMPLES, generator=generator), torch.rand(shape, generator=generator)


def published(checkpoint: str) -> Callable[[], torch.Tensor]:
    model = Published(params).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    (x, mel), step = inputs(), torch.full((BATCH,), STEP)
    return lambda: model(x, mel, step)[:, 0]


def ours(checkpoint: str, half: bool, compiled: bool) -> Callable[[], torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        convert(Path(checkpoint), Path(folder, "run"))
        network = load(Path(folder, "run")).modality.network
    x, mel = inputs()
    kept = torch.cumprod(1 - torch.tensor(params.noise_schedule, dtype=torch.float64), 0)[STEP]
    logsnr = torch.full((BATCH,), float(torch.logit(kept)))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        context = network.embed(Condition.of(mel=mel))
    forward = torch.compile(network) if compiled else network

    def call() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return forward(x, logsnr, context)

    return call


def serve(pipe: Connection, threads: int, keep: bool, make: Callable[..., Callable[[], torch.Tensor]], arguments: tuple) -> None:
    """In a process of its own: an evaluation and its time for every request."""
    if keep:
        keep_freed()
    torch.set_num_threads(threads)
    with torch.inference_mode():
        call = make(*arguments)
        while pipe.recv():
            begun = clock()
            output = call()
            pipe.send((clock() - begun, output.float().numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also our network under torch.compile")
    parser.add_argument("--same", action="store_true", help="the package, too, keeps freed memory")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Published(params)
    torch.nn.init.normal_(model.output_projection.weight, std=0.1)
    context, results = get_context("spawn"), []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder, "published.pt"))
        torch.save({"model": model.state_dict(), "params": dict(params)}, checkpoint)
        for half, compiled in ((False, False), (True, False), (False, True), (True, True)):
            if compiled and not options.compile:
                continue
            pipes = []
            for keep, make, arguments in ((True, ours, (checkpoint, half, compiled)), (options.same, published, (checkpoint,))):
                mine, other = context.Pipe()
                context.Process(target=serve, args=(other, options.threads, keep, make, arguments), daemon=True).start()
                pipes.append(mine)
            times: tuple[list[float], list[float]] = ([], [])
            outputs = [None, None]
            for _ in range(options.pairs + 2):
                for side, pipe in enumerate(pipes):
                    pipe.send(True)
                    seconds, outputs[side] = pipe.recv()
                    times[side].append(seconds)
            for pipe in pipes:
                pipe.send(False)
            a, b = (torch.from_numpy(output) for output in outputs)
            own, theirs = (of[2:] for of in times)  # two to warm up
            name = f"{'compiled' if compiled else 'eager'}, {'bf16' if half else 'fp32'}"
            seconds = {"seconds": statistics.median(own), "published, seconds": statistics.median(theirs)}
            error = float((a - b).norm() / b.norm())
            results.append({"ours": name, **seconds, "times as fast": ratio(theirs, own), "error": error})
            print(results[-1], flush=True)
    report("diffwave-base", results, {**machine(), "threads": options.threads, "same memory": options.same}, options.out)


if __name__ == "__main__":
    main()
