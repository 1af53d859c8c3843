"""Regions of a scan: regions.csv, the columns of scores.csv, coco.json, and files that are safe for spreadsheets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import draw_images, error_line, read_csv, read_rows, read_rows_by_path, run, run_scan
from pycocotools.coco import COCO

from aprilcli.core.bank_file import load_bank, save_bank
from aprilcli.core.regions import find_regions

LEVEL = 3.0  # of the maps of noise; some reach it, some do not


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", 4)


def scan(images: Path, out: Path, model: list[str], *arguments: object) -> None:
    result = run_scan(images, *model, "--out", out, "--pixel-threshold", LEVEL, *arguments)
    assert result.exit_code == 0, result.output


def test_regions_are_those_of_the_map_on_disk(images: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan(images, out, model)
    lines = read_csv(out / "regions.csv")
    assert list(lines[0]) == ["path", "rank", "x", "y", "width", "height", "area", "peak", "mean"]
    for row in read_rows(out):
        anomaly_map = tifffile.imread(out / "maps" / f"{row['path']}.tiff")
        own = [line for line in lines if line["path"] == row["path"]]
        assert int(row["regions"]) == len(own)
        assert [line["rank"] for line in own] == [str(rank) for rank in range(1, len(own) + 1)]
        for line, region in zip(own, find_regions(anomaly_map, LEVEL), strict=True):
            names = ("x", "y", "width", "height", "area")
            assert [int(line[name]) for name in names] == [getattr(region, name) for name in names]
            assert np.float32(line["peak"]) == np.float32(region.peak)
        peak = anomaly_map[int(row["peak_y"]), int(row["peak_x"])]
        assert peak == pytest.approx(anomaly_map.max(), abs=0.05)
        assert peak <= float(row["map_max"])
    assert {int(row["regions"]) > 0 for row in read_rows(out)} == {True, False}


def test_regions_do_not_depend_on_the_maps_that_are_written(images: Path, model: list[str], tmp_path: Path) -> None:
    outs = {name: tmp_path / name for name in ("source", "model", "none")}
    scan(images, outs["source"], model)
    scan(images, outs["model"], model, "--map-size", "model")
    scan(images, outs["none"], model, "--no-maps")
    for name in ("scores.csv", "regions.csv"):
        assert len({(out / name).read_bytes() for out in outs.values()}) == 1


def test_small_regions_are_left_out(images: Path, model: list[str], tmp_path: Path) -> None:
    scan(images, tmp_path / "all", model)
    areas = sorted(int(line["area"]) for line in read_csv(tmp_path / "all" / "regions.csv"))
    assert areas[0] < areas[-1]
    scan(images, tmp_path / "large", model, "--min-area", areas[-1])
    assert {int(line["area"]) for line in read_csv(tmp_path / "large" / "regions.csv")} == {areas[-1]}


def test_without_a_pixel_threshold_there_are_no_regions(images: Path, model: list[str], tmp_path: Path) -> None:
    assert run_scan(images, *model, "--out", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "regions.csv").exists()
    assert {row["regions"] for row in read_rows(tmp_path / "out")} == {""}
    assert all(row["peak_x"] for row in read_rows(tmp_path / "out"))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
@pytest.mark.parametrize("arguments", [[], ["--map-size", "model"]])
def test_coco_json_is_read_by_cocos_own_tools(
    images: Path, model: list[str], tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    scan(images, out, model, "--coco", *arguments)
    coco = COCO(out / "coco.json")
    rows = read_rows_by_path(out)
    scan(images, tmp_path / "maps", model)
    for number, image in coco.imgs.items():
        row = rows[image["file_name"]]
        assert (image["width"], image["height"]) == (int(row["width"]), int(row["height"]))
        annotations = coco.loadAnns(coco.getAnnIds([number]))
        assert len(annotations) == int(row["regions"])
        covered = np.zeros((image["height"], image["width"]), bool)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            x, y, width, height = annotation["bbox"]
            assert mask.sum() == mask[y : y + height, x : x + width].sum() == annotation["area"]
            covered |= mask
        assert (covered == (tifffile.imread(tmp_path / "maps" / "maps" / f"{row['path']}.tiff") >= LEVEL)).all()


def test_coco_json_can_be_written_later(images: Path, model: list[str], tmp_path: Path) -> None:
    scan(images, tmp_path / "out", model, "--coco")
    before = (tmp_path / "out" / "coco.json").read_bytes()
    (tmp_path / "out" / "coco.json").unlink()
    assert run("report", tmp_path / "out", "--coco").exit_code == 0
    assert (tmp_path / "out" / "coco.json").read_bytes() == before
    run_scan(images, *model, "--out", tmp_path / "none")
    assert "the scan had no pixel threshold" in error_line(run("report", tmp_path / "none", "--coco"))


def test_coco_json_without_maps_has_boxes(images: Path, model: list[str], tmp_path: Path) -> None:
    scan(images, tmp_path / "out", model, "--coco", "--no-maps")
    annotations = json.loads((tmp_path / "out" / "coco.json").read_text())["annotations"]
    assert len(annotations) == len(read_csv(tmp_path / "out" / "regions.csv")) > 0
    assert all(annotation["segmentation"] == [] for annotation in annotations)


def test_what_was_made_of_the_results_is_deleted_when_they_change(
    images: Path, model: list[str], tmp_path: Path
) -> None:
    scan(images, tmp_path / "out", model, "--coco", "--overlays")
    own = tmp_path / "out" / "overlays" / "own.jpg"
    own.write_bytes(b"not an overlay")
    scan(images, tmp_path / "out", model, "--resume")
    assert not (tmp_path / "out" / "coco.json").exists()
    assert list(own.parent.iterdir()) == [own]
    scan(images, tmp_path / "out", model, "--resume", "--coco")
    assert run_scan(images, *model, "--out", tmp_path / "out", "--overwrite").exit_code == 0
    assert not any((tmp_path / "out" / name).exists() for name in ("coco.json", "regions.csv"))


def test_texts_that_look_like_formulas_are_marked_on_request(images: Path, model: list[str], tmp_path: Path) -> None:
    (images / "000.png").rename(images / "=1+2.png")
    (images / "@broken.png").write_bytes(b"x")
    arguments = (images, *model, "--pixel-threshold", 0, "--csv-safe", "--out", tmp_path / "out")
    assert run_scan(*arguments).exit_code == 3
    paths = [row["path"] for row in read_rows(tmp_path / "out")]
    assert paths == ["001.png", "002.png", "003.png", "'=1+2.png", "'@broken.png"]
    assert "'=1+2.png" in {line["path"] for line in read_csv(tmp_path / "out" / "regions.csv")}
    before = (tmp_path / "out" / "scores.csv").read_bytes()
    resumed = run_scan(*arguments, "--resume")
    assert "5 kept, 0 new" in resumed.stdout
    assert (tmp_path / "out" / "scores.csv").read_bytes() == before
    assert "options.csv_safe" in error_line(run_scan(*(a for a in arguments if a != "--csv-safe"), "--resume"))


def test_a_part_gives_the_pixel_threshold_and_the_cause_of_a_flag(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, further = draw_images(tmp_path / "good", 2), draw_images(tmp_path / "further", 9, 100)
    run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    arguments = ["scan", further, "--part", "p", "--banks", banks, "--false-alarm-rate", 0.5]
    result = run(*arguments, "--out", tmp_path / "out", "--coco")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    level = record["pixel_threshold"]["value"]
    assert f"alarm at {level:.4f}" in result.stdout
    rows = read_rows(tmp_path / "out")
    assert sum(int(row["regions"]) > 0 for row in rows) <= 5  # half of the nine images, as the rate says
    assert all((row["cause"] in ("text", "map")) == (row["verdict"] == "anomalous") for row in rows)
    assert {row["verdict"] for row in rows} == {"anomalous", "normal"}
    with tifffile.TiffFile(tmp_path / "out" / "maps" / "100.png.tiff") as tiff:
        assert json.loads(tiff.pages[0].description)["pixel_threshold"] == level
    run(*arguments, "--out", tmp_path / "high", "--pixel-threshold", 50)
    assert {row["regions"] for row in read_rows(tmp_path / "high")} == {"0"}


def test_bad_input_is_one_line(images: Path, model: list[str], banks: Path, bare_model: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "--coco: there are no regions" in error_line(run_scan(images, *model, *out, "--coco"))
    bare = ("--model", bare_model, "--image-size", 70)
    assert "gives no maps without a projector" in run_scan(images, *bare, *out, "--pixel-threshold", 1).stderr
    assert "gives no maps without a projector" in run_scan(images, *bare, *out, "--overlays").stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--threshold", "--pixel-threshold"])
def test_a_threshold_that_is_no_number_is_refused_before_a_model_is_loaded(
    images: Path, tmp_path: Path, option: str
) -> None:
    result = run_scan(images, "--model", tmp_path / "missing", "--out", tmp_path / "out", option, "nan")
    assert result.exit_code == 2
    assert "threshold nan: not a number" in error_line(result)


def test_regions_of_a_part_without_calibration_are_refused_before_a_model_is_loaded(
    images: Path, model: list[str], banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("enroll", draw_images(tmp_path / "good", 1), "--part", "p", "--banks", banks, *model)
    path = banks / "p.safetensors"
    save_bank(replace(load_bank(path), calibration=None), path)
    monkeypatch.setattr("aprilcli.workflows.scan.load_detector", lambda *_: pytest.fail("loaded"))
    arguments = (images, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert "part p is not calibrated" in error_line(run_scan(*arguments, "--coco"))


def test_a_scan_without_readable_images_writes_all_that_is_asked_for(model: list[str], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    arguments = ("--pixel-threshold", 1, "--coco", "--overlays", "--report", "--allow-empty", "--out", tmp_path / "out")
    result = run_scan(tmp_path / "images", *model, *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["images"] == []
    assert "wrote no maps" not in (tmp_path / "out" / "report.html").read_text()
