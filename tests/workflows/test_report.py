"""`report` on a scan's folder: the page, the overlays, and folders that cannot be reported on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import GoldenCase, draw_image, draw_images, error_line, run, run_scan
from PIL import Image
from report_page import ReportPage, report
from result_folders import THRESHOLD, scored_row, write_results

from aprilcli.io import html_report
from aprilcli.io.overlays import COMMENT
from aprilcli.io.scores_csv import ScoreRow

SCORES = {"a/low.png": 1.5, "a/high.png": 4.5, "b/middle.png": 3.2}
UNREADABLE = ScoreRow("broken.png", "error", error="broken.png: cannot be read")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    rows = [scored_row(path, score) for path, score in SCORES.items()]
    return write_results(tmp_path / "out", tmp_path / "images", rows)


def test_the_page_has_the_rows_with_the_most_anomalous_first_and_a_preview_of_each(out: Path) -> None:
    page = report(out)
    assert [(row["path"], row["kind"]) for row in page.rows] == [
        ("a/high.png", "anomalous"),
        ("b/middle.png", "anomalous"),
        ("a/low.png", "normal"),
    ]
    assert page.rows[0]["boxes"] == [[30, 10, 15, 10, 3.5]]
    for number in range(3):
        assert page.blocks[f"p{number}"]["image"].startswith("data:image/jpeg;base64,")
        assert page.blocks[f"p{number}"]["layer"].startswith("data:image/png;base64,")
    assert "2 anomalous 1 normal" in page.text
    assert "alarm from 2.00" in page.text


def test_the_page_loads_nothing_and_allows_only_its_own_style_and_script(out: Path) -> None:
    page = report(out)
    attributes = [(tag, name, value or "") for tag, attrs in page.tags for name, value in attrs.items()]
    assert not [found for found in attributes if found[1] in ("style", "onclick", "onload", "onerror")]
    assert not [found for found in attributes if found[1] in ("src", "href") and not found[2].startswith("data:")]
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs) or ""
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_hostile_file_names_stay_text(tmp_path: Path) -> None:
    names = [
        "</script><script>alert(1)</script>.png",
        "<img src=x onerror=alert(2)>.png",
        "' onload='alert(3)&amp;.png",
        "\u202egnp.exe",
        "caf\udce9.png",
    ]
    rows = [scored_row(name, 4.0) for name in names]
    out = write_results(tmp_path / "out", tmp_path / "images", rows, draw=False)
    page = report(out, "--images", draw_images(tmp_path / "images <b>&", 1))
    assert {row["path"] for row in page.rows} == {row.path for row in rows}
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["application/json", None] + [
        "application/json"
    ] * len(rows)
    assert "images <b>" not in page.content  # the folder in the title


def test_a_guaranteed_threshold_is_explained_and_a_weak_one_is_a_warning(out: Path, tmp_path: Path) -> None:
    assert "The rate is guaranteed on average" in report(out).text
    weak = THRESHOLD | {"guaranteed": False, "note": "calibrated on 4 good images, too few"}
    other = write_results(tmp_path / "weak", tmp_path / "images", [], record=[("threshold", weak)])
    text = report(other).text
    assert "calibrated on 4 good images, too few." in text
    assert "The rate is not guaranteed" in text


def test_without_verdicts_the_page_says_why_and_the_next_step(tmp_path: Path) -> None:
    nothing = [("threshold", None), ("pixel_threshold", None), ("bank", None)]
    row = replace(scored_row("a.png", 0.7), verdict=None, threshold=None, p_value=None, regions=None)
    page = report(write_results(tmp_path / "out", tmp_path / "images", [row], record=nothing))
    assert "Why there are no verdicts" in page.text
    assert "enroll good images of the part (aprilcli enroll)" in page.text
    assert page.rows[0]["kind"] == "scored"


def test_unreadable_images_and_an_unfinished_scan_are_warnings(tmp_path: Path) -> None:
    rows = [scored_row("a.png", 2.0), UNREADABLE]
    page = report(write_results(tmp_path / "out", tmp_path / "images", rows, record=[("finished", ...)]))
    assert "The scan has not finished" in page.text
    assert "1 image could not be read: broken.png." in page.text
    assert page.rows[1]["kind"] == "unreadable"
    assert page.blocks["p1"]["note"] == "broken.png: cannot be read"


def test_moved_images_have_placeholders_unless_their_folder_is_given(out: Path, tmp_path: Path) -> None:
    (tmp_path / "images").rename(tmp_path / "moved")
    page = report(out)
    assert f"3 of 3 images are not in {tmp_path / 'images'} any more" in page.text
    assert page.blocks["p0"]["image"] is None
    assert "No such file" in page.blocks["p0"]["note"]
    page = report(out, "--images", tmp_path / "moved")
    assert "any more" not in page.text
    assert page.blocks["p0"]["image"]


def test_an_image_of_another_size_has_no_preview(out: Path, tmp_path: Path) -> None:
    draw_image(tmp_path / "images" / "a" / "high.png", size_wh=(30, 30))
    assert "has 30 x 30 pixels, but had 60 x 40 when it was scanned" in report(out).blocks["p0"]["note"]


def test_results_without_maps_have_no_overlays_and_say_so(tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", tmp_path / "images", [scored_row("a.png", 2.0)], options=[("maps", False)])
    page = report(out)
    assert "The scan wrote no maps" in page.text
    assert page.blocks["p0"]["layer"] is None
    assert "the scan wrote no maps to draw" in error_line(run("report", out, "--overlays"))


def test_previews_stop_at_the_limit_of_the_page(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = report(out)
    needed = [len(json.dumps(whole.blocks[name], separators=(",", ":"))) for name in ("data", "p0")]
    monkeypatch.setattr(html_report, "PAGE_BYTES", sum(needed) + 100)
    result = run("report", out)
    assert "2 images have no preview" in result.stderr
    page = ReportPage(out / "report.html")
    assert set(page.blocks) == {"data", "p0"}
    assert len(page.rows) == 3
    monkeypatch.setattr(html_report, "PAGE_BYTES", sum(needed) - 1)
    assert "3 images have no preview" in run("report", out).stderr


def test_previews_shrink_as_their_number_grows() -> None:
    sides = [html_report.preview_side(count) for count in (0, 1, 100, 1000, 5000, 10**6)]
    assert sides == sorted(sides, reverse=True)
    assert sides[2] >= 640
    assert sides[-2] == 224
    assert html_report.preview_size((1000, 500), 224) == (224, 112)
    assert html_report.preview_size((30, 20), 224) == (30, 20)
    assert html_report.preview_size((9000, 3), 224) == (224, 1)


def test_overlays_are_jpegs_of_the_images_size_on_one_scale(out: Path, tmp_path: Path) -> None:
    for path in SCORES:
        Image.new("RGB", (60, 40), (90, 90, 90)).save(tmp_path / "images" / path)
    report(out, "--overlays")
    assert sorted(path.name for path in (out / "overlays").rglob("*.jpg")) == [
        "high.png.jpg",
        "low.png.jpg",
        "middle.png.jpg",
    ]
    for path, score in SCORES.items():
        with Image.open(out / "overlays" / f"{path}.jpg") as overlay:
            assert (overlay.format, overlay.size, overlay.info["comment"]) == ("JPEG", (60, 40), COMMENT)
            has_contour = overlay.convert("L").getpixel((37, 9)) > 200
        assert has_contour == (score - 1 >= 2)


def test_overlays_of_images_that_are_gone_are_deleted(out: Path, tmp_path: Path) -> None:
    report(out, "--overlays")
    (tmp_path / "images" / "a" / "low.png").unlink()
    result = run("report", out, "--overlays")
    assert "1 without an overlay: a/low.png" in result.stderr
    assert not (out / "overlays" / "a" / "low.png.jpg").exists()
    assert (out / "overlays" / "a" / "high.png.jpg").exists()


def test_a_name_that_leaves_no_place_for_an_overlay_costs_only_that_overlay(tmp_path: Path) -> None:
    rows = [scored_row("a.png", 4.0), scored_row("a.png.jpg/b.png", 4.0), scored_row("c.png", 4.0)]
    out = write_results(tmp_path / "out", tmp_path / "images", rows)
    result = run("report", out, "--overlays", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "1 without an overlay: a.png.jpg/b.png" in result.stderr
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.png.jpg", "c.png.jpg"]


def test_a_scan_writes_both_and_overwrite_replaces_them(golden_vit: GoldenCase, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 2)
    arguments = [images, *golden_vit.options, "--out", tmp_path / "out", "--overlays", "--report"]
    result = run_scan(*arguments, "--threshold", "0.5")
    assert result.exit_code == 0, result.output
    assert len(ReportPage(tmp_path / "out" / "report.html").rows) == 2
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 2
    (images / "000.png").unlink()
    assert run_scan(*arguments, "--overwrite").exit_code == 0
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 1
    assert run_scan(images, *golden_vit.options, "--out", tmp_path / "out", "--resume").exit_code == 0


def test_overlays_without_maps_are_refused_at_once(tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 1)
    result = run_scan(images, "--overlays", "--no-maps", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "choose one" in error_line(result)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_reported_on(out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no results" in error_line(run("report", tmp_path / "empty"))
    assert "nowhere: no results" in error_line(run("report", tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    assert "gone: no such folder" in error_line(run("report", out, "--images", tmp_path / "gone"))
    lines = (out / "scores.csv").read_bytes().splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join([b"path,status,score\r\n", *lines[1:]]))
    assert "written by another version" in error_line(run("report", out))


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("scores.csv", b"b/middle.png,ok", b"b/middle.png,OK", "scores.csv: incomplete or changed after 2 rows"),
        ("regions.csv", b"a/high.png,1", b"a/high.png,x", "regions.csv: lacks the regions of a/high.png"),
        ("regions.csv", b"a/high.png,1", b"a/other.png,1", "regions.csv: lacks the regions of a/high.png"),
        ("run.json", b'"recognition"', b'"other"', "run.json: written by another version"),
    ],
)
def test_damaged_results_are_refused_and_not_reported_in_part(
    out: Path, name: str, before: bytes, after: bytes, message: str
) -> None:
    content = (out / name).read_bytes()
    assert before in content
    (out / name).write_bytes(content.replace(before, after))
    assert message in error_line(run("report", out))


def test_a_page_that_cannot_be_written_is_one_line(out: Path) -> None:
    (out / "report.html").mkdir()
    assert "report.html: cannot be written (Is a directory)" in error_line(run("report", out))


def test_a_report_needs_no_torch(out: Path) -> None:
    program = "import sys; from aprilcli.cli import app; app(sys.argv[1:], standalone_mode=False)"
    command = [sys.executable, "-c", f"{program}; print('torch' in sys.modules)", "report", str(out), "--overlays"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"report: {out / 'report.html'}", "False"]


def test_texts_name_the_commands_that_read_labels(out: Path) -> None:
    text = report(out).text
    assert re.search(r"aprilcli enroll \S+/images --part nut --append --labels labels.csv", text)
    assert re.search(r"aprilcli eval \S+/images --part nut --labels labels.csv", text)
