"""Draw the images of tests/samples: two products that training never draws, half of the images with a defect.

    python samples.py tests/samples tests/sample_masks

An image is named by what it shows, KIND_good_N.png or KIND_DEFECT_N.png; a defect's mask has the name of its image.
"""

import argparse
from pathlib import Path

import numpy as np
from defects import add_defect
from PIL import Image
from products import expose, make_product
from textures import Array

# Kind, seed of the product, then what each image shows with its seed. Training uses other seeds.
SAMPLES = (
    ("washer", 7004, (("good", 1), ("good", 4), ("crack", 1), ("crack", 3))),
    ("casting", 7003, (("good", 2), ("good", 3), ("crack", 5), ("spots", 5))),
)


def draw_sample(kind: str, product: int, shows: str, seed: int) -> tuple[Array, Array]:
    """One image uint8 [SIDE, SIDE, 3] and its mask, uint8 of 0/255."""
    scene = make_product(kind, np.random.default_rng(product))(np.random.default_rng([product, seed]))
    rng = np.random.default_rng([product, seed, 1])
    image = scene.compose()
    mask = np.zeros(image.shape[:2], np.uint8)
    if shows != "good":
        drawn = add_defect(rng, scene, image, shows)
        if drawn is None:
            raise SystemExit(f"{kind} {product}: seed {seed} gives no visible {shows}; choose another seed")
        image, mask = drawn[0], drawn[1]
    return expose(rng, image), mask * np.uint8(255)


def main(folder: Path, mask_folder: Path) -> None:
    """Write every sample, and the masks of those with a defect."""
    folder.mkdir(parents=True, exist_ok=True)
    mask_folder.mkdir(parents=True, exist_ok=True)
    for kind, product, samples in SAMPLES:
        for number, (shows, seed) in enumerate(samples, 1):
            image, mask = draw_sample(kind, product, shows, seed)
            name = f"{kind}_{shows}_{number}.png"
            Image.fromarray(image).save(folder / name, optimize=True)
            if shows != "good":
                Image.fromarray(mask).save(mask_folder / name, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path)
    parser.add_argument("masks", type=Path)
    chosen = parser.parse_args()
    main(chosen.samples, chosen.masks)
