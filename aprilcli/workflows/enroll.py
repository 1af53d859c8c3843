"""`enroll`: makes a bank of a part from good images, and calibrates it on good images.

find → hash → decode ahead → encode → bank → compare references → (coreset) → calibrate → write aside, then rename
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from aprilcli.core import memory_bank
from aprilcli.core.bank_file import save_bank
from aprilcli.core.bank_path import new_bank_path
from aprilcli.core.calibration import Calibration, needed_images
from aprilcli.core.catalogue import find_source, path_exists
from aprilcli.core.detector import Detector, ModelInput
from aprilcli.core.memory_bank import CalibrationImages, MemoryBank, Recipe, Source
from aprilcli.core.outliers import find_outliers
from aprilcli.defaults import APRIL_GAN, FALSE_ALARM_RATE, PAPER, TINY, WINCLIP, WITH_ROTATIONS
from aprilcli.errors import InputError, OptionError
from aprilcli.io.atomic import claimed_file
from aprilcli.io.contact_sheet import make_thumbnail
from aprilcli.io.files import sha256_of_file
from aprilcli.io.images import SourceImage
from aprilcli.io.published import PUBLISHED
from aprilcli.io.walk import FoundImage
from aprilcli.options import EnrollOptions, Fusion
from aprilcli.text import listed, printable
from aprilcli.types import CONTROL, ImageEvidence, ImageFeatures
from aprilcli.workflows.console import Console
from aprilcli.workflows.enroll_calibration import (
    References,
    calibrate_on_images,
    calibrate_on_references,
    calibrate_on_variants,
    leave_one_out_detections,
    score_references,
)
from aprilcli.workflows.enroll_checks import LISTED, FoundImages, refuse_enrolled, refuse_unreadable
from aprilcli.workflows.enroll_defects import choose_score, split_good
from aprilcli.workflows.loading import check_windows, load_detector, load_part, range_of
from aprilcli.workflows.pipeline import (
    Reader,
    batches,
    images_ahead,
    map_ahead,
    worker_threads,
)

FEW_REFERENCES = 5  # fewer are noted
LEAST = 2  # references named as the least like the others

NewImages = list[tuple[FoundImage, Source]]


@dataclass(frozen=True)
class EnrollSummary:
    """The bank that was written, how many references are new, and the images that were left out as known.

    ``odd``: paths of references and of calibration images that differ from the others.
    """

    path: Path
    bank: MemoryBank
    added: int
    known: tuple[str, ...]
    odd: tuple[str, ...]


def run_enroll(options: EnrollOptions, found: FoundImages, console: Console) -> EnrollSummary:
    """Make or extend a part's bank, or calibrate it, with the images of ``enroll_checks.check``.

    Raises the package's errors; the old bank stays until the end.
    """
    path = new_bank_path(options.part, options.banks)
    with claimed_file(path, "this part is being enrolled by another process; wait for it"):
        return _enroll(options, found, path, console)


def _enroll(options: EnrollOptions, found: FoundImages, path: Path, console: Console) -> EnrollSummary:
    refuse_enrolled(options, path)
    paths = options.paths or []
    old = load_part(options.part, options.banks) if options.append or not paths else None
    options = replace(options, value_range=range_of(old, options.value_range))
    if paths and old is not None and (old.coreset_fraction < 1 or not old.zero_shot):
        raise OptionError(f"--append: {path} holds a coreset only, without its other rows; enroll all images again")
    if options.projector is not None and CONTROL.search(_portable(options.projector)):
        raise OptionError(f"--projector {printable(options.projector)}: a bank keeps this path in UTF-8; rename it")
    kept = _kept_calibration_images(options, path, old)
    enrolled = () if old is None else old.sources
    # A calibration image would lower the threshold if it were also a reference.
    in_bank = [*enrolled, *(() if kept is None else kept.sources)]
    new, known = _new_images(found.references, in_bank)
    if old is not None and old.choice is not None:
        _refuse_known_defects(new, old.choice.defect_images)
    if paths and not new:
        raise InputError(f"{listed(paths, LISTED)}: no new images; all are in {path} already")
    further = _further_images(options, found, console, kept, [*enrolled, *_chosen_with(old), *(s for _, s in new)])
    defects = _defects(found, [*(source for _, source in new), *(source for _, source in further)])
    choosing: NewImages = []
    if options.defects is not None:
        choosing, further = split_good(len(defects), further, console)
    detector = load_detector(options, old, console, (image for image, _ in new))
    check_windows(detector.encoder, [options.method or APRIL_GAN])
    references = None
    if paths:
        whole, references, twins = _enroll_references(options, detector, console, new, old)
        if len(whole.sources) == len(enrolled):
            raise InputError(f"{listed(paths, LISTED)}: no new images; all show the same as those in {path}")
        bank, known = whole, (*known, *twins)
        if options.coreset is not None:
            bank = memory_bank.subsample(whole, options.coreset, options.seed)
            if references is not None and kept is None and not further:
                references = score_references(bank, whole, detector, console)
    elif old is not None:
        bank = old
    if choosing:
        of_defects, of_good = (
            _read_batches(options, detector, console, [image for image, _ in images], "choosing a score")
            for images in (defects, choosing)
        )
        choice = choose_score(bank, detector, (defects, of_defects), (choosing, of_good))
        bank = replace(bank, choice=choice)
    if kept is not None or further:
        batches = _read_batches(options, detector, console, [image for image, _ in further], "calibrating")
        if old is not None and old.calibration_images is not None and kept is None:
            console.note(f"replacing {len(old.calibration_images.sources)} calibration images of the bank")
        bank, left_out = calibrate_on_images(bank, kept, batches, [source for _, source in further], detector, console)
        _note_left_out(console, left_out)
    elif references is not None:
        if bank.recipe.method != APRIL_GAN:
            references = replace(references, detections=leave_one_out_detections(bank, detector, console))
        bank = calibrate_on_references(bank, references)
    else:
        ((image,),) = _read_batches(options, detector, console, [new[0][0]], "calibrating")
        bank = calibrate_on_variants(bank, image, detector)
    odd = odd_images(bank)
    if options.strict and odd:
        raise InputError(f"nothing was written; remove the images that differ from the others: {listed(odd, LISTED)}")
    if len(bank.sources) < FEW_REFERENCES:
        console.note(f"{len(bank.sources)} references; with five or more, results are better")
    save_bank(bank, path)
    return EnrollSummary(path, bank, len(bank.sources) - len(enrolled), known, odd)


def _kept_calibration_images(options: EnrollOptions, path: Path, old: MemoryBank | None) -> CalibrationImages | None:
    """Return the bank's own calibration images, unless they are to be replaced."""
    if old is None or options.overwrite:
        return None
    is_held_out = old.calibration is not None and old.calibration.method == "held-out"
    kept = old.calibration_images if old.tile is None else None  # with tiles, their pixels are not kept
    if is_held_out and kept is None and options.calibrate is None:
        reason = "made by an earlier version" if old.tile is None else "made with tiles"
        raise InputError(f"{path}: {reason}, without its calibration images; repeat --calibrate")
    return kept


def _further_images(
    options: EnrollOptions,
    found: FoundImages,
    console: Console,
    kept: CalibrationImages | None,
    references: Sequence[Source],
) -> NewImages:
    """Return the images of ``--calibrate`` whose content is neither that of a reference nor kept from before."""
    further, known = _new_images(found.calibration, [*references, *(() if kept is None else kept.sources)])
    _note_left_out(console, known)
    if options.calibrate is not None and not further and kept is None:
        raise InputError(f"{options.calibrate}: all images are references; calibrate on further good images")
    return further


def _chosen_with(bank: MemoryBank | None) -> list[Source]:
    """Return the images that chose the bank's score, by content: they must not calibrate it."""
    return [] if bank is None or bank.choice is None else [Source("", sha256) for sha256 in bank.choice.images]


def _defects(found: FoundImages, good: Sequence[Source]) -> NewImages:
    """Return the images of known defects, each content once. Raises InputError if one is also a good image."""
    new, _ = _new_images(found.defects, [])
    known = {source.sha256: source.path for source in good}
    if same := [f"{image.relative} ({known[source.sha256]})" for image, source in new if source.sha256 in known]:
        raise InputError(f"--defects: also given as good images: {listed(same, LISTED)}; remove them from one folder")
    return new


def _refuse_known_defects(new: NewImages, defects: Sequence[str]) -> None:
    """Raise InputError if an image was given as a known defect when the part was enrolled."""
    if same := [image.relative for image, source in new if source.sha256 in defects]:
        raise InputError(f"{listed(same, LISTED)}: enrolled as known defects before; remove them from the good images")


def _note_left_out(console: Console, paths: Sequence[str]) -> None:
    if paths:
        console.note(f"--calibrate: {len(paths)} images left out, which are references or appear twice")


def _new_images(found: Sequence[FoundImage], known: Iterable[Source]) -> tuple[NewImages, tuple[str, ...]]:
    """Return the images whose content is neither known nor earlier in the list; also the paths of the others."""
    sources, errors = [], []
    for image in found:
        try:
            sources.append(Source(image.relative, sha256_of_file(image.path)))
        except InputError as error:
            errors.append(str(error))
    refuse_unreadable(errors)
    is_new = memory_bank.new_sources(known, sources)
    new = [pair for pair, new in zip(zip(found, sources, strict=True), is_new, strict=True) if new]
    return new, tuple(source.path for source, new in zip(sources, is_new, strict=True) if not new)


def _enroll_references(
    options: EnrollOptions, detector: Detector, console: Console, new: NewImages, old: MemoryBank | None
) -> tuple[MemoryBank, References | None, tuple[str, ...]]:
    """Make the bank and score its references against each other; None for a single one.

    References that show the same image as another are left out; also returns their paths.
    """
    bank = _make_bank(options, detector, console, new, old)
    twins: tuple[str, ...] = ()
    while len(bank.sources) > 1:
        references = score_references(bank, bank, detector, console)
        if not references.twins:
            fits, spacings = torch.tensor(references.fits), torch.tensor(references.spacings)
            weights = references.stage_weights
            return replace(bank, fits=fits, spacings=spacings, stage_weights=weights), references, twins
        twins += tuple(bank.sources[k].path for k in references.twins)
        bank = memory_bank.without(bank, references.twins)
    return bank, None, twins


def _make_bank(
    options: EnrollOptions, detector: Detector, console: Console, new: NewImages, old: MemoryBank | None
) -> MemoryBank:
    """Encode the images into a bank, after the rows of ``old``; keep their zero-shot evidence and appearance in it."""
    evidence: list[ImageEvidence] = [] if old is None else list(old.zero_shot)
    appearances: list[torch.Tensor | None] = [] if old is None else [old.appearances]
    thumbnails = [] if old is None else [*(old.thumbnails or (b"",) * len(old.sources))]

    method = str(options.method or APRIL_GAN) if old is None else old.recipe.method
    turned = old.recipe.rotations if old is not None else options.rotations
    if turned is None:
        turned = method in WITH_ROTATIONS
    windows = method == WINCLIP
    features: list[tuple[ImageFeatures, ...]] = []  # of each new source and view; without patch tokens

    def prepare(source: SourceImage) -> ModelInput:
        return replace(detector.prepare(source), thumbnail=make_thumbnail(source))

    found = [image for image, _ in new]

    def batches_of_one() -> Iterator[tuple[torch.Tensor, ...]]:
        for images in _read_batches(options, detector, console, found, "enrolling", prepare):
            thumbnails.extend(image.thumbnail for image in images)
            if turned:
                references = [detector.encode_turned(image, windows) for image in images]
            else:
                references = detector.encode_references(images, windows)
            for encoded in references:
                features.append(tuple(replace(f, patch_tokens=()).to(torch.device("cpu")) for f in encoded.features))
                evidence.append(encoded.zero_shot.cpu())
                appearances.append(encoded.appearances.cpu())
                yield tuple(tokens[None] for tokens in encoded.patch_tokens)

    sources = [source for _, source in new]
    if old is None:
        half = options.coreset is not None or detector.encoder.precision != "fp32"
        dtype = torch.float16 if half else torch.float32
        spec, views = detector.encoder.spec, detector.views
        bank = memory_bank.build(batches_of_one(), sources, spec, detector.object_name, views=views, dtype=dtype)
        projector = None if options.projector is None else _portable(options.projector)
        model = _portable(options.model or TINY)
        fusion = options.fusion or (find_source(model).fusion if method == APRIL_GAN else Fusion.sum)
        fingerprint = detector.projector_fingerprint
        recipe = Recipe(
            model,
            projector,
            fingerprint,
            options.value_range,
            turned,
            str(fusion),
            detector.encoder.engine,
            detector.encoder.precision,
            method,
        )
    else:
        bank, recipe = memory_bank.append(old, batches_of_one(), sources), old.recipe
    known = [rows for rows in appearances if rows is not None]
    return replace(
        memory_bank.add_features(bank, old, features),
        zero_shot=tuple(evidence),
        appearances=torch.cat(known) if len(known) == len(appearances) else None,
        recipe=recipe,
        quantization=detector.encoder.quantization,
        thumbnails=tuple(thumbnails),
    )


def _read_batches(
    options: EnrollOptions,
    detector: Detector,
    console: Console,
    found: list[FoundImage],
    task: str,
    prepare: Callable[[SourceImage], ModelInput] | None = None,
) -> Iterator[list[ModelInput]]:
    """Read images ahead and yield batches. After a failure the rest is still read, to report all.

    ``prepare``: by default the detector's.
    """
    reader = Reader(prepare or detector.prepare, options.value_range, options.max_pixels)
    with (
        worker_threads(options.workers) as pool,
        console.progress(len(found), task) as advance,
    ):
        images = map_ahead(pool, reader, found, images_ahead(options, detector.views.tile))
        for batch in batches(images, options.batch_size):
            if any(image.error is not None for image in batch):
                refuse_unreadable(image.error for image in (*batch, *images))
            for image in batch:
                for note in image.notes:
                    console.note_once(note)
                advance(1)
            yield [image.input for image in batch if image.input is not None]


def _portable(name: str) -> str:
    """Return a model's or projector's name so that it is valid in any working folder: paths become absolute."""
    is_path = name not in (TINY, PAPER, *PUBLISHED) and path_exists(name)
    return str(Path(name).resolve()) if is_path else name


def odd_images(bank: MemoryBank) -> tuple[str, ...]:
    """Return the paths of references and of calibration images that differ from the others."""
    odd: list[str] = []
    if bank.fits is not None:
        odd += [bank.sources[k].path for k in find_outliers(bank.fits.numpy())]
    if bank.calibration_images is not None and bank.calibration is not None:
        sources = bank.calibration_images.sources
        odd += [sources[k].path for k in find_outliers(bank.calibration.scores)]
    return tuple(odd)


def summarize(summary: EnrollSummary) -> str:
    """Return a few lines on the bank and its calibration."""
    bank, scored = summary.bank, summary.bank.calibration
    lines = [f"{summary.path}: {len(bank.sources)} reference images of {bank.object_name!r}, {summary.added} new"]
    if summary.known:
        lines.append(
            f"{len(summary.known)} images were already enrolled, as references or for the calibration (same content): "
            f"{listed(summary.known, LISTED)}"
        )
    if scored is not None:
        lines.append(f"calibrated on {len(scored)} scores of good images ({scored.method})")
        lines += _thresholds(scored)
    if bank.choice is not None:
        lines.append(f"score: {bank.choice.describe()}")
    if bank.fits is not None:
        least = sorted(zip(bank.fits.tolist(), bank.sources, strict=True), key=lambda pair: -pair[0])[:LEAST]
        named = ", ".join(f"{printable(source.path)} ({score:.4f})" for score, source in least)
        by = "" if bank.recipe.method == APRIL_GAN else f" by the score of {APRIL_GAN}"
        lines.append(f"references least like the others{by}: {named}; median {bank.fits.median():.4f}")
    if summary.odd:
        lines.append(f"check these images, which differ from the others: {listed(summary.odd, LISTED)}")
    return "\n".join(lines)


def _thresholds(scored: Calibration) -> Iterator[str]:
    """Say at which score images are called anomalous, and what a stricter rate would need."""
    default, strict = scored.threshold(scored.default_rate), scored.threshold(FALSE_ALARM_RATE)
    promise = "" if default.guaranteed else ", not guaranteed"
    yield f"threshold {default.value:.4f} for a false-alarm rate of {scored.default_rate:g}{promise}"
    if strict.value > default.value:
        missing = needed_images(FALSE_ALARM_RATE)
        yield f"  a rate of {FALSE_ALARM_RATE:g} would raise it to {strict.value:.4f}; {missing} images guarantee it"
