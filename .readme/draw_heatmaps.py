"""Draw the figure of the README: sample images in the upper row, their anomaly maps in the lower row.

aprilcli scan tests/samples && python .readme/draw_heatmaps.py tests/samples april-scan .readme/heatmaps.png
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

SHOWN = ("washer_good_1.png", "washer_crack_3.png", "casting_good_1.png", "casting_crack_3.png", "casting_spots_4.png")
GAP = 8  # pixels


def main(folder: Path, scan: Path, out: Path) -> None:
    """Color all maps on one scale, from 0 to the highest value of the maps shown."""
    images = [np.asarray(Image.open(folder / name).convert("RGB")) for name in SHOWN]
    maps = [tifffile.imread(scan / "maps" / f"{name}.tiff") for name in SHOWN]
    highest = max(anomaly_map.max() for anomaly_map in maps)
    colored = [(colormaps["inferno"](anomaly_map / highest)[..., :3] * 255).astype(np.uint8) for anomaly_map in maps]
    rows = [np.concatenate([pad(image) for image in row], axis=1) for row in (images, colored)]
    Image.fromarray(np.concatenate(rows)).save(out, optimize=True)


def pad(image: NDArray[np.uint8]) -> NDArray[Any]:
    """Add a white margin to an image [H, W, 3]."""
    return np.pad(image, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
