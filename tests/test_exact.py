"""Exact samplers against closed forms, quadrature and reweighting; distances against scipy; methods against each other; the command."""

import csv
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.integrate import quad
from scipy.stats import kstest, norm, wasserstein_distance
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from guidance import CFG, DDIM, LogSNR, Uniform
from guidance.cli import run
from guidance.errors import UserError
from guidance.exact import TARGETS, Factor, Problem, Target, directions, problem, shadows, wasserstein
from guidance.exact.measure import FLOOR, SETS, Found, Plan, blocks, drawn, measure
from guidance.exact.methods import METHODS, Case, Method
from guidance.exact.problems import LINE
from guidance.exact.target import LABELS, NAMED, PRIOR, STD, WEIGHTS, WIDE

KEPT: dict[tuple[str, ...], list[int]] = {(): [0, 1, 2, 3, 4, 5], ("a",): [2, 3], ("b",): [0, 2, 4]}
"""Which Gaussians each condition keeps, written out."""
MANY = 40_000


def density(x: float, named: tuple[str, ...], std: float = STD) -> float:
    """p(x | named) on the line, by scipy."""
    total = sum(WEIGHTS[k] for k in KEPT[named])
    return sum(WEIGHTS[k] / total * float(norm.pdf(x, LINE[k][0], std)) for k in KEPT[named])


FORMULAS: dict[str, Callable[[float], float]] = {
    "scale-1": lambda x: density(x, ("a",)),
    "scale-3": lambda x: density(x, ("a",)) ** 3 / density(x, ()) ** 2,
    "inverse": lambda x: density(x, ()) ** 2 / density(x, ("a",)),
    "a-and-b": lambda x: density(x, ("a",)) * density(x, ("b",)) / density(x, ()),
    "a-not-b": lambda x: density(x, ("a",)) * density(x, ("b",)) ** -0.5 * density(x, ()) ** 0.5,
    "a-or-b": lambda x: density(x, ("a",)) / 2 + density(x, ("b",)) / 2,
    "not-a": lambda x: (density(x, ()) - 0.35 * density(x, ("a",))) / 0.65,
    "worse-3": lambda x: density(x, ("a",)) ** 3 / density(x, ("a",), WIDE) ** 2,
}


def test_every_target_has_its_formula_here():
    assert FORMULAS.keys() == TARGETS.keys() and pytest.approx(0.35) == PRIOR
    assert NAMED == {"a": 1, "b": 0} and LABELS == {"a": (0, 0, 1, 1, 2, 2), "b": (0, 1, 0, 1, 0, 1)}
    assert all(math.isclose(sum(f.weight for f in target.factors), 1) for target in TARGETS.values())


@pytest.mark.parametrize("name", FORMULAS)
def test_on_a_line_samples_follow_the_density_by_quadrature(name: str):
    """The distribution function of the formula, by scipy's quad, at every percent of a grid; samples by Kolmogorov and Smirnov's test."""
    low, high = -7.0, 7.0
    ends = torch.linspace(low, high, 141, dtype=torch.float64).tolist()
    parts = [quad(FORMULAS[name], a, b, epsabs=1e-13)[0] for a, b in pairwise(ends)]
    cumulative = torch.tensor([0.0, *parts], dtype=torch.float64).cumsum(0)
    cumulative = cumulative / cumulative[-1]
    exact = problem(1).exact(TARGETS[name])
    cells = exact.cells
    at = float(cells.low[0]) + cells.size * (torch.arange(len(cells.cumulative), dtype=torch.float64) + 1)
    index = torch.searchsorted(at, torch.tensor(ends, dtype=torch.float64)).clamp(max=len(at) - 1)
    inside = (torch.tensor(ends) > at[0]) & (torch.tensor(ends) < at[-1])
    # Between two cells' ends the distribution function grows by a density that is at most 4, times the cell.
    assert float((cells.cumulative[index] - cumulative)[inside].abs().max()) < 4 * cells.size
    x = exact.draw(MANY, 0).flatten()
    uniform = torch.tensor(_interpolated(x, ends, cumulative.tolist()))
    assert kstest(uniform.numpy(), "uniform").statistic < 1.95 / math.sqrt(MANY) + 2e-3  # of a probability below .001


def _interpolated(x: Tensor, ends: list[float], values: list[float]) -> Any:
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(ends, values)(x.numpy())


def direct(of: Problem, kept: list[int], shares: list[float], n: int, seed: int) -> Tensor:
    """Ancestral samples of some Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(torch.tensor(shares, dtype=torch.float64), n, replacement=True, generator=generator)
    means = of.mixture().means[torch.tensor(kept)][which]
    return means + STD * torch.randn(n, of.dimensions, dtype=torch.float64, generator=generator)


ANCESTRAL: dict[str, tuple[list[int], list[float]]] = {
    "scale-1": ([2, 3], [0.25, 0.1]),
    "a-or-b": ([2, 3, 0, 2, 4], [0.25 / 0.7, 0.1 / 0.7, 0.2 / 1.1, 0.25 / 1.1, 0.1 / 1.1]),
    "not-a": ([0, 1, 4, 5], [0.2, 0.15, 0.1, 0.2]),
}


@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("name", ANCESTRAL)
def test_what_can_be_sampled_directly_is_the_same(name: str, d: int):
    """As far from ancestral samples as those are from each other."""
    of, along = problem(d), directions(d, 64)
    exact = of.exact(TARGETS[name])
    mine = [shadows(exact.draw(10_000, seed), along) for seed in range(3)]
    others = [shadows(direct(of, *ANCESTRAL[name], 10_000, seed), along) for seed in range(3)]
    between = [wasserstein(a, b) for a in mine for b in others]
    among = [wasserstein(others[i], others[j]) for i, j in ((0, 1), (1, 2), (0, 2))]
    assert sum(between) / 9 < 1.35 * sum(among) / 3


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.tilt])
def test_in_sixteen_dimensions_tilts_are_reweighted_conditional_samples(name: str):
    """E[f] = E_q[f w] / E_q[w], w = density / q, by torch's own mixtures in all 16 dimensions; q is one Gaussian that covers the target."""
    of, target = problem(16), TARGETS[name]
    exact = of.exact(target)
    x = exact.draw(MANY, 1)
    centre, spread = x.mean(0), 1.1 * torch.linalg.cholesky(torch.cov(x.T))
    z = torch.randn(MANY * 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = centre + z @ spread.T

    def log_p(factor: Factor) -> Tensor:
        kept = KEPT[factor.named]
        each = Independent(Normal(of.mixture().means[kept], factor.std), 1)
        return MixtureSameFamily(Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)[kept]), each).log_prob(y)

    log_w = sum(f.weight * log_p(f) for f in target.factors) + z.square().sum(1) / 2
    w = torch.as_tensor(log_w).softmax(0)
    error = 5 * float(w.square().sum().sqrt())  # 5 / sqrt(effective sample size)
    assert error < 0.2, "the comparison says nothing"
    mean = w @ y
    second = (w[:, None] * (y - mean)).T @ (y - mean)
    assert float((mean - x.mean(0)).abs().max()) < error * float(x.std(0).max())
    assert float((second - torch.cov(x.T)).abs().max()) < 2 * error * float(x.var(0).max())


@pytest.mark.parametrize("name", TARGETS)
def test_in_the_other_fourteen_directions_there_is_one_gaussian(name: str):
    of, target = problem(16), TARGETS[name]
    x = of.exact(target).draw(MANY, 3)
    rest, plane = x @ of.rotation[2:].T, of.plane(x)
    deviation = (3 / STD**2 - 2 / WIDE**2) ** -0.5 if name == "worse-3" else STD
    torch.testing.assert_close(torch.cov(rest.T) / deviation**2, torch.eye(14, dtype=torch.float64), atol=0.03, rtol=0)
    assert float(torch.corrcoef(torch.cat([plane, rest], 1).T)[:2, 2:].abs().max()) < 0.025
    torch.testing.assert_close(of.rotation @ of.rotation.T, torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("d", [1, 2, 16])
def test_one_gaussian_a_class_has_a_tilt_in_closed_form(d: int, monkeypatch: pytest.MonkeyPatch):
    """N(m_1, s^2)^3 N(m_3, s^2)^-2 is N(3 m_1 - 2 m_3, s^2); with another deviation q below, precisions and their means add up."""
    monkeypatch.setattr("guidance.exact.problems.LABELS", {"a": (0, 1, 2, 3, 4, 5), "b": (1, 1, 1, 0, 1, 1)})
    of = problem(d)
    one, three = of.mixture().means[[1, 3]]
    for std in (STD, WIDE, *((0.33,) if d == 1 else ())):  # the last one lies far from all means
        target = Target("tilt", "", (Factor(3.0, ("a",)), Factor(-2.0, ("b",), std)))
        precision = 3 / STD**2 - 2 / std**2
        x = of.exact(target).draw(MANY, 4)
        mean = (3 * one / STD**2 - 2 * three / std**2) / precision
        torch.testing.assert_close(x.mean(0), mean, atol=5 * precision**-0.5 / math.sqrt(MANY), rtol=0)
        torch.testing.assert_close(torch.cov(x.T).view(d, d) * precision, torch.eye(d, dtype=torch.float64), atol=0.035, rtol=0)


def test_exact_samples_are_those_of_their_seed():
    exact = problem(2).exact(TARGETS["inverse"])
    assert torch.equal(exact.draw(50, 3), exact.draw(50, 3)) and not torch.equal(exact.draw(50, 3), exact.draw(50, 4))


def test_the_distance_is_scipys_and_does_not_change_when_both_sets_are_turned():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(300, 3, dtype=torch.float64, generator=generator) * k + k for k in (1.0, 2.0))
    line = directions(1)
    assert wasserstein(shadows(a[:, :1], line), shadows(b[:, :1], line)) == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0]))
    along = directions(3, 4000)
    sliced = sum(wasserstein_distance(a @ v, b @ v) for v in along[:50]) / 50
    assert wasserstein(shadows(a, along[:50]), shadows(b, along[:50])) == pytest.approx(sliced)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator)).Q
    turned = wasserstein(shadows(a @ turn, along), shadows(b @ turn, along))
    assert turned == pytest.approx(wasserstein(shadows(a, along), shadows(b, along)), rel=0.02)
    torch.testing.assert_close(along.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert torch.equal(directions(3, 5), directions(3, 5))


@pytest.mark.parametrize("d", [1, 16])
def test_the_floor_falls_like_the_root_of_the_number_of_samples(d: int):
    floors = {}
    for n in (250, 1000, 4000):
        (floor,) = measure(Plan([d], [TARGETS["scale-3"]], {}, n, 1, Uniform(), seed=1))
        assert floor.method == FLOOR and floor.distance.n == SETS // 2
        floors[n] = floor.distance.value
    slope = math.log(floors[4000] / floors[250]) / math.log(16)
    assert slope == pytest.approx(-0.5, abs=0.12)


def of(found: list[Found], method: str, target: str) -> Found:
    return next(f for f in found if (f.method, f.target.name) == (method, target))


def measured(methods: list[str], targets: list[str], d: int, n: int, steps: int, **more: Any) -> list[Found]:
    chosen = {name: METHODS[name] for name in methods}
    return list(measure(Plan([d], [TARGETS[name] for name in targets], chosen, n, steps, Uniform(), **more)))


def test_methods_come_as_near_as_they_claim(unchecked: None):
    """What has a proof reaches the floor; plain guidance reaches it at scale 1 alone."""
    names = ["plain-ode", "plain-sde", "feynman-kac", "or-exact", "or-tracked", "not-exact", "not-tracked"]
    found = measured(names, ["scale-1", "a-and-b", "a-or-b", "not-a"], 1, 800, 80)
    floors = {f.target.name: f.distance.value for f in found if f.method == FLOOR}
    ratio = {(f.method, f.target.name): f.distance.value / floors[f.target.name] for f in found}
    assert all(ratio[name, "scale-1"] < 2 for name in ("plain-ode", "plain-sde", "feynman-kac"))
    assert ratio["or-exact", "a-or-b"] < 2 and ratio["or-tracked", "a-or-b"] < 2
    assert ratio["not-exact", "not-a"] < 2 and ratio["not-tracked", "not-a"] < 2
    assert ratio["plain-ode", "a-and-b"] > 4 and ratio["plain-sde", "a-and-b"] > 3
    assert ratio["feynman-kac", "a-and-b"] < 2
    adjusted = of(measured(["mala"], ["a-and-b"], 1, 400, 60), "mala", "a-and-b").distance.value
    assert adjusted < 2 * math.sqrt(2) * floors["a-and-b"]  # of half as many samples


def test_a_gradient_of_the_exact_classifier_is_the_weighted_sum(unchecked: None):
    """Two ways to the same scores."""
    found = measured(["plain-ode", "classifier-ode"], ["scale-1", "scale-3", "inverse", "a-and-b", "a-not-b"], 2, 300, 12)
    assert sum(f.method == "classifier-ode" for f in found) == 5
    for f in (f for f in found if f.method == "classifier-ode"):
        torch.testing.assert_close(f.samples, of(found, "plain-ode", f.target.name).samples, atol=0.02, rtol=0)


def test_cfg_plus_plus_at_equal_steps_is_cfg(unchecked: None):
    """At steps of one h in half log-SNR, lambda (1 - exp(-h))^-1 is the scale of the DDIM steps; the last x0 alone is another."""
    case = Case(problem(2), TARGETS["scale-3"], 40, LogSNR(-10.0, 14.0))
    found, rows = drawn(case, METHODS["cfg-plus-plus"], 200, 0)
    other, _ = drawn(case, Method(lambda case: (CFG(3.0), DDIM())), 200, 0)
    assert rows == 2 * 40 * 200
    torch.testing.assert_close(found, other, atol=0.01, rtol=0)


def test_evaluations_are_counted(unchecked: None):
    found = measured(["plain-ode", "langevin", "feynman-kac", "or-exact"], ["scale-1", "scale-3", "a-and-b", "a-or-b"], 1, 70, 6)
    cost = {(f.method, f.target.name): f.evaluations for f in found if f.method != FLOOR}
    assert cost["plain-ode", "scale-1"] == 6 and cost["plain-ode", "scale-3"] == 12 and cost["plain-ode", "a-and-b"] == 18
    assert cost["feynman-kac", "a-and-b"] == 18 and cost["or-exact", "a-or-b"] == 12
    assert cost["langevin", "scale-3"] == 2 * (6 + 5 * 5)
    table = {row["method"]: row for row in blocks(found)[1]}
    assert table["plain-ode"]["evaluations"] == "6 to 18" and table["or-exact"]["evaluations"] == "12"
    assert table["or-exact"]["scale-1"] == "" and table[FLOOR]["evaluations"] == ""


@pytest.mark.parametrize("d", [1, 2, 16])
def test_each_method_is_applied_where_it_is_meant_to_be(d: int):
    plan = Plan([d], list(TARGETS.values()), METHODS, 64, 5, Uniform())
    at = {(name, target.name) for target in plan.targets for name, _, _ in plan.cases(d, target)}
    tilts = {name for name, target in TARGETS.items() if target.tilt}
    for name in ("plain-ode", "plain-sde", "langevin", "mala", "feynman-kac", "feynman-kac-langevin"):
        assert {target for method, target in at if method == name} == tilts
    for name in ("interval", "threshold", "cfg-plus-plus", *(("apg", "rescale", "cfg-zero") if d > 1 else ())):
        assert {target for method, target in at if method == name} == {"scale-3", "inverse"}
    assert not any(method in ("apg", "rescale", "cfg-zero") for method, _ in at) or d > 1
    assert {target for method, target in at if method.startswith("or-")} == {"a-or-b"}
    assert {target for method, target in at if method.startswith(("not-", "dynamic-negative"))} == {"not-a"}
    assert plan.steps_in_all == 5 * len(at)


def test_repeats_give_intervals(unchecked: None):
    found = measured(["plain-sde"], ["scale-3"], 1, 200, 5, repeats=3)
    mine = of(found, "plain-sde", "scale-3").distance
    each = [of(measured(["plain-sde"], ["scale-3"], 1, 200, 5), "plain-sde", "scale-3").distance.value]
    assert mine.n == 3 and mine.low < mine.value < mine.high
    assert abs(each[0] - mine.value) < mine.high - mine.low


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["polyguide"])
    return tmp_path


QUICK = ["exactness", "n=80", "steps=4", "dims=[1]"]


def written(folder: str) -> dict[tuple[str, str], float]:
    with open(Path(folder) / "table.csv") as file:
        return {(row["method"], row["target"]): float(row["distance"]) for row in csv.DictReader(file)}


def test_the_command_writes_what_python_measures(place: Path, capsys: pytest.CaptureFixture[str], unchecked: None):
    assert run([*QUICK, "dims=[1,2]", "methods=[plain-ode,interval]", "targets=[scale-3,inverse]"]) == 0
    said = capsys.readouterr().out
    found = [*measured(["plain-ode", "interval"], ["scale-3", "inverse"], 1, 80, 4)]
    with open("exactness/table.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(found) == 12
    for f, row in zip(found, rows, strict=False):
        assert (row["dimensions"], row["method"], row["target"]) == ("1", f.method, f.target.name)
        assert float(row["distance"]) == pytest.approx(f.distance.value, rel=1e-4)
    assert rows[1]["distance_low"] == "" and float(rows[1]["network_evaluations"]) == 8 and rows[1]["floor"] == rows[0]["distance"]
    assert [row["claims"] for row in rows[:3]] == ["True", "False", "False"]
    assert "not made to sample the target (beside scale 1): plain-ode, interval" in said
    assert "exact samples" in said and "1 dimension\n" in said and "2 dimensions" in said and "scale-3" in said
    facts = json.loads(Path("exactness/exactness.json").read_text())
    assert facts["config"]["n"] == 80 and len(facts["rows"]) == 12
    table = Path("exactness/table.md").read_text()
    assert f"| plain-ode | {found[1].distance.value:.3f} |" in table and "p(x|a)^3 p(x)^-2" in table
    for d in (1, 2):
        with Image.open(f"exactness/samples-{d}d.png") as picture:
            assert picture.width > 100
    Path("exactness/mine.txt").write_text("kept")
    assert run([*QUICK, "methods=[plain-ode]"]) == 2
    assert "overwrite=true" in capsys.readouterr().err
    assert run([*QUICK, "methods=[plain-ode]", "targets=scale-3", "overwrite=true"]) == 0
    assert sorted(path.name for path in Path("exactness").iterdir()) == [
        *("exactness.json", "mine.txt", "samples-1d.png", "table.csv", "table.md"),
    ]


def test_a_rule_of_ones_own_is_held_against_the_target(place: Path, capsys: pytest.CaptureFixture[str], unchecked: None):
    """Ours under another name, which has to give the same."""
    assert run([*QUICK, "methods=[plain-ode,plain-sde,interval]", "targets=[scale-3,a-and-b]", "out=ours"]) == 0
    ours = written("ours")
    own: list[tuple[str, str, list[str]]] = [
        ("plain-ode", "scale-3", ["guidance=cfg", "guidance.scale=3"]),
        ("interval", "scale-3", ["guidance=interval", "guidance.inside.scale=3"]),
        ("plain-sde", "scale-3", ["sampler=ddpm", "sampler.steps=4"]),
        ("plain-ode", "a-and-b", ["guidance=compose", 'guidance.terms="on(a=1) + on(b=0)"']),
        ("plain-sde", "a-and-b", ["guidance=compose", 'guidance.terms="on(a=1) + on(b=0)"', "sampler=ddpm", "sampler.steps=4"]),
    ]
    for k, (method, target, settings) in enumerate(own):
        assert run([*QUICK, f"targets=[{target}]", f"out=own{k}", *settings]) == 0, capsys.readouterr().err
        assert written(f"own{k}") == {(FLOOR, target): ours[FLOOR, target], ("own", target): ours[method, target]}
    assert run([*QUICK, "targets=[not-a]", "out=not", "guidance=complement", 'guidance.terms="~on(a=1)"', "sampler=ddpm"]) == 0
    assert run([*QUICK, "targets=[scale-3]", "out=both", "guidance=cfg", "methods=[plain-ode]"]) == 0
    assert {method for method, _ in written("both")} == {FLOOR, "own", "plain-ode"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["targets=[scale-4]"], ("target", "'scale-4'", "scale-3")),
        (["targets=[]"], ("targets", "empty")),
        (["methods=[plain]"], ("method", "'plain'", "plain-ode")),
        (["dims=[3]"], ("dimensions", "3", "1, 2, 16")),
        (["dims=[true]"], ("dimensions", "1, 2, 16")),
        (["n=1"], ("n is a whole number, at least 2",)),
        (["steps=0"], ("steps is a whole number",)),
        (["repeats=0"], ("repeats is a whole number",)),
        (["seed=-1"], ("seed is a whole number",)),
        (["methods=[or-exact]", "targets=[scale-3]"], ("none of the methods", "or-exact", "scale-3")),
        (["methods=[apg]", "targets=[scale-3]"], ("none of the methods", "apg")),
        (["sampler.steps=9"], ("sampler.steps", "not chosen")),
        (["guidance=nothing"], ("'nothing'", "cfg")),
        (["guidance=compose", 'guidance.terms="on(c=1)"', "targets=[scale-3]"], ("'c'", "a, b")),
        (["guidance=compose", 'guidance.terms="on(a=5)"', "targets=[scale-3]"], ("5", "0, 1, 2")),
        (["guidance=cfg_plus_plus", "targets=[scale-3]"], ("CFG++", "DDIM")),
        (["overwrite=yes please"], ("overwrite is true or false",)),
        (["out=file.txt"], ("file.txt is a file",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_can_mend_is_said_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], settings: list[str], words: tuple[str, ...], unchecked: None
):
    Path("file.txt").write_text("mine")
    assert run([*QUICK, *settings]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("polyguide: ") and said.err.count("\n") == 1, said.err
    assert all(word in said.err for word in words), said.err
    assert said.out == "" and sorted(path.name for path in place.iterdir()) == ["file.txt"]


def test_dimensions_without_a_problem_are_refused():
    with pytest.raises(UserError, match="there is no problem in dimensions 3"):
        problem(3)


def test_a_method_that_leaves_the_numbers_is_infinitely_far(unchecked: None):
    class Lost:
        def step(self, predict: Any, x_t: Tensor, now: Any, then: Any, draw: Any, past: Any) -> Any:
            return x_t * math.nan, predict(x_t, now)

    plan = Plan([1], [TARGETS["scale-1"]], {"lost": Method(lambda case: (CFG(), Lost()))}, 20, 2, Uniform())
    assert [f.distance.value for f in measure(plan)][1] == math.inf
