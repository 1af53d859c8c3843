"""Find copies of an image among others: renamed, saved in another format, or compressed again.

Images are compared as the encoder sees them: resized to its input, then to gray thumbnails of T x T means. Two lossless
files are copies if they differ by no more than rounding. If one is compressed with loss, the difference may be that of
strong compression (JPEG quality 30: about 2 gray levels), if it is spread over the image: a defect that was added to a
copy differs in few places, by much more than elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from aprilcli.core.memory_bank import MemoryBank
from aprilcli.errors import InputError
from aprilcli.io.files import sha256_of_file
from aprilcli.io.image_formats import HEAD, format_of
from aprilcli.io.images import normalize
from aprilcli.types import ModelSpec
from aprilcli.workflows.enroll_calibration import same_image_distance

SIDE = 64  # T; at most the model's input
ROUNDING = 0.1  # gray levels (of 255), root mean square
COMPRESSION = 2.5  # gray levels, root mean square
PEAK = 12.0  # largest difference by its root mean square; more is a local change
_LOSSY = ("JPEG", "WebP", "HEIC", "AVIF", "JPEG 2000", "JPEG XL")


@dataclass(frozen=True)
class Thumbnail:
    """An image by its relative path, with its gray values [T * T] float32, 0 to 255; ``is_lossy``: its compression."""

    name: str
    is_lossy: bool
    values: NDArray[np.float32]


def make_thumbnail(path: Path, name: str, pixels: NDArray[np.float32], spec: ModelSpec) -> Thumbnail:
    """Make the thumbnail of an image that was prepared for the model, ``pixels`` [3, S, S]."""
    try:
        with path.open("rb") as file:
            is_lossy = format_of(file.read(HEAD)) in _LOSSY
    except OSError:
        is_lossy = False
    return Thumbnail(name, is_lossy, _shrink(pixels, spec))


def _shrink(pixels: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    gray = torch.from_numpy((pixels * std + mean).mean(axis=0) * np.float32(255))
    side = min(SIDE, spec.image_size)
    shrunk: NDArray[np.float32] = F.adaptive_avg_pool2d(gray[None, None], (side, side)).flatten().numpy()
    return shrunk


def find_copies(first: Sequence[Thumbnail], second: Sequence[Thumbnail]) -> list[tuple[Thumbnail, Thumbnail]]:
    """Return the pairs of an image of ``first`` and one of ``second`` that are copies. O(N·M·T²)."""
    if not first or not second:
        return []
    a, b = (np.stack([image.values for image in images]).astype(np.float64) for images in (first, second))
    offset = a.mean()  # differences do not change, and products lose fewer digits
    a, b = a - offset, b - offset
    squares = (a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1)[None] - 2 * a @ b.T / a.shape[1]
    found = []
    for i, j in np.argwhere(squares <= COMPRESSION**2):
        difference = np.abs(a[i] - b[j])
        error = float(np.sqrt((difference**2).mean()))
        is_lossy = first[i].is_lossy or second[j].is_lossy
        if error <= ROUNDING or (is_lossy and error <= COMPRESSION and difference.max() <= PEAK * error):
            found.append((first[i], second[j]))
    return found


@dataclass(frozen=True)
class Candidate:
    """A test image that may be a copy: its thumbnail, the SHA-256 of its file, and its distance to the references.

    ``distance``: see ``Detector.compare``.
    """

    thumbnail: Thumbnail
    sha256: str
    distance: float


def copies_of_part(images: Sequence[Candidate], bank: MemoryBank, spec: ModelSpec) -> list[str]:
    """Return the names of the images that are references or calibration images of a part, or copies of them.

    As in `enroll`, a copy of a reference is recognized by its distances; where the bank keeps no pixels of calibration
    images, equal files only.
    """
    kept = bank.calibration_images
    known = {source.sha256 for source in (*bank.sources, *(() if kept is None else kept.sources))}
    known |= set(() if bank.choice is None else bank.choice.images)
    calibrated = []
    if kept is not None and kept.pixels:
        for source, pixels in zip(kept.sources, kept.pixels[0], strict=True):
            values = _shrink(normalize(pixels.numpy(), spec.mean, spec.std), spec)
            calibrated.append(Thumbnail(source.path, False, values))  # a lossless copy is equal, whatever this was
    copies = {first.name for first, _ in find_copies([image.thumbnail for image in images], calibrated)}
    closest = same_image_distance(bank)
    return [
        image.thumbnail.name
        for image in images
        if image.sha256 in known or image.thumbnail.name in copies or image.distance < closest
    ]


def equal_files(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return the pairs of files with the same content; only files of equal sizes are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in second:
        with suppress(OSError):
            by_size[path.stat().st_size].append(path)
    found = []
    for path in first:
        with suppress(OSError, InputError):
            if others := by_size.get(path.stat().st_size):
                digest = sha256_of_file(path)
                found += [(path, other) for other in others if sha256_of_file(other) == digest][:1]
    return found
