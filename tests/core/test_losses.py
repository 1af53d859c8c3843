"""Focal and dice against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from aprilcli.core.losses import dice_loss, focal_loss, projector_loss


def test_focal_loss_computed_by_hand() -> None:
    probability = torch.tensor([[[0.9, 0.2]]])
    mask = torch.tensor([[[1.0, 0.0]]])
    by_hand = [(1 - pt) ** 2 * -math.log(pt) for pt in (0.9 + 1e-5, 0.8 + 1e-5)]
    assert focal_loss(probability, mask).item() == pytest.approx(sum(by_hand) / 2, abs=1e-5)


def test_dice_loss_computed_by_hand() -> None:
    probability = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    assert dice_loss(probability, mask).item() == pytest.approx(((1 - 3 / 3.5) + 0) / 2)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_a_better_map_has_a_lower_loss(loss: object) -> None:
    mask = (torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    assert loss(mask, mask) < loss(mask * 0.6 + 0.2, mask) < loss(1 - mask, mask)  # type: ignore[operator]


def test_a_confidently_wrong_map_has_a_finite_loss() -> None:
    mask = torch.ones(1, 4, 4)
    assert projector_loss([torch.zeros(1, 4, 4)], mask).isfinite()
