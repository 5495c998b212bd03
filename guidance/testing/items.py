"""Data, attributes, codec."""

from pathlib import Path

import torch
from torch import Tensor

from guidance import measures
from guidance.condition import Label
from guidance.errors import UserError
from guidance.modality import Split
from guidance.noise import Stream, normal
from guidance.testing.subject import Broken, N, Subject, close, require


def items_are_the_same_however_fetched(subject: Subject, folder: Path) -> None:
    for split in (subject.modality.data.train, subject.modality.data.test):
        require(len(split) > 0, "a split is empty: there has to be data to train on, and data held out")
        index = [0, len(split) - 1, len(split) // 2]
        raw, condition = split.__getitems__(index)
        with torch.no_grad():
            x0 = subject.modality.codec.encode(raw)
        for row, item in enumerate(index):
            one, of = split.__getitems__([item])
            with torch.no_grad():
                same = torch.equal(subject.modality.codec.encode(one)[0], x0[row])
            require(same, f"item {item} is another one when it is fetched by itself")
            require(
                bool(of.same(condition.rows(torch.tensor([row]))).all()), f"item {item} has another condition when it is fetched by itself"
            )


def conditions_are_what_their_specs_say(subject: Subject, folder: Path) -> None:
    for name, spec in subject.modality.conditions.items():
        values, absent = subject.condition.values[name], spec.absent()
        require(values.shape[1:] == absent.shape, f"{name}: absent() has another shape than the data's values")
        require(values.dtype == absent.dtype, f"{name}: absent() is {absent.dtype}, the data's values are {values.dtype}")
        if isinstance(spec, Label):
            require(
                bool(((values >= 0) & (values < len(spec.classes))).all()), f"{name}: the data has a class that the Label does not name"
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
    if (
        isinstance(subject.raw, Tensor)
        and isinstance(decoded, Tensor)
        and (decoded.shape, decoded.dtype)
        == (
            subject.raw.shape,
            subject.raw.dtype,
        )
    ):
        require(close(codec.encode(decoded), x0), "encode(decode(x0)) is not x0")
    distance = torch.cdist(flat, flat) + torch.eye(N)
    different = (torch.cdist(x0.flatten(1), x0.flatten(1)) + torch.eye(N)) > 1e-3
    require(bool((distance[different] > 0).all()), "two different items decode to the same")


def held_out_items_are_not_trained_on(subject: Subject, folder: Path, most: int = 200) -> None:
    def flat(split: Split, count: int) -> Tensor:
        raw, _ = split.__getitems__([k * len(split) // count for k in range(count)])
        with torch.no_grad():
            return subject.modality.metrics.flat(subject.modality.codec.decode(subject.modality.codec.encode(raw)))

    data = subject.modality.data
    test, known = (flat(split, min(len(split), most * times)) for split, times in ((data.test, 1), (data.train, 10)))
    twice = float((measures.nearest(test, known) <= 1e-6).float().mean())
    require(twice < 0.1, f"{twice:.0%} of the held-out items are among the training items")
