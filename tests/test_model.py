"""What a model is made of and keeps to: attributes shown in part, the guess that is withheld from the null condition, known places of x0,
the run's own files, settings and sampler."""

import functools
import hashlib
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from torch import Tensor, nn

from guidance import (
    CFG,
    DDIM,
    DDPM,
    X0,
    Condition,
    Cosine,
    Denoiser,
    DPMSolver,
    Dropout,
    GuidedDenoiser,
    Heun,
    Interval,
    Label,
    Objective,
    Progress,
    Term,
    UserError,
    V,
    Vector,
    checkpoint,
    level,
    load,
    on,
)
from guidance.cli import run
from guidance.commands.drawing import sampling
from guidance.condition import Partial, reveal
from guidance.config import leaves
from guidance.guide import WeightedSum
from guidance.modality import Modality
from guidance.model import SAMPLER, Model, positive, replace_setting, with_codec
from guidance.noise import Stream, uniform
from guidance.process import Level
from guidance.schedule import inverse
from guidance.train import Place
from modalities.text.categorical import CrossEntropy, Expected
from modalities.text.infill import BLANK, Infill
from modalities.text.tokenizer import WordVocabulary

# Attributes shown in part


@dataclass(frozen=True)
class Part:
    """Of which numbers below the drawn ones are shown."""

    draws: int
    asked: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list, compare=False)

    def parse(self, value: object) -> Tensor:
        return torch.full((self.draws,), float(str(value)))

    def absent(self) -> Tensor:
        return torch.zeros(self.draws)

    def embedding(self, width: int) -> nn.Module:
        return nn.Linear(self.draws, width)

    def reveal(self, values: Tensor, keep: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append((values.clone(), keep.clone(), u.clone()))
        return torch.where(values < u, values, -1.0).to(values), keep & (u[:, 0] > 0.25)


def halves(*shape: int) -> Tensor:
    return torch.full(shape, 0.5)


def numbered(columns: int) -> Tensor:
    """Row i, column c: i + c / 100."""
    return torch.arange(3.0)[:, None] + torch.arange(columns) / 100


def test_columns_go_to_the_attributes_in_the_order_of_the_data():
    first, second, third = Part(2), Part(3), Part(1)
    specs = {"late": second, "label": Label(("x", "y")), "early": first, "gone": third, "size": Vector(1)}
    values = {"early": halves(3, 2), "label": torch.tensor([0, 1, 0]), "size": halves(3, 1), "late": halves(3, 3)}
    keep = {name: torch.tensor([True, False, True]) for name in values}
    before = {name: tensor.clone() for name, tensor in (*values.items(), *((f"keep {n}", k) for n, k in keep.items()))}
    asked: list[int] = []

    def draw(columns: int) -> Tensor:
        asked.append(columns)
        return numbered(columns)

    found = reveal(specs, Condition(values, keep), draw)
    assert asked == [5] and not third.asked  # once, for the two that are there
    assert torch.equal(second.asked[0][2], numbered(5)[:, :3]) and torch.equal(first.asked[0][2], numbered(5)[:, 3:])
    assert torch.equal(first.asked[0][0], values["early"]) and torch.equal(second.asked[0][0], values["late"])
    assert list(found.values) == list(values) and list(found.keep) == list(keep)
    for name in ("label", "size"):
        assert found.values[name] is values[name] and found.keep[name] is keep[name]
    assert found.values["late"].tolist() == [[-1] * 3, [0.5] * 3, [0.5] * 3]
    assert found.keep["late"].tolist() == [False, False, True] == found.keep["early"].tolist()
    after = {**values, **{f"keep {n}": k for n, k in keep.items()}}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_nothing_is_drawn_where_nothing_is_shown_in_part():
    def draw(columns: int) -> Tensor:
        raise AssertionError

    for specs in ({}, {"a": Label(("x", "y"))}, {"a": Label(("x", "y")), "gone": Part(2)}):
        condition = Condition.of(a=[0, 1, 1])
        assert reveal(specs, condition, draw) is condition
    empty = Condition()
    assert reveal({"p": Part(2)}, empty, draw) is empty


def test_which_attributes_may_be_shown_in_part():
    vocabulary = WordVocabulary((" a",))
    assert isinstance(Part(2), Partial) and isinstance(Infill(4, vocabulary), Partial)
    assert not isinstance(Label(("a",)), Partial) and not isinstance(Vector(2), Partial)


def test_an_absent_sentence_stays_absent():
    spec = Infill(6, WordVocabulary(tuple(f" w{k}" for k in range(9))), spans=4)
    ids = torch.randint(2, 11, (200, 6), generator=torch.Generator().manual_seed(0))
    keep = torch.arange(200) % 2 == 0
    found = reveal({"infill": spec}, Condition({"infill": ids}, {"infill": keep}), lambda n: uniform(0, Stream.REVEAL, 0, 0, 200, n))
    shown, there = found.values["infill"], found.keep["infill"]
    assert not there[~keep].any() and 0.6 < there[keep].float().mean() < 0.9  # three of four numbers of spans
    assert bool(((shown == ids) | (shown == BLANK)).all())


class Watching(nn.Module):
    """Says something of what it is shown of the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.shown: list[Condition] = []

    def embed(self, condition: Condition) -> Tensor:
        self.shown.append(condition)
        there = [(condition.values[n].float() * condition.keep[n][:, None]).sum(1) for n in ("p", "q")]
        return torch.stack(there, 1) + condition.keep["c"][:, None]

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        return x_t * self.weight + context


def test_what_training_shows_does_not_depend_on_how_batches_are_cut():
    specs = {"q": Part(3), "c": Label(("x", "y")), "p": Part(2)}
    x0 = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    values = {"c": torch.arange(12) % 2, "p": torch.rand(12, 2), "q": torch.rand(12, 3)}
    keep = {"c": torch.ones(12, dtype=torch.bool), "p": torch.arange(12) % 3 > 0, "q": torch.ones(12, dtype=torch.bool)}
    whole, network = Condition(values, keep), Watching()
    objective = Objective(Denoiser(network, Cosine(), X0()), dropout=Dropout(0.2, 0.2), conditions=specs)
    seed, step, first = 5, 7, 84

    def losses(size: int) -> Tensor:
        parts = []
        for k in range(0, 12, size):
            rows = slice(k, k + size)
            parts.append(objective(x0[rows], whole.rows(rows), Place(seed, step, first + k, k, 12)))
        return torch.cat(parts)

    together = losses(12)
    shown = network.shown[-1]
    for size in (1, 4, 6):
        torch.testing.assert_close(losses(size), together)
    u = uniform(seed, Stream.REVEAL, 0, first, 12, 5)
    dropped = Dropout(0.2, 0.2)(whole, uniform(seed, Stream.DROP, 0, first, 12, 4))
    for name, columns in (("q", slice(0, 3)), ("p", slice(3, 5))):
        expected, there = Part(0).reveal(values[name], dropped.keep[name], u[:, columns])
        assert torch.equal(shown.values[name], expected) and torch.equal(shown.keep[name], there)
    assert torch.equal(shown.keep["c"], dropped.keep["c"]) and 0 < int((values["q"] != shown.values["q"]).sum()) < 36
    plain = Objective(Denoiser(network, Cosine(), X0()), dropout=Dropout(0.2, 0.2))
    plain(x0, whole, Place(seed, step, first, 0, 12))
    assert torch.equal(network.shown[-1].values["q"], values["q"])


# The guess that is withheld from the null condition

N = 5
GUESS = torch.arange(1.0, 11.0, dtype=torch.float64).view(N, 2)
X = torch.zeros(N, 2, dtype=torch.float64)


class Echo(nn.Module):
    """Says its guess of x0, plus 10 for a and 100 for b where they are there; ``heard``: the guesses."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor | None] = []

    def embed(self, condition: Condition) -> Tensor | None:
        if not len(condition):
            return None
        worth = {"a": 10.0, "b": 100.0}
        return torch.stack([worth[n] * condition.values[n] * keep for n, keep in condition.keep.items()]).sum(0).double()

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor | None, x0_hat: Tensor | None = None) -> Tensor:
        self.heard.append(x0_hat)
        said = torch.zeros_like(x_t) if x0_hat is None else x0_hat
        return said + (0 if context is None else context[:, None])


def at(logsnr: float) -> Level:
    return level(Cosine(), inverse(Cosine(), torch.tensor(logsnr, dtype=torch.float64)), X)


def echo(shares: bool = False) -> Denoiser:
    return Denoiser(Echo(), Cosine(), X0(), self_condition=True, null_self_condition=shares)


def says(
    guidance: Any,
    condition: Condition,
    shares: bool = False,
    max_rows: int | None = None,
    logsnr: float = 0.0,
    guess: Tensor | None = GUESS,
) -> Tensor:
    return GuidedDenoiser(echo(shares), guidance, condition, N, max_rows)(X, at(logsnr), guess).x0


A = Condition.of(a=[1] * N, b=[1] * N).drop("b")


@pytest.mark.parametrize("scale", [-2.0, 0.5, 3.0])
def test_null_rows_do_not_hear_the_guess(scale: float):
    cond, null = GUESS + 10, torch.zeros_like(GUESS)
    torch.testing.assert_close(says(CFG(scale), A), scale * cond + (1 - scale) * null)
    torch.testing.assert_close(says(CFG(scale), A, shares=True), scale * cond + (1 - scale) * GUESS)
    torch.testing.assert_close(says(CFG(scale), A, guess=None), torch.full_like(GUESS, 10 * scale))


def test_null_alone_hears_it():
    assert torch.equal(says(CFG(0.0), A), GUESS)
    assert torch.equal(says(CFG(1.0), A), GUESS + 10)
    assert torch.equal(says(CFG(3.0), A.drop()), GUESS)
    assert torch.equal(says(CFG(3.0), Condition()), GUESS)


SCALES = torch.tensor([0.0, 1.0, 3.0, -1.0, 0.0], dtype=torch.float64)
EACH = torch.stack([GUESS[0], GUESS[1] + 10, 3 * (GUESS[2] + 10), -(GUESS[3] + 10), GUESS[4]])


@pytest.mark.parametrize("max_rows", [None, 1, 2, 3, 4])
def test_each_sample_by_its_own_scale(max_rows: int | None):
    torch.testing.assert_close(says(CFG(SCALES), A, max_rows=max_rows), EACH)


@pytest.mark.parametrize("max_rows", [None, 1, 3])
def test_rows_whose_condition_is_absent_keep_it(max_rows: int | None):
    """Their two terms are one, the null condition alone."""
    keep = torch.tensor([True, False, True, False, True])
    some = Condition(A.values, {"a": keep, "b": torch.zeros(N, dtype=torch.bool)})
    expected = torch.where(keep[:, None], 3 * (GUESS + 10), GUESS)
    torch.testing.assert_close(says(CFG(3.0), some, max_rows=max_rows), expected)


def test_a_condition_of_which_something_is_left_is_not_null():
    mixed = Condition(A.values, {"a": torch.tensor([True, False, True, False, False]), "b": torch.tensor([False, True, True, False, True])})
    worth = torch.tensor([10.0, 100, 110, 0, 100], dtype=torch.float64)[:, None]
    expected = torch.where(worth > 0, 2 * (GUESS + worth), GUESS)
    torch.testing.assert_close(says(CFG(2.0), mixed), expected)


@pytest.mark.parametrize("max_rows", [None, 2])
def test_composed_terms_hear_it_and_their_null_does_not(max_rows: int | None):
    both = 2.0 * on(a=1) - 0.5 * on(b=1)  # and -0.5 for null
    torch.testing.assert_close(says(both, A.drop(), max_rows=max_rows), 2 * (GUESS + 10) - 0.5 * (GUESS + 100))
    alone = 1.0 * on(a=1) + 0.0 * on(b=1)
    torch.testing.assert_close(says(alone, A.drop(), max_rows=max_rows), GUESS + 10)
    twice = 1.5 * on(a=1) + 0.5 * on(a=1)  # one term of weight 2, and -1 for null
    torch.testing.assert_close(says(twice, A.drop(), max_rows=max_rows), 2 * (GUESS + 10))


def test_it_follows_the_scale_over_the_levels():
    """Where only null is in force, it hears the guess; elsewhere it does not."""
    changing = CFG(lambda logsnr: 3.0 if logsnr > 0 else 0.0)
    for guidance in (changing, Interval(CFG(3.0), low=0.0, outside=CFG(0.0))):
        torch.testing.assert_close(says(guidance, A, logsnr=1.0), 3 * (GUESS + 10))
        torch.testing.assert_close(says(guidance, A, logsnr=-1.0), GUESS)
    one = GuidedDenoiser(echo(), changing, A, N)
    found = [one(X, at(logsnr), GUESS).x0 for logsnr in (1.0, -1.0, 1.0)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], GUESS)


@dataclass(frozen=True)
class Weak(WeightedSum):
    """3 times the model minus 2 times another."""

    null: bool  # of the other

    def terms(self, condition: Condition) -> Sequence[Term]:
        return Term(3.0, condition), Term(-2.0, condition.drop() if self.null else condition, "weak")


def test_each_of_several_models_has_its_own_way():
    for shares, said in ((True, GUESS), (False, 0 * GUESS)):
        denoisers = {"main": echo(), "weak": echo(shares)}
        found = GuidedDenoiser(denoisers, Weak(null=True), A, N)(X, at(0.0), GUESS).x0
        torch.testing.assert_close(found, 3 * (GUESS + 10) - 2 * said)
        found = GuidedDenoiser(denoisers, Weak(null=False), A, N)(X, at(0.0), GUESS).x0
        torch.testing.assert_close(found, GUESS + 10)


def test_two_unconditional_models_keep_it():
    found = GuidedDenoiser({"main": echo(), "weak": echo()}, Weak(null=True), A.drop(), N)(X, at(0.0), GUESS).x0
    torch.testing.assert_close(found, GUESS)


def test_a_network_without_a_guess_is_not_given_one():
    denoiser = replace(echo(), self_condition=False)
    GuidedDenoiser(denoiser, CFG(3.0), A, N)(X, at(0.0), GUESS)
    assert denoiser.network.heard == [None]


# Known places

LENGTH, WIDTH, SAMPLES = 4, 2, 6
NOT = float("nan")


@dataclass(frozen=True)
class Given:
    """[length] numbers; NaN where one is not known."""

    def parse(self, value: object) -> Tensor:
        if not isinstance(value, tuple):
            raise UserError("is a tuple")
        return torch.tensor(value)

    def absent(self) -> Tensor:
        return torch.full((LENGTH,), NOT)

    def embedding(self, width: int) -> nn.Module:
        return nn.Linear(LENGTH, width)


class Codec(nn.Module):
    """Data within one of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def fit(self, split: Any) -> None:
        pass

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def project(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1)

    def anchor_loss(self, raw: Any, x0_hat: Tensor, level: Any) -> Tensor:
        return x0_hat.new_zeros(len(x0_hat))


class Smooth(nn.Module):
    """Every place hears every place, and the class."""

    def embed(self, condition: Condition) -> Tensor:
        return torch.where(condition.keep["c"], condition.values["c"] + 1.0, 0.0)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        return 1.5 * torch.tanh(x_t + x_t.mean((1, 2), keepdim=True) + 0.3 * context[:, None, None])


class Unused:
    """Data, metrics and render of a model that is only sampled."""

    name, shape, train, test = "none", (), (), ()
    conditions: Mapping[str, Any] = MappingProxyType({})

    def unused(self, *given: Any) -> Any:
        raise AssertionError

    pinned = judge = measure = together = flat = units = formats = save = words = table = animate = unused


def known(condition: Condition) -> tuple[Tensor, Tensor]:
    values = condition.values["given"]
    there = condition.keep["given"][:, None] & ~values.isnan()
    return there[..., None], values[..., None].expand(-1, -1, WIDTH) + torch.tensor([0.0, 0.5])


def model(knows: bool = True) -> Model:
    specs = {"c": Label(("x", "y")), "given": Given()}
    network = Smooth()
    none: Any = Unused()
    modality = Modality("toy", (LENGTH, WIDTH), Codec(), network, specs, none, none, none, known=known if knows else None)
    return Model(modality, {"main": Denoiser(network, Cosine(), X0())}, {})


FIRST, LAST = (5.0, NOT, NOT, -3.0), (NOT, NOT, 7.0, 8.0)
SAMPLERS = [DDIM(), DDIM(1.0), DDPM(), DDPM(1.0), Heun(), Heun(churn=0.2), DPMSolver(), DPMSolver(sde=True)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("scale", [-2.0, 0.0, 1.0, 4.0])
def test_what_is_known_is_exact_at_every_step_and_at_the_end(sampler: Any, scale: float):
    """Outside of what the codec allows, too."""
    steps: list[Progress] = []
    condition = {"c": "y", "given": FIRST}
    settings: dict[str, Any] = {"guidance": CFG(scale), "sampler": sampler, "steps": 6, "seed": 3}
    x0 = model().sample(SAMPLES, condition, callbacks=[steps.append], **settings)
    expected = torch.tensor([[5.0, 5.5], [-3.0, -2.5]]).expand(SAMPLES, 2, WIDTH)
    assert len(steps) == 6
    for found in (x0, *(progress.prediction.x0 for progress in steps)):
        assert torch.equal(found[:, [0, 3]], expected) and bool((found[:, [1, 2]].abs() <= 1).all())
    for progress in steps:
        x_t = progress.level.alpha * progress.prediction.x0 + progress.level.sigma * progress.prediction.eps
        assert bool(x_t.isfinite().all())
    if sampler == DDIM():  # the eps that goes with the known x0
        for before, after in itertools.pairwise(steps):
            torch.testing.assert_close(
                before.x_t, after.level.alpha * after.prediction.x0 + after.level.sigma * after.prediction.eps, atol=1e-4, rtol=1e-4
            )
    free = model().sample(SAMPLES, condition, project=False, **settings)
    assert torch.equal(free[:, [0, 3]], expected) and bool((free[:, [1, 2]].abs() > 1).any())


def drawn(condition: Any, knows: bool = True, **settings: Any) -> Tensor:
    found: Tensor = model(knows).sample(SAMPLES, condition, **({"steps": 4, "sampler": DDPM()} | settings))
    return found


def test_samples_of_which_nothing_is_known_are_as_without():
    given = [FIRST, None, LAST, None, FIRST, None]
    mixed, plain = drawn({"given": given}), drawn({}, knows=False)
    none = [k for k, value in enumerate(given) if value is None]
    assert torch.equal(mixed[none], plain[none]) and torch.equal(drawn({}), plain)
    assert torch.equal(mixed[[0, 4]][:, [0, 3], 0], torch.tensor([[5.0, -3.0]] * 2)) and mixed[2, [2, 3], 0].tolist() == [7, 8]
    free = [drawn(values, project=False)[0, 1] for values in ({"given": given}, {})]
    assert not torch.allclose(free[0], free[1], atol=0.005)  # places that are not known hear of those that are
    everything = drawn({"given": [FIRST] * 6})
    assert torch.equal(mixed[[0, 4]], everything[[0, 4]])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
def test_batches_each_get_their_own(batch_size: int):
    given = [FIRST, None, LAST, (1.0, 2.0, 3.0, 4.0), None, FIRST]
    for guidance in (CFG(2.0), 2.0 * on(given=given) - 0.5 * on(c="y")):
        condition = {"given": given} if isinstance(guidance, CFG) else None
        whole = drawn(condition, guidance=guidance)
        assert torch.equal(whole[3, :, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert torch.equal(drawn(condition, guidance=guidance, batch_size=batch_size), whole)


def test_a_condition_may_be_one_already():
    condition = model().condition(SAMPLES, {"given": FIRST, "c": "x"})
    assert torch.equal(drawn(condition), drawn({"given": FIRST, "c": "x"}))


def test_of_a_composition_the_positive_terms_count_and_the_first_that_knows():
    a = on(given=[FIRST, None, FIRST, None, FIRST, None])
    b = on(given=[LAST, LAST, None, None, LAST, LAST])
    found = drawn(None, guidance=2.0 * a + 0.5 * b)
    for row, places, values in ((0, [0, 3], [5, -3]), (1, [2, 3], [7, 8]), (2, [0, 3], [5, -3]), (4, [0, 3], [5, -3]), (5, [2, 3], [7, 8])):
        assert found[row, places, 0].tolist() == values
    assert bool((found[0, [1, 2]].abs() <= 1).all()) and bool((found[3].abs() <= 1).all())
    away = drawn(None, guidance=2.0 * a - 0.5 * b)
    assert away[0, [0, 3], 0].tolist() == [5, -3] and bool((away[[1, 3, 5]].abs() <= 1).all())
    second = drawn(None, guidance=0.5 * b + 2.0 * a)
    assert second[0, [2, 3], 0].tolist() == [7, 8] and second[2, [0, 3], 0].tolist() == [5, -3]
    assert bool((drawn(None, guidance=-1.0 * a - 0.5 * b).abs() <= 1).all())
    assert bool((drawn(None, guidance=0.0 * a + 1.0 * on(c="x")).abs() <= 1).all())


def test_which_weights_ask_for_their_condition():
    assert positive(0.1, 2).tolist() == [True, True] and positive(lambda logsnr: -1.0, 2).tolist() == [True, True]
    assert positive(torch.tensor([-1.0, 0.5]), 2).tolist() == [False, True]
    assert positive(0.0, 2).tolist() == positive(-2.0, 2).tolist() == [False, False]


def test_a_term_counts_where_its_own_weight_is_positive():
    weights = [1.0, -1.0, 0.0, 2.0, -2.0, 1.0]
    found = drawn(None, guidance=on(given=FIRST) * torch.tensor(weights))
    asked = torch.tensor(weights) > 0
    assert bool((found[~asked].abs() <= 1).all()) and bool((found[asked][:, 0] >= 5).all())


def test_models_that_know_nothing_are_projected_by_their_codec_only():
    assert model(knows=False)._known([(A, torch.ones(len(A), dtype=torch.bool))]) is None
    plain = model(knows=False)._projection(True, None, slice(0, 2))
    assert plain == plain.__self__.project and model()._projection(False, None, slice(0, 2)) is None
    nothing = known(model().condition(SAMPLES))
    assert model()._projection(False, nothing, slice(0, 2)) is None


# Files of a run


def test_files_of_a_run_are_found_beside_its_config():
    config = {"a": "run:words.json", "b": {"c": ["run:x.model", {"d": "run:y"}, 3, None]}, "e": "words.json", "f": 2.5, "g": "a run:z"}
    before = repr(config)
    found = checkpoint.located(config, Path("/runs/one"))
    assert found == {
        "a": "/runs/one/words.json",
        "b": {"c": ["/runs/one/x.model", {"d": "/runs/one/y"}, 3, None]},
        "e": "words.json",
        "f": 2.5,
        "g": "a run:z",
    }
    assert repr(config) == before


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", ".", "a/..", "..", ""])
def test_a_config_names_no_other_files(name: str):
    with pytest.raises(UserError, match="names no file of the run"):
        checkpoint.located({"data": [{"file": f"run:{name}"}]}, Path("/runs/one"))


# Told the codec


def test_parts_that_are_still_to_be_told_the_codec_are_told():
    modality = model().modality
    made = with_codec(functools.partial(CrossEntropy), modality)
    assert isinstance(made, CrossEntropy) and made.codec is modality.codec
    made = with_codec(functools.partial(Expected, temperature=0.5), modality)
    assert made.codec is modality.codec and made.temperature == 0.5
    other = X0()
    assert with_codec(other, modality) is other


# A trained run

SENTENCES = "text,topic\n" + "".join(
    f"the {a} {b} {c}.,{'pet' if a in 'cat dog' else 'town'}\n"
    for a in ("cat", "dog", "rome", "oslo")
    for b in ("is", "was")
    for c in ("old", "big", "red", "here")
)
TINY = [
    "network.encoder.hidden_size=16",
    "network.encoder.num_hidden_layers=1",
    "network.encoder.num_attention_heads=2",
    "network.encoder.intermediate_size=16",
    "network.encoder.layer_types=[full_attention]",
    "modality.codec.width=8",
    "tokenizer=words",
    "data.tokenizer.least=2",
    "data.length=8",
    "trainer.batch_size=8",
    "trainer.precision=no",
    "threads=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of text, whose data is no longer there."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "sentences.csv"
    data.write_text(SENTENCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        jaxtyping.config.update("jaxtyping_disable", True)
        settings = ["modality=text", "data=text_file", f"data.path={data}", "data.attributes=[topic]", "sampler.steps=7"]
        assert run(["train", *settings, *TINY, "trainer.steps=4", f"out={folder / 'run'}"]) == 0
        shutil.copy(data, folder / "kept.csv")
        data.unlink()
        yield folder / "run"
        jaxtyping.config.update("jaxtyping_disable", False)


def stored(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    return config


def test_a_run_keeps_its_vocabulary_and_all_that_was_found(trained: Path):
    config = stored(trained)
    content = (trained / "words.json").read_bytes()
    assert config["data"]["tokenizer"] == {
        "_target_": "modalities.text.tokenizer.Words",
        "file": "run:words.json",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": 30000,
        "least": 2,
    }
    vocabulary: Any = load(trained).modality.data.vocabulary
    assert vocabulary.content() == content and vocabulary.decode(vocabulary.encode("the cat was red.")) == "the cat was red."
    assert config["data"]["classes"] == {"topic": ["pet", "town"]}
    assert config["network"]["encoder"] == load(trained).modality.network.pinned()["encoder"]
    assert config["network"]["encoder"]["max_position_embeddings"] == 8 + 1 + 2  # what no one has set
    assert config["network"]["pretrained"] is None and config["network"]["encoder"]["hidden_size"] == 16
    assert config["network"]["likelihood"] is True and config["network"]["_target_"] == "modalities.text.network.TextDenoiser"


def texts(found: Model, **settings: Any) -> Any:
    return found.sample(4, {"topic": "pet", "infill": "the cat _ _."}, **({"steps": 5} | settings))


def test_a_run_that_was_moved_is_sampled_without_its_data(trained: Path, tmp_path: Path):
    before = texts(load(trained))
    assert all(text.startswith("the cat") for text in before)
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained, moved)
    assert texts(load(moved)) == before
    (moved / "words.json").write_text('[" other"]')
    with pytest.raises(UserError, match=r"words\.json is cut short or damaged"):
        load(moved)
    (moved / "checksums.json").unlink()  # the file is accepted as it is
    with pytest.raises(UserError, match="does not fit the model"):
        load(moved)
    (moved / "words.json").unlink()
    with pytest.raises(UserError, match=r"words\.json cannot be read"):
        load(moved)


def test_a_moved_run_goes_on(trained: Path, tmp_path: Path):
    """With its own vocabulary, whatever has become of the data's words."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(trained, moved)
    words = (moved / "words.json").read_bytes()
    data = Path(stored(moved)["data"]["path"])
    data.write_text(SENTENCES + "the newt newt is old.,pet\n")
    try:
        assert run(["train", f"out={moved}", "resume=true", "trainer.steps=6"]) == 0
    finally:
        data.unlink()
    assert checkpoint.saved_steps(moved)[-1] == 6 and (moved / "words.json").read_bytes() == words
    assert stored(moved)["data"] == stored(trained)["data"] and stored(moved)["network"] == stored(trained)["network"]


# Precision


MIDDLE = torch.tensor(0.4, dtype=torch.float64)


class Rounding(nn.Module):
    """A network whose products show the precision that they are made in, and that keeps the types it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.types = nn.Linear(6, 32), nn.Linear(32, 6), list[tuple[torch.dtype, ...]]()

    def embed(self, condition: Condition) -> Tensor:
        return condition.values["x"]

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        hidden = self.first(x_t + context)
        self.types.append((x_t.dtype, logsnr.dtype, hidden.dtype))
        return self.second(torch.tanh(hidden) * logsnr[:, None].to(hidden))


class Autocast(nn.Module):
    """The same, wrapped by hand."""

    def __init__(self, network: Rounding, precision: torch.dtype):
        super().__init__()
        self.network, self.precision = network, precision
        self.embed = network.embed

    def forward(self, *given: Any) -> Tensor:
        with torch.autocast("cpu", self.precision):
            return self.network(*given).float()


def rounded(precision: torch.dtype | None, wrapped: torch.dtype | None = None, x_t: Tensor | None = None) -> Any:
    torch.manual_seed(1)
    x_t, context = torch.randn(5, 6) if x_t is None else x_t, torch.randn(5, 6)
    network = Rounding()
    made = Denoiser(network if wrapped is None else Autocast(network, wrapped), Cosine(), V(), precision=precision)
    return made(x_t, level(Cosine(), MIDDLE, MIDDLE), context), network.types


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_a_precision_is_that_of_the_network_wrapped_by_hand(precision: torch.dtype):
    found, types = rounded(precision)
    expected, _ = rounded(None, wrapped=precision)
    plain, _ = rounded(None)
    assert types == [(torch.float32, torch.float32, precision)]
    for name in ("x0", "eps"):
        one = getattr(found, name)
        assert one.dtype == torch.float32 and torch.equal(one, getattr(expected, name))
        assert not torch.equal(one, getattr(plain, name)), "or this tests nothing"
        torch.testing.assert_close(one, getattr(plain, name), atol=0.05, rtol=0)


def test_what_lies_around_the_network_is_not_rounded():
    """Of V(), alpha x0 + sigma eps is x_t whatever the network says: to single precision."""
    torch.manual_seed(2)
    x_t, at = torch.randn(5, 6), level(Cosine(), MIDDLE, MIDDLE)
    found, _ = rounded(torch.bfloat16, x_t=x_t)
    torch.testing.assert_close((at.alpha * found.x0 + at.sigma * found.eps).float(), x_t, atol=1e-6, rtol=1e-6)


def test_without_a_precision_the_network_is_called_as_it_is():
    plain, types = rounded(None)
    torch.manual_seed(1)
    x_t, context = torch.randn(5, 6), torch.randn(5, 6)
    at, network = level(Cosine(), MIDDLE, MIDDLE), Rounding()
    expected = V().read(network(x_t, torch.full((5,), float(at.logsnr)), context), x_t, at)
    assert torch.equal(plain.x0, expected.x0) and torch.equal(plain.eps, expected.eps) and types == [(torch.float32,) * 3]


def test_without_a_precision_that_of_whoever_calls_holds():
    """As in training, where a first guess of x0 is made under the trainer's precision."""
    with torch.autocast("cpu", torch.bfloat16):
        _, types = rounded(None)
    assert types == [(torch.float32, torch.float32, torch.bfloat16)]


def test_a_loaded_model_samples_in_the_precision_asked_for(trained: Path):
    plain, same, half = (load(trained, precision=name) for name in ("no", "no", "bf16"))
    assert [found.denoisers["main"].precision for found in (plain, half, load(trained, precision="fp16"))] == [
        None,
        torch.bfloat16,
        torch.float16,
    ]
    assert load(trained).denoisers["main"].precision is None and load(trained).denoisers["main"].network is not None

    def latents(found: Model) -> Tensor:
        return torch.cat(list(found.latents(3, {"topic": "pet"}, steps=3, seed=2, project=False)))

    one, again, other = latents(plain), latents(same), latents(half)
    assert torch.equal(one, again) and other.dtype == torch.float32 and not torch.equal(one, other)
    inner = plain.denoisers["main"].network
    by_hand = replace(plain, denoisers={"main": replace(plain.denoisers["main"], network=Whole(inner))})
    assert torch.equal(latents(by_hand), other)
    for name in ("bf61", "fp32", ""):
        with pytest.raises(UserError, match=rf"^there is no precision '{name}'.*choose from: auto, no, bf16, fp16$"):
            load(trained, precision=name)
    with pytest.raises(UserError, match=r"'bf61' \(did you mean 'bf16'\?\)"):
        load(trained / "nowhere", precision="bf61")


class Whole(nn.Module):
    """A network of text under autocast; what it embeds is embedded without."""

    def __init__(self, network: Any):
        super().__init__()
        self.network, self.embed = network, network.embed

    def forward(self, *given: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = self.network(*given)
        return found.float()


# Settings changed for one use


def test_only_what_is_named_is_changed(trained: Path):
    plain = load(trained)
    changes = {"parameterization.temperature": 9.0, "network.null_self_condition": False, "schedule.s": 0.01}
    found = load(trained, settings=changes)
    assert found.denoisers["main"].parameterization.temperature == 9.0 and plain.denoisers["main"].parameterization.temperature == 0.85
    assert found.denoisers["main"].schedule.s == 0.01
    assert found.denoisers["main"].null_self_condition is False and plain.denoisers["main"].null_self_condition is True
    assert found.denoisers["main"].self_condition is True
    before, after = leaves(plain.config), leaves(found.config)
    assert {name: value for name, value in after.items() if before[name] != value} == changes and list(before) == list(after)
    assert {"format": checkpoint.FORMAT, **plain.config} == stored(trained) and load(trained, settings={}).config == plain.config
    assert texts(found, seed=1) != texts(plain, seed=1)


WRONG = {
    "parameterization.temprature": "did you mean 'parameterization.temperature'",
    "temperature": "setting of the model 'temperature'",
    "network": "setting of the model 'network'",
    "network.encoder": "setting of the model 'network.encoder'",
    "network._target_": "setting of the model 'network._target_'",
    "parameterization._partial_": "setting of the model",
    "trainer.steps": "setting of the model 'trainer.steps'",
    "sampler.steps": "setting of the model 'sampler.steps'",
    "seed": "setting of the model 'seed'",
    "": "setting of the model ''",
}


@pytest.mark.parametrize("name", WRONG, ids=repr)
def test_what_is_no_setting_of_the_model_is_refused(trained: Path, name: str):
    config = stored(trained)
    with pytest.raises(UserError, match="there is no") as error:
        replace_setting(config, name, "modalities.image.network.UNet")
    assert WRONG[name] in str(error.value) and config == stored(trained)
    assert "_target_" not in str(error.value).split("choose from")[1] and "_partial_" not in str(error.value).split("choose from")[1]
    with pytest.raises(UserError):
        load(trained, settings={name: 1})


def test_a_setting_that_does_not_fit_the_weights_or_its_type_is_one_line(trained: Path):
    for name, value, says in (
        ("modality.codec.width", 9, "does not fit its config"),
        ("parameterization.temperature", "hot", "parameterization.temperature is a number"),
        ("parameterization.temperature", -1.0, "parameterization.temperature is a positive number"),
    ):
        with pytest.raises(UserError, match=says):
            load(trained, settings={name: value})


# The run's own sampler


def steps_of(found: Model, **settings: Any) -> list[Progress]:
    seen: list[Progress] = []
    found.sample(1, callbacks=[seen.append], **settings)
    return seen


def test_samples_are_drawn_as_the_run_says_unless_told_otherwise(trained: Path):
    found = load(trained)
    assert found.sampler == (DDPM(), 7)
    assert len(steps_of(found)) == 7 and len(steps_of(found, steps=3)) == 3
    assert len(steps_of(found, sampler=DDIM())) == 50 and len(steps_of(found, sampler=DDIM(), steps=2)) == 2
    assert texts(found, steps=None) == texts(found, sampler=DDPM(), steps=7)
    assert torch.equal(steps_of(found)[-1].x_t, steps_of(found, sampler=DDPM(), steps=7)[-1].x_t)
    assert not torch.equal(steps_of(found)[-1].x_t, steps_of(found, sampler=DDIM(), steps=7)[-1].x_t)


def test_a_run_that_says_nothing_has_a_sampler_too(trained: Path):
    for config in ({}, {"sampler": None}):
        assert replace(load(trained), config=config).sampler == (DPMSolver(), SAMPLER["steps"]) == (DPMSolver(), 25)
    config = {"sampler": {"_target_": "guidance.sampler.DDIM", "eta": 0.5, "steps": 9}}
    found = replace(load(trained), config=config)
    assert found.sampler == (DDIM(0.5), 9) == found.sampler  # asked twice


def chosen(found: Model, sampler: Any) -> tuple[Any, int]:
    grid = {"_target_": "guidance.sampler.Uniform"}
    config: Mapping[str, Any] = {"sampler": sampler, "grid": grid, "schedule": None, "seed": 0, "batch_size": None, "max_rows": None}
    settings = sampling(config, found)
    return settings["sampler"], settings["steps"]


def test_a_command_changes_parts_of_the_runs_sampler_or_all_of_it(trained: Path):
    found = load(trained)
    assert chosen(found, None) == chosen(found, {}) == (DDPM(), 7)
    assert chosen(found, {"steps": 3}) == (DDPM(), 3) and chosen(found, {"v": 0.5}) == (DDPM(0.5), 7)
    assert chosen(found, {"_target_": "guidance.sampler.DDIM", "steps": 4}) == (DDIM(), 4)
    with pytest.raises(UserError, match=r"sampler\.steps is missing"):
        chosen(found, {"_target_": "guidance.sampler.DDIM"})
    with pytest.raises(UserError, match=r"there is no config key 'sampler\.eta'"):
        chosen(found, {"eta": 0.5})
    with pytest.raises(UserError, match="sampler is given by setting"):
        chosen(found, 5)
    assert stored(trained)["sampler"] == found.config["sampler"] == {"_target_": "guidance.sampler.DDPM", "v": 0.0, "steps": 7}


def test_compositions_of_known_sentences_are_kept(trained: Path):
    found = load(trained)
    made = found.sample(3, guidance=2.0 * on(infill="the cat _ _.") + 1.0 * on(topic="pet") - 0.5 * on(infill="the oslo _ _."), steps=3)
    assert all(text.startswith("the cat") for text in made)


def test_words_of_a_sentence_that_was_dropped_are_not_known(trained: Path):
    found = load(trained)
    condition = found.condition(2, {"infill": ["the cat _ _.", "the dog was ..."]})
    there, x0 = found.modality.known(condition)
    assert there[..., 0].tolist() == [[k >= 0 for k in row] for row in condition.values["infill"].tolist()] and there.any()
    assert found.modality.codec.tokens(x0)[there[..., 0]].tolist() == [k for k in condition.values["infill"].flatten().tolist() if k >= 0]
    assert not found.modality.known(condition.drop("infill"))[0].any()
    half = Condition(condition.values, {**condition.keep, "infill": torch.tensor([False, True])})
    assert found.modality.known(half)[0].flatten(1).any(1).tolist() == [False, True]


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(4, 3, [2, 2]), (7, 3, [3, 2, 2]), (6, 3, [3, 3]), (3, 2, [2, 1]), (5, 9, [5])])
def test_batches_are_of_as_nearly_one_size_as_can_be(trained: Path, n: int, batch_size: int, sizes: list[int]):
    """Where samples of a batch interact, the last must not be too small for that, after the others have been drawn."""
    assert [len(x0) for x0 in load(trained).latents(n, {"topic": "pet"}, steps=1, batch_size=batch_size)] == sizes
