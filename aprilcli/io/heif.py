"""HEIC images, with all their bits, where the optional package pillow-heif is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import BinaryIO

import numpy as np

from aprilcli.io.high_bit_depth import CHANNEL_MODES, StoredPixels, check_size, unpremultiply


@dataclass(frozen=True)
class HeifImage:
    """The main image of a HEIC file: its pixels, upright, its ICC ``profile``, and whether there are other images."""

    pixels: StoredPixels
    profile: bytes | None
    has_more: bool


def is_heif_supported() -> bool:
    """Return whether pillow-heif is installed; it is imported when the first HEIC image is read."""
    return find_spec("pillow_heif") is not None


def read_heif(file: BinaryIO, max_pixels: int) -> HeifImage:
    """Read the main image. libheif applies the rotation that the file states; EXIF only repeats it.

    Raises InputError for more than ``max_pixels`` pixels, and what pillow-heif raises for damaged files.
    """
    import pillow_heif

    file.seek(0)
    heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    width, height = heif.size
    check_size(width, height, max_pixels)
    values = np.asarray(heif)
    values = values.reshape(*values.shape[:2], -1)
    mode, _, bits = heif.mode.partition(";")
    white = 2 ** int(bits or 8) - 1
    if mode.endswith("a"):
        values = unpremultiply(values, white)
    pixels = StoredPixels(CHANNEL_MODES[values.shape[2]], values, (0.0, float(white)))
    return HeifImage(pixels, heif.info.get("icc_profile"), len(heif) > 1)
