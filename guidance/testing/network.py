"""What the network sees, and what it must not see."""

from dataclasses import replace
from pathlib import Path

import torch

from guidance.condition import Label
from guidance.testing.subject import N, Subject, close, require


def null_is_a_mask(subject: Subject, folder: Path) -> None:
    for name, spec in subject.modality.conditions.items():
        values, keep = subject.condition.values[name], subject.condition.keep[name]
        moved = (values + 1) % len(spec.classes) if isinstance(spec, Label) else values.roll(1, 0)
        others = [moved, values.flip(0), torch.stack([spec.absent()] * N)]
        others += [torch.full_like(values, torch.nan)] if values.is_floating_point() else []
        dropped = subject.condition.drop(name)
        expected = subject.output(dropped)
        for other in others:
            changed = replace(dropped, values={**dropped.values, name: other})
            require(torch.equal(subject.output(changed), expected), f"{name}: its value is seen although it is absent")
        if bool(keep.any()):
            require(not torch.equal(subject.output(subject.condition), expected), f"{name}: the network does not see whether it is there")
        if bool((keep & (moved != values).flatten(1).any(1) if values.ndim > 1 else keep & (moved != values)).any()):
            changed = replace(subject.condition, values={**subject.condition.values, name: moved})
            same = torch.equal(subject.output(changed), subject.output(subject.condition))
            require(not same, f"{name}: the network does not see its value")
        there = {**subject.condition.keep, name: torch.ones(N, dtype=torch.bool)}
        for k, value in enumerate(spec.classes[:16] if isinstance(spec, Label) else ()):
            present = replace(subject.condition, values={**subject.condition.values, name: torch.full_like(values, k)}, keep=there)
            require(not torch.equal(subject.output(present), expected), f"{name}: its absence is the same as {value!r}")
        half = replace(subject.condition, keep={**subject.condition.keep, name: keep & (torch.arange(N) % 2 == 0)})
        mixed, whole = subject.output(half), subject.output(subject.condition)
        even = torch.arange(N) % 2 == 0
        require(
            close(mixed[even], whole[even]) and close(mixed[~even], expected[~even]), f"{name}: dropping it for one sample changes others"
        )


def evaluating_draws_no_random_numbers(subject: Subject, folder: Path) -> None:
    before = torch.random.get_rng_state()
    first, second = subject.output(subject.condition), subject.output(subject.condition)
    require(torch.equal(first, second), "in eval mode the network says another thing every time")
    require(torch.equal(torch.random.get_rng_state(), before), "in eval mode the network draws random numbers")


def rows_do_not_mix(subject: Subject, folder: Path) -> None:
    logsnr = torch.linspace(-4, 4, N)  # one a sample, as in training
    whole = subject.output(subject.condition, logsnr)
    order = torch.tensor([2, 0, 3, 1])
    require(close(subject.output(subject.condition, logsnr, order), whole[order]), "the output depends on the order of the batch")
    for row in range(N):
        alone = subject.output(subject.condition, logsnr, torch.tensor([row]))
        require(close(alone[0], whole[row]), f"sample {row} of a batch is another one by itself")


def the_noise_level_is_seen(subject: Subject, folder: Path) -> None:
    require(not close(subject.output(subject.condition, 4.0), subject.output(subject.condition, -4.0)), "the network does not see logsnr")
