"""PaDiM (Defard, Setkov, Loesch, Audigier 2021): a Gaussian of the references for each position of the grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aprilcli.core.grids import join
from aprilcli.core.methods.reference_method import ReferenceMethod
from aprilcli.types import ImageFeatures, ModelSpec

CHANNELS = 550  # drawn at random from all stages; the paper's number for its largest model
REGULARIZATION = 0.01  # added to the variances
SEED = 0
CHUNK = 64 * 1024**2  # bytes of differences decomposed at a time


class Padim(ReferenceMethod):
    """A patch's distance is the Mahalanobis distance to the Gaussian of its position, over all stages joined.

    The covariance of K references at a position is XᵀX/(K − 1) + εI, X [K, C] their differences from the mean. It is
    kept as the R = min(K, C) principal directions U [C, R] of X and the variances λ in them; beyond them it is ε:

        d² = Σ (uᵢᵀv)² / (λᵢ + ε) + |v − UUᵀv|² / ε

    so with few references no matrix of C x C is needed (as in Woodbury's identity), and no large terms cancel. With a
    single reference d = |v| / √ε.
    """

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Draw the channels; start without references."""
        super().__init__(spec, text_features)
        total = sum(spec.stage_widths)
        generator = torch.Generator().manual_seed(SEED)
        self._channels = torch.randperm(total, generator=generator)[:CHANNELS].sort().values
        self._mean = self._directions = self._variances = torch.empty(0)

    @torch.inference_mode()
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Keep the mean [L, C], the directions [L, C, R] and the variances [L, R]."""
        rows = torch.cat([self._rows(features)[0] for features in references])
        self._mean = rows.mean(dim=0)
        differences = rows.sub_(self._mean).transpose(0, 1)
        size = max(1, CHUNK // (8 * differences[0].numel()))
        parts = [_principal(piece) for piece in torch.split(differences, size)]
        self._directions, squares = (torch.cat(each).to(rows.device) for each in zip(*parts, strict=True))
        self._variances = squares / max(1, len(rows) - 1)

    @torch.inference_mode()
    def distances(self, image: ImageFeatures) -> tuple[tuple[torch.Tensor, ...], None]:
        """Return the Mahalanobis distances."""
        rows, grid = self._rows(image)
        centered = rows[0] - self._mean
        along = (centered[:, None] @ self._directions)[:, 0]
        beyond = centered - (self._directions @ along[:, :, None])[:, :, 0]
        within = (along.square() / (self._variances + REGULARIZATION)).sum(dim=1)
        squares = within + beyond.square().sum(dim=1) / REGULARIZATION
        return (squares.sqrt().reshape(1, *grid),), None

    def _rows(self, features: ImageFeatures) -> tuple[torch.Tensor, tuple[int, int]]:
        rows, grid = join(features.patch_tokens, features.grids)
        return rows[:, :, self._channels.to(rows.device)], grid


def _principal(differences: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the principal directions of differences [L, K, C], and the sums of their squares along these.

    Directions: [L, C, R] unit columns, zero where there is no variation; sums: [L, R]; R = min(K, C), float32. Computed
    in main memory, because not every device has float64.
    """
    x = differences.cpu().double()
    if x.shape[1] > x.shape[2]:
        squares, directions = torch.linalg.eigh(x.mT @ x)
    else:
        squares, combinations = torch.linalg.eigh(x @ x.mT)
        varies = squares > squares[:, -1:] * 1e-12  # the rest is rounding
        lengths = torch.where(varies, squares, torch.inf).sqrt()
        directions = x.mT @ combinations / lengths[:, None]
    return directions.float(), squares.clamp(min=0).float()
