"""The report page of a scan: what it says, and the small images of its rows. Imports no torch."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aprilcli.core.threshold import Threshold
from aprilcli.defaults import APRIL_GAN
from aprilcli.errors import InputError
from aprilcli.io import html_report as html
from aprilcli.io.overlays import Scale, read_levels
from aprilcli.io.records import timestamp
from aprilcli.io.scores_csv import ScoreRow
from aprilcli.text import listed, printable
from aprilcli.types import Region
from aprilcli.workflows.pipeline import map_ahead, read_as_recorded
from aprilcli.workflows.scan_output import MAPS
from aprilcli.workflows.scan_results import ScanResults

TEMPLATE = "scan.html.j2"
MAX_ROWS = 50_000  # of the table; scores.csv has all
MAX_BOXES = 50  # regions drawn in an image, those with the highest peaks
LISTED = 5  # names in a warning; the others are counted
COLUMNS = (
    *("path", "kind", "score", "p_value", "cause", "map_max", "peak_x", "peak_y", "regions", "width", "height"),
    *("error", "boxes"),
)
MUTUAL_RANGE = (0.5, 1.5)  # of the median of the maxima
NEXT_STEP = (
    "To get verdicts, enroll good images of the part (aprilcli enroll) and scan with --part, or look at the highest "
    "scores in the table, choose a score that separates defects from good parts, and scan with --threshold."
)

Rows = list[tuple[ScoreRow, tuple[Region, ...]]]


def read_most_anomalous(results: ScanResults) -> Rows:
    """Return all rows, each with its first ``MAX_BOXES`` regions, the highest score first, unreadable images last.

    Raises InputError.
    """
    rows = ((row, regions[:MAX_BOXES]) for row, regions in results.rows())
    return sorted(rows, key=lambda found: (found[0].score is None, -(found[0].score or 0)))


def scale_of(results: ScanResults) -> Scale:
    """Return the color scale of all maps of a scan."""
    threshold = results.pixel_threshold
    if threshold is None and "mutual" in results.record:  # the range depends on the folder
        maxima = [row.map_max for row, _ in results.rows() if row.map_max is not None]
        return Scale(*(factor * float(np.median(maxima)) for factor in MUTUAL_RANGE)) if maxima else Scale(0, 1)
    stages = len(results.record["model"]["stages"])
    has_bank = results.record["bank"] is not None
    return Scale.for_run(None if threshold is None else threshold.value, stages, has_bank=has_bank)


def has_maps(results: ScanResults) -> bool:
    """Return whether the scan wrote maps, or had nothing to write one of."""
    is_empty = results.record.get("counts", {}).get("scored") == 0
    return bool(results.record["options"]["maps"]) and (is_empty or (results.out / MAPS).is_dir())


def read_scanned(results: ScanResults, row: ScoreRow) -> Image.Image:
    """Read the image of a row as the scan did. Raises InputError if it cannot be read, or has another size now."""
    path = results.image_path(row)
    rgb = read_as_recorded(path, results.record["options"])
    if rgb.size != (row.width, row.height):
        now, then = f"{rgb.width} x {rgb.height}", f"{row.width} x {row.height}"
        raise InputError(f"{printable(path)}: has {now} pixels, but had {then} when it was scanned; scan again")
    return rgb


def write(results: ScanResults, path: Path, pool: ThreadPoolExecutor, ahead: int) -> tuple[int, int]:
    """Write the page; return the number of images, and of those without a small image for lack of space.

    Raises InputError for tables that cannot be read, OutputError.
    """
    rows = read_most_anomalous(results)
    in_table = rows[:MAX_ROWS]
    scale = scale_of(results) if has_maps(results) else None
    side = html.preview_side(len(in_table))

    def preview(numbered: tuple[int, ScoreRow]) -> html.Preview:
        return _preview(results, *numbered, scale, side)

    previews = map_ahead(pool, preview, enumerate(row for row, _ in in_table), ahead)
    count = html.write_page(path, TEMPLATE, _content(results, rows, in_table, scale), previews)
    return len(rows), len(in_table) - count


def _preview(results: ScanResults, number: int, row: ScoreRow, scale: Scale | None, side: int) -> html.Preview:
    if row.status == "error":
        return html.Preview(number, note=printable(row.error or ""))
    try:
        image = read_scanned(results, row)
    except InputError as error:
        return html.Preview(number, note=str(error))
    size, small = html.small_image(image, side)
    if scale is None or row.map_max is None:
        return html.Preview(number, image.size, small)
    try:
        levels = read_levels(results.map_path(row), size, scale)
    except InputError as error:
        return html.Preview(number, image.size, small, note=str(error))
    return html.Preview(number, image.size, small, html.layer_uri(levels, scale))


def _content(results: ScanResults, rows: Rows, in_table: Rows, scale: Scale | None) -> dict[str, Any]:
    record = results.record
    threshold, pixel = results.threshold, results.pixel_threshold
    kinds = ("normal", "anomalous", "unrecognised") if threshold is not None else ("scored", "unrecognised")
    scores: dict[str, list[float]] = {kind: [] for kind in kinds}
    for row, _ in rows:
        if row.score is not None:
            scores[_kind(row)].append(row.score)
    unreadable = sum(row.score is None for row, _ in rows)
    counts = [(kind, len(scores[kind])) for kind in ("anomalous", "unrecognised", "normal", "scored") if kind in scores]
    if record["recognition"] is None:
        counts = [(kind, count) for kind, count in counts if kind != "unrecognised"]
    folder = printable(results.images.name or str(results.images))
    number = f"{len(rows)} image" + ("" if len(rows) == 1 else "s")
    part = record["options"]["part"]
    threshold_text = "" if threshold is None else f"{threshold.value:.4f}"
    pixel_text = "" if pixel is None else f"{pixel.value:.2f}"
    return {
        "title": f"Scan of {folder}",
        "subtitle": f"{number}, scanned {record['started'][:16].replace('T', ' ')} UTC"
        + (f", compared with the part {printable(part)}" if part is not None else ", without a part"),
        "written": timestamp()[:16].replace("T", " ") + " UTC",
        "warnings": list(_warnings(results, rows)),
        "counts": [*counts, *([("unreadable", unreadable)] if unreadable else [])],
        "chart": html.histogram(scores, None if threshold is None else threshold.value),
        "chart_kinds": [kind for kind in kinds if scores[kind]],
        "threshold_text": threshold_text,
        "pixel_text": pixel_text,
        "promises": list(_promises(results)),
        "about": list(_about(results)),
        "label_commands": list(_label_commands(results)),
        "legend": None if scale is None else html.ramp(scale),
        "layer_name": "Map",
        "data": {
            "kind": "scan",
            # Labels that a browser keeps belong to these images and results, also when the scan is resumed.
            "id": hashlib.sha256(
                f"{record['images']}\n{results.out.absolute()}".encode("utf-8", "replace")
            ).hexdigest(),
            "columns": COLUMNS,
            "rows": [_cells(row, regions) for row, regions in in_table],
            "threshold_text": threshold_text,
            "pixel_text": pixel_text,
            "no_preview": "Only the most anomalous images have a preview: the page would be too large for more.",
        },
    }


def _kind(row: ScoreRow) -> str:
    return "unreadable" if row.score is None else row.verdict or "scored"


def _cells(row: ScoreRow, regions: Sequence[Region]) -> list[Any]:
    boxes = [[r.x, r.y, r.width, r.height, round(r.peak, 4)] for r in regions]
    others = {"kind": _kind(row), "boxes": boxes}
    return [others[name] if name in others else getattr(row, name) for name in COLUMNS]


def _warnings(results: ScanResults, rows: Rows) -> Iterator[str]:
    record = results.record
    if "finished" not in record:
        yield (
            "The scan has not finished: this report shows what it has so far. Continue it with --resume, then write "
            "the report again."
        )
    if results.threshold is not None and results.threshold.note:
        yield f"The threshold of the verdicts: {results.threshold.note}."
    for verdict, text in (
        ("unreadable", "could not be read"),
        ("unrecognised", "do not look like the part: check the camera, the light and the part"),
    ):
        names = [row.path for row, _ in rows if _kind(row) == verdict]
        if names:
            yield f"{len(names)} image{'' if len(names) == 1 else 's'} {text}: {listed(names, LISTED)}."
    missing = sum(row.status == "ok" and not _exists(results.image_path(row)) for row, _ in rows[:MAX_ROWS])
    if missing:
        yield (
            f"{missing} of {len(rows)} images are not in {printable(results.images)} any more, so they have no "
            f"preview. Name their folder: aprilcli report {_quoted(results.out)} --images FOLDER"
        )
    if not has_maps(results):
        yield "The scan wrote no maps, so this report cannot show where defects are."
    if len(rows) > MAX_ROWS:
        yield f"The table has the {MAX_ROWS} images with the highest scores; scores.csv has all {len(rows)}."


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that this system does not allow
        return False


def _promises(results: ScanResults) -> Iterator[str]:
    """Yield what the thresholds mean, in plain words."""
    threshold, pixel, recognition = results.threshold, results.pixel_threshold, results.record["recognition"]
    if "mutual" in results.record:
        yield (
            "Scores come from comparing the images with each other, and would be others beside other images. Defects "
            "that most images have cannot be found."
        )
    if threshold is None:
        yield (
            "There is no threshold: no good images were enrolled for comparison, and none was given. Scores without a "
            "threshold only rank the images: the higher, the more they look like damaged objects to the model."
            if results.record["bank"] is None
            else "There is no threshold: the part has no calibration, and none was given. Scores only rank the images."
        )
        yield NEXT_STEP
    elif threshold.rate is None:
        yield (
            f"An image is anomalous if its score is at least {threshold.value:.4f}. This threshold was chosen by "
            "hand, so nothing is promised about false alarms: check it on images that you know."
        )
    else:
        yield (
            f"An image is anomalous if its score is at least {threshold.value:.4f}, the threshold from the scores of "
            f"good images of the part for a false-alarm rate of {threshold.rate:g}. " + _rate_promise(threshold)
        )
        yield "Nothing is promised about the share of defects that is found."
    if pixel is not None and pixel.rate is not None:
        guaranteed = f"at most {pixel.rate:g}, under the same condition"
        probability = guaranteed if pixel.guaranteed else f"about {pixel.rate:g}, not guaranteed"
        yield (
            f"Regions are places where the map reaches {pixel.value:.4f}, a level from the same good images: a good "
            f"image has any region with a probability of {probability}. Score and map are "
            "judged separately, so a normal image may have a region, and an anomalous image none."
        )
    elif pixel is not None:
        yield f"Regions are places where the map reaches {pixel.value:.4f}, a level chosen by hand."
    if recognition is not None:
        yield (
            "Unrecognised images look unlike all good images of the part: another part, an empty station, or a camera "
            "that failed."
        )


def _rate_promise(threshold: Threshold) -> str:
    if threshold.guaranteed:
        return (
            "The rate is guaranteed on average over calibrations: a good image is called anomalous with a probability "
            f"of at most {threshold.rate:g}, if the good images of this scan resemble those of the calibration."
        )
    return "The rate is not guaranteed, for the reason in the warning above."


def _about(results: ScanResults) -> Iterator[tuple[str, str]]:
    record = results.record
    model, options = record["model"], record["options"]
    yield "Images", printable(results.images)
    yield "Results", printable(results.out.absolute())
    yield "Model", model["backbone"] + (f":{model['pretrained']}" if model["pretrained"] else "")
    views = record["views"]
    tiles = f", tiles of {views['tile']}" if views["tile"] else ""
    yield "Input size", ", ".join(map(str, views["sizes"])) + tiles
    if record["bank"] is not None:
        yield "Bank", f"{printable(record['bank']['path'])} (SHA-256 {record['bank']['sha256'][:12]})"
        yield "Method", record["bank"].get("method", APRIL_GAN)  # earlier versions knew no other
    if options["object_name"]:
        yield "Object", printable(options["object_name"])
    yield "Started", record["started"]
    yield "Finished", record.get("finished", "not finished")
    yield "Version", record["versions"]["aprilcli"]


def _label_commands(results: ScanResults) -> Iterator[tuple[str, str]]:
    options, images, part = results.record["options"], _quoted(results.images), ""
    if options["part"] is not None:
        banks = "" if options["banks"] == "banks" else f" --banks {_quoted(options['banks'])}"
        part = f" --part {_quoted(options['part'])}{banks}"
        yield (
            "Add the false alarms to the references of the part, so that images like them score lower:",
            f"aprilcli enroll {images}{part} --append --labels labels.csv",
        )
    yield "Measure how well the labeled images are told apart:", f"aprilcli eval {images}{part} --labels labels.csv"


def _quoted(path: Path | str) -> str:
    return shlex.quote(printable(path))
