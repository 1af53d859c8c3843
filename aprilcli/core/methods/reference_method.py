"""What the methods that compare images with references only have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from aprilcli.core import maps
from aprilcli.types import Evidence, ImageFeatures, ModelSpec

SIGMA = 4.0  # pixels of a map: the Gaussian that all of these methods smooth it with
REACH = 4  # standard deviations after which the Gaussian is cut off


class ReferenceMethod(ABC):
    """A method with one grid of distances per input, and none of its own without references.

    ``text_features`` [2, C] only serve the text score, which is reported beside the method's own score.
    """

    uses_windows = False

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Start without references."""
        self.spec = spec
        self.text_features = text_features

    @abstractmethod
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Learn from the features of reference images, at least one, replacing what was learned before."""

    @abstractmethod
    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return text scores, distances and, if they do not follow from the map, image scores of B inputs."""

    def text_scores(self, features: ImageFeatures) -> torch.Tensor:
        """Return the text scores [B] (eq. 1)."""
        return maps.text_score(features.image, self.text_features, self.spec.logit_scale)

    @torch.inference_mode()
    def maps(self, evidence: Evidence) -> torch.Tensor:
        """Return the distances, upsampled and smoothed: [B, S, S]."""
        return smooth(maps.upsample(evidence.distances[0], self.spec.image_size))

    def image_score(self, evidence: Evidence, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Return the highest image score of the inputs; without any, the maximum of the map."""
        if evidence.image_scores is not None:
            return evidence.image_scores.max()
        assert anomaly_map is not None  # these methods always have one
        return anomaly_map.max()


def smooth(anomaly_maps: torch.Tensor, sigma: float = SIGMA) -> torch.Tensor:
    """Smooth maps [B, S, S] with a Gaussian of ``sigma`` pixels; beyond the edge, they are mirrored."""
    reach = min(round(REACH * sigma), anomaly_maps.shape[-1] - 1)
    steps = np.arange(-reach, reach + 1)
    window = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel = torch.tensor(window / window.sum(), dtype=torch.float32, device=anomaly_maps.device)
    padded = F.pad(anomaly_maps[:, None], (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]
