"""A run folder: plain config, metrics, and checkpoints that are there whole or not at all.

    run/config.yaml                        the whole config, resolved, with nothing left to look up
    run/NAME                               files that the config names "run:NAME" (a vocabulary)
    run/metrics.jsonl                      a line a log entry, the same for the same config
    run/timings.jsonl                      how fast it was, a line a log entry
    run/command.txt                        the commands that trained it, a line each
    run/moments.safetensors                the training data as Gaussians, where it has classes: see `proper`
    run/checksums.json                     the SHA-256 of config.yaml, of the run's own files and of the moments
    run/checkpoints/step-00001000/         model.safetensors, average.safetensors, optimizer.safetensors; state.json, with their SHA-256
    run/checkpoints/start/                 model.safetensors, state.json: what training began from, until the first checkpoint

A saved model, which is shared, has config.yaml, those files, the moments, their checksums, and model.safetensors in place of the
checkpoints.

Nothing in either is executed when it is read: tensors are safetensors, the rest is YAML and JSON.
"""

import glob
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from guidance.errors import UserError

CONFIG, METRICS, TIMINGS, CHECKPOINTS, COMMANDS = "config.yaml", "metrics.jsonl", "timings.jsonl", "checkpoints", "command.txt"
WEIGHTS = "model.safetensors"  # of a saved model
MOMENTS = "moments.safetensors"
CHECKSUMS = "checksums.json"
START, STATE, SEAL = "start", "state.json", "sha256"
FORMAT = 1  # of a run folder; raised whenever an older program would read it wrongly
OWN = "run:"  # before the name of a file that lies in the run folder
LARGEST, DEEPEST, LONGEST = (
    200_000,
    500,
    2**20,
)  # a config: values, where it refers to one several times counted each time; levels; characters


def write_atomically(path: Path, content: bytes) -> None:
    """The whole content under that name, or what was there before."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_checksums(run: Path) -> dict[str, str]:
    """The SHA-256 of a run's files by name, as they were written; none of an older run. UserError where they cannot be read."""
    path = run / CHECKSUMS
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = None
    named = isinstance(found, dict) and all(map(is_name, found))
    if not named or not all(isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in found.values()):
        raise UserError(f"{path} is cut short or damaged; take it from a copy, or delete it to accept the run's files as they are")
    return dict(found)


@contextmanager
def listed(run: Path, *names: str) -> Iterator[None]:
    """Files of a run are written within, and their checksums after them; where a kill comes in between, they have none."""
    before = read_checksums(run)
    others = {name: value for name, value in before.items() if name not in names}
    if others != before:
        write_checksums(run, others)
    yield
    write_checksums(run, others | {name: digest((run / name).read_bytes()) for name in names})


def is_name(name: str) -> bool:
    """Whether it names a file in a folder, and no path."""
    return Path(name).name == name and name not in ("", "..") and "\0" not in name


def write_checksums(run: Path, sums: Mapping[str, str]) -> None:
    write_atomically(run / CHECKSUMS, json.dumps(dict(sums), indent=1).encode())


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def is_saved(folder: Path) -> bool:
    """Whether this is a saved model, which has weights but no checkpoints to go on from."""
    return is_run(folder) and (folder / WEIGHTS).is_file() and not (folder / CHECKPOINTS).exists()


def read_config(run: Path) -> dict[str, Any]:
    """A run's config. UserError where there is no run, it was written by another version, or the config or one of the other files that
    checksums.json lists is not as it was written."""
    if run.is_file():
        raise UserError(f"run={run} is a file, not the folder of a run")
    if not run.is_dir():
        cut = "".join(f"; saving it was cut short, and {place} is what was to be there: rename it" for place in unplaced(run)[:1])
        raise UserError(f"run={run}: there is no such folder{cut or f'; train one with: polyguide train out={run}'}")
    if not is_run(run):
        raise UserError(f"run={run}: no {CONFIG} in it, so it is not a run folder")
    path, sums = run / CONFIG, read_checksums(run)
    try:
        content = path.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or cannot be read: {error}") from None
    if sums.get(CONFIG, here := digest(content)) != here:
        raise UserError(
            f"{path} is cut short or damaged: it is not as it was written; if it was changed on purpose, delete its entry in "
            f"{run / CHECKSUMS} to accept it, or rather leave it and give model.SETTING=VALUE for one use"
        )
    config = parsed(text, path) if text.endswith("\n") else None
    if not isinstance(config, dict) or "modality" not in config:
        raise UserError(f"{path} is cut short: it does not hold a whole config")
    if (version := config.pop("format", FORMAT)) != FORMAT:
        raise UserError(
            f"{run} was written by another version of polyguide (format {version}, this one reads {FORMAT}): update, or train anew"
        )
    for name, expected in sums.items():
        if name not in (CONFIG, WEIGHTS) and (run / name).is_file():  # weights are looked at when they are read
            check_file(run / name, expected)
    return config


def parsed(text: str, path: Path) -> Any:
    """YAML without tags that make objects. UserError where it is none, or would be far larger than it looks."""
    if len(text) > LONGEST or max(accumulate((c in "[{") - (c in "]}") for c in text), default=0) > DEEPEST:  # of which YAML takes long
        raise UserError(f"{path} is deeper than {DEEPEST} levels or longer than {LONGEST:,} characters; polyguide writes none such")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if expanded(node, {}) > LARGEST:
            raise UserError(f"{path} refers to itself, or holds more than {LARGEST:,} values; polyguide writes none such")
        return loader.construct_document(node) if node is not None else None
    except UserError:
        raise
    except Exception as error:  # of the parser, or of what a date or a number is made with
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read: {reason}") from None
    finally:
        loader.dispose()


def expanded(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a YAML node holds, those that it refers to several times counted each time; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            parts = [part for one in node.value for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1.0 + sum(expanded(part, known) for part in parts)
    return known[id(node)]


def check_file(path: Path, expected: str | None) -> None:
    """UserError where a file is not the one of that SHA-256."""
    with path.open("rb") as file:
        if expected is not None and hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise damaged(path)


def damaged(path: Path, what: str | None = None) -> UserError:
    """The error for a file that cannot be used, with the way to go on."""
    folder, said = path.parent, what or "is cut short or damaged: it is not as it was written"
    way = f", or delete its entry in {folder / CHECKSUMS} to accept it as it is" if what is None else ""
    if folder.parent.name == CHECKPOINTS:
        run = folder.parent.parent
        before = [step for step in saved_steps(run) if checkpoint_folder(run, step).name < folder.name]
        way = f", or delete {folder} to go on from step {before[-1]}" if before else ", or train anew: there is no checkpoint before it"
    return UserError(f"{path} {said}; take it from a copy{way}")


def unplaced(place: Path) -> list[Path]:
    """What was to be saved as ``place``, which a kill has left beside it, in the moment between two renames."""
    partial = place.parent.glob(f".{glob.escape(place.name)}.partial-*") if not place.exists() else ()
    return [folder / "new" for folder in partial if (folder / "old").is_dir() and (folder / "new").is_dir()]


def located(config: Any, run: Path) -> Any:
    """The config with the paths of the run's own files, which it holds as "run:NAME"."""
    if isinstance(config, Mapping):
        return {key: located(value, run) for key, value in config.items()}
    if isinstance(config, list):
        return [located(value, run) for value in config]
    if isinstance(config, str) and config.startswith(OWN):
        return str(run / own_name(config, run))
    return config


def own_name(value: str, run: Path) -> str:
    """NAME of "run:NAME"; UserError where that is no name of a file in the run."""
    name = value.removeprefix(OWN)
    if not is_name(name):
        raise UserError(f"{run / CONFIG}: {value!r} names no file of the run")
    return name


def own_files(config: Any, run: Path) -> list[str]:
    """The names of the run's own files that its config refers to."""
    if isinstance(config, Mapping | list):
        parts = config.values() if isinstance(config, Mapping) else config
        return list(dict.fromkeys(name for part in parts for name in own_files(part, run)))
    return [own_name(config, run)] if isinstance(config, str) and config.startswith(OWN) else []


def own_contents(config: Any, run: Path) -> dict[str, bytes]:
    """The run's own files, by name. UserError where one cannot be read."""
    found = {}
    for name in own_files(config, run):
        try:
            found[name] = (run / name).read_bytes()
        except OSError as error:
            raise UserError(f"{run / name}, which the model needs, cannot be read: {error.strerror}") from None
    return found


def write_config(run: Path, config: Mapping[str, Any]) -> None:
    content = yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False, allow_unicode=True).encode()
    if read_checksums(run).get(CONFIG) == digest(content) and is_run(run) and (run / CONFIG).read_bytes() == content:
        return  # it goes on
    with listed(run, CONFIG):
        write_atomically(run / CONFIG, content)


def read_lines(path: Path) -> list[str]:
    """The JSON lines of a log that have a step, without those that a kill has cut short; none where there is no such file."""
    kept = []
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.is_file() else ():
        try:
            if isinstance(json.loads(line)["step"], int):
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return kept


def record_command(run: Path, program: str, arguments: Sequence[str]) -> None:
    """Remember a command that trained the run, unless it is the one that was remembered last."""
    path, line = run / COMMANDS, f"{program} {shlex.join(' '.join(part.splitlines()) for part in arguments)}"
    before = read_commands(run)
    if before[-1:] != [line]:
        write_atomically(path, "".join(f"{one}\n" for one in (*before, line)).encode())


def read_commands(run: Path) -> list[str]:
    """The commands that trained a run, the first and those that resumed it; none where they are not known."""
    try:
        return (run / COMMANDS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def saved_steps(run: Path) -> list[int]:
    """The steps that have a checkpoint, in order; of a saved model the one that its weights are of."""
    if is_saved(run):
        return [saved_facts(run)[0]]
    steps = {path: path.name.removeprefix("step-") for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir()}
    return sorted(int(step) for path, step in steps.items() if step.isdecimal() and path == checkpoint_folder(run, int(step)))


def checkpoint_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def latest(run: Path) -> Path:
    """The folder of the newest checkpoint."""
    steps = saved_steps(run)
    if not steps:
        what = "it is untrained: there is no checkpoint in it yet but that of step 0" if has_start(run) else "no checkpoint in it yet"
        raise UserError(f"run={run}: {what}; train it with: polyguide train out={run} resume=true")
    return checkpoint_folder(run, steps[-1])


def has_start(run: Path) -> bool:
    """Whether a run has the checkpoint of step 0."""
    return (run / CHECKPOINTS / START).is_dir()


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint; then delete all but the newest ``keep``, what training began from, and what a kill has left unfinished."""
    final = checkpoint_folder(run, step)
    write_checkpoint(final, tensors, state)
    for old in saved_steps(run)[:-keep]:
        shutil.rmtree(checkpoint_folder(run, old), ignore_errors=True)
    for path in ((run / CHECKPOINTS / START), *(run / CHECKPOINTS).glob(".*.partial")):
        shutil.rmtree(path, ignore_errors=True)
    return final


def save_start(run: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write what training begins from, before the first step: of step 0, and no model to sample with."""
    write_checkpoint(run / CHECKPOINTS / START, {"model": weights}, {"step": 0, **state})


def write_checkpoint(final: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Under a name of its own, flushed, then renamed."""
    from safetensors.torch import save

    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        files = {}
        for name, group in tensors.items():
            own = {key: tensor.detach().contiguous().cpu().clone() for key, tensor in group.items()}
            content = save(own)
            write_atomically(partial / f"{name}.safetensors", content)
            files[f"{name}.safetensors"] = digest(content)
        write_atomically(partial / STATE, json.dumps(sealed({**state, "files": files})).encode())
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state with the SHA-256 of all else that it says."""
    rest = {key: value for key, value in state.items() if key != SEAL}
    return {**rest, SEAL: digest(json.dumps(rest, sort_keys=True).encode())}


def read_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """A safetensors file, of that SHA-256 where one is known. UserError where it is missing, cut short, or another."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise UserError(f"{path} is missing; its checkpoint is not whole")
    content = path.read_bytes()
    if expected is not None and digest(content) != expected:
        raise damaged(path)
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is cut short or is not a safetensors file ({error})") from None


def read_shapes(path: Path) -> dict[str, list[int]]:
    """What a safetensors file holds, of which only the header is read. UserError where it is missing, or cut short."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing; its checkpoint is not whole")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise damaged(path, f"is cut short or is not a safetensors file ({error})") from None


def recorded(path: Path) -> str | None:
    """The SHA-256 of a file of weights when it was written; None where it was by an older version."""
    if path.parent.parent.name == CHECKPOINTS:
        found = read_state(path.parent).get("files", {}).get(path.name)
        return None if found is None else str(found)
    return read_checksums(path.parent).get(path.name)


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. UserError where that is missing, cut short, or not as it was written."""
    path = folder / STATE
    try:
        state = json.loads(path.read_bytes())
        if not isinstance(state["step"], int) or not isinstance(state.get("files", {}), dict):
            raise ValueError
        if ("files" in state or SEAL in state) and sealed(state) != state:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(path, "is missing, cut short or damaged") from None
    return dict(state)


def save_weights(run: Path, tensors: Mapping[str, Tensor], step: int, average: bool) -> None:
    """The weights of a saved model, with the step that they are of and whether they are the averaged ones."""
    from safetensors.torch import save

    own = {key: tensor.detach().contiguous().cpu().clone() for key, tensor in tensors.items()}
    write_atomically(run / WEIGHTS, save(own, {"format": "pt", "step": str(step), "average": str(average).lower()}))


def saved_facts(run: Path) -> tuple[int, bool]:
    """Of a saved model: the step that its weights are of, and whether they are the averaged ones."""
    from safetensors import SafetensorError, safe_open

    path = run / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path} is cut short or is not a safetensors file ({error})") from None
    step = str(facts.get("step", "0"))
    return int(step) if step.isdecimal() and len(step) < 19 else 0, facts.get("average") != "false"


def check(folder: Path, module: nn.Module | None = None) -> int:
    """The step of a checkpoint; UserError where it is not whole, not as it was written, or does not fit the module."""
    for name in ("model", "average", "optimizer"):
        path = folder / f"{name}.safetensors"
        read_shapes(path)
        check_file(path, recorded(path))
        if module is not None and name != "optimizer":
            check_fit(module, path)
    return int(read_state(folder)["step"])


def check_fit(module: nn.Module, path: Path) -> None:
    """UserError where a file does not hold exactly the module's weights, by their names and shapes: nothing else of it is read."""
    shapes, own = read_shapes(path), module.state_dict()
    for name in dict.fromkeys([*own, *shapes]):
        if name in shapes and name in own and list(own[name].shape) == shapes[name]:
            continue
        check_file(path, recorded(path))  # which explains it, where the file is damaged
        if name not in shapes or name not in own:
            where = "the file lacks" if name not in shapes else "the config's model does not have"
            raise UserError(f"{path} does not fit its config: {where} {name}")
        raise UserError(f"{path} does not fit its config: {name} is {shapes[name]} in the file, {list(own[name].shape)} in the model")


def fill(module: nn.Module, path: Path) -> None:
    """The module's weights from a file, which must hold exactly them, and be as it was written. UserError names the first that does not
    fit, before any is read."""
    check_fit(module, path)
    module.load_state_dict(read_tensors(path, recorded(path)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, flat: "index.name" of every tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def fill_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path, recorded(path)).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index) if index.isdecimal() else -1, {})[name] = tensor
    whole = optimizer.state_dict()
    if state.keys() - set(range(sum(len(group["params"]) for group in whole["param_groups"]))):
        raise UserError(f"{path} does not fit its config: it holds the state of other parameters")
    optimizer.load_state_dict({**whole, "state": state})
