"""Equations 1 and 3 against the authors' numbers, mistakes that would stay unnoticed otherwise, and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import QUERIES, GoldenCase

from aprilcli.core import maps, resizing


def zero_shot_inputs(
    golden: GoldenCase, query: str
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, tuple[tuple[int, int], ...]]:
    features = golden.encoder.encode(golden.pixels(query))
    return golden.projector(features.patch_tokens), golden.numbers["text_features/metal_nut"], features.grids


@pytest.mark.parametrize("query", QUERIES)
def test_text_score_is_equation_1(golden: GoldenCase, query: str) -> None:
    features = golden.numbers[f"{query}/image_features"][None]
    score = maps.text_score(features, golden.numbers["text_features/metal_nut"])
    torch.testing.assert_close(score[0], golden.numbers[f"{query}/probability"][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", QUERIES)
def test_zero_shot_maps_per_stage_and_summed(golden: GoldenCase, query: str) -> None:
    projected, text, grids = zero_shot_inputs(golden, query)
    logits = [maps.anomaly_logits(tokens, text, grid) for tokens, grid in zip(projected, grids, strict=True)]
    for stage, stage_logits in enumerate(logits):
        stage_map = maps.zero_shot_stage_map(stage_logits, golden.image_size)[0]
        torch.testing.assert_close(stage_map, golden.numbers[f"{query}/zero_shot_map/{stage}"], atol=1e-4, rtol=0)
    total = maps.zero_shot_map(logits, golden.image_size)[0]
    torch.testing.assert_close(total, golden.numbers[f"{query}/zero_shot_map"], atol=1e-4, rtol=0)


def test_softmax_before_upsampling_would_be_noticed(golden: GoldenCase) -> None:
    projected, text, grids = zero_shot_inputs(golden, "query0")
    early = sum(
        maps.upsample(torch.sigmoid(maps.anomaly_logits(tokens, text, grid)), golden.image_size)
        for tokens, grid in zip(projected, grids, strict=True)
    )
    assert (early[0] - golden.numbers["query0/zero_shot_map"]).abs().max() > 1e-2


def test_a_shifted_stage_would_be_noticed(golden: GoldenCase) -> None:
    projected, text, grids = zero_shot_inputs(golden, "query0")
    shifted = maps.zero_shot_stage_map(maps.anomaly_logits(projected[1], text, grids[1]), golden.image_size)[0]
    assert (shifted - golden.numbers["query0/zero_shot_map/0"]).abs().max() > 1e-2


def test_the_sigmoid_equals_the_two_channel_softmax_of_the_paper(golden: GoldenCase) -> None:
    projected, text, grids = zero_shot_inputs(golden, "query1")
    tokens, grid = projected[0], grids[0]
    logits = (100 * F.normalize(tokens, dim=-1) @ text.T).transpose(1, 2).unflatten(2, grid)
    size = (golden.image_size, golden.image_size)
    softmax = F.interpolate(logits, size=size, mode="bilinear", align_corners=True).softmax(dim=1)[:, 1]
    torch.testing.assert_close(
        maps.zero_shot_stage_map(maps.anomaly_logits(tokens, text, grid), golden.image_size), softmax, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size_hw", [(40, 60), (200, 31), (1, 1), (3, 500)])
def test_a_resized_map_has_the_source_size_and_stays_within_its_range(size_hw: tuple[int, int]) -> None:
    anomaly_map = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) * 4
    resized = resizing.resize_map(anomaly_map, size_hw)
    assert resized.shape == size_hw
    assert resized.dtype == torch.float32
    assert resized.min() >= anomaly_map.min() - 1e-5
    assert resized.max() <= anomaly_map.max() + 1e-5


def test_resizing_a_map_to_its_own_size_changes_nothing() -> None:
    anomaly_map = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resizing.resize_map(anomaly_map, (32, 32)), anomaly_map)


def test_a_mask_is_resized_to_zeros_and_ones_at_half_coverage() -> None:
    mask = np.zeros((8, 4), dtype=bool)
    mask[:4, :2] = True
    assert np.array_equal(
        resizing.resize_mask(mask, (2, 2)), np.float32([[1, 0], [0, 0]])
    )  # also from another aspect ratio
    large = np.random.default_rng(0).random((57, 91)) > 0.5
    resized = resizing.resize_mask(large, (28, 28))
    assert resized.dtype == np.float32
    assert set(np.unique(resized)) == {0.0, 1.0}
    # Antialiased: a stripe of three of four pixels remains, a stripe of one of four disappears.
    stripes = np.zeros((16, 16), dtype=bool)
    stripes[:, :3], stripes[:, 12] = True, True
    assert resizing.resize_mask(stripes, (4, 4)).tolist() == [[1, 0, 0, 0]] * 4
