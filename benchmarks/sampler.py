"""What guided sampling costs beside the network, and what it saves.

    python benchmarks/sampler.py [--kinds image,audio,text] [--terms 1,2,4] [--steps 10] [--rounds 7] [--threads N] [--device cpu]
        [--samples N] [--overhead]

**Overhead**: wall time of `Model.latents` (conditions, one embedding, noise, guidance, steps) over that of the bare network, called as
often with the same rows, for DDIM and DPM-Solver++(2M); and over that of the network and the reading of its output, which for text is a
product with all vectors of the vocabulary. At most 1.03 is asked for. On a machine that others use such ratios are unsure by several
hundredths; so also 1 + own / bare, with the time of the same run around a network that says x_t (for text, reading included).

**Other loops** around the same network, with the same number of rows and steps: diffusers' DDIM and DPM-Solver++ schedulers in the loop of
its pipelines, azula's DDIM, k-diffusion's DPM-Solver++(2M). They guide as their users do, with both rows in one batch (K = 2).

**Savings**: evaluations counted, and time over that of the plain guided run: a closed interval, a weight of zero, a condition given twice.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import loops
import torch
from models import FEW, PRESETS, TERMS, N, Preset, Recorded, Silent, bare, machine, preset
from pairs import ratio, report, rounds
from torch import nn

from guidance import CFG, DDIM, Compose, DPMSolver, Guidance, Interval, Sampler, on
from guidance.evaluate import Evaluations
from guidance.memory import keep_freed
from guidance.process import Level, level

BAR = 1.03


def guided(kind: str, k: int) -> tuple[Guidance, dict[str, Any] | None]:
    """A guidance of k terms, and what it is asked for."""
    if k <= 2:
        return CFG(1.0 if k == 1 else 3.0), TERMS[kind][0]
    return Compose(tuple((2.0 / (k - 1), values) for values in TERMS[kind][: k - 1])), None


def draw(made: Preset, n: int, guidance: Guidance, asked: Any, sampler: Sampler, steps: int) -> Callable[[], None]:
    def sample() -> None:
        for x0 in made.model.latents(n, asked, guidance=guidance, sampler=sampler, steps=steps):
            x0.sum().item()  # a GPU is waited for

    return sample


def instead(made: Preset, network: nn.Module) -> Preset:
    """The preset with another network."""
    main = made.model.denoisers["main"]
    return replace(made, model=replace(made.model, denoisers={"main": replace(main, network=network.eval())}))


def watched(made: Preset) -> tuple[Preset, Recorded]:
    recorded = Recorded(made.model.denoisers["main"].network)
    return instead(made, recorded), recorded


def overhead(kind: str, n: int, terms: list[int], steps: int, count: int, device: str) -> list[dict[str, Any]]:
    made, rows = preset(kind), []
    made.model.modality.modules().to(device)
    main = made.model.denoisers["main"]
    for k in terms:
        guidance, asked = guided(kind, k)
        spy, recorded = watched(made)
        draw(spy, n, guidance, asked, DDIM(), 2)()
        call = recorded.calls[-1]
        assert len(call[0]) == n * k and recorded.embedded == 1, (len(call[0]), n, k, recorded.embedded)
        now = level(main.schedule, torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))

        def read(output: torch.Tensor, x_t: torch.Tensor = call[0], now: Level = now) -> None:
            main.parameterization.read(output, x_t, now)

        network = made.model.modality.network
        sides = {
            "bare": waited(bare(network, call, steps), device),
            "read": waited(bare(network, call, steps, read), device),
            "ddim": draw(made, n, guidance, asked, DDIM(), steps),
            "dpm": draw(made, n, guidance, asked, DPMSolver(), steps),
            "own": draw(instead(made, Silent(network)), n, guidance, asked, DPMSolver(), steps),
        }
        found = rounds(sides, count)
        own = [1 + a / b for a, b in zip(found["own"], found["bare"], strict=True)]
        rows.append(
            {
                "modality": kind,
                "samples": n,
                "terms": k,
                "bare ms": 1e3 * sorted(found["bare"])[count // 2] / steps,
                "1 + own / bare": statistics.median(own),
                "DDIM / bare": ratio(found["ddim"], found["bare"]),
                "DPM++ / bare": ratio(found["dpm"], found["bare"]),
                "DDIM / bare and read": ratio(found["ddim"], found["read"]),
                "DPM++ / bare and read": ratio(found["dpm"], found["read"]),
            }
        )
        print(rows[-1], flush=True)
    return rows


def waited(side: Callable[[], None], device: str) -> Callable[[], None]:
    def whole() -> None:
        side()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return whole


def others(kind: str, steps: int, count: int) -> list[dict[str, Any]]:
    """The same network in other libraries' loops."""
    made = preset(kind)
    n = N[kind] // 2
    spy, recorded = watched(made)
    draw(spy, n, CFG(3.0), TERMS[kind][0], DDIM(), 2)()
    call = recorded.calls[-1]
    network, context = made.model.modality.network, call[2]
    sides: dict[str, Callable[[], Any]] = {
        "bare": bare(network, call, steps),
        "polyguide, DDIM": draw(made, n, CFG(3.0), TERMS[kind][0], DDIM(), steps),
        "polyguide, DPM++(2M)": draw(made, n, CFG(3.0), TERMS[kind][0], DPMSolver(), steps),
    }
    sides |= loops.available(network, context, (n, *made.model.modality.shape), made.model.denoisers["main"], steps)
    found = rounds(sides, count)
    return [
        {"modality": kind, "loop": name, "/ bare": ratio(seconds, found["bare"]), "/ ours": ratio(seconds, found["polyguide, DDIM"])}
        for name, seconds in found.items()
        if name != "bare"
    ]


def savings(kind: str, steps: int, count: int) -> list[dict[str, Any]]:
    made = preset(kind)
    n, asked = N[kind] // 2, TERMS[kind][0]
    cases: dict[str, tuple[Guidance, Any]] = {
        "scale 3": (CFG(3.0), asked),
        "scale 1": (CFG(1.0), asked),
        "scale 0": (CFG(0.0), asked),
        "scale 3, half of the samples at scale 1": (CFG([3.0, 1.0] * (n // 2)), asked),
        "scale 3, interval closed": (Interval(CFG(3.0), low=50.0, high=60.0), asked),
        "scale 3, interval open for half of the steps": (Interval(CFG(3.0), low=-100.0, high=0.0), asked),
        "two conditions": (1.5 * on(**TERMS[kind][0]) + 1.5 * on(**TERMS[kind][1]), None),
        "one condition given twice": (1.5 * on(**TERMS[kind][0]) + 1.5 * on(**TERMS[kind][0]), None),
        "two conditions, one of weight 0": (3.0 * on(**TERMS[kind][0]) + 0.0 * on(**TERMS[kind][1]), None),
    }
    sides, evaluations = {}, {}
    for name, (guidance, condition) in cases.items():
        sides[name] = draw(made, n, guidance, condition, DDIM(), steps)
        counter = Evaluations()
        list(made.model.latents(n, condition, guidance=guidance, sampler=DDIM(), steps=steps, callbacks=[counter]))
        evaluations[name] = counter.rows / (n * steps)
    found = rounds(sides, count)
    return [
        {
            "modality": kind,
            "case": name,
            "evaluations a sample and step": evaluations[name],
            "time / scale 3": ratio(found[name], found["scale 3"]),
        }
        for name in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(PRESETS))
    parser.add_argument("--terms", default="1,2,4")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, help="of every modality; by default as many as are drawn together, and few")
    parser.add_argument("--overhead", action="store_true", help="nothing but the overhead")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed()
    if options.threads:
        torch.set_num_threads(options.threads)
    kinds = options.kinds.split(",")
    terms = [int(k) for k in options.terms.split(",")]
    rows = []
    for kind in kinds:
        rows += overhead(kind, options.samples or N[kind], terms, options.steps, options.rounds, options.device)
        if options.samples is None:
            rows += overhead(kind, FEW, [2], options.steps, options.rounds, options.device)
    report("sampler-overhead", rows, machine(), options.out)
    if options.device == "cpu" and not options.overhead:
        report("other-loops", [row for kind in kinds for row in others(kind, options.steps, options.rounds)], machine(), options.out)
        report("savings", [row for kind in kinds for row in savings(kind, options.steps, options.rounds)], machine(), options.out)


if __name__ == "__main__":
    main()
