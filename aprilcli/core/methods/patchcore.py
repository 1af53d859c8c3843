"""PatchCore (Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler 2022): nearest neighbors in a coreset of local features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from aprilcli.core.coreset import coreset
from aprilcli.core.grids import join
from aprilcli.core.methods.reference_method import ReferenceMethod
from aprilcli.core.nearest import nearest_euclidean
from aprilcli.types import ImageFeatures, ModelSpec

FRACTION = 0.1  # of the references' rows that are kept
NEIGHBORS = 9  # rows around the nearest one, itself included, which weigh the image score
SIDE = 3  # patches


class PatchCore(ReferenceMethod):
    """Rows: the two middle stages, each averaged over 3 x 3 patches, joined (see ``core/grids.py``).

    A patch's distance is that to the nearest row of a greedy coreset. The image score is the largest distance, of patch
    p with the nearest row m, times 1 − exp(d(p, m)) / Σ exp(d(p, n)) over the ``NEIGHBORS`` rows n nearest to m, m
    included. With a single row this weight would be 0; then the score is the distance.
    """

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Start without references."""
        super().__init__(spec, text_features)
        self._rows = torch.empty(0)

    @torch.inference_mode()
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Keep a coreset of the references' rows."""
        rows = torch.cat([_local_features(features)[0].flatten(0, 1) for features in references])
        self._rows = rows[coreset(rows, FRACTION)]

    @torch.inference_mode()
    def distances(self, image: ImageFeatures) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return the distances to the coreset, and the weighted largest of them."""
        tokens, grid = _local_features(image)
        values, positions = nearest_euclidean(tokens[0], self._rows)
        return (values.reshape(1, *grid),), self._score(tokens[0], values, positions)[None]

    def _score(self, rows: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        farthest = values.argmax()
        if len(self._rows) == 1:
            return values[farthest]
        around = (self._rows - self._rows[positions[farthest]]).norm(dim=1)
        near = self._rows[around.topk(min(NEIGHBORS, len(around)), largest=False).indices]
        own = values[farthest]
        others = (near - rows[farthest]).norm(dim=1)
        return own * (1 - (own - torch.logsumexp(others, dim=0)).exp())


def _local_features(features: ImageFeatures) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the joined rows [B, L, C] of the two middle stages (of a single one if there is one) and their grid."""
    count = len(features.patch_tokens)
    middle = sorted({(count - 1) // 2, count // 2})
    averaged = []
    for stage in middle:
        tokens, grid = features.patch_tokens[stage].float(), features.grids[stage]
        cells = tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)
        cells = F.avg_pool2d(cells, SIDE, stride=1, padding=SIDE // 2, count_include_pad=False)
        averaged.append(cells.flatten(2).transpose(1, 2))
    return join(averaged, [features.grids[stage] for stage in middle])
