"""A diffusers model as a `Network`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from guidance import machine, stubs
from guidance.bridges.diffusers.schedule import parameterization, schedule, train_steps
from guidance.bridges.transformers import Prompt
from guidance.condition import Condition
from guidance.denoiser import LOGSNR_LIMIT, Context, Denoiser
from guidance.errors import UserError, one_of
from guidance.schedule import Discrete, Schedule, logsnr

Keywords = Callable[[Condition], Mapping[str, Any]]
"""What a model is given beside x_t and the timestep: keyword arguments (tensors, batch first, or mappings of them) from a condition."""


class DiffusersNetwork(nn.Module):
    """A diffusers model as a `Network`: ``model(x, timestep=..., return_dict=False, **keywords)[0]``.

    Shown a log-SNR, the model is given its own timestep: on a list of betas exactly k - 1 at the level of step k, linear in logsnr
    between (as diffusers itself does for fractional timesteps), and 0 or T - 1 beyond; for flow matching T sigma, and x_t in the frame
    alpha + sigma = 1. Of an output with twice the channels (a learned variance) the first half is taken.

    Args:
        schedule: that of its training.
        keywords: called once a run, with all rows.
        attributes: that the keywords know; None: they look for themselves.
    """

    levels: Tensor | None

    def __init__(self, model: Any, schedule: Schedule, keywords: Keywords, steps: int, attributes: Sequence[str] | None = None):
        super().__init__()
        self.model, self.keywords, self.steps, self.attributes = model, keywords, steps, attributes
        self.flow = not isinstance(schedule, Discrete)
        levels = None
        if not self.flow:  # of steps T, ..., 1: rising
            levels = logsnr(schedule, torch.arange(steps, 0, -1, dtype=torch.float64) / steps).clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT).float()
        self.register_buffer("levels", levels, persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)

    def timestep(self, logsnr: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        if self.levels is None:
            pure = logsnr <= -LOGSNR_LIMIT * (1 - 1e-6)  # as networks are shown it
            return self.steps * torch.where(pure, 1.0, torch.sigmoid(-logsnr / 2))
        levels, last = self.levels, len(self.levels) - 1
        at = logsnr.float().clamp(levels[0], levels[-1])
        right = torch.searchsorted(levels, at).clamp(1, last)
        low, high = levels[right - 1], levels[right]
        between = last - (right - 1 + (at - low) / (high - low).clamp(min=1e-12))
        # Single precision has moved a training step's own log-SNR by a few of its last digits.
        nearest = between.round()
        close = (levels[last - nearest.long()] - at).abs() <= 4 * torch.finfo(torch.float32).eps * at.abs().clamp(min=1)
        return torch.where(close, nearest, between)

    def embed(self, condition: Condition) -> Context:
        if self.attributes is not None:
            missing = [name for name in self.attributes if name not in condition.values]
            if missing:
                raise UserError(f"the condition lacks {missing[0]!r}, which the model knows (an absent attribute is dropped, not left out)")
            for name, keep in condition.keep.items():
                if name not in self.attributes and bool(keep.any()):
                    raise one_of("attribute", name, list(self.attributes))

        def cast(leaf: Any) -> Any:
            return leaf.to(self.dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return tree_map(cast, dict(self.keywords(condition)))

    def forward(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: Context, x0_hat: Float[Tensor, "b *d"] | None = None
    ) -> Float[Tensor, "b *d"]:
        x = x_t
        if self.flow:
            norm = torch.hypot(torch.sigmoid(logsnr / 2), torch.sigmoid(-logsnr / 2))
            x = x_t * norm.view(-1, *(1,) * (x_t.ndim - 1))
        output: Tensor = self.model(x.to(self.dtype), timestep=self.timestep(logsnr), return_dict=False, **context)[0]
        channels = x_t.shape[1]
        if output.shape[1] not in (channels, 2 * channels):
            raise UserError(f"{type(self.model).__name__} takes {channels} channels and gives {output.shape[1]}: it is no plain denoiser")
        return output[:, :channels].to(x_t.dtype)


def nothing(condition: Condition) -> Mapping[str, Any]:
    """The keywords of an unconditional model."""
    return {}


@dataclass(frozen=True)
class ClassLabels:
    """``label`` as class_labels, and the null class where it is absent."""

    null: int | None

    def __call__(self, condition: Condition) -> Mapping[str, Any]:
        values, keep = condition.values["label"], condition.keep["label"]
        if self.null is None and not bool(keep.all()):
            raise UserError(
                "an unconditional row is needed, and the model has no null class: name it as null_class=, or use weights that sum to 1"
            )
        return {"class_labels": torch.where(keep, values, 0 if self.null is None else self.null)}


@dataclass(frozen=True)
class HiddenStates:
    """``prompt`` as encoder_hidden_states, and the empty prompt where it is absent."""

    prompt: Prompt

    def __call__(self, condition: Condition) -> Mapping[str, Any]:
        values, keep = condition.values["prompt"], condition.keep["prompt"]
        ids = torch.where(keep[:, None], values, self.prompt.absent().to(values))
        return {"encoder_hidden_states": self.prompt.states(ids)[0]}


def conditioning(
    model: Any, null_class: int | None = None, prompt: Prompt | None = None, keywords: Keywords | None = None
) -> tuple[Keywords, list[str] | None]:
    """What a model is told of a condition, and the attributes that it knows; UserError where it needs more than is known."""
    if keywords is not None:
        return keywords, None
    diffusers = stubs.diffusers()
    name, config = type(model).__name__, model.config
    ask = "give keywords=, a function from a Condition to its keyword arguments"
    if isinstance(model, diffusers.DiTTransformer2DModel):
        return ClassLabels(int(config.num_embeds_ada_norm)), ["label"]
    if isinstance(model, diffusers.UNet2DModel):
        if config.time_embedding_type != "positional":
            raise UserError(f"this {name} has a {config.time_embedding_type} time embedding, which is not supported")
        if config.class_embed_type is not None:
            raise UserError(f"this {name} embeds classes as {config.class_embed_type!r}: {ask}")
        if config.num_class_embeds is None:
            return nothing, []
        if null_class is not None and not 0 <= null_class < config.num_class_embeds:
            raise UserError(f"null_class is one of the model's {config.num_class_embeds} classes, counted from 0; got {null_class}")
        return ClassLabels(null_class), ["label"]
    if isinstance(model, diffusers.UNet2DConditionModel):
        plain = {"addition_embed_type": (None, "text"), "encoder_hid_dim_type": (None, "text_proj"), "class_embed_type": (None,)}
        more = [key for key, known in plain.items() if config.get(key) not in known]
        more += [key for key in ("num_class_embeds", "time_cond_proj_dim") if config.get(key) is not None]
        if more:
            raise UserError(f"this {name} needs more than a prompt ({more[0]}={config[more[0]]!r}): {ask}")
        if prompt is None:
            raise UserError(f"this {name} needs a text encoder: give prompt=Prompt(...), or {ask}")
        return HiddenStates(prompt), ["prompt"]
    raise UserError(f"what a {name} is told beside x_t and the timestep is not known: {ask}")


def denoiser(
    model: Any,
    scheduler: Any,
    *,
    null_class: int | None = None,
    prompt: Prompt | None = None,
    keywords: Keywords | None = None,
    precision: str = "auto",
    device: torch.device | str | None = None,
) -> Denoiser:
    """A diffusers model and its scheduler as a `Denoiser`, for `guidance.sample`.

    Unconditional and class-conditional UNet2DModel, DiTTransformer2DModel (attribute ``label``: the model's own numbers of its classes) and
    UNet2DConditionModel (attribute ``prompt``: token ids of `Prompt`) are known. An attribute that is absent, in any row, is the null
    class or the empty prompt there.

    Args:
        null_class: of a UNet2DModel, the class that it was taught as "none"; DiT has its own.
        prompt: how a UNet2DConditionModel's texts are encoded.
        keywords: for any other model, what it is told: a function from a condition to keyword arguments, called once a run.
        precision: of the network when it samples: "no" (that of its weights), "bf16", "fp16", or auto: for weights of float32 what is
            fast on their device (`guidance.machine`), else "no".
        device: that the model will sample on; by default where it is.

    Raises: UserError for a model that needs what is not given, or a scheduler that is not known.
    """
    machine.check_precision(precision)
    weights = next(model.parameters(), torch.empty(0))
    if precision == machine.AUTO and weights.dtype != torch.float32:
        precision = "no"
    trained = schedule(scheduler)
    made, attributes = conditioning(model, null_class, prompt, keywords)
    network = DiffusersNetwork(model, trained, made, train_steps(scheduler), attributes)
    chosen = machine.precision(precision, device or weights.device)
    return Denoiser(network, trained, parameterization(scheduler), precision=machine.dtype_of(chosen))
