"""A Transformer encoder over embeddings, of any of transformers' architectures."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.condition import ByName, Condition, ConditionSpec, NullEmbedding
from guidance.denoiser import Context, NoiseEmbedding
from guidance.errors import UserError, one_of
from modalities import stubs
from modalities.text.infill import Infill

PLACES = ("prefix", "cross")
SHARPEST = 30.0  # of alpha / sigma^2: beyond it every token is certain


class TextDenoiser(nn.Module):
    """x_t [length, width] -> [length, width].

    An encoder over the projected x_t (and the earlier guess of x0, side by side, as SED has it), to which the noise level is added.
    Attributes are vectors before the sequence, or states that it attends to; given tokens are added in their places.

    Args:
        shape, conditions: of the data.
        encoder: ``model_type`` and settings of a transformers configuration, e.g. {model_type: bert, hidden_size: 256, ...}.
        pretrained: a name on the hub or a folder, to begin from its weights and architecture instead.
        conditioning: where attributes go: prefix, or cross (cross-attention, for architectures that have it).
        likelihood: whether alpha / sigma^2 x_t is added to the output. For `Expected` predictions: see there.
        self_condition: whether the earlier guess is an input; null_self_condition: see `Denoiser`.
        attention: transformers' implementation; on a CPU, eager is faster for short texts, sdpa for long ones.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, ConditionSpec],
        encoder: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        conditioning: str = "prefix",
        likelihood: bool = False,
        self_condition: bool = True,
        null_self_condition: bool = True,
        attention: str = "sdpa",
    ):
        super().__init__()
        if conditioning not in PLACES:
            raise one_of("network.conditioning", conditioning, PLACES)
        length, channels = shape
        self.length, self.likelihood = length, likelihood
        self.self_condition, self.null_self_condition = self_condition, null_self_condition
        labels = {name: spec for name, spec in conditions.items() if not isinstance(spec, Infill)}
        given = {name: spec for name, spec in conditions.items() if isinstance(spec, Infill)}
        self.cross = conditioning == "cross" and bool(labels)
        positions = length + (0 if self.cross else len(labels))
        self.encoder = made = (
            load(pretrained, positions, self.cross, attention) if pretrained else make(encoder or {}, positions, self.cross, attention)
        )
        out = made.config.hidden_size
        width = made.get_input_embeddings().weight.shape[1]  # narrower in some architectures (ELECTRA, ALBERT)
        of = out if self.cross else width
        self.input = nn.Linear(channels * (2 if self_condition else 1), width)
        self.noise = NoiseEmbedding(width)
        self.attributes = ByName({name: NullEmbedding(spec.embedding(of), (of,)) for name, spec in labels.items()})
        self.given = ByName({name: NullEmbedding(spec.embedding(width), (1, width)) for name, spec in given.items()})
        self.output = nn.Linear(out, channels)

    def pinned(self) -> Mapping[str, Any]:
        """The architecture, so that a run does not look for pretrained weights again."""
        config = self.encoder.config
        left_out = ("architectures", "transformers_version", "dtype", "vocab_size", "_name_or_path", "is_decoder", "add_cross_attention")
        known = stubs.transformers().AutoConfig.for_model(config.model_type)  # a published config holds more than its architecture knows
        settings = {key: value for key, value in config.to_diff_dict().items() if key not in left_out and hasattr(known, key)}
        return {"encoder": {"model_type": config.model_type, **settings}, "pretrained": None}

    def embed(self, condition: Condition) -> Context:
        n = len(condition)
        missing = [name for name in (*self.attributes, *self.given) if name not in condition.values]
        if missing:
            raise UserError(f"the condition lacks {missing[0]!r}, which the network knows (an absent attribute is dropped, not left out)")
        attributes = [embed(condition.values[name], condition.keep[name]) for name, embed in self.attributes.items()]
        given = [embed(condition.values[name], condition.keep[name]).expand(n, self.length, -1) for name, embed in self.given.items()]
        context = {"attributes": torch.stack(attributes, 1)} if attributes else {}
        return context | ({"given": torch.stack(given).sum(0)} if given else {})

    def forward(
        self,
        x_t: Float[Tensor, "b length width"],
        logsnr: Float[Tensor, "b"],
        context: Context,
        x0_hat: Float[Tensor, "b length width"] | None = None,
    ) -> Float[Tensor, "b length width"]:
        output: Tensor = self.output(self._states(x_t, logsnr, context, x0_hat))
        if self.likelihood:
            alpha2 = logsnr.sigmoid()
            output = torch.addcmul(output, (alpha2.sqrt() / (1 - alpha2)).clamp(max=SHARPEST)[:, None, None], x_t)
        return output

    def features(
        self,
        x_t: Float[Tensor, "b length width"],
        logsnr: Float[Tensor, "b"],
        context: Context,
        x0_hat: Float[Tensor, "b length width"] | None = None,
    ) -> Float[Tensor, "b out"]:
        """The encoder's states, the mean over places."""
        return self._states(x_t, logsnr, context, x0_hat).mean(1)

    def _states(
        self,
        x_t: Float[Tensor, "b length width"],
        logsnr: Float[Tensor, "b"],
        context: Context,
        x0_hat: Float[Tensor, "b length width"] | None,
    ) -> Float[Tensor, "b length out"]:
        """What the encoder makes of every place."""
        x = x_t
        if self.self_condition:
            x = torch.cat([x_t, torch.zeros_like(x_t) if x0_hat is None else x0_hat], -1)
        h = self.input(x)
        if "given" in context:
            h = h + context["given"]
        attributes = context.get("attributes")
        if attributes is not None and not self.cross:
            h = torch.cat([attributes, h], 1)
        h = h + self.noise(logsnr)[:, None]
        return encode(self.encoder, h, attributes if self.cross else None)[:, -self.length :]


def encode(encoder: Any, h: Float[Tensor, "b places width"], states: Tensor | None = None) -> Float[Tensor, "b places out"]:
    """Every place sees every place, and the states, where there are any."""
    more = {}
    if states is not None:
        # Models with cross-attention are decoders, whose mask would be causal were none given.
        everywhere = torch.ones(len(h), 1, h.shape[1], h.shape[1], dtype=torch.bool, device=h.device)
        more = {"encoder_hidden_states": states, "attention_mask": everywhere}
    found: Tensor = encoder(inputs_embeds=h, **more).last_hidden_state
    return found


CROSS = {"is_decoder": True, "add_cross_attention": True}


def make(encoder: Mapping[str, Any], positions: int, cross: bool, attention: str) -> Any:
    """An encoder with new weights. UserError for an architecture or a setting that transformers does not have."""
    transformers = stubs.transformers()
    settings = dict(encoder)
    kind = settings.pop("model_type", "bert")
    known = list(transformers.CONFIG_MAPPING.keys())
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, 8, 0.4)  # of hundreds
        raise one_of("network.encoder.model_type", kind, near or ["modernbert", "bert", "roberta", "and others of transformers"])
    names = transformers.AutoConfig.for_model(kind)
    for name in settings:
        if not hasattr(names, name):
            raise one_of("setting in network.encoder", name, sorted(names.to_dict()))
    padding = settings.get("pad_token_id")  # by which RoBERTa counts its positions
    settings = {"max_position_embeddings": positions + 2, **settings, "vocab_size": 2, "pad_token_id": padding if padding == 1 else 0}
    settings |= CROSS if cross else {}

    def made() -> Any:
        return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings), attn_implementation=attention)

    return adopted(made, f"network.encoder.model_type={kind}", positions, cross)


def load(name: str, positions: int, cross: bool, attention: str) -> Any:
    """A pretrained encoder without its own vocabulary."""
    transformers = stubs.transformers()
    more = CROSS if cross else {}

    def made() -> Any:
        model = transformers.AutoModel.from_pretrained(name, attn_implementation=attention, **more).float()
        model.resize_token_embeddings(2)
        return model

    return adopted(made, f"network.pretrained={name}", positions, cross)


def adopted(make: Callable[[], Any], name: str, positions: int, cross: bool) -> Any:
    """The model, without what would never be trained: a pooling layer, and vectors of words of its own. One line where transformers cannot
    make it, or where it is no encoder."""
    try:
        model = make()
    except Exception as error:  # of transformers, its hub, and torch
        raise UserError(f"transformers cannot make {name}: {brief(error)}") from None
    if not hasattr(model.config, "hidden_size"):
        raise UserError(f"{name} has no hidden_size: choose one such as bert, roberta or electra")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    # RoBERTa's positions begin after that of padding.
    limit = getattr(model.config, "max_position_embeddings", positions) - 1 - getattr(getattr(model, "embeddings", None), "padding_idx", -1)
    if limit < positions:
        raise UserError(f"{name} takes {limit} positions, and data.length and the attributes need {positions}")
    try:
        later, states = seen(model, positions, cross)
    except Exception as error:  # of transformers and torch
        raise UserError(f"{name} is no encoder of embeddings ({brief(error)}): choose one such as bert, roberta or electra") from None
    if not later:
        raise UserError(f"{name} is causal, so that no place sees later ones: choose an encoder such as bert, roberta or electra")
    if cross and not states:
        raise UserError(f"{name} has no cross-attention: choose network.conditioning=prefix, or one such as bert, roberta or electra")
    model.get_input_embeddings().requires_grad_(False)
    return model


def brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def seen(model: Any, positions: int, cross: bool) -> tuple[bool, bool]:
    """Whether what a model says of the first place depends on later places, and on states."""
    draw, training = torch.Generator().manual_seed(0), model.training
    width, out = model.get_input_embeddings().weight.shape[1], model.config.hidden_size
    h = torch.randn(1, positions, width, generator=draw, requires_grad=True)
    states = torch.randn(1, 1, out, generator=draw, requires_grad=True)
    with torch.enable_grad():
        says = encode(model.eval(), h, states if cross else None)[0, 0, 0]
        by_place, by_state = torch.autograd.grad(says, (h, states), allow_unused=True)
    model.train(training)
    return positions == 1 or bool(by_place[:, 1:].any()), by_state is not None and bool(by_state.any())
