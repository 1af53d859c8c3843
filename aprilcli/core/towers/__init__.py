"""The image towers of CLIP models: what differs between their kinds, and nothing else knows a tower's kind."""

from __future__ import annotations

from aprilcli.core.towers.base import Tower
from aprilcli.core.towers.resnet import ResNetTower
from aprilcli.core.towers.timm import TimmTower
from aprilcli.core.towers.vit import VitTower

__all__ = ["Tower", "tower_of"]

_KINDS: tuple[type[Tower], ...] = (VitTower, ResNetTower, TimmTower)


def tower_of(visual: object) -> Tower:
    """Wrap the image tower that open_clip built. Raises ValueError for a kind without a grid of patches per stage."""
    for kind in _KINDS:
        if isinstance(visual, kind.module):
            return kind(visual)
    raise ValueError(f"{type(visual).__name__} is not a supported image tower")
