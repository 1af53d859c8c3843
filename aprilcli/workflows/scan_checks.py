"""What `scan` refuses before the model is loaded. Imports no torch, so a refusal takes no seconds."""

from __future__ import annotations

import csv
from pathlib import Path

from aprilcli.core.calibration import check_rate
from aprilcli.core.mutual_subsets import LEAST
from aprilcli.core.threshold import Threshold
from aprilcli.errors import InputError, OptionError
from aprilcli.io import scores_csv
from aprilcli.io.atomic import check_writable
from aprilcli.io.walk import find_images, require_paths
from aprilcli.options import MutualBy, ScanOptions
from aprilcli.workflows.console import Console
from aprilcli.workflows.parts import find_bank
from aprilcli.workflows.pipeline import NO_IMAGES, LeftOutFolders
from aprilcli.workflows.scan_output import MAPS, SCORES, ZERO_SHOT, refuse_results


def check(options: ScanOptions, console: Console) -> int:
    """Check options, images and output folder; return the number of images, and name the folders that are left out.

    Raises OptionError, InputError for missing folders, a missing part or no images, OutputError for an output folder
    that cannot be written or holds results.
    """
    _check_options(options)
    require_paths(options.paths)
    check_writable(options.out)
    if not (options.resume or options.overwrite):
        refuse_results(options.out)  # and again once the folder is locked
    if options.part is not None:
        find_bank(options.part, options.banks)
    return _count_images(options, console)


def _check_options(options: ScanOptions) -> None:
    if options.fail_on_anomaly and options.part is None and options.threshold is None:
        raise OptionError("--fail-on-anomaly: no image can be anomalous without a threshold; use --threshold or --part")
    if options.coco and options.part is None and options.pixel_threshold is None:
        raise OptionError("--coco: there are no regions without a pixel threshold; use --part or --pixel-threshold")
    if options.resume and options.overwrite:
        raise OptionError("--resume continues a scan, --overwrite replaces it; choose one")
    if options.overlays and not options.maps:
        raise OptionError("--overlays draws the maps, which --no-maps leaves out; choose one")
    if options.mutual and options.tile is not None:
        raise OptionError("--mutual compares whole images, without tiles; omit --tile")
    if options.mutual_by != MutualBy.all and not options.mutual:
        raise OptionError(f"--mutual-by {options.mutual_by}: it says which images --mutual compares; add --mutual")
    check_rate(options.false_alarm_rate)
    for value in (options.threshold, options.pixel_threshold):
        if value is not None:
            Threshold(value)  # raises for what is no number


def _count_images(options: ScanOptions, console: Console) -> int:
    for path in options.paths:
        if any(path.resolve().is_relative_to((options.out / maps).resolve()) for maps in (MAPS, ZERO_SHOT)):
            raise InputError(f"{path}: these are the maps in --out; give the folder of the images")
    left_out = LeftOutFolders()
    total = sum(1 for _ in find_images(options.paths, follow=options.follow, on_left_out=left_out))
    for note in left_out.notes():
        console.note(note)
    if total == 0 and options.resume and _has_rows(options.out):  # of a share that is not mounted, for example
        folders = ", ".join(map(str, options.paths))
        raise InputError(f"{folders}: {NO_IMAGES}, or replace the results in {options.out} with --overwrite")
    if total == 0 and not options.allow_empty:
        raise InputError(f"{', '.join(map(str, options.paths))}: {NO_IMAGES}, or accept this with --allow-empty")
    if options.mutual and 0 < total < LEAST:
        raise InputError(
            f"{', '.join(map(str, options.paths))}: {total} images, but --mutual needs at least {LEAST}, which are "
            "compared with each other; add images, or scan without it"
        )
    return total


def _has_rows(out: Path) -> bool:
    try:
        with (out / SCORES).open("rb") as scores:
            return next(scores_csv.read_rows(scores), None) is not None
    except (OSError, UnicodeError, csv.Error):
        return False
