"""A run folder: plain config, metrics, and checkpoints that are there whole or not at all.

    run/config.yaml                        the whole config, resolved, with nothing left to look up
    run/NAME                               files that the config names "run:NAME" (a vocabulary)
    run/metrics.jsonl                      a line a log entry
    run/command.txt                        the commands that trained it, a line each
    run/moments.safetensors                the training data as Gaussians, where it has classes: see `proper`
    run/checkpoints/step-00001000/         model.safetensors, average.safetensors, optimizer.safetensors, state.json

A saved model, which is shared, has config.yaml, those files, the moments, and model.safetensors in place of the checkpoints.

Nothing in either is executed when it is read: tensors are safetensors, the rest is YAML and JSON.
"""

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from guidance.errors import UserError

CONFIG, METRICS, CHECKPOINTS, COMMANDS = "config.yaml", "metrics.jsonl", "checkpoints", "command.txt"
WEIGHTS = "model.safetensors"  # of a saved model
MOMENTS = "moments.safetensors"
FORMAT = 1  # of a run folder; raised whenever an older program would read it wrongly
OWN = "run:"  # before the name of a file that lies in the run folder


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


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def is_saved(folder: Path) -> bool:
    """Whether this is a saved model, which has weights but no checkpoints to go on from."""
    return is_run(folder) and (folder / WEIGHTS).is_file() and not (folder / CHECKPOINTS).exists()


def read_config(run: Path) -> dict[str, Any]:
    """A run's config. UserError where there is no run, its config is cut short, or it was written by another version."""
    if not run.is_dir():
        raise UserError(f"run={run}: there is no such folder; train one with: polyguide train out={run}")
    if not is_run(run):
        raise UserError(f"run={run}: no {CONFIG} in it, so it is not a run folder")
    try:
        text = (run / CONFIG).read_text()
        config = yaml.safe_load(text) if text.endswith("\n") else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run / CONFIG} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict) or "modality" not in config:
        raise UserError(f"{run / CONFIG} is cut short: it does not hold a whole config")
    if (version := config.pop("format", FORMAT)) != FORMAT:
        raise UserError(
            f"{run} was written by another version of polyguide (format {version}, this one reads {FORMAT}): update, or train anew"
        )
    return config


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
    if Path(name).name != name or name in ("", ".."):
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
    write_atomically(run / CONFIG, yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False, allow_unicode=True).encode())


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
        raise UserError(f"run={run}: no checkpoint in it yet; train it with: polyguide train out={run} resume=true")
    return checkpoint_folder(run, steps[-1])


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint under a name of its own, flush it, rename it; then delete all but the newest ``keep``."""
    from safetensors.torch import save

    final = checkpoint_folder(run, step)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, group in tensors.items():
            own = {key: tensor.detach().contiguous().cpu().clone() for key, tensor in group.items()}
            write_atomically(partial / f"{name}.safetensors", save(own))
        write_atomically(partial / "state.json", json.dumps(dict(state)).encode())
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in saved_steps(run)[:-keep]:
        shutil.rmtree(checkpoint_folder(run, old), ignore_errors=True)
    return final


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file. UserError where it is missing or cut short."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} is missing; its checkpoint is not whole")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is cut short or is not a safetensors file ({error})") from None


def read_state(folder: Path) -> dict[str, Any]:
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        if not isinstance(state["step"], int):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is missing or cut short; delete {folder} to go on from the checkpoint before it") from None
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
    return int(step) if step.isdecimal() else 0, facts.get("average") != "false"


def check(folder: Path) -> int:
    """The step of a checkpoint; UserError where it is not whole."""
    for name in ("model", "average", "optimizer"):
        read_tensors(folder / f"{name}.safetensors")
    return int(read_state(folder)["step"])


def fill(module: nn.Module, path: Path) -> None:
    """The module's weights from a file, which must hold exactly them. UserError names the first that does not fit."""
    tensors, own = read_tensors(path), module.state_dict()
    for name in dict.fromkeys([*own, *tensors]):
        if name not in tensors or name not in own:
            where = "the file lacks" if name not in tensors else "the config's model does not have"
            raise UserError(f"{path} does not fit its config: {where} {name}")
        if own[name].shape != tensors[name].shape:
            raise UserError(
                f"{path} does not fit its config: {name} is {list(tensors[name].shape)} in the file, {list(own[name].shape)} in the model"
            )
    module.load_state_dict(tensors)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, flat: "index.name" of every tensor."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def fill_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in read_tensors(path).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    whole = optimizer.state_dict()
    if state.keys() - set(range(sum(len(group["params"]) for group in whole["param_groups"]))):
        raise UserError(f"{path} does not fit its config: it holds the state of other parameters")
    optimizer.load_state_dict({**whole, "state": state})
