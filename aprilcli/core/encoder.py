"""The interface of an image encoder, whichever library runs it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core.quantization import QuantizationImages
from aprilcli.types import ImageFeatures, ModelSpec


class ImageEncoder(Protocol):
    """A frozen image tower that turns prepared images into features in one pass.

    ``spec``: the model. ``grids``: N × (h, w), the patches of each stage. ``device``: where the features are.
    ``engine``: torch or openvino. ``precision``: what the tower computes in; the features are always float32.
    ``has_windows``: whether ``encode`` can return the features of windows. ``quantization``: the images that an int8
    model was quantized with, None for other precisions.
    """

    @property
    def spec(self) -> ModelSpec: ...  # noqa: D102

    @property
    def grids(self) -> tuple[tuple[int, int], ...]: ...  # noqa: D102

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def precision(self) -> str: ...  # noqa: D102

    @property
    def engine(self) -> str: ...  # noqa: D102

    @property
    def quantization(self) -> QuantizationImages | None: ...  # noqa: D102

    @property
    def has_windows(self) -> bool: ...  # noqa: D102

    def at_size(self, image_size: int) -> ImageEncoder:
        """Return an encoder with the same weights for inputs of another size, in pixels."""
        ...

    def encode(self, pixels: NDArray[np.float32], *, windows: bool = False) -> ImageFeatures:
        """Encode prepared images [B, 3, S, S], normalized with the model's mean and std.

        ``windows``: also the features of windows.

        An image's features do not depend on the other images of the batch. Raises ArtifactError where a feature is
        not a finite number.
        """
        ...


def describe_encoder(encoder: ImageEncoder) -> dict[str, Any]:
    """Return what runs the tower, for a JSON record."""
    record = {"engine": encoder.engine, "device": str(encoder.device), "precision": encoder.precision}
    return record if encoder.quantization is None else {**record, "quantization": encoder.quantization.describe()}
