"""Experiments as files to keep (tables as CSV, figures as PNG and SVG) and as one page that needs nothing else."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidance.checkpoint import write_atomically
from guidance.config import build
from guidance.errors import UserError
from guidance.estimate import Estimate
from guidance.experiment import figures
from guidance.experiment.findings import FACTS, Experiment, Findings, Result, Sheet, Table, precision_named, read_result
from guidance.page import element, inline, shown_as
from guidance.table import as_csv, columns, short

PAGE = "report.html"
MARK = '<meta name="generator" content="polyguide">'
WIDEST = {"image": 10, "audio": 5, "text": 3}
"""Samples of a row that fit on a page, by the type of their files."""


def command(arguments: Sequence[str]) -> None:
    """polyguide report RUN... [out=FOLDER]"""
    paths, out, title = [], Path("report"), ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument in ("-h", "--help"):
            print("usage: polyguide report RUN... [out=report] [title=...]\n\nRUN: run folders, or folders of experiments.")
            return
        if equals and name == "out" and value:
            out = Path(value).expanduser()
        elif equals and name == "title" and value:
            title = value
        elif (equals and not Path(argument).exists()) or argument.startswith("-"):
            raise UserError(f"report takes folders, out=FOLDER and title=TEXT; got {argument}")
        else:
            paths.append(Path(argument).expanduser())
    if not paths:
        raise UserError("report needs at least one run: polyguide report runs/digits runs/notes out=report")
    found = [result for path in paths for result in results_of(path)]
    written(grouped(found), out, title or "Guidance, measured")


def results_of(path: Path) -> list[Result]:
    """The experiments of a run folder, or the one that is kept in this folder."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder")
    folders = [path] if (path / FACTS).is_file() else sorted(f.parent for f in path.glob(f"experiments/*/{FACTS}"))
    if not folders:
        raise UserError(f"{path} holds no experiments; measure one with: polyguide experiment run={path} experiment=tradeoff")
    return [read_result(folder) for folder in folders]


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """Experiments, each with the trainings that it was measured on: those whose config and settings differ in the seed only.

    Raises: UserError where runs on the same data have different classes, or a training is named twice.
    """
    classes: dict[str, Result] = {}
    groups: dict[str, list[Result]] = {}
    for result in results:
        facts = result.facts
        first = classes.setdefault(facts["data"], result)
        if first.facts["all_classes"] != facts["all_classes"]:
            one, two = (describe(r.facts["all_classes"]) for r in (first, result))
            raise UserError(
                f"{first.facts['run']} and {facts['run']} are both on {facts['data']} but have different classes ({one}; {two}): "
                "report them apart"
            )
        key = json.dumps(
            [facts[k] for k in ("config", "kind", "experiment", "n", "seed_of_samples", "sampler", "precision", "model_settings")]
        )
        group = groups.setdefault(key, [])
        if any(other.folder.resolve() == result.folder.resolve() for other in group):
            raise UserError(f"{result.folder} is named twice")
        if any(other.facts["seed"] == facts["seed"] for other in group):
            raise UserError(f"{group[0].folder} and {result.folder} are trainings of the same seed: they count once; leave one out")
        group.append(result)
    return list(groups.values())


def describe(classes: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" for name, names in classes.items())


def findings_of(group: Sequence[Result]) -> Findings:
    """What an experiment found on a group of trainings; its class is told by the stored config."""
    experiment: Experiment = build(group[0].facts["experiment"], "experiment")
    if not any(result.cells for result in group):
        return Findings()
    return experiment.findings(group)


def slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def written(groups: Sequence[Sequence[Result]], out: Path, title: str) -> Path:
    """The page, and beside it figures/*.png, *.svg and tables/*.csv. Says what was found, and where they are."""
    page = vacant(out)
    parts = drawn(groups, out)
    write_page(parts, out, title)
    for part in parts:
        print(f"{part['data']}, {part['title']}{': ' + part['progress'] if part['progress'] else ''}")
        for verdict in part["verdicts"]:
            print(f"  {verdict.question} {verdict.answer}.")
    print(f"{page}; figures and tables beside it")
    return page


def vacant(out: Path) -> Path:
    """Where the page is to be. UserError where something else is there."""
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file, not a folder")
    page = out / PAGE
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise UserError(f"{page} is there and was not written by this program; choose another out=")
    return page


def drawn(groups: Sequence[Sequence[Result]], out: Path, used: dict[str, int] | None = None) -> list[dict[str, Any]]:
    """What the page says of each group, its figures drawn and its tables written.

    ``used``: how often each name of a group is taken already, where more groups are on the page.
    """
    used = {} if used is None else used
    parts = []
    for group in groups:
        facts, found = group[0].facts, findings_of(group)
        stem = slug(f"{facts['data']}-{facts['title']}")
        used[stem] = used.get(stem, 0) + 1
        stem = stem if used[stem] == 1 else f"{stem}-{used[stem]}"
        pictures = []
        for figure in found.figures:
            paths = figures.write(figure.draw, out / "figures", f"{stem}-{figure.name}")
            pictures.append({"caption": figure.caption, "source": inline(paths[1]), "panels": min(figures.COLUMNS, len(figure.draw))})
        tables = [*found.tables, *improper(group)]
        for table in tables:
            (out / "tables").mkdir(parents=True, exist_ok=True)
            write_atomically(out / "tables" / f"{stem}-{table.name}.csv", as_csv(table.rows).encode())
        parts.append(
            {
                "id": stem,
                "data": facts["data"],
                "modality": facts["modality"],
                "title": facts["title"],
                "about": about(group),
                "progress": progress(group),
                "verdicts": found.verdicts,
                "figures": pictures,
                "tables": [shown_table(table) for table in tables],
                "sheets": [shown_sheet(sheet) for sheet in found.sheets],
            }
        )
    return parts


def write_page(parts: Sequence[Mapping[str, Any]], out: Path, title: str, coming: str = "") -> None:
    """The page of what `drawn` gave, in a section for each data set.

    ``coming``: what will be added to it; while there is any, the page loads itself again from time to time.
    """
    sections: dict[str, dict[str, Any]] = {}
    for part in parts:
        section = sections.setdefault(str(part["data"]), {"title": part["data"], "modality": part["modality"], "experiments": []})
        section["experiments"].append(part)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("guidance.experiment", "."), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("report.html").render(title=title, mark=MARK, sections=list(sections.values()), coming=coming)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PAGE, text.encode())


def improper(group: Sequence[Result]) -> list[Table]:
    """The cells that ask for what has no density, where it is known of any."""
    found = group[0].facts.get("improper")
    rows = [{**one["at"], "conditions": len(one["asked"]), "first to have none": one["asked"][0]} for one in found or []]
    caption = (
        "Cells in which no density is proportional to what is asked for, with a Gaussian for each class along the two widest directions of "
        "the training data: what is drawn there has no target."
    )
    return [Table("improper", caption, rows)] if rows else []


def progress(group: Sequence[Result]) -> str:
    """What is still missing, in words."""
    if all(result.whole for result in group):
        return ""
    done, wanted = sum(len(r.cells) for r in group), sum(len(r.facts["cells"]) for r in group)
    return f"{done} of {wanted} cells measured so far"


def about(group: Sequence[Result]) -> str:
    facts = group[0].facts
    seeds = f"{len(group)} trainings (seeds {', '.join(str(r.facts['seed']) for r in group)})" if len(group) > 1 else "one training"
    seen = ", ".join(
        f"{name} by {'its ' + of['quantity'] if of['quantity'] else 'a judge'}, right on {facts['accuracy'][name]:.1%}"
        for name, of in facts["attributes"].items()
    )
    interval = f"over the {len(group)} trainings" if len(group) > 1 else "over the samples"
    return (
        f"{seeds} of {facts['parameters']:,} parameters, {facts['trained']} steps; n = {facts['n']} samples a cell and training, all cells "
        f"from the same noise (seed {facts['seed_of_samples']}); {facts['sampler'].split(', grid')[0]}{in_precision(facts)}. 95 % "
        f"intervals {interval}. Seen: {seen} of held-out data. Runs: {', '.join(r.facts['run'] for r in group)}."
    )


def in_precision(facts: Mapping[str, Any]) -> str:
    """What samples were drawn in, where that is not fp32."""
    name = precision_named(facts.get("precision"))
    return "" if name in (None, "no") else f", in {name}"


def shown_table(table: Table) -> dict[str, Any]:
    names = columns(table.rows)
    rows = []
    for row in table.rows:
        cells = []
        for name in names:
            value = row.get(name)
            ends = f"{short(value.low)} to {short(value.high)}" if isinstance(value, Estimate) and value.low == value.low else ""
            text = f"{value:g}" if isinstance(value, float) and not math.isnan(value) else short(value)  # a setting, not an estimate
            cells.append((text, ends))
        rows.append(cells)
    return {"caption": table.caption, "columns": [name.replace("_", " ") for name in names], "rows": rows}


def shown_sheet(sheet: Sheet) -> dict[str, Any]:
    kind = shown_as(sheet.rows[0][1][0])
    width = WIDEST.get(kind, 5)
    rows = []
    for title, files in sheet.rows:
        cells = []
        for file, column in zip(files[:width], sheet.columns, strict=False):
            picture = file.with_suffix(".png")
            beside = element(picture, True, f"{title}, {column}") if kind != "image" and picture.is_file() else ""
            cells.append(beside + element(file, True, f"{title}, {column}"))
        rows.append((title, cells))
    return {"caption": sheet.caption, "columns": sheet.columns[:width], "rows": rows, "kind": kind}
