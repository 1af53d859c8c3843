"""What every kind of image tower offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch


class Tower(ABC):
    """An image tower of a loaded CLIP, at one image size.

    ``module``: open_clip's module, in evaluation mode. ``depth``: how many stages it has; stages count from 1.
    ``output_width``: C, of its image features.
    """

    module: Any
    depth: int
    output_width: int

    @classmethod
    @abstractmethod
    def check_config(cls, vision: Mapping[str, Any]) -> None:
        """Check a ``vision_cfg`` before anything is built or downloaded. Raises ValueError."""

    @classmethod
    @abstractmethod
    def size_step(cls, vision: Mapping[str, Any]) -> int:
        """Return the number of pixels that image sizes must be multiples of."""

    @classmethod
    def build_size(cls, image_size: int) -> int | None:
        """Return the image size that open_clip must build the tower for; None for the model's own."""
        return image_size

    @abstractmethod
    def __init__(self, module: Any, image_size: int) -> None:
        """Adapt ``module`` to square images of ``image_size`` pixels. Raises ValueError where it cannot be."""

    @abstractmethod
    def width(self, stage: int) -> int:
        """Return Cv of a stage."""

    @abstractmethod
    def grid(self, stage: int) -> tuple[int, int]:
        """Return (h, w), the patches of a stage."""

    @abstractmethod
    def encode(self, pixels: torch.Tensor, stages: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run images [B, 3, S, S] through the tower once.

        Returns image features [B, C], not normalised, and the raw output of each stage N × [B, Cv, h, w]: without a
        final norm, class or register tokens.
        """

    def to(self, device: torch.device) -> None:
        """Move the weights, in the memory layout that suits the tower."""
        self.module.to(device)
