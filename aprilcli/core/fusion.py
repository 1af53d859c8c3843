"""From evidence to results: the only place that adds up the maps of eqs. 3 and 4 and the image score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aprilcli.core import maps
from aprilcli.core.resizing import resize_map
from aprilcli.core.tiling import merge
from aprilcli.types import Detection, Evidence, ImageEvidence, TileLayout

LARGEST_WEIGHT = 10.0


@torch.inference_mode()
def fuse(evidence: Evidence, image_size: int, weights: Sequence[float] = ()) -> list[Detection]:
    """Return the result of each of B inputs; maps are [S, S] with S = ``image_size``.

    Map: the zero-shot map (eq. 3) plus the few-shot map (eq. 4), whichever there are; ``weights``: N factors of the
    stages' distances (see ``balanced_weights``), by default 1 as in the paper. Score: the text score; with
    distances the text score plus the map maximum, added in float32.
    """
    branches = []
    if evidence.logits:
        branches.append(maps.zero_shot_map(evidence.logits, image_size))
    if evidence.distances:
        factors = weights or (1.0,) * len(evidence.distances)
        weighted = (d if w == 1 else d * w for d, w in zip(evidence.distances, factors, strict=True))
        branches.append(maps.few_shot_map(weighted, image_size))
    if not branches:
        return [Detection(text, None, text, None) for text in evidence.text_scores.tolist()]
    anomaly_maps = sum(branches[1:], branches[0])
    maxima = anomaly_maps.flatten(1).amax(dim=1)
    scores = evidence.text_scores + maxima if evidence.distances else evidence.text_scores
    columns = (evidence.text_scores.tolist(), maxima.tolist(), scores.tolist(), anomaly_maps.cpu().numpy())
    return [Detection(*values) for values in zip(*columns, strict=True)]


def map_size(sizes: Sequence[int], layout: TileLayout | None = None) -> tuple[int, int]:
    """Return height and width of an image's map: the largest of its views'; ``sizes``: as in ``Views``."""
    height, width = (0, 0) if layout is None else layout.canvas_hw
    return max(height, *sizes), max(width, *sizes)


@torch.inference_mode()
def fuse_views(image: ImageEvidence, sizes: Sequence[int], weights: Sequence[float] = ()) -> Detection:
    """Return the result of an image: the mean of the results of its views.

    ``sizes``: as in ``Views``. ``weights``: V·N factors of the distances, by default 1.

    The mean of the maps is of ``map_size``; ``map_max`` is its maximum. A single view is returned as ``fuse`` gives it.
    """
    stages = len(weights) // len(image.views)
    factors = [weights[view * stages : (view + 1) * stages] for view in range(len(image.views))]
    whole = zip(image.views, sizes, factors, strict=False)  # not the tiles
    results = [fuse(evidence, size, view_factors)[0] for evidence, size, view_factors in whole]
    if image.layout is not None:
        results.append(_fuse_tiles(image.views[-1], image.layout, factors[-1]))
    return results[0] if len(results) == 1 else _mean(results, map_size(sizes, image.layout))


def balanced_weights(means: Sequence[float], stages: int) -> tuple[float, ...]:
    """Return factors that give the ``stages`` of each view the same mean distance, so that all of them count.

    ``means``: V·N mean distances of good patches. A factor is the mean of its view's means divided by its own mean, at
    most ``LARGEST_WEIGHT``: the distances of nearly equal patches are mostly noise.
    """
    weights: list[float] = []
    for first in range(0, len(means), stages):
        of_view = means[first : first + stages]
        mean = sum(of_view) / stages
        weights += [min(mean / value, LARGEST_WEIGHT) if value else 1.0 for value in of_view]
    return tuple(weights)


def _fuse_tiles(tiles: Evidence, layout: TileLayout, weights: Sequence[float]) -> Detection:
    """Merge the maps of T tiles; the text score is that of the most anomalous tile."""
    text = tiles.text_scores.max()
    if not tiles.logits and not tiles.distances:
        return Detection(text.item(), None, text.item(), None)
    single = (fuse(tiles[tile : tile + 1], layout.side, weights)[0].anomaly_map for tile in range(len(layout)))
    merged = merge((torch.from_numpy(tile_map) for tile_map in single if tile_map is not None), layout)
    maximum = merged.max()
    score = text.cpu() + maximum if tiles.distances else text
    return Detection(text.item(), maximum.item(), score.item(), merged.numpy())


def _mean(results: Sequence[Detection], size_hw: tuple[int, int]) -> Detection:
    text, score = np.array([(r.text_score, r.score) for r in results], np.float32).mean(axis=0).tolist()
    each = [result.anomaly_map for result in results if result.anomaly_map is not None]
    if not each:
        return Detection(text, None, score, None)
    total = torch.zeros(size_hw)
    for values in each:
        total += resize_map(torch.from_numpy(values), size_hw) if values.shape != size_hw else torch.from_numpy(values)
    mean_map = (total / len(each)).numpy()
    return Detection(text, float(mean_map.max()), score, mean_map)


def authors_scores(detections: Sequence[Detection]) -> list[float]:
    """Return few-shot image scores as the authors' program computes them, for all test images of one object.

    The mean of the text score and the map maximum, min-max scaled over the images; with equal maxima, half of the text
    score. Such a score depends on the other images.
    """
    if not detections:
        return []
    text = np.array([detection.text_score for detection in detections], np.float32)
    maxima = np.array([detection.map_max for detection in detections], np.float32)
    spread = maxima.max() - maxima.min()
    scaled = (maxima - maxima.min()) / (spread if spread > 0 else np.float32(1))
    scores: list[float] = ((text + scaled) / 2).tolist()
    return scores
