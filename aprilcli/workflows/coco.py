"""coco.json: the regions of a scan in COCO's format for object detection, which annotation tools open.

Each image that was scored has an entry, each region an annotation of the only category: its bounding box, its number of
pixels, its peak as ``score``, and its pixels as a run-length encoding where there is a map.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from aprilcli.core.regions import find_region_masks
from aprilcli.core.resizing import resize_map
from aprilcli.errors import InputError
from aprilcli.io.atomic import written_aside
from aprilcli.io.images import DECODER_ERRORS
from aprilcli.io.scores_csv import ScoreRow
from aprilcli.text import first_line
from aprilcli.types import Region
from aprilcli.workflows.scan_output import COCO
from aprilcli.workflows.scan_results import ScanResults

CATEGORY = {"id": 1, "name": "anomaly", "supercategory": "anomaly"}


def write_coco(results: ScanResults) -> Path:
    """Write the regions; return the path of the file. Raises InputError without a pixel threshold, OutputError.

    Rows and maps are read one at a time, so memory does not grow with their number.
    """
    if results.pixel_threshold is None:
        raise InputError(f"{results.out}: there are no regions, as the scan had no pixel threshold; scan with one")
    path = results.out / COCO
    info = {"description": "regions found by aprilcli", "date_created": results.record["started"]}
    with written_aside(path) as aside, aside.open("w", encoding="ascii") as file:
        file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": [{json.dumps(CATEGORY)}],\n')
        file.writelines(_list("images", (image for image, _, _ in _images(results))))
        file.write(",\n")
        file.writelines(_list("annotations", _annotations(results)))
        file.write("}\n")
    return path


def _list(name: str, entries: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield a member of the JSON object, one entry per line."""
    yield f'"{name}": ['
    for number, entry in enumerate(entries):
        yield ("," if number else "") + "\n" + json.dumps(entry)
    yield "]"


def _images(results: ScanResults) -> Iterator[tuple[dict[str, Any], ScoreRow, tuple[Region, ...]]]:
    scored = ((row, regions) for row, regions in results.rows() if row.status == "ok")
    for number, (row, regions) in enumerate(scored, 1):
        yield {"id": number, "file_name": row.path, "width": row.width, "height": row.height}, row, regions


def _annotations(results: ScanResults) -> Iterator[dict[str, Any]]:
    number = itertools.count(1)
    for image, row, regions in _images(results):
        for region, segmentation in zip(regions, _segmentations(results, row, regions), strict=True):
            yield {
                "id": next(number),
                "image_id": image["id"],
                "category_id": CATEGORY["id"],
                "bbox": [region.x, region.y, region.width, region.height],
                "area": region.area,
                "iscrowd": 0,
                "segmentation": segmentation,
                "score": region.peak,
            }


def _segmentations(results: ScanResults, row: ScoreRow, regions: tuple[Region, ...]) -> list[Any]:
    """Return the run-length encoding of each region; empty lists if the scan wrote no maps."""
    threshold, size_hw = results.pixel_threshold, (row.height or 0, row.width or 0)
    if not regions or threshold is None or not results.record["options"]["maps"]:
        return [[] for _ in regions]
    path = results.map_path(row)
    try:
        anomaly_map = tifffile.imread(path)
    except DECODER_ERRORS as error:
        raise InputError(f"{path}: not a map ({first_line(error)}); scan again with --resume") from error
    if anomaly_map.shape != size_hw:
        anomaly_map = resize_map(torch.from_numpy(anomaly_map), size_hw).numpy()
    found = find_region_masks(anomaly_map, threshold.value, results.record["options"]["min_area"])
    if tuple(region for region, _ in found) != regions:
        raise InputError(f"{path}: does not belong to its row in the tables; scan again with --resume")
    return [_run_lengths(region, mask, size_hw) for region, mask in found]


def _run_lengths(region: Region, mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Return the lengths of runs of pixels outside and inside a region, column by column, starting outside."""
    height, width = size_hw
    columns = np.zeros((region.width, height), bool)
    columns[:, region.y : region.y + region.height] = mask.T
    before, after = region.x * height, (width - region.x - region.width) * height
    ends = np.flatnonzero(np.diff(columns.ravel())) + 1
    runs = np.diff([0, *ends, columns.size]).tolist()
    if columns[0, 0]:
        runs = [0, *runs]
    runs[0] += before
    if len(runs) % 2:
        runs[-1] += after
    elif after:
        runs.append(after)
    return {"size": [height, width], "counts": runs}
