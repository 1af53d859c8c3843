"""Equations 1, 3 and 4 against the authors' numbers, and the traps that would slip past a looser test."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import QUERIES, GoldenCase

from aprilcli.core import maps


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
    for stage, one_stage in enumerate(logits):
        one = maps.zero_shot_stage_map(one_stage, golden.image_size)[0]
        torch.testing.assert_close(one, golden.numbers[f"{query}/zero_shot_map/{stage}"], atol=1e-4, rtol=0)
    total = maps.zero_shot_map(logits, golden.image_size)[0]
    torch.testing.assert_close(total, golden.numbers[f"{query}/zero_shot_map"], atol=1e-4, rtol=0)


def test_softmax_before_upsampling_would_be_seen(golden: GoldenCase) -> None:
    projected, text, grids = zero_shot_inputs(golden, "query0")
    early = sum(
        maps.upsample(torch.sigmoid(maps.anomaly_logits(tokens, text, grid)), golden.image_size)
        for tokens, grid in zip(projected, grids, strict=True)
    )
    assert (early[0] - golden.numbers["query0/zero_shot_map"]).abs().max() > 1e-2


def test_a_shifted_stage_would_be_seen(golden: GoldenCase) -> None:
    projected, text, grids = zero_shot_inputs(golden, "query0")
    shifted = maps.zero_shot_stage_map(maps.anomaly_logits(projected[1], text, grids[1]), golden.image_size)[0]
    assert (shifted - golden.numbers["query0/zero_shot_map/0"]).abs().max() > 1e-2


def test_the_two_channel_softmax_of_the_paper_is_the_sigmoid_here(golden: GoldenCase) -> None:
    projected, text, grids = zero_shot_inputs(golden, "query1")
    tokens, grid = projected[0], grids[0]
    logits = (100 * F.normalize(tokens, dim=-1) @ text.T).transpose(1, 2).unflatten(2, grid)
    size = (golden.image_size, golden.image_size)
    softmax = F.interpolate(logits, size=size, mode="bilinear", align_corners=True).softmax(dim=1)[:, 1]
    torch.testing.assert_close(
        maps.zero_shot_stage_map(maps.anomaly_logits(tokens, text, grid), golden.image_size), softmax, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size_hw", [(40, 60), (200, 31), (1, 1), (3, 500)])
def test_stretching_keeps_shape_and_range(size_hw: tuple[int, int]) -> None:
    anomaly_map = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)) * 4
    stretched = maps.resize_map(anomaly_map, size_hw)
    assert stretched.shape == size_hw
    assert stretched.dtype == torch.float32
    assert stretched.min() >= anomaly_map.min() - 1e-5
    assert stretched.max() <= anomaly_map.max() + 1e-5


def test_stretching_to_its_own_size_changes_nothing() -> None:
    anomaly_map = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(maps.resize_map(anomaly_map, (32, 32)), anomaly_map)
