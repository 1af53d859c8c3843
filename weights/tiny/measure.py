"""Measure a model folder on drawn kinds that training never draws, and on labeled folders of images.

    python measure.py MODEL --drawn FOLDER         # a set of `draw.py --kinds held-out`: zero-shot and 1-shot
    python measure.py MODEL --labeled FOLDER ...   # folders as `aprilcli eval` reads them: zero-shot and 4-shot

Prints image AUROC / pixel AUROC of three methods: zero-shot, the sum of zero-shot and few-shot, and the bank alone.
Pixels are compared at the model's input size.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from batches import Wear
from numpy.typing import NDArray
from PIL import Image
from textures import Array

from aprilcli import Detector
from aprilcli.core.fusion import fuse
from aprilcli.core.metrics import PixelScores, auroc, mean_metrics
from aprilcli.core.resizing import resize_mask
from aprilcli.io.datasets import LabeledObject, read_dataset
from aprilcli.io.images import SourceImage, read_image
from aprilcli.io.masks import read_mask
from aprilcli.types import Detection, Evidence, ImageFeatures

METHODS = ("zero-shot", "sum", "bank")
K_SHOT = 4  # references of a labeled object
Table = dict[str, float]  # AUROC by "METHOD image" and "METHOD pixel"


class Scores:
    """Image scores and maps of one object by each method, with their labels and masks."""

    def __init__(self) -> None:
        """Start without images."""
        self._labels: list[bool] = []
        self._images: dict[str, list[float]] = {method: [] for method in METHODS}
        self._pixels = {method: PixelScores() for method in METHODS}

    def add(self, detections: dict[str, Detection], mask: NDArray[np.bool_]) -> None:
        """Add one image: its result by each method, and its mask [H, W] at any size."""
        self._labels.append(bool(mask.any()))
        for method, detection in detections.items():
            assert detection.anomaly_map is not None
            self._images[method].append(detection.score)
            self._pixels[method].add(detection.anomaly_map, resize_mask(mask, detection.anomaly_map.shape))

    def auroc(self) -> Table:
        """Image and pixel AUROC by each method."""
        table = {}
        for method in METHODS:
            table[f"{method} image"] = auroc(self._labels, self._images[method])
            table[f"{method} pixel"] = self._pixels[method].metrics()["auroc_segm"]
        return table


@cache
def load(model: Path, object_name: str, image_size: int | None) -> Detector:
    """The detector of a model folder with its own projector."""
    return Detector.load(str(model), object_name=object_name, image_size=image_size, device="cpu")


def encode(detector: Detector, images: Sequence[SourceImage]) -> ImageFeatures:
    """The features of some images, prepared for the model."""
    return detector.encoder.encode(np.stack([detector.prepare(image).whole[0] for image in images]))


def detect(detector: Detector, images: Sequence[SourceImage]) -> list[dict[str, Detection]]:
    """The result of each image by each method."""
    evidence = detector.methods[0].evidence(encode(detector, images))
    by_method = {
        "zero-shot": replace(evidence, distances=()),
        "sum": evidence,
        "bank": Evidence(torch.zeros_like(evidence.text_scores), distances=evidence.distances),
    }
    columns = [fuse(detector.methods[0], by_method[method]) for method in METHODS]
    return [dict(zip(METHODS, row, strict=True)) for row in zip(*columns, strict=True)]


def measure_drawn(
    model: Path, folder: Path, products: int | None, worn: bool, image_size: int | None
) -> tuple[dict[str, Table], dict[str, Table]]:
    """Score the first `products` drawn products (None: all) with one reference each; two tables for each kind.

    The first table has the mean over the products of the AUROC within a product, the second the AUROC of all products
    of the kind together. The first good image of a product is its reference, the others are scored. `worn` adds
    specks, streaks and uneven light to all of them.
    """
    all_images, all_masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    within: dict[str, list[Table]] = defaultdict(list)
    together: dict[str, Scores] = defaultdict(Scores)
    for number, facts in enumerate(json.loads((folder / "products.json").read_text())[:products]):
        kind, own = facts["kind"], Scores()
        detector = load(model, kind, image_size)
        pixels = add_wear(all_images[number], number) if worn else all_images[number]
        reference, *images = (SourceImage(Image.fromarray(rgb)) for rgb in pixels)
        detector.methods[0].fit([encode(detector, [reference])])
        for detections, mask in zip(detect(detector, images), all_masks[number, 1:], strict=True):
            own.add(detections, mask > 0)
            together[kind].add(detections, mask > 0)
        within[kind].append(own.auroc())
    return (
        {kind: mean_metrics(tables) for kind, tables in within.items()},
        {kind: scores.auroc() for kind, scores in together.items()},
    )


def add_wear(images: Array, seed: int) -> Array:
    """Images of one product uint8 [n, SIDE, SIDE, 3] with specks, streaks and uneven light."""
    rng = np.random.default_rng(seed)
    side = images.shape[1]
    wear = Wear.draw(rng, side)
    added = np.stack([127.5 * wear.paint(rng, side) for _ in images])
    return np.clip(images + added, 0, 255).astype(np.uint8)


def measure_labeled(model: Path, labeled: LabeledObject, image_size: int | None) -> Table:
    """Score an object's test images; `K_SHOT` references are drawn from its good training images with seed 0."""
    detector = load(model, labeled.category, image_size)
    picked = np.random.default_rng(0).choice(len(labeled.train_good), K_SHOT, replace=False)
    detector.methods[0].fit([encode(detector, [read_image(labeled.train_good[k]) for k in picked])])
    scores = Scores()
    for labeled_image in labeled.test:
        image = read_image(labeled_image.path)
        [detections] = detect(detector, [image])
        scores.add(detections, read_mask(labeled_image, image.size_hw))
    return scores.auroc()


def show(name: str, table: Table) -> None:
    """Print one line: image AUROC / pixel AUROC by each method."""
    cells = (f"{method} {table[f'{method} image']:.3f}/{table[f'{method} pixel']:.3f}" for method in METHODS)
    print(f"{name:16}", "  ".join(cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--drawn", type=Path, help="drawn set")
    parser.add_argument("--worn", action="store_true", help="add specks, streaks and uneven light to the drawn images")
    parser.add_argument("--products", type=int, help="score only so many products of the drawn set")
    parser.add_argument("--labeled", type=Path, nargs="*", default=[], help="folders of labeled objects")
    parser.add_argument("--image-size", type=int, help="input size in pixels; default: the model's own")
    chosen = parser.parse_args()
    if chosen.drawn:
        within, together = measure_drawn(chosen.model, chosen.drawn, chosen.products, chosen.worn, chosen.image_size)
        for kind, table in within.items():
            show(kind, table)
        show("within a product", mean_metrics(list(within.values())))
        show("all together", mean_metrics(list(together.values())))
    tables = []
    for folder in chosen.labeled:
        for labeled in read_dataset(folder).objects:
            tables.append(measure_labeled(chosen.model, labeled, chosen.image_size))
            show(labeled.name, tables[-1])
    if len(tables) > 1:
        show("mean", mean_metrics(tables))
