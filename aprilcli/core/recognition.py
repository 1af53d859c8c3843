"""Whether an image shows the part at all: a dead camera, an empty station or another part is not a defect.

An image's appearance is the mean of its unit patch tokens, per stage. It says what the surface looks like, whatever its
position, and hardly changes with a local defect. The image's distance to the part is the smallest cosine distance of
its appearance to those of the part's good images (references and calibration images), in [0, 2].

The threshold is ``Calibration.recognition_threshold``, from the distance of each good image to the other good images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from aprilcli.core.memory_bank import unit_rows
from aprilcli.core.nearest import nearest_distance
from aprilcli.types import ImageFeatures


@torch.inference_mode()
def appearance(features: ImageFeatures) -> torch.Tensor:
    """Return the appearance of each of B images: unit rows [B, ΣCv], float32."""
    means = [F.normalize(unit_rows(tokens).mean(dim=1), dim=-1) for tokens in features.patch_tokens]
    return unit_rows(torch.cat(means, dim=-1))


def distance_to(appearances: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Return the distance of each of B appearances to a part's good images ``gallery`` [M, ΣCv]: [B], float32."""
    return nearest_distance(appearances[:, None], gallery)[:, 0]


def distances_to_others(gallery: torch.Tensor, copies: Sequence[int]) -> NDArray[np.float32]:
    """Return the distance of each good image to the others; of a single one it is 2.

    ``copies``: how many rows of the gallery are of each image; the first of them is the image as it is.
    """
    images = torch.split(gallery, list(copies))
    others = (torch.cat([gallery[:0], *images[:k], *images[k + 1 :]]) for k in range(len(images)))
    return np.array([distance_to(image[:1], rest).item() for image, rest in zip(images, others, strict=True)])
