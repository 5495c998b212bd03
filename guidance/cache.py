"""The folder for what can be made or fetched again: trained judges, data sets."""

import os
from pathlib import Path

from guidance.errors import UserError


def cache() -> Path:
    """The user's cache folder, or where POLYGUIDE_CACHE says; it exists afterwards."""
    import platformdirs

    folder = Path(os.environ.get("POLYGUIDE_CACHE") or platformdirs.user_cache_path("polyguide"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use the cache folder {folder}: {error.strerror}; set POLYGUIDE_CACHE to one that can be written") from None
    return folder
