"""Negative guidance of a diffusers model: a small class-conditional UNet2DModel, trained by diffusers' own means, saved as a pipeline, and
sampled here with weights of either sign.

    python examples/diffusers_negative.py

Four of scikit-learn's digits; the fifth class of the model is "none", to which a tenth of the labels are changed in training. What a sample
is, is told by the nearest class mean of the training data.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from guidance import CFG, DPMSolver, on
from guidance.bridges.diffusers import load
from guidance.stubs import diffusers

DIGITS = (0, 1, 4, 7)
NONE = len(DIGITS)


def digits() -> tuple[Tensor, Tensor]:
    """Pictures [n, 1, 8, 8] from -1 to 1, and which of the classes each is."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures, label = torch.tensor(found.images / 8 - 1, dtype=torch.float32)[:, None], torch.tensor(found.target)
    mine = torch.isin(label, torch.tensor(DIGITS))
    return pictures[mine], torch.searchsorted(torch.tensor(DIGITS), label[mine])


def trained(folder: Path, pictures: Tensor, label: Tensor, steps: int) -> None:
    """A pipeline in a folder, as any script of diffusers would leave it."""
    library = diffusers()
    network = library.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, num_class_embeds=NONE + 1,
    )  # fmt: skip
    scheduler = library.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(pictures), (64,))
        noise, t = torch.randn(64, 1, 8, 8), torch.randint(1000, (64,))
        known = torch.where(torch.rand(64) < 0.1, NONE, label[index])
        x_t = scheduler.add_noise(pictures[index], noise, t)
        loss = (network(x_t, t, known).sample - scheduler.get_velocity(pictures[index], noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    library.DDPMPipeline(network, scheduler).save_pretrained(folder)


def main(steps: int = 800, n: int = 200) -> dict[str, list[float]]:
    """Train, save, load; then the share of samples of each digit, for several guidances that name the first."""
    torch.manual_seed(0)
    pictures, label = digits()
    with tempfile.TemporaryDirectory() as folder:
        trained(Path(folder), pictures, label, steps)
        model = load(folder, null_class=NONE, classes=[str(digit) for digit in DIGITS])
    means = torch.stack([pictures[label == k].mean(0) for k in range(NONE)]).flatten(1)
    first, second, third, _ = map(str, DIGITS)
    shares = {}
    for name, guidance in {
        "1": CFG(1.0),
        "0": CFG(0.0),
        "-1": CFG(-1.0),
        f"{first} + {second} - {third}": 1.0 * on(label=first) + 1.0 * on(label=second) - 1.0 * on(label=third),
        f"-{first} - {second}": -1.0 * on(label=first) - 1.0 * on(label=second),
    }.items():
        given = {"label": first} if isinstance(guidance, CFG) else None
        samples = model.sample(n, given, guidance=guidance, sampler=DPMSolver(), steps=20)
        nearest = torch.cdist(samples.flatten(1) / 127.5 - 1, means).argmin(1)
        shares[name] = (nearest.bincount(minlength=NONE) / n).tolist()
        print(f"{name:12}", "  ".join(f"{digit}: {share:.2f}" for digit, share in zip(DIGITS, shares[name], strict=True)), flush=True)
    return shares


if __name__ == "__main__":
    main()
