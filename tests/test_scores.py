"""Scores of class probabilities: cases of known answer, and the definitions written out over samples and pairs."""

import math
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from guidance.measures import am_score, inception_score, modified_inception_score

SURE = 1e3  # a logit beside zeros


def draws(n: int, classes: int, spread: float = 2.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def probabilities(logits: Tensor) -> np.ndarray:
    return np.asarray(scipy.special.softmax(logits.double().numpy(), axis=1))


def log_of(*p: float) -> Tensor:
    """Logits of these probabilities, up to a constant that the softmax takes away."""
    return torch.tensor([p], dtype=torch.float64).log() + 5


@pytest.mark.parametrize(("classes", "each"), [(2, 9), (3, 4), (10, 2)])
def test_sure_and_even_classes(classes: int, each: int):
    logits, label = SURE * torch.eye(classes).repeat(each, 1), torch.arange(classes).repeat(3)
    assert inception_score(logits) == pytest.approx(classes, rel=1e-9)
    assert am_score(logits, label) == pytest.approx(0, abs=1e-9)
    # Two samples of different classes, 1 - 1/C of all pairs, diverge by as much as a probability's floor exp(-100) lets them.
    assert math.log(modified_inception_score(logits)) == pytest.approx(100 * (1 - 1 / classes), rel=1e-9)


@pytest.mark.parametrize(("classes", "n"), [(2, 9), (3, 4), (10, 5)])
def test_ignorance(classes: int, n: int):
    logits, even = torch.full((n, classes), 0.7), torch.arange(classes).repeat(2)
    assert inception_score(logits) == pytest.approx(1, abs=1e-9)
    assert modified_inception_score(logits) == pytest.approx(1, abs=1e-9)
    assert am_score(logits, even) == pytest.approx(math.log(classes)), "no divergence, and the entropy of an even guess"
    one = torch.zeros(7, dtype=torch.long)
    assert am_score(logits, one) == pytest.approx(2 * math.log(classes)), "and where the data has one class, a divergence as large"


@pytest.mark.parametrize("classes", [2, 5])
def test_one_and_the_same_answer_for_all_is_no_diversity(classes: int):
    logits = log_of(0.7, *[0.3 / (classes - 1)] * (classes - 1)).repeat(8, 1)
    assert inception_score(logits) == pytest.approx(1, abs=1e-9)
    assert modified_inception_score(logits) == pytest.approx(1, abs=1e-9)
    sure = SURE * torch.eye(classes)[:1].repeat(8, 1)
    assert inception_score(sure) == modified_inception_score(sure) == pytest.approx(1, abs=1e-9)


def test_two_samples_worked_out_by_hand():
    """p = (3/4, 1/4) and (1/4, 3/4): the mean is even, and each pair of different samples diverges by log(3)/2."""
    logits = torch.cat([log_of(0.75, 0.25), log_of(0.25, 0.75)])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert inception_score(logits) == pytest.approx(2 * math.exp(-entropy), rel=1e-6)
    assert modified_inception_score(logits) == pytest.approx(3**0.25, rel=1e-9), "half of the pairs are of different samples"
    assert am_score(logits, torch.tensor([0, 1])) == pytest.approx(entropy)
    assert am_score(logits, torch.tensor([1, 1, 0, 1])) == pytest.approx(math.log(2)), "1/4, 3/4 diverge from even by log 2 - entropy"


@pytest.mark.parametrize(("n", "classes"), [(7, 3), (3, 7), (5, 5)])
def test_scores_are_those_of_the_definitions(n: int, classes: int):
    logits, label = draws(n, classes), torch.tensor([0, 0, 1, 2, 0])
    p = probabilities(logits)
    divergence = [scipy.stats.entropy(row, p.mean(0)) for row in p]
    assert inception_score(logits) == pytest.approx(np.exp(np.mean(divergence)), rel=1e-6)
    pairs = [scipy.stats.entropy(one, two) for one in p for two in p]
    assert modified_inception_score(logits) == pytest.approx(np.exp(np.mean(pairs)), rel=1e-9)
    share = np.bincount(label.numpy(), minlength=classes) / len(label)
    expected = scipy.stats.entropy(share, p.mean(0)) + np.mean([scipy.stats.entropy(row) for row in p])
    assert am_score(logits, label) == pytest.approx(expected, rel=1e-9)


def test_diversity_within_a_class_counts_in_the_modified_score_only():
    """Samples whose mean answer stays the same but who are less alike."""
    alike, apart = log_of(0.5, 0.3, 0.2).repeat(4, 1), torch.cat([log_of(0.5, 0.4, 0.1), log_of(0.5, 0.2, 0.3)]).repeat(2, 1)
    assert modified_inception_score(apart) > modified_inception_score(alike) + 0.02
    spread = SURE * torch.eye(3)[[0, 0, 1, 2]]
    assert inception_score(spread) == pytest.approx(2**1.5), "the exponential of the classes' entropy, 3/2 log 2"


def test_a_class_that_no_sample_shows_costs_much_and_is_no_infinity():
    logits = SURE * torch.eye(3)[[0, 1, 0, 1]]
    missed = am_score(logits, torch.tensor([0, 1, 2]))
    assert 10 < missed < 100 and am_score(logits, torch.tensor([0, 1])) == pytest.approx(0, abs=1e-9)
    assert am_score(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@pytest.mark.parametrize("score", [inception_score, modified_inception_score, lambda logits: am_score(logits, torch.arange(4))])
def test_scores_do_not_depend_on_order_or_a_logits_constant_and_draw_nothing(score):
    logits = draws(6, 4)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        once = score(logits)
    assert torch.equal(torch.get_rng_state(), state)
    assert score(logits.flip(0) + torch.arange(6.0)[:, None]) == pytest.approx(once, rel=1e-5)
