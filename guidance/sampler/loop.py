"""The sampling loop: noise -> step -> step -> ... -> clean."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.condition import Condition
from guidance.denoiser import Denoiser
from guidance.errors import UserError
from guidance.guide import CFG, Guidance, Term, nested
from guidance.guided import GuidedDenoiser, evaluating, onto
from guidance.noise import Stream, normal
from guidance.parameterization import Prediction, read_x0, steered
from guidance.process import CLEAN, Level, level
from guidance.sampler.grid import Grid, Uniform
from guidance.schedule import Schedule, inverse

Draw = Callable[..., Float[Tensor, "b *d"]]
"""A step's standard normal noise, the same whatever the batch: ``draw()``, and for steps that take more ``draw(1)``, ``draw(2)`` ..."""


def further(draw: Draw, used: int) -> Draw:
    """The noises that a sampler which takes draw(1) ... draw(used) for itself leaves to the one inside it."""
    return lambda again=0: draw(again + used if again else 0)


def uniform(noise: Float[Tensor, "b *d"]) -> Float[Tensor, "b"]:
    """A uniform number in (0, 1) a sample, float64, from a step's standard normal noise."""
    share: Tensor = torch.special.ndtr(noise.flatten(1)[:, 0].double())
    return share


Past = tuple[Prediction, Level]
"""What the previous step predicted, and where."""


class Predict:
    """(x_t, level) -> Prediction, guided, projected and self-conditioned: all that a step needs to know of the model."""

    def __init__(self, guided: GuidedDenoiser, schedule: Schedule, project: Callable[[Tensor], Tensor] | None):
        self.guided, self.schedule, self.project = guided, schedule, project
        self.x0_hat: Tensor | None = None

    def __call__(self, x_t: Float[Tensor, "b *d"], level: Level) -> Prediction:
        prediction = self.guided(x_t, level, self.x0_hat)
        if self.project is not None:
            known = read_x0(self.project(prediction.x0), x_t, level)
            prediction = replace(prediction, x0=known.x0, eps=known.eps)
        prediction = steered(prediction, level)  # after the projection, as Dhariwal & Nichol do: the gradient is of where x_t is
        self.x0_hat = prediction.x0
        return prediction

    def at(self, logsnr: Tensor) -> Level:
        """The schedule's level of a given logsnr (no dimension)."""
        return level(self.schedule, inverse(self.schedule, logsnr), logsnr)


@runtime_checkable
class Sampler(Protocol):
    """A family of steps. Frozen: all that a step remembers is the previous prediction."""

    def step(
        self, predict: Predict, x_t: Float[Tensor, "b *d"], now: Level, then: Level, draw: Draw, past: Past | None
    ) -> tuple[Float[Tensor, "b *d"], Prediction]:
        """x at the cleaner level ``then``, and the prediction made at ``now``."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """A `Sampler`, or a part of a `Guidance`, that does not go together with everything."""

    def check(self, guided: GuidedDenoiser, sampler: Sampler) -> None:
        """UserError, which says why, where it cannot be used with the whole guidance, or with the sampler, of a run."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a callback is shown after each step."""

    step: int  # 1 .. steps
    steps: int
    level: Level  # where the step began
    x_t: Tensor  # where it ended
    prediction: Prediction  # at its beginning
    rows: int  # network evaluations so far
    calls: int


Callback = Callable[[Progress], bool | None]
"""Returning True ends sampling early, with the latest predicted x0."""


@torch.no_grad()
def sample(
    denoiser: Denoiser | Mapping[str, Denoiser],
    shape: Sequence[int],
    condition: Condition | None = None,
    guidance: Guidance | None = None,
    sampler: Sampler | None = None,
    *,
    terms: Sequence[Term] | None = None,
    steps: int = 50,
    grid: Grid | None = None,
    seed: int = 0,
    first: int = 0,
    max_rows: int | None = None,
    project: Callable[[Tensor], Tensor] | None = None,
    callbacks: Sequence[Callback] = (),
    schedule: Schedule | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw ``shape = (n, *event)`` samples of x0.

    Args:
        denoiser: what predicts; several by name where guidance refers to other models than "main".
        condition: n rows, or None.
        guidance: `CFG(1.0)`, the conditional model, by default.
        sampler: `DDIM()` by default.
        terms: of the guidance, where they are made already (for more samples than these).
        steps, grid: how many levels, and which (`Uniform()` by default).
        seed, first: sample i of this call is sample ``first + i`` of the seed, whatever the batch it is drawn in.
        max_rows: at most that many rows in one network call.
        project: applied to every predicted x0, a codec's `project`.
        callbacks: called with a `Progress` after every step.
        schedule: to sample along another schedule than the denoiser's own.

    Raises: UserError for steps or a shape that are not positive, and for what guidance finds wrong.
    """
    from guidance.sampler.ddim import DDIM

    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps is a whole number, at least 1, got {steps!r}")
    if not shape or any(size < 1 for size in shape):
        raise UserError(f"a shape to sample is (n, *event), all at least 1, got {tuple(shape)}")
    denoisers = denoiser if isinstance(denoiser, Mapping) else {"main": denoiser}
    if "main" not in denoisers:
        raise UserError(f'one of several denoisers is called "main"; got {", ".join(denoisers)}')
    main = denoisers["main"]
    schedule = schedule or main.schedule
    sampler = sampler or DDIM()
    if device is None:
        parameters = main.network.parameters() if isinstance(main.network, nn.Module) else iter(())
        device = next((p.device for p in parameters), torch.device("cpu"))
    shape = tuple(shape)
    guided = GuidedDenoiser(denoisers, guidance or CFG(), condition or Condition(), shape[0], max_rows, device, terms)
    for part in (*nested(guided.guidance), *layers(sampler)):
        if isinstance(part, Choosy):
            part.check(guided, sampler)
    predict = Predict(guided, schedule, project)
    times = (grid or Uniform())(schedule, steps)
    levels = [level(schedule, t, t) for t in times] + [CLEAN]
    x = onto(normal(seed, Stream.START, 0, first, shape), device) * levels[0].norm
    past: Past | None = None
    with evaluating([d.network for d in guided.denoisers.values()]):
        for k, (now, then) in enumerate(pairwise(levels), start=1):

            def draw(again: int = 0, k: int = k) -> Tensor:
                stream, step = (Stream.AGAIN, (again << 32) + k) if again else (Stream.STEP, k)
                return onto(normal(seed, stream, step, first, shape), device)

            x, prediction = sampler.step(predict, x, now, then, draw, past)
            past = prediction, now
            progress = Progress(k, steps, now, x, prediction, guided.rows, guided.calls)
            answers = [callback(progress) for callback in callbacks]  # every callback is called
            if any(answers):
                return prediction.x0
    return x


def layers(sampler: Sampler) -> Iterator[Sampler]:
    """A sampler and the one that it adds to, which is a field of it called ``sampler``, and so on."""
    yield sampler
    if isinstance(inner := getattr(sampler, "sampler", None), Sampler):
        yield from layers(inner)
