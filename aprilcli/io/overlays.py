"""Images with their maps drawn over them, on one color scale for a whole run.

Low values are transparent, so that a good part looks good. Colors change evenly to the eye: they are equal steps along
a helix in OKLab (Björn Ottosson, 2020) whose lightness rises linearly, so they can be told apart in gray, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from aprilcli.errors import InputError
from aprilcli.io.atomic import written_aside
from aprilcli.io.images import DECODER_ERRORS

SUFFIX = ".jpg"
QUALITY = 90
LARGEST_SIDE = 65_500  # pixels, of a JPEG
COMMENT = b"aprilcli overlay"  # in each file, so that no other is taken for one
LEVELS = 256
ALARM = LEVELS // 2  # the level of the pixel threshold, and the lowest that regions have
OPAQUE = 0.7  # the share of the color in the most anomalous places: the image stays visible
DARK_EDGE, WHITE_LINE = LEVELS - 2, LEVELS - 1  # of contours, in palettes
MASK_COLOR = (30, 160, 255, 110)
BAND = 512  # rows drawn at a time, which limits the memory
LINE_SHARE = 400  # a contour is this part of the longer side wide
LIGHTNESS, CHROMA, HUES = (0.42, 0.88), 0.155, (300.0, 450.0)  # violet, red, orange, yellow: within sRGB


@dataclass(frozen=True)
class Scale:
    """Which map values have which color. ``low`` and less is transparent, ``high`` and more has the last color.

    ``alarm``: the pixel threshold, in the middle between both; None without one, then there are no contours.
    """

    low: float
    high: float
    alarm: float | None = None

    @classmethod
    def for_run(cls, pixel_threshold: float | None, stages: int, *, has_bank: bool) -> Scale:
        """Return the scale of a run with this pixel threshold, or that of maps summed over a number of stages.

        A stage adds 0 to 1 without a bank, seldom more than 1 with one (where good parts have higher values).
        """
        if pixel_threshold is not None and pixel_threshold > 0:
            return cls(0.5 * pixel_threshold, 1.5 * pixel_threshold, pixel_threshold)
        low, high = (0.3, 1.1) if has_bank else (0.2, 0.7)
        return cls(low * stages, high * stages)

    def levels(self, values: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Return the level of each map value, any shape; ``ALARM`` or more exactly where a value is in a region."""
        steps = (values - np.float32(self.low)) * np.float32(LEVELS / (self.high - self.low))
        levels = np.clip(steps, 0, LEVELS - 1).astype(np.uint8)
        if self.alarm is not None:  # rounding must not move the edge of a region
            in_region = values >= np.float32(self.alarm)
            levels = np.where(in_region, np.maximum(levels, ALARM), np.minimum(levels, ALARM - 1))
        return np.asarray(levels, np.uint8)


@functools.cache
def color_table() -> NDArray[np.uint8]:
    """Return the sRGB color of each level, [256, 3], evenly spaced in OKLab."""
    t = np.linspace(0, 1, LEVELS)
    lightness = np.interp(t, (0, 1), LIGHTNESS)
    hue = np.radians(np.interp(t, (0, 1), HUES))
    a, b = CHROMA * np.cos(hue), CHROMA * np.sin(hue)
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ cone**3, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * srgb.T), np.uint8)


@functools.cache
def alpha_table() -> NDArray[np.uint8]:
    """Return the opacity of each level, [256]: 0 at first, then rising smoothly to ``OPAQUE`` at ``ALARM``."""
    t = np.clip(np.arange(LEVELS) / ALARM, 0, 1)
    return np.rint(255 * OPAQUE * t * t * (3 - 2 * t)).astype(np.uint8)


def read_levels(path: Path, size_wh: tuple[int, int], scale: Scale) -> Image.Image:
    """Read a map and return its levels as a gray image of ``size_wh``: resized, or the highest value of each block.

    Raises InputError if it cannot be read.
    """
    try:
        values = np.asarray(tifffile.imread(path), np.float32)
        if values.ndim != 2 or not values.size:
            raise ValueError(f"shape {values.shape}")
    except DECODER_ERRORS as error:
        reason = "there is no such map" if isinstance(error, FileNotFoundError) else "the map cannot be read"
        raise InputError(f"{path}: {reason}; scan again") from error
    width, height = size_wh
    if values.shape[0] < height or values.shape[1] < width:
        values = np.asarray(Image.fromarray(values).resize(size_wh, Image.Resampling.BILINEAR))
    levels: NDArray[np.uint8] = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), BAND):
        levels[top : top + BAND] = scale.levels(values[top : top + BAND])
    del values
    if levels.shape != (height, width):  # a small defect keeps its color, which a mean would dilute
        for axis, size in enumerate((height, width)):
            starts = np.arange(size) * levels.shape[axis] // size
            levels = np.maximum.reduceat(levels, starts, axis)
    return Image.fromarray(levels)


def draw_layer(levels: Image.Image, scale: Scale, line: int) -> Image.Image:
    """Return levels as a layer to lay over the image: colors of a palette with their opacity, in mode P.

    Around regions are contours ``line`` pixels wide.
    """
    values = np.asarray(levels)
    inside = values >= ALARM if scale.alarm is not None else np.zeros(values.shape, bool)
    table = np.column_stack([color_table(), alpha_table()])
    return _with_contours(np.minimum(values, DARK_EDGE - 1), table, inside, line)


def draw_mask(mask: NDArray[np.bool_], line: int) -> Image.Image:
    """Return a mask [H, W] as a layer like that of ``draw_layer``."""
    table = np.zeros((LEVELS, 4), np.uint8)
    table[1] = MASK_COLOR
    return _with_contours(mask.astype(np.uint8), table, mask, line)


def _with_contours(
    indexes: NDArray[np.uint8], table: NDArray[np.uint8], inside: NDArray[np.bool_], line: int
) -> Image.Image:
    """Return an image of the colors ``table`` [256, 4], with a white line with a dark edge around the pixels inside.

    Both can be seen on any image; they take the last two places of the table.
    """
    if inside.any():
        shape = inside.astype(np.uint8)
        for width, index in ((line + max(1, line // 2), DARK_EDGE), (line, WHITE_LINE)):
            indexes[_dilated(shape, width) > shape] = index
    table[DARK_EDGE], table[WHITE_LINE] = (0, 0, 0, 140), (255, 255, 255, 255)
    layer = Image.fromarray(indexes)
    layer.putpalette(table[:, :3].tobytes())
    layer.info["transparency"] = table[:, 3].tobytes()
    return layer


def _dilated(inside: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    for axis in (0, 1):
        inside = ndimage.maximum_filter1d(inside, 2 * width + 1, axis)
    return inside


def line_width(size_wh: tuple[int, int]) -> int:
    """Return the width of contours in an image of this size, in pixels."""
    return max(1, round(max(size_wh) / LINE_SHARE))


def draw_over(image: Image.Image, levels: Image.Image, scale: Scale) -> None:
    """Draw levels over an RGB image of the same size, in place, band by band."""
    line = line_width(image.size)
    halo = 2 * line + 1  # rows beside a band whose regions have contours in it
    for top in range(0, image.height, BAND):
        bottom = min(top + BAND, image.height)
        first = max(0, top - halo)
        around = levels.crop((0, first, image.width, min(bottom + halo, image.height)))
        layer = draw_layer(around, scale, line).convert("RGBA").crop((0, top - first, image.width, bottom - first))
        image.paste(layer, (0, top), layer)


def overlay_path(folder: Path, relative: str) -> Path:
    """Return the path of an image's overlay: its whole name plus ``.jpg``, so no two images share one."""
    return folder / f"{relative}{SUFFIX}"


def write_overlay(path: Path, image: Image.Image, map_path: Path, scale: Scale) -> None:
    """Write an RGB image with its map drawn over it as a JPEG; ``image`` is changed.

    An image with more than ``LARGEST_SIDE`` pixels on a side is reduced. Raises InputError for the map, OutputError.
    """
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    draw_over(image, read_levels(map_path, image.size, scale), scale)
    with written_aside(path) as temporary:
        image.save(temporary, "JPEG", quality=QUALITY, comment=COMMENT)


def remove_others(folder: Path, is_wanted: Callable[[str], bool]) -> None:
    """Delete the overlays in ``folder`` of images that are not wanted, by their relative path; no other files."""
    for path in list(folder.rglob(f"*{SUFFIX}")):
        relative = path.relative_to(folder).as_posix().removesuffix(SUFFIX)
        if not is_wanted(relative) and _is_overlay(path):
            path.unlink()
            for parent in path.relative_to(folder).parents:
                with suppress(OSError):  # it has other files
                    (folder / parent).rmdir()


def _is_overlay(path: Path) -> bool:
    with suppress(*DECODER_ERRORS), Image.open(path, formats=["JPEG"]) as image:
        return image.info.get("comment") == COMMENT
    return False
