"""open_clip's own ViT. Stage n is the raw output of block n."""

from __future__ import annotations

from open_clip.transformer import VisionTransformer

from aprilcli.core.towers.base import Tower


class VitTower(Tower):
    """A vision transformer; open_clip resizes its positions while it loads the weights."""

    module = VisionTransformer
    built_at_size = True

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
