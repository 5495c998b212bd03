"""Cells: their names, and how they are kept."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_fakes import world

from guidance import CFG, Compose, Interval, UserError, on
from guidance.estimate import Estimate
from guidance.experiment.asking import alone, given, items, named
from guidance.experiment.cells import FORMAT, Cell, Cells, Measured, plain
from guidance.split import pick

ASKED = {"side": [0, 1, 0]}


def cell(**more: Any) -> Cell:
    return Cell(**{"at": {"scale": 2.0}, "guidance": CFG(2.0), "asked": ASKED, **more})


def found(at: dict[str, Any], **arrays: torch.Tensor) -> Measured:
    estimates = {"accuracy": Estimate(0.5, 0.25, 0.75, 4), "one": Estimate(1.0, math.nan, math.nan, 1)}
    return Measured(at, 3, estimates, arrays, [Path("a-0.png")], 1.5, 2.25)


def test_a_name_is_that_of_all_that_the_samples_depend_on():
    other = [
        cell(),
        cell(at={"scale": 2.5}),
        cell(at={"scale": 2.0, "mix": "two"}),
        cell(guidance=CFG(2.5)),
        cell(guidance=2.0 * on(side="left")),
        cell(guidance=2.0 * on(side="right")),
        cell(guidance=2.0 * on(side=["left"] * 400 + ["right"])),
        cell(guidance=2.0 * on(side=["left"] * 400 + ["left"])),
        cell(asked={"side": [0, 1, 1]}),
        cell(asked={"shade": [0, 1, 0]}),
        cell(asked={"side": [0, 1, 0, 1]}),
        cell(steps=7),
        cell(steps=8),
        cell(variant="joint"),
    ]
    for one, two in itertools.combinations(other, 2):
        assert one.name != two.name and one.digest != two.digest
    assert cell().name == cell().name == "scale=2-" + cell().digest[:8], "and it can be read"


def test_a_name_can_be_that_of_a_file():
    name = cell(at={"named": "../a b/<c>:*?|" + "é" * 300, "scale": -0.5}).name
    assert not set(name) & set('/\\<>:*?"| ') and len(name) < 120
    assert cell(at={"scale": -0.5}).name.startswith("scale=-0.5-")


def test_what_a_name_can_tell():
    assert plain(CFG(2)) and plain(2.0 * on(side="left")) and cell(guidance=Compose()).composed and not cell().composed
    assert not plain(CFG(torch.tensor([1.0, 2.0]))) and not plain(CFG(lambda logsnr: 2.0)) and not plain(Interval(CFG(3.0), -1.0, 1.0))


def test_what_was_written_is_read(tmp_path: Path):
    store, whole = Cells(tmp_path), torch.arange(12.0).view(3, 4)
    measured = found(
        {"scale": 2.0, "how": "joint"},
        grey=torch.tensor([1.0, math.nan, 3.0]),
        **{"p.side": whole[:, ::2], "class.side": torch.tensor([1, 0, -1])},
    )
    assert not store.done(cell()) and store.read(cell().name) is None
    store.write(cell(), measured)
    again = store.read(cell().name)
    assert store.done(cell()) and again is not None
    assert again.at == measured.at and again.n == 3 and again.evaluations == 1.5 and again.seconds == 2.25
    assert again.estimates["accuracy"] == measured.estimates["accuracy"] and math.isnan(again.estimates["one"].low)
    assert again.samples == [tmp_path / "samples" / "a-0.png"]
    assert again.arrays.keys() == measured.arrays.keys()
    for name, of in measured.arrays.items():
        assert torch.equal(again.arrays[name].nan_to_num(7), of.nan_to_num(7)) and again.arrays[name].dtype == of.dtype


def test_the_facts_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that a cell that has them is whole, whenever this is stopped."""
    store, written = Cells(tmp_path), []
    monkeypatch.setattr("guidance.experiment.cells.write_atomically", lambda path, content: written.append(path.suffix))
    store.write(cell(), found({"scale": 2.0}, grey=torch.ones(3)))
    assert written == [".safetensors", ".json"]


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_what_is_cut_short_is_said(tmp_path: Path, suffix: str, kept: float):
    store, path = Cells(tmp_path), tmp_path / "cells" / f"{cell().name}.{suffix}"
    store.write(cell(), found({"scale": 2.0}, grey=torch.ones(3)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match="cut short") as said:
        store.read(cell().name)
    assert cell().name in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", "{}", f'{{"format": {FORMAT}}}', f'{{"format": {FORMAT}, "at": 1, "n": 2, "estimates": 3}}']
)
def test_what_is_no_cell_is_said(tmp_path: Path, content: str):
    store = Cells(tmp_path)
    store.write(cell(), found({"scale": 2.0}, grey=torch.ones(3)))
    (tmp_path / "cells" / f"{cell().name}.json").write_text(content)
    with pytest.raises(UserError, match=r"cut short|another version"):
        store.read(cell().name)


@pytest.mark.parametrize("version", [FORMAT + 1, None, "1"])
def test_another_format_is_refused_as_such(tmp_path: Path, version: Any):
    store, path = Cells(tmp_path), tmp_path / "cells" / f"{cell().name}.json"
    store.write(cell(), found({"scale": 2.0}, grey=torch.ones(3)))
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(UserError, match=rf"another version \(format {version}, this one reads {FORMAT}\).*overwrite=true"):
        store.read(cell().name)


def test_a_claim_is_one_process_s_until_it_ends(tmp_path: Path):
    one, two = Cells(tmp_path), Cells(tmp_path)
    with one.claim("a") as mine, two.claim("a") as theirs, two.claim("b") as other:
        assert (mine, theirs, other) == (True, False, True)
    with pytest.raises(RuntimeError, match="stop"), one.claim("a"):
        raise RuntimeError("stop")
    with two.claim("a") as theirs:
        assert theirs, "a claim ends however its work did"


# What is asked for


@pytest.mark.parametrize("n", [1, 5, 12])
def test_alone_names_the_classes_in_turn(n: int):
    assert alone(world(), n, "shade") == {"shade": [k % 3 for k in range(n)]}
    assert alone(world(), n, "shade", [2, 0]) == {"shade": [(2, 0)[k % 2] for k in range(n)]}
    assert given(world(), n, "shade", "alone") == alone(world(), n, "shade")
    assert named(world(), {"shade": [2, -1, 0]}) == {"shade": ["high", None, "low"]}


@pytest.mark.parametrize("n", [5, 15, 60, 90])
def test_given_train_asks_for_what_items_have_together(n: int):
    model = world(("side", "shade", "tone"))
    asked = given(model, n, "side", "train")
    assert list(asked) == ["side", "shade", "tone"] and all(len(of) == n for of in asked.values())
    # The toy's 60 items are the 12 combinations in turn. Of them 4 n are looked at, at random, and the first n of these asked for.
    rows = pick(60, min(60, 4 * n))
    chosen = [rows[k % len(rows)] for k in range(n)]
    assert asked == {"side": [k % 2 for k in chosen], "shade": [k // 2 % 3 for k in chosen], "tone": [k // 6 % 2 for k in chosen]}


def test_items_that_lack_one_of_the_attributes_are_not_asked_for():
    model = world()
    train = model.modality.data.train
    whole = train.__getitems__

    def partly(index: list[int]) -> Any:
        raw, condition = whole(index)
        condition.keep["shade"][condition.values["side"] == 0] = False
        return raw, condition

    train.__getitems__ = partly  # type: ignore[method-assign]
    asked = items(model, train, 10, ["side", "shade"])
    assert asked["side"] == [1] * 10
    with pytest.raises(UserError, match="no item has side and shade"):
        train.__getitems__ = lambda index: (whole(index)[0], whole(index)[1].drop("shade"))  # type: ignore[method-assign]
        items(model, train, 10, ["side", "shade"])
