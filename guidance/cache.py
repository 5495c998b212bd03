"""The folder for what can be made or fetched again: trained judges, data sets."""

import os
from pathlib import Path

from guidance.errors import UserError


def cache_folder() -> Path:
    """The user's cache folder, or where POLYGUIDE_CACHE says."""
    import platformdirs

    return Path(os.environ.get("POLYGUIDE_CACHE") or platformdirs.user_cache_path("polyguide"))


def cache() -> Path:
    """`cache_folder`, which exists afterwards."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use the cache folder {folder}: {error.strerror}; set POLYGUIDE_CACHE to one that can be written") from None
    return folder
