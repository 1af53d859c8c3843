"""SubspaceAD (Lendering et al. 2026): how far patches lie from the subspace of the references' patches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from aprilcli.core import maps
from aprilcli.core.grids import coarsen
from aprilcli.core.methods.reference_method import ReferenceMethod, smooth
from aprilcli.core.score_choice import top_mean
from aprilcli.types import Evidence, ImageFeatures, ModelSpec

EXPLAINED = 0.99  # of the variance, by the fewest components


class SubspaceAd(ReferenceMethod):
    """A patch's distance is the squared residual of its token after projection to the principal components.

    Stages of the same grid and width are averaged first: of a ViT all, of a convolutional tower each is alone. The maps
    of several groups are averaged. The image score is the mean of the highest 1 % of the smoothed map. References
    should also be given turned.
    """

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Start without references."""
        super().__init__(spec, text_features)
        self._subspaces: list[tuple[torch.Tensor, torch.Tensor]] = []  # of each group: mean [C], components [C, R]

    @torch.inference_mode()
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Find the mean and the principal components of each group of stages."""
        groups = zip(*([tokens for tokens, _ in _groups(features)] for features in references), strict=True)
        self._subspaces = [_subspace(torch.cat([tokens.flatten(0, 1) for tokens in group])) for group in groups]

    @torch.inference_mode()
    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return text scores, and the squared residuals of each group [B, h, w]."""
        residuals = []
        for (tokens, grid), (mean, components) in zip(_groups(features), self._subspaces, strict=True):
            centered = tokens - mean
            rest = centered - centered @ components @ components.T
            residuals.append(rest.square().sum(dim=-1).reshape(-1, *grid))
        return Evidence(self.text_scores(features), distances=tuple(residuals))

    @torch.inference_mode()
    def maps(self, evidence: Evidence) -> torch.Tensor:
        """Return the mean of the groups' maps, smoothed: [B, S, S]."""
        each = [maps.upsample(distances, self.spec.image_size) for distances in evidence.distances]
        return smooth(torch.stack(each).mean(dim=0))

    def image_score(self, evidence: Evidence, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Return the mean of the highest 1 % of the map."""
        assert anomaly_map is not None  # this method always has one
        return top_mean(anomaly_map)


def _groups(features: ImageFeatures) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Yield the mean tokens [B, L, C] of each group of stages, float32, and their grid."""
    stages = [coarsen(tokens, grid) for tokens, grid in zip(features.patch_tokens, features.grids, strict=True)]
    for _, group in itertools.groupby(stages, key=lambda stage: (stage[1], stage[0].shape[2])):
        members = list(group)
        yield torch.stack([tokens for tokens, _ in members]).mean(dim=0), members[0][1]


def _subspace(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [C] and the fewest principal components [C, R] that explain ``EXPLAINED`` of the variance."""
    mean = rows.mean(dim=0)
    centered = (rows - mean).double()
    variances, vectors = torch.linalg.eigh(centered.T @ centered)
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
    total = variances.sum()
    if total <= 0:  # all rows are equal
        return mean, vectors[:, :0].float()
    count = int((variances.cumsum(dim=0) < EXPLAINED * total).sum()) + 1
    return mean, vectors[:, :count].float()
