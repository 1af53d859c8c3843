"""Draw the picture of the README: photos above, their heatmaps below.

aprilcli scan tests/samples && python .readme/draw_heatmaps.py tests/samples april-scan .readme/heatmaps.png
"""

import sys
from pathlib import Path

import numpy as np
import tifffile
from matplotlib import colormaps
from PIL import Image

SHOWN = ("washer_good_1.png", "washer_crack_3.png", "casting_good_1.png", "casting_crack_3.png", "casting_spots_4.png")
GAP = 8  # pixels


def main(photos: Path, scan: Path, out: Path) -> None:
    """Colour every map on one scale, that of the highest value shown."""
    pictures = [np.asarray(Image.open(photos / name).convert("RGB")) for name in SHOWN]
    heatmaps = [tifffile.imread(scan / "maps" / f"{name}.tiff") for name in SHOWN]
    highest = max(one.max() for one in heatmaps)
    coloured = [(colormaps["inferno"](one / highest)[..., :3] * 255).astype(np.uint8) for one in heatmaps]
    rows = [np.concatenate([padded(one) for one in row], axis=1) for row in (pictures, coloured)]
    Image.fromarray(np.concatenate(rows)).save(out, optimize=True)


def padded(picture: np.ndarray) -> np.ndarray:
    """Leave a white gap around a picture."""
    return np.pad(picture, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


main(*map(Path, sys.argv[1:]))
