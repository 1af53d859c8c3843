"""The image towers of open_clip: the only place that tells one kind from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aprilcli.core.towers.base import Tower
from aprilcli.core.towers.resnet import ResNetTower
from aprilcli.core.towers.timm import TimmTower
from aprilcli.core.towers.vit import ViTTower

__all__ = ["Tower", "tower_class"]


def tower_class(vision: Mapping[str, Any]) -> type[Tower]:
    """Return the kind of tower that open_clip builds from a ``vision_cfg``."""
    if vision.get("timm_model_name"):
        return TimmTower
    return ResNetTower if isinstance(vision.get("layers"), list | tuple) else ViTTower
