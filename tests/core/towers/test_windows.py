"""Features of windows: a window of the whole grid is the image, and patches outside of a window are not seen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from helpers import GoldenCase

from aprilcli.core.towers.base import Tower, window_positions
from aprilcli.core.towers.resnet import ResNetTower


def tower_and_pixels(golden: GoldenCase) -> tuple[Tower, torch.Tensor]:
    pixels = torch.from_numpy(np.concatenate([golden.pixels("query0"), golden.pixels("query1")]))
    return golden.encoder.tower, pixels


@torch.inference_mode()
def test_the_window_of_the_whole_grid_is_the_image(golden: GoldenCase) -> None:
    tower, pixels = tower_and_pixels(golden)
    side, _ = tower.grid(tower.depth)
    [[whole]], [[other]] = tower.windows(pixels, side)
    expected, _ = tower.encode(pixels, (1,))
    torch.testing.assert_close(torch.stack([whole, other]), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_patches_outside_of_a_window_are_masked(golden_vit: GoldenCase) -> None:
    tower, pixels = tower_and_pixels(golden_vit)
    visual = tower.visual
    height, width = tower.grid(1)
    windows = tower.windows(pixels, 2)
    assert windows.shape[:3] == (2, height - 1, width - 1)
    for row, column in ((0, 0), (1, 2), (height - 2, width - 2)):
        seen = {0} | {1 + (row + i) * width + column + j for i in (0, 1) for j in (0, 1)}
        mask = torch.full((height * width + 1,) * 2, -torch.inf)
        mask[:, sorted(seen)] = 0
        hidden = visual.transformer(visual._embeds(pixels), attn_mask=mask)
        expected = visual._pool(hidden)[0] @ visual.proj
        torch.testing.assert_close(windows[:, row, column], expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_window_of_a_resnet_is_its_pool_on_these_cells(other_golden: GoldenCase) -> None:
    tower, pixels = tower_and_pixels(other_golden)
    if not isinstance(tower, ResNetTower):
        return  # the other of these cases is a transformer
    visual = tower.visual
    hidden = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels)))))
    windows = tower.windows(pixels, 2)
    pool, width = visual.attnpool, hidden.shape[3]
    positions = pool.positional_embedding.detach().clone()
    row, column = windows.shape[1] - 1, 0
    own = [1 + (row + i) * width + column + j for i in (0, 1) for j in (0, 1)]
    cells = hidden[:, :, row : row + 2, column : column + 2]
    expected = torch.func.functional_call(pool, {"positional_embedding": positions[[0, *own]]}, (cells,))
    torch.testing.assert_close(windows[:, row, column], expected, atol=1e-5, rtol=1e-5)


def test_positions_of_windows() -> None:
    assert window_positions((2, 3), 2).tolist() == [[[0, 1, 3, 4], [1, 2, 4, 5]]]


def test_windows_are_unit_rows_of_an_image_whatever_the_batch(golden: GoldenCase) -> None:
    both = np.concatenate([golden.pixels("query0"), golden.pixels("query1")])
    together = golden.encoder.encode(both, windows=True)
    alone = golden.encoder.encode(both[1:], windows=True)
    assert len(together.windows) == len(golden.encoder.window_sides)
    for mine, other in zip(together.windows, alone.windows, strict=True):
        torch.testing.assert_close(mine[1:], other, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine, F.normalize(mine, dim=-1))
    assert golden.encoder.encode(both).windows == ()
