"""polyguide exactness."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from guidance import checkpoint
from guidance.bar import Bar
from guidance.commands.evaluating import finite
from guidance.commands.output import EXACTNESS_FILES, clear, vacant
from guidance.commands.settings import flag, folder, settings_of, threads, whole_number
from guidance.config import build
from guidance.errors import UserError, one_of
from guidance.guide import Guidance
from guidance.sampler import Sampler
from guidance.table import as_csv, as_text, flat, short

if TYPE_CHECKING:
    from guidance.exact.measure import Plan


def chosen(config: Mapping[str, Any], key: str, known: Mapping[Any, Any], what: str) -> list[Any]:
    """A list of names; all that are known where it is null."""
    names = config[key]
    if names is None:
        return list(known)
    names = names if isinstance(names, list) else [names]
    if not names:
        raise UserError(f"{key} is a list of names, or null for all; got an empty one")
    for name in names:
        if isinstance(name, bool) or name not in known:
            raise one_of(what, name, [str(name) for name in known])
    return list(dict.fromkeys(names))


def own_part(config: Mapping[str, Any], key: str, kind: type) -> tuple[Any, int | None]:
    """A guidance or a sampler of one's own, and the steps that come with it; None where there is none."""
    of = dict(settings_of(config, key))
    if not of:
        return None, None
    if "_target_" not in of:
        raise UserError(f"{key}.{next(iter(of))} is a setting of a {key} that is not chosen; give {key}=..., `polyguide list` shows which")
    steps = whole_number({f"{key}.steps": of.pop("steps")}, f"{key}.steps") if key == "sampler" and "steps" in of else None
    made = build(of, key)
    if not isinstance(made, kind):
        raise UserError(f"{key}={config[key]} is no {key}; `polyguide list` shows what can be chosen")
    return made, steps


def not_meant(plan: "Plan") -> list[str]:
    """A line that names the methods which do not claim to sample the targets, where there are any."""
    names = [name for name, method in plan.methods.items() if not method.claims and name != "own"]
    return [f"not made to sample the target (beside scale 1): {', '.join(names)}"] if names else []


def as_markdown(tables: Mapping[int, Sequence[Mapping[str, Any]]], plan: "Plan") -> str:
    """A table a dimension, with what each target is."""
    formulas = [f"`{target.name}`: {target.formula}" for target in plan.targets]
    parts = [f"Wasserstein-1 distance to the exact target; {plan.n} samples, {plan.steps} steps.\n", "; ".join(formulas) + "\n"]
    parts += [f"{line}\n" for line in not_meant(plan)]
    for d, rows in tables.items():
        names = list(rows[0])
        cells = [[short(row.get(name, "")) for name in names] for row in rows]
        parts += [f"## {d} dimension{'s' * (d > 1)}\n", f"| {' | '.join(names)} |", "|---|" + "---:|" * (len(names) - 1)]
        parts += [*(f"| {' | '.join(row)} |" for row in cells), ""]
    return "\n".join(parts)


def exactness(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide exactness"""
    from guidance.exact.figure import draw
    from guidance.exact.measure import Found, Plan, blocks, measure, rows_of
    from guidance.exact.methods import METHODS, own
    from guidance.exact.problems import DIMENSIONS
    from guidance.exact.target import TARGETS

    threads(config)
    out, overwrite = folder(config, "out"), flag(config, "overwrite")
    guidance, _ = own_part(config, "guidance", Guidance)
    sampler, steps = own_part(config, "sampler", Sampler)
    mine = {} if guidance is None and sampler is None else {"own": own(guidance, sampler, steps)}
    names = [] if mine and config["methods"] is None else chosen(config, "methods", METHODS, "method")
    plan = Plan(
        chosen(config, "dims", DIMENSIONS, "problem in dimensions"),
        [TARGETS[name] for name in chosen(config, "targets", TARGETS, "target")],
        mine | {name: METHODS[name] for name in names},
        whole_number(config, "n", 2),
        whole_number(config, "steps"),
        build(config["grid"], "grid"),
        whole_number(config, "seed", 0),
        whole_number(config, "repeats"),
    )
    if not plan.steps_in_all:
        asked = [", ".join(plan.methods), ", ".join(target.name for target in plan.targets)]
        raise UserError(f"none of the methods ({asked[0]}) is meant for the targets ({asked[1]}) in {plan.dimensions} dimensions")
    vacant(out, overwrite, EXACTNESS_FILES)
    bar = Bar(plan.steps_in_all, "exactness")
    with torch.no_grad():
        found: list[Found] = list(measure(plan, [bar]))
    clear(out, EXACTNESS_FILES)
    tables = blocks(found)
    for d in tables:
        draw([f for f in found if f.dimensions == d], out / f"samples-{d}d.png")
    rows = rows_of(found)
    checkpoint.write_atomically(out / "table.csv", as_csv(rows).encode())
    checkpoint.write_atomically(out / "table.md", as_markdown(tables, plan).encode())
    facts = {"config": config, "rows": [finite(flat(row)) for row in rows]}
    checkpoint.write_atomically(out / "exactness.json", json.dumps(facts, indent=1, default=str).encode())
    for d, table in tables.items():
        print(f"{d} dimension{'s' if d > 1 else ''}\n{as_text(table)}\n")
    print(f"Wasserstein-1 distance to the exact target, {plan.n} samples, {plan.steps} steps; evaluations of the network, a sample")
    for line in not_meant(plan):
        print(line)
    print(f"table.csv, table.md, exactness.json and samples-*d.png are in {out}")
