"""Work in a folder that is cut into units, each done once: by as many processes as join in, and across kills.

OUT/.work/terms.json    what is being done, so that nothing else is mixed with it; the work is open while it is there
OUT/.work/units/        NAME.safetensors, tensors of a unit that is done, and NAME.json, its facts: written last, so that it is whole then
OUT/.work/locks/        a process holds a lock on the unit that it does; the system takes it back when the process dies

All of it is removed when the results are there.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from guidance.checkpoint import read_tensors, write_atomically
from guidance.commands.output import clear, vacant
from guidance.config import leaves
from guidance.errors import UserError
from guidance.processes import claim, first_alone, rank

FREE = ("out", "overwrite", "resume", "run", "device", "threads", "worker")
"""Settings that results do not depend on; of the run, the weights count."""

WAIT = 0.2  # seconds between two looks at what other processes do


class Work:
    """The units of a command's work.

    Args:
        out: the folder of its results.
        what: they are called in messages: "samples".
        own: patterns of its results in ``out``.
        result: the file in ``out`` that is written last, JSON with the ``terms``.
        config: the command's.
        weights: of the model.
    """

    def __init__(self, out: Path, what: str, own: Sequence[str], result: str, config: Mapping[str, Any], weights: str):
        self.out, self.what, self.own, self.result = out, what, own, out / result
        self.folder, self.locks, self.kept = (out / ".work" / part for part in ("", "locks", "units"))
        self.terms: dict[str, Any] = json.loads(json.dumps(terms_of(config, weights), default=str))
        self.token, self.me = "", uuid4().hex
        self.made = [place for place in (out, *out.parents) if not place.exists()]  # and is taken away again where nothing comes of it

    @contextmanager
    def shared(self, overwrite: bool, resume: bool) -> Iterator[bool]:
        """Take part in it: whether there is anything to be done.

        Raises: UserError where the folder holds results, or unfinished work, and neither ``resume`` nor ``overwrite`` says what of it; or
        where what it holds is of other settings.
        """
        vacant(self.out, True, ())
        first_alone(lambda: self._begin(overwrite, resume))
        with ExitStack() as held:
            with claim(self.locks, "begin", wait=True):
                known = self._known()
                if rank() and known.get("terms") == self.terms:
                    self.token = known["token"]
                if self.open:
                    held.enter_context(claim(self.locks, f"here-{self.me}"))
            try:
                yield self.open
            except BaseException:
                self._abandon()
                raise
            finally:
                (self.locks / f"here-{self.me}.lock").unlink(missing_ok=True)
                self._tidy()

    def _begin(self, overwrite: bool, resume: bool) -> None:
        with claim(self.locks, "begin", wait=True):
            try:
                self._start(overwrite, resume)
            finally:
                if not (self.folder / "terms.json").exists():
                    self._leave_nothing()

    def _leave_nothing(self) -> None:
        """Without the work, and the folders that were made for it where nothing came of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # that something is in one
            for place in self.made:
                place.rmdir()

    def _start(self, overwrite: bool, resume: bool) -> None:
        known = self._known()
        if resume and (known or self.result.is_file()):
            self._check(known.get("terms") if known else self._finished(), "unfinished " if known else "")
            self.token = str(known.get("token", ""))
            return
        if known and not overwrite:
            what = known.get("what", self.what)
            hint = "go on with resume=true, or pass overwrite=true, or another out=" if what == self.what else "choose another out="
            raise UserError(f"out={self.out} holds unfinished {what}; {hint}")
        if known and not self._alone():
            raise UserError(f"out={self.out}: other processes are at work in it; join them with resume=true, or choose another out=")
        vacant(self.out, overwrite, self.own)
        shutil.rmtree(self.kept, ignore_errors=True)
        (self.folder / "cleared").unlink(missing_ok=True)
        self.kept.mkdir(parents=True)
        self.token = uuid4().hex
        facts = {"what": self.what, "token": self.token, "terms": self.terms}
        write_atomically(self.folder / "terms.json", json.dumps(facts, indent=1).encode())

    def _finished(self) -> Any:
        return finished(self.result)

    def _check(self, found: Any, unfinished: str) -> None:
        """UserError where what was found is not of the same terms."""
        hint = "pass overwrite=true, or another out="
        if not isinstance(found, Mapping):
            raise UserError(f"out={self.out} holds {self.what} of another version; {hint}")
        old, new = leaves(found), leaves(self.terms)
        for name in dict.fromkeys([*new, *old]):
            if old.get(name) != new.get(name):
                what = f"{name}={old.get(name)}, not {new.get(name)}"
                what = "other weights: the run has been trained since" if name == "weights" else what
                raise UserError(f"out={self.out} holds {unfinished}{self.what} of {what}; {hint}")

    def _known(self) -> dict[str, Any]:
        return begun(self.folder)

    @property
    def open(self) -> bool:
        """Whether it still is to be done: results are not there, and nobody has begun anew."""
        return bool(self.token) and self._known().get("token") == self.token

    def _alone(self) -> bool:
        """Whether no other process is at work. Called with the claim on the beginning."""
        for path in self.locks.glob("here-*.lock"):
            if path.stem != f"here-{self.me}":
                with claim(self.locks, path.stem) as free:
                    if not free:
                        return False
        return True

    def _abandon(self) -> None:
        """After an error: nothing is left of work of which nothing is done."""
        with claim(self.locks, "begin", wait=True):
            if self.open and self._alone() and not any(self.kept.glob("*.json")):
                (self.folder / "terms.json").unlink(missing_ok=True)

    def _tidy(self) -> None:
        """No locks are left of work that is not there any more."""
        if self.folder.exists():
            with claim(self.locks, "begin", wait=True):
                if not (self.folder / "terms.json").exists():
                    self._leave_nothing()

    def done(self, unit: str) -> bool:
        return (self.kept / f"{unit}.json").is_file()

    def units(self, names: Sequence[str], elsewhere: Callable[[str], None] = lambda unit: None) -> Iterator[str]:
        """Those that this process is to do, each claimed until the next is asked for, until all are done, whoever does them.

        ``elsewhere`` is told of each that another process did.
        """
        pending = list(names)
        while pending and self.open:
            left, mine = [], 0
            for name in pending:
                if self.done(name):
                    elsewhere(name)
                    continue
                with claim(self.locks, name) as claimed:
                    if not claimed:
                        left.append(name)
                    elif self.open and not self.done(name):
                        mine += 1
                        yield name
                    else:
                        elsewhere(name)
            pending = left
            if pending and not mine:
                time.sleep(WAIT)

    def write(self, unit: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep what was found in a unit, which is done then."""
        from safetensors.torch import save

        if tensors:
            write_atomically(self.kept / f"{unit}.safetensors", save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
        write_atomically(self.kept / f"{unit}.json", json.dumps(facts, ensure_ascii=False).encode())

    def facts(self, unit: str) -> Any:
        return json.loads((self.kept / f"{unit}.json").read_bytes())

    def tensors(self, unit: str) -> Mapping[str, Tensor]:
        path = self.kept / f"{unit}.safetensors"
        return read_tensors(path) if path.exists() else {}

    def make_room(self) -> None:
        """Remove the results of an earlier command, once: it is known by now that this one works."""
        with claim(self.locks, "room", wait=True):
            if self.open and not (marker := self.folder / "cleared").exists():
                clear(self.out, self.own)
                marker.touch()

    @contextmanager
    def finishing(self) -> Iterator[bool]:
        """Whether this process is the one to put the results together. When it has, what was kept is removed."""
        with claim(self.locks, "finish", wait=True):
            mine = self.open
            yield mine
            if mine:
                with claim(self.locks, "begin", wait=True):
                    (self.folder / "terms.json").unlink()
                    shutil.rmtree(self.folder, ignore_errors=True)


def begun(folder: Path) -> dict[str, Any]:
    """What is being done in the folder of a work; nothing where nothing is."""
    try:
        facts = json.loads((folder / "terms.json").read_text())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def finished(result: Path) -> Any:
    """The terms of results that are there; None where they do not say."""
    try:
        facts = json.loads(result.read_text())
        return terms_of(facts["config"], facts["weights"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def stored_precision(out: Path, result: str) -> object:
    """That of the unfinished work in a folder, or of its results; None where there is neither."""
    terms = begun(out / ".work").get("terms") or finished(out / result)
    return terms.get("precision") if isinstance(terms, Mapping) else None


def terms_of(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """What results depend on."""
    return {**{key: value for key, value in config.items() if key not in FREE}, "weights": weights}
