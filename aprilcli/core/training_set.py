"""What a projector is trained on: labelled pictures, checked once, then split, ordered, composed and squashed.

Symbols: H×W source size, S model input side in pixels. Randomness comes from the generators handed in.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.artifacts import sha256_of_file
from aprilcli.io.datasets import LabelledDataset, LabelledImage, read_mask
from aprilcli.io.images import SourceImage, read_image, to_pixels
from aprilcli.types import ModelSpec

MOSAIC_SHARE = 0.2  # of the pictures of an epoch, in the paper on MVTec AD
MOSAIC_PARTS = 4
NAMED_AT_MOST = 5  # files in a message


@dataclass(frozen=True)
class Sample:
    """A labelled picture. ``object_name`` tells its object from others; ``category`` is what the prompts call it."""

    image: LabelledImage
    object_name: str
    category: str


def trainable_samples(dataset: LabelledDataset) -> list[Sample]:
    """Return the pictures of the test split, without the anomalous ones that lack a mask.

    Raises InputError where they cannot teach: no masks, no anomalies, or nothing but anomalies.
    """
    pictures = [Sample(image, one.name, one.category) for one in dataset.objects for image in one.test]
    samples = [sample for sample in pictures if sample.image.has_mask]
    labels = {sample.image.label for sample in samples}
    root = dataset.root
    if not pictures:
        raise InputError(f"{root}: no labelled pictures in its test split ({dataset.layout}); check the path")
    if not any(sample.image.label for sample in pictures):
        raise InputError(f"{root}: no anomalous pictures, only normal ones; training needs both")
    if 1 not in labels:
        raise InputError(f"{root}: none of its anomalous pictures has a mask; training needs masks of the anomalies")
    if 0 not in labels:
        raise InputError(f"{root}: no normal pictures, only anomalous ones; training needs both")
    return samples


def data_fingerprint(
    dataset: LabelledDataset,
    samples: Sequence[Sample],
    pool: Executor,
    advance: Callable[[], None],
    read: Callable[[Path], SourceImage] = read_image,
) -> str:
    """Open every picture and mask once, so that a training fails now or not at all, and fingerprint them.

    Returns the SHA-256 over the sorted lines ``<relative path> NUL <SHA-256 of the content>``. ``advance`` is called
    after each picture. Raises InputError that names the files that cannot be used.
    """

    def examine(sample: Sample) -> tuple[list[str], str]:
        paths = (sample.image.path, *sample.image.mask_paths)
        try:
            read_mask(sample.image, read(sample.image.path).size_hw)
            return [f"{path.relative_to(dataset.root).as_posix()}\0{sha256_of_file(path)}" for path in paths], ""
        except InputError as error:
            return [], str(error)

    lines: list[str] = []
    wrong: list[tuple[str, str]] = []
    for sample, (found, error) in zip(samples, pool.map(examine, samples), strict=True):
        lines += found
        if error:
            wrong.append((sample.image.path.relative_to(dataset.root).as_posix(), error))
        advance()
    if len(wrong) == 1:
        raise InputError(wrong[0][1])
    if wrong:
        others = [name for name, _ in wrong[1:]]
        named = ", ".join(others[:NAMED_AT_MOST]) + (" …" if len(others) > NAMED_AT_MOST else "")
        raise InputError(f"{wrong[0][1]}; nor can {len(others)} more pictures be used: {named}")
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def plan_epoch(samples: Sequence[Sample], mosaic: float, rng: np.random.Generator) -> list[tuple[Sample, ...]]:
    """Draw the order of an epoch, and its composites: one item per input.

    An item is one picture, or, with probability ``mosaic`` in its place, the four of a composite: of its object, with
    replacement, the kind of defect (or good) drawn first and then the picture, as the authors do.
    """
    by_kind: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        by_kind[sample.object_name][sample.image.defect].append(sample)
    plan: list[tuple[Sample, ...]] = []
    for index in rng.permutation(len(samples)).tolist():
        if rng.random() >= mosaic:
            plan.append((samples[index],))
            continue
        kinds = list(by_kind[samples[index].object_name].values())
        drawn = [kinds[rng.integers(len(kinds))] for _ in range(MOSAIC_PARTS)]
        plan.append(tuple(kind[rng.integers(len(kind))] for kind in drawn))
    return plan


def split_validation(
    samples: Sequence[Sample], share: float, rng: np.random.Generator
) -> tuple[list[Sample], list[Sample]]:
    """Split pictures by chance into those to train on and those to validate on, each in the order given.

    ``share`` in [0, 1) of the normal and of the anomalous pictures, rounded down, is for validation, spread evenly over
    the objects.
    """
    by_label: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, sample in enumerate(samples):
        by_label[sample.image.label][sample.object_name].append(index)
    chosen: set[int] = set()
    for _, objects in sorted(by_label.items()):
        shuffled = [index for indices in objects.values() for index in rng.permutation(indices).tolist()]
        chosen.update(index for n, index in enumerate(shuffled) if int((n + 1) * share) > int(n * share))
    training = [sample for index, sample in enumerate(samples) if index not in chosen]
    return training, [samples[index] for index in sorted(chosen)]


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.float32]:
    """Resize a mask, bool [H, W], as its picture is: to [S, S] float32 of 0 and 1.

    Bilinear with antialias, as Pillow does it and the authors use it, then > 0.5.
    """
    resized = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(resized) > 255 * 0.5).astype(np.float32)


def mosaic_of(parts: Sequence[NDArray[np.float32]], size: int) -> NDArray[np.float32]:
    """Lay four pictures or masks [..., ⌈S/2⌉, ⌈S/2⌉] out as one [..., S, S], row by row."""
    rows = [np.concatenate(parts[:2], axis=-1), np.concatenate(parts[2:], axis=-1)]
    return np.concatenate(rows, axis=-2)[..., :size, :size]


def prepare_input(
    parts: Sequence[Sample], spec: ModelSpec, read: Callable[[Path], SourceImage] = read_image
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode and squash a picture and its mask, or the four of a composite, each to half the side.

    Returns pixels [3, S, S] float32, normalised, and mask [S, S] float32 of 0 and 1. Raises InputError.
    """
    size = spec.image_size if len(parts) == 1 else (spec.image_size + 1) // 2
    pixels, masks = [], []
    for sample in parts:
        source = read(sample.image.path)
        pixels.append(to_pixels(source, size, spec.mean, spec.std))
        masks.append(resize_mask(read_mask(sample.image, source.size_hw), size))
    if len(parts) == 1:
        return torch.from_numpy(pixels[0]), torch.from_numpy(masks[0])
    return torch.from_numpy(mosaic_of(pixels, spec.image_size)), torch.from_numpy(mosaic_of(masks, spec.image_size))
