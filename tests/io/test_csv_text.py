"""Cells and rows of the scan's CSV files, and texts that spreadsheets take for formulas."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aprilcli.io import regions_csv, scores_csv
from aprilcli.io.csv_text import FORMULA_STARTS, mark_formula, unmark_formula
from aprilcli.types import Region

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(NAMES)
def test_marked_text_never_begins_like_a_formula_and_is_restored(text: str) -> None:
    marked = mark_formula(text)
    assert not marked.startswith(FORMULA_STARTS)
    assert unmark_formula(marked) == text


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("path", ["a.png", "=1+1.png", "'quoted.png", "-x\n,y.png", "nicht utf-8 \udcff.png", '"@.png'])
def test_rows_and_regions_are_read_as_they_were_written(path: str, safe: bool) -> None:
    rows = [
        scores_csv.ScoreRow(
            path, "ok", 0.5, 0.25, 1.5, verdict="anomalous", regions=2, peak_x=3, peak_y=4, cause="map"
        ),
        scores_csv.ScoreRow(path, "error", error="-broken"),
    ]
    text = ",".join(scores_csv.COLUMNS) + "\r\n" + "".join(scores_csv.row_line(row, safe=safe) for row in rows)
    read = list(scores_csv.read_rows(io.BytesIO(text.encode("utf-8", "surrogateescape")), safe=safe))
    assert [row for row, _ in read] == rows
    assert read[-1][1] == len(text.encode("utf-8", "surrogateescape"))
    regions = [Region(1, 2, 3, 4, 5, 0.5, 0.25), Region(6, 7, 8, 9, 10, 0.25, 0.125)]
    text = ",".join(regions_csv.COLUMNS) + "\r\n" + regions_csv.region_lines(path, regions, safe=safe)
    lines = list(regions_csv.read_regions(io.BytesIO(text.encode("utf-8", "surrogateescape")), safe=safe))
    assert [(line.path, line.rank, line.region) for line in lines] == [(path, 1, regions[0]), (path, 2, regions[1])]


def test_incomplete_and_foreign_lines_end_the_reading() -> None:
    header = ",".join(regions_csv.COLUMNS) + "\r\n"
    line = regions_csv.region_lines("a", [Region(1, 2, 3, 4, 5, 0.5, 0.25)])
    for damaged in (line[:-3], line.replace("3", "x"), "a,1\r\n"):
        assert len(list(regions_csv.read_regions(io.BytesIO((header + line + damaged).encode())))) == 1
    assert list(regions_csv.read_regions(io.BytesIO(line.encode()))) == []
