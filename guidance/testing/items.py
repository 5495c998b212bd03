"""Data, attributes, codec."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from guidance.condition import Condition, Label
from guidance.errors import UserError
from guidance.modality import Split
from guidance.noise import Stream, normal
from guidance.testing.subject import Broken, N, Subject, close, require


def items_are_the_same_however_fetched(subject: Subject, folder: Path) -> None:
    for split in (subject.modality.data.train, subject.modality.data.test):
        require(len(split) > 0, "a split is empty: there has to be data to train on, and data held out")
        index = sorted({*range(min(4, len(split))), *range(max(0, len(split) - 4), len(split))}, reverse=True)
        raw, condition = split.__getitems__(index)
        with torch.no_grad():
            x0 = subject.modality.codec.encode(raw)
        for row, item in enumerate(index):
            one, of = split.__getitems__([item])
            with torch.no_grad():
                same = close(subject.modality.codec.encode(one)[0], x0[row], 1e-4)
            require(same, f"item {item} is another one when it is fetched by itself")
            require(
                bool(of.same(condition.rows(torch.tensor([row]))).all()), f"item {item} has another condition when it is fetched by itself"
            )


def evenly(split: Split, most: int) -> list[int]:
    """The indices of up to ``most`` items, evenly taken."""
    count = min(len(split), most)
    return [k * len(split) // count for k in range(count)]


def conditions_are_what_their_specs_say(subject: Subject, folder: Path) -> None:
    data = subject.modality.data
    some = Condition.cat([split.__getitems__(evenly(split, 256))[1] for split in (data.train, data.test)])
    for name, spec in subject.modality.conditions.items():
        require(name in some.values, f"its data gives no {name}")
        values, absent = some.values[name], spec.absent()
        require(values.shape[1:] == absent.shape, f"{name}: absent() has another shape than the data's values")
        require(values.dtype == absent.dtype, f"{name}: absent() is {absent.dtype}, the data's values are {values.dtype}")
        if isinstance(spec, Label):
            require(
                bool(((values >= 0) & (values < len(spec.classes)))[some.keep[name]].all()),
                f"{name}: the data has a class that the Label does not name",
            )
            require(all(int(spec.parse(c)) == k for k, c in enumerate(spec.classes)), f"{name}: a class is not read back as itself")
        try:
            spec.parse(object())
        except UserError:
            continue
        except Exception as error:
            raise Broken(f"{name}: nonsense gives {type(error).__name__} rather than UserError") from error
        raise Broken(f"{name}: nonsense is taken for a value")


@torch.no_grad()
def what_is_encoded_is_decoded(subject: Subject, folder: Path) -> None:
    codec, x0 = subject.modality.codec, subject.x0
    shape_of = subject.modality.shape_of
    shape = subject.modality.shape if shape_of is None else shape_of(subject.condition)
    require(tuple(x0.shape[1:]) == tuple(shape), f"encode gives {list(x0.shape[1:])}, the modality says {list(shape)}")
    require(bool(x0.isfinite().all()), "encode gives what is not finite")
    scale = float(x0.square().mean().sqrt())
    require(0.1 < scale < 10, f"x0 has a root mean square of {scale:.3g}; diffusion needs data of about unit scale")
    require(close(codec.project(x0), x0), "project changes real data")
    noise = 3 * normal(0, Stream.START, 0, 0, tuple(x0.shape))
    once = codec.project(noise)
    require(close(codec.project(once), once), "project changes what it has made")
    decoded = codec.decode(x0)
    require(len(decoded) == N, f"decode gives {len(decoded)} samples of {N}")
    flat = subject.modality.metrics.flat(decoded)
    require(close(subject.modality.metrics.flat(codec.decode(codec.project(x0))), flat), "decode gives another sample after project")
    raw = subject.raw
    if isinstance(raw, Tensor) and isinstance(decoded, Tensor) and (decoded.shape, decoded.dtype) == (raw.shape, raw.dtype):
        real, got = raw.double() - raw.double().mean(), decoded.double() - raw.double().mean()
        size = float(real.square().mean().sqrt())
        lost, gain = float((got - real).square().mean().sqrt()), float((got * real).sum() / real.square().sum().clamp(min=1e-24))
        # A codec may lose detail, but no more; nor may what it gives be systematically larger or smaller.
        require(
            lost <= 0.2 * size and (size == 0 or abs(gain - 1) < 0.05), f"decode(encode(raw)) is not raw: {lost:.3g} off, of {size:.3g}"
        )
    distance = torch.cdist(flat, flat) + torch.eye(N)
    different = (torch.cdist(x0.flatten(1), x0.flatten(1)) + torch.eye(N)) > 1e-3
    require(bool((distance[different] > 0).all()), "two different items decode to the same")


@torch.no_grad()
def held_out_items_are_not_trained_on(subject: Subject, folder: Path, most: int = 10_000, chunk: int = 256) -> None:
    """Data that repeats itself is not refused: held-out items may be among the training items as often as those are among themselves."""
    data, codec = subject.modality.data, subject.modality.codec

    def flat(split: Split, index: list[int]) -> Tensor:
        return subject.modality.metrics.flat(codec.decode(codec.encode(split.__getitems__(index)[0])))

    held, known = (evenly(split, count) for split, count in ((data.test, 200), (data.train, most)))
    some = range(0, len(known), max(1, len(known) // 200))  # of the known ones, which are compared with all others
    points = torch.cat([flat(data.test, held), flat(data.train, [known[row] for row in some])])
    itself = torch.tensor([-1] * len(held) + list(some))
    found = torch.zeros(len(points), dtype=torch.bool)
    for first in range(0, len(known), chunk):
        found |= copied(points, flat(data.train, known[first : first + chunk]), itself - first)
    twice, usual = float(found[: len(held)].float().mean()), float(found[len(held) :].float().mean())
    seen = len(known) / len(data.train)  # of many training items, a part is looked at, and a part of the copies found
    require(twice <= max(0.1 * seen, 0.02) + usual, f"{twice:.0%} of the held-out items are among the training items")


def copied(points: Float[Tensor, "n d"], among: Float[Tensor, "m d"], itself: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
    """Which points are among others than row ``itself``: the nearest is found fast, its distance then taken exactly."""
    distances = torch.cdist(points, among)
    distances[torch.arange(len(among)) == itself[:, None]] = torch.inf
    near = among[distances.argmin(1)]
    same: Tensor = (points - near).norm(dim=1) <= 1e-6 * (1 + points.norm(dim=1))
    return same & (distances.amin(1) < torch.inf)
