"""What this modality promises: polyguide's contract, and that its measures mean what they say."""

import subprocess
import sys

import torch
from NAME.data import Waves
from NAME.metrics import Metrics

from guidance import Condition


def test_it_keeps_the_contract() -> None:
    suite = [sys.executable, "-m", "pytest", "--pyargs", "guidance.testing", "--modality=NAME"]
    done = subprocess.run(suite, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_crossings_are_those_of_a_sine() -> None:
    t = torch.linspace(0, 1, 64)
    waves = torch.stack([(2 * torch.pi * (cycles * t + 0.25)).sin() for cycles in (1, 2, 4)])
    assert Metrics().measure(waves, Condition())["crossings"].tolist() == [2, 4, 8]


def test_fast_waves_cross_zero_more_often() -> None:
    part = Waves().test
    crossings = Metrics().measure(part.raw, part.condition)["crossings"]
    fast = part.condition.values["pace"] == 1
    assert crossings[fast].min() > crossings[~fast].max()
