"""The calibration of a part's bank: scores of good images, and which of these images differ from the others."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import mannwhitneyu

from aprilcli.core import nearest
from aprilcli.core.calibration import Calibration, CalibrationMethod
from aprilcli.core.detector import Detector, ModelInput
from aprilcli.core.fusion import balanced_weights, fuse_views
from aprilcli.core.memory_bank import CalibrationImages, MemoryBank, Source
from aprilcli.core.recognition import distances_to_others
from aprilcli.errors import InputError
from aprilcli.io.images import SourceImage, normalize, stored_pixels
from aprilcli.types import Detection
from aprilcli.workflows.console import Console

# Changes that light and position make to a good part: brightness factors, and shifts in pixels (down, right).
BRIGHTNESS = (0.9, 0.95, 1.05, 1.1)
SHIFTS = ((0, 2), (2, 0), (0, -2), (-2, 0))
# A reference's fit compares each patch with its third nearest reference, so two with the same defect cannot hide it.
FIT_RANK = 3
# Two images with a smaller mean distance of all patches are the same image saved twice: losslessly, or as a good JPEG.
SAME_IMAGE = 1e-3
# So is a calibration image that is closer to a reference than this share of the smallest distance between references.
SAME_SHARE = 0.5
CLOSER_BY_CHANCE = 1e-3  # largest p-value (Mann, Whitney 1947) of a note on calibration images close to references


@dataclass(frozen=True)
class References:
    """The K references scored against each other, each as leave-one-out in ``detections``.

    ``fits`` [K]: the score where each patch is compared with its third nearest reference. ``spacings`` [K]: mean
    distance to the nearest other. ``twins``: positions of references that show the same image as an earlier one.
    ``stage_weights``: of the bank.
    """

    detections: list[Detection]
    fits: list[float]
    spacings: list[float]
    twins: list[int]
    stage_weights: tuple[float, ...]


def score_references(bank: MemoryBank, whole: MemoryBank, detector: Detector, console: Console) -> References:
    """Score each of K > 1 references against the others, as `scan` does.

    ``whole`` holds all rows of the references, ``bank`` those that are kept.
    """
    if not whole.zero_shot:
        raise ValueError("references are scored with their zero-shot evidence")
    rank = min(FIT_RANK, len(whole.sources) - 1)
    nearest_distances, ranked_distances, spacings, twins = [], [], list[float](), list[int]()
    with console.progress(len(whole.sources), "comparing references") as advance:
        for reference, stages in enumerate(nearest.leave_one_out(bank, whole)):
            nearest_distances.append([stage.amin(dim=0) for stage in stages])
            ranked_distances.append([stage.kthvalue(rank, dim=0).values for stage in stages])
            each = torch.stack([stage.mean(dim=1) for stage in stages]).mean(dim=0)
            spacings.append(each.min().item())
            if (each[:reference] < SAME_IMAGE).any():
                twins.append(reference)
            advance(1)
    weights = bank.stage_weights
    if bank.recipe.fusion == "balanced" and not weights:
        means = [torch.cat(stage).mean().item() for stage in zip(*nearest_distances, strict=True)]
        weights = balanced_weights(means, len(bank.spec.stages))

    methods = detector.weighted(weights)
    grids = [encoder.grids for encoder in detector.encoders_of_views]

    def detect(by_reference: list[list[torch.Tensor]]) -> list[Detection]:
        detections = []
        for zero_shot, distances in zip(whole.zero_shot, by_reference, strict=True):
            remaining = iter(distances)  # V·N × [patches of the reference]
            views = [tuple(next(remaining).reshape(-1, *grid) for grid in view) for view in grids]
            detections.append(fuse_views(zero_shot.with_distances(views), methods, detector.views.sizes))
        return detections

    fits = [detection.score for detection in detect(ranked_distances)]
    return References(detect(nearest_distances), fits, spacings, twins, weights)


def leave_one_out_detections(bank: MemoryBank, detector: Detector, console: Console) -> list[Detection]:
    """Score each of K > 1 references under the bank's method, fitted to the other references."""
    references = detector.references(bank)
    detections = []
    with console.progress(len(bank.sources), "comparing references") as advance:
        for k, image in enumerate(bank.zero_shot):
            methods = detector.fitted(bank.recipe.method, [[*of_view[:k], *of_view[k + 1 :]] for of_view in references])
            own = (of_view[k][:count] for of_view, count in zip(references, image.inputs, strict=True))
            evidence = tuple(method.evidence(features) for method, features in zip(methods, own, strict=True))
            detections.append(fuse_views(replace(image, views=evidence), methods, detector.views.sizes))
            advance(1)
    return detections


def calibrate_on_references(bank: MemoryBank, references: References) -> MemoryBank:
    """Calibrate on the scores of K > 1 references against the others."""
    return replace(bank, calibration=_calibration(references.detections, "leave-one-out", bank))


def calibrate_on_variants(bank: MemoryBank, image: ModelInput, detector: Detector) -> MemoryBank:
    """Calibrate on changed copies of the only reference."""
    scored = _Scored(bank, detector)
    for variant in _variants(image, detector):
        scored.add([variant], ())
    return replace(bank, calibration=_calibration(scored.detections, "augmentations", bank, scored.appearances))


def calibrate_on_images(
    bank: MemoryBank,
    kept: CalibrationImages | None,
    batches: Iterable[list[ModelInput]],
    sources: Sequence[Source],
    detector: Detector,
    console: Console,
) -> tuple[MemoryBank, tuple[str, ...]]:
    """Calibrate on good images: those ``kept`` from before, and new ones, batches of ``sources``.

    New images that show the same as a reference or an earlier one, though saved in another way, are left out; also
    returns their paths.
    Raises InputError if no image is left.
    """
    scored = _Scored(bank, detector)
    spec = detector.encoder.spec
    for source, *sizes in zip(kept.sources, *kept.pixels, strict=True) if kept is not None else ():
        scored.add([ModelInput(tuple(normalize(s.numpy(), spec.mean, spec.std) for s in sizes))], (source,))
    remaining = iter(sources)
    for batch in batches:
        scored.add(batch, tuple(itertools.islice(remaining, len(batch))), leave_out_references=True)
    if bank.spacings is not None and scored.closeness:
        test = mannwhitneyu(scored.closeness, bank.spacings.numpy(), alternative="less")
        if test.pvalue < CLOSER_BY_CHANCE:
            console.note(
                "the calibration images are closer to the references than these are to each other: if they are copies "
                "or the same parts, the false-alarm rate is not guaranteed; calibrate on other parts"
            )
    if not scored.sources:
        raise InputError("--calibrate: all images show the same as references; calibrate on further good images")
    pixels = () if bank.tile is not None else tuple(map(torch.stack, zip(*scored.pixels, strict=True)))
    images = CalibrationImages(tuple(scored.sources), pixels, torch.cat(scored.appearances))
    bank = replace(bank, calibration_images=images)
    bank = replace(bank, calibration=_calibration(scored.detections, "held-out", bank))
    return bank, tuple(scored.left_out)


class _Scored:
    """Good images encoded once: what a calibration needs of them."""

    def __init__(self, bank: MemoryBank, detector: Detector) -> None:
        """Start without any."""
        self._detector = detector.with_bank(bank)
        self._same = same_image_distance(bank)
        self._seen: set[bytes] = set()
        self.detections: list[Detection] = []
        self.appearances: list[torch.Tensor] = []
        self.pixels: list[tuple[torch.Tensor, ...]] = []  # of each size
        self.sources: list[Source] = []
        self.left_out: list[str] = []
        self.closeness: list[float] = []  # mean distance of all patches, of images that may be references

    def add(
        self, images: Sequence[ModelInput], sources: Sequence[Source], *, leave_out_references: bool = False
    ) -> None:
        """Score images as `scan` does."""
        detector, spec = self._detector, self._detector.encoder.spec
        evidence, distances, appearances = detector.compare(images)
        stored = [[stored_pixels(whole, spec.mean, spec.std) for whole in image.whole] for image in images]
        rows = []
        for row, (first, *_) in enumerate(stored):
            content = hashlib.sha256(first.tobytes()).digest()
            if not (leave_out_references and (content in self._seen or distances[row] < self._same)):
                rows.append(row)
            self._seen.add(content)
        self.left_out += [source.path for row, source in enumerate(sources) if row not in rows]
        self.sources += [source for row, source in enumerate(sources) if row in rows]
        self.detections += [detector.fuse(evidence[row]) for row in rows]
        if leave_out_references:
            self.closeness += [distances[row] for row in rows]
        self.appearances.append(appearances[rows].cpu())
        self.pixels += [tuple(map(torch.from_numpy, stored[row])) for row in rows]


def same_image_distance(bank: MemoryBank) -> float:
    """Return the mean distance of its patches below which an image shows the same as a reference of the bank."""
    spacing = 0.0 if bank.spacings is None else float(bank.spacings.min())
    return max(SAME_IMAGE, SAME_SHARE * spacing)


def _variants(image: ModelInput, detector: Detector) -> Iterator[ModelInput]:
    """Change a prepared image slightly, in brightness and position."""
    spec = detector.encoder.spec
    black = (-np.array(spec.mean) / np.array(spec.std)).astype(np.float32)[:, None, None]
    levels = np.arange(256, dtype=np.float32)
    for factor in BRIGHTNESS:
        source = None
        if image.source is not None:
            changed = np.rint(np.clip(levels * np.float32(factor), 0, 255)).astype(np.uint8)
            source = SourceImage(image.source.rgb.point(changed.tolist() * 3))
        whole = tuple(((pixels - black) * factor + black).astype(np.float32) for pixels in image.whole)
        yield ModelInput(whole, source, image.layout)
    for by in SHIFTS:
        source = None
        if image.source is not None:
            shifted = _shift(by, np.moveaxis(np.asarray(image.source.rgb), -1, 0))
            source = SourceImage(Image.fromarray(np.ascontiguousarray(np.moveaxis(shifted, 0, -1))))
        yield ModelInput(tuple(_shift(by, pixels) for pixels in image.whole), source, image.layout)


def _shift(by: tuple[int, int], pixels: NDArray[Any]) -> NDArray[Any]:
    """Move an image [3, H, W] by two pixels; its border is repeated."""
    (down, right), (height, width) = by, pixels.shape[1:]
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2)), mode="edge")
    return padded[:, 2 + down : 2 + down + height, 2 + right : 2 + right + width]


def _calibration(
    detections: Sequence[Detection],
    method: CalibrationMethod,
    bank: MemoryBank,
    variants: Sequence[torch.Tensor] = (),
) -> Calibration:
    """Calibrate on ``detections``, and on how far the bank's good images and ``variants`` of them look apart."""
    scores = np.array([detection.score for detection in detections], np.float32)
    maxima = np.array([detection.map_max for detection in detections if detection.map_max is not None], np.float32)
    distances = None
    if bank.gallery is not None:
        references = len(bank.sources) * bank.copies
        single = len(bank.gallery) - references + sum(map(len, variants))
        gallery = torch.cat([bank.gallery, *variants])
        if len(bank.sources) + single > 1:
            distances = distances_to_others(gallery, [bank.copies] * len(bank.sources) + [1] * single)
    return Calibration(scores, maxima, method, distances)
