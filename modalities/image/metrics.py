"""How images are measured: a convolutional judge, and ink and slant, which need none."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from guidance.condition import Condition
from guidance.judge import TrainedJudge, classes, judge_training, seeded, train_judge
from guidance.modality import Data, Judge, SideTraining


class Classifier(nn.Module):
    """Three convolutions, halving between them, then 64 features and the logits; inputs are brought to at most 32 pixels."""

    def __init__(self, channels: int, classes: int, width: int = 32, features: int = 64):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, features)),
        )
        self.head = nn.Linear(features, classes)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b classes"]]:
        features = self.body(x)
        return features, self.head(features)


def prepare(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    x = images.float() / 127.5 - 1
    largest = max(x.shape[-2:])
    return x if largest <= 32 else functional.interpolate(x, scale_factor=32 / largest, mode="bilinear", antialias=True)


def augment(x: Float[Tensor, "b c h w"], generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Rotated by up to 0.15 radians, scaled by up to 10 % and moved by up to 7 %: less than what changes a digit."""
    u = 2 * torch.rand(4, len(x), generator=generator) - 1
    angle, scale, dx, dy = 0.15 * u[0], 1 + 0.1 * u[1], 0.14 * u[2], 0.14 * u[3]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin, dx], 1), torch.stack([sin, cos, dy], 1)], 1)
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


LENGTH: Mapping[str, int] = {"steps": 600, "batch": 128}  # of a judge's training


def classifier(data: Data, attribute: str) -> nn.Module:
    return seeded(lambda: Classifier(data.shape[0], len(classes(data, attribute))))


class ImageMetrics:
    """Judges, and ink and slant."""

    units: Mapping[str, str] = {"ink": "mean pixel, 0 to 1", "slant": "shear of the ink; above 0 leans left at the top"}

    def together(self, decoded: UInt8[Tensor, "n c h w"]) -> Mapping[str, float]:
        return {}

    def judge(self, data: Data, attribute: str) -> Judge:
        judge: TrainedJudge = train_judge(classifier(data, attribute), data, attribute, prepare, augment, version="image-1", **LENGTH)
        return judge

    def judge_training(self, data: Data, attribute: str) -> SideTraining:
        def inputs(n: int) -> Tensor:
            return prepare(torch.zeros(n, *data.shape, dtype=torch.uint8))

        return judge_training(classifier(data, attribute), inputs, **LENGTH)

    def measure(
        self, decoded: UInt8[Tensor, "n c h w"], condition: Condition, original: Tensor | None = None
    ) -> Mapping[str, Float[Tensor, "n"]]:
        """ink: the mean pixel, 0 to 1. slant: the shear of the ink about its centre, cov(x, y) / var(y); above 0 leans left at the top."""
        x = decoded.float().mean(1) / 255
        mass = x.flatten(1).sum(1).clamp(min=1e-6)
        rows, columns = torch.arange(x.shape[1]).float(), torch.arange(x.shape[2]).float()
        cy, cx = (x.sum(2) @ rows) / mass, (x.sum(1) @ columns) / mass
        dy, dx = rows - cy[:, None], columns - cx[:, None]
        cov = torch.einsum("nhw,nh,nw->n", x, dy, dx)
        var = torch.einsum("nhw,nh->n", x, dy.square()).clamp(min=1e-6)
        return {"ink": x.mean((1, 2)), "slant": cov / var}

    def flat(self, decoded: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n size"]:
        return decoded.flatten(1).float() / 255
