"""The bridge to Hydra: composing a command's config, and saying in one line what is wrong with it."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from guidance import bar
from guidance.config import config_folder, leaves, resolve
from guidance.errors import UserError, one_of
from guidance.memory import keep_freed
from guidance.plugins import check_choice, choices, everything, responsible

FREE = ("condition", "model", "sampler")
"""Groups of keys that a run, not a config, defines; they need no plus sign on the command line."""


def launch(command: str, arguments: list[str]) -> None:
    """Compose the command's config from Hydra's arguments and run the command, once or for every job of a sweep."""
    from hydra import main as hydra_main

    from guidance import commands

    keep_freed()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # exceptions come through to us, to be told in one line
    task: Callable[[dict[str, Any], list[str]], None] = getattr(commands, command.replace("-", "_"))

    failed: list[Exception] = []

    def job(config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            for group, choice in HydraConfig.get().runtime.choices.items():
                check_choice(str(group).split("@")[0], str(choice), config_folder())
            made = plain(config)
            check_data(made, HydraConfig.get().runtime.choices)
            task(made, list(HydraConfig.get().overrides.task))
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # a sweep's launcher may be elsewhere, and says which job it was
                raise
            failed.append(error)

    for argument in arguments:
        check_argument(argument)
    check_options(arguments)
    search_plugins()
    sys.argv = [f"polyguide {command}", *options_last([free(argument) for argument in arguments])]
    job.__module__ = "guidance.hydra"
    try:
        hydra_main(config_path=str(config_folder()), config_name=command, version_base="1.3")(job)()
    except UserError:
        raise
    except Exception as error:
        if message := explain(error, command, arguments):
            raise UserError(message) from None
        raise
    finally:
        bar.end()
    if failed:
        raise failed[0]


FLAGS = (
    *("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r", "--multirun", "-m"),
    *("--info", "-i", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--shell-completion", "-sc"),
)


NOT_A_NAME = re.compile(r"[-+]?[0-9._]+(e[-+]?[0-9]+)?|true|false|[-+]?(inf|nan)", re.IGNORECASE)
"""What Hydra reads as a number or as true or false, where a choice is named."""

MODES = ("--run", "-r", "--multirun", "-m", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")  # what may follow --info
KINDS = ("job", "hydra", "all")
VALUED: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("--cfg", "-c"), KINDS),
    **dict.fromkeys(("--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"), ()),
}
"""Options with a value, and what it can be."""


def check_options(arguments: Sequence[str]) -> None:
    """UserError for options that exclude each other."""
    for k, argument in enumerate(arguments):
        if argument in VALUED and (k + 1 == len(arguments) or arguments[k + 1] not in (VALUED[argument] or arguments[k + 1 :])):
            raise UserError(f"{argument} takes a value{': ' if VALUED[argument] else ''}{', '.join(VALUED[argument])}")
    modes = [argument for argument in arguments if argument in MODES]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)} exclude each other; give one of them")
    if "--resolve" in arguments and not {"--cfg", "-c", "--help", "-h"} & set(arguments):
        raise UserError("--resolve is for --cfg: polyguide train --cfg job --resolve")


def is_group(name: str) -> bool:
    """Whether a setting is a choice among configs."""
    name = name.lstrip("+")
    try:
        return bool(name) and not name.startswith(".") and (config_folder() / name).is_dir()
    except (OSError, ValueError):  # too long, or a zero byte
        return False


def options_last(arguments: Sequence[str]) -> list[str]:
    """Settings before options, which is how Hydra can tell them apart wherever they stand."""
    given: list[str] = []
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in VALUED:
            options += [argument, next(rest)]
        else:
            (options if argument.startswith("-") or argument in INFO else given).append(argument)
    return [*given, *options]


def check_argument(argument: str) -> None:
    """UserError for what Hydra would answer with its own usage, or not understand."""
    name, equals, value = argument.partition("=")
    if argument.startswith("-") and name not in FLAGS:
        raise one_of("option", argument, FLAGS)
    group = is_group(name)
    if name.lstrip("+") in FREE and equals and not group:
        raise UserError(f"{name} is given by attribute, e.g. {name}.digit=3; got {argument}")
    if value in ("null", "None") and name.lstrip("+") != "schedule" and group:
        raise UserError(f"{name} cannot be {value}; `polyguide list` shows what can be chosen")
    if name.lstrip("+") == "holdout" and value.startswith("{"):
        raise UserError(f"holdout is a list of combinations, e.g. holdout='[{{digit: 3, stroke: bold}}]', got {argument}")
    if group and equals and (value == "[]" or NOT_A_NAME.fullmatch(value)):
        raise UserError(f"{name}={value} chooses nothing; `polyguide list` shows what can be chosen")
    if argument.startswith("~") and not re.search(r"[./@]", name):
        raise UserError(f"{argument}: {name[1:]} cannot be left out; give it another value")


def check_data(config: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
    """UserError for data of another modality that cannot be told what this one tells its data (a tokenizer)."""
    data, modality = (config.get(key) for key in ("data", "modality"))
    if not all(isinstance(part, Mapping) and isinstance(part.get("_target_"), str) for part in (data, modality)):
        return
    made = resolve(data["_target_"])  # type: ignore[index]
    ours, theirs = responsible(modality["_target_"]), responsible(data["_target_"])  # type: ignore[index]
    if ours == theirs or len(ours) != 1 or data.keys() <= {"_target_", *inspect.signature(made).parameters}:  # type: ignore[union-attr]
        return
    of = " or ".join(plugin.name for plugin in theirs) or "another modality"
    known = ", ".join(sorted({name for name, target in targets("data").items() if responsible(target) == ours}))
    raise UserError(f"data={choices.get('data')} is for modality={of}; data for modality={ours[0].name} are: {known or 'none'}")


def config_folders() -> list[Path]:
    """Our own, and those of the plug-ins."""
    return [config_folder(), *(plugin.configs for plugin in everything() if plugin.configs)]


def targets(group: str) -> dict[str, str]:
    """What each choice of a group names as its _target_."""
    from yaml import YAMLError, safe_load

    found: dict[str, str] = {}
    for folder in config_folders():
        for path in sorted((folder / group).glob("*.yaml")):
            try:
                content = safe_load(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, YAMLError):
                continue
            if isinstance(content, dict) and isinstance(content.get("_target_"), str):
                found.setdefault(path.stem, content["_target_"])
    return found


def free(argument: str) -> str:
    """condition.digit=3 as ++condition.digit=3: added or overridden."""
    named = (*(f"{group}." for group in FREE), "dropout.each.", "dropout.each=")  # rates by attribute
    return f"++{argument}" if argument.startswith(named) else argument


def composed(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of a command, as plain containers, without running it. UserError for what Hydra finds wrong."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    arguments = [free(argument) for argument in overrides]
    GlobalHydra.instance().clear()
    search_plugins()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return plain(compose(command, overrides=arguments))
    except Exception as error:
        if message := explain(error, command, arguments):
            raise UserError(message) from None
        raise


def search_plugins() -> None:
    """Let Hydra search the plug-ins' own config folders, after ours."""
    from hydra.core.plugins import Plugins

    Plugins.instance().register(plugin_configs())  # again each time: a launcher of sweeps may have begun Hydra's list anew


@cache
def plugin_configs() -> type[Any]:
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginConfigs(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            own = config_folder().resolve()
            for folder in dict.fromkeys(p.configs.resolve() for p in everything() if p.configs):
                if folder != own:
                    search_path.append("polyguide", f"file://{folder}")

    return PluginConfigs


def plain(config: Any) -> dict[str, Any]:
    """Containers of Python's own, every interpolation resolved. UserError names a setting that is missing."""
    from omegaconf import OmegaConf

    unresolved = OmegaConf.to_container(config, resolve=False)
    missing = [name for name, value in leaves(unresolved).items() if value == "???"]
    if missing:
        examples = {"out": "out=runs/digits", "run": "run=runs/digits"}
        raise UserError(f"{missing[0]} is missing; give it, e.g. {examples.get(missing[0], f'{missing[0]}=...')}")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def explain(error: Exception, command: str, arguments: list[str]) -> str | None:
    """One line for what Hydra or OmegaConf found wrong; None for any other exception."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):  # of a choice that is no name
        given = [argument for argument in arguments if is_group(argument.split("=")[0])]
        return f"{' '.join(given)}: a choice is a name; `polyguide list` shows what can be chosen"
    if isinstance(error, AssertionError) and (own := [argument for argument in arguments if argument.lstrip("+~").startswith("hydra")]):
        return f"Hydra does not take {' '.join(own)}"
    if isinstance(error, RecursionError):
        return "a setting is nested too deeply to be read"
    if isinstance(error, YAMLError):
        return f"a config is no YAML: {' '.join(str(error).split())}"
    if launcher := re.search(r"Unknown plugin class : 'hydra_plugins\.(\w+)", str(error)):
        package = launcher[1].replace("_", "-")
        return f"the launcher of this sweep is in the package {package}, which is not installed: pip install {package}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    text = " ".join(str(part) for part in (error, error.__cause__) if part)
    if found := re.search(r"Could not (?:override|delete from config|append to config)[^']*'([^']+)'", text):
        key, _, place = found[1].partition("@")
        if place:
            return f"there is no {key} to choose at {place}: what is chosen for {place.split('.')[0]} has no such part"
        near = sorted(_nearby(key, command, arguments))
        if key in near and not any(argument.lstrip("~+").split("=")[0] == key for argument in arguments):
            return f"{' '.join(str(error).split())} (a config that overrides others begins with the line '# @package _global_')"
        if key in near:  # Hydra takes the dot in its last part for another level
            return f"{key} cannot be changed on the command line, for the dot in its name; write it into a config of your own"
        return str(one_of("config key", key, near))
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\s*(.*?)(?:Config search path|$)", text, re.DOTALL):
        group = found[2]
        names = found[3].split()
        if group == "recipe":  # Hydra leaves out those in folders
            every = [f"{kind}/{name}" for folder in config_folders() for kind, name in choices(folder)]
            names = sorted({choice.removeprefix("recipe/") for choice in every if choice.startswith("recipe/")})
        return str(one_of(f"choice for {group}", found[1].removeprefix(f"{group}/"), names))
    if isinstance(error, OverrideParseException):
        return f"the setting {error.override!r} cannot be read; write key=value, with quotes around what has brackets or commas"
    if found := re.search(r"You must specify '([^']+)', e\.g, ", text):
        return f"{found[1]} is missing; choose one with {found[1]}=..."
    return " ".join(str(error).split())


def _nearby(key: str, command: str, arguments: list[str]) -> list[str]:
    """The settings beside a key that does not exist, at the depth where it goes wrong."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    choices = [a for a in arguments if "=" in a and "." not in a.split("=")[0] and not a.startswith(f"{key}=")]
    for overrides in (choices, []):
        try:
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                config: Any = compose(command, overrides=overrides)
            break
        except Exception:
            continue
    else:
        return []
    prefix = ""
    for part in key.split(".")[:-1]:
        if not isinstance(config, Mapping) and not hasattr(config, "keys"):
            break
        if part not in config or config._get_node(part) is None or not hasattr(config[part], "keys"):
            break
        config, prefix = config[part], f"{prefix}{part}."
    return [f"{prefix}{name}" for name in config if not str(name).startswith("_")]
