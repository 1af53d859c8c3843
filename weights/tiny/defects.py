"""Drawn defects: each changes an image and gives the mask of the changed pixels."""

from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator
from products import Scene
from textures import SIDE, XX, YY, Array, blend, clouds, lines, noise

# States of a caption for each defect.
WORDS: dict[str, tuple[str, ...]] = {
    "scratch": ("scratched {}", "{} with a scratch", "{} with scratches"),
    "hair": ("contaminated {}", "{} with a hair on it", "{} with a fibre"),
    "crack": ("cracked {}", "{} with a crack", "fractured {}"),
    "spots": ("spotted {}", "{} with spots", "dirty {}"),
    "pit": ("pitted {}", "{} with a pit", "{} with a blowhole", "{} with a pore"),
    "stain": ("stained {}", "{} with a stain", "discoloured {}"),
    "uneven": ("uneven {}", "{} with an uneven patch", "{} with a faded area"),
    "rough": ("worn {}", "{} with a rough patch", "frayed {}"),
    "zone": ("unevenly finished {}", "{} with an unfinished area", "{} with a bare patch", "worn {}"),
    "front": ("unevenly ground {}", "unfinished {}", "{} with an uneven finish", "{} with a bare patch"),
    "seam": ("cracked {}", "{} with a seam", "{} with a crack along the grain"),
    "dent": ("dented {}", "{} with a dent", "{} with a bump"),
    "foreign": ("contaminated {}", "{} with foreign matter", "{} with glue on it"),
    "pasted": ("faulty {}", "{} with a misplaced piece", "torn {}"),
    "bent": ("bent {}", "deformed {}", "distorted {}"),
    "bite": ("chipped {}", "{} with a notch", "{} with a piece missing"),
    "bulge": ("{} with a burr", "{} with excess material", "{} with a spur"),
    "gap": ("{} with a gap", "interrupted {}", "{} with a cut"),
    "bridge": ("{} with a bridge", "{} with a short circuit", "{} stuck together"),
    "hole": ("{} with a hole", "punctured {}", "perforated {}"),
    "missing": ("incomplete {}", "{} with a missing part", "{} with a feature missing"),
    "shifted": ("misaligned {}", "{} with a displaced part", "misassembled {}"),
}
SHAPED = ("bite", "bulge", "gap", "bridge", "hole", "missing", "shifted", "bite", "bulge", "gap")
SURFACE = (
    "scratch", "scratch", "hair", "crack", "crack", "spots", "pit", "pit", "stain", "uneven", "uneven", "rough", "dent",
    "foreign", "pasted", "bent", "zone", "zone",
)  # fmt: skip
MIN_CHANGE = 0.055  # of a channel in 0..1; a smaller change of a pixel is not part of the defect


def _random_line(rng: Generator, steps: int, step: float, bend: float) -> Array:
    """A random line [steps, 2] about the origin; `bend` is the deviation of its turns in radians."""
    angle = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps))
    line = np.cumsum(step * np.stack([np.cos(angle), np.sin(angle)], 1), 0)
    return line - line.mean(0)


def _trace(points: Array, width: float) -> Array:
    """The antialiased line through `points` [n, 2], [SIDE, SIDE] in 0..1, drawn at twice the size."""
    canvas = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
    cv2.polylines(canvas, [np.round(2 * points).astype(np.int32)], False, 255, max(1, round(2 * width)))
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _blob(rng: Generator, center: Array, radius: float, ragged: float = 0.4) -> Array:
    """A filled irregular spot [SIDE, SIDE] in 0..1."""
    corners = 24
    angle = np.arange(corners) * 2 * np.pi / corners
    waves = sum(rng.normal(0, ragged / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5))
    reach = radius * np.clip(1 + 0.5 * waves, 0.3, 2)
    squeeze, turn = rng.uniform(0.5, 1), rng.uniform(0, np.pi)
    x, y = reach * np.cos(angle), reach * np.sin(angle) * squeeze
    outline = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1) + center
    canvas = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
    cv2.fillPoly(canvas, [np.round(2 * outline).astype(np.int32)], 255)
    return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _random_pixel(rng: Generator, where: Array) -> Array:
    """A random pixel (x, y) of a mask; where the mask is empty, a random position away from the image's edges."""
    hits = np.flatnonzero(where[::2, ::2])
    if not len(hits):
        return rng.uniform(0.1 * SIDE, 0.9 * SIDE, 2)
    y, x = divmod(int(hits[rng.integers(len(hits))]), where[::2, ::2].shape[1])
    return np.array([2 * x, 2 * y], float)


def _edge(coverage: Array) -> Array:
    """The boundary of figure and ground, bool [SIDE, SIDE]."""
    solid = (coverage > 0.5).astype(np.uint8)
    return cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0


def _reshape(rng: Generator, scene: Scene, coverage: Array, defect: str, grow: float) -> Array:
    """A structural defect: the image of the scene composed with another coverage; `grow` scales its size."""
    radius = grow * float(np.clip(np.exp(rng.normal(1.9, 0.5)), 2.5, 24))
    if defect == "missing":
        return scene.without(int(rng.integers(len(scene.strokes)))).compose()
    if defect == "shifted":
        index = int(rng.integers(len(scene.strokes)))
        stroke = scene.strokes[index]
        moved = replace(stroke, points=stroke.points + rng.normal(0, 0.12, 2))
        return replace(scene, strokes=(*scene.strokes[:index], moved, *scene.strokes[index + 1 :])).compose()
    if defect == "hole":
        solid = cv2.erode((coverage > 0.9).astype(np.uint8), np.ones((5, 5), np.uint8))
        return scene.compose(coverage * (1 - _blob(rng, _random_pixel(rng, solid), radius * 0.8, 0.2)))
    edge = _random_pixel(rng, _edge(coverage))
    if defect == "bite":
        return scene.compose(coverage * (1 - _blob(rng, edge, radius)))
    if defect == "bulge":
        return scene.compose(np.maximum(coverage, _blob(rng, edge, radius)))
    # Across the figure for a gap, across the ground for a bridge: along the gradient of the coverage.
    soft = cv2.GaussianBlur(coverage, (0, 0), 2)
    x, y = (int(v) for v in np.clip(edge, 1, SIDE - 2))
    across = np.array([soft[y, x + 1] - soft[y, x - 1], soft[y + 1, x] - soft[y - 1, x]])
    across = across / (np.linalg.norm(across) + 1e-6) * (1 if defect == "gap" else -1)
    line = edge + np.outer(np.linspace(-2, rng.uniform(8, 40), 6), across) + rng.normal(0, 1, (6, 2))
    cut = _trace(line, rng.uniform(2, 9))
    return scene.compose(coverage * (1 - cut) if defect == "gap" else np.maximum(coverage, cut))


def _mark(rng: Generator, image: Array, other: Array, at: Array, defect: str, grow: float) -> Array:
    """A surface defect at pixel `at` (x, y); `other` is an image of foreign material, `grow` scales the size."""
    size = grow * float(np.clip(np.exp(rng.normal(2.3, 0.6)), 3, 42))
    x, y = (int(v) for v in np.clip(at, 0, SIDE - 1))
    local = image[max(y - 12, 0) : y + 13, max(x - 12, 0) : x + 13].mean((0, 1))
    strength = float(np.exp(rng.uniform(np.log(0.1), np.log(0.7)))) * (-1 if rng.random() < 0.65 else 1)
    tint = local + strength + (rng.normal(0, 0.2, 3) if rng.random() < 0.3 else 0)
    ink = np.clip(tint, 0, 1).astype(np.float32)
    opacity = rng.uniform(0.6, 1)
    if defect == "scratch":
        points = _random_line(rng, 8, rng.uniform(3, 22), 0.08) + at
        lines = _trace(points, rng.uniform(0.7, 2.5))
        if rng.random() < 0.3:
            lines = np.maximum(lines, _trace(points + rng.normal(0, 7, 2), rng.uniform(0.7, 2)))
        return blend(image, ink, opacity * lines)
    if defect == "hair":
        points = _random_line(rng, 30, rng.uniform(2, 7), 0.3) + at
        return blend(image, ink, opacity * _trace(points, rng.uniform(0.8, 1.8)))
    if defect == "crack":
        points = _random_line(rng, 24, rng.uniform(2, 9), 0.55) + at
        lines = _trace(points, rng.uniform(0.8, 3))
        for _ in range(int(rng.integers(0, 3))):
            branch = _random_line(rng, 10, rng.uniform(2, 7), 0.5)
            lines = np.maximum(lines, _trace(branch - branch[0] + points[rng.integers(24)], rng.uniform(0.7, 2)))
        return blend(image, np.minimum(ink, local * rng.uniform(0.2, 1)), opacity * lines)
    if defect == "seam":  # a crack along the lines of the surface
        turn = rng.normal(0, 0.25) + (0 if is_vertical(image) else np.pi / 2)
        points = np.cumsum(np.stack([rng.normal(0, 0.9, 40), np.full(40, rng.uniform(0.7, 4))], 1), 0)
        turned = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        cracks = _trace((points - points.mean(0)) @ turned + at, rng.uniform(0.7, 2.2))
        return blend(image, local * rng.uniform(0.1, 0.65), opacity * cracks)
    if defect in ("spots", "pit"):
        count = int(rng.integers(1, 6)) if defect == "spots" else int(rng.integers(1, 3))
        spots = np.zeros((SIDE, SIDE), np.float32)
        for k in range(count):
            offset = 0 if k == 0 else rng.normal(0, 2.5 * size, 2)
            spots = np.maximum(spots, _blob(rng, at + offset, size * (0.6 if defect == "spots" else 0.4) + 1.5))
        if defect == "spots":
            return blend(image, ink, opacity * spots)
        rim = np.clip(cv2.GaussianBlur(spots, (0, 0), 2) * 2 - spots, 0, 1)
        return blend(image + (rng.uniform(-0.1, 0.25) * rim)[..., None], local * rng.uniform(0.1, 0.6), opacity * spots)
    if defect == "stain":
        weight = cv2.GaussianBlur(_blob(rng, at, 1.5 * size), (0, 0), rng.uniform(0.7, 5))
        return blend(image, ink, rng.uniform(0.3, 0.7) * weight)
    if defect == "uneven":
        weight = _blob(rng, at, 2.2 * size, 0.8)
        if rng.random() < 0.5:
            turn = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
            u = (XX - x) * np.cos(turn) + (YY - y) * np.sin(turn) + 5 * noise(rng, 1.5)
            v = -(XX - x) * np.sin(turn) + (YY - y) * np.cos(turn) + 5 * noise(rng, 1.5)
            weight = ((np.abs(u) < size) & (np.abs(v) < size * rng.uniform(1, 5))).astype(np.float32)
        weight = cv2.GaussianBlur(weight, (0, 0), rng.uniform(0.5, 4))
        return image + (weight * np.clip(strength, -0.35, 0.35))[..., None]
    if defect == "rough":
        weight = cv2.GaussianBlur(_blob(rng, at, 1.5 * size, 0.8), (0, 0), 1)
        if rng.random() < 0.4:
            return blend(image, cv2.GaussianBlur(image, (0, 0), rng.uniform(2.5, 6)), weight)
        return blend(image, image + abs(strength) * noise(rng, rng.choice([0.0, 0.5, 0.8, 1.1]))[..., None], weight)
    if defect == "dent":
        reach = 0.8 * size + 3
        turn = rng.uniform(0, 2 * np.pi)
        u = ((XX - x) * np.cos(turn) + (YY - y) * np.sin(turn)) / reach
        hill = np.exp(-((XX - x) ** 2 + (YY - y) ** 2) / (2 * reach**2))
        return image + (u * hill * rng.uniform(0.25, 0.9))[..., None]
    if defect == "foreign":
        return blend(image, other, opacity * _blob(rng, at, size))
    if defect == "pasted":
        height, width = rng.integers(10, 60, 2)
        top, left = int(np.clip(y - height // 2, 0, SIDE - height)), int(np.clip(x - width // 2, 0, SIDE - width))
        from_y, from_x = rng.integers(0, SIDE - height), rng.integers(0, SIDE - width)
        patch = image[from_y : from_y + height, from_x : from_x + width][:: int(rng.choice([-1, 1]))]
        pasted = image.copy()
        pasted[top : top + height, left : left + width] = patch * rng.uniform(0.75, 1.25)
        return blend(image, pasted, _blob(rng, at, 0.5 * max(height, width))) if rng.random() < 0.5 else pasted
    reach = size + 10  # bent
    hill = np.exp(-((XX - x) ** 2 + (YY - y) ** 2) / (2 * reach**2))
    dx, dy = rng.normal(0, 0.5 * reach, 2)
    where_x, where_y = (XX + hill * dx).astype(np.float32), (YY + hill * dy).astype(np.float32)
    return cv2.remap(image, where_x, where_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _large_area(rng: Generator, at: Array) -> Array:
    """A large area of the image as a weight [SIDE, SIDE]: beyond a line, between two lines, a blob or a rectangle."""
    turn = rng.choice([0, np.pi / 2, np.pi, -np.pi / 2, rng.uniform(0, 2 * np.pi)])
    waves = rng.uniform(0, 6) * noise(rng, 2.0) + rng.uniform(0, 2) * noise(rng, 1.1)
    u = (XX - at[0]) * np.cos(turn) + (YY - at[1]) * np.sin(turn) + waves
    v = -(XX - at[0]) * np.sin(turn) + (YY - at[1]) * np.cos(turn) + waves
    kind = rng.integers(4)
    if kind == 0:
        inside = u > np.quantile(u, rng.uniform(0.65, 0.96))
    elif kind == 1:
        inside = np.abs(u) < rng.uniform(8, 40)
    elif kind == 2:
        inside = _blob(rng, at, rng.uniform(20, 75), 0.7) > 0.5
    else:
        inside = (np.abs(u) < rng.uniform(12, 50)) & (np.abs(v) < rng.uniform(20, 110))
    return cv2.GaussianBlur(inside.astype(np.float32), (0, 0), rng.choice([0.6, rng.uniform(0.6, 5)]))


def _zone(rng: Generator, image: Array, other: Array, at: Array, part: Array | None) -> tuple[Array, Array] | None:
    """The image with a large zone of another finish (brightness, contrast, grain, blur or material), and its mask.

    `part` [SIDE, SIDE] in 0..1 limits the zone. None if the zone is hardly visible.
    """
    weight = _large_area(rng, at) * (1 if part is None else part)
    smooth = cv2.GaussianBlur(image, (0, 0), 6)
    changed = image
    for change in rng.choice(5, 1 if rng.random() < 0.6 else 2, replace=False):
        if change == 0:
            changed = changed + rng.choice([-1, 1]) * rng.uniform(0.06, 0.28)
        elif change == 1:
            changed = smooth + (changed - smooth) * rng.choice([rng.uniform(0, 0.5), rng.uniform(1.6, 2.8)])
        elif change == 2:
            grain = noise(rng, rng.choice([0.0, 0.5, 0.8]), rng.choice([1, 4, 16]), rng.choice([0, np.pi / 2]))
            changed = changed + rng.uniform(0.04, 0.15) * grain[..., None]
        elif change == 3:
            changed = cv2.GaussianBlur(changed, (0, 0), rng.uniform(1.5, 6))
        else:
            changed = changed + rng.uniform(0.4, 1) * (other + (smooth - other).mean((0, 1)) - changed)
    changed = np.clip(blend(image, changed, weight), 0, 1).astype(np.float32)
    inside = weight > 0.5
    if inside.sum() < 60:
        return None
    shift = np.abs((changed - image)[inside].mean(0)).max()
    before, after = ((i - cv2.blur(i, (15, 15)))[inside].std() for i in (image, changed))
    if shift < 0.05 + 0.5 * before and abs(np.log((after + 0.01) / (before + 0.01))) < 0.5:
        return None
    return changed, inside.astype(np.uint8)


def is_vertical(image: Array) -> bool:
    """Whether the lines of the image's surface run from top to bottom."""
    gray = image.mean(2)
    return bool(np.abs(np.diff(gray, axis=1)).mean() > np.abs(np.diff(gray, axis=0)).mean())


def _front(rng: Generator, image: Array, at: Array, part: Array | None) -> tuple[Array, Array] | None:
    """The image with an area where grinding began or stopped, and its mask: other lines, another brightness.

    In three of four cases its border crosses the lines at a right angle, along the whole or a part of its length; in
    the others it is any large area. `part` [SIDE, SIDE] in 0..1 limits it. None if it is hardly visible.
    """
    vertical = is_vertical(image)
    straight = rng.random()
    if straight < 0.75:
        x, y, where = (XX, YY, at) if vertical else (YY, XX, at[::-1])
        ragged = rng.uniform(0, 3) * (noise(rng, 2.0) + 0.5 * noise(rng, 1.1))
        depth = (y if rng.random() < 0.5 else SIDE - 1 - y) + rng.normal(0, 0.06) * (x - SIDE / 2) + ragged
        reach = rng.uniform(0.05, 0.45) * SIDE
        inside = depth < reach
        if straight < 0.15:  # a band
            inside &= depth > reach - rng.uniform(0.08, 0.3) * SIDE
        if rng.random() < 0.25:  # only up to a point across the image
            inside &= (x < where[0]) if rng.random() < 0.5 else (x > where[0])
        weight = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), rng.choice([0.6, rng.uniform(0.6, 5)]))
    else:
        weight = _large_area(rng, at)
    weight = weight * (1 if part is None else part)
    smooth = cv2.GaussianBlur(image, (0, 0), 6)
    gain = rng.choice([rng.uniform(0.2, 0.8), rng.uniform(1.2, 2.5)])
    marks = lines(rng, rng.uniform(0.5, 2))
    marks = rng.choice([0, rng.uniform(0.02, 0.1)]) * (marks if vertical else marks.T)
    shift = rng.choice([-1, 1, 1]) * np.exp(rng.uniform(np.log(0.025), np.log(0.2)))
    changed = np.clip(blend(image, smooth + gain * (image - smooth) + (marks + shift)[..., None], weight), 0, 1)
    inside = weight > 0.5
    if not 60 <= inside.sum() <= 0.5 * SIDE * SIDE:
        return None
    edge = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((15, 15), np.uint8)) > 0
    moved = np.abs((changed - image)[inside & edge].mean(0)).max()
    before, after = ((i - cv2.blur(i, (15, 15)))[inside].std() for i in (image, changed))
    if moved < 0.02 + 0.4 * before and abs(np.log((after + 0.01) / (before + 0.01))) < 0.4:
        return None
    return changed.astype(np.float32), inside.astype(np.uint8)


def add_defect(
    rng: Generator, scene: Scene, image: Array, wanted: str | None = None
) -> tuple[Array, Array, str] | None:
    """Draw one visible defect, `wanted` or any: the image in 0..1, its mask uint8 [SIDE, SIDE] of 0/1, its name.

    A defect is accepted only if it differs enough from the grain and the texture around it. None after eight failures.
    Three in ten are enlarged.
    """
    coverage = None if scene.figure is None else scene.coverage()
    for _ in range(8):
        grow = float(rng.uniform(1.5, 3.5)) if rng.random() < 0.3 else 1.0
        shaped = coverage is not None and (wanted in SHAPED if wanted else rng.random() < 0.45)
        defect = wanted or str(rng.choice(SHAPED if shaped else SURFACE))
        if coverage is not None and shaped:
            if defect in ("missing", "shifted") and len(scene.strokes) < 2:
                continue
            changed = _reshape(rng, scene, coverage, defect, grow)
        else:
            part = coverage if coverage is not None and rng.random() < 0.9 else None
            at = _random_pixel(rng, np.zeros((2, 2)) if part is None else part > 0.9)
            other = np.clip(image[::-1, ::-1] * rng.uniform(0.4, 1.6) + 0.2 * clouds(rng)[..., None], 0, 1)
            if rng.random() < 0.5:
                base = rng.uniform(0, 1, 3) if rng.random() < 0.5 else rng.uniform(0, 1)
                other = np.clip(base + 0.12 * noise(rng, rng.choice([0.5, 1.1, 2.0]))[..., None], 0, 1)
            other = other.astype(np.float32)
            if defect in ("zone", "front"):
                drawn = _zone(rng, image, other, at, part) if defect == "zone" else _front(rng, image, at, part)
                if drawn is None or drawn[1].sum() > 0.4 * SIDE * SIDE:
                    continue
                return *drawn, defect
            changed = np.clip(_mark(rng, image, other, at, defect, grow), 0, 1).astype(np.float32)
        change = cv2.GaussianBlur(np.abs(changed - image).max(2), (3, 3), 0)
        mask = change > MIN_CHANGE
        # Close the holes of mottled changes: a person would mark the whole defect.
        mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        area = int(mask.sum())
        if not 12 <= area <= 0.25 * SIDE * SIDE:
            continue
        around = cv2.dilate(mask, np.ones((9, 9), np.uint8)) > mask
        grain = float((image - cv2.blur(image, (7, 7)))[around].std()) if around.any() else 0.0
        if change[mask > 0].mean() <= max(1.6 * MIN_CHANGE, 1.5 * grain):
            continue
        texture = np.abs(image - cv2.blur(image, (31, 31))).max(2)
        surroundings = cv2.dilate(mask, np.ones((25, 25), np.uint8)) > mask
        if change[mask > 0].mean() <= 2 * float(np.median(texture[surroundings])) + MIN_CHANGE:
            continue
        return changed, mask, defect
    return None
