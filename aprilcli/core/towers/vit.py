"""open_clip's own vision transformer: a stage is a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from aprilcli.core.towers.base import Tower


class ViTTower(Tower):
    """A ViT; open_clip resizes its position embeddings while it loads the weights."""

    @classmethod
    def check_config(cls, vision: Mapping[str, Any]) -> None:
        """Refuse a width that its heads do not divide."""
        check_heads(vision.get("width", 768), vision.get("head_width", 64))

    @classmethod
    def size_step(cls, vision: Mapping[str, Any]) -> int:
        """Return the patch size."""
        return int(vision.get("patch_size") or 16)

    def __init__(self, module: Any, image_size: int) -> None:
        """Take a ViT that was built for ``image_size``."""
        self.module = module
        self.depth = len(module.transformer.resblocks)
        self.output_width = int(module.output_dim)

    def width(self, stage: int) -> int:
        """Return the width, the same for every block."""
        return int(self.module.transformer.width)

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the grid, the same for every block."""
        height, width = self.module.grid_size
        return int(height), int(width)

    def encode(self, pixels: torch.Tensor, stages: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the image features and the outputs of the blocks ``stages``."""
        indices = [stage - 1 for stage in stages]
        output = self.module.forward_intermediates(pixels, indices=indices, output_fmt="NCHW")
        return output["image_features"], output["image_intermediates"]


def check_heads(width: int, head_width: int) -> None:
    """Raise ValueError for a width that attention cannot divide among its heads."""
    heads = width // head_width
    if heads < 1 or width % heads:
        raise ValueError(f"a width of {width} cannot be divided among {heads} heads")
