"""Tokens a second of the text denoiser against the encoder inside it, called bare.

    python benchmarks/text.py [--rounds 9] [--threads N]

The encoder is called on vectors of its own width, the same rows and as many places as the denoiser shows it (a prefix for the
condition among them). Around it the denoiser has its input and output layers and the embedding of the condition. At least .95 of the
encoder's speed is asked for, forward as in sampling, and forward with backward as in training.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from models import machine, preset
from pairs import ratio, report, rounds

from guidance.memory import keep_freed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for name in ("text_small", "text_base"):
        made = preset("text", f"network={name}")
        network, modality = made.model.modality.network, made.model.modality
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        n = 32 if name == "text_small" else 8
        x, logsnr = torch.randn(n, *modality.shape), torch.zeros(n)
        seen: list[tuple[Any, Any]] = []

        def see(_: Any, arguments: Any, named: Any, seen: list[tuple[Any, Any]] = seen) -> None:
            seen.append((arguments, named))

        hook = network.encoder.register_forward_pre_hook(see, with_kwargs=True)
        with torch.no_grad():
            context = network.embed(made.model.condition(n, {"topic": "human"}))
            network(x, logsnr, context, torch.zeros_like(x))
        hook.remove()
        arguments, named = seen[0]

        def whole(backward: bool, network=network, made=made, n=n, x=x, logsnr=logsnr) -> None:
            with torch.set_grad_enabled(backward):
                context = network.embed(made.model.condition(n, {"topic": "human"}))
                out = network(x, logsnr, context, torch.zeros_like(x))
                if backward:
                    out.sum().backward()

        def encoder(backward: bool, network=network, arguments=arguments, named=named) -> None:
            with torch.set_grad_enabled(backward):
                out = network.encoder(*arguments, **named).last_hidden_state
                if backward:
                    out.sum().backward()

        for what, backward in (("forward", False), ("forward and backward", True)):
            sides = {"whole": lambda b=backward, f=whole: f(b), "encoder": lambda b=backward, f=encoder: f(b)}
            found = rounds(sides, options.rounds, warm=2)
            rows.append({"network": name, "rows": n, "what": what, "speed / encoder's": ratio(found["encoder"], found["whole"])})
            print(rows[-1], flush=True)
    report("text-encoder", rows, machine(), options.out)


if __name__ == "__main__":
    main()
