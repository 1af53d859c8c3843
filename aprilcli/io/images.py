"""Pictures as factory cameras write them: decoded, upright, in sRGB, squashed to the model's input."""

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

from aprilcli.errors import InputError, OptionError
from aprilcli.io.high_bit_depth import FORMATS, check_size, read_samples, read_tiff, to_eight_bit
from aprilcli.text import printable

# Of a picture, looked up before it is decoded: 300 MB of RGB; while 16 bits or floats are scaled, up to 20 times that.
MAX_PIXELS = 100_000_000
MAX_SCANS = 100  # of a JPEG; encoders use about ten, and each costs a pass over all pixels
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # in coded data 0xff is followed by 0, or by a restart's number
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LONGEST_REASON = 200  # characters
SOME_PAGE = "pictures of several pages: the first page is scored"
TRANSPARENT = "transparent pictures: scored on white"
NO_PROFILE = "pictures with a colour profile that cannot be applied: it is left out"
NO_EXIF = "pictures with damaged EXIF data: their rotation is left out"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation; 1 is upright
# What Pillow and tifffile raise, or warn of, on bytes of anybody's making.
UNREADABLE = (
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

Image.MAX_IMAGE_PIXELS = None  # our limit is checked before decoding; Pillow's would warn below it and refuse above
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 1024**2  # bytes; editors leave more than Pillow's 1 MB of notes and profile
for _decoder in ("PIL", "tifffile"):  # what they log of damaged files is said in our own line
    logging.getLogger(_decoder).addHandler(logging.NullHandler())


@dataclass(frozen=True)
class SourceImage:
    """A decoded picture: ``rgb`` 8 bit, upright, sRGB; ``notes`` says what was done to it beyond decoding."""

    rgb: Image.Image = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels, after the camera's rotation."""
        return self.rgb.height, self.rgb.width


def read_image(
    path: Path, *, value_range: tuple[float, float] | None = None, max_pixels: int = MAX_PIXELS
) -> SourceImage:
    """Decode a JPEG, PNG, TIFF, BMP, WebP or PNM picture; its content decides which, not its name.

    Upright (EXIF), alpha on white, colour profiles to sRGB, the first page of many. Samples of more than 8 bits are
    scaled linearly to 8: from their type's range ([0, 1] for floats), or from ``value_range``. Raises InputError, one
    line, for whatever cannot be decoded or has more than ``max_pixels`` pixels; OptionError for a range that is none;
    MemoryError where the picture may be sound.
    """
    if value_range is not None and not (isfinite(value_range[1] - value_range[0]) and value_range[0] < value_range[1]):
        raise OptionError(f"--range {value_range[0]:g},{value_range[1]:g}: give two numbers, the smaller one first")
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise InputError("not a file; remove it from the folder")
        if status.st_size == 0:
            raise InputError("the file is empty; save or copy it anew")
        with path.open("rb") as file:
            return _decode(file, value_range, max_pixels)
    except InputError as error:
        raise InputError(f"{printable(path)}: {printable(str(error))[:LONGEST_REASON]}") from None
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        reason = printable(" ".join(reason.split()))[:LONGEST_REASON]
        raise InputError(f"{printable(path)}: cannot be read as a picture ({reason}); save or copy it anew") from error


def _decode(file: BinaryIO, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    head = file.read(30)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":  # its decoder allocates the canvas at once
        check_size(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1, max_pixels)
    file.seek(0)
    try:
        opened = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if not head.startswith(TIFF_SIGNATURES):
            raise InputError(_why_unknown(head)) from None
        page = read_tiff(file, max_pixels)  # of a kind Pillow does not know
        notes = [SOME_PAGE] if page.has_more else []
        rgb = _to_rgb(to_eight_bit(page.samples, value_range), page.profile, notes)
        return SourceImage(_upright(rgb, page.orientation), tuple(notes))
    with opened as picture:
        _check(file, picture, max_pixels)
        notes = [SOME_PAGE] if getattr(picture, "is_animated", False) and picture.format != "MPO" else []
        wide = read_samples(file, picture)
        if wide is None:
            picture.load()
        decoded = picture if wide is None else to_eight_bit(wide, value_range)
        rgb = _to_rgb(decoded, picture.info.get("icc_profile"), notes)
        return SourceImage(_upright(rgb, _orientation(picture, notes)), tuple(notes))


def _why_unknown(head: bytes) -> str:
    if head.startswith(b"\xff\xd8\xff"):
        return "a damaged JPEG, or of a kind that cannot be read (12 bit, lossless); save it as an 8-bit one, or as PNG"
    if head.startswith(b"\x89PNG"):
        return "a damaged PNG; save or copy it anew"
    known = "JPEG, PNG, TIFF, BMP, WebP, PGM, PPM"
    return f"not a picture, or not in a known format ({known}); save it as one of them"


def _check(file: BinaryIO, picture: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuse what would take memory or time without end."""
    check_size(picture.width, picture.height, max_pixels)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        check_size(picture.tag_v2.get(322, 1), picture.tag_v2.get(323, 1), max_pixels)  # a tile
    if picture.format in ("JPEG", "MPO"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Looking for a scan's two bytes costs little, and finds some too many: in thumbnails, behind the picture.
            if all(sum(1 for _ in islice(find(content), MAX_SCANS + 1)) > MAX_SCANS for find in (_starts, _scans)):
                raise InputError(f"a JPEG of more than {MAX_SCANS} scans; save it again")


def _starts(content: mmap.mmap) -> Iterator[int]:
    position = -1
    while (position := content.find(START_OF_SCAN, position + 1)) >= 0:
        yield position


def _scans(content: mmap.mmap) -> Iterator[int]:
    """Find where each scan of a JPEG begins, marker by marker: what follows the picture is not looked at."""
    position = 2
    while (marker := MARKER.search(content, position)) and marker[0] != END_OF_IMAGE:
        if marker[0] == START_OF_SCAN:
            yield marker.start()
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length


def _orientation(picture: ImageFile.ImageFile, notes: list[str]) -> int:
    """Read the EXIF orientation; Pillow has turned a TIFF already, and taken its tag away."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except UNREADABLE:
        notes.append(NO_EXIF)
        return 1


def _upright(rgb: Image.Image, orientation: int) -> Image.Image:
    return rgb.transpose(TURNS[orientation]) if orientation in TURNS else rgb


def _to_rgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if picture.mode == "La":  # premultiplied
        picture = picture.convert("LA")
    if picture.format == "BMP" and picture.mode == "RGBA" and picture.getchannel("A").getextrema() == (0, 0):
        picture = picture.convert("RGB")  # many programs leave the fourth byte at 0
    if not picture.has_transparency_data:
        return _to_srgb(picture, profile, notes)
    layered = picture.convert("RGBA")
    colour = picture.convert("L") if picture.mode in ("1", "L", "LA") else layered.convert("RGB")
    rgb, alpha = _to_srgb(colour, profile, notes), layered.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgb
    notes.append(TRANSPARENT)
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _to_srgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("RGB")
    if profile:
        try:
            mode, transform = _transform_to_srgb(profile, picture.mode)
            if transform is not None:
                return transform.apply(picture.convert(mode))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append(NO_PROFILE)
    return picture.convert("RGB")


@lru_cache(maxsize=16)  # a folder's pictures mostly share one
def _transform_to_srgb(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Build the way from a profile to sRGB, and name the mode it starts from; None where the profile is sRGB itself."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if source.profile.xcolor_space.strip() == "RGB" and mode == "L":
        mode = "RGB"  # grey pictures are often saved with a profile for colour
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":  # sRGB itself, which would only be rounded; known by what it does, as any may bear the name
        before = np.array(list(product(range(0, 256, 51), repeat=3)), dtype=np.uint8)[None]
        after = np.asarray(transform.apply(Image.fromarray(before)))
        if np.abs(before.astype(int) - after).max() <= 2:
            return mode, None
    return mode, transform


def to_pixels(
    picture: SourceImage, image_size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Squash to S×S (no crop, no aspect), divide by 255, normalise with the model's mean and std: [3, S, S] float32.

    Bicubic with antialias, as Pillow does it on 8 bits.
    """
    squashed = picture.rgb.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(squashed, dtype=np.float32) / 255
    normalised = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))
