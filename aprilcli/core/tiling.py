"""Overlapping tiles of a large image, and the smooth merging of their maps.

An image of H×W source pixels has a canvas, on which P source pixels (the side of a tile) are S canvas pixels (the side
of the model's input), so each tile's map [S, S] fits the canvas without being resized. Along an axis, tiles start at
whole canvas pixels, evenly spaced, and neighbors overlap by at least a quarter; an axis of at most P source pixels has
a single tile. Where tiles overlap, their maps are averaged with weights that fall to zero at a tile's border, where the
model sees only part of the surroundings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from aprilcli.types import TileLayout

OVERLAP = 0.25  # of a tile's side, at least


def lay_out(size_hw: tuple[int, int], tile: int, image_size: int) -> TileLayout:
    """Return the tiles of an image: ``tile`` source pixels (P) for a model input of ``image_size`` pixels (S)."""
    height, width = (max(image_size, round(pixels * image_size / tile)) for pixels in size_hw)
    return TileLayout(size_hw, (height, width), _starts(height, image_size), _starts(width, image_size), image_size)


def boxes(layout: TileLayout) -> Iterator[tuple[float, float, float, float]]:
    """Yield each tile's left, top, right and bottom in source pixels."""
    (height, width), side = layout.size_hw, layout.side
    down, right = (pixels / canvas for pixels, canvas in zip(layout.size_hw, layout.canvas_hw, strict=True))
    for top in layout.tops:
        for left in layout.lefts:
            yield left * right, top * down, min((left + side) * right, width), min((top + side) * down, height)


def merge(tile_maps: Iterable[torch.Tensor], layout: TileLayout) -> torch.Tensor:
    """Average the maps of T tiles, [S, S], into the map of the canvas; they are taken one at a time."""
    canvas = torch.zeros(layout.canvas_hw)
    rows, columns = (_weights(starts, layout.side) for starts in (layout.tops, layout.lefts))
    weights = itertools.product(zip(layout.tops, rows, strict=True), zip(layout.lefts, columns, strict=True))
    for ((top, row), (left, column)), tile_map in zip(weights, tile_maps, strict=True):
        part = canvas[top : top + layout.side, left : left + layout.side]
        part += tile_map.cpu() * row[:, None] * column
    return canvas


def _starts(length: int, side: int) -> tuple[int, ...]:
    """Return where tiles of ``side`` start to cover ``length`` canvas pixels."""
    steps = math.ceil((length - side) / (side * (1 - OVERLAP)))
    return tuple(round(step * (length - side) / steps) for step in range(steps + 1)) if steps else (0,)


def _weights(starts: tuple[int, ...], side: int) -> list[torch.Tensor]:
    """Return the weights of each tile along an axis, [S] each; at every canvas pixel they add up to 1."""
    window = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    total = np.zeros(starts[-1] + side)
    for start in starts:
        total[start : start + side] += window
    return [torch.from_numpy((window / total[start : start + side]).astype(np.float32)) for start in starts]
