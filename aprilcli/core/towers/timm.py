"""timm's image models inside open_clip: SigLIP, PE-Core, EVA02, MobileCLIP, ConvNeXt and others.

Stage n is the raw output of block n of a transformer, or of feature stage n of a convolutional model. Class and
register tokens are left out. timm's ``feature_info`` gives each stage's width and stride.
"""

from __future__ import annotations

from typing import Any

from open_clip.timm_model import TimmModel
from timm.models import Eva, VisionTransformer
from timm.models.naflexvit import NaFlexVit

from aprilcli.core.towers.base import Tower


class TimmTower(Tower):
    """A timm model as the trunk, with open_clip's projection."""

    module = TimmModel

    def __init__(self, visual: Any) -> None:
        """Wrap ``visual``. Raises ValueError for a trunk whose stages are not square grids of patches."""
        super().__init__(visual)
        self._trunk = visual.trunk
        if isinstance(self._trunk, NaFlexVit):
            raise ValueError("images of variable resolution are not supported")
        if not hasattr(self._trunk, "forward_intermediates"):
            raise ValueError(f"timm's {type(self._trunk).__name__} does not give the output of its stages")
        self._stages: list[dict[str, Any]] = list(self._trunk.feature_info)

    @property
    def depth(self) -> int:
        """The number of blocks, or of a convolutional model's feature stages."""
        return len(self._stages)

    @property
    def step(self) -> int:
        """The side of a patch, or the stride of the last stage."""
        return max(int(stage["reduction"]) for stage in self._stages)

    @property
    def only_size(self) -> int | None:
        """The native size of an attention model whose positions timm cannot resize."""
        resizable = isinstance(self._trunk, VisionTransformer | Eva)
        native = self._trunk.default_cfg
        return int(native["input_size"][-1]) if native.get("fixed_input_size") and not resizable else None

    def width(self, stage: int) -> int:
        """Return the width that timm declares."""
        return int(self._stages[stage - 1]["num_chs"])

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the grid that follows from the stride that timm declares."""
        side = self.size // int(self._stages[stage - 1]["reduction"])
        return side, side

    def resize(self, size: int) -> None:
        """Resize the positions as timm does; convolutional models have none."""
        self.visual.set_input_size(size)
