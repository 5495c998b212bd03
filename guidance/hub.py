"""Models on the Hugging Face hub: their names, fetching and uploading them."""

import glob
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guidance import checkpoint
from guidance.card import CARD
from guidance.errors import UserError
from guidance.model import Model
from guidance.saved import save


@dataclass(frozen=True)
class Named:
    """A model of the hub."""

    user: str
    name: str
    revision: str | None = None

    @property
    def repo(self) -> str:
        return f"{self.user}/{self.name}"


def named(run: object) -> Named | None:
    """The model of the hub that is meant by ``run``, if any: "user/name", or "user/name@revision".

    A path that exists is meant as such, and so is one that begins in a folder which exists: runs/digit, of which there is no such run, is
    not asked for elsewhere. With a revision it is a model of the hub.
    """
    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
    found = re.fullmatch(rf"({part})/({part})(?:@([A-Za-z0-9_][\w./-]*))?", run) if isinstance(run, str) else None
    if found is None or Path(found[0]).exists() or (found[3] is None and Path(found[1]).exists()):
        return None
    return Named(*found.groups())


def located(run: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: a folder on this machine, or where there is none, what the hub has under that name, fetched."""
    name = named(f"{run}@{revision}" if revision and not Path(run).exists() and isinstance(run, str) else run)
    if revision and (name is None or name.revision != revision):
        where = "is a folder" if Path(run).exists() else "is no name of a model on the hub, such as user/name"
        raise UserError(f"revision={revision} is for a model on the hub, and {run} {where}")
    return fetched(name) if name else Path(run)


@contextmanager
def answered(name: Named, before: str = "") -> Iterator[None]:
    """Whatever goes wrong with the hub, or on the way to it, as a UserError. ``before``: what was tried first."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise UserError("models on the hub need one more package: pip install 'polyguide[hub]'") from None
    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError:
        raise UserError(f"{name.repo} is gated: ask for access on its page on the hub, then log in with `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        what = "the Hugging Face hub has no such model; if it is private, log in with `hf auth login`, or set HF_TOKEN"
        raise UserError(f"{name.repo}: {before}{what}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name.repo} has no revision {name.revision!r} on the hub") from None
    except errors.HFValidationError as error:
        raise UserError(f"{name.repo}: {before}no model on the hub can be named so: {first_line(error)}") from None
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(name, before, error) from None
    except Exception as error:  # of the library, of what it uses to speak HTTP (which has changed), or of the file system
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(f"{name.repo}: the hub refuses ({status}); log in with `hf auth login`, or check the token") from None
        if status is not None:
            raise UserError(f"{name.repo}: the hub answers {status}: {first_line(error)}") from None
        if isinstance(error, OSError) and error.filename:
            raise  # a full disk, a cache that cannot be written
        raise unreachable(name, before, error) from None


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def unreachable(name: Named, before: str, error: BaseException) -> UserError:
    while error.__cause__ is not None:  # what the library makes of it is a long story
        error = error.__cause__
    return UserError(f"{name.repo}: {before}the Hugging Face hub cannot be reached ({first_line(error)})")


def fetched(name: Named) -> Path:
    """The folder, in the cache of `huggingface_hub`, with those files of a model that are read: nothing else is fetched."""
    with answered(name, "there is no such folder, and "):
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name.repo, revision=name.revision, allow_patterns=[checkpoint.CONFIG, checkpoint.CHECKSUMS, CARD]))
        if not checkpoint.is_run(folder):
            raise UserError(f"{name.repo} on the hub is no polyguide model: it has no {checkpoint.CONFIG}")
        if not (folder / checkpoint.CONFIG).read_bytes().startswith(b"format:"):
            raise UserError(f"{name.repo} on the hub is no polyguide model: its {checkpoint.CONFIG} is another program's")
        own = checkpoint.own_files(checkpoint.read_config(folder), folder)
        wanted = [
            glob.escape(file) for file in (checkpoint.CONFIG, checkpoint.CHECKSUMS, checkpoint.WEIGHTS, checkpoint.MOMENTS, CARD, *own)
        ]
        folder = Path(snapshot_download(name.repo, revision=folder.name, allow_patterns=wanted))  # of the same commit
    for file in (checkpoint.WEIGHTS, *own):
        if not (folder / file).is_file():
            raise UserError(f"{name.repo} on the hub is no whole polyguide model: it has no {file}")
    return folder


def push(model: Model, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """See `Model.push_to_hub`."""
    name = named(f"{repo_id}@main")
    if name is None:
        raise UserError(f"a model on the hub is named user/name, got {repo_id!r}")
    with answered(name), tempfile.TemporaryDirectory() as temporary:
        from huggingface_hub import CommitOperationAdd, HfApi

        folder = save(model, Path(temporary, "model"), repo_id)
        api = HfApi(token=token)
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        files = [CommitOperationAdd(path.name, str(path)) for path in sorted(folder.iterdir())]
        api.create_commit(repo_id, files, commit_message=message)  # all in one, so that nobody fetches a half
    return str(address)
