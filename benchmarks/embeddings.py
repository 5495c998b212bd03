"""Self-conditioning, kind and width of the embeddings compared on TREC's questions, as SED's paper does.

Each variant is trained for the same number of steps; then 300 questions are drawn at scale 2 and measured.

    python benchmarks/embeddings.py [steps] [folder] [n]
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from guidance import CFG, DDPM, load
from guidance.evaluate import as_text, cases, reference

VARIANTS = {
    "co-occurrence, 64": [],
    "no self-conditioning": ["network.self_condition=false"],
    "random, 64": ["modality.codec.kind=random"],
    "learned, 64": ["modality.codec.kind=learned"],
    "pretrained, 64": ["modality.codec.kind=pretrained", "modality.codec.table={table}"],
    "co-occurrence, 16": ["modality.codec.width=16"],
    "co-occurrence, 128": ["modality.codec.width=128"],
    "random, 64, x0 and readout losses": ["recipe=text/sed_small"],
}


def main(steps: str = "1000", folder: str = "outputs/embeddings", n: str = "300") -> None:
    rows, table, ref = [], Path(folder, "table.npy"), None
    for name, overrides in VARIANTS.items():
        run = Path(folder, name.replace(" ", "-").replace(",", ""))
        if not (run / "checkpoints" / f"step-{int(steps):08d}").is_dir():
            settings = [override.format(table=table) for override in overrides]
            common = ["modality=text", f"out={run}", f"trainer.steps={steps}", f"trainer.save_every={steps}", "overwrite=true"]
            subprocess.run([sys.executable, "-m", "guidance", "train", *common, *settings], check=True)
        model = load(run)
        metrics = model.modality.metrics
        if not table.exists():  # the vectors that the autoregressive model has learned
            np.save(table, metrics.language.model.get_input_embeddings().weight[: metrics.data.vocabulary.size].detach().numpy())
        ref = ref or reference(model, "topic")
        of = cases(model, int(n), "topic")
        samples = model.sample(int(n), of.condition, guidance=CFG(2.0), sampler=DDPM(), steps=100)
        measured = ref.measured(metrics, samples, of)
        rows.append({"variant": name, **{key: measured[key] for key in ("accuracy", "nll", "entropy", "distinct_2", "copied", "length")}})
        print(as_text([{"variant": "real", **{key: ref.real[key] for key in rows[0] if key != "variant"}}, *rows]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
