"""What a network may predict: every reading is the exact inverse of its target, on every schedule."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from guidance.parameterization import X0, Eps, Parameterization, V, Velocity
from guidance.process import Level, corrupt, level
from guidance.schedule import Cosine, Discrete, Karras, LinearBeta, Rectified, Schedule, Sqrt

PARAMETERIZATIONS = [Eps(), X0(), V(), Velocity()]
SCHEDULES = [Cosine(-10.0, 10.0), LinearBeta(), Sqrt(), Rectified(-10.0, 10.0), Karras(), Discrete.linear()]


def name(thing: object) -> str:
    return type(thing).__name__


def corrupted(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Level]:
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn((5, 3, 2), generator=generator, dtype=torch.float64) for _ in range(2))
    at = level(schedule, torch.tensor([0.02, 0.3, 0.5, 0.7, 0.98], dtype=torch.float64), x0)
    return x0, eps, corrupt(x0, eps, at), at


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
def test_reading_the_target_recovers_data_and_noise(parameterization: Parameterization, schedule: Schedule):
    x0, eps, x_t, at = corrupted(schedule)
    read = parameterization.read(parameterization.target(x0, eps, at), x_t, at)
    close(read.x0, x0)
    close(read.eps, eps)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_any_cycle_of_conversions_returns_to_its_output(schedule: Schedule):
    _, _, x_t, at = corrupted(schedule)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for first, *others in permutations(PARAMETERIZATIONS):
        converted, reading = output, first
        for other in [*others, first]:
            prediction = reading.read(converted, x_t, at)
            converted, reading = other.target(prediction.x0, prediction.eps, at), other
        close(converted, output)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
def test_any_output_is_consistent_with_x_t(parameterization: Parameterization, schedule: Schedule):
    _, _, x_t, at = corrupted(schedule)
    output = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    read = parameterization.read(output, x_t, at)
    close(at.alpha * read.x0 + at.sigma * read.eps, x_t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=name)
def test_eps_error_is_what_an_error_in_the_output_does_to_eps(parameterization: Parameterization, schedule: Schedule):
    x0, eps, x_t, at = corrupted(schedule)
    output = parameterization.target(x0, eps, at)
    moved = parameterization.read(output + 1.0, x_t, at).eps - parameterization.read(output, x_t, at).eps
    close(moved.abs(), parameterization.eps_error(at).expand(moved.shape))


@pytest.mark.parametrize(
    "parameterization, a, b",
    [
        (Eps(), lambda alpha, sigma: 0.0, lambda alpha, sigma: 1.0),
        (X0(), lambda alpha, sigma: 1.0, lambda alpha, sigma: 0.0),
        (V(), lambda alpha, sigma: -sigma, lambda alpha, sigma: alpha),
        (Velocity(), lambda alpha, sigma: -1.0, lambda alpha, sigma: 1.0),
    ],
    ids=["eps", "x0", "v", "velocity"],
)
def test_targets_are_the_papers(parameterization: Parameterization, a, b):
    x0, eps, _, at = corrupted(Rectified(-10.0, 10.0))
    close(parameterization.target(x0, eps, at), a(at.alpha, at.sigma) * x0 + b(at.alpha, at.sigma) * eps)


def test_v_is_the_derivative_along_the_cosines_angle():
    """Salimans & Ho: with x_t = cos(phi) x0 + sin(phi) eps, v = dx_t / dphi."""
    x0, eps, _, _ = corrupted(Cosine())
    phi, h = torch.tensor(0.7, dtype=torch.float64), 1e-5
    derivative = ((phi + h).cos() * x0 + (phi + h).sin() * eps - (phi - h).cos() * x0 - (phi - h).sin() * eps) / (2 * h)
    torch.testing.assert_close(V().target(x0, eps, Level(phi, phi.cos(), phi.sin())), derivative, atol=1e-9, rtol=1e-8)


def test_velocity_is_the_derivative_along_the_straight_path():
    x0, eps, _, _ = corrupted(Rectified())
    u, h = torch.tensor(0.3, dtype=torch.float64), 0.1
    difference = ((1 - u - h) * x0 + (u + h) * eps - (1 - u) * x0 - u * eps) / h
    close(Velocity().target(x0, eps, Level(u, 1 - u, u)), difference)
