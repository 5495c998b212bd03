"""Pretrained text encoders of the transformers library as conditions."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from guidance import stubs
from guidance.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A text, as a pretrained encoder understands it: a `ConditionSpec` whose values are token ids [b, length].

    The encoder (T5, CLIP's text part, BERT and their like) is frozen, always in eval mode, and in no state_dict: it is named by the
    config. It moves to the device of the ids that it is given. A longer text is cut, with a warning.

    Args:
        encoder: the folder of a model in transformers' format (safetensors), or the hub id of one that was downloaded before: nothing is
            downloaded here.
        length: tokens of every text, padded.
        tokenizer: its folder or hub id, where it is not the encoder's.
        made: a tokenizer and a model instead; see `of`.
    """

    encoder: str
    length: int = 77
    tokenizer: str | None = None
    made: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise UserError(f"a prompt's length is a whole number of tokens, at least 1, got {self.length!r}")

    @classmethod
    def of(cls, tokenizer: Any, encoder: Any, length: int = 77) -> "Prompt":
        """From a tokenizer and a model of transformers; the model is frozen where it is."""
        return cls(type(encoder).__name__, length, made=(tokenizer, encoder))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prompt":
        return self  # one encoder, also beside a moving average of the weights

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The tokenizer and the frozen encoder, loaded when they are first needed."""
        tokenizer, encoder = self.made or load(self.encoder, self.tokenizer or self.encoder)
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer of {self.encoder} has no padding token: set one, such as tokenizer.pad_token = tokenizer.eos_token"
            )
        if getattr(encoder.config, "is_encoder_decoder", False) or not hasattr(encoder.config, "hidden_size"):
            raise UserError(f"{type(encoder).__name__} is no text encoder: take its encoder alone, such as T5EncoderModel or CLIPTextModel")
        positions = getattr(encoder.config, "max_position_embeddings", None)
        if positions is not None and 0 < positions < self.length:
            raise UserError(f"{self.encoder} takes {positions} tokens, and the prompt's length is {self.length}")
        return tokenizer, encoder.eval().requires_grad_(False)

    def ids(self, text: str) -> Int[Tensor, "length"]:
        tokenizer, _ = self.parts
        found: Tensor = tokenizer(text, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt").input_ids[0]
        return found

    def parse(self, value: object) -> Tensor:
        if not isinstance(value, str):
            raise UserError(f"a text is needed, got {value!r}")
        tokenizer, _ = self.parts
        if len(tokenizer(value).input_ids) > self.length:
            warnings.warn(f"texts of more than {self.length} tokens are cut", stacklevel=2)
        return self.ids(value)

    def absent(self) -> Tensor:
        """The ids of the empty text."""
        return self.ids("")

    def mask(self, ids: Int[Tensor, "b length"]) -> Bool[Tensor, "b length"]:
        """Where the text is: up to its first end token (which some tokenizers also pad with), and not where it is padded; the first
        place always."""
        tokenizer, _ = self.parts
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        ends = torch.zeros_like(ids) if end is None else (ids == end).long()
        there = ends.cumsum(1) - ends == 0
        if pad != end:
            there = there & (ids != pad)
        there[:, 0] = True
        return there

    @torch.no_grad()
    def states(self, ids: Int[Tensor, "b length"]) -> tuple[Float[Tensor, "b length width"], Bool[Tensor, "b length"]]:
        """The last hidden states, for cross-attention, and where the text is. Texts that are given several times are encoded once.

        CLIP is given no mask, as in the pipelines that were trained with it (its attention is causal, so that the text sees no padding).
        """
        _, encoder = self.parts
        if encoder.device != ids.device:
            encoder.to(ids.device)
        distinct, which = torch.unique(ids, dim=0, return_inverse=True)
        mask = self.mask(distinct)
        plain = encoder.config.model_type.startswith("clip") and not getattr(encoder.config, "use_attention_mask", False)
        hidden = encoder(input_ids=distinct, **({} if plain else {"attention_mask": mask.long()})).last_hidden_state
        return hidden[which], mask[which]

    def embedding(self, width: int) -> nn.Module:
        return PromptEmbedding(self, width)


class PromptEmbedding(nn.Module):
    """Token ids [b, length] -> [b, width]: the mean of the last hidden states over the text, and a linear layer. Only that is trained."""

    def __init__(self, prompt: Prompt, width: int):
        super().__init__()
        self.prompt = prompt  # no module: neither trained nor stored
        self.linear = nn.Linear(prompt.parts[1].config.hidden_size, width)

    def forward(self, ids: Int[Tensor, "b length"]) -> Float[Tensor, "b width"]:
        hidden, mask = self.prompt.states(ids)
        there = mask[..., None].to(hidden)
        result: Tensor = self.linear(((hidden * there).sum(1) / there.sum(1)).to(self.linear.weight.dtype))
        return result


def load(encoder: str, tokenizer: str) -> tuple[Any, Any]:
    """A tokenizer and a text encoder from disk: safetensors only, and no code but that of transformers."""
    transformers = stubs.transformers()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(encoder, **local)
        kind = transformers.CLIPTextModel if config.model_type == "clip" else transformers.AutoModelForTextEncoding
        model = kind.from_pretrained(encoder, use_safetensors=True, local_files_only=True)
        return transformers.AutoTokenizer.from_pretrained(tokenizer, **local), model
    except Exception as error:  # of transformers, its hub, and torch
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"no text encoder in {encoder} (if it is a hub id, download it first: hf download {encoder}); transformers says: {said}"
        ) from None
