"""The demo: its plan, then its parts one after another, and the page as it grows."""

import io
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

from guidance import checkpoint
from guidance.bar import shown_by
from guidance.commands.experimenting import measure
from guidance.commands.sampling import sample
from guidance.commands.settings import folder, threads
from guidance.commands.training import train
from guidance.demo.parts import Part, Stage, parts_of
from guidance.demo.plan import REPORT, planned, table, unique
from guidance.demo.progress import Line, Whole, spoken
from guidance.errors import UserError
from guidance.experiment.findings import FACTS, read_result
from guidance.experiment.report import PAGE, drawn, vacant, write_page
from guidance.processes import world


def show(config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """What `polyguide demo` does."""
    if world() > 1:
        raise UserError("polyguide demo is one process: start it without a launcher")
    threads(config)
    out, title = folder(config, "out"), str(config["title"])
    check(out, list(map(str, config["each"])))
    parts = parts_of(config, out)
    line = Line()
    with speaking(line):
        began, pieces = time.monotonic(), []
        for part in parts:
            line.show(f"timing a few steps of {part.name} ...")
            pieces += unique(planned(part))
        line.clear()
        print(f"{table(pieces, [part.name for part in parts])}(timed in {time.monotonic() - began:.0f} s)", flush=True)
        page, whole = Page(out, title, list(map(str, config["each"]))), Whole(pieces, line)
        try:
            with shown_by(whole), redirect_stdout(io.StringIO()):
                for k, part in enumerate(parts):
                    go(part, whole)
                    with whole.doing(part.name, REPORT):
                        whole.ended(part.name)
                        page.write(coming([other.name for other in parts[k + 1 :]], whole.forecast.left))
        except KeyboardInterrupt:
            line.clear()
            again = shlex.join(["polyguide", "demo", *overrides])
            print(f"stopped at {100 * whole.forecast.done:.0f} %; nothing that is done is lost, go on with: {again}", file=sys.stderr)
            raise
    print(f"done in {spoken(time.monotonic() - began)}: {out / PAGE}")


def check(out: Path, names: Sequence[str]) -> None:
    """UserError where the folder holds something else than a demo."""
    vacant(out)
    if checkpoint.is_run(out):
        raise UserError(f"out={out} is a run; choose another out=")
    if out.is_dir() and (held := sorted(path.name for path in out.iterdir())) and not {PAGE, *names} & set(held):
        raise UserError(f"out={out} holds something else ({held[0]}); choose another out=")


@contextmanager
def speaking(line: Line) -> Iterator[None]:
    """Warnings have a line of their own; whatever ends the demo, too."""
    before = warnings.showwarning

    def said(*what: Any, **more: Any) -> None:
        line.clear()
        before(*what, **more)

    warnings.showwarning = said
    try:
        yield
    finally:
        warnings.showwarning = before
        line.clear()


def go(part: Part, whole: Whole) -> None:
    """Everything of a part but the page; what is done already takes no time."""
    for stage in part.stages:
        if not stage.whole:
            with whole.doing(part.name, stage.name):
                carry_out(stage)


def carry_out(stage: Stage) -> None:
    config = deepcopy(dict(stage.config))
    if stage.command == "experiment":
        measure(config)
    else:
        {"train": train, "sample": sample}[stage.command](config, list(stage.overrides))


def coming(names: Sequence[str], seconds: float) -> str:
    """What is still to come on the page; nothing where that is nothing."""
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} still to come: about {spoken(seconds)}." if names else ""


class Page:
    """The page of all experiments in a demo's folder that are measured, each drawn once."""

    def __init__(self, out: Path, title: str, names: Sequence[str]):
        self.out, self.title, self.names = out, title, names
        self.used: dict[str, int] = {}
        self.kept: dict[Path, list[dict[str, Any]]] = {}

    def write(self, coming: str) -> None:
        shown: list[Mapping[str, Any]] = []
        for name in self.names:
            for path in sorted((self.out / name).glob(f"run/experiments/*/{FACTS}")):
                if path.parent not in self.kept and (result := read_result(path.parent)).whole:
                    self.kept[path.parent] = drawn([[result]], self.out, self.used)
                shown += self.kept.get(path.parent, [])
        write_page(shown, self.out, self.title, coming)
