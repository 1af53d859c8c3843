"""Mutual scoring as a method: its evidence is the scores of patches that ``core/mutual.py`` finds in a folder."""

from __future__ import annotations

import torch

from aprilcli.core import maps
from aprilcli.core.mutual import mutual_map
from aprilcli.types import Evidence, ImageFeatures, ModelSpec


class Mutual:
    """Turns the patch scores of each stage, ``Evidence.distances`` N × [B, h, w] in [0, 2], into maps and scores."""

    uses_windows = False

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Use ``text_features`` [2, C] for the text score, which is reported beside the method's own."""
        self.spec = spec
        self.text_features = text_features

    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return the text scores alone: distances follow when all images are there."""
        return Evidence(maps.text_score(features.image, self.text_features, self.spec.logit_scale))

    def maps(self, evidence: Evidence) -> torch.Tensor:
        """Return the mean of the stages' upsampled scores, [B, S, S]."""
        count = len(evidence.text_scores)
        stages = [[stage[k] for stage in evidence.distances] for k in range(count)]
        return torch.stack([mutual_map(of_image, self.spec.image_size) for of_image in stages])

    def image_score(self, evidence: Evidence, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Return the maximum of the map: the score before it is smoothed over similar images."""
        assert anomaly_map is not None  # this method always has one
        return anomaly_map.max()
