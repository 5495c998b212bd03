"""Bad input of every kind gets one clear line: small versions of tests/faults/fuzz_*.py, and what those found once."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from guidance import UserError
from guidance.bar import end
from guidance.commands.training import resumed
from guidance.condition import ByName, Condition, ConditionEmbedding, Label
from guidance.config import build
from guidance.experiment.cells import Cells
from guidance.experiment.conduct import busy
from guidance.hydra import check_argument, check_options, options_last
from modalities.audio.data import Folder as Sounds
from modalities.image.files import Folder, read_captions

sys.path.insert(0, str(Path(__file__).parent / "faults"))

import fuzz_commands
import fuzz_configs
import fuzz_files
from fuzz_tools import command, prepare, surroundings

sys.path.pop(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny run of each kind."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch, surroundings(folder):
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        prepare(("image", "text"))
        Path("file.txt").write_text("mine")
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


def some(every: int, first: int = 0) -> Callable[[list[Any]], list[Any]]:
    return lambda cases: cases[first::every]


@pytest.mark.parametrize(("kind", "every"), [("image", 37), ("text", 83)])
def test_configs_of_runs(place: Path, kind: str, every: int):
    chosen = some(every, 5)
    counts, wrong = fuzz_configs.runs(kind, lambda cases: [*chosen(cases), *(case for case in cases if str(case) == "sampler='x'")])
    assert not wrong and counts["refused"] > 2 and counts["same samples"] > 2, (counts, wrong)


def test_settings_of_trainings(place: Path):
    counts, wrong = fuzz_configs.trainings("image", some(53, 7))
    assert not wrong and counts["refused"] > 5, (counts, wrong)


def test_command_lines(place: Path):
    counts, wrong = fuzz_commands.fuzz(30)
    assert not wrong and counts["status 2"] > 8, (counts, wrong)


@pytest.mark.parametrize("kind", list(fuzz_files.GOOD))
def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None, kind: str):
    monkeypatch.chdir(tmp_path)
    counts, wrong = fuzz_files.fuzz(kind, 40)
    assert not wrong and counts["refused"] > 5 and counts["read"] > 1, (counts, wrong)


# What was found


@pytest.mark.parametrize("name", ["type", "keys", "values", "items", "train", "forward", "training", "pop", "_modules", "digit"])
def test_attributes_of_any_name(name: str):
    """Embedded as one of another name is, stored under its own, and read from what nn.ModuleDict stored."""
    torch.manual_seed(0)
    odd = ConditionEmbedding({name: Label(("a", "b"))}, 4)
    torch.manual_seed(0)
    plain = ConditionEmbedding({"plain": Label(("a", "b"))}, 4)
    labels = torch.tensor([0, 1, 1])
    assert torch.equal(odd(Condition.of(**{name: labels})), plain(Condition.of(plain=labels)))
    assert list(odd.state_dict()) == [f"attributes.{name}.null", f"attributes.{name}.embed.weight"]
    before = torch.nn.ModuleDict({"digit": torch.nn.Linear(2, 3)})
    now = ByName({"digit": torch.nn.Linear(2, 3)})
    now.load_state_dict(before.state_dict())
    assert torch.equal(now["digit"].weight, before["digit"].weight) and list(now) == ["digit"]
    assert odd.train().training and not odd.eval().training and len(list(odd.parameters())) == 2


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_upright(tmp_path: Path, turn: int, unchecked: None):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = Folder(str(tmp_path)).train.__getitems__([0])[0][0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))))
    assert found.shape[:2] == ((4, 6) if turn < 5 else (6, 4))


def test_a_picture_that_would_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb.png is not a readable image .*decompression bomb"):
        _ = Folder(str(tmp_path)).train


def test_captions_in_another_encoding(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes('{"file_name": "a.png", "text": "é"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"a.jsonl is not UTF-8 \(byte 32: 0xe9\)"):
        read_captions(tmp_path / "a.jsonl")


def test_sounds_without_a_folder():
    with pytest.raises(UserError, match=r"data\.root is missing"):
        Sounds()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("x", "schedule is made by what its _target_ names"),
        ({"logsnr_min": -20.0}, "schedule is made by what its _target_ names"),
        ({"_target_": "guidance.schedule.Cosine", "logsnr_min": {}}, "schedule.logsnr_min is a number, got {}"),
        ({"_target_": "guidance.loss.Loss", "weighting": "x"}, "schedule.weighting is made by what its _target_ names, got 'x'"),
    ],
    ids=str,
)
def test_parts_that_are_not_made(config: Any, words: str):
    with pytest.raises(UserError) as error:
        build(config, "schedule")
    assert words in str(error.value)


def test_what_is_completed_later_says_its_own_name():
    later = build({"_target_": "guidance.schedule.Cosine", "_partial_": True}, "schedule")
    with pytest.raises(UserError, match=r"^schedule: guidance\.schedule\.Cosine refuses its settings: .*'colour'"):
        later(colour=1)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("holdout={digit:3}", "holdout is a list of combinations, e.g. holdout='[{digit: 3, stroke: bold}]', got holdout={digit:3}"),
        ("loss=3", "loss=3 chooses nothing"),
        ("loss=[]", "loss=[] chooses nothing"),
        ("~seed", "seed cannot be left out"),
    ],
)
def test_settings_that_choose_nothing(argument: str, words: str):
    with pytest.raises(UserError) as error:
        check_argument(argument)
    assert words in str(error.value)


def test_options_stand_anywhere():
    check_options(["a=1", "--cfg", "job", "b=2"])
    assert options_last(["a=1", "--cfg", "job", "b=2", "-m"]) == ["a=1", "b=2", "--cfg", "job", "-m"]
    with pytest.raises(UserError, match="--cfg takes a value: job, hydra, all"):
        check_options(["a=1", "--cfg"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "modality=text", "data=digits", "out=new"],
            "data=digits is for modality=image; data for modality=text are: e2e, text_file",
        ),
        (["evaluate", "run=image", "guidance.scale=3", "scales=[1]"], "guidance.scale is what scales=[1] varies"),
        (["train", "schedule=null", "out=new"], "schedule=null: a choice is a name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_known_ones(place: Path, arguments: list[str], words: str):
    answer = command(*arguments)
    assert answer.wrong() is None and answer.code == 2 and words in answer.said


def test_what_a_run_was_begun_with_may_be_said_again():
    """network.pretrained is stored as the architecture that it has; any other value of it is another run."""
    stored = {"network": {"pretrained": None}, "trainer": {"steps": 3}}
    given = {"network": {"pretrained": "folder"}, "trainer": {"steps": 5}}
    begun = ["polyguide train network.pretrained=folder out=x"]
    assert resumed(given, stored, ["network.pretrained=folder", "trainer.steps=5"], begun) == {**stored, "trainer": {"steps": 5}}
    for commands in ([], ["polyguide train network.pretrained=other"], ["polyguide train 'network.pretrained=folder"]):
        with pytest.raises(UserError, match=r"network\.pretrained cannot change"):
            resumed(given, stored, ["network.pretrained=folder"], commands)


def test_a_bar_is_taken_away_before_what_is_said_next():
    from tqdm import tqdm

    screen = io.StringIO()
    bar = tqdm(total=3, file=screen, leave=False)
    bar.update()
    end()
    screen.write("polyguide: wrong\n")
    shown = screen.getvalue().rsplit("\r", 1)
    assert "0/3" in shown[0] and shown[1] == "polyguide: wrong\n"


def test_whoever_measures_is_seen(tmp_path: Path):
    store = Cells(tmp_path)
    assert not busy(store)
    with store.claim("worker-somewhere-1"):
        assert busy(Cells(tmp_path))
    assert not busy(store)
