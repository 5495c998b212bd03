"""What a demo will do, in pieces, with the FLOP and the seconds of each."""

from collections.abc import Sequence
from typing import Any

from guidance import checkpoint
from guidance.commands.drawing import sampling
from guidance.commands.settings import whole_number
from guidance.condition import Condition, Label
from guidance.config import build
from guidance.cost import evaluations
from guidance.demo.parts import Part, Stage, cells_done
from guidance.demo.progress import Piece, spoken
from guidance.demo.timing import Bench, Speed
from guidance.errors import UserError
from guidance.experiment.findings import Experiment
from guidance.guide import Guidance, PerModel, rebuilt
from guidance.modality import CountedJudges
from guidance.model import Model

REPORT = "report"


def planned(part: Part) -> list[Piece]:
    """The pieces of a part. Nothing is timed of one that is done."""
    if part.whole:
        return [Piece(part.name, REPORT, "", 0.0, part.seconds["report"])]
    bench = Bench(part.stages[0].config)
    pieces: list[Piece] = []
    for stage in part.stages:
        pieces += of_training(part, stage, bench) if stage.command == "train" else of_sampling(part, stage, bench)
    return [*pieces, Piece(part.name, REPORT, "", 0.0, part.seconds["report"])]


def of_training(part: Part, stage: Stage, bench: Bench) -> list[Piece]:
    steps, whole = checkpoint.saved_steps(stage.out), bench.trainer.steps
    begun = bool(steps) or checkpoint.has_start(stage.out)
    made = [rest(part, stage)]
    for name, training in bench.modality.beside.items():
        try:
            cost = bench.side(training())
        except UserError:  # of data that is not here yet
            continue
        made.append(Piece(part.name, "", name, cost.flops, cost.seconds, float(begun)))
    cost = bench.step().times(whole)
    before = min(steps[-1] / whole, 1.0) if steps else 0.0
    return [*made, Piece(part.name, stage.name, "train", cost.flops, cost.seconds, before)]


def of_sampling(part: Part, stage: Stage, bench: Bench) -> list[Piece]:
    """Of samples, or of an experiment with the judges that it needs."""
    model = bench.model
    drawing, n = sampling(stage.config, model), whole_number(stage.config, "n")
    rows, terms = evaluations(bench.denoiser, drawing["sampler"], drawing["steps"], bool(bench.modality.conditions))
    row = bench.drawn(str(stage.config["precision"])).times(n * rows / terms)
    made = [rest(part, stage)]
    if stage.command == "sample":
        of = rows_of(build(stage.config["guidance"], "guidance"), model, n)
        cost = row.times(of)
        return [*made, Piece(part.name, stage.name, "sample", cost.flops, cost.seconds, float(stage.whole))]
    experiment = build(stage.config["experiment"], "experiment")
    if not isinstance(experiment, Experiment):
        raise UserError(f"experiment={stage.config['experiment']!r} is no experiment; `polyguide list` shows what can be chosen")
    states = cells_done(stage.out)
    weights = []
    for cell in experiment.cells(model, n):
        longer = 1.0 if cell.steps is None else cell.steps / drawing["steps"]
        weights.append(row.times(longer * rows_of(cell.guidance, model, n)).plus(Speed(0.0, part.seconds["cell"])))
    total = Speed(sum(w.flops for w in weights), sum(w.seconds for w in weights))
    if len(states) != len(weights):
        states = [False] * len(weights)
    before = sum(w.seconds for w, done in zip(weights, states, strict=True) if done) / (total.seconds or 1.0)
    begun = any(cells_done(other.out) for other in part.stages if other.command == "experiment")
    made += [] if begun else judges(part, experiment, bench, model)
    return [*made, Piece(part.name, stage.name, "experiment", total.flops, total.seconds, before)]


def judges(part: Part, experiment: Experiment, bench: Bench, model: Model) -> list[Piece]:
    """What is trained before samples can be measured, where the modality says what that takes."""
    metrics, watched = bench.modality.metrics, list(experiment.watched(model))
    if not isinstance(metrics, CountedJudges):
        return []
    specs = bench.modality.conditions
    needed = [name for k, name in enumerate(watched) if not k or (isinstance(spec := specs[name], Label) and not spec.quantity)]
    made = []
    for name in needed:
        cost = bench.side(metrics.judge_training(bench.modality.data, name))
        made.append(Piece(part.name, "", f"judge of {name}", cost.flops, cost.seconds))
    return made


def rest(part: Part, stage: Stage) -> Piece:
    """All that a stage does besides."""
    return Piece(part.name, stage.name, "", 0.0, part.seconds[stage.command], float(stage.whole))


def rows_of(guidance: Any, model: Model, n: int) -> float:
    """How many terms are evaluated for a sample in a step: those whose weight is no plain zero."""
    if not isinstance(guidance, Guidance):
        raise UserError(f"guidance={guidance!r} is no guidance; `polyguide list` shows what can be chosen")
    condition: Condition = model.condition(n, {})
    made = rebuilt(guidance, lambda part: part.of(model, n) if isinstance(part, PerModel) else part)
    return sum(not (isinstance(term.weight, int | float) and term.weight == 0) for term in made.terms(condition))


def unique(pieces: Sequence[Piece]) -> list[Piece]:
    """Each judge once, which several experiments need."""
    return list({(piece.part, piece.stage, piece.what): piece for piece in reversed(pieces)}.values())[::-1]


def table(pieces: Sequence[Piece], parts: Sequence[str]) -> str:
    """The plan as people read it: a line a part, and the total."""
    rows = [("part", "TFLOP", "here")]
    for name in [*parts, "total"]:
        of = [piece for piece in pieces if name in (piece.part, "total")]
        left = sum(piece.seconds * (1 - piece.before) for piece in of)
        work = sum(piece.flops for piece in of)
        rows.append((name, f"{work / 1e12:.1f}" if work else "", spoken(left) if work or name == "total" else "done"))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    return "".join(f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}\n" for a, b, c in rows)
