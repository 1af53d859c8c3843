"""Images of more than 8 bits per channel, which Pillow truncates: read in full and scaled linearly to 8 bits."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from io import SEEK_CUR, BytesIO
from itertools import product
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from aprilcli.errors import InputError

MAX_SIDE = 1_000_000  # pixels; the time to decode a longer side is out of proportion
MAX_COMMENT_BYTES = 1 << 16  # in a PGM or PPM of text
BLOCK_ROWS = 256  # rows scaled at a time, so that a large image needs no second copy in float64
CHANNEL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # of a PNG or HEIC
PHOTOMETRIC_MODES = {0: "L", 1: "L", 2: "RGB", 5: "CMYK"}  # by a TIFF's photometric interpretation
UNCOMPRESSED, PACKBITS = 1, 32773  # TIFF compressions; these ignore the Predictor tag
TIFF_COMPRESSIONS = (UNCOMPRESSED, 5, 8, PACKBITS, 32946, 34925, 50000)  # LZW, deflate, old deflate, LZMA, Zstandard
DIFFERENCES, FLOAT_DIFFERENCES = 2, 3  # values of a TIFF's Predictor tag
UNSPECIFIED, PREMULTIPLIED = 0, 1  # values of a TIFF's ExtraSamples tag; any other means alpha


@dataclass(frozen=True)
class StoredPixels:
    """Pixels with the values that the file holds.

    ``mode``: L, LA, RGB, RGBA or CMYK. ``values``: [H, W, C], any numeric dtype. ``black_white``: the values of black
    and white, None if the type does not define them; swapped if ``inverted``. An alpha channel spans the type's range.
    """

    mode: str
    values: NDArray[Any]
    black_white: tuple[float, float] | None
    inverted: bool = False


@dataclass(frozen=True)
class TiffImage:
    """The image of a TIFF: its pixels, EXIF ``orientation`` and ICC ``profile``."""

    pixels: StoredPixels
    orientation: int
    profile: bytes | None


def read_stored_pixels(file: BinaryIO, pil_image: ImageFile.ImageFile) -> StoredPixels | None:
    """Read an opened image in full; None if it has 8 bits per channel, so that Pillow's ``load`` reads it in full.

    Only for images for which ``needs_tifffile`` is false. Raises InputError for a damaged file.
    """
    if not pil_image.tile:
        return None
    arguments = pil_image.tile[0].args
    rawmode = arguments[0] if isinstance(arguments, tuple) else arguments or ""
    if pil_image.format == "PPM":
        return _read_pnm(file, pil_image, rawmode)
    if rawmode == "I;12":
        return StoredPixels("L", _load(pil_image)[..., None], (0.0, 4095.0))
    return _read_png(file, pil_image, rawmode) if pil_image.format == "PNG" and rawmode.endswith(";16B") else None


def needs_tifffile(pil_image: ImageFile.ImageFile) -> bool:
    """Return whether Pillow misreads a TIFF.

    Over 8 bits, signed, several images in one page, or uncompressed planes with an extra channel.
    """
    if not isinstance(pil_image, TiffImagePlugin.TiffImageFile):
        return False
    tags = pil_image.tag_v2
    if (
        any(bits > 8 and bits != 12 for bits in tags.get(258, (1,)))
        or 2 in tags.get(339, ())
        or tags.get(32997, 1) != 1
    ):
        return True
    return bool(tags.get(284) == 2 and 338 in tags and tags.get(259, 1) == UNCOMPRESSED)


def to_eight_bit(pixels: StoredPixels, value_range: tuple[float, float] | None) -> Image.Image:
    """Scale linearly to 8 bits: from ``value_range``, or else from the type's range ([0, 1] for floats).

    A 16-bit copy of an 8-bit image gives that image. Pixels of 8 bits ignore ``value_range``. Raises InputError for
    NaN or infinite values, and where neither the range nor the type defines black and white.
    """
    values = pixels.values
    black_white = value_range if value_range and values.dtype.itemsize > 1 else pixels.black_white
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("holds NaN or infinite values; save it without them")
    if black_white is None:
        low, high = values.min(), values.max()
        if values.dtype.kind != "f" or low < 0 or high > 1:
            raise InputError(
                f"{values.dtype.name} values from {low:g} to {high:g}; state which values are black and white with a "
                "value range"
            )
        black_white = (0.0, 1.0)
    color_channels = values.shape[-1] - (pixels.mode in ("LA", "RGBA"))
    color = _scale(values[..., :color_channels], black_white)
    alpha = _scale(values[..., color_channels:], _alpha_range(pixels, values[..., color_channels:]))
    scaled = np.concatenate([255 - color if pixels.inverted else color, alpha], axis=-1)
    height, width = scaled.shape[:2]
    return Image.frombytes(pixels.mode, (width, height), scaled.tobytes())


def _alpha_range(pixels: StoredPixels, alpha: NDArray[Any]) -> tuple[float, float]:
    """Return the values of transparent and opaque: as the colors' black and white, or else the type's range."""
    lowest, highest = _type_range(alpha.dtype)
    white = pixels.black_white[1] if pixels.black_white else highest
    return lowest, highest if alpha.size and alpha.max() > white else white


def _type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    return (0.0, 1.0) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))


def _scale(values: NDArray[Any], black_white: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = black_white

    def scale(block: NDArray[Any]) -> NDArray[np.uint8]:
        clipped = np.clip(block.astype(np.float64), low, high)
        rounded: NDArray[np.uint8] = np.rint((clipped - low) / (high - low) * 255).astype(np.uint8)
        return rounded

    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        looked_up: NDArray[np.uint8] = scale(np.arange(1 << 16))[values]
        return looked_up
    return np.concatenate([scale(values[top : top + BLOCK_ROWS]) for top in range(0, len(values), BLOCK_ROWS)])


def _load(pil_image: ImageFile.ImageFile, rawmode: str = "") -> NDArray[Any]:
    """Decode an image, with its values packed as ``rawmode`` instead of as the file states."""
    if rawmode:
        pil_image.tile = [tile._replace(args=rawmode) for tile in pil_image.tile]
    pil_image.load()
    return np.asarray(pil_image)


def _read_png(file: BinaryIO, pil_image: ImageFile.ImageFile, rawmode: str) -> StoredPixels:
    """Read a PNG of 16 bits; a color that the file declares transparent becomes an alpha channel.

    Pillow decodes colors to 8 bits, the first byte of each value. A second pass with the byte order swapped gives the
    second byte.
    """
    if rawmode == "I;16B":
        values = _load(pil_image)[..., None]
    elif rawmode == "LA;16B":  # has no swapped order, but two channels of two bytes are four of one byte
        values = _load(pil_image, "RGBA").view(">u2")
    else:
        file.seek(0)
        with Image.open(file, formats=["PNG"]) as second:
            low = _load(second, rawmode[:-1] + "L")
        values = _load(pil_image).astype(np.uint16) << 8 | low
    if "transparency" in pil_image.info:
        is_clear = (values == np.asarray(pil_image.info["transparency"])).all(axis=-1, keepdims=True)
        values = np.concatenate([values, np.where(is_clear, 0, 65535)], axis=-1).astype(np.uint16)
    return StoredPixels(CHANNEL_MODES[values.shape[-1]], values, (0.0, float(_png_white(file, values))))


def _png_white(file: BinaryIO, values: NDArray[np.uint16]) -> int:
    """Return the value of white in a PNG of 16 bits that may declare fewer significant bits.

    By the PNG specification (section 11.3.2.4) values of fewer bits are scaled to all 16; cameras often leave them as
    they are. Those do not exceed the declared bits.
    """
    colors = values[..., : 3 if values.shape[-1] > 2 else 1]
    bits = _significant_bits(file)
    return 2**bits - 1 if colors.max() < 2**bits else 65535


def _significant_bits(file: BinaryIO) -> int:
    """Read the most significant bits of a color from a PNG's sBIT chunk; 16 without one."""
    file.seek(8)
    while len(header := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", header)
        if name == b"IDAT":  # sBIT precedes it
            break
        if name == b"sBIT":
            bits = file.read(min(length, 4))
            return min(16, max(bits[: 3 if len(bits) > 2 else 1], default=16)) or 16
        file.seek(length + 4, SEEK_CUR)  # its content and checksum
    return 16


def _read_pnm(file: BinaryIO, pil_image: ImageFile.ImageFile, rawmode: str) -> StoredPixels | None:
    """Read a PGM or PPM whose white is not 255, which Pillow rounds to 8 bits or scales pixel by pixel; or a PFM."""
    if pil_image.mode == "F":
        return StoredPixels("L", _load(pil_image)[..., None], None)
    arguments = pil_image.tile[0].args
    white = arguments[-1] if isinstance(arguments, tuple) else 65535 if rawmode == "I;16B" else 255
    mode = {"L": "L", "I": "L", "RGB": "RGB"}.get(pil_image.mode)
    if white == 255 or mode is None:
        return None
    shape = (pil_image.height, pil_image.width, len(mode))
    count, dtype = math.prod(shape), np.dtype(">u2" if white > 255 else "u1")
    file.seek(pil_image.tile[0].offset)
    if pil_image.tile[0].codec_name == "ppm_plain":
        text = re.sub(rb"#[^\n]*", b"", file.read(16 * count + MAX_COMMENT_BYTES))  # a number takes up to six bytes
        numbers = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")[:count]
        if numbers.size and (numbers.min() < 0 or numbers.max() > white):
            raise InputError(f"values beyond the file's own maximum of {white}; it is damaged, save or copy it again")
        values = numbers.astype(dtype)
    else:
        content = file.read(count * dtype.itemsize)
        values = np.frombuffer(content, dtype, len(content) // dtype.itemsize)
    if values.size < count:
        raise InputError("the file is truncated; save or copy it again")
    return StoredPixels(mode, values.reshape(shape), (0.0, float(white)))


def read_tiff(file: BinaryIO, indexes: tuple[int, ...], max_pixels: int) -> TiffImage:
    """Read a TIFF that Pillow cannot read in full: 16 bits and more, floats, planes with alpha, colors as pages.

    ``indexes``: the image's page, or the gray pages of red, green and blue, which have the same size and type.
    Raises InputError for more than ``max_pixels`` pixels, a kind that is not supported, and missing strips or tiles.
    """
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[indexes[0]]
        pixels = [_read_page(file, tiff.pages[index], max_pixels) for index in indexes]
        orientation, profile = page.tags.get(274), page.tags.get(34675)
    first = pixels[0]
    if len(pixels) > 1:
        first = replace(first, mode="RGB", values=np.concatenate([plane.values for plane in pixels], axis=-1))
    return TiffImage(first, orientation.value if orientation else 1, profile.value if profile else None)


def _read_page(file: BinaryIO, page: Any, max_pixels: int) -> StoredPixels:
    check_size(page.imagewidth, page.imagelength, max_pixels)
    if page.is_tiled:
        check_size(page.tilewidth, page.tilelength, max_pixels)
    mode = PHOTOMETRIC_MODES.get(page.photometric)
    extra = 0 if mode is None else page.samplesperpixel - len(mode)
    is_plain = page.tiledepth == 1 and page.compression in TIFF_COMPRESSIONS
    if page.dtype is None or page.dtype.kind not in "iuf" or page.bitspersample != 8 * page.dtype.itemsize:
        is_plain = False
    if mode is None or extra not in (0, 1) or not is_plain:
        kind = f"{page.samplesperpixel} x {page.bitspersample} bit, photometric {int(page.photometric)}"
        kind += f", compression {int(page.compression)}"
        raise InputError(f"a TIFF of this kind cannot be read ({kind}); save it as RGB or gray, uncompressed")
    _check_segments(page, page.parent.filehandle.size)
    if page.compression == UNCOMPRESSED:
        page.predictor = 1  # as libtiff does: a predictor belongs to a compression
        values = page.asarray().reshape(page.shaped)[:, 0]
    else:
        values = _decompress_page(file, page)
    values = np.concatenate(list(values), axis=-1)  # planes become channels
    black_white = _declared_range(page, values[..., : len(mode)]) or _integer_range(
        page.bitspersample, values.dtype.kind
    )
    if extra and (UNSPECIFIED in page.extrasamples or mode == "CMYK"):
        values = values[..., :-1]
    elif extra:
        mode += "A"
        if PREMULTIPLIED in page.extrasamples:
            values = unpremultiply(values, (black_white or _type_range(values.dtype))[1])
    return StoredPixels(mode, values, black_white, inverted=page.photometric == 0)


def _check_segments(page: Any, file_size: int) -> None:
    """Refuse missing strips or tiles, which tifffile fills with zeros, and lengths for which it would allocate."""
    offsets, lengths = page.dataoffsets, page.databytecounts
    is_whole = len(offsets) == math.prod(page.chunked) and min(offsets) > 0
    if not page.is_contiguous:  # else the lengths are not used
        is_whole = is_whole and len(lengths) == len(offsets) and min(lengths) > 0 and max(lengths) <= file_size
    if page.imagedepth > 1 and page.compression == UNCOMPRESSED:  # all images of the page are read
        is_whole = is_whole and page.nbytes <= file_size
    if not is_whole:
        raise InputError("a strip or tile of the TIFF is missing; the file is damaged, save or copy it again")


def _decompress_page(file: BinaryIO, page: Any) -> NDArray[Any]:
    """Decompress a page's strips or tiles to [P, H, W, C]: P planes of one channel, or one of all channels."""
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel if page.planarconfig == 1 else 1
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    down, across = math.ceil(height / rows), math.ceil(width / columns)
    planes = len(page.dataoffsets) // (down * across * page.imagedepth)
    values = np.empty((planes, height, width, channels), page.dtype)
    for plane, place in product(range(planes), range(down * across)):
        index = plane * page.imagedepth * down * across + place  # of the first image of a stack in one page
        offset, length = page.dataoffsets[index], page.databytecounts[index]
        top, left = place // across * rows, place % across * columns
        count = rows if page.is_tiled else min(rows, height - top)
        file.seek(offset)
        content = _decompress(file.read(length), page, (count, columns * channels * page.dtype.itemsize))
        segment = _undo_predictor(content, page, channels)
        values[plane, top : top + rows, left : left + columns] = segment[: height - top, : width - left]
    return values


def _decompress(content: bytes, page: Any, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Decompress a strip or tile to ``shape`` bytes with Pillow's libtiff, as a TIFF of its own of 8-bit gray.

    libtiff is safe for damaged content, and writes no more than ``shape``. tifffile would unpack without a limit, or
    with imagecodecs where installed, whose LZW decoder crashes on damaged content.
    """
    tags = {256: shape[1], 257: shape[0], 258: 8, 259: page.compression, 262: 1, 266: page.fillorder, 277: 1}
    tags |= {278: shape[0], 279: len(content)}
    offset = 10 + 12 * (len(tags) + 1) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted((tags | {273: offset}).items())]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    with Image.open(BytesIO(header + content), formats=["TIFF"]) as pil_image:
        return np.asarray(pil_image)


def _undo_predictor(content: NDArray[np.uint8], page: Any, channels: int) -> NDArray[Any]:
    """Turn a segment's bytes [H, bytes] into values [H, W, C]; TIFF 6.0 section 14, and its Technical Note 3."""
    rows, itemsize = len(content), page.dtype.itemsize
    predictor = 1 if page.compression == PACKBITS else page.predictor
    byteorder = page.parent.byteorder
    if predictor == FLOAT_DIFFERENCES:
        content = np.cumsum(content.reshape(rows, -1, channels), axis=1, dtype=np.uint8)
        content = content.reshape(rows, itemsize, -1).transpose(0, 2, 1).reshape(rows, -1)
        byteorder = ">"
    values: NDArray[Any] = content.view(f"{byteorder}u{itemsize}").reshape(rows, -1, channels)
    if predictor == DIFFERENCES:
        values = np.cumsum(values, axis=1, dtype=f"u{itemsize}")
    return values.astype(f"u{itemsize}", copy=False).view(page.dtype)


def _declared_range(page: Any, colors: NDArray[Any]) -> tuple[float, float] | None:
    """Return black and white as a TIFF's tags declare them; None without tags that can mean this.

    Many programs state the smallest and largest value of each image instead. White is therefore only taken from a tag
    if it is the largest number of some bits (or 1), and if no value is outside the range.
    """
    if colors.dtype.itemsize == 1:
        return None
    tags = page.tags
    black, white = _largest(tags.get(340) or tags.get(280)), _largest(tags.get(341) or tags.get(281))
    if white is None or white < 1 or not math.log2(white + 1).is_integer():
        return None
    low, high = float(colors.min()), float(colors.max())
    if black is None or not black <= low:
        black = -white - 1 if colors.dtype.kind == "i" else 0.0
    return (black, white) if black <= low and black < white and high <= white else None


def _largest(tag: Any) -> float | None:
    """Return a tag's largest value: one per channel."""
    return None if tag is None else float(np.max(tag.value))


def uses_little_of_its_range(pixels: StoredPixels) -> bool:
    """Return whether an image of more than 8 bits per channel leaves most of its type's range unused.

    That is the case if a file of 16 bits holds the values of a camera of 14 bits or fewer without declaring them.
    """
    values = pixels.values[..., : len(pixels.mode.removesuffix("A"))]
    is_declared = pixels.black_white not in (None, _type_range(values.dtype))
    if values.dtype.itemsize == 1 or is_declared or pixels.mode == "CMYK":  # paper without ink is 0
        return False
    low, high = float(values.min()), float(values.max())
    return high < _type_range(values.dtype)[1] / 4 or (values.dtype.kind == "i" and low >= 0)


def _integer_range(bits: int, kind: str) -> tuple[float, float] | None:
    """Return the range of an integer type; None for floats and beyond 16 bits, which no sensor fills."""
    if kind not in "iu" or bits > 16:
        return None
    lowest = -(2 ** (bits - 1)) if kind == "i" else 0
    return float(lowest), float(lowest + 2**bits - 1)


def unpremultiply(values: NDArray[Any], white: float) -> NDArray[Any]:
    """Divide the colors of [H, W, C] values by alpha, the last channel; ``white`` is the value of opaque alpha."""
    alpha = values[..., -1:]
    factor = white / np.where(alpha > 0, alpha, white).astype(np.float64)
    color = values[..., :-1] * factor
    if values[..., :-1].max() <= white:  # floats may have a range of their own
        color = np.minimum(color, white)
    return np.concatenate([color.astype(values.dtype), alpha], axis=-1)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise InputError for no pixels or more than ``max_pixels``; call it before memory is allocated for them."""
    if not (isinstance(width, int) and isinstance(height, int)):
        raise InputError("the image has no size; the file is damaged, save or copy it again")
    if width < 1 or height < 1:
        raise InputError(f"an image of {width} x {height} pixels; the file is damaged, save or copy it again")
    if max(width, height) > MAX_SIDE:
        raise InputError(f"{width} x {height} pixels: no side may be longer than {MAX_SIDE:,}; cut it into pieces")
    if width * height > max_pixels:
        raise InputError(
            f"{width} x {height} pixels are more than the limit of {max_pixels}; reduce the image or raise the limit "
            "of pixels"
        )
