"""The oracle itself, against autograd, quadrature and sampling by Bayes' rule: nothing here is trusted for being exact."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from guidance.analytic import Mixture
from guidance.condition import Condition
from guidance.errors import UserError
from guidance.process import level
from guidance.schedule import Cosine, Rectified, inverse

MEANS = torch.tensor([[-2.0, 0.5], [1.0, 3.0], [2.0, -1.0]])
STDS, WEIGHTS = torch.tensor([0.5, 0.8, 0.4]), torch.tensor([0.2, 0.3, 0.5])
X = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("logsnr", [-12.0, -2.0, 0.0, 3.0, 12.0])
@pytest.mark.parametrize("kept", [[0, 1, 2], [0, 2], [1]], ids=str)
def test_the_mixture_says_tweedies_formula(kept: list[int], logsnr: float):
    """E[x0 | x_t] = (x_t + sigma^2 grad log p(x_t)) / alpha, the gradient by autograd of torch's own density."""
    at = level(Cosine(), inverse(Cosine(), torch.tensor(logsnr, dtype=torch.float64)), X)
    spread = (at.alpha**2 * STDS.double() ** 2 + at.sigma**2).sqrt()[kept]
    each = Independent(Normal(at.alpha * MEANS.double()[kept], spread[:, None].expand(-1, 2)), 1)
    x = X.clone().requires_grad_()
    density = MixtureSameFamily(Categorical(WEIGHTS.double()[kept]), each).log_prob(x)
    score = torch.autograd.grad(density.sum(), x)[0]
    labels = [int(k in kept) for k in range(3)]
    network = Mixture(MEANS, STDS, WEIGHTS, {"kept": labels})
    found = network.denoiser()(X, at, network.embed(Condition.of(kept=[1] * 7)))
    torch.testing.assert_close(found.eps, -at.sigma * score, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(at.alpha * found.x0, X + at.sigma**2 * score, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("schedule", [Cosine(), Rectified()], ids=["cosine", "rectified"])
def test_the_mixture_says_the_posterior_mean_by_quadrature(schedule):
    network = Mixture(torch.tensor([[-1.0], [1.5]]), [0.5, 0.7], [0.4, 0.6])
    at = level(schedule, torch.tensor(0.4), torch.zeros(1, 1))
    x_t, alpha, sigma = 0.3, float(at.alpha), float(at.sigma)

    def joint(x0: float) -> float:
        prior = sum(w * math.exp(-(((x0 - m) / s) ** 2) / 2) / s for w, m, s in [(0.4, -1.0, 0.5), (0.6, 1.5, 0.7)])
        return prior * math.exp(-(((x_t - alpha * x0) / sigma) ** 2) / 2)

    expected = quad(lambda x0: x0 * joint(x0), -8, 8, epsabs=1e-13)[0] / quad(joint, -8, 8, epsabs=1e-13)[0]
    found = network.denoiser(schedule)(torch.full((1, 1), x_t, dtype=torch.float64), at, None)
    assert float(found.x0) == pytest.approx(expected, rel=1e-9)


def test_attributes_restrict_together_and_absent_ones_do_not():
    network = Mixture(torch.arange(4.0)[:, None], 0.1, labels={"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]})
    condition = Condition(
        {"a": torch.tensor([1, 1, 1, 1]), "b": torch.tensor([0, 0, 0, 0])},
        {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, True, False])},
    )
    assert (network.embed(condition) > -math.inf).tolist() == [
        [False, False, True, False],
        [False, False, True, True],
        [True, False, True, False],
        [True, True, True, True],
    ]


@pytest.mark.parametrize("wrong", [{"weights": [0.5, 0.5]}, {"labels": {"a": [0, 1]}}])
def test_a_mixture_of_unequal_parts_is_refused(wrong: dict):
    with pytest.raises(UserError):
        Mixture(MEANS, **wrong)
