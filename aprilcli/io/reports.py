"""What a run leaves behind: scores.csv, heatmaps as TIFF, run.json."""

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


class LineFile:
    """A text file open for appending, each line on its way to disk before the next begins."""

    def __init__(self, path: Path, stream: FileIO) -> None:
        """Write through ``stream``, unbuffered; ``path`` is for messages. Use ``open_lines``."""
        self._path = path
        self._stream = stream

    def write(self, text: str) -> None:
        """Append text whole or not at all. Raises OutputError (disk full, say); what was there stays."""
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
    """Open a text file for appending behind its first ``keep`` bytes; the rest is cut off."""
    with output_errors(path):
        path.touch()
        stream = path.open("rb+", buffering=0)
        stream.truncate(keep)
        stream.seek(keep)
    with stream:
        yield LineFile(path, stream)


def row_line(row: ScoreRow) -> str:
    """Return a row as scores.csv holds it: RFC 4180, in UTF-8 (bytes of a name that are no UTF-8 stand as they are)."""
    return _csv_line(_text(value) for value in asdict(row).values())


def _csv_line(cells: Iterable[str]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue()


@contextmanager
def open_scores(path: Path, keep: int = 0) -> Iterator[LineFile]:
    """Create scores.csv with its header, or go on behind the first ``keep`` bytes of the one there."""
    with open_lines(path, keep) as lines:
        if keep == 0:
            lines.write(_csv_line(COLUMNS))
        yield lines


def read_rows(stream: BinaryIO) -> Iterator[tuple[ScoreRow, int]]:
    """Read the rows of a scores.csv that stand as ``row_line`` writes them, with the position behind each.

    A torn, damaged or foreign line ends it.
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
    """Rebuild a row from its cells; None if they are not a row's."""
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
    """Write a map [H, W], float32 (or float16), as one deflated TIFF page, raw values; aside first, then renamed."""
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
