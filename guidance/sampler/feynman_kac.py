"""Feynman-Kac correctors (Skreta et al., 2503.02819): samples that ask for the same are weighted particles of one density."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.errors import UserError
from guidance.guide import Term, WeightedSum, nested
from guidance.guided import GuidedDenoiser
from guidance.parameterization import Prediction
from guidance.process import Level
from guidance.sampler.ddim import ancestral
from guidance.sampler.dpm import DPMSolver
from guidance.sampler.langevin import Langevin
from guidance.sampler.loop import Draw, Past, Predict, Progress, Sampler, further, layers, uniform


@dataclass(frozen=True, kw_only=True)
class Weighted(Prediction):
    """The prediction of weighted particles: what a step of `FeynmanKac` remembers, and what its callbacks see.

    ``inner`` is the inner sampler's own; ``group`` says which particles ask for the same; ``log_weight`` (float64) the weights after this
    step's resampling, whose mean in a group estimates the integral of prod_k p_t(x | c_k)^(a_k); ``rate`` their growth (twice, in logsnr);
    ``effective`` the effective sample size of each one's group before the resampling, as a share of the group; ``origin`` the sample whose
    starting noise it comes from.
    """

    inner: Prediction
    group: Int[Tensor, "b"]
    log_weight: Float[Tensor, "b"]
    rate: Float[Tensor, "b"]
    effective: Float[Tensor, "b"]
    origin: Int[Tensor, "b"]


@dataclass(frozen=True)
class FeynmanKac:
    """``sampler``'s stochastic steps for prod_k p_t(x | c_k)^(a_k), sum a_k = 1, with weights for what they miss, and resampling:

        d log w = (d logsnr / 2) (|sum_k a_k eps_k|^2 - sum_k a_k |eps_k|^2)

    by the trapezium rule; over the last stretch, to clean data, the bracket falls like 1 / snr, and half of its last value is added. Within
    a step: the prediction, the weights, then, where the effective sample size 1 / sum w^2 of particles that ask for the same is below
    ``threshold`` times their number, systematic resampling, then ``sampler``'s step. At the end all are resampled once more, so that what
    is returned is equally weighted. Exact for exact scores as steps and particles grow. Costs what ``sampler`` does.

    Samples that ask for the same (all conditions and weights) and are drawn together interact: a sample is a function of the seed and of
    the batch that it is drawn in. Several may be copies of one, more of them the more dimensions vary and the stronger the guidance:
    ``Progress.prediction`` is a `Weighted`, which shows it. The particles of several batches do not see each other.

    The a_k are constant, one a sample if wanted; conditions and models may differ from term to term. A projection of x0 is part of
    ``sampler``'s steps only, and exactness is lost where it acts.

    Args:
        sampler: one with the noise of the reverse process: DDPM(), DDIM(eta=1), DPMSolver(sde=True), `Langevin` around one of them, or one
            of your own with an attribute ``sde = True``.
        threshold: 0 never resamples before the end; 1 does so at every step.
        particles: at least so many samples have to ask for the same.
    """

    corrects: ClassVar[bool] = True  # rows change places: what remembers them by their place is lost

    sampler: Sampler = field(default_factory=lambda: DPMSolver(sde=True))
    threshold: float = 0.9
    particles: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, Sampler) or isinstance(self.sampler, type):
            raise UserError(f"FeynmanKac's sampler is an object such as DDPM(), got {self.sampler!r}")
        if not (isinstance(self.threshold, int | float) and 0 <= self.threshold <= 1):
            raise UserError(f"FeynmanKac's threshold, a share of the particles, lies between 0 and 1, got {self.threshold!r}")
        if isinstance(self.particles, bool) or not isinstance(self.particles, int) or self.particles < 1:
            raise UserError(f"FeynmanKac's particles is a whole number, at least 1, got {self.particles!r}")

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        if sampler is not self:
            raise UserError(f"FeynmanKac goes around other samplers, not inside {type(sampler).__name__}: swap them")
        *between, inner = layers(self.sampler)
        for layer in between:
            if not isinstance(layer, Langevin):
                raise UserError(
                    f"FeynmanKac does not know what {type(layer).__name__} does to a density; between it and a sampler goes Langevin"
                )
        if not ancestral(inner):
            raise UserError(
                f"FeynmanKac needs steps with the noise of the reverse process, which {inner!r} does not add: its sampler is DDPM(), "
                "DDIM(eta=1), DPMSolver(sde=True), or one with an attribute sde = True"
            )
        _check_sum(guided)
        smallest = int(torch.bincount(alike(guided.terms, guided.n)).min())
        if smallest < self.particles:
            raise UserError(
                f"FeynmanKac needs at least {self.particles} samples that ask for the same and are drawn together, but there are only "
                f"{smallest}: raise n or batch_size, or lower particles"
            )

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        prediction = predict(x_t, now)
        rate, last = growth(prediction), bool(then.sigma == 0)
        n, inner = len(x_t), None
        if past is None:
            group, log_weight, origin = alike(predict.guided.terms, n), torch.zeros(n, dtype=torch.float64), torch.arange(n)
        else:
            before, where = past
            assert isinstance(before, Weighted)
            inner, group, origin = (before.inner, where), before.group, before.origin
            log_weight = before.log_weight + (now.logsnr - where.logsnr) / 2 * (before.rate + rate) / 2
        if last:
            log_weight = log_weight + rate / 2
        index, log_weight, effective = self._resampled(group, log_weight, uniform(draw(1)).cpu(), last)
        if index is not None:
            rate, origin, index = rate[index], origin[index], index.to(x_t.device)
            x_t, prediction = x_t[index], rows(prediction, index)
            inner = None if inner is None else (rows(inner[0], index), inner[1])
            predict.x0_hat = prediction.x0
        x, own = self.sampler.step(Known(predict, prediction), x_t, now, then, further(draw, 1), inner)
        state = {"group": group, "log_weight": log_weight, "rate": rate, "effective": effective, "origin": origin}
        return x, Weighted(own.x0, own.eps, own.parts, own.gradient, own.renoise, inner=own, **state)

    def _resampled(
        self, group: Int[Tensor, "b"], log_weight: Float[Tensor, "b"], u: Float[Tensor, "b"], last: bool
    ) -> tuple[Int[Tensor, "b"] | None, Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Which particles take the places (None: each its own), the weights then, and the effective sample sizes before."""
        index, log_weight, effective = torch.arange(len(group)), log_weight.clone(), torch.empty_like(log_weight)
        changed = False
        for k in range(int(group.max()) + 1):
            mine = (group == k).nonzero().flatten()
            log_w = log_weight[mine]
            w = log_w.softmax(0)
            share = 1 / (w.square().sum() * len(w))
            effective[mine] = share
            if last or share < self.threshold:
                index[mine] = mine[systematic(w, u[mine[0]])]
                log_weight[mine] = log_w.logsumexp(0) - torch.tensor(float(len(w)), dtype=torch.float64).log()
                changed = True
        return index if changed else None, log_weight, effective


class Known(Predict):
    """A model whose answer to the first question is known already."""

    def __init__(self, predict: Predict, prediction: Prediction):
        super().__init__(predict.guided, predict.schedule, predict.project)
        self.predict, self.first = predict, [prediction]

    def __call__(self, x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        return self.first.pop() if self.first else self.predict(x_t, level)


class Particles:
    """A callback that keeps the lowest effective sample size, as a share of the samples that ask for the same, and from how many starting
    noises the samples of a run come; None where there are no particles."""

    def __init__(self) -> None:
        self.effective: float | None = None
        self.origins = 0

    def __call__(self, progress: Progress) -> None:
        state = progress.prediction
        if isinstance(state, Weighted) and state.effective is not None and state.origin is not None:
            lowest = float(state.effective.min())
            self.effective = lowest if self.effective is None else min(self.effective, lowest)
            if progress.step == progress.steps:
                self.origins += len(state.origin.unique())


def growth(prediction: Prediction) -> Float[Tensor, "b"]:
    """|sum_k a_k eps_k|^2 - sum_k a_k |eps_k|^2, which is -sum_k a_k |eps_k - sum_j a_j eps_j|^2, on the CPU."""
    if not prediction.parts:
        return torch.zeros(len(prediction.x0), dtype=torch.float64)
    terms, parts = zip(*prediction.parts, strict=True)
    weights = [torch.as_tensor(term.weight) for term in terms]
    mean = sum(w.to(p.eps) * p.eps for w, p in zip(weights, parts, strict=True))
    away = [(p.eps - mean).flatten(1).square().sum(1).cpu().double() for p in parts]
    return -torch.stack([w.cpu().double().flatten() * a for w, a in zip(weights, away, strict=True)]).sum(0)


def systematic(weights: Float[Tensor, "n"], u: Float[Tensor, ""]) -> Int[Tensor, "n"]:
    """n of n particles, each round(n w) times, up or down; u in (0, 1) decides."""
    n = len(weights)
    places = (torch.arange(n, dtype=torch.float64) + u) / n
    return torch.searchsorted(weights.cumsum(0), places).clamp(max=n - 1)


def alike(terms: Sequence[Term], n: int) -> Int[Tensor, "b"]:
    """Each sample's group: samples of one group have the same conditions and weights, where those are not 0, in every term."""
    keys: list[list[Any]] = [[] for _ in range(n)]
    for k, term in enumerate(terms):
        weight = torch.as_tensor(term.weight, dtype=torch.float64).expand(n).tolist()
        condition = term.condition.to("cpu")
        keep = {name: mask.tolist() for name, mask in condition.keep.items()}
        for i, key in enumerate(keys):
            if weight[i]:
                values = ((name, condition.values[name][i].numpy().tobytes()) for name in keep if keep[name][i])
                key.append((k, weight[i], *values))
    numbers: dict[tuple[Any, ...], int] = {}
    return torch.tensor([numbers.setdefault(tuple(key), len(numbers)) for key in keys])


def rows(prediction: Prediction, index: Int[Tensor, "b"]) -> Prediction:
    """Those of other samples of the same group: their terms are the same."""

    def chosen(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[index.to(value.device)]
        return rows(value, index) if isinstance(value, Prediction) else value

    made = {f.name: chosen(getattr(prediction, f.name)) for f in fields(prediction) if f.name != "parts"}
    return replace(prediction, parts=tuple((term, rows(part, index)) for term, part in prediction.parts), **made)


def _check_sum(guided: GuidedDenoiser) -> None:
    """UserError where guidance is anything but a sum with constant weights."""
    why = "FeynmanKac's weights are those of prod_k p(x | c_k)^(a_k) with constant a_k, but"
    for part in nested(guided.guidance):
        kind = type(part)
        if getattr(kind, "combine", None) is not WeightedSum.combine:
            raise UserError(f"{why} {kind.__name__} is not a weighted sum of its terms")
        if getattr(part, "differentiates", False):
            raise UserError(f"{why} {kind.__name__} adds a gradient")
    if any(callable(term.weight) for term in guided.terms):
        raise UserError(f"{why} {type(guided.guidance).__name__}'s weights change with the noise level")
