"""Draw a set of products into memory-mapped arrays, which training and measuring read.

    python draw.py FOLDER --products 5000 --seed 1                  # most of the kinds for training
    python draw.py FOLDER --products 1000 --seed 2 --kinds ground   # ground metal; also lined, compound
    python draw.py FOLDER --products 200 --seed 9 --kinds held-out  # the kinds that only measure the model

Writes images.npy uint8 [N, 6, SIDE, SIDE, 3] (images 0-2 of a product are good, 3-5 are anomalous), masks.npy uint8
[N, 6, SIDE, SIDE] of 0/1 and products.json (kind and defects of each product).
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
from products import COMPOUND, GROUND, HELD_OUT, KINDS, LINED, Scene, expose, make_product
from textures import SIDE, Array

GOOD, ANOMALOUS = 3, 3  # images of one product
SETS = {
    "common": [k for k in KINDS if k not in HELD_OUT + GROUND + LINED + COMPOUND],
    "ground": GROUND,
    "lined": LINED,
    "compound": COMPOUND,
    "held-out": HELD_OUT,
}
SECOND_DEFECTS = ("scratch", "hair", "spots", "stain", "pit", "crack")  # may be added to an image that has a defect


def draw_product(seed: int, number: int, kind: str) -> tuple[Array, Array, dict[str, object]]:
    """Images [6, SIDE, SIDE, 3], masks [6, SIDE, SIDE] and facts of one product; equal arguments give equal results.

    A style in which a defect stays invisible (as in coarse gravel) is replaced by another.
    """
    for style in range(100):
        drawn = _draw_style([seed, number, *([1000 + style] if style else [])], kind)
        if drawn is not None:
            break
    else:
        raise RuntimeError(f"product {number}: no style of {kind} shows a defect")
    images, masks, found = drawn
    return images, masks, {"kind": kind, "defects": found}


def _draw_style(seed: list[int], kind: str) -> tuple[Array, Array, list[list[str]]] | None:
    """The images, masks and defects of one style, or None where a defect stays invisible."""
    draw_scene = make_product(kind, np.random.default_rng(seed))
    images = np.zeros((GOOD + ANOMALOUS, SIDE, SIDE, 3), np.uint8)
    masks = np.zeros((GOOD + ANOMALOUS, SIDE, SIDE), np.uint8)
    found: list[list[str]] = []
    for index in range(GOOD + ANOMALOUS):
        names: list[str] = []
        for attempt in range(1 if index < GOOD else 6):
            rng = np.random.default_rng([*seed, index, attempt])
            scene = draw_scene(rng)
            image = scene.compose()
            if index >= GOOD:
                wanted = _wanted(rng, kind)
                image, masks[index], names = _add_defects(rng, scene, image, wanted)
            if names:
                break
        if index >= GOOD and not names:
            return None
        images[index] = expose(rng, image)
        found.append(names)
    return images, masks, found


def _wanted(rng: Generator, kind: str) -> str | None:
    """A defect that the kind shows more often than others, in a share of its images; None: any defect."""
    if kind in GROUND:
        return "zone" if rng.random() < 0.4 else None
    if kind in LINED:
        return {0: "front", 1: "front", 2: "front", 3: "seam"}.get(int(rng.integers(6)))
    return None


def _add_defects(rng: Generator, scene: Scene, image: Array, wanted: str | None) -> tuple[Array, Array, list[str]]:
    """Add one defect, `wanted` or any; in a quarter of the images try a second one."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    names: list[str] = []
    for _ in range(1 if rng.random() < 0.75 else 2):
        drawn = add_defect(rng, scene, image, None if names else wanted)
        # A defect of the shape composes the image again, which would remove the first defect.
        if drawn is None or (names and (drawn[2] in names or drawn[2] not in SECOND_DEFECTS)):
            continue
        image = drawn[0]
        mask |= drawn[1]
        names.append(drawn[2])
    return image, mask, names


def _task(task: tuple[int, int, str]) -> tuple[Array, Array, dict[str, object]]:
    return draw_product(*task)


def draw(folder: Path, products: int, seed: int, kinds: Sequence[str], workers: int = 2) -> None:
    """Draw products, taking the kinds in turn, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (products, GOOD + ANOMALOUS, SIDE, SIDE)
    images = open_memmap(folder / "images.npy", "w+", np.uint8, (*shape, 3))
    masks = open_memmap(folder / "masks.npy", "w+", np.uint8, shape)
    all_facts, start = [], time.monotonic()
    tasks = [(seed, number, kinds[number % len(kinds)]) for number in range(products)]
    with multiprocessing.Pool(workers) as pool:
        for number, (image, mask, facts) in enumerate(pool.imap(_task, tasks, 8)):
            images[number], masks[number] = image, mask
            all_facts.append(facts)
            if number % 250 == 249:
                print(f"{number + 1}/{products} products, {time.monotonic() - start:.0f} s", flush=True)
    images.flush()
    masks.flush()
    (folder / "products.json").write_text(json.dumps(all_facts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--products", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", choices=SETS, default="common")
    options = parser.parse_args()
    draw(options.folder, options.products, options.seed, SETS[options.kinds])
