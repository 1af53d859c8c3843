"""CLIP's ResNet with attention pooling: a stage is one of its four layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from aprilcli.core.towers.base import Tower
from aprilcli.core.towers.vit import check_heads

STRIDE = 32  # pixels of the input per cell of the last layer


class ResNetTower(Tower):
    """A modified ResNet; open_clip builds it at its own size only, so its pool is resized here."""

    depth = 4

    @classmethod
    def check_config(cls, vision: Mapping[str, Any]) -> None:
        """Refuse a width that the heads of its pool do not divide."""
        check_heads(vision.get("width", 768) * STRIDE, vision.get("head_width", 64))

    @classmethod
    def size_step(cls, vision: Mapping[str, Any]) -> int:
        """Return the stride of the last layer."""
        return STRIDE

    @classmethod
    def build_size(cls, image_size: int) -> int | None:
        """Return None: open_clip cannot resize the pool's positions."""
        return None

    def __init__(self, module: Any, image_size: int) -> None:
        """Resize the positions of the attention pool."""
        self.module = module
        self.output_width = int(module.output_dim)
        self._image_size = image_size
        _resize_attention_pool(module, image_size)

    def width(self, stage: int) -> int:
        """Return 4, 8, 16 or 32 times the width of the stem."""
        return int(self.module.conv3.out_channels * 4 * 2 ** (stage - 1))

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the grid; it halves from layer to layer."""
        side = self._image_size * 2 ** (self.depth - stage) // STRIDE
        return side, side

    def encode(self, pixels: torch.Tensor, stages: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the image features and the outputs of the layers ``stages``."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        # All five outputs, stem first: with fewer, open_clip would pool an earlier layer.
        output = self.module.forward_intermediates(pixels, indices=list(range(5)), output_fmt="NCHW")
        return output["image_features"], [output["image_intermediates"][stage] for stage in stages]

    def to(self, device: torch.device) -> None:
        """Move the weights, channels last."""
        self.module.to(device).to(memory_format=torch.channels_last)


def _resize_attention_pool(module: Any, image_size: int) -> None:
    """Resize the pool's positions (first row: the class token) as open_clip does a ViT's: bicubic, antialiased."""
    positions = module.attnpool.positional_embedding.detach()
    side, native = image_size // STRIDE, int((len(positions) - 1) ** 0.5)
    if side != native:
        grid = positions[1:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        resized = torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(side * side, -1)])
        module.attnpool.positional_embedding = torch.nn.Parameter(resized, requires_grad=False)
        module.image_size = image_size
