"""Experiments from end to end, in a world in which every guided sample is known: what is measured, what is kept, what is done again."""

import errno
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_fakes import (
    CONFIG,
    MEANS,
    SETTINGS,
    Shifted,
    cheaply,
    draw,
    drawn,
    experiment_config,
    free,
    measure,
    mixture,
    nearest,
    world,
)

from guidance import CFG, DDPM, Compose, UserError, on
from guidance.experiment import DropoutStudy, Inverse, Mixing, Tradeoff
from guidance.experiment.cells import FORMAT
from guidance.experiment.conduct import conduct, weights
from guidance.experiment.findings import FACTS, read_result
from guidance.experiment.mixing import on_weights
from guidance.model import Model

SCALES = Tradeoff([-1, 0, 1, 3])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    cheaply(monkeypatch)


def sides(n: int) -> list[str]:
    return [("left", "right")[k % 2] for k in range(n)]


def files(out: Path) -> dict[str, Any]:
    """All that was measured; how long it took is another matter."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"):
        if path.suffix == ".json":
            found[str(path.relative_to(out))] = {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        else:
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return json.dumps(one, default=repr, sort_keys=True) == json.dumps(two, default=repr, sort_keys=True)  # where NaN is NaN


# What is measured


def test_every_cell_is_of_the_samples_that_the_model_draws(tmp_path: Path):
    model, n = world(), 24
    found = measure(SCALES, model, tmp_path, n)
    assert found.whole and [cell.at for cell in found.cells] == [{"scale": s} for s in SCALES.scales]
    for cell, evaluations in zip(found.cells, (2, 1, 1, 2), strict=True):
        scale = cell.at["scale"]
        samples = draw(model, n, CFG(scale), {"side": sides(n)})
        assert torch.equal(cell.arrays["grey"], samples[:, 1]), "sample by sample"
        assert torch.equal(cell.arrays["class.side"], nearest(samples[:, 0], "side"))
        assert cell.arrays["asked.side"].tolist() == [k % 2 for k in range(n)]
        right = cell.arrays["class.side"] == torch.arange(n) % 2
        assert cell.estimates["accuracy"].value == float(right.double().mean()) and cell.evaluations == evaluations
        assert cell.estimates["grey"].value == pytest.approx(float(samples[:, 1].mean()))
        assert len(cell.samples) == 10 and all(path.is_file() for path in cell.samples)


@pytest.mark.parametrize("scale", [-3.0, -1.0, 2.0, 5.0])
def test_inverse_guidance_shifts_by_exactly_the_opposite(tmp_path: Path, scale: float):
    """Of one Gaussian whose mean a condition moves: every sample is moved by the scale times what scale 1 moves it by."""
    model, n = world(), 30
    found = measure(Inverse([scale], ordered_scales=[scale]), model, tmp_path, n)
    base = found.at(named="side", scale=0.0)
    assert base is not None and torch.equal(base.arrays["grey"], free(model, n)[:, 1])
    for end, mean in (("bottom", MEANS["shade"][0]), ("top", MEANS["shade"][-1])):
        plain, inverse = (found.at(named=f"shade {end}", scale=s) for s in (1.0, scale))
        assert plain is not None and inverse is not None
        moved = plain.arrays["grey"] - base.arrays["grey"]
        torch.testing.assert_close(moved, torch.full((n,), mean), atol=1e-2, rtol=0)
        torch.testing.assert_close(inverse.arrays["grey"] - base.arrays["grey"], scale * moved, atol=1e-4, rtol=1e-4)


def test_a_sum_moves_each_attribute_by_its_own_weight(tmp_path: Path):
    model, n = world(), 20
    found = measure(Mixing(weights=[-1, 2], scales=[1], held_out=False), model, tmp_path, n)
    base = free(model, n)[:, 1]
    for a in (-1.0, 2.0):
        for b in (-1.0, 2.0):
            cell = found.at(mix="two", **on_weights({"side": a, "shade": b}))
            assert cell is not None
            asked = torch.tensor(MEANS["shade"])[cell.arrays["asked.shade"]]
            torch.testing.assert_close(cell.arrays["grey"] - base, b * asked, atol=3e-2, rtol=0)
    one, two = found.at(mix="two", how="joint", scale=1.0), found.at(mix="two", how="sum", scale=1.0)
    assert one is not None and two is not None and not torch.equal(one.arrays["grey"], base)


def test_the_shares_are_those_of_the_known_density(tmp_path: Path):
    """Of N(scale * mean, deviation^2), cut at the marks; and the known classes in the known density."""
    n = 400
    found = measure(Inverse([-0.25, 0.5], ordered_scales=[-0.25, 0.5]), world(), tmp_path, n, steps=60)

    def below(cut: float, mean: float) -> float:
        return 0.5 * (1 + math.erf((cut - mean) / (0.5 * math.sqrt(2))))

    marks = -1.0, 1.0
    for end, mean in (("bottom", -2.0), ("top", 2.0)):
        for scale in (-0.25, 0.5, 1.0):
            cell = found.at(named=f"shade {end}", scale=scale)
            assert cell is not None
            grey, m = cell.arrays["grey"].double(), scale * mean
            for share, p in ((grey <= marks[0], below(marks[0], m)), (grey > marks[1], 1 - below(marks[1], m))):
                assert abs(float(share.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n) + 0.02
            assert float(grey.mean()) == pytest.approx(m, abs=4 * 0.5 / math.sqrt(n))
            assert float(grey.std()) == pytest.approx(0.5, rel=0.15)


def test_without_guidance_the_classes_are_the_prior_and_with_it_the_named_one(tmp_path: Path):
    shares, n = {"side": [0.8, 0.2], "shade": [0.2, 0.5, 0.3]}, 300
    found = measure(Tradeoff([0, 1], attribute="shade"), mixture(shares), tmp_path, n, steps=20)
    prior, named = (found.at(scale=s) for s in (0.0, 1.0))
    assert prior is not None and named is not None
    count = torch.bincount(prior.arrays["class.shade"], minlength=3) / n
    for k, p in enumerate(shares["shade"]):
        assert abs(float(count[k]) - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert named.estimates["right.shade"].value > 0.95, "the classes lie four deviations apart"


@pytest.mark.parametrize("steps", [2, 7])
def test_steps_are_those_of_the_cell(tmp_path: Path, steps: int):
    model = world()
    found = measure(Tradeoff([2], steps=[steps, 9]), model, tmp_path, 6)
    cell = found.at(steps=steps, scale=2.0)
    assert cell is not None
    assert torch.equal(cell.arrays["grey"], draw(model, 6, CFG(2.0), {"side": sides(6)}, steps=steps)[:, 1])


def test_settings_are_those_of_the_sampling(tmp_path: Path):
    model = world()
    found = measure(Tradeoff([2]), model, tmp_path, 6, seed=8, sampler=DDPM(0.3), batch_size=4)
    expected = draw(model, 6, CFG(2.0), {"side": sides(6)}, seed=8, sampler=DDPM(0.3))
    torch.testing.assert_close(found.cells[0].arrays["grey"], expected[:, 1])


def test_the_facts_say_what_the_model_is(tmp_path: Path):
    model = world(("side", "shade", "tone"))
    model.modality.data.train = drawn(("side", "shade", "tone"), 57, 11)  # type: ignore[misc]  # not as many of each class
    facts = measure(Inverse([-1]), model, tmp_path, 6).facts
    train = model.modality.data.train.labels
    assert facts["attributes"] == {
        "side": {"classes": ["left", "right"], "levels": [], "quantity": ""},
        "shade": {"classes": ["low", "mid", "high"], "levels": [["low"], ["mid"], ["high"]], "quantity": "grey"},
    }
    assert facts["all_classes"]["tone"] == ["flat", "sharp"] and facts["held_out"] == 48 and facts["n"] == 6
    for name, of in facts["priors"].items():
        assert of == pytest.approx([float((train[name] == k).double().mean()) for k in range(len(of))])
    assert facts["seed"] == 0 and "seed" not in facts["config"] and facts["config"]["trainer"] == CONFIG["trainer"]
    assert facts["accuracy"]["side"] == 0.875 and facts["weights"] == weights(model) != weights(world(network=Shifted(("side",), 2.0)))


# Going on


class Stopped(RuntimeError):
    pass


def failing(after: int, error: BaseException | None = None) -> Model:
    """A model whose samples cannot be saved when ``after`` cells have been."""
    model = world()
    render: Any = model.modality.render
    render.failing, render.after = error or Stopped(), after
    return model


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_experiment_goes_on_where_it_was_stopped(tmp_path: Path, after: int):
    whole, n = world(), 24
    measure(SCALES, whole, tmp_path / "whole", n)
    with pytest.raises(Stopped):
        measure(SCALES, failing(after), tmp_path / "parts", n)
    partly = read_result(tmp_path / "parts")
    assert [cell.at["scale"] for cell in partly.cells] == list(SCALES.scales[:after]) and not partly.whole
    again = world()
    found = measure(SCALES, again, tmp_path / "parts", n)
    network: Any = again.modality.network
    rows = {-1.0: 2, 0.0: 1, 1.0: 1, 3.0: 2}
    assert network.rows == n * SETTINGS["steps"] * sum(rows[s] for s in SCALES.scales[after:]), "the rest, and nothing twice"
    assert found.whole and same(files(tmp_path / "parts"), files(tmp_path / "whole"))


def test_what_is_done_is_not_done_again(tmp_path: Path):
    measure(SCALES, world(), tmp_path)
    before, again = files(tmp_path), world()
    metrics: Any = again.modality.metrics

    def refuse() -> None:
        raise AssertionError("no judge is needed")

    metrics.judging = refuse
    found = measure(SCALES, again, tmp_path)
    assert found.whole and again.modality.network.rows == 0 and same(files(tmp_path), before)  # type: ignore[attr-defined]


def test_more_scales_are_measured_beside_those_that_are_there(tmp_path: Path):
    measure(Tradeoff([0, 1]), world(), tmp_path, 6)
    again = world()
    found = measure(Tradeoff([1, 3]), again, tmp_path, 6)
    assert again.modality.network.rows == 6 * SETTINGS["steps"] * 2 and [c.at["scale"] for c in found.cells] == [1, 3]  # type: ignore[attr-defined]
    assert found.facts["experiment"]["scales"] == [1.0, 3.0]
    assert [c.at["scale"] for c in measure(Tradeoff([0, 1, 3]), world(), tmp_path, 6).cells] == [0, 1, 3]


def test_another_attribute_in_the_same_folder_has_its_own_facts(tmp_path: Path):
    one = measure(Tradeoff([1], attribute="side"), world(), tmp_path, 6)
    other = measure(Tradeoff([1], attribute="shade"), world(), tmp_path, 6)
    assert list(one.facts["attributes"]) == ["side"] and list(other.facts["attributes"]) == ["shade"]
    again = measure(Tradeoff([1], attribute="side"), world(), tmp_path, 6)
    assert again.facts == one.facts and "class.side" in again.cells[0].arrays


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from guidance import checkpoint

    write, written = checkpoint.write_atomically, []

    def full(path: Path, content: bytes) -> None:
        if path.parent.name == "cells" and len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path.name) if path.parent.name == "cells" else None
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("guidance.experiment.cells.write_atomically", full)
        with pytest.raises(OSError, match="No space"):
            measure(SCALES, world(), tmp_path / "parts", 6)
    assert [cell.at["scale"] for cell in read_result(tmp_path / "parts").cells] == [-1]
    measure(SCALES, world(), tmp_path / "parts", 6)
    measure(SCALES, world(), tmp_path / "whole", 6)
    assert same(files(tmp_path / "parts"), files(tmp_path / "whole"))


PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from unittest import mock
from experiment_fakes import cheaply, measure, world
from guidance.experiment import Tradeoff

out, me = Path(sys.argv[2]), sys.argv[3]
class Patch:
    def setattr(self, name, value):
        mock.patch(name, value).start()

cheaply(Patch())
model = world()
save = model.modality.render.save

def together(decoded, folder, names):
    (out / f"began-{me}").touch()
    while len(list(out.glob("began-*"))) < 2:  # the first cell of each waits for the other process
        time.sleep(0.02)
    return save(decoded, folder, names)

model.modality.render.save = together
found = measure(Tradeoff([-1, 0, 0.5, 1, 2, 3]), model, out, 6)
assert found.whole
print(*model.modality.render.saved)
"""


def test_two_processes_measure_every_cell_once(tmp_path: Path):
    (tmp_path / "both").mkdir()
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), str(tmp_path / "both")]
    started = [subprocess.Popen([*command, me], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for me in "ab"]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    one, two = (out.split() for out, _ in said)
    measure(Tradeoff([-1, 0, 0.5, 1, 2, 3]), world(), tmp_path / "alone", 6)
    names = [path.stem for path in (tmp_path / "alone" / "cells").glob("*.json")]
    assert one and two and sorted(one + two) == sorted(names)
    for name in ("began-a", "began-b"):
        (tmp_path / "both" / name).unlink()
    assert same(files(tmp_path / "both"), files(tmp_path / "alone"))


# What is refused


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"n": 8}, "n=6, not 8"),
        ({"seed": 4}, "seed_of_samples=3, not 4"),
        ({"sampler": DDPM()}, "sampler=DPMSolver"),
        ({"steps": 7}, "6 steps"),
        ({"model": {"parameterization.temperature": 0.5}}, "model_settings"),
        ({"network": Shifted(("side", "shade"), 1.5)}, "other weights: the run has been trained since"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_cells_of_other_terms_are_refused_and_kept(tmp_path: Path, more: dict[str, Any], words: str):
    measure(SCALES, world(), tmp_path, 6)
    before, n, network = files(tmp_path), more.pop("n", 6), more.pop("network", None)
    other = world(network=network)
    with pytest.raises(UserError, match="pass overwrite=true, or another out=") as said:
        measure(SCALES, other, tmp_path, n, **more)
    assert words in str(said.value) and "\n" not in str(said.value) and str(tmp_path) in str(said.value)
    assert same(files(tmp_path), before) and other.modality.network.rows == 0  # type: ignore[attr-defined]
    found = measure(SCALES, other, tmp_path, n, overwrite=True, **more)
    measure(SCALES, world(network=network), tmp_path / "fresh", n, **more)
    fresh = files(tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    assert found.whole and same(files(tmp_path), fresh), "all anew, and nothing of before"


def test_another_experiment_in_the_same_folder_is_refused(tmp_path: Path):
    measure(SCALES, world(), tmp_path, 6)
    with pytest.raises(UserError, match=r"kind=guidance.experiment.Tradeoff, not guidance.experiment.Inverse"):
        measure(Inverse([-1]), world(), tmp_path, 6)


def test_two_that_begin_together_on_other_terms_do_not_mix(tmp_path: Path):
    """The second begins while the first looks at the data."""
    slow, other = world(), world()
    metrics: Any = slow.modality.metrics

    def meanwhile() -> None:
        metrics.judging = lambda: None
        measure(SCALES, other, tmp_path, 6, seed=9)

    metrics.judging = meanwhile
    with pytest.raises(UserError, match="seed_of_samples=9, not 3"):
        measure(SCALES, slow, tmp_path, 6)
    assert read_result(tmp_path).facts["seed_of_samples"] == 9 and slow.modality.network.rows == 0  # type: ignore[attr-defined]


def test_overwriting_measures_anew_and_leaves_what_is_not_its_own(tmp_path: Path):
    measure(Tradeoff([0, 2]), world(), tmp_path, 6)
    kept = {"notes.csv": "mine", "notes.txt": "mine too", "figures/of-mine.png": "and this", "report.html": "<p>mine</p>"}
    for name, content in kept.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    again = world()
    measure(Tradeoff([0, 1]), again, tmp_path, 6, overwrite=True)
    assert again.modality.network.rows == 6 * SETTINGS["steps"] * 2 and {name: (tmp_path / name).read_text() for name in kept} == kept  # type: ignore[attr-defined]
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2 and len(list((tmp_path / "samples").iterdir())) == 18


def test_nothing_is_removed_before_it_is_known_that_measuring_works(tmp_path: Path):
    measure(SCALES, world(), tmp_path, 6)
    before, broken = files(tmp_path), world()
    metrics: Any = broken.modality.metrics

    def refuse() -> None:
        raise UserError("the data is gone")

    metrics.judging = refuse
    with pytest.raises(UserError, match="gone"):
        measure(SCALES, broken, tmp_path, 6, overwrite=True)
    assert same(files(tmp_path), before)


@pytest.mark.parametrize("which", [FACTS, "cells"])
def test_another_format_is_refused(tmp_path: Path, which: str):
    measure(SCALES, world(), tmp_path, 6)
    path = tmp_path / FACTS if which == FACTS else min((tmp_path / "cells").glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    before = files(tmp_path)
    with pytest.raises(UserError, match=rf"{path.name} was written by another version \(format {FORMAT + 1}.*overwrite=true"):
        measure(SCALES, world(), tmp_path, 6)
    assert same(files(tmp_path), before)
    assert measure(SCALES, world(), tmp_path, 6, overwrite=True).whole


@pytest.mark.parametrize("which", [FACTS, "cells"])
def test_what_is_cut_short_is_said(tmp_path: Path, which: str):
    measure(SCALES, world(), tmp_path, 6)
    path = tmp_path / FACTS if which == FACTS else min((tmp_path / "cells").glob("*.json"))
    whole = files(tmp_path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match="cut short") as said:
        measure(SCALES, world(), tmp_path, 6)
    assert path.name in str(said.value) and "\n" not in str(said.value)
    path.unlink()  # as the line says
    again = world()
    found = measure(SCALES, again, tmp_path, 6)
    assert found.whole and same(files(tmp_path), whole)
    assert again.modality.network.rows <= 2 * 6 * SETTINGS["steps"], "that cell only"  # type: ignore[attr-defined]


def test_a_folder_without_an_experiment_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=f"no {FACTS} in it"):
        read_result(tmp_path)


@pytest.mark.parametrize("made", [[], [0, 0]], ids=["none", "twice"])
def test_no_cells_or_two_of_one_place(tmp_path: Path, made: list[int]):
    class Odd(Tradeoff):
        def cells(self, model: Model, n: int) -> Any:
            return [super(Odd, self).cells(model, n)[k] for k in made]

    with pytest.raises(UserError, match="no cells, or two of the same place"):
        conduct(Odd([1]), experiment_config(SCALES), world(), tmp_path / "out", 6, SETTINGS)
    assert not (tmp_path / "out").exists()


# Trainings


STUDY = DropoutStudy({"own": {"joint": 0.1, "each": 0.0}, "half": {"joint": 0.5}}, scales=[0, 2])


def maker(models: dict[str, Model]) -> tuple[Callable[[str, Any], Model], list[str]]:
    asked: list[str] = []

    def make(name: str, config: Any) -> Model:
        asked.append(name)
        assert config["dropout"]["joint"] == STUDY.variants[name]["joint"]
        return models[name]

    return make, asked


def test_each_variant_draws_its_own_cells_and_the_run_s_own_is_not_made(tmp_path: Path):
    run, half = world(), world(network=Shifted(("side", "shade"), 0.25))
    make, asked = maker({"half": half})
    found = measure(STUDY, run, tmp_path, 12, make=make)
    assert asked == ["half"] and found.whole
    for name, model in (("own", run), ("half", half)):
        cell = found.at(dropout=name, how="sum", scale=2.0)
        assert cell is not None
        terms = Compose(tuple((2.0, {a: [LABEL[a][int(k)] for k in cell.arrays[f"asked.{a}"]]}) for a in ("side", "shade")))
        assert torch.equal(cell.arrays["grey"], draw(model, 12, terms)[:, 1])
    again, none = maker({})
    measure(STUDY, run, tmp_path, 12, make=again)
    assert none == [], "nothing is left to draw"


LABEL = {"side": ("left", "right"), "shade": ("low", "mid", "high")}


def test_variants_of_other_settings_are_refused(tmp_path: Path):
    make, _ = maker({"half": world()})
    measure(STUDY, world(), tmp_path, 12, make=make)
    other = DropoutStudy({"own": {"joint": 0.1, "each": 0.0}, "half": {"joint": 0.6}}, scales=[0, 2])
    with pytest.raises(UserError, match="other settings of its trainings"):
        measure(other, world(), tmp_path, 12, make=make)
    with pytest.raises(UserError, match="trains models of its own"):
        measure(STUDY, world(), tmp_path / "new", 12)


def test_a_composition_by_hand_is_the_cell_s():
    model = world()
    by_hand = draw(model, 6, 2.0 * on(side="left") - 1.0 * on(side="right"))
    cell = next(c for c in Mixing(weights=[2, -1], held_out=False).cells(model, 6) if c.at.get("a") == 2 and c.at.get("b") == -1)
    assert torch.equal(draw(model, 6, cell.guidance), by_hand)
