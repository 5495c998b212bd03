"""Samples under guidance."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidance.condition import Condition
from guidance.evaluate import Evaluations
from guidance.guide import CFG
from guidance.noise import Stream, normal
from guidance.parameterization import Prediction
from guidance.process import CLEAN, Level, level
from guidance.sampler import DDIM, Uniform
from guidance.testing.subject import STEPS, N, Subject, close, require


@contextmanager
def counted(module: Any, name: str) -> Iterator[list[int]]:
    """How often a method is called."""
    method, calls = getattr(module, name), [0]

    def call(*arguments: Any) -> Any:
        calls[0] += 1
        return method(*arguments)

    setattr(module, name, call)
    try:
        yield calls
    finally:
        delattr(module, name)


def a_step_is_one_call(subject: Subject, folder: Path) -> None:
    counter = Evaluations()
    with counted(subject.modality.network, "embed") as embeds, counted(subject.modality.network, "forward") as forwards:
        list(subject.model.latents(N, subject.asked, guidance=CFG(2.0), sampler=DDIM(), steps=STEPS, callbacks=[counter]))
    require(forwards[0] == STEPS, f"{STEPS} steps under guidance took {forwards[0]} network calls")
    require(embeds[0] == 1, f"embed was called {embeds[0]} times in one run")
    asks = torch.stack([torch.zeros(N, dtype=torch.bool), *subject.asked.keep.values()]).any(0)
    rows = (N + int(asks.sum())) * STEPS  # a sample of which nothing is asked takes one
    require(counter.rows == rows, f"{counter.rows} rows were evaluated, not {rows}")


@torch.no_grad()
def by_hand(subject: Subject, condition: Condition, seed: int = 0) -> Tensor:
    """DDIM without any guidance, written out."""
    denoiser, modality = subject.denoiser, subject.modality
    shape = modality.shape if modality.shape_of is None else modality.shape_of(condition)
    x = normal(seed, Stream.START, 0, 0, (N, *shape))
    context, guess = denoiser.network.embed(condition), None
    times = Uniform()(denoiser.schedule, STEPS)
    levels: list[Level] = [level(denoiser.schedule, t, t) for t in times] + [CLEAN]
    known = modality.known(condition) if modality.known else None
    x = levels[0].norm * x
    for now, then in pairwise(levels):
        prediction = denoiser(x, now, context, guess)
        x0 = modality.codec.project(prediction.x0)
        if known is not None:
            x0 = torch.where(known[0], known[1], x0)
        prediction = Prediction(x0, (x - now.alpha * x0) / now.sigma)
        x, guess = then.alpha * prediction.x0 + then.sigma * prediction.eps, prediction.x0
    return x


def guidance_is_what_its_scale_says(subject: Subject, folder: Path) -> None:
    def drawn(scale: float) -> Tensor:
        return torch.cat(list(subject.model.latents(N, subject.asked, guidance=CFG(scale), sampler=DDIM(), steps=STEPS)))

    require(close(drawn(1.0), by_hand(subject, subject.asked)), "guidance at scale 1 is not the conditional model")
    require(close(drawn(0.0), by_hand(subject, subject.asked.drop())), "guidance at scale 0 is not the unconditional model")


def samples_do_not_depend_on_batches(subject: Subject, folder: Path) -> None:
    def drawn(**settings: Any) -> Tensor:
        return torch.cat(list(subject.model.latents(N, subject.asked, guidance=CFG(2.0), sampler=DDIM(), steps=STEPS, **settings)))

    whole = drawn()
    require(torch.equal(drawn(), whole), "the same seed gives other samples")
    require(close(drawn(batch_size=3), whole), "samples depend on the size of the batch")
    require(close(drawn(max_rows=3), whole), "samples depend on the rows of a network call")
