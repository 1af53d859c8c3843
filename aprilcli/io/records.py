"""JSON records of a run: what made it, and when."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from aprilcli import __version__
from aprilcli.io.atomic import written_aside


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, complete or not at all. Raises OutputError."""
    with written_aside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")


def read_own(path: Path) -> dict[str, Any]:
    """Return a JSON record that this package wrote; empty for any other content. Raises OSError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if isinstance(record["versions"], dict) and "aprilcli" in record["versions"] else {}
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}


def versions(engine: str = "torch", precision: str = "fp32") -> dict[str, str]:
    """Return the versions of the packages that a result depends on; ``engine``, ``precision``: of the image tower."""
    quantizer = ("nncf",) if precision == "int8" else ()
    packages = tuple(dict.fromkeys(("torch", engine, *quantizer, "open_clip_torch", "numpy", "pillow")))
    return {"aprilcli": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def timestamp() -> str:
    """Return the current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
