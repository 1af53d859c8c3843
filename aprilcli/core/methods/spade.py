"""SPADE (Cohen, Hoshen 2020): the nearest reference images, then the nearest of their patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aprilcli.core.grids import join
from aprilcli.core.methods.reference_method import ReferenceMethod
from aprilcli.core.nearest import nearest_euclidean
from aprilcli.types import ImageFeatures, ModelSpec

NEIGHBORS = 50  # reference images; fewer if there are fewer


class Spade(ReferenceMethod):
    """The image score is the mean Euclidean distance of the image feature to the k nearest references' features.

    A patch's distance is that to the nearest patch of these k images, over all stages joined.
    """

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Start without references."""
        super().__init__(spec, text_features)
        self._images = torch.empty(0)
        self._rows: list[torch.Tensor] = []

    @torch.inference_mode()
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Keep the image features [K, C] and, of each, the joined tokens [L, ΣCv]."""
        self._images = torch.cat([features.image for features in references]).float()
        self._rows = [rows for features in references for rows in join(features.patch_tokens, features.grids)[0]]

    @torch.inference_mode()
    def distances(self, image: ImageFeatures) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the patches' distances and the image score."""
        apart = (self._images - image.image.float()).norm(dim=1)
        nearest = apart.topk(min(NEIGHBORS, len(apart)), largest=False)
        tokens, grid = join(image.patch_tokens, image.grids)
        each = [nearest_euclidean(tokens[0], self._rows[k])[0] for k in nearest.indices.tolist()]
        return (torch.stack(each).amin(dim=0).reshape(1, *grid),), nearest.values.mean()[None]
