"""What a model costs: parameters, FLOPs and memory, found by running it on tensors that have shapes and no numbers.

Nothing is assumed of a network. The forward pass and the training step run as they are, on torch's fake tensors, so that the largest model
takes seconds; `FlopCounterMode` counts their products, and autograd says what it keeps for the way back.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from guidance.condition import Condition, Dropout, Label
from guidance.config import build
from guidance.denoiser import Denoiser
from guidance.errors import UserError, one_of
from guidance.fake import Alive, counter, imagine, shapes_only
from guidance.guide import CFG
from guidance.loss import Criterion, Times
from guidance.machine import AUTO, autocast, fast_bf16
from guidance.modality import CountedJudges, Modality, SideTraining
from guidance.model import with_codec
from guidance.parameterization import Eps
from guidance.process import level
from guidance.sampler import Progress, Sampler, sample
from guidance.train import Objective, Place
from guidance.trainer import Trainer

PEAKS: Mapping[str, tuple[float, float]] = {
    "h100": (989e12, 67e12),
    "a100": (312e12, 19.5e12),
    "rtx4090": (165.2e12, 82.6e12),
    "cpu": (384e9, 192e9),
}
"""FLOP/s of dense products in 16 bits with sums in 32, and in 32 bits. From NVIDIA's data sheets of the H100 SXM (half of the 1,979e12
stated with sparsity) and the A100, and its Ada white paper (RTX 4090). cpu is one core with two 512-bit units at 3 GHz: 2 units x 16 lanes
x 2 x 3e9, twice that with bf16 instructions."""

SELF_CONDITIONED = 0.5
"""The share of training steps that make a guess of x0 first (`Objective`)."""

MOST = 2**24
"""Numbers of noise in the batch that is run, for these are drawn even here; a part of a larger micro-batch stands for all of it."""

MANY = 100
"""Steps of a sampler that are taken to see how often it asks."""


@dataclass(frozen=True)
class Cost:
    """What a model costs to train, and to sample. FLOPs count a multiplication and an addition as two; memory is in bytes.

    ``parameters``: of the network, the codec, both, and those that are trained. ``flops``: of one sample: ``embed`` its condition (once a
    sampling run), one ``evaluation`` of the denoiser, the ``forward`` and ``backward`` pass of the training loss, ``again`` for
    self-conditioning (its share of the steps), and all of these in ``training``. ``memory``: of training on one device, ``micro_batch``
    samples at a time; ``passing`` is what is alive beside all else at the worst moment of a step. ``sampling``: a sample of the recipe's
    sampler at a guidance scale other than 0 and 1: its ``evaluations`` (of every term, in every step) and FLOPs. ``training``: steps, FLOPs
    of one, and the days that all take on one device. ``beside``: TFLOP of what is trained beside the model, by name; ``judges``: of the
    judge of each attribute. None where that is not known without data.
    """

    name: str
    shape: tuple[int, ...]
    parameters: Mapping[str, int]
    flops: Mapping[str, float]
    memory: Mapping[str, float]
    micro_batch: int
    precision: str
    sampling: Mapping[str, Any]
    training: Mapping[str, Any]
    beside: Mapping[str, float | None]
    judges: Mapping[str, float | None]

    @property
    def training_tflop(self) -> float | None:
        """Of the whole training, what is trained beside the model included, judges left out; None where a part is not known."""
        beside = [tflop for tflop in self.beside.values() if tflop is not None]
        return None if len(beside) < len(self.beside) else self.training["flops"] / 1e12 + sum(beside)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "training_tflop": self.training_tflop}


def peak(device: str | float, precision: str) -> float:
    """The FLOP/s of a device in a precision, or the number that was given."""
    if isinstance(device, str):
        if device not in PEAKS:
            raise one_of("device", device, [*PEAKS, "a number of FLOP/s"])
        return PEAKS[device][precision == "no"]
    if isinstance(device, bool) or not isinstance(device, int | float) or not 0 < device < float("inf"):
        raise UserError(f"device is one of {', '.join(PEAKS)}, or a number of FLOP/s, got {device!r}")
    return float(device)


def precision_on(device: str | float, precision: str) -> str:
    """What a training's precision becomes on a device: auto is bf16 on the GPUs of PEAKS, and this machine's on cpu or a number."""
    if precision != AUTO:
        return precision
    return "bf16" if (device in PEAKS and device != "cpu") or fast_bf16() else "no"


def imagined(config: Mapping[str, Any]) -> tuple[Modality, Denoiser]:
    """The untrained model of a config, its weights fake tensors, which have shapes and take no memory.

    Raises: UserError for what is wrong with the config, and where data would have to be read that is not there.
    """
    data, network, schedule, parameterization = (build(config[key], key) for key in ("data", "network", "schedule", "parameterization"))
    try:  # looked up here, where tensors are real
        data.shape, data.conditions  # noqa: B018
    except UserError as error:
        told = "give what reading it would tell, e.g. +assumed.data.classes.label=10 (docs/scaling.md)"
        raise UserError(f"a model of {data.name} cannot be made without its data: {error}; {told}") from None

    def made() -> Modality:
        return cast(Modality, build(config["modality"], "modality", data=data, network=network))

    try:
        with torch.device("meta"):  # no weight is drawn
            modality = made()
    except Exception:  # a network that looks at its weights; or is wrong, and then that is said now
        modality = made()
    imagine(modality.modules())
    self_condition = bool(getattr(modality.network, "self_condition", False))
    return modality, Denoiser(modality.network, schedule, with_codec(parameterization, modality), self_condition)


def conditions(modality: Modality, n: int) -> Condition:
    """Of n rows, every attribute present, of the shape that its values have."""
    return Condition.of(**{name: torch.stack([spec.absent()] * n) for name, spec in modality.conditions.items()})


def raw_batch(modality: Modality, n: int) -> Tensor | None:
    """A batch as the codec takes it, where that is a tensor of the data's shape; else None."""
    for dtype in (torch.float32, torch.int64, torch.uint8):
        raw = torch.zeros((n, *modality.data.shape), dtype=dtype)
        try:
            if tuple(modality.codec.encode(raw).shape) == (n, *modality.shape):
                return raw
        except Exception:  # of another dtype, or no tensor at all
            continue
    return None


@dataclass(frozen=True)
class Step:
    """A training step of one micro-batch: FLOPs forward and backward; the bytes that autograd keeps between the two, and those that are
    alive at most, with the gradients and what is made on the way."""

    forward: float
    backward: float
    kept: int
    peak: int


def step(objective: Objective, modality: Modality, n: int, precision: str) -> Step:
    """One step of n samples, without self-conditioning.

    Kept is what autograd saves for the backward pass, each storage once, but for the weights themselves; copies of them in 16 bits count.
    """
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # which is held, so that its number is not given to another
        return tensor

    with shapes_only(type(modality.network).__name__):
        weights = {tensor.untyped_storage()._cdata for tensor in objective.state_dict(keep_vars=True).values()}
        raw = raw_batch(modality, n) if objective.codec is not None else torch.zeros(n, *modality.shape)
        assert raw is not None
        with (
            Alive() as alive,
            torch.enable_grad(),
            counter() as forward,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            autocast(precision),
        ):
            loss = objective(raw, conditions(modality, n), Place(0, 0, 0, 0, n)).mean()
        size = sum(storage.nbytes() for number, storage in kept.items() if number not in weights)
        kept.clear()
        with alive, counter() as backward:
            loss.backward()
        objective.zero_grad(set_to_none=True)
    return Step(forward.get_total_flops(), backward.get_total_flops(), size, alive.peak)


@dataclass(frozen=True)
class Evaluation:
    """FLOPs of one sample when it is drawn: to embed one condition, to evaluate the denoiser once, to project x0 once."""

    embed: float
    denoise: float
    project: float


def evaluation(modality: Modality, denoiser: Denoiser) -> Evaluation:
    """One evaluation of one sample, condition and all, without a backward pass."""
    modules = modality.modules()
    training = modules.training
    modules.eval()
    with shapes_only(type(modality.network).__name__), torch.no_grad():
        condition = conditions(modality, 1)
        shape = modality.shape if modality.shape_of is None else modality.shape_of(condition)
        x_t = torch.zeros(1, *shape)
        now = level(denoiser.schedule, torch.full((1,), 0.5), x_t)
        with counter() as embed:
            context = modality.network.embed(condition)
        with counter() as denoise:
            x0 = denoiser(x_t, now, context, x_t if denoiser.self_condition else None).x0
        with counter() as project:
            modality.codec.project(x0)
    modules.train(training)
    return Evaluation(embed.get_total_flops(), denoise.get_total_flops(), project.get_total_flops())


class _Silent:
    """A network that says nothing, at once: only to see how often it is asked."""

    def embed(self, condition: Condition) -> None:
        return None

    def __call__(self, x_t: Tensor, logsnr: Tensor, context: Any, x0_hat: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x_t)


def evaluations(denoiser: Denoiser, sampler: Sampler, steps: int, conditional: bool) -> tuple[float, float]:
    """How often a sample's rows are evaluated at a guidance scale other than 0 and 1, over all terms, and how many terms there are.

    A network without a condition has one term. Found by drawing numbers with a network that does nothing; many steps from few, to which
    each adds the same.
    """
    n = getattr(sampler, "particles", 1)
    condition = Condition.of(any=torch.zeros(n, dtype=torch.long)) if conditional else None
    silent = Denoiser(_Silent(), denoiser.schedule, Eps())

    def rows(steps: int) -> float:
        seen: list[Progress] = []
        sample(silent, (n, 1), condition, CFG(2.0), sampler, steps=steps, callbacks=[seen.append])
        return seen[-1].rows / n

    found = rows(min(steps, MANY))
    if steps > MANY:
        found += (found - rows(MANY // 2)) / (MANY - MANY // 2) * (steps - MANY)
    return found, 2.0 if conditional else 1.0


def side_tflop(what: str, training: Callable[[], SideTraining]) -> float | None:
    """TFLOP of a training beside the model's: its steps, forward and backward. None where that takes data that is not here, or numbers."""
    try:
        made = training()
        imagine(made.module)
        with shapes_only(what), torch.enable_grad(), counter() as counted:
            made.loss().backward()
    except UserError:
        return None
    return made.steps * int(counted.get_total_flops()) / 1e12


def beside(modality: Modality) -> dict[str, float | None]:
    """TFLOP of each training that goes on beside the model's."""
    return {name: side_tflop(f"the {name}", training) for name, training in modality.beside.items()}


def judges(modality: Modality) -> dict[str, float | None]:
    """TFLOP of the judge of each attribute with classes, where the modality's metrics say how judges are trained."""
    metrics = modality.metrics
    if not isinstance(metrics, CountedJudges):
        return {}
    named = [name for name, spec in modality.conditions.items() if isinstance(spec, Label)]
    return {name: side_tflop(f"the judge of {name}", partial(metrics.judge_training, modality.data, name)) for name in named}


def cost(
    modality: Modality,
    denoiser: Denoiser,
    trainer: Trainer,
    sampler: Sampler,
    sampling_steps: int,
    *,
    loss: Criterion | None = None,
    times: Times | None = None,
    dropout: Dropout | None = None,
    name: str = "",
    device: str | float = "h100",
    utilisation: float = 0.4,
) -> Cost:
    """What a model of fake tensors (`imagined`) costs, trained and sampled like this.

    Args:
        loss, times, dropout: as `Objective` takes them.
        device: a name in PEAKS, or its FLOP/s.
        utilisation: the share of these that is reached; what is counted takes ``flops / (utilisation * peak)`` seconds.

    Raises: UserError for a device or a utilisation that is none, and for a network that cannot be run without numbers.
    """
    if isinstance(utilisation, bool) or not isinstance(utilisation, int | float) or not 0 < utilisation <= 1:
        raise UserError(f"utilisation is above 0 and at most 1, got {utilisation!r}")
    precision = precision_on(device, trainer.precision)
    fastest = peak(device, precision)
    modules = modality.modules()
    parts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    trained = sum(p.numel() for p in modules.parameters() if p.requires_grad)
    with shapes_only("the codec"):
        codec = modality.codec if raw_batch(modality, 1) is not None else None
    once = replace(denoiser, self_condition=False)  # the first guess is counted by itself
    objective = Objective(once, codec, loss, times, dropout, modality.conditions).train()
    micro = trainer.batch_size // trainer.accumulate
    n = max(1, min(micro, MOST // math.prod(modality.shape)))
    taken = step(objective, modality, n, precision)
    drawn = evaluation(modality, denoiser)
    forward, backward = taken.forward / n, taken.backward / n
    again = SELF_CONDITIONED * drawn.denoise if denoiser.self_condition else 0.0
    of_a_step = trainer.batch_size * (forward + backward + again)
    rows, terms = evaluations(denoiser, sampler, sampling_steps, bool(modality.conditions))
    held = sum(t.numel() * t.element_size() for t in (*modules.parameters(), *modules.buffers()))
    gradients = sum(p.numel() * p.element_size() for p in modules.parameters() if p.requires_grad)
    # Gradients that are summed over micro-batches are there when the next one begins.
    most = (taken.peak - gradients) * micro // n + gradients * (1 if trainer.accumulate == 1 else 2)
    memory = {"weights": held, "gradients": gradients, "moments": 2 * gradients, "average": held, "activations": taken.kept * micro // n}
    memory["passing"] = max(most - gradients - memory["activations"], 0)
    seconds = trainer.steps * of_a_step / (utilisation * fastest)
    return Cost(
        name=name,
        shape=modality.shape,
        parameters={"network": 0, "codec": 0, **parts, "total": sum(parts.values()), "trained": trained},
        flops={
            "embed": drawn.embed,
            "evaluation": drawn.denoise,
            "forward": forward,
            "backward": backward,
            "again": again,
            "training": forward + backward + again,
        },
        memory={**memory, "total": sum(memory.values())},
        micro_batch=micro,
        precision=precision,
        sampling={
            "sampler": type(sampler).__name__,
            "steps": sampling_steps,
            "evaluations": rows,
            "flops": terms * drawn.embed + rows * drawn.denoise + rows / terms * drawn.project,
        },
        training={
            "steps": trainer.steps,
            "batch_size": trainer.batch_size,
            "step_flops": of_a_step,
            "flops": trainer.steps * of_a_step,
            "device": device,
            "peak": fastest,
            "utilisation": utilisation,
            "days": seconds / 86400,
        },
        beside=beside(modality),
        judges=judges(modality),
    )
