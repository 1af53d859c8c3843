"""Drawn products: surfaces, printed and perforated patterns, boards, and parts on a table.

An image consists of two textures, `ground` and `figure`, and a shape that divides them. A shape is a list of strokes
(filled polygons or thick lines, each adding or removing figure). A defect leaves a stroke out, moves it or changes its
edge; the image is then composed from the changed shape.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import textures
from numpy.random import Generator
from textures import SIDE, Array, Texture, blend, clouds, noise


@dataclass(frozen=True)
class Stroke:
    """A filled polygon (width 0) or an open line (width in units) of `points` [n, 2]; it adds figure or removes it."""

    points: Array
    width: float = 0.0
    add: bool = True


@dataclass(frozen=True)
class Scene:
    """What one image shows, before defects and light; textures are [SIDE, SIDE, 3]."""

    ground: Array
    figure: Array | None  # None: a bare surface
    strokes: tuple[Stroke, ...]  # in units
    pose: Array  # [2, 3], affine: units to pixels
    bevel: float

    def coverage(self) -> Array:
        """How much of each pixel is figure, float32 [SIDE, SIDE] in 0..1; drawn at twice the size."""
        canvas = np.zeros((2 * SIDE, 2 * SIDE), np.uint8)
        scale = float(np.sqrt(abs(np.linalg.det(self.pose[:, :2]))))
        for stroke in self.strokes:
            pixels = np.round(2 * (stroke.points @ self.pose[:, :2].T + self.pose[:, 2])).astype(np.int32)
            value = 255 if stroke.add else 0
            if stroke.width:
                cv2.polylines(canvas, [pixels], False, value, max(1, round(2 * stroke.width * scale)))
            else:
                cv2.fillPoly(canvas, [pixels], value)
        return cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255

    def compose(self, coverage: Array | None = None) -> Array:
        """The image [SIDE, SIDE, 3] in 0..1; a given `coverage` replaces the scene's own."""
        if self.figure is None:
            return np.clip(self.ground, 0, 1).astype(np.float32)
        coverage = self.coverage() if coverage is None else coverage
        image = blend(self.ground, self.figure, coverage)
        if self.bevel:
            soft = cv2.GaussianBlur(coverage, (0, 0), 2.5)
            slope = cv2.Sobel(soft, cv2.CV_32F, 1, 0, ksize=3) + cv2.Sobel(soft, cv2.CV_32F, 0, 1, ksize=3)
            image = image + (self.bevel * slope)[..., None]
        return np.clip(image, 0, 1).astype(np.float32)

    def without(self, index: int) -> "Scene":
        """The same scene with one stroke left out."""
        return replace(self, strokes=self.strokes[:index] + self.strokes[index + 1 :])


Product = Callable[[Generator], Scene]
Shape = Callable[[Generator], list[Stroke]]


def circle(x: float, y: float, radius: float, add: bool = True, corners: int = 40, turn: float = 0) -> Stroke:
    """A regular polygon; with many corners, a disc."""
    angle = turn + np.arange(corners) * 2 * np.pi / corners
    return Stroke(np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1), 0.0, add)


def box(x: float, y: float, half_width: float, half_height: float, add: bool = True) -> Stroke:
    """An upright rectangle about (x, y)."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [half_width, half_height]
    return Stroke(corners + np.array([x, y]), 0.0, add)


# Shapes: the outer call draws the style of a product, the returned function lays out one image in units -1..1.


def washer(style: Generator) -> Shape:
    """Washers, flat rings and seals."""
    hole = style.uniform(0.25, 0.85)
    return lambda rng: [circle(0, 0, 1), circle(0, 0, hole, False)]


def disc(style: Generator) -> Shape:
    """Discs, coins, lids; some with an embossed ring, some oval."""
    ring, oval = style.uniform(0.5, 0.9), style.uniform(0.6, 1)
    strokes = [circle(0, 0, 1)]
    if style.random() < 0.4:
        strokes += [circle(0, 0, ring, False), circle(0, 0, ring - 0.05)]
    strokes = [replace(s, points=s.points * [1, oval]) for s in strokes]
    return lambda rng: strokes


def nut(style: Generator) -> Shape:
    """Polygonal nuts."""
    corners, hole = int(style.choice([4, 6, 6, 8])), style.uniform(0.35, 0.65)
    return lambda rng: [circle(0, 0, 1, True, corners), circle(0, 0, hole, False)]


def gear(style: Generator) -> Shape:
    """A toothed wheel."""
    teeth, hole, depth = int(style.integers(8, 24)), style.uniform(0.15, 0.5), style.uniform(0.15, 0.3)
    strokes = [circle(0, 0, 1 - depth)]
    for angle in np.arange(teeth) * 2 * np.pi / teeth:
        foot = 1 - 1.3 * depth
        tooth = np.array([[foot, -1.8 / teeth], [1, -1 / teeth], [1, 1 / teeth], [foot, 1.8 / teeth]])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        strokes.append(Stroke(tooth @ turn.T))
    strokes.append(circle(0, 0, hole, False))
    if style.random() < 0.4:
        strokes += [circle(0.6 * np.cos(a), 0.6 * np.sin(a), 0.1, False) for a in np.arange(6) * np.pi / 3]
    return lambda rng: strokes


def plate(style: Generator) -> Shape:
    """A plate with drilled holes and slots."""
    aspect = style.uniform(0.4, 1)
    strokes = [box(0, 0, 1, aspect)]
    if style.random() < 0.5:
        strokes += [circle(x, y * aspect, 0.09, False) for x in (-0.8, 0.8) for y in (-0.7, 0.7)]
    for _ in range(int(style.integers(0, 5))):
        x, y = style.uniform(-0.55, 0.55, 2) * [1, aspect]
        if style.random() < 0.6:
            strokes.append(circle(x, y, style.uniform(0.06, 0.2), False))
        else:
            strokes.append(box(x, y, 0.2, 0.06, False))
    return lambda rng: strokes


def bracket(style: Generator) -> Shape:
    """An angle or U bracket with holes."""
    leg, width = style.uniform(0.6, 1), style.uniform(0.25, 0.45)
    strokes = [box(0, 0.9 - width, 1, width), box(-1 + width, 0, width, leg)]
    if style.random() < 0.5:
        strokes.append(box(1 - width, 0, width, leg))
    strokes += [circle(0.2, 0.9 - width, width * 0.4, False), circle(-1 + width, -0.4 * leg, width * 0.4, False)]
    return lambda rng: strokes


def capsule(style: Generator) -> Shape:
    """Capsules, pills and pins."""
    width = style.uniform(0.35, 0.9)
    strokes = [Stroke(np.array([[-1 + width / 2, 0], [1 - width / 2, 0]]), width)]
    if style.random() < 0.4:
        strokes.append(box(0, 0, 0.02, width * 0.45, False))
    return lambda rng: strokes


def screw(style: Generator) -> Shape:
    """A screw or bolt from the side."""
    shank, head, turns = style.uniform(0.12, 0.25), style.uniform(0.3, 0.5), int(style.integers(6, 16))
    strokes = [box(0.15, 0, 0.85, shank), box(-0.8, 0, 0.2, head)]
    for x in np.linspace(-0.3, 0.95, turns):
        strokes.append(Stroke(np.array([[x - 0.04, -shank * 1.35], [x + 0.04, shank * 1.35]]), 0.05))
    return lambda rng: strokes


def bottle(style: Generator) -> Shape:
    """A bottle seen from above: concentric rings."""
    radii = np.sort(style.uniform(0.2, 0.95, int(style.integers(2, 5))))[::-1]
    strokes = [circle(0, 0, 1)]
    for radius in radii:
        strokes += [circle(0, 0, radius, False), circle(0, 0, max(radius - style.uniform(0.04, 0.12), 0.02))]
    return lambda rng: strokes


def connector(style: Generator) -> Shape:
    """A housing with a row of pins or a chip with legs on both sides."""
    pins, body, both = int(style.integers(4, 12)), style.uniform(0.25, 0.5), style.random() < 0.6
    strokes = [box(0, 0, 1, body)]
    for x in np.linspace(-0.88, 0.88, pins):
        strokes.append(box(x, body + 0.15, 0.4 / pins, 0.2))
        if both:
            strokes.append(box(x, -body - 0.15, 0.4 / pins, 0.2))
    return lambda rng: strokes


def spring(style: Generator) -> Shape:
    """A coil, cable or clip seen from the side: one wavy line."""
    turns, height, width = style.integers(3, 10), style.uniform(0.2, 0.6), style.uniform(0.06, 0.16)
    x = np.linspace(-1, 1, 120)
    line = np.stack([x, height * np.sin(x * np.pi * turns)], 1)
    return lambda rng: [Stroke(line, width)]


def star(style: Generator) -> Shape:
    """A cut-out with irregular or star outline: gaskets, biscuits, castings."""
    corners = int(style.integers(5, 14))
    radius = style.uniform(0.6, 1, 2 * corners) if style.random() < 0.5 else np.tile(style.uniform(0.5, 1, 2), corners)
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    knots = np.append(radius, radius[0])
    outline = np.interp(angle, np.linspace(0, 2 * np.pi, len(knots)), knots)
    strokes = [Stroke(np.stack([outline * np.cos(angle), outline * np.sin(angle)], 1))]
    for _ in range(style.integers(0, 4)):
        x, y = style.uniform(-0.4, 0.4, 2)
        strokes.append(circle(x, y, style.uniform(0.05, 0.2), False))
    return lambda rng: strokes


def flange(style: Generator) -> Shape:
    """A disc with a bore and a ring of bolt holes."""
    holes, bore, ring = int(style.integers(3, 10)), style.uniform(0, 0.45), style.uniform(0.6, 0.8)
    size = style.uniform(0.06, 0.14)
    angles = np.arange(holes) * 2 * np.pi / holes
    strokes = [circle(0, 0, 1), *(circle(ring * np.cos(a), ring * np.sin(a), size, False) for a in angles)]
    if bore > 0.1:
        strokes.append(circle(0, 0, bore, False))
    return lambda rng: strokes


def rotor(style: Generator) -> Shape:
    """A hub with spokes or blades, in half of the styles within a rim."""
    spokes, hub, width = int(style.integers(3, 10)), style.uniform(0.15, 0.4), style.uniform(0.06, 0.3)
    sweep = style.choice([0, style.uniform(-0.8, 0.8)])
    strokes = []
    for a in np.arange(spokes) * 2 * np.pi / spokes:
        reach, angle = np.linspace(0, 0.92, 8), a + sweep * np.linspace(0, 1, 8)
        strokes.append(Stroke(np.stack([reach * np.cos(angle), reach * np.sin(angle)], 1), width))
    if style.random() < 0.5:
        around = np.linspace(0, 2 * np.pi, 60)
        strokes.append(Stroke(0.9 * np.stack([np.cos(around), np.sin(around)], 1), style.uniform(0.08, 0.2)))
    strokes += [circle(0, 0, hub), circle(0, 0, hub * 0.4, False)]
    return lambda rng: strokes


def knob(style: Generator) -> Shape:
    """A softly lobed outline, with or without a bore: knobs, caps, handwheels."""
    lobes, depth, bore = int(style.integers(3, 12)), style.uniform(0.04, 0.25), style.uniform(0, 0.5)
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = (1 + depth * np.cos(lobes * angle)) / (1 + depth)
    strokes = [Stroke(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1))]
    if bore > 0.15:
        strokes.append(circle(0, 0, bore, False))
    return lambda rng: strokes


def dial(style: Generator) -> Shape:
    """A round scale: a ring, ticks and a hand."""
    ticks, inner = int(style.integers(8, 40)), style.uniform(0.65, 0.85)
    strokes = [circle(0, 0, 1), circle(0, 0, 0.95, False)]
    for k, a in enumerate(np.linspace(0, 2 * np.pi * style.uniform(0.6, 1), ticks, endpoint=False)):
        start = inner - (0.1 if k % 5 == 0 else 0)
        strokes.append(
            Stroke(
                np.array([[start, 0], [0.95, 0]]) @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]), 0.03
            )
        )
    hub = style.uniform(0.05, 0.2)

    def layout(rng: Generator) -> list[Stroke]:
        a = rng.uniform(0, 2 * np.pi)
        hand = Stroke(np.array([[0, 0], [0.6 * np.cos(a), 0.6 * np.sin(a)]]), 0.05)
        return [*strokes, hand, circle(0, 0, hub)]

    return layout


def frame(style: Generator) -> Shape:
    """Nested rectangles: frames, housings, trays, some with partitions."""
    aspect, walls = style.uniform(0.5, 1), int(style.integers(1, 4))
    strokes, outer = [], 1.0
    for _ in range(walls):
        inner = outer - style.uniform(0.06, 0.2)
        strokes += [box(0, 0, outer, outer * aspect), box(0, 0, inner, inner * aspect, False)]
        outer = inner - style.uniform(0.05, 0.15)
    for x in style.uniform(-0.6, 0.6, int(style.integers(0, 4))):
        strokes.append(box(x, 0, 0.04, outer * aspect))
    return lambda rng: strokes


def compound(style: Generator) -> Shape:
    """Any part: a body with a few features, each alone or repeated about the center, mostly inside the body."""
    form, aspect = style.integers(4), style.uniform(0.5, 1)
    if form == 0:
        strokes = [circle(0, 0, 1, corners=int(style.choice([3, 4, 5, 6, 8, 40])))]
    elif form == 1:
        strokes = [box(0, 0, 1, aspect)]
    elif form == 2:
        strokes = [box(0, 0, 1, aspect * 0.5), circle(0, 0, aspect), box(0, 0, aspect * 0.4, 0.95)]
    else:
        angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        waves = sum(style.normal(0, 0.25 / k) * np.cos(k * angle + style.uniform(0, 6.3)) for k in range(1, 7))
        radius = np.clip(0.75 + waves, 0.35, 1)
        strokes = [Stroke(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1))]
    for _ in range(int(style.integers(1, 6))):
        fold = int(style.choice([1, 1, 2, 3, 4, 6, 8, 12]))
        size, reach = style.uniform(0.05, 0.2), style.uniform(0.2, 0.6)
        start, feature, add = style.uniform(0, 2 * np.pi), style.integers(4), style.random() < 0.25
        reach *= aspect if form in (1, 2) else 1
        size = min(size, 2.4 * reach / fold)
        for turn in start + np.arange(fold) * 2 * np.pi / fold:
            heading = np.array([np.cos(turn), np.sin(turn)])
            x, y = reach * heading
            if feature == 0:
                strokes.append(circle(x, y, size, add))
            elif feature == 1:
                strokes.append(circle(x, y, size, add, int(style.choice([3, 4, 6])), turn))
            elif feature == 2:
                strokes.append(Stroke(np.stack([0.6 * reach * heading, 1.2 * reach * heading]), size * 0.6, add))
            else:
                strokes += [circle(x, y, size, False), circle(x, y, size * 0.6)]
    return lambda rng: strokes


def mesh(style: Generator) -> Shape:
    """A grid of bars over the whole image."""
    pitch, width = style.uniform(0.12, 0.4), style.uniform(0.15, 0.5)
    skew = style.choice([0, 0, style.uniform(-0.5, 0.5)])

    def layout(rng: Generator) -> list[Stroke]:
        dx, dy = rng.uniform(0, pitch, 2)
        at = np.arange(-2, 2, pitch)
        bars = [Stroke(np.array([[x + dx, -2], [x + dx + skew, 2]]), pitch * width) for x in at]
        return bars + [Stroke(np.array([[-2, y + dy], [2, y + dy]]), pitch * width) for y in at]

    return layout


def perforation(style: Generator) -> Shape:
    """Rows of round, square or hexagonal dots, straight or staggered."""
    pitch, size, stagger = style.uniform(0.18, 0.5), style.uniform(0.2, 0.45), style.random() < 0.5
    corners, turn = int(style.choice([4, 6, 24, 24])), style.choice([0, np.pi / 4])

    def layout(rng: Generator) -> list[Stroke]:
        dx, dy = rng.uniform(0, pitch, 2)
        rows = np.arange(-1.6, 1.6, pitch)
        return [
            circle(x + dx + (pitch / 2 if stagger and k % 2 else 0), y + dy, pitch * size, True, corners, turn)
            for k, y in enumerate(rows)
            for x in rows
        ]

    return layout


def stripes(style: Generator) -> Shape:
    """Parallel lines: ribs, bar codes, louvers."""
    widths = style.uniform(0.03, 0.25, 40) if style.random() < 0.5 else np.full(40, style.uniform(0.05, 0.25))
    edges = np.cumsum(widths)
    edges = edges / edges[-1] * max(4, edges[-1]) - 2

    def layout(rng: Generator) -> list[Stroke]:
        shift = rng.uniform(-0.1, 0.1)
        return [box((a + b) / 2 + shift, 0, (b - a) / 2, 2) for a, b in zip(edges[::2], edges[1::2], strict=False)]

    return layout


def traces(style: Generator) -> Shape:
    """Conductors of a board: bundles of parallel lines with bends, lands and vias; half of the styles vary by image."""
    pitch = style.uniform(0.09, 0.22)
    width, land, turns = pitch * style.uniform(0.25, 0.6), style.uniform(0.6, 1), int(style.integers(1, 4))
    fixed, seed, bundles = style.random() < 0.5, int(style.integers(1 << 30)), int(style.integers(5, 15))
    round_lands = style.random() < 0.6

    def layout(rng: Generator) -> list[Stroke]:
        draw = np.random.default_rng(seed) if fixed else rng
        strokes = []
        for _ in range(bundles):
            start, heading = draw.uniform(-1, 1, 2), draw.integers(8) * np.pi / 4
            path, angle = [start], heading
            for _ in range(turns + 1):
                path.append(path[-1] + draw.uniform(0.3, 1) * np.array([np.cos(angle), np.sin(angle)]))
                angle += draw.choice([-1, 1]) * np.pi / 4
            aside = pitch * np.array([-np.sin(heading), np.cos(heading)])
            for lane in range(int(draw.integers(1, 6))):
                line = np.array(path) + lane * aside
                strokes.append(Stroke(line, width))
                if draw.random() < 0.6:
                    x, y = line[-1]
                    pad = circle(x, y, pitch * land * 0.5) if round_lands else box(x, y, pitch * 0.4, pitch * 0.4)
                    strokes.append(pad)
                    if draw.random() < 0.5:
                        strokes.append(circle(x, y, pitch * 0.15, False))
        return strokes

    return layout


def print_marks(style: Generator) -> Shape:
    """A printed label: rows of glyph-like strokes with rules and frames."""
    rows, seed = int(style.integers(3, 9)), int(style.integers(1 << 30))
    height = 1.6 / rows
    weight = height * style.uniform(0.08, 0.2)

    def layout(rng: Generator) -> list[Stroke]:
        draw = np.random.default_rng(seed)
        strokes = []
        for y in np.linspace(-0.85, 0.85, rows):
            if draw.random() < 0.15:
                strokes.append(Stroke(np.array([[-0.9, y], [0.9, y]]), weight))
                continue
            x = -0.9
            while x < draw.uniform(0.3, 0.9):
                glyph = draw.integers(0, 3, (int(draw.integers(3, 6)), 2)) / 2 - 0.5
                strokes.append(Stroke(glyph * [height * 0.45, height * 0.6] + [x + height * 0.25, y], weight))
                x += height * (0.65 if draw.random() < 0.85 else 1.2)
        return strokes

    return layout


def keys(style: Generator) -> Shape:
    """A regular field of buttons, tiles or pads."""
    columns, rows = style.integers(2, 7, 2)
    fill = style.uniform(0.6, 0.92)
    strokes = [
        box(x, y, fill / columns, fill / rows)
        for x in (np.arange(columns) + 0.5) * 2 / columns - 1
        for y in (np.arange(rows) + 0.5) * 2 / rows - 1
    ]
    return lambda rng: strokes


def strip(style: Generator) -> Shape:
    """A body that fills the image except beyond one or two straight edges: bars, slabs, sheets, tiles."""
    left, right = style.uniform(-0.95, -0.6), style.uniform(0.6, 1.6)
    return lambda rng: [box((left + right) / 2, 0, (right - left) / 2, 2)]


@dataclass(frozen=True)
class Kind:
    """A kind of product: its possible names, its shape (None: a bare surface) and the textures of its figure."""

    names: tuple[str, ...]
    shape: Callable[[Generator], Shape] | None
    figure: tuple[Callable[[Generator], Texture], ...] = ()
    layout: str = "part"  # "part" lies on a ground, "field" fills the image


BODY = (
    textures.plain, textures.plain, textures.brushed_metal, textures.cast_metal, textures.cast_metal, textures.stone,
)  # fmt: skip

KINDS: dict[str, Kind] = {
    "metal": Kind(
        ("metal surface", "steel sheet", "ground metal", "brushed metal", "metal plate"),
        None,
        (textures.brushed_metal,),
    ),
    "casting": Kind(
        ("cast iron", "casting", "concrete", "sandpaper", "ferrite", "cast surface"), None, (textures.cast_metal,)
    ),
    "plain": Kind(("plastic sheet", "glass", "painted panel", "ceramic", "paper", "enamel"), None, (textures.plain,)),
    "stone": Kind(("stone", "marble", "granite", "slab", "rock", "worktop"), None, (textures.stone,)),
    "wood": Kind(("wood", "wooden board", "plank"), None, (textures.wood,)),
    "fabric": Kind(("fabric", "cloth", "carpet", "textile", "canvas", "weave"), None, (textures.fabric,)),
    "leather": Kind(("leather", "hide"), None, (textures.leather,)),
    "cells": Kind(("foam", "sponge", "terrazzo", "glaze", "mosaic"), None, (textures.cells,)),
    "gravel": Kind(("gravel", "granulate", "chips", "pebbles"), None, (textures.dead_leaves,)),
    "photo": Kind(("texture", "brick", "grass", "wall", "ground", "bark"), None, (textures.photograph,)),
    "mesh": Kind(("grid", "mesh", "screen", "lattice", "net"), mesh, BODY, "field"),
    "perforation": Kind(("perforated sheet", "dot pattern", "filter", "grille"), perforation, BODY, "field"),
    "stripes": Kind(("ribbed sheet", "bar code", "louvre", "heat sink"), stripes, BODY, "field"),
    "board": Kind(
        ("circuit board", "pcb", "printed circuit", "board", "wiring"), traces, (textures.plain,) * 3 + BODY, "field"
    ),
    "label": Kind(("label", "print", "name plate", "package", "sticker"), print_marks, BODY, "field"),
    "keys": Kind(("keypad", "tiles", "pavement", "panel", "solar cell"), keys, BODY, "field"),
    "strip": Kind(("tile", "bar", "strip", "slab", "sheet", "rail"), strip, BODY + (textures.cast_metal,) * 3, "field"),
    "washer": Kind(("washer", "ring", "seal", "gasket"), washer, BODY),
    "disc": Kind(("disc", "lid", "coin", "button", "wafer", "tablet"), disc, BODY),
    "nut": Kind(("nut", "hex nut", "metal nut"), nut, BODY),
    "gear": Kind(("gear", "cog wheel", "sprocket"), gear, BODY),
    "plate": Kind(("plate", "flange", "cover", "drilled plate"), plate, BODY),
    "bracket": Kind(("bracket", "angle", "mount", "clip"), bracket, BODY),
    "capsule": Kind(("capsule", "pill", "pin", "fuse", "bean"), capsule, BODY),
    "screw": Kind(("screw", "bolt", "stud"), screw, BODY),
    "bottle": Kind(("bottle", "bottle top", "flask"), bottle, BODY),
    "connector": Kind(("connector", "chip", "socket", "transistor"), connector, BODY),
    "spring": Kind(("spring", "cable", "wire", "coil", "zipper"), spring, BODY),
    "flange": Kind(("flange", "end cover", "hub", "brake disc"), flange, BODY),
    "rotor": Kind(("fan", "wheel", "impeller", "rotor"), rotor, BODY),
    "knob": Kind(("knob", "cap", "handwheel", "closure"), knob, BODY),
    "dial": Kind(("dial", "gauge", "scale", "clock"), dial, BODY),
    "frame": Kind(("frame", "housing", "tray", "case"), frame, BODY),
    "ground": Kind(
        ("ground metal", "magnet", "tile", "machined surface", "ferrite", "metal block", "rolled steel"),
        None,
        (textures.ground_metal,),
    ),
    "guide": Kind(("rail", "guide", "tile", "bar", "machined strip"), strip, (textures.ground_metal,), "field"),
    "rolled": Kind(
        ("rolled sheet", "ground metal", "magnet", "tile", "lapped face", "steel strip"), None, (textures.lined_metal,)
    ),
    "slide": Kind(("slide", "tile", "bar", "ground strip"), strip, (textures.lined_metal,), "field"),
    "compound": Kind(("fitting", "insert", "turned part", "valve", "moulding", "lock", "body"), compound, BODY),
    "star": Kind(("cut-out", "biscuit", "stamped part", "forging", "hazelnut"), star, BODY),
}
HELD_OUT = ("wood", "leather", "gear", "bottle")  # never drawn for training, only to measure the model
# Kinds that have their own drawn sets:
GROUND = ("ground", "guide")
LINED = ("rolled", "slide")
COMPOUND = ("compound",)


def make_product(kind: str, style: Generator) -> Product:
    """Draw the style of one product of a kind; the returned function draws one scene of it."""
    about = KINDS[kind]
    figure = about.figure[style.integers(len(about.figure))](style)
    if about.shape is None:
        return lambda rng: Scene(figure(rng), None, (), np.eye(2, 3), 0.0)
    options = (textures.plain, textures.plain, textures.cast_metal, textures.brushed_metal, textures.fabric)
    ground = options[style.integers(len(options))](style)
    shape = about.shape(style)
    part = about.layout == "part"
    several = part and style.random() < 0.2
    aligned = not part or style.random() < 0.5
    size = style.uniform(0.5, 0.92) if part else style.uniform(0.8, 1.4)
    angle = style.choice([0, 0, np.pi / 2, style.uniform(0, np.pi)]) if not part else style.uniform(0, 2 * np.pi)
    swapped, bevel = style.random() < 0.5, style.choice([0, style.uniform(0.05, 0.5)])

    def draw_scene(rng: Generator) -> Scene:
        under, over = ground(rng), figure(rng)
        gap = np.abs(under.mean((0, 1)) - over.mean((0, 1))).max()
        if gap < 0.2:  # the shape would be hard to see: move the ground's brightness away from it
            under = under + (0.35 if over.mean() < 0.5 else -0.35)
        if not part and swapped:
            under, over = over, under
        strokes = shape(rng)
        if several:
            strokes = [
                replace(s, points=s.points * 0.45 + [dx, dy], width=s.width * 0.45)
                for dx in (-0.5, 0.5) for dy in (-0.5, 0.5) for s in strokes
            ]  # fmt: skip
        turned = angle + (rng.normal(0, 0.02) if aligned else rng.uniform(0, 2 * np.pi))
        scale = size * SIDE / 2 * rng.uniform(0.97, 1.03)
        shift = rng.normal(0, 3 if aligned else 8, 2) + SIDE / 2
        c, s = np.cos(turned) * scale, np.sin(turned) * scale
        return Scene(under, over, tuple(strokes), np.array([[c, -s, shift[0]], [s, c, shift[1]]]), float(bevel))

    return draw_scene


def expose(rng: Generator, image: Array) -> Array:
    """Add light, blur and noise, as a camera would, to a composed image; never a defect. uint8 [SIDE, SIDE, 3]."""
    gain = rng.uniform(0.8, 1.12) + rng.normal(0, 0.02, 3)
    image = image * gain.astype(np.float32)
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        along = (textures.XX / SIDE - 0.5) * np.cos(angle) + (textures.YY / SIDE - 0.5) * np.sin(angle)
        image = image * (1 + rng.uniform(0, 0.5) * along)[..., None]
    if rng.random() < 0.4:
        image = image * (1 + rng.uniform(0, 0.15) * clouds(rng, 2))[..., None]
    if rng.random() < 0.2:
        x, y = rng.uniform(-40, SIDE + 40, 2)
        glow = np.exp(-((textures.XX - x) ** 2 + (textures.YY - y) ** 2) / (2 * rng.uniform(40, 110) ** 2))
        image = image + rng.uniform(0.05, 0.3) * glow[..., None]
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.6:
        grain = rng.uniform(0.003, 0.035)
        image = image + grain * noise(rng, rng.choice([0.0, 0.0, 0.5]))[..., None]
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
