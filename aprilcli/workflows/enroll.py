"""`enroll`: remember good photos of a part, and learn from them alone what score is alarming.

find → hash → decode ahead → encode → bank → (thin) → calibrate → write aside, then rename
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import calibration, memory_bank, nearest
from aprilcli.core.bank_file import load_bank, new_bank_path, save_bank
from aprilcli.core.calibration import Calibration
from aprilcli.core.catalogue import PAPER, TINY, path_exists
from aprilcli.core.detector import Detector
from aprilcli.core.fusion import fuse
from aprilcli.core.memory_bank import MemoryBank, Recipe, Source
from aprilcli.errors import InputError, OptionError, OutputError
from aprilcli.io.artifacts import sha256_of_file
from aprilcli.io.atomic import claimed_file
from aprilcli.io.images import MAX_PIXELS
from aprilcli.io.published import PUBLISHED
from aprilcli.io.walk import FoundImage, find_images, require_folder
from aprilcli.text import printable
from aprilcli.types import CONTROL, Detection, Evidence
from aprilcli.workflows.console import Console
from aprilcli.workflows.pipeline import Reader, read_all

LISTED = 10  # files an error names before it counts the rest
# Mild changes of one photo: what light and fixture do to a good part. Brightness factors and shifts in pixels.
BRIGHTNESS = (0.9, 0.95, 1.05, 1.1)
SHIFTS = ((0, 2), (2, 0), (0, -2), (-2, 0))


@dataclass(frozen=True)
class EnrollOptions:
    """What to remember, and as what; see ``aprilcli enroll --help``."""

    folder: Path
    part: str
    banks: Path = Path("banks")
    model: str | None = None
    projector: str | None = None
    object_name: str | None = None
    image_size: int | None = None
    stages: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 1
    workers: int = 2
    append: bool = False
    overwrite: bool = False
    calibrate: Path | None = None
    coreset: float | None = None
    seed: int = 0
    value_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    follow: bool = False


@dataclass(frozen=True)
class EnrollSummary:
    """What was written: the bank, how many photos are new in it, and which were known already."""

    path: Path
    bank: MemoryBank
    added: int
    known: tuple[str, ...]


def run_enroll(options: EnrollOptions, console: Console) -> EnrollSummary:
    """Make or extend a part's bank. Raises the package's errors; the old bank stands until the new one is whole."""
    path = new_bank_path(options.part, options.banks)
    if options.coreset is not None and not 0 < options.coreset <= 1:
        raise OptionError(f"--coreset {options.coreset:g}: give a share of the rows, above 0 and up to 1")
    with claimed_file(path, "this part is being enrolled already; wait for it to end"):
        return _enroll(options, path, console)


def _enroll(options: EnrollOptions, path: Path, console: Console) -> EnrollSummary:
    if path.exists() and not (options.append or options.overwrite):
        raise OutputError(f"{path}: this part is enrolled already; --append adds photos, --overwrite starts anew")
    old = load_bank(path) if options.append else None
    if old is not None:
        options = replace(options, value_range=range_for(old, options.value_range))
    if old is not None and (old.coreset_fraction < 1 or old.zero_shot is None):
        raise OptionError(f"--append: {path} was thinned, its photos' other rows are gone; enrol all photos anew")
    if options.projector is not None and CONTROL.search(_lasting(options.projector)):
        raise OptionError(f"--projector {printable(options.projector)}: a bank keeps this path in UTF-8; rename it")
    further = None if options.calibrate is None else _photos_in(options.calibrate, options.follow)
    found, sources, known = _new_photos(_photos_in(options.folder, options.follow), () if old is None else old.sources)
    if not found:
        raise InputError(f"{options.folder}: no new photos; every one is in {path} already")
    detector = Detector.load(
        options.model,
        projector=options.projector,
        bank=old,
        object_name=options.object_name,
        image_size=options.image_size,
        stages=options.stages,
        device=options.device,
        precision=options.precision,
        progress=console.is_interactive,
    )
    for note in detector.notes:
        console.note(note)
    if old is not None and old.calibration is not None and old.calibration.method == "held-out" and further is None:
        console.note("the bank was calibrated on further photos; without --calibrate it is now on its own references")
    half = options.coreset is not None or detector.encoder.precision != "fp32"
    whole = _remember(options, detector, console, found, sources, old, torch.float16 if half else torch.float32)
    bank = whole if options.coreset is None else memory_bank.subsample(whole, options.coreset, options.seed)
    bank = replace(bank, calibration=_calibrate(options, detector, console, bank, whole, found, further))
    save_bank(bank, path)
    return EnrollSummary(path, bank, len(found), known)


def _photos_in(folder: Path, follow: bool) -> list[FoundImage]:
    require_folder(folder)
    photos = list(find_images(folder, follow=follow))
    _refuse_unreadable([photo.error for photo in photos if photo.error is not None])
    if not photos:
        raise InputError(f"{folder}: no pictures below it (JPEG, PNG, TIFF, BMP, WebP, PGM, PPM); check the path")
    return photos


def _new_photos(
    photos: list[FoundImage], enrolled: tuple[Source, ...]
) -> tuple[list[FoundImage], list[Source], tuple[str, ...]]:
    """Choose the photos whose content is not enrolled, nor listed before; and name those that are."""
    candidates, errors = [], []
    for photo in photos:
        try:
            candidates.append(Source(photo.relative, sha256_of_file(photo.path)))
        except InputError as error:
            errors.append(str(error))
    _refuse_unreadable(errors)
    is_new = memory_bank.new_sources(enrolled, candidates)
    found = list(itertools.compress(photos, is_new))
    known = tuple(source.path for source, new in zip(candidates, is_new, strict=True) if not new)
    return found, list(itertools.compress(candidates, is_new)), known


def _refuse_unreadable(errors: list[str]) -> None:
    if errors:
        more = f"; and {len(errors) - LISTED} more" if len(errors) > LISTED else ""
        listed = "; ".join(errors[:LISTED])
        raise InputError(f"nothing was written, take out the photos that cannot be read: {len(errors)}: {listed}{more}")


def _remember(
    options: EnrollOptions,
    detector: Detector,
    console: Console,
    found: list[FoundImage],
    sources: list[Source],
    old: MemoryBank | None,
    dtype: torch.dtype,
) -> MemoryBank:
    """Encode the photos into a bank, after the rows of ``old``, with their zero-shot results beside."""
    evidence: list[Evidence] = [] if old is None or old.zero_shot is None else [old.zero_shot]

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for pixels in _read_batches(options, detector, console, found, "enrolling"):
            features = detector.encoder.encode(pixels)
            evidence.append(detector.method.zero_shot(features).cpu())
            yield features.patch_tokens

    if old is None:
        bank = memory_bank.build(batches(), sources, detector.encoder.spec, detector.object_name, dtype=dtype)
    else:
        bank = memory_bank.append(old, batches(), sources)
    projector = None if options.projector is None else _lasting(options.projector)
    recipe = Recipe(_lasting(options.model or TINY), projector, detector.projector_fingerprint, options.value_range)
    return replace(bank, zero_shot=Evidence.concatenate(evidence), recipe=recipe if old is None else old.recipe)


def _read_batches(
    options: EnrollOptions, detector: Detector, console: Console, found: list[FoundImage], what: str
) -> Iterator[NDArray[np.float32]]:
    """Read photos ahead and give them in batches [B, 3, S, S]. All are read before any fault is reported."""
    with (
        ThreadPoolExecutor(max_workers=options.workers) as pool,
        console.progress(len(found), what) as advance,
    ):
        reader = Reader(detector.prepare, options.value_range, options.max_pixels)
        pictures = read_all(pool, found, reader, 2 * (options.workers + options.batch_size))
        while batch := list(itertools.islice(pictures, options.batch_size)):
            if any(picture.error is not None for picture in batch):  # read the rest too: all faults at once
                _refuse_unreadable([one.error for one in (*batch, *pictures) if one.error is not None])
            for picture in batch:
                for note in picture.notes:
                    console.note_once(note)
                advance(1)
            yield np.stack([picture.pixels for picture in batch if picture.pixels is not None])


def _calibrate(
    options: EnrollOptions,
    detector: Detector,
    console: Console,
    bank: MemoryBank,
    whole: MemoryBank,
    found: list[FoundImage],
    further: list[FoundImage] | None,
) -> Calibration:
    """Score good photos as scan will: further ones, or each reference without itself, or changes of the only one."""
    if further is not None:
        photos, _, known = _new_photos(further, bank.sources)
        if known:
            console.note(f"--calibrate: {len(known)} photos are references themselves, or twice there: left out")
        if not photos:
            raise InputError(
                f"{options.calibrate}: every photo is a reference already; calibrate on further good photos"
            )
        batches = _read_batches(options, detector, console, photos, "calibrating")
        return _calibration(_score_all(detector.with_bank(bank), batches), "held-out")
    if len(bank.sources) > 1:
        distances = nearest.leave_one_out(bank, whole)
        return _calibration(_score_references(detector, whole, distances, console), "leave-one-out")
    (pixels,) = _read_batches(options, detector, console, found, "calibrating")
    return _calibration(_score_all(detector.with_bank(bank), _mild_changes(pixels, detector)), "augmentations")


def _score_all(detector: Detector, batches: Iterator[NDArray[np.float32]]) -> list[Detection]:
    return [detection for pixels in batches for detection in detector.detect(pixels)]


def _score_references(
    detector: Detector, whole: MemoryBank, distances: Iterator[tuple[torch.Tensor, ...]], console: Console
) -> list[Detection]:
    """Fuse the zero-shot evidence of each of the K references with its distances to the others."""
    if whole.zero_shot is None:
        raise ValueError("references are scored with their zero-shot results")
    size = whole.spec.image_size
    detections = []
    with console.progress(len(whole.sources), "calibrating") as advance:
        for reference, stages in enumerate(distances):
            shaped = tuple(d.reshape(1, *grid) for d, grid in zip(stages, detector.encoder.grids, strict=True))
            zero_shot = whole.zero_shot[reference : reference + 1]
            detections += fuse(replace(zero_shot, distances=shaped), size)
            advance(1)
    return detections


def _mild_changes(pixels: NDArray[np.float32], detector: Detector) -> Iterator[NDArray[np.float32]]:
    """Change one prepared photo [1, 3, S, S] a little, in brightness and position."""
    spec = detector.encoder.spec
    black = (-np.array(spec.mean) / np.array(spec.std)).astype(np.float32)[None, :, None, None]
    for factor in BRIGHTNESS:
        yield ((pixels - black) * factor + black).astype(np.float32)
    for shift in SHIFTS:
        down, right = shift
        padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
        height, width = pixels.shape[2:]
        yield padded[:, :, 2 + down : 2 + down + height, 2 + right : 2 + right + width].copy()


def _calibration(detections: list[Detection], method: calibration.Method) -> Calibration:
    maxima = [detection.map_max for detection in detections if detection.map_max is not None]
    scores = [detection.score for detection in detections]
    return Calibration(np.array(scores, np.float32), np.array(maxima, np.float32), method)


def _lasting(name: str) -> str:
    """Return a model's or projector's name so that it means the same from any folder: a path becomes absolute."""
    is_path = name not in (TINY, PAPER, *PUBLISHED) and path_exists(name)
    return str(Path(name).resolve()) if is_path else name


def range_for(bank: MemoryBank, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the range a bank's photos were read with; pictures must be read alike. Raises OptionError for another."""
    if value_range not in (None, bank.recipe.value_range):
        enrolled = "none" if bank.recipe.value_range is None else "{:g},{:g}".format(*bank.recipe.value_range)
        raise OptionError(f"--range: the photos of this part were enrolled with {enrolled}; leave it out")
    return bank.recipe.value_range


def summarise(summary: EnrollSummary) -> str:
    """Say in a few lines what was remembered, and what it promises."""
    bank, scored = summary.bank, summary.bank.calibration
    lines = [
        f"{summary.path}: {len(bank.sources)} reference photos of {bank.object_name!r}, {summary.added} of them new"
    ]
    if summary.known:
        named = ", ".join(map(printable, summary.known[:LISTED]))
        lines.append(f"{len(summary.known)} photos were there already, by content: {named}")
    if scored is not None:
        lines.append(f"calibrated on {len(scored)} scores of good photos ({scored.method})")
    return "\n".join(lines)
