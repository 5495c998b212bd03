"""From config to objects, and nothing that a config could do beyond that.

A mapping with ``_target_`` is a call (with ``_partial_: true`` one that the receiver completes). Only classes, their class
methods and the plug-ins' own build functions are called, and only where they are defined in the core, in the modalities or in an
installed plug-in's package: a config, and so a checkpoint, cannot run anything else.
"""

import collections.abc
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guidance.errors import UserError
from guidance.plugins import imported, plugins, responsible, trusted_packages


def config_folder() -> Path:
    """The configs: inside the package when it is installed, beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def resolve(target: str) -> Any:
    """The function or class that a dotted name means, if a config may call it."""
    trusted = trusted_packages()
    refused = UserError(
        f"the config's _target_ {target!r} is refused: only {', '.join(p + '.' for p in trusted)} may be called; "
        "where it is of a plug-in that is not installed, install that"
    )
    if not isinstance(target, str) or target.split(".", maxsplit=1)[0] not in trusted:
        raise refused
    parts, module, k = target.split("."), None, 0
    if any(part.startswith("_") for part in parts):
        raise refused
    for plugin in responsible(target):
        plugin.load() if plugin.modality else plugin.check()
    for k in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:k])
        try:
            module = importlib.import_module(name)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise UserError(f"the config's _target_ {target!r} needs the package {error.name!r}, which is not installed") from None
        except (Exception, SystemExit):
            imported(name, f"the config's _target_ {target!r}")  # which says why not
    found: Any = module
    for part in parts[k:]:
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(f"the config's _target_ {target!r} does not exist")
    # guidance.x.os.remove is found by name too, but is not defined here, and is no class.
    makes = inspect.isclass(found) or inspect.isclass(getattr(found, "__self__", None))
    owner = inspect.getmodule(getattr(found, "__func__", found))
    if owner is None or owner.__name__.split(".")[0] not in trusted:
        raise refused
    if not makes and target not in {plugin.target.replace(":", ".") for plugin in plugins()}:
        raise UserError(f"the config's _target_ {target!r} is refused: it is neither a class nor a plug-in's build function")
    return found


def build(config: Any, where: str = "config", **more: Any) -> Any:
    """The object that a plain config describes, its parts first; ``more`` are further arguments for the outermost call.

    Raises: UserError where the config names nothing to be called, or what it names does not take its settings.
    """
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise UserError(f"{where} is made by what its _target_ names, and there is none; got {where}={config!r}"[:300])
    parts = {str(key): part(value, f"{where}.{key}") for key, value in config.items() if key not in ("_target_", "_partial_")}
    target = resolve(config["_target_"])
    parts |= more
    partial = config.get("_partial_", False)
    signature = inspect.signature(target)
    try:
        (signature.bind_partial if partial else signature.bind)(**parts)
    except TypeError as error:
        known = [name for name in signature.parameters if name not in more]
        raise UserError(f"{where}: {config['_target_']}: {error}; its settings are: {', '.join(known) or 'none'}") from None
    check_types(target, config, where)
    call = functools.partial(called, target, f"{where}: {config['_target_']}", **parts)
    return call if partial else call()


def part(config: Any, where: str) -> Any:
    """What stands in a setting: an object where a ``_target_`` says so, else the value as it is."""
    if isinstance(config, list):
        return [part(item, f"{where}[{k}]") for k, item in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    if "_target_" in config:
        return build(config, where)
    return {key: part(value, f"{where}.{key}") for key, value in config.items()}


def called(target: Any, what: str, /, **settings: Any) -> Any:
    """The object, or a UserError for what a constructor does not check itself."""
    try:
        return target(**settings)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(f"{what} needs the package {error.name!r}, which is not installed") from error
    except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, AttributeError, AssertionError, ImportError) as error:
        raise UserError(f"{what} refuses its settings: {' '.join(str(error).split())[:200]}") from error


def check_types(target: Any, config: Mapping[str, Any], where: str) -> None:
    """UserError where a plain setting is not of the type that the target's signature states."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # a plug-in's annotations that cannot be looked up
        return
    for name, hint in hints.items():
        if name in config and not fits(config[name], hint):
            raise UserError(f"{where}.{name} is {describe(hint)}, got {config[name]!r}")


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML can be what a type hint says. Objects to be made fit everything, everything fits other hints."""
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in of)
    if hint in (int, float):
        return isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
    if hint in NAMES:
        return isinstance(value, hint)
    if origin in (collections.abc.Sequence, list, tuple):
        inner = [of[0]] * len(value) if isinstance(value, list) and (origin is not tuple or Ellipsis in of) else list(of)
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (collections.abc.Mapping, dict):
        return not isinstance(value, Mapping) or all(fits(item, of[1]) for item in value.values())
    return not makes_calls(hint, origin)


def makes_calls(hint: Any, origin: Any) -> bool:
    """Whether a hint is of what is called, which no plain value is: a Callable, or a protocol with __call__."""
    return origin is collections.abc.Callable or (bool(getattr(hint, "_is_protocol", False)) and "__call__" in vars(hint))


def describe(hint: Any) -> str:
    origin, of = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(option) for option in of))
    if origin in (collections.abc.Sequence, list, tuple):
        return "a list" if not of else f"a list, each {describe(of[0])}"
    if origin in (collections.abc.Mapping, dict):
        return f"settings by name, each {describe(of[1])}"
    if makes_calls(hint, origin):
        return "made by what its _target_ names"
    return NAMES.get(hint, str(getattr(hint, "__name__", hint)))


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    """Every setting of a config by its dotted name."""
    if not isinstance(node, Mapping):
        return {name: node}
    return {key: value for part, child in node.items() for key, value in leaves(child, f"{name}.{part}" if name else part).items()}
