"""Training batches: windows of a product's pictures, as many products as fit, with names and captions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import captions
import cv2
import numpy as np
import torch
from draw import BAD, GOOD
from numpy.random import Generator
from textures import SIDE
from torch.utils.data import IterableDataset

QUERIES_BAD = 2  # defective pictures of a product in one batch
PICTURES = GOOD + QUERIES_BAD  # of a product in one batch: the good ones first
CAPTIONED = 1 + QUERIES_BAD  # the last pictures of a product, which have a caption
SENTENCES = 2  # of each state per product
TONES = np.linspace(0, 1, 256)
SEEN = 6  # least pixels of a mask in the training picture that make it defective; fewer are not judged


@dataclass(frozen=True)
class Wear:
    """How worn or dusty the good surface of a product is: specks, streaks and uneven light, anew in every picture."""

    specks: int
    speck: float  # mean depth of a speck; pixels span 2
    streak: float
    along: int  # the axis of the streaks
    light: float

    @classmethod
    def draw(cls, rng: Generator, side: int) -> "Wear":
        """Draw a product's style; most have one or two of the three."""
        present = rng.random(3) < (0.7, 0.6, 0.6)
        count = int(np.exp(rng.uniform(np.log(5), np.log(side * side / 40))))
        depths = present * (rng.uniform(0.1, 0.4), rng.uniform(0.02, 0.15), rng.uniform(0.05, 0.3))
        return cls(count, float(depths[0]), float(depths[1]), int(rng.integers(2)), float(depths[2]))

    def paint(self, rng: Generator, side: int) -> np.ndarray:
        """One picture's wear, float32 [side, side, 1], to be added to its pixels."""
        spots = np.zeros(side * side, np.float32)
        depths = rng.standard_exponential(self.specks) * rng.choice([-1, -1, 1], self.specks)
        spots[rng.integers(0, side * side, self.specks)] = self.speck * depths
        spots = 3 * cv2.GaussianBlur(spots.reshape(side, side), (0, 0), rng.uniform(0.6, 1.0))
        lines = self.streak * rng.standard_normal((side, 1) if self.along else (1, side)).astype(np.float32)
        cells = int(rng.integers(3, 6))
        soft = cv2.resize(rng.standard_normal((2, cells, cells)).astype(np.float32).transpose(1, 2, 0), (side, side))
        return (spots + lines * np.clip(0.7 + 0.5 * soft[..., 0], 0, 2) + self.light * soft[..., 1])[..., None]


@dataclass
class Batch:
    """P products, n = PICTURES pictures each, side S."""

    pixels: torch.Tensor  # [P·n, 3, S, S] float32, mean 0.5 and deviation 0.5 taken out
    masks: torch.Tensor  # [P·n, S/2, S/2] float32 of 0/1
    labels: torch.Tensor  # [P·n] 0 good, 1 defective, -1 too small to judge
    state_tokens: torch.Tensor  # [P, 2, SENTENCES, context] int64: good, defective
    caption_tokens: torch.Tensor  # [P·CAPTIONED, context]
    kinds: torch.Tensor  # [P] int64, -1 where the name says nothing of the kind


class Batches(IterableDataset):
    """Endless batches of one size from a drawn set; the same for the same seed."""

    def __init__(self, folders: list[Path], products: int, side: int, seed: int, batches: int, worn: float = 0) -> None:
        """So many batches of so many products at `side` pixels from drawn sets, a share of the products worn."""
        self.folders, self.products, self.side, self.seed, self.batches = folders, products, side, seed, batches
        self.worn = worn

    def __iter__(self) -> Iterator[Batch]:
        """Draw the batches, one after the other."""
        images, masks, about = [], [], []
        for folder in self.folders:
            images += list(np.load(folder / "images.npy", mmap_mode="r"))
            masks += list(np.load(folder / "masks.npy", mmap_mode="r"))
            about += json.loads((folder / "products.json").read_text())
        kinds = sorted({a["kind"] for a in about})
        rng = np.random.default_rng(self.seed)
        self.grain = rng.standard_normal(4_000_000, np.float32)
        for _ in range(self.batches):
            chosen = rng.choice(len(about), self.products, replace=False)
            parts = [self._product(rng, images[k], masks[k], about[k], kinds) for k in chosen]
            pixels, mask, states, caption, kind = (list(column) for column in zip(*parts, strict=True))
            yield self._pack(np.concatenate(pixels), np.concatenate(mask), states, caption, kind)

    def _product(
        self, rng: Generator, images: np.ndarray, masks: np.ndarray, about: dict, kinds: list[str]
    ) -> tuple[np.ndarray, np.ndarray, list[str], list[str], int]:
        """One product: the same window of each picture, turned alike, recoloured alike."""
        picks = [*rng.permutation(GOOD), *(GOOD + rng.permutation(BAD)[:QUERIES_BAD])]
        window = int(rng.integers(min(int(0.7 * self.side), SIDE), SIDE + 1))
        room = SIDE - window
        corner = rng.integers(0, room + 1, 2)
        if rng.random() < 0.75:  # on a defect of one of the two
            ys, xs = np.nonzero(masks[picks[-1 if rng.random() < 0.5 else -2], ::2, ::2])
            if len(ys):
                k, margin = rng.integers(len(ys)), min(8, window // 4)
                corner = 2 * np.array([ys[k], xs[k]]) - rng.integers(margin, window - margin, 2)
        jitter = 6 if room > 6 else 0
        turns, mirror, tint = int(rng.integers(4)), rng.random() < 0.5, rng.random()
        order, invert = rng.permutation(3), rng.random() < 0.15
        contrast = rng.uniform(0.35, 1.1) if rng.random() < 0.5 else 1.0
        level = rng.uniform(0.3, 0.7)
        wear = Wear.draw(rng, self.side) if self.worn and rng.random() < self.worn else None
        size = (self.side, self.side)
        pixels = np.empty((PICTURES, *size, 3), np.float32)
        mask = np.empty((PICTURES, self.side // 2, self.side // 2), np.float32)
        for n, pick in enumerate(picks):
            top, left = np.clip(corner + rng.integers(-jitter, jitter + 1, 2), 0, room)
            image = images[pick, top : top + window, left : left + window]
            where = masks[pick, top : top + window, left : left + window] * np.uint8(255)
            shrink = cv2.INTER_AREA if window > self.side else cv2.INTER_CUBIC
            image = cv2.resize(image, size, interpolation=shrink)
            where = cv2.resize(where, (self.side // 2,) * 2, interpolation=cv2.INTER_AREA)
            image, where = np.rot90(image, turns), np.rot90(where, turns)
            if mirror:
                image, where = image[:, ::-1], where[:, ::-1]
            # One photo differs from the next in exposure, in gamma and a little in contrast.
            tone = TONES[::-1] if invert else TONES
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
            mask[n] = where
        name, tells = captions.draw_name(rng, about["kind"])
        states = [captions.sentence(rng, name, bool(state)) for state in (0, 1) for _ in range(SENTENCES)]
        caption = [captions.sentence(rng, name, pick >= GOOD, about["defects"][pick]) for pick in picks[GOOD - 1 :]]
        return pixels, mask, states, caption, kinds.index(about["kind"]) if tells else -1

    def _pack(self, pixels: np.ndarray, masks: np.ndarray, states: list, caption: list, kind: list[int]) -> Batch:
        inside = torch.from_numpy(masks) / 255
        area = 4 * inside.flatten(1).sum(1)  # in pixels of the picture
        return Batch(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).clamp(-1, 1),
            masks=(inside > 0.3).float(),
            labels=torch.where(area >= SEEN, 1, torch.where(area > 0, -1, 0)),
            state_tokens=captions.tokenize([s for group in states for s in group]).view(len(states), 2, SENTENCES, -1),
            caption_tokens=captions.tokenize([s for group in caption for s in group]),
            kinds=torch.tensor(kind),
        )
