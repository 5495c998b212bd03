"""How far each method's samples are from the exact target, and how far two exact sets of samples are from each other."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.estimate import Estimate, mean
from guidance.exact.distance import directions, shadows, wasserstein
from guidance.exact.methods import Case, Method
from guidance.exact.problems import Exact, problem
from guidance.exact.target import Target
from guidance.guide import PerModel, rebuilt
from guidance.sampler import Callback, Grid, Progress, sample

FLOOR = "exact samples"
SETS = 16
"""Independent exact sets: each method is held against all of them, and the floor is the distance of one to the next."""


@dataclass(frozen=True)
class Found:
    """A method on a target of a problem.

    ``distance``: to exact samples, its interval over repeats with other noise. ``evaluations``: of the network, a sample. ``samples``:
    those of the first repeat; of the floor an exact set.
    """

    exact: Exact
    method: str
    distance: Estimate
    evaluations: float
    seconds: float
    samples: Float[Tensor, "n d"]
    claims: bool = True

    @property
    def dimensions(self) -> int:
        return self.exact.problem.dimensions

    @property
    def target(self) -> Target:
        return self.exact.target


@dataclass(frozen=True)
class Plan:
    """What is to be measured: methods on the targets that they are meant for, in some dimensions."""

    dimensions: Sequence[int]
    targets: Sequence[Target]
    methods: Mapping[str, Method]
    n: int
    steps: int
    grid: Grid
    seed: int = 0
    repeats: int = 1

    def cases(self, dimensions: int, target: Target) -> Iterator[tuple[str, Method, Case]]:
        """The methods that are meant for a target."""
        for name, method in self.methods.items():
            case = Case(problem(dimensions), target, method.steps or self.steps, self.grid)
            if method.make(case) is not None:
                yield name, method, case

    @property
    def steps_in_all(self) -> int:
        return self.repeats * sum(case.steps for d in self.dimensions for target in self.targets for _, _, case in self.cases(d, target))


def measure(plan: Plan, callbacks: Sequence[Callback] = ()) -> Iterator[Found]:
    """Every case of a plan, the floor before the methods of each target."""
    for d in plan.dimensions:
        along = directions(d)
        for target in plan.targets:
            truth = problem(d).exact(target)
            sets = [truth.draw(plan.n, SETS * plan.seed + k) for k in range(SETS)]
            projected = [shadows(x, along) for x in sets]
            floor = torch.tensor([wasserstein(a, b) for a, b in list(pairwise(projected))[::2]])
            yield Found(truth, FLOOR, mean(floor), 0.0, 0.0, sets[0])
            for name, method, case in plan.cases(d, target):
                began = time.perf_counter()
                runs = [drawn(case, method, plan.n, plan.seed + repeat, callbacks) for repeat in range(plan.repeats)]
                seconds = (time.perf_counter() - began) / plan.repeats
                away = torch.tensor([distance(shadows(x, along), projected) for x, _ in runs])
                yield Found(truth, name, mean(away), runs[0][1] / plan.n, seconds, runs[0][0], method.claims)


def distance(of: Float[Tensor, "k n"], exact: Sequence[Float[Tensor, "k n"]]) -> float:
    """The mean distance to exact sets; infinite where samples are not numbers."""
    found = sum(wasserstein(of, other) for other in exact) / len(exact)
    return found if math.isfinite(found) else math.inf


def drawn(case: Case, method: Method, n: int, seed: int, callbacks: Sequence[Callback] = ()) -> tuple[Float[Tensor, "n d"], int]:
    """n samples, all drawn together, and the number of network evaluations."""
    made = method.make(case)
    assert made is not None
    guidance, sampler = made
    model, rows = case.problem.model(), [0]

    def count(progress: Progress) -> None:
        rows[0] = progress.rows

    x = sample(
        case.denoiser,
        (n, case.problem.dimensions),
        case.condition(n),
        rebuilt(guidance, lambda part: part.of(model, n) if isinstance(part, PerModel) else part),
        sampler,
        steps=case.steps,
        grid=case.grid,
        seed=seed,
        callbacks=[count, *callbacks],
    )
    return x, rows[0]


def rows_of(found: Sequence[Found]) -> list[dict[str, Any]]:
    """A row a method and target: for CSV and JSON."""
    floors = {(f.dimensions, f.target.name): f.distance.value for f in found if f.method == FLOOR}
    return [
        {  # a single repeat has no interval
            "dimensions": f.dimensions,
            "target": f.target.name,
            "method": f.method,
            "claims": f.claims,
            "distance": f.distance.value if math.isnan(f.distance.low) else f.distance,
            "floor": floors[f.dimensions, f.target.name],
            "network_evaluations": round(f.evaluations),
            "seconds": f.seconds,
        }
        for f in found
    ]


def blocks(found: Sequence[Found]) -> dict[int, list[dict[str, Any]]]:
    """A table a dimension: a row a method, a column a target, and the evaluations a sample, from the least to the most."""
    tables: dict[int, list[dict[str, Any]]] = {}
    for d in dict.fromkeys(f.dimensions for f in found):
        here = [f for f in found if f.dimensions == d]
        targets = list(dict.fromkeys(f.target.name for f in here))
        tables[d] = []
        for method in dict.fromkeys(f.method for f in here):
            mine = {f.target.name: f for f in here if f.method == method}
            costs = sorted({round(f.evaluations) for f in mine.values()})
            cost = "" if method == FLOOR else f"{costs[0]:,}" if len(costs) == 1 else f"{costs[0]:,} to {costs[-1]:,}"
            distances = {name: mine[name].distance if name in mine else "" for name in targets}
            tables[d].append({"method": method, **distances, "evaluations": cost})
    return tables
