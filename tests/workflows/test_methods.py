"""`enroll --method`, and `scan --part` with such a bank."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import (
    GoldenCase,
    draw_image,
    draw_images,
    error_line,
    read_rows,
    read_rows_by_path,
    run,
    run_scan,
)
from PIL import Image

from aprilcli import Detector
from aprilcli.core.bank_file import load_bank, save_bank
from aprilcli.core.memory_bank import MemoryBank

RIVALS = ("patchcore", "padim", "spade", "subspacead", "winclip")
RATE = ("--false-alarm-rate", 0.4)  # with few good images, a threshold that some images reach

each_rival = pytest.mark.parametrize("method", RIVALS)


def enroll(method: str, good: Path, banks: Path, *more: object) -> MemoryBank:
    """Enroll the part ``nut``, and read its bank."""
    result = run("enroll", good, "--part", "nut", "--banks", banks, "--method", method, *more)
    assert result.exit_code == 0, result.output
    return load_bank(banks / "nut.safetensors")


def maps_of(out: Path) -> dict[str, np.ndarray]:
    return {path.name.removesuffix(".tiff"): tifffile.imread(path) for path in (out / "maps").iterdir()}


@each_rival
def test_a_scan_gives_what_the_detector_of_the_bank_gives(
    method: str, model: list[str], banks: Path, tmp_path: Path
) -> None:
    bank = enroll(method, draw_images(tmp_path / "good", 3), banks, *model)
    images, out = draw_images(tmp_path / "images", 4, 50), tmp_path / "out"
    result = run_scan(images, "--part", "nut", "--banks", banks, "--map-size", "model", *RATE, "--report", "--out", out)
    assert result.exit_code == 0, result.output
    detector = Detector.load(bank=bank, device="cpu")
    rows, maps = read_rows_by_path(out), maps_of(out)
    assert bank.calibration is not None
    threshold = json.loads((out / "run.json").read_text())["threshold"]["value"]
    for path, row in rows.items():
        detection = detector.detect_file(images / path)
        assert float(row["score"]) == pytest.approx(detection.score, rel=1e-5, abs=1e-6)
        assert float(row["text_score"]) == pytest.approx(detection.text_score, abs=1e-6)
        assert float(row["map_max"]) == pytest.approx(detection.map_max, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(maps[path], detection.anomaly_map, rtol=1e-4, atol=1e-5)
        reached = sum(bank.calibration.scores >= np.float32(row["score"]))
        assert float(row["p_value"]) == pytest.approx((1 + reached) / 4)
        is_anomalous = float(row["score"]) >= threshold
        assert row["verdict"] in ("unrecognised", "anomalous" if is_anomalous else "normal")
        assert row["cause"] == ("map" if row["verdict"] == "anomalous" else "")
        assert row["regions"].isdecimal()
    assert (out / "regions.csv").exists()
    assert method in (out / "report.html").read_text()


@each_rival
def test_leave_one_out_is_scanning_against_the_others(
    method: str, model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 3)
    scored = enroll(method, good, banks, *model).calibration
    assert scored is not None
    assert scored.method == "leave-one-out"
    assert np.isfinite(scored.scores).all()
    others = Path(shutil.copytree(good, tmp_path / "others"))
    (others / "001.png").rename(tmp_path / "001.png")
    bank = enroll(method, others, banks, *model, "--overwrite")
    detection = Detector.load(bank=bank, device="cpu").detect_file(tmp_path / "001.png")
    assert detection.score == pytest.approx(float(scored.scores[1]), rel=1e-4)
    assert detection.map_max == pytest.approx(float(scored.map_maxima[1]), rel=1e-4)


@each_rival
def test_calibrated_on_further_images_or_on_variants(
    method: str, model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, further = draw_images(tmp_path / "good", 1), draw_images(tmp_path / "further", 3, 50)
    single = enroll(method, good, banks, *model).calibration
    assert single is not None
    assert (single.method, len(single)) == ("augmentations", 8)
    assert np.isfinite(single.scores).all()
    bank = enroll(method, good, banks, *model, "--overwrite", "--calibrate", further)
    assert bank.calibration is not None
    assert bank.calibration.method == "held-out"
    detector = Detector.load(bank=bank, device="cpu")
    expected = [detector.detect_file(path).score for path in sorted(further.iterdir())]
    np.testing.assert_allclose(bank.calibration.scores, expected, rtol=1e-5)


@each_rival
def test_append_gives_the_bank_of_all_at_once(method: str, model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 4)
    whole = enroll(method, good, banks, *model)
    enroll(method, draw_images(tmp_path / "first", 2), banks, *model, "--overwrite")
    result = run("enroll", good, "--part", "nut", "--banks", banks, "--append")
    assert result.exit_code == 0, result.output
    grown = load_bank(banks / "nut.safetensors")
    assert grown.recipe == whole.recipe
    assert grown.sources == whole.sources
    for mine, theirs in zip(
        (*grown.features, *grown.norms, *grown.image_features),
        (*whole.features, *whole.norms, *whole.image_features),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    assert [len(scales) for scales in grown.windows] == [len(scales) for scales in whole.windows]
    np.testing.assert_allclose(grown.calibration.scores, whole.calibration.scores, rtol=1e-6)
    again = run("enroll", draw_images(good, 1, 80), "--part", "nut", "--banks", banks, "--append", "--method", "spade")
    if method != "spade":
        assert f"method {method}, not spade: omit --method" in error_line(again)


@each_rival
def test_a_bank_says_its_method(method: str, model: list[str], banks: Path, tmp_path: Path) -> None:
    enroll(method, draw_images(tmp_path / "good", 2), banks, *model)
    lines = map(str.split, run("inspect", banks / "nut.safetensors").stdout.splitlines())
    words = list(lines)
    assert ["method", method] in words
    assert not [line for line in words if line[:1] in (["fusion"], ["score"])]  # they are of the paper's method
    assert [line[3:5] for line in words if line[:1] == ["reference"]] == [["april-gan", "score"]] * 2


@each_rival
def test_sizes_and_tiles(method: str, golden_vit: GoldenCase, banks: Path, tmp_path: Path) -> None:
    options = ["--model", golden_vit.folder, "--image-size", "70,56", "--tile", 80, "--device", "cpu"]
    good = draw_images(tmp_path / "good", 2)
    bank = enroll(method, good, banks, *options)
    assert np.isfinite(bank.calibration.scores).all()
    images, out = draw_images(tmp_path / "images", 2, 50), tmp_path / "out"
    result = run_scan(images, "--part", "nut", "--banks", banks, "--out", out)
    assert result.exit_code == 0, result.output
    detector = Detector.load(bank=bank, device="cpu")
    for path, row in read_rows_by_path(out).items():
        assert float(row["score"]) == pytest.approx(detector.detect_file(images / path).score, rel=1e-5)


def test_a_bank_without_the_features_of_other_methods_still_scans(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, images = draw_images(tmp_path / "good", 2), draw_images(tmp_path / "images", 2, 50)
    bank, path = enroll("april-gan", good, banks, *model), banks / "nut.safetensors"
    chosen = ("--part", "nut", "--banks", banks)
    assert run_scan(images, *chosen, "--out", tmp_path / "new").exit_code == 0
    save_bank(replace(bank, norms=(), image_features=()), path)
    assert run_scan(images, *chosen, "--out", tmp_path / "old").exit_code == 0
    assert read_rows(tmp_path / "new") == read_rows(tmp_path / "old")
    grown = run("enroll", draw_images(tmp_path / "more", 1, 80), *chosen, "--append")
    assert grown.exit_code == 0, grown.output
    assert load_bank(path).norms == ()
    save_bank(replace(bank, norms=(), image_features=(), recipe=replace(bank.recipe, method="padim")), path)
    line = error_line(run_scan(images, *chosen, "--out", tmp_path / "refused"))
    assert "it lacks features of its references; enroll the part again" in line


@each_rival
def test_a_model_without_a_projector_and_with_float16(
    method: str, bare_model: Path, banks: Path, tmp_path: Path
) -> None:
    bare = ["--model", bare_model, "--image-size", 70, "--device", "cpu"]
    good, images = draw_images(tmp_path / "good", 3), draw_images(tmp_path / "images", 2, 50)
    bank = enroll(method, good, banks, *bare)
    chosen = ("--part", "nut", "--banks", banks)
    exact = run_scan(images, *chosen, "--out", tmp_path / "exact")
    assert exact.exit_code == 0, exact.output
    assert "no projector" not in exact.stderr
    half = tuple(rows.half() for rows in bank.features)
    save_bank(replace(bank, features=half), banks / "nut.safetensors")
    assert run_scan(images, *chosen, "--out", tmp_path / "half").exit_code == 0
    for whole, rounded in zip(read_rows(tmp_path / "exact"), read_rows(tmp_path / "half"), strict=True):
        assert float(rounded["score"]) == pytest.approx(float(whole["score"]), rel=0.01)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--coreset", 0.5], "--coreset: not with --method spade, which has its own; omit it"),
        (["--fusion", "sum"], "--fusion: not with --method spade, which has its own; omit it"),
    ],
)
def test_options_of_another_method_are_refused(
    model: list[str], banks: Path, tmp_path: Path, options: list[object], expected: str
) -> None:
    good = draw_images(tmp_path / "good", 2)
    result = run("enroll", good, "--part", "nut", "--banks", banks, "--method", "spade", *options, *model)
    assert result.exit_code == 2
    assert expected in error_line(result)
    assert not banks.exists()


def test_an_unknown_method_is_refused(banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    result = run("enroll", good, "--part", "nut", "--banks", banks, "--method", "cutpaste")
    assert result.exit_code == 2
    assert "'cutpaste' is not one of 'april-gan'" in result.stderr


@each_rival
def test_twins_are_left_out_with_all_that_is_kept_of_them(
    method: str, golden_vit: GoldenCase, banks: Path, tmp_path: Path
) -> None:
    model = ["--model", golden_vit.folder, "--image-size", 70, "--tile", 80, "--device", "cpu"]
    good, options = tmp_path / "good", ["--rotations"]
    for number, size_wh in enumerate(((100, 60), (60, 100))):  # of different numbers of tiles
        draw_image(good / f"{number}.png", number, size_wh)
    alone = enroll(method, good, banks, *model, *options)
    with Image.open(good / "0.png") as image:
        image.save(good / "0 again.bmp")
    pair = enroll(method, good, banks, *model, *options, "--overwrite")
    assert [source.path for source in pair.sources] == ["0 again.bmp", "1.png"]
    for mine, theirs in zip((*pair.norms, *pair.image_features), (*alone.norms, *alone.image_features), strict=True):
        assert torch.equal(mine, theirs)
    image = draw_image(tmp_path / "image.png", 50, (90, 110))
    scores = [Detector.load(bank=bank, device="cpu").detect_file(image).score for bank in (alone, pair)]
    assert scores[0] == pytest.approx(scores[1])
