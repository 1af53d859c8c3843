"""Samples of more than 8 bits, which Pillow would cut short or saturate: read whole, scaled linearly."""

from __future__ import annotations

import math
import re
import sys
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from aprilcli.errors import InputError

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "PPM")  # what a picture's content may be
MAX_SIDE = 1_000_000  # pixels: a line camera's hour; decoding a longer one takes time out of proportion
WHITE = 65535  # of 16 bits
MOST_COMMENTS = 1 << 16  # bytes, in a text PPM
ROWS_AT_ONCE = 256  # scaled in float64, so that a large picture needs no second copy of that width
TIFF_MODES = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}  # by photometric interpretation
UNPACKED_SAFELY = (1, 8, 32946)  # TIFF compressions: none, two names for deflate; PackBits takes 500 times the file
UNSPECIFIED, PREMULTIPLIED = 0, 1  # what a TIFF's extra channel may be; else it is alpha
SIXTEEN_BIT = (";16L", ";16B", ";16N")  # how Pillow's raw modes of 16-bit samples end; BGR;16 is a pixel of 5-6-5


@dataclass(frozen=True)
class Samples:
    """Pixels as the file holds them: ``values`` [H, W] or [H, W, C], any numeric dtype; ``mode`` names the channels.

    ``black_white``: the values that mean black and white, None where the type does not say; the other way round where
    ``inverted``. An alpha channel always spans the type's range.
    """

    mode: str
    values: NDArray[Any]
    black_white: tuple[float, float] | None
    inverted: bool = False


@dataclass(frozen=True)
class TiffPage:
    """What else a picture is read with: EXIF ``orientation``, colour ``profile``, and whether there are more pages."""

    samples: Samples
    orientation: int
    profile: bytes | None
    has_more: bool


def read_samples(file: BinaryIO, picture: ImageFile.ImageFile) -> Samples | None:
    """Read an opened picture's samples whole, or return None where 8 bits are all it has: then ``load`` it."""
    if not picture.tile:
        return None
    if picture.format == "PPM":
        return _read_pnm(file, picture)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        if _is_beyond_pillow(picture):
            return read_tiff(file, picture.width * picture.height).samples
        if _is_signed_bytes(picture):
            picture.load()
            signed = np.asarray(picture).view(np.int8)  # Pillow takes them for unsigned ones
            return Samples("L", signed, _whole_range(signed.dtype), picture.tag_v2.get(262) == 0)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _read_grey(picture)
    rawmode = _arguments(picture)[0]
    return _read_colour(file, picture, rawmode) if rawmode.endswith(SIXTEEN_BIT) else None


def _is_beyond_pillow(picture: TiffImagePlugin.TiffImageFile) -> bool:
    """Say whether Pillow loses itself in channels stored one by one: of over 8 bits, or uncompressed extra ones."""
    tags = picture.tag_v2
    if tags.get(284) != 2 or tags.get(277, 1) == 1:
        return False
    return max(tags.get(258, (1,))) > 8 or (338 in tags and tags.get(259, 1) == 1)


def _is_signed_bytes(picture: TiffImagePlugin.TiffImageFile) -> bool:
    return picture.mode == "L" and picture.tag_v2.get(258, (1,))[0] == 8 and 2 in picture.tag_v2.get(339, ())


def to_eight_bit(samples: Samples, value_range: tuple[float, float] | None) -> Image.Image:
    """Scale linearly to 8 bit: from ``value_range``, or from what the type says. Raises InputError where neither does.

    Float values without a range must lie in [0, 1]. A 16-bit picture comes out as its 8-bit copy. A range is meant for
    samples of more than 8 bits, and leaves others alone.
    """
    values = samples.values
    black_white = value_range if value_range and values.dtype.itemsize > 1 else samples.black_white
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("holds NaN or infinite values; write it again without them")
    if black_white is None:
        low, high = values.min(), values.max()
        if values.dtype.kind != "f" or low < 0 or high > 1:
            raise InputError(
                f"{values.dtype.name} values from {low:g} to {high:g}; say which are black and white with "
                "--range LO,HI (of scan and enroll)"
            )
        black_white = (0.0, 1.0)
    if samples.mode in ("LA", "RGBA"):
        colour = _scale(values[..., :-1], black_white)
        colour = 255 - colour if samples.inverted else colour
        alpha = _scale(values[..., -1:], samples.black_white or _whole_range(values.dtype))
        scaled = np.concatenate([colour, alpha], axis=-1)
    else:
        scaled = _scale(values, black_white)
        scaled = 255 - scaled if samples.inverted else scaled
    height, width = scaled.shape[:2]
    return Image.frombytes(samples.mode, (width, height), scaled.tobytes())


def _whole_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    return (0.0, 1.0) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))


def _scale(values: NDArray[Any], black_white: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = black_white

    def scale(block: NDArray[Any]) -> NDArray[np.uint8]:
        clipped = np.clip(block.astype(np.float64), low, high)
        rounded: NDArray[np.uint8] = np.rint((clipped - low) / (high - low) * 255).astype(np.uint8)
        return rounded

    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        looked_up: NDArray[np.uint8] = scale(np.arange(WHITE + 1))[values]
        return looked_up
    blocks = range(0, len(values), ROWS_AT_ONCE)
    return np.concatenate([scale(values[top : top + ROWS_AT_ONCE]) for top in blocks])


def _arguments(picture: ImageFile.ImageFile) -> tuple[Any, ...]:
    """Return the decoder's arguments; the first is how the file packs its samples (Pillow's raw mode)."""
    arguments = picture.tile[0].args
    return arguments if isinstance(arguments, tuple) else (arguments or "",)


def _read_grey(picture: ImageFile.ImageFile) -> Samples:
    bits, kind, inverted = 16, 1, False
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits, kind = picture.tag_v2.get(258, (1,))[0], picture.tag_v2.get(339, (1,))[0]
        inverted = picture.tag_v2.get(262) == 0
    rawmode = str(_arguments(picture)[0])
    if picture.tile[0].codec_name == "libtiff" and rawmode.endswith(("BS", "BF")):
        values = _load_as(picture, rawmode[:-2] + "N" + rawmode[-1])  # libtiff has swapped the bytes already
    else:
        picture.load()
        values = np.asarray(picture)
    if "transparency" in picture.info:
        return _with_alpha(values[..., None], picture.info["transparency"])
    if picture.mode == "F":
        return Samples("L", values, None, inverted)
    if bits > 16 and kind == 1:
        values = values.view(np.uint32)
    return Samples("L", values, _range_of(bits, kind == 2), inverted)


def _range_of(bits: int, signed: bool) -> tuple[float, float] | None:
    """Return the type's range; None beyond 16 bits, which no sensor fills."""
    lowest = -(2 ** (bits - 1)) if signed else 0
    return (float(lowest), float(lowest + 2**bits - 1)) if bits <= 16 else None


def _read_colour(file: BinaryIO, picture: ImageFile.ImageFile, rawmode: str) -> Samples:
    """Read 16-bit colour with an 8-bit decoder: once for the upper bytes and once, byte order swapped, for the lower.

    Pillow unpacks ``RGB;16B`` into the first byte of each sample, ``RGB;16L`` into the second.
    """
    layout, _, order = rawmode.partition(";16")
    if layout == "LA":  # has no second order, but two samples of two bytes are four samples of one
        halves = _load_as(picture, "RGBA")
        upper, lower = halves[..., 0::2], halves[..., 1::2]
    else:
        unpacked = layout.replace("a", "A")  # premultiplied alpha is undone below, with all bits at hand
        swapped = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}[order]
        file.seek(0)
        with Image.open(file, formats=FORMATS) as again:
            lower = _load_as(again, f"{unpacked};16{swapped}")
        upper = _load_as(picture, f"{unpacked};16{order}")
    values = upper.astype(np.uint16) << 8 | lower
    if layout == "RGBa":
        values = _unmultiplied(values, WHITE)
    if "transparency" in picture.info:
        return _with_alpha(values, picture.info["transparency"])
    return Samples("LA" if layout == "LA" else picture.mode, values, (0.0, float(WHITE)))


def _unmultiplied(values: NDArray[Any], white: float) -> NDArray[Any]:
    """Divide the colours of samples [H, W, C] by their alpha, the last channel, of which ``white`` is opaque."""
    alpha = values[..., -1:]
    factor = white / np.where(alpha > 0, alpha, white).astype(np.float64)
    colour = values[..., :-1] * factor
    if values[..., :-1].max() <= white:  # floats may have a range of their own
        colour = np.minimum(colour, white)
    return np.concatenate([colour.astype(values.dtype), alpha], axis=-1)


def _with_alpha(values: NDArray[Any], clear: int | tuple[int, ...]) -> Samples:
    """Add alpha to 16-bit samples [H, W, C] of a PNG that names one colour as clear."""
    is_clear = (values == np.asarray(clear)).all(axis=-1, keepdims=True)
    layered = np.concatenate([values, np.where(is_clear, 0, WHITE)], axis=-1).astype(np.uint16)
    return Samples("LA" if layered.shape[-1] == 2 else "RGBA", layered, (0.0, float(WHITE)))


def _load_as(picture: ImageFile.ImageFile, rawmode: str) -> NDArray[Any]:
    arguments = _arguments(picture)
    picture.tile = [
        tile._replace(args=(rawmode, *arguments[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in picture.tile
    ]
    picture.load()
    return np.asarray(picture)


def _read_pnm(file: BinaryIO, picture: ImageFile.ImageFile) -> Samples | None:
    """Read what Pillow scales one sample at a time in Python, or rounds to 8 bit: binary PGM and PPM."""
    arguments, codec = _arguments(picture), picture.tile[0].codec_name
    if picture.mode == "F":
        picture.load()
        return Samples("L", np.asarray(picture), None)
    white = arguments[-1] if isinstance(arguments[-1], int) else WHITE if arguments[0] == "I;16B" else 255
    if codec == "ppm_plain":
        if picture.mode == "RGB" and white > 255:
            return _read_text(file, picture, white)
        if picture.mode != "I":
            return None
        picture.load()
        values = np.rint(np.asarray(picture) * (white / WHITE)).astype(np.uint16)  # as Pillow found them
        return Samples("L", values, (0.0, float(white)))
    if white == 255 or picture.mode == "1":
        return None
    mode, shape = ("RGB", (picture.height, picture.width, 3)) if picture.mode == "RGB" else ("L", picture.size[::-1])
    dtype = np.dtype(">u2" if white > 255 else "u1")
    file.seek(picture.tile[0].offset)
    content = file.read(math.prod(shape) * dtype.itemsize)
    if len(content) < math.prod(shape) * dtype.itemsize:
        raise InputError("the file is truncated; save or copy it anew")
    return Samples(mode, np.frombuffer(content, dtype).reshape(shape), (0.0, float(white)))


def _read_text(file: BinaryIO, picture: ImageFile.ImageFile, white: int) -> Samples:
    """Read the numbers of a text PPM of more than 8 bits, which Pillow rounds to 8."""
    file.seek(picture.tile[0].offset)
    shape = (picture.height, picture.width, 3)
    text = re.sub(rb"#[^\n]*", b"", file.read(16 * math.prod(shape) + MOST_COMMENTS))  # a number takes six bytes
    values = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")[: math.prod(shape)]
    if len(values) < math.prod(shape):
        raise InputError("the file is truncated; save or copy it anew")
    if values.min() < 0 or values.max() > white:
        raise InputError(f"values beyond its own white of {white}; the file is damaged, save or copy it anew")
    return Samples("RGB", values.astype(np.uint16).reshape(shape), (0.0, float(white)))


def read_tiff(file: BinaryIO, max_pixels: int) -> TiffPage:
    """Read the first page of a TIFF that Pillow cannot: colour of float or of 32 bits, one plane per channel, and such.

    Raises InputError for what stays foreign.
    """
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        check_size(page.imagewidth, page.imagelength, max_pixels)
        if page.is_tiled:
            check_size(page.tilewidth, page.tilelength, max_pixels)
        mode = TIFF_MODES.get(page.photometric)
        extra = 0 if mode is None else page.samplesperpixel - len(mode)
        if mode is None or extra not in (0, 1) or page.imagedepth != 1 or page.compression not in UNPACKED_SAFELY:
            kind = f"{page.samplesperpixel} x {page.bitspersample} bit, photometric {int(page.photometric)}"
            kind += f", compression {int(page.compression)}"
            raise InputError(f"a TIFF of this kind cannot be read ({kind}); save it as RGB or grey, uncompressed")
        _check_deflate(file, page)
        values = page.asarray()
        orientation, profile = page.tags.get(274), page.tags.get(34675)
        try:
            has_more = tiff.pages[1] is not None
        except IndexError:
            has_more = False
    if page.planarconfig == 2 and values.ndim == 3:
        values = np.moveaxis(values, 0, -1)
    kind = values.dtype.kind
    black_white = _range_of(page.bitspersample, kind == "i") if kind in "iu" else None
    values = values.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    if extra and (UNSPECIFIED in page.extrasamples or mode == "CMYK"):
        values = values[..., :-1]
    elif extra:
        mode += "A"
        if PREMULTIPLIED in page.extrasamples:
            values = _unmultiplied(values, (black_white or _whole_range(values.dtype))[1])
    samples = Samples(mode, values, black_white, inverted=page.photometric == 0)
    return TiffPage(samples, orientation.value if orientation else 1, profile.value if profile else None, has_more)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise InputError for no pixels, or more than ``max_pixels``, before anything is allocated for them."""
    if not (isinstance(width, int) and isinstance(height, int)):
        raise InputError("a picture without a size; the file is damaged")
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width} x {height} pixels; the file is damaged")
    if max(width, height) > MAX_SIDE:
        raise InputError(f"{width} x {height} pixels: no side may be longer than {MAX_SIDE:,}; cut it into pieces")
    if width * height > max_pixels:
        raise InputError(
            f"{width} x {height} pixels are more than the limit of {max_pixels}; make it smaller, or raise that with "
            "--max-pixels (of scan and enroll)"
        )


def _check_deflate(file: BinaryIO, page: Any) -> None:
    """Refuse a strip or tile that unpacks to more than it should hold: tifffile would unpack it all."""
    if page.compression not in (8, 32946):
        return
    rows, columns = min(page.rowsperstrip, page.imagelength), page.imagewidth
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    expected = rows * columns * samples * -(-page.bitspersample // 8)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(count), expected + 1)) > expected:
            raise InputError("a part of the TIFF unpacks to more than it should hold; the file is damaged")
