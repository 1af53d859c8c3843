"""Noise, colors and surface textures, with which the drawn images are filled.

A *texture* works in two steps. The outer call draws the style of one product (colors, grain, spacing) from the random
generator `style`. The function that it returns paints one image in that style, float32 [SIDE, SIDE, 3], values around
0..1. It takes phase, position and noise from its own generator, so two images of a product differ as two photographs
of it would.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]  # OpenCV's type stubs do not know dtypes; docstrings state them
SIDE = 256  # pixels of a drawn image
TILE = 512  # pixels of a periodic noise tile, from which random windows are cut
YY, XX = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
Texture = Callable[[Generator], Array]

cv2.setNumThreads(1)


@cache
def _noise_tile(slope: float, stretch: int, number: int) -> Array:
    """Periodic noise [TILE, TILE], standard deviation 1, spectrum 1/f**slope, `stretch` times longer along x."""
    rng = np.random.default_rng([int(slope * 10), stretch, number])
    fy, fx = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    frequency = np.sqrt((fx * stretch) ** 2 + fy**2) + 1 / TILE
    tile = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((TILE, TILE))) * frequency**-slope, s=(TILE, TILE))
    return ((tile - tile.mean()) / tile.std()).astype(np.float32)


SLOPES = np.array([0.0, 0.5, 0.8, 1.1, 1.5, 2.0])
STRETCHES = np.array([1, 4, 16, 40])


def noise(rng: Generator, slope: float, stretch: float = 1, angle: float = 0, zoom: float = 1) -> Array:
    """A random window [SIDE, SIDE] of noise, standard deviation 1; `angle` in radians: direction of the stretch."""
    nearest = float(SLOPES[np.abs(SLOPES - slope).argmin()])
    tile = _noise_tile(nearest, int(STRETCHES[np.abs(STRETCHES - stretch).argmin()]), int(rng.integers(3)))
    c, s = np.cos(angle) / zoom, np.sin(angle) / zoom
    x, y = rng.uniform(0, TILE, 2)
    window = np.array([[c, s, x], [-s, c, y]], np.float32)
    return cv2.warpAffine(
        tile, window, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP
    )


def clouds(rng: Generator, cells: int = 3) -> Array:
    """Smooth unevenness [SIDE, SIDE] in -1..1 with about `cells` hills per side."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def lines(rng: Generator, breadth: float) -> Array:
    """Vertical lines [SIDE, SIDE], standard deviation about 1, `breadth` pixels wide, of varying strength."""
    knots = rng.standard_normal((int(rng.integers(2, 12)), SIDE)).astype(np.float32)
    knots = 0.7 * knots + 0.7 * rng.standard_normal((1, SIDE)).astype(np.float32)
    soft = cv2.GaussianBlur(knots, (0, 0), sigmaX=breadth, sigmaY=0.01, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(soft / (soft.std() + 1e-6), (SIDE, SIDE))


def blend(under: Array | float, over: Array, weight: Array) -> Array:
    """`under` where the weight [SIDE, SIDE] is 0, `over` where it is 1; both are images, colors or gray levels."""
    weight = np.clip(weight, 0, 1)[..., None]
    return under * (1 - weight) + over * weight


def color(rng: Generator, gray: bool | None = None) -> Array:
    """One color [3] in 0..1, RGB; with `gray` None, four of ten are gray."""
    if rng.random() < 0.4 if gray is None else gray:
        return np.full(3, rng.uniform(0.08, 0.95), np.float32)
    return rng.uniform(0.05, 0.95, 3).astype(np.float32)


def color_pair(rng: Generator, contrast: float = 0.25, gray: bool | None = None) -> tuple[Array, Array]:
    """Two colors that differ by at least `contrast` in some channel."""
    gray = rng.random() < 0.4 if gray is None else gray
    first = color(rng, gray)
    second = color(rng, gray)
    for _ in range(20):
        if np.abs(first - second).max() >= contrast:
            break
        second = color(rng, gray)
    return first, second


def rotated_coordinates(rng: Generator, angle: float) -> tuple[Array, Array]:
    """Pixel coordinates (x, y), rotated by `angle` about the center and shifted at random."""
    x, y = XX - SIDE / 2, YY - SIDE / 2
    dx, dy = rng.uniform(-50, 50, 2)
    return x * np.cos(angle) + y * np.sin(angle) + dx, -x * np.sin(angle) + y * np.cos(angle) + dy


def brushed_metal(style: Generator) -> Texture:
    """Grinding marks in one direction."""
    base, depth = color(style, style.random() < 0.8), style.uniform(0.03, 0.22)
    slope, stretch = style.choice([0.5, 0.8, 1.1]), style.choice([4, 16, 40])
    angle, zoom = style.choice([0, np.pi / 2, style.uniform(0, np.pi)]), style.uniform(0.5, 2)
    grain, slow = style.choice([0, style.uniform(0, 0.06)]), style.choice([0, style.uniform(0, 0.12)])

    def paint(rng: Generator) -> Array:
        marks = depth * noise(rng, slope, stretch, angle + rng.normal(0, 0.03), zoom)
        return base + (marks + grain * noise(rng, 0.0) + slow * clouds(rng, 2))[..., None]

    return paint


def _inside_rims(rng: Generator, widest: float) -> Array:
    """A weight [SIDE, SIDE]: 0 on a slightly slanted rim of up to `widest` pixels along each edge, 1 inside."""
    inside = np.ones((SIDE, SIDE), np.float32)
    for side in range(4):
        width = rng.uniform(-widest, widest) + rng.normal(0, 0.02) * (YY - SIDE / 2) + noise(rng, 2.0)
        inside = np.minimum(inside, np.rot90(np.clip(XX - width, 0, 1), side))
    return inside


def ground_metal(style: Generator) -> Texture:
    """The ground face of a part: marks along one axis, smudges, soft light, often dark rims.

    Good parts differ much more here than in the other textures: in depth of the marks, bands, shadows and smudges.
    """
    base = 0.15 + 0.6 * color(style, style.random() < 0.85)
    depth, fine, band = style.uniform(0.03, 0.16), style.uniform(0.01, 0.08), style.uniform(0, 0.12)
    light, smudges = style.uniform(0.05, 0.3), style.uniform(0, 0.08)
    along, zoom, rims = int(style.integers(2)), style.uniform(0.6, 2), style.random() < 0.6
    rim_tone, widest = style.uniform(0, 0.12), style.uniform(3, 22)

    def paint(rng: Generator) -> Array:
        more = rng.uniform(0.4, 1.7)
        angle = (np.pi / 2 if along else 0) + rng.normal(0, 0.02)
        marks = noise(rng, 0.5, 40, angle, zoom) * np.clip(0.7 + 0.6 * clouds(rng, 3), 0, 2)
        marks = depth * marks + fine * noise(rng, 0.0, 4, angle, zoom)
        bands = cv2.resize(rng.standard_normal((1, int(rng.integers(4, 20)))).astype(np.float32), (SIDE, SIDE))
        faint = np.clip(noise(rng, 2.0) - 1, 0, 1) + (np.abs(noise(rng, 2.0, zoom=0.7)) < 0.04)
        shade = more * marks + band * (bands if along else bands.T) + light * clouds(rng, 2)
        image = base + (shade + rng.choice([-1, 1]) * smudges * cv2.GaussianBlur(faint, (0, 0), 1.2))[..., None]
        if not rims:
            return image
        inside = _inside_rims(rng, widest)
        return blend(rim_tone, image, cv2.GaussianBlur(inside, (0, 0), 1))

    return paint


def lined_metal(style: Generator) -> Texture:
    """A face as a grinding wheel or a rolling mill leaves it: long lines along one axis, soft light, often dark rims.

    The strength of the lines varies. Good images differ in it, in the light, in faint smudges and in fine scratches.
    """
    base = 0.12 + 0.55 * color(style, style.random() < 0.9)
    depth, light, grain = style.uniform(0.02, 0.14), style.uniform(0.05, 0.35), style.uniform(0.005, 0.04)
    along, rims, rim_tone = int(style.integers(2)), style.random() < 0.6, style.uniform(0, 0.12)
    smudges, scratches, widest = style.uniform(0, 0.08), style.uniform(0, 0.12), style.uniform(2, 16)

    def paint(rng: Generator) -> Array:
        fine, broad = lines(rng, rng.uniform(0.5, 1)), lines(rng, rng.uniform(2, 8))
        shade = depth * rng.uniform(0.5, 1.5) * (fine + rng.uniform(0.2, 1) * broad)
        if along == 0:
            shade = shade.T
        cells = int(rng.integers(1, 4))
        faint = np.clip(noise(rng, 2.0) - 1, 0, 1) + scratches * (np.abs(noise(rng, 2.0, zoom=0.7)) < 0.03)
        shade = shade * np.clip(0.8 + 0.5 * clouds(rng, 3), 0, 2) + light * clouds(rng, cells) + grain * noise(rng, 0.5)
        image = (base + rng.normal(0, 0.05)) * (1 + shade - smudges * cv2.GaussianBlur(faint, (0, 0), 1))[..., None]
        if not rims:
            return image
        inside = _inside_rims(rng, widest)
        return blend(rim_tone, image, cv2.GaussianBlur(inside, (0, 0), rng.uniform(0.6, 2)))

    return paint


def cast_metal(style: Generator) -> Texture:
    """A gray speckled surface with soft unevenness."""
    base, depth, slow = color(style, style.random() < 0.85), style.uniform(0.01, 0.12), style.uniform(0, 0.1)
    slope, zoom = style.choice([0.0, 0.5, 0.8]), style.uniform(0.7, 3)

    def paint(rng: Generator) -> Array:
        return base + (depth * noise(rng, slope, zoom=zoom) + slow * clouds(rng))[..., None]

    return paint


def plain(style: Generator) -> Texture:
    """Plastic, glass, paint: one color, a soft gradient, little grain."""
    base, grain, slow = color(style), style.uniform(0, 0.03), style.uniform(0, 0.15)

    def paint(rng: Generator) -> Array:
        return base + (grain * noise(rng, 0.5) + slow * clouds(rng, 1))[..., None]

    return paint


def stone(style: Generator) -> Texture:
    """Cloudy noise of two colors, in half of the styles with veins or grains of a third color."""
    first, second = color_pair(style)
    third, slope, depth = color(style), style.choice([0.5, 0.8, 1.1, 1.5]), style.uniform(0.1, 0.35)
    grains, rarity, zoom = style.random() < 0.5, style.uniform(0.8, 2), style.uniform(0.6, 2)

    def paint(rng: Generator) -> Array:
        image = blend(first, second, 0.5 + depth * noise(rng, slope, zoom=zoom))
        return blend(image, third, 0.7 * np.clip((noise(rng, 0.8, zoom=zoom) - rarity) * 4, 0, 1)) if grains else image

    return paint


def wood(style: Generator) -> Texture:
    """Growth rings along one direction, with fine fibers."""
    light = np.array([0.75, 0.5, 0.3], np.float32) * style.uniform(0.7, 1.25)
    dark = light * style.uniform(0.4, 0.75)
    pitch, waviness = style.uniform(0.05, 0.3), style.uniform(4, 30)
    angle, fiber = style.choice([0, np.pi / 2]), style.uniform(0.05, 0.2)

    def paint(rng: Generator) -> Array:
        direction = angle + rng.normal(0, 0.05)
        _, y = rotated_coordinates(rng, direction)
        rings = 0.5 + 0.5 * np.sin(pitch * (y + waviness * noise(rng, 2.0, 4, direction)))
        return blend(light, dark, 0.6 * rings + fiber * noise(rng, 0.8, 16, direction) + 0.2)

    return paint


def fabric(style: Generator) -> Texture:
    """Two waves of threads that cross, slightly irregular."""
    first, second = color_pair(style, 0.15)
    fx, fy = style.uniform(0.25, 1.3, 2)
    angle = style.choice([0, style.uniform(0, np.pi)])
    depth, twill, wobble = style.uniform(0.15, 0.5), style.choice([0, style.uniform(-1, 1)]), style.uniform(0.2, 1)

    def paint(rng: Generator) -> Array:
        x, y = rotated_coordinates(rng, angle + rng.normal(0, 0.02))
        drift = wobble * noise(rng, 1.5)
        weave = np.sin(fx * (x + twill * y) + drift) + np.sin(fy * y + drift)
        return blend(first, second, 0.5 + 0.5 * depth * weave + 0.06 * noise(rng, 0.5))

    return paint


def _points(rng: Generator, count: int) -> Array:
    """Zero at `count` random pixels, 255 at all others, uint8 [SIDE, SIDE]: the input of a distance transform."""
    canvas = np.full((SIDE, SIDE), 255, np.uint8)
    canvas[rng.integers(0, SIDE, count), rng.integers(0, SIDE, count)] = 0
    return canvas


def leather(style: Generator) -> Texture:
    """A pebbled grain: the distance to the nearest of many random points."""
    first, second = color_pair(style, 0.15)
    count, depth = int(style.uniform(200, 1800)), style.uniform(0.3, 1)

    def paint(rng: Generator) -> Array:
        distance = cv2.distanceTransform(_points(rng, count), cv2.DIST_L2, 5) / np.sqrt(SIDE * SIDE / count)
        return blend(first, second, 1 - depth * distance + 0.05 * noise(rng, 0.5))

    return paint


def cells(style: Generator) -> Texture:
    """Foam, terrazzo, cracked glaze: random cells with walls."""
    first, second = color_pair(style)
    count, spread, wall = int(style.uniform(60, 700)), style.uniform(0, 0.35), style.uniform(0.2, 0.9)

    def paint(rng: Generator) -> Array:
        points = _points(rng, count)
        _, label = cv2.distanceTransformWithLabels(points, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        shade = rng.uniform(-1, 1, int(label.max()) + 1).astype(np.float32)[label]
        edge = cv2.morphologyEx(label.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((2, 2))) > 0
        image = blend(first, second, 0.3 + spread * shade + 0.05 * noise(rng, 0.5))
        return blend(image, second, wall * cv2.GaussianBlur(edge.astype(np.float32), (3, 3), 0.7))

    return paint


def dead_leaves(style: Generator) -> Texture:
    """Overlapping discs or rectangles whose sizes follow a power law: gravel, granulate, chips."""
    palette = [color(style) for _ in range(5)]
    count, largest, square = int(style.uniform(300, 900)), style.uniform(10, 40), style.random() < 0.4

    def paint(rng: Generator) -> Array:
        image = np.empty((SIDE, SIDE, 3), np.float32)
        image[:] = palette[0]
        radii = -np.sort(-np.clip(4 / np.sqrt(rng.random(count) + 0.02), 3, largest))
        for radius, (x, y), k in zip(radii, rng.uniform(0, SIDE, (count, 2)), rng.integers(0, 5, count), strict=True):
            tone = tuple(float(v) for v in palette[k] * rng.uniform(0.75, 1.25))
            if square:
                corners = cv2.boxPoints(((x, y), (2 * radius, radius * 1.2), float(rng.uniform(0, 180))))
                cv2.fillPoly(image, [np.round(corners).astype(np.int32)], tone)
            else:
                cv2.circle(image, (int(x), int(y)), int(radius), tone, -1)
        return image + 0.03 * noise(rng, 0.5)[..., None]

    return paint


@cache
def _photographs() -> list[Array]:
    """The free photographs that come with scikit-image and scikit-learn, float32 RGB in 0..1."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    images = [getattr(skimage.data, name)() for name in ("brick", "grass", "gravel", "chelsea", "coffee")]
    images += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return [(i if i.ndim == 3 else np.repeat(i[..., None], 3, 2)).astype(np.float32) / 255 for i in images]


def photograph(style: Generator) -> Texture:
    """A window of a free photograph, recolored and rescaled; every image shows another window of the same area."""
    source = _photographs()[int(style.choice([0, 0, 1, 1, 2, 2, 3, 4, 5, 6]))]
    height, width = source.shape[:2]
    crop = style.uniform(70, 230)
    left, top = style.uniform(0, width - crop), style.uniform(0, height - crop)
    gamma, order, contrast = np.exp(style.normal(0, 0.3)), style.permutation(3), style.uniform(0.3, 1.1)
    gray, invert = style.random() < 0.5, style.random() < 0.2

    def paint(rng: Generator) -> Array:
        scale, angle = crop / SIDE * rng.uniform(0.95, 1.05), rng.normal(0, 0.03) + np.pi / 2 * rng.integers(4)
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        center = np.array([left + crop / 2, top + crop / 2]) + rng.uniform(-20, 20, 2)
        offset = center - np.array([[c, s], [-s, c]]) @ np.full(2, SIDE / 2)
        window = np.array([[c, s, offset[0]], [-s, c, offset[1]]], np.float32)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(source, window, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REFLECT)
        image = np.clip(image, 0, 1)[..., order] ** gamma
        image = np.repeat(image.mean(2, keepdims=True), 3, 2) if gray else image
        image = 1 - image if invert else image
        return image * contrast + (1 - contrast) * 0.5

    return paint
