"""PaDiM (Defard, Setkov, Loesch, Audigier 2021): a Gaussian of the references for each position of the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aprilcli.core.grids import join
from aprilcli.core.methods.reference_method import ReferenceMethod
from aprilcli.types import Evidence, ImageFeatures, ModelSpec

CHANNELS = 550  # drawn at random from all stages; the paper's number for its largest model
REGULARIZATION = 0.01  # added to the variances
SEED = 0


class Padim(ReferenceMethod):
    """A patch's distance is the Mahalanobis distance to the Gaussian of its position, over all stages joined.

    The covariance of K references at a position is XᵀX/(K − 1) + εI, X [K, C] their differences from the mean. Its
    inverse is applied in the space of the references (Woodbury): with a = ε(K − 1),

        d² = (|v|² − (Xv)ᵀ (aI + XXᵀ)⁻¹ Xv) / ε

    so no matrix of C x C is needed, and few references are enough. With a single one d = |v| / √ε.
    """

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Draw the channels; start without references."""
        super().__init__(spec, text_features)
        total = sum(spec.stage_widths)
        generator = torch.Generator().manual_seed(SEED)
        self._channels = torch.randperm(total, generator=generator)[:CHANNELS].sort().values
        self._mean = self._differences = self._inverse = torch.empty(0)

    @torch.inference_mode()
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Estimate the mean [L, C] and keep the differences [L, K, C] with the inverse [L, K, K]."""
        rows = torch.cat([self._rows(features)[0] for features in references]).transpose(0, 1)
        self._mean = rows.mean(dim=1)
        self._differences = rows - self._mean[:, None]
        count = rows.shape[1]
        gram = self._differences.double() @ self._differences.transpose(1, 2).double()
        gram += REGULARIZATION * max(1, count - 1) * torch.eye(count, device=rows.device)
        self._inverse = torch.linalg.inv(gram)

    @torch.inference_mode()
    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return text scores and the Mahalanobis distances, [B, h, w]."""
        rows, grid = self._rows(features)
        values = []
        differences = self._differences.double()  # with many references, the two terms nearly cancel
        for image in rows:
            centered = (image - self._mean).double()
            along = (differences @ centered[:, :, None])[:, :, 0]
            explained = (along * (self._inverse @ along[:, :, None])[:, :, 0]).sum(dim=1)
            squares = (centered.square().sum(dim=1) - explained).clamp(min=0) / REGULARIZATION
            values.append(squares.sqrt().float())
        return Evidence(self.text_scores(features), distances=(torch.stack(values).reshape(-1, *grid),))

    def _rows(self, features: ImageFeatures) -> tuple[torch.Tensor, tuple[int, int]]:
        rows, grid = join(features.patch_tokens, features.grids)
        return rows[:, :, self._channels.to(rows.device)], grid
