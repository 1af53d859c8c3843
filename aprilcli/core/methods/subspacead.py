"""SubspaceAD (Lendering et al. 2026): how far patches lie from the subspace of the references' patches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch

from aprilcli.core.grids import coarsen
from aprilcli.core.methods.reference_method import ReferenceMethod
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
        count = len(list(_groups(references[0])))
        self._subspaces = [_subspace(references, group) for group in range(count)]

    @torch.inference_mode()
    def distances(self, image: ImageFeatures) -> tuple[tuple[torch.Tensor, ...], None]:
        """Return the squared residuals, one grid for each group."""
        residuals = []
        for (tokens, grid), (mean, components) in zip(_groups(image), self._subspaces, strict=True):
            centered = tokens[0] - mean
            rest = centered - centered @ components @ components.T
            residuals.append(rest.square().sum(dim=1).reshape(1, *grid))
        return tuple(residuals), None

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


def _rows(references: Sequence[ImageFeatures], group: int) -> Iterator[torch.Tensor]:
    """Yield the rows [B·L, C] of one group of each reference, without keeping them: there may be many references."""
    for features in references:
        tokens, _ = next(itertools.islice(_groups(features), group, None))
        yield tokens.flatten(0, 1)


def _subspace(references: Sequence[ImageFeatures], group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [C] and the fewest principal components [C, R] that explain ``EXPLAINED`` of the variance.

    Sums are kept in main memory, because not every device has float64. R = 0 if all rows are equal.
    """
    device = references[0].image.device
    count = sum(len(rows) for rows in _rows(references, group))
    total = functools.reduce(torch.add, (rows.cpu().double().sum(dim=0) for rows in _rows(references, group)))
    mean = (total / count).float().to(device)
    centered = (rows - mean for rows in _rows(references, group))
    scatter = functools.reduce(torch.add, ((rows.T @ rows).cpu().double() for rows in centered))
    variances, vectors = torch.linalg.eigh(scatter)
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
    explained = torch.cat([torch.zeros(1), variances.cumsum(dim=0)])  # by 0, 1, ... components
    needed = int((explained < EXPLAINED * explained[-1]).sum())
    return mean, vectors[:, :needed].float().to(device)
