"""A guidance rule of one's own: nothing of the library is changed for it.

    python examples/custom_rule.py

A `Guidance` says which terms to evaluate, with weights that sum to 1, and may combine their predictions as it likes. This one does not
let the difference that guidance adds to x0 grow beyond a length. Of three Gaussians on a line the class holds two, one half each. Strong
guidance goes to the one that is farther from the other class, and narrows it; limited, it keeps both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guidance import CFG, Condition, DPMSolver, Guidance, Level, Mixture, Prediction, Term, sample


@dataclass(frozen=True)
class Limited:
    """x0 = x0_c + d min(1, most / |d|), d = (scale - 1) (x0_c - x0_null), |d| a sample's own; scale is one number for all."""

    scale: float
    most: float

    def terms(self, condition: Condition) -> Sequence[Term]:
        return Term(self.scale, condition), Term(1 - self.scale, condition.drop())

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Tensor, level: Level) -> Prediction:
        more = (self.scale - 1) * (predictions[0].x0 - predictions[-1].x0)  # at scale 1 there is one live term, which is both
        length = more.flatten(1).norm(dim=1).view(-1, *(1,) * (more.ndim - 1))
        x0 = predictions[0].x0 + more * (self.most / length.clamp(min=self.most))
        return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)


MEANS = torch.tensor([[-2.0], [0.5], [3.0]])


def main(n: int = 4000) -> dict[str, list[float]]:
    """The share of samples at each Gaussian."""
    denoiser = Mixture(MEANS, stds=0.3, labels={"side": [0, 1, 1]}).denoiser()
    right, shares = Condition.of(side=torch.ones(n, dtype=torch.long)), {}
    guidances: dict[str, Guidance] = {"CFG(1)": CFG(1.0), "CFG(8)": CFG(8.0), "Limited(8, 0.1)": Limited(8.0, 0.1)}
    print(f"{'':18} share at -2, 0.5, 3    deviation of the last")
    for name, guidance in guidances.items():
        x = sample(denoiser, (n, 1), right, guidance, DPMSolver(), steps=50)
        nearest = torch.cdist(x, MEANS).argmin(1)
        shares[name] = (nearest.bincount(minlength=3) / n).tolist()
        print(f"{name:18} " + "  ".join(f"{share:.2f}" for share in shares[name]) + f"       {x[nearest == 2].std():.2f}")
    return shares


if __name__ == "__main__":
    main()
