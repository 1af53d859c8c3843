"""Maps and masks between the size of an image and the model's input."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image


def resize_map(anomaly_map: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Resize a map to the source size: [S, S] → [H, W], bilinear, antialiased when shrinking.

    The values stay within the range of the map.
    """
    return F.interpolate(anomaly_map[None, None], size=size_hw, mode="bilinear", antialias=True)[0, 0]


def resize_mask(mask: NDArray[np.bool_], size: int) -> NDArray[np.float32]:
    """Resize a mask to the model input: bool [H, W] → float32 [S, S] of 0 and 1, S = ``size``.

    Bilinear with antialiasing by Pillow, then > 0.5, as the authors' program does.
    """
    resized = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(resized) > 255 * 0.5).astype(np.float32)
