"""`enroll`: makes a bank of a part from good images, and calibrates it on good images.

find → hash → decode ahead → encode → bank → (coreset) → calibrate → write aside, then rename
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import calibration, memory_bank, nearest
from aprilcli.core.bank_file import load_bank, new_bank_path, save_bank
from aprilcli.core.calibration import Calibration
from aprilcli.core.catalogue import path_exists
from aprilcli.core.detector import Detector
from aprilcli.core.fusion import fuse
from aprilcli.core.memory_bank import MemoryBank, Recipe, Source
from aprilcli.defaults import PAPER, TINY
from aprilcli.errors import InputError, OptionError, OutputError
from aprilcli.io.atomic import claimed_file
from aprilcli.io.files import sha256_of_file
from aprilcli.io.published import PUBLISHED
from aprilcli.io.walk import FoundImage, find_images, require_paths
from aprilcli.options import EnrollOptions
from aprilcli.text import printable
from aprilcli.types import CONTROL, Detection, Evidence
from aprilcli.workflows.console import Console
from aprilcli.workflows.loading import load_detector, range_of
from aprilcli.workflows.pipeline import NO_IMAGES, LeftOutFolders, Reader, batches, map_ahead

LISTED = 10  # files that an error names; the others are counted
# Changes that light and position make to a good part: brightness factors, and shifts in pixels (down, right).
BRIGHTNESS = (0.9, 0.95, 1.05, 1.1)
SHIFTS = ((0, 2), (2, 0), (0, -2), (-2, 0))


@dataclass(frozen=True)
class EnrollSummary:
    """The bank that was written, how many references are new, and which images were enrolled before."""

    path: Path
    bank: MemoryBank
    added: int
    known: tuple[str, ...]


def run_enroll(options: EnrollOptions, console: Console) -> EnrollSummary:
    """Make or extend a part's bank. Raises the package's errors; the old bank stays until the new one is complete."""
    path = new_bank_path(options.part, options.banks)
    if options.coreset is not None and not 0 < options.coreset <= 1:
        raise OptionError(f"--coreset {options.coreset:g}: give a share of the rows, above 0 and up to 1")
    with claimed_file(path, "this part is being enrolled by another process; wait for it"):
        return _enroll(options, path, console)


def _enroll(options: EnrollOptions, path: Path, console: Console) -> EnrollSummary:
    if path.exists() and not (options.append or options.overwrite):
        raise OutputError(f"{path}: this part is already enrolled; add references with --append, or use --overwrite")
    old = load_bank(path) if options.append else None
    options = replace(options, value_range=range_of(old, options.value_range))
    if old is not None and (old.coreset_fraction < 1 or old.zero_shot is None):
        raise OptionError(f"--append: {path} holds a coreset only, without its other rows; enroll all images again")
    if options.projector is not None and CONTROL.search(_portable(options.projector)):
        raise OptionError(f"--projector {printable(options.projector)}: a bank keeps this path in UTF-8; rename it")
    further = None if options.calibrate is None else _images_in([options.calibrate], options.follow, console)
    images = _images_in(options.paths, options.follow, console)
    found, sources, known = _new_images(images, () if old is None else old.sources)
    if not found:
        raise InputError(f"{', '.join(map(str, options.paths))}: no new images; all are in {path} already")
    detector = load_detector(options, old, console)
    if old is not None and old.calibration is not None and old.calibration.method == "held-out" and further is None:
        console.note("the bank was calibrated on further images; without --calibrate it uses its own references")
    half = options.coreset is not None or detector.encoder.precision != "fp32"
    whole = _make_bank(options, detector, console, found, sources, old, torch.float16 if half else torch.float32)
    bank = whole if options.coreset is None else memory_bank.subsample(whole, options.coreset, options.seed)
    bank = replace(bank, calibration=_calibrate(options, detector, console, bank, whole, found, further))
    save_bank(bank, path)
    return EnrollSummary(path, bank, len(found), known)


def _images_in(paths: list[Path], follow: bool, console: Console) -> list[FoundImage]:
    require_paths(paths)
    left_out = LeftOutFolders()
    images = list(find_images(paths, follow=follow, on_left_out=left_out))
    for note in left_out.notes():
        console.note(note)
    _refuse_unreadable(image.error for image in images)
    if not images:
        raise InputError(f"{', '.join(map(str, paths))}: {NO_IMAGES}")
    return images


def _new_images(
    images: list[FoundImage], enrolled: tuple[Source, ...]
) -> tuple[list[FoundImage], list[Source], tuple[str, ...]]:
    """Choose the images whose content is neither enrolled nor earlier in the list; also name the others."""
    candidates, errors = [], []
    for image in images:
        try:
            candidates.append(Source(image.relative, sha256_of_file(image.path)))
        except InputError as error:
            errors.append(str(error))
    _refuse_unreadable(errors)
    is_new = memory_bank.new_sources(enrolled, candidates)
    found = list(itertools.compress(images, is_new))
    known = tuple(source.path for source, new in zip(candidates, is_new, strict=True) if not new)
    return found, list(itertools.compress(candidates, is_new)), known


def _refuse_unreadable(errors: Iterable[str | None]) -> None:
    if present := [error for error in errors if error is not None]:
        more = f"; and {len(present) - LISTED} more" if len(present) > LISTED else ""
        listed = "; ".join(present[:LISTED])
        raise InputError(
            f"nothing was written; remove the images that cannot be read ({len(present)} in all): {listed}{more}"
        )


def _make_bank(
    options: EnrollOptions,
    detector: Detector,
    console: Console,
    found: list[FoundImage],
    sources: list[Source],
    old: MemoryBank | None,
    dtype: torch.dtype,
) -> MemoryBank:
    """Encode the images into a bank, after the rows of ``old``, and keep their zero-shot evidence in it."""
    evidence: list[Evidence] = [] if old is None or old.zero_shot is None else [old.zero_shot]

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for pixels in _read_batches(options, detector, console, found, "enrolling"):
            features = detector.encoder.encode(pixels)
            evidence.append(detector.method.zero_shot(features).cpu())
            yield features.patch_tokens

    if old is None:
        bank = memory_bank.build(batches(), sources, detector.encoder.spec, detector.object_name, dtype=dtype)
        projector = None if options.projector is None else _portable(options.projector)
        model = _portable(options.model or TINY)
        recipe = Recipe(model, projector, detector.projector_fingerprint, options.value_range)
    else:
        bank, recipe = memory_bank.append(old, batches(), sources), old.recipe
    return replace(bank, zero_shot=Evidence.concatenate(evidence), recipe=recipe)


def _read_batches(
    options: EnrollOptions, detector: Detector, console: Console, found: list[FoundImage], task: str
) -> Iterator[NDArray[np.float32]]:
    """Read images ahead and yield batches [B, 3, S, S]. After a failure the rest is still read, to report all."""
    reader = Reader(detector.prepare, options.value_range, options.max_pixels)
    with (
        ThreadPoolExecutor(max_workers=options.workers) as pool,
        console.progress(len(found), task) as advance,
    ):
        images = map_ahead(pool, reader, found, 2 * (options.workers + options.batch_size))
        for batch in batches(images, options.batch_size):
            if any(image.error is not None for image in batch):
                _refuse_unreadable(image.error for image in (*batch, *images))
            for image in batch:
                for note in image.notes:
                    console.note_once(note)
                advance(1)
            yield np.stack([image.pixels for image in batch if image.pixels is not None])


def _calibrate(
    options: EnrollOptions,
    detector: Detector,
    console: Console,
    bank: MemoryBank,
    whole: MemoryBank,
    found: list[FoundImage],
    further: list[FoundImage] | None,
) -> Calibration:
    """Score good images as `scan` does.

    Scores ``further`` images if given, otherwise each reference against the others, or changed copies of a single
    reference.
    """
    if further is not None:
        images, _, known = _new_images(further, bank.sources)
        if known:
            console.note(f"--calibrate: {len(known)} images left out, which are references or appear twice")
        if not images:
            raise InputError(f"{options.calibrate}: all images are references; calibrate on further good images")
        batches = _read_batches(options, detector, console, images, "calibrating")
        return _calibration(_score_all(detector.with_bank(bank), batches), "held-out")
    if len(bank.sources) > 1:
        distances = nearest.leave_one_out(bank, whole)
        return _calibration(_score_references(detector, whole, distances, console), "leave-one-out")
    (pixels,) = _read_batches(options, detector, console, found, "calibrating")
    return _calibration(_score_all(detector.with_bank(bank), _variants(pixels, detector)), "augmentations")


def _score_all(detector: Detector, batches: Iterator[NDArray[np.float32]]) -> list[Detection]:
    return [detection for pixels in batches for detection in detector.detect(pixels)]


def _score_references(
    detector: Detector, whole: MemoryBank, distances: Iterator[tuple[torch.Tensor, ...]], console: Console
) -> list[Detection]:
    """Fuse the zero-shot evidence of each of the K references with its distances to the others."""
    if whole.zero_shot is None:
        raise ValueError("references are scored with their zero-shot evidence")
    size = whole.spec.image_size
    detections = []
    with console.progress(len(whole.sources), "calibrating") as advance:
        for reference, stages in enumerate(distances):
            shaped = tuple(d.reshape(1, *grid) for d, grid in zip(stages, detector.encoder.grids, strict=True))
            zero_shot = whole.zero_shot[reference : reference + 1]
            detections += fuse(replace(zero_shot, distances=shaped), size)
            advance(1)
    return detections


def _variants(pixels: NDArray[np.float32], detector: Detector) -> Iterator[NDArray[np.float32]]:
    """Change a prepared image [1, 3, S, S] slightly, in brightness and position."""
    spec = detector.encoder.spec
    black = (-np.array(spec.mean) / np.array(spec.std)).astype(np.float32)[None, :, None, None]
    for factor in BRIGHTNESS:
        yield ((pixels - black) * factor + black).astype(np.float32)
    padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = pixels.shape[2:]
    for down, right in SHIFTS:
        yield padded[:, :, 2 + down : 2 + down + height, 2 + right : 2 + right + width].copy()


def _calibration(detections: list[Detection], method: calibration.CalibrationMethod) -> Calibration:
    maxima = [detection.map_max for detection in detections if detection.map_max is not None]
    scores = [detection.score for detection in detections]
    return Calibration(np.array(scores, np.float32), np.array(maxima, np.float32), method)


def _portable(name: str) -> str:
    """Return a model's or projector's name so that it is valid in any working folder: paths become absolute."""
    is_path = name not in (TINY, PAPER, *PUBLISHED) and path_exists(name)
    return str(Path(name).resolve()) if is_path else name


def summarize(summary: EnrollSummary) -> str:
    """Return a few lines on the bank and its calibration."""
    bank, scored = summary.bank, summary.bank.calibration
    lines = [f"{summary.path}: {len(bank.sources)} reference images of {bank.object_name!r}, {summary.added} new"]
    if summary.known:
        named = ", ".join(map(printable, summary.known[:LISTED]))
        lines.append(f"{len(summary.known)} images were already enrolled (same content): {named}")
    if scored is not None:
        lines.append(f"calibrated on {len(scored)} scores of good images ({scored.method})")
    return "\n".join(lines)
