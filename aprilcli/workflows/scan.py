"""`scan`: every picture below a folder, scored; one row and one map each, in order, as they are done.

find (sorted) → decode ahead on threads → squash → one encode → score → source size → one TIFF, one CSV row
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import maps
from aprilcli.core.bank_file import bank_path, load_bank
from aprilcli.core.calibration import DEFAULT_RATE, check_rate
from aprilcli.core.decision import DecisionRule
from aprilcli.core.detector import Detector
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.errors import ArtifactError, BackboneError, InputError, OptionError, OutputError
from aprilcli.io import reports
from aprilcli.io.artifacts import sha256_of_file
from aprilcli.io.images import MAX_PIXELS
from aprilcli.io.walk import FoundImage, find_images, require_folder
from aprilcli.text import printable
from aprilcli.types import Detection
from aprilcli.workflows import scan_output as output
from aprilcli.workflows.console import Console
from aprilcli.workflows.enroll import range_for
from aprilcli.workflows.pipeline import PreparedImage, Reader, interruptible, map_ahead, read_all
from aprilcli.workflows.scan_output import MAPS, RUN, SCORES

# Options that change how a scan goes, not what it finds.
EXECUTION_OPTIONS = ("out", "workers", "resume", "overwrite")
HIGHEST = 5  # scores the summary names


@dataclass(frozen=True)
class ScanOptions:
    """What to scan, with what, and where the results go; see ``aprilcli scan --help``."""

    folder: Path
    out: Path = Path("april-scan")
    model: str | None = None
    projector: str | None = None
    object_name: str | None = None
    part: str | None = None
    banks: Path = Path("banks")
    image_size: int | None = None
    stages: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 1
    workers: int = 2
    maps: bool = True
    map_size: str = "source"
    threshold: float | None = None
    false_alarm_rate: float = DEFAULT_RATE
    value_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    follow: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class ScanSummary:
    """How a scan ended: counts, and the highest scores as (path, score)."""

    scored: int
    unreadable: int
    anomalous: int
    threshold: float | None
    seconds: float
    highest: tuple[tuple[str, float], ...]
    out: Path


def run_scan(options: ScanOptions, console: Console) -> ScanSummary:
    """Score every picture below ``options.folder``. Raises the package's errors; unreadable pictures get their row."""
    started, began = reports.timestamp(), time.monotonic()
    total = _count_images(options)
    check_rate(options.false_alarm_rate)
    if options.resume and options.overwrite:
        raise OptionError("--resume goes on with results, --overwrite replaces them; choose one")
    if not (options.resume or options.overwrite):
        output.refuse_results(options.out)  # now, before a model is loaded; and again once the folder is ours
    bank = load_bank(bank_path(options.part, options.banks)) if options.part is not None else None
    if bank is not None:
        options = replace(options, value_range=range_for(bank, options.value_range))
    detector = _load_detector(options, bank, console)
    rule = DecisionRule.for_bank(bank, options.threshold, options.false_alarm_rate)
    if bank is None and options.false_alarm_rate != DEFAULT_RATE:
        console.note("--false-alarm-rate says nothing without --part: there are no good photos to set a threshold from")
    for note in (*detector.notes, *rule.notes):
        console.note(note)
    record = _describe_run(options, detector, rule, started)
    tally = _Tally()
    with (
        output.claimed(options.out),
        ThreadPoolExecutor(max_workers=options.workers) as pool,
        interruptible() as interrupted,
        console.progress(total, "scanning") as advance,
    ):
        kept = _prepare_output(options, record, tally)
        advance(kept.rows)
        # By path, not by count: a picture may have come while the old maps were looked through.
        found = (one for one in _images_to_scan(options) if output.comes_after(one.relative, kept.last))
        with output.open_writer(options.out, kept) as writer:
            for picture, row, journal_line in _score_all(options, detector, rule, pool, found, interrupted):
                writer.write(journal_line, row)
                tally.count(row)
                for note in picture.notes:
                    console.note_once(note)
                advance(1)
        output.flush(options.out)
        if interrupted():
            pool.shutdown(wait=False, cancel_futures=True)  # of what was to be decoded
            raise KeyboardInterrupt
        reports.write_json(options.out / RUN, {**record, "counts": tally.counts(), "finished": reports.timestamp()})
    return ScanSummary(
        scored=tally.scored,
        unreadable=tally.unreadable,
        anomalous=tally.anomalous,
        threshold=None if rule.threshold is None else rule.threshold.value,
        seconds=time.monotonic() - began,
        highest=tuple(tally.highest),
        out=options.out,
    )


def _load_detector(options: ScanOptions, bank: MemoryBank | None, console: Console) -> Detector:
    try:
        return Detector.load(
            options.model,
            projector=options.projector,
            bank=bank,
            object_name=options.object_name,
            image_size=options.image_size,
            stages=options.stages,
            device=options.device,
            precision=options.precision,
            progress=console.is_interactive,
        )
    except (ArtifactError, BackboneError) as error:
        if bank is None or options.model is not None:
            raise
        raise type(error)(f"part {options.part}: {error}") from error


class _Tally:
    """Counts rows, and keeps the highest scores."""

    def __init__(self) -> None:
        self.scored = self.unreadable = self.anomalous = 0
        self.highest: list[tuple[str, float]] = []

    def count(self, row: reports.ScoreRow) -> None:
        if row.score is None:
            self.unreadable += 1
            return
        self.scored += 1
        self.anomalous += row.verdict == "anomalous"
        self.highest.append((row.path, row.score))
        self.highest.sort(key=lambda named: -named[1])
        del self.highest[HIGHEST:]

    def counts(self) -> dict[str, int]:
        return {"scored": self.scored, "unreadable": self.unreadable, "anomalous": self.anomalous}


def _images_to_scan(options: ScanOptions) -> Iterator[FoundImage]:
    """Find pictures, leaving out this tool's own maps where results go into the scanned folder."""
    return find_images(options.folder, follow=options.follow, leave_out=options.out / MAPS)


def _count_images(options: ScanOptions) -> int:
    folder = options.folder
    require_folder(folder)
    if folder.resolve().is_relative_to((options.out / MAPS).resolve()):
        raise InputError(f"{folder}: these are the heatmaps of --out; give the folder that holds the pictures")
    total = sum(1 for _ in _images_to_scan(options))
    if total == 0:
        raise InputError(f"{folder}: no pictures below it (JPEG, PNG, TIFF, BMP, WebP, PGM, PPM); check the path")
    return total


def _prepare_output(options: ScanOptions, record: dict[str, Any], tally: _Tally) -> output.ResumePoint:
    """Make room for the results: refuse those that are there, take them away, or find how far they are whole."""
    out = options.out
    if options.resume and output.has_results(out):
        output.check_same_run(out, record)
        reports.write_json(out / RUN, record)  # from here on it is not finished
        return output.find_resume_point(out, _images_to_scan(options), options.maps, options.batch_size, tally.count)
    if not options.overwrite:
        output.refuse_results(out)
    output.remove_results(out)
    reports.write_json(out / RUN, record)
    return output.ResumePoint()


def _describe_run(options: ScanOptions, detector: Detector, rule: DecisionRule, started: str) -> dict[str, Any]:
    spec = detector.encoder.spec
    return {
        "versions": reports.versions(),
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(options).items()
            if name not in EXECUTION_OPTIONS
        },
        "model": spec.to_json(),
        "device": str(detector.encoder.device),
        "precision": detector.encoder.precision,
        # Sums over other pieces, or in other registers, differ in their last bits.
        "omp_num_threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "projector": detector.projector.identity if detector.projector is not None else None,
        "bank": None if options.part is None else _describe_bank(options.part, options.banks),
        **rule.describe(),
        "started": started,
    }


def _describe_bank(part: str, banks: Path) -> dict[str, str]:
    path = bank_path(part, banks)
    return {"path": str(path), "sha256": sha256_of_file(path)}


def _score_all(
    options: ScanOptions,
    detector: Detector,
    rule: DecisionRule,
    pool: ThreadPoolExecutor,
    found: Iterator[FoundImage],
    interrupted: Callable[[], bool],
) -> Iterator[tuple[PreparedImage, reports.ScoreRow, str]]:
    """Chain the stages: decoding and writing run ahead on threads while this thread encodes; order is kept.

    Yields each row with its journal line. Once ``interrupted``, ends with what has been encoded.
    """
    description = {
        "model": detector.encoder.spec.label,
        "projector": detector.projector.name if detector.projector is not None else None,
        "bank": options.part,
    }

    def finish(scored: tuple[PreparedImage, Detection | None]) -> tuple[PreparedImage, reports.ScoreRow, str]:
        picture, detection = scored
        row = _finish(options, rule, picture, detection, description)
        return picture, row, output.journal_line(options.out, picture.stamp, row, options.maps)

    ahead = 2 * (options.workers + options.batch_size)
    pictures = read_all(pool, found, _reader(options, detector), ahead)
    return map_ahead(pool, finish, _detect(detector, pictures, options.batch_size, interrupted), ahead)


def _finish(
    options: ScanOptions,
    rule: DecisionRule,
    picture: PreparedImage,
    detection: Detection | None,
    description: dict[str, Any],
) -> reports.ScoreRow:
    """Write a picture's map and return its row."""
    if detection is None:
        return reports.ScoreRow(picture.found.relative, "error", error=picture.error)
    if options.maps and detection.anomaly_map is not None:
        try:
            _write_map(options, picture, detection.anomaly_map, description)
        except InputError as error:
            return reports.ScoreRow(picture.found.relative, "error", error=str(error))
    return _row(rule, picture, detection)


def _reader(options: ScanOptions, detector: Detector) -> Reader:
    return Reader(detector.prepare, options.value_range, options.max_pixels)


def _detect(
    detector: Detector, pictures: Iterator[PreparedImage], batch_size: int, interrupted: Callable[[], bool]
) -> Iterator[tuple[PreparedImage, Detection | None]]:
    while not interrupted() and (batch := list(itertools.islice(pictures, batch_size))):
        prepared = [picture.pixels for picture in batch if picture.pixels is not None]
        detections = iter(detector.detect(np.stack(prepared)) if prepared else ())
        for picture in batch:
            yield picture, next(detections) if picture.pixels is not None else None


def _write_map(
    options: ScanOptions, picture: PreparedImage, anomaly_map: NDArray[np.float32], description: dict[str, Any]
) -> None:
    """Write one map. Raises InputError where the picture's name leaves no place for it."""
    way_on = "rename it, or scan with --no-maps"
    if output.map_collides(options.folder, picture.found.relative):
        raise InputError(f"{picture.found.path}: its folder has the name of another picture's heatmap; {way_on}")
    if options.map_size == "source":
        anomaly_map = maps.resize_map(torch.from_numpy(anomaly_map), picture.size_hw).numpy()
    value_range = [float(anomaly_map.min()), float(anomaly_map.max())]
    path = output.map_path(options.out, picture.found.relative)
    try:
        reports.write_map(path, anomaly_map, {**description, "range": value_range})
    except OutputError as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.ENAMETOOLONG:
            raise
        raise InputError(f"{picture.found.path}: its heatmap's name would be too long; {way_on}") from error


def _row(rule: DecisionRule, picture: PreparedImage, detection: Detection) -> reports.ScoreRow:
    return reports.ScoreRow(
        path=picture.found.relative,
        status="ok",
        score=detection.score,
        text_score=detection.text_score,
        map_max=detection.map_max,
        p_value=rule.p_value(detection.score),
        threshold=None if rule.threshold is None else rule.threshold.value,
        verdict=None if rule.threshold is None else rule.threshold.verdict(detection.score),
        width=picture.size_hw[1],
        height=picture.size_hw[0],
    )


def summarise(summary: ScanSummary) -> str:
    """Say in a few lines how a scan ended."""
    rate = (summary.scored + summary.unreadable) / summary.seconds
    lines = [f"{summary.scored} pictures scored in {summary.seconds:.1f} s ({rate:.1f} images/s)"]
    if summary.threshold is not None:
        lines.append(f"{summary.anomalous} anomalous, scoring {summary.threshold:.4f} or more")
    if summary.unreadable:
        lines.append(f"{summary.unreadable} could not be read: their rows in {SCORES} say why")
    if summary.highest:
        lines.append("highest scores:")
        lines.extend(f"  {score:.4f}  {printable(path)}" for path, score in summary.highest)
    heatmaps = f", {summary.out / MAPS}{os.sep}" if (summary.out / MAPS).exists() else ""
    lines.append(f"results: {summary.out / SCORES}{heatmaps}")
    return "\n".join(lines)
