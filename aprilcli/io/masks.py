"""Masks of labeled images: which pixels are anomalous.

What a value means depends on how the file was made:

- **Class numbers** (VisA: 1, 2, …): every value above 0 is anomalous. So are the values of lossless files in general.
- **Soft edges and compression noise**: where values below half of the maximum occur only around brighter areas, or are
  only noise, as in JPEG files, a value above half of the maximum is anomalous. Areas of one intermediate value are
  classes and count.
- **Palettes**: the background is index 0, or the index drawn black: the one of them that covers more of the image's
  border. Other indices are anomalous. A gray ramp is read as the gray that it shows.
- **Few colors**: where one color, which is not gray, fills the border, it is the background.
- **Transparency**: if all visible pixels have one color, opaque pixels are anomalous. Otherwise, transparent pixels are
  background, and colors decide.
- **Orientation**: an EXIF rotation of the mask is applied. A mask of the size of its image's pixels before their own
  EXIF rotation is rotated with them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from scipy import ndimage

from aprilcli.errors import InputError
from aprilcli.io.datasets import LabeledImage
from aprilcli.io.images import DECODER_ERRORS, TRANSPOSE_BY_ORIENTATION

LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
MAX_CLASS = 32  # the largest value that is a class number wherever it occurs
FEW_VALUES = MAX_CLASS + 1  # distinct values above 0, at most, of a mask of classes without noise
DARK = 8  # the largest channel value of black
IMPLAUSIBLE_SHARE = 0.9  # of an image's pixels

NOTE_CUT = (
    "have values between black and white from compression or soft edges: pixels above half of the maximum are anomalous"
)
NOTE_DARK = "are compressed with loss and nearly black: class numbers are damaged; save masks as PNG"
NOTE_LARGE = "mark nearly the whole image or its border; if they are inverted, invert them"
NOTE_PALETTE = "have a palette whose first color is not black: the color that covers most of the border is background"
NOTE_BACKGROUND = "have a border of one color that is not gray: this color is background"
NOTE_ALPHA = "are transparent: opaque pixels are anomalous"
NOTE_ROTATED = "have the size of their image before its EXIF rotation: rotated like the image"
NOTE_ORIENTATION = (
    "belong to images with an EXIF rotation: whether the mask was drawn before or after the rotation cannot be known "
    "from its size; it is used as it is; compare a mask with its image, or save the images without EXIF rotation"
)


def read_mask(
    image: LabeledImage, size_hw: tuple[int, int], on_note: Callable[[str], None] | None = None
) -> NDArray[np.bool_]:
    """Return the anomalous pixels of an image of size ``size_hw`` (H, W in pixels) as bool [H, W].

    Several masks are combined; a good image without masks gives all False. ``on_note`` is called with each ``NOTE_``
    that applies. Raises InputError, naming both files, if a mask has another size or cannot be read, if it is missing
    or empty for an anomalous image, or not empty for a good image.
    """
    anomalous = np.zeros(size_hw, dtype=bool)
    notes: list[str] = []
    for path in image.mask_paths:
        anomalous |= _read_mask_file(path, image.path, size_hw, notes)
    masks = ", ".join(str(path) for path in image.mask_paths)
    if image.label and not image.mask_paths:
        raise InputError(f"{image.path}: labeled {image.defect} but without a mask; add a mask")
    if image.label and not anomalous.any():
        raise InputError(f"{masks}: empty mask, but {image.path} is labeled {image.defect}; correct one of them")
    if not image.label and anomalous.any():
        raise InputError(f"{masks}: marks a defect, but {image.path} is labeled good; correct one of them")
    share, border = anomalous.mean(), _border(anomalous).mean()
    if share >= IMPLAUSIBLE_SHARE or (share > 0.5 and border >= IMPLAUSIBLE_SHARE):
        notes.append(NOTE_LARGE)
    if on_note is not None:
        for note in dict.fromkeys(notes):
            on_note(note)
    return anomalous


def _read_mask_file(path: Path, image_path: Path, size_hw: tuple[int, int], notes: list[str]) -> NDArray[np.bool_]:
    try:
        with Image.open(path) as opened:
            opened.load()
            is_lossy = opened.format in LOSSY_FORMATS and not _is_lossless_webp(path)
            has_orientation = _orientation(opened) != 1
            mask: Image.Image = ImageOps.exif_transpose(opened)
            mask = _rotated_like_image(mask, has_orientation, image_path, size_hw, notes)
            if (mask.height, mask.width) != size_hw:
                found, wanted = f"{mask.width} by {mask.height}", f"{size_hw[1]} by {size_hw[0]}"
                raise InputError(f"{path}: mask of {found} pixels for {image_path} of {wanted}; make the sizes equal")
            return _anomalous(mask, is_lossy, notes)
    except InputError:
        raise
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot read the mask of {image_path} ({error}); replace it") from error


def _is_lossless_webp(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    return head[8:12] == b"WEBP" and b"VP8L" in head


def _orientation(pil_image: Image.Image) -> int:
    try:
        return int(pil_image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODER_ERRORS:
        return 1


def _rotated_like_image(
    mask: Image.Image, has_orientation: bool, image_path: Path, size_hw: tuple[int, int], notes: list[str]
) -> Image.Image:
    """Rotate a mask that was drawn before the image's EXIF rotation, where sizes show it; note where they cannot."""
    if has_orientation:
        return mask
    try:
        with Image.open(image_path) as pil_image:
            orientation = _orientation(pil_image)
    except (*DECODER_ERRORS, Image.DecompressionBombError):  # not in a format that Pillow reads
        return mask
    if orientation not in TRANSPOSE_BY_ORIENTATION:
        return mask
    height, width = size_hw
    swaps_sides = orientation >= 5
    if swaps_sides and height != width:
        if (mask.height, mask.width) == (width, height):
            notes.append(NOTE_ROTATED)
            return mask.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    elif (mask.height, mask.width) == size_hw:
        notes.append(NOTE_ORIENTATION)
    return mask


def _anomalous(mask: Image.Image, is_lossy: bool, notes: list[str]) -> NDArray[np.bool_]:
    """Return the anomalous pixels of a decoded mask, as the module's docstring states."""
    visible = None
    if mask.has_transparency_data:
        alpha = np.asarray(mask.convert("RGBA"))[..., 3]
        if alpha.min() < alpha.max():
            colors = np.asarray(mask.convert("RGBA"))[alpha > 0][:, :3]
            if (colors == colors[0]).all():
                notes.append(NOTE_ALPHA)
                return _marked(alpha, False, notes)
            visible = alpha > 0
    if mask.mode in ("P", "PA"):
        values = _palette_values(mask, notes)
    else:
        values = np.asarray(mask)
        if values.ndim == 3:
            channels = values[..., :-1] if mask.mode in ("RGBA", "LA", "La") else values
            if (background := _colored_background(channels)) is not None:
                notes.append(NOTE_BACKGROUND)
                return np.asarray((channels != background).any(axis=-1))
            values = channels.max(axis=-1)
    marked = _marked(values, is_lossy, notes)
    return marked if visible is None else marked & visible


def _palette_values(mask: Image.Image, notes: list[str]) -> NDArray[Any]:
    """Return the values of a palette mask: 0 for its background, otherwise the gray shown or the index."""
    indices = np.asarray(mask.getchannel(0) if mask.mode == "PA" else mask).astype(np.int64)
    palette = np.array(mask.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    present = np.unique(indices)
    if not len(palette) or present[-1] >= len(palette):
        return indices
    black = [int(index) for index in present if palette[index].max() <= DARK]
    if 0 in black or not black:
        background = 0
    else:
        notes.append(NOTE_PALETTE)
        border = _border(indices)
        background = max((*black, 0), key=lambda index: np.count_nonzero(border == index))
    shown = palette[present]
    if palette[background].max() <= DARK and (shown == shown[:, :1]).all() and len(present) > 2:
        gray = palette[:, 0].astype(np.int64)
        gray[background] = 0
        return gray[indices]
    return np.where(indices == background, 0, np.where(indices == 0, 1, indices))


def _colored_background(channels: NDArray[Any]) -> NDArray[Any] | None:
    """Return the color of the border of an image of few colors [H, W, C]; None if it is gray or not one color."""
    border = _border(channels)
    color = border[0]
    if (color == color[0]).all() or (border != color).any():
        return None
    return color if len(np.unique(channels.reshape(-1, channels.shape[-1]), axis=0)) <= FEW_VALUES else None


def _border(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the outermost pixels."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def _marked(values: NDArray[Any], is_lossy: bool, notes: list[str]) -> NDArray[np.bool_]:
    """Return the pixels above 0, or above half of the maximum if lower values are only soft edges or noise."""
    positive = np.asarray(values > 0)
    if values.dtype == bool or not positive.any():
        return positive
    largest = float(values.max())
    if is_lossy and largest <= MAX_CLASS:
        notes.append(NOTE_DARK)
    weak = positive & (values < largest / 2)
    if not weak.any() or (not is_lossy and _has_only_class_numbers(values, largest)):
        return positive
    # Below this, a value in a file with many values is noise.
    floor = _lowest_class(values, weak, is_lossy, largest)
    if floor is None:
        notes.append(NOTE_CUT)
        return np.asarray(values > largest / 2)
    if floor > 0:
        notes.append(NOTE_CUT.replace("half", f"{floor / largest:.0%}"))
    return np.asarray(values > floor)


def _has_only_class_numbers(values: NDArray[Any], largest: float) -> bool:
    """Return whether all values are class numbers; the largest may be 255, for pixels to ignore or another class."""
    numbers = np.unique(values)
    if (numbers != np.round(numbers)).any():
        return False
    return len(numbers) <= FEW_VALUES + 1 and bool(((numbers <= MAX_CLASS) | (numbers == largest)).all())


def _lowest_class(values: NDArray[Any], weak: NDArray[np.bool_], is_lossy: bool, largest: float) -> float | None:
    """Return the value above which pixels belong to a class; None if the weak pixels are edges or noise."""
    square = np.ones((3, 3), dtype=bool)
    strong = values >= largest / 2
    far = weak & ~ndimage.binary_dilation(strong, square, iterations=2)
    numbers = values.astype(np.float64)
    variation = ndimage.maximum_filter(numbers, 3) - ndimage.minimum_filter(numbers, 3)
    has_few_values = not is_lossy and len(np.unique(values)) <= FEW_VALUES + 1
    bright = far & (values >= 0.2 * largest)
    count = np.count_nonzero(weak)
    if has_few_values:
        faint = far & ~bright & (variation == 0)
        is_class = np.count_nonzero(bright) > 0.05 * count or np.count_nonzero(faint) > 0.3 * count
        return 0.0 if is_class else None
    flat = bright & (variation <= (0.05 if is_lossy else 0.02) * largest)
    return 0.1 * largest if np.count_nonzero(flat) > 0.05 * count else None
