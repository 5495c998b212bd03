"""Published DiffWave vocoders, in the checkpoint format of the `diffwave` package, as runs of ours."""

import re
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance import checkpoint
from guidance.condition import ConditionSpec
from guidance.errors import UserError, one_of
from modalities.audio.clips import Clips, Conditioned

USAGE = "polyguide import-diffwave CHECKPOINT out=runs/ljspeech [overwrite=true]"

# What the package uses where a checkpoint does not say.
DEFAULTS = {"sample_rate": 22050, "hop_samples": 256, "n_mels": 80, "n_fft": 1024, "crop_mel_frames": 62, "dilation_cycle_length": 10}


@dataclass
class Published(Conditioned):
    """The form of a model's data without the data: it can be sampled, not trained on or measured against."""

    rate: int = 22050
    length: int = 15872

    name = "the published data"
    attributes: Mapping[str, ConditionSpec] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attributes = {}

    @property
    def train(self) -> Clips:
        return self.clips(torch.zeros(0, self.length), {})

    test = train

    def pinned(self) -> Mapping[str, Any]:
        return {}


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """The weights, the parameters, and the training step of a checkpoint; nothing in it is executed."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how old the format is
            found = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint, and advises to trust it
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(f"{path} is refused: it holds {code[1]}, not weights alone, and nothing in it is executed") from None
        raise UserError(f"{path} is cut short, or is no checkpoint") from None
    refused = f"{path} is no DiffWave checkpoint: "
    if not isinstance(found, Mapping):
        raise UserError(f"{refused}it holds {type(found).__name__}")
    weights, params, step = found.get("model", found), found.get("params") or {}, found.get("step", 0)
    if not isinstance(weights, Mapping) or "input_projection.weight" not in weights:
        raise UserError(f"{refused}it has no input_projection.weight")
    if odd := [name for name, tensor in weights.items() if not isinstance(name, str) or not isinstance(tensor, Tensor)]:
        raise UserError(f"{refused}its {odd[0]!r} is no tensor")
    if not isinstance(params, Mapping):
        raise UserError(f"{refused}its params are {type(params).__name__}")
    params = {**DEFAULTS, **params}
    for name, number, least in (*((name, params[name], 1) for name in DEFAULTS), ("step", step, 0)):
        if type(number) is not int or number < least:
            raise UserError(f"{refused}its {name} is {number!r}")
    betas = params.get("noise_schedule")
    if betas is not None and not (isinstance(betas, list) and all(type(beta) in (int, float) for beta in betas)):
        raise UserError(f"{refused}its noise_schedule is no list of numbers")
    return dict(weights), params, step


def renamed(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of their model under the names of ours; the layers' projections of noise and mel are one matrix each."""
    numbers = [re.match(r"residual_layers\.(\d+)\.", name) for name in theirs]
    layers = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    if not layers:
        raise UserError("the checkpoint has no residual_layers")
    ours: dict[str, Tensor] = {}

    def take(their_name: str, our_name: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"network.{our_name}.{kind}"] = theirs[f"{their_name}.{kind}"]

    def stack(their_name: str, our_name: str) -> None:
        for kind in ("weight", "bias"):
            parts = [theirs[f"residual_layers.{k}.{their_name}.{kind}"] for k in range(layers)]
            if any(part.shape != parts[0].shape or not part.ndim for part in parts):
                raise UserError(f"the checkpoint's residual_layers differ in the shape of {their_name}.{kind}")
            ours[f"network.{our_name}.{kind}"] = torch.cat(parts)

    try:
        take("input_projection", "input")
        take("skip_projection", "skip")
        take("output_projection", "output")
        take("diffusion_embedding.projection1", "noise.layers.0")
        take("diffusion_embedding.projection2", "noise.layers.2")
        stack("diffusion_projection", "noise_projection")
        for k in range(layers):
            take(f"residual_layers.{k}.dilated_conv", f"layers.{k}.dilated")
            take(f"residual_layers.{k}.output_projection", f"layers.{k}.output")
        if "spectrogram_upsampler.conv1.weight" in theirs:
            take("spectrogram_upsampler.conv1", "mels.mel.upsampler.layers.0")
            take("spectrogram_upsampler.conv2", "mels.mel.upsampler.layers.2")
            stack("conditioner_projection", "mels.mel.projection")
    except KeyError as error:
        raise UserError(f"the checkpoint has no {error.args[0]}, which a DiffWave model has") from None
    return ours


def config_of(weights: Mapping[str, Tensor], params: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run that holds this model."""
    betas = [float(beta) for beta in params.get("noise_schedule") or torch.linspace(1e-4, 0.05, 50, dtype=torch.float64).tolist()]
    schedule = {"_target_": "guidance.schedule.Discrete", "betas": betas}
    vocoder = any(name.startswith("mels.", len("network.")) for name in weights)
    return {
        "modality": {
            "_target_": "modalities.audio.build",
            "codec": {"_target_": "modalities.audio.codec.Waveform", "_partial_": True, "scale": 1.0},
        },
        "data": {
            "_target_": "modalities.audio.published.Published",
            "rate": params["sample_rate"],
            "length": params["hop_samples"] * params["crop_mel_frames"],
            "condition": "mel" if vocoder else "none",
            "mel": {"mels": params["n_mels"], "hop": params["hop_samples"], "window": params["n_fft"]},
        },
        "network": {
            "_target_": "modalities.audio.network.DiffWave",
            "_partial_": True,
            "channels": weights["network.input.bias"].numel(),
            "layers": sum(name.endswith(".dilated.weight") for name in weights),
            "cycle": params["dilation_cycle_length"],
            "steps": schedule,
        },
        "schedule": schedule,
        "parameterization": {"_target_": "guidance.parameterization.Eps"},
    }


def convert(path: Path, out: Path) -> None:
    """Write a run folder from a checkpoint; what was a run there before goes once it is known that the checkpoint fits.

    The published vocoders were not trained without a spectrogram. What stands for its absence is the spectrogram of silence: so the
    guidance scale contrasts the clip with silence.
    """
    from guidance.commands.output import RUN_FILES, clear
    from guidance.model import assemble

    theirs, params, step = read(path)
    weights = renamed(theirs)
    config = config_of(weights, params)
    layers = config["network"]["layers"]
    if params.get("residual_layers", layers) != layers:
        raise UserError(f"{path} has {layers} residual_layers, and its params say {params['residual_layers']}")
    modality, _ = assemble(config)
    modules = modality.modules()
    state = modules.state_dict()
    for name, tensor in weights.items():
        if name not in state or state[name].shape != tensor.shape:
            expected = tuple(state[name].shape) if name in state else "nothing"
            raise UserError(f"{path} does not fit a DiffWave network: {name} is {tuple(tensor.shape)}, expected {expected}")
    modules.load_state_dict({**state, **weights})
    if "mel" in modality.conditions:
        torch.nn.init.zeros_(modality.network.mels["mel"]["given"].null)  # type: ignore[attr-defined]
    tensors = {"model": modules.state_dict(), "average": modules.state_dict()}
    clear(out, RUN_FILES)
    checkpoint.write_config(out, config)
    checkpoint.save_checkpoint(out, step, tensors, {"step": step, "seed": 0}, keep=1)
    size = sum(p.numel() for p in modules.parameters())
    what = "condition.mel=clip.wav " if "mel" in modality.conditions else ""
    print(f"{size:,} parameters of step {step} in {out}; sample it with: polyguide sample run={shlex.quote(str(out))} {what}out=samples")


def command(arguments: Sequence[str]) -> None:
    """polyguide import-diffwave"""
    from guidance.commands.output import RUN_FILES, vacant

    settings = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    paths = [argument for argument in arguments if "=" not in argument]
    if unknown := settings.keys() - {"out", "overwrite"}:
        raise one_of("setting", min(unknown), ("out", "overwrite"))
    if len(paths) != 1 or not settings.get("out") or settings.get("overwrite", "false") not in ("true", "false"):
        raise UserError(f"usage: {USAGE}")
    path, out = Path(paths[0]).expanduser(), Path(settings["out"]).expanduser()
    vacant(out, settings.get("overwrite") == "true", RUN_FILES)
    convert(path, out)
