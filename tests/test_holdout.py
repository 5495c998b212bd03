"""What is held out of training: against choosing items one by one, and against data that never had them."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from guidance import Condition, Label, UserError, Vector, checkpoint
from guidance.cli import run
from guidance.holdout import parse, without
from guidance.modality import Split
from modalities.image.codec import Pixels
from modalities.image.data import Digits, Folder
from modalities.text.data import Sentence, TextData
from modalities.text.tokenizer import Words

SPECS = {"digit": Label(tuple("0123456789")), "size": Vector(1), "stroke": Label(("thin", "bold")), "loud": Label(("true", "false"))}


def whole(split: Split) -> tuple[Any, Condition]:
    return split.__getitems__(list(range(len(split))))


class Items:
    """Items of any attributes, some absent: what stands there means nothing. They say how they were asked for."""

    def __init__(self, seed: int, n: int):
        draw = torch.Generator().manual_seed(seed)
        self.values = {"digit": torch.randint(3, (n,), generator=draw), "stroke": torch.randint(2, (n,), generator=draw)}
        self.keep = {name: torch.rand(n, generator=draw) < 0.7 for name in self.values}
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.values["digit"])

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Condition]:
        self.asked += index
        rows = torch.tensor(index)
        return rows * 10, Condition({n: v[rows] for n, v in self.values.items()}, {n: k[rows] for n, k in self.keep.items()})

    def are(self, row: int, combination: dict[str, int]) -> bool:
        return all(bool(self.keep[name][row]) and int(self.values[name][row]) == value for name, value in combination.items())


COMBINATIONS: list[list[dict[str, int]]] = [
    [{"digit": 1}],
    [{"digit": 1, "stroke": 0}],
    [{"digit": 0, "stroke": 0}, {"digit": 2, "stroke": 1}],
    [{"stroke": 1}, {"digit": 0, "stroke": 1}, {"stroke": 1}],  # one within another, and one twice
    [{"digit": 0}, {"digit": 1}],
]


@pytest.mark.parametrize("combinations", COMBINATIONS, ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 60, 512])
def test_exactly_the_items_of_a_combination_are_gone(combinations: list[dict[str, int]], chunk: int):
    items = Items(0, 60)
    left = [row for row in range(60) if not any(items.are(row, c) for c in combinations)]
    assert 0 < len(left) < 60
    split = without(items, combinations, chunk)
    assert items.asked == list(range(60)), "each looked at once"
    raw, condition = whole(split)
    assert len(split) == len(left) and raw.tolist() == [10 * row for row in left]
    assert bool(condition.same(Condition(items.values, items.keep).rows(torch.tensor(left))).all())
    some, of = split.__getitems__([len(left) - 1, 0, 0])
    assert some.tolist() == [10 * left[-1], 10 * left[0], 10 * left[0]] and of.values["digit"][1] == items.values["digit"][left[0]]


def test_without_combinations_a_split_is_itself():
    items = Items(0, 5)
    assert without(items, []) is items and items.asked == []


def test_combinations_of_which_there_is_nothing_or_beside_which_there_is_nothing():
    items = Items(0, 60)
    with pytest.raises(UserError, match=r"^holdout: there is no training item of combination 2 of 3$"):
        without(items, [{"digit": 1}, {"digit": 7}, {"digit": 8}])
    items.keep["digit"].fill_(True)
    with pytest.raises(UserError, match=r"^holdout leaves nothing to train on$"):
        without(items, [{"digit": 0}, {"digit": 1}, {"digit": 2}])


def test_combinations_are_read_as_conditions_are():
    assert parse([], SPECS) == []
    given: Any = [{"digit": 3, "stroke": "bold"}, {"digit": "3"}, {"loud": False}, {"digit": 3.0}]
    assert parse(given, SPECS) == [{"digit": 3, "stroke": 1}, {"digit": 3}, {"loud": 1}, {"digit": 3}]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "holdout is a list of combinations, e.g. .* got None"),
        ({"digit": 3}, "holdout is a list of combinations"),
        ("digit=3", "holdout is a list of combinations.*'digit=3'"),
        ([["digit", 3]], "holdout is a list of combinations"),
        ([{"digit": 3}, {}], "holdout is a list of combinations"),
        ([{"digti": 3}], r"'digti' \(did you mean 'digit'\?\); choose from: digit, stroke, loud"),
        ([{"size": 3}], "'size'.*choose from: digit, stroke, loud"),
        ([{"digit": 11}], "no class 11.*0, 1, 2"),
        ([{"digit": None}], "no class None"),
        ([{"digit": [3, 4]}], r"no class \[3, 4\]"),
    ],
    ids=str,
)
def test_what_is_no_combination_is_one_clear_line(given: Any, said: str):
    with pytest.raises(UserError, match=said) as error:
        parse(given, SPECS)
    assert "\n" not in str(error.value)


# Data sets


def test_digits_of_a_stroke_are_held_out():
    data = Digits()
    split = without(data.train, parse([{"digit": 3, "stroke": "bold"}, {"digit": 8}], data.conditions))
    pixels, condition = whole(data.train)
    digit, stroke = condition.values["digit"], condition.values["stroke"]
    left = [k for k in range(len(digit)) if int(digit[k]) != 8 and (int(digit[k]), int(stroke[k])) != (3, 2)]
    assert torch.equal(whole(split)[0], pixels[left]) and torch.equal(whole(split)[1].values["digit"], digit[left])
    counts = torch.bincount(whole(split)[1].values["digit"] * 3 + whole(split)[1].values["stroke"], minlength=30).tolist()
    assert [k for k, count in enumerate(counts) if not count] == [11, 24, 25, 26]


def pictures(root: Path, dogs: bool = True) -> Path:
    for name in ("cat", "dog", "hen"):
        (root / name).mkdir(parents=True)
        for k in range(6):
            if dogs or name != "dog":
                Image.new("L", (8, 8), 20 * k + len(name) + ord(name[0])).save(root / name / f"{k}.png")
    return root


def test_files_are_held_out(tmp_path: Path):
    data = Folder(str(pictures(tmp_path / "pets")), channels=1, attribute="pet")
    split = without(data.train, parse([{"pet": "dog"}], data.conditions), chunk=4)
    assert whole(split)[0][:, 0, 0, 0].tolist() == [20 * k + 3 + ord(name) for name in "ch" for k in (0, 1, 2, 3, 5)]
    assert whole(split)[1].values["pet"].tolist() == [0] * 5 + [2] * 5 and len(data.train) == 15


class Made(TextData):
    name = "made"

    def read(self) -> tuple[Sequence[Sentence], Sequence[Sentence]]:
        moods: list[dict[str, str]] = [
            {"mood": "glad", "tone": "loud"},
            {"mood": "glad"},
            {"tone": "loud"},
            {},
            {"mood": "sad", "tone": "loud"},
        ]
        return [Sentence(f"w{k} .", moods[k % 5]) for k in range(15)], []


def test_sentences_whose_attributes_are_absent_are_of_no_combination():
    data = Made(length=4, tokenizer=Words(least=1))

    def left(*combinations: dict[str, str]) -> list[int]:
        ids, _ = whole(without(data.train, parse(list(combinations), data.conditions), chunk=4))
        return [int(data.vocabulary.decode([k for k in row if k])[1:-1]) for row in ids.tolist()]

    everyone = range(15)
    assert left({"mood": "glad", "tone": "loud"}) == [k for k in everyone if k % 5 != 0]
    assert left({"mood": "glad"}) == [k for k in everyone if k % 5 > 1]
    assert left({"mood": "sad"}, {"tone": "loud", "mood": "glad"}) == [k for k in everyone if k % 5 not in (0, 4)]
    with pytest.raises(UserError, match=r"'infill'.*mood, tone"):
        left({"infill": "w1"})


# Training

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=4", "trainer.steps=3", "threads=1"]
PETS = ["data=image_folder", "data.channels=1", "data.attribute=pet"]
DOGS = "holdout=[{pet: dog}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run without dogs where there are some, and one where there are none."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["polyguide"])
        jaxtyping.config.update("jaxtyping_disable", True)
        pictures(folder / "pets")
        pictures(folder / "dogless", dogs=False)
        assert run(["train", *TINY, *PETS, "data.root=pets", DOGS, "out=held"]) == 0
        assert run(["train", *TINY, *PETS, "data.root=dogless", "out=never"]) == 0
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


def weights(out: str) -> dict[str, Tensor]:
    return load_file(checkpoint.latest(Path(out)) / "model.safetensors")


def test_training_without_a_combination_is_training_on_data_that_lacks_it(place: Path):
    held, never = weights("held"), weights("never")
    assert held.keys() == never.keys() and all(torch.equal(held[name], never[name]) for name in held)
    assert yaml.safe_load(Path("held/config.yaml").read_text())["holdout"] == [{"pet": "dog"}]
    assert yaml.safe_load(Path("never/config.yaml").read_text())["holdout"] == []


def test_training_with_all_is_another(place: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["train", *TINY, *PETS, "data.root=pets", "out=all"]) == 0
    assert "on 15 samples of pets" in capsys.readouterr().out
    held, everything = weights("held"), weights("all")
    assert any(not torch.equal(held[name], everything[name]) for name in held)


def test_a_resumed_run_still_holds_them_out(place: Path, capsys: pytest.CaptureFixture[str]):
    for out in ("held", "never"):
        shutil.copytree(out, f"{out}-on")
        assert run(["train", f"out={out}-on", "resume=true", "trainer.steps=6"]) == 0
    assert capsys.readouterr().out.count("on 10 samples of") == 2
    held, never, before = weights("held-on"), weights("never-on"), weights("held")
    assert all(torch.equal(held[name], never[name]) for name in held) and any(not torch.equal(held[name], before[name]) for name in held)
    assert run(["train", "out=held-on", "resume=true", "trainer.steps=7", "holdout=[{pet: cat}]"]) == 2
    assert "holdout cannot change when a run is resumed" in capsys.readouterr().err


def test_the_command_line_holds_out_digits(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    fitted: list[int] = []
    monkeypatch.setattr(Pixels, "fit", lambda self, split: fitted.append(len(split)))
    condition = whole(Digits().train)[1]
    gone = int(((condition.values["digit"] == 3) & (condition.values["stroke"] == 2)).sum())
    assert run(["train", *TINY, "trainer.steps=1", "holdout=[{digit: 3, stroke: bold}]", "out=digits"]) == 0
    assert f"on {1442 - gone:,} samples of digits" in capsys.readouterr().out and gone > 30
    assert fitted == [1442 - gone], "the codec sees no more than the network"
