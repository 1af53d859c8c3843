"""`eval --calibrate`: thresholds from good images that are not tested, against detectors with their own banks."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import GoldenCase, draw_images, draw_object, error_line, read_csv, read_record, read_rows, run_eval

from aprilcli.core.calibration import threshold_at
from aprilcli.core.detector import Detector
from aprilcli.core.memory_bank import Recipe, Source, build
from aprilcli.core.metrics import METRICS
from aprilcli.io.images import read_image
from aprilcli.workflows import eval_encoding

RATE = 0.2
CALIBRATE = ("--calibrate", "--false-alarm-rate", RATE)


@pytest.fixture
def bolt(tmp_path: Path) -> Path:
    """An object with ten good training images."""
    return draw_object(tmp_path / "bolt", 100, train=10)


def detector_with(golden: GoldenCase, root: Path, references: list[str]) -> Detector:
    """Make the detector that `scan` would use with these references."""
    plain = golden.detector(golden.projector, None, "bolt")
    if not references:
        return plain
    pixels = [torch.from_numpy(plain.prepare(read_image(root / path)).whole[0][None]) for path in references]
    tokens = [golden.encoder.encode(image).patch_tokens for image in pixels]
    sources = [Source(path, path) for path in references]
    bank = build(tokens, sources, golden.backbone.spec, "bolt", dtype=torch.float32)
    recipe = Recipe(projector_fingerprint=plain.projector_fingerprint)
    return golden.detector(golden.projector, type(bank)(**{**vars(bank), "recipe": recipe}), "bolt")


def check_results(golden: GoldenCase, root: Path, out: Path, images: list[Path]) -> None:
    """Recompute threshold, far and tpr of every setting from single detections."""
    for result in read_record(out)["results"]:
        detector = detector_with(golden, root, result["references"])
        scores = np.array([detector.detect_file(path).score for path in images], np.float32)
        threshold = threshold_at(scores, RATE, "held-out")
        assert result["threshold"]["value"] == pytest.approx(threshold.value, abs=1e-5)
        assert result["threshold"]["guaranteed"] == threshold.guaranteed
        verdicts: dict[str, list[bool]] = {"good": [], "scratch": []}
        for kind, called in verdicts.items():
            paths = sorted((root / "test" / kind).iterdir())
            called += [threshold.verdict(detector.detect_file(path).score) == "anomalous" for path in paths]
        assert result["metrics"]["far"] == pytest.approx(np.mean(verdicts["good"]))
        assert result["metrics"]["tpr"] == pytest.approx(np.mean(verdicts["scratch"]))


def test_the_threshold_comes_from_validation_good(
    bolt: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    draw_images(bolt / "validation" / "good", 6, 300)
    out = tmp_path / "out"
    result = run_eval(bolt, out, *model, "--shots", "0,2", "--seeds", 2, *CALIBRATE, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    check_results(golden_vit, bolt, out, sorted((bolt / "validation" / "good").iterdir()))
    assert read_record(out)["calibration"] == {"bolt": "6 images of validation/good"}
    assert "threshold for a rate of 0.2; calibrated on good images" in result.stdout
    assert "bolt 6 images of validation/good" in result.stdout


def test_without_that_folder_it_comes_from_unused_training_images(
    bolt: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    settings = (*model, "--shots", "0,1,2", "--seeds", 2, *CALIBRATE)
    for out in ("out", "again"):
        assert run_eval(bolt, tmp_path / out, *settings).exit_code == 0
    record = read_record(tmp_path / "out")
    drawn = {Path(path).name for result in record["results"] for path in result["references"]}
    unused = [path for path in sorted((bolt / "train" / "good").iterdir()) if path.name not in drawn]
    assert 6 <= len(unused) < 10
    check_results(golden_vit, bolt, tmp_path / "out", unused)
    source = f"{len(unused)} of {len(unused)} unused good training images (100%)"
    assert record["calibration"] == {"bolt": source}
    assert (tmp_path / "out" / "metrics.csv").read_bytes() == (tmp_path / "again" / "metrics.csv").read_bytes()


def test_many_training_images_are_used_in_part_and_the_share_is_reported(
    bolt: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_encoding, "MOST_TO_CALIBRATE", 4)
    thresholds = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_eval(bolt, tmp_path / out, *model, "--shots", "0", "--seed", seed, *CALIBRATE)
        record = read_record(tmp_path / out)
        assert record["calibration"] == {"bolt": "4 of 10 unused good training images (40%)"}
        thresholds.append(record["results"][0]["threshold"]["value"])
    assert thresholds[0] == thresholds[1] != thresholds[2]


def test_test_images_do_not_change_the_threshold(bolt: Path, model: list[str], tmp_path: Path) -> None:
    def threshold(out: str) -> Any:
        run_eval(bolt, tmp_path / out, *model, "--shots", "1", "--seeds", 1, *CALIBRATE)
        return read_record(tmp_path / out)["results"][0]["threshold"]

    before = threshold("before")
    shutil.copy(bolt / "test" / "scratch" / "000.png", bolt / "test" / "good" / "000.png")
    shutil.rmtree(bolt / "test" / "scratch")
    assert threshold("after") == before


def test_without_images_to_calibrate_on_columns_are_empty_and_a_problem_is_reported(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    shutil.rmtree(parts / "metal_nut" / "train")
    draw_images(parts / "metal_nut" / "train" / "good", 1)
    out = tmp_path / "out"
    result = run_eval(parts, out, *model, "--shots", "0,1", "--seeds", 1, *CALIBRATE)
    problem = "metal_nut: no readable images in validation/good or unused for training; no far and tpr"
    assert f"problem: {problem}" in result.stderr
    assert problem in read_record(out)["problems"]
    assert "metal_nut no images, so no threshold" in result.stdout
    rows = read_csv(out / "metrics.csv")
    assert list(rows[0]) == ["object", "shots", "seed", *METRICS, "far", "tpr", "method"]
    for row in rows:
        assert [row["far"] == "", row["tpr"] == ""] == [row["object"] == "metal_nut"] * 2
    bolt, mean = (next(row for row in rows if row["object"] == name) for name in ("bolt", "mean"))
    assert (bolt["far"], bolt["tpr"]) == (mean["far"], mean["tpr"])


def test_unreadable_images_are_left_out_of_the_calibration(bolt: Path, model: list[str], tmp_path: Path) -> None:
    draw_images(bolt / "validation" / "good", 2, 300)
    (bolt / "validation" / "good" / "broken.png").write_bytes(b"broken")
    out = tmp_path / "out"
    result = run_eval(bolt, out, *model, "--shots", 0, *CALIBRATE)
    assert result.exit_code == 0
    (problem,) = read_record(out)["problems"]
    assert "broken.png" in problem
    assert problem.endswith("; not used for calibration")
    assert result.stderr.count("too few for a false-alarm rate of 0.2") == 1
    assert read_record(out)["calibration"] == {"bolt": "2 images of validation/good"}


def test_without_the_option_nothing_is_added(bolt: Path, model: list[str], tmp_path: Path) -> None:
    run_eval(bolt, tmp_path / "with", *model, "--shots", "0,1", "--seeds", 1, *CALIBRATE)
    run_eval(bolt, tmp_path / "without", *model, "--shots", "0,1", "--seeds", 1)
    record = read_record(tmp_path / "without")
    assert "calibration" not in record
    assert all("threshold" not in result for result in record["results"])
    with (tmp_path / "with" / "metrics.csv").open(newline="") as stream:
        expected = [[*line[:-3], line[-1]] for line in csv.reader(stream)]  # without far and tpr
    with (tmp_path / "without" / "metrics.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == expected
    assert read_rows(tmp_path / "with") == read_rows(tmp_path / "without")


def test_scores_of_the_authors_program_have_no_threshold(bolt: Path, model: list[str], tmp_path: Path) -> None:
    result = run_eval(bolt, tmp_path / "out", *model, "--calibrate", "--fusion", "authors")
    assert result.exit_code == 2
    assert "--fusion sum" in error_line(result)
    result = run_eval(bolt, tmp_path / "out", *model, "--calibrate", "--false-alarm-rate", 2)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()
