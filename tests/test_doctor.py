"""polyguide doctor: what it says here, against where the facts come from; and that what is broken is said in its line."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from guidance import machine
from guidance.cli import run
from guidance.commands import doctor


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Little is measured, and the caches are small."""
    rates = {("product", "no"): 100.0, ("convolution", "no"): 50.0, ("product", "bf16"): 200.0, ("convolution", "bf16"): 100.0}
    monkeypatch.setattr(machine, "rates", lambda device="cpu": rates)
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "cache" / "judges").mkdir(parents=True)
    (tmp_path / "cache" / "judges" / "one").write_bytes(b"x" * 3 * 2**20)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["doctor", *arguments]) == 0
    return capsys.readouterr().out


def test_it_says_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    found = json.loads(said(capsys, "json=true"))
    assert found["versions"]["polyguide"] == version("polyguide") and found["versions"]["packages"]["torch"] == version("torch")
    assert found["versions"]["problems"] == []
    assert found["processor"]["cores"] == machine.cores() and found["processor"]["threads"] == torch.get_num_threads()
    assert found["precision"]["auto"] == "no" and found["precision"]["why"] == "POLYGUIDE_PRECISION=no says so"
    assert found["rates"]["fp32_product"] == 100 and found["rates"]["bf16_to_fp32_time"] == 0.5
    assert found["caches"]["parts"] == {"judges": 3 * 2**20} and found["caches"]["hub"]["size"] == 0
    free = shutil.disk_usage(tmp_path).free
    assert all(abs(of - free) < 2**30 for place, of in found["disk"].items() if place.startswith(str(tmp_path)))
    assert {"image", "audio", "text"} <= set(found["plugins"]["names"]) and found["environment"]["POLYGUIDE_PRECISION"] == "no"


def test_it_fits_on_one_screen(capsys: pytest.CaptureFixture[str]):
    lines = said(capsys).splitlines()
    assert len(lines) <= 35 and max(map(len, lines)) <= 80
    assert sum(line.startswith(name) for line in lines for name in ("processor", "measured", "precision", "caches", "free disk")) == 5
    assert "MISSING" not in "".join(lines)


def test_what_is_broken_is_said_in_its_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def gone(name: str) -> str:
        if name == "librosa":
            raise PackageNotFoundError(name)
        return "0.0.1" if name == "scipy" else version(name)

    def broken() -> Any:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(doctor, "version", gone)
    monkeypatch.setattr(doctor, "device", broken)
    monkeypatch.setattr("guidance.plugins.everything", broken)
    out = said(capsys)
    assert "librosa MISSING" in " ".join(out.split()) and "scipy 0.0.1 is not >=" in " ".join(out.split())
    told = {line.split()[0]: line for line in out.splitlines() if line[0] != " "}
    assert all("RuntimeError: no luck" in told[name] for name in ("precision", "measured", "plug-ins")), out
    assert "GiB" in out and "judges 3 MiB" in " ".join(out.split()), "and it goes on"
    assert "RuntimeError" in json.loads(said(capsys, "json=true"))["plugins"]["problem"]


def test_it_works_without_torch(tmp_path: Path):
    """In a process of its own, in which importing torch fails."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch is broken')\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}{os.pathsep}{Path(__file__).parent.parent}"
    code = "import sys; sys.path.insert(0, sys.argv[1]); from guidance.cli import run; sys.exit(run(['doctor', 'json=true']))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    found = json.loads(done.stdout)
    assert "torch is broken" in found["rates"]["problem"] and found["processor"]["cores"] == machine.cores()
    assert found["versions"]["packages"]["torch"] == version("torch")


def test_secrets_are_not_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_12345")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = said(capsys, "json=true")
    assert "hf_12345" not in out and json.loads(out)["environment"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("arguments", [["now"], ["json=yes"], ["out=x"]])
def test_it_takes_nothing_else(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert run(["doctor", *arguments]) == 2
    assert capsys.readouterr().err == f"polyguide: doctor takes json=true and nothing else, got {arguments[0]}\n"
