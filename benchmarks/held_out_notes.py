"""Combinations of instrument and pitch that training never saw: asked for jointly, and composed of single conditions.

    python benchmarks/held_out_notes.py RUN [--n 240] [--steps 25]

RUN is a run of `polyguide train modality=audio data=notes`. Prints JSON: for each guidance the shares of samples with the right
instrument (by the judge), in tune (within 50 cents of the asked pitch, by YIN), and both at once; and the same of the real notes.
"""

import argparse
import json
from typing import Any

import torch

from guidance import CFG, DPMSolver, load, on
from guidance.evaluate import cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=240)
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    model = load(options.run)
    metrics, specs = model.modality.metrics, model.modality.conditions
    judge = metrics.judge(model.modality.data, "instrument")
    asked = cases(model, options.n, "instrument", "test")
    names: dict[str, Any] = {
        name: [specs[name].classes[int(k)] for k in asked.condition.values[name]]  # type: ignore[attr-defined]
        for name in ("instrument", "pitch")
    }
    joint = {name: names[name] for name in ("instrument", "pitch")}

    def row(what: str, decoded: torch.Tensor) -> dict[str, Any]:
        right = judge(decoded)[1].argmax(-1) == asked.label
        in_tune = metrics.measure(decoded, asked.condition)["in_tune"] == 1
        shares = {"instrument": right, "in_tune": in_tune, "both": right & in_tune}
        return {"what": what, "n": options.n, **{name: value.float().mean().item() for name, value in shares.items()}}

    rows = [row("real notes", asked.original)]
    settings: dict[str, Any] = {"sampler": DPMSolver(), "steps": options.steps, "seed": 0, "batch_size": 120}
    for scale in (1.0, 2.0, 3.0):
        rows.append(row(f"joint, scale {scale:g}", model.sample(options.n, joint, guidance=CFG(scale), **settings)))
    for weight in (1.0, 1.5, 2.0):
        both = weight * on(instrument=names["instrument"]) + weight * on(pitch=names["pitch"])
        rows.append(row(f"composed, {weight:g} on(instrument) + {weight:g} on(pitch)", model.sample(options.n, guidance=both, **settings)))
    print(json.dumps({"run": options.run, "judge_accuracy": judge.accuracy, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
