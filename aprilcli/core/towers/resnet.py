"""open_clip's own ResNet. Stage n is the output of layer n."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet

from aprilcli.core.towers.base import Tower

DEPTH = 4
STRIDE = 32  # pixels of the input per cell of the last stage
STAGE_ONE = 4  # the first stage's width as a multiple of the stem's; it doubles with every stage


class ResNetTower(Tower):
    """A ResNet with attention pooling; open_clip does not resize the pool's positions, so this class does."""

    module = ModifiedResNet
    depth = DEPTH
    step = STRIDE

    def width(self, stage: int) -> int:
        """Return the width, which doubles with every stage."""
        return int(self.visual.conv3.out_channels * STAGE_ONE * 2 ** (stage - 1))

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the grid, which halves with every stage."""
        side = self.size * 2 ** (DEPTH - stage) // STRIDE
        return side, side

    def resize(self, size: int) -> None:
        """Resize the pool's positions (first row: the class token) as open_clip does a ViT's: bicubic, antialiased."""
        positions = self.visual.attnpool.positional_embedding.detach()
        side, native = size // STRIDE, int((len(positions) - 1) ** 0.5)
        if side != native:
            grid = positions[1:].reshape(1, native, native, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
            resized = torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(side * side, -1)])
            self.visual.attnpool.positional_embedding = torch.nn.Parameter(resized, requires_grad=False)
            self.visual.image_size = size

    def place(self, device: torch.device) -> None:
        """Freeze and move; convolutions are faster with the channels last."""
        super().place(device)
        self.visual.to(memory_format=torch.channels_last)

    def encode(self, pixels: torch.Tensor, stages: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode; ask open_clip for the stem and all layers: with fewer, it would pool an earlier layer."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        features, outputs = super().encode(pixels, tuple(range(1, DEPTH + 2)))
        return features, [outputs[stage] for stage in stages]
