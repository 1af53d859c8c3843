"""`report` on an evaluation's folder, and `eval --report`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import GoldenCase, draw_object, error_line, run, run_eval
from report_page import ReportPage, report

SCORES = {"good": (0.1, 0.2, 0.7), "scratch": (0.9, 0.6, 0.15)}
VERDICT = {
    **{"object": "bolt", "shots": 0, "seed": None, "threshold": 0.5, "rate": 0.05, "guaranteed": True},
    **{"caught": 2, "defects": 3, "false_alarms": 1, "good": 3},
    "by_rate": [{"rate": 0.01, "threshold": 0.8, "guaranteed": False, "caught": 1, "false_alarms": 0}],
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Results as `eval` writes them, made without a model."""
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
        for defect, scores in SCORES.items():
            for number, score in enumerate(scores):
                path = f"bolt/test/{defect}/{number:03}.png"
                label = int(defect != "good")
                writer.writerow(["bolt", defect, path, label, 0, "", score, "", score, "ok", ""])
        writer.writerow(["bolt", "good", "bolt/test/good/broken.png", 0, 0, "", "", "", "", "error", "damaged"])
    return folder


def test_the_page_has_measures_verdicts_curves_and_the_worst_images(out: Path) -> None:
    page = report(out)
    assert "0 | bolt | - | 55.6 | 75.0" in page.text
    assert "bolt | 0.05 | 0.5000 | 2 of 3 | 1 of 3 | guaranteed" in page.text
    assert "bolt | 0.01 | 0.8000 | 1 of 3 | 0 of 3 | not guaranteed" in page.text
    assert "0 shots: AUROC-cls 55.6 %" in page.text
    assert [row["path"] for row in page.rows] == [
        *(f"bolt/test/scratch/{number}.png" for number in ("002", "001", "000")),
        *(f"bolt/test/good/{number}.png" for number in ("002", "001", "000")),
    ]
    assert page.blocks["p0"]["layer"].startswith("data:image/png")
    assert page.blocks["p3"]["image"].startswith("data:image/jpeg")
    assert page.blocks["p3"]["layer"] is None


def test_a_report_belongs_to_the_outputs_of_the_evaluation(out: Path) -> None:
    report(out)
    report(out)
    assert json.loads((out / "metrics.json").read_text())["outputs"].count("report.html") == 1


def test_a_page_of_another_program_is_kept(out: Path) -> None:
    (out / "report.html").write_text("mine")
    assert "report.html: no evaluation wrote it; move it" in error_line(run("report", out))
    assert (out / "report.html").read_text() == "mine"


def test_a_data_set_that_has_moved_is_named_or_given(out: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").rename(tmp_path / "moved")
    page = report(out)
    assert f"The data set is not in {tmp_path / 'parts'} any more" in page.text
    assert page.blocks["p0"]["image"] is None
    assert report(out, "--images", tmp_path / "moved").blocks["p0"]["layer"]


def test_what_cannot_be_reported_on_is_one_line(out: Path) -> None:
    assert "an evaluation has none" in error_line(run("report", out, "--overlays"))
    (out / "scores.csv").write_text("object,label\nbolt,1\n")
    assert "scores.csv: cannot be read" in error_line(run("report", out))
    record = json.loads((out / "metrics.json").read_text())
    del record["finished"]
    (out / "metrics.json").write_text(json.dumps(record))
    assert "this evaluation has not finished" in error_line(run("report", out))
    (out / "metrics.json").write_text("{}")
    assert "not the record of an evaluation" in error_line(run("report", out))


def test_eval_writes_its_report_and_overwrites_it(golden_vit: GoldenCase, tmp_path: Path) -> None:
    draw_object(tmp_path / "parts" / "bolt", 100, masks=False)
    arguments = ["--shots", "0,1", "--seeds", "1", "--report", *golden_vit.options]
    result = run_eval(tmp_path / "parts", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    page = ReportPage(tmp_path / "out" / "report.html")
    assert "1 shot, seed 0" in page.text
    assert len(page.rows) == 6
    assert run_eval(tmp_path / "parts", tmp_path / "out", *arguments, "--overwrite").exit_code == 0
