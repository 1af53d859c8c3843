"""How a scan continues: which rows of an interrupted run are complete, and whether the run may be continued.

The journal has a line for each row: size and times of its image, and a digest of the row and its map. The rows up to
the first disagreement are those of an uninterrupted run. ``--resume`` keeps them and scans the rest.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from aprilcli.errors import OutputError
from aprilcli.io import scores_csv
from aprilcli.io.atomic import output_errors
from aprilcli.io.walk import FoundImage, find_images
from aprilcli.workflows.pipeline import stamp
from aprilcli.workflows.scan_output import JOURNAL, MAPS, RUN, SCORES, TIFF, map_path

CHUNK = 1 << 20  # bytes of a map digested at a time
CHANGING = ("started", "finished", "counts")  # differ between a run and its continuation
MACHINE = {"omp_num_threads": "number of threads", "cpu": "CPU capability"}  # change sums in their last bits only


@dataclass(frozen=True)
class ResumePoint:
    """What is complete: the number of rows, the path of the last, and where each file ends after them, in bytes."""

    rows: int = 0
    last: str = ""
    scores_end: int = 0
    journal_end: int = 0


def check_same_run(out: Path, record: dict[str, Any]) -> list[str]:
    """Compare run.json with the ``record`` of this run; return notes about the machine.

    Raises OutputError that names each difference in model, bank or options.
    """
    path = out / RUN
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        is_lost = isinstance(error, FileNotFoundError)
        advice = "move the other files, or choose another --out" if is_lost else "replace the results with --overwrite"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"{path}: cannot tell how this run began ({reason}); {advice}") from error
    then, now = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(record))))
    changed = {
        name: f"{then.get(name)} then, {now.get(name)} now"
        for name in sorted(then.keys() | now.keys())
        if name.split(".")[0] not in CHANGING and then.get(name) != now.get(name)
    }
    if refused := [f"{name}: {values}" for name, values in changed.items() if name not in MACHINE]:
        raise OutputError(
            f"{out}: this run began differently ({'; '.join(refused)}); "
            "use the same settings, or replace the results with --overwrite"
        )
    return [
        f"another {MACHINE[name]} than at the start of this run ({values}): the last digits of scores may differ"
        for name, values in changed.items()
    ]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def find_resume_point(
    out: Path, found: Iterator[FoundImage], maps: bool, batch_size: int, on_row: Callable[[scores_csv.ScoreRow], None]
) -> ResumePoint:
    """Find how much of an interrupted run is complete, call ``on_row`` for each row kept, and delete later maps.

    Stops at the first row that is incomplete, whose image is different or has changed, or whose map is missing or
    damaged; and at a multiple of the batch size, so the rest is encoded in the batches of an uninterrupted run.
    """
    complete = ResumePoint()
    batch: list[scores_csv.ScoreRow] = []
    for image, (row, line, scores_end, journal_end) in zip(found, _old_rows(out), strict=False):
        if row.path != image.relative or line != journal_line(out, stamp(image), row, maps):
            break
        batch.append(row)
        if len(batch) == batch_size:
            for kept in batch:
                on_row(kept)
            complete = ResumePoint(complete.rows + batch_size, row.path, scores_end, journal_end)
            batch = []
    _remove_later_maps(out, complete.last)
    return complete


def comes_after(relative: str, last: str) -> bool:
    """Return whether an image follows another in the order of the walk."""
    return os.fsencode(relative) > os.fsencode(last)


def _remove_later_maps(out: Path, last: str) -> None:
    """Delete the maps of all images after ``last``: their rows are missing or will be written again."""
    with output_errors(out):
        for found in find_images(out / MAPS):
            image = found.relative.removesuffix(TIFF)
            if found.relative.endswith(TIFF) and comes_after(image, last):
                found.path.unlink()


def _old_rows(out: Path) -> Iterator[tuple[scores_csv.ScoreRow, str, int, int]]:
    """Read complete rows with their journal lines, and the ends of scores.csv and the journal after each."""
    journal_end = 0
    try:
        with (out / SCORES).open("rb") as scores, (out / JOURNAL).open("rb") as journal:
            for row, scores_end in scores_csv.read_rows(scores):
                line = journal.readline()
                if not line.endswith(b"\n") or not _is_inside(row.path):
                    return
                journal_end += len(line)
                yield row, line.decode("ascii", "replace").strip(), scores_end, journal_end
    except (OSError, UnicodeError, csv.Error):
        return  # unreadable rows are not kept; writing them will report the reason


def _is_inside(relative: str) -> bool:
    return not Path(relative).is_absolute() and ".." not in Path(relative).parts


def journal_line(out: Path, stamp: str, row: scores_csv.ScoreRow, maps: bool) -> str:
    """Return the journal line of a row: the ``stamp`` of its image and a digest of the row and its map on disk.

    ``maps``: whether rows have maps. Empty, as no line ever is, if the map is missing.
    """
    digest = blake2b(scores_csv.row_line(row).encode("utf-8", "surrogateescape"), digest_size=16)
    if maps and row.map_max is not None:
        try:
            with map_path(out, row.path).open("rb") as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
        except OSError:
            return ""
    return f"{stamp} {digest.hexdigest()}"
