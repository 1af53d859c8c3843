"""`report` on an evaluation's folder, and `eval --report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import GoldenCase, draw_object, error_line, run, run_eval
from report_page import ReportPage, report
from result_folders import write_evaluation


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path)


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
