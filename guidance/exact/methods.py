"""The methods that are held against exact answers, as plain data, each with the setting by which it aims at a target."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.evidence import ByDensity, Evidence, Tracked
from guidance.exact.problems import Problem
from guidance.exact.target import NAMED, PRIOR, STD, WIDE, Target
from guidance.gradient import NoisyReward, Steered
from guidance.guide import CFG, Compose, Guidance, on
from guidance.logic import Complement, Either
from guidance.reference import Autoguidance
from guidance.rules import APG, CFGPlusPlus, CFGZero, DynamicThreshold, Interval, Rescale, Threshold
from guidance.rules.weights import Linear
from guidance.sampler import DDIM, DDPM, DPMSolver, FeynmanKac, Grid, Langevin, Sampler
from guidance.schedule import logsnr


@dataclass(frozen=True)
class Case:
    """A target of a problem, to be reached in so many steps."""

    problem: Problem
    target: Target
    steps: int
    grid: Grid

    @property
    def denoiser(self) -> Denoiser:
        return self.problem.mixture().denoiser()

    def condition(self, n: int) -> Condition:
        """The run's: the class of a where the target is one of classifier-free guidance; else all is absent, and guidance names it."""
        return self.problem.condition(n, *self.target.given)


Made = tuple[Guidance, Sampler] | None
"""What aims at a case's target; None where a method is not meant for it."""


@dataclass(frozen=True)
class Method:
    """``claims``: whether it is meant to sample the target, in the limit of many steps and many samples. Rules that are meant to make
    better samples are not. ``steps``, where they are not those of the other methods."""

    make: Callable[[Case], Made]
    claims: bool = False
    steps: int | None = None


def weighted(target: Target, problem: Problem) -> Guidance | None:
    """The weighted sum of scores of a tilt's factors: classifier-free guidance, autoguidance or a composition. None for a sum."""
    if not target.tilt:
        return None
    if target.scale is not None:
        return CFG(target.scale)
    if any(factor.std == WIDE for factor in target.factors):
        return Autoguidance(target.weight("a"), problem.mixture(WIDE).denoiser())
    return Compose(tuple((f.weight, {name: NAMED[name] for name in f.named}) for f in target.factors if f.named))


def plain(sampler: Sampler) -> Callable[[Case], Made]:
    """Where there is a weighted sum, that, by a sampler."""

    def make(case: Case) -> Made:
        guidance = weighted(case.target, case.problem)
        return None if guidance is None else (guidance, sampler)

    return make


def rule(of: Callable[[Case, float], Guidance], sampler: Sampler | None = None, least: int = 1) -> Callable[[Case], Made]:
    """A rule on classifier-free guidance, at scales other than 1, in at least so many dimensions. (In one, what is orthogonal to a sample
    is 0, and any number is the multiple of any other.)"""

    def make(case: Case) -> Made:
        scale = case.target.scale
        meant = scale not in (None, 1.0) and case.problem.dimensions >= least
        return (of(case, scale), sampler or DPMSolver()) if meant and scale is not None else None

    return make


def range_of_data(case: Case) -> float:
    """The largest number in a sample that is not rare: two deviations beyond the means."""
    return float(case.problem.mixture().means.abs().max()) + 2 * STD


def plus_plus(case: Case, scale: float) -> Guidance:
    """At a step of h in half log-SNR, CFG++ at lambda is DDIM with classifier-free guidance at lambda / (1 - exp(-h)): the lambda by which
    that is the scale in the mean over the steps."""
    at = logsnr(case.denoiser.schedule, case.grid(case.denoiser.schedule, case.steps)).tolist()
    shares = [-math.expm1((now - then) / 2) for now, then in pairwise(at)] or [1.0]
    return CFGPlusPlus(scale * sum(shares) / len(shares))


def classified(sampler: Sampler) -> Callable[[Case], Made]:
    """The unconditional model, steered by the exact classifier's  sum_k w_k log p(c_k | x_t)."""

    def make(case: Case) -> Made:
        if not case.target.tilt or any(factor.std != STD for factor in case.target.factors):
            return None
        network = case.problem.mixture()

        def log_posterior(x_t: Float[Tensor, "b d"], logsnr: float) -> Float[Tensor, "b"]:
            at = torch.full((len(x_t),), logsnr, dtype=torch.float64)

            def log_p(*named: str) -> Tensor:
                return network.log_density(x_t, at, network.embed(case.problem.condition(len(x_t), *named)))

            return sum((f.weight * (log_p(*f.named) - log_p()) for f in case.target.factors if f.named), torch.zeros(len(x_t)))

        return Steered(CFG(0.0), NoisyReward(log_posterior)), sampler

    return make


def one_of_two(case: Case, evidence: Callable[[Case], Evidence]) -> Made:
    if case.target.name != "a-or-b":
        return None
    return Either(tuple((f.weight, {name: NAMED[name] for name in f.named}) for f in case.target.factors), evidence(case)), DDPM()


def anything_but(case: Case, evidence: Callable[[Case], Evidence], scale: float = 1.0) -> Made:
    if case.target.name != "not-a":
        return None
    return Complement(on(a=NAMED["a"]).items, PRIOR, scale, evidence=evidence(case)), DDPM()


def exact(case: Case) -> Evidence:
    return ByDensity(case.denoiser)


def tracked(case: Case, temperature: float = 1.0) -> Evidence:
    return Tracked(temperature)


METHODS: Mapping[str, Method] = {
    "plain-ode": Method(plain(DPMSolver())),
    "plain-sde": Method(plain(DDPM())),
    "langevin": Method(plain(Langevin(DDPM())), claims=True),
    "mala": Method(plain(Langevin(DDPM(), adjusted=True)), claims=True),
    "feynman-kac": Method(plain(FeynmanKac(DDPM())), claims=True),
    "feynman-kac-langevin": Method(plain(FeynmanKac(Langevin(DDPM()))), claims=True),
    "classifier-ode": Method(classified(DPMSolver())),
    "classifier-sde": Method(classified(DDPM())),
    "interval": Method(rule(lambda case, scale: Interval(CFG(scale), -3.0, 5.0))),
    "linear": Method(rule(lambda case, scale: CFG(Linear(-5.0, 5.0, 1.0, 2 * scale - 1)))),
    "rescale": Method(rule(lambda case, scale: Rescale(CFG(scale), 0.7), least=2)),
    "threshold": Method(rule(lambda case, scale: Threshold(CFG(scale), range_of_data(case)))),
    "dynamic-threshold": Method(rule(lambda case, scale: DynamicThreshold(CFG(scale), 0.995, range_of_data(case)))),
    "apg": Method(rule(lambda case, scale: APG(scale, momentum=-0.5), least=2)),
    "cfg-zero": Method(rule(lambda case, scale: CFGZero(scale, 0.02), least=2)),
    "cfg-plus-plus": Method(rule(plus_plus, DDIM())),
    "or-exact": Method(partial(one_of_two, evidence=exact), claims=True),
    "or-tracked": Method(partial(one_of_two, evidence=tracked), claims=True),
    "not-exact": Method(partial(anything_but, evidence=exact), claims=True),
    "not-tracked": Method(partial(anything_but, evidence=tracked), claims=True),
    "dynamic-negative": Method(partial(anything_but, evidence=partial(tracked, temperature=0.5), scale=2.0)),
}
"""Each a function of a `Case`, which gives the guidance and the sampler, or None."""


def own(guidance: Guidance | None, sampler: Sampler | None, steps: int | None) -> Method:
    """A guidance, a sampler or both of one's own: for all targets. Without guidance: what aims at the target as a weighted sum."""

    def make(case: Case) -> Made:
        of = weighted(case.target, case.problem) if guidance is None else guidance
        return None if of is None else (of, sampler or DPMSolver())

    return Method(make, steps=steps)
