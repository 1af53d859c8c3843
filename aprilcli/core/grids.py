"""The grids of patches of different stages: made coarser, and joined on a common grid.

Methods that compare all patches with each other, or join the stages, need grids of moderate size: the first stage of a
convolutional tower has 96 x 96 patches at 384 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

FINEST = 40  # patches per side; the paper's model has 37


def coarse_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Return the grid that ``coarsen`` makes of a grid."""
    while max(grid) > FINEST:
        grid = (-(-grid[0] // 2), -(-grid[1] // 2))
    return grid


def coarsen(tokens: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Average the tokens [B, L, Cv] of 2 x 2 patches, again and again, until no side has more than ``FINEST``.

    Returns float32 tokens and their grid; those of a grid that is coarse enough are returned unchanged.
    """
    while max(grid) > FINEST:
        cells = F.avg_pool2d(_cells(tokens, grid), 2, ceil_mode=True)
        tokens, grid = cells.flatten(2).transpose(1, 2), (cells.shape[2], cells.shape[3])
    return tokens.float(), grid


def join(stages: Sequence[torch.Tensor], grids: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, tuple[int, int]]:
    """Join the tokens of stages, N × [B, L, Cv], channel by channel on the finest of their coarsened grids.

    Coarser stages are resized bilinearly. Returns [B, L, ΣCv] float32 and the grid.
    """
    coarse = [coarsen(tokens, grid) for tokens, grid in zip(stages, grids, strict=True)]
    finest = max(grid for _, grid in coarse)
    cells = [_cells(tokens, grid) for tokens, grid in coarse]
    resized = [c if c.shape[2:] == finest else F.interpolate(c, size=finest, mode="bilinear") for c in cells]
    return torch.cat(resized, dim=1).flatten(2).transpose(1, 2), finest


def _cells(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return tokens [B, L, Cv] as [B, Cv, h, w], float32."""
    return tokens.float().transpose(1, 2).reshape(len(tokens), -1, *grid)
