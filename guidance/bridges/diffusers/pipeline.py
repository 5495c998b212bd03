"""A saved diffusers pipeline as a `Model`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance import stubs
from guidance.bridges.diffusers.network import ClassLabels, DiffusersNetwork, HiddenStates, Keywords, denoiser
from guidance.bridges.transformers import Prompt
from guidance.codec import Pixels
from guidance.condition import Condition, ConditionSpec, Label
from guidance.errors import UserError
from guidance.modality import Judge, Modality, Split
from guidance.model import Model
from guidance.pictures import Pictures
from guidance.process import Level


class Latents(nn.Module):
    """uint8 pixels as the latents of a diffusers autoencoder: x0 = (z - shift) factor, or by channel (z - mean) factor / deviation."""

    shift: Tensor
    unit: Tensor

    AT_ONCE = 4  # pictures that are decoded together: a decoder takes far more memory than the network

    def __init__(self, vae: Any):
        super().__init__()
        self.vae, self.pixels = vae, Pixels()
        config = vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        column = (1, -1, 1, 1)
        by_channel = mean is not None and deviation is not None
        shift = torch.tensor(mean).view(column) if by_channel else torch.tensor(float(config.get("shift_factor") or 0.0))
        unit = torch.tensor(deviation).view(column) if by_channel else torch.tensor(1.0)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("unit", unit / float(config.get("scaling_factor") or 1.0), persistent=False)

    def encode(self, raw: Tensor) -> Float[Tensor, "b c h w"]:
        """The mode of what the encoder says."""
        parts = []
        for pixels in torch.split(self.pixels.encode(raw), self.AT_ONCE):
            said = self.vae.encode(pixels.to(self.vae.dtype))
            parts.append(said.latent_dist.mode() if hasattr(said, "latent_dist") else said.latents)
        return (torch.cat(parts).float() - self.shift) / self.unit

    def decode(self, x0: Float[Tensor, "b c h w"]) -> Tensor:
        z = (x0 * self.unit + self.shift).to(self.vae.dtype)
        return torch.cat([self.pixels.decode(self.vae.decode(part, return_dict=False)[0].float()) for part in z.split(self.AT_ONCE)])

    def fit(self, split: Split) -> None:
        """Nothing: the autoencoder is trained already."""

    def project(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x0

    def anchor_loss(self, raw: Any, x0_hat: Float[Tensor, "b c h w"], level: Level) -> Float[Tensor, "b"]:
        return x0_hat.new_zeros(len(x0_hat))


def _lacks(what: str) -> UserError:
    return UserError(f"a model of another library has no {what} here: it can only be sampled")


class _NoSplit:
    def __len__(self) -> int:
        raise _lacks("data")

    def __getitems__(self, index: list[int]) -> tuple[Any, Condition]:
        raise _lacks("data")


@dataclass(frozen=True)
class NoData:
    """The data of a model whose data is not known: its name, shape and conditions."""

    name: str
    shape: tuple[int, ...]
    conditions: Mapping[str, ConditionSpec]
    train: Split = field(default_factory=_NoSplit)
    test: Split = field(default_factory=_NoSplit)

    def pinned(self) -> Mapping[str, Any]:
        raise _lacks("data")


class NoMetrics:
    """Every question is refused."""

    def judge(self, data: Any, attribute: str) -> Judge:
        raise _lacks("metrics")

    @property
    def units(self) -> Mapping[str, str]:
        return {}

    def measure(self, decoded: Any, condition: Condition, original: Any = None) -> Mapping[str, Float[Tensor, "n"]]:
        raise _lacks("metrics")

    def together(self, decoded: Any) -> Mapping[str, float]:
        raise _lacks("metrics")

    def flat(self, decoded: Any) -> Float[Tensor, "n size"]:
        raise _lacks("metrics")


def load(
    pipeline: Any,
    *,
    size: int | tuple[int, int] | None = None,
    null_class: int | None = None,
    classes: Sequence[str] | None = None,
    prompt: Prompt | None = None,
    keywords: Keywords | None = None,
    conditions: Mapping[str, ConditionSpec] | None = None,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    precision: str = "auto",
) -> Model:
    """A diffusers pipeline as a `Model`: ``load(folder).sample(4, guidance=2.0 * on(prompt="a cat") - 1.0 * on(prompt="grass"))``.

    Args:
        pipeline: a folder that `save_pretrained` wrote (model_index.json), or a pipeline object.
        size: of the samples (of the latents, where there is an autoencoder): n or (height, width); by default what the model's config says.
        null_class, prompt, keywords, precision: as for `denoiser`; the prompt is by default that of the pipeline's text encoder.
        classes: names of the model's classes, in its order (without the null class where that is the last); by default their numbers.
        conditions: the attributes that ``keywords`` reads.
        variant: of the weights' files, such as "fp16".

    Nothing is downloaded. From a folder only classes of diffusers and transformers are made, and only from safetensors; a folder that asks
    for anything else is refused. Parts that are not needed (a safety checker, a feature extractor) are not loaded. Samples are uint8
    [n, channels, height, width]; x0 is clamped where the scheduler clips or thresholds its samples, and there is no autoencoder.

    Raises: UserError where the pipeline is not whole, or of a kind that is not known.
    """
    parts = _read(Path(pipeline), variant, keywords is None) if isinstance(pipeline, str | Path) else dict(pipeline.components)
    model, scheduler = _first(parts, "unet", "transformer"), parts.get("scheduler")
    if model is None or scheduler is None:
        raise UserError(f"this pipeline has no unet or transformer with a scheduler; its parts are: {', '.join(parts)}")
    encoder, tokenizer = parts.get("text_encoder"), parts.get("tokenizer")
    if prompt is None and keywords is None and encoder is not None and tokenizer is not None:
        longest = getattr(encoder.config, "max_position_embeddings", None) or 77
        prompt = Prompt.of(tokenizer, encoder, min(longest, tokenizer.model_max_length))
    vae = _first(parts, "vae", "vqvae")
    channels = int(model.config.in_channels)
    if int(model.config.get("out_channels") or channels) not in (channels, 2 * channels):
        raise UserError(
            f"this {type(model).__name__} takes {channels} channels and gives {model.config.out_channels}: it sees more than x_t "
            "(an inpainting or upscaling model), which is not supported"
        )
    size = model.config.get("sample_size") if size is None else size
    if size is None:
        raise UserError(f"the config of this {type(model).__name__} has no sample_size: give size=")
    height, width = (size, size) if isinstance(size, int) else size
    main = denoiser(model, scheduler, null_class=null_class, prompt=prompt, keywords=keywords, precision=precision, device=device)
    network = main.network
    assert isinstance(network, DiffusersNetwork)
    specs: Mapping[str, ConditionSpec] = conditions or {}
    if isinstance(network.keywords, ClassLabels):
        specs = {"label": _label(model, network.keywords.null, classes)}
    elif isinstance(network.keywords, HiddenStates):
        specs = {"prompt": network.keywords.prompt}
    clips = bool(scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"))
    codec = Pixels(float(scheduler.config.get("clip_sample_range") or 1.0) if clips else None) if vae is None else Latents(vae)
    shape = (channels, int(height), int(width))
    modality = Modality(
        "diffusers", shape, codec, network, specs, NoData("unknown", shape, specs), NoMetrics(), Pictures(lambda images: images)
    )
    modality.modules().eval().to(device)
    return Model(modality, {"main": main}, {})


def _first(parts: Mapping[str, Any], *names: str) -> Any:
    return next((parts[name] for name in names if parts.get(name) is not None), None)


def _label(model: Any, null: int | None, classes: Sequence[str] | None) -> Label:
    """The model's classes by number, or by the names given; a null class that is the last is none of them."""
    known = int(model.config.get("num_class_embeds") or model.config.get("num_embeds_ada_norm"))
    count = known - 1 if null == known - 1 else known
    if classes is not None and len(classes) != count:
        raise UserError(f"the model has {count} classes, and classes= names {len(classes)}")
    return Label(tuple(map(str, range(count))) if classes is None else tuple(classes))


INDEX = "model_index.json"
NEEDED = ("unet", "transformer", "scheduler", "vae", "vqvae")
TEXT = ("text_encoder", "tokenizer")


def _read(folder: Path, variant: str | None, text: bool) -> dict[str, Any]:
    """The parts of a saved pipeline that sampling needs."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}, and nothing is downloaded here; fetch a pipeline of the hub first: "
            f"hf download {folder} --local-dir FOLDER"
        )
    try:
        index = json.loads((folder / INDEX).read_text())
        named = {name: tuple(index.get(name) or ()) for name in NEEDED + (TEXT if text else ())}
    except (OSError, ValueError, AttributeError, TypeError):
        raise UserError(f"{folder} holds no saved pipeline: {INDEX} is missing or cannot be read") from None
    if not isinstance(index.get("_class_name"), str):
        raise UserError(f"{folder / INDEX} names a pipeline with code of its own, which is refused")
    if text and any(index.get(name, (None,))[0] for name in ("text_encoder_2", "tokenizer_2")):
        raise UserError(
            f"{folder} has several text encoders (as SDXL has): give keywords=, a function from a Condition to the model's keywords"
        )
    return {name: _part(folder, name, named[name], variant) for name in named if any(named[name])}


def _part(folder: Path, name: str, named: tuple[Any, ...], variant: str | None) -> Any:
    """One part, by the class that the index names, if it is one of the two libraries and of the right kind."""
    refused = UserError(f"{folder / INDEX}: {name} is {list(named)}, and only classes of diffusers and transformers are made")
    libraries = {"diffusers": stubs.diffusers, "transformers": stubs.transformers}
    if len(named) != 2 or named[0] not in libraries or not isinstance(named[1], str):
        raise refused
    module = libraries[named[0]]()
    kinds = {"scheduler": "SchedulerMixin", "text_encoder": "PreTrainedModel", "tokenizer": "PreTrainedTokenizerBase"}
    base = getattr(module, kinds.get(name, "ModelMixin"), None)
    made = getattr(module, named[1], None)
    if base is None or not (isinstance(made, type) and issubclass(made, base)):
        raise refused
    more: dict[str, Any] = {"local_files_only": True}
    if name not in ("scheduler", "tokenizer"):
        more |= {"use_safetensors": True, "variant": variant}
    try:
        return made.from_pretrained(str(folder / name), **more)  # type: ignore[attr-defined]
    except Exception as error:  # of both libraries, safetensors and torch
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / name} cannot be read (only safetensors are); {named[0]} says: {said}") from None
