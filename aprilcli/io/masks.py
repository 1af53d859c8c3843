"""Masks of labeled images: which pixels are anomalous."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.datasets import LabeledImage


def read_mask(image: LabeledImage, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the anomalous pixels of an image of size ``size_hw`` (H, W in pixels) as bool [H, W].

    A pixel is anomalous if any color channel (except alpha) or the class number of any mask is above 0. A good image
    without masks gives all False. Raises InputError, naming both files, if a mask has another size or cannot be read,
    if it is missing or empty for an anomalous image, or not empty for a good image.
    """
    anomalous = np.zeros(size_hw, dtype=bool)
    for path in image.mask_paths:
        anomalous |= _read_mask_file(path, image.path, size_hw)
    masks = ", ".join(str(path) for path in image.mask_paths)
    if image.label and not image.mask_paths:
        raise InputError(f"{image.path}: labeled {image.defect} but without a mask; add a mask")
    if image.label and not anomalous.any():
        raise InputError(f"{masks}: empty mask, but {image.path} is labeled {image.defect}; correct one of them")
    if not image.label and anomalous.any():
        raise InputError(f"{masks}: marks a defect, but {image.path} is labeled good; correct one of them")
    return anomalous


def _read_mask_file(path: Path, image_path: Path, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    try:
        with Image.open(path) as mask:
            if (mask.height, mask.width) != size_hw:
                found, wanted = f"{mask.width} by {mask.height}", f"{size_hw[1]} by {size_hw[0]}"
                raise InputError(f"{path}: mask of {found} pixels for {image_path} of {wanted}; make the sizes equal")
            has_alpha = mask.mode in ("RGBA", "LA", "PA")
            values = np.asarray(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot read the mask of {image_path} ({error}); replace it") from error
    if has_alpha:
        values = values[..., :-1]
    return np.asarray(values > 0 if values.ndim == 2 else (values > 0).any(axis=-1))
