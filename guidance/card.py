"""The model card: what is known of a model and what was measured, and nothing else."""

import functools
import json
import keyword
import math
import platform
import re
import shlex
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
import yaml

from guidance import checkpoint
from guidance.condition import Label
from guidance.errors import UserError
from guidance.machine import AUTO
from guidance.model import Model
from guidance.portable import last, portable, said

CARD = "README.md"
FIRST = 12  # classes of an attribute that a card lists


def card(model: Model, name: str) -> str:
    """The model card: what is known of the model and what was measured, and nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    assert model.run is not None
    modality, own = model.modality, model.config == checkpoint.read_config(model.run)
    evaluation, left = read_evaluation(model) if own else (None, [])
    experiments, more = experiments_of(model) if own else ([], [])
    left += more
    if not own and (any(model.run.glob("evaluation/*.json")) or any(model.run.glob("experiments/*/experiment.json"))):
        left = ["what was measured of the run (settings of the model were changed since)"]
    labels = {key: spec for key, spec in modality.conditions.items() if isinstance(spec, Label) and usable(key)}
    environment = Environment(
        loader=PackageLoader("guidance", "."),
        autoescape=False,  # this is Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md").render(
        front=front_matter(model, evaluation),
        title=last(name),
        modality=modality.name,
        facts=[(key, cell(value)) for key, value in facts_of(model)],
        attributes=[(key, cell(describe(spec))) for key, spec in modality.conditions.items()],
        python=fenced("python", python_use(labels, name)),
        console=fenced("console", console_use(labels, name)),
        meaning=MEANING if labels else "",
        commands=fenced("text", "\n".join(map(said, checkpoint.read_commands(model.run)))),
        training=training(model),
        tables=[] if evaluation is None else [evaluation_table(model, evaluation)],
        experiments=experiments,
        left_out=f"Left out: {'; '.join(left)}." if left else "",
    )
    return text.strip() + "\n"


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```" if text else ""


def cell(text: str) -> str:
    """As it can stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def front_matter(model: Model, evaluation: Mapping[str, Any] | None) -> str:
    """What the hub reads: YAML."""
    modality = model.modality
    tags = ["polyguide", "diffusion", "classifier-free-guidance", modality.name, last(modality.data.name)]
    found: dict[str, Any] = {"library_name": "polyguide", "tags": list(dict.fromkeys(tags))}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", modality.data.name):  # a data set of the hub
        found["datasets"] = [modality.data.name]
    if evaluation is not None:
        found["metrics"] = measures_of(evaluation)
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def facts_of(model: Model) -> list[tuple[str, str]]:
    data, config = model.modality.data, model.config
    count = sum(p.numel() for p in model.modality.modules().parameters())
    items = state(model).get("items")
    held = " (combinations held out: " + ", ".join(map(str, config["holdout"])) + ")" if config.get("holdout") else ""
    about = documented(type(data))
    return [
        ("modality", model.modality.name),
        ("data", f"`{data.name}`" + (f": {about}" if about else "")),
        *([("training items", f"{items:,}{held}")] if isinstance(items, int) else []),
        ("network", f"{called(config['network'])}, {count:,} parameters"),
        *((key, called(config[key])) for key in ("schedule", "parameterization", "sampler") if config.get(key)),
        ("weights", f"of step {model.step:,}, {'the moving average' if model.average else 'as trained, not averaged'}"),
        ("saved with", f"polyguide {version('polyguide')}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}"),
    ]


def documented(kind: type) -> str:
    """The first paragraph of a class's own docstring: of a data set, what it is, where it is from, its licence."""
    text = kind.__dict__.get("__doc__") or ""
    if text.startswith(f"{kind.__name__}("):  # a dataclass's, where nobody wrote one
        return ""
    return " ".join(text.strip().split("\n\n")[0].split()).replace("``", "`")


def called(part: Any) -> str:
    """A part of a config as a call, with its plain settings, and with its parts that are calls themselves."""
    if not isinstance(part, Mapping) or "_target_" not in part:
        return str(part)
    shown = {k: called(v).strip("`") if isinstance(v, Mapping) and "_target_" in v else v for k, v in portable(part).items()}
    plain = {k: v for k, v in shown.items() if not k.startswith("_") and not isinstance(v, Mapping) and len(str(v)) <= 60}
    *_, owner, name = ("", *str(part["_target_"]).split("."))
    name = f"{owner}.{name}" if owner[:1].isupper() else name  # Compose.read
    return f"`{name}({', '.join(f'{key}={value}' for key, value in plain.items())})`"


def usable(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def describe(spec: Any) -> str:
    """What an attribute may be."""
    if not isinstance(spec, Label):
        return documented(type(spec)) or type(spec).__name__
    shown = ", ".join(f"`{name}`" for name in spec.classes[:FIRST])
    order = f"; in order: {' < '.join('/'.join(level) for level in spec.levels)}" if spec.levels else ""
    return shown + (f", ... ({len(spec.classes)} in all)" if len(spec.classes) > FIRST else "") + order


MEANING = (
    "A scale of 1 is the conditional model, 0 the unconditional one; above 1 there is more of what is named, below 0 it is avoided. "
    "`polyguide sample --help` lists all settings."
)


def chosen(labels: Mapping[str, Label]) -> list[tuple[str, str]]:
    """Two attributes to show the use with, each with a class: of what has an order, an end of it."""
    return [(name, spec.levels[-1][0] if spec.levels else spec.classes[len(spec.classes) // 3]) for name, spec in list(labels.items())[:2]]


def python_use(labels: Mapping[str, Label], name: str) -> str:
    lines = ["import guidance", "from guidance import CFG, on", "", f"model = guidance.load({json.dumps(name)})"]
    if not labels:
        return "\n".join([lines[0], *lines[2:], "samples = model.sample(4, seed=0)"])
    (one, value), *rest = chosen(labels)
    asked = f"{{{json.dumps(one)}: {json.dumps(value, ensure_ascii=False)}}}"
    lines += [
        f"samples = model.sample(4, {asked}, guidance=CFG(2.0), seed=0)  # more of it",
        f"avoided = model.sample(4, {asked}, guidance=CFG(-1.0), seed=0)  # anything but that",
    ]
    if rest:
        terms = f"2 * on({one}={json.dumps(value, ensure_ascii=False)}) - 1 * on({rest[0][0]}={json.dumps(rest[0][1], ensure_ascii=False)})"
        lines.append(f"mixed = model.sample(4, guidance={terms}, seed=0)  # this, and not that")
    else:
        lines.append(f"mixed = model.sample(4, guidance=2 * on({one}={json.dumps(value, ensure_ascii=False)}), seed=0)")
    return "\n".join(lines)


def of_run(name: str) -> str:
    """The setting that names the model."""
    return shlex.quote(f"run={name if re.fullmatch(r'[A-Za-z0-9_./-]+', name) else quoted(name)}")


def console_use(labels: Mapping[str, Label], name: str) -> str:
    start = f"polyguide sample {of_run(name)} n=4"
    if not labels:
        return f"{start} out=samples"
    (one, value), *rest = chosen(labels)
    asked = shlex.quote(f"condition.{one}={setting(value)}")
    lines = [f"{start} {asked} guidance.scale=2 out=more", f"{start} {asked} guidance.scale=-1 out=avoided"]
    if rest:
        terms = f"2*on({one}={literal(value)}) - 1*on({rest[0][0]}={literal(rest[0][1])})"
        lines.append(f"{start} guidance=compose {shlex.quote('guidance.terms=' + quoted(terms))} out=mixed")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """Text as Hydra reads it whatever is in it."""
    if '"' not in text:
        return '"' + re.sub(r"(\\+)$", r"\1\1", text) + '"'
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def setting(value: str) -> str:
    """A class as a setting on the command line."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*|0|[1-9][0-9]*", value)
    return value if plain and value.lower() not in ("true", "false", "null", "none", "nan", "inf") else quoted(value)


def literal(value: str) -> str:
    """A class in the algebra of conditions, as it is read from text."""
    return value if re.fullmatch(r"0|[1-9][0-9]*", value) or usable(value) else repr(value)


def state(model: Model) -> Mapping[str, Any]:
    """Of the checkpoint that the weights are of."""
    assert model.run is not None
    if model.step is None or checkpoint.is_saved(model.run):
        return {}
    return checkpoint.read_state(checkpoint.checkpoint_folder(model.run, model.step))


def log(model: Model) -> list[Mapping[str, float]]:
    """The lines of metrics.jsonl up to the weights' step, with those of timings.jsonl, where the run is not an older one."""
    assert model.run is not None
    found: list[Mapping[str, float]] = []
    try:
        times = {entry["step"]: entry for entry in map(json.loads, checkpoint.read_lines(model.run / checkpoint.TIMINGS))}
        for line in (model.run / checkpoint.METRICS).read_text().splitlines():
            entry = json.loads(line)
            entry |= times.get(entry["step"], {})
            if entry["step"] <= (model.step or 0) and (not found or entry["step"] > found[-1]["step"]):
                found.append(entry)
    except (OSError, ValueError, KeyError, TypeError):
        return found  # of an imported model there is none
    return found


def training(model: Model) -> str:
    """Steps, time and loss, as far as they were logged."""
    entries, batch = log(model), (model.config.get("trainer") or {}).get("batch_size")
    steps = f"{model.step:,} steps" + (f" of {batch}" if batch else "")
    seed = f", seed {model.config['seed']}" if "seed" in model.config else ""
    if not entries or not batch:
        return f"{steps}{seed}."
    before = [0, *(int(entry["step"]) for entry in entries)]
    try:
        seconds = sum((e["step"] - k) * batch / e["samples_per_second"] for e, k in zip(entries, before, strict=False))
        since = before[-2]
        loss = f"loss {entries[-1]['loss']:.4g} (the mean of steps {since + 1:,} to {before[-1]:,})"
    except (KeyError, TypeError, ZeroDivisionError):
        return f"{steps}{seed}."
    precision = (model.config.get("trainer") or {}).get("precision", "no")
    return f"{steps}{seed}, in {duration(seconds)}{'' if precision in ('no', AUTO) else f', in {precision}'}; {loss}."


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def read_evaluation(model: Model) -> tuple[Mapping[str, Any] | None, list[str]]:
    """What `polyguide evaluate` measured of these weights, and what is left out, with the reason."""
    from guidance.experiment.conduct import weights

    assert model.run is not None
    path = model.run / "evaluation" / "evaluation.json"
    if not path.is_file():
        return None, []
    try:
        found = json.loads(path.read_text())
        rows, told, other = found["rows"], "n" in found["config"], found.get("weights") != weights(model)
        if not rows or not told or not all(isinstance(row, dict) and "scale" in row for row in rows):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        warnings.warn(f"{path} cannot be read: the card has no table of it", stacklevel=2)
        return None, []
    if other and "weights" in found:
        return None, ["the evaluation (it was measured with other weights)"]
    if other:
        return None, ["the evaluation (it does not say of which weights; measure it anew)"]
    return found, []


def measures_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The measures of an evaluation, by name."""
    names = dict.fromkeys(name for row in evaluation["rows"] for name in row)
    bounds = {f"{name}_{end}" for name in names for end in ("low", "high")}
    return [name for name in names if name not in bounds and name not in ("scale", "n", "evaluations")]


def evaluation_table(model: Model, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """A row a scale, with intervals."""
    config, attribute = evaluation["config"], evaluation["attribute"]
    names, units = [*measures_of(evaluation), "evaluations"], model.modality.metrics.units
    asked = {"alone": "one class after another", "train": "as training items are", "test": "as held-out items are"}.get(config.get("given"))
    parts = [
        f"{config['n']} samples a scale from the same noise (seed {config.get('seed')})",
        *([f"asked for by `{attribute}`, {asked}"] if attribute and asked else []),
        *([f"guidance {called(config['guidance'])}, varied in {config.get('vary')}"] if not plain_cfg(config) else []),
        evaluation["sampler"],
        *(f"{key} {value}" for key, value in (config.get("model") or {}).items()),
        *([f"precision {config['precision']}"] if config.get("precision") not in (None, "no") else []),
    ]
    judged = evaluation.get("judge_accuracy")
    judge = f" The judge is right on {judged:.1%} of held-out data." if judged is not None else ""
    titles = [f"{name.replace('_', ' ')} ({units[name]})" if name in units else name.replace("_", " ") for name in names]
    rows = [[*scale_of(row), *(value_of(row, name) for name in names)] for row in evaluation["rows"]]
    caption = f"{'; '.join(map(str, parts))}; 95 % intervals in brackets.{judge}"
    return {"caption": caption, "columns": ["scale", "n", *map(cell, titles)], "rows": rows}


def plain_cfg(config: Mapping[str, Any]) -> bool:
    """Whether an evaluation was of plain classifier-free guidance, as those that do not say are."""
    return str((config.get("guidance") or {}).get("_target_", "CFG")).endswith("CFG")


def scale_of(row: Mapping[str, Any]) -> list[str]:
    scale = row["scale"]
    return [f"{scale:g}" if isinstance(scale, int | float) else f"{scale}, held out", str(row.get("n", ""))]


def value_of(row: Mapping[str, Any], name: str) -> str:
    from guidance.table import short

    value, low, high = (row.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    known = isinstance(low, float) and isinstance(high, float) and math.isfinite(low) and math.isfinite(high)
    return short(value) + (f" [{short(low)}, {short(high)}]" if known else "")


def experiments_of(model: Model) -> tuple[list[dict[str, Any]], list[str]]:
    """The verdicts of the run's experiments, as far as they are of these weights; and what is left out, with the reason."""
    from guidance.experiment.conduct import weights
    from guidance.experiment.findings import FACTS, read_result
    from guidance.experiment.report import findings_of, progress

    assert model.run is not None
    found, left = [], []
    own = functools.cache(lambda: weights(model))
    for folder in sorted(path.parent for path in model.run.glob(f"experiments/*/{FACTS}")):
        try:
            result = read_result(folder)
            if result.facts["weights"] != own():
                left.append(f"the experiment `{folder.name}` (it was measured with other weights)")
                continue
            verdicts, facts = findings_of([result]).verdicts, result.facts
        except (UserError, KeyError) as error:
            warnings.warn(f"{folder} is left out of the card: {error}", stacklevel=2)
            continue
        missing = progress([result])
        seen = ", ".join(f"{name} {share:.1%}" for name, share in facts["accuracy"].items())
        found.append(
            {
                "title": facts["title"],
                "about": f"{facts['n']} samples a cell, all from the same noise (seed {facts['seed_of_samples']}); "
                f"{facts['sampler'].split(', grid')[0].split(', Uniform')[0]}; of held-out data, what is seen is right: {seen}."
                + (f" {missing}." if missing else ""),
                "verdicts": [f"**{v.question} {v.answer}.** {v.evidence}" for v in verdicts],
            }
        )
    return found, left
