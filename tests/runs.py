"""What tests do to run folders."""

import json
from pathlib import Path
from typing import Any

from guidance.checkpoint import CHECKSUMS, SEAL


def unsealed(run: Path) -> Path:
    """The run without its checksums, as it was written before there were any: to see what lies below them."""
    (run / CHECKSUMS).unlink(missing_ok=True)
    for path in run.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in state.items() if key not in ("files", SEAL)}))
    return run


def snapshot(folder: Path) -> dict[Path, Any]:
    """What lies there; a folder's own time is not looked at, for a claim may have lain in it."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None for path in folder.rglob("*")}
