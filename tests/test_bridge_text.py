"""Text encoders of transformers as conditions: what they say is what transformers says."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guidance import CFG, DDIM, Condition, ConditionEmbedding, Cosine, Denoiser, NoiseEmbedding, UserError, V, on, sample, stubs
from guidance.bridges.transformers import Prompt
from guidance.config import build
from guidance.model import Model

WORDS = ["a", "an", "the", "cat", "dog", "red", "green", "grass", "sky", "house", "of", "on", "in", "with", "and"]


def tokenizer(begin: str | None, end: str, pad: str) -> Any:
    """A tokenizer of whole words that ends texts with a token, as CLIP's and T5's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = dict.fromkeys([pad, end, "<unk>", *([begin] if begin else [])])
    vocabulary = {word: k for k, word in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    single = f"{begin} $A {end}" if begin else f"$A {end}"
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(name, vocabulary[name]) for name in special])
    names = {"bos_token": begin} if begin else {}
    fast = stubs.transformers().PreTrainedTokenizerFast
    return fast(tokenizer_object=made, eos_token=end, pad_token=pad, unk_token="<unk>", model_max_length=12, **names)


def clip(seed: int = 0) -> tuple[Any, Any]:
    """A tokenizer that pads with the end token, as Stable Diffusion's, and a random CLIP text encoder."""
    transformers = stubs.transformers()
    words = tokenizer("<|start|>", "<|end|>", "<|end|>")
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        **ends,
    )
    torch.manual_seed(seed)
    return words, lively(transformers.CLIPTextModel(config))


def t5(seed: int = 0) -> tuple[Any, Any]:
    transformers = stubs.transformers()
    words = tokenizer(None, "</s>", "<pad>")
    config = transformers.T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    torch.manual_seed(seed)
    return words, lively(transformers.T5EncoderModel(config))


def lively(model: Any) -> Any:
    """Weights large enough that every word and its place tell."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return model.eval()


KINDS = {"clip": clip, "t5": t5}


@pytest.fixture(params=list(KINDS))
def parts(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return KINDS[request.param]()


TEXTS = ["a red cat on the grass", "the sky", "a red cat on the grass", ""]


def test_states_are_those_of_each_text_alone_without_padding(parts: tuple[Any, Any]):
    words, encoder = parts
    prompt = Prompt.of(words, encoder, length=10)
    hidden, mask = prompt.states(torch.stack([prompt.parse(text) for text in TEXTS]))
    for k, text in enumerate(TEXTS):
        ids = words(text, return_tensors="pt").input_ids
        with torch.no_grad():
            alone = encoder(input_ids=ids).last_hidden_state[0]
        assert mask[k].tolist() == [True] * len(alone) + [False] * (10 - len(alone))
        torch.testing.assert_close(hidden[k, : len(alone)], alone, atol=1e-5, rtol=1e-5)
    assert (hidden[0] - hidden[1]).abs().max() > 0.1


def test_hidden_states_of_clip_include_its_padding_as_the_pipelines_have_it():
    words, encoder = clip()
    prompt = Prompt.of(words, encoder, length=10)
    ids = words(TEXTS[:2], padding="max_length", max_length=10, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(prompt.states(ids)[0], encoder(ids)[0], atol=1e-6, rtol=1e-6)


def test_an_encoder_with_another_padding_is_masked_by_it():
    words, encoder = t5()
    prompt = Prompt.of(words, encoder, length=7)
    found = words(TEXTS, padding="max_length", truncation=True, max_length=7, return_tensors="pt")
    torch.testing.assert_close(prompt.states(found.input_ids)[1], found.attention_mask.bool())
    words.eos_token = None  # as BERT's, whose texts end by another token
    assert words.eos_token_id is None
    torch.testing.assert_close(prompt.mask(found.input_ids), found.attention_mask.bool())


def test_the_embedding_is_the_mean_over_the_text_and_only_a_linear_layer_is_trained(parts: tuple[Any, Any]):
    words, encoder = parts
    prompt = Prompt.of(words, encoder, length=10)
    torch.manual_seed(0)
    embedding = ConditionEmbedding({"prompt": prompt}, 8)
    assert sorted(embedding.state_dict()) == [
        "attributes.prompt.embed.linear.bias",
        "attributes.prompt.embed.linear.weight",
        "attributes.prompt.null",
    ]
    ids = torch.stack([prompt.parse("a dog"), torch.full((10,), -1), prompt.parse("the red house")])
    keep = torch.tensor([True, False, True])
    found = embedding(Condition({"prompt": ids}, {"prompt": keep}))
    linear = embedding.attributes["prompt"].embed.linear
    for k, text in ((0, "a dog"), (2, "the red house")):
        with torch.no_grad():
            mean = encoder(input_ids=words(text, return_tensors="pt").input_ids).last_hidden_state.mean(1)
            torch.testing.assert_close(found[k : k + 1], linear(mean), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1], embedding.attributes["prompt"].null)
    found.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in embedding.parameters())
    assert all(p.grad is None and not p.requires_grad for p in encoder.parameters())


def test_a_copy_of_a_network_shares_the_encoder(parts: tuple[Any, Any]):
    network = nn.Sequential(Prompt.of(*parts, length=8).embedding(4))
    twin = copy.deepcopy(network)
    assert twin[0].linear is not network[0].linear and twin[0].prompt.parts[1] is parts[1]


class Plane(nn.Module):
    """Points of two numbers, steered by a text."""

    def __init__(self, prompt: Prompt):
        super().__init__()
        self.noise, self.condition, self.last = NoiseEmbedding(8), ConditionEmbedding({"prompt": prompt}, 8), nn.Linear(10, 2)

    def embed(self, condition: Condition) -> Tensor | None:
        return self.condition(condition)

    def forward(self, x_t: Tensor, logsnr: Tensor, context: Tensor, x0_hat: Tensor | None = None) -> Tensor:
        return self.last(torch.cat([x_t, self.noise(logsnr) + context], 1))


def test_every_text_is_encoded_once_a_run(parts: tuple[Any, Any]):
    words, encoder = parts
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda module, args, given: seen.append(len(given["input_ids"])), with_kwargs=True)
    prompt = Prompt.of(words, encoder, length=10)
    torch.manual_seed(0)
    network = Plane(prompt)
    ids = torch.stack([prompt.parse(text) for text in ["a cat", "a dog", "a cat", "a cat"]])
    denoiser = Denoiser(network, Cosine(), V())
    given = Condition.of(prompt=ids)
    sample(denoiser, (4, 2), given, CFG(3.0), DDIM(), steps=10)
    assert seen == [3]  # two texts, and what stands where there is none
    composed = 2.0 * on(prompt=ids) - 1.0 * on(prompt=ids.flip(0))
    sample(denoiser, (4, 2), given, composed, DDIM(), steps=10)
    assert seen[1:] == [2]  # weights that sum to 1 need no null condition


def test_prompts_are_named_by_configs_and_read_from_folders(tmp_path: Path, parts: tuple[Any, Any]):
    words, encoder = parts
    encoder.save_pretrained(tmp_path / "encoder")
    words.save_pretrained(tmp_path / "words")
    target = {"_target_": "guidance.bridges.transformers.Prompt", "length": 9}
    read = build(target | {"encoder": str(tmp_path / "encoder"), "tokenizer": str(tmp_path / "words")})
    made = Prompt.of(words, encoder, length=9)
    ids = torch.stack([made.parse(text) for text in TEXTS])
    assert torch.equal(torch.stack([read.parse(text) for text in TEXTS]), ids)
    for mine, theirs in zip(read.states(ids), made.states(ids), strict=True):
        assert torch.equal(mine, theirs)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    torch.save(encoder.state_dict(), tmp_path / "encoder" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no text encoder in .*encoder .*transformers says"):
        Prompt(str(tmp_path / "encoder"), tokenizer=str(tmp_path / "words")).absent()


def test_nothing_is_downloaded():
    with pytest.raises(UserError, match=r"no text encoder in nobody/nothing .*hf download nobody/nothing"):
        Prompt("nobody/nothing").absent()


def test_what_is_no_text_is_refused_and_long_texts_are_cut(parts: tuple[Any, Any]):
    prompt = Prompt.of(*parts, length=6)
    for wrong in (3, None, ["a cat"], b"a cat", True):
        with pytest.raises(UserError, match="a text is needed"):
            prompt.parse(wrong)
    text = "a cat on the grass in the red house"
    with pytest.warns(UserWarning, match="more than 6 tokens are cut"):
        cut = prompt.parse(text)
    assert cut.tolist() == [*parts[0](text).input_ids[:5], parts[0].eos_token_id]
    assert torch.equal(prompt.absent(), prompt.parse(""))


def test_a_list_of_texts_is_one_a_sample(parts: tuple[Any, Any]):
    from guidance.bridges.diffusers.pipeline import NoData, NoMetrics
    from guidance.codec import Pixels
    from guidance.modality import Modality
    from guidance.pictures import Pictures

    prompt = Prompt.of(*parts, length=6)
    network, specs = Plane(prompt), {"prompt": prompt}
    modality = Modality("plane", (2,), Pixels(), network, specs, NoData("", (2,), specs), NoMetrics(), Pictures(lambda images: images))
    model = Model(modality, {"main": Denoiser(network, Cosine(), V())}, {})
    bound = model.attribute("prompt", ["a cat", None], 2)
    assert torch.equal(bound.values, torch.stack([prompt.parse("a cat"), prompt.absent()])) and bound.keep.tolist() == [True, False]
    assert torch.equal(model.attribute("prompt", "a cat", 2).values[1], prompt.parse("a cat"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda words, encoder: Prompt.of(words, encoder, length=0), "at least 1"),
        (lambda words, encoder: Prompt.of(words, encoder, length=13).absent(), "takes 12 tokens"),
        (
            lambda words, encoder: Prompt.of(
                words,
                stubs.transformers().T5Model(
                    stubs.transformers().T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
                ),
            ).absent(),
            "no text encoder",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(wrong: Any, said: str):
    with pytest.raises(UserError, match=said):
        wrong(*clip())


def test_a_tokenizer_has_to_pad():
    words, encoder = clip()
    words.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        Prompt.of(words, encoder, 6).absent()
