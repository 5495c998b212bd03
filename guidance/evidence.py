"""Evidence: how likely x_t is under each of several conditions, which logic on conditions has to know (`guidance.logic`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError, one_of
from guidance.guide import Guidance, Term, nested
from guidance.guided import GuidedDenoiser
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.ddim import ancestral
from guidance.sampler.ddpm import transition_variance
from guidance.sampler.loop import Sampler, layers

if TYPE_CHECKING:
    from guidance.model import Model


@runtime_checkable
class Evidence(Protocol):
    """What x_t says of conditions: a density, a classifier's answer, or the path that led to it.

    Optional methods are those of a guidance: ``of(model, n)``, and ``check(guided, sampler)``; see also `Remembering`.
    """

    def log_p(
        self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level
    ) -> Float[Tensor, "k b"]:
        """log p_t(x_t | c_k) of each term's condition, up to a number a sample that is the same for all terms."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """`Evidence` that goes by what it saw at earlier steps."""

    def begin(self, low: float, high: float) -> Evidence:
        """Itself for one run, with an empty memory, that keeps log p(x_t | c_k) - log p(x_t | c_0) between these bounds."""
        ...


@dataclass(frozen=True)
class ByDensity:
    """The density itself, of a denoiser whose network knows it (`Mixture`). Costs one evaluation of the density a term and step."""

    denoiser: Denoiser

    def log_p(
        self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level
    ) -> Float[Tensor, "k b"]:
        """log p_t(x_t | c_k) of each term. UserError where the network knows no density."""
        contexts = [self.denoiser.network.embed(term.condition.to(x_t.device)) for term in terms]
        return torch.stack([self.denoiser.log_density(x_t, level, context) for context in contexts]).double()


@runtime_checkable
class LogProb(Protocol):
    """A classifier of noisy x_t."""

    def log_prob(self, x_t: Float[Tensor, "b *d"], level: Level) -> Mapping[str, Float[Tensor, "b classes"]]:
        """log p(class | x_t) of each attribute that it knows."""
        ...


@dataclass(frozen=True)
class ByClassifier:
    """Bayes' rule from a classifier of noisy x_t: log p_t(x_t | c) = log p(c | x_t) - log p(c), up to a constant.

    As good as the classifier, and of conditions with several attributes only as far as they are independent given x_t: their
    log-probabilities are added. One evaluation of the classifier a step.

    Args:
        classifier: an object with `log_prob`.
        prior: for each attribute the shares of its classes in what the classifier was trained on; equal by default.
    """

    classifier: LogProb
    prior: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, LogProb):
            raise UserError(f"evidence by a classifier needs an object with log_prob(x_t, level), got {self.classifier!r}")
        for name, shares in self.prior.items():
            if not all(share > 0 for share in shares):
                raise UserError(f"the prior of {name} is a list of positive shares, one a class, got {shares}")

    def of(self, model: "Model", n: int) -> "ByClassifier":
        """Itself. UserError where the classifier has a ``check(model)`` that finds it to be of something else."""
        check = getattr(self.classifier, "check", None)
        if check is not None:
            check(model)
        return self

    def log_p(
        self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level
    ) -> Float[Tensor, "k b"]:
        """The sum over the attributes in which the terms differ. UserError for one that the classifier does not know."""
        known = self.classifier.log_prob(x_t, level)
        first, *others = parts = [_by_attribute(term.condition) for term in terms]
        names = [name for name in first if not all(bool(first[name].same(other[name]).all()) for other in others)]
        return torch.stack([self._of({name: part[name] for name in names}, known, x_t) for part in parts])

    def _of(self, parts: Mapping[str, Condition], known: Mapping[str, Tensor], x_t: Tensor) -> Tensor:
        total = torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device)
        for name, condition in parts.items():
            keep = condition.keep[name]
            if not bool(keep.any()):
                continue
            if name not in known:
                raise one_of("attribute of the classifier", name, list(known))
            log_p, classes, keep = known[name].double(), condition.values[name].to(x_t.device), keep.to(x_t.device)
            if classes.ndim != 1 or int(classes[keep].max()) >= log_p.shape[1]:
                raise UserError(f"the classifier tells {log_p.shape[1]} classes of {name} apart, and the condition names another one")
            shares = torch.tensor(self.prior.get(name, [1.0] * log_p.shape[1]), dtype=torch.float64, device=x_t.device)
            if len(shares) != log_p.shape[1]:
                raise UserError(f"the prior of {name} has {len(shares)} shares for {log_p.shape[1]} classes")
            above = log_p - (shares / shares.sum()).log()
            total = total + torch.where(keep, above.gather(1, classes.clamp(0, log_p.shape[1] - 1)[:, None])[:, 0], 0.0)
        return total


def _by_attribute(condition: Condition) -> dict[str, Condition]:
    return {name: Condition({name: condition.values[name]}, {name: keep}) for name, keep in condition.keep.items()}


@dataclass
class _Path:
    """Where a run was last, what was predicted there, and the log-ratios to the first term so far."""

    x_t: Tensor | None = None
    level: Level | None = None
    x0: Sequence[Tensor] = ()
    log_ratio: Tensor | None = None


@dataclass(frozen=True)
class Tracked:
    """Bayes' rule along the path of an ancestral sampler, which costs no further evaluation (Koulischer et al., 2410.14398, algorithm 1).

    Given x_s, a noisier x_t says nothing more of the condition, so that p(x_s | c) / p(x_s) is p(x_t | c) / p(x_t), which is 1 at the
    start, times  p(x_s | x_t, c) / p(x_s | x_t).  These kernels are taken to be the ancestral step's Gaussians
    N(mu_c, v), of which mu_c follows from the prediction of x0:

        log p(x_s | x_t, c) - log p(x_s | x_t) = (|x_s - mu|^2 - |x_s - mu_c|^2) / 2v,    v = (sigma_s / sigma_t)^2 sigma_ts^2

    In the limit of many steps of an exact model that is exact. It needs the noise of those kernels: along a deterministic path,
    whose noise is none, the same sum converges to something else.

    Args:
        temperature: a factor of the difference of squares, as in the paper's code; below 1 trusts the model less.
        offset: added to the difference of squares of every condition but the first, in squared units of variance-preserving x_t.
        low, high, path: of a run, set by `begin`.
    """

    temperature: float = 1.0
    offset: float = 0.0
    low: float = field(default=-math.inf, repr=False, compare=False)
    high: float = field(default=math.inf, repr=False, compare=False)
    path: _Path | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("temperature", "offset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"the {name} of tracked evidence is a finite number, got {value!r}")

    def begin(self, low: float, high: float) -> "Tracked":
        return replace(self, low=low, high=high, path=_Path())

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        """UserError unless each step adds the noise of the reverse process, once, from noise to data, and all steps are seen."""
        from guidance.rules import Interval

        *outer, innermost = layers(sampler)
        if not ancestral(innermost):
            raise UserError(
                f"tracked evidence is the probability of the steps of an ancestral sampler, and those of {innermost!r} are not drawn "
                "with the noise of the reverse process: take sampler=ddpm, ddim with eta=1 or dpm with sde=true, or other evidence "
                "(guidance/evidence=classifier)"
            )
        corrector = next((layer for layer in outer if getattr(layer, "corrects", False)), None)
        if corrector is not None:
            raise UserError(
                f"tracked evidence is the probability of the steps from noise to data, and {type(corrector).__name__} moves samples "
                f"between them: take {type(innermost).__name__} alone, or other evidence (guidance=either or complement with "
                "guidance/evidence=classifier)"
            )
        for part in nested(guided.guidance):
            if isinstance(part, Interval) and any(_evidence(inner) is self for inner in nested(part)):
                raise UserError("tracked evidence has to see every step, and within an interval it would miss those outside of it")

    def log_p(
        self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level
    ) -> Float[Tensor, "k b"]:
        """The log-ratio of each term to the first. UserError where noise did not fall since the last step."""
        path = self.path
        if path is None:
            raise UserError("tracked evidence belongs to a run, which GuidedDenoiser begins")
        if path.x_t is None or path.level is None or path.log_ratio is None:
            ratio = torch.zeros(len(terms), len(x_t), dtype=torch.float64, device=x_t.device)
        elif not float(level.logsnr) > float(path.level.logsnr):
            raise UserError("tracked evidence follows a path from noise to data, and this sampler went back, or asked twice at one level")
        else:
            ratio = (path.log_ratio + self._step(path.x0, path.x_t, path.level, x_t, level)).clamp(self.low, self.high)
            ratio[0] = 0.0
        path.x_t, path.level, path.x0, path.log_ratio = x_t.detach(), level, [p.x0.detach() for p in predictions], ratio
        return ratio

    def _step(self, x0: Sequence[Tensor], before: Tensor, now: Level, after: Tensor, then: Level) -> Float[Tensor, "k b"]:
        """What a step says: the difference of squares as  <mu_k - mu_0, 2 x_s - mu_0 - mu_k>,  since both are nearly the same."""
        added, variance = transition_variance(now, then), (then.sigma / now.sigma) ** 2 * transition_variance(now, then)
        of_x, of_x0 = now.alpha / then.alpha * (then.sigma / now.sigma) ** 2, then.alpha * added / now.sigma**2
        base, *_ = means = [of_x0 * guess.double() for guess in x0]
        moved = after.double() - of_x * before.double()
        squares = torch.stack([((mean - base) * (2 * moved - base - mean)).flatten(1).sum(1) for mean in means])
        return (self.temperature * squares + self.offset * then.norm**2) / (2 * variance)


def _evidence(guidance: Guidance) -> object:
    return getattr(guidance, "evidence", None)
