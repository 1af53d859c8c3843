"""open_clip's own ResNet. Stage n is the output of layer n."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet

from aprilcli.core.towers.base import Tower, window_positions

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

    @property
    def has_windows(self) -> bool:
        """A window is pooled alone; its cells have seen their surroundings through the convolutions."""
        return True

    def windows(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Pool the cells of each window by attention, at their positions."""
        pool = self.visual.attnpool
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        _, outputs = super().encode(pixels, tuple(range(1, DEPTH + 2)))
        output = outputs[DEPTH]
        positions = window_positions((output.shape[2], output.shape[3]), side)
        flat = positions.flatten(0, 1)
        cells = output.flatten(2).transpose(1, 2)[:, flat]  # [B, n, side², C]
        tokens = torch.cat([cells.mean(dim=2, keepdim=True), cells], dim=2)
        places = torch.cat([torch.zeros(len(flat), 1, dtype=torch.long), flat + 1], dim=1)  # 0: of the class token
        tokens = tokens + pool.positional_embedding[places].to(tokens.dtype)
        features = attention_pool(pool, tokens.flatten(0, 1))
        return features.reshape(len(pixels), *positions.shape[:2], -1)

    def encode(self, pixels: torch.Tensor, stages: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode; ask open_clip for the stem and all layers: with fewer, it would pool an earlier layer."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        features, outputs = super().encode(pixels, tuple(range(1, DEPTH + 2)))
        return features, [outputs[stage] for stage in stages]


def attention_pool(pool: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the output of open_clip's attention pool for tokens [n, 1 + L, C], which have their positions already.

    The first token is the query: the mean of the others. As ``AttentionPool2d.forward`` after its first three lines.
    """
    rows = tokens.transpose(0, 1)
    output, _ = F.multi_head_attention_forward(
        query=rows[:1],
        key=rows,
        value=rows,
        embed_dim_to_check=rows.shape[-1],
        num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    return output[0]
