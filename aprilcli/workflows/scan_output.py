"""The output folder of a scan: scores.csv, regions.csv, maps/ and run.json, with one writer at a time.

A row and the lines of its regions are appended once its map is complete and on disk. ``.journal`` gets a line for each
row, which ``scan_resume`` compares with image, row, regions and map. ``.kept`` holds rows of an earlier run until they
are appended again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aprilcli.core.decision import DecisionRule, ScoreOf
from aprilcli.core.regions import peak_of
from aprilcli.errors import InputError, OutputError
from aprilcli.io import map_files, regions_csv, scores_csv
from aprilcli.io.append_file import LineFile, open_lines
from aprilcli.io.atomic import claimed as claimed_lock
from aprilcli.io.atomic import output_errors, remove_leftovers, remove_tree, sync
from aprilcli.io.csv_text import open_table
from aprilcli.io.overlays import remove_others
from aprilcli.io.walk import FoundImage, base_of, is_image
from aprilcli.options import ScanOptions
from aprilcli.types import Detection, Region
from aprilcli.workflows.pipeline import PreparedImage

SCORES, REGIONS, MAPS, RUN = "scores.csv", "regions.csv", "maps", "run.json"
ZERO_SHOT = "zero_shot_maps"  # beside the maps of mutual scoring
MUTUAL = ".mutual"  # what mutual scoring keeps until its rows are written
OVERLAYS, REPORT, COCO = "overlays", "report.html", "coco.json"  # made of these when the scan is done
JOURNAL, KEPT, LOCK = ".journal", ".kept", ".lock"
TIFF = ".tiff"


@dataclass(frozen=True)
class Ends:
    """Where the complete rows end in scores.csv, regions.csv and the journal, in bytes."""

    scores: int = 0
    regions: int = 0
    journal: int = 0


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Lock the output folder, which is made if necessary. Raises OutputError while another scan holds it."""
    with claimed_lock(out / LOCK, f"{out}: another scan is writing here; wait for it, or choose another --out"):
        for folder in (out, out / MAPS, out / ZERO_SHOT):
            remove_leftovers(folder, below=folder != out)
        yield


def has_results(out: Path) -> bool:
    """Return whether ``out`` holds results of a scan. Raises OutputError if it cannot be read."""
    with output_errors(out):
        return any((out / name).exists() for name in (SCORES, REGIONS, RUN, MAPS, ZERO_SHOT, MUTUAL, JOURNAL, KEPT))


def refuse_results(out: Path) -> None:
    """Raise OutputError if ``out`` holds results: they are never replaced without --overwrite."""
    if has_results(out):
        raise OutputError(
            f"{out}: already holds results; choose another --out, continue with --resume, or replace with --overwrite"
        )


def remove_results(out: Path) -> None:
    """Delete the results of an earlier scan and nothing else. Raises OutputError if they are not from a scan."""
    for name in (MAPS, ZERO_SHOT, OVERLAYS, SCORES, REGIONS, REPORT, COCO) if not (out / RUN).exists() else ():
        if (out / name).exists():
            raise OutputError(f"{out / name}: exists without a scan's {RUN}; move it, or choose another --out")
    with output_errors(out):
        for name in (MAPS, ZERO_SHOT, MUTUAL, OVERLAYS):
            if (out / name).exists():
                remove_tree(out / name)
        # run.json last: after a kill in between, the rest is still a scan's
        for name in (REPORT, COCO, REGIONS, SCORES, JOURNAL, KEPT, RUN):
            (out / name).unlink(missing_ok=True)


def remove_derived(out: Path) -> None:
    """Delete what was made of the tables and maps, which a resumed scan changes."""
    with output_errors(out):
        for name in (REPORT, COCO):
            (out / name).unlink(missing_ok=True)
        remove_others(out / OVERLAYS, lambda _: False)


def map_path(out: Path, relative: str, folder: str = MAPS) -> Path:
    """Return the path of an image's map: its whole name plus ``.tiff``, so no two images share one."""
    return out / folder / f"{relative}{TIFF}"


def write_map(
    options: ScanOptions,
    found: FoundImage,
    anomaly_map: NDArray[np.float32],
    description: dict[str, Any],
    folder: str = MAPS,
) -> bytes:
    """Write a map [H, W]; return the file's content. Raises InputError if the image's name leaves no place for it."""
    advice = "rename it, or scan with --no-maps"
    if _map_collides(base_of(options.paths), found.relative):
        raise InputError(f"{found.path}: its folder has the name of another image's map; {advice}")
    try:
        return map_files.write_map(map_path(options.out, found.relative, folder), anomaly_map, description)
    except OutputError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENAMETOOLONG:
            raise
        raise InputError(f"{found.path}: the name of its map would be too long; {advice}") from error


def _map_collides(folder: Path, relative: str) -> bool:
    """Return whether a folder above an image has the name of another image's map (``a.png.tiff/``)."""
    above = (str(parent) for parent in PurePosixPath(relative).parents if parent.name.endswith(TIFF))
    beside = (folder / parent.removesuffix(TIFF) for parent in above)
    return any(path.is_file() and is_image(path) for path in beside)


def score_row(
    rule: DecisionRule,
    image: PreparedImage,
    detection: Detection,
    regions: Sequence[Region] | None,
    score_of: ScoreOf,
) -> scores_csv.ScoreRow:
    """Return the row of an image that was scored; ``regions``: None without a pixel threshold."""
    verdict = rule.verdict(detection.score, detection.part_distance)
    is_anomalous = verdict == "anomalous"
    peak_x, peak_y = None, None
    if detection.anomaly_map is not None:
        peak_x, peak_y = peak_of(detection.anomaly_map, image.size_hw)
    return scores_csv.ScoreRow(
        path=image.found.relative,
        status="ok",
        score=detection.score,
        text_score=detection.text_score,
        map_max=detection.map_max,
        p_value=rule.p_value(detection.score),
        threshold=None if rule.threshold is None else rule.threshold.value,
        verdict=verdict,
        width=image.size_hw[1],
        height=image.size_hw[0],
        regions=None if regions is None else len(regions),
        peak_x=peak_x,
        peak_y=peak_y,
        cause=rule.cause(detection.score, detection.map_max, score_of) if is_anomalous else None,
    )


class ScanWriter:
    """Appends rows, the lines of their regions, and journal lines."""

    def __init__(self, scores: LineFile, regions: LineFile | None, journal: LineFile, safe: bool) -> None:
        """Use ``open_writer``."""
        self._scores = scores
        self._regions = regions
        self._journal = journal
        self._safe = safe

    def write(self, journal_line: str, regions: str, row: scores_csv.ScoreRow) -> None:
        """Append a row, its ``journal_line`` and the lines of its regions. Raises OutputError; earlier rows stay."""
        self._journal.write(journal_line + "\n")
        if self._regions is not None and regions:
            self._regions.write(regions)
        self._scores.write(scores_csv.row_line(row, safe=self._safe))


@contextmanager
def open_writer(out: Path, ends: Ends, *, with_regions: bool, safe: bool) -> Iterator[ScanWriter]:
    """Open the tables and the journal; what follows ``ends`` is cut off. ``safe``: see ``scores_csv.row_line``."""
    with (
        open_table(out / SCORES, scores_csv.COLUMNS, ends.scores) as scores,
        open_table(out / REGIONS, regions_csv.COLUMNS, ends.regions) if with_regions else nullcontext() as regions,
        open_lines(out / JOURNAL, ends.journal) as journal,
    ):
        yield ScanWriter(scores, regions, journal, safe)


def flush(out: Path) -> None:
    """Sync the rows to disk."""
    with output_errors(out):
        for name in (SCORES, REGIONS, JOURNAL):
            with suppress(FileNotFoundError), (out / name).open("rb+") as stream:
                sync(stream)


def remove_kept(out: Path) -> None:
    """Delete the rows of an earlier run, which have all been appended."""
    with output_errors(out):
        (out / KEPT).unlink(missing_ok=True)
