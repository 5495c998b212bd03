"""Guidance by the gradient of any number that a sample can be given: a classifier's log-probability, a reward, a reconstruction's error.

The score of  p_t(x_t) h(x_t)^s  is  grad log p_t(x_t) + s grad log h(x_t).  Where log h is a function of x_t itself (a classifier of noisy
data; Dhariwal & Nichol, 2105.05233) nothing but its own gradient is needed; where it is one of clean data it is taken at the predicted x0,
and its gradient goes back through the network (Ho et al., 2204.03458; Chung et al., 2209.14687).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.errors import UserError
from guidance.guide import CFG, Guidance, Term, Weight, check_guidance, check_weight, evaluate, weight_rows
from guidance.parameterization import Prediction
from guidance.process import Level

if TYPE_CHECKING:
    from guidance.classifier import NoiseAware
    from guidance.model import Model


@runtime_checkable
class Score(Protocol):
    """What guidance raises: a number a sample, log h.

    It may have ``low``, the log-SNR below which it does not count; `of(model, n)` (see `PerModel`), `begin(condition)` (see `PerRun`) and
    `rows(rows, n)` (see `PerSample`), each giving a score; and `check(condition)`, which refuses the condition of a whole run.
    """

    @property
    def clean(self) -> bool:
        """Whether it is a function of x0, and so is given the predicted one, or of x_t."""
        ...

    def __call__(self, x: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b"]:
        """The number of each sample, differentiable: of the predicted x0, before any projection, where it is `clean`; of x_t otherwise."""
        ...


NOISIEST = -6.0
"""The log-SNR below which the predicted x0 is all but the mean of the data: the gradient through a trained network is then its error, which
steps multiply by sigma^2 / alpha."""


@dataclass(frozen=True)
class Reward:
    """log h = function(x0), of the predicted x0; nothing at levels noisier than the log-SNR ``low``, as for every score that has one."""

    function: Callable[[Tensor], Tensor]
    low: float = NOISIEST

    clean = True

    def __call__(self, x: Float[Tensor, "b *d"], level: Level) -> Any:
        return self.function(x)


@dataclass(frozen=True)
class NoisyReward:
    """log h = function(x_t, logsnr), of noisy data itself. x_t is in variance-preserving scale."""

    function: Callable[[Tensor, float], Tensor]

    clean = False

    def __call__(self, x: Float[Tensor, "b *d"], level: Level) -> Any:
        return self.function(x / level.norm, level.logsnr.item())


@dataclass(frozen=True)
class Reconstruction:
    """log h = -|mask (x0 - values)|^2 / (2 deviation^2): that x0 is ``values`` where the mask says so, up to a deviation.

    With ``deviation=lambda logsnr: math.exp(-logsnr / 2)``, which is sigma / alpha, it is Ho et al.'s reconstruction guidance (2204.03458,
    eq. 7; their w is the scale).

    Args:
        values: [b, *d], or [1, *d] for all samples.
        mask: what counts, of a shape that spreads to that of the values, batch first; all by default.
        deviation: above 0: a number, a list of one a sample, or a function of logsnr.
        low: the log-SNR below which it does not count.
    """

    values: Float[Tensor, "b *d"] = field(repr=False)
    mask: Tensor | None = field(default=None, repr=False)
    deviation: Weight = 1.0
    low: float = NOISIEST

    clean = True

    def __post_init__(self) -> None:
        for what, given in (("values", self.values), ("mask", self.mask)):
            if given is not None and not isinstance(given, Tensor):
                raise UserError(f"the {what} of a reconstruction are a tensor, one sample after the other, got {type(given).__name__}")
        if not self.values.is_floating_point():
            raise UserError(
                f"the values of a reconstruction are x0, as the codec encodes it (pixels from -1 to 1), got {self.values.dtype}"
            )
        object.__setattr__(self, "deviation", check_weight(self.deviation, "the deviation of a reconstruction"))
        self._positive(1.0 if callable(self.deviation) else self.deviation)

    def _positive(self, deviation: float | Tensor) -> float | Tensor:
        if not bool((torch.as_tensor(deviation) > 0).all()):
            raise UserError(f"the deviation of a reconstruction is above 0, got {deviation!r}")
        return deviation

    def rows(self, rows: slice, n: int) -> "Reconstruction":
        mask = None if self.mask is None else some(self.mask, rows, n, "masks")
        return replace(
            self,
            values=some(self.values, rows, n, "values to reconstruct"),
            mask=mask,
            deviation=weight_rows(self.deviation, rows, n, "deviations"),
        )

    def __call__(self, x: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b"]:
        away = x - self._spread(self.values, x, "values")
        if self.mask is not None:
            away = self._spread(self.mask, x, "mask") * away
        deviation = self._positive(evaluate(self.deviation, level.logsnr.item()))
        if isinstance(deviation, Tensor):
            deviation = deviation.to(x)
        return -away.flatten(1).square().sum(1) / (2 * deviation**2)

    def _spread(self, given: Tensor, x: Tensor, what: str) -> Tensor:
        try:
            return given.to(x).expand(x.shape)
        except RuntimeError:
            raise UserError(f"the {what} of a reconstruction are {list(given.shape)}, and x0 is {list(x.shape)}, one a sample") from None


@dataclass(frozen=True)
class Steered:
    """``inside``, whose score is added scale * grad log h(x_t): the gradient in x_t of a `Score`.

    Steps take it as algorithm 2 of Dhariwal & Nichol does (x0 and eps that hold it), `DDPM` as algorithm 1 (a shift of the mean). 0 is
    ``inside`` alone, and costs nothing. Steered by several scores, one around the other, the gradients add up.

    Args:
        inside: the guidance that is steered.
        score: what is raised.
        scale: a number, a list of one a sample, or a function of logsnr.
    """

    inside: Guidance
    score: Score
    scale: Weight = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_weight(self.scale, "guidance.scale"))
        check_guidance(self.inside, "guidance.inside")
        if isinstance(self.score, type) or not isinstance(self.score, Score):
            raise UserError(f"guidance.score is an object such as Reward(function), got {self.score!r}")

    @classmethod
    def by_classifier(cls, classifier: "NoiseAware", scale: Weight = 1.0, inside: Guidance | None = None) -> "Steered":
        """Towards the classes that the condition asks for, by a classifier of noisy data. ``inside`` is the unconditional model by
        default: a scale s then aims at p(x) p(y|x)^s, as CFG does at s."""
        from guidance.classifier import ClassScore

        return cls(CFG(0.0) if inside is None else inside, ClassScore(classifier), scale)

    @property
    def differentiates(self) -> bool:
        """Whether the gradient goes through the network."""
        return self.score.clean and not (isinstance(self.scale, float) and self.scale == 0)

    def of(self, model: "Model", n: int) -> "Steered":
        return self._with("of", model, n)

    def begin(self, condition: Condition) -> "Steered":
        return self._with("begin", condition)

    def rows(self, rows: slice, n: int) -> "Steered":
        return replace(self._with("rows", rows, n), scale=weight_rows(self.scale, rows, n, "guidance scales"))

    def _with(self, method: str, *arguments: Any) -> "Steered":
        change = getattr(self.score, method, None)
        return self if change is None else replace(self, score=change(*arguments))

    def terms(self, condition: Condition) -> Sequence[Term]:
        if (check := getattr(self.score, "check", None)) is not None:
            check(condition)
        return self.inside.terms(condition)

    def combine(self, terms: Sequence[Term], predictions: Sequence[Prediction], x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        prediction = self.inside.combine(terms, predictions, x_t, level)
        if level.logsnr.item() < getattr(self.score, "low", -math.inf):
            return prediction
        scale = evaluate(self.scale, level.logsnr.item())
        if isinstance(scale, Tensor) and scale.ndim:
            if len(scale) != len(x_t):
                raise UserError(f"{len(scale)} guidance scales were given for {len(x_t)} samples")
            scale = scale.to(x_t).view(-1, *(1,) * (x_t.ndim - 1))
        elif scale == 0:
            return prediction
        found = scale * gradient(self.score, prediction.x0, x_t, level)
        return replace(prediction, gradient=found if prediction.gradient is None else prediction.gradient + found)


def gradient(score: Score, x0: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], level: Level) -> Float[Tensor, "b *d"]:
    """The gradient of a score in x_t, where x0 follows from x_t.

    Raises: UserError where the score is not one finite number a sample that can be differentiated, or fails.
    """
    name, right = called(score), "it gives one finite number a sample, by operations that can be differentiated"
    where = f"at logsnr {level.logsnr.item():.3g}"
    with torch.enable_grad():
        leaf = x_t if score.clean else x_t.detach().requires_grad_()
        seen = x0 if score.clean else leaf
        try:
            value: Any = score(seen, level)
        except UserError:
            raise
        except Exception as error:  # of whoever wrote it
            said = " ".join(str(error).split())[:200]
            of = f"{'x0' if score.clean else 'x_t'} of shape {list(seen.shape)}"
            raise UserError(f"{name} failed on {of}: {type(error).__name__}{': ' + said if said else ''}; {right}") from error
        if not isinstance(value, Tensor) or value.shape != x_t.shape[:1]:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"{name} gives {got} for {len(x_t)} samples; {right}, of shape [{len(x_t)}]")
        if not bool(value.isfinite().all()):
            raise UserError(f"{name} gives {value[~value.isfinite()][0].item()} {where}; {right}")
        found = None
        if value.requires_grad:
            # Kept, for whatever else is steered through the same network call.
            (found,) = torch.autograd.grad(value.sum(), leaf, retain_graph=score.clean, allow_unused=True)
    if found is None:
        raise UserError(f"{name} does not depend on {'x0' if score.clean else 'x_t'} in a way that can be differentiated; {right}")
    if not bool(found.isfinite().all()):
        raise UserError(f"the gradient of {name} is NaN or infinite {where}; {right}")
    return found


def called(score: Score) -> str:
    """A score by its name, or by that of its function."""
    function = getattr(score, "function", None)
    name = getattr(function, "__qualname__", type(function).__name__) if function is not None else ""
    return f"the score {type(score).__name__}({name})" if name else f"the score {type(score).__name__}"


def some(values: Tensor, rows: slice, n: int, what: str) -> Tensor:
    """Some samples' part of values that are one a sample, or one for all."""
    if len(values) not in (1, n):
        raise UserError(f"{len(values)} {what} were given for {n} samples: one a sample, or one for all")
    return values if len(values) == 1 else values[rows]
