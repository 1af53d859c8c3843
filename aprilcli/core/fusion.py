"""From the evidence of an image's inputs, by the rules of a method, to its result."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aprilcli.core.methods import Scoring
from aprilcli.core.resizing import resize_map
from aprilcli.core.tiling import merge
from aprilcli.types import Detection, Evidence, ImageEvidence, TileLayout

LARGEST_WEIGHT = 10.0


@torch.inference_mode()
def fuse(method: Scoring, evidence: Evidence) -> list[Detection]:
    """Return the result of each of B inputs under a method; maps are at the model's size."""
    anomaly_maps = method.maps(evidence)
    each = (evidence[k : k + 1] for k in range(len(evidence.text_scores)))
    if anomaly_maps is None:
        return [_result(method, single, None) for single in each]
    return [_result(method, single, values) for single, values in zip(each, anomaly_maps, strict=True)]


def _result(method: Scoring, evidence: Evidence, anomaly_map: torch.Tensor | None) -> Detection:
    """Return the result of an image of which ``evidence`` has one or several inputs; its text score is the highest."""
    text, score = evidence.text_scores.max().item(), method.image_score(evidence, anomaly_map).item()
    if anomaly_map is None:
        return Detection(text, None, score, None)
    return Detection(text, anomaly_map.max().item(), score, anomaly_map.cpu().numpy())


def map_size(sizes: Sequence[int], layout: TileLayout | None = None) -> tuple[int, int]:
    """Return height and width of an image's map: the largest of its views'; ``sizes``: as in ``Views``."""
    height, width = (0, 0) if layout is None else layout.canvas_hw
    return max(height, *sizes), max(width, *sizes)


@torch.inference_mode()
def fuse_views(image: ImageEvidence, methods: Sequence[Scoring], sizes: Sequence[int]) -> Detection:
    """Return the result of an image: the mean of the results of its views.

    ``methods``: one for each view. ``sizes``: as in ``Views``.

    The mean of the maps is of ``map_size``; ``map_max`` is its maximum. A single view is returned as ``fuse`` gives it.
    """
    whole = zip(methods, image.views, sizes, strict=False)  # not the tiles
    results = [fuse(method, evidence)[0] for method, evidence, _ in whole]
    if image.layout is not None:
        results.append(_fuse_tiles(methods[-1], image.views[-1], image.layout))
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


def _fuse_tiles(method: Scoring, tiles: Evidence, layout: TileLayout) -> Detection:
    """Merge the maps of T tiles."""
    if method.maps(tiles[:1]) is None:
        return _result(method, tiles, None)
    single = (method.maps(tiles[tile : tile + 1]) for tile in range(len(layout)))
    return _result(method, tiles, merge((tile_map[0] for tile_map in single if tile_map is not None), layout))


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
