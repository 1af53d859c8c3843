"""Maps on disk: TIFF files of raw values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from aprilcli.io.atomic import written_aside

DEFLATE_LEVEL = 1  # higher levels are slower and hardly smaller for float maps


def write_map(path: Path, anomaly_map: NDArray[np.floating[Any]], description: dict[str, Any]) -> None:
    """Write a map [H, W], float32 or float16, raw values, as a TIFF of one deflated page. Raises OutputError.

    ``description``: JSON-ready; the map's smallest and largest value are added to it as ``range``.
    """
    value_range = [float(anomaly_map.min()), float(anomaly_map.max())]
    with written_aside(path) as temporary:
        tifffile.imwrite(
            temporary,
            anomaly_map,
            photometric="minisblack",
            compression="zlib",
            compressionargs={"level": DEFLATE_LEVEL},
            description=json.dumps({**description, "range": value_range}),
            metadata=None,
        )
