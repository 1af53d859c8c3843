"""Training batches: the same window of each image of a product, for several products, with names and captions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captions
import cv2
import numpy as np
import torch
from draw import ANOMALOUS, GOOD
from numpy.random import Generator
from textures import SIDE, Array
from torch.utils.data import IterableDataset

ANOMALOUS_QUERIES = 2  # anomalous images of a product in one batch
IMAGES = GOOD + ANOMALOUS_QUERIES  # of a product in one batch, the good images first
CAPTIONED = 1 + ANOMALOUS_QUERIES  # the last images of a product, which have a caption
SENTENCES = 2  # of each state per product
GRAY_LEVELS = np.linspace(0, 1, 256)
MIN_PIXELS = 6  # of a defect in a training image; with fewer, the image has no label


@dataclass(frozen=True)
class Wear:
    """The wear of a product's good surface: specks, streaks and uneven light; each image draws its own.

    Depths are in units of normalized pixels, which span 2.
    """

    specks: int  # per image
    speck: float  # mean depth of a speck
    streak: float
    along: int  # the axis of the streaks
    light: float

    @classmethod
    def draw(cls, rng: Generator, side: int) -> "Wear":
        """Draw the style of a product; most have one or two of the three."""
        present = rng.random(3) < (0.7, 0.6, 0.6)
        count = int(np.exp(rng.uniform(np.log(5), np.log(side * side / 40))))
        depths = present * (rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.15), rng.uniform(0.05, 0.3))
        return cls(count, float(depths[0]), float(depths[1]), int(rng.integers(2)), float(depths[2]))

    def paint(self, rng: Generator, side: int) -> Array:
        """The wear of one image, float32 [side, side, 1], to be added to its pixels."""
        spots: Array = np.zeros(side * side, np.float32)
        depths = rng.standard_exponential(self.specks) * rng.choice([-1, -1, 1], self.specks)
        spots[rng.integers(0, side * side, self.specks)] = self.speck * depths
        spots = 3 * cv2.GaussianBlur(spots.reshape(side, side), (0, 0), rng.uniform(0.6, 1.0))
        lines = self.streak * rng.standard_normal((side, 1) if self.along else (1, side)).astype(np.float32)
        cells = int(rng.integers(3, 6))
        soft = cv2.resize(rng.standard_normal((2, cells, cells)).astype(np.float32).transpose(1, 2, 0), (side, side))
        return (spots + lines * np.clip(0.7 + 0.5 * soft[..., 0], 0, 2) + self.light * soft[..., 1])[..., None]


@dataclass
class Batch:
    """A batch of P products with n = IMAGES images each; S: side of an image in pixels."""

    pixels: torch.Tensor  # [P·n, 3, S, S] float32, normalized with mean 0.5 and deviation 0.5
    masks: torch.Tensor  # [P·n, S/2, S/2] float32 of 0/1
    labels: torch.Tensor  # [P·n] 0 good, 1 anomalous, -1 too few anomalous pixels
    state_tokens: torch.Tensor  # [P, 2, SENTENCES, context] int64: good, anomalous
    caption_tokens: torch.Tensor  # [P·CAPTIONED, context]
    kinds: torch.Tensor  # [P] int64, -1 where the name does not name the kind


class Batches(IterableDataset[Batch]):
    """Batches of one size from drawn sets; equal seeds give equal batches."""

    def __init__(self, folders: list[Path], products: int, side: int, seed: int, batches: int, worn: float = 0) -> None:
        """Give `batches` batches of `products` products at `side` pixels; `worn` is the share of worn products."""
        self.folders, self.products, self.side, self.seed, self.batches = folders, products, side, seed, batches
        self.worn = worn

    def __iter__(self) -> Iterator[Batch]:
        """Draw one batch after the other."""
        images: list[Array] = []
        masks: list[Array] = []
        products: list[dict[str, Any]] = []
        for folder in self.folders:
            images += list(np.load(folder / "images.npy", mmap_mode="r"))
            masks += list(np.load(folder / "masks.npy", mmap_mode="r"))
            products += json.loads((folder / "products.json").read_text())
        kinds = sorted({facts["kind"] for facts in products})
        rng = np.random.default_rng(self.seed)
        self.grain = rng.standard_normal(4_000_000, np.float32)
        for _ in range(self.batches):
            chosen = rng.choice(len(products), self.products, replace=False)
            yield self._pack([self._product(rng, images[k], masks[k], products[k], kinds) for k in chosen])

    def _product(
        self, rng: Generator, images: Array, masks: Array, facts: dict[str, Any], kinds: list[str]
    ) -> tuple[Array, Array, list[str], list[str], int]:
        """Pixels, masks, state sentences, captions and kind of one product.

        All its images show the same window, with the same rotation and colors.
        """
        picks = [*rng.permutation(GOOD), *(GOOD + rng.permutation(ANOMALOUS)[:ANOMALOUS_QUERIES])]
        window = int(rng.integers(min(int(0.7 * self.side), SIDE), SIDE + 1))
        margin = SIDE - window
        corner = rng.integers(0, margin + 1, 2)
        if rng.random() < 0.75:  # show a defect of one of the two anomalous images
            ys, xs = np.nonzero(masks[picks[-1 if rng.random() < 0.5 else -2], ::2, ::2])
            if len(ys):
                k, border = rng.integers(len(ys)), min(8, window // 4)
                corner = 2 * np.array([ys[k], xs[k]]) - rng.integers(border, window - border, 2)
        jitter = 6 if margin > 6 else 0
        turns, mirror, tint = int(rng.integers(4)), rng.random() < 0.5, rng.random()
        order, invert = rng.permutation(3), rng.random() < 0.15
        contrast = rng.uniform(0.35, 1.1) if rng.random() < 0.5 else 1.0
        level = rng.uniform(0.3, 0.7)
        wear = Wear.draw(rng, self.side) if self.worn and rng.random() < self.worn else None
        size = (self.side, self.side)
        pixels = np.empty((IMAGES, *size, 3), np.float32)
        mask = np.empty((IMAGES, self.side // 2, self.side // 2), np.float32)
        for n, pick in enumerate(picks):
            top, left = np.clip(corner + rng.integers(-jitter, jitter + 1, 2), 0, margin)
            image = images[pick, top : top + window, left : left + window]
            image_mask: Array = masks[pick, top : top + window, left : left + window] * np.uint8(255)
            shrink = cv2.INTER_AREA if window > self.side else cv2.INTER_CUBIC
            image = cv2.resize(image, size, interpolation=shrink)
            image_mask = cv2.resize(image_mask, (self.side // 2, self.side // 2), interpolation=cv2.INTER_AREA)
            image, image_mask = np.rot90(image, turns), np.rot90(image_mask, turns)
            if mirror:
                image, image_mask = image[:, ::-1], image_mask[:, ::-1]
            # Images of one product differ in exposure, in gamma and a little in contrast.
            tone = GRAY_LEVELS[::-1] if invert else GRAY_LEVELS
            tone = level + (tone - level) * contrast * rng.uniform(0.9, 1.1) + rng.normal(0, 0.03)
            tone = np.clip(tone, 1e-3, 1) ** np.exp(rng.normal(0, 0.12))
            tone = ((tone - 0.5) / 0.5).astype(np.float32)
            if tint < 0.4:
                pixels[n] = tone[cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)][..., None]
            else:
                pixels[n] = tone[image[..., order] if tint < 0.7 else image]
            if wear:
                pixels[n] += wear.paint(rng, self.side)
            if rng.random() < 0.5:
                start = rng.integers(0, len(self.grain) - pixels[n].size)
                pixels[n] += 0.06 * rng.random() * self.grain[start : start + pixels[n].size].reshape(pixels[n].shape)
            mask[n] = image_mask
        name, names_kind = captions.draw_name(rng, facts["kind"])
        states = [captions.sentence(rng, name, bool(state)) for state in (0, 1) for _ in range(SENTENCES)]
        caption = [captions.sentence(rng, name, pick >= GOOD, facts["defects"][pick]) for pick in picks[GOOD - 1 :]]
        return pixels, mask, states, caption, kinds.index(facts["kind"]) if names_kind else -1

    def _pack(self, products: list[tuple[Array, Array, list[str], list[str], int]]) -> Batch:
        pixels, masks, states, caption, kinds = zip(*products, strict=True)
        inside = torch.from_numpy(np.concatenate(masks)) / 255
        area = 4 * inside.flatten(1).sum(1)  # in pixels of the image, which has twice the side of the mask
        state_tokens = captions.tokenize([s for sentences in states for s in sentences])
        return Batch(
            pixels=torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).clamp(-1, 1),
            masks=(inside > 0.3).float(),
            labels=torch.where(area >= MIN_PIXELS, 1, torch.where(area > 0, -1, 0)),
            state_tokens=state_tokens.view(len(products), 2, SENTENCES, -1),
            caption_tokens=captions.tokenize([s for sentences in caption for s in sentences]),
            kinds=torch.tensor(kinds),
        )
