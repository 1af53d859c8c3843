"""regions.csv of a scan: a line for each region of each image, in the order of scores.csv (RFC 4180, UTF-8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import BinaryIO

import numpy as np

from aprilcli.io.csv_text import csv_line, mark_formula, read_records, unmark_formula
from aprilcli.types import Region

COLUMNS = ("path", "rank", *(field.name for field in fields(Region)))


@dataclass(frozen=True)
class RegionLine:
    """A line of regions.csv: its text, and the position after it in bytes. ``rank`` 1 has the highest peak."""

    path: str
    rank: int
    region: Region
    raw: str
    end: int


def region_lines(path: str, regions: Sequence[Region], *, safe: bool = False) -> str:
    """Return an image's lines; ``safe``: with a path marked that a spreadsheet takes for a formula."""
    cell = mark_formula(path) if safe else path
    return "".join(csv_line((cell, rank, *astuple(region))) for rank, region in enumerate(regions, 1))


def read_regions(stream: BinaryIO, *, safe: bool = False) -> Iterator[RegionLine]:
    """Read the lines of a regions.csv; stops at the first that is incomplete, damaged or foreign. Raises csv.Error."""
    records = read_records(stream)
    header = next(records, None)
    if header is None or header.cells != COLUMNS:
        return
    for record in records:
        if len(record.cells) != len(COLUMNS) or not record.raw.endswith("\n"):
            return
        path, *numbers = record.cells
        try:
            rank, x, y, width, height, area = map(int, numbers[:-2])
            peak, mean = (float(np.float32(number)) for number in numbers[-2:])
        except ValueError:
            return
        region = Region(x, y, width, height, area, peak, mean)
        yield RegionLine(unmark_formula(path) if safe else path, rank, region, record.raw, record.end)
