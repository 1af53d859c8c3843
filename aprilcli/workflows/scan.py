"""`scan`: scores every image in a folder; writes a row and a map of each, in order, as they are ready.

find (sorted) → decode ahead on threads → resize → one encoder pass → score → resize the map → one TIFF, one CSV row
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import resizing
from aprilcli.core.decision import DecisionRule, ScoreOf
from aprilcli.core.detector import Detector
from aprilcli.core.encoder import describe_encoder
from aprilcli.core.regions import find_regions
from aprilcli.errors import InputError, OptionError
from aprilcli.io import records, regions_csv, scores_csv
from aprilcli.io.walk import FoundImage, base_of, find_images
from aprilcli.options import MapSize, ScanOptions, describe
from aprilcli.types import Detection, Region
from aprilcli.workflows import scan_output as output
from aprilcli.workflows import scan_resume as resume
from aprilcli.workflows.console import Console
from aprilcli.workflows.interrupt import interruptible
from aprilcli.workflows.loading import describe_bank, load_detector, load_part, note_old_bank, range_of
from aprilcli.workflows.pipeline import PreparedImage, Reader, images_ahead, map_ahead, worker_threads
from aprilcli.workflows.scan_output import RUN
from aprilcli.workflows.scan_resume import JournaledRow
from aprilcli.workflows.scan_summary import ScanSummary
from aprilcli.workflows.scan_tally import Tally

RATE_WITHOUT_PART = "--false-alarm-rate has no effect without --part: there are no good images for a threshold"
ENROLL_OR_CHOOSE = "enroll it again, or use --pixel-threshold"

# Options that change how a scan runs, not what it finds.
EXECUTION_OPTIONS = (
    *("engine", "out", "workers", "resume", "overwrite", "fail_on_anomaly", "allow_empty"),
    *("coco", "overlays", "report"),
)


def run_scan(options: ScanOptions, total: int, console: Console) -> ScanSummary:
    """Score every image in ``options.paths``, ``total`` in all as ``scan_checks.check`` counted them.

    Raises the package's errors; unreadable images get a row.
    """
    started, began = records.timestamp(), time.monotonic()
    bank = load_part(options.part, options.banks) if options.part is not None else None
    options = replace(options, value_range=range_of(bank, options.value_range))
    calibration = bank.calibration if bank is not None else None
    rule = DecisionRule.at_rate(calibration, options.false_alarm_rate, options.threshold, options.pixel_threshold)
    if options.coco and rule.pixel_threshold is None:
        raise OptionError(f"--coco: part {options.part} is not calibrated, so there are no regions; {ENROLL_OR_CHOOSE}")
    detector = load_detector(options, bank, console, images_to_scan(options))
    needing_maps = {"--pixel-threshold": options.pixel_threshold is not None, "--overlays": options.overlays}
    if given := [name for name, is_given in needing_maps.items() if is_given and not detector.has_maps]:
        raise OptionError(
            f"{' and '.join(given)}: {detector.encoder.spec.label} gives no maps without a projector; train or give a "
            "--projector, or use --part"
        )
    if bank is None and options.false_alarm_rate is not None:
        console.note(RATE_WITHOUT_PART)
    if calibration is not None and options.threshold is not None:
        rate = calibration.default_rate if options.false_alarm_rate is None else options.false_alarm_rate
        console.note(
            f"--threshold {options.threshold:g} replaces the part's threshold of "
            f"{calibration.threshold(rate).value:.4f} for a false-alarm rate of {rate:g}"
        )
    if bank is not None:
        note_old_bank(bank, console)
    for note in rule.notes:
        console.note(note)
    record = describe_run(options, detector, rule, started)
    tally = Tally(rule.stricter)
    with (
        output.claimed(options.out),
        worker_threads(options.workers) as pool,
        interruptible() as interrupted,
        console.progress(total, "scanning") as advance,
    ):
        resumed = _prepare_output(options, record, tally, console)
        point = resumed or resume.ResumePoint()
        kept = point.rows
        advance(point.rows)
        # By path, not by count: an image may have been added while the old maps were checked.
        found = (image for image in images_to_scan(options) if resume.comes_after(image.relative, point.last))
        items = resume.insert_kept_rows(options.out, found, options.batch_size)
        with_regions = rule.pixel_threshold is not None
        with output.open_writer(options.out, point.ends, with_regions=with_regions, safe=options.csv_safe) as writer:
            for scored in _score_all(options, detector, rule, pool, items, interrupted):
                writer.write(scored.line, scored.regions, scored.row)
                tally.count(scored.row)
                kept += scored.is_kept
                for note in scored.notes:
                    console.note_once(note)
                advance(1)
        output.flush(options.out)
        if interrupted():
            pool.shutdown(wait=False, cancel_futures=True)  # of images that were to be decoded
            raise KeyboardInterrupt
        output.remove_kept(options.out)
        records.write_json(options.out / RUN, {**record, "counts": tally.counts(), "finished": records.timestamp()})
    return ScanSummary(
        tally=tally,
        kept=None if resumed is None else kept,
        rule=rule,
        seconds=time.monotonic() - began,
        out=options.out,
    )


def images_to_scan(options: ScanOptions) -> Iterator[FoundImage]:
    """Yield the images to scan, in order."""
    return find_images(options.paths, follow=options.follow)


def _prepare_output(
    options: ScanOptions, record: dict[str, Any], tally: Tally, console: Console
) -> resume.ResumePoint | None:
    """Refuse existing results, delete them, or find how far they are complete; None unless a run is continued."""
    out = options.out
    if options.resume and output.has_results(out):
        for note in resume.check_same_run(out, record):
            console.note(note)
        output.remove_derived(out)
        records.write_json(out / RUN, record)  # without "finished"
        return resume.find_resume_point(options, images_to_scan(options), tally.count)
    if not options.overwrite:
        output.refuse_results(out)
    output.remove_results(out)
    records.write_json(out / RUN, record)
    return None


def describe_run(options: ScanOptions, detector: Detector, rule: DecisionRule, started: str) -> dict[str, Any]:
    """Return what run.json says of a scan when it begins."""
    return {
        "versions": records.versions(detector.encoder.engine, detector.encoder.precision),
        "options": {name: value for name, value in describe(options).items() if name not in EXECUTION_OPTIONS},
        "images": str(base_of(options.paths).resolve()),
        "model": detector.encoder.spec.to_json(),
        "views": asdict(detector.views),
        **describe_encoder(detector.encoder),
        # With other threads or registers, sums differ in their last bits.
        "omp_num_threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "projector": detector.projector.identity if detector.projector is not None else None,
        "bank": None if detector.bank is None else describe_bank(detector.bank, str(options.part), options.banks),
        **rule.describe(),
        "started": started,
    }


def describe_map(options: ScanOptions, detector: Detector, rule: DecisionRule) -> dict[str, Any]:
    """Return what the file of a map says of it."""
    return {
        "model": detector.encoder.spec.label,
        **({} if len(detector.views) == 1 else {"views": detector.views.label}),
        "projector": detector.projector.name if detector.projector is not None else None,
        "bank": options.part,
        "pixel_threshold": None if rule.pixel_threshold is None else rule.pixel_threshold.value,
    }


def _score_all(
    options: ScanOptions,
    detector: Detector,
    rule: DecisionRule,
    pool: ThreadPoolExecutor,
    items: Iterator[FoundImage | JournaledRow],
    interrupted: Callable[[], bool],
) -> Iterator[JournaledRow]:
    """Decode, encode and write on threads; yield the rows in order, each as soon as it is ready.

    A row among the items is yielded unchanged. Ends after the images in progress if ``interrupted``.
    """
    description = describe_map(options, detector, rule)
    reader = Reader(detector.prepare, options.value_range, options.max_pixels)

    def read(item: FoundImage | JournaledRow) -> PreparedImage | JournaledRow:
        return item if isinstance(item, JournaledRow) else reader(item)

    def write(item: _Scored | JournaledRow) -> JournaledRow:
        if isinstance(item, JournaledRow):
            return item
        row, regions, map_content = finish(options, rule, item.image, item.detection, detector.score_of, description)
        lines = regions_csv.region_lines(row.path, regions, safe=options.csv_safe)
        return JournaledRow(row, resume.journal_line(item.batch, row, lines, map_content), lines, item.image.notes)

    ahead = images_ahead(options, detector.views.tile)
    images = map_ahead(pool, read, items, ahead)
    return map_ahead(pool, write, _detect(detector, images, options.batch_size, interrupted), ahead)


def resized(options: ScanOptions, anomaly_map: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map of the model's size at the size in which it is written."""
    if options.map_size != MapSize.source:
        return anomaly_map
    return resizing.resize_map(torch.from_numpy(anomaly_map), size_hw).numpy()


def finish(
    options: ScanOptions,
    rule: DecisionRule,
    image: PreparedImage,
    detection: Detection | None,
    score_of: ScoreOf,
    description: dict[str, Any],
) -> tuple[scores_csv.ScoreRow, Sequence[Region], list[bytes]]:
    """Write an image's map; return its row, its regions and, if a map was written, the content of its file."""
    if detection is None:
        return scores_csv.ScoreRow(image.found.relative, "error", error=image.error), (), []
    content = []
    regions: Sequence[Region] | None = None
    if (anomaly_map := detection.anomaly_map) is not None:
        at_source = anomaly_map
        if rule.pixel_threshold is not None or (options.maps and options.map_size == MapSize.source):
            at_source = resizing.resize_map(torch.from_numpy(anomaly_map), image.size_hw).numpy()
        if rule.pixel_threshold is not None:
            regions = find_regions(at_source, rule.pixel_threshold.value, options.min_area)
        if options.maps:
            written = at_source if options.map_size == MapSize.source else anomaly_map
            try:
                content.append(output.write_map(options, image.found, written, description))
            except InputError as error:
                return scores_csv.ScoreRow(image.found.relative, "error", error=str(error)), (), []
    row = output.score_row(rule, image, detection, regions, score_of)
    return row, regions or (), content


@dataclass(frozen=True)
class _Scored:
    """An image, its detection unless it could not be read, and the digest of its batch."""

    image: PreparedImage
    detection: Detection | None
    batch: str


def _detect(
    detector: Detector,
    items: Iterator[PreparedImage | JournaledRow],
    batch_size: int,
    interrupted: Callable[[], bool],
) -> Iterator[_Scored | JournaledRow]:
    """Encode batches of images; a batch of rows passes as it is."""
    while not interrupted() and (batch := list(itertools.islice(items, batch_size))):
        images = [item for item in batch if isinstance(item, PreparedImage)]
        together = resume.batch_digest([image.stamp for image in images])
        prepared = [image.input for image in images if image.input is not None]
        detections = iter(detector.detect(prepared) if prepared else ())
        for item in batch:
            if isinstance(item, JournaledRow):
                yield item
            else:
                yield _Scored(item, next(detections) if item.input is not None else None, together)
