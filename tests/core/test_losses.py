"""Focal and dice against their definitions, and three Adam steps against the authors' numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import QUERIES, GoldenCase

from aprilcli.core import maps
from aprilcli.core.losses import dice_loss, focal_loss, projector_loss


def test_three_steps_of_adam_are_the_authors(golden: GoldenCase) -> None:
    projector = copy.deepcopy(golden.projector).requires_grad_(True)
    text = golden.numbers["text_features/metal_nut"]
    pixels = torch.stack([golden.numbers[f"{query}/pixels"] for query in QUERIES])
    features = golden.backbone.encode(pixels)
    tokens = tuple(tokens.clone() for tokens in features.patch_tokens)  # out of inference mode
    optimiser = torch.optim.Adam(projector.parameters(), lr=1e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(3):
        stage_maps = [
            maps.zero_shot_stage_map(maps.anomaly_logits(projected, text, grid), golden.image_size)
            for projected, grid in zip(projector(tokens), features.grids, strict=True)
        ]
        loss = projector_loss(stage_maps, golden.numbers["train/masks"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    torch.testing.assert_close(torch.tensor(losses), golden.numbers["train/losses"], atol=1e-4, rtol=0)
    for name, weights in projector.state_dict().items():
        torch.testing.assert_close(weights, golden.numbers[f"train/projector.{name}"], atol=1e-4, rtol=0)


def test_focal_loss_by_hand() -> None:
    probability = torch.tensor([[[0.9, 0.2]]])
    mask = torch.tensor([[[1.0, 0.0]]])
    by_hand = [(1 - pt) ** 2 * -math.log(pt) for pt in (0.9 + 1e-5, 0.8 + 1e-5)]
    assert focal_loss(probability, mask).item() == pytest.approx(sum(by_hand) / 2, abs=1e-5)


def test_dice_loss_by_hand() -> None:
    probability = torch.tensor([[[1.0, 0.5]], [[0.0, 0.0]]])
    mask = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])
    assert dice_loss(probability, mask).item() == pytest.approx(((1 - 3 / 3.5) + 0) / 2)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_a_perfect_map_costs_less_than_a_worse_one(loss: object) -> None:
    mask = (torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    assert loss(mask, mask) < loss(mask * 0.6 + 0.2, mask) < loss(1 - mask, mask)  # type: ignore[operator]


def test_certain_and_wrong_is_finite() -> None:
    mask = torch.ones(1, 4, 4)
    assert projector_loss([torch.zeros(1, 4, 4)], mask).isfinite()
