"""Which file is an image and which the mask of an image: by name and place, never by order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aprilcli.io.image_formats import has_image_extension
from aprilcli.io.images import DECODER_ERRORS
from aprilcli.io.label_names import (
    IMAGE_FOLDERS,
    core_words,
    fold,
    has_mask_word,
    is_numbered_mask,
    mask_rank,
    masked_names,
    may_be_masks,
    same_form,
)

CLEARLY_FEWER_BITS = 1.0  # a mask has fewer distinct values than the image beside it
MASK_BITS = 1.0  # of gray: at most those of two values
MASK_VALUES = 8  # gray values, at most, of a mask of classes


@dataclass(frozen=True)
class Candidate:
    """A file with its label (empty if its place names none) and its name within the label, without suffix."""

    path: Path
    label: str
    name: str


@dataclass
class Content:
    """The files of a label folder: images, masks (in folders of masks) and masks that lie beside their image.

    ``left_out``: folders of further channels, such as ``xyz`` beside ``rgb``. ``unclear``: images of one name of which
    none is clearly the mask. ``orphans``: files named like the masks of other images, without an image.
    """

    images: list[Candidate] = field(default_factory=list)
    masks: list[Candidate] = field(default_factory=list)
    beside: dict[Path, list[Path]] = field(default_factory=lambda: defaultdict(list))
    left_out: list[Path] = field(default_factory=list)
    unclear: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)


def sort_content(folder: Path, label: str, files: Sequence[Path]) -> Content:
    """Tell images, masks and other channels in a label folder apart.

    A folder ``rgb`` or ``images`` contains the images if there are folders beside it; of these, folders of masks
    (``gt``, ``masks``) are used and others are left out. A file is the mask of an image in the same folder if its name
    says so (``0_mask``, ``0_label``, ``0_GT``; also ``0_mask`` beside ``img_0``), or if both have the same stem, or it
    extends the other's stem (``0_bin``), and its content is clearly simpler (fewer bits of gray per pixel).
    """
    places = {path: PurePath(same_form(path.relative_to(folder).as_posix())) for path in files}
    parents = {parent for place in places.values() for parent in place.parents}
    channels = {parent.parent for parent in parents if parent.name and fold(parent.name) in IMAGE_FOLDERS}
    masks = {
        parent
        for parent in parents
        if is_mask_folder(parent.name, (path for path in files if parent in places[path].parents))
    }
    content = Content()
    for path, place in places.items():
        kind, name = _channel(place, channels, masks)
        candidate = Candidate(path, label, name.with_suffix("").as_posix())
        if kind == "image":
            content.images.append(candidate)
        elif kind == "mask":
            content.masks.append(candidate)
        else:
            other = folder.joinpath(*path.relative_to(folder).parts[: len(PurePath(kind).parts)])
            if other not in content.left_out:
                content.left_out.append(other)
    _find_beside(content)
    return content


def is_mask_folder(name: str, files: Iterable[Path]) -> bool:
    """Return whether a folder contains masks by its name; for names such as ``label``, the first files decide."""
    if may_be_masks(name):
        first = list(islice(files, 3))
        return bool(first) and all(map(is_mask_like, first))
    return mask_rank(name) is not None


def _channel(place: PurePath, channels: set[PurePath], masks: set[PurePath]) -> tuple[str, PurePath]:
    """Return ``image``, ``mask``, or the folder of another channel; and the place without the channel's folder."""
    for depth, part in enumerate(place.parts[:-1]):
        above, rest = PurePath(*place.parts[:depth]), PurePath(*place.parts[depth + 1 :])
        if above / part in masks:
            return "mask", above / rest
        if above in channels:
            folder = PurePath(*place.parts[: depth + 1]).as_posix()
            return ("image", above / rest) if fold(part) in IMAGE_FOLDERS else (folder, place)
    return "image", place


def _find_beside(content: Content) -> None:
    """Move the masks that lie beside their images."""
    by_place: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for image in content.images:
        by_place[image.path.parent, same_form(image.path.stem)].append(image.path)
    image_of: dict[Path, Path] = {}
    for (folder, stem), paths in by_place.items():
        named = [other for name in masked_names(stem) for other in by_place.get((folder, name), [])]
        if named:
            image_of.update(dict.fromkeys(paths, _most_complex(named)))
        elif len(paths) > 1:
            bits = sorted((bits_of_gray(path), path) for path in paths)
            if bits[-1][0] - bits[-2][0] >= CLEARLY_FEWER_BITS:
                image_of.update(dict.fromkeys((path for _, path in bits[:-1]), bits[-1][1]))
            else:
                content.unclear += paths
    rest = [image.path for image in content.images if image.path not in image_of]
    masked = set(image_of.values())
    plain = [path for path in rest if path in masked or not has_mask_word(same_form(path.stem))]
    by_core: dict[tuple[Path, tuple[str, ...]], list[Path]] = defaultdict(list)
    for path in plain:
        by_core[path.parent, core_words(same_form(path.stem))].append(path)
    if not plain and not all(map(is_mask_like, rest)):
        return  # images of masks, or of labels
    for path in rest:
        stem = same_form(path.stem)
        if path in masked:
            continue
        if has_mask_word(stem):
            above = by_place.get((path.parent.parent, same_form(path.parent.name)), [])
            fitting = by_core.get((path.parent, core_words(stem)), above)
            if len(fitting) == 1:
                image_of[path] = fitting[0]
            else:
                content.orphans.append(path)
        elif extended := _extended(path.parent, stem, path, by_place):
            image_of[path] = extended
    others = {*image_of, *content.orphans}
    content.images = [image for image in content.images if image.path not in others]
    for mask, image_path in image_of.items():
        content.beside[image_path].append(mask)


def _extended(folder: Path, stem: str, path: Path, by_place: dict[tuple[Path, str], list[Path]]) -> Path | None:
    """Return the image whose stem ``stem`` extends if the file looks like its mask: ``0`` for ``0_bin``."""
    for end in range(len(stem) - 1, 0, -1):
        before, after = stem[end - 1], stem[end]
        if (before.isalpha() and after.isalpha()) or (before.isdigit() and after.isdigit()):
            continue
        for image in by_place.get((folder, stem[:end]), []):
            if _size(image) not in (_size(path), None) or not is_mask_like(path):
                continue
            if bits_of_gray(image) - bits_of_gray(path) >= CLEARLY_FEWER_BITS:
                return image
    return None


def _most_complex(paths: Sequence[Path]) -> Path:
    return paths[0] if len(paths) == 1 else max(paths, key=bits_of_gray)


def bits_of_gray(path: Path) -> float:
    """Return the entropy of an image's gray values in bits: 0 to 8, low for a mask; 8 if it cannot be read."""
    shares = _gray_shares(path)
    return 8.0 if shares is None else float(-(shares * np.log2(shares)).sum())


def is_mask_like(path: Path) -> bool:
    """Return whether an image has few gray values, or about two with some noise."""
    shares = _gray_shares(path)
    return shares is not None and (len(shares) <= MASK_VALUES or bits_of_gray(path) <= MASK_BITS)


def _gray_shares(path: Path) -> NDArray[np.float64] | None:
    """Return the share of each gray value that an image has; None if it cannot be read.

    Values of more than 8 bits count in 256 steps from the least to the largest.
    """
    try:
        with Image.open(path) as pil_image:
            if pil_image.mode.startswith(("I", "F")):
                values = np.nan_to_num(np.asarray(pil_image, dtype=np.float64), posinf=0, neginf=0)
                counts = np.histogram(values, bins=256)[0]
            else:
                counts = np.array(pil_image.convert("RGB").convert("L").histogram())
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None
    return np.asarray(counts[counts > 0] / counts.sum())


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as pil_image:
            return pil_image.size
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None


def pair(
    images: Sequence[Candidate],
    anomalous: set[Path],
    masks: Sequence[Candidate],
    beside: dict[Path, list[Path]],
    report: Callable[[Path, str], None],
    name_of: Callable[[Path], str],
    decided: list[Path],
) -> dict[Path, tuple[Path, ...]]:
    """Return the masks of each image that has any; report masks that are not used, and anomalous images without.

    A mask has its image's name, the name with a word for masks (``_mask``, ``_GT`` …), or lies in a folder of that
    name: all files there are combined, as are numbered masks (``_mask_1``). Without a label it fits an image of any
    label, if only one has its name, or only one of these is anomalous: ``decided`` gets these masks. Masks ``beside``
    an image are used if it has no other.
    """
    by_name: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for image in images:
        for label in (image.label, ""):
            by_name[label, image.name].append(image.path)
    files: dict[Path, list[Path]] = defaultdict(list)  # whole masks of an image
    parts: dict[Path, list[Path]] = defaultdict(list)  # masks in a folder of its name
    unclear: set[Path] = set()
    for mask in masks:
        whole = next((f for name in _image_names(mask.name) if (f := by_name.get((mask.label, name)))), None)
        fitting = whole or by_name.get((mask.label, PurePath(mask.name).parent.as_posix()), [])
        if len(fitting) > 1 and len(defects := [path for path in fitting if path in anomalous]) == 1:
            fitting = defects
            decided.append(mask.path)
        if not fitting:
            report(mask.path, "mask without an image; left out")
        elif len(fitting) > 1:
            report(mask.path, f"mask fits {' and '.join(map(name_of, fitting))}; left out, rename one of the images")
            unclear.update(fitting)
        else:
            (files if whole else parts)[fitting[0]].append(mask.path)
    paired: dict[Path, tuple[Path, ...]] = {}
    for path, found in beside.items():
        if not files[path] and not parts[path]:
            files[path] += found
            continue
        for mask_path in found:
            report(mask_path, f"{name_of((files[path] + parts[path])[0])} is the mask; left out")
    for image in images:
        path = image.path
        if len(files[path]) > 1 and all(is_numbered_mask(same_form(mask.stem)) for mask in files[path]):
            parts[path] += files.pop(path)
        if len(files[path]) > 1 or (files[path] and parts[path]):
            several = ", ".join(map(name_of, files[path] + parts[path]))
            report(path, f"has several masks ({several}); none is used, keep one or put all in one folder")
        elif files[path] or parts[path]:
            paired[path] = tuple(files[path] + parts[path])
        elif path in anomalous - unclear:
            report(path, f"labeled {image.label} but without a mask; its pixels are left out")
    return paired


def _image_names(name: str) -> list[str]:
    """Return the names of images whose mask ``name`` can be, the most likely first."""
    place = PurePath(name)
    stems = [place.name, *masked_names(place.name)]
    stems += [stem.rpartition(".")[0] for stem in stems if has_image_extension(stem)]  # 0.jpg.png
    return [place.with_name(stem).as_posix() for stem in stems if stem]
