"""polyguide doctor: what this machine and this installation are, in one screen. What is broken is said in its line."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from textwrap import wrap
from typing import Any

from guidance import machine
from guidance.errors import UserError

USAGE = "polyguide doctor [json=true]: what this machine and this installation are; the first thing that a bug report asks for"
WIDTH = 80
RELEVANT = ("POLYGUIDE_", "OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "CUDA_", "HF_", "ACCELERATE_", "MALLOC_")
"""How the environment variables begin that change what polyguide does."""


def command(arguments: Sequence[str]) -> None:
    """polyguide doctor [json=true]"""
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE)
        return
    told = {"json=true": True, "json=false": False}
    if unknown := [argument for argument in arguments if argument not in told]:
        raise UserError(f"doctor takes json=true and nothing else, got {' '.join(unknown)}")
    found = examine()
    print(json.dumps(found, indent=2) if any(told[a] for a in arguments) else table(found), flush=True)


def examine() -> dict[str, Any]:
    """All facts, by section; a section that could not be looked at says ``problem``."""
    sections: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "processor": processor,
        "gpus": gpus,
        "precision": precision,
        "rates": rates,
        "caches": caches,
        "disk": disk,
        "plugins": plugins,
        "environment": lambda: {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(RELEVANT) and "TOKEN" not in name
        },
    }
    return {name: looked(section) for name, section in sections.items()}


def environment() -> dict[str, str]:
    """What is set of RELEVANT; nothing that is secret."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(RELEVANT) and "TOKEN" not in name}


def looked(section: Callable[[], Any]) -> Any:
    try:
        return section()
    except Exception as error:  # whatever is broken: that is what is to be seen
        return {"problem": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def versions() -> dict[str, Any]:
    """Python, polyguide and the packages that it needs; what is missing, or older than it may be."""
    try:
        needed = [line.partition(";") for line in requires("polyguide") or []]
        own = version("polyguide")
    except PackageNotFoundError:
        return {
            "python": platform.python_version(),
            "system": platform.platform(),
            "problem": "polyguide is not installed: pip install -e .",
        }
    from packaging.requirements import Requirement

    packages: dict[str, str | None] = {}
    problems = []
    for line, _, marker in needed:
        if "extra" in marker:
            continue
        of = Requirement(line)
        try:
            packages[of.name] = version(of.name)
            if not of.specifier.contains(version(of.name), prereleases=True):
                problems.append(f"{of.name} {version(of.name)} is not {of.specifier}")
        except PackageNotFoundError:
            packages[of.name] = None
            problems.append(f"{of.name} is missing")
    return {
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "polyguide": own,
        "packages": packages,
        "problems": problems,
    }


def processor() -> dict[str, Any]:
    """Name, instructions, cores, threads, memory."""
    here = machine.machine()
    found: dict[str, Any] = {"name": here.processor, "instructions": list(here.instructions), "lowered_by": list(here.lowered)}
    found |= {"cores": here.cores, "cores_of_the_machine": os.cpu_count(), "memory": here.memory}
    return {**found, "threads": looked(threads)}


def threads() -> int:
    import torch

    return torch.get_num_threads()


def gpus() -> list[dict[str, Any]]:
    """Names, memory, and whether bf16 is native."""
    import torch

    kinds = {"cuda": torch.cuda, "xpu": torch.xpu}
    return [
        {
            "device": f"{kind}:{k}",
            "name": of.get_device_properties(k).name,
            "memory": of.get_device_properties(k).total_memory,
            "bf16": machine.fast_bf16(f"{kind}:{k}"),
        }
        for kind, of in kinds.items()
        if of.is_available()
        for k in range(of.device_count())
    ]


def device() -> str:
    """That commands take by default."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision() -> dict[str, Any]:
    """What auto is, and why."""
    where = device()
    return {"device": where, "auto": machine.auto(where), "why": machine.reason(where)}


def rates() -> dict[str, Any]:
    """GFLOP/s, measured now, in about a second."""
    where = device()
    found = machine.rates(where)
    names = {"no": "fp32", "bf16": "bf16"}
    measured = {f"{names[of]}_{what}": float(f"{rate:.3g}") for (what, of), rate in found.items()}
    return {"device": where, **measured, "bf16_to_fp32_time": round(machine.slower(where), 2)}


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def caches() -> dict[str, Any]:
    """Where judges, data sets and downloads are kept, and how large they are."""
    from guidance.cache import cache_folder

    own = cache_folder()
    parts = {path.name: size(path) for path in sorted(own.iterdir()) if path.is_dir()} if own.is_dir() else {}
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface") / "hub")
    data = os.environ.get("POLYGUIDE_DATA")
    found: dict[str, Any] = {"folder": str(own), "parts": parts, "hub": {"folder": str(hub), "size": size(hub)}}
    return {**found, "data": None if not data else {"folder": data, "there": Path(data).is_dir()}}


def disk() -> dict[str, int]:
    """Free bytes where runs would go, and in the cache."""
    from guidance.cache import cache_folder

    return {str(place): shutil.disk_usage(existing(place)).free for place in (Path.cwd(), cache_folder())}


def existing(place: Path) -> Path:
    """The place, or the nearest folder around it that is there."""
    return next(path for path in (place, *place.parents) if path.exists())


def plugins() -> dict[str, Any]:
    """What brings choices, and what is wrong with it, as `polyguide list` finds it."""
    from guidance.cli import COMMANDS
    from guidance.config import config_folder
    from guidance.plugins import all_commands, command_problems, everything, problems

    found = everything()
    wrong = {plugin.name: list(problems(plugin, config_folder())) for plugin in found}
    wrong |= {one.name: list(command_problems(one, COMMANDS)) for one in all_commands()}
    return {"names": [plugin.name for plugin in found], "problems": {name: of for name, of in wrong.items() if of}}


# As people read it


def gib(number: int | None) -> str:
    if number is None:
        return "unknown"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A title and a text for each line of the table."""
    made: list[tuple[str, str]] = []

    def add(title: str, section: str, say: Callable[[Any], str]) -> None:
        of = found[section]
        text = of["problem"] if isinstance(of, Mapping) and "problem" in of else say(of)
        made.append((title, text))

    v = found["versions"]
    made.append(
        ("polyguide", f"{v.get('polyguide', 'not installed')}, Python {v.get('python', sys.version)}, {v.get('system', sys.platform)}")
    )
    add("packages", "versions", lambda of: ", ".join(f"{name} {said or 'MISSING'}" for name, said in of["packages"].items()))
    if v.get("problems"):
        made.append(("", f"problem: {'; '.join(v['problems'])}"))
    add("processor", "processor", said_processor)
    add(
        "GPU",
        "gpus",
        lambda of: "; ".join(f"{g['name']}, {gib(g['memory'])}, bf16 {'native' if g['bf16'] else 'emulated'}" for g in of) or "none",
    )
    add("precision", "precision", lambda of: f"auto is {'no (fp32)' if of['auto'] == 'no' else of['auto']} on {of['device']}: {of['why']}")
    add("measured", "rates", said_rates)
    add("caches", "caches", said_caches)
    add("free disk", "disk", lambda of: ", ".join(f"{gib(free)} at {place}" for place, free in of.items()))
    add("plug-ins", "plugins", lambda of: f"{', '.join(of['names'])}; {'problems:' if of['problems'] else 'no problems'}")
    for name, wrong in found["plugins"].get("problems", {}).items():
        made.append(("", f"{name}: {'; '.join(wrong)}"))
    add("environment", "environment", lambda of: ", ".join(f"{name}={value}" for name, value in of.items()) or "nothing set that matters")
    return made


def said_gpu(of: Mapping[str, Any]) -> str:
    return f"{of['name']}, {gib(of['memory'])}, bf16 {'of its own' if of['bf16'] else 'emulated'}"


def said_processor(of: Mapping[str, Any]) -> str:
    lowered = f" (without what {' '.join(of['lowered_by'])} takes away)" if of["lowered_by"] else ""
    count = of["threads"] if isinstance(of["threads"], int) else "unknown"
    return (
        f"{of['name']}: {', '.join(of['instructions']) or 'no instructions that matter'}{lowered}; {of['cores']} of "
        f"{of['cores_of_the_machine']} cores, threads: {count}, memory: {gib(of['memory'])}"
    )


def said_rates(of: Mapping[str, Any]) -> str:
    def pair(name: str) -> str:
        return f"{name} {of[f'{name}_product']:.3g} GFLOP/s in products, {of[f'{name}_convolution']:.3g} in convolutions"

    if "bf16_product" not in of:
        return f"{pair('fp32')}; no bf16"
    return f"{pair('fp32')}; {pair('bf16')}: the same work takes {of['bf16_to_fp32_time']:.3g} times as long in bf16 as in fp32"


def said_caches(of: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {gib(many)}" for name, many in of["parts"].items())
    data = "" if of["data"] is None else f"; POLYGUIDE_DATA {of['data']['folder']}{'' if of['data']['there'] else ' (is not there)'}"
    return f"{of['folder']} ({parts or 'empty'}); hub {of['hub']['folder']} ({gib(of['hub']['size'])}){data}"


def table(found: Mapping[str, Any]) -> str:
    """Lines of at most WIDTH characters, titles in a column."""
    made = rows(found)
    column = max(len(title) for title, _ in made) + 2
    lines: list[str] = []
    for title, text in made:
        first, *rest = wrap(text, WIDTH - column, break_on_hyphens=False) or [""]
        lines += [f"{title:{column}}{first}".rstrip(), *(" " * column + line for line in rest)]
    return "\n".join(lines)
