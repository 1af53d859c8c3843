"""What every setting of an evaluation shares: the references drawn, and each picture encoded once for all of them.

A setting is a number of shots and a seed. A seed puts an object's good training photos in an order, and its first k are
the k references: drawn without replacement, and those of more shots hold those of fewer. The nearest distance to a bank
is the smallest of the nearest distances to its references, so these are searched once, each for itself, and every bank
is a minimum over some of them: exact, and hardly dearer for sixteen banks than for one.

Symbols: S model input side, N stages, h·w patches, K references of all settings, F settings with references.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core.detector import Detector
from aprilcli.core.fusion import fuse
from aprilcli.core.maps import resize_mask
from aprilcli.core.memory_bank import unit_rows
from aprilcli.core.nearest import nearest_distance
from aprilcli.errors import InputError
from aprilcli.io.artifacts import sha256_of_file
from aprilcli.io.datasets import LabelledImage, LabelledObject, read_mask
from aprilcli.io.walk import FoundImage
from aprilcli.types import Detection, Evidence, ImageFeatures
from aprilcli.workflows.pipeline import PreparedImage, Reader, map_ahead

Item = TypeVar("Item")


@dataclass(frozen=True)
class Setting:
    """``shots`` references drawn by ``seed``; no seed for zero shots, as nothing is drawn."""

    shots: int
    seed: int | None = None


@dataclass(frozen=True)
class TestImage:
    """A test image and its evidence; ``path`` is relative to the data set, with ``/``.

    ``zero_shot`` is its evidence without references; ``distances`` N × [F, h, w] (eq. 4) are those to each bank. Both
    stay on the device: for the paper's model 22 kB for each map. ``mask`` [S, S] bool, None where no pixel is
    anomalous; ``has_pixels``: whether the mask is known. ``error`` says why an image has nothing of this.
    """

    image: LabelledImage
    path: str
    size_hw: tuple[int, int] = (0, 0)
    error: str | None = None
    zero_shot: Evidence | None = field(default=None, repr=False)
    distances: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    mask: NDArray[np.bool_] | None = field(default=None, repr=False)
    has_pixels: bool = False

    def detect(self, bank: int | None, image_size: int) -> Detection | None:
        """Fuse the evidence with that of the bank at position ``bank``; None where the image could not be read."""
        if self.zero_shot is None:
            return None
        distances = () if bank is None else tuple(stage[bank, None] for stage in self.distances)
        return fuse(replace(self.zero_shot, distances=distances), image_size)[0]


@dataclass(frozen=True)
class EncodedObject:
    """An object ready to be measured under each of ``settings``.

    ``references``: per setting the photos drawn, relative to the data set. ``problems`` and ``notes``: what to tell.
    ``digests``: a line ``<relative path> NUL <SHA-256>`` for each test picture and mask.
    """

    settings: tuple[Setting, ...]
    references: tuple[tuple[str, ...], ...]
    pictures: tuple[TestImage, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    digests: tuple[str, ...]

    def bank_of(self, setting: Setting) -> int | None:
        """Return the position of a setting's bank in ``TestImage.distances``; None for zero shots."""
        with_bank = [one for one in self.settings if one.shots]
        return with_bank.index(setting) if setting.shots else None


class ObjectEncoder:
    """Encodes objects with one model; ``advance`` is called after each picture."""

    def __init__(
        self, root: Path, settings: Sequence[Setting], pool: ThreadPoolExecutor, workers: int, batch_size: int
    ) -> None:
        """Read on ``pool``, encode ``batch_size`` pictures at a time."""
        self._root = root
        self._settings = tuple(settings)
        self._pool = pool
        self._ahead = 2 * (workers + batch_size)
        self._batch_size = batch_size

    def encode(self, one: LabelledObject, detector: Detector, advance: Callable[[], None]) -> EncodedObject:
        """Draw and encode the references, then encode every test picture once. Raises InputError: too few references.

        Memory: the references' tokens (22 MB each for the paper's model) and what ``TestImage`` says of each picture.
        """
        drawing = _Drawing(one, self._root, detector, self._settings)
        banks = [rows for setting, rows in zip(self._settings, drawing.chosen, strict=True) if setting.shots]
        with torch.inference_mode():
            references = self._encode_references(drawing, detector, advance)
            encoded = list(self._encode_test(one, detector, references, banks, advance))
        return EncodedObject(
            settings=self._settings,
            references=tuple(tuple(drawing.names[row] for row in rows) for rows in drawing.chosen),
            pictures=tuple(picture for picture, _ in encoded),
            problems=(*drawing.problems, *(problem for _, read in encoded for problem in read.problems)),
            notes=tuple(dict.fromkeys(note for _, read in encoded for note in read.picture.notes)),
            digests=tuple(line for _, read in encoded for line in read.digests),
        )

    def _encode_references(
        self, drawing: _Drawing, detector: Detector, advance: Callable[[], None]
    ) -> list[tuple[torch.Tensor, ...]]:
        """Return each reference's unit rows, K × N × [L, Cv]."""
        encoded = []
        for batch in _batches(iter(drawing.pixels), self._batch_size):
            features = detector.encoder.encode(np.stack(batch))
            for position in range(len(batch)):
                encoded.append(tuple(unit_rows(tokens[position]) for tokens in features.patch_tokens))
                advance()
        return encoded

    def _encode_test(
        self,
        one: LabelledObject,
        detector: Detector,
        references: list[tuple[torch.Tensor, ...]],
        banks: list[tuple[int, ...]],
        advance: Callable[[], None],
    ) -> Iterator[tuple[TestImage, _Read]]:
        size = detector.encoder.spec.image_size

        def read(image: LabelledImage) -> _Read:
            return _read_test_image(image, self._root, detector, size)

        for batch in _batches(map_ahead(self._pool, read, one.test, self._ahead), self._batch_size):
            pixels = [read.picture.pixels for read in batch if read.picture.pixels is not None]
            rows = iter(_features(detector, pixels, references, banks) if pixels else ())
            for found in batch:
                path, error = found.picture.found.relative, found.picture.error
                if error is not None:
                    yield TestImage(found.image, path, error=error), found
                else:
                    zero_shot, distances = next(rows)
                    yield (
                        TestImage(
                            image=found.image,
                            path=path,
                            size_hw=found.picture.size_hw,
                            zero_shot=zero_shot,
                            distances=distances,
                            mask=found.mask,
                            has_pixels=found.has_pixels,
                        ),
                        found,
                    )
                advance()


def relative_path(path: Path, root: Path) -> str:
    """Return ``path`` as seen from the data set, with ``/``."""
    return Path(os.path.relpath(path, root)).as_posix()


def draw_order(category: str, count: int, seed: int) -> list[int]:
    """Return the order in which a seed draws ``count`` photos: the same on every machine, another for every category.

    ``category`` and not the object's path, so that it does not matter which folder the evaluation is given.
    """
    named = zlib.crc32(category.encode("utf-8", "surrogateescape"))
    order: list[int] = np.random.default_rng([seed, named]).permutation(count).tolist()
    return order


class _Drawing:
    """Reads an object's references. ``chosen``: per setting, positions in ``names`` and ``pixels``."""

    def __init__(self, one: LabelledObject, root: Path, detector: Detector, settings: Sequence[Setting]) -> None:
        self.names: list[str] = []
        self.pixels: list[NDArray[np.float32]] = []
        self.problems: list[str] = []
        self._one, self._root, self._detector = one, root, detector
        self._positions: dict[int, int | None] = {}  # of each photo read; None: unreadable
        most = {one.seed: one.shots for one in sorted(settings, key=lambda one: one.shots)}
        drawn = {seed: self._draw(seed, shots) for seed, shots in most.items() if seed is not None}
        self.chosen = [drawn[one.seed][: one.shots] if one.seed is not None else () for one in settings]

    def _draw(self, seed: int, shots: int) -> tuple[int, ...]:
        order = draw_order(self._one.category, len(self._one.train_good), seed)
        readable = (position for index in order if (position := self._position(index)) is not None)
        drawn = tuple(itertools.islice(readable, shots))
        if len(drawn) < shots:
            raise InputError(
                f"{self._one.name}: {shots} shots need as many good training photos, only {len(drawn)} can be read; "
                "ask for fewer --shots, or leave the object out with --objects"
            )
        return drawn

    def _position(self, index: int) -> int | None:
        if index not in self._positions:
            path = self._one.train_good[index]
            picture = Reader(self._detector.prepare)(FoundImage(path, relative_path(path, self._root)))
            if picture.pixels is None:
                self.problems.append(f"{picture.error}; another reference is drawn in its place")
                self._positions[index] = None
            else:
                self._positions[index] = len(self.names)
                self.names.append(picture.found.relative)
                self.pixels.append(picture.pixels)
        return self._positions[index]


@dataclass(frozen=True)
class _Read:
    """A test photo and its mask, read on a thread."""

    image: LabelledImage
    picture: PreparedImage
    mask: NDArray[np.bool_] | None = None
    has_pixels: bool = False
    problems: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()


def _read_test_image(image: LabelledImage, root: Path, detector: Detector, size: int) -> _Read:
    name = relative_path(image.path, root)
    picture = Reader(detector.prepare)(FoundImage(image.path, name))
    if picture.pixels is None:
        return _Read(image, picture)
    digests = [f"{name}\0{sha256_of_file(image.path)}"]
    if not image.has_mask:
        return _Read(image, picture, digests=tuple(digests))  # the data set's own problems say so already
    try:
        mask = read_mask(image, picture.size_hw)
        digests += [f"{relative_path(path, root)}\0{sha256_of_file(path)}" for path in image.mask_paths]
    except InputError as error:
        return _Read(image, picture, problems=(f"{error}; its pixels are left out",), digests=tuple(digests))
    if not mask.any():
        return _Read(image, picture, has_pixels=True, digests=tuple(digests))
    squashed = resize_mask(mask, size) > 0
    vanished = f"{name}: its defect is too small for a mask of {size} x {size} pixels, where all count as normal"
    problems = () if squashed.any() else (vanished,)
    return _Read(image, picture, squashed, True, problems, tuple(digests))


def _features(
    detector: Detector,
    pixels: list[NDArray[np.float32]],
    references: list[tuple[torch.Tensor, ...]],
    banks: list[tuple[int, ...]],
) -> Iterator[tuple[Evidence, tuple[torch.Tensor, ...]]]:
    """Encode a batch in one pass; yield each image's zero-shot evidence and its distances to the banks."""
    features = detector.encoder.encode(np.stack(pixels))
    zero_shot = detector.method.zero_shot(features)
    distances = _distances(features, references, banks) if banks else ()
    for position in range(len(pixels)):
        # Copies: a view of one image would keep the whole batch.
        yield zero_shot[position : position + 1].clone(), tuple(stage[position].clone() for stage in distances)


def _distances(
    features: ImageFeatures, references: list[tuple[torch.Tensor, ...]], banks: list[tuple[int, ...]]
) -> tuple[torch.Tensor, ...]:
    """Return N × [B, F, h, w]: the distances to every bank, as minima over its references."""
    stages = []
    for stage, (tokens, grid) in enumerate(zip(features.patch_tokens, features.grids, strict=True)):
        each = torch.stack([nearest_distance(tokens, reference[stage]) for reference in references], dim=1)
        nearest = torch.stack([each[:, list(rows)].amin(dim=1) for rows in banks], dim=1)
        stages.append(nearest.reshape(*nearest.shape[:2], *grid))
    return tuple(stages)


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
