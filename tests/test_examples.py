"""The examples do what they say."""

import importlib.util
import inspect
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("unchecked")
def test_an_own_network_is_guided_towards_and_away(tmp_path: Path):
    shares = example("own_network").main(steps=600, folder=str(tmp_path))
    assert shares["CFG(1)"][0] > 0.97 and shares["CFG(3)"][0] > 0.97
    assert shares["CFG(0)"] == pytest.approx([0.25] * 4, abs=0.1)
    ne, nw, sw, se = shares["CFG(-1)"]
    assert ne < 0.05 and sw > max(nw, se)  # away from a corner is towards the opposite one
    assert sum(shares["ne + nw - null"][:2]) > 0.97


def test_the_mixture_is_what_its_density_says():
    said = subprocess.run([sys.executable, EXAMPLES / "mixture.py"], capture_output=True, text=True, check=True).stdout
    rows = {line[:18].strip(): [float(x) for x in line[18:].split()] for line in said.splitlines()[1:]}
    assert rows["CFG(0)"][1:] == pytest.approx([0.3, 0.4, 0.3], abs=0.03)  # the weights of the mixture
    assert rows["CFG(1)"][1:] == pytest.approx([0, 4 / 7, 3 / 7], abs=0.03)  # those of its class alone
    assert rows["CFG(1)"][0] == pytest.approx((4 * 0.5 + 3 * 3) / 7, abs=0.06)


@pytest.mark.usefixtures("unchecked")
def test_independent_conditions_add_up_to_the_joint_one_and_a_negative_one_is_avoided():
    shares = example("composing").main(n=500)
    assert shares["nothing"] == pytest.approx([1 / 9] * 9, abs=0.06)
    assert shares["right and top"][8] > 0.99 and shares["right and top, jointly"][8] > 0.99
    assert sum(shares["right, not top"][6:]) > 0.99 and shares["right, not top"][6] > 0.8  # the right column, away from its top
    assert shares["neither right nor top"][0] > 0.7
    assert sum(shares["right more than top"][6:]) > 0.99


@pytest.mark.usefixtures("unchecked")
def test_a_rule_of_ones_own_keeps_what_strong_guidance_loses():
    shares = example("custom_rule").main(n=1000)
    assert shares["CFG(1)"] == pytest.approx([0, 0.5, 0.5], abs=0.05)
    assert shares["CFG(8)"][2] > 0.99
    assert shares["Limited(8, 0.1)"] == pytest.approx([0, 0.5, 0.5], abs=0.08)
    denoiser = example("custom_rule").Limited
    assert len(inspect.getsource(denoiser).splitlines()) <= 15


@pytest.mark.usefixtures("unchecked")
def test_a_sampler_of_ones_own_is_of_the_order_that_it_should_be():
    errors = example("custom_sampler").main(n=50)
    orders = {name: [math.log2(a / b) for a, b in pairwise(of)] for name, of in errors.items()}
    assert orders["DDIM"] == pytest.approx([1, 1, 1], abs=0.1)
    assert orders["Adams-Bashforth"] == pytest.approx([2, 2, 2], abs=0.2)
