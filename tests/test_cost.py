"""What a model costs: against closed forms, diffusers' networks of the published sizes, steps that were really taken, and the docs."""

import ctypes
import json
import math
import multiprocessing
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guidance import DDIM, Condition, Cosine, Denoiser, Heun, Label, Langevin, Objective, Trainer, UserError, V, stubs
from guidance.cli import run
from guidance.codec import Standardized
from guidance.commands import costing
from guidance.config import build, config_folder
from guidance.cost import PEAKS, SELF_CONDITIONED, Cost, beside, cost, evaluations, imagined, judges, precision_on, step
from guidance.cost_table import row, short, table
from guidance.fake import FAKE, counter, imagine
from guidance.hydra import composed
from guidance.model import assemble
from guidance.split import InMemory
from guidance.train import Place
from modalities.image.network import ResBlock, UNet

pytestmark = pytest.mark.usefixtures("unchecked")  # modalities here lack what a cost does not need
ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (config_folder() / "recipe" / "published").glob("*.yaml"))


# FLOPs


@pytest.mark.parametrize("bias", [True, False])
def test_flops_of_layers_are_their_closed_forms(bias: bool):
    b, c, d, h, w, k, n, heads, width = 3, 4, 6, 10, 8, 5, 7, 2, 16
    convolution, linear = nn.Conv2d(c, d, k, padding=k // 2, bias=bias), nn.Linear(d, c, bias=bias)
    for module in (convolution, linear):
        imagine(module)
    with FAKE:
        for make, forward, backward in (
            (lambda: convolution(torch.zeros(b, c, h, w, requires_grad=True)), 2 * b * h * w * c * d * k * k, 2),
            (lambda: linear(torch.zeros(b, n, d, requires_grad=True)), 2 * b * n * c * d, 2),
            (lambda: linear(torch.zeros(b, n, d)), 2 * b * n * c * d, 1),  # no gradient of what comes in
            (lambda: attention(b, heads, n, width), 2 * 2 * b * heads * n * n * width, 2.5),  # the scores are made again
        ):
            with counter() as there:
                y = make()
            with counter() as back:
                y.sum().backward()
            assert there.get_total_flops() == forward
            assert back.get_total_flops() == backward * forward


def attention(b: int, heads: int, n: int, width: int) -> Tensor:
    q, k, v = (torch.zeros(b, heads, n, width, requires_grad=True) for _ in range(3))
    return nn.functional.scaled_dot_product_attention(q, k, v)


SETTINGS = {
    "image": ["data=digits", "network.attention=[8]", "network.head=8", "network.channels=16", "network.self_condition=true"],
    "audio": ["modality=audio", "network.channels=8", "network.layers=2", "trainer.precision=no"],
    "text": [
        *(
            "modality=text",
            "network.likelihood=true",
            "network.encoder.layer_types=[full_attention]",
            "network.encoder.num_hidden_layers=1",
        ),
        *(f"network.encoder.{name}=32" for name in ("hidden_size", "intermediate_size")),
    ],
}
ASSUMED = {"text": {"data": {"classes": {"topic": 5}, "tokenizer": {"_target_": "modalities.text.assumed.Assumed", "size": 300}}}}


def settings(modality: str) -> dict[str, Any]:
    return costing.with_facts(composed("cost", SETTINGS[modality]), ASSUMED.get(modality, {}))


def of(config: dict[str, Any], recipe: str = "", **more: Any) -> Cost:
    """As the command finds it."""
    return costing.found(config, recipe, **more)


@pytest.mark.parametrize("modality", SETTINGS)
def test_shapes_alone_cost_what_numbers_do(modality: str):
    """The same step on real tensors, counted by torch, and the same parameters."""
    config = settings(modality)
    said = of(config)
    real, denoiser = assemble(config)
    n = config["trainer"]["batch_size"]
    parts = {key: build(config[key], key) for key in ("times", "dropout")}
    loss = costing.with_codec(build(config["loss"], "loss"), real)
    objective = Objective(replace(denoiser, self_condition=False), real.codec, loss, **parts, conditions=real.conditions)
    dtype = torch.float32 if modality != "text" else torch.int64
    raw = torch.ones(n, *real.data.shape, dtype=dtype)
    condition = Condition.of(**{name: torch.stack([spec.absent()] * n) for name, spec in real.conditions.items()})
    with counter() as counted:
        objective(raw, condition, Place(0, 0, 0, 0, n)).mean().backward()
    assert said.flops["forward"] + said.flops["backward"] == pytest.approx(counted.get_total_flops() / n, rel=1e-12)
    assert said.parameters["total"] == sum(p.numel() for p in real.modules().parameters())
    assert said.training["step_flops"] == pytest.approx(n * said.flops["training"])
    embed, evaluation = said.flops["embed"], said.flops["evaluation"]
    assert said.sampling["flops"] == 2 * embed + said.sampling["evaluations"] * evaluation  # one condition and its absence
    assert (embed > 0) == (modality == "audio")


def test_the_first_guess_is_counted_as_often_as_it_is_made():
    calls = 0

    class Counting(nn.Module):
        self_condition = True

        def embed(self, condition: Condition) -> None:
            return None

        def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
            nonlocal calls
            calls += 1
            return x_t

    objective = Objective(Denoiser(Counting(), Cosine(), V(), self_condition=True))
    for k in range(400):
        objective(torch.zeros(1, 1), Condition(), Place(0, k, k, 0, 1))
    assert abs((calls - 400) / 400 - SELF_CONDITIONED) < 0.05
    said = of(settings("image"))
    assert said.flops["again"] == SELF_CONDITIONED * said.flops["evaluation"] > 0
    assert said.flops["training"] == said.flops["forward"] + said.flops["backward"] + said.flops["again"]


@pytest.mark.parametrize(("sampler", "a_run"), [(DDIM(), 10), (Heun(), 19), (Langevin(DDIM(), moves=3), 10 + 9 * 3)])
def test_evaluations_of_a_sample(sampler: Any, a_run: int):
    """Heun's last step is Euler's; no moves are made where a run begins."""
    denoiser = Denoiser(nn.Identity(), Cosine(), V())  # type: ignore[arg-type]
    assert evaluations(denoiser, sampler, 10, conditional=True) == (2 * a_run, 2)
    assert evaluations(denoiser, sampler, 10, conditional=False) == (a_run, 1)
    assert evaluations(denoiser, sampler, 1000, conditional=True) == (2 * (a_run // 9 * 1000 - (a_run // 9 * 10 - a_run)), 2)


# Memory


class Pair(nn.Module):
    """Two layers, with what autograd keeps of each known by hand."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.one, self.two = nn.Linear(size, width), nn.Linear(width, size)

    def embed(self, condition: Condition) -> None:
        return None

    def forward(self, x_t: Tensor, logsnr: Tensor, context: None, x0_hat: Tensor | None = None) -> Tensor:
        return self.two(nn.functional.silu(self.one(x_t)))


class Plain:
    name, conditions, train, test = "plain", {}, None, None

    def __init__(self, size: int):
        self.shape = (size,)


def pair(width: int, size: int = 24) -> Any:
    from guidance.modality import Modality

    made = Modality("plain", (size,), Standardized(), Pair(size, width), {}, Plain(size), None, None)  # type: ignore[arg-type]
    imagine(made.modules())
    return made


def kept(width: int, n: int, precision: str) -> int:
    modality = pair(width)
    objective = Objective(Denoiser(modality.network, Cosine(), V()), modality.codec)
    return step(objective, modality, n, precision).kept


@pytest.mark.parametrize(("precision", "size"), [("no", 4), ("bf16", 2)])
def test_what_autograd_keeps_of_two_layers(precision: str, size: int):
    """What comes out of the first layer and out of the activation, n x width each; with bf16, the second layer's weights in 16 bits, too.
    The rest, which is of the loss and of x_t, does not depend on the width."""
    n, few, more = 5, 64, 96
    copies = 24 * (more - few) * 2 if precision == "bf16" else 0
    assert kept(more, n, precision) - kept(few, n, precision) == 2 * n * (more - few) * size + copies
    # x_t (the loss looks at it too, and is in single precision) and the error that the squared loss keeps
    assert kept(few, n + 1, precision) - kept(few, n, precision) - 2 * few * size in range(24 * size, 24 * 16)


def test_memory_of_weights_and_their_companions():
    """AdamW has two moments a number, the average is a copy; a buffer has neither gradient nor moments."""
    modality, floats = pair(32), 4
    said = cost(modality, Denoiser(modality.network, Cosine(), V()), Trainer(batch_size=8, precision="no"), DDIM(), 10)
    numbers = 2 * 24 * 32 + 24 + 32
    buffers = 4  # of Standardized
    assert said.parameters == {"network": numbers, "codec": 0, "total": numbers, "trained": numbers}
    assert {name: said.memory[name] for name in ("weights", "gradients", "moments", "average")} == {
        "weights": floats * (numbers + buffers),
        "gradients": floats * numbers,
        "moments": 2 * floats * numbers,
        "average": floats * (numbers + buffers),
    }
    half = cost(modality, Denoiser(modality.network, Cosine(), V()), Trainer(batch_size=8, accumulate=2, precision="no"), DDIM(), 10)
    assert half.micro_batch == 4
    assert half.memory["activations"] == pytest.approx(said.memory["activations"] / 2, rel=0.02)  # but for what all samples share
    assert half.training["step_flops"] == said.training["step_flops"]


def resident(key: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def taken(config: dict[str, Any], raw: Tensor, condition: Condition, answer: Any) -> None:
    """A step on real tensors: by how much the process grows until the backward pass begins, and at most."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: tensors are mapped by themselves, so that what is freed is gone at once
    modality, denoiser = assemble(config)
    objective, n = Objective(denoiser, modality.codec, conditions=modality.conditions), len(raw)
    objective(raw[:2], condition.rows(slice(0, 2)), Place(0, 0, 0, 0, 2)).mean().backward()  # code and tables are loaded now
    objective.zero_grad()
    libc.malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    loss = objective(raw, condition, Place(0, 0, 0, 0, n)).mean()
    between = resident("VmRSS")
    loss.backward()
    answer.send((between - before, resident("VmHWM") - before))


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_what_the_device_would_take(fast: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guidance.cost.fast_bf16", lambda: fast)
    modality = pair(4)
    for device, expected in (("h100", "bf16"), ("a100", "bf16"), ("rtx4090", "bf16"), ("cpu", "bf16" if fast else "no")):
        said = cost(modality, Denoiser(modality.network, Cosine(), V()), Trainer(batch_size=8), DDIM(), 10, device=device)
        assert said.precision == expected and said.training["peak"] == PEAKS[device][expected == "no"]
    assert precision_on(1e12, "auto") == ("bf16" if fast else "no") and precision_on("h100", "no") == "no"


def test_a_real_step_takes_the_memory_that_is_said():
    n = 48
    settings = ["network.channels=48", "network.multipliers=[1,2]", f"trainer.batch_size={n}", "trainer.precision=no"]
    config = composed("cost", ["data=mnist", *settings])
    memory = of(config).memory
    raw, condition = torch.zeros(n, 1, 28, 28, dtype=torch.uint8), Condition.of(digit=[0] * n, stroke=[0] * n)
    anew = multiprocessing.get_context("spawn")  # nothing of other tests lies in its memory
    mine, theirs = anew.Pipe()
    child = anew.Process(target=taken, args=(config, raw, condition, theirs))
    child.start()
    assert mine.poll(60)
    between, most = mine.recv()
    child.join()
    assert between == pytest.approx(memory["activations"], rel=0.05)
    assert most == pytest.approx(memory["activations"] + memory["gradients"] + memory["passing"], rel=0.2)


# Days


def test_days_are_flops_by_what_a_device_does_of_them():
    modality = pair(32)
    trainer = Trainer(steps=10**9, batch_size=8, precision="bf16")
    denoiser = Denoiser(modality.network, Cosine(), V())
    said = cost(modality, denoiser, trainer, DDIM(), 10, device="a100", utilisation=0.25)
    layers = 2 * 24 * 32 * 2  # both layers, forward; backward, both layers' weights and what lies between them
    assert said.flops["forward"] == layers
    assert said.flops["backward"] == layers + layers / 2
    assert said.training["days"] == pytest.approx(10**9 * 8 * 2.5 * layers / (0.25 * 312e12) / 86400)
    assert cost(modality, denoiser, trainer, DDIM(), 10, device=312e12, utilisation=0.25).training["days"] == said.training["days"]
    single = cost(modality, denoiser, replace(trainer, precision="no"), DDIM(), 10, device="a100", utilisation=0.25)
    assert single.training["days"] / said.training["days"] == pytest.approx(312 / 19.5)
    assert said.sampling["flops"] == 2 * 10 * layers / 2  # without a condition one term, of ten evaluations


def test_projections_are_counted_once_a_step():
    class Turning(Standardized):
        def project(self, x0: Tensor) -> Tensor:
            return x0 @ torch.eye(24)

    modality = replace(pair(32), codec=Turning())
    imagine(modality.modules())
    said = cost(modality, Denoiser(modality.network, Cosine(), V()), Trainer(batch_size=8, precision="no"), DDIM(), 10)
    assert said.sampling["flops"] - 10 * said.flops["evaluation"] == 10 * 2 * 24 * 24


def test_short_numbers():
    assert [short(n, "B") for n in (0, 1, 999.4, 999.6, 35.72e6, 999.6e9, 3.82e18)] == [
        *("0 B", "1 B", "999 B", "1 kB", "35.7 MB", "1 TB", "3.82 EB")
    ]


# What is trained beside a model


def convolutions(*layers: tuple[int, int, int]) -> int:
    """Multiplications, twice, of 3 x 3 convolutions: (positions, channels in, channels out) each."""
    return sum(2 * positions * 9 * inputs * outputs for positions, inputs, outputs in layers)


def test_a_judge_of_digits_is_counted_by_hand():
    """Three convolutions on 8 x 8, 4 x 4 and 2 x 2 pixels, two linear layers; backward twice, but for the gradient of what comes in."""
    classes, head = 10, 64
    first, rest = convolutions((64, 1, 32)), convolutions((16, 32, 64), (4, 64, 64)) + 2 * (1024 * head + head * classes)
    said = of(composed("cost", ["data=digits"])).judges["digit"]
    assert said == pytest.approx(600 * 128 * (2 * first + 3 * rest) / 1e12, rel=0.01)


def test_a_judge_is_counted_as_it_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every product of a real, short, training of each modality's judge, counted by torch."""
    from modalities.audio import metrics as audio
    from modalities.text import metrics as text

    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path))
    for module, length in ((audio, {"steps": 3, "batch": 2}), (text, {"steps": 2, "batch": 3})):
        monkeypatch.setattr(module, "LENGTH", length)
    for metrics, data, attribute in ((audio.AudioMetrics(8000, {}), Beeps(), "kind"), (text.TextMetrics(few(), 1), few(), "kind")):
        said = metrics.judge_training(data, attribute)  # type: ignore[arg-type]
        with counter() as counted:
            said.loss().backward()
        with counter() as real:
            metrics.judge(data, attribute)  # type: ignore[arg-type]
        held_out = real.get_total_flops() - said.steps * counted.get_total_flops()
        assert 0 < held_out < counted.get_total_flops(), "what is left is a look at held-out items"


class Beeps:
    """Two loud and two soft sounds, held out again."""

    name, shape = "beeps", (800,)
    conditions = {"kind": Label(("soft", "loud"))}  # noqa: RUF012
    wave = torch.linspace(0, 300, 800).sin() * torch.tensor([[0.1], [0.9], [0.2], [0.8]])
    train = test = InMemory(wave, Condition.of(kind=torch.tensor([0, 1, 0, 1])))


def few() -> Any:
    from modalities.text.data import Sentence, TextData

    class Few(TextData):
        name = "few"

        def read(self) -> Any:
            told = [Sentence(f"a {word} one", {"kind": kind}) for word, kind in (("red", "x"), ("blue", "y"))]
            return told * 4, told

    return Few(length=6)


def products(size: int, width: int, layers: int, texts: int, places: int, read: int) -> float:
    """A causal Transformer's, of texts of ``places``, prefix and all: a block's four matrices, of 12 width^2 numbers, the two products of
    attention over all places, and the readout of ``read`` tokens. Dropout of attention weights: no fused form. Backward twice that."""
    blocks = layers * (2 * places * 12 * width**2 + 4 * places**2 * width)
    return 3 * (texts * blocks + 2 * read * width * size)


class Texts:
    """So many, of 1 to 6 tokens in turn; those that are shorter have an end, which counts: (2 + 3 + 4 + 5 + 6 + 6) / 6 a text."""

    def __init__(self, count: int):
        self.ids = (torch.arange(6) <= (torch.arange(count) % 6)[:, None]).long() * 5

    def __len__(self) -> int:
        return len(self.ids)


def test_a_language_model_is_its_closed_form(monkeypatch: pytest.MonkeyPatch):
    data = few()
    monkeypatch.setattr(type(data), "train", property(lambda self: Texts(4086)))
    from modalities.text.language import language_training

    training = language_training(data, epochs=8, layers=3)
    assert training.steps == 8 * 4086 // 64
    model: Any = training.module
    imagine(model)
    with FAKE, counter() as counted:
        training.loss().backward()
    expected = products(model.size, 192, 3, 64, 2 + 6, round(64 * 26 / 6))
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_the_whole_training_is_its_parts(monkeypatch: pytest.MonkeyPatch):
    """Data that is assumed does not say how many texts there are: the whole is not known then, and that is said."""
    config = settings("text")
    unknown = of(config)
    assert unknown.beside == {"language model": None} and unknown.training_tflop is None and "language model  not known" in table(unknown)
    monkeypatch.setattr("modalities.text.data.TextData.train", property(lambda self: Texts(640)))
    known = of(config)
    model = known.beside["language model"]
    assert model is not None and known.training_tflop == known.training["flops"] / 1e12 + model
    assert set(known.judges) == {"topic"} and costing.training_tflop(config) == known.training_tflop


def test_metrics_need_not_say_what_judges_take():
    modality = replace(pair(4), codec=nn.Identity())
    assert beside(modality) == {} and judges(modality) == {}


# The command


def cheaply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders are not run to see that they are none, which would take their weights."""
    monkeypatch.setattr("modalities.text.network.seen", lambda *_: (True, True))


def test_the_command_says_it_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert run(["cost", "data=digits", "out=cost.json", "device=cpu"]) == 0
    said, held = capsys.readouterr().out, json.loads((tmp_path / "cost.json").read_text())
    assert "603,329" in said and held["parameters"]["total"] == 603329
    assert held == json.loads(json.dumps(of(composed("cost", ["data=digits", "device=cpu"])).facts()))
    assert run(["cost", "data=digits", "device=cpu", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == held and held["training_tflop"] == held["training"]["flops"] / 1e12
    assert run(["cost", "data=digits", "out=cost.json", "device=a100", "overwrite=true"]) == 0
    assert json.loads((tmp_path / "cost.json").read_text())["training"]["device"] == "a100"
    assert [path.name for path in tmp_path.iterdir()] == ["cost.json"]


HUB = ["data=image_hub", "data.dataset=someone/some-images"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=digits", "device=h200"], "h100"),
        (["data=digits", "device=-1"], "device is one of"),
        (["data=digits", "device=true"], "device is one of"),
        (["data=digits", "utilisation=0"], "utilisation is above 0"),
        (["data=digits", "utilisation=half"], "utilisation is above 0"),
        (["data=digits", "row=3"], "row is true or false"),
        (["data=digits", "json=yes"], "json is true or false"),
        (["data=digits", "json=true", "row=true"], "exclude each other"),
        (["data=digits", "out=no/such/folder/cost.json"], "its folder is not there"),
        (["data=digits", "sampler=feynman_kac", "sampler.particles=0"], "particles"),
        (["data=digits", "+assumed.data=3"], "assumed.data"),
        (["data=digits", "+assumed.bata.classes=3"], "assumed.bata"),
        (HUB, "+assumed.data.classes.label=10"),
        (["modality=audio", "data=fsdd"], "+assumed.data.classes.label=10"),
        (["data=image_folder", "data.root=nowhere"], "there is no such folder"),
        (["recipe=published/nothing"], "choose from: diffwave, fsdd, mnist, published/cifar10, "),
        (["recipe=text/sedd"], "(did you mean 'text/sed'?)"),
        ([*HUB, "+assumed.data.classes.label=0"], "assumed.data.classes.label is a number of classes, at least 1"),
        ([*HUB, "+assumed.data.classes.label=true"], "assumed.data.classes.label is a number of classes, at least 1"),
        ([*HUB, "+assumed.data.classes.lable=10"], "(did you mean 'label'?)"),
        (["data=digits", "out=held.json"], "out=held.json is there already; pass overwrite=true"),
        (["data=digits", "out=/proc/cost.json"], "out=/proc/cost.json cannot be written"),
        (["data=digits", "network.head=7", "network.attention=[8]"], "network.head"),
    ],
)
def test_bad_input_is_one_line(
    arguments: Sequence[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("POLYGUIDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POLYGUIDE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("held.json").write_text("held")
    assert run(["cost", *arguments]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("polyguide: ")]
    assert len(lines) == 1 and said in lines[0] and Path("held.json").read_text() == "held"


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    before = socket.getaddrinfo, socket.socket.connect
    with costing.offline(), pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 9))
    assert (socket.getaddrinfo, socket.socket.connect) == before


def test_what_is_assumed_is_that_alone():
    from modalities.text.assumed import Assumed

    vocabulary = Assumed(300).load()
    assert vocabulary is not None and vocabulary.size == 300
    uses: list[Callable[[], Any]] = [vocabulary.content, lambda: vocabulary.encode("a"), lambda: vocabulary.decode([2])]
    for use in (*uses, lambda: Assumed(300).pinned(vocabulary), lambda: Assumed(2)):
        with pytest.raises(UserError):
            use()


# The published sizes


def command(recipe: str) -> dict[str, Any]:
    arguments = [f"recipe=published/{recipe}"]
    return costing.with_facts(composed("cost", arguments), costing.shipped(arguments[0].partition("=")[2]))


ATTEND = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}


def diffusers_unet(channels: Sequence[int], blocks: int, attend: Sequence[bool], adaptive: bool, head: int, classes: int | None) -> Any:
    """The published networks as diffusers has them, without numbers."""
    plain = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"} if adaptive else {"down": "DownBlock2D", "up": "UpBlock2D"}
    ways = {way: [(ATTEND if there else plain)[way] for there in attend] for way in ("down", "up")}
    more = (
        {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet", "attn_norm_num_groups": 32}
        if adaptive
        else {}
    )
    with torch.device("meta"):
        return stubs.diffusers().UNet2DModel(
            sample_size=64 if adaptive else 32,
            block_out_channels=tuple(channels),
            layers_per_block=blocks,
            down_block_types=tuple(ways["down"]),
            up_block_types=tuple(reversed(ways["up"])),
            attention_head_dim=head,
            num_class_embeds=classes,
            **more,
        )


@pytest.mark.parametrize(
    ("recipe", "other"),
    [
        ("cifar10", ((128, 256, 256, 256), 2, (False, True, False, False), False, 256, None)),
        ("imagenet64", ((192, 384, 576, 768), 3, (False, True, True, True), True, 64, 1000)),
    ],
)
def test_u_nets_are_the_published_ones(recipe: str, other: Any):
    """All but the noise level's embedding, which is of 64 numbers and not as many as channels, and the embedding of what is absent."""
    config = command(recipe)
    modality, denoiser = imagined(config)
    theirs = diffusers_unet(*other)
    first, width, classes = other[0][0], 4 * other[0][0], other[5]
    count = sum(p.numel() for p in modality.network.parameters())  # type: ignore[attr-defined]
    own = width if classes else 11 * width
    assert count - own + (first - 64) * width == sum(p.numel() for p in theirs.parameters())
    with torch.device("meta"), counter() as counted:
        label = torch.zeros(1, dtype=torch.long) if classes else None
        theirs(torch.zeros(1, *modality.shape), torch.zeros(1), class_labels=label)
    from guidance.cost import evaluation

    here = evaluation(modality, denoiser)
    assert here.embed + here.denoise + 2 * (first - 64) * width == counted.get_total_flops()


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("size", [None, (3, 4), (10, 13)])
def test_a_block_that_shifts_alone_or_resizes_is_its_formula(adaptive: bool, size: tuple[int, int] | None):
    f, draw = nn.functional, torch.Generator().manual_seed(0)
    block = ResBlock(8, 12, 6, 0.0, adaptive).double()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    x, told = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((2, 8, 5, 7), (2, 6)))

    def to_size(y: Tensor) -> Tensor:
        """By the definition: the mean over the positions that a new one covers, or the position that it lies in."""
        if size is None:
            return y
        (h, w), (new_h, new_w) = y.shape[2:], size
        made = torch.empty(*y.shape[:2], *size, dtype=y.dtype)
        for i in range(new_h):
            for j in range(new_w):
                rows = slice(i * h // new_h, -(-(i + 1) * h // new_h) if new_h < h else i * h // new_h + 1)
                columns = slice(j * w // new_w, -(-(j + 1) * w // new_w) if new_w < w else j * w // new_w + 1)
                made[:, :, i, j] = y[:, :, rows, columns].mean((2, 3))
        return made

    h = f.silu(f.group_norm(x, 2, block.norm1.weight, block.norm1.bias))
    h = f.conv2d(to_size(h), block.conv1.weight, block.conv1.bias, padding=1)
    shift = (told @ block.scale_shift.weight.T + block.scale_shift.bias)[:, :, None, None]
    if adaptive:
        h = (1 + shift[:, :12]) * f.group_norm(h, 3, block.norm2.weight, block.norm2.bias) + shift[:, 12:]
    else:
        h = f.group_norm(h + shift, 3, block.norm2.weight, block.norm2.bias)
    h = f.conv2d(f.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x, told, size), f.conv2d(to_size(x), block.skip.weight, block.skip.bias) + h)


@pytest.mark.parametrize("more", [{"middle": 3}, {"resampling": "pooling"}])
def test_settings_of_the_u_net_that_are_none(more: dict[str, Any]):
    with pytest.raises(UserError, match=next(iter(more))):
        UNet((1, 8, 8), {}, 8, **more)


def test_a_u_net_of_odd_sizes_and_the_names_of_a_plain_ones_weights():
    published = UNet((3, 13, 9), {}, 8, (1, 2, 2), 1, middle=2, adaptive=False, resampling="block", attention=(7,), head=8)
    assert published(torch.zeros(1, 3, 13, 9), torch.zeros(1), None).shape == (1, 3, 13, 9)
    plain = UNet((3, 13, 9), {}, 8, (1, 2), 1)
    assert {name.split(".")[0] for name in plain.state_dict()} == {"noise", "first", "down", "up", "middle", "last"}
    assert [name for name in plain.state_dict() if name.startswith("down.1.")] == ["down.1.weight", "down.1.bias"]


PUBLISHED = {
    "cifar10": (35.7e6, 0.002),
    "cifar10_iddpm": (52.5e6, 0.002),
    "imagenet64": (296e6, 0.002),
    "sc09": (24.1e6, 0.10),
    "ljspeech_base": (2.64e6, 0.01),
    "ljspeech_large": (6.91e6, 0.005),
    "diffusion_lm": (80e6, 0.09),
    "sed_s": (135e6, 0.12),
}


def rows_of_the_page() -> dict[str, list[str]]:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `published/(\w+)` \| (.*) \|$", page, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_published_size_is_made_and_is_what_is_said_of_it(recipe: str, monkeypatch: pytest.MonkeyPatch):
    """The paper's parameters; the page's table and the recipe's header; the same model for `cost` and for `train`."""
    cheaply(monkeypatch)
    config, train = command(recipe), composed("train", [f"recipe=published/{recipe}", "out=x"])
    assert all(train[key] == config[key] for key in ("network", "trainer", "schedule", "sampler"))
    modality, _ = imagined(config)
    count = sum(p.numel() for p in modality.modules().parameters())
    published, near = PUBLISHED[recipe]
    assert count == pytest.approx(published, rel=near)
    cells, trainer = rows_of_the_page()[recipe], config["trainer"]
    header = (config_folder() / "recipe" / "published" / f"{recipe}.yaml").read_text(encoding="utf-8").partition("defaults:")[0]
    assert cells[0] == short(count) and f"{short(count)} parameters" in header
    flops, days = cells[8].split(" (")[0], cells[9]
    assert cells[8] == f"{flops} ({trainer['steps']:,})"
    assert f"{flops} in {trainer['steps']:,} steps of {trainer['batch_size']}: {days} days" in header


@pytest.mark.parametrize("recipe", ["cifar10", "ljspeech_base"])
def test_the_page_says_what_the_command_says(recipe: str):
    """All of them: tests/faults/scaling_rows.py."""
    made = of(command(recipe), f"published/{recipe}")
    assert row(made).strip("| ").split(" | ")[1:] == rows_of_the_page()[recipe]


def test_every_peak_has_both_precisions():
    assert all(half >= single > 0 for half, single in PEAKS.values())
    assert math.isclose(PEAKS["cpu"][1], 2 * 16 * 2 * 3e9)
