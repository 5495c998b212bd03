"""What the user can mend is said in one line, with exit status 2, and nothing is written, overwritten or removed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
import yaml
from PIL import Image
from runs import snapshot, unsealed
from safetensors.torch import load_file, save_file

import guidance
from guidance import UserError
from guidance.algebra import read
from guidance.checkpoint import FORMAT, latest, read_config
from guidance.cli import run
from guidance.config import resolve

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=4", "trainer.steps=2", "threads=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, an untrained run, samples, an evaluation, pictures, and a file."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Hydra composes a config twice, the first time to see whether it says hydra.mode=MULTIRUN. None of these does.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        assert run(["train", *TINY, "out=run", "trainer.save_every=1"]) == 0
        assert run(["sample", "run=run", "out=held", "n=2", "sampler.steps=1"]) == 0
        Path("empty").mkdir()
        Path("file.txt").write_text("mine")
        Path("evaluated").mkdir()
        Path("evaluated/metrics.csv").write_text("scale,n\n")
        shutil.copytree("run", "untrained")
        shutil.rmtree("untrained/checkpoints")
        for name in ("cat", "dog"):
            Path("pets", name).mkdir(parents=True)
            for k in range(5):
                Image.new("RGB", (6, 4), (k, 100, 7)).save(f"pets/{name}/{k}.png")
        yield folder
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which has to be refused, and gives the line."""

    def command(*arguments: str) -> str:
        before = snapshot(place)
        capsys.readouterr()
        code = run(list(arguments))
        said = capsys.readouterr()
        assert code == 2
        assert said.err.startswith("polyguide: ") and said.err.endswith("\n") and said.err.count("\n") == 1, said.err
        assert said.out == "" and "Traceback" not in said.err
        assert snapshot(place) == before
        return said.err

    return command


def cases(*rows: tuple[str, ...]) -> Any:
    """(settings, what the line has to contain, ...)"""
    return pytest.mark.parametrize(("settings", "words"), [(row[0].split(), row[1:]) for row in rows], ids=[row[0] for row in rows])


# Every bad setting of every command, asked to overwrite what is there

SAMPLING = [
    ("sampler.steps=0", "steps", "0", "at least 1"),
    ("sampler.steps=-3", "steps", "-3", "at least 1"),
    ("sampler.steps=many", "steps", "'many'", "whole number"),
    ("sampler.steps=2.5", "steps", "2.5", "whole number"),
    ("sampler.step=3", "sampler.step", "did you mean 'sampler.steps'?"),
    ("sampler=ddmi", "'ddmi'", "choose from: ddim, ddpm, dpm, feynman_kac, heun, langevin"),
    ("sampler=ddim sampler.eta=2", "eta", "2", "between 0 and 1"),
    ("sampler=ddim sampler.eta=nan", "eta", "nan", "between 0 and 1"),
    ("sampler=ddpm sampler.v=-1", "v", "-1", "between 0 and 1"),
    ("sampler=heun sampler.churn=2", "churn", "2", "0 <= churn"),
    ("sampler=heun sampler.churn=lots", "churn", "lots"),
    ("sampler=ddim ~sampler.steps", "sampler.steps"),
    ("n=0", "n is", "0", "at least 1"),
    ("n=-1", "n is", "-1", "at least 1"),
    ("n=few", "n is", "'few'", "whole number"),
    ("n=true", "n is", "True", "whole number"),
    ("nn=3", "'nn'", "did you mean 'n'?"),
    ("batch_size=0", "batch_size", "0", "at least 1"),
    ("batch_size=x", "batch_size", "'x'", "whole number"),
    ("max_rows=0", "max_rows", "0", "at least 1"),
    ("seed=-1", "seed", "-1", "at least 0"),
    ("seed=luck", "seed", "'luck'", "whole number"),
    ("threads=0", "threads", "0", "at least 1"),
    ("threads=true", "threads", "True", "whole number"),
    ("device=gpu", "device=gpu"),
    ("device=meta", "device=meta"),
    ("grid=bogus", "'bogus'", "karras, logsnr, uniform"),
    ("grid=logsnr grid.low=abc", "low", "abc"),
    ("grid=logsnr grid.low=30 grid.high=40", "grid", "-20", "20"),
    ("schedule=cosine schedule.logsnr_min=30", "logsnr_min=30", "logsnr_min < logsnr_max"),
    ("schedule=cosine schedule.logsnr_min=abc", "logsnr_min", "abc"),
    ("schedule=cosien", "'cosien'", "did you mean 'cosine'?"),
    ("overwrite=maybe", "overwrite", "'maybe'", "true"),
    ("run=nowhere", "run=nowhere", "polyguide train out=nowhere"),
    ("run=empty", "run=empty", "config.yaml"),
    ("run=file.txt", "run=file.txt"),
    ("run=untrained", "run=untrained", "no checkpoint", "resume=true"),
    ("run=null", "run"),
    ("out=null", "out"),
    ("out=file.txt", "out=file.txt is a file"),
    ("out=file.txt/deeper", "file.txt"),
    ("sampler=null", "sampler"),
    ("n", "'n'", "key=value"),
    ("precision=fp32", "precision 'fp32'", "no, bf16, fp16"),
    ("precision=bf61", "'bf61'", "did you mean 'bf16'?"),
    ("precision=true", "precision 'True'", "no, bf16, fp16"),
]


@cases(
    *SAMPLING,
    ("condition.digti=3", "'digti'", "did you mean 'digit'?"),
    ("condition.digit=11", "condition.digit", "11", "choose from: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
    ("condition.digit=three", "condition.digit", "'three'", "0, 1, 2"),
    ("condition.digit=[1,2,3]", "condition.digit", "n=2", "3 values"),
    ("condition.digit=[1,11]", "condition.digit", "11"),
    ("condition.digit=1.5", "condition.digit", "1.5"),
    ("condition=3", "condition", "3"),
    ("condition={digit:3}", "condition.digit=3"),
    ("guidance=cgf", "'cgf'", "did you mean 'cfg'?"),
    ("guidance.scale=nan", "guidance.scale", "nan", "finite number"),
    ("guidance.scale=inf", "guidance.scale", "inf", "finite number"),
    ("guidance.scale=-inf", "guidance.scale", "-inf", "finite number"),
    ("guidance.scale=much", "guidance.scale", "'much'", "finite number"),
    ("guidance.scale=null", "guidance.scale", "None", "finite number"),
    ("guidance.scale=true", "guidance.scale", "True", "finite number"),
    ("guidance.scale=[1,nan]", "guidance.scale", "nan"),
    ("guidance.scale=[[1,2]]", "guidance.scale", "[[1, 2]]"),
    ("guidance.scale=[]", "0 ", "2 samples"),
    ("guidance.scale=[1,2,3]", "3 ", "2 samples"),
    ("guidance.scale=[1] batch_size=1", "1 ", "2 samples"),
    ("guidance.scale=1e40", "1e+40"),
    ("guidance.scal=3", "guidance.scal", "did you mean 'guidance.scale'?"),
    ("guidance=interval guidance.low=5 guidance.high=1", "low <= high", "5", "1"),
    ("guidance=interval guidance.low=abc", "low", "abc"),
    ("guidance=interval guidance.inside.scale=nan", "scale", "nan"),
    ("guidance=interval guidance.low=-99 guidance.high=99 guidance.inside.scale=[1,2,3]", "3 ", "2 samples"),
    ("guidance=compose", "guidance.terms is missing"),
    ("guidance=compose guidance.terms=3", "guidance.terms", "3"),
    ("animate=maybe", "animate", "'maybe'", "true"),
    ("guidance._target_=os.system", "'os.system'", "refused"),
    ("guidance._target_=guidance", "'guidance'"),
    ("guidance._target_=guidance.guide.CGF", "guidance.guide.CGF"),
    ("+guidance._partial_=true", "guidance"),
    ("guidance._target_=guidance.condition.Label ~guidance.scale +guidance.classes=[a]", "guidance"),
)
def test_samples(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused("sample", "run=run", "out=held", "overwrite=true", "n=2", "sampler.steps=1", *settings)
    assert all(word in said for word in words), said


@cases(
    *(row for row in SAMPLING[::4] if not row[0].startswith("n=")),
    ("overwrite=maybe", "overwrite", "'maybe'", "true"),
    ("scales=3", "scales", "list", "3"),
    ("scales=[]", "scales", "[]"),
    ("scales=[1,much]", "scales", "'much'"),
    ("scales=[nan]", "scales", "nan"),
    ("scales=[true]", "scales", "True"),
    ("scales=null", "scales", "None"),
    ("scale=3", "'scale'", "did you mean 'scales'?"),
    ("attribute=digti", "'digti'", "did you mean 'digit'?"),
    ("precision=fp32", "precision 'fp32'", "no, bf16, fp16"),
    ("n=1", "n is", "1", "at least 2"),
)
def test_evaluations(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused("evaluate", "run=run", "out=evaluated", "overwrite=true", "n=2", "sampler.steps=1", "scales=[1]", *settings)
    assert all(word in said for word in words), said


@cases(
    *((f"trainer.steps={value}", "trainer.steps", "whole number") for value in ("0", "-2", "many", "1.5", "true")),
    *((f"trainer.batch_size={value}", "trainer.batch_size", "whole number") for value in ("0", "some")),
    ("trainer.accumulate=3", "accumulate=3", "batch_size=4"),
    ("trainer.lr=fast", "trainer.lr", "'fast'"),
    ("trainer.lr=nan", "trainer.lr", "nan"),
    ("trainer.average=2", "trainer.average", "2", "from 0 to 1"),
    ("trainer.clip=-1", "trainer.clip", "-1"),
    ("trainer.keep=0", "trainer.keep", "0", "at least 1"),
    ("trainer.warmup=-1", "trainer.warmup", "-1", "at least 0"),
    ("trainer.betas=[0.9]", "trainer.betas", "0.9"),
    ("trainer.betas=[0.9,1.5]", "trainer.betas", "1.5"),
    ("trainer.decay=cosin", "'cosin'", "did you mean 'cosine'?"),
    ("trainer.precision=fp32", "'fp32'", "no, bf16, fp16"),
    ("trainer.trackers=[tensorbord]", "'tensorbord'", "did you mean 'tensorboard'?"),
    ("trainer.compile=maybe", "trainer.compile", "'maybe'"),
    ("trainer.setps=3", "trainer.setps", "did you mean 'trainer.steps'?"),
    ("seed=-1", "seed", "-1"),
    ("seed=99999999999999999999999", "seed", "99999999999999999999999"),
    ("threads=some", "threads", "'some'"),
    ("network.channels=0", "channels", "0"),
    ("network.channels=many", "channels", "many"),
    ("network.blocks=1.5", "blocks", "1.5"),
    ("network.multipliers=3", "multipliers", "3"),
    ("network.attention=[7]", "attention=[7]", "[8]"),
    ("network.attention=7", "attention", "7"),
    ("network.attention=[8] network.head=3", "heads of 3", "4"),
    ("network.attention=[8] network.head=0", "head", "0"),
    ("network.patch=3", "patch=3", "8 x 8"),
    ("network.dropout=2", "dropout", "2"),
    ("network.dropout=abc", "dropout", "abc"),
    ("network=unte", "'unte'", "did you mean 'unet'?"),
    ("loss=mes", "'mes'", "did you mean 'mse'?"),
    ("loss.norm=l3", "'l3'", "l1, l2, huber"),
    ("loss.delta=abc", "delta", "abc"),
    ("loss=min_snr loss.weighting.gamma=abc", "gamma", "abc"),
    ("loss=min_snr loss.weighting.gamma=-5", "gamma", "-5"),
    ("loss=snr loss.weighting.offset=-5", "offset", "-5"),
    ("loss=min_snr loss.weighting.gama=1", "loss.weighting.gama", "did you mean 'loss.weighting.gamma'?"),
    ("times=logit_normal times.std=0", "std > 0", "0"),
    ("times=logit_normal times.std=abc", "std", "abc"),
    ("dropout.joint=2", "joint=2", "between 0 and 1"),
    ("dropout.each=abc", "each='abc'", "between 0 and 1"),
    ("dropout.each={digt:0.1}", "'digt'", "did you mean 'digit'?", "digit, stroke, *"),
    ("dropout.each={*:2}", "each={'*': 2}", "between 0 and 1"),
    ("holdout=3", "holdout is a list of combinations", "got 3"),
    ("holdout={digit:3}", "holdout={digit:3}"),
    ("holdout=[3]", "holdout is a list of combinations", "[3]"),
    ("holdout=[{}]", "holdout is a list of combinations", "[{}]"),
    ("holdout=null", "holdout is a list of combinations", "None"),
    ("holdout=[{digt:3}]", "'digt'", "did you mean 'digit'?", "digit, stroke"),
    ("holdout=[{digit:3,stroke:bald}]", "'bald'", "did you mean 'bold'?", "thin, medium, bold"),
    ("holdout=[{stroke:thin},{stroke:medium},{stroke:bold}]", "holdout leaves nothing to train on"),
    ("data=image_folder data.root=pets holdout=[{digit:3}]", "'digit'", "label"),
    ("schedule=ddpm schedule.steps=0", "at least two betas"),
    ("schedule=ddpm schedule.steps=abc", "steps", "abc"),
    ("schedule.logsnr_min=abc", "logsnr_min", "abc"),
    ("parameterization=w", "'w'", "eps, expected, v, velocity, x0"),
    ("modality=video", "'video'", "image"),
    ("data=digit", "'digit'", "did you mean 'digits'?"),
    ("data=null", "data"),
    ("data=mnist data.source=nowhere", "nowhere", "train-images-idx3-ubyte"),
    ("data=image_folder", "data.root is missing"),
    ("data=image_folder data.root=nowhere", "data.root=nowhere"),
    ("data=image_folder data.root=empty", "no readable image", "empty"),
    ("data=image_folder data.root=pets data.size=0", "size", "0"),
    ("data=image_folder data.root=pets data.size=big", "size", "big"),
    ("data=image_folder data.root=pets data.channels=2", "channels", "2"),
    ("data=image_folder data.root=pets data.attribute=a.b", "a.b"),
    ("data=image_folder data.root=pets network.patch=3", "patch=3", "4 x 6"),
    ("data=image_hub", "data.dataset is missing"),
    ("data=image_hub data.dataset=./nowhere", "nowhere"),
    ("data=image_hub data.dataset=./nowhere data.size=0", "size", "0"),
    ("resume=maybe", "resume", "'maybe'", "true"),
    ("overwrite=maybe", "overwrite", "'maybe'", "true"),
    ("out=file.txt", "out=file.txt is a file"),
    ("out=null", "out"),
)
def test_training(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused("train", *TINY, "out=run", "overwrite=true", *settings)
    assert all(word in said for word in words), said


@cases(
    ("trian", "'trian'", "did you mean 'train'?"),
    (
        "run=run",
        "'run=run'",
        "train, train-classifier, cost, sample, evaluate, experiment, compare, exactness, report, new-modality, doctor, list",
    ),
    ("train", "out is missing", "out=runs/digits"),
    ("sample run=run", "out is missing"),
    ("sample out=new", "run is missing", "run=runs/digits"),
    ("evaluate", "run is missing", "run=runs/digits"),
    ("sample run=run out=new guidance=compose guidance.terms=2*on(digit=3)", "guidance.terms", "quote"),
    ("sample run=run out=new oops", "'oops'"),
    ("sample run=run out=new guidance@guidance.inside=apg", "no guidance to choose at guidance.inside", "guidance has no such part"),
    ("sample run=run out=new guidance=rescale guidance.inside=apg", "guidance.inside is a guidance", "guidance@guidance.inside=NAME"),
    ("sample run=run out=new guidance=interval guidance.outside=null", "guidance.outside is a guidance", "guidance@guidance.outside=NAME"),
    ("sample run=run out=new guidance=classifier guidance.classifier=abc", "guidance.classifier is a classifier", "'abc'"),
    ("sample run=run out=new --oops", "--oops"),
    ("list oops", "oops"),
)
def test_commands(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused(*settings)
    assert all(word in said for word in words), said


@cases(
    ("train out=run", "out=run already holds a run", "resume=true", "overwrite=true"),
    ("train out=held resume=true network.channels=x", "channels"),
    ("sample run=run out=held", "out=held already holds results", "overwrite=true"),
    ("evaluate run=run out=evaluated", "out=evaluated already holds results (metrics.csv)", "overwrite=true"),
)
def test_what_is_there_is_not_overwritten_unasked(refused: Any, settings: list[str], words: tuple[str, ...]):
    said = refused(*settings)
    assert all(word in said for word in words), said


# Compositions


@pytest.mark.parametrize(
    ("terms", "word"),
    [
        ("2*on(digit=3", "2*on(digit=3"),
        ("2*", "2*"),
        ("", "on(digit=3)"),
        ("on(digit=3) on(digit=8)", "on(digit=8)"),
        ("__import__('os').system('touch hacked')", "__import__"),
        ("on(digit=__import__('os').system('touch hacked'))", "__import__"),
        ("on(digit=open('hacked', 'w'))", "open"),
        ("(lambda: on(digit=3))()", "lambda"),
        ("[on(digit=3) for _ in range(2)]", "range"),
        ("on(digit=3).items", "items"),
        ("on(3)", "on(3)"),
        ("on(**{'digit': 3})", "digit"),
        ("on(digit=3) * on(digit=8)", "on(digit=8)"),
        ("on(digit=3) / 2", "/"),
        ("on(digit=3) + 1", "1"),
        ("2 ** 3 * on(digit=3)", "**"),
        ("True * on(digit=3)", "True"),
        ("2j * on(digit=3)", "2j"),
        ("1e999 * on(digit=3)", "finite number"),
        ("'x' * on(digit=3)", "x"),
        ("off(digit=3)", "off(digit=3)"),
        ("3", "names no condition"),
        ("on(digti=3)", "did you mean 'digit'?"),
        ("on(digit=11)", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("on(digit=[1, 2, 3])", "n=2"),
        ("-" * 5000 + "on(digit=3)", "guidance.terms"),
    ],
    ids=lambda text: text[:40],
)
def test_compositions(refused: Any, place: Path, terms: str, word: str):
    quoted = terms.replace("\\", "\\\\").replace('"', '\\"')
    command = ["sample", "run=run", "out=held", "overwrite=true", "n=2", "sampler.steps=1", "guidance=compose"]
    said = refused(*command, f'guidance.terms="{quoted}"')
    assert word in said, said
    assert not (place / "hacked").exists()


def test_a_composition_and_a_condition(refused: Any):
    command = ["sample", "run=run", "out=held", "overwrite=true", "n=2", "condition.digit=3", "guidance=compose"]
    said = refused(*command, 'guidance.terms="2*on(digit=3)"')
    assert "digit" in said and "terms" in said


def test_what_the_algebra_reads_is_what_python_means():
    """The other side of the refusals: everything that is said to be understood is."""
    on = guidance.on
    assert read(" -(2*on(digit=3, stroke=bold) - 0.5*on(digit='8'))*3 ") == -(2 * on(digit=3, stroke="bold") - 0.5 * on(digit="8")) * 3
    assert read("+on(pitch=[1, -2.5]) - (1 + 2*3 - 4)*on(digit=1)") == on(pitch=[1, -2.5]) - 3.0 * on(digit=1)


# Folders of images


def picture(size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (picture(size=(8, 4)), ("6x4", "9.png is 8x4", "data.size=")),
        (picture(mode="L"), ("RGB", "9.png is L", "data.channels=")),
        (lambda path: path.write_bytes(b"\x89PNG\r\n"), ("9.png", "not a readable image", "data.skip_broken=true")),
    ],
    ids=["sizes", "modes", "broken"],
)
def test_folders_of_images(refused: Any, place: Path, spoil: Any, words: tuple[str, ...]):
    path = place / "pets" / "cat" / "9.png"
    spoil(path)
    try:
        said = refused("train", *TINY, "data=image_folder", "data.root=pets", "out=run", "overwrite=true")
    finally:
        path.unlink()
    assert all(word in said for word in words), said


def test_a_folder_with_too_few_images_to_hold_any_out(refused: Any, place: Path):
    for path in place.glob("pets/*/4.png"):
        path.rename(path.with_suffix(".kept"))
    try:
        assert run(["train", *TINY, "data=image_folder", "data.root=pets", "out=few"]) == 0
        said = refused("evaluate", "run=few", "n=2", "scales=[1]", "sampler.steps=1")
    finally:
        for path in place.glob("pets/*/4.kept"):
            path.rename(path.with_suffix(".png"))
    assert "held out" in said and "pets" in said


# Runs that are broken


@pytest.fixture
def broken(place: Path) -> Iterator[Path]:
    """A copy of the run, to break, whose checksums would otherwise be all that is said."""
    copy = place / "broken"
    shutil.copytree(place / "run", copy)
    yield unsealed(copy)
    shutil.rmtree(copy)


def sampled(refused: Any) -> str:
    said: str = refused("sample", "run=broken", "out=held", "overwrite=true", "n=2", "sampler.steps=1")
    return said


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_weights_cut_short(refused: Any, broken: Path, kept: float):
    path = latest(broken) / "average.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    said = sampled(refused)
    assert "average.safetensors" in said and "cut short" in said


def test_weights_that_are_missing(refused: Any, broken: Path):
    (latest(broken) / "average.safetensors").unlink()
    said = sampled(refused)
    assert "average.safetensors" in said and "missing" in said


SHAPE = {"channels": 1, "height": 8, "width": 8}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": {"channels": 8}}, ("network.noise.layers.0.weight is [16, 64] in the file, [32, 64] in the model",)),
        ({"network": {"blocks": 2}}, ("network.",)),
        (
            {"data": {"_target_": "modalities.image.data.Folder", "root": "none", "attribute": "animal", "classes": ["cat"]} | SHAPE},
            ("animal",),
        ),
    ],
    ids=str,
)
def test_weights_of_another_config(refused: Any, broken: Path, change: dict[str, dict[str, Any]], words: tuple[str, ...]):
    config = yaml.safe_load((broken / "config.yaml").read_text())
    for group, settings in change.items():
        config[group] |= settings
    (broken / "config.yaml").write_text(yaml.safe_dump(config))
    said = sampled(refused)
    assert "average.safetensors does not fit its config" in said and all(word in said for word in words), said


def test_weights_that_the_config_does_not_have(refused: Any, broken: Path):
    path = latest(broken) / "average.safetensors"
    save_file(load_file(path) | {"network.more": torch.zeros(1)}, path)
    said = sampled(refused)
    assert "average.safetensors does not fit its config" in said and "does not have network.more" in said


def test_a_config_cut_short_anywhere_is_refused(broken: Path):
    """Up to its first line that no model needs."""
    path = broken / "config.yaml"
    text = path.read_text()
    needed = text.index("parameterization:") + text[text.index("parameterization:") :].index("V\n") + 1
    for length in [*range(0, needed, 23), *range(needed - 60, needed)]:
        path.write_text(text[:length])
        with pytest.raises(UserError):
            guidance.load(broken)
    path.write_text(text[: needed + 1])
    guidance.load(broken)


def test_a_run_of_another_version(refused: Any, broken: Path):
    config = yaml.safe_load((broken / "config.yaml").read_text())
    assert config["format"] == FORMAT
    (broken / "config.yaml").write_text(yaml.safe_dump(config | {"format": FORMAT + 1}))
    said = sampled(refused)
    assert f"another version of polyguide (format {FORMAT + 1}, this one reads {FORMAT})" in said
    del config["format"]
    (broken / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_config(broken) == config, "the first runs did not say it"


def test_a_config_cut_short(refused: Any, broken: Path):
    path = broken / "config.yaml"
    path.write_text(path.read_text()[:100])
    said = sampled(refused)
    assert "config.yaml" in said and "cut short" in said
    path.write_bytes(b"\xff\xfe\x00")
    assert "config.yaml" in sampled(refused)


@pytest.mark.parametrize("state", [b"", b'{"step": ', b"[]"])
def test_a_state_cut_short(refused: Any, broken: Path, state: bytes):
    (latest(broken) / "state.json").write_bytes(state)
    said = refused("train", "out=broken", "resume=true", "trainer.steps=9")
    assert "state.json" in said and str(latest(broken).relative_to(broken.parent)) in said


@pytest.mark.parametrize("name", ["model", "average", "optimizer"])
def test_weights_cut_short_are_not_gone_on_from(refused: Any, broken: Path, name: str):
    path = latest(broken) / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    said = refused("train", "out=broken", "resume=true", "trainer.steps=9")
    assert f"{name}.safetensors" in said and "cut short" in said


def test_a_folder_that_is_no_checkpoint_is_passed_over(broken: Path, place: Path):
    (broken / "checkpoints" / "step-of-mine").mkdir()
    assert guidance.load(broken).sample(1, steps=1).shape == (1, 1, 8, 8)


# Configs that want to do more than make


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("os.system", {"command": "touch hacked"}),
        ("builtins.exec", {"source": "open('hacked', 'w')"}),
        ("builtins.open", {"file": "hacked", "mode": "w"}),
        ("subprocess.run", {"args": ["touch", "hacked"]}),
        ("pathlib.Path.touch", {"self": "hacked"}),
        ("guidance.checkpoint.os.remove", {"path": "file.txt"}),
        ("guidance.checkpoint.shutil.rmtree", {"path": "held"}),
        ("guidance.checkpoint.write_atomically", {"path": "hacked", "content": "x"}),
        ("guidance.checkpoint.Path", {}),
        ("guidance.commands.output.clear", {"out": "held", "own": ["*"]}),
        ("guidance.cli.run", {"arguments": ["train", "out=hacked"]}),
        ("guidance.__main__.main", {}),
        ("guidance.config.importlib.import_module", {"name": "antigravity"}),
        ("guidance.train.torch.load", {"f": "file.txt"}),
        ("guidance.upkeep._Log", {"path": "hacked", "start": 0}),
        ("guidance.guide.CFG.__init__", {}),
        ("guidance.guide.CFG.__class__", {}),
        ("modalities.assets.subprocess.run", {"args": ["touch", "hacked"]}),
        ("modalities.assets.wheel_file", {}),
        ("guidance", {}),
        ("guidance.", {}),
        ("", {}),
        (3, {}),
        (None, {}),
        (["os.system"], {}),
    ],
    ids=str,
)
def test_targets_that_are_refused_and_not_called(refused: Any, broken: Path, place: Path, target: Any, settings: dict[str, Any]):
    path = broken / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for group in ("network", "schedule"):  # one of them is completed later, the other is built at once
        path.write_text(yaml.safe_dump(config | {group: {"_target_": target, **settings}}))
        said = sampled(refused)
        assert repr(target) in said and ("refused" in said or "does not exist" in said), said
        assert not (place / "hacked").exists()


@pytest.mark.parametrize("target", ["guidance.schedule.Cosine", "guidance.guide.Compose.read", "modalities.image.build"])
def test_targets_that_configs_name_are_allowed(target: str):
    assert callable(resolve(target))


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch hacked']", "!!python/name:os.system ''", "!!python/object:guidance.guide.CFG {}"]
)
def test_tags_in_a_config_are_refused(refused: Any, broken: Path, place: Path, tag: str):
    path = broken / "config.yaml"
    path.write_text(path.read_text() + f"more: {tag}\n")
    said = sampled(refused)
    assert "config.yaml" in said and "python/" in said
    assert not (place / "hacked").exists()


def test_settings_that_a_class_does_not_have(refused: Any, broken: Path):
    path = broken / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["schedule"]["logsnr_mni"] = 3
    path.write_text(yaml.safe_dump(config))
    said = sampled(refused)
    assert "schedule" in said and "'logsnr_mni'" in said and "logsnr_min, logsnr_max" in said
