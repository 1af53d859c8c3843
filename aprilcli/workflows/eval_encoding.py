"""Each image of an object encoded once for all settings of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core.detector import Detector, EncodedReference
from aprilcli.core.fusion import fuse_views, map_size
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.methods import Scoring
from aprilcli.core.resizing import resize_mask
from aprilcli.defaults import MUTUAL, WINCLIP, WITH_ROTATIONS
from aprilcli.errors import InputError
from aprilcli.io.data_fingerprint import digest_line, relative_path, sha256_of_line
from aprilcli.io.datasets import GOOD, LabeledImage, LabeledObject
from aprilcli.io.masks import read_mask
from aprilcli.io.walk import FoundImage
from aprilcli.options import EvalOptions
from aprilcli.types import Detection, ImageEvidence, ImageFeatures, Views
from aprilcli.workflows.dataset_notes import MaskNotes
from aprilcli.workflows.eval_comparison import Comparison
from aprilcli.workflows.eval_copies import (
    Candidate,
    Thumbnail,
    copies_of_part,
    equal_files,
    find_copies,
    make_thumbnail,
)
from aprilcli.workflows.eval_mutual import MutualImages
from aprilcli.workflows.eval_references import References, draw_order, fusion_of
from aprilcli.workflows.eval_settings import Setting
from aprilcli.workflows.pipeline import PreparedImage, Reader, batches, images_ahead, map_ahead

FEATURES = ".features"  # in the output folder, while the images of an object score each other
MOST_TO_CALIBRATE = 200  # unused training images: twice as many as a false-alarm rate of 0.01 needs


@dataclass(frozen=True)
class EncodedImage:
    """A test or calibration image and its evidence; ``path`` is relative to the data set, with ``/``.

    ``evidence``: under each setting, on the device (for the paper's model 22 kB per map and bank); ``part_distance``:
    see ``Detection``. ``mask`` bool, of the size of its map, None if no pixel is anomalous; ``has_pixels``: whether the
    mask is known. ``error`` gives the reason if an image has none of this.
    """

    image: LabeledImage
    path: str
    size_hw: tuple[int, int] = (0, 0)
    error: str | None = None
    evidence: tuple[ImageEvidence, ...] = field(default=(), repr=False)
    part_distance: float | None = None
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    has_pixels: bool = False

    def detect(self, setting: int, methods: Sequence[Scoring], sizes: Sequence[int]) -> Detection | None:
        """Fuse the evidence under the setting at this position; None if the image could not be read.

        ``methods`` and ``sizes``: as ``fuse_views`` takes them.
        """
        if not self.evidence:
            return None
        return replace(fuse_views(self.evidence[setting], methods, sizes), part_distance=self.part_distance)


@dataclass(frozen=True)
class EncodedObject:
    """An object ready to be measured under each of ``settings``.

    ``methods``: per setting, those of each view, as ``fuse_views`` takes them.
    ``references``: per setting, the images drawn, relative to the data set. ``part``: the bank of an enrolled part,
    whose references are the only setting. ``calibration``: good images that are neither tested nor references;
    ``calibration_source``: where they, or the part's, come from. ``problems`` and ``notes``: for the user. ``digests``:
    a line ``<relative path> NUL <SHA-256>`` for each test image and mask. ``leaked``: test images of which a reference
    or calibration image is a copy. ``mutual``: smooths the scores of mutual scoring.
    """

    settings: tuple[Setting, ...]
    methods: tuple[tuple[Scoring, ...], ...]
    references: tuple[tuple[str, ...], ...]
    images: tuple[EncodedImage, ...]
    calibration: tuple[EncodedImage, ...]
    calibration_source: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    digests: tuple[str, ...]
    leaked: tuple[str, ...] = ()
    mutual: MutualImages | None = field(default=None, repr=False)
    part: MemoryBank | None = field(default=None, repr=False)


class ObjectEncoder:
    """Encodes the objects of a data set with one model."""

    def __init__(self, root: Path, settings: Sequence[Setting], pool: ThreadPoolExecutor, options: EvalOptions) -> None:
        """Read on the threads of ``pool``."""
        self._root = root
        self._settings = tuple(settings)
        self._pool = pool
        self._options = options

    def count_images(self, item: LabeledObject) -> int:
        """Return by how much ``encode`` advances: the number of images to encode if all of them are readable."""
        references = {
            index
            for setting in self._settings
            if setting.seed is not None
            for index in draw_order(item.category, len(item.train_good), setting.seed)[: setting.shots]
        }
        unused = min(len(item.train_good) - len(references), MOST_TO_CALIBRATE)
        calibration = len(item.validation_good) or unused if self._options.calibrate else 0
        return len(references) + len(item.test) + calibration

    def encode(self, item: LabeledObject, detector: Detector, advance: Callable[..., None]) -> EncodedObject:
        """Encode references, test and calibration images; ``advance(count=1)`` is called after each.

        With the detector of an enrolled part, its bank takes the place of references and calibration images.
        Raises InputError if there are too few references. Memory: the references' tokens (22 MB each for the paper's
        model) and the evidence of each image.
        """
        reader = Reader(detector.prepare, self._options.value_range, self._options.max_pixels)
        drawn = References(item, self._root, reader, self._settings)
        chosen = self._calibration_images(item, drawn) if self._options.calibrate else []
        # Other references replace unreadable ones, so the number of images may differ from the expected one.
        advance(self.count_images(item) - len(drawn.inputs) - len(item.test) - len(chosen))
        with torch.inference_mode():
            references = self._encode_references(drawn, detector, advance)
            comparison = Comparison(detector, self._settings, drawn.chosen, references, fusion_of(self._options))
            del references
            trained = [
                make_thumbnail(self._root / name, name, image.whole[0], detector.encoder.spec)
                for name, image in zip(drawn.names, drawn.inputs, strict=True)
            ]
            drawn.inputs.clear()  # with tiles, each holds all pixels of its image

            def encode(
                images: Sequence[LabeledImage], mutual: MutualImages | None = None
            ) -> list[tuple[EncodedImage, _Read]]:
                return list(self._encode_images(images, reader, detector, comparison, advance, mutual))

            mutual = self._mutual_images(item, detector)
            try:
                tested, calibration = encode(item.test, mutual), encode(chosen)
                if mutual is not None:
                    tested = self._with_mutual_scores(item, tested, mutual)
            finally:
                if mutual is not None:
                    mutual.remove()
        trained += [read.thumbnail for _, read in calibration if read.thumbnail is not None]
        copies = find_copies([read.thumbnail for _, read in tested if read.thumbnail is not None], trained)
        leaked = [test.name for test, _ in copies]
        if detector.bank is not None:
            candidates = [read.candidate() for image, read in tested if image.error is None]
            leaked = copies_of_part(candidates, detector.bank, detector.encoder.spec)
        mask_notes = MaskNotes()
        for _, read in tested:
            for note in read.mask_notes:
                mask_notes.add(item.name, read.labeled.mask_paths[0], note)
        problems = [*drawn.problems, *mask_notes.problems(self._root)]
        problems += [problem for _, read in tested for problem in read.problems]
        names = {relative_path(path, self._root): path for path in item.train_good}
        unused = {name: path for name, path in names.items() if name not in drawn.names}
        problems += _copies_of_unused({} if detector.bank is not None else unused, item, self._root)
        problems += _same_under_two_labels(item, [read for _, read in tested])
        problems += [f"{image.error}; not used for calibration" for image, _ in calibration if image.error is not None]
        readable = tuple(image for image, _ in calibration if image.error is None)
        if self._options.calibrate and not readable:
            problems.append(
                f"{item.name}: no readable images in validation/good or unused for training; no far and tpr"
            )
        return EncodedObject(
            settings=self._settings,
            methods=comparison.methods,
            references=_references(drawn, detector.bank),
            images=tuple(image for image, _ in tested),
            calibration=readable,
            calibration_source=_source_of(item, drawn, len(readable), detector.bank),
            problems=tuple(problems),
            notes=tuple(dict.fromkeys(note for _, read in (*tested, *calibration) for note in read.image.notes)),
            digests=tuple(line for _, read in tested for line in read.digests),
            leaked=tuple(dict.fromkeys(leaked)),
            mutual=mutual,
            part=detector.bank,
        )

    @property
    def _mutual_at(self) -> int:
        """The position of the setting of mutual scoring."""
        return [setting.method for setting in self._settings].index(MUTUAL)

    def _mutual_images(self, item: LabeledObject, detector: Detector) -> MutualImages | None:
        if not any(setting.method == MUTUAL for setting in self._settings):
            return None
        return MutualImages(self._options.out / FEATURES, detector, len(item.test))

    def _with_mutual_scores(
        self, item: LabeledObject, tested: list[tuple[EncodedImage, _Read]], mutual: MutualImages
    ) -> list[tuple[EncodedImage, _Read]]:
        """Put the scores of the patches into the evidence of the readable images."""
        try:
            scored = iter(mutual.score())
        except InputError as error:
            raise InputError(f"{item.name}: {error}; omit --mutual, or choose with --objects") from error
        at = self._mutual_at
        found = []
        for image, read in tested:
            if image.error is None:
                evidence = (*image.evidence[:at], next(scored), *image.evidence[at + 1 :])
                image = replace(image, evidence=evidence)
            found.append((image, read))
        return found

    def _calibration_images(self, item: LabeledObject, drawn: References) -> list[LabeledImage]:
        """Return the images of validation/good; without any, a random part of the unused training images."""
        paths = item.validation_good
        if not paths:
            order = draw_order(item.category, len(drawn.unused), self._options.seed)
            paths = tuple(drawn.unused[index] for index in order[:MOST_TO_CALIBRATE])
        return [LabeledImage(path, GOOD, 0) for path in paths]

    def _encode_references(
        self, drawn: References, detector: Detector, advance: Callable[..., None]
    ) -> list[EncodedReference]:
        methods = {setting.method for setting in self._settings}
        windows = WINCLIP in methods
        encoded: list[EncodedReference] = []
        for batch in batches(iter(drawn.inputs), self._options.batch_size):
            if methods & set(WITH_ROTATIONS):
                encoded += [detector.encode_turned(image, windows) for image in batch]
            else:
                encoded += detector.encode_references(batch, windows)
            advance(len(batch))
        return encoded

    def _encode_images(
        self,
        images: Sequence[LabeledImage],
        reader: Reader,
        detector: Detector,
        comparison: Comparison,
        advance: Callable[..., None],
        mutual: MutualImages | None,
    ) -> Iterator[tuple[EncodedImage, _Read]]:
        batch_size = self._options.batch_size

        def read(image: LabeledImage) -> _Read:
            return _read_image(image, self._root, reader, detector)

        ahead = images_ahead(self._options, detector.views.tile)
        for batch in batches(map_ahead(self._pool, read, images, ahead), batch_size):
            inputs = [found.image.input for found in batch if found.image.input is not None]
            features: list[list[ImageFeatures]] = [[] for _ in inputs]  # of each view, for mutual scoring
            rows = iter(comparison.evidence(inputs, features if mutual is not None else None) if inputs else ())
            numbers = iter(range(len(inputs)))
            del inputs
            for found in map(_Read.without_pixels, batch):
                path, error = found.image.found.relative, found.image.error
                if error is not None:
                    yield EncodedImage(found.labeled, path, error=error), found
                else:
                    evidence, part_distance, distance = next(rows)
                    if mutual is not None:
                        mutual.add(path, features[next(numbers)], evidence[self._mutual_at].views[0].text_scores.item())
                    encoded = EncodedImage(
                        image=found.labeled,
                        path=path,
                        size_hw=found.image.size_hw,
                        evidence=evidence,
                        part_distance=part_distance,
                        mask=found.mask,
                        has_pixels=found.has_pixels,
                    )
                    yield encoded, replace(found, distance=distance)
                advance()


def _references(drawn: References, part: MemoryBank | None) -> tuple[tuple[str, ...], ...]:
    """Return the references of each setting; those of an enrolled part are relative to the enrolled folder."""
    if part is not None:
        return (tuple(source.path for source in part.sources),)
    return tuple(tuple(drawn.names[row] for row in rows) for rows in drawn.chosen)


def _source_of(item: LabeledObject, drawn: References, count: int, part: MemoryBank | None) -> str:
    """Describe where ``count`` calibration images, or the scores of an enrolled part, come from; empty for none."""
    if part is not None:
        scored = part.calibration
        return "" if scored is None else f"{len(scored)} scores of good images ({scored.method})"
    if not count:
        return ""
    if item.validation_good:
        return f"{count} images of validation/good"
    return f"{count} of {len(drawn.unused)} unused good training images ({count / len(drawn.unused):.0%})"


@dataclass(frozen=True)
class _Read:
    """An image and its mask, read on a thread."""

    labeled: LabeledImage
    image: PreparedImage
    mask: NDArray[np.bool_] | None = None
    has_pixels: bool = False
    problems: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    mask_notes: tuple[str, ...] = ()
    thumbnail: Thumbnail | None = field(default=None, repr=False)
    distance: float | None = None  # see ``Detector.compare``, for an enrolled part

    def candidate(self) -> Candidate:
        """Return what identifies a readable image, once it is encoded."""
        if self.thumbnail is None or self.distance is None:
            raise ValueError("an image that could not be read is no copy")
        return Candidate(self.thumbnail, sha256_of_line(self.digests[0]), self.distance)

    def without_pixels(self) -> _Read:
        """Return what is needed once the image is encoded."""
        return replace(self, image=replace(self.image, input=None))


def _read_image(labeled: LabeledImage, root: Path, reader: Reader, detector: Detector) -> _Read:
    read = _read_image_and_mask(labeled, root, reader, detector.views)
    if read.image.input is None:
        return read
    name, pixels = read.image.found.relative, read.image.input.whole[0]
    return replace(read, thumbnail=make_thumbnail(labeled.path, name, pixels, detector.encoder.spec))


def _copies_of_unused(unused: Mapping[str, Path], item: LabeledObject, root: Path) -> list[str]:
    """Report test images that are equal to training images which no setting draws: these are not decoded."""
    pairs = equal_files([image.path for image in item.test], list(unused.values()))
    if not pairs:
        return []
    first, other = (relative_path(path, root) for path in pairs[0])
    return [f"{item.name}: {len(pairs)} test images are also training images (first {first} and {other}); remove them"]


def _same_under_two_labels(item: LabeledObject, images: Sequence[_Read]) -> list[str]:
    """Report test images of different labels that are copies of each other."""
    label_of = {read.image.found.relative: read.labeled.defect for read in images}
    thumbnails = [read.thumbnail for read in images if read.thumbnail is not None]
    pairs = [
        (first.name, second.name)
        for first, second in find_copies(thumbnails, thumbnails)
        if first.name < second.name and label_of[first.name] != label_of[second.name]
    ]
    if not pairs:
        return []
    count = len({name for pair in pairs for name in pair})
    named = (
        f"{item.name}: {count} test images are the same under different labels (first {pairs[0][0]} and {pairs[0][1]})"
    )
    return [f"{named}; remove them from one label"]


def _read_image_and_mask(labeled: LabeledImage, root: Path, reader: Reader, views: Views) -> _Read:
    name = relative_path(labeled.path, root)
    image = reader(FoundImage(labeled.path, name))
    if image.input is None:
        return _Read(labeled, image)
    digests = [digest_line(labeled.path, root)]
    if not labeled.has_mask:
        return _Read(labeled, image, digests=tuple(digests))  # already among the problems of the data set
    notes: list[str] = []
    try:
        mask = read_mask(labeled, image.size_hw, notes.append)
        digests += [digest_line(path, root) for path in labeled.mask_paths]
    except InputError as error:
        return _Read(labeled, image, problems=(f"{error}; its pixels are left out",), digests=tuple(digests))
    if not mask.any():
        return _Read(labeled, image, has_pixels=True, digests=tuple(digests))
    height, width = map_size(views.sizes, image.input.layout)
    resized = resize_mask(mask, (height, width)) > 0
    vanished = f"{name}: its defect is too small for a mask of {width} x {height} pixels; all pixels count as normal"
    problems = () if resized.any() else (vanished,)
    return _Read(labeled, image, resized, True, problems, tuple(digests), tuple(notes))
