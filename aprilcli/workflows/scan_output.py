"""What a scan writes, so that nothing is lost: one writer at a time, rows in order, and a way to go on after a kill.

``scores.csv`` grows by a row as soon as that row's map stands under its name, and on the disk. ``.journal`` holds a
line for each row: its picture's size and times, and a digest of the row and its map. Whatever happens, the first rows
for which all that still agrees are those of an undisturbed run: ``--resume`` keeps them and goes on behind them.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from aprilcli.errors import OutputError
from aprilcli.io import reports
from aprilcli.io.atomic import claimed as claimed_lock
from aprilcli.io.atomic import output_errors, remove_leftovers, remove_tree
from aprilcli.io.walk import FoundImage, find_images, is_image_name
from aprilcli.workflows.pipeline import stamp

SCORES, MAPS, RUN = "scores.csv", "maps", "run.json"
JOURNAL, LOCK = ".journal", ".lock"
PIECE = 1 << 20  # bytes of a map digested at a time
TIFF = ".tiff"
CHANGING = ("started", "finished", "counts")  # what may differ between a run and its resumption


@dataclass(frozen=True)
class ResumePoint:
    """What stands already: how many rows, the path of the last, and where each file ends behind them."""

    rows: int = 0
    last: str = ""
    scores_end: int = 0
    journal_end: int = 0


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Hold the output folder, made if need be, against a second scan. Raises OutputError while the first one lives."""
    with claimed_lock(out / LOCK, f"{out}: another scan is writing there; wait for it, or choose another --out"):
        for folder in (out, out / MAPS):
            remove_leftovers(folder, below=folder != out)
        yield


def has_results(out: Path) -> bool:
    """Say whether results of a scan stand in ``out``. Raises OutputError where that cannot be."""
    with output_errors(out):
        return any((out / name).exists() for name in (SCORES, RUN, MAPS, JOURNAL))


def refuse_results(out: Path) -> None:
    """Raise OutputError where results stand in ``out``: they are never replaced unasked."""
    if has_results(out):
        raise OutputError(
            f"{out}: already holds results; choose another --out, go on with --resume, or replace them with --overwrite"
        )


def remove_results(out: Path) -> None:
    """Take away the results of an earlier scan, and nothing else. Raises OutputError where ``maps`` is not a scan's."""
    if (out / MAPS).exists() and not (out / RUN).exists():
        raise OutputError(f"{out / MAPS}: stands there without a scan's {RUN}; move it, or choose another --out")
    with output_errors(out):
        if (out / MAPS).exists():
            remove_tree(out / MAPS)
        for name in (SCORES, JOURNAL, RUN):  # run.json last: killed in between, these are still a scan's results
            (out / name).unlink(missing_ok=True)


def check_same_run(out: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with another model, bank or option than the run began with. Raises OutputError, naming it."""
    path = out / RUN
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        is_lost = isinstance(error, FileNotFoundError)
        way_on = "move what is beside it, or choose another --out" if is_lost else "--overwrite starts anew"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"{path}: does not say how its run began ({reason}); {way_on}") from error
    then, now = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(record))))
    differences = [
        f"{name}: {then.get(name)} then, {now.get(name)} now"
        for name in sorted(then.keys() | now.keys())
        if name.split(".")[0] not in CHANGING and then.get(name) != now.get(name)
    ]
    if differences:
        raise OutputError(f"{out}: its run began otherwise ({'; '.join(differences)}); --overwrite starts anew")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def find_resume_point(
    out: Path, found: Iterator[FoundImage], maps: bool, batch_size: int, on_row: Callable[[reports.ScoreRow], None]
) -> ResumePoint:
    """Find how much of an interrupted run is whole, take away the maps behind it, and tell ``on_row`` of what is kept.

    Stops at the first row that is torn, whose picture is another or has changed, or whose map is missing or damaged;
    and at a whole number of batches, so that the rest is encoded in the very batches of an undisturbed run.
    """
    kept = ResumePoint()
    batch: list[reports.ScoreRow] = []
    for picture, (row, written, scores_end, journal_end) in zip(found, _old_rows(out), strict=False):
        if row.path != picture.relative or written != journal_line(out, stamp(picture), row, maps):
            break
        batch.append(row)
        if len(batch) == batch_size:
            for one in batch:
                on_row(one)
            kept = ResumePoint(kept.rows + batch_size, row.path, scores_end, journal_end)
            batch = []
    _remove_maps_behind(out, kept.last)
    return kept


def comes_after(relative: str, last: str) -> bool:
    """Say whether a picture comes behind another in the order of the walk."""
    return os.fsencode(relative) > os.fsencode(last)


def _remove_maps_behind(out: Path, last: str) -> None:
    """Delete every map whose picture comes after ``last`` in the order of the walk: it has no row, or will anew."""
    with output_errors(out):
        for found in find_images(out / MAPS):
            picture = found.relative.removesuffix(TIFF)
            if found.relative.endswith(TIFF) and is_image_name(picture) and comes_after(picture, last):
                found.path.unlink()


def _old_rows(out: Path) -> Iterator[tuple[reports.ScoreRow, str, int, int]]:
    """Read whole rows with their journal lines, and where scores.csv and the journal end behind each."""
    journal_end = 0
    try:
        with (out / SCORES).open("rb") as scores, (out / JOURNAL).open("rb") as journal:
            for row, scores_end in reports.read_rows(scores):
                written = journal.readline()
                if not written.endswith(b"\n") or not _stays_inside(row.path):
                    return
                journal_end += len(written)
                yield row, written.decode("ascii", "replace").strip(), scores_end, journal_end
    except (OSError, UnicodeError, csv.Error):
        return  # what cannot be read is not kept; writing will say why


def _stays_inside(relative: str) -> bool:
    return not Path(relative).is_absolute() and ".." not in Path(relative).parts


def journal_line(out: Path, stamp: str, row: reports.ScoreRow, maps: bool) -> str:
    """Return what tells a row, its picture and its map, which must stand already, from any other.

    ``stamp`` is the picture's; ``maps``: whether rows have maps. Where a map is missing, nothing that was ever written.
    """
    digest = blake2b(reports.row_line(row).encode("utf-8", "surrogateescape"), digest_size=16)
    if maps and row.map_max is not None:
        try:
            with map_path(out, row.path).open("rb") as content:
                while piece := content.read(PIECE):
                    digest.update(piece)
        except OSError:
            return ""
    return f"{stamp} {digest.hexdigest()}"


def map_path(out: Path, relative: str) -> Path:
    """Return where a picture's map stands: its whole name and ``.tiff``, so no two pictures share one."""
    return out / MAPS / f"{relative}{TIFF}"


def map_collides(folder: Path, relative: str) -> bool:
    """Say whether a folder on a picture's way bears the name that another picture's map takes (``a.png.tiff/``)."""
    above = (str(parent) for parent in PurePosixPath(relative).parents if parent.name.endswith(TIFF))
    beside = (folder / parent.removesuffix(TIFF) for parent in above)
    return any(is_image_name(path.name) and path.is_file() for path in beside)


class ScanWriter:
    """Appends rows and journal lines behind what was kept."""

    def __init__(self, scores: reports.LineFile, journal: reports.LineFile) -> None:
        """Use ``open_writer``."""
        self._scores = scores
        self._journal = journal

    def write(self, journal_line: str, row: reports.ScoreRow) -> None:
        """Append a row and its ``journal_line``. Raises OutputError; what was there stays."""
        self._journal.write(journal_line + "\n")
        self._scores.write(reports.row_line(row))


@contextmanager
def open_writer(out: Path, kept: ResumePoint) -> Iterator[ScanWriter]:
    """Open scores.csv and the journal behind the rows that were kept."""
    with (
        reports.open_scores(out / SCORES, kept.scores_end) as scores,
        reports.open_lines(out / JOURNAL, kept.journal_end) as journal,
    ):
        yield ScanWriter(scores, journal)


def flush(out: Path) -> None:
    """Bring the rows to the disk itself."""
    with output_errors(out):
        for name in (SCORES, JOURNAL):
            with (out / name).open("rb+") as stream:
                os.fsync(stream.fileno())
