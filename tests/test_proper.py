"""Which guidance has no density: against closed forms, generalized eigenvalues, integrals on wide grids, and data of known Gaussians."""

import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from experiment_fakes import Files, Numbers, cheaply, sketched
from safetensors.torch import load_file
from scipy.linalg import eigh
from torch import Tensor, nn

import guidance
from guidance import (
    CFG,
    X0,
    Compose,
    Condition,
    Cosine,
    Denoiser,
    Interval,
    Label,
    Mixture,
    Term,
    UserError,
    Vector,
    checkpoint,
    on,
    proper,
)
from guidance.cli import run
from guidance.codec import Pixels
from guidance.guide import Guidance
from guidance.modality import Modality
from guidance.model import Model
from guidance.proper import Groups, Moments, improper
from guidance.split import InMemory

MANY = 10**12
"""Items of a class whose covariance is not shrunk."""
A, B, C = ("kind", 0), ("kind", 1), ("kind", 2)


def moments(covariances: Mapping[str, Sequence[Any]], items: int | Sequence[int] = MANY) -> Moments:
    """Of classes with these covariances; of all data, in whose deviations the plane is measured, an unrelated one."""

    def groups(of: Sequence[Any]) -> Groups:
        stacked = torch.stack([torch.as_tensor(c, dtype=torch.float64) for c in of])
        return Groups(torch.zeros(stacked.shape[:2], dtype=torch.float64), stacked, torch.as_tensor(items).expand(len(of)))

    m = groups(next(iter(covariances.values()))).covariance.shape[1]
    everything = Groups(torch.zeros(1, m).double(), torch.diag(torch.arange(3.0, 3.0 + m)).double()[None], torch.tensor([MANY]))
    return Moments(torch.zeros(m), torch.eye(m), everything, {name: groups(of) for name, of in covariances.items()})


def line(*variances: float) -> Moments:
    return moments({"kind": [[[v]] for v in variances]})


def random_covariances(seed: int, classes: int, m: int) -> Tensor:
    root = torch.randn(classes, m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT + 0.3 * torch.eye(m)


# Closed forms


@pytest.mark.parametrize(("wide", "narrow"), [(4.0, 1.0), (1.5, 1.4), (9.0, 0.1)])
def test_on_a_line_the_bound_is_that_of_the_widest_class(wide: float, narrow: float):
    """Of variances with ratio r: proper above -1/(r - 1); the widest class at every scale; none has a highest scale."""
    of, bound = line(wide, narrow, (wide + narrow) / 2), -1 / (wide / narrow - 1)
    assert of.lowest({"kind": 1}) == pytest.approx(bound, rel=1e-4) and of.lowest({"kind": 0}) == -math.inf
    assert of.proper({B: bound * 0.999}) and not of.proper({B: bound * 1.001})
    assert all(of.proper({k: scale}) for k in (A, B, C) for scale in (0.0, 0.5, 1.0, 2.0, 1e4)) and of.proper({A: -1e4})


def test_equal_classes_are_proper_at_every_scale():
    """However far apart: two Gaussians of one width, tilted, are a Gaussian of that width."""
    of = line(2.0, 2.0)
    assert of.lowest({"kind": 0}) == -math.inf and of.proper({A: -50.0}) and of.proper({A: -50.0, B: 51.0})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("m", [2, 3])
def test_bounds_are_generalized_eigenvalues(seed: int, m: int):
    covariances = random_covariances(seed, 4, m)
    of = moments({"kind": list(covariances)})
    for k in range(4):
        ratio = max(eigh(covariances[c].numpy(), covariances[k].numpy(), eigvals_only=True).max() for c in range(4))
        assert of.lowest({"kind": k}) == pytest.approx(-1 / (ratio - 1), rel=1e-3)
        assert of.proper({("kind", k): -0.99 / (ratio - 1)}) and not of.proper({("kind", k): -1.01 / (ratio - 1)})


@pytest.mark.parametrize("seed", range(4))
def test_a_joint_condition_is_the_product_of_its_attributes(seed: int):
    """p(x | c, d) = p(x | c) p(x | d) / p(x), up to a factor; the forms at scale g are P_e + g (P_c + P_d - 2 P_e)."""
    covariances = random_covariances(seed, 5, 2)
    of = moments({"kind": list(covariances[:3]), "size": list(covariances[3:])})
    precision = torch.linalg.inv(covariances)
    found = [eigh((precision[0] + precision[3] - 2 * p).numpy(), p.numpy(), eigvals_only=True).max() for p in precision]
    bound = -1 / max(found)
    assert max(found) > 0 and of.lowest({"kind": 0, "size": 0}) == pytest.approx(bound, rel=1e-3)
    for factor, there in ((0.99, True), (1.01, False)):
        assert of.proper({("kind", 0): factor * bound, ("size", 0): factor * bound}) == there
    assert all(of.proper({("kind", 0): g, ("size", 1): g}) for g in (0.5, 1.0, 3.0, 100.0))


def test_what_is_called_improper_is_so_in_some_direction():
    """Against all directions of the plane; exactly so where the null condition's weight is not negative."""
    angle = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    u = torch.stack([angle.cos(), angle.sin()], 1)
    draw, missed, negative, count = torch.Generator().manual_seed(0), 0, 0, [0, 0]
    for seed in range(60):
        covariances = random_covariances(seed, 3, 2)
        of, falls = moments({"kind": list(covariances)}), torch.einsum("ui,cij,uj->cu", u, torch.linalg.inv(covariances), u)
        for weights in (torch.randn(4, 3, generator=draw) * 1.5).tolist():
            rest = 1 - sum(weights)
            fall = rest * falls.amin(0) + sum(w * f for w, f in zip(weights, falls, strict=True))
            if float(fall.min().abs()) < 1e-3:
                continue
            truth, said = bool(fall.min() > 0), of.proper(dict(zip((A, B, C), weights, strict=True)))
            assert said == truth if rest >= 0 else said or not truth
            count[truth] += 1
            negative, missed = negative + (rest < 0 and not truth), missed + (said and not truth)
    assert min(count) > 20 and negative > 20 and missed < 0.1 * negative


# Integrals


def log_integral(weights: Sequence[float], stds: Sequence[float], reach: float) -> float:
    """log of the integral over -reach .. reach of  p^(a_0) prod_k p_k^(a_k)  for classes N(3k, std^2) and their mixture p."""
    x = torch.linspace(-reach, reach, 200001, dtype=torch.float64)
    each = [torch.distributions.Normal(3.0 * k, s).log_prob(x) for k, s in enumerate(stds)]
    log_p = torch.stack(each).logsumexp(0) - math.log(len(stds))
    total = (1 - sum(weights)) * log_p + sum(w * p for w, p in zip(weights, each, strict=True))
    return float(total.logsumexp(0) + math.log(2 * reach / 200000))


@pytest.mark.parametrize(
    "others",
    [(0.0, 0.0), (0.0, 1.0), (2.0, 0.0), (0.0, 3.0), (-0.1, 0.0), (4.0, 0.0)],
    ids=["alone", "replaced", "added", "null below 0", "two removed", "far"],
)
def test_the_integral_of_the_tilt_diverges_beyond_the_bound_and_not_before(others: tuple[float, float]):
    """Of the true mixture, not of one Gaussian: the first class's weight is taken to both sides of where `proper` changes its mind."""
    stds = (1.0, 1.6, 2.0)
    of = line(*(s**2 for s in stds))
    named = {B: others[0], C: others[1]}
    low, high = -8.0, 0.0
    assert of.proper({A: high, **named}) and not of.proper({A: low, **named})
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if of.proper({A: middle, **named}) else (middle, high)
    near, far = 2000.0, 4000.0  # near a bound the tilt lies far out
    before, beyond = (0.95 * high, *others), (1.05 * high, *others)
    assert log_integral(before, stds, far) - log_integral(before, stds, near) == pytest.approx(0, abs=1e-6)
    assert log_integral(beyond, stds, far) - log_integral(beyond, stds, near) > 100


# From data


class Turned(nn.Module):
    """Raw points of the plane as x0 [2, 3], tripled and turned out of the axes, with little noise in the other directions."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0])
        self.batches: list[int] = []

    def encode(self, raw: Tensor) -> Tensor:
        self.batches.append(len(raw))
        assert not self.training
        return (3 * raw @ self.basis + 7).view(-1, 2, 3)

    def decode(self, x0: Tensor) -> Tensor:
        return x0.cpu()

    def project(self, x0: Tensor) -> Tensor:
        return x0

    def fit(self, split: Any) -> None:
        pass

    def anchor_loss(self, raw: Any, x0_hat: Tensor, level: Any) -> Tensor:
        return x0_hat.new_zeros(len(x0_hat))


COVARIANCES = torch.tensor([[[4.0, 0.0], [0.0, 1.0]], [[1.0, 0.4], [0.4, 0.7]], [[2.0, -0.5], [-0.5, 3.0]]], dtype=torch.float64)
KIND, SIZE = Label(("round", "flat", "long", "rare")), Label(("small", "large"))


@dataclass(frozen=True)
class Data:
    train: InMemory
    test: InMemory
    conditions: Mapping[str, Any]
    name: str = "points"
    shape: tuple[int, ...] = (6,)
    pinned: Any = field(default=dict)


def points(n: int) -> InMemory:
    """Three kinds of known covariances, seven items of a fourth, and some of no known kind; sizes that say nothing."""
    draw = torch.Generator().manual_seed(3)
    kind = torch.arange(n) % 3
    plane = (torch.linalg.cholesky(COVARIANCES)[kind] @ torch.randn(n, 2, 1, generator=draw).double()).squeeze(-1)
    plane = plane + torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, -2.0]])[kind]
    raw = torch.cat([plane, 0.01 * torch.randn(n, 4, generator=draw)], 1).float()
    kind[:7] = 3
    keep = torch.arange(n) % 10 != 9
    sizes = torch.randint(2, (n,), generator=draw)
    return InMemory(raw, Condition({"kind": kind, "size": sizes}, {"kind": keep, "size": torch.ones(n, dtype=torch.bool)}))


def model_of(n: int = 3000, **more: Any) -> Model:
    """A model of those points; its denoiser is that of something simple, of which nothing here depends."""
    split = points(n)
    conditions = more.pop("conditions", {"kind": KIND, "size": SIZE})
    network = Mixture(torch.zeros(4, 2, 3), labels={"kind": range(4)})
    data = Data(split, split, conditions)
    modality = Modality("points", (2, 3), Turned(), network, conditions, data, Numbers(("kind",)), Files(), **more)  # type: ignore[arg-type]
    return Model(modality, {"main": Denoiser(network, Cosine(), X0())}, {})


@pytest.fixture(scope="module")
def known() -> Model:
    model = model_of()
    return replace(model, moments=proper.summary(model.modality, model.modality.data.train))


def test_bounds_are_found_from_data(known: Model):
    """Within what 900 items of a class leave unsure; the plane is the one in which the data lies."""
    of = known.moments
    assert of is not None and of.directions.shape == (2, 2, 3)
    basis = known.modality.codec.basis.double()
    inside = of.directions.flatten(1) @ basis[:2].T
    assert torch.linalg.svdvals(inside).min() > 1 - 1e-4, "the directions span it"
    assert torch.allclose(of.directions.flatten(1) @ of.directions.flatten(1).T, torch.eye(2).double(), atol=1e-9)
    shrunk = (900 * COVARIANCES + 50 * COVARIANCES.mean(0)) / 950
    for k in range(3):
        ratio = max(eigh(c.numpy(), shrunk[k].numpy(), eigvals_only=True).max() for c in shrunk)
        assert of.lowest({"kind": k}) == pytest.approx(-1 / (ratio - 1), rel=0.2)
    turned = inside.T @ of.classes["kind"].covariance[0] @ inside / 9  # from the encoded plane back to the raw one
    assert torch.allclose(turned, COVARIANCES[0], atol=0.4)


def test_groups_are_of_the_items_of_a_class(known: Model):
    of = known.moments
    assert of is not None
    condition = points(3000).condition
    there = condition.values["kind"][condition.keep["kind"]]
    assert of.all.items.tolist() == [3000] and of.classes["kind"].items.tolist() == torch.bincount(there).tolist()
    assert 2600 < len(there) < 3000 and of.classes["kind"].items[3] == 7
    assert ("kind", 3) not in of.precisions and of.proper({("kind", 3): -100.0}), "too few items to tell"
    with pytest.raises(UserError, match="no class with a covariance"):
        of.lowest({"kind": 3})


def test_each_item_is_encoded_once_and_few_are_held(monkeypatch: pytest.MonkeyPatch, known: Model):
    monkeypatch.setattr(proper, "NUMBERS", 200 * 6)
    monkeypatch.setattr(proper, "ITEMS", 1500)
    model = model_of()
    model.modality.codec.train()
    few = proper.summary(model.modality, model.modality.data.train)
    codec: Any = model.modality.codec
    assert sum(codec.batches) == 1500 and max(codec.batches) <= 200 and codec.training, "and the codec is left as it was"
    assert few is not None and known.moments is not None and few.all.items.tolist() == [1500]
    for k in range(3):
        assert few.lowest({"kind": k}) == pytest.approx(known.moments.lowest({"kind": k}), rel=0.25)


def test_bounds_do_not_depend_on_units(known: Model):
    of = known.moments
    assert of is not None
    scale = torch.diag(torch.tensor([100.0, 0.01], dtype=torch.float64))

    def scaled(groups: Groups) -> Groups:
        return replace(groups, covariance=scale @ groups.covariance @ scale)

    other = replace(of, all=scaled(of.all), classes={name: scaled(groups) for name, groups in of.classes.items()})
    assert other.lowest({"kind": 1, "size": 0}) == pytest.approx(of.lowest({"kind": 1, "size": 0}), rel=1e-6)


def test_covariances_are_shrunk_by_fifty_items():
    """A class of 50 items is half its own covariance, half the mean within classes."""
    of = moments({"kind": [[[3.0]], [[1.0]]]}, [50, 150])
    within = (50 * 3 + 150 * 1) / 200
    assert float(1 / of.precisions[A]) * 3 == pytest.approx((50 * 3 + 50 * within) / 100, rel=1e-4)
    assert float(1 / of.precisions[B]) * 3 == pytest.approx((150 * 1 + 50 * within) / 200, rel=1e-4)
    assert not moments({"kind": [[[3.0]], [[1.0]]]}, 49).precisions


def test_chance_is_not_taken_for_a_difference():
    """Ten classes of 50 items each from one Gaussian: in a hundred draws, no scale down to -1 is called improper."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        groups = Groups.of(torch.randn(500, 2, generator=draw).double(), torch.arange(500) % 10, 10)
        of = Moments(torch.zeros(2), torch.eye(2), Groups.of(torch.eye(2).double(), torch.zeros(2, dtype=torch.long), 1), {"kind": groups})
        of = replace(of, all=replace(of.all, covariance=torch.eye(2).double()[None]))
        assert max(of.lowest({"kind": k}) for k in range(10)) < -1


def test_a_class_of_equal_items_has_a_bound_near_0():
    of = moments({"kind": [[[1.0]], [[0.0]]]})
    assert -1e-4 < of.lowest({"kind": 1}) < 0


@pytest.mark.parametrize("why", ["no classes", "no size", "no items", "no variation"])
def test_where_there_is_nothing_to_summarize(why: str):
    more: dict[str, Any] = {"no classes": {"conditions": {"kind": Vector(1)}}, "no size": {"shape_of": lambda condition: (2, 3)}}.get(
        why, {}
    )
    model = model_of(10 if why == "no items" else 60, **more)
    split = model.modality.data.train
    if why == "no variation":
        split = InMemory(torch.ones(60, 6), split.condition)  # type: ignore[attr-defined]
    assert proper.summary(model.modality, split) is None


# In a run


def test_what_is_written_is_read(tmp_path: Path, known: Model):
    assert known.moments is not None and proper.read(tmp_path) is None
    proper.write(tmp_path, known.moments)
    again = proper.read(tmp_path)
    assert again is not None and [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]
    assert again.precisions.keys() == known.moments.precisions.keys()
    assert all(torch.equal(p, known.moments.precisions[key]) for key, p in again.precisions.items())
    assert torch.allclose(again.directions, known.moments.directions.float()) and again.mean.shape == (2, 3)
    path = tmp_path / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cannot be read, so it is not said"):
        assert proper.read(tmp_path) is None


# What is said


def said(model: Model, guidance: Guidance, condition: Any = None, n: int = 6, **more: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.sample(n, condition, guidance=guidance, steps=2, **more)
    assert all(one.category is UserWarning for one in caught), "others are not shown on the command line"
    return [str(one.message) for one in caught]


def test_sampling_warns_once_a_run(known: Model):
    assert known.moments is not None
    bound = known.moments.lowest({"kind": 1})
    expected = (
        "guidance at scale -3 on kind=flat: no density is proportional to this on the Gaussian summary of the training data "
        f"(proper above {bound:.2g}); what is drawn has no target, and may leave the data"
    )
    assert said(known, CFG(-3.0), {"kind": "flat"}, batch_size=2) == [expected]
    assert said(known, CFG(0.9 * bound), {"kind": "flat"}) == said(known, CFG(3.0), {"kind": "flat"}) == []
    assert said(replace(known, moments=None), CFG(-3.0), {"kind": "flat"}) == []


def test_samples_are_judged_by_their_own_scales_and_classes(known: Model):
    asked = {"kind": ["flat", "flat", "round", None, "rare", "flat"]}
    found = said(known, CFG(torch.tensor([-3.0, 3.0, -40.0, -3.0, -3.0, -2.0])), asked)
    assert [text.split(":")[0] for text in found] == [
        "guidance at scale -3 on kind=flat",
        "guidance at scale -2 on kind=flat",
        "guidance at scale -40 on kind=round",
    ]


def test_the_rest_is_counted(known: Model):
    found = said(known, CFG(torch.tensor([-3.0, -4.0, -5.0, -6.0, -7.0, -7.0])), {"kind": "flat"})
    assert len(found) == 4 and found[3] == "guidance: 2 more of what is asked for have no density on that summary"


def test_of_a_composition_the_weight_that_breaks_it_is_said(known: Model):
    assert known.moments is not None
    (text,) = said(known, 2 * on(kind="round", size="small") - 3 * on(kind="flat"))
    assert text.startswith("guidance at 2 * on(kind=round, size=small) - 3 * on(kind=flat): no density")
    bound = float(text.split("proper while kind=flat weighs more than ")[1].split(")")[0])

    def there(weight: float) -> bool:
        return known.moments is not None and known.moments.proper({A: 2.0, ("size", 0): 2.0, B: weight})

    assert there(0.97 * bound) and not there(1.03 * bound) and -3 < bound < 0


def test_where_several_weights_break_it_none_is_blamed(known: Model):
    (text,) = said(known, -30 * on(kind="flat") - 30 * on(kind="round"))
    assert "proper" not in text and "-30 * on" not in text.split(": no")[0].removeprefix("guidance at ").replace("- 30", "")


def test_weights_that_change_are_taken_at_the_clean_end(known: Model):
    asked = {"kind": "flat"}
    assert said(known, CFG(lambda logsnr: -3.0 if logsnr > 0 else 1.0), asked)
    assert not said(known, CFG(lambda logsnr: -3.0 if logsnr < 0 else 1.0), asked)
    assert said(known, Interval(CFG(-3.0)), asked) and not said(known, Interval(CFG(-3.0), -4.0, 4.0), asked)


class OfItsOwn(CFG):
    """As an OR or a complement: its weights are not exponents."""

    def log_density(self, terms: Any, log_p: Any, level: Any) -> Tensor:
        return log_p[0]


def test_a_guidance_with_a_density_of_its_own_is_proper(known: Model):
    assert not said(known, OfItsOwn(-3.0), {"kind": "flat"}) and not said(known, Interval(OfItsOwn(-3.0)), {"kind": "flat"})


def test_what_has_no_classes_is_not_judged(known: Model):
    assert known.moments is not None
    conditions = {**known.modality.conditions, "place": Vector(2)}
    flat, place = Condition.of(kind=torch.ones(2, dtype=torch.long)), Condition.of(place=torch.zeros(2, 2))

    def found(*terms: tuple[float, Condition]) -> int:
        made = [Term(w, c) for w, c in terms]
        return len(improper(known.moments, conditions, Compose(), made, 2))  # type: ignore[arg-type]

    both = Condition({**flat.values, **place.values}, {**flat.keep, **place.keep})
    assert found((-3.0, flat), (4.0, Condition())) == 1
    assert found((-3.0, flat), (4.0, both.drop())) == 1
    assert found((-3.0, both), (4.0, both.drop())) == 0
    assert found((-3.0, flat), (3.0, place), (1.0, Condition())) == 0
    assert found((-3.0, flat), (3.0, flat), (1.0, Condition())) == 0, "terms that say the same are one"


# The command line

TINY = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=8", "threads=1"]
MEASURE = ["threads=1", "sampler.steps=2", "n=20"]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["polyguide"])
    monkeypatch.setattr("modalities.image.metrics.LENGTH", {"steps": 5, "batch": 128})
    cheaply(monkeypatch)
    monkeypatch.setattr("guidance.experiment.figures.write", sketched)
    monkeypatch.setattr("guidance.plots.quality_curves", lambda rows, real, path: None)
    jaxtyping.config.update("jaxtyping_disable", True)
    assert run(["train", *TINY, "trainer.steps=1", "data=digits", "holdout=[{digit: 3, stroke: bold}]", "out=run"]) == 0
    jaxtyping.config.update("jaxtyping_disable", False)
    return tmp_path / "run"


def test_from_training_to_the_report(trained: Path, capsys: pytest.CaptureFixture[str], unchecked: None):
    model = guidance.load("run")
    data = model.modality.data.train
    held = ((data.condition.values["digit"] == 3) & (data.condition.values["stroke"] == 2)).numpy()
    assert isinstance(model.modality.codec, Pixels) and model.moments is not None
    assert model.moments.all.items.tolist() == [len(data) - held.sum()], "what is held out is not among the training data"
    x0 = model.modality.codec.encode(data.raw[~held]).flatten(1).double()
    pooled = model.moments.all.covariance[0].diagonal().sum() / x0.var(0).sum()
    assert 0.2 < pooled < 0.35, "the two widest of 64 directions"

    capsys.readouterr()
    assert run(["sample", "run=run", "condition.digit=7", "guidance.scale=-1", "n=4", "batch_size=2", "out=out", *MEASURE[:2]]) == 0
    lines = [text for text in capsys.readouterr().err.splitlines() if text.startswith("polyguide:")]
    assert len(lines) == 1 and lines[0].startswith("polyguide: guidance at scale -1 on digit=7: no density")

    assert run(["evaluate", "run=run", "scales=[-1,1]", "out=eval", *MEASURE]) == 0
    printed = capsys.readouterr()
    (one,) = [text for text in printed.out.splitlines() if text.startswith("no density on the Gaussian summary")]
    listed = json.loads(Path("eval/evaluation.json").read_text())["improper"]
    assert {row["scale"] for row in listed} == {-1.0} and len(listed) > 3 and "guidance at" not in printed.err
    worst = max(listed, key=lambda row: row["bound"])
    assert worst["asked"] == "scale -1 on digit=7" and worst["bound"] == pytest.approx(model.moments.lowest({"digit": 7}))
    assert one.endswith(f"at scale -1 ({len(listed)} conditions, digit=7 proper above {worst['bound']:.2g})")

    assert run(["experiment", "run=run", "experiment=tradeoff", "experiment.scales=[-1,1]", "out=answer", *MEASURE]) == 0
    assert "guidance at" not in capsys.readouterr().err
    (table,) = Path("answer/tables").glob("*improper.csv")
    rows = table.read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("-1") and "digit=7" in rows[1]
    assert "no density is proportional" in Path("answer/report.html").read_text()

    assert model.save_pretrained("shared").joinpath("moments.safetensors").read_bytes() == (trained / checkpoint.MOMENTS).read_bytes()
    model.save_pretrained("shared")  # over itself: it is one of the model's own files
    shutil.copytree("run", "older")
    Path("older/moments.safetensors").unlink()
    assert run(["sample", "run=older", "condition.digit=7", "guidance.scale=-1", "n=1", "out=silent", *MEASURE[:2]]) == 0
    assert "guidance at" not in capsys.readouterr().err
    older = guidance.load("older")
    found = proper.known(older)
    assert older.moments is None and found is not None, "which evaluate and experiment look at"
    assert found.lowest({"digit": 7}) == pytest.approx(model.moments.lowest({"digit": 7})), "without what was held out of training"

    assert run(["train", "out=older", "resume=true", "trainer.steps=2"]) == 0
    again, first = (load_file(Path(name) / "moments.safetensors") for name in ("older", "run"))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
