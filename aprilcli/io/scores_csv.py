"""scores.csv of a scan: its columns, and its rows to and from text (RFC 4180, UTF-8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, BinaryIO

import numpy as np

from aprilcli.io.csv_text import csv_line, mark_formula, read_records, unmark_formula


@dataclass(frozen=True)
class ScoreRow:
    """One line of scores.csv; None is an empty field. ``path`` is relative to the scanned folder, with ``/``.

    ``regions``: their number, None without a pixel threshold. ``peak_x``, ``peak_y``: where the map is highest, in
    pixels of the image. ``cause``: of the verdict ``anomalous``, ``text`` or ``map`` (see ``DecisionRule.cause``).
    ``zero_shot_max``: the maximum of the zero-shot map, where the score and ``map_max`` are those of mutual scoring.
    """

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
    regions: int | None = None
    peak_x: int | None = None
    peak_y: int | None = None
    cause: str | None = None
    zero_shot_max: float | None = None


COLUMNS = tuple(field.name for field in fields(ScoreRow))
_TEXTS = ("path", "error")  # of any content
_FLOATS = ("score", "text_score", "map_max", "p_value", "threshold", "zero_shot_max")
_INTEGERS = ("width", "height", "regions", "peak_x", "peak_y")


def row_line(row: ScoreRow, *, safe: bool = False) -> str:
    """Return a row as a line of scores.csv; ``safe``: with texts marked that a spreadsheet takes for formulas."""
    values = asdict(row)
    if safe:
        values |= {name: mark_formula(values[name]) for name in _TEXTS if values[name] is not None}
    return csv_line(values.values())


def read_rows(stream: BinaryIO, *, safe: bool = False) -> Iterator[tuple[ScoreRow, int]]:
    """Read rows of a scores.csv as ``row_line`` writes them, each with the position after it, in bytes.

    Stops at the first line that is incomplete, damaged or foreign. Raises csv.Error.
    """
    records = read_records(stream)
    header = next(records, None)
    if header is None or header.cells != COLUMNS:
        return
    for record in records:
        row = _parse(record.cells, safe)
        if row is None or row_line(row, safe=safe) != record.raw:
            return
        yield row, record.end


def _parse(cells: tuple[str, ...], safe: bool) -> ScoreRow | None:
    """Rebuild a row from its cells; None if they are not those of a row."""
    if len(cells) != len(COLUMNS) or cells[1] not in ("ok", "error"):
        return None
    values: dict[str, Any] = dict(zip(COLUMNS, (cell or None for cell in cells), strict=True))
    values["path"] = cells[0]
    if safe:
        values |= {name: unmark_formula(values[name]) for name in _TEXTS if values[name] is not None}
    try:
        values |= {name: float(np.float32(values[name])) for name in _FLOATS if values[name] is not None}
        values |= {name: int(values[name]) for name in _INTEGERS if values[name] is not None}
    except ValueError:
        return None
    return ScoreRow(**values)
