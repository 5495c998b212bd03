"""Measures of a set of samples, from features and class probabilities. They know no modality."""

import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class _AsGiven(nn.Module):
    """A feature network that has already been applied."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(a: Float[Tensor, "n f"], b: Float[Tensor, "m f"]) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2), of the Gaussians of the same mean and covariance (Heusel et al., 1706.08500)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsGiven(a.shape[1])).set_dtype(torch.float64)
    metric.update(a.double(), real=False)
    metric.update(b.double(), real=True)
    return float(metric.compute())


def inception_score(logits: Float[Tensor, "n classes"]) -> float:
    """exp(mean over samples of KL(p(y|x) || p(y))): 1 to the number of classes (Salimans et al., 1606.03498)."""
    from torchmetrics.image.inception import InceptionScore

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)  # the order in which it adds decides on the last digits
        warnings.simplefilter("ignore")  # it shuffles for, and takes the deviation over, splits that are not asked for here
        metric = InceptionScore(feature=_AsGiven(logits.shape[1]), splits=1)
        metric.update(logits.double().log_softmax(-1).clamp(min=-100))  # a class of no probability at all has no logarithm
        return float(metric.compute()[0])


def modified_inception_score(logits: Float[Tensor, "n classes"]) -> float:
    """exp(mean over pairs of samples of KL(p(y|x) || p(y|x'))) (Gurumurthy et al., 1706.02071): diversity within classes counts too."""
    log_p = logits.double().log_softmax(-1).clamp(min=-100)
    p = log_p.exp()
    return float(((p * log_p).sum(-1).mean() - (p.mean(0) * log_p.mean(0)).sum()).exp())


def am_score(logits: Float[Tensor, "n classes"], label: Int[Tensor, "m"]) -> float:
    """KL(classes of the training data || mean of p(y|x)) + mean entropy of p(y|x) (Zhou et al., 1703.02000), in nats; 0 is best."""
    log_p = logits.double().log_softmax(-1)
    share = torch.bincount(label, minlength=logits.shape[1]).double() / len(label)
    there = share > 0
    divergence = (share[there] * (share[there].log() - log_p.exp().mean(0)[there].clamp(min=1e-43).log())).sum()
    return float(divergence - torch.xlogy(log_p.exp(), log_p.exp()).sum(-1).mean())


def precision_recall(samples: Float[Tensor, "n f"], real: Float[Tensor, "m f"], k: int = 3) -> tuple[float, float]:
    """The share of samples on the real manifold, and of real data on the samples' (Kynkäänniemi et al., 1904.06991).

    A manifold is the union of balls around its points that reach to each one's k-th nearest neighbour.
    """
    on_real, on_samples = within(samples, real, radii(real, k)), within(real, samples, radii(samples, k))
    return float(on_real.float().mean()), float(on_samples.float().mean())


def radii(points: Float[Tensor, "n f"], k: int = 3) -> Float[Tensor, "n"]:
    """How far each point's k-th nearest neighbour is."""
    return torch.cdist(points, points).kthvalue(min(k + 1, len(points)), dim=1).values  # the nearest is itself


def within(points: Float[Tensor, "n f"], others: Float[Tensor, "m f"], radius: Float[Tensor, "m"]) -> Bool[Tensor, "n"]:
    """Whether each point lies in one of the balls around the others."""
    return (torch.cdist(points, others) <= radius).any(1)


def diversity(features: Float[Tensor, "n f"], label: Int[Tensor, "n"]) -> float:
    """The mean distance of two different samples of the same class, averaged over classes of two samples or more."""
    distances = []
    for value in torch.unique(label):
        of = features[label == value]
        if len(of) > 1:
            distances.append(torch.cdist(of, of).sum() / (len(of) * (len(of) - 1)))
    return float(torch.stack(distances).mean()) if distances else float("nan")


FEW = 8
"""Of the others, those that a product of matrices finds nearest, so that the nearest is among them whatever the product rounds."""


def nearest(points: Float[Tensor, "n d"], among: Float[Tensor, "m d"], chunk: int = 1024) -> Float[Tensor, "n"]:
    """The Euclidean distance of each point to the nearest of the others.

    Which are near is found by |b|^2 - 2 a b, a product of matrices; how far they are by differences, for rounded products do not give 0
    for a copy.
    """
    size, found = among.square().sum(1), []
    for part in torch.split(points, chunk):
        index = (size - 2 * part @ among.T).topk(min(FEW, len(among)), dim=1, largest=False).indices
        distances = [(part - among[column]).norm(dim=1) for column in index.unbind(1)]
        found.append(torch.stack(distances).amin(0))
    return torch.cat(found) if found else points.new_zeros(0)


def copy_distance(train: Float[Tensor, "m d"], held_out: Float[Tensor, "h d"], q: float = 0.01) -> Float[Tensor, ""]:
    """All but a share ``q`` of the held-out items are farther than that from every training item. A sample that is nearer counts as a
    copy: ``q`` is the floor of such counts."""
    return nearest(held_out, train).quantile(q)
