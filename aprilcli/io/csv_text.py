"""Cells and lines of the CSV files that grow during a scan (RFC 4180, UTF-8).

Bytes of file names that are not UTF-8 are unchanged (surrogates, as ``os.fsdecode`` gives them).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from aprilcli.io.append_file import LineFile, open_lines

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes text cells that begin so
MARK = "'"


@dataclass(frozen=True)
class Record:
    """A record of a CSV file: its cells, its bytes as text, and the position after it in bytes."""

    cells: tuple[str, ...]
    raw: str
    end: int


def cell_text(value: object) -> str:
    """Return a value as a cell: empty for None, a float as the shortest text that gives the same float32."""
    if value is None:
        return ""
    return str(np.float32(value)) if isinstance(value, float) else str(value)


def csv_line(cells: Iterable[object]) -> str:
    """Return one line with its line ending."""
    line = StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(map(cell_text, cells))
    return line.getvalue()


@contextmanager
def open_table(path: Path, columns: Sequence[str], keep: int = 0) -> Iterator[LineFile]:
    """Create a file with a header, or continue after the first ``keep`` bytes of an existing file."""
    with open_lines(path, keep) as lines:
        if keep == 0:
            lines.write(csv_line(columns))
        yield lines


def mark_formula(text: str) -> str:
    """Put a ``'`` before text that a spreadsheet would take for a formula; ``unmark_formula`` removes it."""
    return MARK + text if text.startswith((*FORMULA_STARTS, MARK)) else text


def unmark_formula(text: str) -> str:
    """Return the text that ``mark_formula`` was given."""
    return text.removeprefix(MARK)


def read_records(stream: BinaryIO) -> Iterator[Record]:
    """Read a CSV file record by record; quoted cells may contain line breaks. Raises csv.Error."""
    end, raw = 0, ""

    def lines() -> Iterator[str]:
        nonlocal end, raw
        for content in stream:
            end += len(content)
            line = content.decode("utf-8", "surrogateescape")
            raw += line
            yield line

    for cells in csv.reader(lines(), strict=True):
        yield Record(tuple(cells), raw, end)
        raw = ""
