"""The images a projector is trained on: checked, split, ordered, composed into mosaics and resized.

Symbols: H×W source size, S side of the model input in pixels. Random numbers come from the generators passed in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core.resizing import resize_mask
from aprilcli.errors import InputError
from aprilcli.io.data_fingerprint import data_fingerprint, digest_line, relative_path
from aprilcli.io.datasets import LabeledDataset, LabeledImage
from aprilcli.io.images import SourceImage, read_image, to_pixels
from aprilcli.io.masks import read_mask
from aprilcli.types import ModelSpec

MOSAIC_TILES = 4
NAMED_AT_MOST = 5  # files in a message


@dataclass(frozen=True)
class TrainingImage:
    """A labeled image of an object. ``object_name``: unique in the data set. ``category``: the name in the prompts."""

    labeled: LabeledImage
    object_name: str
    category: str


def training_images(dataset: LabeledDataset) -> list[TrainingImage]:
    """Return the images of the test split, without anomalous images that have no mask.

    Raises InputError if training on them is impossible: without masks, or without anomalous or normal images.
    """
    labeled = [TrainingImage(image, item.name, item.category) for item in dataset.objects for image in item.test]
    usable = [image for image in labeled if image.labeled.has_mask]
    labels = {image.labeled.label for image in usable}
    root = dataset.root
    if not labeled:
        raise InputError(f"{root}: no labeled images in its test split ({dataset.layout}); check the path")
    if not any(image.labeled.label for image in labeled):
        raise InputError(f"{root}: no anomalous images, only normal images; training needs both")
    if 1 not in labels:
        raise InputError(f"{root}: none of its anomalous images has a mask; training needs masks of the anomalies")
    if 0 not in labels:
        raise InputError(f"{root}: no normal images, only anomalous images; training needs both")
    return usable


def check_images(
    dataset: LabeledDataset,
    images: Sequence[TrainingImage],
    pool: Executor,
    advance: Callable[[], None],
    read: Callable[[Path], SourceImage] = read_image,
    on_mask_note: Callable[[TrainingImage, str], None] | None = None,
) -> str:
    """Read every image and mask once, so that unreadable files are found before training, and fingerprint them.

    Returns the data set's fingerprint. Calls ``advance`` after each image. ``read`` decodes an image file.
    ``on_mask_note`` is called with each note on how a mask was read. Raises InputError naming the files that cannot be
    used.
    """

    def examine(image: TrainingImage) -> tuple[list[str], str, list[str]]:
        paths = (image.labeled.path, *image.labeled.mask_paths)
        notes: list[str] = []
        try:
            read_mask(image.labeled, read(image.labeled.path).size_hw, notes.append)
            return [digest_line(path, dataset.root) for path in paths], "", notes
        except InputError as error:
            return [], str(error), notes

    lines: list[str] = []
    wrong: list[tuple[str, str]] = []
    for image, (found, error, notes) in zip(images, pool.map(examine, images), strict=True):
        lines += found
        if on_mask_note is not None:
            for note in notes:
                on_mask_note(image, note)
        if error:
            wrong.append((relative_path(image.labeled.path, dataset.root), error))
        advance()
    if len(wrong) == 1:
        raise InputError(wrong[0][1])
    if wrong:
        others = [name for name, _ in wrong[1:]]
        named = ", ".join(others[:NAMED_AT_MOST]) + (" …" if len(others) > NAMED_AT_MOST else "")
        raise InputError(f"{wrong[0][1]}; {len(others)} more images cannot be used: {named}")
    return data_fingerprint(lines)


def plan_epoch(
    images: Sequence[TrainingImage], mosaic: float, rng: np.random.Generator
) -> list[tuple[TrainingImage, ...]]:
    """Draw the order of an epoch and its mosaics: one tuple per input of the model.

    A tuple contains one image or, with probability ``mosaic``, the four images of a mosaic instead. They show the same
    object and are drawn with replacement, first the defect (or good) and then the image, as the authors do.
    """
    by_defect: dict[str, dict[str, list[TrainingImage]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        by_defect[image.object_name][image.labeled.defect].append(image)
    plan: list[tuple[TrainingImage, ...]] = []
    for index in rng.permutation(len(images)).tolist():
        if rng.random() >= mosaic:
            plan.append((images[index],))
            continue
        defects = list(by_defect[images[index].object_name].values())
        drawn = [defects[rng.integers(len(defects))] for _ in range(MOSAIC_TILES)]
        plan.append(tuple(defect[rng.integers(len(defect))] for defect in drawn))
    return plan


def split_validation(
    images: Sequence[TrainingImage], share: float, rng: np.random.Generator
) -> tuple[list[TrainingImage], list[TrainingImage]]:
    """Split images at random into training and validation images, both in the given order.

    The validation images are the ``share``, in [0, 1), of the normal and of the anomalous images, rounded down, spread
    evenly over the objects.
    """
    by_label: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, image in enumerate(images):
        by_label[image.labeled.label][image.object_name].append(index)
    chosen: set[int] = set()
    for _, objects in sorted(by_label.items()):
        shuffled = [index for indices in objects.values() for index in rng.permutation(indices).tolist()]
        chosen.update(index for n, index in enumerate(shuffled) if int((n + 1) * share) > int(n * share))
    training = [image for index, image in enumerate(images) if index not in chosen]
    return training, [images[index] for index in sorted(chosen)]


def mosaic_of(tiles: Sequence[NDArray[np.float32]], size: int) -> NDArray[np.float32]:
    """Arrange four images or masks [..., ⌈S/2⌉, ⌈S/2⌉] as a mosaic [..., S, S], row by row; S = ``size``."""
    rows = [np.concatenate(tiles[:2], axis=-1), np.concatenate(tiles[2:], axis=-1)]
    return np.concatenate(rows, axis=-2)[..., :size, :size]


def prepare_input(
    images: Sequence[TrainingImage],
    spec: ModelSpec,
    image_size: int,
    read: Callable[[Path], SourceImage] = read_image,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read an image and its mask, or the four of a mosaic, and resize them to S = ``image_size`` or to half of it.

    ``read`` decodes an image file. Returns pixels [3, S, S] float32, normalized, and mask [S, S] float32 of 0 and 1.
    Raises InputError.
    """
    size = image_size if len(images) == 1 else (image_size + 1) // 2
    pixels, masks = [], []
    for image in images:
        source = read(image.labeled.path)
        pixels.append(to_pixels(source, size, spec.mean, spec.std))
        masks.append(resize_mask(read_mask(image.labeled, source.size_hw), (size, size)))
    if len(images) == 1:
        return torch.from_numpy(pixels[0]), torch.from_numpy(masks[0])
    return torch.from_numpy(mosaic_of(pixels, image_size)), torch.from_numpy(mosaic_of(masks, image_size))
