"""Towers of timm inside open_clip: SigLIP, SigLIP 2, PE-Core, MobileCLIP 2, ConvNeXt, EVA02 and others.

A stage is what timm calls an intermediate: a block of a transformer, a stage of a convolutional network.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch

from aprilcli.core.towers.base import Tower


class TimmTower(Tower):
    """open_clip's ``TimmModel``: a trunk of timm with a head."""

    @classmethod
    def check_config(cls, vision: Mapping[str, Any]) -> None:
        """Refuse trunks that timm does not have, or that take images of any shape."""
        name = vision["timm_model_name"]
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.]*", name) or not timm.is_model(name):
            raise ValueError(f"timm has no model {str(name)[:80]!r}")
        if "naflex" in name:
            raise ValueError(f"{name} takes images of variable resolution; choose a model with a fixed input size")

    @classmethod
    def size_step(cls, vision: Mapping[str, Any]) -> int:
        """Return the stride of the last stage, for a transformer its patch size."""
        with torch.device("meta"):
            trunk: Any = timm.create_model(vision["timm_model_name"], pretrained=False)
        return max(int(stage["reduction"]) for stage in trunk.feature_info)

    @classmethod
    def build_size(cls, image_size: int) -> int | None:
        """Return None: timm resizes a trunk after its weights are loaded."""
        return None

    def __init__(self, module: Any, image_size: int) -> None:
        """Set the input size of the trunk; convolutional ones take any."""
        self.module = module.eval()
        try:
            module.set_input_size(image_size)
            features, stages = self._shapes(image_size)
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            native = "x".join(map(str, module.trunk.default_cfg.get("input_size", ("?",))[1:]))
            raise ValueError(
                f"its tower cannot encode images of {image_size} pixels; its own size is {native}"
            ) from error
        self.depth = len(stages)
        self.output_width = features[-1]
        self._stages = stages

    def _shapes(self, image_size: int) -> tuple[torch.Size, list[torch.Size]]:
        """Return the shapes of the image features and of all stages, without computing values."""
        run = _AllStages(self.module)
        weights = itertools.chain(run.named_parameters(), run.named_buffers())
        shapes = {name: tensor.to("meta") for name, tensor in weights}
        pixels = torch.empty(1, 3, image_size, image_size, device="meta")
        output = torch.func.functional_call(run, shapes, (pixels,))
        stages = [stage.shape for stage in output["image_intermediates"]]
        if not stages or any(len(shape) != 4 for shape in stages):
            raise ValueError("no stages of patches")
        return output["image_features"].shape, stages

    def width(self, stage: int) -> int:
        """Return the channels of a stage."""
        return int(self._stages[stage - 1][1])

    def grid(self, stage: int) -> tuple[int, int]:
        """Return the grid of a stage."""
        height, width = self._stages[stage - 1][2:]
        return int(height), int(width)

    def encode(self, pixels: torch.Tensor, stages: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the image features and the outputs of the trunk's ``stages``."""
        output = self.module.forward_intermediates(pixels, indices=[stage - 1 for stage in stages], output_fmt="NCHW")
        return output["image_features"], output["image_intermediates"]


class _AllStages(torch.nn.Module):
    """A module whose forward pass is ``forward_intermediates``, for ``functional_call``."""

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower: Any = tower

    def forward(self, pixels: torch.Tensor) -> dict[str, Any]:
        output: dict[str, Any] = self.tower.forward_intermediates(pixels, output_fmt="NCHW")
        return output
