"""Commands in several processes, and killed and gone on with: the same bytes as from one process that nobody disturbed."""

import importlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from experiment_fakes import CONFIG, cheaply, experiment_config, measure, world
from launches import Started, launch, start, wait
from PIL import Image
from safetensors.torch import load_file

import guidance
from guidance import CFG, UserError, checkpoint, processes, shards
from guidance.cli import run
from guidance.commands.work import Work
from guidance.config import config_folder
from guidance.experiment import Tradeoff
from guidance.hydra import composed
from guidance.model import borders

TINY = ["network.channels=4", "network.multipliers=[1]", "network.blocks=1", "threads=1"]
N, BATCH = 10, 3
BORDERS = [0, 3, 5, 8]  # where the batches of so many begin
SAMPLE = ["sample", f"n={N}", f"batch_size={BATCH}", "sampler.steps=3", "threads=1", "out=out"]


@pytest.fixture(scope="module", autouse=True)
def as_for_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("modalities.image.metrics.LENGTH", {"steps": 40, "batch": 128})
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run(["train", *TINY, "trainer.batch_size=8", "trainer.steps=4", f"out={out}"]) == 0
    return out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def logging(command: Sequence[str], place: Path, log: Path, before: Callable[[int], None] = lambda first: None) -> Callable[[], int]:
    """The command, in a folder, with a line in the log for the first sample of each batch that it draws."""

    def task() -> int:
        import guidance.model as module

        os.chdir(place)
        sample = module.sample

        def noted(*args: Any, **kwargs: Any) -> Any:
            before(kwargs["first"])
            drawn = sample(*args, **kwargs)
            with open(log, "a") as file:
                file.write(f"{kwargs['first']}\n")
            return drawn

        module.sample = noted
        return run(list(command))

    return task


def drawn(log: Path) -> list[int]:
    return sorted(map(int, log.read_text().split()))


@pytest.fixture(scope="module")
def alone(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The samples of one process."""
    place, before = tmp_path_factory.mktemp("alone"), Path.cwd()
    os.chdir(place)
    assert run([*SAMPLE, f"run={trained}", "animate=true", "condition.digit=3"]) == 0
    os.chdir(before)
    return contents(place / "out")


# Sampling


@pytest.mark.parametrize("n", [1, 2, 7, 10, 256, 1000])
@pytest.mark.parametrize("size", [None, 1, 3, 64])
def test_borders_are_all_samples_once_in_batches_of_nearly_one_size(n: int, size: int | None):
    found = borders(n, size)
    assert [k for rows in found for k in range(rows.start, rows.stop)] == list(range(n))
    sizes = [rows.stop - rows.start for rows in found]
    assert max(sizes) <= (size or n) and max(sizes) - min(sizes) <= 1 and len(sizes) == -(-n // (size or n))


def test_some_batches_are_those_of_all(trained: Path):
    model = guidance.load(trained)
    every = list(model.latents(N, {"digit": 1}, guidance=CFG(2.0), batch_size=BATCH, steps=2))
    some = list(model.latents(N, {"digit": 1}, guidance=CFG(2.0), batch_size=BATCH, steps=2, batches=iter([2, 0])))
    assert torch.equal(some[0], every[2]) and torch.equal(some[1], every[0]) and len(some) == 2


@pytest.mark.parametrize("count", [2, 3])
def test_a_launch_samples_as_one_process_and_draws_every_batch_once(trained: Path, alone: dict[str, bytes], tmp_path: Path, count: int):
    command = [*SAMPLE, f"run={trained}", "animate=true", "condition.digit=3"]
    started = launch(count, logging(command, tmp_path, tmp_path / "log"), tmp_path / "said")
    assert wait(started) == [0] * count, [one.said() for one in started]
    assert contents(tmp_path / "out") == alone and drawn(tmp_path / "log") == BORDERS
    told = [one.out.read_text() for one in started]
    assert sum(f"{N} samples in out" in text for text in told) == 1, "whoever finishes says it"


def test_the_grid_is_of_the_samples_of_all_batches(trained: Path, alone: dict[str, bytes], tmp_path: Path):
    model = guidance.load(trained)
    files = [alone[f"{k:06d}.png"] for k in range(N)]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(file)))) for file in files])[:, None]
    grid = model.modality.render.table(pixels, tmp_path / "grid.png", [""] * 2, [""] * 8)
    assert grid.read_bytes() == alone["grid.png"]


def test_a_second_terminal_joins(trained: Path, alone: dict[str, bytes], tmp_path: Path):
    command, log = [*SAMPLE, f"run={trained}", "animate=true", "condition.digit=3"], tmp_path / "log"

    def waits(first: int) -> None:  # at its second batch, until the other has drawn one
        while first and not (log.exists() and len(drawn(log)) > 1):
            time.sleep(0.01)

    one = start(logging(command, tmp_path, log, waits), tmp_path / "said", "one")
    while not log.exists():
        time.sleep(0.01)
        assert one.process.is_alive(), one.said()
    refused = start(logging([*command, "overwrite=true"], tmp_path, log), tmp_path / "said", "refused")
    assert wait([refused]) == [2] and "other processes are at work in it; join them with resume=true" in refused.said()[0]
    two = start(logging([*command, "resume=true"], tmp_path, log), tmp_path / "said", "two")
    assert wait([one, two]) == [0, 0], (one.said(), two.said())
    assert contents(tmp_path / "out") == alone and drawn(log) == BORDERS


def killed(started: Started) -> None:
    started.process.kill()
    started.process.join()
    assert started.code == -signal.SIGKILL


def test_killed_sampling_goes_on(trained: Path, alone: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command, log = [*SAMPLE, f"run={trained}", "animate=true", "condition.digit=3"], tmp_path / "log"

    def stops(first: int) -> None:
        if first == BORDERS[2]:
            (tmp_path / "there").touch()
            time.sleep(60)

    started = start(logging(command, tmp_path, log, stops), tmp_path / "said", "killed")
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
        assert started.process.is_alive(), started.said()
    killed(started)
    before = contents(tmp_path / "out")
    assert run(command) == 2 and "holds unfinished samples; go on with resume=true" in capsys.readouterr().err
    assert run(["evaluate", f"run={trained}", "n=2", "out=out"]) == 2
    assert "holds unfinished samples; choose another out=" in capsys.readouterr().err
    assert run([*command, "resume=true", "seed=1"]) == 2
    assert "holds unfinished samples of seed=0, not 1; pass overwrite=true" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before, "and nothing is lost by asking"
    assert wait([start(logging([*command, "resume=true"], tmp_path, log), tmp_path / "said", "resumed")]) == [0]
    assert contents(tmp_path / "out") == alone
    assert drawn(log) == BORDERS, "only what was not kept is drawn"


@pytest.mark.parametrize("name", ["sampling_kills", "sweep_kills"])
def test_kills_at_any_moment_lose_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "faults"))
    cheaply(monkeypatch)
    if name == "sampling_kills":
        (tmp_path / "run").symlink_to(trained)
    assert "every file the same" in importlib.import_module(name).tried(tmp_path, 4, 24)


def test_what_is_done_is_left_alone_and_other_settings_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]):
    command = [*SAMPLE, f"run={trained}", "resume=true"]
    assert run(command) == 0, "where nothing is, it begins"
    before = contents(Path("out"))
    capsys.readouterr()
    assert run(command) == 0 and "holds all 10 samples already" in capsys.readouterr().out
    assert run([*command, "guidance.scale=2"]) == 2
    assert "out=out holds samples of guidance.scale=1.0, not 2; pass overwrite=true, or another out=" in capsys.readouterr().err
    assert run(["train", *TINY, "trainer.batch_size=8", "trainer.steps=1", "out=other"]) == 0
    assert run([*SAMPLE, "run=other", "resume=true"]) == 2
    assert "other weights: the run has been trained since" in capsys.readouterr().err
    assert contents(Path("out")) == before


def test_a_failing_command_leaves_what_was_there(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run([*SAMPLE, f"run={trained}"]) == 0
    before = contents(Path("out"))

    def fails(*args: Any, **kwargs: Any) -> None:
        raise UserError("no")

    with monkeypatch.context() as patch:
        patch.setattr("guidance.model.sample", fails)
        assert run([*SAMPLE, f"run={trained}", "seed=5", "overwrite=true"]) == 2
        assert contents(Path("out")) == before and not Path("out/.work").exists()
        assert run([*SAMPLE, f"run={trained}", "seed=5", "out=new"]) == 2 and not Path("new/.work").exists()
    assert run([*SAMPLE, f"run={trained}", "seed=5", "overwrite=true"]) == 0 and contents(Path("out")) != before
    capsys.readouterr()


def test_what_is_refused_in_a_launch_is_said_once_and_nobody_hangs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.json").write_text("{}")
    for wrong, words in (([], "already holds results"), (["sampler.steps=0"], "sampler.steps")):
        started = launch(3, [*SAMPLE, f"run={trained}", *wrong], tmp_path / f"said{len(wrong)}")
        codes = wait(started)
        assert codes[0] == 2 and all(code != 0 for code in codes)
        assert [words in line for one in started for line in one.said()] == [True], [one.said() for one in started]


def test_particles_are_the_same_in_any_number_of_processes(trained: Path, tmp_path: Path):
    command = ["sample", "n=24", "batch_size=9", "sampler=feynman_kac", "sampler.particles=4", "sampler.steps=3", "threads=1", "out=out"]
    command += [f"run={trained}", "condition.digit=3", "guidance.scale=1.5"]
    assert run(command) == 0
    one = contents(Path("out"))
    facts = json.loads(one["samples.json"])
    assert 0 < facts["lowest_effective_share"] <= 1 and 3 <= facts["starting_noises"] <= 24
    (tmp_path / "b").mkdir()
    assert wait(launch(2, logging(command, tmp_path / "b", tmp_path / "log"), tmp_path / "said")) == [0, 0]
    assert contents(tmp_path / "b" / "out") == one and drawn(tmp_path / "log") == [0, 8, 16]


# Evaluating and experiments


def test_evaluations_are_shared_and_go_on(trained: Path, tmp_path: Path):
    command = ["evaluate", "n=12", "scales=[0,1,2]", "sampler.steps=2", "threads=1", f"run={trained}", "out=out"]
    assert run(command) == 0
    one = contents(Path("out"))
    for place in ("two", "killed"):
        (tmp_path / place).mkdir()
    started = launch(2, logging(command, tmp_path / "two", tmp_path / "log"), tmp_path / "said")
    assert wait(started) == [0, 0], [x.said() for x in started]
    assert contents(tmp_path / "two" / "out") == one
    grids = len(drawn(tmp_path / "log")) - 3
    assert grids == 3, "a set of samples a scale, and the table's"

    def stops(first: int) -> None:
        if (tmp_path / "log2").exists():
            (tmp_path / "there").touch()
            time.sleep(60)

    one_of = start(logging(command, tmp_path / "killed", tmp_path / "log2", stops), tmp_path / "said", "killed")
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
        assert one_of.process.is_alive(), one_of.said()
    killed(one_of)
    assert wait([start(logging([*command, "resume=true"], tmp_path / "killed", tmp_path / "log2"), tmp_path / "said", "on")]) == [0]
    assert contents(tmp_path / "killed" / "out") == one and len(drawn(tmp_path / "log2")) == 6


def measured(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".lock"):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "seconds"}, sort_keys=True).encode()
        found[str(path.relative_to(out))] = content
    return found


@pytest.mark.parametrize("count", [2, 3])
def test_a_launch_measures_every_cell_of_an_experiment_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int):
    cheaply(monkeypatch)
    asked, n = Tradeoff([-1, 0, 0.5, 1, 2]), 6
    measure(asked, world(), tmp_path / "one", n)
    again = {"overwrite": True}

    def task() -> int:
        model = world()
        measure(asked, model, tmp_path / "out", n, experiment_config(asked), **again)
        (tmp_path / f"saved-{os.environ['RANK']}").write_text("\n".join(model.modality.render.saved))  # type: ignore[attr-defined]
        return 0

    (tmp_path / "out" / "cells").mkdir(parents=True)
    (tmp_path / "out" / "cells" / "old.json").write_text("{}")
    started = launch(count, task, tmp_path / "said")
    assert wait(started) == [0] * count, [one.err.read_text()[-500:] for one in started]
    assert measured(tmp_path / "out") == measured(tmp_path / "one")
    saved = [name for rank in range(count) for name in (tmp_path / f"saved-{rank}").read_text().split()]
    assert len(saved) == len(set(saved)) == len(asked.scales)


# Training


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
WRAP = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "ResBlock"}
TRAIN = ["train", *TINY, "network.dropout=0", "trainer.batch_size=12", "trainer.steps=6", "trainer.log_every=1", "trainer.warmup=0"]
TRAIN += ["trainer.decay=constant", "trainer.lr=0.01", "trainer.clip=0.05"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    assert run([*TRAIN, f"out={out}"]) == 0
    return out


def same_training(one: Path, other: Path) -> None:
    for name in ("model", "average", "optimizer"):
        ours, theirs = (load_file(checkpoint.latest(place) / f"{name}.safetensors") for place in (other, one))
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    losses = [[json.loads(line)["loss"] for line in (place / "metrics.jsonl").open()] for place in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[1]) == 6


@pytest.mark.parametrize(
    ("count", "settings", "place"),
    [
        (3, ["trainer.accumulate=2"], {}),
        (2, ["trainer.accumulate=2", "trainer.workers=1"], FSDP | WRAP | {"FSDP_RESHARD_AFTER_FORWARD": "false"}),
    ],
    ids=["accumulating", "in parts"],
)
def test_several_processes_train_as_one(one_process: Path, tmp_path: Path, count: int, settings: list[str], place: dict[str, str]):
    started = launch(count, [*TRAIN, *settings, f"out={tmp_path / 'run'}"], tmp_path / "said", **place)
    assert wait(started) == [0] * count, [one.said() for one in started]
    same_training(one_process, tmp_path / "run")


@pytest.mark.parametrize(("first", "then"), [((3, FSDP), (1, {})), ((1, {}), (2, FSDP))], ids=["from parts", "to parts"])
def test_training_goes_on_with_another_number_of_processes(one_process: Path, tmp_path: Path, first: Any, then: Any):
    for (count, place), steps in ((first, 3), (then, 6)):
        command = [*TRAIN, f"out={tmp_path / 'run'}", "resume=true", f"trainer.steps={steps}"]
        assert run(command) == 0 if count == 1 else wait(launch(count, command, tmp_path / "said", **place)) == [0] * count
    same_training(one_process, tmp_path / "run")


def test_dropout_in_two_processes_is_that_of_two_parts_of_a_batch(tmp_path: Path):
    """A network's own dropout depends on how many parts a batch is cut into, not on who does them."""
    command = [*TRAIN, "network.dropout=0.3"]
    assert run([*command, "trainer.accumulate=2", f"out={tmp_path / 'one'}"]) == 0
    assert wait(launch(2, [*command, f"out={tmp_path / 'two'}"], tmp_path / "said")) == [0, 0]
    same_training(tmp_path / "one", tmp_path / "two")


def test_a_batch_that_does_not_divide_is_refused_by_one_voice(tmp_path: Path):
    started = launch(3, [*TRAIN, "trainer.batch_size=16", f"out={tmp_path / 'run'}"], tmp_path / "said")
    codes = wait(started)
    assert codes[0] == 2 and all(code != 0 for code in codes)
    assert [line for one in started for line in one.said()] == [
        "polyguide: trainer.batch_size=16 does not divide into 1 parts on 3 processes"
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_when_one_process_ends_all_do(tmp_path: Path, how: int):
    out = tmp_path / "run"
    started = launch(2, [*TRAIN, "trainer.steps=1000000", "trainer.save_every=3", f"out={out}"], tmp_path / "said")
    while not checkpoint.saved_steps(out):
        time.sleep(0.01)
        assert all(one.process.is_alive() for one in started), [one.said() for one in started]
    os.kill(started[1].process.pid, how)
    for one in started:
        one.process.join(60)
    step = checkpoint.saved_steps(out)[-1]
    if how == signal.SIGKILL:
        assert started[0].code == 2 and len(started[0].said()) == 1, started[0].said()
        assert f"another process of this training has ended; the checkpoint of step {step} is kept" in started[0].said()[0]
    else:
        assert [one.code for one in started] == [130, 130]
        assert f"stopped at step {step} with a checkpoint" in started[0].out.read_text()
        assert [line for one in started for line in one.said()] == ["polyguide: stopped"]
    steps = f"trainer.steps={step + 2}"
    assert run([*TRAIN, steps, f"out={out}", "resume=true"]) == 0
    assert run([*TRAIN, steps, f"out={tmp_path / 'whole'}"]) == 0
    a, b = (load_file(checkpoint.latest(place) / "average.safetensors") for place in (out, tmp_path / "whole"))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("place", "settings", "words"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version: 1 (set fsdp_version: 2)"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "fsdp_activation_checkpointing"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "fsdp_cpu_ram_efficient_loading"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, "SIZE_BASED_WRAP"),
        ({}, {"precision": "fp16"}, "use bf16"),
        ({}, {"compile": True}, "trainer.compile=true"),
        ({}, {"sample_every": 5}, "trainer.sample_every"),
    ],
    ids=str,
)
def test_what_is_not_done_in_parts_is_refused(monkeypatch: pytest.MonkeyPatch, place: dict[str, str], settings: Any, words: str):
    for name, value in {**FSDP, **place}.items():
        monkeypatch.setenv(name, value)
    assert shards.wanted()
    with pytest.raises(UserError) as said:
        shards.check(guidance.Trainer(**settings))
    assert words in str(said.value) and "\n" not in str(said.value)


def test_the_config_for_parts_is_one_that_is_taken(monkeypatch: pytest.MonkeyPatch):
    """As accelerate hands it on: each fsdp_ setting in the environment, in capitals."""
    given = yaml.safe_load((Path(__file__).parents[1] / "examples" / "fsdp.yaml").read_text())
    assert given["distributed_type"] == "FSDP"
    for name, value in given["fsdp_config"].items():
        variable = name.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS")
        monkeypatch.setenv(variable, str(value).lower() if isinstance(value, bool) else str(value))
    shards.check(guidance.Trainer())
    network = guidance.model.assemble(composed("train", ["data=digits", "out=x"]))[0].network
    assert {type(unit).__name__ for unit in shards.units(network)} == {"ResBlock"}
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Block")
    with pytest.raises(UserError, match=r"no such parts, only.*ResBlock"):
        shards.units(network)


# Launchers of sweeps


def test_joblib_trains_two_at_a_time(tmp_path: Path):
    command = ["train", *TINY, "trainer.steps=2", "trainer.batch_size=4", "seed=0,1", "out=run${seed}", "hydra/launcher=joblib"]
    assert run([*command, "hydra.launcher.n_jobs=1", "-m"]) == 0  # in this process, which spares the time of starting another
    for seed in (0, 1):
        assert run(["train", *TINY, "trainer.steps=2", "trainer.batch_size=4", f"seed={seed}", f"out=one{seed}"]) == 0
        a, b = (load_file(checkpoint.latest(Path(f"{name}{seed}")) / "model.safetensors") for name in ("run", "one"))
        assert all(torch.equal(a[name], b[name]) for name in a)


SLURM = {"submitit_folder", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "partition"}
SLURM |= {"max_num_timeout", "additional_parameters", "array_parallelism", "_target_"}  # of hydra-submitit-launcher 1.2
RAY = {"_target_", "ray"}  # of hydra-ray-launcher 1.2


@pytest.mark.parametrize(("name", "keys", "package"), [("slurm", SLURM, "hydra-submitit-launcher"), ("ray", RAY, "hydra-ray-launcher")])
def test_launchers_compose_and_say_what_they_need(name: str, keys: set[str], package: str, capsys: pytest.CaptureFixture[str]):
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("train", ["out=x", f"hydra/launcher={name}"], return_hydra_config=True)
    made = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert isinstance(made, dict) and set(made) == keys and made["_target_"].startswith(f"hydra_plugins.{package.replace('-', '_')}.")
    assert run(["train", *TINY, "seed=0,1", "out=x${seed}", f"hydra/launcher={name}", "-m"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"polyguide: the launcher of this sweep is in the package {package}, which is not installed: pip install {package}"
    ]


# Claims


def test_a_claim_is_of_one_until_it_is_given_back(tmp_path: Path):
    with processes.claim(tmp_path, "a") as mine, processes.claim(tmp_path, "a") as again, processes.claim(tmp_path, "b") as other:
        assert mine and other and not again
    with processes.claim(tmp_path, "a") as mine:
        assert mine


def test_units_are_told_of_as_done_elsewhere_when_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    work = Work(tmp_path, "samples", ("x*",), "x.json", CONFIG, "w")
    told: list[str] = []
    with work.shared(False, False) as left:
        assert left
        work.write("b", {"k": 1}, {"t": torch.ones(2)})

        def late(folder: Path, name: str, wait: bool = False) -> Any:
            if name == "d":  # another does it between a look at what is done and the claim
                work.write("d", {"name": "another's"})
            return processes.claim(folder, name, wait)

        monkeypatch.setattr("guidance.commands.work.claim", late)
        for name in work.units(["a", "b", "c", "d"], told.append):
            work.write(name, {"name": name})
        assert (
            told == ["b", "d"]
            and work.facts("d") == {"name": "another's"}
            and work.facts("c") == {"name": "c"}
            and torch.equal(work.tensors("b")["t"], torch.ones(2))
        )
        with work.finishing() as mine:
            assert mine
    assert list(tmp_path.iterdir()) == []
