"""The layout of tiles, and the merging of their maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aprilcli.core.tiling import boxes, lay_out, merge

SIZES = [(700, 900), (64, 2000), (1280, 64), (64, 64), (40, 50), (333, 257), (100, 2000)]


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("tile", [64, 100])
def test_tiles_cover_the_image_and_overlap_by_a_quarter(size_hw: tuple[int, int], tile: int) -> None:
    layout = lay_out(size_hw, tile, 64)
    for starts, canvas, length in zip((layout.tops, layout.lefts), layout.canvas_hw, size_hw, strict=True):
        assert (starts[0], starts[-1] + layout.side) == (0, canvas)
        assert max(np.diff(starts), default=0) <= 0.75 * layout.side + 1
        assert (len(starts) == 1) == (round(length * 64 / tile) <= 64)
    left, top, right, bottom = np.array(list(boxes(layout))).T
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, size_hw[1], size_hw[0])
    for low, high, length in ((left, right, size_hw[1]), (top, bottom, size_hw[0])):
        np.testing.assert_allclose(high - low, min(tile, length), rtol=0.02)


@pytest.mark.parametrize("size_hw", SIZES)
def test_equal_maps_merge_without_seams(size_hw: tuple[int, int]) -> None:
    layout = lay_out(size_hw, 80, 64)
    merged = merge([torch.full((64, 64), 0.7)] * len(layout), layout)
    torch.testing.assert_close(merged, torch.full(layout.canvas_hw, 0.7), atol=1e-6, rtol=0)


def test_a_merged_map_follows_the_tiles_without_steps() -> None:
    layout = lay_out((64, 200), 64, 64)
    levels = torch.arange(len(layout), dtype=torch.float32)
    merged = merge((torch.full((64, 64), float(level)) for level in levels), layout)
    assert merged[0, 0] == 0
    assert merged[0, -1] == len(layout) - 1
    assert merged.diff(dim=1).min() >= 0
    assert merged.diff(dim=1).max() < 0.15


def test_a_tile_lies_where_its_pixels_are() -> None:
    layout = lay_out((100, 2000), 100, 64)  # an aspect ratio of 20
    ramp = np.linspace(0, 1, 2000)
    tiles = [
        torch.linspace(ramp[round(left)], ramp[round(right) - 1], 64).expand(64, 64)
        for left, _, right, _ in boxes(layout)
    ]
    merged = merge(tiles, layout)
    np.testing.assert_allclose(merged[30], np.linspace(0, 1, layout.canvas_hw[1]), atol=0.003)
