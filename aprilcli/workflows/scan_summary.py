"""What `scan` prints at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rich.box
from rich.table import Table
from rich.text import Text

from aprilcli.core.decision import DecisionRule
from aprilcli.core.threshold import Threshold
from aprilcli.io.scores_csv import ScoreRow
from aprilcli.text import listed, printable
from aprilcli.workflows.console import table_text
from aprilcli.workflows.scan_output import COCO, MAPS, OVERLAYS, REGIONS, REPORT, SCORES, ZERO_SHOT
from aprilcli.workflows.scan_tally import LISTED, Tally

RESULTS = (SCORES, REGIONS, COCO, REPORT, MAPS, ZERO_SHOT, OVERLAYS)
BINS = 10  # of the histogram
WIDEST_BAR = 40  # characters
NO_VERDICTS = (
    "no verdicts: without good images or a threshold, a score only ranks images; it does not say which are defective"
)
NEXT_STEP = (
    "next: enroll good images (aprilcli enroll FOLDER --part NAME), or choose a --threshold from images that you know"
)


@dataclass(frozen=True)
class ScanSummary:
    """How a scan ended.

    ``kept``: rows of the run that this scan continued, None if it did not continue one.
    """

    tally: Tally
    kept: int | None
    rule: DecisionRule
    seconds: float
    out: Path


def summarize(summary: ScanSummary) -> str:
    """Return the counts, the most anomalous images, and where the results are."""
    return "\n".join(_lines(summary))


def _lines(summary: ScanSummary) -> Iterator[str]:
    tally, threshold = summary.tally, summary.rule.threshold
    new = tally.scored + tally.unreadable - (summary.kept or 0)
    speed = f"in {summary.seconds:.1f} s" + (f" ({new / summary.seconds:.1f} images/s)" if new else "")
    images = "1 image" if tally.scored == 1 else f"{tally.scored} images"
    yield f"{images} scored" + (f" {speed}" if summary.kept is None else "")
    if summary.kept is not None:
        yield f"resumed: {summary.kept} kept, {new} new {speed}"
    if threshold is not None:
        yield f"{tally.anomalous} anomalous (score at least {threshold.value:.4f}{_promise(threshold)})"
    elif tally.scored:
        yield NO_VERDICTS
        yield from _histogram(np.asarray(tally.scores))
        yield NEXT_STEP
    if tally.stricter is not None:
        yield (
            f"  at a rate of {tally.stricter.rate:g}, {tally.strictly_anomalous} of them "
            f"(score at least {tally.stricter.value:.4f}, not guaranteed with so few good images)"
        )
    if (pixel := summary.rule.pixel_threshold) is not None:
        yield f"{tally.with_regions} with regions (map at least {pixel.value:.4f}{_promise(pixel)})"
    if tally.unrecognised:
        yield f"{tally.unrecognised} unrecognised, which do not look like the part"
    if tally.unreadable:
        named = listed(tally.not_read, LISTED, tally.unreadable)
        yield f"{tally.unreadable} could not be read: {named}; see the error column of {SCORES}"
    if rows := tally.most_anomalous:
        flagged = {"anomalous": tally.anomalous, "unrecognised": tally.unrecognised}
        verdicts = " and ".join(verdict for verdict, count in flagged.items() if count)
        yield f"{verdicts} images:" if verdicts else "highest scores:"
        yield table_text(_table(rows, summary.rule))
        if sum(flagged.values()) > len(rows):
            yield f"  and {sum(flagged.values()) - len(rows)} more in {SCORES}"
    written = [path for name in RESULTS if (path := summary.out / name).exists()]
    yield f"results: {', '.join(f'{path}{os.sep}' if path.is_dir() else str(path) for path in written)}"


def _promise(threshold: Threshold) -> str:
    return "" if threshold.rate is None else f" for a false-alarm rate of {threshold.rate:g}"


def _histogram(scores: np.ndarray) -> Iterator[str]:
    """Yield a line for each bin: its lower and upper bound, a bar, and the number of images in it."""
    counts, bounds = np.histogram(scores, BINS, (0.0, max(1.0, float(scores.max()))))
    for count, low, high in zip(counts.tolist(), bounds[:-1], bounds[1:], strict=True):
        bar = "#" * -(-count * WIDEST_BAR // max(counts.max(), WIDEST_BAR))
        yield f"  {low:.1f} to {high:.1f}  {bar} {count}" if count else f"  {low:.1f} to {high:.1f}"


def _table(rows: Sequence[ScoreRow], rule: DecisionRule) -> Table:
    """Return the images with score, p-value, peak of the map and number of regions, as far as there are any."""
    level = "" if rule.pixel_threshold is None else f" (alarm at {rule.pixel_threshold.value:.4f})"
    columns = {
        "score": [f"{row.score:.4f}" for row in rows],
        "p-value": ["" if row.p_value is None else f"{row.p_value:.4f}" for row in rows],
        "cause": [row.cause or (row.verdict if row.verdict == "unrecognised" else "") for row in rows],
        f"map peak{level}": ["" if row.map_max is None else f"{row.map_max:.4f}" for row in rows],
        "at x, y": ["" if row.peak_x is None else f"{row.peak_x}, {row.peak_y}" for row in rows],
        "regions": ["" if row.regions is None else str(row.regions) for row in rows],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, header_style="")
    for title in shown:
        table.add_column(title, justify="right")
    table.add_column("image")
    for row, *cells in zip(rows, *shown.values(), strict=True):
        table.add_row(*cells, Text(printable(row.path)))
    return table
