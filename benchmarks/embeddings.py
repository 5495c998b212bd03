"""Self-conditioning, kind and width of the embeddings compared on TREC's questions, as SED's paper does.

Each variant is trained for the same number of steps; then 300 questions are drawn at scale 2 and measured.

    python benchmarks/embeddings.py [steps] [folder] [n]
"""

import subprocess
import sys
from pathlib import Path

from guidance import CFG, DDPM, load
from guidance.evaluate import as_text, cases, reference

VARIANTS = {
    "language, 64": ["modality.codec.kind=language"],
    "co-occurrence, 64": ["modality.codec.kind=cooccurrence"],
    "co-occurrence, 64, no self-conditioning": ["modality.codec.kind=cooccurrence", "network.self_condition=false"],
    "random, 64": ["modality.codec.kind=random"],
    "learned, 64": ["modality.codec.kind=learned"],
    "language, 16": ["modality.codec.kind=language", "modality.codec.width=16"],
    "language, 128": ["modality.codec.kind=language", "modality.codec.width=128"],
    "random, 64, x0 and readout losses": ["recipe=text/sed_small"],
}


def main(steps: str = "1000", folder: str = "outputs/embeddings", n: str = "300") -> None:
    rows, ref = [], None
    for name, overrides in VARIANTS.items():
        run = Path(folder, name.replace(" ", "-").replace(",", ""))
        if not (run / "checkpoints" / f"step-{int(steps):08d}").is_dir():
            common = ["modality=text", f"out={run}", f"trainer.steps={steps}", f"trainer.save_every={steps}", "overwrite=true"]
            subprocess.run([sys.executable, "-m", "guidance", "train", *common, *overrides], check=True)
        model = load(run)
        metrics = model.modality.metrics
        ref = ref or reference(model, "topic")
        of = cases(model, int(n), "topic")
        samples = model.sample(int(n), of.condition, guidance=CFG(2.0), sampler=DDPM(), steps=100)
        measured = ref.measured(metrics, samples, of)
        rows.append({"variant": name, **{key: measured[key] for key in ("accuracy", "nll", "entropy", "distinct_2", "copied", "length")}})
        print(as_text([{"variant": "real", **{key: ref.real[key] for key in rows[0] if key != "variant"}}, *rows]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
