"""Token embeddings as x0, and predicting tokens: against brute force, Bayes' rule, numpy and scikit-learn."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional

from guidance import CFG, DDPM, X0, Condition, Cosine, Denoiser, GuidedDenoiser, Objective, UserError, level, sample
from guidance.process import Level
from guidance.schedule import inverse
from guidance.train import Place
from modalities.text.categorical import CrossEntropy, Expected
from modalities.text.codec import Embeddings
from modalities.text.network import SHARPEST, TextDenoiser
from modalities.text.tokenizer import PAD, WordVocabulary
from modalities.text.vectors import cooccurrence

WORDS = ("the", "cat", "dog", "sat", "ran", "on", "mat", "hill", "red", "sea")
VOCABULARY = WordVocabulary(tuple(f" {word}" for word in WORDS))
SIZE = VOCABULARY.size
LENGTH = 6


@dataclass(frozen=True)
class Rows:
    """A split of token rows without conditions."""

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        return self.ids[torch.tensor(index)], Condition()


def tokens(n: int, length: int = LENGTH, size: int = SIZE, seed: int = 0) -> Tensor:
    """Rows of tokens of unequal frequency, padded from somewhere on."""
    draw = torch.Generator().manual_seed(seed)
    weights = torch.cat([torch.zeros(2), 1 / torch.arange(1.0, size - 1)])
    ids = torch.multinomial(weights.expand(n, -1), length, replacement=True, generator=draw)
    ends = torch.randint(1, length + 1, (n, 1), generator=draw)
    return torch.where(torch.arange(length) < ends, ids, PAD)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def table_file(folder: Path, columns: int = 40, rows: int = SIZE) -> Path:
    path = folder / "table.npy"
    np.save(path, normal(rows, columns, seed=7).numpy() + 3)
    return path


def made(kind: str = "random", width: int = 8, seed: int = 0, folder: Path | None = None, fit: bool = True, **settings: Any) -> Embeddings:
    torch.manual_seed(seed)
    more = {"table": str(table_file(folder))} if kind == "pretrained" and folder else {}
    codec = Embeddings(VOCABULARY, LENGTH, width, kind, **more, **settings)
    if fit:
        codec.fit(Rows(tokens(50)))
    return codec


EVERY = ["random", "learned", "cooccurrence", "pretrained"]


# Between tokens, vectors and text


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", EVERY)
def test_every_token_is_read_back_from_its_vector(kind: str, normalise: bool, tmp_path: Path):
    codec = made(kind, folder=tmp_path, normalise=normalise)
    ids = torch.cat([tokens(70, seed=1), torch.arange(SIZE)[:LENGTH].expand(2, -1), torch.arange(SIZE)[-LENGTH:].expand(2, -1)])
    x0 = codec.encode(ids)
    assert x0.shape == (len(ids), *codec.shape) and torch.equal(codec.tokens(x0), ids)
    assert codec.decode(x0) == [VOCABULARY.decode([k for k in row if k != PAD]) for row in ids.tolist()]
    for row, vectors in zip(ids[:3], x0[:3], strict=True):
        for k, vector in zip(row, vectors, strict=True):
            assert torch.equal(vector, codec.vectors[k])


@pytest.mark.parametrize("width", [1, 8, 30])
@pytest.mark.parametrize("kind", EVERY)
def test_vectors_have_the_norm_of_their_width(kind: str, width: int, tmp_path: Path):
    codec = made(kind, width, folder=tmp_path)
    torch.testing.assert_close(codec.vectors.norm(dim=1), torch.full((SIZE,), math.sqrt(width)))
    raw = made(kind, width, folder=tmp_path, normalise=False)
    torch.testing.assert_close(functional.normalize(raw.table, dim=1) * math.sqrt(width), codec.vectors)
    assert raw.vectors is raw.table and not torch.allclose(raw.vectors.norm(dim=1), torch.full((SIZE,), math.sqrt(width)), atol=0.01)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_token_is_the_nearest_of_all_vectors(normalise: bool):
    codec = made(normalise=normalise, width=3)
    with torch.no_grad():
        codec.table[3] *= 4  # long vectors have large products with everything
        codec.table[5] *= 0.1
    x0 = 2 * normal(130, LENGTH, 3, seed=2)
    nearest = torch.cdist(x0.double().flatten(0, 1), codec.vectors.double()).argmin(1).view(130, LENGTH)
    assert torch.equal(codec.tokens(x0), nearest) and len(nearest.unique()) > SIZE - 3
    assert torch.equal(codec.tokens(x0.bfloat16()), codec.tokens(x0.bfloat16().float()))


def test_padding_is_left_out_wherever_it_is():
    codec = made()
    cat, dog = WORDS.index("cat") + 2, WORDS.index("dog") + 2
    rows = [[cat, dog, PAD, cat, dog, PAD], [PAD, cat, cat, cat, cat, cat], [PAD] * 6, [cat, cat, dog, dog, cat, dog]]
    assert codec.decode(codec.encode(torch.tensor(rows))) == ["cat dog cat dog", "cat cat cat cat cat", "", "cat cat dog dog cat dog"]


def test_clamping_is_the_nearest_vector_and_idempotent():
    x0 = normal(9, LENGTH, 8, seed=3)
    codec = made(project="nearest", normalise=False)
    projected = codec.project(x0)
    nearest = torch.cdist(x0.flatten(0, 1), codec.vectors).argmin(1)
    assert torch.equal(projected, codec.vectors[nearest].view_as(x0)) and torch.equal(codec.project(projected), projected)
    assert codec.project(x0.double()).dtype == torch.float64
    assert torch.equal(made(project="none").project(x0), x0)


# Fitting


def test_the_bias_is_the_log_frequency_with_one_of_each_token_added():
    ids = tokens(1100)  # more than are looked at together
    for kind in ("random", "learned", "cooccurrence"):
        torch.manual_seed(0)
        codec = Embeddings(VOCABULARY, LENGTH, 8, kind)
        codec.fit(Rows(ids))
        counts = np.bincount(ids.flatten().numpy(), minlength=SIZE) + 1.0
        np.testing.assert_allclose(codec.bias, np.log(counts / counts.sum()), rtol=1e-5)
    assert codec.bias[1] == codec.bias.min() > -math.inf  # a token that is never there


def ppmi(ids: np.ndarray, size: int) -> np.ndarray:
    """Positive pointwise mutual information of a token and the one at +1, -1, +2, -2, each by itself, one pair after another."""
    joint = np.zeros((size, 4, size))
    for row in ids:
        for i, word in enumerate(row):
            for k, step in enumerate((1, -1, 2, -2)):
                if 0 <= i + step < len(row):
                    joint[word, k, row[i + step]] += 1
    joint = joint.reshape(size, -1)
    p = joint / joint.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(p / (p.sum(1, keepdims=True) * p.sum(0, keepdims=True)))
    return np.where(np.isfinite(information), information, 0).clip(min=0)


def gram(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def by_numpy(ids: Tensor, size: int, width: int) -> np.ndarray:
    u, s, _ = np.linalg.svd(ppmi(ids.numpy(), size), full_matrices=False)
    vectors = u[:, :width] * np.sqrt(s[:width])
    vectors[~ppmi(ids.numpy(), size).any(1)] = 0  # a token that is never there
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("dense", [0, 2000])
@pytest.mark.parametrize(("size", "width"), [(SIZE, 3), (SIZE, 8), (SIZE, SIZE), (SIZE, 20), (60, 6)])
def test_neighbours_make_vectors_as_by_numpy(size: int, width: int, dense: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("modalities.text.vectors.DENSE", dense)  # up to which size all directions are found, and then the first are kept
    if size == SIZE:
        ids = tokens(600)
    else:  # of more tokens than directions are looked for: topics, each with its own words
        draw = torch.Generator().manual_seed(0)
        topic = torch.randint(6, (600, 1), generator=draw)
        ids = 10 * topic + torch.randint(10, (600, LENGTH), generator=draw)
    found = cooccurrence(Rows(ids), size, width, noise=torch.zeros(size, width))
    assert found.shape == (size, width)
    np.testing.assert_allclose(gram(found.double().numpy()), gram(by_numpy(ids, size, width)), atol=2e-3)


def test_random_vectors_are_added_by_half_so_that_twins_stay_apart():
    ids = torch.tensor([[2, 3, 4], [2, 5, 4]] * 20)  # 3 and 5 have the same neighbours
    noise = normal(SIZE, 4, seed=5)
    plain, mixed = (cooccurrence(Rows(ids), SIZE, 4, noise=n) for n in (torch.zeros(SIZE, 4), noise))
    torch.testing.assert_close(plain[3], plain[5], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed - plain, 0.5 * functional.normalize(noise, dim=1))
    torch.manual_seed(3)
    codec = Embeddings(VOCABULARY, 3, 4, "cooccurrence")
    noise = codec.table.clone()
    codec.fit(Rows(ids))
    torch.testing.assert_close(codec.table, cooccurrence(Rows(ids), SIZE, 4, noise=noise))
    assert codec.tokens(codec.encode(ids)).equal(ids)


def test_neighbours_of_a_large_split_are_all_counted():
    ids = tokens(1100)
    parts = [cooccurrence(Rows(part), SIZE, 4, noise=torch.zeros(SIZE, 4)) for part in (ids, ids.flip(0))]
    np.testing.assert_allclose(gram(parts[0].numpy()), gram(parts[1].numpy()), atol=1e-3)
    np.testing.assert_allclose(gram(parts[0].double().numpy()), gram(by_numpy(ids, SIZE, 4)), atol=2e-3)


def test_fitting_is_a_function_of_the_seed_and_leaves_the_random_state_alone():
    found = []
    for seed in (1, 2):  # of their arguments alone
        torch.manual_seed(seed)
        found.append(cooccurrence(Rows(tokens(50)), SIZE, 3, noise=torch.zeros(SIZE, 3)))
    assert torch.equal(*found)
    first = made("cooccurrence")
    state = torch.get_rng_state()
    first.fit(Rows(tokens(50)))
    assert torch.equal(torch.get_rng_state(), state)
    again, other = made("cooccurrence"), made("cooccurrence", seed=1)
    assert torch.equal(made("cooccurrence").table, again.table) and not torch.allclose(again.table, other.table, atol=0.1)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_pretrained_table_is_reduced_as_by_scikit_learn(suffix: str, tmp_path: Path):
    stretch = torch.arange(40, 0, -1)
    table, width = normal(SIZE, 40, seed=7) * stretch + 100, 5
    path = tmp_path / f"table{suffix}"
    if suffix == ".npy":
        np.save(path, table.double().numpy())
    else:
        save_file({"embeddings": table.half().float()}, path)
        table = table.half().float()
    codec = Embeddings(VOCABULARY, LENGTH, width, "pretrained", table=str(path), normalise=False)
    codec.fit(Rows(tokens(50)))
    expected = PCA(width, svd_solver="full").fit_transform(table.double().numpy())
    signs = np.sign((expected * codec.table.numpy()).sum(0))
    np.testing.assert_allclose(codec.table.numpy() * signs, expected, atol=1e-2, rtol=1e-3)


def test_a_table_of_the_wanted_width_keeps_all_distances(tmp_path: Path):
    codec = Embeddings(VOCABULARY, LENGTH, 9, "pretrained", table=str(table_file(tmp_path, 9)), normalise=False)
    codec.fit(Rows(tokens(50)))
    table = torch.from_numpy(np.load(tmp_path / "table.npy"))
    torch.testing.assert_close(torch.cdist(codec.table, codec.table), torch.cdist(table, table), atol=1e-3, rtol=1e-3)
    assert codec.table.mean(0).abs().max() < 1e-5


def test_a_vocabulary_smaller_than_the_width_has_vectors_all_the_same(tmp_path: Path):
    codec = made("pretrained", 30, folder=tmp_path, normalise=False)
    table = torch.from_numpy(np.load(tmp_path / "table.npy"))
    torch.testing.assert_close(torch.cdist(codec.table, codec.table), torch.cdist(table, table), atol=1e-3, rtol=1e-3)


WRONG: list[tuple[str, Callable[[Path], Any], str]] = [
    ("rows.npy", lambda path: np.save(path, np.zeros((SIZE - 1, 9))), rf"shape \[{SIZE - 1}, 9\]; the vocabulary needs {SIZE} rows"),
    ("narrow.npy", lambda path: np.save(path, np.zeros((SIZE, 7))), r"shape \[12, 7\].*at least 8 columns"),
    ("flat.npy", lambda path: np.save(path, np.zeros(SIZE)), r"shape \[12\]"),
    ("cube.npy", lambda path: np.save(path, np.zeros((SIZE, 8, 2))), r"shape \[12, 8, 2\]"),
    ("nan.npy", lambda path: np.save(path, np.full((SIZE, 9), np.nan)), "not finite"),
    ("words.npy", lambda path: np.save(path, np.full((SIZE, 9), "a")), "cannot be read"),
    ("objects.npy", lambda path: np.save(path, np.array([{}, None], dtype=object)), "cannot be read"),
    ("text.npy", lambda path: path.write_text("no array"), "cannot be read"),
    ("gone.npy", lambda path: None, "cannot be read.*gone.npy"),
    ("gone.safetensors", lambda path: None, "cannot be read.*gone.safetensors"),
    ("cut.safetensors", lambda path: path.write_bytes(b"\x08"), "cannot be read"),
    ("two.safetensors", lambda path: save_file({"a": torch.zeros(2), "b": torch.ones(2)}, path), "holds 2 tensors, and should hold one"),
]


@pytest.mark.parametrize(("name", "write", "says"), WRONG, ids=[name for name, *_ in WRONG])
def test_a_table_that_does_not_fit_is_one_line(name: str, write: Any, says: str, tmp_path: Path):
    write(tmp_path / name)
    codec = Embeddings(VOCABULARY, LENGTH, 8, "pretrained", table=str(tmp_path / name))
    with pytest.raises(UserError, match=says) as error:
        codec.fit(Rows(tokens(5)))
    assert "modality.codec.table" in str(error.value) and "\n" not in str(error.value)


def test_settings_that_do_not_exist_or_do_not_fit_are_one_line():
    for settings, says in [
        ({"kind": "cooccurence"}, "modality.codec.kind 'cooccurence' .did you mean 'cooccurrence'"),
        ({"project": "nearst"}, "modality.codec.project 'nearst' .did you mean 'nearest'"),
        ({"width": 0}, "modality.codec.width is at least 1, got 0"),
        ({"readout": math.inf}, "modality.codec.readout is a weight of the loss, from 0 on, got inf"),
        ({"rounding": -1.0}, "modality.codec.rounding is a weight of the loss, from 0 on, got -1"),
        ({"kind": "pretrained"}, "modality.codec.table"),
        ({"table": "x.npy"}, "modality.codec.table"),
    ]:
        with pytest.raises(UserError, match=says):
            Embeddings(VOCABULARY, LENGTH, **settings)


# What is added to the loss

LEVEL = Level(torch.tensor([0.5] * 4), torch.ones(4, 1, 1), torch.ones(4, 1, 1))


def test_nothing_is_added_unless_asked_for():
    codec = made()
    assert torch.equal(codec.anchor_loss(tokens(4), normal(4, LENGTH, 8), LEVEL), torch.zeros(4)) and codec.read is None


def test_the_readout_is_the_cross_entropy_of_a_linear_layer():
    """SED: it begins at the vectors and the tokens' frequencies, and goes its own way."""
    codec = made(readout=0.7)
    raw, x0_hat = tokens(4, seed=4), normal(4, LENGTH, 8, seed=4)
    torch.testing.assert_close(codec.read.weight, codec.vectors / math.sqrt(8))
    assert torch.equal(codec.read.bias, codec.bias)
    nn.init.normal_(codec.read.weight)
    logits = x0_hat @ codec.read.weight.T + codec.read.bias
    expected = torch.stack([functional.cross_entropy(logits[k], raw[k]) for k in range(4)])
    torch.testing.assert_close(codec.anchor_loss(raw, x0_hat, LEVEL), 0.7 * expected)


def test_rounding_is_the_cross_entropy_of_reading_the_data_itself():
    """Diffusion-LM: logits are products with the same vectors."""
    codec = made("learned", normalise=False, rounding=0.3)
    raw = tokens(4, seed=4)
    logits = codec.table[raw] @ codec.table.T + codec.bias
    expected = torch.stack([functional.cross_entropy(logits[k], raw[k]) for k in range(4)])
    for x0_hat in (normal(4, LENGTH, 8), normal(4, LENGTH, 8, seed=1)):
        torch.testing.assert_close(codec.anchor_loss(raw, x0_hat, LEVEL), 0.3 * expected)


def test_both_are_added_up():
    codec, raw, x0_hat = made("learned", readout=2.0, rounding=3.0), tokens(4), normal(4, LENGTH, 8)
    total = codec.anchor_loss(raw, x0_hat, LEVEL)
    parts = []
    for name in ("readout", "rounding"):
        weights, codec.weights = codec.weights, {"readout": 0.0, "rounding": 0.0, name: codec.weights[name]}
        parts.append(codec.anchor_loss(raw, x0_hat, LEVEL))
        codec.weights = weights
    torch.testing.assert_close(total, parts[0] + parts[1])


class Frozen(nn.Module):
    """A network that says the same of everything."""

    def __init__(self, says: Tensor):
        super().__init__()
        self.register_buffer("says", says)

    def embed(self, condition: Condition) -> None:
        return None

    def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
        return self.says.expand_as(x_t)


def gradient(codec: Embeddings, network: nn.Module) -> Tensor | None:
    table = codec.table
    objective = Objective(Denoiser(network, Cosine(-3.0, 3.0), X0()), codec)
    objective(tokens(4), Condition(), Place(0, 0, 0, 0, 4)).mean().backward()
    return table.grad


def test_learned_vectors_are_drawn_to_what_is_predicted():
    """The gradient of |x0 - c|^2 through the target: every token of the batch is pulled to c, others are not."""
    codec, centre = made("learned", normalise=False), torch.full((LENGTH, 8), 0.3)
    found = gradient(codec, Frozen(centre))
    raw = tokens(4)
    # The loss weighs an x0 error by its own weight; only the direction is the same for all.
    there = torch.zeros(SIZE, dtype=torch.bool).index_fill_(0, raw.unique(), True)
    assert found is not None and not found[~there].any() and there.sum() < SIZE
    cosine = functional.cosine_similarity(found[there], (codec.table - 0.3)[there])
    torch.testing.assert_close(cosine, torch.ones(int(there.sum())))


def test_learned_vectors_are_also_trained_through_what_the_network_sees_and_the_rounding_loss():
    class Identity(Frozen):
        def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
            return x_t

    still, moved = (
        gradient(made("learned", normalise=False), network) for network in (Frozen(torch.zeros(LENGTH, 8)), Identity(normal(1)))
    )
    assert still is not None and moved is not None and not torch.allclose(still, moved)
    rounded = gradient(made("learned", normalise=False, rounding=1.0), Frozen(torch.zeros(LENGTH, 8)))
    codec = made("learned", normalise=False, rounding=1.0)
    codec.anchor_loss(tokens(4), torch.zeros(4, LENGTH, 8), LEVEL).mean().backward()
    torch.testing.assert_close(rounded, still + codec.table.grad)
    table, raw = codec.table.detach().requires_grad_(), tokens(4)  # read back with themselves: both factors move
    functional.cross_entropy((table[raw] @ table.T + codec.bias).flatten(0, 1), raw.flatten()).backward()
    torch.testing.assert_close(codec.table.grad, table.grad)


@pytest.mark.parametrize("kind", ["random", "cooccurrence", "pretrained"])
def test_other_vectors_are_fixed(kind: str, tmp_path: Path):
    codec = made(kind, folder=tmp_path)
    assert not list(codec.parameters()) and "table" in codec.state_dict() and "bias" in codec.state_dict()
    assert {"read.weight", "read.bias"} == {name for name, _ in made(kind, folder=tmp_path, readout=1.0).named_parameters()}
    assert [name for name, _ in made("learned").named_parameters()] == ["table"]


# Predicting tokens

PLACES, WIDTH = 3, 20  # with at least as many directions as tokens, any prior can be said


def at(logsnr: float, n: int = 5) -> Level:
    t = inverse(Cosine(-20, 20), torch.full((n,), logsnr, dtype=torch.float64))
    return level(Cosine(-20, 20), t, torch.zeros(n, PLACES, WIDTH))


def prior(*shape: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    return (sharpness * normal(*shape, SIZE, seed=seed)).double().log_softmax(-1)


def said(codec: Embeddings, log_prior: Tensor) -> Tensor:
    """The vector whose product with every e_w is log_prior - b_w."""
    return (
        torch.linalg.lstsq(codec.vectors.double(), (log_prior - codec.bias).flatten(0, -2).T)
        .solution.T.view(*log_prior.shape[:-1], -1)
        .float()
    )


def posterior(codec: Embeddings, x_t: Tensor, where: Level, log_prior: Tensor, temperature: float = 1.0) -> Tensor:
    """p(w | x_t) by Bayes' rule from the Gaussian densities, in float64."""
    means = where.alpha.double()[..., None] * codec.vectors.double()
    density = torch.distributions.Normal(means, where.sigma.double()[..., None])
    log = density.log_prob(x_t.double()[:, :, None]).sum(-1) + log_prior
    return (log / temperature).softmax(-1)


@pytest.mark.parametrize("kind", ["random", "cooccurrence"])
@pytest.mark.parametrize("logsnr", [-8.0, -3.0, -1.0, 0.0, 1.0])
def test_a_prediction_is_the_posterior_mean(kind: str, logsnr: float):
    codec, where = made(kind, WIDTH), at(logsnr)
    log_prior = prior(5, PLACES)
    x_t = where.alpha * codec.vectors[torch.arange(15).view(5, 3) % SIZE] + where.sigma * normal(5, PLACES, WIDTH)
    output = where.alpha / where.sigma**2 * x_t + said(codec, log_prior)
    for temperature in (1.0, 0.5, 3.0):
        found = Expected(codec, temperature).read(output, x_t, where)
        p = posterior(codec, x_t, where, log_prior, temperature)
        torch.testing.assert_close(found.x0.double(), p @ codec.vectors.double(), atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(where.alpha * found.x0 + where.sigma * found.eps, x_t, atol=1e-5, rtol=1e-5)
    raw = torch.arange(15).view(5, 3) % SIZE
    truth = -posterior(codec, x_t, where, log_prior).gather(-1, raw[..., None]).log().mean((1, 2))
    expectation = Expected(codec)
    target = expectation.target(codec.encode(raw), normal(5, PLACES, WIDTH), where)
    loss = CrossEntropy(codec)(output, target, where, expectation)
    assert loss.shape == (5,)
    torch.testing.assert_close(loss.double(), truth, atol=2e-4, rtol=1e-3)


def test_a_low_temperature_is_the_likeliest_token_and_a_high_one_all_alike():
    codec, output = made(width=WIDTH), normal(5, PLACES, WIDTH)
    logits = output @ codec.vectors.T + codec.bias
    torch.testing.assert_close(codec.expected(output, 1e-4), codec.vectors[logits.argmax(-1)])
    torch.testing.assert_close(codec.expected(output, 1e6), codec.vectors.mean(0).expand_as(output), atol=1e-3, rtol=0)
    torch.testing.assert_close(codec.logits(output), logits)
    mean = (logits.double() / 0.7).softmax(-1) @ codec.vectors.double()
    torch.testing.assert_close(codec.expected(output, 0.7).double(), mean, atol=1e-5, rtol=1e-5)
    for wrong in (0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"parameterization\.temperature is a positive number"):
            Expected(codec, wrong)


def test_the_logits_are_single_precision_where_the_rest_is_not():
    codec, output = made(width=WIDTH), 40 * normal(5, PLACES, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = codec.logits(output)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, codec.logits(output))


# The likelihood that is added

TINY = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def twins(width: int = WIDTH, **settings: Any) -> tuple[TextDenoiser, TextDenoiser]:
    """The same network without and with."""
    networks = []
    for likelihood in (False, True):
        torch.manual_seed(0)
        networks.append(TextDenoiser((PLACES, width), {}, TINY, likelihood=likelihood, self_condition=False, **settings).eval())
    return networks[0], networks[1]


def test_exactly_the_likelihood_is_added_up_to_where_every_token_is_certain():
    plain, knows = twins()
    logsnr = torch.linspace(-20, 20, 81)
    x_t = normal(81, PLACES, WIDTH)
    with torch.no_grad():
        found = knows(x_t, logsnr, {}) - plain(x_t, logsnr, {})
    alpha2 = logsnr.double().sigmoid()
    factor = (alpha2.sqrt() / (-logsnr.double()).sigmoid()).clamp(max=SHARPEST)
    assert SHARPEST == 30 and 20 < (factor < SHARPEST).sum() < 60
    torch.testing.assert_close(found.double(), factor[:, None, None] * x_t, atol=1e-5, rtol=1e-5)


class Places(nn.Module):
    """Says a fixed log prior for each place, by condition where there is one, beside the likelihood: the exact answer for texts of
    independent tokens. ``codec``: its vectors."""

    def __init__(self, codec: Embeddings, null: Tensor, classes: Tensor):
        super().__init__()
        self.register_buffer("null", said(codec, null))
        self.register_buffer("classes", said(codec, classes))

    def embed(self, condition: Condition) -> Tensor:
        return torch.where(condition.keep["c"][:, None, None], self.classes[condition.values["c"]], self.null)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        alpha2 = logsnr.sigmoid()
        return context + (alpha2.sqrt() / (1 - alpha2)).clamp(max=SHARPEST)[:, None, None] * x_t


N = 1500
NULL, CLASSES = prior(PLACES, seed=5, sharpness=0.7), prior(2, PLACES, seed=6, sharpness=0.7)


def drawn(scale: float, steps: int = 60, codec: Embeddings | None = None) -> Tensor:
    """Frequencies [places, size] of tokens drawn for class 1."""
    codec = codec or made(width=WIDTH)
    network = Places(codec, NULL, CLASSES)
    denoiser = Denoiser(network, Cosine(-7, 7), Expected(codec))
    x0 = sample(denoiser, (N, PLACES, WIDTH), Condition.of(c=[1] * N), CFG(scale), DDPM(), steps=steps, project=codec.project)
    return functional.one_hot(codec.tokens(x0), SIZE).double().mean(0)


def far(found: Tensor, expected: Tensor) -> float:
    """Total variation distance, the largest of all places."""
    return float((found - expected.exp()).abs().sum(-1).max() / 2)


def by_chance(expected: Tensor, seed: int = 0) -> float:
    """The same distance for exact draws: the largest of twenty."""
    draw = torch.Generator().manual_seed(seed)
    exact = torch.multinomial(expected.exp(), 20 * N, replacement=True, generator=draw).view(PLACES, 20, N)
    return max(far(functional.one_hot(exact[:, k], SIZE).double().mean(1), expected) for k in range(20))


def test_ancestral_sampling_draws_tokens_from_the_prior(unchecked: None):
    """With the exact posterior mean, at guidance scales 1 and 0, which are single models."""
    for scale, expected in ((1.0, CLASSES[1]), (0.0, NULL)):
        found = drawn(scale)
        assert far(found, expected) < 1.15 * by_chance(expected)
    assert far(found, CLASSES[1]) > 4 * by_chance(expected)


def test_a_negative_scale_avoids_and_a_large_one_prefers_what_the_class_says_more_often(unchecked: None):
    away, null, towards = (drawn(scale, steps=30) for scale in (-2.0, 0.0, 3.0))
    more = (CLASSES[1] - NULL) > 0.5
    less = (CLASSES[1] - NULL) < -0.5
    assert all(bool(of.any(1).all()) for of in (more, less))
    for place in range(PLACES):
        a, n, t = (f[place][more[place]].sum() for f in (away, null, towards))
        assert a < 0.8 * n and n < 0.9 * t
        a, n, t = (f[place][less[place]].sum() for f in (away, null, towards))
        assert a > n > t


def test_probabilities_combine_as_the_prediction_of_x0_does():
    """Guided x0 is the weighted sum of posterior means, whatever the logits are."""
    codec, where = made(width=WIDTH), at(-1.0, N)
    network = Places(codec, NULL, CLASSES)
    x_t = normal(N, PLACES, WIDTH)
    one = Level(where.t[0].double(), where.alpha[0, 0, 0].double(), where.sigma[0, 0, 0].double())
    found = GuidedDenoiser(Denoiser(network, Cosine(-7, 7), Expected(codec)), CFG(-1.5), Condition.of(c=[1] * N), N)(x_t, one)
    cond, null = (posterior(codec, x_t, where, p) @ codec.vectors.double() for p in (CLASSES[1], NULL))
    torch.testing.assert_close(found.x0.double(), -1.5 * cond + 2.5 * null, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one.alpha * found.x0 + one.sigma * found.eps, x_t, atol=1e-4, rtol=1e-4)
