"""The autoregressive baseline of a text run.

A small causal Transformer, trained on the same sentences with the same attributes; its samples are measured like the diffusion model's.

    python benchmarks/text_baseline.py runs/trec [n] [given] [attribute]
"""

import sys

from guidance import load
from guidance.evaluate import as_text, cases, default_attribute, reference


def main(run: str, n: str = "500", given: str = "alone", attribute: str | None = None) -> None:
    model = load(run)
    name = default_attribute(model, attribute)
    ref = reference(model, name)
    of = cases(model, int(n), name, given)
    language = model.modality.metrics.language
    texts = [model.modality.codec.text(row) for row in language.sample(int(n), of.condition, seed=0).tolist()]
    row = {"scale": "AR", "n": int(n), **ref.measured(model.modality.metrics, texts, of)}
    print(as_text([ref.real, row]))
    print(f"\njudge of {name}: right on {ref.judge.accuracy:.1%} of held-out sentences\n")
    for text in texts[:20]:
        print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
