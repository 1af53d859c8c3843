"""Pictures as factory cameras write them: found, decoded, squashed to the model's input."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from aprilcli.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".pbm", ".pnm"}
)
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")  # what content may be; no format that runs code
MAX_PIXELS = 100_000_000  # of a picture, before it is decoded: 300 MB of RGB
SIXTEEN_BIT = 65535
# What Pillow and tifffile raise on bytes of anybody's making.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)

Image.MAX_IMAGE_PIXELS = (
    None  # our own limit is checked before decoding; Pillow's cannot be raised by a picture's owner
)


@dataclass(frozen=True)
class FoundImage:
    """A file to score: its path, its path relative to the folder (with ``/``), or why it cannot be reached."""

    path: Path
    relative: str
    error: str | None = None


@dataclass(frozen=True)
class SourceImage:
    """A decoded picture: ``rgb`` 8 bit, upright, sRGB; ``notes`` says what was done to it beyond decoding."""

    rgb: Image.Image = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels, after the camera's rotation."""
        return self.rgb.height, self.rgb.width


def find_images(folder: Path, *, follow: bool = False) -> Iterator[FoundImage]:
    """Walk a folder: every picture below it, sorted by relative path, one folder's names in memory at a time.

    Pictures are known by their extension, in any case. Names with a leading dot are skipped. Linked folders are
    entered only with ``follow``, and never twice on one path. A folder that cannot be listed comes with its ``error``.
    """
    yield from _walk(folder, "", follow, frozenset())


def _walk(folder: Path, prefix: str, follow: bool, above: frozenset[tuple[int, int]]) -> Iterator[FoundImage]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in above:
            return
        above |= {(status.st_dev, status.st_ino)}
        with os.scandir(folder) as entries:
            # A folder sorts as its name with a slash, so that the whole walk is in the order of the relative paths.
            names = sorted(entry.name + "/" * _is_folder(entry, follow) for entry in entries if _wanted(entry, follow))
    except OSError as error:
        reason = error.strerror or str(error)
        yield FoundImage(folder, prefix.rstrip("/") or ".", f"{folder}: cannot be listed ({reason})")
        return
    for name in names:
        if name.endswith("/"):
            yield from _walk(folder / name, prefix + name, follow, above)
        else:
            yield FoundImage(folder / name, prefix + name)


def _is_folder(entry: os.DirEntry[str], follow: bool) -> bool:
    return entry.is_dir(follow_symlinks=follow)


def _wanted(entry: os.DirEntry[str], follow: bool) -> bool:
    if entry.name.startswith("."):
        return False
    if _is_folder(entry, follow):
        return True
    return Path(entry.name).suffix.lower() in SUFFIXES and not entry.is_dir()


def read_image(
    path: Path, *, value_range: tuple[float, float] | None = None, max_pixels: int = MAX_PIXELS
) -> SourceImage:
    """Decode a picture; its content decides the format, not its name.

    Upright (EXIF), alpha on white, colour profiles to sRGB, the first page of many. Sixteen-bit and float pictures
    are scaled linearly to 8 bit: from their type's range ([0, 1] for floats), or from ``value_range``. Raises
    InputError, one line, for whatever cannot be decoded or has more than ``max_pixels`` pixels.
    """
    try:
        # Read whole: a file that changes or vanishes while it is decoded cannot surprise the decoder.
        return _decode(path, path.read_bytes(), value_range, max_pixels)
    except InputError:
        raise
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be read as a picture ({' '.join(str(reason).split())[:200]})") from error


def _decode(path: Path, content: bytes, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    if not content:
        raise InputError(f"{path}: the file is empty")
    try:
        picture = Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        if not content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            raise InputError(
                f"{path}: not a picture in a known format (JPEG, PNG, TIFF, BMP, WebP, PGM, PPM)"
            ) from None
        return _decode_tiff(path, content, value_range, max_pixels)  # Pillow knows no 16-bit colour TIFF
    with picture:
        _check_size(path, picture.width, picture.height, max_pixels)
        notes = []
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            notes.append("pictures of several pages: the first page is scored")
        picture.load()
        profile = picture.info.get("icc_profile")
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            scaled = _to_eight_bit(path, np.asarray(upright), picture.format or "", value_range)
            return SourceImage(Image.fromarray(scaled).convert("RGB"), tuple(notes))
        opaque = _on_white(upright, notes)
        return SourceImage(_to_srgb(opaque, profile, notes), tuple(notes))


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InputError(
            f"{path}: {width} x {height} pixels are more than the limit of {max_pixels:,}; raise it with --max-pixels"
        )


def _decode_tiff(path: Path, content: bytes, value_range: tuple[float, float] | None, max_pixels: int) -> SourceImage:
    with tifffile.TiffFile(BytesIO(content)) as tiff:
        page = tiff.pages[0]
        _check_size(path, page.imagewidth, page.imagelength, max_pixels)
        values = page.asarray()
        notes = ("pictures of several pages: the first page is scored",) if len(tiff.pages) > 1 else ()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3 and values.shape[2] > 3:
        raise InputError(f"{path}: a TIFF of {values.shape[2]} channels of {values.dtype}; save it as RGB")
    eight_bit = _to_eight_bit(path, values, "TIFF", value_range)
    return SourceImage(Image.fromarray(eight_bit).convert("RGB"), notes)


def _to_eight_bit(
    path: Path, values: NDArray[np.generic], file_format: str, value_range: tuple[float, float] | None
) -> NDArray[np.uint8]:
    """Scale linearly. A 16-bit picture and its 8-bit copy come out the same."""
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite values")
    if value_range is not None:
        low, high = value_range
    elif values.dtype.kind == "f":
        low, high = 0.0, 1.0
        if values.min() < low or values.max() > high:
            found = f"{values.min():g} to {values.max():g}"
            raise InputError(
                f"{path}: float values from {found}, not in [0, 1]; say what is black and white: --range LO,HI"
            )
    elif values.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif values.dtype.newbyteorder("=") == np.uint16 or file_format in (
        "PNG",
        "PPM",
    ):  # Pillow widens these two to 32 bit
        low, high = 0.0, float(SIXTEEN_BIT)
    else:
        raise InputError(f"{path}: {values.dtype} values; say which are black and white: --range LO,HI")
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _on_white(picture: Image.Image, notes: list[str]) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    layered = picture.convert("RGBA")
    if layered.getchannel("A").getextrema() == (255, 255):
        return layered.convert("RGB")
    notes.append("transparent pictures: scored on white")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _to_srgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if profile and picture.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            notes.append("pictures with a colour profile that cannot be applied: it is left out")
        else:
            if converted is not None:
                return converted
    return picture.convert("RGB")


def to_pixels(
    picture: SourceImage, image_size: int, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> NDArray[np.float32]:
    """Squash to S×S (no crop, no aspect; bicubic with antialias, as Pillow does it) and normalise: [3, S, S]."""
    squashed = picture.rgb.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(squashed, dtype=np.float32) / 255
    normalised = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))
