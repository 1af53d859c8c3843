"""The files of a run: scores.csv, maps as TIFF, JSON records."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from io import FileIO, StringIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray

from aprilcli import __version__
from aprilcli.io.atomic import output_errors, written_aside

DEFLATE_LEVEL = 1  # higher levels are slower and hardly smaller for float maps


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
    return str(np.float32(value)) if isinstance(value, float) else str(value)  # shortest text that round-trips


class LineFile:
    """A text file open for appending, unbuffered."""

    def __init__(self, path: Path, stream: FileIO) -> None:
        """Use ``open_lines``; ``path`` is for messages."""
        self._path = path
        self._stream = stream

    def write(self, text: str) -> None:
        """Append all of a text or nothing. Raises OutputError, for example if the disk is full."""
        end = self._stream.tell()
        content = text.encode("utf-8", "surrogateescape")
        with output_errors(self._path):
            try:
                written = 0
                while written < len(content):
                    written += self._stream.write(content[written:])
            except OSError:
                self._stream.truncate(end)
                raise


@contextmanager
def open_lines(path: Path, keep: int = 0) -> Iterator[LineFile]:
    """Open a text file for appending after its first ``keep`` bytes; the rest is cut off."""
    with output_errors(path):
        path.touch()
        stream = path.open("rb+", buffering=0)
        stream.truncate(keep)
        stream.seek(keep)
    with stream:
        yield LineFile(path, stream)


def row_line(row: ScoreRow) -> str:
    """Return a row as a line of scores.csv (RFC 4180, UTF-8; bytes of a name that are not UTF-8 are unchanged)."""
    return _csv_line(_text(value) for value in asdict(row).values())


def _csv_line(cells: Iterable[str]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue()


@contextmanager
def open_scores(path: Path, keep: int = 0) -> Iterator[LineFile]:
    """Create scores.csv with its header, or continue after the first ``keep`` bytes of an existing file."""
    with open_lines(path, keep) as lines:
        if keep == 0:
            lines.write(_csv_line(COLUMNS))
        yield lines


def read_rows(stream: BinaryIO) -> Iterator[tuple[ScoreRow, int]]:
    """Read rows of a scores.csv as ``row_line`` writes them, each with the position after it, in bytes.

    Stops at the first line that is incomplete, damaged or foreign.
    """
    end, raw = 0, ""

    def lines() -> Iterator[str]:
        nonlocal end, raw
        for line in stream:
            end += len(line)
            raw += line.decode("utf-8", "surrogateescape")
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), strict=True)
    if tuple(next(reader, ())) != COLUMNS:
        return
    raw = ""
    for cells in reader:
        row = _parse(cells)
        if row is None or row_line(row) != raw:
            return
        raw = ""
        yield row, end


def _parse(cells: list[str]) -> ScoreRow | None:
    """Rebuild a row from its cells; None if they are not those of a row."""
    if len(cells) != len(COLUMNS) or cells[1] not in ("ok", "error"):
        return None
    values: dict[str, Any] = dict(zip(COLUMNS, (cell or None for cell in cells), strict=True))
    values["path"] = cells[0]
    try:
        for name in ("score", "text_score", "map_max", "p_value", "threshold"):
            values[name] = None if values[name] is None else float(np.float32(values[name]))
        for name in ("width", "height"):
            values[name] = None if values[name] is None else int(values[name])
    except ValueError:
        return None
    return ScoreRow(**values)


def write_map(path: Path, anomaly_map: NDArray[np.floating[Any]], description: dict[str, Any]) -> None:
    """Write a map [H, W], float32 or float16, raw values, as a TIFF of one deflated page. Raises OutputError."""
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
    """Write a JSON file, complete or not at all. Raises OutputError."""
    with written_aside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    packages = ("torch", "open_clip_torch", "numpy", "pillow")
    return {"aprilcli": __version__, "python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def timestamp() -> str:
    """Return the current time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
