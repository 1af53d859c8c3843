"""An image in every file format and variant that cameras and programs write; writing, reading and changing files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageCms

from aprilcli.errors import InputError
from aprilcli.io.images import read_image

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
ORIENTATION = 0x0112  # EXIF tag
GRAY = np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY.T.reshape(32, 48), 255 - GRAY], axis=-1)
FADE = np.broadcast_to(np.linspace(0, 255, 48).astype(np.uint8), (32, 48))
CLEAR = np.dstack([COLOR, FADE])  # with alpha
ON_WHITE = np.rint(COLOR * (FADE[..., None] / 255) + 255 - FADE[..., None].astype(float)).astype(int)


def encoded(file_format: str, array: np.ndarray, mode: str = "", **options: Any) -> bytes:
    """Encode with Pillow, after conversion to ``mode``."""
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode else image).save(stream, file_format, **options)
    return stream.getvalue()


def heic(*values: np.ndarray, mode: str = "", **options: Any) -> bytes:
    """Encode [H, W, C] uint8 or uint16 as HEIC of 8 or 10 bits, without loss; several arrays are several images."""
    file = pillow_heif.HeifFile()
    for array in values:
        chosen = mode or {1: "L", 3: "RGB", 4: "RGBA"}[array.shape[2]] + ";16" * (array.dtype == np.uint16)
        file.add_frombytes(chosen, array.shape[1::-1], array.tobytes())
    stream = io.BytesIO()
    file.save(stream, **{"quality": -1, "chroma": 444, "matrix_coefficients": 0} | options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """Encode with tifffile."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def png(
    values: np.ndarray, interlaced: bool = False, transparent: tuple[int, ...] = (), significant: tuple[int, ...] = ()
) -> bytes:
    """Encode [H, W, C] uint8 or uint16 without Pillow, which writes neither 16-bit color nor interlaced PNGs.

    ``significant``: bits of each channel that an sBIT chunk declares. Rows use the filters none, sub and up in turn.
    """
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def filtered(part: np.ndarray) -> bytes:
        step = channels * bits // 8
        rows = part.astype(part.dtype.newbyteorder(">")).reshape(len(part), -1).view(np.uint8).astype(int)
        lines = []
        for index, row in enumerate(rows):
            before = [np.zeros_like(row), np.concatenate([np.zeros(step, int), row[:-step]]), rows[index - 1]]
            kind = index % 3
            lines.append(bytes([kind]) + ((row - before[kind]) % 256).astype(np.uint8).tobytes())
        return b"".join(lines)

    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [values[top::down, left::right] for top, left, down, right in passes]
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if significant:
        content += chunk(b"tEXt", b"Comment\0sBIT") + chunk(b"sBIT", bytes(significant))
    if transparent:
        content += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    content += chunk(b"IDAT", zlib.compress(b"".join(filtered(part) for part in parts if part.size)))
    return content + chunk(b"IEND", b"")


def wide(values: np.ndarray) -> np.ndarray:
    """Return a 16-bit copy whose lower bytes differ from the upper ones."""
    lower = np.arange(values.size).reshape(values.shape) % 101 - 50
    return (values.astype(np.int64) * 257 + lower).clip(0, 65535).astype(np.uint16)


def swapped_profile() -> bytes:
    """Build a color profile that swaps red and blue, named differently from sRGB."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        profile = profile.replace(old, new, 1)
    renamed = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    assert renamed != profile
    return renamed


def bomb(content: bytes) -> bytes:
    """Return a PNG with its header changed to declare 20,000 × 20,000 pixels."""
    header = content[12:16] + struct.pack(">II", 20000, 20000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def every_form(color: np.ndarray) -> dict[str, bytes]:
    """Return an image [H, W, 3] uint8 in all forms below, by name; the first word is the usual extension."""
    gray = np.asarray(Image.fromarray(color).convert("L"))
    return color_forms(color) | gray_forms(gray) | lossy_forms(color) | bitmap_forms(gray)


def color_forms(color: np.ndarray) -> dict[str, bytes]:
    """Return an image [H, W, 3] uint8 in lossless forms, by name; some make its white pixels transparent."""
    other, sixteen, float32 = 255 - color, wide(color), (color / 255).astype(np.float32)
    alpha = np.where((color == 255).all(axis=-1), 0, 255).astype(np.uint8)[..., None]
    clear = np.dstack([np.where(alpha == 0, 77, color), alpha]).astype(np.uint8)
    turned, turn = np.rot90(color, 1).copy(), Image.Exif()
    turn[ORIENTATION] = 6
    tag = [(ORIENTATION, "H", 1, 6, True)]
    return {
        "png": encoded("PNG", color),
        "png alpha": encoded("PNG", clear),
        "png interlaced": png(color, interlaced=True),
        "png turned": encoded("PNG", turned, exif=turn),
        "png animated": encoded("PNG", color, save_all=True, append_images=[Image.fromarray(other)]),
        "png 16 bit": png(sixteen),
        "png 16 bit alpha, interlaced": png(np.dstack([sixteen, wide(alpha)]), interlaced=True),
        "bmp": encoded("BMP", color),
        "bmp alpha": encoded("BMP", np.dstack([color, np.full_like(alpha, 255)])),
        "webp lossless": encoded("WEBP", color, lossless=True),
        "webp alpha": encoded("WEBP", clear, lossless=True, exact=True),
        "webp turned": encoded("WEBP", turned, lossless=True, exif=turn),
        "webp animated": encoded("WEBP", color, save_all=True, append_images=[Image.fromarray(other)], lossless=True),
        "ppm": encoded("PPM", color),
        "ppm text": b"P3 %d %d 255\n" % color.shape[1::-1] + b" ".join(b"%d" % value for value in color.flat),
        "ppm 16 bit": b"P6 %d %d 65535\n" % color.shape[1::-1] + sixteen.astype(">u2").tobytes(),
        "tif": encoded("TIFF", color),
        "tif lzw": encoded("TIFF", color, compression="tiff_lzw"),
        "tif deflate, tiles": tiff(color, photometric="rgb", compression="zlib", tile=(16, 16)),
        "tif turned": tiff(turned, photometric="rgb", extratags=tag),
        "tif pages": encoded("TIFF", color, save_all=True, append_images=[Image.fromarray(other)]),
        "tif 16 bit": tiff(sixteen, photometric="rgb"),
        "tif 16 bit deflate": tiff(sixteen, photometric="rgb", compression="zlib", tile=(16, 16)),
        "tif 16 bit planes": tiff(np.moveaxis(sixteen, -1, 0), photometric="rgb", planarconfig="separate"),
        "tif float": tiff(float32, photometric="rgb", compression="zlib"),
    }


def gray_forms(gray: np.ndarray) -> dict[str, bytes]:
    """Return an image [H, W] uint8 in lossless gray forms, by name."""
    sixteen, unit, size = wide(gray), gray / 255, gray.shape[::-1]
    return {
        "png gray": encoded("PNG", gray),
        "png gray and alpha": png(np.dstack([gray, np.full_like(gray, 255)])),
        "png gray palette": encoded("PNG", gray, "P"),
        "png gray 16 bit": encoded("PNG", sixteen),
        "png gray 16 bit interlaced": png(sixteen[..., None], interlaced=True),
        "bmp gray": encoded("BMP", gray),
        "pgm": encoded("PPM", gray),
        "pgm 12 bit": b"P5 %d %d 4095\n" % size + np.rint(unit * 4095).astype(">u2").tobytes(),
        "pgm 16 bit": b"P5 %d %d 65535\n" % size + sixteen.astype(">u2").tobytes(),
        "pfm": b"Pf\n%d %d\n-1.0\n" % size + unit[::-1].astype("<f4").tobytes(),
        "tif gray": encoded("TIFF", gray),
        "tif gray, white is zero": tiff(255 - gray, photometric="miniswhite"),
        "tif gray 16 bit": tiff(sixteen, photometric="minisblack", byteorder=">"),
        "tif gray 16 bit lzw": encoded("TIFF", sixteen, compression="tiff_lzw"),
        "tif gray bigtiff": tiff(65535 - sixteen, photometric="miniswhite", bigtiff=True),
        "tif two channels": tiff(np.dstack([sixteen, 65535 - sixteen]), photometric="minisblack", extrasamples=[0]),
        "tif gray float, swapped": tiff(unit.astype("f4"), photometric="minisblack", byteorder=">", compression="zlib"),
        "tif gray float": tiff(unit.astype(np.float32), photometric="minisblack"),
        "tif gray double": tiff(unit, photometric="minisblack", tile=(16, 16)),
    }


def lossy_forms(color: np.ndarray) -> dict[str, bytes]:
    """Return an image [H, W, 3] uint8 in lossy forms, by name."""
    turn, profile = Image.Exif(), swapped_profile()
    turn[ORIENTATION] = 6
    return {
        "jpg": encoded("JPEG", color, quality=95),
        "jpg progressive": encoded("JPEG", color, quality=95, progressive=True),
        "jpg profile": encoded("JPEG", color[..., ::-1].copy(), quality=95, subsampling=0, icc_profile=profile),
        "jpg turned": encoded("JPEG", np.rot90(color, 1).copy(), quality=95, exif=turn),
        "jpg cmyk": encoded("JPEG", color, "CMYK", quality=95),
        "jpg two views": encoded("MPO", color, save_all=True, append_images=[Image.fromarray(color)], quality=95),
        "png profile": encoded("PNG", color[..., ::-1].copy(), icc_profile=profile),
        "png palette": encoded("PNG", color, "P"),
        "bmp palette": encoded("BMP", color, "P"),
        "bmp 5-6-5": _bmp_565(color),
        "webp": encoded("WEBP", color, quality=95),
        "gif": encoded("GIF", color),
        "gif animated": encoded("GIF", color, save_all=True, append_images=[Image.fromarray(255 - color)]),
        "avif": encoded("AVIF", color, quality=95),
        "avif turned": encoded("AVIF", np.rot90(color, 1).copy(), quality=95, exif=turn.tobytes()),
        "avif animated": encoded("AVIF", color, save_all=True, append_images=[Image.fromarray(255 - color)]),
        "heic": heic(color),
        "heic turned": heic(np.rot90(color, 1).copy(), exif=turn.tobytes()),
        "tif jpeg": encoded("TIFF", color, compression="jpeg", quality=95),
        "tif profile": encoded("TIFF", color[..., ::-1].copy(), icc_profile=profile),
    }


def _bmp_565(color: np.ndarray) -> bytes:
    height, width = color.shape[:2]
    red, green, blue = (color[::-1, :, channel].astype(np.uint16) for channel in range(3))
    pixels = np.zeros((height, width + width % 2), "<u2")  # rows are padded to four bytes
    pixels[:, :width] = (red >> 3) << 11 | (green >> 2) << 5 | blue >> 3
    info = struct.pack("<IiiHHIIiiII3I", 40, width, height, 1, 16, 3, pixels.nbytes, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + pixels.nbytes, 0, 0, 14 + len(info)) + info + pixels.tobytes()


def bitmap_forms(gray: np.ndarray) -> dict[str, bytes]:
    """Return an image [H, W] uint8 in forms of one bit per pixel, by name."""
    return {
        "png 1 bit": encoded("PNG", gray, "1"),
        "bmp 1 bit": encoded("BMP", gray, "1"),
        "pbm": encoded("PPM", gray, "1"),
        "tif 1 bit": encoded("TIFF", gray, "1"),
        "tif fax": encoded("TIFF", gray, "1", compression="group4"),
    }


def decoded(path: Path, **options: Any) -> np.ndarray:
    """Read an image: [H, W, 3] int."""
    image = read_image(path, **options)
    assert image.rgb.mode == "RGB"
    return np.asarray(image.rgb).astype(int)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    """Save with Pillow, after conversion to ``mode``; return the path."""
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def refusal(path: Path, **options: Any) -> str:
    """Return the one line that refuses to read a file."""
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.encode().decode().startswith(str(path.parent))
    return message


def set_tags(path: Path, values: dict[int, int], codes: dict[int, int] | None = None) -> None:
    """Overwrite tags of a little-endian TIFF's first page with one number each, and replace tags by other ``codes``."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff_file:
        offsets = {code: tiff_file.pages[0].tags[code].offset for code in values}
    for code, value in values.items():
        struct.pack_into("<HHII", content, offsets[code], (codes or {}).get(code, code), 4, 1, value)
    path.write_bytes(content)


def compress(path: Path, compression: str, content: np.ndarray | None = None) -> None:
    """Replace the only strip of an uncompressed TIFF by the same bytes, or others, as Pillow compresses them."""
    if content is None:
        with tifffile.TiffFile(path) as tiff_file:
            start, length = tiff_file.pages[0].dataoffsets[0], tiff_file.pages[0].databytecounts[0]
        content = np.frombuffer(path.read_bytes()[start : start + length], np.uint8)[None]
    compressed = encoded("TIFF", content, compression=compression, strip_size=2**30)
    with tifffile.TiffFile(io.BytesIO(compressed)) as tiff_file:
        code, start, length = (tiff_file.pages[0].tags[tag].value for tag in (259, 273, 279))
    set_tags(path, {259: code, 273: path.stat().st_size, 279: length[0]})
    path.write_bytes(path.read_bytes() + compressed[start[0] : start[0] + length[0]])


def write_png(path: Path, *arguments: Any, **options: Any) -> Path:
    """Save what ``png`` encodes; return the path."""
    path.write_bytes(png(*arguments, **options))
    return path
