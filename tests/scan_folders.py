"""Folders of results as `scan` writes them, made without a model: small images and maps, any scores and names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import draw_image
from numpy.typing import NDArray

from aprilcli.core.regions import find_regions
from aprilcli.core.threshold import Threshold
from aprilcli.io import regions_csv, scores_csv
from aprilcli.io.map_files import write_map
from aprilcli.io.scores_csv import ScoreRow
from aprilcli.workflows.scan_output import map_path

SIZE_WH = (60, 40)
PIXEL_THRESHOLD = 2.0
THRESHOLD = {"value": 3.0, "rate": 0.05, "guaranteed": True, "margin": 0.0, "note": ""}
PIXEL = THRESHOLD | {"value": PIXEL_THRESHOLD}
COUNTED = (("scored", "ok"), ("unreadable", "error"))
OPTIONS: dict[str, Any] = {
    "part": "nut",
    "banks": "banks",
    "object_name": None,
    "maps": True,
    "map_size": "source",
    "value_range": None,
    "max_pixels": 10_000,
    "csv_safe": False,
}


def draw_map(peak: float) -> NDArray[np.float32]:
    """Return a map of ``SIZE_WH`` of low values with a square of the value ``peak``."""
    values = np.full(SIZE_WH[::-1], 0.4, np.float32)
    values[10:20, 30:45] = peak
    return values


def scored_row(path: str, score: float) -> ScoreRow:
    """Return the row of an image of ``SIZE_WH`` with a verdict, as if its map's peak were its score minus 1."""
    return ScoreRow(
        path,
        "ok",
        score=score,
        text_score=1.0,
        map_max=score - 1,
        p_value=0.05 if score >= THRESHOLD["value"] else 0.5,
        threshold=THRESHOLD["value"],
        verdict="anomalous" if score >= THRESHOLD["value"] else "normal",
        width=SIZE_WH[0],
        height=SIZE_WH[1],
        cause="map" if score >= THRESHOLD["value"] else None,
        regions=0,
    )


def write_results(
    out: Path,
    images: Path,
    rows: Iterable[ScoreRow],
    *,
    draw: bool = True,
    options: Sequence[tuple[str, Any]] = (),
    record: Sequence[tuple[str, Any]] = (),
) -> Path:
    """Write scores.csv, regions.csv, maps/ and run.json of the rows, and with ``draw`` the images; return ``out``.

    ``options`` and ``record`` change what run.json holds; a value of None removes a key of ``record``.
    """
    out.mkdir(parents=True)
    rows = list(rows)
    content: dict[str, Any] = {
        "versions": {"aprilcli": "0.1.0"},
        "options": OPTIONS | dict(options),
        "images": str(images),
        "model": {"backbone": "tiny", "pretrained": "", "stages": [1, 2, 3, 4]},
        "views": {"sizes": [256], "tile": None},
        "bank": {"path": "banks/nut.safetensors", "sha256": "0" * 64},
        "threshold": THRESHOLD,
        "pixel_threshold": PIXEL,
        "recognition": None,
        "started": "2026-01-02T03:04:05+00:00",
        "counts": {name: sum(row.status == status for row in rows) for name, status in COUNTED},
        "finished": "2026-01-02T03:05:05+00:00",
        **dict(record),
    }
    (out / "run.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    with scores_csv.open_scores(out / "scores.csv") as scores, regions_csv.open_regions(out / "regions.csv") as regions:
        for number, row in enumerate(rows):
            if row.status == "ok" and draw:
                draw_image(images / row.path, number, SIZE_WH)
            if row.map_max is not None and content["options"]["maps"]:
                values = draw_map(row.map_max)
                write_map(map_path(out, row.path), values, {"model": "tiny"})
                found = find_regions(values, PIXEL_THRESHOLD)
                row = ScoreRow(**{**row.__dict__, "regions": len(found)})
                regions.write(regions_csv.region_lines(row.path, found))
            scores.write(scores_csv.row_line(row))
    return out


def rate_threshold(value: float, note: str = "") -> dict[str, Any]:
    """Return a calibrated threshold as run.json has it."""
    return Threshold(value, 0.05, guaranteed=not note, note=note).__dict__
