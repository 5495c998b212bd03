"""Losses against their formulas, training against the exact denoiser, and runs that are interrupted against runs that are not."""

import errno
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn

from guidance import (
    SNR,
    X0,
    Condition,
    ConditionEmbedding,
    Cosine,
    Denoiser,
    Dropout,
    Eps,
    Karras,
    Label,
    LogitNormal,
    Loss,
    MinSNR,
    Mixture,
    Native,
    NoiseEmbedding,
    Objective,
    Rectified,
    Sigmoid,
    Stratified,
    Trainer,
    UniformEps,
    UniformTimes,
    UserError,
    V,
    Velocity,
    checkpoint,
    corrupt,
    level,
)
from guidance.cli import run
from guidance.loading import batches
from guidance.train import Interrupted, Place, paired, train, update_average

PARAMETERIZATIONS = [Eps(), X0(), V(), Velocity()]
SIDES = {"side": Label(("left", "right"))}


# Losses


def levels(schedule: Any = None) -> Any:
    t, like = torch.linspace(0.05, 0.95, 6, dtype=torch.float64), torch.zeros(6, 3, 2, dtype=torch.float64)
    return level(schedule or Cosine(-8.0, 8.0), t, like)


def data(seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(6, 3, 2, generator=generator, dtype=torch.float64)


WEIGHTS: list[tuple[Any, Callable[[float], float]]] = [
    (UniformEps(), lambda snr: 1.0),
    (SNR(), lambda snr: (snr + 1) / snr),
    (SNR(offset=0.0, floor=1.0), lambda snr: max(snr, 1) / snr),
    (SNR(offset=0.5, floor=2.0), lambda snr: (max(snr, 2) + 0.5) / snr),
    (MinSNR(), lambda snr: min(snr, 5) / snr),
    (MinSNR(0.5), lambda snr: min(snr, 0.5) / snr),
    (Sigmoid(), lambda snr: 1 / (1 + snr * math.exp(-2))),
    (Sigmoid(-1.0), lambda snr: 1 / (1 + snr * math.exp(1))),
]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
@pytest.mark.parametrize(("weighting", "of_snr"), WEIGHTS, ids=[f"{weighting}" for weighting, _ in WEIGHTS])
@pytest.mark.parametrize("schedule", [Cosine(-8.0, 8.0), Rectified(-8.0, 8.0)], ids=["Cosine", "Rectified"])
def test_a_weighting_means_the_same_in_every_parameterization(schedule: Any, weighting: Any, of_snr: Any, parameterization: Any):
    """The same guess of x0, said as eps, x0, v or u, costs w(snr) times its squared error in eps."""
    draw, at = data(), levels(schedule)
    x0, eps, guess = next(draw), next(draw), next(draw)
    eps_hat = (corrupt(x0, eps, at) - at.alpha * guess) / at.sigma
    snr = (at.alpha / at.sigma).flatten() ** 2
    weight = torch.tensor([of_snr(float(s)) for s in snr], dtype=torch.float64)
    output, target = parameterization.target(guess, eps_hat, at), parameterization.target(x0, eps, at)
    error = (eps_hat - eps).flatten(1)
    torch.testing.assert_close(Loss("l2", weighting)(output, target, at, parameterization), weight * error.square().mean(1))
    torch.testing.assert_close(Loss("l1", weighting)(output, target, at, parameterization), weight.sqrt() * error.abs().mean(1))


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
def test_native_is_the_plain_error_of_the_target(parameterization: Any):
    draw = data()
    output, target = next(draw), next(draw)
    expected = torch.stack([nn.functional.mse_loss(a, b) for a, b in zip(output, target, strict=True)])
    torch.testing.assert_close(Loss(weighting=Native())(output, target, levels(), parameterization), expected)


@pytest.mark.parametrize(
    ("norm", "theirs"),
    [("l1", nn.L1Loss()), ("l2", nn.MSELoss()), ("huber", nn.HuberLoss(delta=0.7))],
)
def test_norms_are_torchs(norm: str, theirs: nn.Module):
    draw = data()
    output, target = next(draw), next(draw)
    expected = torch.stack([theirs(a, b) for a, b in zip(output, target, strict=True)])
    torch.testing.assert_close(Loss(norm, Native(), 0.7)(output, target, levels(), V()), expected)


@pytest.mark.parametrize(("settings", "said"), [({"norm": "l3"}, "l3.*l1, l2, huber"), ({"delta": 0.0}, "positive.*0")], ids=str)
def test_losses_that_cannot_be(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Loss(**settings)


# Times


def uniform(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_stratified_times_have_one_in_each_stratum():
    u, place = uniform(64), torch.arange(64)
    t = torch.cat([Stratified()(u[:40], place[:40], 64), Stratified()(u[40:], place[40:], 64)])  # micro-batches of one batch
    assert (t * 64).floor().tolist() == list(range(64))
    torch.testing.assert_close(64 * t - place, u)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 0.4)])
def test_logit_normal_times_have_normal_logits(mean: float, std: float):
    u = uniform(50)
    t = LogitNormal(mean, std)(u, torch.arange(50), 50)
    expected = torch.from_numpy(stats.norm(mean, std).cdf((t / (1 - t)).log().numpy()))
    torch.testing.assert_close(expected, u)


def test_stratified_logit_normal_times_have_one_in_each_share_of_the_distribution():
    u, place = uniform(64), torch.arange(64)
    t = LogitNormal(-0.3, 0.7, stratified=True)(u, place, 64)
    shares = torch.from_numpy(stats.norm(-0.3, 0.7).cdf((t / (1 - t)).log().numpy()))
    torch.testing.assert_close(64 * shares - place, u)


def test_uniform_times_are_the_uniform_numbers():
    assert torch.equal(UniformTimes()(uniform(9), torch.arange(9), 9), uniform(9))


@pytest.mark.parametrize("settings", [(0.0, 0.0), (0.0, -1.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_logit_normal_times_that_cannot_be(settings: tuple[float, float]):
    with pytest.raises(UserError, match="LogitNormal"):
        LogitNormal(*settings)


# The trainer's settings

POSITIVE = ["steps", "batch_size", "accumulate", "log_every", "keep"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [*POSITIVE, "warmup", "save_every", "sample_every", "workers"])
@pytest.mark.parametrize("value", [-1, 1.5, "many", None, True])
def test_whole_numbers(name: str, value: Any):
    with pytest.raises(UserError, match=rf"trainer\.{name} is a whole number.*{value!r}"):
        Trainer(**{name: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", POSITIVE)
def test_numbers_that_cannot_be_zero(name: str):
    with pytest.raises(UserError, match=rf"trainer\.{name} is a whole number, at least 1, got 0"):
        Trainer(**{name: 0})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["lr", "weight_decay", "average", "clip"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "small", None])
def test_numbers(name: str, value: Any):
    with pytest.raises(UserError, match=rf"trainer\.{name} is a number.*{value!r}"):
        Trainer(**{name: value})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "fp32"}, "precision 'fp32'.*no, bf16, fp16"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"trackers": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"batch_size": 9, "accumulate": 2}, "accumulate=2 does not divide trainer.batch_size=9"),
        ({"betas": (0.9, 1.0)}, "betas.*1.0"),
        ({"betas": (0.9,)}, r"betas.*0\.9"),
        ({"betas": 0.9}, r"betas.*0\.9"),
        ({"betas": ("a", "b")}, "betas.*a"),
    ],
    ids=str,
)
def test_other_settings(settings: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        Trainer(**settings)


def test_learning_rates():
    def rates(**settings: Any) -> list[float]:
        trainer = Trainer(steps=8, lr=2.0, **settings)
        return [trainer.rate(step) for step in range(8)]

    assert rates(warmup=4) == [0.5, 1, 1.5, 2, 2, 2, 2, 2]
    assert rates(warmup=0, decay="linear") == [2 * (8 - k) / 8 for k in range(8)]
    assert rates(warmup=2, decay="linear") == [1, *(2 * (8 - k) / 8 for k in range(1, 8))]
    assert rates(warmup=0, decay="cosine") == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)], abs=1e-6)


# The order of the data


class Numbers:
    """A split of n items, of which only the number is asked."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, index: list[int]) -> tuple[Any, Condition]:
        raise NotImplementedError


def stream(steps: int = 20, size: int = 4, start: int = 0, seed: int = 0, n: int = 10, **place: int) -> list[int]:
    settings = {"rank": 0, "world": 1, "accumulate": 1} | place
    return [item for part in batches(Numbers(n), seed, start, steps, size, **settings) for item in part]


def test_every_epoch_is_a_permutation_of_its_own():
    epochs = [tuple(stream()[k : k + 10]) for k in range(0, 80, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(epochs)) == 8
    assert stream(seed=1) != stream() == stream()


@pytest.mark.parametrize(("steps", "size"), [(80, 1), (10, 8), (4, 20), (1, 80)])
def test_the_stream_of_samples_does_not_depend_on_the_batch_size(steps: int, size: int):
    assert stream(steps, size) == stream()


@pytest.mark.parametrize("start", [1, 7, 19])
def test_the_stream_of_samples_goes_on_from_any_step(start: int):
    assert stream(start=start) == stream()[4 * start :]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 3)])
def test_processes_and_micro_batches_share_out_every_batch(world: int, accumulate: int):
    whole = [stream(10, 12)[k : k + 12] for k in range(0, 120, 12)]
    parts = [list(batches(Numbers(10), 0, 0, 10, 12, rank, world, accumulate)) for rank in range(world)]
    for step, batch in enumerate(whole):
        mine = [parts[rank][step * accumulate + part] for part in range(accumulate) for rank in range(world)]
        assert {len(part) for part in mine} == {12 // world // accumulate} and list(chain(*mine)) == batch


# The objective


@dataclass
class Points:
    """A split of points with a side."""

    x: Tensor
    side: Tensor
    seen: Callable[[int], None] = lambda call: None
    calls: int = 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        self.calls += 1
        self.seen(self.calls)
        rows = torch.tensor(index)
        return self.x[rows], Condition.of(side=self.side[rows])


def points(n: int = 50, **settings: Any) -> Points:
    generator = torch.Generator().manual_seed(0)
    return Points(torch.randn(n, 2, generator=generator), torch.arange(n) % 2, **settings)


class Small(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.condition, self.noise = ConditionEmbedding(SIDES, 8), NoiseEmbedding(8)
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 2))

    def embed(self, condition: Condition) -> Tensor | None:
        return self.condition(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        guess = 0 if x0_hat is None else x0_hat
        return self.layers(torch.cat([x_t + guess, self.noise(logsnr) + context], dim=1))


def small(dropout: float = 0.0, self_condition: bool = False, **settings: Any) -> Objective:
    torch.manual_seed(0)
    return Objective(Denoiser(Small(dropout), Cosine(), V(), self_condition), dropout=Dropout(0.3), **settings)


@pytest.mark.parametrize("schedule", [Cosine(-6.0, 6.0), Rectified(-6.0, 6.0), Karras()], ids=["Cosine", "Rectified", "Karras"])
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=repr)
def test_who_knows_the_data_has_no_loss(schedule: Any, parameterization: Any):
    """A network that says what is right of x_t as it is shown, whatever is diffused and predicted."""
    x0 = points(16).x

    class Knowing(nn.Module):
        def embed(self, condition: Condition) -> None:
            return None

        def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
            alpha, sigma = (sign.sigmoid().sqrt()[:, None] for sign in (logsnr, -logsnr))  # as shown: variance-preserving
            eps = (x_t - alpha * x0) / sigma
            shown = level(Cosine(-6.0, 6.0), torch.full((16,), 0.5), x0)
            return parameterization.target(x0, eps, type(shown)(shown.t, alpha, sigma))

    objective = Objective(Denoiser(Knowing(), schedule, parameterization))
    loss = objective(x0, points(16).__getitems__(list(range(16)))[1], Place(0, 3, 48, 0, 16))
    torch.testing.assert_close(loss, torch.zeros(16), atol=1e-4, rtol=0)


@pytest.mark.parametrize("self_condition", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_samples_loss_does_not_depend_on_its_micro_batch(step: int, self_condition: bool):
    objective = small(self_condition=self_condition, times=Stratified())
    raw, condition = points().__getitems__(list(range(12)))
    whole = objective(raw, condition, Place(7, step, 12 * step, 0, 12))
    parts = [
        objective(raw[rows], condition.rows(rows), Place(7, step, 12 * step + rows.start, rows.start, 12))
        for rows in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.equal(objective(raw, condition, Place(8, step, 12 * step, 0, 12)), whole), "another seed"
    assert not torch.equal(objective(raw, condition, Place(7, step, 12 * step + 12, 0, 12)), whole), "the next batch"


def test_half_of_the_steps_are_given_a_first_guess():
    seen = []

    class Watched(Small):
        def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
            seen.append(x0_hat)
            return super().forward(x_t, logsnr, context, x0_hat)

    torch.manual_seed(0)
    objective = Objective(Denoiser(Watched(), Cosine(), V(), self_condition=True))
    raw, condition = points().__getitems__(list(range(4)))
    guessed = 0
    for step in range(100):
        seen.clear()
        objective(raw, condition, Place(0, step, 4 * step, 0, 4)).sum().backward()
        assert seen[0] is None and len(seen) in (1, 2)
        if len(seen) == 2:
            guessed += 1
            assert seen[1] is not None and not seen[1].requires_grad
    assert abs(guessed - 50) < 4 * math.sqrt(25)


# Training


class PerLevel(nn.Module):
    """Affine in x_t, with coefficients for each noise level and for the left, the right and no side: what is exact for Gaussians."""

    def __init__(self, logsnr: Tensor):
        super().__init__()
        self.register_buffer("logsnr", logsnr)
        self.gain, self.offset = nn.Parameter(torch.zeros(len(logsnr), 3)), nn.Parameter(torch.zeros(len(logsnr), 3))

    def embed(self, condition: Condition) -> Tensor:
        return torch.where(condition.keep["side"], condition.values["side"], 2)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        near = (logsnr[:, None] - self.logsnr).abs().argmin(1)
        return self.gain[near, context][:, None] * x_t + self.offset[near, context][:, None]


TIMES = (0.2, 0.45, 0.7)


@dataclass(frozen=True)
class InTurn:
    def __call__(self, u: Tensor, place: Tensor, batch: int) -> Tensor:
        return torch.tensor(TIMES, dtype=torch.float64)[place % len(TIMES)]


@pytest.mark.parametrize(
    ("schedule", "parameterization", "weighting"),
    [(Cosine(), V(), Native()), (Rectified(), Velocity(), MinSNR()), (Karras(), Eps(), UniformEps())],
    ids=["Cosine-V", "Rectified-Velocity", "Karras-Eps"],
)
def test_training_finds_the_exact_denoiser(tmp_path: Path, schedule: Any, parameterization: Any, weighting: Any):
    """Each side is a Gaussian. Without a side the best affine denoiser is that of the Gaussian of the same mean and variance."""
    generator = torch.Generator().manual_seed(0)
    means, stds = torch.tensor([-0.8, 1.2]), torch.tensor([0.5, 0.9])
    z = torch.randn(2, 1000, generator=generator)
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, correction=0)
    x = (means[:, None] + stds[:, None] * z).flatten()
    split = Points(x[:, None], torch.arange(2).repeat_interleave(1000))
    grid = torch.tensor(TIMES, dtype=torch.float64)
    network = PerLevel(level(schedule, grid, grid).logsnr.float())
    denoiser = Denoiser(network, schedule, parameterization)
    objective = Objective(denoiser, loss=Loss(weighting=weighting), times=InTurn(), dropout=Dropout(0.3))
    trainer = Trainer(steps=250, batch_size=300, lr=0.05, warmup=0, decay="linear", average=0.95, clip=0.0, log_every=250, save_every=0)
    average = train(objective, split, trainer, tmp_path, progress=False)
    network.load_state_dict(average["network"].state_dict())
    for side, mean, std in ((0, means[0], stds[0]), (1, means[1], stds[1]), (2, x.mean(), x.std())):
        exact = Mixture(mean.view(1, 1), float(std)).denoiser(schedule)
        for t in grid:
            at = level(schedule, t, t)
            center, spread = at.alpha * mean, torch.hypot(at.alpha * std, at.sigma)
            x_t = (center + spread * torch.linspace(-2, 2, 9)[:, None]).float()
            says, right = denoiser(x_t, at, torch.full((9,), side)), exact(x_t, at, None)
            # An error e in eps is one of sigma e / alpha in x0: their geometric mean weighs all levels alike.
            torch.testing.assert_close((says.x0 - right.x0).abs() * (says.eps - right.eps).abs(), torch.zeros(9, 1), atol=0.08**2, rtol=0)


def files(out: Path, step: int) -> dict[str, bytes]:
    folder = checkpoint.checkpoint_folder(out, step)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fit(out: Path, objective: Objective | None = None, split: Any = None, *, resume: bool = False, **settings: Any) -> nn.ModuleDict:
    trainer = Trainer(**({"steps": 6, "batch_size": 8, "lr": 0.01, "warmup": 0, "save_every": 2, "log_every": 2, "keep": 9} | settings))
    return train(objective or small(0.3), points() if split is None else split, trainer, out, 5, resume=resume, progress=False)


def test_the_average_is_an_exponential_one_with_a_warm_start(tmp_path: Path):
    objective = small()
    expected = deepcopy(objective.trained.state_dict())
    average = fit(tmp_path, objective, steps=5, save_every=1, average=0.3)
    for step in range(1, 6):
        folder = checkpoint.checkpoint_folder(tmp_path, step)
        model, decay = load_file(folder / "model.safetensors"), min(0.3, step / (9 + step))
        expected = {name: decay * expected[name] + (1 - decay) * model[name] for name in expected}
        torch.testing.assert_close(load_file(folder / "average.safetensors"), expected)
    torch.testing.assert_close(dict(average.state_dict()), expected)
    torch.testing.assert_close(dict(objective.trained.state_dict()), model)


def test_buffers_are_averaged_and_counters_copied():
    average, current = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    current.running_mean.fill_(10.0)
    current.num_batches_tracked.fill_(7)
    current.weight.data.fill_(3.0)
    update_average(paired(average, current), 0.9)
    assert average.running_mean.item() == pytest.approx(1) and average.num_batches_tracked.item() == 7
    assert average.weight.item() == pytest.approx(1.2) and current.weight.item() == 3


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_is_a_larger_batch(tmp_path: Path, accumulate: int):
    once = fit(tmp_path / "a", small(), clip=0.05)
    parts = fit(tmp_path / "b", small(), clip=0.05, accumulate=accumulate)
    torch.testing.assert_close(dict(parts.state_dict()), dict(once.state_dict()), atol=1e-5, rtol=1e-4)
    one, other = ([json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").open()] for run in "ab")
    assert other == pytest.approx(one, rel=1e-4)


def test_training_repeats_exactly_and_leaves_the_callers_generator_alone(tmp_path: Path):
    torch.manual_seed(3)
    fit(tmp_path / "a", small(0.3))
    torch.manual_seed(4)
    objective = small(0.3)
    state = torch.get_rng_state()
    fit(tmp_path / "b", objective)
    assert torch.equal(torch.get_rng_state(), state)
    assert files(tmp_path / "a", 6) == files(tmp_path / "b", 6)


def test_workers_change_nothing(tmp_path: Path):
    fit(tmp_path / "a")
    fit(tmp_path / "b", workers=1)
    assert files(tmp_path / "a", 6) == files(tmp_path / "b", 6)


def test_previews_change_nothing(tmp_path: Path):
    fit(tmp_path / "a")
    seen = []

    def preview(modules: nn.ModuleDict, step: int) -> None:
        torch.randn(3)
        seen.append(step)

    trainer = Trainer(steps=6, batch_size=8, lr=0.01, warmup=0, save_every=2, keep=9, log_every=2, sample_every=2)
    train(small(0.3), points(), trainer, tmp_path / "b", 5, preview=preview, progress=False)
    assert seen == [2, 4, 6] and files(tmp_path / "a", 6) == files(tmp_path / "b", 6)


def test_metrics_name_step_and_rate(tmp_path: Path):
    fit(tmp_path, decay="linear", log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 4, 6]  # 2 because of its checkpoint
    assert [line["lr"] for line in lines] == pytest.approx([0.01 * (1 - step / 6) for step in (1, 3, 5)])


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    fit(tmp_path, steps=9, save_every=2, keep=2)
    assert checkpoint.saved_steps(tmp_path) == [8, 9]


@pytest.mark.parametrize("step", [2, 4])
def test_resuming_gives_the_same_run(tmp_path: Path, step: int):
    fit(tmp_path / "a")
    fit(tmp_path / "b", steps=step)
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 7}\n{"step": 6, "lo')  # written after the checkpoint, before a kill
    fit(tmp_path / "b", resume=True)
    assert files(tmp_path / "a", 6) == files(tmp_path / "b", 6)
    one, other = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in "ab")
    assert [(line["step"], line["loss"]) for line in other] == [(line["step"], line["loss"]) for line in one]


@pytest.mark.parametrize(("log_every", "found"), [(1, 6), (50, 8)])
def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path, log_every: int, found: int):
    split = points()
    split.seen = lambda call: split.x.fill_(math.nan) if call == 6 else None
    with pytest.raises(UserError, match="at step 6; the checkpoint of step 4 is kept"):
        fit(tmp_path, split=split, steps=20, save_every=4, log_every=log_every)
    assert checkpoint.saved_steps(tmp_path) == [4] and split.calls >= found
    fit(tmp_path / "good", steps=4, save_every=4)
    assert files(tmp_path, 4) == files(tmp_path / "good", 4)


def test_a_loss_that_never_was_finite(tmp_path: Path):
    with pytest.raises(UserError, match="at step 1; there is no checkpoint"):
        fit(tmp_path, split=Points(torch.full((9, 2), math.inf), torch.zeros(9, dtype=torch.long)))
    assert checkpoint.saved_steps(tmp_path) == []


def test_nothing_to_train_on(tmp_path: Path):
    with pytest.raises(UserError, match="empty"):
        fit(tmp_path, split=points(0))


def test_an_interrupt_saves_and_stops_and_handlers_are_put_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    split = points(seen=lambda call: os.kill(os.getpid(), signal.SIGTERM) if call == 3 else None)
    with pytest.raises(Interrupted) as stopped:
        fit(tmp_path / "b", split=split)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert checkpoint.saved_steps(tmp_path / "b") == [2, stopped.value.step] and stopped.value.step in (3, 4)
    fit(tmp_path / "b", resume=True)
    fit(tmp_path / "a")
    assert files(tmp_path / "a", 6) == files(tmp_path / "b", 6)


# Checkpoints


@pytest.mark.parametrize("broken", ["model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException):
    fit(tmp_path, steps=2)
    before, fsync = files(tmp_path, 2), os.fsync

    def fails(number: int) -> None:
        if broken in os.readlink(f"/proc/self/fd/{number}"):
            raise error
        fsync(number)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(type(error)):
        fit(tmp_path, resume=True, keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000002"] and files(tmp_path, 2) == before
    monkeypatch.undo()
    fit(tmp_path, resume=True)
    fit(tmp_path / "whole")
    assert files(tmp_path, 6) == files(tmp_path / "whole", 6)


def test_what_a_kill_left_half_written_is_no_checkpoint(tmp_path: Path):
    fit(tmp_path, steps=2)
    partial = tmp_path / "checkpoints" / ".step-00000004.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert checkpoint.saved_steps(tmp_path) == [2] and checkpoint.latest(tmp_path).name == "step-00000002"
    fit(tmp_path, resume=True)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-0000000{step}" for step in (2, 4, 6)]


@pytest.mark.parametrize("before", [None, b"the old content"])
def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None):
    path = tmp_path / "x"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        checkpoint.write_atomically(path, b"the new content")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])
    monkeypatch.undo()
    checkpoint.write_atomically(path, b"the new content")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the new content"]


# Runs of the command line that are killed, interrupted, or find the disk full

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "network.dropout=0.3", "threads=1"]
TINY += ["trainer.batch_size=4", "trainer.decay=constant", "trainer.save_every=3", "trainer.log_every=1"]


COMMAND = ["train", *TINY, "trainer.steps=1000000"]  # that would go on for ever
SLOW = ["accelerate", "hydra.main", "matplotlib.backends.backend_agg", "sklearn.datasets", "torch._dynamo"]  # to import


def after_a_checkpoint(out: Path, alive: Callable[[], bool]) -> None:
    """Wait until one more has been written than there are."""
    there = checkpoint.saved_steps(out)
    for _ in range(60_000):
        if checkpoint.saved_steps(out)[-1:] > there[-1:]:
            return
        assert alive(), "the process ended by itself"
        time.sleep(0.005)
    raise AssertionError("no checkpoint came")


def same_as_uninterrupted(out: Path) -> None:
    """Go on for a few steps; the result is, byte for byte, that of a run that was never stopped."""
    steps = checkpoint.saved_steps(out)[-1] + 4
    assert run(["train", *TINY, f"out={out}", "resume=true", f"trainer.steps={steps}"]) == 0
    assert run(["train", *TINY, f"out={out.parent / 'whole'}", f"trainer.steps={steps}"]) == 0
    assert files(out, steps) == files(out.parent / "whole", steps)
    assert [path.name for path in out.rglob(".*")] == []
    logged, expected = ([json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in (out, out.parent / "whole"))
    assert [(line["step"], line["loss"]) for line in logged] == [(line["step"], line["loss"]) for line in expected]


@pytest.fixture(scope="module")
def server() -> Any:
    """Processes of their own, that share the time of importing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["guidance.commands", "guidance.train", "modalities.image", *SLOW])
    return context


@pytest.mark.usefixtures("unchecked")
def test_killed_runs_go_on_as_if_nothing_had_been(server: Any, tmp_path: Path):
    moments = random.Random(0)
    for _ in range(3):
        process = server.Process(target=run, args=([*COMMAND, f"out={tmp_path / 'run'}", "resume=true"],))
        process.start()
        after_a_checkpoint(tmp_path / "run", process.is_alive)
        time.sleep(moments.random() * 0.1)  # anywhere in the steps after it, or within the writing of the next
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    same_as_uninterrupted(tmp_path / "run")


@pytest.mark.usefixtures("unchecked")
def test_two_processes_train_as_one(server: Any, tmp_path: Path):
    command, out = ["train", *TINY, "network.dropout=0", "trainer.steps=4", "trainer.accumulate=2"], f"out={tmp_path / 'two'}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    processes = []
    for rank in "01":
        place = where | {"RANK": rank, "LOCAL_RANK": rank}
        code = f"import os; os.environ.update({place}); from guidance.cli import main; from guidance import checkpoint\n"
        code += "checkpoint.write_atomically = None\n" if rank == "1" else ""  # only the first process writes
        processes.append(server.Process(target=exec, args=(f"{code}main({[*command, out]})",)))
        processes[-1].start()
    while all(process.exitcode in (None, 0) for process in processes) and any(process.is_alive() for process in processes):
        if not multiprocessing.connection.wait([process.sentinel for process in processes if process.is_alive()], 300):
            break
    for process in processes:  # one that waits for another which has failed would wait for long
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert run([*command, f"out={tmp_path / 'one'}"]) == 0
    one, two = (load_file(checkpoint.latest(tmp_path / name) / "average.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").open()] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[1]) == 4


@pytest.mark.usefixtures("unchecked")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path):
    out = tmp_path / "a run"
    command = [sys.executable, "-m", "guidance", *COMMAND, f"out={out}"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    after_a_checkpoint(out, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err and err.rstrip().endswith("polyguide: stopped")
    stopped = re.search(r"stopped at step (\d+) with a checkpoint; go on with: polyguide train (.*)", said)
    assert stopped and int(stopped[1]) == checkpoint.saved_steps(out)[-1]
    assert stopped[2] == f"out='{out}' resume=true"
    same_as_uninterrupted(out)


@pytest.fixture
def one_checkpoint(tmp_path: Path, unchecked: None) -> tuple[list[str], dict[str, bytes]]:
    """The command to go on with, and what has been written."""
    out = tmp_path / "run"
    assert run(["train", *TINY, "network.channels=16", f"out={out}", "trainer.steps=3"]) == 0
    return ["train", f"out={out}", "resume=true", "trainer.steps=6"], files(out, 3)


def said_that_it_is_full(err: str, what: str) -> bool:
    """One line, after the progress bar's."""
    *bar, line = err.strip().splitlines()
    return line.startswith(f"polyguide: {what}") and all(other.lstrip("\r\n").startswith("train:") for other in bar if other.strip())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(one_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int):
    command, before = one_checkpoint
    write = checkpoint.write_atomically

    def fails(path: Path, content: bytes) -> None:
        if path.name == "optimizer.safetensors":
            raise OSError(number, os.strerror(number), str(path))
        write(path, content)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", fails)
        assert run(command) == 2
    assert said_that_it_is_full(capsys.readouterr().err, "the disk is full at ")
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000003"] and files(tmp_path / "run", 3) == before
    assert run(command) == 0


def test_a_limit_on_the_size_of_files(one_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command, before = one_checkpoint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["optimizer.safetensors"]) - 1, limits[1]))
    try:
        code = run(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and said_that_it_is_full(capsys.readouterr().err, "the file size limit is reached")
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-00000003"] and files(tmp_path / "run", 3) == before
    assert run(command) == 0
