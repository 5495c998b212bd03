"""How clouds are measured."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from guidance import Condition
from guidance.judge import TrainedJudge, classes, seeded, train_judge
from guidance.modality import Data


class PointNet(nn.Module):
    """The same layers for every point, the largest of each feature over all points, then the logits."""

    def __init__(self, count: int, width: int = 64):
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2 * width))
        self.features, self.head = nn.Sequential(nn.ReLU(), nn.Linear(2 * width, 32)), nn.Linear(32, count)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.points(x).amax(1))
        return features, self.head(features.relu())


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.02 * torch.randn(x.shape, generator=generator)


class CloudMetrics:
    units: Mapping[str, str] = {"height": "deviation along z over that across", "gap": "mean distance to the nearest other point"}

    def judge(self, data: Data, attribute: str) -> TrainedJudge:
        network = seeded(lambda: PointNet(len(classes(data, attribute))))
        return train_judge(network, data, attribute, lambda clouds: clouds, jitter, version="point-cloud-1", steps=1500)

    def measure(self, decoded: Tensor, condition: Condition, original: Tensor | None = None) -> Mapping[str, Tensor]:
        deviation = decoded.std(1)
        apart = torch.cdist(decoded, decoded).sort(2).values[..., 1]  # first comes the point itself
        return {"height": deviation[:, 2] / deviation[:, :2].square().mean(1).sqrt(), "gap": apart.mean(1)}

    def together(self, decoded: Tensor) -> Mapping[str, float]:
        return {}

    def flat(self, decoded: Tensor) -> Tensor:
        """All distances within a cloud, sorted: the same for every order of its points, and however it is turned."""
        return torch.cdist(decoded, decoded).flatten(1).sort(1).values
