"""Connected regions of a map above a pixel threshold, and the pixel where a map has its peak."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from aprilcli.types import Region

_EIGHT_CONNECTED = np.ones((3, 3), int)  # pixels that touch at a corner are connected, as for PRO


def find_regions(anomaly_map: NDArray[np.float32], threshold: float, min_area: int = 1) -> tuple[Region, ...]:
    """Return the connected regions of values ≥ ``threshold`` in a map [H, W], the highest peak first.

    ``min_area``: regions of fewer pixels are left out. Values are compared as float32, the precision of maps on disk.
    """
    return tuple(region for region, _ in find_region_masks(anomaly_map, threshold, min_area))


def find_region_masks(
    anomaly_map: NDArray[np.float32], threshold: float, min_area: int = 1
) -> list[tuple[Region, NDArray[np.bool_]]]:
    """Return the same regions, each with its pixels in its bounding box [height, width]."""
    above = anomaly_map >= np.float32(threshold)
    if not above.any():
        return []
    labels, count = ndimage.label(above, structure=_EIGHT_CONNECTED)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels, count), 1):
        mask = labels[rows, columns] == number
        values = anomaly_map[rows, columns][mask]
        if len(values) >= min_area:
            region = Region(
                x=columns.start,
                y=rows.start,
                width=columns.stop - columns.start,
                height=rows.stop - rows.start,
                area=len(values),
                peak=float(values.max()),
                mean=float(np.float32(values.mean(dtype=np.float64))),  # as regions.csv has it
            )
            found.append((region, mask))
    return sorted(found, key=lambda named: (-named[0].peak, named[0].y, named[0].x))


def peak_of(anomaly_map: NDArray[np.float32], size_hw: tuple[int, int]) -> tuple[int, int]:
    """Return x and y of a map's maximum, in pixels of an image of ``size_hw`` that the whole map [h, w] covers."""
    y, x = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    height, width = anomaly_map.shape
    return int((x + 0.5) * size_hw[1] / width), int((y + 0.5) * size_hw[0] / height)
