"""Reports as one HTML file each that loads nothing from elsewhere, and the small images and charts in them.

The page's data are JSON blocks, which browsers neither run nor show. Its style and script are allowed by their hash, so
no text from a file name can become either.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from aprilcli import __version__
from aprilcli.io.atomic import written_aside
from aprilcli.io.overlays import LEVELS, Scale, alpha_table, color_table, draw_layer, line_width

TEMPLATES = Path(__file__).parent / "templates"
PAGE_BYTES = 90_000_000  # of rows and small images; browsers open such a page in seconds
USUAL_BYTES = 32_000_000  # what a page should have where the smallest images allow it
BYTES_PER_PIXEL = 0.5  # of a small image with its layer, in base64, roughly
SIDES = (224, 1024)  # pixels, of the longer side of small images
QUALITY = 72
COARSE = 8  # levels drawn as one; a divisor of the alarm's
RAMP_STEPS = 64  # rectangles in the legend of the color scale
BINS = 40


# Small images


def preview_side(count: int) -> int:
    """Return the longer side of small images on a page of ``count`` images, in pixels."""
    side = math.sqrt(USUAL_BYTES / (max(1, count) * BYTES_PER_PIXEL))
    return int(min(max(side, SIDES[0]), SIDES[1]))


def preview_size(size_wh: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the width and height of a small image with the longer side ``side``; it is never enlarged."""
    factor = min(1.0, side / max(size_wh))
    return max(1, round(size_wh[0] * factor)), max(1, round(size_wh[1] * factor))


def image_uri(image: Image.Image) -> str:
    """Return an image as a data URI: RGB as a JPEG, a layer with a palette as a PNG."""
    file, kind = io.BytesIO(), "png" if image.mode == "P" else "jpeg"
    image.save(file, kind, quality=QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def small_image(image: Image.Image, side: int) -> tuple[tuple[int, int], str]:
    """Return width and height of an RGB image's small copy (see ``preview_size``), and the copy as a data URI."""
    size = preview_size(image.size, side)
    return size, image_uri(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def layer_uri(levels: Image.Image, scale: Scale) -> str:
    """Return the colors of a map's levels with their contours as a data URI; fewer levels make it small."""
    coarse = levels.point([level - level % COARSE for level in range(LEVELS)])
    return image_uri(draw_layer(coarse, scale, line_width(levels.size)))


@dataclass(frozen=True)
class Preview:
    """The small image of row ``number``: data URIs of the image and of the layer over it, or why there is none.

    ``size_wh``: of the image itself.
    """

    number: int
    size_wh: tuple[int, int] = (1, 1)
    image: str | None = None
    layer: str | None = None
    note: str | None = None

    def block(self) -> str:
        """Return it as JSON that may stand in a script element."""
        return json_block({"size": self.size_wh, "image": self.image, "layer": self.layer, "note": self.note})


# The page


def json_block(value: Any) -> Markup:
    r"""Return a value as JSON in ASCII without ``<``, ``>`` and ``&``, so that it cannot end its script element.

    Lone surrogates, which stand for bytes of file names that are not UTF-8, are ``\udcNN``.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, template: str, content: Mapping[str, Any], previews: Iterator[Preview]) -> int:
    """Write a page of one of the ``templates`` with its ``content``; return the number of previews that it holds.

    The previews are taken one by one, until they and the rows have ``PAGE_BYTES``: memory does not grow with the number
    of previews. Raises OutputError.
    """
    count = 0
    data = json_block(content["data"])

    def blocks() -> Iterator[tuple[int, Markup]]:
        nonlocal count
        size = len(data)
        for preview in previews:
            block = preview.block()
            size += len(block)
            if size > PAGE_BYTES:
                return
            count += 1
            yield preview.number, Markup(block)

    style, script = (_asset(name) for name in ("report.css", "report.js"))
    page = _environment().get_template(template)
    values = {
        **content,
        "data": data,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "version": __version__,
        "previews": blocks(),
    }
    with written_aside(path) as temporary, temporary.open("w", encoding="ascii", errors="xmlcharrefreplace") as stream:
        for piece in page.generate(values):
            stream.write(piece)
    return count


def _asset(name: str) -> str:
    return "\n" + (TEMPLATES / name).read_text(encoding="ascii")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# Charts: plain numbers, drawn by the macros in charts.html.j2


@dataclass(frozen=True)
class Axis:
    """A scale from values to positions 0 to 1. ``ticks``: position and text of each."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def over(cls, low: float, high: float) -> Axis:
        """Return an axis with ticks at round values between both ends."""
        span = high - low
        step = 10.0 ** math.floor(math.log10(span / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
        values = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return cls(low, high, tuple(((value - low) / span, f"{value:.{digits}f}") for value in values.tolist()))

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Histogram:
    """Stacked bars. ``bars``: kind, left, width, bottom, height and text of each, as shares of the chart."""

    axis: Axis
    bars: tuple[tuple[str, float, float, float, float, str], ...]
    highest: int
    threshold: float | None


def histogram(kinds: Mapping[str, Sequence[float]], threshold: float | None = None) -> Histogram | None:
    """Return the histogram of the scores of each kind of image, stacked in this order; None without scores.

    An edge of the bars lies at the threshold, so that each bar is on one side of it.
    """
    scores = np.concatenate([np.asarray(values, np.float64) for values in kinds.values()])
    if not scores.size:
        return None
    low, high = float(scores.min()), float(scores.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = (high - low) / BINS
    start = low if threshold is None else threshold - math.ceil((threshold - low) / step - 1e-9) * step
    edges = start + np.arange(math.floor((high - start) / step + 1e-9) + 2) * step
    counts = {kind: np.histogram(values, edges)[0] for kind, values in kinds.items()}
    highest = int(np.sum(list(counts.values()), axis=0).max())
    axis = Axis.over(float(edges[0]), float(edges[-1]))
    bars = []
    base = np.zeros(len(edges) - 1)
    for kind, values in counts.items():
        for number in np.flatnonzero(values).tolist():
            left, right = float(edges[number]), float(edges[number + 1])
            text = f"{left:.3g} to {right:.3g}: {values[number]} {kind}"
            height = max(values[number] / highest, 0.012)  # a single image among thousands can be seen
            bars.append((kind, axis(left), axis(right) - axis(left), float(base[number]), float(height), text))
            base[number] += height
    return Histogram(axis, tuple(bars), highest, None if threshold is None else axis(threshold))


def ramp(scale: Scale) -> dict[str, Any]:
    """Return the legend of a color scale: its rectangles as (position, color, opacity), ticks, and the alarm level."""
    colors, alphas = color_table(), alpha_table()
    shown = (np.arange(RAMP_STEPS) + 0.5) * LEVELS / RAMP_STEPS
    steps = [
        (number / RAMP_STEPS, "#{:02x}{:02x}{:02x}".format(*colors[level]), round(float(alphas[level]) / 255, 3))
        for number, level in enumerate(shown.astype(int))
    ]
    axis = Axis.over(scale.low, scale.high)
    return {"steps": steps, "axis": axis, "alarm": None if scale.alarm is None else axis(scale.alarm)}
