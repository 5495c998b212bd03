"""polyguide evaluate."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from guidance import checkpoint, proper
from guidance.bar import Bar
from guidance.commands.drawing import loaded, measured, sampling, settle_precision
from guidance.commands.output import EVALUATION_FILES, clear
from guidance.commands.settings import check_number, flag, threads, whole_number
from guidance.commands.work import Work, stored_precision
from guidance.config import build, leaves
from guidance.errors import UserError, one_of
from guidance.estimate import Estimate
from guidance.guide import Guidance
from guidance.previews import class_columns, class_table
from guidance.processes import claim, launched, rank

RESULT = "evaluation.json"


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def varied(config: Any, vary: Any) -> Callable[[float], Guidance]:
    """The guidance of a config, as a function of one of its settings, by dotted name."""
    names = [name for name in leaves(config) if not name.endswith("_")]
    if vary not in names:
        raise one_of("setting of the guidance to vary", vary, names)

    def at(scale: float) -> Guidance:
        made = deepcopy(config)
        node = made
        *path, last = str(vary).split(".")
        for part in path:
            node = node[part]
        node[last] = scale
        guidance = build(made, "guidance")
        if not isinstance(guidance, Guidance):
            raise UserError(f"guidance={config} is no guidance; `polyguide list` shows what can be chosen")
        return guidance

    return at


def stored(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table for JSON, which keeps every digit."""
    return {key: [value.value, value.low, value.high, value.n] if isinstance(value, Estimate) else value for key, value in row.items()}


def read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: Estimate(*value) if isinstance(value, list) else value for key, value in row.items()}


@launched()
def evaluate(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide evaluate"""
    from guidance.evaluate import GIVEN, cases, default_attribute, reference
    from guidance.evaluate import evaluate as measure
    from guidance.experiment.conduct import weights
    from guidance.plots import quality_curves
    from guidance.table import as_csv, as_text, flat

    threads(config)
    n, overwrite, resume, out = whole_number(config, "n", 2), flag(config, "overwrite"), flag(config, "resume"), measured(config)
    if not isinstance(config["scales"], list) or not config["scales"]:
        raise UserError(f"scales is a list of numbers, e.g. scales=[-1,0,1,3], got {config['scales']!r}")
    scales = [check_number(scale, "scales") for scale in config["scales"]]
    settle_precision(config, lambda: stored_precision(out, RESULT) if resume else None)
    model = loaded(config)
    settings = sampling(config, model)
    name, given = default_attribute(model, config["attribute"]), config["given"]
    if given not in GIVEN:
        raise one_of("given", given, GIVEN)
    guide = varied(config["guidance"], config["vary"])
    if any(override.lstrip("+").split("=")[0] == f"guidance.{config['vary']}" for override in overrides):
        raise UserError(f"guidance.{config['vary']} is what scales={config['scales']} varies: give one of them")
    guide(scales[0])
    settings["grid"](settings["schedule"] or model.denoisers["main"].schedule, settings["steps"])  # a grid that does not fit is refused
    del config["resume"]  # is not of what is measured
    work = Work(out, "measurements", EVALUATION_FILES, RESULT, config, weights(model))
    with work.shared(overwrite, resume) as left:
        if not left:
            if rank() == 0:
                print(f"{out} holds the measurements of all scales already")
            return
        with claim(work.locks, "reference", wait=True):  # one process trains what judges, the others take it from the cache
            ref = reference(model, name)
        moments, model = proper.known(model), replace(model, moments=None)  # said once, of all scales
        names = {f"scale-{k:03d}": scale for k, scale in enumerate(scales)}
        cost = -(-n // (settings["batch_size"] or n)) * settings["steps"]
        before = set(filter(work.done, names))
        bar = Bar((len(names) - len(before)) * cost, "evaluate")
        draw = partial(model.sample, **settings)
        for unit in work.units(list(names), lambda unit: bar.skip(0 if unit in before else cost)):
            measured_now, _ = measure(
                model, [names[unit]], n, attribute=name, given=given, guide=guide, draw=draw, ref=ref, callbacks=[bar]
            )
            work.write(unit, stored(measured_now[0]))
        with work.finishing() as mine:
            if mine:
                rows = [read_row(work.facts(unit)) for unit in names]
                clear(out, EVALUATION_FILES)
                drawn = class_table(model, scales, out / "table.png", class_columns(model, name, given), guide=guide, **settings)
                asked = cases(model, n, name, given).condition
                improper = [(scale, proper.improper_of(model, moments, guide(scale), asked, n)) for scale in scales]
                table = [{"scale": "real", "n": ref.n, **ref.real}, *rows]
                checkpoint.write_atomically(out / "metrics.csv", as_csv(table).encode())
                quality_curves(rows, ref.real, out / "curves.png")
                judged = None if ref.judge is None else ref.judge.accuracy
                of = {"weights": work.terms["weights"], "sampler": f"{settings['sampler']!r}, {settings['steps']} steps"}
                facts = {"config": config, **of, "attribute": name, "judge_accuracy": judged, "rows": [finite(flat(row)) for row in table]}
                facts["improper"] = [{"scale": scale, "asked": one.asked, "bound": one.bound} for scale, found in improper for one in found]
                checkpoint.write_atomically(out / RESULT, json.dumps(facts, indent=1, default=str).encode())
                print(as_text(table))
                about = f"; the judge is right on {judged:.1%} of held-out data" if judged is not None else ""
                print(f"\n{name or 'all'}: {n} samples a scale from the same noise, {settings['steps']} steps{about}")
                if said := proper.at_scales(improper):
                    print(said)
                print(f"metrics.csv, curves.png and {drawn.name} are in {out}")
