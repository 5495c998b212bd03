"""polyguide demo: what it plans, one progress over all of it, the page as it grows, and nothing done twice."""

import io
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
from experiment_fakes import sketched

import guidance
from guidance import bar, commands
from guidance.cli import run
from guidance.commands.costing import found
from guidance.demo.forecast import WEIGHT, Forecast
from guidance.demo.parts import parts_of
from guidance.demo.plan import planned, table
from guidance.demo.progress import Line, Piece, Whole, spoken
from guidance.errors import UserError
from guidance.hydra import composed

# The forecast


def test_work_that_goes_as_planned_ends_when_it_was_said_to():
    of = Forecast([30.0, 60.0, 10.0], [0.5, 0.0, 0.0])
    assert of.left == 85 and of.done == 0.15
    for second in range(1, 61):
        of.spend(1, 1.0)
        of.reach(1, second / 60)
        assert of.left == pytest.approx(85 - second) and of.done == pytest.approx(0.15 + 0.6 * second / 60)


def test_the_time_left_follows_the_speed_that_is_seen():
    of = Forecast([100.0, 100.0, 50.0], [0.0, 0.0, 0.0])
    of.spend(0, 80.0)  # twice as slow as planned
    of.reach(0, 0.4)
    common = (WEIGHT + 80) / (WEIGHT + 40)
    own = (WEIGHT * common + 80) / (WEIGHT + 40)
    assert of.left == pytest.approx(60 * own + 150 * common)
    of.spend(1, 10.0)  # as planned: each piece keeps its own pace, and others take that of all
    of.reach(1, 0.1)
    common = (WEIGHT + 90) / (WEIGHT + 50)
    assert of.pace(2) == pytest.approx(common) and of.pace(0) > common > of.pace(1) > 1
    of.reach(0, 0.2)
    assert of.share[0] == 0.4, "what is done stays done"
    of.finish(2)
    assert of.share[2] == 1 and of.pace(1) == pytest.approx((WEIGHT * common + 10) / (WEIGHT + 10)), "what was not needed says nothing"
    for k in (0, 1):
        of.finish(k)
    assert of.left == 0 and of.done == 1


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_work_of_many_commands_is_one_progress_and_a_log_has_few_lines(unchecked: None):
    clock, log = Clock(), io.StringIO()
    pieces = [
        Piece("one", "train", "", 0, 10.0),
        Piece("one", "", "judge of it", 0, 20.0),
        Piece("one", "train", "train", 0, 100.0, before=0.25),
        Piece("one", "tradeoff", "experiment", 0, 50.0),
    ]
    whole = Whole(pieces, Line(log, clock), clock)
    assert whole.forecast.left == 155

    def work(task: bar.Task, steps: int, each: float) -> None:
        for _ in range(steps):
            clock.now += each
            task.advance()

    with bar.shown_by(whole), whole.doing("one", "train"):
        clock.now += 10  # reading: no one says how far it is
        with bar.working("train", 1000, done=250) as task:
            work(task, 375, 0.1)
            assert whole.forecast.share[2] == pytest.approx(0.625) and whole.forecast.left == pytest.approx(0.5 + 37.5 + 20 + 50, rel=0.01)
            with bar.working("something else", 7) as other:  # of no plan: its time is that of the work around it
                work(other, 7, 0.0)
            work(task, 375, 0.1)
    assert whole.forecast.spent == [pytest.approx(10), 0, pytest.approx(75), 0] and whole.forecast.share == [1, 0, 1, 0]
    with bar.shown_by(whole), whole.doing("one", "tradeoff"):
        for _ in bar.each(range(4), "judge of it", "step"):
            clock.now += 5
        experiment = bar.Bar(10, "experiment")
        for _ in range(10):
            clock.now += 5
            experiment(SimpleNamespace())  # type: ignore[arg-type]
    assert whole.forecast.done == 1 and whole.forecast.left == 0
    assert whole.forecast.spent[1:] == pytest.approx([20, 75, 45]), "the first is told after it"
    lines = log.getvalue().splitlines()
    assert len(lines) == 1 + int((clock.now - 100) // 20), "one every 20 seconds, and the first at once"
    assert lines[0] == " 14 %, 3 min left; one: training"
    assert any(re.fullmatch(r" \d\d %, \d+ (min|s) left; one: training, step \d+ of 1,000", line) for line in lines)
    assert any("; one: tradeoff, step " in line for line in lines) and any("; one: judge of it, step " in line for line in lines)
    with bar.working("afterwards", 3) as task:
        assert isinstance(task, bar.Drawn), "outside, tqdm draws again"


def test_on_a_terminal_the_line_is_written_over(unchecked: None):
    clock, log = Clock(), io.StringIO()
    log.isatty = lambda: True  # type: ignore[method-assign]
    line = Line(log, clock)
    for k in range(5):
        clock.now += 100
        line.show(f"{k} done")
    line.clear()
    assert log.getvalue() == "".join(f"\r{k} done\x1b[K" for k in range(5)) + "\r\x1b[K"


def test_times_are_said_in_words():
    assert [spoken(s) for s in (0, 3, 7.4, 42, 88, 91, 170, 700)] == ["5 s", "5 s", "5 s", "40 s", "90 s", "2 min", "3 min", "12 min"]


# The whole, on a tiny model


TINY = ["data=digits", "network.channels=4", "network.multipliers=[1]", "network.blocks=1", "trainer.batch_size=4", "trainer.steps=12"]
QUICK = ["n=20", "sampler.steps=3", "experiment.scales=[0,1,3]"]
EACH: dict[str, Any] = {
    "first": {"train": TINY, "experiments": {"tradeoff": QUICK}},
    "second": {
        "train": [*TINY, "seed=1"],
        "samples": {"threes": ["n=4", "sampler.steps=2", "condition.digit=3"]},
        "experiments": {"tradeoff": QUICK},
    },
}


def config(out: str = "demo", **more: Any) -> dict[str, Any]:
    return {**composed("demo", [f"out={out}"]), "parts": list(EACH), "each": EACH, **more}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counter[str]]:
    """Counts what is trained, drawn and measured; in a folder of its own."""
    counted, folder = Counter[str](), tmp_path_factory.mktemp("demo")

    def counting(name: str, of: Any) -> Any:
        def called(*args: Any, **more: Any) -> Any:
            counted[name] += 1
            if counted[name] == counted[f"stop at {name}"]:
                os.kill(os.getpid(), signal.SIGINT)
            return of(*args, **more)

        return called

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["polyguide"])
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        patch.setattr("modalities.image.metrics.LENGTH", {"steps": 5, "batch": 128})
        patch.setattr("guidance.estimate.statistic.__defaults__", (2,))
        patch.setattr("guidance.experiment.figures.write", counting("figure", sketched))
        patch.setattr("guidance.demo.timing.MOST", 1)
        patch.setattr("guidance.demo.timing.LEAST", 1)
        patch.setattr("guidance.train.update_average", counting("step", guidance.train.update_average))
        patch.setattr("guidance.experiment.conduct.measure", counting("cell", guidance.experiment.conduct.measure))
        patch.setattr("guidance.commands.sampling.together", counting("samples", guidance.commands.sampling.together))
        patch.setattr("guidance.judge.seeded", counting("judge", guidance.judge.seeded))
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        yield counted
        jaxtyping.config.update("jaxtyping_disable", False)


def test_the_plan_counts_what_cost_counts_and_its_parts_add_up(done: Counter[str]):
    parts = parts_of(config(), Path("demo"))
    pieces = [piece for part in parts for piece in planned(part)]
    cost = found({"device": "h100", "utilisation": 0.4, **composed("train", [*TINY, "out=x"])})
    flops = {(p.part, p.stage, p.what): p.flops for p in pieces}
    for name in EACH:
        assert flops[name, "train", "train"] == cost.training["flops"]
        assert flops[name, "tradeoff", "experiment"] == 20 * 3 * (1 + 1 + 2) * cost.flops["evaluation"]
        assert flops[name, "", "judge of digit"] == pytest.approx(1e12 * (cost.judges["digit"] or 0))
    assert flops["second", "threes", "sample"] == 4 * 2 * cost.flops["evaluation"], "at scale 1 one term is evaluated"
    told = [Piece(name, "", "", 1e12 * k, 60.0 * k, 0.5) for k, name in ((4, "first"), (8, "second"))]
    plan = "part TFLOP here, first 4.0 2 min, second 8.0 4 min, total 12.0 6 min"
    assert table(told, list(EACH)).split() == plan.replace(",", "").split()
    assert not Path("demo").exists() and not done["step"] and not done["cell"], "nothing is done before it is said"


def test_a_demo_that_is_interrupted_twice_does_nothing_twice_and_its_page_grows(done: Counter[str], capsys: pytest.CaptureFixture[str]):
    page = Path("demo/report.html")
    done["stop at step"] = 7
    with pytest.raises(KeyboardInterrupt):
        commands.demo(config(), ["out=demo"])
    said = capsys.readouterr()
    assert re.match(r"part +TFLOP +here\nfirst .*\nsecond .*\ntotal .*\n\(timed in \d+ s\)\n$", said.out), said.out
    assert re.search(r"stopped at \d+ %; nothing that is done is lost, go on with: polyguide demo out=demo\n$", said.err), said.err
    assert done["step"] == 7 and not done["cell"] and not page.exists()

    done["stop at cell"] = 5  # the second of the second part
    with pytest.raises(KeyboardInterrupt):
        commands.demo(config(), [])
    assert done["step"] == 24 and done["cell"] == 5
    text = page.read_text()
    assert re.search(r'<p class="missing">second is still to come: about \d+ (s|min)\.</p>', text) and 'http-equiv="refresh"' in text
    assert text.count("<section ") == 1
    drawn, capsys_before = done["figure"], capsys.readouterr()
    assert "Does guidance" not in capsys_before.out, "verdicts are on the page"

    commands.demo(config(), [])
    said = capsys.readouterr()
    assert re.search(r"^first +done\n", said.out, re.MULTILINE) and re.search(r"done in \d+ (s|min): demo/report\.html\n$", said.out)
    assert done["step"] == 24 and done["cell"] == 7 and done["samples"] == 1, "the cell that was interrupted is measured again, no other"
    assert done["figure"] == 3 * drawn, "those of the first part anew in this process, and once each"
    text = page.read_text()
    assert "still to come" not in text and "refresh" not in text and text.count("<section ") == 2

    commands.demo(config(), [])
    assert done["step"] == 24 and done["cell"] == 7 and done["samples"] == 1
    assert len(re.findall(r"^\w+ +done$", capsys.readouterr().out, re.MULTILINE)) == 2 and page.read_text() == text


@pytest.mark.parametrize(
    "more, line",
    [
        ({"parts": []}, r"parts is a list of some of first, second, e\.g\. parts=\[first\]; got parts=\[\]"),
        ({"parts": ["frist"]}, "part .*frist.*first"),
        ({"parts": ["first", "first"]}, "parts names one twice"),
        ({"each": {"first": {"experiments": {}}}, "parts": ["first"]}, "each.first has train"),
        ({"each": {"first": {"train": "data=digits"}}, "parts": ["first"]}, "each.first.train is a list of settings"),
        ({"each": {"first": {"train": ["data=digts"]}}, "parts": ["first"]}, "digts"),
        ({"each": {"first": {"train": TINY, "trian": []}}, "parts": ["first"]}, "key of each.first.*trian"),
        ({"out": "file"}, "out=file is a file"),
        ({"out": "other"}, r"out=other holds something else \(mine\.txt\); choose another out="),
        ({"out": "demo/first/run"}, "out=demo/first/run is a run"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(done: Counter[str], more: dict[str, Any], line: str):
    Path("file").write_text("")
    Path("other").mkdir(exist_ok=True)
    Path("other/mine.txt").write_text("mine")
    before, counts = sorted(Path().rglob("*")), Counter(done)
    with pytest.raises(UserError, match=line) as error:
        commands.demo({**config(), **more}, [])
    assert "\n" not in str(error.value) and sorted(Path().rglob("*")) == before and done == counts


def test_it_is_a_command_of_one_process(done: Counter[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    assert run(["demo", "parts=[imagee]"]) == 2
    assert "image, audio, text" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["demo"]) == 2
    assert capsys.readouterr().err == "polyguide: polyguide demo is one process: start it without a launcher\n"


def test_what_ships_are_parts_that_compose():
    parts = parts_of(composed("demo", []), Path("nowhere"))
    assert [part.name for part in parts] == ["image", "audio", "text"]
    assert [stage.name for stage in parts[2].stages] == ["train", "infill", "tradeoff", "inverse"]
    assert parts[2].stages[1].config["condition"] == {"infill": "What is the ____ of ..."}
