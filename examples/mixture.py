"""Guidance on a mixture whose density is known: what does a scale do, and what does the opposite of a class look like?

    python examples/mixture.py

Prints, for a mixture of three Gaussians on a line (class 0 at -2, class 1 at 0.5 and 3), the mean and the share of each
component among the samples at several scales. No training: the denoiser is exact.
"""

import torch

from guidance import CFG, Condition, DPMSolver, Mixture, on, sample

means = torch.tensor([[-2.0], [0.5], [3.0]])
denoiser = Mixture(means, stds=0.3, weights=[0.3, 0.4, 0.3], labels={"side": [0, 1, 1]}).denoiser()
n = 4096
right = Condition.of(side=torch.ones(n, dtype=torch.long))

guidances = {f"CFG({scale:g})": CFG(scale) for scale in (-1, 0, 0.5, 1, 3)}
guidances["2 right - 1 left"] = 2.0 * on(side=1) - 1.0 * on(side=0)
print(f"{'guidance':18} {'mean':>6}   share at -2, 0.5, 3")
for name, guidance in guidances.items():
    x = sample(denoiser, (n, 1), right, guidance, DPMSolver(), steps=50)
    nearest = (x - means.T).abs().argmin(1).bincount(minlength=3) / n
    print(f"{name:18} {x.mean():6.2f}   " + "  ".join(f"{share:.2f}" for share in nearest))
