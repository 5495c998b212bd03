"""Captions of images as a condition: read by a text encoder, asked for on the command line."""

import json
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from test_bridge_text import t5

import guidance
from guidance import CFG, UserError
from guidance.cli import run
from modalities.image.files import Folder

SHADES = {"a cat": 30, "the dog": 220, "a red house": 120}
"""Captions, and the grey of the images that they are of."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images, captions of all but the last of them, and a text encoder."""
    folder = tmp_path_factory.mktemp("captions")
    tokenizer, encoder = t5()
    encoder.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    (folder / "images").mkdir()
    lines, draw = [], np.random.default_rng(0)
    for k in range(30):
        text, shade = list(SHADES.items())[k % 3]
        Image.fromarray(draw.integers(shade - 20, shade + 20, (4, 4), dtype=np.uint8)).save(folder / "images" / f"{k:02}.png")
        lines.append(json.dumps({"file_name": f"{k:02}.png", "text": text}))
    (folder / "images" / "captions.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        jaxtyping.config.update("jaxtyping_disable", True)
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


DATA = ["data=image_folder", "data.root=images", "data.channels=1", "data.captions=captions.jsonl", "data.encoder=encoder", "data.tokens=6"]
SMALL = ["network.channels=8", "trainer.steps=400", "trainer.batch_size=16", "trainer.lr=3e-3", "trainer.average=0.98"]


def test_every_image_has_the_ids_of_its_caption(place: Path):
    data = Folder("images", channels=1, captions="captions.jsonl", encoder="encoder", tokens=6)
    tokenizer, _ = t5()
    for part, rows in ((data.train, [k for k in range(30) if k % 5 != 4]), (data.test, [4, 9, 14, 19, 24, 29])):
        _, condition = part.__getitems__(list(range(len(part))))
        texts = [list(SHADES)[k % 3] if k < 29 else "" for k in rows]
        expected = tokenizer(texts, padding="max_length", max_length=6, return_tensors="pt").input_ids
        assert torch.equal(condition.values["prompt"], expected)
        assert condition.keep["prompt"].tolist() == [k < 29 for k in rows], "the last image has no caption"


def test_prompts_are_followed_and_inverted(place: Path):
    assert run(["train", *DATA, *SMALL, "out=run"]) == 0
    model = guidance.load("run")
    shade = {text: model.sample(16, {"prompt": text}).float().mean().item() for text in SHADES}
    assert shade["a cat"] < shade["a red house"] < shade["the dog"]
    assert shade["a cat"] < 75 and shade["the dog"] > 165
    away = model.sample(16, {"prompt": "a cat"}, guidance=CFG(-1.0)).float().mean().item()
    assert away > shade["a red house"], "away from the dark is towards the light"


def test_prompts_are_given_and_composed_on_the_command_line(place: Path):
    if not Path("run").exists():
        assert run(["train", *DATA, *SMALL, "out=run"]) == 0
    terms = "guidance.terms=\"1*on(prompt='a cat')\""
    assert run(["sample", "run=run", "n=3", 'condition.prompt="a cat"', "out=asked"]) == 0
    assert run(["sample", "run=run", "n=3", "guidance=compose", terms, "out=composed"]) == 0
    for name in ("000000.png", "000002.png"):
        assert (place / "asked" / name).read_bytes() == (place / "composed" / name).read_bytes()
    line = json.loads((place / "asked" / "samples.jsonl").read_text().splitlines()[0])
    assert line["asked"] == {"prompt": "a cat"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"captions": "captions.jsonl"}, "data.captions needs data.encoder"),
        ({"encoder": "encoder"}, "data.encoder needs data.captions"),
        ({"captions": "gone.jsonl", "encoder": "encoder"}, "there is no file .*gone.jsonl"),
        ({"captions": "broken.jsonl", "encoder": "encoder"}, "broken.jsonl, line 2 is no JSON line"),
        ({"captions": "captions.jsonl", "encoder": "nowhere"}, "no text encoder in nowhere"),
    ],
)
def test_what_is_wrong_with_captions_is_said(place: Path, settings: dict[str, str], said: str):
    (place / "images" / "broken.jsonl").write_text('{"file_name": "00.png", "text": "a cat"}\n{"file_name": "01.png"}\n')
    with pytest.raises(UserError, match=said):
        Folder("images", channels=1, **settings).train.__getitems__([0])
