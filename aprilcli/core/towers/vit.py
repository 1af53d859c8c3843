"""open_clip's own ViT. Stage n is the raw output of block n."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from open_clip.model import resize_pos_embed
from open_clip.transformer import VisionTransformer

from aprilcli.core.towers.base import Tower, window_positions

TOKENS_PER_PASS = 8192  # of windows


@contextlib.contextmanager
def _fused_attention() -> Iterator[None]:
    """Let PyTorch's attention layers call ``scaled_dot_product_attention``.

    Their own fast path, for inference, writes all attention weights to memory: a fifth of the time at 518 pixels.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class VitTower(Tower):
    """A vision transformer."""

    module = VisionTransformer

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.visual.transformer.resblocks)

    @property
    def step(self) -> int:
        """The side of a patch."""
        return int(self.visual.patch_size[0])

    def width(self, stage: int) -> int:
        """Return the width, the same for all blocks."""
        return int(self.visual.transformer.width)

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the grid, the same for all blocks."""
        height, width = self.visual.grid_size
        return int(height), int(width)

    def resize(self, size: int) -> None:
        """Resize the positions as open_clip does when it loads weights."""
        side = size // self.step
        self.visual.image_size, self.visual.grid_size = (size, size), (side, side)
        name = "visual.positional_embedding"
        weights = {name: self.visual.positional_embedding.detach()}
        holder = torch.nn.Module()
        holder.visual = self.visual
        resize_pos_embed(weights, holder)
        self.visual.positional_embedding = torch.nn.Parameter(weights[name], requires_grad=False)

    @property
    def has_windows(self) -> bool:
        """A window is encoded alone: masking all other patches in attention is leaving them out."""
        return True

    def windows(self, pixels: torch.Tensor, side: int) -> torch.Tensor:
        """Encode the class token with the patches of each window, at their positions."""
        visual = self.visual
        embedded = visual._embeds(pixels)
        positions = window_positions((int(visual.grid_size[0]), int(visual.grid_size[1])), side)
        class_token, patches = embedded[:, :1], embedded[:, 1:]
        pooled = []
        count = max(1, TOKENS_PER_PASS // (len(pixels) * (side**2 + 1)))
        for some in torch.split(positions.flatten(0, 1), count):
            windows = torch.cat([class_token[:, None].expand(-1, len(some), -1, -1), patches[:, some]], dim=2)
            with _fused_attention():
                features, _ = visual._pool(visual.transformer(windows.flatten(0, 1)))
            features = features if visual.proj is None else features @ visual.proj
            pooled.append(features.reshape(len(pixels), len(some), -1))
        return torch.cat(pooled, dim=1).reshape(len(pixels), *positions.shape[:2], -1)

    def encode(self, pixels: torch.Tensor, stages: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode with fused attention."""
        with _fused_attention():
            return super().encode(pixels, stages)
