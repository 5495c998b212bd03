"""How samples are measured: a judge of any attribute with classes, and quantities that need no judge."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance import Condition
from guidance.judge import classes, judge_training, seeded, train_judge
from guidance.modality import Data, Judge, SideTraining


class Classifier(nn.Module):
    """Two convolutions; (features, logits)."""

    def __init__(self, count: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv1d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten()),
        )
        self.head = nn.Linear(64, count)

    def forward(self, x: Float[Tensor, "b length"]) -> tuple[Float[Tensor, "b f"], Float[Tensor, "b classes"]]:
        features = self.body(x[:, None])
        return features, self.head(features)


def noisier(x: Tensor, generator: torch.Generator) -> Tensor:
    """What a judge's training sees: a little noise, so that it does not look for its absence."""
    return x + 0.05 * torch.randn(x.shape, generator=generator)


class Metrics:
    """Judges, and crossings of zero."""

    units: Mapping[str, str] = {"crossings": "of zero, a curve", "strength": "root mean square"}

    def judge(self, data: Data, attribute: str) -> Judge:
        network = seeded(lambda: Classifier(len(classes(data, attribute))))
        return train_judge(network, data, attribute, lambda waves: waves, noisier, version="NAME-1", steps=300)

    def judge_training(self, data: Data, attribute: str) -> SideTraining:
        """What that judge takes, for polyguide cost."""
        network = seeded(lambda: Classifier(len(classes(data, attribute))))
        return judge_training(network, lambda n: torch.zeros(n, *data.shape), steps=300)

    def measure(
        self, decoded: Float[Tensor, "n length"], condition: Condition, original: Tensor | None = None
    ) -> Mapping[str, Float[Tensor, "n"]]:
        """Of each sample; the noise about zero is smoothed away before crossings are counted."""
        smooth = nn.functional.avg_pool1d(decoded[:, None], 5, stride=1)[:, 0]
        return {"crossings": (smooth.sign().diff() != 0).float().sum(1), "strength": decoded.square().mean(1).sqrt()}

    def together(self, decoded: Tensor) -> Mapping[str, float]:
        """Of a set of samples; here nothing."""
        return {}

    def flat(self, decoded: Float[Tensor, "n length"]) -> Float[Tensor, "n length"]:
        """Vectors whose distance tells copies of training items from new samples."""
        return decoded
