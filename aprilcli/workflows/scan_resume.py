"""How a scan continues: which rows of an earlier run are complete, and whether the run may be continued.

The journal has a line for each row: a digest of the sizes and times of the images that were encoded together, and one
of the row, its regions and its map. ``--resume`` keeps the rows for which both are still right, as an uninterrupted
run would write the same. Those at the start stay in place. Those after the first gap are moved to ``.kept``, from which
they are appended again, in order, between the rows that are scored now.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import tifffile

from aprilcli.errors import OutputError
from aprilcli.io import regions_csv, scores_csv
from aprilcli.io.atomic import output_errors, written_aside
from aprilcli.io.image_formats import has_image_extension
from aprilcli.io.images import DECODER_ERRORS
from aprilcli.io.walk import FoundImage, find_images
from aprilcli.options import ScanOptions
from aprilcli.workflows.pipeline import batches, stamp
from aprilcli.workflows.scan_output import (
    JOURNAL,
    KEPT,
    MAPS,
    REGIONS,
    RUN,
    SCORES,
    TIFF,
    Ends,
    map_path,
    remove_kept,
)

CHUNK = 1 << 20  # bytes of a map digested at a time
CHANGING = ("started", "finished", "counts", "images")  # may differ between a run and its continuation
MACHINE = {"omp_num_threads": "number of threads", "cpu": "CPU capability"}  # change sums in their last bits only


@dataclass(frozen=True)
class ResumePoint:
    """Rows that stay in place: their number, the path of the last, and where the files end after them."""

    rows: int = 0
    last: str = ""
    ends: Ends = field(default_factory=Ends)


@dataclass(frozen=True)
class JournaledRow:
    """A row with its journal line, the lines of its regions, and notes about its image.

    ``is_kept``: whether an earlier run scored it.
    """

    row: scores_csv.ScoreRow
    line: str
    regions: str = ""
    notes: tuple[str, ...] = ()
    is_kept: bool = False


@dataclass(frozen=True)
class OldRow(JournaledRow):
    """A row of an earlier run: its number in scores.csv, -1 in .kept, and where the files end after it."""

    number: int = -1
    ends: Ends = field(default_factory=Ends)


def check_same_run(out: Path, record: dict[str, Any], derived: Sequence[str] = ()) -> list[str]:
    """Compare run.json with the ``record`` of this run; return notes about the machine. ``derived``: not compared.

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
        if name.split(".")[0] not in (*CHANGING, *derived) and then.get(name) != now.get(name)
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
    options: ScanOptions, found: Iterator[FoundImage], on_row: Callable[[scores_csv.ScoreRow], None]
) -> ResumePoint:
    """Find the complete rows of an earlier run; call ``on_row`` for each that stays in place, move the later to .kept.

    A row is complete if its image, the images encoded with it, its map and the row itself are unchanged. Whole batches
    are kept, so the rest is encoded in the batches of an uninterrupted run. Deletes the maps of all other images.
    """
    out, batch_size = options.out, options.batch_size
    point, is_in_place, moved = ResumePoint(), True, set[str]()
    with (
        written_aside(out / KEPT) as aside,
        aside.open("w", encoding="ascii") as kept,
        closing(rows_in_place(out, options.csv_safe)) as in_place,
        closing(_kept_rows(out)) as kept_before,
    ):
        old = _Lookup(heapq.merge(in_place, kept_before, key=lambda old: os.fsencode(old.row.path)))
        for batch in batches(found, batch_size):
            together = batch_digest([stamp(image) for image in batch])
            rows = [
                next((o for o in old.rows_of(image) if o.line == line_on_disk(options, together, o)), None)
                for image in batch
            ]
            whole = [row for row in rows if row is not None]
            numbers = range(point.rows, point.rows + len(batch))
            is_in_place = is_in_place and [row.number for row in whole] == list(numbers)
            if is_in_place:
                for row in whole:
                    on_row(row.row)
                point = ResumePoint(numbers.stop, whole[-1].row.path, whole[-1].ends)
            elif len(whole) == len(batch):
                for row in whole:
                    kept.write(json.dumps([row.line, asdict(row.row), row.regions]) + "\n")
                    moved.add(row.row.path)
    if not moved:
        remove_kept(out)
    _remove_other_maps(out, point.last, moved)
    return point


def insert_kept_rows(out: Path, found: Iterator[FoundImage], batch_size: int) -> Iterator[FoundImage | JournaledRow]:
    """Replace images by their rows in .kept: all images of a batch, or none. Deletes maps whose rows are left out.

    An image may have been added, changed or deleted after ``find_resume_point``.
    """
    if not (out / KEPT).exists():
        yield from found
        return
    with closing(_kept_rows(out)) as kept:
        old = _Lookup(kept, on_other=lambda row: _remove_map(out, row))
        for batch in batches(found, batch_size):
            together = batch_digest([stamp(image) for image in batch])
            rows = [row for image in batch for row in old.rows_of(image)]
            if len(rows) == len(batch) and all(row.line.startswith(f"{together} ") for row in rows):
                yield from rows
            else:
                for row in rows:
                    _remove_map(out, row)
                yield from batch
        old.skip_rest()


class _Lookup:
    """Finds the rows of images, both in the same order; ``on_other`` is called for the rows of other images."""

    def __init__(self, rows: Iterator[OldRow], on_other: Callable[[OldRow], None] = lambda _: None) -> None:
        self._rows, self._on_other = rows, on_other
        self._next = next(rows, None)

    def rows_of(self, image: FoundImage) -> list[OldRow]:
        """Return the rows of an image, those in place first."""
        found = []
        while self._next is not None and not comes_after(self._next.row.path, image.relative):
            if self._next.row.path == image.relative:
                found.append(self._next)
            else:
                self._on_other(self._next)
            self._next = next(self._rows, None)
        return found

    def skip_rest(self) -> None:
        while self._next is not None:
            self._on_other(self._next)
            self._next = next(self._rows, None)


def comes_after(relative: str, last: str) -> bool:
    """Return whether an image follows another in the order of the walk."""
    return os.fsencode(relative) > os.fsencode(last)


def _remove_map(out: Path, old: OldRow) -> None:
    path = map_path(out, old.row.path)
    with output_errors(path), suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def _remove_other_maps(out: Path, last: str, moved: set[str]) -> None:
    """Delete the maps of images after ``last``, except those ``moved``: they have no rows, or will be scored again."""
    with output_errors(out):
        for found in find_images(out / MAPS):
            image = found.relative.removesuffix(TIFF)
            is_other = found.relative.endswith(TIFF) and comes_after(image, last) and image not in moved
            if is_other and (has_image_extension(image) or _is_map(found.path)):
                found.path.unlink()


def _is_map(path: Path) -> bool:
    """Return whether a TIFF has the description of a scan's map; a user's own file stays."""
    with suppress(*DECODER_ERRORS), tifffile.TiffFile(path) as tiff:
        return "model" in json.loads(tiff.pages[0].description)
    return False


def rows_in_place(out: Path, safe: bool) -> Generator[OldRow, None, None]:
    """Read complete rows with their journal lines and regions, and the ends of the files after each."""
    journal_end = regions_end = 0
    try:
        with ExitStack() as files:
            scores = files.enter_context((out / SCORES).open("rb"))
            journal = files.enter_context((out / JOURNAL).open("rb"))
            all_regions: Iterator[regions_csv.RegionLine] = iter(())
            if (out / REGIONS).exists():
                all_regions = regions_csv.read_regions(files.enter_context((out / REGIONS).open("rb")), safe=safe)
            for number, (row, scores_end) in enumerate(scores_csv.read_rows(scores, safe=safe)):
                line = journal.readline()
                regions = list(itertools.islice(all_regions, row.regions or 0))
                if not line.endswith(b"\n") or len(regions) < (row.regions or 0) or not _is_inside(row.path):
                    return
                journal_end += len(line)
                regions_end = regions[-1].end if regions else regions_end
                yield OldRow(
                    row,
                    line.decode("ascii", "replace").strip(),
                    "".join(region.raw for region in regions),
                    is_kept=True,
                    number=number,
                    ends=Ends(scores_end, regions_end, journal_end),
                )
    except (OSError, UnicodeError, csv.Error):
        return  # unreadable rows are not kept; writing them will report the reason


def _kept_rows(out: Path) -> Generator[OldRow, None, None]:
    try:
        with (out / KEPT).open(encoding="ascii") as kept:
            for content in kept:
                line, values, regions = json.loads(content)
                row = scores_csv.ScoreRow(**values)
                os.fsencode(row.path)  # raises for text that no path has
                if not isinstance(line, str) or not isinstance(regions, str) or not _is_inside(row.path):
                    return
                yield OldRow(row, line, regions, is_kept=True)
    except (OSError, ValueError, TypeError, RecursionError):
        return  # see above


def _is_inside(relative: str) -> bool:
    return not Path(relative).is_absolute() and ".." not in Path(relative).parts


def batch_digest(stamps: Sequence[str]) -> str:
    """Return a digest of the ``stamp`` of each image of a batch: scores may depend on the batch in their last bits."""
    return blake2b("\n".join(stamps).encode(), digest_size=16).hexdigest()


def journal_line(batch: str, row: scores_csv.ScoreRow, regions: str, map_content: Iterable[bytes]) -> str:
    """Return the journal line of a row: the digest of its ``batch``, and one of the row, its regions and its map."""
    digest = blake2b((scores_csv.row_line(row) + regions).encode("utf-8", "surrogateescape"), digest_size=16)
    for chunk in map_content:
        digest.update(chunk)
    return f"{batch} {digest.hexdigest()}"


def line_on_disk(options: ScanOptions, batch: str, old: OldRow) -> str:
    """Return the journal line of a row and its map on disk, if it has one; empty if that is missing."""
    if not options.maps or old.row.map_max is None:
        return journal_line(batch, old.row, old.regions, ())
    try:
        with map_path(options.out, old.row.path).open("rb") as content:
            return journal_line(batch, old.row, old.regions, iter(lambda: content.read(CHUNK), b""))
    except OSError:
        return ""
