"""Exact denoisers: what an ideal network would say of data whose density is known. The oracle of the tests.

For a mixture of Gaussians p(x0) = sum_j w_j N(m_j, s_j^2 I), x_t is again a mixture, N(alpha m_j, alpha^2 s_j^2 + sigma^2), and

    E[x0 | x_t] = sum_j r_j(x_t) (m_j + alpha s_j^2 / (alpha^2 s_j^2 + sigma^2) (x_t - alpha m_j))

with r_j the posterior weight of component j. A condition keeps only the components of its class.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.parameterization import X0
from guidance.schedule import Cosine, Schedule


class Mixture(nn.Module):
    """A mixture of isotropic Gaussians as a `Network` that predicts x0; a single Gaussian is a mixture of one.

    Args:
        means: [k, *d].
        stds: one a component, or one for all.
        weights: of the components, summing to 1 (equal by default).
        labels: for each attribute, the class of every component. A present attribute restricts the mixture to its class.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __init__(
        self,
        means: Float[Tensor, "k *d"],
        stds: float | Sequence[float] | Tensor = 1.0,
        weights: Sequence[float] | Tensor | None = None,
        labels: Mapping[str, Sequence[int] | Tensor] | None = None,
    ):
        super().__init__()
        k = len(means)
        self.register_buffer("means", means.double())
        self.register_buffer("stds", torch.as_tensor(stds, dtype=torch.float64).expand(k).clone())
        given = torch.as_tensor([1.0] * k if weights is None else weights, dtype=torch.float64)
        self.register_buffer("weights", given / given.sum())
        self.labels = {name: torch.as_tensor(of) for name, of in (labels or {}).items()}
        if any(len(of) != k for of in [self.stds, self.weights, *self.labels.values()]):
            raise UserError(f"a mixture of {k} means needs {k} stds, weights and labels")

    def denoiser(self, schedule: Schedule | None = None) -> Denoiser:
        return Denoiser(self, schedule or Cosine(), X0())

    def embed(self, condition: Condition) -> Float[Tensor, "b k"] | None:
        """The log prior weight of every component, for each row."""
        if not len(condition):
            return None
        log_prior = self.weights.log().expand(len(condition), -1)
        for name, labels in self.labels.items():
            if name in condition.values:
                match = condition.values[name].view(-1, 1) == labels.to(self.means.device)
                log_prior = log_prior.masked_fill(~match & condition.keep[name].view(-1, 1), -torch.inf)
        return log_prior

    def responsibilities(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], log_prior: Float[Tensor, "b k"] | None
    ) -> Float[Tensor, "b k"]:
        """The posterior weight of every component given x_t."""
        return self._joint(x_t, logsnr, log_prior).softmax(-1)

    def log_density(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: Float[Tensor, "b k"] | None
    ) -> Float[Tensor, "b"]:
        """log p_t(x_t | c), exactly (a `Density`)."""
        log_prior = self.weights.log().expand(len(x_t), -1) if context is None else context
        size = x_t[0].numel()
        return self._joint(x_t, logsnr, log_prior).logsumexp(-1) - log_prior.logsumexp(-1) - size / 2 * math.log(2 * math.pi)

    def _joint(self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], log_prior: Float[Tensor, "b k"] | None) -> Tensor:
        """log p(component, x_t) [b k], without (2 pi)^(d/2)."""
        alpha, variance = self._marginal(logsnr)
        away = (x_t.double().unsqueeze(1) - self._wide(alpha) * self.means).flatten(2)
        log = -away.square().sum(-1) / (2 * variance) - variance.log() * away.shape[-1] / 2
        return log + (self.weights.log() if log_prior is None else log_prior)

    def forward(
        self,
        x_t: Float[Tensor, "b *d"],
        logsnr: Float[Tensor, "b"],
        context: Float[Tensor, "b k"] | None,
        x0_hat: Float[Tensor, "b *d"] | None = None,
    ) -> Float[Tensor, "b *d"]:
        alpha, variance = self._marginal(logsnr)
        r = self.responsibilities(x_t, logsnr, context)
        gain = alpha * self.stds**2 / variance
        # sum_j r_j (m_j + gain_j (x_t - alpha m_j)), without a tensor of every component's own
        means = ((r * (1 - alpha * gain)) @ self.means.flatten(1)).view(x_t.shape)
        of_x = (r * gain).sum(1).view(-1, *(1,) * (x_t.ndim - 1))
        return (means + of_x * x_t.double()).to(x_t)

    def _marginal(self, logsnr: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b 1"], Float[Tensor, "b k"]]:
        """alpha, and the variance of every component at this noise level (variance-preserving)."""
        alpha2 = logsnr.double().sigmoid().view(-1, 1)
        return alpha2.sqrt(), alpha2 * self.stds**2 + (1 - alpha2)

    def _wide(self, t: Float[Tensor, "b k"]) -> Tensor:
        return t.view(*t.shape, *(1,) * (self.means.ndim - 1))
