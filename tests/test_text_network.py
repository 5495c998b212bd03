"""The encoder over embeddings: what it sees, where conditions go, and transformers' own models in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from guidance import CFG, X0, Condition, Cosine, Denoiser, GuidedDenoiser, Label, Loss, Objective, UserError
from guidance.condition import ConditionSpec
from guidance.process import level
from guidance.train import Place
from modalities import stubs
from modalities.text.categorical import CrossEntropy, Expected
from modalities.text.codec import Embeddings
from modalities.text.infill import BLANK, Infill
from modalities.text.network import TextDenoiser, make
from modalities.text.tokenizer import WordVocabulary

transformers: Any = stubs.transformers()

VOCABULARY = WordVocabulary(tuple(f" w{k}" for k in range(10)))
LENGTH, CHANNELS, N = 5, 3, 4
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
NARROW = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": SMALL,
    "modernbert": SMALL,
    "distilbert": NARROW,
    "albert": {**SMALL, "embedding_size": 8},
}
CROSS = ("bert", "roberta", "electra")
BOTH = [(kind, "prefix") for kind in ENCODERS] + [(kind, "cross") for kind in CROSS]
LABELS: dict[str, ConditionSpec] = {"kind": Label(("a", "b", "c")), "mood": Label(("x", "y"))}
ALL: dict[str, ConditionSpec] = {**LABELS, "infill": Infill(LENGTH, VOCABULARY)}
LOGSNR = torch.tensor([-2.0, 0.0, 1.0, 3.0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = normal(N, LENGTH, CHANNELS)
GUESS = normal(N, LENGTH, CHANNELS, seed=1)
GIVEN = torch.tensor([[2, BLANK, 3, BLANK, 0], [BLANK] * 5, [4, 5, 6, 7, BLANK], [BLANK, 2, BLANK, 0, 0]])


def condition(names: Mapping[str, ConditionSpec] = ALL, absent: tuple[str, ...] = ()) -> Condition:
    values = {"kind": torch.tensor([0, 1, 2, 0]), "mood": torch.tensor([1, 0, 1, 1]), "infill": GIVEN}
    keep = {name: torch.full((N,), name not in absent) for name in names}
    return Condition({name: values[name] for name in names}, keep)


def network(kind: str = "bert", conditioning: str = "prefix", of: Mapping[str, ConditionSpec] = ALL, **settings: Any) -> TextDenoiser:
    torch.manual_seed(0)
    more: dict[str, Any] = {"encoder": {"model_type": kind, **ENCODERS[kind]}, "conditioning": conditioning, **settings}
    made = TextDenoiser((LENGTH, CHANNELS), of, **more).eval()
    for name, parameter in made.named_parameters():  # beginnings as small as .02 leave differences near rounding
        if not name.endswith("bias") and parameter.ndim > 1 and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def says(made: TextDenoiser, x: Tensor = X, of: Condition | None = None, guess: Tensor | None = None, logsnr: Tensor = LOGSNR) -> Tensor:
    of = condition({name: ALL[name] for name in (*made.attributes, *made.given)}) if of is None else of
    found: Tensor = made(x, logsnr[: len(x)], made.embed(of), guess)
    return found


def moved(a: Tensor, b: Tensor) -> list[bool]:
    """For each place of the first row: does it differ?"""
    return ((a - b)[0].abs().amax(-1) > 1e-5).tolist()


# What the network sees


@pytest.mark.parametrize(("kind", "conditioning"), BOTH)
def test_every_place_sees_every_place(kind: str, conditioning: str):
    made = network(kind, conditioning)
    base = says(made)
    assert base.shape == X.shape
    for place in range(LENGTH):
        other = X.clone()
        other[:, place] += 1
        assert all(moved(base, says(made, other)))


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_also_without_any_attribute(conditioning: str):
    for of in ({}, {"infill": ALL["infill"]}):
        made = network("bert", conditioning, of)
        other = X.clone()
        other[:, -1] += 1
        assert all(moved(says(made), says(made, other)))
        assert not any("crossattention" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("kind", "conditioning"), BOTH)
def test_each_attribute_matters_everywhere(kind: str, conditioning: str, attention: str):
    made = network(kind, conditioning, attention=attention)
    base = says(made)
    for name, value in (("kind", torch.tensor([1, 1, 2, 0])), ("mood", torch.tensor([0, 0, 1, 1]))):
        found = says(made, of=condition().set(**{name: value}))
        assert all(moved(base, found)) and torch.allclose(found[1:], base[1:], atol=1e-6)
        assert all(moved(base, says(made, of=condition(absent=(name,)))))


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_attention_implementations_agree(conditioning: str):
    a, b = (network("bert", conditioning, attention=attention) for attention in ("eager", "sdpa"))
    torch.testing.assert_close(says(a), says(b), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_given_tokens_are_added_in_their_places(conditioning: str):
    made = network("bert", conditioning)
    context = made.embed(condition())["given"]
    table, null = made.given["infill"].embed.table.weight, made.given["infill"].null
    for row, ids in enumerate(GIVEN.tolist()):
        for place, k in enumerate(ids):
            assert torch.equal(context[row, place], table[0 if k == BLANK else k + 1])
    assert torch.equal(made.embed(condition(absent=("infill",)))["given"], null.expand(N, LENGTH, -1))
    other = GIVEN.clone()
    other[0, 2] = 4
    found = says(made, of=condition().set(infill=other))
    assert all(moved(says(made), found)) and torch.allclose(found[1:], says(made)[1:], atol=1e-6)


@pytest.mark.parametrize(("kind", "conditioning"), BOTH)
def test_what_stands_where_an_attribute_is_absent_changes_nothing(kind: str, conditioning: str):
    made = network(kind, conditioning)
    for name in ALL:
        keep = {n: torch.ones(N, dtype=torch.bool) for n in ALL} | {name: torch.tensor([False, True, False, True])}
        values = dict(condition().values)
        others = values | {name: torch.where(keep[name].view(-1, *(1,) * (values[name].ndim - 1)), values[name], 10**6)}
        assert torch.equal(says(made, of=Condition(values, keep)), says(made, of=Condition(others, keep)))
    everything = {name: torch.full_like(value, -(10**6)) for name, value in condition().values.items()}
    nothing = condition().drop()
    assert torch.equal(says(made, of=nothing), says(made, of=Condition(everything, nothing.keep)))


@pytest.mark.parametrize(("kind", "conditioning"), BOTH)
def test_rows_do_not_depend_on_each_other(kind: str, conditioning: str):
    made = network(kind, conditioning)
    together = says(made, guess=GUESS)
    for k in range(N):
        row = slice(k, k + 1)
        alone = says(made, X[row], condition().rows(row), GUESS[row], LOGSNR[row])
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-4)


def test_no_guess_is_a_guess_of_zeros():
    made = network()
    assert torch.equal(says(made), says(made, guess=torch.zeros_like(X)))
    assert all(moved(says(made), says(made, guess=GUESS)))
    one = torch.zeros_like(GUESS)
    one[0, -1] = GUESS[0, -1]
    assert all(moved(says(made), says(made, guess=one)))
    blind = network(self_condition=False)
    assert torch.equal(says(blind), says(blind, guess=GUESS)) and blind.input.in_features == CHANNELS


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_the_noise_level_matters_at_every_place(conditioning: str):
    made = network("bert", conditioning)
    found = says(made, logsnr=LOGSNR + torch.tensor([0.5, 0, 0, 0]))
    assert all(moved(says(made), found)) and torch.allclose(found[1:], says(made)[1:], atol=1e-6)


@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
def test_the_noise_level_is_added_to_all_vectors_alike(conditioning: str):
    """Moving every input by a vector is the same as moving the noise's."""
    made = network("bert", conditioning)
    with torch.no_grad():
        context, shift = made.embed(condition()), normal(16, seed=9)
        shifted = {"attributes": context["attributes"] + (shift if conditioning == "prefix" else 0), "given": context["given"] + shift}
        by_inputs = made(X, LOGSNR, shifted)
        made.noise.layers[-1].bias += shift
        torch.testing.assert_close(made(X, LOGSNR, context), by_inputs, atol=1e-5, rtol=1e-4)


def test_the_order_of_attributes_is_that_of_the_data():
    made = network(of=LABELS)
    found = made.embed(condition(LABELS))["attributes"]
    for k, name in enumerate(LABELS):
        assert torch.equal(found[:, k], made.attributes[name].embed.weight[condition().values[name]])
    assert torch.equal(made.embed(condition(LABELS, ("mood",)))["attributes"][:, 1], made.attributes["mood"].null.expand(N, -1))


def test_the_condition_is_embedded_once_a_run(monkeypatch: pytest.MonkeyPatch):
    made, asked = network(), []
    whole = TextDenoiser.embed

    def embed(self: TextDenoiser, of: Condition) -> Any:
        asked.append(len(of))
        return whole(self, of)

    monkeypatch.setattr(TextDenoiser, "embed", embed)
    guided = GuidedDenoiser(Denoiser(made, Cosine(), X0(), self_condition=True), CFG(3.0), condition(), N)
    for t in (0.9, 0.5, 0.1):
        where = level(Cosine(), torch.tensor(t, dtype=torch.float64), X)
        guided(X, where, GUESS)
    assert asked == [2 * N] and (guided.rows, guided.calls) == (6 * N, 3)
    with torch.no_grad():
        rows = torch.full((N,), float(where.logsnr))
        cond, null = (made(X, rows, made.embed(of), GUESS) for of in (condition(), condition().drop()))
    torch.testing.assert_close(guided(X, where, GUESS).x0, 3 * cond - 2 * null, atol=1e-4, rtol=1e-4)


def test_a_condition_that_lacks_an_attribute_is_one_line():
    for of in (Condition(), condition(LABELS)):
        with pytest.raises(UserError, match=r"the condition lacks '(kind|infill)', which the network knows"):
            network().embed(of)


# Training reaches everything

UNTRAINED = {"bert": "word_embeddings", "modernbert": "tok_embeddings"}  # transformers' own vocabulary, which is not used


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("conditioning", ["prefix", "cross"])
@pytest.mark.parametrize("likelihood", [True, False])
def test_every_parameter_is_trained(likelihood: bool, conditioning: str, kind: str, unchecked: None):
    """With tokens predicted by cross-entropy, and with vectors by their distance and both of the codec's losses."""
    if kind == "modernbert" and conditioning == "cross":
        pytest.skip("has no cross-attention")
    torch.manual_seed(0)
    codec = Embeddings(VOCABULARY, LENGTH, CHANNELS, kind="random" if likelihood else "learned", readout=0.0 if likelihood else 1.0)
    made = network(kind, conditioning, likelihood=likelihood).train()
    parameterization = Expected(codec) if likelihood else X0()
    loss: Any = CrossEntropy(codec) if likelihood else Loss()
    objective = Objective(Denoiser(made, Cosine(-5, 5), parameterization, self_condition=True), codec, loss, conditions=ALL)
    raw = torch.randint(2, VOCABULARY.size, (N, LENGTH), generator=torch.Generator().manual_seed(0))
    for first in range(0, 80, N):  # until dropout has taken each attribute away, and a guess was given
        objective(raw, condition(), Place(0, first, first, 0, N)).mean().backward()
    silent = {name for name, p in objective.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert not silent
    frozen = {name for name, p in objective.named_parameters() if not p.requires_grad}
    assert frozen and all(UNTRAINED[kind] in name for name in frozen)
    assert not any("pooler" in name for name, _ in objective.named_parameters())


# Transformers' models


def configured(kind: str, **settings: Any) -> Any:
    classes = {"bert": "Bert", "roberta": "Roberta", "electra": "Electra", "modernbert": "ModernBert", "distilbert": "DistilBert"}
    more: dict[str, Any] = {"vocab_size": 30, "max_position_embeddings": 20, **ENCODERS[kind], **settings}
    if kind == "roberta":
        more.setdefault("pad_token_id", 1)
    if kind == "modernbert":  # as published: its padding is one of the last tokens
        more |= {"pad_token_id": 29, "bos_token_id": 27, "eos_token_id": 28, "cls_token_id": 27, "sep_token_id": 28}
    torch.manual_seed(5)
    return classes[kind], getattr(transformers, f"{classes[kind]}Config")(**more)


def published(folder: Path, kind: str = "bert", **settings: Any) -> Any:
    """A model as its authors save it."""
    name, config = configured(kind, **settings)
    model = getattr(transformers, f"{name}Model")(config)
    model.save_pretrained(folder)
    return model


def loaded(folder: Path, conditioning: str = "prefix", length: int = LENGTH, **settings: Any) -> TextDenoiser:
    torch.manual_seed(1)
    return TextDenoiser((length, CHANNELS), LABELS, pretrained=str(folder), conditioning=conditioning, **settings).eval()


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "modernbert", "distilbert"])
def test_pretrained_weights_are_taken_over_and_an_equal_network_needs_no_file(kind: str, tmp_path: Path):
    theirs = published(tmp_path, kind).eval()
    made = loaded(tmp_path)
    own = made.encoder.state_dict()
    for name, tensor in theirs.state_dict().items():
        if not any(part in name for part in ("pooler", "word_embeddings", "tok_embeddings")):
            assert torch.equal(own.pop(name), tensor), name
    assert all("embeddings" in name and len(tensor) == 2 for name, tensor in own.items())
    with torch.no_grad():  # as their model has it, of the same inputs
        embedded = torch.cat([made.embed(condition(LABELS))["attributes"], made.input(torch.cat([X, GUESS], -1))], 1)
        h = theirs(inputs_embeds=embedded + made.noise(LOGSNR)[:, None]).last_hidden_state[:, -LENGTH:]
        torch.testing.assert_close(says(made, guess=GUESS), made.output(h), atol=1e-6, rtol=1e-5)
    settings = yaml.safe_load(yaml.safe_dump(made.pinned()))
    assert settings["pretrained"] is None and settings["encoder"]["model_type"] == kind
    again = TextDenoiser((LENGTH, CHANNELS), LABELS, **settings).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(says(again), says(made))


@pytest.mark.parametrize("kind", CROSS)
def test_a_pretrained_model_attends_to_attributes_too(kind: str, tmp_path: Path):
    theirs = published(tmp_path, kind)
    made = loaded(tmp_path, "cross")
    own = made.encoder.state_dict()
    kept = {name for name in theirs.state_dict() if not any(part in name for part in ("pooler", "word_embeddings"))}
    assert all(torch.equal(own[name], theirs.state_dict()[name]) for name in kept)
    found = says(made, of=condition(LABELS).set(kind=torch.tensor([1, 1, 2, 0])))
    assert all(moved(says(made), found))
    other = X.clone()
    other[:, -1] += 1
    assert all(moved(says(made), says(made, other)))
    again = TextDenoiser((LENGTH, CHANNELS), LABELS, conditioning="cross", **yaml.safe_load(yaml.safe_dump(made.pinned()))).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(says(again), says(made))


@pytest.mark.parametrize(("kind", "conditioning"), BOTH)
def test_a_new_network_is_made_again_from_what_it_pins(kind: str, conditioning: str):
    made = network(kind, conditioning)
    settings = yaml.safe_load(yaml.safe_dump(made.pinned()))
    again = TextDenoiser((LENGTH, CHANNELS), ALL, conditioning=conditioning, **settings).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(says(again), says(made))
    assert {name: settings["encoder"].get(name, value) for name, value in ENCODERS[kind].items()} == ENCODERS[kind]


def test_half_precision_and_unknown_entries_of_a_published_model_do_no_harm(tmp_path: Path):
    theirs = published(tmp_path)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "gradient_checkpointing": False, "their_own": 1}))
    made = loaded(tmp_path)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    expected = theirs.state_dict()["encoder.layer.0.output.dense.weight"].float()
    assert torch.equal(made.encoder.state_dict()["encoder.layer.0.output.dense.weight"], expected)
    assert says(made).dtype == torch.float32 and "their_own" not in made.pinned()["encoder"]
    TextDenoiser((LENGTH, CHANNELS), LABELS, **made.pinned()).load_state_dict(made.state_dict())


def test_making_a_network_draws_nothing_more_than_its_weights():
    """Looking at whether an encoder is one does not change the random state, and leaves no gradient."""
    torch.manual_seed(0)
    kind = transformers.AutoConfig.for_model("bert", **SMALL, vocab_size=2, pad_token_id=0, max_position_embeddings=LENGTH + 4)
    transformers.AutoModel.from_config(kind)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    encoder = make({"model_type": "bert", **SMALL}, LENGTH + 2, False, "sdpa")
    assert torch.equal(torch.get_rng_state(), state) and encoder.training
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("kind", "positions", "fits"), [("bert", 7, True), ("bert", 6, False), ("roberta", 9, True), ("roberta", 8, False)]
)
def test_too_few_positions_are_one_line(kind: str, positions: int, fits: bool, tmp_path: Path):
    """RoBERTa's positions begin after that of padding."""
    published(tmp_path, kind, max_position_embeddings=positions)
    if fits:
        assert says(loaded(tmp_path)).shape == X.shape
        return
    with pytest.raises(UserError, match=r"takes 6 positions, and data\.length and the attributes need 7") as error:
        loaded(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    # Attributes that are attended to take no positions, but are no reason for fewer than the text's.
    assert says(loaded(tmp_path, "cross")).shape == X.shape


def test_settings_that_do_not_exist_or_do_not_fit_are_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"encoder": {"model_type": "brt"}}, r"network\.encoder\.model_type 'brt' .did you mean 'bert'"),
        ({"encoder": {"hiden_size": 16}}, r"setting in network\.encoder 'hiden_size' .did you mean 'hidden_size'"),
        ({"conditioning": "crss"}, r"network\.conditioning 'crss' .did you mean 'cross'"),
        ({"encoder": {**SMALL, "num_attention_heads": 3}}, "transformers cannot make.*bert: .*16.*3"),
        ({"encoder": SMALL, "attention": "none"}, "transformers cannot make.*bert: "),
        ({"encoder": {**SMALL, "max_position_embeddings": 4}}, "takes 4 positions, and data.length and the attributes need 7"),
        ({"pretrained": str(tmp_path / "gone")}, "transformers cannot make.*gone"),
        ({"pretrained": str(tmp_path)}, "transformers cannot make"),
        ({"encoder": {"model_type": "clip"}}, "clip has no hidden_size: choose one such as bert"),
        ({"encoder": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}}, "gpt2 is causal.*choose an encoder such as bert"),
        ({"encoder": {"model_type": "llama", **SMALL}}, "llama is causal"),
        ({"encoder": {"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16}}, "t5 is no encoder of embeddings"),
        (
            {"encoder": {"model_type": "modernbert", **SMALL}, "conditioning": "cross"},
            "no cross-attention: choose network.conditioning=prefix",
        ),
        ({"encoder": {"model_type": "distilbert", **NARROW}, "conditioning": "cross"}, "no cross-attention"),
    ]
    for settings, match in wrong:
        with pytest.raises(UserError, match=match) as error:
            TextDenoiser((LENGTH, CHANNELS), LABELS, **settings)
        assert "\n" not in str(error.value)
