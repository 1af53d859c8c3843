"""Images as factory cameras write them: decoded, upright, in sRGB, resized to the model's input."""

from __future__ import annotations

import logging
import mmap
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from itertools import islice, product
from math import isfinite
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from aprilcli.defaults import MAX_PIXELS
from aprilcli.errors import InputError, OptionError
from aprilcli.io.high_bit_depth import check_size, needs_tifffile, read_stored_pixels, read_tiff, to_eight_bit
from aprilcli.text import printable

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")  # Pillow's names of the formats that are read
MAX_SCANS = 100  # of a JPEG; encoders use about ten, and each costs a pass over all pixels
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # not 0xff 0 nor a restart marker, which occur in coded data
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_REASON = 200  # characters
NOTE_PAGES = "images with several pages: only the first page is used"
NOTE_TRANSPARENT = "transparent images: placed on a white background"
NOTE_PROFILE = "images with a damaged or unsuitable color profile: the profile is ignored"
NOTE_EXIF = "images with damaged EXIF data: their rotation is ignored"
TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # the EXIF orientations that are not upright
# What Pillow and tifffile raise for damaged files, or warn of where warnings are errors.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    Warning,
    struct.error,
    zlib.error,
)

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns below ours, and cannot be raised per call
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 1024**2  # bytes; editors write more metadata than Pillow's default of 1 MB
for _decoder in ("PIL", "tifffile"):  # our messages replace what they log of damaged files
    logging.getLogger(_decoder).addHandler(logging.NullHandler())


@dataclass(frozen=True)
class SourceImage:
    """A decoded image: ``rgb`` has 8 bits, upright, sRGB; ``notes`` list what was changed or ignored."""

    rgb: Image.Image = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels, after the EXIF rotation."""
        return self.rgb.height, self.rgb.width


def read_image(
    path: Path, *, value_range: tuple[float, float] | None = None, max_pixels: int = MAX_PIXELS
) -> SourceImage:
    """Decode a JPEG, PNG, TIFF, BMP, WebP or PNM image; the content decides which, not the name.

    The result is upright (EXIF), on white where transparent, in sRGB, and the first page of several. More than 8 bits
    are scaled linearly to 8: from the type's range ([0, 1] for floats), or from ``value_range`` (black, white).
    Raises InputError, one line, if the file cannot be decoded or has more than ``max_pixels`` pixels; OptionError for
    an invalid ``value_range``; MemoryError if memory is short, whether or not the file is damaged.
    """
    if value_range is not None and not (isfinite(value_range[1] - value_range[0]) and value_range[0] < value_range[1]):
        given = f"value range {value_range[0]:g},{value_range[1]:g}"
        raise OptionError(f"{given}: give two numbers, the smaller number first")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise InputError("not a file; remove it from the folder")
        if status.st_size == 0:
            raise InputError("the file is empty; save or copy it again")
        with path.open("rb") as file:
            return _decode(file, value_range, max_pixels)
    except InputError as error:
        raise InputError(f"{printable(path)}: {printable(str(error))[:MAX_REASON]}") from None
    except DECODER_ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        reason = printable(" ".join(reason.split()))[:MAX_REASON]
        raise InputError(f"{printable(path)}: cannot be read as an image ({reason}); save or copy it again") from error


def _decode(file: BinaryIO, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    head = file.read(30)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":  # Pillow allocates the canvas when it opens the file
        check_size(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1, max_pixels)
    file.seek(0)
    try:
        opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if head.startswith(TIFF_SIGNATURES):
            return _decode_tiff(file, value_range, max_pixels)
        raise InputError(_why_unknown(head)) from None
    with opened as pil_image:
        _check_limits(file, pil_image, max_pixels)
        if needs_tifffile(pil_image):
            return _decode_tiff(file, value_range, max_pixels)
        notes = [NOTE_PAGES] if getattr(pil_image, "is_animated", False) and pil_image.format != "MPO" else []
        pixels = read_stored_pixels(file, pil_image)
        if pixels is None:
            pil_image.load()
        decoded = pil_image if pixels is None else to_eight_bit(pixels, value_range)
        rgb = _to_rgb(decoded, pil_image.info.get("icc_profile"), notes)
        return SourceImage(_upright(rgb, _orientation(pil_image, notes)), tuple(notes))


def _decode_tiff(file: BinaryIO, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    page = read_tiff(file, max_pixels)
    notes = [NOTE_PAGES] if page.has_more else []
    rgb = _to_rgb(to_eight_bit(page.pixels, value_range), page.profile, notes)
    return SourceImage(_upright(rgb, page.orientation), tuple(notes))


def _why_unknown(head: bytes) -> str:
    if head.startswith(b"\xff\xd8\xff"):
        return "a damaged JPEG, or an unsupported kind (12 bit, lossless); save it as an 8-bit JPEG or as PNG"
    if head.startswith(b"\x89PNG"):
        return "a damaged PNG; save or copy it again"
    known = "JPEG, PNG, TIFF, BMP, WebP, PGM, PPM"
    return f"not an image, or not in a supported format ({known}); save it in one of these"


def _check_limits(file: BinaryIO, pil_image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuse files whose decoding would take excessive memory or time."""
    check_size(pil_image.width, pil_image.height, max_pixels)
    if isinstance(pil_image, TiffImagePlugin.TiffImageFile):
        check_size(pil_image.tag_v2.get(322, 1), pil_image.tag_v2.get(323, 1), max_pixels)  # a tile
    if pil_image.format in ("JPEG", "MPO"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Counting the marker's two bytes is cheap, but includes thumbnails and trailing data: then count exactly.
            if all(sum(1 for _ in islice(find(content), MAX_SCANS + 1)) > MAX_SCANS for find in (_markers, _scans)):
                raise InputError(f"a JPEG of more than {MAX_SCANS} scans; save it again")


def _markers(content: mmap.mmap) -> Iterator[int]:
    """Find the two bytes of a start-of-scan marker anywhere in a file."""
    position = -1
    while (position := content.find(START_OF_SCAN, position + 1)) >= 0:
        yield position


def _scans(content: mmap.mmap) -> Iterator[int]:
    """Find the start of each scan of a JPEG, marker by marker, up to the end of the image."""
    position = 2
    while (marker := MARKER.search(content, position)) and marker[0] != END_OF_IMAGE:
        if marker[0] == START_OF_SCAN:
            yield marker.start()
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length


def _orientation(pil_image: ImageFile.ImageFile, notes: list[str]) -> int:
    """Read the EXIF orientation; for a TIFF, Pillow has rotated the image and removed the tag."""
    try:
        return int(pil_image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODER_ERRORS:
        notes.append(NOTE_EXIF)
        return 1


def _upright(rgb: Image.Image, orientation: int) -> Image.Image:
    return rgb.transpose(TRANSPOSE_BY_ORIENTATION[orientation]) if orientation in TRANSPOSE_BY_ORIENTATION else rgb


def _to_rgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert to sRGB, and place transparent images on white."""
    if image.mode == "La":  # premultiplied
        image = image.convert("LA")
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # many programs leave the unused fourth byte at 0
    if not image.has_transparency_data:
        return _to_srgb(image, profile, notes)
    rgba = image.convert("RGBA")
    color = image.convert("L") if image.mode in ("1", "L", "LA") else rgba.convert("RGB")
    rgb, alpha = _to_srgb(color, profile, notes), rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgb
    notes.append(NOTE_TRANSPARENT)
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            mode, transform = _transform_to_srgb(profile, image.mode)
            if transform is not None:
                return transform.apply(image.convert(mode))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append(NOTE_PROFILE)
    return image.convert("RGB")


@lru_cache(maxsize=16)  # most images of a folder share a profile
def _transform_to_srgb(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Build the transform from a profile to sRGB, and name its input mode; no transform if the profile is sRGB."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if source.profile.xcolor_space.strip() == "RGB" and mode == "L":
        mode = "RGB"  # gray images are often saved with an RGB profile
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":  # sRGB to sRGB would only add rounding errors; detected by its effect, as names can be wrong
        before = np.array(list(product(range(0, 256, 51), repeat=3)), dtype=np.uint8)[None]
        after = np.asarray(transform.apply(Image.fromarray(before)))
        if np.abs(before.astype(int) - after).max() <= 2:
            return mode, None
    return mode, transform


def to_pixels(
    image: SourceImage, image_size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Resize to S×S (no crop, aspect ratio not kept), divide by 255, normalize by mean and std: [3, S, S] float32.

    Bicubic with antialiasing, as Pillow resizes 8-bit images.
    """
    resized = image.rgb.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return normalize(np.asarray(resized), mean, std)


def normalize(
    stored: NDArray[np.uint8], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Divide by 255, and normalize by mean and std: [..., H, W, 3] uint8 to [..., 3, H, W] float32."""
    pixels = stored.astype(np.float32) / 255
    normalized = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(normalized, -1, -3))


def stored_pixels(
    pixels: NDArray[np.float32], mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """Undo ``normalize``: it gives the same ``pixels`` again."""
    scaled = np.moveaxis(pixels, -3, -1).astype(np.float64) * std + mean
    rounded: NDArray[np.uint8] = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return rounded
