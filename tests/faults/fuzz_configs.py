"""Fuzz the configs of runs, and those of trainings.

    python tests/faults/fuzz_configs.py            all of it, about ten minutes on one core
    python tests/faults/fuzz_configs.py image      the config of one kind of run; or: audio, text, train

Runs: every key of a run's config.yaml is removed, and every value is replaced by one of another type; the run is sampled each time.
Right is: exit status 0 and the same samples, or exit status 2 and one line on stderr that names the key or a file. Other samples are
right in one case only: the key is one that says how the run samples (`STEERS`), and

    it was removed, and its default written out in its place gives the same samples as its absence; or
    the new value is of the type that the class's signature states for this key.

Trainings: the same, but of every key of the composed config, on the command line; right is exit status 2 and one line, or a training
of two steps. Nothing may be written where the status is 2.
"""

import copy
import inspect
import math
import shutil
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fuzz_tools import RUNS, TRAINER, Answer, command, content, prepare, renewed, surroundings

VALUES: tuple[Any, ...] = (None, "x", -1, math.inf, [], {}, True)
STEERS = ("sampler", "schedule.", "parameterization.", "network.", "modality.codec.", "data.rate", "data.length")
REMOVED = object()


@dataclass(frozen=True)
class Case:
    key: tuple[str | int, ...]
    value: Any

    @property
    def name(self) -> str:
        return ".".join(map(str, self.key))

    def __str__(self) -> str:
        return f"{self.name} removed" if self.value is REMOVED else f"{self.name}={self.value!r}"

    def of(self, config: Any) -> Any:
        """The config with this change."""
        made = copy.deepcopy(config)
        node = made
        for part in self.key[:-1]:
            node = node[part]
        if self.value is REMOVED:
            del node[self.key[-1]]
        else:
            node[self.key[-1]] = self.value
        return made


def keys(node: Any, before: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every key of a config, groups before what is in them; of a list, its first item."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield (*before, key)
            yield from keys(child, (*before, key))
    elif isinstance(node, list) and node:
        yield (*before, 0)
        yield from keys(node[0], (*before, 0))


def at(config: Any, key: tuple[str | int, ...]) -> Any:
    for part in key:
        config = config[part]
    return config


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def cases(config: Mapping[str, Any]) -> list[Case]:
    found = []
    for key in keys(config):
        found += [Case(key, REMOVED), *(Case(key, value) for value in VALUES if not same(value, at(config, key)))]
    return found


def default(config: Any, key: tuple[str | int, ...]) -> Any:
    """What the class says for a setting that is not given; for the sampler, what the program does."""
    from guidance.config import resolve
    from guidance.model import SAMPLER

    if key == ("sampler",):
        return SAMPLER
    target = resolve(at(config, key[:-1])["_target_"])
    return inspect.signature(target).parameters[str(key[-1])].default


def declared(config: Any, case: Case) -> bool:
    """Whether a value is of the type that the signature states for its key; steps are a whole number."""
    from guidance.config import fits, resolve

    if case.name == "sampler.steps":
        return fits(case.value, int)
    made, key = case.of(config), case.key
    while key and "_target_" not in (owner := at(config, key[:-1])):  # a setting that is a mapping or a list itself
        key = key[:-1]
    target = resolve(owner["_target_"])
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    return key[-1] in hints and fits(at(made, key), hints[key[-1]])


def sampled(run: str) -> tuple[Answer, dict[str, Any]]:
    """The answer to `sample`, and the samples."""
    shutil.rmtree("out", ignore_errors=True)
    answer = command("sample", f"run={run}", "out=out", "n=2", "seed=1", "judge=false")
    made = content(Path("out")) if Path("out").exists() else {}
    made.pop("samples.json", None)
    return answer, made


def put(run: Path, config: Any) -> None:
    """A config into a run, as an editor would: sums that are kept of it are removed."""
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    (run / "checksums.json").unlink(missing_ok=True)


def judged(config: Mapping[str, Any], case: Case, expected: Mapping[str, Any]) -> tuple[str, str | None]:
    """What became of a case, and what is wrong with it."""
    put(Path("broken"), case.of(config))
    answer, made = sampled("broken")
    if problem := answer.wrong():
        return "wrong", problem
    if answer.code == 2:
        if made:
            return "wrong", f"refused, but wrote {min(made)}"
        parts = {str(part) for part in case.key if isinstance(part, str)}
        named = [p for p in (*parts, "config.yaml", ".safetensors", "broken") if p in answer.said]
        return ("refused", None) if named else ("wrong", f"names neither the key nor a file: {answer.said}")
    if made == expected:
        return "same samples", None
    if not case.name.startswith(STEERS):
        return "wrong", "other samples, silently"
    if case.value is REMOVED or (case.name == "sampler" and case.value is None):
        written = Case(case.key, default(config, case.key))
        put(Path("broken"), written.of(config))
        return ("its default", None) if sampled("broken")[1] == made else ("wrong", "other samples than its default's")
    return ("legal", None) if declared(config, case) else ("wrong", "other samples, of a value that is not of the key's type")


def runs(kind: str, chosen: Any = None) -> tuple[Counter[str], list[str]]:
    """Fuzz the run of a kind, in this folder; ``chosen`` takes some of its cases."""
    config = yaml.safe_load((Path(kind) / "config.yaml").read_text())
    renewed(Path(kind), Path("broken"))
    (Path("broken") / "checksums.json").unlink(missing_ok=True)
    answer, expected = sampled("broken")
    assert answer.code == 0 and expected, answer
    assert sampled("broken")[1] == expected
    counts: Counter[str] = Counter()
    wrong = []
    for case in cases(config) if chosen is None else chosen(cases(config)):
        kind_of, problem = judged(config, case, expected)
        counts[kind_of] += 1
        if problem:
            wrong.append(f"{kind}: {case}: {problem}")
    return counts, wrong


WRITTEN = {None: "null", "x": "x", -1: "-1", math.inf: "1e400", True: "true"}


def as_written(value: Any) -> str:
    return str(value) if isinstance(value, list | dict) else WRITTEN[value]


def trainings(kind: str, chosen: Any = None, show: bool = False) -> tuple[Counter[str], list[str]]:
    """Fuzz the settings of `polyguide train` for a kind of run."""
    from guidance.hydra import composed

    base = [*RUNS[kind], *TRAINER, "out=new"]
    config = composed("train", base)
    counts: Counter[str] = Counter()
    wrong = []
    found = [case for case in cases(config) if not any(isinstance(part, int) for part in case.key) and case.key != ("out",)]

    for case in found if chosen is None else chosen(found):
        override = f"~{case.name}" if case.value is REMOVED else f"{case.name}={as_written(case.value)}"
        before = set(content(Path()))
        answer = command("train", *base, override)
        problem = answer.wrong()
        if problem is None and answer.code == 0:
            counts["trained"] += 1
            if show:
                print(f"  trained: {override}")
            shutil.rmtree("new")
            continue
        if problem is None and (more := set(content(Path())) - before):
            problem = f"refused, but wrote {min(more)}"
        if problem is None and not any(str(part) in answer.said for part in case.key):
            problem = f"does not name the key: {answer.said}"
        counts["wrong" if problem else "refused"] += 1
        if problem:
            wrong.append(f"train {kind}: {override}: {problem}")
            shutil.rmtree("new", ignore_errors=True)
    return counts, wrong


def main(asked: list[str]) -> int:
    status = 0
    with tempfile.TemporaryDirectory() as folder, surroundings(Path(folder)):
        prepare()
        for kind in RUNS:
            for what, fuzz in (("sample", runs), ("train", trainings)):
                if asked and not {kind, what} & set(asked):
                    continue
                began = time.perf_counter()
                counts, wrong = fuzz(kind)
                total = sum(counts.values())
                print(f"{what} {kind}: {total} cases in {time.perf_counter() - began:.0f} s: {dict(counts)}", flush=True)
                for line in wrong:
                    print("  " + line, flush=True)
                status |= bool(wrong)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
