"""scores.csv of a scan: its columns, and its rows to and from text (RFC 4180, UTF-8)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from aprilcli.io.append_file import LineFile, open_lines


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
