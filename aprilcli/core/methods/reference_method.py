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
    """A method with grids of distances of its own, which needs references.

    ``text_features`` [2, C] only serve the text score, which is reported beside the method's own score. Images are
    compared one at a time: memory does not grow with B, and the result of an image does not depend on the others.
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
    def distances(self, image: ImageFeatures) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Return the distances of the patches of one image, and its score [1] if that does not follow from the map.

        The distances are in one or several grids, each [1, h, w] float32.
        """

    @torch.inference_mode()
    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return text scores, distances and, if they do not follow from the map, image scores of B inputs."""
        return Evidence.concatenate([self._evidence(features[k : k + 1]) for k in range(len(features.image))])

    def _evidence(self, image: ImageFeatures) -> Evidence:
        text_scores = maps.text_score(image.image.float(), self.text_features, self.spec.logit_scale)
        distances, image_scores = self.distances(image)
        return Evidence(text_scores, distances=distances, image_scores=image_scores)

    @torch.inference_mode()
    def maps(self, evidence: Evidence) -> torch.Tensor:
        """Return the mean of the upsampled grids of distances, smoothed: [B, S, S]."""
        upsampled = (maps.upsample(grid, self.spec.image_size) for grid in evidence.distances)
        return smooth(maps.sum_stages(upsampled) / len(evidence.distances))

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
    rows, columns = kernel[None, None, :, None], kernel[None, None, None, :]
    padded = F.pad(anomaly_maps[:, None], (reach, reach, reach, reach), mode="reflect")
    # One at a time: the order in which conv2d adds up depends on the size of the batch.
    return torch.cat([F.conv2d(F.conv2d(single[None], rows), columns)[0] for single in padded])
