"""Every part of the core with a network and data of your own: points in the plane, four classes, guidance in both directions.

    python examples/own_network.py

A `Network` is an nn.Module with two methods: ``embed`` does, once a run, what depends on the condition alone; ``forward`` denoises.
Nothing else of the library is needed: no config, no modality, no command line.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from guidance import CFG, DDIM, Condition, ConditionEmbedding, Cosine, Denoiser, Label, NoiseEmbedding, Objective, Trainer, V, on, sample
from guidance.train import train

CENTRES = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])


class Perceptron(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.noise = NoiseEmbedding(width)
        self.condition = ConditionEmbedding({"corner": Label(("ne", "nw", "sw", "se"))}, width)
        self.layers = nn.Sequential(nn.Linear(2 + width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def embed(self, condition: Condition) -> Tensor | None:
        return self.condition(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        return self.layers(torch.cat([x_t, self.noise(logsnr) + context], dim=1))


@dataclass
class Points:
    """The data: anything with a length and a way to fetch several items with their condition."""

    x: Tensor
    corner: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        return self.x[index], Condition.of(corner=self.corner[index])


def main(steps: int = 1500, folder: str | None = None) -> dict[str, list[float]]:
    """Train, then report the share of samples in each corner for several guidances of the north-east corner."""
    torch.manual_seed(0)
    corner = torch.arange(2000) % 4
    data = Points(CENTRES[corner] + 0.2 * torch.randn(2000, 2), corner)
    denoiser = Denoiser(Perceptron(), Cosine(), V())
    with tempfile.TemporaryDirectory() as temporary:
        trainer = Trainer(steps=steps, batch_size=128, lr=3e-3, decay="cosine", save_every=0)
        average = train(Objective(denoiser), data, trainer, Path(folder or temporary), progress=False)
    denoiser = Denoiser(average["network"], Cosine(), V())

    n, shares = 1000, {}
    for name, guidance in {
        "CFG(-1)": CFG(-1.0),
        "CFG(0)": CFG(0.0),
        "CFG(1)": CFG(1.0),
        "CFG(3)": CFG(3.0),
        "ne + nw - null": 1.0 * on(corner=0) + 1.0 * on(corner=1),
    }.items():
        x = sample(denoiser, (n, 2), Condition.of(corner=torch.zeros(n, dtype=torch.long)), guidance, DDIM(), steps=50)
        nearest = torch.cdist(x, CENTRES).argmin(1).bincount(minlength=4) / n
        shares[name] = nearest.tolist()
        print(f"{name:16} ne {nearest[0]:.2f}  nw {nearest[1]:.2f}  sw {nearest[2]:.2f}  se {nearest[3]:.2f}")
    return shares


if __name__ == "__main__":
    main()
