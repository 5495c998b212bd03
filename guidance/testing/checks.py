"""What every modality has to do, as functions of a `Subject` that raise `Broken` where it does not.

`CHECKS` holds them all. Weights are shaken first, so that nothing that starts at zero (the last layer of most networks) hides a fault.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guidance import checkpoint, measures
from guidance.commands import train
from guidance.condition import Condition, Dropout, Label, Partial
from guidance.config import build
from guidance.denoiser import Denoiser, Network
from guidance.errors import UserError
from guidance.evaluate import Evaluations, chosen
from guidance.guide import CFG
from guidance.hydra import composed
from guidance.judge import classes
from guidance.modality import Codec, Data, Judge, Metrics, Modality, Render, Split
from guidance.model import Model, assemble, load, with_codec
from guidance.noise import Stream, normal
from guidance.parameterization import Prediction
from guidance.process import CLEAN, Level, level
from guidance.sampler import DDIM, Uniform
from guidance.train import Objective, Place

N = 4  # items that are looked at
STEPS = 3  # of sampling


class Broken(AssertionError):
    """A modality does not do what the contract says."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


@dataclass(frozen=True)
class Subject:
    """A modality made from its training config, with some of its data."""

    config: Mapping[str, Any]
    modality: Modality
    denoiser: Denoiser
    raw: Any
    condition: Condition

    @classmethod
    def of(cls, name: str, overrides: Sequence[str] = ()) -> "Subject":
        """As ``polyguide train modality=NAME OVERRIDES`` would make it, with the codec fitted. UserError where that fails."""
        config = composed("train", [f"modality={name}", *overrides, "out=unused"])
        torch.manual_seed(0)
        modality, denoiser = assemble(config)
        require(len(modality.data.train) >= N, f"{modality.data.name} has fewer than {N} training items")
        modality.codec.fit(modality.data.train)
        count = len(modality.data.train)
        raw, condition = modality.data.train.__getitems__([k * count // N for k in range(N)])
        shake(modality.modules())
        modality.modules().eval()
        return cls(config, modality, denoiser, raw, condition)

    @property
    def model(self) -> Model:
        return Model(self.modality, {"main": self.denoiser}, self.config)

    @property
    def x0(self) -> Tensor:
        with torch.no_grad():
            return self.modality.codec.encode(self.raw)

    @property
    def asked(self) -> Condition:
        """What can be asked for: no attribute that is known in part."""
        partial = [name for name, spec in self.modality.conditions.items() if isinstance(spec, Partial) and name in self.condition.keep]
        return self.condition.drop(*partial) if partial else self.condition

    @torch.no_grad()
    def output(self, condition: Condition, logsnr: float = 0.0, rows: Tensor | None = None) -> Tensor:
        """What the network says of the items at a noise level."""
        rows = torch.arange(N) if rows is None else rows
        x_t = (self.x0 + normal(0, Stream.CORRUPT, 0, 0, tuple(self.x0.shape)))[rows] / 2**0.5
        context = self.modality.network.embed(condition.rows(rows))
        return self.modality.network(x_t, torch.full((len(rows),), logsnr), context)


@torch.no_grad()
def shake(module: nn.Module, by: float = 0.02) -> None:
    """Some noise on every weight that is trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def close(a: Tensor, b: Tensor, within: float = 1e-3) -> bool:
    """Equal up to rounding, which many layers add up."""
    return a.shape == b.shape and bool((a - b).abs().max() <= within * (1 + b.abs().max()))


def parts_keep_the_protocols(subject: Subject, folder: Path) -> None:
    modality = subject.modality
    for part, protocol in {
        "codec": Codec,
        "network": Network,
        "data": Data,
        "metrics": Metrics,
        "render": Render,
    }.items():
        lacking = [name for name in dir(protocol) if not name.startswith("_") and not hasattr(getattr(modality, part), name)]
        require(not lacking, f"its {part} has no {', '.join(lacking)}; see guidance.modality.{protocol.__name__}")
    require(isinstance(modality.network, nn.Module), "its network is no nn.Module")
    for which in ("train", "test"):
        require(isinstance(getattr(modality.data, which), Split), f"its data.{which} has no __len__ or no __getitems__")
    for name in modality.conditions:
        require(name.isidentifier(), f"an attribute is called {name!r}, which condition.NAME=... cannot say")
    require(list(subject.condition.keep) == list(modality.conditions), "its data gives other attributes than modality.conditions names")


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


def null_is_a_mask(subject: Subject, folder: Path) -> None:
    for name, spec in subject.modality.conditions.items():
        values, keep = subject.condition.values[name], subject.condition.keep[name]
        others = [values.flip(0), values.roll(1, 0), torch.stack([spec.absent()] * N)]
        others += [torch.full_like(values, torch.nan)] if values.is_floating_point() else []
        dropped = subject.condition.drop(name)
        expected = subject.output(dropped)
        for other in others:
            changed = replace(dropped, values={**dropped.values, name: other})
            require(torch.equal(subject.output(changed), expected), f"{name}: its value is seen although it is absent")
        if bool(keep.any()):
            require(not torch.equal(subject.output(subject.condition), expected), f"{name}: the network does not see whether it is there")
        if bool(keep.all()) and isinstance(spec, Label) and len(spec.classes) > 1:
            moved = replace(subject.condition, values={**subject.condition.values, name: (values + 1) % len(spec.classes)})
            require(
                not torch.equal(subject.output(moved), subject.output(subject.condition)), f"{name}: the network does not see its value"
            )
        half = replace(subject.condition, keep={**subject.condition.keep, name: keep & (torch.arange(N) % 2 == 0)})
        mixed, whole = subject.output(half), subject.output(subject.condition)
        there = torch.arange(N) % 2 == 0
        require(
            close(mixed[there], whole[there]) and close(mixed[~there], expected[~there]),
            f"{name}: dropping it for one sample changes others",
        )


def evaluating_draws_no_random_numbers(subject: Subject, folder: Path) -> None:
    before = torch.random.get_rng_state()
    first, second = subject.output(subject.condition), subject.output(subject.condition)
    require(torch.equal(first, second), "in eval mode the network says another thing every time")
    require(torch.equal(torch.random.get_rng_state(), before), "in eval mode the network draws random numbers")


def rows_do_not_mix(subject: Subject, folder: Path) -> None:
    whole = subject.output(subject.condition)
    order = torch.tensor([2, 0, 3, 1])
    require(close(subject.output(subject.condition, rows=order), whole[order]), "the output depends on the order of the batch")
    for row in range(N):
        alone = subject.output(subject.condition, rows=torch.tensor([row]))
        require(close(alone[0], whole[row]), f"sample {row} of a batch is another one by itself")


def the_noise_level_is_seen(subject: Subject, folder: Path) -> None:
    require(not close(subject.output(subject.condition, 4.0), subject.output(subject.condition, -4.0)), "the network does not see logsnr")


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
    terms = 2 if len(subject.asked) and any(bool(keep.any()) for keep in subject.asked.keep.values()) else 1
    require(counter.rows == terms * N * STEPS, f"{counter.rows} rows were evaluated, not {terms * N * STEPS}")


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


def a_run_is_resumed_and_loaded_bit_for_bit(subject: Subject, folder: Path) -> None:
    def trained(name: str, steps: int, resume: bool = False) -> Model:
        config = deepcopy(dict(subject.config))
        config["trainer"] |= {"steps": steps, "batch_size": 4, "accumulate": 1, "decay": "constant", "save_every": 0, "sample_every": 0}
        changed = [f"trainer.steps={steps}"]
        train({**config, "out": str(folder / name), "resume": resume, "overwrite": False}, changed)
        return load(folder / name)

    def weights(model: Model) -> Mapping[str, Tensor]:
        return model.modality.modules().state_dict()

    whole, half = trained("whole", 4), trained("half", 2)
    again = trained("half", 4, resume=True)
    for name, tensor in weights(whole).items():
        require(torch.equal(tensor, weights(again)[name]), f"training that was interrupted gives another {name}")
    require(
        any(not torch.equal(tensor, weights(half)[name]) for name, tensor in weights(whole).items()), "training changes no weight at all"
    )

    def drawn(model: Model) -> Tensor:
        return torch.cat(list(model.latents(N, subject.asked, guidance=CFG(2.0), sampler=DDIM(), steps=STEPS)))

    other = load(folder / "whole")
    require(other.modality.shape == whole.modality.shape, "a loaded model has another shape")
    require(torch.equal(drawn(whole), drawn(other)), "a model that is loaded twice gives different samples")
    saved = checkpoint.read_tensors(checkpoint.latest(folder / "whole") / "average.safetensors")
    own = weights(other)
    require(saved.keys() == own.keys() and all(torch.equal(own[k], v) for k, v in saved.items()), "what is loaded is not what was saved")


def one_batch_is_learnt_by_heart(subject: Subject, folder: Path, steps: int = 400, to: float = 0.3) -> None:
    parts = {key: build(subject.config[key], key) for key in ("loss", "times")}
    modality, denoiser = assemble(subject.config)
    if isinstance(modality.codec, nn.Module) and isinstance(subject.modality.codec, nn.Module):
        modality.codec.load_state_dict(subject.modality.codec.state_dict())
    parts["loss"] = with_codec(parts["loss"], modality)
    objective = Objective(denoiser, modality.codec, **parts, dropout=Dropout(0.0), conditions=modality.conditions)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    objective.train()
    first = last = float("nan")
    for step in range(steps):
        torch.manual_seed(0)
        loss = objective(subject.raw, subject.condition, Place(0, 0, 0, 0, N)).mean()  # the same noise at every step
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        last = loss.item()
        first = last if step == 0 else first
        require(loss.isfinite().item() is True, f"the loss is {last} at step {step}")
        if last < to * first:
            return
    raise Broken(f"{steps} steps on {N} items bring the loss from {first:.3g} to {last:.3g}: the network does not learn them by heart")


def every_weight_is_trained(subject: Subject, folder: Path) -> None:
    modality = deepcopy(subject.modality)
    denoiser = replace(subject.denoiser, network=modality.network)
    loss = with_codec(build(subject.config["loss"], "loss"), modality)
    objective = Objective(denoiser, modality.codec, loss, dropout=Dropout(0.5), conditions=modality.conditions)
    for step in range(8):  # some drop conditions, some show earlier guesses
        objective(subject.raw, subject.condition, Place(0, step, N * step, 0, N)).mean().backward()
    unused = [name for name, parameter in objective.trained.named_parameters() if parameter.requires_grad and parameter.grad is None]
    require(not unused, f"the loss does not depend on {', '.join(unused[:3])}")


def measures_are_one_a_sample(subject: Subject, folder: Path) -> None:
    metrics = subject.modality.metrics
    with torch.no_grad():
        decoded = subject.modality.codec.decode(subject.x0)
    measured = metrics.measure(decoded, subject.condition)
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


def held_out_items_are_not_trained_on(subject: Subject, folder: Path, most: int = 200) -> None:
    def flat(split: Split, count: int) -> Tensor:
        raw, _ = split.__getitems__([k * len(split) // count for k in range(count)])
        with torch.no_grad():
            return subject.modality.metrics.flat(subject.modality.codec.decode(subject.modality.codec.encode(raw)))

    data = subject.modality.data
    test, known = (flat(split, min(len(split), most * times)) for split, times in ((data.test, 1), (data.train, 10)))
    twice = float((measures.nearest(test, known) <= 1e-6).float().mean())
    require(twice < 0.1, f"{twice:.0%} of the held-out items are among the training items")


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
    _, condition = data.test.__getitems__(list(range(len(data.test)))[:2000])
    values = condition.values[name][condition.keep[name]]
    commonest = float(torch.bincount(values, minlength=count).max() / len(values))
    require(judge.accuracy > commonest, f"the judge of {name} is right on {judge.accuracy:.1%}, always saying one class on {commonest:.1%}")


def samples_are_files(subject: Subject, folder: Path) -> None:
    render = subject.modality.render
    with torch.no_grad():
        decoded = subject.modality.codec.decode(subject.x0)
    names = [f"{k:06d}" for k in range(N)]
    require(len(render.formats) > 0, "its render names no format")
    words = render.words(decoded)
    require(len(words) in (0, N), f"its render has {len(words)} words for {N} samples")
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
    require(
        render.save(decoded, folder, names)[0].suffix == f".{render.formats[0]}", "without a format it is not the first one that is written"
    )
    table = render.table(chosen(decoded, torch.tensor([0, 1, 2, 3])), folder / "table.png", ["a", "b"], ["c", "d"])
    require(table.is_file(), f"its table was not written to {table}")
    moving = render.animate([decoded, decoded], folder / "steps.gif")
    require(moving.is_file(), f"its animation was not written to {moving}")


CHECKS: tuple[Callable[[Subject, Path], None], ...] = (
    parts_keep_the_protocols,
    items_are_the_same_however_fetched,
    conditions_are_what_their_specs_say,
    what_is_encoded_is_decoded,
    null_is_a_mask,
    evaluating_draws_no_random_numbers,
    rows_do_not_mix,
    the_noise_level_is_seen,
    a_step_is_one_call,
    guidance_is_what_its_scale_says,
    samples_do_not_depend_on_batches,
    a_run_is_resumed_and_loaded_bit_for_bit,
    one_batch_is_learnt_by_heart,
    every_weight_is_trained,
    measures_are_one_a_sample,
    held_out_items_are_not_trained_on,
    judges_are_better_than_guessing,
    samples_are_files,
)
