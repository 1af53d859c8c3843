"""From evidence to results: the only place that adds up the maps of eqs. 3 and 4 and the image score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aprilcli.core import maps
from aprilcli.types import Detection, Evidence


@torch.inference_mode()
def fuse(evidence: Evidence, image_size: int) -> list[Detection]:
    """Return the result of each of the B images; maps are [S, S] with S = ``image_size``.

    Map: the zero-shot map (eq. 3) plus the few-shot map (eq. 4), whichever there are. Score: the text score; with
    distances the text score plus the map maximum, added in float32.
    """
    branches = []
    if evidence.logits:
        branches.append(maps.zero_shot_map(evidence.logits, image_size))
    if evidence.distances:
        branches.append(maps.few_shot_map(evidence.distances, image_size))
    if not branches:
        return [Detection(text, None, text, None) for text in evidence.text_scores.tolist()]
    anomaly_maps = sum(branches[1:], branches[0])
    maxima = anomaly_maps.flatten(1).amax(dim=1)
    scores = evidence.text_scores + maxima if evidence.distances else evidence.text_scores
    columns = (evidence.text_scores.tolist(), maxima.tolist(), scores.tolist(), anomaly_maps.cpu().numpy())
    return [Detection(*values) for values in zip(*columns, strict=True)]


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
