"""DiffWave BASE against the `diffwave` package: the same weights, the same input, one run.

    python benchmarks/diffwave_base.py [--threads 2] [--pairs 5] [--compile]

Both sides evaluate 4 clips of 8,192 samples with a mel spectrogram. Ours has the spectrogram embedded already, as in a sampling run,
which does it once. Prints JSON: the median time of each side, their ratio, and the relative error of ours against theirs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffwave.model import DiffWave as Published
from diffwave.params import params

from guidance import Condition, load
from guidance.memory import keep_freed
from modalities.audio.published import convert

BATCH, SAMPLES, STEP = 4, 8192, 20


def timed(one: Callable[[], object], other: Callable[[], object], pairs: int) -> tuple[float, float]:
    """Median seconds of both, measured in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs + 1):
        for call, into in zip((one, other), times, strict=True):
            begun = time.perf_counter()
            call()
            into.append(time.perf_counter() - begun)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also our network under torch.compile")
    options = parser.parse_args()
    keep_freed()  # for both sides
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    theirs = Published(params).eval()
    torch.nn.init.normal_(theirs.output_projection.weight, std=0.1)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": theirs.state_dict(), "params": dict(params)}, Path(folder, "published.pt"))
        convert(Path(folder, "published.pt"), Path(folder, "run"))
        ours = load(Path(folder, "run")).modality.network
    x, mel = torch.randn(BATCH, SAMPLES), torch.rand(BATCH, params.n_mels, SAMPLES // params.hop_samples)
    kept = torch.cumprod(1 - torch.tensor(params.noise_schedule, dtype=torch.float64), 0)[STEP]
    logsnr, step = torch.full((BATCH,), float(torch.logit(kept))), torch.full((BATCH,), STEP)

    results = []
    with torch.inference_mode():
        context = ours.embed(Condition.of(mel=mel))
        expected = theirs(x, mel, step)[:, 0]

        def compare(name: str, forward: Callable[[], torch.Tensor]) -> None:
            error = ((forward().float() - expected).norm() / expected.norm()).item()
            mine, published = timed(forward, lambda: theirs(x, mel, step), options.pairs)
            results.append({"ours": name, "seconds": mine, "published_seconds": published, "ratio": published / mine, "error": error})

        def bf16(network: Callable[..., torch.Tensor], embedded: tuple[torch.Tensor, ...]) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return network(x, logsnr, embedded)

        half = tuple(part.bfloat16() for part in context)
        compare("eager, fp32", lambda: ours(x, logsnr, context))
        compare("eager, bf16", lambda: bf16(ours, half))
        if options.compile:
            compiled = torch.compile(ours)
            compare("compiled, fp32", lambda: compiled(x, logsnr, context))
            compare("compiled, bf16", lambda: bf16(compiled, half))
    print(json.dumps({"threads": torch.get_num_threads(), "clips": BATCH, "samples": SAMPLES, "results": results}, indent=1))


if __name__ == "__main__":
    main()
