"""Draw the pictures of tests/samples: two products that training never drew, half of the pictures with a defect.

    python samples.py tests/samples tests/sample_masks

A picture's name tells what it shows: KIND_good_N.png or KIND_DEFECT_N.png; a defect's mask has its picture's name.
"""

import argparse
from pathlib import Path

import numpy as np
from defects import add_defect
from PIL import Image
from products import expose, make_product

# kind, seed of the product, then what each picture shows and the seed of its defect. Training uses other seeds.
SAMPLES = (
    ("washer", 7004, (("good", 1), ("good", 4), ("crack", 1), ("crack", 3))),
    ("casting", 7003, (("good", 2), ("good", 3), ("crack", 5), ("spots", 5))),
)


def draw_sample(kind: str, product: int, shows: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture uint8 [SIDE, SIDE, 3] and its mask, uint8 of 0/255."""
    picture = make_product(kind, np.random.default_rng(product))(np.random.default_rng([product, number]))
    rng = np.random.default_rng([product, number, 1])
    image = picture.compose()
    mask = np.zeros(image.shape[:2], np.uint8)
    if shows != "good":
        drawn = add_defect(rng, picture, image, shows)
        if drawn is None:
            raise SystemExit(f"{kind} {product}: seed {number} gives no visible {shows}; choose another")
        image, mask = drawn[0], drawn[1]
    return expose(rng, image), mask * np.uint8(255)


def main(folder: Path, mask_folder: Path) -> None:
    """Write every sample and the masks of the defective ones."""
    folder.mkdir(parents=True, exist_ok=True)
    mask_folder.mkdir(parents=True, exist_ok=True)
    for kind, product, pictures in SAMPLES:
        for number, (shows, seed) in enumerate(pictures, 1):
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
