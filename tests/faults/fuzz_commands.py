"""Fuzz the command line: commands of a grammar, with settings that exist and some that do not, and values of every sort.

    python tests/faults/fuzz_commands.py [HOW MANY]        500 by default, about four minutes on one core

Right is: exit status 0, 2 or 130; with 2 one line on stderr, which begins with "polyguide:", and nothing written; never a traceback.
Commands go as far as building everything: training, drawing, and the judges that measuring takes are cut where they would begin.
"""

import os
import shutil
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_tools import RUNS, TRAINER, Answer, command, prepare, surroundings
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MEMORY = 12 * 2**30  # bytes of address space: what asks for more is refused by the system, and has to be told so


Report = Callable[[list[str], Answer], None]


class Cut(BaseException):
    """The work itself would begin."""


WORK = (
    *("guidance.train.train", "guidance.model.sample", "guidance.evaluate.reference", "guidance.exact.measure.measure"),
    *("guidance.experiment.conduct.Observer",),
)
FETCHING = ("wheel_file", "wheel_module", "archive", "download")


@contextmanager
def cut() -> Iterator[None]:
    """Without the work, and without the network."""
    from guidance.errors import UserError

    def begun(*_: Any, **__: Any) -> Any:
        raise Cut

    def offline(*_: Any, **__: Any) -> Any:
        raise UserError("cannot download: this is a test")

    import guidance.evaluate
    import guidance.exact.measure
    import guidance.experiment.conduct  # noqa: F401

    with ExitStack() as stack:
        for name in WORK:
            stack.enter_context(mock.patch(name, begun))
        for name in FETCHING:
            stack.enter_context(mock.patch(f"modalities.assets.{name}", offline))
        yield


BASES: dict[str, Sequence[str]] = {
    "train": (*RUNS["image"], *TRAINER, "out=new"),
    "train-classifier": ("run=image", "out=new", "trainer.steps=2", "trainer.batch_size=4"),
    "sample": ("run=image", "out=new", "n=2", "sampler.steps=2"),
    "evaluate": ("run=image", "out=new", "n=4", "sampler.steps=2"),
    "experiment": ("run=image", "out=new", "n=4", "sampler.steps=2", "experiment=inverse"),
    "exactness": ("out=new", "n=4", "steps=2", "dims=[1]"),
    "compare": ("image", "out=new"),
    "report": ("image", "out=new"),
    "new-modality": ("curves", "out=new"),
    "list": (),
    "import-diffwave": ("file.txt", "out=new"),
}
NUMBERS = [
    *"012789",
    "-1",
    "-0",
    "0.5",
    "1.5",
    "-2.5",
    "1e3",
    "1e-3",
    "1e400",
    "-1e400",
    "inf",
    "-inf",
    "nan",
    ".5",
    "5.",
    "1_0",
    "0x10",
    "1e",
]
NUMBERS += ["9" * 25, str(2**63), str(2**31), "1" + "0" * 12, "٣", "½", "1,5", "+3", "1j"]
WORDS = [
    "null",
    "true",
    "false",
    "yes",
    "x",
    "",
    " ",
    "None",
    "on",
    "???",
    "a b",
    "é",
    "日本",
    "😀",
    "\u202e",
    "\udc80",
    "a\tb",
    "a\nb",
    "\0",
    "x\0y",
]
BROKEN = [
    "'",
    '"',
    "[",
    "]",
    "{",
    "}",
    "[1",
    "{a:",
    "{a:1",
    "'a",
    '"a',
    "(",
    ")",
    "\\",
    "a=b",
    "=",
    "[1,]",
    "{,}",
    "${seed}",
    "${nope}",
    "${",
]
BROKEN += [
    "${oc.env:HOME}",
    "${oc.env:NOPE}",
    "[[1]]",
    "{a:1}",
    "{a:{b:1}}",
    "[a,b]",
    "a,b",
    "1,2",
    "range(3)",
    "glob(*)",
    "choice(1,2)",
    "@x",
    "a@b",
    "!x",
]
BROKEN += ["[1,2,3]", "[]", "{}", "['a']", "#", "%s", "--", "-", "~", "+", "a:b", "*", "..", "../x", "file.txt", "pets", "tones"]
LONG = ["x" * 300, "x" * 20000, "[" * 2000, "-" * 3000, "[" + ",".join(["1"] * 3000) + "]", "é" * 5000]
TERMS = ['"2*on(digit=3)"', '"on(digit=3) | on(digit=8)"', '"~on(digit=3)"', '"on("', '"1e400*on(digit=3)"', '"on(digit=11)"', '"digit"']
FLAGS = [
    "--help",
    "-h",
    "--cfg",
    "job",
    "--resolve",
    "-m",
    "--multirun",
    "--info",
    "--version",
    "-x",
    "--",
    "-c",
    "all",
    "--package",
    "--hydra-help",
]
PLUGINS = ["image", "audio", "text", "video", "polyguide", "mixture"]


COMPOSED = ("train", "train-classifier", "sample", "evaluate", "experiment", "exactness")


def known() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Every setting of every command, and the choices of every group."""
    from guidance.config import config_folder, leaves
    from guidance.hydra import composed

    names = {name: set(leaves(composed(name, list(BASES[name])))) - {"out"} for name in COMPOSED}
    folder = config_folder()
    places = [place for place in folder.rglob("*") if place.is_dir() and "hydra" not in place.parts]
    groups = {place.relative_to(folder).as_posix(): sorted(path.stem for path in place.glob("*.yaml")) for place in places}
    return {name: sorted(of) for name, of in names.items()}, {name: of for name, of in sorted(groups.items()) if of}


def grammar() -> st.SearchStrategy[list[str]]:
    """Command lines."""
    names, groups = known()
    everything = sorted({name for of in names.values() for name in of})
    parts = sorted({part for name in everything for part in name.split(".")})
    choices = sorted({choice for of in groups.values() for choice in of} | set(PLUGINS))
    odd = st.one_of(
        *map(st.sampled_from, (WORDS, BROKEN, BROKEN[:20] + LONG, parts)), st.text(max_size=6), st.text(string.printable, max_size=10)
    )
    values = [*map(st.sampled_from, ([*"1248", "0.5", "0", "true", "false"], NUMBERS, choices, TERMS)), odd]
    places = [*parts, "guidance.inside", "_global_", ""]
    more = [
        "model.network.channels",
        "model.schedule.logsnr_min",
        "sampler.eta",
        "hydra.job.name",
        "hydra.verbose",
        "worker",
        "",
        ".",
        "a..b",
    ]
    more += [f"condition.{name}" for name in ("digit", "stroke", "digti", "", "a.b")]
    outs = ["new/deeper", "file.txt", "file.txt/x", "", "null", "é", "x\0y", "x" * 300, "image"]

    @st.composite
    def line(draw: st.DrawFn) -> list[str]:
        def often(*weighted: tuple[int, Any]) -> Any:
            """One of some, by weight (`st.one_of` has none)."""
            return draw(st.sampled_from([what for weight, what in weighted for _ in range(weight)]))

        def pick(of: Sequence[str]) -> str:
            return draw(st.sampled_from(of))

        def key(command: str) -> str:
            kind = often((12, "own"), (2, "any"), (2, "group"), (2, "more"), (1, "parts"), (1, "placed"), (1, "text"))
            if kind == "text":
                return draw(st.text(max_size=5))
            made = {
                "own": lambda: pick(names.get(command, everything)),
                "any": lambda: pick(everything),
                "group": lambda: pick(list(groups)),
                "more": lambda: pick(more),
                "parts": lambda: f"{pick(parts)}.{pick(parts)}",
                "placed": lambda: f"{pick(list(groups))}@{pick(places)}",
            }
            return often((14, ""), (1, "+"), (1, "++"), (1, "~"), (1, "-")) + made[kind]()

        def setting(command: str) -> str:
            kind = often((16, "value"), (6, "choice"), (1, "several"), (1, "key"), (1, "odd"), (1, "out"), (1, "flag"))
            if kind == "choice":
                group = pick(list(groups))
                return f"{group}={pick(groups[group])}"
            made = {
                "value": lambda: (
                    f"{key(command)}={draw(often((3, values[0]), (3, values[1]), (1, values[2]), (1, values[3]), (3, values[4])))}"
                ),
                "several": lambda: f"{key(command)}={','.join(draw(st.lists(st.one_of(values), min_size=2, max_size=3)))}",
                "key": lambda: key(command),
                "odd": lambda: draw(odd),
                "out": lambda: f"out={pick(outs)}",
                "flag": lambda: pick(FLAGS),
            }
            return made[kind]()

        command = often((6, "train"), (6, "sample"), (3, "evaluate"), (2, "experiment"), (6, "any"), (1, "none"))
        command = pick(sorted(BASES)) if command == "any" else draw(odd) if command == "none" else command
        given = [setting(command) for _ in range(often((6, 1), (3, 2), (1, 4)))]
        base = BASES.get(command, ()) if often((9, True), (1, False)) else ()
        return [command, *base, *given, *(given[:1] if often((9, False), (1, True)) else ())]

    return line()


def tree() -> set[str]:
    """What is in this folder, but for the cache."""
    return {path.as_posix() for path in Path().rglob("*") if path.parts[0] != "cache"}


def judged(arguments: list[str], before: set[str], report: Report | None = None) -> tuple[str, str | None]:
    """What became of a command, and what is wrong with it."""
    with cut():
        answer = command(*arguments)
    made = tree() - before
    for path in sorted(made, reverse=True):
        shutil.rmtree(path) if Path(path).is_dir() and not Path(path).is_symlink() else Path(path).unlink(missing_ok=True)
    if isinstance(answer.escaped, Cut):
        return "would work", None
    problem = answer.wrong()
    made = {path for path in made if not path.startswith("multirun")}  # where Hydra collects a sweep's jobs
    if problem is None and answer.code == 2 and made:
        problem = f"refused, but wrote {min(made)}: {answer.said[:200]}"
    if problem is None and (lost := before - tree()):
        problem = f"removed {min(lost)}"
    if report is not None:
        report(arguments, answer)
    return ("wrong" if problem else f"status {answer.code}"), problem


def fuzz(examples: int, report: Report | None = None) -> tuple[Counter[str], list[str]]:
    """Fuzz in this folder, which has been prepared."""
    before, counts, wrong = tree(), Counter[str](), dict[str, str]()

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(grammar())
    def check(arguments: list[str]) -> None:
        kind, problem = judged(arguments, before, report)
        counts[kind] += 1
        if problem:
            shown = " ".join(part if len(part) < 80 else f"{part[:40]}...({len(part)})" for part in arguments)
            wrong[shown.encode("unicode_escape").decode()] = problem

    check()
    return counts, [f"{shown}: {problem}" for shown, problem in wrong.items()]


def main(asked: list[str]) -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder, surroundings(Path(folder)):
        os.environ["POLYGUIDE_CACHE"] = str(Path(folder, "cache"))
        prepare(("image",))
        Path("file.txt").write_text("mine")
        began = time.perf_counter()
        said = Counter[str]()
        counts, wrong = fuzz(int(asked[0]) if asked else 500, lambda _, answer: said.update([answer.said[:60]]))
        print("\n".join(f"{k:5} {line}" for line, k in said.most_common(40)))
        print(f"{sum(counts.values())} command lines in {time.perf_counter() - began:.0f} s: {dict(counts)}", flush=True)
        for line in wrong:
            print("  " + line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
