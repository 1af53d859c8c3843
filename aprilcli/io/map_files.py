"""Maps on disk: TIFF files of raw values."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from isal import isal_zlib
from numpy.typing import NDArray

from aprilcli.io.atomic import written_aside

DEFLATE_LEVEL = 1  # higher levels are slower and hardly smaller for float maps
STRIP_BYTES = 1 << 20  # before compression


def write_map(path: Path, anomaly_map: NDArray[np.floating[Any]], description: dict[str, Any]) -> bytes:
    """Write a map [H, W], float32 or float16, raw values, as a TIFF of one deflated page; return the file's content.

    ``description``: JSON-ready; the map's smallest and largest value are added to it as ``range``. Raises OutputError.
    """
    value_range = [float(anomaly_map.min()), float(anomaly_map.max())]
    rows = max(1, STRIP_BYTES // anomaly_map[0].nbytes)
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        _deflated(anomaly_map, rows),
        shape=anomaly_map.shape,
        dtype=anomaly_map.dtype,
        rowsperstrip=rows,
        photometric="minisblack",
        compression="zlib",
        description=json.dumps({**description, "range": value_range}),
        metadata=None,
    )
    content = file.getvalue()
    with written_aside(path) as temporary:
        temporary.write_bytes(content)
    return content


def _deflated(anomaly_map: NDArray[np.floating[Any]], rows: int) -> Iterator[bytes]:
    """Compress strips of ``rows`` rows. ISA-L takes a tenth of zlib's time for the same size."""
    for top in range(0, len(anomaly_map), rows):
        yield isal_zlib.compress(np.ascontiguousarray(anomaly_map[top : top + rows]), DEFLATE_LEVEL)
