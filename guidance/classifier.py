"""Classifiers of noisy data, p(y | x_t), for guidance by their gradient (Dhariwal & Nichol, 2105.05233; Song et al., 2011.13456).

A trained one is the network of a run with a head for each attribute: the network, all attributes absent, makes features of x_t, and a
norm and a linear layer make classes of those. It is begun from the run's weights, which know what noisy data looks like.

For little data in much noise, log p(y | x_t) = log p(y) + alpha <x_t, E[x0 | y] - E[x0]> / sigma^2 + ...: its gradient shrinks with alpha,
and a sampler divides by alpha what it makes of it. So a network's logits are multiplied by alpha here; what is left of the noise of its
training would otherwise be blown up ten thousand times by the first steps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from guidance import checkpoint
from guidance.analytic import Mixture
from guidance.condition import ByName, Condition, ConditionSpec, Label
from guidance.denoiser import LOGSNR_LIMIT, Context, Denoiser, Network
from guidance.errors import UserError, one_of
from guidance.loss import Times
from guidance.modality import Codec, Split
from guidance.noise import Stream, normal, uniform
from guidance.process import Level, corrupt, level
from guidance.schedule import Schedule, inverse, logsnr
from guidance.split import pick

if TYPE_CHECKING:
    from guidance.model import Model
    from guidance.train import Place

ACCURACY = "accuracy.json"
SECTION = "classifier"  # of a classifier's config, which a model's lacks
LOGSNRS = (-10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0)
HELD_OUT = 2000  # items that the accuracy is measured on, at most


@runtime_checkable
class Featured(Protocol):
    """A `Network` that says what it makes of x_t before it says what it predicts, so that a classifier can begin from it."""

    def features(
        self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"], context: Context, x0_hat: Float[Tensor, "b *d"] | None = None
    ) -> Float[Tensor, "b width"]:
        """One vector a sample, of what the network is called with."""
        ...


class NoisyClassifier(nn.Module):
    """x_t and its log-SNR, as networks see them -> the logits of every attribute's classes: prior + alpha head(features).

    Args:
        network: whose features are classified: those of a `Featured` network, of any other its whole output.
        conditions: the attributes that the network knows, all of them absent here.
        classes: of each attribute that is classified, how many.
        width: of the features.
    """

    def __init__(self, network: Network, conditions: Mapping[str, ConditionSpec], classes: Mapping[str, int], width: int):
        super().__init__()
        self.network, self.conditions = network, conditions
        heads = {name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, count, bias=False)) for name, count in classes.items()}
        self.heads = ByName(heads)
        self.priors = nn.ParameterDict({name: torch.zeros(count) for name, count in classes.items()})

    def forward(self, x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"]) -> dict[str, Float[Tensor, "b classes"]]:
        features = features_of(self.network, self.conditions, x_t, logsnr)
        alpha = logsnr.sigmoid().sqrt()[:, None]
        return {name: self.priors[name] + alpha * head(features).float() for name, head in self.heads.items()}


def features_of(
    network: Network, conditions: Mapping[str, ConditionSpec], x_t: Float[Tensor, "b *d"], logsnr: Float[Tensor, "b"]
) -> Float[Tensor, "b width"]:
    """What a network makes of x_t without knowing any attribute."""
    values = {name: spec.absent()[None].to(x_t.device) for name, spec in conditions.items()}
    nothing = Condition(values, {name: torch.zeros(1, dtype=torch.bool, device=x_t.device) for name in values})
    context = tree_map(lambda t: t.expand(len(x_t), *t.shape[1:]) if isinstance(t, Tensor) else t, network.embed(nothing))
    if isinstance(network, Featured):
        return network.features(x_t, logsnr, context)
    return network(x_t, logsnr, context).flatten(1)


class Classifying(nn.Module):
    """The loss of a classifier of noisy data: -log p(y | x_t), summed over the attributes that are known of an item.

    The codec is the run's, and stays as it is. What the classes are not read off (a U-Net's way up) stays as it is, too.
    """

    def __init__(self, network: NoisyClassifier, denoiser: Denoiser, codec: Codec, times: Times):
        super().__init__()
        self.network, self.denoiser, self.codec, self.times = network, denoiser, codec, times
        parts: dict[str, Any] = {"network": network, "codec": codec}
        self.trained = nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
        if isinstance(codec, nn.Module):
            codec.requires_grad_(False)

    def forward(self, raw: Any, condition: Condition, at: "Place") -> Float[Tensor, "b"]:
        """The loss of each item at a noise level of its own."""
        with torch.no_grad():
            x0 = self.codec.encode(raw)
        u = uniform(at.seed, Stream.TIME, 0, at.first, len(x0))[:, 0]
        t = self.times(u, at.offset + torch.arange(len(x0)), at.batch)
        eps = normal(at.seed, Stream.CORRUPT, 0, at.first, tuple(x0.shape)).to(x0)
        now = level(self.denoiser.schedule, t, x0)
        logits = self.network(*self.denoiser.seen(corrupt(x0, eps, now), now))
        loss = torch.zeros(len(x0), device=x0.device)
        for name, said in logits.items():
            loss = loss + torch.where(condition.keep[name], functional.cross_entropy(said, known(condition, name), reduction="none"), 0.0)
        return loss

    def settle(self, x0: Float[Tensor, "b *d"]) -> None:
        """Leave out of training what no class depends on."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        said = self.network(x0, x0.new_zeros(len(x0)))
        found = torch.autograd.grad(sum(t.sum() for t in said.values()), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.requires_grad_(gradient is not None)


def known(condition: Condition, name: str) -> Int[Tensor, "b"]:
    """An attribute's classes; 0 where it is absent, whatever stands there."""
    return torch.where(condition.keep[name], condition.values[name], 0)


@runtime_checkable
class NoiseAware(Protocol):
    """What classifies noisy data: p(class | x_t) of one attribute or several."""

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The names of each attribute's classes."""
        ...

    def log_prob(self, x_t: Float[Tensor, "b *d"], level: Level) -> Mapping[str, Float[Tensor, "b classes"]]:
        """log p(class | x_t) of every attribute, differentiable in x_t."""
        ...


@dataclass(frozen=True, eq=False)
class Classifier:
    """A classifier of noisy data that `polyguide train-classifier` trained.

    ``classes``: of each attribute that it knows, by name. ``accuracy``: of each attribute, the share of held-out items that are classified
    rightly, by log-SNR (empty where it was not measured). ``denoiser`` is the trunk's, with the schedule that it was trained on.
    """

    network: NoisyClassifier = field(repr=False)
    classes: Mapping[str, tuple[str, ...]]
    denoiser: Denoiser = field(repr=False)
    codec: Codec = field(repr=False)
    shape: tuple[int, ...] | None = None  # None: items differ in it
    accuracy: Mapping[str, Mapping[float, float]] = field(default_factory=dict, repr=False)
    run: Path | None = None

    @classmethod
    def load(cls, run: str, step: int | None = None, average: bool = True) -> "Classifier":
        """The classifier of a run folder: its newest checkpoint, or that of a step, averaged or not.

        Raises: UserError where there is none, or its files are cut short.
        """
        from guidance.model import assemble

        folder = Path(run)
        if not folder.is_dir():
            raise UserError(f"there is no classifier {run}; train one with: polyguide train-classifier run=RUN out={run}")
        config = checkpoint.read_config(folder)
        if SECTION not in config:
            raise UserError(
                f"{run} is a model, not a classifier; train one with: polyguide train-classifier run={run} out={run}-classifier"
            )
        modality, denoiser = assemble(checkpoint.located(config, folder))
        facts = config[SECTION]
        classes = {name: tuple(map(str, of)) for name, of in facts["attributes"].items()}
        network = NoisyClassifier(denoiser.network, modality.conditions, {name: len(of) for name, of in classes.items()}, facts["width"])
        if step is not None and step not in checkpoint.saved_steps(folder):
            raise one_of("checkpoint of step", step, [str(s) for s in checkpoint.saved_steps(folder)])
        place = checkpoint.latest(folder) if step is None else checkpoint.checkpoint_folder(folder, step)
        parts: dict[str, Any] = {"network": network, "codec": modality.codec}
        modules = nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})
        checkpoint.fill(modules, place / ("average.safetensors" if average else "model.safetensors"))
        modules.eval().requires_grad_(False)
        shape = tuple(modality.shape) if modality.shape_of is None else None
        return cls(network, classes, denoiser, modality.codec, shape, read_accuracy(folder), folder)

    @property
    def range(self) -> tuple[float, float]:
        """The log-SNRs that it was trained at, as far as networks are shown them."""
        ends = logsnr(self.denoiser.schedule, torch.tensor([1.0, 0.0], dtype=torch.float64))
        low, high = ends.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT).tolist()
        return low, high

    def log_prob(self, x_t: Float[Tensor, "b *d"], level: Level) -> Mapping[str, Float[Tensor, "b classes"]]:
        """log p(class | x_t) of every attribute, differentiable in x_t; on any schedule, within the log-SNRs that it was trained at.

        Raises: UserError at other log-SNRs.
        """
        low, high = self.range
        for visited in level.logsnr.flatten().clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT).aminmax():
            if not low - 0.01 <= visited <= high + 0.01:
                raise UserError(
                    f"{self.name} was trained at log-SNRs from {low:.3g} to {high:.3g}, and sampling visits {float(visited):.3g}: "
                    "sample along the schedule that it was trained on"
                )
        weight = next(self.network.parameters())
        if weight.device != x_t.device:
            self.network.to(x_t.device)
        said = self.network(*self.denoiser.seen(x_t.to(weight.dtype), level))
        return {name: logits.log_softmax(-1) for name, logits in said.items()}

    @property
    def name(self) -> str:
        return f"the classifier {self.run}" if self.run else "the classifier"

    def check(self, model: "Model") -> None:
        """UserError where it is of other attributes, other classes or other x0 than a model."""
        from guidance.reference import same_codec

        modality = model.modality
        for attribute, classes in self.classes.items():
            spec = modality.conditions.get(attribute)
            if not isinstance(spec, Label):
                raise UserError(f"{self.name} knows {attribute!r}, which the model does not: it is of other data")
            if spec.classes != classes:
                theirs, mine = (", ".join(names[:12]) for names in (spec.classes, classes))
                raise UserError(f"{self.name} knows other classes of {attribute} ({mine}) than the model ({theirs})")
        if self.shape is not None and modality.shape_of is None and tuple(modality.shape) != self.shape:
            raise UserError(f"{self.name} is of x0 of shape {list(self.shape)}, and the model of {list(modality.shape)}")
        if not same_codec(self.codec, modality.codec):
            raise UserError(f"{self.name} has another codec than the model (other token vectors, or another scale): train it on this run")


@dataclass(frozen=True, eq=False)
class MixtureClassifier:
    """The exact classifier of a `Mixture`'s classes, by Bayes' rule: p(y | x_t) is the weight of y's components in the posterior."""

    mixture: Mixture

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        return {name: tuple(map(str, range(int(of.max()) + 1))) for name, of in self.mixture.labels.items()}

    def log_prob(self, x_t: Float[Tensor, "b *d"], level: Level) -> Mapping[str, Float[Tensor, "b classes"]]:
        mixture, b = self.mixture, len(x_t)
        x, rows = mixture.denoiser().seen(x_t, level)
        found = {}
        for name, classes in self.classes.items():
            joint = []
            for k in range(len(classes)):
                context = mixture.embed(Condition.of(**{name: torch.full((b,), k, device=x.device)}))
                prior = mixture.weights[mixture.labels[name].to(x.device) == k].sum()
                joint.append(mixture.log_density(x, rows, context) + prior.log())
            found[name] = torch.stack(joint, -1).log_softmax(-1)
        return found


@dataclass(frozen=True)
class ClassScore:
    """sum_a log p(y_a | x_t) over the attributes a that the condition asks for: a `Score` of x_t. Absent ones do not count.

    Raises: UserError where the condition asks for none that the classifier knows; see also `Classifier.check`.
    """

    classifier: NoiseAware
    asked: Condition = field(default_factory=Condition, repr=False)

    clean = False

    def __post_init__(self) -> None:
        if isinstance(self.classifier, type) or not isinstance(self.classifier, NoiseAware):
            raise UserError(
                f"guidance.classifier is a classifier of noisy data, which polyguide train-classifier makes, got {self.classifier!r}; "
                "give its folder: guidance.classifier.run=RUN-classifier"
            )

    def of(self, model: "Model", n: int) -> "ClassScore":
        if isinstance(self.classifier, Classifier):
            self.classifier.check(model)
        return self

    def begin(self, condition: Condition) -> "ClassScore":
        return replace(self, asked=condition)

    def check(self, condition: Condition) -> None:
        """UserError where a run asks for no attribute that the classifier knows."""
        given = [name for name, keep in condition.keep.items() if bool(keep.any())]
        names = ", ".join(self.classifier.classes)
        if not given:
            raise UserError(f"guidance by a classifier needs a condition on what it knows ({names}), and there is none")
        if not set(given) & set(self.classifier.classes):
            raise UserError(f"the classifier knows {names}, and the condition asks for {', '.join(given)} alone")

    def __call__(self, x: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b"]:
        asked = self.asked.to(x.device)
        total = x.new_zeros(len(x)) + 0 * x.flatten(1).sum(1)  # nothing may be asked for, in some batch of a run
        for name, log_p in self.classifier.log_prob(x, level).items():
            if name in asked.keep:
                of = log_p.gather(1, known(asked, name)[:, None])[:, 0]
                total = total + torch.where(asked.keep[name], of, 0.0)
        return total


def read_accuracy(folder: Path) -> Mapping[str, Mapping[float, float]]:
    """What `accuracy.json` says; nothing where there is none."""
    try:
        found = json.loads((folder / ACCURACY).read_text())["accuracy"]
        return {name: {float(at): float(share) for at, share in of.items()} for name, of in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


@torch.no_grad()
def held_out(classifier: Classifier, split: Split, seed: int = 0, size: int = 250) -> list[dict[str, float]]:
    """At several log-SNRs: the share of held-out items that are classified rightly, and the mean of -log p(y | x_t), of every attribute.

    Items of which an attribute is not known do not count for it. The noise is a function of the seed and the item.
    """
    low, high = classifier.range
    items = pick(len(split), min(len(split), HELD_OUT))
    visited = [value for value in LOGSNRS if low <= value <= high]
    right: dict[tuple[float, str], list[Bool[Tensor, "b"]]] = {}
    lost: dict[tuple[float, str], list[Float[Tensor, "b"]]] = {}
    device = next(classifier.network.parameters()).device
    for first in range(0, len(items), size):
        raw, condition = split.__getitems__(items[first : first + size])
        x0 = classifier.codec.encode(tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, raw))
        eps, condition = normal(seed, Stream.CORRUPT, 1, first, tuple(x0.shape)).to(x0), condition.to(device)
        for value in visited:
            now = at(classifier.denoiser.schedule, value)
            for name, log_p in classifier.log_prob(corrupt(x0, eps, now), now).items():
                keep, is_so = condition.keep[name], known(condition, name)
                right.setdefault((value, name), []).append((log_p.argmax(-1) == is_so)[keep])
                lost.setdefault((value, name), []).append(-log_p.gather(1, is_so[:, None])[keep, 0])
    rows = []
    for value in visited:
        row = {"logsnr": value}
        for name in classifier.classes:
            row |= {name: float(torch.cat(right[value, name]).float().mean()), f"{name}_nll": float(torch.cat(lost[value, name]).mean())}
        rows.append(row)
    return rows


def at(schedule: Schedule, value: float) -> Level:
    """The schedule's level of a log-SNR."""
    of = torch.tensor(value, dtype=torch.float64)
    return level(schedule, inverse(schedule, of), of)
