"""Images as factory cameras write them: decoded, upright, in sRGB, resized to the model's input."""

from __future__ import annotations

import logging
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import SEEK_CUR, BytesIO
from itertools import islice, product
from math import isfinite
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from aprilcli.defaults import MAX_PIXELS
from aprilcli.errors import InputError, OptionError
from aprilcli.io.heif import is_heif_supported, read_heif
from aprilcli.io.high_bit_depth import (
    StoredPixels,
    check_size,
    needs_tifffile,
    read_stored_pixels,
    read_tiff,
    to_eight_bit,
    uses_little_of_its_range,
)
from aprilcli.io.image_formats import HEAD, format_of
from aprilcli.io.tiff_pages import ImagePages, find_pages
from aprilcli.text import printable

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF", "AVIF")  # Pillow's names of the formats that are read
FORMAT_NAMES = ("JPEG", "PNG", "TIFF", "BMP", "WebP", "GIF", "AVIF", "PNM")  # the same as ``format_of`` names them
MAX_SCANS = 100  # of a JPEG; encoders use about ten, and each costs a pass over all pixels
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # not 0xff 0 nor a restart marker, which occur in coded data
BLOCK_BYTES = 1 << 20  # of a JPEG searched at a time
HDR_PROFILE = re.compile(rb"colrnclx..(?:\0\x10|\0\x12)", re.DOTALL)  # of an AVIF or HEIC: PQ or HLG
HIGH_BIT_AVIF = re.compile(rb"av1C..[\x40-\x7f\xc0-\xff]", re.DOTALL)
PROPERTY_BYTES = 1 << 16  # of an AVIF or HEIC: its properties precede its coded data
MAX_REASON = 200  # characters
NOTE_PAGES = "images with several pages: only the first page is used"
NOTE_HDR = "HDR images (PQ or HLG): read as if they were sRGB; export them as SDR"
NOTE_RANGE = (
    "images of more than 8 bits that use less than a quarter of their range: if they are too dark, state which values "
    "are black and white with a value range"
)
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
    logging.getLogger(_decoder).propagate = False  # other libraries print what reaches the root logger


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
    """Decode a JPEG, PNG, TIFF, BMP, WebP, GIF, AVIF or PNM image, or a HEIC image if pillow-heif is installed.

    The content decides which, not the name. The result is upright, on white where transparent, in sRGB, and the first
    page or frame of several. More than 8 bits are scaled linearly to 8: from ``value_range`` (black, white), or else
    from the range that the file declares, or from the type's range ([0, 1] for floats).
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
    head = file.read(HEAD)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":  # Pillow allocates the canvas when it opens the file
        check_size(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1, max_pixels)
    name = format_of(head)
    if name == "GIF":
        _check_gif(file, max_pixels)
    if name == "camera raw":  # Pillow would read the preview of some
        raise InputError(_why_unknown(head))
    file.seek(0)
    try:
        opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if name == "TIFF":
            return _decode_tiff(file, value_range, max_pixels)
        if name == "HEIC" and is_heif_supported():
            return _decode_heif(file, value_range, max_pixels)
        raise InputError(_why_unknown(head)) from None
    with opened as pil_image:
        pages = _image_pages(file, pil_image)
        if pages.indexes[0] > 0:
            pil_image.seek(pages.indexes[0])
        _check_limits(file, pil_image, max_pixels)
        if needs_tifffile(pil_image) or len(pages.indexes) > 1:
            return _decode_tiff(file, value_range, max_pixels)
        notes = [NOTE_PAGES] if pages.has_more else []
        if pil_image.format == "AVIF":
            _check_avif(file, value_range, notes)
        pixels = read_stored_pixels(file, pil_image)
        if pixels is None:
            pil_image.load()
        decoded = pil_image if pixels is None else _eight_bit(pixels, value_range, notes)
        rgb = _to_rgb(decoded, pil_image.info.get("icc_profile"), notes)
        return SourceImage(_upright(rgb, _orientation(pil_image, notes)), tuple(notes))


def _decode_tiff(file: BinaryIO, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    pages = find_pages(file)
    image = read_tiff(file, pages.indexes, max_pixels)
    notes = [NOTE_PAGES] if pages.has_more else []
    rgb = _to_rgb(_eight_bit(image.pixels, value_range, notes), image.profile, notes)
    return SourceImage(_upright(rgb, image.orientation), tuple(notes))


def _decode_heif(file: BinaryIO, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    try:
        image = read_heif(file, max_pixels)
    except (ValueError, RuntimeError, SyntaxError, EOFError) as error:  # of libheif
        raise InputError(_damaged("HEIC")) from error
    notes = [NOTE_PAGES] if image.has_more else []
    _note_hdr(file, notes)
    return SourceImage(_to_rgb(_eight_bit(image.pixels, value_range, notes), image.profile, notes), tuple(notes))


def _eight_bit(pixels: StoredPixels, value_range: tuple[float, float] | None, notes: list[str]) -> Image.Image:
    if value_range is None and uses_little_of_its_range(pixels):
        notes.append(NOTE_RANGE)
    return to_eight_bit(pixels, value_range)


def _damaged(name: str) -> str:
    return f"a damaged {name} image, or an unsupported kind of {name}; save or copy it again"


def _why_unknown(head: bytes) -> str:
    """Return why a file that Pillow cannot open is refused, and what to do."""
    name = format_of(head)
    if name == "JPEG":
        return "a damaged JPEG, or an unsupported kind (12 bit, lossless); save it as an 8-bit JPEG or as PNG"
    if name in FORMAT_NAMES:
        return _damaged(name)
    if name == "HEIC":
        return "a HEIC image; install the extra 'heif' (the package pillow-heif), or save it as JPEG or PNG"
    if name is not None:
        return f"{name} is not a supported format; save it as JPEG, PNG or TIFF"
    known = "JPEG, PNG, TIFF, BMP, WebP, GIF, AVIF, HEIC, PGM, PPM"
    return f"not an image, or not in a supported format ({known}); save it in one of these"


def _check_limits(file: BinaryIO, pil_image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuse files whose decoding would take excessive memory or time."""
    check_size(pil_image.width, pil_image.height, max_pixels)
    if isinstance(pil_image, TiffImagePlugin.TiffImageFile):
        check_size(pil_image.tag_v2.get(322, 1), pil_image.tag_v2.get(323, 1), max_pixels)  # a tile
    # Without mapping the file into memory, which some network file systems refuse.
    if pil_image.format in ("JPEG", "MPO") and sum(1 for _ in islice(_scans(file), MAX_SCANS + 1)) > MAX_SCANS:
        raise InputError(f"a JPEG of more than {MAX_SCANS} scans; save it again")


def _scans(file: BinaryIO) -> Iterator[int]:
    """Find each scan of a JPEG, marker by marker, up to the end of the image; yield its length field."""
    content, position = b"", 2
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        content, position = content[position:] + block, max(0, position - len(content))
        while (marker := MARKER.search(content, position)) and marker.end() + 2 <= len(content):
            if marker[0] == END_OF_IMAGE:
                return
            length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
            if marker[0] == START_OF_SCAN:
                yield length
            position = marker.end() + length
        # The rest may hold the start of a marker.
        position = marker.start() if marker else max(position, len(content) - 1)


def _check_gif(file: BinaryIO, max_pixels: int) -> None:
    """Refuse a canvas or first frame of too many pixels: Pillow may allocate it when it opens the file."""
    file.seek(6)
    width, height, flags = struct.unpack("<HHB2x", file.read(7).ljust(7, b"\0"))
    check_size(width, height, max_pixels)
    file.seek(3 << (flags & 7) + 1 if flags & 0x80 else 0, SEEK_CUR)  # the palette
    while (block := file.read(1)) not in (b"", b";"):  # like Pillow, skips bytes between blocks
        if block == b"!":  # an extension
            file.read(1)
            while length := int.from_bytes(file.read(1)):
                file.seek(length, SEEK_CUR)
        elif block == b",":
            left, top, width, height = struct.unpack("<4H", file.read(8).ljust(8, b"\0"))
            check_size(left + width, top + height, max_pixels)
            return


def _check_avif(file: BinaryIO, value_range: tuple[float, float] | None, notes: list[str]) -> None:
    """Refuse a range for values that Pillow has scaled to 8 bits."""
    file.seek(0)
    if value_range is not None and HIGH_BIT_AVIF.search(file.read(PROPERTY_BYTES)):
        raise InputError("a value range cannot be applied to an AVIF of more than 8 bits; save it as PNG or TIFF")
    _note_hdr(file, notes)


def _note_hdr(file: BinaryIO, notes: list[str]) -> None:
    file.seek(0)
    if HDR_PROFILE.search(file.read(PROPERTY_BYTES)):
        notes.append(NOTE_HDR)


def _image_pages(file: BinaryIO, pil_image: ImageFile.ImageFile) -> ImagePages:
    """Return which pages or frames to use: the first, except for a TIFF that says otherwise."""
    if pil_image.format == "MPO":  # the second view of a stereo camera
        return ImagePages()
    try:
        if isinstance(pil_image, TiffImagePlugin.TiffImageFile):
            return find_pages(file)
        return ImagePages(has_more=bool(getattr(pil_image, "is_animated", False)))
    except InputError:
        raise
    except DECODER_ERRORS:  # a damaged frame, which does not matter here, or a TIFF that Pillow may still read
        return ImagePages(has_more=not isinstance(pil_image, TiffImagePlugin.TiffImageFile))


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
    image: SourceImage,
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.float32]:
    """Resize to S×S (no crop, aspect ratio not kept), divide by 255, normalize by mean and std: [3, S, S] float32.

    Bicubic with antialiasing, as Pillow resizes 8-bit images. ``box``: left, top, right and bottom of the part to
    resize, in source pixels; by default the whole image.
    """
    resized = image.rgb.resize((image_size, image_size), Image.Resampling.BICUBIC, box)
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
