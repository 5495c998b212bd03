"""Measures, judges, files."""

from pathlib import Path

import torch
from torch import Tensor

from guidance.condition import Label
from guidance.evaluate import chosen
from guidance.judge import classes, read
from guidance.modality import Judge
from guidance.testing.subject import N, Subject, require


def measures_are_one_a_sample(subject: Subject, folder: Path) -> None:
    metrics = subject.modality.metrics
    with torch.no_grad():
        decoded = subject.modality.codec.decode(subject.x0)
    measured = metrics.measure(decoded, subject.condition)
    for condition, original in ((subject.condition, decoded), (subject.condition.drop(), None)):
        names = metrics.measure(decoded, condition, original).keys()
        require(names <= metrics.units.keys(), f"units does not say what {', '.join(sorted(names - metrics.units.keys()))} is")
    for name, values in measured.items():
        require(isinstance(values, Tensor) and values.shape == (N,), f"measure gives {name} that is not one number a sample")
        require(not bool(values.isinf().any()), f"measure gives an infinite {name}")
        require(name in metrics.units, f"units does not say what {name} is")
        for row in range(N):
            alone = metrics.measure(chosen(decoded, torch.tensor([row])), subject.condition.rows(torch.tensor([row])))[name]
            same = torch.allclose(alone, values[[row]], rtol=1e-3, atol=1e-4, equal_nan=True)
            require(same, f"{name} of a sample depends on the others")
    for name, value in metrics.together(decoded).items():
        require(isinstance(value, float), f"together gives {name} that is no float")
        require(name in metrics.units, f"units does not say what {name} is")
    for name, spec in subject.modality.conditions.items():
        if isinstance(spec, Label) and spec.quantity:
            require(spec.quantity in measured, f"{name} is ordered by {spec.quantity}, which measure does not give")
    flat = metrics.flat(decoded)
    require(flat.ndim == 2 and len(flat) == N and flat.is_floating_point(), "flat gives no floating-point vectors")


def judges_are_better_than_guessing(subject: Subject, folder: Path) -> None:
    data = subject.modality.data
    name = next((name for name, spec in subject.modality.conditions.items() if isinstance(spec, Label)), None)
    if name is None:
        return
    judge = subject.modality.metrics.judge(data, name)
    require(isinstance(judge, Judge), f"the judge of {name} has no accuracy, or cannot be called")
    with torch.no_grad():
        decoded = subject.modality.codec.decode(subject.x0)
    features, logits = judge(decoded)
    count = len(classes(data, name))
    require(logits.shape == (N, count), f"the judge of {name} gives {list(logits.shape)} logits for {N} samples of {count} classes")
    require(features.ndim == 2 and len(features) == N, f"the judge of {name} gives no feature vector a sample")
    again, _ = judge(decoded)
    require(torch.equal(features, again), f"the judge of {name} sees another thing every time")
    raw, values, _ = read(data.test, name, most=2000)
    commonest = float(torch.bincount(values, minlength=count).max() / len(values))
    require(judge.accuracy > commonest, f"the judge of {name} is right on {judge.accuracy:.1%}, always saying one class on {commonest:.1%}")
    with torch.no_grad():
        hits = torch.cat([judge(subject.modality.codec.decode(subject.modality.codec.encode(part)))[1].argmax(1) for part in raw]) == values
    right = float(hits.float().mean())
    require(
        abs(right - judge.accuracy) < 0.1,
        f"the judge of {name} says it is right on {judge.accuracy:.1%}; of decoded data it is on {right:.1%}",
    )


def samples_are_files(subject: Subject, folder: Path) -> None:
    render = subject.modality.render
    with torch.no_grad():
        decoded = subject.modality.codec.decode(subject.x0)
    names = [f"{k:06d}" for k in range(N)]
    require(len(render.formats) > 0, "its render names no format")
    words = render.words(decoded)
    require(len(words) in (0, N), f"its render has {len(words)} words for {N} samples")
    different = bool((subject.modality.metrics.flat(decoded).diff(dim=0) != 0).any())
    for kind in render.formats:
        place = folder / kind
        place.mkdir()
        files = render.save(decoded, place, names, kind)
        if not files:
            require(len(words) == N, f"format={kind} writes nothing, and there are no words to be written instead")
            continue
        require(len(files) == N and len(set(files)) == N, f"format={kind} writes {len(files)} files for {N} samples")
        for name, file in zip(names, files, strict=True):
            require(file.is_file() and file.stat().st_size > 0, f"format={kind}: {file.name} was not written, or is empty")
            require(file.name == f"{name}.{kind}", f"format={kind} writes {file.name}, not {name}.{kind}")
            require(file.parent == place, f"format={kind} writes into {file.parent}, not into the folder that it is given")
        contents = {file.read_bytes() for file in files}
        require(len(contents) > 1 or not different, f"format={kind} writes the same for every sample")
    usual = [file.suffix for file in render.save(decoded, folder, names)]
    expected = [file.suffix for file in render.save(decoded, folder, names, render.formats[0])]
    require(usual == expected, "without a format it is not the first one that is written")
    table = render.table(chosen(decoded, torch.tensor([0, 1, 2, 3])), folder / "table.png", ["a", "b"], ["c", "d"])
    require(table.is_file(), f"its table was not written to {table}")
    moving = render.animate([decoded, decoded], folder / "steps.gif")
    require(moving.is_file(), f"its animation was not written to {moving}")
