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
    # Where nothing shrinks, both ways give the same values; the plain way takes half the time.
    shrinks = size_hw[0] < anomaly_map.shape[0] or size_hw[1] < anomaly_map.shape[1]
    return F.interpolate(anomaly_map[None, None], size=size_hw, mode="bilinear", antialias=shrinks)[0, 0]


def resize_mask(mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a mask to the size of a map: bool [H, W] → float32 [h, w] of 0 and 1.

    Bilinear with antialiasing by Pillow, then > 0.5, as the authors' program does.
    """
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return (np.asarray(image.resize(size_hw[::-1], Image.Resampling.BILINEAR)) > 255 * 0.5).astype(np.float32)
