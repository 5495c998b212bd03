"""What a training step costs beside forward, backward and the optimizer.

    python benchmarks/training.py [--kinds image,audio,text] [--steps 30] [--rounds 7] [--threads N] [--precision no] [--peer]

One side is `guidance.train`, whole: data loading, encoding, dropout of conditions, noise, loss, backward, clipping, AdamW, the moving
average, the log. Its time a step is the mean distance between the beginnings of its forward passes. The other side has fixed x_t,
noise level and condition: forward (and, where the network sees its own guess, the forward without gradients that every other step begins
with), the same loss of its output, backward, AdamW, under the same precision. At most 1.05 is asked for.
Also the operations (products and convolutions) of the whole step a second, over those of a product of two 2,048 x 2,048 matrices in single
precision in the same rounds: at least .5 is asked of audio and text in single precision.

--peer: images a second of our U-Net, trained by `guidance.train`, against denoising-diffusion-pytorch's class-conditional U-Net in its
own training step (loss, backward, clipping, Adam), at the same size and batch: as many parameters as theirs, as near as a multiple of 4
channels comes; and as many channels, with a third more parameters. At least 1.3 is asked for.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from models import PRESETS, Preset, machine, preset, trainer_of
from pairs import clock, ratio, report, rounds
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from guidance.config import build
from guidance.memory import keep_freed
from guidance.model import with_codec
from guidance.noise import Stream, uniform
from guidance.process import corrupt, level
from guidance.train import Objective, train

SIZE = 2048  # of the square matrices whose product in single precision says what the machine can do


class Clocked(Objective):
    """An objective that notes when each step's forward begins."""

    def forward(self, *arguments: Any) -> Tensor:
        self.begun.append(clock())
        return super().forward(*arguments)


def whole(made: Preset, steps: int, **settings: Any) -> Callable[[], float]:
    """Seconds a step of `guidance.train`."""
    config, modality = made.config, made.model.modality
    loss = with_codec(build(config["loss"], "loss"), modality)
    parts = {name: build(config[name], name) for name in ("times", "dropout")}
    objective = Clocked(made.model.denoisers["main"], modality.codec, loss, parts["times"], parts["dropout"], modality.conditions)
    trainer = trainer_of(config, steps=steps, save_every=0, log_every=10, **settings)

    def side() -> float:
        objective.begun = []
        with tempfile.TemporaryDirectory() as folder:
            train(objective, modality.data.train, trainer, Path(folder, "run"), progress=False)
        at = objective.begun[2:]  # the first steps allocate
        return statistics.mean(b - a for a, b in itertools.pairwise(at))

    return side


def bare(made: Preset, steps: int) -> Callable[[], float]:
    """Seconds a step of the network alone."""
    config, modality, denoiser = made.config, made.model.modality, made.model.denoisers["main"]
    trainer = trainer_of(config)
    raw, condition = modality.data.train.__getitems__(list(range(trainer.batch_size)))
    x0 = modality.codec.encode(raw).detach()
    now = level(denoiser.schedule, torch.linspace(0.1, 0.9, len(x0)), x0)
    eps = torch.randn_like(x0)
    x_t = corrupt(x0, eps, now)
    loss_of = with_codec(build(config["loss"], "loss"), modality)
    modules = modality.modules()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-5, betas=(0.9, 0.99), fused=True)
    half = trainer.precision == "bf16"

    def side() -> float:
        modules.train()
        times = []
        for step in range(steps):
            began = clock()
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                context, guess = denoiser.network.embed(condition), None
                if denoiser.self_condition and uniform(0, Stream.SELF_CONDITION, step, 0, 1).item() < 0.5:
                    with torch.no_grad():
                        guess = denoiser(x_t, now, context).x0
                output, _, shown = denoiser.output(x_t, now, context, guess)
                target = denoiser.parameterization.target(x0, eps, shown)
                loss = loss_of(output.float(), target, shown, denoiser.parameterization).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(clock() - began)
        return statistics.mean(times[2:])

    return side


def overhead(kind: str, steps: int, count: int, precision: str | None) -> dict[str, Any]:
    made = preset(kind, *([f"trainer.precision={precision}"] if precision else []), fit=True)
    trainer, side = trainer_of(made.config), bare(made, steps)
    with FlopCounterMode(display=False) as counter:
        side()
    work, a = counter.get_total_flops() / steps, torch.randn(SIZE, SIZE)
    found = rounds({"whole": whole(made, steps), "bare": side, "product": lambda: a @ a}, count)
    rate, product = work / statistics.median(found["whole"]), 2 * SIZE**3 / statistics.median(found["product"])
    row = {
        "modality": kind,
        "batch": trainer.batch_size,
        "precision": trainer.precision,
        "bare ms": 1e3 * statistics.median(found["bare"]),
        "step / bare": ratio(found["whole"], found["bare"]),
        "GFLOP a step": work / 1e9,
        "step, GFLOP/s": rate / 1e9,
        "fp32 product, GFLOP/s": product / 1e9,
        "over the product's": rate / product,
    }
    print(row, flush=True)
    return row


def peer(steps: int, count: int, batch: int = 16) -> list[dict[str, Any]]:
    """32 x 32 images in three channels, 10 classes."""
    from peers import alone

    theirs = alone("denoising_diffusion_pytorch", "classifier_free_guidance")
    network = theirs.Unet(dim=32, num_classes=10, dim_mults=(1, 2, 4), cond_drop_prob=0.1)
    diffusion = theirs.GaussianDiffusion(network, image_size=32, timesteps=1000)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-5)
    images, classes = torch.rand(batch, 3, 32, 32), torch.arange(batch) % 10

    def side() -> float:
        diffusion.train()
        times = []
        for _ in range(steps):
            began = clock()
            diffusion(images, classes=classes).backward()
            torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            times.append(clock() - began)
        return statistics.mean(times[2:])

    wanted = sum(p.numel() for p in network.parameters())
    rows = []
    for attention, channels in (([], None), ([8], None), ([8], 32)):
        made, size, channels = same_size(wanted, attention, channels)
        found = rounds({"ours": whole(made, steps, batch_size=batch), "theirs": side}, count)
        rows.append(
            {
                "ours": "attention at the lowest level" if attention else "no attention",
                "channels": channels,
                "parameters": size,
                "theirs": wanted,
                "images a second": batch / statistics.median(found["ours"]),
                "theirs, images a second": batch / statistics.median(found["theirs"]),
                "ratio": ratio(found["theirs"], found["ours"]),
            }
        )
        print(rows[-1], flush=True)
    return rows


def same_size(wanted: int, attention: list[int], channels: int | None) -> tuple[Preset, int, int]:
    """Our U-Net of three levels on random images, of so many channels, or as wide as the number of parameters asks for; both."""
    from dataclasses import replace

    from guidance.condition import Condition, Label
    from guidance.split import InMemory
    from modalities.image.network import UNet

    conditions = {"digit": Label([str(k) for k in range(10)])}
    made = preset("image")
    sizes = {}
    for width in range(16, 97, 4):
        with torch.device("meta"):
            network = UNet((3, 32, 32), conditions, channels=width, multipliers=(1, 2, 4), blocks=2, attention=attention, head=16)
        sizes[width] = sum(p.numel() for p in network.parameters())
    channels = channels or min(sizes, key=lambda c: abs(sizes[c] - wanted))
    network = UNet((3, 32, 32), conditions, channels=channels, multipliers=(1, 2, 4), blocks=2, attention=attention, head=16)
    raw = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
    split = InMemory(raw, Condition({"digit": torch.arange(256) % 10}, {"digit": torch.ones(256, dtype=torch.bool)}))
    data = Random(split, conditions)
    modality = replace(made.model.modality, network=network, conditions=conditions, data=data, shape=(3, 32, 32))
    denoiser = replace(made.model.denoisers["main"], network=network)
    model = replace(made.model, modality=modality, denoisers={"main": denoiser})
    return Preset(model, made.config), sizes[channels], channels


class Random:
    """Images of noise."""

    def __init__(self, train: Any, conditions: Any):
        self.train = self.test = train
        self.conditions, self.name, self.shape = conditions, "noise", (3, 32, 32)

    def pinned(self) -> dict[str, Any]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(PRESETS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", choices=("no", "bf16"), help="instead of the preset's own")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peer:
        report("unet-training", peer(options.steps, options.rounds), machine(), options.out)
    else:
        rows = [overhead(kind, options.steps, options.rounds, options.precision) for kind in options.kinds.split(",")]
        report("training-overhead", rows, machine(), options.out)


if __name__ == "__main__":
    main()
