"""Folders of results as `scan` and `eval` write them, made without a model: small images, any scores and names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from helpers import draw_image, draw_object
from numpy.typing import NDArray

from aprilcli.core.regions import find_regions
from aprilcli.io import regions_csv, scores_csv
from aprilcli.io.csv_text import open_table
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
    with (
        open_table(out / "scores.csv", scores_csv.COLUMNS) as scores,
        open_table(out / "regions.csv", regions_csv.COLUMNS) as regions,
    ):
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


EVAL_SCORES = {"good": (0.1, 0.2, 0.7), "scratch": (0.9, 0.6, 0.15)}
VERDICT = {
    **{"object": "bolt", "shots": 0, "seed": None, "threshold": 0.5, "rate": 0.05, "guaranteed": True},
    **{"caught": 2, "defects": 3, "false_alarms": 1, "good": 3},
    "by_rate": [{"rate": 0.01, "threshold": 0.8, "guaranteed": False, "caught": 1, "false_alarms": 0}],
}


def write_evaluation(tmp_path: Path) -> Path:
    """Write a data set, and metrics.json and scores.csv of it as `eval` does; return the folder of results."""
    draw_object(tmp_path / "parts" / "bolt", 100)
    folder = tmp_path / "out"
    folder.mkdir()
    metrics = {"auroc_segm": None, "auroc_cls": 5 / 9, "ap_cls": 0.75}
    record: dict[str, Any] = {
        "versions": {"aprilcli": "0.1.0"},
        "outputs": ["metrics.csv", "scores.csv", "metrics.json"],
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00",
        "options": {"layout": "auto", "follow": False, "value_range": None, "max_pixels": 10_000},
        "model": {"backbone": "tiny"},
        "dataset": {"root": str(tmp_path / "parts"), "objects": [{"name": "bolt"}]},
        "unreadable": 0,
        "leakage": None,
        "captions": ["parts (mvtec), model tiny"],
        "summaries": [{"object": "bolt", "shots": 0, "mean": metrics, "deviation": dict.fromkeys(metrics)}],
        "results": [{"object": "bolt", "shots": 0, "seed": None, "metrics": metrics, "threshold": {"value": 0.5}}],
        "verdicts": [VERDICT],
    }
    (folder / "metrics.json").write_text(json.dumps(record))
    with (folder / "scores.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["object", "defect", "path", "label", "shots", "seed", "text_score", "map_max", "score", "status", "error"]
        )
        for defect, scores in EVAL_SCORES.items():
            for number, score in enumerate(scores):
                path = f"bolt/test/{defect}/{number:03}.png"
                label = int(defect != "good")
                writer.writerow(["bolt", defect, path, label, 0, "", score, "", score, "ok", ""])
        writer.writerow(["bolt", "good", "bolt/test/good/broken.png", 0, 0, "", "", "", "", "error", "damaged"])
    return folder
