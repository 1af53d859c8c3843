"""Grids made coarser, and joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aprilcli.core.grids import coarsen, join


def test_a_fine_grid_is_averaged_until_it_is_coarse_enough() -> None:
    tokens = torch.rand(2, 96 * 96, 3, generator=torch.Generator().manual_seed(0))
    coarse, grid = coarsen(tokens, (96, 96))
    assert grid == (24, 24)
    expected = tokens.reshape(2, 24, 4, 24, 4, 3).mean(dim=(2, 4)).reshape(2, 576, 3)
    torch.testing.assert_close(coarse, expected)


@pytest.mark.parametrize("side", [1, 37, 40])
def test_the_grids_of_transformers_stay_as_they_are(side: int) -> None:
    tokens = torch.rand(1, side * side, 3)
    coarse, grid = coarsen(tokens, (side, side))
    assert (coarse is tokens, grid) == (True, (side, side))


def test_an_odd_grid_keeps_its_edge() -> None:
    tokens = torch.arange(41.0 * 41).reshape(1, -1, 1)
    coarse, grid = coarsen(tokens, (41, 41))
    assert grid == (21, 21)
    assert coarse[0, -1, 0] == tokens[0, -1, 0]


def test_stages_are_joined_on_the_finest_grid() -> None:
    fine, coarse = torch.rand(1, 16, 2), torch.full((1, 4, 3), 7.0)
    rows, grid = join([fine, coarse], [(4, 4), (2, 2)])
    assert (rows.shape, grid) == ((1, 16, 5), (4, 4))
    torch.testing.assert_close(rows[:, :, :2], fine)
    np.testing.assert_allclose(rows[:, :, 2:], 7.0)
