"""The training loss of the paper: focal + dice per stage, on the upsampled two-channel softmax.

Symbols: B images, S side of the model input in pixels. ``anomaly_maps`` [B, S, S] float32 in [0, 1]: the anomalous
channel of the softmax (the normal channel is its complement). ``masks`` [B, S, S] float32: 0 normal, 1 anomalous.
"""

from __future__ import annotations

import torch

FOCAL_GAMMA = 2.0
FOCAL_SMOOTH = 1e-5  # the one-hot target is clamped to [1e-5, 1 − 1e-5], and 1e-5 added to pt
DICE_SMOOTH = 1.0


def focal_loss(anomaly_maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean over all pixels of −(1 − pt)² log pt, pt the softmax at the target's class (Lin et al. 2017, no α)."""
    target = masks.clamp(FOCAL_SMOOTH, 1 - FOCAL_SMOOTH)
    pt = target * anomaly_maps + (1 - target) * (1 - anomaly_maps) + FOCAL_SMOOTH
    return -((1 - pt) ** FOCAL_GAMMA * pt.log()).mean()


def dice_loss(anomaly_maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean over images of 1 − (2 Σpm + 1) / (Σp + Σm + 1) (Milletari et al. 2016)."""
    predicted, target = anomaly_maps.flatten(1), masks.flatten(1)
    overlap = 2 * (predicted * target).sum(dim=1) + DICE_SMOOTH
    return (1 - overlap / (predicted.sum(dim=1) + target.sum(dim=1) + DICE_SMOOTH)).mean()


def projector_loss(stage_maps: list[torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
    """Focal + dice, summed over the stages' maps N × [B, S, S]."""
    return torch.stack([focal_loss(stage_map, masks) + dice_loss(stage_map, masks) for stage_map in stage_maps]).sum()
