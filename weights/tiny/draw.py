"""Draw products once, into memory-mapped arrays that training reads.

    python draw.py FOLDER --products 5000 --seed 1                  # most kinds that training may see
    python draw.py FOLDER --products 1000 --seed 2 --kinds ground   # ground metal; also lined, compound
    python draw.py FOLDER --products 200 --seed 9 --kinds held-out  # the kinds it never sees, to measure it

FOLDER gets images.npy uint8 [N, 6, SIDE, SIDE, 3] (pictures 0-2 of a product are good, 3-5 have a defect), masks.npy
uint8 [N, 6, SIDE, SIDE] of 0/1 and products.json (kind and defects of each product).
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from defects import add_defect
from numpy.lib.format import open_memmap
from numpy.random import Generator
from products import COMPOUND, GROUND, HELD_OUT, KINDS, LINED, Picture, expose, make_product
from textures import SIDE

GOOD, BAD = 3, 3  # pictures of one product
SETS = {
    "common": [k for k in KINDS if k not in HELD_OUT + GROUND + LINED + COMPOUND],
    "ground": GROUND,
    "lined": LINED,
    "compound": COMPOUND,
    "held-out": HELD_OUT,
}
ON_TOP = ("scratch", "hair", "spots", "stain", "pit", "crack")  # defects that may be the second of a picture


def draw_product(seed: int, number: int, kind: str) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """All pictures of one product; the same for the same arguments.

    A style on which no defect can be seen (it happens to coarse gravel) is given up for another.
    """
    for style in range(100):
        drawn = _draw_style([seed, number, *([1000 + style] if style else [])], kind)
        if drawn is not None:
            break
    else:
        raise RuntimeError(f"product {number}: no style of {kind} shows a defect")
    images, masks, found = drawn
    return images, masks, {"kind": kind, "defects": found}


def _draw_style(seed: list[int], kind: str) -> tuple[np.ndarray, np.ndarray, list[list[str]]] | None:
    """The pictures, masks and defects of one style, or None where a defect stays unseen."""
    take = make_product(kind, np.random.default_rng(seed))
    images = np.zeros((GOOD + BAD, SIDE, SIDE, 3), np.uint8)
    masks = np.zeros((GOOD + BAD, SIDE, SIDE), np.uint8)
    found: list[list[str]] = []
    for index in range(GOOD + BAD):
        names: list[str] = []
        for attempt in range(1 if index < GOOD else 6):
            rng = np.random.default_rng([*seed, index, attempt])
            picture = take(rng)
            image = picture.compose()
            if index >= GOOD:
                wanted = _wanted(rng, kind)
                image, masks[index], names = _add_defects(rng, picture, image, wanted)
            if names:
                break
        if index >= GOOD and not names:
            return None
        images[index] = expose(rng, image)
        found.append(names)
    return images, masks, found


def _wanted(rng: Generator, kind: str) -> str | None:
    """The defect that a kind shows more often than others, in its share of pictures; None: any."""
    if kind in GROUND:
        return "zone" if rng.random() < 0.4 else None
    if kind in LINED:
        return {0: "front", 1: "front", 2: "front", 3: "seam"}.get(int(rng.integers(6)))
    return None


def _add_defects(
    rng: Generator, picture: Picture, image: np.ndarray, wanted: str | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One defect, the wanted one or any, in a quarter of the pictures two."""
    mask, names = np.zeros((SIDE, SIDE), np.uint8), []
    for _ in range(1 if rng.random() < 0.75 else 2):
        drawn = add_defect(rng, picture, image, None if names else wanted)
        # A reshaped picture is composed anew and would undo the first defect.
        if drawn is None or (names and (drawn[2] in names or drawn[2] not in ON_TOP)):
            continue
        image = drawn[0]
        mask |= drawn[1]
        names.append(drawn[2])
    return image, mask, names


def _task(task: tuple[int, int, str]) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    return draw_product(*task)


def draw(folder: Path, products: int, seed: int, kinds: Sequence[str], workers: int = 2) -> None:
    """Draw products into a folder, kinds in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (products, GOOD + BAD, SIDE, SIDE)
    images = open_memmap(folder / "images.npy", "w+", np.uint8, (*shape, 3))
    masks = open_memmap(folder / "masks.npy", "w+", np.uint8, shape)
    about, began = [], time.monotonic()
    tasks = [(seed, number, kinds[number % len(kinds)]) for number in range(products)]
    with multiprocessing.Pool(workers) as pool:
        for number, (picture, mask, facts) in enumerate(pool.imap(_task, tasks, 8)):
            images[number], masks[number] = picture, mask
            about.append(facts)
            if number % 250 == 249:
                print(f"{number + 1}/{products} products, {time.monotonic() - began:.0f} s", flush=True)
    images.flush()
    masks.flush()
    (folder / "products.json").write_text(json.dumps(about))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--products", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", choices=SETS, default="common")
    options = parser.parse_args()
    draw(options.folder, options.products, options.seed, SETS[options.kinds])
