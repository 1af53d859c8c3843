"""The results of a scan, read back from its output folder. Imports no torch."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aprilcli.core.threshold import Threshold
from aprilcli.errors import InputError
from aprilcli.io.records import read_own
from aprilcli.io.regions_csv import COLUMNS as REGION_COLUMNS
from aprilcli.io.regions_csv import RegionLine, read_regions
from aprilcli.io.scores_csv import COLUMNS, ScoreRow, read_rows
from aprilcli.text import printable
from aprilcli.types import Region
from aprilcli.workflows.scan_output import REGIONS, RUN, SCORES, map_path

SCAN_AGAIN = "scan again with --resume"
OTHER_VERSION = "written by another version of this program; scan again with --overwrite"

# what a report needs of run.json
RECORDED = {"images", "options", "model", "views", "bank", "threshold", "pixel_threshold", "recognition", "started"}


@dataclass(frozen=True)
class ScanResults:
    """What a scan wrote to ``out``. ``record``: run.json. ``images``: the folder that was scanned."""

    out: Path
    record: dict[str, Any]
    images: Path

    @classmethod
    def open(cls, out: Path, images: Path | None = None) -> ScanResults:
        """Read run.json and check the tables; ``images``: where the scanned images are now.

        Raises InputError for a folder without results, or with those of another version.
        """
        try:
            record = read_own(out / RUN)
        except OSError as error:
            raise InputError(f"{out}: no results of a scan ({RUN}: {error.strerror}); give the --out of one") from error
        if not record.keys() >= RECORDED or "csv_safe" not in record["options"]:
            raise InputError(f"{out / RUN}: {OTHER_VERSION if record else 'not the record of a scan'}")
        results = cls(out, record, images if images is not None else Path(record["images"]))
        _check_header(out / SCORES, COLUMNS)
        if results.pixel_threshold is not None:
            _check_header(out / REGIONS, REGION_COLUMNS)
        return results

    @property
    def threshold(self) -> Threshold | None:
        """The lowest score that is called anomalous; None if the scan gave no verdicts."""
        threshold = self.record.get("threshold")
        return None if threshold is None else Threshold(**threshold)

    @property
    def pixel_threshold(self) -> Threshold | None:
        """The value from which on a map belongs to a region; None if the scan had none."""
        threshold = self.record.get("pixel_threshold")
        return None if threshold is None else Threshold(**threshold)

    def rows(self) -> Iterator[tuple[ScoreRow, tuple[Region, ...]]]:
        """Yield the rows of scores.csv, in order, each with the regions of its image.

        Raises InputError for tables that are damaged or do not belong together.
        """
        safe = bool(self.record["options"]["csv_safe"])
        count = 0
        try:
            with ExitStack() as files:
                scores = files.enter_context((self.out / SCORES).open("rb"))
                lines: Iterator[RegionLine] = iter(())
                if self.pixel_threshold is not None:
                    lines = read_regions(files.enter_context((self.out / REGIONS).open("rb")), safe=safe)
                for row, _ in read_rows(scores, safe=safe):
                    count += 1
                    own = list(itertools.islice(lines, row.regions or 0))
                    if [line.path for line in own] != [row.path] * (row.regions or 0):
                        raise InputError(
                            f"{self.out / REGIONS}: lacks the regions of {printable(row.path)}; {SCAN_AGAIN}"
                        )
                    yield row, tuple(line.region for line in own)
        except (OSError, csv.Error) as error:
            raise InputError(f"{self.out}: its tables cannot be read ({error}); {SCAN_AGAIN}") from error
        counts = self.record.get("counts")  # of a scan that has finished
        if counts is not None and count != counts["scored"] + counts["unreadable"]:
            raise InputError(f"{self.out / SCORES}: incomplete or changed after {count} rows; {SCAN_AGAIN}")

    def map_path(self, row: ScoreRow) -> Path:
        """Return where the map of an image is."""
        return map_path(self.out, row.path)

    def image_path(self, row: ScoreRow) -> Path:
        """Return where an image is."""
        return self.images / row.path


def _check_header(path: Path, columns: tuple[str, ...]) -> None:
    try:
        with path.open("rb") as stream:
            header = stream.readline()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {SCAN_AGAIN}") from error
    if header.strip() != ",".join(columns).encode():
        raise InputError(f"{path}: {OTHER_VERSION}")
