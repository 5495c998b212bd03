"""The machine that this runs on: what its processor can do, how many cores and how much memory are ours, and whether bf16 is fast here.

The one place where that is found out, once. What follows from it is decided by instructions, never by timing, so that it is the same every
time; the short probe only says how much slower what was asked for is.
"""

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidance.errors import UserError, one_of

if TYPE_CHECKING:
    import torch

AUTO = "auto"
PRECISIONS = (AUTO, "no", "bf16", "fp16")
"""What can be asked for; "no" is fp32, as accelerate calls it."""

VARIABLE = "POLYGUIDE_PRECISION"
"""The environment variable that says what auto becomes."""

NEEDS: Mapping[str, int] = {"avx2": 1, "avx512": 2, "avx512_bf16": 3, "amx_bf16": 4, "bf16": 0}
"""The instructions that matter, and the level of oneDNN's names (`level`) that each needs; bf16 is Arm's."""

FAST = ("amx_bf16", "avx512_bf16", "bf16")
"""Those that multiply in bf16."""

PROBE = 0.04
"""Seconds that one product, or convolution, is repeated for."""


@dataclass(frozen=True)
class Machine:
    """``processor``: its name. ``instructions``: of NEEDS, those that torch and oneDNN may use. ``lowered``: the environment variables that
    take some away. ``cores``: that this process may use. ``memory``: bytes of it, None where that is not known."""

    processor: str
    instructions: tuple[str, ...]
    lowered: tuple[str, ...]
    cores: int
    memory: int | None


@cache
def machine() -> Machine:
    """This one."""
    there, (most, lowered) = found(), limit(os.environ)
    usable = tuple(name for name in NEEDS if name in there and NEEDS[name] <= most)
    taken = tuple(f"{name}={os.environ[name]}" for name in lowered) if len(usable) < len(there) else ()
    return Machine(processor(), usable, taken, cores(), memory())


def capabilities() -> Mapping[str, Any]:
    """What torch finds of the processor; where it does not (older ones, or one that is broken), what Linux says of it."""
    try:
        import torch

        found: Mapping[str, Any] = torch.cpu.get_capabilities()
        return found
    except (ImportError, OSError, AttributeError):
        pass
    lines = dict(line.split(":", 1) for line in (text_of("/proc/cpuinfo") or "").splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    names = fields.get("flags", fields.get("Features", "")).split()
    return {"cpu_name": fields.get("model name", ""), "avx512_f": "avx512f" in names, **dict.fromkeys(names, True)}


def found() -> frozenset[str]:
    """The instructions of NEEDS that the processor has."""
    has = capabilities()
    there = {"avx512": has.get("avx512_f"), "bf16": has.get("bf16") or has.get("sve_bf16")}
    return frozenset(name for name in NEEDS if there.get(name, has.get(name)))


def limit(environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """The level of NEEDS that environment variables allow, and which of them say so: oneDNN's own, and that of ATen's kernels."""
    levels: dict[str, int] = {}
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if name in environment:
            levels[name] = level(environment[name])
            break  # oneDNN reads the second where the first is not set
    if (aten := environment.get("ATEN_CPU_CAPABILITY")) in ("default", "avx2"):
        levels["ATEN_CPU_CAPABILITY"] = ("default", "avx2").index(aten)
    most = min(levels.values(), default=4)
    return most, [name for name, value in levels.items() if value < 4]


def level(isa: str) -> int:
    """The level of NEEDS of one of oneDNN's instruction sets, by its name; all for ALL, DEFAULT and what it does not know."""
    name = isa.upper()
    if name in ("SSE41", "AVX"):
        return 0
    if name.startswith("AVX2"):
        return 1
    if name in ("AVX512_CORE", "AVX512_CORE_VNNI"):
        return 2
    return 3 if name in ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512") else 4


def processor() -> str:
    """The processor's name."""
    name = str(capabilities().get("cpu_name") or "").strip()
    return name or platform.processor() or platform.machine() or "unknown"


def text_of(path: str | Path) -> str | None:
    """Of a small file of the system's; None where it is not there."""
    try:
        return Path(path).read_text()
    except (OSError, ValueError):
        return None


def control_groups(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[tuple[str, Path]]:
    """The folders of this process's control groups and of those around them, with what they control ("" for all, of version 2)."""
    made: list[tuple[str, Path]] = []
    for line in (text_of(own) or "").splitlines():
        _, names, path = line.split(":", 2)
        kinds = [name for name in names.split(",") if name in ("cpu", "memory")] if names else [""]
        for kind in kinds:
            base = Path(root) / (names if kind == "cpu" and (Path(root) / names).is_dir() else kind)
            parts = Path(path.lstrip("/")).parts
            made += [(kind, base.joinpath(*parts[:k])) for k in range(len(parts), -1, -1)]
    return made


def cores() -> int:
    """That this process may use: its affinity, and what a container's quota leaves of it."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [mine]
    for kind, folder in control_groups():
        if kind == "cpu":
            quota, period = (text_of(folder / f"cpu.cfs_{what}_us") or "-1" for what in ("quota", "period"))
        else:
            quota, _, period = (text_of(folder / "cpu.max") or "max 100000").partition(" ")
        if kind in ("", "cpu") and quota.strip().isdigit() and period.strip().isdigit() and int(quota) and int(period):
            shares.append(math.ceil(int(quota) / int(period)))
    return max(1, min(shares))


def memory() -> int | None:
    """Bytes that this process may use: the machine's, or what a container allows."""
    limits = [int(text) for kind, folder in control_groups() if (text := memory_limit(kind, folder)).isdigit()]
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not on Windows
        return min(limits, default=None)
    return min(limits)


def memory_limit(kind: str, folder: Path) -> str:
    name = {"": "memory.max", "memory": "memory.limit_in_bytes"}.get(kind)
    return ((text_of(folder / name) if name else None) or "").strip()


def fast_bf16(device: "torch.device | str" = "cpu") -> bool:
    """Whether a device multiplies in bf16 by instructions of its own: a GPU that does not emulate it; a CPU with AMX or AVX-512 for
    bf16, or Arm's, through oneDNN."""
    import torch

    kind = torch.device(device).type
    if kind == "cpu":
        return torch.backends.mkldnn.is_available() and any(name in machine().instructions for name in FAST)
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "xpu"


def auto(device: "torch.device | str" = "cpu") -> str:
    """What auto becomes on a device: bf16 where that is fast, else "no"; or what POLYGUIDE_PRECISION says.

    Raises: UserError where that says something else.
    """
    if asked := os.environ.get(VARIABLE):
        if asked not in PRECISIONS[1:]:
            raise one_of(VARIABLE, asked, list(PRECISIONS[1:]))
        return asked
    return "bf16" if fast_bf16(device) else "no"


def reason(device: "torch.device | str" = "cpu") -> str:
    """Why auto is what it is on a device, in words."""
    import torch

    if asked := os.environ.get(VARIABLE):
        return f"{VARIABLE}={asked} says so"
    kind, here = named(device), machine()
    if kind != "CPU":
        return f"the {kind} {'has' if fast_bf16(device) else 'does not have'} bf16 of its own"
    if not torch.backends.mkldnn.is_available():
        return "this torch has no oneDNN, which multiplies in bf16"
    if fast_bf16(device):
        return f"the processor has instructions for it ({next(name for name in FAST if name in here.instructions)})"
    without = f", as {' '.join(here.lowered)} takes them away" if here.lowered else ""
    return f"the processor has no instructions for bf16 that may be used{without}"


def check_precision(asked: object, what: str = "precision") -> None:
    """UserError for a precision that there is not."""
    if asked not in PRECISIONS:
        raise one_of(what, str(asked), list(PRECISIONS))


def chosen(asked: str, device: "torch.device | str" = "cpu", *, what: str = "precision", training: bool = False) -> str:
    """What is asked for as what it becomes on a device: "no", "bf16" or "fp16".

    Args:
        what: the setting's name, for messages.
        training: whether a network is trained in it; fp16 then needs scaled gradients, which only GPUs have.

    Raises: UserError for a precision that there is not, or that the device does not have.
    """
    check_precision(asked, what)
    found = auto(device) if asked == AUTO else asked
    if not has(found, str(device), training):
        doing = "trains" if training else "computes"
        told = f"{what}={found}" if asked != AUTO else f"{VARIABLE}={found}"
        there = [name for name in PRECISIONS[1:] if has(name, str(device), training)]
        raise UserError(f"{told}: no {named(device)} {doing} in {found}; choose from: {', '.join(there)}")
    return found


def precision(asked: str, device: "torch.device | str" = "cpu", *, what: str = "precision", training: bool = False) -> str:
    """As `chosen`, for whoever is about to compute in it: bf16 where that is slow is said in a warning, with how slow a probe finds it."""
    found = chosen(asked, device, what=what, training=training)
    if found == "bf16" and not fast_bf16(device):
        warnings.warn(
            f"{what}=bf16: this {named(device)} has no instructions for bf16; a short probe took {times(slower(str(device)))} times as "
            "long as in fp32",
            stacklevel=1,  # so that it is said once
        )
    return found


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def named(device: "torch.device | str") -> str:
    """A device in a sentence."""
    kind = str(device).partition(":")[0]
    return {"cpu": "CPU", "cuda": "GPU"}.get(kind, f"device {kind!r}")


@cache
def has(name: str, device: str, training: bool = False) -> bool:
    """Whether a device computes in a precision at all, which it is asked by a tiny product and convolution."""
    import torch

    if name == "no":
        return True
    if name == "fp16" and training and device.startswith("cpu"):
        return False
    try:
        x, image = torch.ones(2, 2, device=device), torch.ones(1, 1, 4, 4, device=device)
        with torch.no_grad(), autocast(name, device):
            return bool((x @ x).isfinite().all()) and bool(torch.conv2d(image, image[..., :3, :3]).isfinite().all())
    except (RuntimeError, NotImplementedError, ValueError, AssertionError):
        return False


def dtype_of(name: str) -> "torch.dtype | None":
    """That a network is cast to; None for "no"."""
    import torch

    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(name: str, device: "torch.device | str" = "cpu") -> AbstractContextManager[Any]:
    """Within it products are made in a precision; nothing for "no"."""
    import torch

    dtype = dtype_of(name)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def seconds(work: Callable[[], Any], wait: Callable[[], Any], least: float) -> float:
    """Of one call, the fastest of as many as fit into ``least`` seconds, after one that is not counted."""
    work()
    wait()
    spent, best = 0.0, math.inf
    while spent < least:
        began = time.perf_counter()
        work()
        wait()
        took = time.perf_counter() - began
        spent, best = spent + took, min(best, took)
    return best


@cache
def rates(device: str = "cpu", least: float = PROBE) -> Mapping[tuple[str, str], float]:
    """GFLOP/s by (what, precision): a product of 256 x 256 matrices and a 3 x 3 convolution of 32 channels, in "no" and "bf16".

    Each is the fastest of what fits into ``least`` seconds. A precision that the device does not have is not there.
    """
    import torch

    wait: Callable[[], Any] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    found: dict[tuple[str, str], float] = {}
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        if not has(name, device):
            continue
        a, x, w = (torch.full(shape, 0.1, device=device, dtype=dtype) for shape in ((256, 256), (8, 32, 16, 16), (32, 32, 3, 3)))
        with torch.no_grad():
            work: dict[str, tuple[Callable[[], Any], float]] = {
                "product": (lambda a=a: a @ a, 2 * 256**3),  # type: ignore[misc]
                "convolution": (lambda x=x, w=w: torch.conv2d(x, w, padding=1), 2 * 8 * 256 * 32 * 32 * 9),  # type: ignore[misc]
            }
            for what, (call, flops) in work.items():
                found[what, name] = flops / seconds(call, wait, least) / 1e9
    return found


def slower(device: str = "cpu") -> float:
    """How many times as long the same products and convolutions take in bf16 as in fp32, by `rates`."""
    found = rates(device)
    kinds = [what for what, name in found if name == "bf16"]
    if not kinds:
        return math.inf
    return sum(1 / found[what, "bf16"] for what in kinds) / sum(1 / found[what, "no"] for what in kinds)


def check_threads(asked: int) -> None:
    """UserError for more threads than there are cores, which would wait for each other."""
    if asked > (here := machine().cores):
        raise UserError(
            f"threads={asked}: there {'is 1 core' if here == 1 else f'are {here} cores'} here; threads=null takes as many as that"
        )


def use_threads(asked: int | None) -> None:
    """As many threads as asked for; by default torch's own number, or what the user's OMP_NUM_THREADS says, but no more than a container
    has cores, whose quota torch does not see."""
    import torch

    if asked is not None:
        check_threads(asked)
        torch.set_num_threads(asked)
    elif "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > machine().cores:
        torch.set_num_threads(machine().cores)


SPINS = "10000"
"""Rounds that a waiting thread of GNU's OpenMP spins before it gives its core away: tens of microseconds. Its own number is 300,000."""


def wait_briefly(environment: Any) -> None:
    """Threads that wait for others spin for a moment and then give their core away; before torch is imported, for then it is too late.

    Another process on the machine, or a second training, would else be waited for by spinning against it. Where the user has said how
    threads wait, that stands.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = SPINS
