"""polyguide sample."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import Any

import torch

from guidance import checkpoint
from guidance.bar import Bar
from guidance.commands.drawing import loaded, nth, sampling, settle_precision
from guidance.commands.output import SAMPLE_FILES
from guidance.commands.settings import flag, folder, threads, whole_number
from guidance.commands.work import Work, stored_precision
from guidance.config import build
from guidance.errors import UserError, one_of
from guidance.guide import Guidance
from guidance.model import Model, borders
from guidance.processes import launched, rank
from guidance.real import Real, real_items
from guidance.sampler import Progress
from guidance.sampler.feynman_kac import Particles

RESULT = "samples.json"
SHOWN = 64  # samples printed, where they are words, and shown together
COLUMNS = 8  # in which these are shown


@launched()
def sample(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide sample"""
    from guidance.experiment.conduct import weights

    threads(config)
    n, out, animate = whole_number(config, "n"), folder(config, "out"), flag(config, "animate")
    overwrite, resume = flag(config, "overwrite"), flag(config, "resume")
    guidance = build(config["guidance"], "guidance")
    if not isinstance(guidance, Guidance):
        raise UserError(f"guidance={config['guidance']} is no guidance; `polyguide list` shows what can be chosen")
    if not isinstance(config["condition"], Mapping):
        raise UserError(f"condition is given by attribute, e.g. condition.digit=3, got condition={config['condition']!r}")
    settle_precision(config, lambda: stored_precision(out, RESULT) if resume else None)
    model = loaded(config)
    settings = sampling(config, model)
    if not isinstance(config["judge"], bool | None):
        raise UserError(f"judge is true, false or null, got {config['judge']!r}")
    if (wanted := config["format"]) not in (None, *model.modality.render.formats):
        raise one_of("format", wanted, model.modality.render.formats)
    condition = {name: value for name, value in config["condition"].items() if value is not None}
    real = real_row(model, min(n, COLUMNS), n, condition) if flag(config, "real") else None
    del config["resume"]  # is not of the samples
    work = Work(out, "samples", SAMPLE_FILES, RESULT, config, weights(model))
    with work.shared(overwrite, resume) as left:
        if not left:
            if rank() == 0:
                print(f"{out} holds all {n} samples already")
            return
        draw(work, model, n, condition, guidance, settings, wanted, config["judge"], animate)
        with work.finishing() as mine:
            if mine:
                together(work, model, n, condition, config, settings, real)


def real_row(model: Model, columns: int, n: int, condition: Mapping[str, Any]) -> Real | None:
    """Real items that have what each of the first samples is asked for; None, and a line, where there are none."""
    if not condition and model.modality.conditions:
        raise UserError("real=true shows real items that have what is asked for: give condition.ATTRIBUTE=VALUE")
    found = real_items(model, model.condition(n, condition).rows(slice(columns)), columns)
    if bool(found.exact.all()):
        return found
    if rank() == 0:
        print(f"no real items beside the samples: {model.modality.data.name} has none, {found.origin}, of what is asked for")
    return None


def batch_name(k: int) -> str:
    return f"batch-{k:06d}"


class Counted:
    """What a batch costs, and what becomes of its particles; with ``frames`` the predicted x0 of its first samples, step by step."""

    def __init__(self) -> None:
        self.begin(False)

    def begin(self, frames: bool) -> None:
        self.rows = self.calls = 0
        self.particles = Particles()
        self.frames: list[torch.Tensor] | None = [] if frames else None

    def __call__(self, progress: Progress) -> None:
        self.rows, self.calls = progress.rows, progress.calls
        self.particles(progress)
        if self.frames is not None:
            self.frames.append(progress.prediction.x0[:SHOWN].clone())


def draw(
    work: Work,
    model: Model,
    n: int,
    condition: Mapping[str, Any],
    guidance: Guidance,
    settings: Mapping[str, Any],
    wanted: str | None,
    judge: Any,
    animate: bool,
) -> None:
    """Every batch that is not drawn yet, until all are, whoever draws them: its files, then its record."""
    from guidance.seen import Seen

    model = replace(model, moments=model.moments if rank() == 0 else None)  # what all would warn of, one does
    rows = borders(n, settings["batch_size"])
    names = [batch_name(k) for k in range(len(rows))]
    counted, seen, steps = Counted(), Seen(model, judge), settings["steps"]
    bar = Bar(sum(not work.done(name) for name in names) * steps, "sample")
    before = set(filter(work.done, names))
    if before and rank() == 0:
        print(f"{len(before)} of {len(names)} batches are drawn already")
    current = 0

    def mine() -> Iterator[int]:
        nonlocal current
        for name in work.units(names, lambda name: bar.skip(0 if name in before else steps)):
            current = names.index(name)
            counted.begin(animate and current == 0)
            yield current

    with torch.no_grad():
        for x0 in model.latents(n, condition, guidance=guidance, callbacks=[counted, bar], batches=mine(), **settings):
            first = rows[current].start
            decoded = model.modality.codec.decode(x0)
            work.make_room()
            files = model.modality.render.save(decoded, work.out, [f"{k:06d}" for k in range(first, first + len(x0))], wanted)
            seen.texts, seen.classes = [], {}
            seen(decoded)
            facts = {"rows": counted.rows, "calls": counted.calls, "files": [file.name for file in files], "seen": seen.rows(len(x0))}
            if counted.particles.effective is not None:
                facts |= {"effective": counted.particles.effective, "origins": counted.particles.origins}
            kept = {"shown": x0[: SHOWN - first]} if first < SHOWN else {}
            kept |= {"frames": torch.stack(counted.frames)} if counted.frames else {}
            work.write(names[current], facts, kept)


def together(
    work: Work,
    model: Model,
    n: int,
    condition: Mapping[str, Any],
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    real: Real | None,
) -> None:
    """All that is said and shown of the samples together, from the batches' records."""
    from guidance.card import called
    from guidance.page import gallery, shown_as

    out, steps, render, codec = work.out, settings["steps"], model.modality.render, model.modality.codec
    names = [batch_name(k) for k in range(len(borders(n, settings["batch_size"])))]
    found = [work.facts(name) for name in names]
    with torch.no_grad():
        shown = torch.cat([kept["shown"] for name in names[:SHOWN] if (kept := work.tensors(name))]).to(model.device)
        columns, beside = min(COLUMNS, len(shown)), []
        rows = [""] * -(-len(shown) // columns)
        if real is not None:  # above, for the last row of samples may be shorter
            x0 = real.x0(model)
            beside = render.save(codec.decode(x0), out, [f"real-{k}" for k in range(columns)], config["format"])
            rows, shown = [real.title, *rows], torch.cat([x0, shown])
        drawn = render.table(codec.decode(shown), out / "grid.png", rows, [""] * columns)
        if (frames := work.tensors(names[0]).get("frames")) is not None:
            render.animate([codec.decode(frame) for frame in frames.to(model.device)], out / "denoising.gif")
    calls = sum(facts["calls"] for facts in found)
    evaluations = sum(facts["rows"] for facts in found) / (n * steps)
    facts = {"config": config, "weights": work.terms["weights"]}
    facts |= {"network_evaluations_per_sample_and_step": evaluations, "network_calls": calls}
    effective = min((one["effective"] for one in found if "effective" in one), default=None)
    origins = sum(one.get("origins", 0) for one in found)
    if effective is not None:
        facts |= {"lowest_effective_share": effective, "starting_noises": origins}
    files = [out / name for one in found for name in one["files"]]
    seen = [row for one in found for row in one["seen"]]
    texts = [row.get("text", "") for row in seen]
    given = [{name: nth(value, k, n) for name, value in condition.items()} for k in range(n)]
    named = [{"file": file.name} for file in files] or [{} for _ in range(n)]
    lines: list[dict[str, Any]] = [{**file, "asked": asked, **what} for file, asked, what in zip(named, given, seen, strict=True)]
    checkpoint.write_atomically(out / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    asked = [shorten(", ".join(f"{name}={value}" for name, value in of.items()), 80) for of in given]
    about = f"guidance {called(config['guidance']).strip('`')}, {steps} steps, seed {settings['seed']}"
    if files:
        titles = [] if real is None else [": ".join(filter(None, (f"real, {real.origin}", of))) for of in asked[: len(beside)]]
        if not shown_as(files[0]):  # a page has to show something
            asked = [": ".join(filter(None, parts)) for parts in zip(asked, texts, strict=True)]
        asked, files = [*titles, *asked], [*beside, *files]
        page = gallery(f"{n} samples of {config['run']}", about, files, asked, None if shown_as(files[0]) else drawn)
        checkpoint.write_atomically(out / "index.html", page.encode())
    checkpoint.write_atomically(out / RESULT, json.dumps(facts, indent=1, default=str).encode())
    for line in lines[:SHOWN]:
        if "text" in line:
            print("\t".join([", ".join(f"{c} {p:.2f}" for c, p in line.get("seen", {}).values()), line["text"]]).strip())
    if n > SHOWN and any(texts):
        print(f"... and {n - SHOWN} more")
    print(f"{n} samples in {out}; {evaluations:.3g} network evaluations a sample and step, in {calls} calls")
    if effective is not None:
        share = f"at least {effective:.2g} of the samples that ask for the same"
        print(f"effective sample size {share}; {origins} of {n} starting noises are left in them")
