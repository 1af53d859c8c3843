"""What a run leaves behind: scores.csv, heatmaps as TIFF, run.json."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from aprilcli import __version__
from aprilcli.errors import OutputError
from aprilcli.io.atomic import output_errors, written_aside

DEFLATE_LEVEL = 1  # float maps hardly shrink further, only slower


@dataclass(frozen=True)
class ScoreRow:
    """One line of scores.csv; None is an empty field. ``path`` is relative to the scanned folder, with ``/``."""

    path: str
    status: str
    score: float | None = None
    text_score: float | None = None
    map_max: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    verdict: str | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None


COLUMNS = tuple(field.name for field in fields(ScoreRow))


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(np.float32(value)) if isinstance(value, float) else str(value)  # the shortest that round-trips


class ScoresFile:
    """scores.csv, open for writing: RFC 4180, UTF-8, each row on disk before the next begins."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        """Write through ``stream``; ``path`` is for messages. Use ``open_scores``."""
        self._path = path
        self._stream = stream
        self._writer = csv.writer(stream, lineterminator="\r\n")

    def write(self, row: ScoreRow) -> None:
        """Append a row. Raises OutputError (disk full, say); the rows before it stay whole."""
        self.write_cells([_text(value) for value in asdict(row).values()])

    def write_cells(self, cells: list[str]) -> None:
        """Append a line of cells as they stand."""
        with output_errors(self._path):
            self._writer.writerow(cells)
            self._stream.flush()


@contextmanager
def open_scores(path: Path) -> Iterator[ScoresFile]:
    """Create scores.csv with its header."""
    with output_errors(path):
        stream = path.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    with stream:
        scores = ScoresFile(path, stream)
        scores.write_cells(list(COLUMNS))
        yield scores


def write_map(path: Path, anomaly_map: NDArray[np.float32], description: dict[str, Any]) -> None:
    """Write a map [H, W] float32 as one deflated TIFF page, raw values; aside first, then renamed."""
    with written_aside(path) as temporary:
        tifffile.imwrite(
            temporary,
            anomaly_map,
            photometric="minisblack",
            compression="zlib",
            compressionargs={"level": DEFLATE_LEVEL},
            description=json.dumps(description),
            metadata=None,
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all. Raises OutputError."""
    with written_aside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions a result depends on."""
    packages = ("torch", "open_clip_torch", "numpy", "pillow")
    return {"aprilcli": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def timestamp() -> str:
    """Return the time now, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def require_new(path: Path, what: str) -> None:
    """Refuse to write over something that is there. Raises OutputError."""
    if path.exists():
        raise OutputError(f"{path}: {what} already exists; choose another place, or say --overwrite")
