"""polyguide experiment."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from guidance import checkpoint
from guidance.commands.drawing import loaded, measured, sampling, settle_precision
from guidance.commands.output import vacant
from guidance.commands.settings import flag, settings_of, threads, whole_number
from guidance.commands.training import OF_THE_COMMAND, train
from guidance.config import build
from guidance.errors import UserError
from guidance.model import Model
from guidance.processes import launched, rank, world

if TYPE_CHECKING:
    from guidance.experiment.findings import Result


@launched()
def experiment(config: dict[str, Any], overrides: Sequence[str]) -> None:
    """polyguide experiment"""
    from guidance.experiment.cells import Cells
    from guidance.experiment.report import written

    result, title = measure(config)
    if rank():
        return  # every process of a launch waits for the last cell, and the first writes
    with Cells(result.folder).claim("report", wait=True):
        written([[result]], result.folder, title)


def measure(config: dict[str, Any]) -> "tuple[Result, str]":
    """Measure what is not measured yet of the experiment of a config; all of it, and a title for its page."""
    from guidance.experiment.conduct import conduct
    from guidance.experiment.findings import Experiment, stored_precision

    threads(config)
    n, overwrite, out = whole_number(config, "n", 2), flag(config, "overwrite"), measured(config)
    asked = config.get("experiment")
    if asked is None:
        raise UserError("experiment is missing; choose one, e.g. experiment=inverse; `polyguide list` shows them all")
    made = build(asked, "experiment")
    if not isinstance(made, Experiment):
        raise UserError(f"experiment={asked!r} is no experiment; `polyguide list` shows what can be chosen")
    vacant(out, True, ())
    settle_precision(config, lambda: None if overwrite else stored_precision(out))
    model = loaded(config)
    settings = sampling(config, model) | {"model": settings_of(config, "model")}
    settings["grid"](settings["schedule"] or model.denoisers["main"].schedule, settings["steps"])  # a grid that does not fit is refused

    def variant(name: str, of: Mapping[str, Any]) -> Model:
        place = out / "variants" / name
        wanted = {key: value for key, value in of.items() if key not in OF_THE_COMMAND}
        other = checkpoint.is_run(place) and any(checkpoint.read_config(place).get(key) != value for key, value in wanted.items())
        if other or checkpoint.saved_steps(place)[-1:] != [wanted["trainer"]["steps"]]:
            if world() > 1:
                raise UserError(f"{name} is still to be trained, which one process does: start the experiment once without a launcher")
            train({**deepcopy(wanted), "out": str(place), "resume": not other, "overwrite": other, "threads": None}, [])
        return loaded({**config, "run": str(place)})

    result = conduct(made, asked, model, out, n, settings, overwrite=overwrite, make=variant)
    return result, f"{made.title}: {model.modality.data.name}"
