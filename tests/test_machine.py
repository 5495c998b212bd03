"""What the machine is, and what precision auto becomes on it: a plain machine emulated in one process, patched instruction sets, control
groups written by hand; runs and samples that keep what auto became; and what is said where a device cannot do, or is slow."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from runs import unsealed
from torch import Tensor, nn

import guidance
from guidance import Condition, Label, Trainer, UserError, machine
from guidance.cli import run
from guidance.experiment.findings import stored_precision
from guidance.judge import train_judge
from guidance.split import InMemory

TINY = ["data=digits", "network.channels=4", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=4", "threads=1"]
QUICK = ["n=3", "sampler.steps=2", "threads=1"]


@pytest.fixture(scope="module", autouse=True)
def as_for_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No checks of types, and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto decides here, as for a user."""
    monkeypatch.delenv(machine.VARIABLE, raising=False)


@pytest.fixture
def anew() -> Iterator[None]:
    """What was found out of this machine is found out again, before and after."""
    machine.machine.cache_clear()
    yield
    machine.machine.cache_clear()


# Instructions

PLAIN = {"avx2": True, "avx512_f": False, "cpu_name": "Plain"}
OLD = {"avx2": True, "avx512_f": True, "avx512_vnni": True}
ZEN = {**OLD, "avx512_bf16": True}
AMX = {**ZEN, "amx_tile": True, "amx_bf16": True}
ARM = {"neon": True, "bf16": True}


@pytest.mark.parametrize(
    ("has", "environment", "instructions", "auto"),
    [
        (PLAIN, {}, ("avx2",), "no"),
        (OLD, {}, ("avx2", "avx512"), "no"),
        (ZEN, {}, ("avx2", "avx512", "avx512_bf16"), "bf16"),
        (AMX, {}, ("avx2", "avx512", "avx512_bf16", "amx_bf16"), "bf16"),
        (ARM, {}, ("bf16",), "bf16"),
        ({"neon": True}, {}, (), "no"),
        ({"neon": True, "sve_bf16": True}, {}, ("bf16",), "bf16"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, ("avx2",), "no"),
        (AMX, {"DNNL_MAX_CPU_ISA": "avx2_vnni"}, ("avx2",), "no"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}, ("avx2", "avx512", "avx512_bf16", "amx_bf16"), "bf16"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, ("avx2", "avx512", "avx512_bf16"), "bf16"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, ("avx2", "avx512"), "no"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "SSE41"}, (), "no"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, ("avx2", "avx512", "avx512_bf16", "amx_bf16"), "bf16"),
        (ZEN, {"ATEN_CPU_CAPABILITY": "avx2"}, ("avx2",), "no"),
        (ZEN, {"ATEN_CPU_CAPABILITY": "default"}, (), "no"),
        (ZEN, {"ATEN_CPU_CAPABILITY": "avx512"}, ("avx2", "avx512", "avx512_bf16"), "bf16"),
    ],
    ids=str,
)
def test_auto_goes_by_the_instructions_that_may_be_used(
    has: Mapping[str, Any],
    environment: Mapping[str, str],
    instructions: tuple[str, ...],
    auto: str,
    monkeypatch: pytest.MonkeyPatch,
    anew: None,
):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "capabilities", lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert machine.machine().instructions == instructions and machine.auto() == auto
    assert bool(machine.machine().lowered) == ((auto == "no" and bool(environment)) or len(instructions) < len(machine.found()))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert machine.auto() == "no", "it is oneDNN that multiplies in bf16"


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_emulates_bf16_is_not_fast(native: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert machine.auto("cuda:1") == ("bf16" if native else "no") and machine.auto("mps") == "no"


EMULATED = """
import json, sys, torch, warnings
from guidance import machine
from guidance.commands.doctor import examine, table
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("default")
    asked = [machine.precision("bf16") for _ in range(3)]
here, found = machine.machine(), examine()
print(json.dumps({
    "instructions": here.instructions, "auto": machine.auto(), "why": machine.reason(), "asked": asked, "slower": machine.slower(),
    "said": [str(one.message) for one in said], "doctor": found, "table": table(found),
    "torch": [torch.backends.cpu.get_cpu_capability(), bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())],
    "model": str(torch.nn.Linear(2, 2).weight.dtype),
}))
"""


@pytest.fixture(scope="module")
def emulated() -> Any:
    """What a plain machine says of itself."""
    if platform.machine().lower() not in ("x86_64", "amd64") or "avx2" not in machine.found():
        pytest.skip("a plain x86 machine is emulated on an x86 machine")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    environment.pop(machine.VARIABLE, None)
    done = subprocess.run([sys.executable, "-c", EMULATED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_plain_machine_takes_fp32(emulated: Any):
    assert emulated["torch"] == ["AVX2", False], "torch and oneDNN see it, too"
    assert emulated["instructions"] == ["avx2"] and emulated["auto"] == "no"
    if machine.found() != {"avx2"}:
        assert "ONEDNN_MAX_CPU_ISA=AVX2" in emulated["why"]


def test_bf16_on_a_plain_machine_is_done_and_said_once(emulated: Any):
    assert emulated["asked"] == ["bf16"] * 3 and emulated["slower"] > 3
    (said,) = emulated["said"]
    assert said.startswith("precision=bf16: this CPU has no instructions for bf16; a short probe took ") and "\n" not in said
    assert f"took {machine.times(emulated['slower'])} times as long" in said


def test_the_doctor_sees_a_plain_machine(emulated: Any):
    found, lines = emulated["doctor"], emulated["table"].splitlines()
    assert found["precision"]["auto"] == "no" and found["processor"]["instructions"] == ["avx2"]
    assert found["rates"]["bf16_to_fp32_time"] == pytest.approx(emulated["slower"], rel=0.01)
    assert any(line.startswith("precision") and "no (fp32)" in line for line in lines) and max(map(len, lines)) <= 80


# Cores and memory


def group(root: Path, own: str, **files: str) -> Callable[[], list[tuple[str, Path]]]:
    """Control groups as a system shows them."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "own").write_text(own)
    return partial(machine.control_groups, str(root), str(root / "own"))


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        (
            "0::/a/b\n",
            {"a__cpu_dot_max": "150000 100000\n", "a__memory_dot_max": "1000000\n", "a__b__cpu_dot_max": "max 100000\n"},
            2,
            1000000,
        ),
        ("0::/a\n", {"a__cpu_dot_max": "300000 100000\n", "cpu_dot_max": "50000 100000\n"}, 1, None),
        ("0::/\n", {"memory_dot_max": "max\n"}, 8, None),
        (
            "5:cpu,cpuacct:/a\n3:memory:/a\n",
            {
                "cpu,cpuacct__a__cpu_dot_cfs_quota_us": "200000\n",
                "cpu,cpuacct__a__cpu_dot_cfs_period_us": "100000\n",
                "memory__a__memory_dot_limit_in_bytes": "7\n",
            },
            2,
            7,
        ),
        ("5:cpu:/a\n", {"cpu__a__cpu_dot_cfs_quota_us": "-1\n", "cpu__a__cpu_dot_cfs_period_us": "100000\n"}, 8, None),
        ("", {}, 8, None),
    ],
    ids=str,
)
def test_a_container_has_what_it_is_allowed(
    own: str, files: dict[str, str], cores: int, memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "control_groups", group(tmp_path, own, **files))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**6}[name], raising=False)
    assert machine.cores() == cores and machine.memory() == (memory or 4096 * 10**6)


def test_an_affinity_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.cores() == 1


def test_threads_are_at_most_the_cores(monkeypatch: pytest.MonkeyPatch):
    here = machine.Machine("any", (), (), 3, None)
    monkeypatch.setattr(machine, "machine", lambda: here)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    machine.use_threads(3)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    machine.use_threads(None)
    assert taken == [3], "the user's own number stands"
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.use_threads(None)
    assert taken == [3, 3]
    with pytest.raises(UserError, match=r"^threads=99: there are 3 cores"):
        machine.use_threads(99)


def test_threads_that_wait_spin_for_a_moment_unless_the_user_says_so():
    for own in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {}):
        before = dict(own)
        machine.wait_briefly(own)
        assert own == (before or {"GOMP_SPINCOUNT": machine.SPINS})


# What is asked for


def test_the_environment_says_what_auto_becomes(monkeypatch: pytest.MonkeyPatch):
    for name in ("no", "bf16", "fp16"):
        monkeypatch.setenv(machine.VARIABLE, name)
        assert machine.auto() == name == machine.auto("cuda") and machine.precision("no") == "no"
    monkeypatch.setenv(machine.VARIABLE, "")
    assert machine.auto() in ("no", "bf16")
    for name in ("auto", "fp32"):
        monkeypatch.setenv(machine.VARIABLE, name)
        with pytest.raises(UserError, match=f"^there is no POLYGUIDE_PRECISION '{name}'.*choose from: no, bf16, fp16$"):
            machine.precision("auto")


def test_a_device_that_has_no_bf16_at_all(monkeypatch: pytest.MonkeyPatch):
    """Found by a tiny product: here of a device that has none of them."""

    def lacking(*_: Any, **__: Any) -> Any:
        raise RuntimeError("not implemented for BFloat16")

    machine.has.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(machine, "autocast", lacking)
        for name in ("bf16", "fp16"):
            with pytest.raises(UserError, match=f"^precision={name}: no CPU computes in {name}; choose from: no$"):
                machine.precision(name)
    machine.has.cache_clear()
    assert machine.has("bf16", "cpu") and machine.has("fp16", "cpu") and not machine.has("fp16", "cpu", training=True)


def test_auto_is_the_default_everywhere():
    import inspect

    from guidance.bridges.diffusers import denoiser
    from guidance.bridges.diffusers import load as pipeline
    from guidance.hydra import composed

    assert Trainer().precision == "auto"
    assert all(inspect.signature(of).parameters["precision"].default == "auto" for of in (guidance.load, denoiser, pipeline))
    assert all(composed(of, ["run=x", "out=y"])["precision"] == "auto" for of in ("sample", "evaluate", "experiment"))
    assert composed("train-classifier", ["run=x", "out=y"])["trainer"]["precision"] == "auto"
    configs = Path(guidance.config.config_folder())
    named = [path for path in configs.rglob("*.yaml") if "precision" in path.read_text() and path.parent != configs]
    assert {path.parent.name for path in named} == {"trainer"}, "recipes name none"
    assert all(yaml.safe_load(path.read_text())["precision"] == "auto" for path in named)
    assert "precision" not in (Path(__file__).parent.parent / "Makefile").read_text()


# What auto became stays


def becomes(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(machine, "fast_bf16", lambda device="cpu": fast)
    monkeypatch.setattr(machine, "slower", lambda device="cpu": 34.2)


def stored(path: str) -> str:
    return str(yaml.safe_load(Path(path, "config.yaml").read_text())["trainer"]["precision"])


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps and three samples of it, made where bf16 is fast."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(machine.VARIABLE, raising=False)
        patch.chdir(folder)
        becomes(patch, True)
        assert run(["train", *TINY, "trainer.steps=2", "out=run"]) == 0
        assert run(["train", *TINY, "trainer.steps=2", "trainer.precision=bf16", "out=asked"]) == 0
        assert run(["sample", "run=run", *QUICK, "out=samples"]) == 0
    return folder


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith("polyguide: ")]


def test_a_run_says_what_auto_became_and_keeps_it(begun: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(begun)
    assert stored("run") == "bf16"
    weights = [next(Path(name).glob("checkpoints/step-*2/model.safetensors")).read_bytes() for name in ("run", "asked")]
    assert weights[0] == weights[1], "it was trained in what is written"
    becomes(monkeypatch, False)
    assert run(["train", *TINY, "trainer.steps=2", "out=plain"]) == 0 and stored("plain") == "no"
    assert next(Path("plain").glob("checkpoints/step-*2/model.safetensors")).read_bytes() != weights[0]
    capfd.readouterr()
    assert run(["train", *TINY, "trainer.steps=3", "trainer.precision=auto", "out=run", "resume=true"]) == 0
    assert stored("run") == "bf16"
    (said,) = lines(capfd)
    assert "34 times as long" in said
    assert run(["train", "trainer.precision=no", "out=run", "resume=true"]) == 2
    assert "trainer.precision cannot change when a run is resumed (it is 'bf16')" in lines(capfd)[0]


def test_samples_that_are_gone_on_with_keep_it(begun: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(begun)
    assert json.loads(Path("samples/samples.json").read_text())["config"]["precision"] == "bf16"
    becomes(monkeypatch, False)
    at = ["sample", "run=asked", *QUICK]
    assert run(["sample", "run=asked", *QUICK, "precision=bf16", "out=half"]) == 0
    capfd.readouterr()
    assert run([*at, "out=half", "resume=true"]) == 0 and "34 times" in lines(capfd)[0]
    assert run([*at, "out=half", "resume=true", "precision=no"]) == 2
    assert "holds samples of precision=bf16, not no" in lines(capfd)[0]
    assert run([*at, "out=whole"]) == 0
    assert json.loads(Path("whole/samples.json").read_text())["config"]["precision"] == "no"
    # Work that is not done, whose terms say bf16: auto joins it.
    from guidance.commands.work import stored_precision as of_work

    assert of_work(Path("half"), "samples.json") == "bf16" and of_work(Path("nowhere"), "samples.json") is None
    (Path("unfinished") / ".work").mkdir(parents=True)
    (Path("unfinished") / ".work" / "terms.json").write_text(json.dumps({"terms": {"precision": "fp16"}}))
    assert of_work(Path("unfinished"), "samples.json") == "fp16"


@pytest.mark.parametrize(("held", "name"), [("None", "no"), ("torch.bfloat16", "bf16"), ("torch.float16", "fp16"), ("other", None)])
def test_an_experiment_says_its_precision_as_before(held: str, name: str | None, tmp_path: Path):
    from guidance.experiment.cells import FORMAT

    assert stored_precision(tmp_path) is None
    (tmp_path / "experiment.json").write_text(json.dumps({"format": FORMAT, "precision": held}))
    assert stored_precision(tmp_path) == name


def test_a_stored_precision_that_a_device_does_not_train_in(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(begun)
    assert run(["train", *TINY, "trainer.steps=2", "trainer.precision=no", "out=of_a_gpu"]) == 0
    config = unsealed(Path("of_a_gpu")) / "config.yaml"
    config.write_text(config.read_text().replace("precision: 'no'", "precision: fp16"))
    capfd.readouterr()
    assert run(["train", "trainer.steps=3", "out=of_a_gpu", "resume=true"]) == 2
    (said,) = lines(capfd)
    assert said.startswith("polyguide: out=of_a_gpu is trained in fp16, which no CPU trains in: go on with it on a device that does, or")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", *TINY, "trainer.precision=fp16", "out=new"],
            ("trainer.precision=fp16", "no CPU trains in fp16", "choose from: no, bf16"),
        ),
        (["train", *TINY, "trainer.precision=half", "out=new"], ("trainer.precision 'half'", "auto, no, bf16, fp16")),
        (["train", *TINY[:-1], "threads=99", "out=new"], ("threads=99", "core")),
        (["sample", "run=asked", *QUICK, "precision=half", "out=new"], ("precision 'half'", "auto, no, bf16, fp16")),
        (["sample", "run=asked", "n=1", "threads=99", "out=new"], ("threads=99", "core")),
        (["exactness", "threads=99", "out=new"], ("threads=99", "core")),
    ],
    ids=lambda of: " ".join(of[-2:]),
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], words: tuple[str, ...], begun: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(begun)
    assert run(arguments) == 2
    (said,) = lines(capfd)
    assert all(word in said for word in words), said
    assert not Path("new").exists()


def test_an_unknown_value_of_the_variable_is_one_line(begun: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(begun)
    for value, said in (("fp32", "there is no POLYGUIDE_PRECISION 'fp32'"), ("fp16", "POLYGUIDE_PRECISION=fp16: no CPU trains in fp16")):
        monkeypatch.setenv(machine.VARIABLE, value)
        assert run(["train", *TINY, "out=new"]) == 2
        (line,) = lines(capfd)
        assert said in line


# Judges


class Dots:
    name, shape = "dots", (1, 4)
    conditions = {"kind": Label(("a", "b"))}  # noqa: RUF012
    raw = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    train = test = InMemory(raw, Condition.of(kind=(raw.sum(1) > 0).long()))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.seen = nn.Linear(4, 8), nn.Linear(8, 2), set[torch.dtype]()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        self.seen.add(features.dtype)
        return features, self.head(features)


def test_judges_follow_auto_and_their_cache_tells_them_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    judges = {}
    for name, precision in (("plain", "no"), ("half", "bf16"), ("of a CPU", "fp16")):
        monkeypatch.setenv(machine.VARIABLE, precision)
        judge = train_judge(
            guidance.judge.seeded(Line),
            Dots(),  # type: ignore[arg-type]
            "kind",
            lambda x: x,
            lambda x, _: x,
            version="dots-1",
            cache=tmp_path,
            steps=100,
            batch=16,
            lr=0.05,
        )
        features, logits = judge(Dots.raw)
        assert features.dtype == logits.dtype == torch.float32 and judge.accuracy > 0.8
        judges[name] = judge.network, features, len(list(tmp_path.glob("*.json")))
    assert [of[2] for of in judges.values()] == [1, 2, 2], "fp32 by its old name; bf16 by another; no CPU trains in fp16"
    assert (tmp_path / f"{guidance.judge.fingerprint(Dots(), 'kind', 'dots-1')}.json").is_file()  # type: ignore[arg-type]
    assert judges["half"][0].seen == {torch.bfloat16} and judges["plain"][0].seen == {torch.float32}
    torch.testing.assert_close(judges["half"][1], judges["plain"][1], atol=0.1, rtol=0.1)
    assert torch.equal(judges["of a CPU"][1], judges["plain"][1])
