"""The command line with sentences, from end to end, against the same in Python; what cannot be used is said in one line."""

import csv
import html
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import tokenizers
import torch
import yaml
from runs import snapshot, unsealed
from tokenizers import models, pre_tokenizers
from torch import Tensor

import guidance
from guidance import CFG, UserError, checkpoint
from guidance.cli import run
from guidance.evaluate import cases
from guidance.judge import TrainedJudge, train_judge
from guidance.sampler import DDIM, DDPM, DPMSolver
from modalities.text.infill import Infill
from modalities.text.language import train_language_model

# A network that takes milliseconds, at a rate at which a few steps are enough for conditions to matter.
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "layer_types": "[full_attention]"}
TINY = ["modality=text", *(f"network.encoder.{name}={value}" for name, value in ENCODER.items()), "modality.codec.width=8", "threads=1"]
TINY += ["trainer.batch_size=4", "trainer.steps=3", "trainer.precision='no'", "trainer.lr=0.03", "trainer.warmup=0", "trainer.average=0"]
TINY += ["trainer.decay=constant"]  # a resumed run goes on as one that never stopped
ANIMALS = ["data=text_file", "data.path=animals.csv", "data.attributes=[colour,animal]", "data.length=8", "tokenizer=words"]
COLOURS, KINDS, DOES = ("blue", "green", "red"), ("cat", "dog"), ("sleeps", "runs away", "sings here today")


def animals(path: Path, n: int = 40, seed: int = 0) -> None:
    """Sentences of 5 to 7 tokens; every seventh has no colour."""
    draw = random.Random(seed)
    lines = ["text,colour,animal"]
    for k in range(n):
        colour, kind, does = draw.choice(COLOURS), draw.choice(KINDS), draw.choice(DOES)
        lines.append(f"The {colour} {kind} {does}.,{'' if k % 7 == 0 else colour},{kind}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with sentences, a run with attributes and one without, and samples."""
    folder = tmp_path_factory.mktemp("place")

    def few(*given: Any, **settings: Any) -> TrainedJudge:
        return train_judge(*given, **(settings | {"steps": 3, "batch": 8}))

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("POLYGUIDE_DATA", raising=False)
        patch.setattr("modalities.text.metrics.train_judge", few)
        patch.setattr(
            "modalities.text.metrics.train_language_model",
            lambda data, cache, epochs, layers: train_language_model(data, cache, 1, batch=16),
        )
        # Hydra composes a config twice, the first time to see whether it says hydra.mode=MULTIRUN. None of these does.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        animals(folder / "animals.csv")
        lines = (folder / "animals.csv").read_text().splitlines()[1:]
        (folder / "plain.txt").write_text("".join(line.split(",")[0] + "\n" for line in lines))
        assert run(["train", *TINY, *ANIMALS, "out=run", "trainer.save_every=1"]) == 0
        assert run(["train", *TINY, "data=text_file", "data.path=plain.txt", "data.length=8", "tokenizer=words", "out=plain"]) == 0
        assert run(["sample", "run=run", "out=held", "n=2", "sampler.steps=1", "judge=false"]) == 0
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def out(place: Path) -> Iterator[Path]:
    yield place / "out"
    shutil.rmtree(place / "out", ignore_errors=True)


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which has to be refused, and gives the line."""

    def command(*arguments: str) -> str:
        before = snapshot(place)
        capsys.readouterr()
        code = run(list(arguments))
        said = capsys.readouterr()
        assert code == 2 and said.out == ""
        assert said.err.startswith("polyguide: ") and said.err.endswith("\n") and said.err.count("\n") == 1, said.err
        assert snapshot(place) == before, "nothing is written, overwritten or removed"
        return said.err

    return command


def sample(name: str, *more: str, judge: str = "false") -> list[dict[str, Any]]:
    """What is written of each sample."""
    assert run(["sample", f"run={name}", "out=out", "sampler.steps=3", f"judge={judge}", "overwrite=true", *more]) == 0
    return [json.loads(line) for line in Path("out/samples.jsonl").read_text(encoding="utf-8").splitlines()]


def texts(lines: list[dict[str, Any]]) -> list[str]:
    return [line["text"] for line in lines]


# Samples


def test_samples_are_sentences_of_the_same_call_in_python(place: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    lines = sample("run", "n=5", "condition.colour=[red,blue,red,green,null]", "condition.animal=cat", "guidance.scale=2.5", "seed=7")
    printed = capsys.readouterr().out.splitlines()
    model, colours = guidance.load("run"), ["red", "blue", "red", "green", None]
    made = model.sample(5, {"colour": colours, "animal": "cat"}, guidance=CFG(2.5), steps=3, seed=7)
    assert texts(lines) == made and printed[:5] == [text.strip() for text in made]
    assert lines == [
        {"file": f"{k:06d}.txt", "asked": {"colour": colour, "animal": "cat"}, "text": text}
        for k, (colour, text) in enumerate(zip(colours, made, strict=True))
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{k:06d}.txt" for k in range(5)),
        *("grid.txt", "index.html", "samples.json", "samples.jsonl"),
    ]
    assert [(out / line["file"]).read_text(encoding="utf-8") for line in lines] == [f"{text}\n" for text in made]
    assert (out / "grid.txt").read_text(encoding="utf-8") == "\n".join(text.strip() for text in made) + "\n"
    assert json.loads((out / "samples.json").read_text())["network_evaluations_per_sample_and_step"] == 2
    condition = {"colour": colours, "animal": "cat"}
    guided, plain = (torch.cat(list(model.latents(5, condition, guidance=CFG(scale), steps=3, seed=7))) for scale in (2.5, 1.0))
    assert bool(((guided - plain).flatten(1).abs().amax(1) > 1e-3).all()), "guidance matters"


def test_a_page_shows_every_sentence_with_what_it_was_asked_for(place: Path, out: Path):
    lines = sample("run", "n=3", "condition.colour=[red,null,blue]", "batch_size=2", "animate=true")
    page = (out / "index.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure>(.*?)<figcaption>(.*?)</figcaption></figure>", page)
    assert figures == [
        (f"<blockquote>{html.escape(line['text'])}</blockquote>", f"colour={colour}")
        for line, colour in zip(lines, ("red", None, "blue"), strict=True)
    ]
    model, frames = guidance.load("run"), []
    model.sample(2, {"colour": ["red", None]}, steps=3, callbacks=[lambda progress: frames.append(progress.prediction.x0.clone())])
    states = zip(*(model.modality.codec.decode(frame) for frame in frames), strict=True)
    expected = "\n\n".join("\n".join(of) for of in states) + "\n"
    assert (out / "denoising.txt").read_text(encoding="utf-8") == expected, "of the first batch, a paragraph a sample, a line a step"


def test_many_sentences_are_not_all_printed(place: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    lines = sample("run", "n=70", "batch_size=32", "sampler.steps=1")
    printed = capsys.readouterr().out.splitlines()
    assert printed[:64] == [text.strip() for text in texts(lines)[:64]] and printed[64] == "... and 6 more" and len(printed) == 66
    assert texts(lines) == guidance.load("run").sample(70, steps=1)


def test_judges_say_what_they_see(place: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    model = guidance.load("run")
    made = model.sample(3, {"animal": "dog"}, steps=3)
    for wanted in ("null", "true"):
        shutil.rmtree("cache", ignore_errors=True)  # judges are trained here
        lines = sample("run", "n=3", "condition.animal=dog", "batch_size=2", judge=wanted)
        assert texts(lines) == made
        printed = capsys.readouterr().out.splitlines()
        seen = {}
        for name in ("colour", "animal"):
            best = model.modality.metrics.judge(model.modality.data, name)(made)[1].softmax(1).max(1)
            classes = model.modality.conditions[name].classes
            seen[name] = [[classes[k], round(p, 4)] for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        for k, line in enumerate(lines):
            assert {name: pair[0] for name, pair in line["seen"].items()} == {name: of[k][0] for name, of in seen.items()}
            assert all(line["seen"][name][1] == pytest.approx(of[k][1], abs=2e-4) for name, of in seen.items())
            told = ", ".join(f"{label} {p:.2f}" for label, p in line["seen"].values())
            assert printed[k] == f"{told}\t{line['text']}".strip()
    assert "seen" not in sample("run", "n=1", judge="false")[0]


def test_sentences_without_attributes(place: Path, out: Path):
    model = guidance.load("plain")
    assert list(model.modality.conditions) == ["infill"]
    lines = sample("plain", "n=4", "seed=3")
    assert texts(lines) == model.sample(4, steps=3, seed=3) and [line["asked"] for line in lines] == [{}] * 4
    words = set(Path("plain.txt").read_text().replace(".", " .").split())
    assert {word for text in texts(lines) for word in text.replace(".", " .").split()} <= words | {"⁇"}


def test_sentences_are_files_or_lines_alone(place: Path, out: Path, refused: Callable[..., str]):
    given = ["n=2", "condition.animal=cat"]
    plain = sample("run", *given)
    assert sample("run", *given, "format=txt") == plain and [line["file"] for line in plain] == ["000000.txt", "000001.txt"]
    alone = sample("run", *given, "format=jsonl")
    assert alone == [{key: value for key, value in line.items() if key != "file"} for line in plain]
    assert sorted(path.name for path in out.iterdir()) == ["grid.txt", "samples.json", "samples.jsonl"]
    said = refused("sample", "run=run", "out=held", "overwrite=true", "n=2", "sampler.steps=1", "format=wav")
    assert said == "polyguide: there is no format 'wav'; choose from: txt, jsonl\n"


# Given words


def tokens(model: guidance.Model, x0: Tensor) -> list[list[int]]:
    found: list[list[int]] = model.modality.codec.tokens(x0).tolist()
    return found


SAMPLERS = {"ddpm": DDPM(), "ddim": DDIM(), "dpm": DPMSolver()}
GIVEN = "The _ cat __ today."


@pytest.mark.parametrize("scale", [-1.0, 1.0, 3.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_given_words_are_in_every_sample_at_their_places(place: Path, out: Path, name: str, scale: float):
    model = guidance.load("run")
    words, places = ["The", " cat", " today", "."], [0, 2, 5, 6]
    expected = [model.modality.data.vocabulary.index[word if k else f" {word}"] for k, word in enumerate(words)]
    condition = {"infill": GIVEN, "animal": "dog"}
    settings = {"guidance": CFG(scale), "sampler": SAMPLERS[name], "steps": 2, "seed": 5}
    x0 = torch.cat(list(model.latents(6, condition, **settings)))
    for row in tokens(model, x0):
        assert [row[k] for k in places] == expected and row[7:] == [0], "and nothing follows the sentence"
    given = [f"condition.infill='{GIVEN}'", "condition.animal=dog", f"guidance.scale={scale}", f"sampler={name}", "sampler.steps=2"]
    lines = sample("run", "n=6", "seed=5", *given)
    assert texts(lines) == model.sample(6, condition, **settings) and lines[0]["asked"] == {"infill": GIVEN, "animal": "dog"}
    free = torch.cat(list(model.latents(6, {"animal": "dog"}, **settings)))
    assert not all([row[k] for k in places] == expected for row in tokens(model, free)), "without, they are not"


def test_given_words_are_read_whatever_is_written_between_them(place: Path, out: Path):
    """A blank of which the model makes padding does not end a sentence whose end is given."""
    for seed in range(3):
        for text in texts(sample("run", "n=20", f"seed={seed}", f"condition.infill='{GIVEN}'", "sampler.steps=2")):
            assert re.fullmatch(r"The\b.* cat\b.* today\.", text), text


def test_a_sentence_may_be_left_open(place: Path, out: Path):
    model = guidance.load("run")
    x0 = torch.cat(list(model.latents(8, {"infill": "The red..."}, steps=2)))
    start = model.modality.data.vocabulary.encode("The red")
    rows = tokens(model, x0)
    assert all(row[:2] == start for row in rows) and len({tuple(row) for row in rows}) > 4
    assert all(text.startswith("The red") for text in texts(sample("run", "n=8", "condition.infill='The red...'", "sampler.steps=2")))


def test_each_sample_may_be_given_words_of_its_own(place: Path, out: Path):
    model, listed = guidance.load("run"), ["The _ cat sleeps.", None, "... "]
    x0 = torch.cat(list(model.latents(3, {"infill": listed}, steps=2, batch_size=2)))
    first, free, _ = tokens(model, x0)
    sentence = model.modality.data.vocabulary.encode("The red cat sleeps.")
    assert [k for place, k in enumerate(first) if place != 1] == [k for place, k in enumerate([*sentence, 0, 0, 0]) if place != 1]
    alone = torch.cat(list(model.latents(3, steps=2)))
    assert free == tokens(model, alone)[1]
    lines = sample("run", "n=3", "condition.infill=['The _ cat sleeps.',null,'...']", "sampler.steps=2", "batch_size=2")
    assert texts(lines) == model.sample(3, {"infill": listed}, steps=2) and [line["asked"]["infill"] for line in lines] == [
        "The _ cat sleeps.",
        None,
        "...",
    ]


def test_compositions_keep_what_they_ask_for_and_not_what_they_turn_from(place: Path, out: Path):
    model = guidance.load("run")
    start = model.modality.data.vocabulary.encode("The red cat sings")
    for weight, kept in ((2, True), (-2, False)):
        terms = f"{weight}*on(infill='The red cat sings...') + on(animal='dog')"
        lines = sample("run", "n=6", "guidance=compose", f'guidance.terms="{terms}"', "sampler.steps=2")
        on = guidance.on
        composed = weight * on(infill="The red cat sings...") + on(animal="dog")
        settings = {"guidance": composed, "steps": 2}
        assert texts(lines) == model.sample(6, **settings)
        rows = tokens(model, torch.cat(list(model.latents(6, **settings))))
        assert all(row[: len(start)] == start for row in rows) == kept


# Runs


def test_a_run_keeps_its_vocabulary_and_may_be_moved(place: Path, out: Path):
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["data"]["tokenizer"]["file"] == "run:words.json"
    assert config["data"]["classes"] == {"colour": list(COLOURS), "animal": list(KINDS)}
    before = texts(sample("run", "n=4", "condition.colour=red"))
    shutil.copytree("run", "elsewhere/deep/run")
    Path("animals.csv").rename("gone.csv")
    try:
        assert texts(sample("elsewhere/deep/run", "n=4", "condition.colour=red")) == before
        assert texts(sample("run", "n=4", "condition.colour=red")) == before, "no data is read"
    finally:
        Path("gone.csv").rename("animals.csv")
    assert guidance.load("elsewhere/deep/run").sample(4, {"colour": "red"}, steps=3) == before


def test_samples_are_written_where_there_is_no_data_to_judge_them_by(place: Path, out: Path, capsys: pytest.CaptureFixture[str]):
    Path("animals.csv").rename("gone.csv")
    try:
        assert len(sample("run", "n=2", judge="null")) == 2
        assert "no judge's view of the samples: data.path=animals.csv cannot be read: No such file" in capsys.readouterr().out
    finally:
        Path("gone.csv").rename("animals.csv")


def test_asking_for_judges_that_cannot_be_made_leaves_everything(place: Path, refused: Callable[..., str]):
    Path("animals.csv").rename("gone.csv")
    try:
        said = refused("sample", "run=run", "out=held", "overwrite=true", "n=2", "sampler.steps=1", "judge=true")
    finally:
        Path("gone.csv").rename("animals.csv")
    assert "animals.csv cannot be read" in said


def weights(run: str) -> bytes:
    return (checkpoint.latest(Path(run)) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("tokenizer", ["words", "sentencepiece"])
def test_resuming_is_the_same_as_never_having_stopped(place: Path, tokenizer: str):
    animals(place / "growing.csv")
    settings = [*TINY, *ANIMALS, "data.path=growing.csv", f"tokenizer={tokenizer}", "network=text_small", "data.length=40"]
    if tokenizer == "sentencepiece":
        settings += ["data.tokenizer.size=40"]
    for name, steps in ((f"whole_{tokenizer}", 5), (f"parts_{tokenizer}", 2)):
        assert run(["train", *settings, f"trainer.steps={steps}", f"out={name}", "overwrite=true"]) == 0
    kept = {
        path.name: path.read_bytes() for path in Path(f"parts_{tokenizer}").iterdir() if path.suffix in (".yaml", ".json", ".model", ".png")
    }
    assert run(["train", *settings, "trainer.steps=5", f"out=parts_{tokenizer}", "resume=true"]) == 0
    assert weights(f"parts_{tokenizer}") == weights(f"whole_{tokenizer}")
    for name, content in kept.items():
        if name not in ("config.yaml", "checksums.json"):  # trainer.steps, and the checksum of the file where it is
            assert Path(f"parts_{tokenizer}", name).read_bytes() == content, name
    stored, whole = (yaml.safe_load(Path(f"{part}_{tokenizer}/config.yaml").read_text()) for part in ("parts", "whole"))
    assert stored == whole
    sums = [json.loads(Path(f"{part}_{tokenizer}/checksums.json").read_text()) for part in ("parts", "whole")]
    assert sums[0] == sums[1]


def test_resuming_keeps_the_vocabulary_of_data_that_grew(place: Path):
    animals(place / "growing.csv")
    settings = [*TINY, *ANIMALS, "data.path=growing.csv"]
    assert run(["train", *settings, "out=grown", "overwrite=true"]) == 0
    words = Path("grown/words.json").read_bytes()
    with open("growing.csv", "a") as file:
        file.write("The aardvark is here.,blue,cat\n" * 9)
    assert run(["train", *settings, "out=grown", "resume=true", "trainer.steps=5"]) == 0
    assert Path("grown/words.json").read_bytes() == words


def test_a_tokenizer_from_a_file_and_one_of_hugging_faces(place: Path, out: Path):
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "The": 3, "red": 2, "cat": 7, "sleeps": 5}, unk_token="[UNK]"))  # type: ignore[arg-type]
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.save("theirs.json")
    settings = [*TINY, *ANIMALS]
    assert run(["train", *settings, "tokenizer=huggingface", "data.tokenizer.name=theirs.json", "out=theirs", "overwrite=true"]) == 0
    Path("theirs.json").unlink()
    lines = sample("theirs", "n=4", "condition.infill='The red _ sleeps ...'", "sampler.steps=2")
    model = guidance.load("theirs")
    x0 = torch.cat(list(model.latents(4, {"infill": "The red _ sleeps ..."}, steps=2)))
    assert all((row[0], row[1], row[3]) == (5, 4, 7) for row in tokens(model, x0)), "two further than theirs"
    assert all(text.startswith("The red") for text in texts(lines))
    assert run(["train", *settings, "data.tokenizer.file=run/words.json", "out=again", "overwrite=true"]) == 0
    assert Path("again/words.json").read_bytes() == Path("run/words.json").read_bytes() and weights("again") == weights("run")


def test_every_step_of_training_shows_parts_of_its_sentences(place: Path, monkeypatch: pytest.MonkeyPatch):
    plain, drawn = Infill.reveal, []

    def reveal(spec: Infill, values: Tensor, keep: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(u)
        assert values.shape == (4, 8) and bool((values >= 0).all())
        return plain(spec, values, keep, u)

    monkeypatch.setattr(Infill, "reveal", reveal)
    assert run(["train", *TINY, *ANIMALS, "data.spans=3", "out=shown", "overwrite=true"]) == 0
    u = torch.stack(drawn)
    assert u.shape == (3, 4, 4) and len(u.unique()) == u.numel() and u.min() >= 0 and u.max() < 1, "other parts in every step"


def test_unknown_words_and_long_sentences_are_counted_in_one_line_a_split(place: Path, capsys: pytest.CaptureFixture[str]):
    lines = ["a b c"] * 8 + ["a x b", "a b c d e f"]
    Path("odd.txt").write_text("\n".join(lines) + "\n")
    settings = [
        "data=text_file",
        "data.path=odd.txt",
        "data.length=4",
        "tokenizer=words",
        "data.tokenizer.least=2",
        "out=odd",
        "overwrite=true",
    ]
    capsys.readouterr()
    assert run(["train", *TINY, *settings]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("polyguide: ")]
    # the fifth and the tenth are held out
    assert said == [
        "polyguide: text_file: 0 of 8 training sentences are longer than 4 tokens and left out; 1 of 24 tokens are unknown",
        "polyguide: text_file: 1 of 2 held-out sentences are longer than 4 tokens and left out; 0 of 3 tokens are unknown",
    ]


def test_previews_are_text(place: Path):
    assert run(["train", *TINY, *ANIMALS, "trainer.sample_every=2", "out=previewed", "overwrite=true"]) == 0
    paragraphs = Path("previewed/previews/step-00000002.txt").read_text().rstrip("\n").split("\n\n")
    assert [part.splitlines()[0] for part in paragraphs] == ["1", "3", "real"]
    for part in paragraphs:
        assert [line.split()[0] for line in part.splitlines()[1:]] == list(COLOURS)
    model = guidance.load("previewed")
    held_out = {model.modality.data.vocabulary.decode([k for k in ids if k]) for ids in model.modality.data.test.ids.tolist()}
    known = dict(line.split(",")[:2] for line in Path("animals.csv").read_text().splitlines()[1:])
    for line in paragraphs[2].splitlines()[1:]:
        colour, text = line.split(maxsplit=1)
        assert text in held_out and known[text] == colour
    assert weights("previewed") == weights("run")
    first = Path("animals.csv").read_text().splitlines()[1].split(",")[0]
    forward = Path("run/forward.txt").read_text().split("\n\n")
    assert len(forward) == 4 and re.fullmatch(rf"data +{re.escape(first)}", forward[0].splitlines()[0]), "before noise"


# Measures


def measured() -> tuple[dict[str, str], dict[str, str]]:
    real, row = csv.DictReader(Path("out/metrics.csv").read_text().splitlines())
    return real, row


def evaluated(*more: str) -> tuple[dict[str, str], dict[str, str]]:
    settings = ["n=4", "scales=[2]", "sampler.steps=2", "out=out", "overwrite=true"]
    assert run(["evaluate", "run=run", *settings, *more]) == 0
    return measured()


@pytest.mark.parametrize("given", ["alone", "test"])
def test_sentences_are_measured(place: Path, out: Path, given: str):
    real, row = evaluated(f"given={given}", "attribute=animal")
    model = guidance.load("run")
    of = cases(model, 4, "animal", given)
    made = model.sample(4, of.condition, guidance=CFG(2.0), steps=2)
    metrics, data = model.modality.metrics, model.modality.data
    hits = metrics.judge(data, "animal")(made)[1].argmax(1) == of.label
    assert float(row["accuracy"]) == pytest.approx(hits.float().mean().item(), abs=1e-4)
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) for text in made]
    assert float(row["length"]) == pytest.approx(sum(lengths) / 4, rel=1e-4)
    assert float(row["nll"]) == pytest.approx(metrics.nll(made).mean().item(), rel=1e-3)
    sentences = [line.split(",")[0] for line in Path("animals.csv").read_text().splitlines()[1:]]
    trained = {data.vocabulary.decode([k for k in ids if k]) for ids in data.train.ids.tolist()}
    assert trained <= set(sentences) and float(row["copied"]) == pytest.approx(sum(text in trained for text in made) / 4)
    tested = [data.vocabulary.decode([k for k in ids if k]) for ids in data.test.ids.tolist()]
    assert float(real["length"]) == pytest.approx(sum(len(text.replace(".", " .").split()) for text in tested) / len(tested), rel=1e-4)
    assert real["n"] == str(len(tested)) and {"distinct_2", "entropy", "repetition"} <= set(row)
    assert (out / "table.txt").is_file() and (out / "curves.png").is_file()


def test_sentences_without_attributes_are_measured(place: Path, out: Path):
    assert run(["evaluate", "run=plain", "n=4", "scales=[1]", "sampler.steps=2", "out=out", "given=test"]) == 0
    real, row = measured()
    made = guidance.load("plain").sample(4, cases(guidance.load("plain"), 4, None, "test").condition, steps=2)
    assert float(row["nll"]) == pytest.approx(guidance.load("plain").modality.metrics.nll(made).mean().item(), rel=1e-3)
    assert "accuracy" not in real and float(real["copied"]) <= 1


# What cannot be used


def refusals(*rows: tuple[str | list[str], ...]) -> Any:
    """(settings, what the line has to contain, ...)"""
    split = [(row[0].split() if isinstance(row[0], str) else row[0], row[1:]) for row in rows]
    return pytest.mark.parametrize(("settings", "words"), split, ids=[str(row[0])[:60] for row in rows])


@refusals(
    ("condition.colour=pink", "condition.colour", "'pink'", "blue, green, red"),
    ("condition.colour=rde", "'rde'", "did you mean 'red'?", "blue, green, red"),
    ("condition.colour=[red,pink]", "condition.colour", "'pink'", "blue, green, red"),
    ("condition.colour=[red]", "condition.colour", "n=2", "1 values"),
    ("condition.color=red", "'color'", "did you mean 'colour'?", "colour, animal, infill"),
    ("condition.text=red", "'text'", "colour, animal, infill"),
    (["condition.infill='The red cat'"], "condition.infill", "nothing to fill in", "underscore", "'The red cat'"),
    (["condition.infill='The zebra _'"], "condition.infill", "does not know 'zebra'"),
    (["condition.infill='The _ _ _ _ _ _ _ _'"], "condition.infill", "has 9 tokens", "at most 8"),
    (["condition.infill=['The _','a _ zebra']"], "condition.infill", "'zebra'"),
    (["condition.infill=['The _']"], "condition.infill", "n=2", "1 values"),
    ("condition.infill=3", "condition.infill", "is a text such as", "3"),
    ("judge=maybe", "judge is true, false or null", "'maybe'"),
    ("model.data.tokenizer.file=nowhere.json", "nowhere.json cannot be read"),
    ("model.data.tokenizer.file=animals.csv", "animals.csv does not fit the model", "SHA-256"),
    ("model.parameterization.temperature=0", "parameterization.temperature", "0"),
)
def test_samples(refused: Callable[..., str], settings: list[str], words: tuple[str, ...]):
    said = refused("sample", "run=run", "out=held", "overwrite=true", "n=2", "sampler.steps=1", *settings)
    assert all(word in said for word in words), said


@pytest.fixture(scope="module")
def files(place: Path) -> None:
    """Files that cannot be used."""
    Path("latin.csv").write_bytes("text,colour\nGröße,red\n".encode("latin-1"))
    Path("empty.csv").touch()
    Path("header.csv").write_text("text,colour,animal\n")
    Path("none.csv").write_text("text,colour,animal\nhello,,\n")
    Path("broken.jsonl").write_text('{"text": "a", "colour": "b"}\n{"text"\n')
    Path("table.json").write_text("{}")
    Path("folder").mkdir()
    with open("long.txt", "wb") as file:
        file.truncate(2 * 10**6)


@refusals(
    ("data.path=nowhere.csv", "data.path=nowhere.csv cannot be read", "No such file"),
    ("data.path=folder", "folder cannot be read", "Is a directory"),
    ("data.path=latin.csv", "latin.csv is not utf-8 (byte 14: 0xf6)", "data.encoding="),
    ("data.encoding=utf-16", "animals.csv is not utf-16", "data.encoding="),
    ("data.encoding=utf-99", "data.encoding=utf-99 is unknown", "latin-1"),
    ("data.path=empty.csv", "empty.csv is empty"),
    ("data.path=header.csv", "header.csv holds no sentence in the column 'text'"),
    ("data.path=none.csv", "none.csv: no row has a value in the column 'colour'"),
    ("data.path=broken.jsonl data.attributes=[colour]", "broken.jsonl: line 2 is no JSON"),
    ("data.path=long.txt data.attributes=[]", "long.txt: line 1 is longer than 1,000,000 characters"),
    ("data.path=plain.txt", "plain.txt is plain text, without attributes such as 'colour'"),
    ("data.path=null", "data.path is missing"),
    ("data.text=sentence", "no column in animals.csv (line 2) 'sentence'", "text, colour, animal"),
    ("data.attributes=[color]", "no column in animals.csv (line 2) 'color'", "did you mean 'colour'?"),
    ("data.attributes=colour", "data.attributes", "a list", "'colour'"),
    ("data.attributes=[a.b]", "an attribute's name is a word", "'a.b'"),
    ("data.attributes=[infill]", "'infill' is that of given words"),
    ("data.test_path=nowhere.csv", "data.test_path=nowhere.csv cannot be read"),
    ("data.length=3", "every training sentence of text_file is longer than data.length=3 tokens"),
    ("data.length=1", "data.length is a whole number, at least 2, got 1"),
    ("data.length=many", "data.length", "'many'"),
    ("data.spans=1", "data.spans is a whole number, at least 2, got 1"),
    ("data.tokenizer.least=100", "no word is found 100 times", "data.tokenizer.least"),
    ("data.tokenizer.least=0", "data.tokenizer.least is at least 1, got 0"),
    ("data.tokenizer.size=-1", "data.tokenizer.size is at least 1, got -1"),
    ("data.tokenizer.size=some", "data.tokenizer.size", "'some'"),
    ("data.tokenizer.file=table.json", "table.json is no Words tokenizer"),
    ("data.tokenizer.file=nowhere.json", "nowhere.json cannot be read"),
    ("tokenizer=word", "'word'", "did you mean 'words'?", "huggingface, sentencepiece, words"),
    ("tokenizer=sentencepiece data.tokenizer.size=5", "SentencePiece cannot make 5 pieces", "data.tokenizer.size"),
    ("tokenizer=sentencepiece data.tokenizer.kind=wrod", "'wrod'", "did you mean 'word'?"),
    ("tokenizer=sentencepiece data.tokenizer.file=animals.csv", "animals.csv is no SentencePiece tokenizer"),
    ("tokenizer=huggingface", "data.tokenizer.name is missing"),
    ("tokenizer=huggingface data.tokenizer.name=folder", "cannot load the tokenizer 'folder'"),
    ("tokenizer=huggingface data.tokenizer.name=table.json", "table.json is no tokenizer"),
    ("+dropout.each.infil=0.5", "'infil'", "did you mean 'infill'?", "colour, animal, infill"),
)
def test_trainings(refused: Callable[..., str], files: None, settings: list[str], words: tuple[str, ...]):
    said = refused("train", *TINY, *ANIMALS, "out=run", "overwrite=true", *settings)
    assert all(word in said for word in words), said


@refusals(
    ("data=e2e data.root=folder", "folder holds neither trainset.csv nor devset.csv"),
    ("data=e2e data.root=nowhere", "data.root=nowhere: there is no such folder"),
    ("data=digits", "data=digits is for modality=image", "e2e, text_file, trec"),
    ("network=unet", "network=unet is for images"),
)
def test_trainings_on_other_data(refused: Callable[..., str], files: None, settings: list[str], words: tuple[str, ...]):
    own = [word for word in TINY if not word.startswith("network.")] if "network=unet" in settings else TINY
    data = [] if settings[0].startswith("data=") else ANIMALS
    said = refused("train", *own, *data, "out=run", "overwrite=true", *settings)
    assert all(word in said for word in words), said


@pytest.fixture
def broken(place: Path) -> Iterator[Path]:
    """A copy of the run, to break."""
    shutil.copytree("run", "broken")
    yield place / "broken"
    shutil.rmtree("broken")


@pytest.mark.parametrize("content", [None, b"", b"[]", b'[" The"]', b"\xff\xfe", "longer"])
def test_vocabularies_that_are_not_the_runs(refused: Callable[..., str], broken: Path, content: Any):
    path = broken / "words.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\n" if content == "longer" else content)
    commands = [["sample", "run=broken", "out=held", "overwrite=true", "n=2", "sampler.steps=1"], ["evaluate", "run=broken", "n=2"]]
    gone = "words.json cannot be read: No such file"
    for words in ("words.json is cut short or damaged", "words.json does not fit the model: its SHA-256 is"):
        for command in [*commands, ["train", "out=broken", "resume=true", "trainer.steps=9"]]:
            assert (gone if content is None else words) in refused(*command)
        unsealed(broken)
    with pytest.raises(UserError, match=r"words\.json"):
        guidance.load(broken)


@pytest.mark.parametrize("name", ["run:../words.json", "run:/etc/passwd", "run:a/b", "run:"])
def test_a_run_names_only_files_of_its_own(refused: Callable[..., str], broken: Path, name: str):
    config = yaml.safe_load((broken / "config.yaml").read_text())
    config["data"]["tokenizer"]["file"] = name
    (unsealed(broken) / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    said = refused("sample", "run=broken", "out=held", "overwrite=true", "n=2", "sampler.steps=1")
    assert "names no file of the run" in said or "cannot be read" in said, said


def test_settings_that_a_resumed_run_keeps(refused: Callable[..., str], broken: Path):
    for setting in (
        "data.length=9",
        "data.tokenizer.least=3",
        "data.path=plain.txt",
        "tokenizer=sentencepiece",
        "data.attributes=[colour]",
    ):
        said = refused("train", *TINY, *ANIMALS, "out=broken", "resume=true", "trainer.steps=9", setting)
        assert "cannot change when a run is resumed" in said, said


def test_what_is_there_is_not_overwritten_unasked(refused: Callable[..., str]):
    assert "out=held already holds results" in refused("sample", "run=run", "out=held", "n=2")
    assert "out=run already holds a run" in refused("train", *TINY, *ANIMALS, "out=run")


def test_too_few_sentences_to_hold_any_out(refused: Callable[..., str], place: Path, capsys: pytest.CaptureFixture[str]):
    animals(place / "few.csv", 4)
    settings = ["data.tokenizer.least=1", "data.path=few.csv"]
    assert run(["train", *TINY, *ANIMALS, *settings, "out=few", "overwrite=true"]) == 0
    said = refused("evaluate", "run=few", "n=2", "scales=[1]", "sampler.steps=1")
    assert "text_file has 0 held out samples; measuring takes at least 2" in said
