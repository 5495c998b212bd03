"""polyguide sample."""

import json
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import torch

from guidance import checkpoint
from guidance.bar import Bar
from guidance.commands.drawing import loaded, nth, sampling
from guidance.commands.output import SAMPLE_FILES, clear, vacant
from guidance.commands.settings import flag, folder, threads, whole_number
from guidance.config import build
from guidance.errors import UserError, one_of
from guidance.guide import Guidance
from guidance.sampler import Callback
from guidance.sampler.feynman_kac import Particles

SHOWN = 64  # samples printed, where they are words


def sample(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide sample"""
    from guidance.card import called
    from guidance.evaluate import Evaluations
    from guidance.page import gallery, shown_as
    from guidance.seen import Seen

    threads(config)
    n, out, overwrite, animate = whole_number(config, "n"), folder(config, "out"), flag(config, "overwrite"), flag(config, "animate")
    guidance = build(config["guidance"], "guidance")
    if not isinstance(guidance, Guidance):
        raise UserError(f"guidance={config['guidance']} is no guidance; `polyguide list` shows what can be chosen")
    if not isinstance(config["condition"], Mapping):
        raise UserError(f"condition is given by attribute, e.g. condition.digit=3, got condition={config['condition']!r}")
    model = loaded(config)
    settings = sampling(config, model)
    render, codec = model.modality.render, model.modality.codec
    if (wanted := config["format"]) not in (None, *render.formats):
        raise one_of("format", wanted, render.formats)
    counter, frames = Evaluations(), []
    condition = {name: value for name, value in config["condition"].items() if value is not None}
    vacant(out, overwrite, SAMPLE_FILES)
    bar = Bar(-(-n // (settings["batch_size"] or n)) * settings["steps"], "sample")
    particles = Particles()
    callbacks: list[Callback] = [counter, bar, particles]
    if animate:
        callbacks.append(lambda p: frames.append(p.prediction.x0[:64].clone()))
    done, shown, files, seen = 0, [], [], Seen(model, config["judge"])
    with torch.no_grad():
        for x0 in model.latents(n, condition, guidance=guidance, callbacks=callbacks, **settings):
            if not done:  # nothing of an earlier command is removed before it is known that this one works
                clear(out, SAMPLE_FILES)
            decoded = codec.decode(x0)
            files += render.save(decoded, out, [f"{k:06d}" for k in range(done, done + len(x0))], wanted)
            seen(decoded)
            if done < 64:
                shown.append(x0[: 64 - done])
            done += len(x0)
        together = torch.cat(shown)
        columns = min(8, len(together))
        rows = -(-len(together) // columns)
        drawn = render.table(codec.decode(together), out / "grid.png", [""] * rows, [""] * columns)
        if frames:
            render.animate([codec.decode(frame) for frame in frames[: settings["steps"]]], out / "denoising.gif")
    evaluations = counter.rows / (n * settings["steps"])
    facts = {"config": config, "network_evaluations_per_sample_and_step": evaluations, "network_calls": counter.calls}
    if particles.effective is not None:
        facts |= {"lowest_effective_share": particles.effective, "starting_noises": particles.origins}
    checkpoint.write_atomically(out / "samples.json", json.dumps(facts, indent=1, default=str).encode())
    given = [{name: nth(value, k, n) for name, value in condition.items()} for k in range(n)]
    named = [{"file": file.name} for file in files] or [{} for _ in range(n)]
    lines = [{**file, "asked": asked, **what} for file, asked, what in zip(named, given, seen.rows(n), strict=True)]
    checkpoint.write_atomically(out / "samples.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    asked = [shorten(", ".join(f"{name}={value}" for name, value in of.items()), 80) for of in given]
    about = f"guidance {called(config['guidance']).strip('`')}, {settings['steps']} steps, seed {settings['seed']}"
    if files:
        if not shown_as(files[0]):  # a page has to show something
            asked = [": ".join(filter(None, parts)) for parts in zip(asked, seen.texts or [""] * n, strict=True)]
        page = gallery(f"{n} samples of {config['run']}", about, files, asked, None if shown_as(files[0]) else drawn)
        checkpoint.write_atomically(out / "index.html", page.encode())
    for line in lines[:SHOWN]:
        if "text" in line:
            print("\t".join([", ".join(f"{c} {p:.2f}" for c, p in line.get("seen", {}).values()), line["text"]]).strip())
    if n > SHOWN and seen.texts:
        print(f"... and {n - SHOWN} more")
    print(f"{n} samples in {out}; {evaluations:.3g} network evaluations a sample and step, in {counter.calls} calls")
    if particles.effective is not None:
        share = f"at least {particles.effective:.2g} of the samples that ask for the same"
        print(f"effective sample size {share}; {particles.origins} of {n} starting noises are left in them")
