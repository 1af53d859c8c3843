"""WinCLIP and WinCLIP+ (Jeong, Zou, Kim, Zhang, Ravichandran, Dabeer 2023): windows of patches compared with text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from aprilcli.core import maps
from aprilcli.core.memory_bank import unit_rows
from aprilcli.core.nearest import nearest_distance
from aprilcli.types import WINDOWS, Evidence, ImageFeatures, ModelSpec

SMALLEST = 1e-12  # of a score in a harmonic mean


class WinClip:
    """Each window has a text score (eq. 1); a patch has the harmonic mean of the windows that cover it.

    The zero-shot map is the harmonic mean of those of all window sizes and of the image's own text score, upsampled.
    With references, half the cosine distance of each window to the nearest window of the references is spread to
    patches in the same way; the few-shot map is the mean over the window sizes and the patches themselves (of the last
    stage), and is added to the zero-shot map. The image score is the text score, with references its mean with the
    maximum of the few-shot grid. Prompts are the paper's own here, for all methods the same.
    """

    uses_windows = True

    def __init__(self, spec: ModelSpec, text_features: torch.Tensor) -> None:
        """Use ``text_features`` [2, C]; start without references."""
        self.spec = spec
        self.text_features = text_features
        self._windows: list[torch.Tensor] = []  # of each side [M, C]
        self._patches = torch.empty(0)  # [M, Cv]

    @torch.inference_mode()
    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Keep the windows and the unit patch tokens of the references."""
        sides = zip(*(features.windows for features in references), strict=True)
        self._windows = [torch.cat([windows.flatten(0, 2) for windows in side]) for side in sides]
        self._patches = unit_rows(torch.cat([features.patch_tokens[-1].flatten(0, 1) for features in references]))

    @torch.inference_mode()
    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return text scores, the grid of zero-shot scores and, with references, that of distances and its maxima."""
        text_scores = maps.text_score(features.image, self.text_features, self.spec.logit_scale)
        windows = list(zip(WINDOWS, features.windows, strict=False))  # a small grid has fewer sizes
        spread = [_spread(self._text_scores(of_side), side) for side, of_side in windows]
        grid = spread[0].shape[1:] if spread else features.grids[-1]
        image = text_scores[:, None, None].expand(-1, *grid)
        zero_shot = _harmonic_mean(torch.stack([*spread, image]))
        if not len(self._patches):
            return Evidence(text_scores, (zero_shot,))
        rows = zip(windows, self._windows, strict=True)
        near = [_spread(_distances(of_side, known), side) for (side, of_side), known in rows]
        patches = nearest_distance(features.patch_tokens[-1], self._patches) / 2
        cells = patches.reshape(-1, 1, *features.grids[-1])
        if cells.shape[2:] != grid:  # the last stage in use is not the tower's last
            cells = F.interpolate(cells, size=tuple(grid), mode="bilinear")
        few_shot = torch.stack([*near, cells[:, 0]]).mean(dim=0)
        return Evidence(text_scores, (zero_shot,), (few_shot,), few_shot.flatten(1).amax(dim=1))

    @torch.inference_mode()
    def maps(self, evidence: Evidence) -> torch.Tensor:
        """Return the sum of the upsampled grids, [B, S, S]."""
        return maps.sum_stages(
            maps.upsample(grid, self.spec.image_size) for grid in (*evidence.logits, *evidence.distances)
        )

    def image_score(self, evidence: Evidence, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Return the text score, or its mean with the maximum of the distances; of several inputs the highest count."""
        text = evidence.text_scores.max()
        return text if evidence.image_scores is None else (text + evidence.image_scores.max()) / 2

    def _text_scores(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the text score of each window [B, h', w']."""
        rows = windows.flatten(0, 2)
        return maps.text_score(rows, self.text_features, self.spec.logit_scale).reshape(windows.shape[:3])


def _distances(windows: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return half the cosine distance of each window to the nearest row, [B, h', w']."""
    return (nearest_distance(windows.flatten(1, 2), rows) / 2).reshape(windows.shape[:3])


def _spread(scores: torch.Tensor, side: int) -> torch.Tensor:
    """Return for each patch the harmonic mean of the windows that cover it, [B, h', w'] → [B, h, w]."""
    kernel = torch.ones(1, 1, side, side, device=scores.device)
    total = F.conv_transpose2d(1 / scores.clamp(min=SMALLEST)[:, None], kernel)
    count = F.conv_transpose2d(torch.ones_like(scores[:1, None]), kernel)
    return (count / total)[:, 0]


def _harmonic_mean(values: torch.Tensor) -> torch.Tensor:
    """Return the harmonic mean over the first dimension."""
    return len(values) / (1 / values.clamp(min=SMALLEST)).sum(dim=0)
