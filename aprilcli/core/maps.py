"""Equations 1, 3 and 4 of the paper, from features to scores and maps, and the resizing of maps and masks.

Pure functions. Symbols: B images, L = h·w patches, C joint width, S side of the model input in pixels, H×W source size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from aprilcli.types import LOGIT_SCALE


def text_score(
    image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: float = LOGIT_SCALE
) -> torch.Tensor:
    """Eq. 1: the anomalous entry of softmax(100 · F_c F_tᵀ).

    ``image_features`` [B, C] and ``text_features`` [2, C] are unit rows. Returns [B] in [0, 1].
    """
    return (logit_scale * image_features @ text_features.T).softmax(dim=-1)[:, 1]


def upsample(grid: torch.Tensor, image_size: int) -> torch.Tensor:
    """Upsample bilinearly with aligned corners: [B, h, w] → [B, S, S]."""
    size = (image_size, image_size)
    return F.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def anomaly_logits(
    projected_tokens: torch.Tensor,
    text_features: torch.Tensor,
    grid_hw: tuple[int, int],
    logit_scale: float = LOGIT_SCALE,
) -> torch.Tensor:
    """Return the anomalous minus the normal logit of one stage's patches, [B, L, C] → [B, h, w].

    Logits are 100 · P F_tᵀ with unit rows P. The softmax over two channels depends only on this difference.
    """
    unit = F.normalize(projected_tokens, dim=-1)
    difference = logit_scale * (unit @ (text_features[1] - text_features[0]))
    return difference.reshape(-1, *grid_hw)


def zero_shot_stage_map(logits: torch.Tensor, image_size: int) -> torch.Tensor:
    """Eq. 3 for one stage: upsample the logits, **then** apply the softmax. [B, h, w] → [B, S, S] in [0, 1].

    The result is the anomalous channel: the sigmoid of the difference of the logits, because upsampling is linear.
    """
    return torch.sigmoid(upsample(logits, image_size))


def zero_shot_map(logits: Iterable[torch.Tensor], image_size: int) -> torch.Tensor:
    """Eq. 3: the sum of the stages' maps, from ``anomaly_logits`` N × [B, h, w] to [B, S, S] in [0, N]."""
    return sum_stages(zero_shot_stage_map(stage, image_size) for stage in logits)


def few_shot_map(distances: Iterable[torch.Tensor], image_size: int) -> torch.Tensor:
    """Eq. 4: the stages' distances to their banks, N × [B, h, w] in [0, 2], upsampled and summed to [B, S, S]."""
    return sum_stages(upsample(stage, image_size) for stage in distances)


def sum_stages(maps: Iterable[torch.Tensor]) -> torch.Tensor:
    """Add up the maps of the stages, in order."""
    return functools.reduce(torch.add, maps)
