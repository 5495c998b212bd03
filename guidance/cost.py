"""What a model costs: parameters, FLOPs and memory, found by running it on tensors that have shapes and no numbers.

Nothing is assumed of a network. The forward pass and the training step run as they are, on torch's fake tensors, so that the largest model
takes seconds; `FlopCounterMode` counts their products, and autograd says what it keeps for the way back.
"""

import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from guidance.condition import Condition, Dropout
from guidance.config import build
from guidance.denoiser import Denoiser
from guidance.errors import UserError, one_of
from guidance.guide import CFG
from guidance.loss import Criterion, Times
from guidance.modality import Modality
from guidance.model import PRECISIONS, with_codec
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

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""Tensors that are made while it is entered have shapes and no numbers."""

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
    of one, and the days that all take on one device.
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

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def peak(device: str | float, precision: str) -> float:
    """The FLOP/s of a device in a precision, or the number that was given."""
    if isinstance(device, str):
        if device not in PEAKS:
            raise one_of("device", device, [*PEAKS, "a number of FLOP/s"])
        return PEAKS[device][precision == "no"]
    if isinstance(device, bool) or not isinstance(device, int | float) or not 0 < device < float("inf"):
        raise UserError(f"device is one of {', '.join(PEAKS)}, or a number of FLOP/s, got {device!r}")
    return float(device)


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


def imagine(module: nn.Module) -> None:
    """Parameters and buffers become fake tensors on the CPU, in place; what is shared stays so."""
    made: dict[Tensor, Tensor] = {}
    with FAKE:
        for part in module.modules():
            for name, old in part._parameters.items():
                if old is not None:
                    new = made.setdefault(old, nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=old.requires_grad))
                    part._parameters[name] = cast(nn.Parameter, new)
            for name, held in part._buffers.items():
                if held is not None:
                    part._buffers[name] = made.setdefault(held, torch.empty(held.shape, dtype=held.dtype))


@contextmanager
def shapes_only(what: str) -> Iterator[None]:
    """Fake tensors inside; UserError where numbers would be needed."""
    try:
        with FAKE:
            yield
    except UserError:
        raise
    except Exception as error:  # of torch's, of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{what} cannot be run on shapes alone, so that its cost is not found: {reason}") from error


def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of the fused attention: the scores, and the mean of the values."""
    return int(sdpa_flop_count(query, key, value))


def attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The scores once more, and the products of their gradients."""
    return int(sdpa_backward_flop_count(grad, query, key, value))


def counter() -> FlopCounterMode:
    """torch's, which counts the fused attention of GPUs, told of that of the CPU, where fake tensors are."""
    ops = torch.ops.aten
    fused, back = ops._scaled_dot_product_flash_attention_for_cpu, ops._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={fused: attention, back: attention_backward})


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


class Alive(TorchDispatchMode):
    """The bytes of all tensors that were made while it is entered and still are, and their ``peak``; each storage once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in self._held | given:
                self._held.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, number: int, size: int) -> None:
        self._held.discard(number)
        self.now -= size


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
        dtype = PRECISIONS[precision]
        with (
            Alive() as alive,
            torch.enable_grad(),
            counter() as forward,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
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
    fastest = peak(device, trainer.precision)
    modules = modality.modules()
    parts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    trained = sum(p.numel() for p in modules.parameters() if p.requires_grad)
    with shapes_only("the codec"):
        codec = modality.codec if raw_batch(modality, 1) is not None else None
    once = replace(denoiser, self_condition=False)  # the first guess is counted by itself
    objective = Objective(once, codec, loss, times, dropout, modality.conditions).train()
    micro = trainer.batch_size // trainer.accumulate
    n = max(1, min(micro, MOST // math.prod(modality.shape)))
    taken = step(objective, modality, n, trainer.precision)
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
        precision=trainer.precision,
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
    )


LEFT_OUT = "FLOPs are of convolutions and matrix products; elementwise work, norms, softmax, transforms and the optimizer are left out"


def short(number: float, unit: str = "") -> str:
    """With three digits: 35.7 M, 12.2 GFLOP; FLOPs and bytes in powers of ten."""
    for factor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * factor:
            return f"{digits(number / factor)} {letter}{unit}"
    return f"{digits(number)} {unit}".strip()


def digits(number: float) -> str:
    """Three of them, and no more before the point than there are."""
    return f"{number:.0f}" if number >= 99.95 or number == 0 else f"{number:.1f}" if number >= 9.995 else f"{number:.3g}"


def table(cost: Cost) -> str:
    """As people read it."""
    p, f, m, s, t = cost.parameters, cost.flops, cost.memory, cost.sampling, cost.training
    device = t["device"] if isinstance(t["device"], str) else "device"
    parts = ", ".join(f"{name} {short(p[name])}" for name in p if name not in ("total", "trained") and p[name])
    rows = [
        ("x0", " x ".join(map(str, cost.shape))),
        ("parameters", f"{p['total']:,} ({parts}; trained {short(p['trained'])})"),
        ("one evaluation", f"{short(f['evaluation'], 'FLOP')}, and {short(f['embed'], 'FLOP')} for a condition, once a sampling run"),
        (
            "training a sample",
            f"{short(f['training'], 'FLOP')}: forward {short(f['forward'], 'FLOP')}, backward {short(f['backward'], 'FLOP')}",
        ),
        ("a step", f"{short(t['step_flops'], 'FLOP')}, {t['batch_size']} samples"),
        ("memory", f"{short(m['total'], 'B')}, {cost.micro_batch} samples at a time, precision {cost.precision}"),
        *((f"  {name}", short(m[name], "B")) for name in m if name != "total"),
        ("drawing a sample", f"{short(s['flops'], 'FLOP')}: {s['sampler']}, {s['steps']} steps, {digits(s['evaluations'])} evaluations"),
        ("training", f"{short(t['flops'], 'FLOP')}: {t['steps']:,} steps"),
        (f"{device}-days", f"{digits(t['days'])} at {digits(100 * t['utilisation'])} % of {short(t['peak'], 'FLOP/s')}"),
    ]
    if f["again"]:
        rows[3] = (rows[3][0], f"{rows[3][1]}, first guesses {short(f['again'], 'FLOP')} ({SELF_CONDITIONED:g} of the steps)")
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {what}\n" for name, what in rows) + LEFT_OUT + "\n"


COLUMNS = (
    *("recipe", "parameters", "an evaluation", "training a sample", "a step", "weights, gradients, moments, average"),
    *("activations", "passing", "a sample drawn", "training", "days"),
)


def row(cost: Cost) -> str:
    """As a line of a Markdown table of COLUMNS."""
    f, m, s, t = cost.flops, cost.memory, cost.sampling, cost.training
    cells = [
        f"`{cost.name}`",
        short(cost.parameters["total"]),
        short(f["evaluation"], "FLOP"),
        short(f["training"], "FLOP"),
        f"{short(t['step_flops'], 'FLOP')} ({t['batch_size']})",
        short(m["total"] - m["activations"] - m["passing"], "B"),
        f"{short(m['activations'], 'B')} ({cost.micro_batch})",
        short(m["passing"], "B"),
        f"{short(s['flops'], 'FLOP')} ({s['steps']})",
        f"{short(t['flops'], 'FLOP')} ({t['steps']:,})",
        digits(t["days"]),
    ]
    return f"| {' | '.join(cells)} |"
