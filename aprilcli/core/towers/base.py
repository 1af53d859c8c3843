"""What all image towers have in common."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch


class Tower(ABC):
    """An image tower of one kind. Stages are numbered from 1; sizes are sides of the square input in pixels.

    ``depth``: the number of stages. ``step``: every size is a multiple of it. ``size``: the current size.
    """

    module: ClassVar[type]  # open_clip's class of this kind

    def __init__(self, visual: Any) -> None:
        """Wrap ``visual``, an instance of ``module``."""
        self.visual = visual

    @property
    @abstractmethod
    def depth(self) -> int: ...  # noqa: D102

    @property
    @abstractmethod
    def step(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int:  # noqa: D102
        size = self.visual.image_size
        return int(size[0] if isinstance(size, tuple) else size)

    @property
    def only_size(self) -> int | None:
        """The only size that this tower can have; None if any multiple of ``step`` works."""
        return None

    @abstractmethod
    def width(self, stage: int) -> int:
        """Return the number of channels of a stage."""

    @abstractmethod
    def grid(self, stage: int) -> tuple[int, int]:
        """Return the patches (h, w) of a stage at the current size."""

    @property
    def has_windows(self) -> bool:
        """Whether ``windows`` works for this kind of tower."""
        return False

    def windows(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Return the features of windows of side x side patches of the last grid: [B, h', w', C], not normalized.

        Each window is pooled as if it were the whole image. Raises NotImplementedError unless ``has_windows``.
        """
        raise NotImplementedError

    @property
    def is_transformer(self) -> bool:
        """Whether all stages have the same grid; that of a convolutional tower shrinks."""
        return len(set(map(self.grid, range(1, self.depth + 1)))) == 1

    @abstractmethod
    def resize(self, size: int) -> None:
        """Prepare for inputs of another size than the native size, once."""

    def at_size(self, size: int) -> Self:
        """Return a tower of the native tower's weights, without copying them, for inputs of another size."""
        visual = self.visual
        shared = {id(tensor): tensor for tensor in (*visual.parameters(), *visual.buffers())}
        other = type(self)(copy.deepcopy(visual, shared))
        other.resize(size)
        return other

    def place(self, device: torch.device) -> None:
        """Freeze the weights and move them to ``device``."""
        self.visual.eval().requires_grad_(False).to(device)

    def encode(self, pixels: torch.Tensor, stages: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode images [B, 3, S, S] in one pass; return image features [B, C] and N × [B, Cv, h, w] patch tokens.

        The features are not normalized; the tokens are the raw output of each stage, without class token.
        """
        indices = [stage - 1 for stage in stages]
        output = self.visual.forward_intermediates(pixels, indices=indices, output_fmt="NCHW")
        return output["image_features"], output["image_intermediates"]


def window_positions(grid: tuple[int, int], side: int) -> torch.Tensor:
    """Return the positions in the grid of the patches of each window, row by row: [h', w', side²], stride 1."""
    cells = torch.arange(grid[0] * grid[1]).reshape(grid)
    return cells.unfold(0, side, 1).unfold(1, side, 1).flatten(2)
