"""`scan --part` through the command line: scores against a bank, verdicts, and banks that are refused."""

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
    GOLDEN,
    QUERIES,
    GoldenCase,
    draw_image,
    draw_images,
    error_line,
    read_rows,
    run,
    save_image,
)
from PIL import Image

from aprilcli.core.bank_file import SCHEMA, load_bank, save_bank
from aprilcli.core.calibration import Calibration
from aprilcli.core.detector import Detector
from aprilcli.io.artifacts import read_artifact, write_artifact

SAMPLES = Path(__file__).parents[1] / "samples"


def test_golden_few_shot_maps_and_sums(golden: GoldenCase, tmp_path: Path) -> None:
    for name in ("ref0", "ref1"):
        (tmp_path / "good").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "images" / f"{name}.png", tmp_path / "good")
    for query in QUERIES:
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "images" / f"{query}.png", tmp_path / "images")
    stages = ",".join(map(str, golden.stages))
    settings = ["--model", golden.folder, "--image-size", golden.image_size, "--stages", stages]
    banks = ["--part", "nut", "--banks", tmp_path / "banks", "--device", "cpu"]
    enrolled = run("enroll", tmp_path / "good", *settings, *banks, "--object", "metal nut")
    assert enrolled.exit_code == 0, enrolled.output
    result = run("scan", tmp_path / "images", *banks, "--map-size", "model", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for row, query in zip(read_rows(tmp_path / "out"), QUERIES, strict=True):
        expected = golden.numbers[f"{query}/anomaly_map"]
        written = torch.from_numpy(tifffile.imread(tmp_path / "out" / "maps" / f"{query}.png.tiff"))
        torch.testing.assert_close(written, expected, atol=1e-4, rtol=0)
        probability = float(golden.numbers[f"{query}/probability"][1])
        assert float(row["score"]) == pytest.approx(probability + float(expected.max()), abs=1e-4)
        assert float(row["score"]) == pytest.approx(float(row["text_score"]) + float(row["map_max"]), abs=1e-6)


def test_a_reference_has_a_few_shot_map_near_zero(
    golden_vit: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(golden_vit.folder, tmp_path / "bare"))
    (bare / "projector.safetensors").unlink()
    good = draw_images(tmp_path / "good", 3)
    bare_model = ["--model", bare, *model[2:]]
    enrolled = run("enroll", good, "--part", "p", "--banks", banks, *bare_model)
    assert enrolled.stderr.count("no projector") == 1
    draw_image(tmp_path / "images" / "new.png", 99)
    shutil.copy(good / "001.png", tmp_path / "images")
    result = run("scan", tmp_path / "images", "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.stderr.count("no projector") == 1
    reference, new = read_rows(tmp_path / "out")
    assert float(reference["map_max"]) < 1e-3
    assert float(new["map_max"]) > 0.05


def test_verdicts_p_values_and_threshold(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, further = draw_images(tmp_path / "good", 3), draw_images(tmp_path / "further", 19, 100)
    enrolled = run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    assert "calibrated on 19 scores of good images (held-out)" in enrolled.stdout
    scored = load_bank(banks / "p.safetensors").calibration
    assert scored is not None
    arguments = ["scan", further, "--part", "p", "--banks", banks, "--false-alarm-rate", 0.1]
    assert run(*arguments, "--out", tmp_path / "out", "--fail-on-anomaly").exit_code == 4
    results = read_rows(tmp_path / "out")
    by_scan = np.array([float(row["score"]) for row in results], np.float32)
    np.testing.assert_allclose(np.sort(by_scan), np.sort(scored.scores), atol=1e-6)  # calibrated as scan scores
    assert [row["verdict"] for row in results].count("anomalous") == 1  # of 19, p = (1 + 1) / 20 ≤ 0.1
    for row in results:
        reached = sum(other >= np.float32(row["score"]) for other in scored.scores)
        assert float(row["p_value"]) == pytest.approx((1 + reached) / 20)
        assert (row["verdict"] == "anomalous") == (float(row["p_value"]) <= 0.1 + 1e-9)
    described = json.loads((tmp_path / "out" / "run.json").read_text())
    assert described["threshold"]["guaranteed"] is True
    assert described["pixel_threshold"]["value"] > 0
    assert described["bank"]["sha256"]


def test_too_few_images_give_one_note_with_the_number_needed(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 4)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    result = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.stderr.count("9 good images would be enough") == 1
    threshold = json.loads((tmp_path / "out" / "run.json").read_text())["threshold"]
    assert threshold["guaranteed"] is False
    scored = load_bank(banks / "p.safetensors").calibration
    assert scored is not None
    assert threshold["value"] > scored.scores.max()
    given = run(
        "scan",
        good,
        "--part",
        "p",
        "--banks",
        banks,
        "--threshold",
        0,
        "--pixel-threshold",
        0,
        "--out",
        tmp_path / "given",
    )
    assert {row["verdict"] for row in read_rows(tmp_path / "given")} == {"anomalous"}
    assert "would be enough" not in given.stderr


def test_a_bank_is_refused_by_another_model_projector_or_object(
    golden_vit: GoldenCase, other_golden: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    scan = ["scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out", "--device", "cpu"]
    line = error_line(run(*scan, *other_golden.options))
    assert other_golden.folder.name in line
    assert golden_vit.folder.name in line
    assert "image size 70, not 56" in error_line(run(*scan, "--image-size", 56))
    assert "'object'" in error_line(run(*scan, "--object", "screw"))
    assert not (tmp_path / "out").exists()


def test_settings_other_than_the_banks_are_named_before_a_model_is_loaded(
    model: list[str], banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = draw_images(tmp_path / "good", 1)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    scan = ["scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out", "--device", "cpu"]
    line = error_line(run(*scan, "--model", "tiny"))  # the bank's image size does not suit it
    assert f"made with model {model[1]}, not tiny: omit --model, or enroll" in line
    artifact = read_artifact(banks / "p.safetensors", SCHEMA)
    artifact.fields["recipe"] |= {"model": "tiny", "projector": "visa"}
    write_artifact(banks / "p.safetensors", "bank", artifact.tensors, artifact.fields)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Detector, "load", fail)
    for options, expected in (
        (["--model", "paper"], "model tiny, not paper: omit --model,"),
        (["--model", "ViT-B-16:openai"], "model tiny, not ViT-B-16:openai: omit --model,"),
        (["--projector", "mvtec"], "projector visa, not mvtec: omit --projector,"),
        (["--stages", "2,4"], "stages 2,4,6,8, not 2,4: omit --stages,"),
        (["--object", "nut"], "object name object, not nut: omit --object,"),
        (
            ["--model", "paper", "--image-size", 518],
            "model tiny, not paper; image size 70, not 518: omit --model and --image-size,",
        ),
    ):
        line = error_line(run(*scan, *options))
        assert f"the bank of 'object' was made with {expected} or enroll the part again" in line


def test_a_missing_bank_lists_the_parts_and_the_nearest(
    banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = draw_images(tmp_path / "good", 1)
    banks.mkdir()
    for name in ("fibre", "nut", *(f"x{number}" for number in range(20))):
        (banks / f"{name}.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    line = error_line(run("scan", good, "--part", "fiber", "--banks", "banks"))
    assert f"{banks}/fiber.safetensors: there is no such bank; enroll the part first, or use --part fibre" in line
    assert "parts in this folder: fibre, nut, x0," in line
    assert line.endswith(" and 12 more")
    assert "or use --part nut" in error_line(run("scan", good, "--part", "banks/nutt.safetensors"))
    assert "choose another folder with --banks" in error_line(run("scan", good, "--part", "nut", "--banks", "missing"))


def test_a_threshold_beside_a_calibration_is_a_note(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    scan = ["scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out", "--threshold", 0.5]
    result = run(*scan, "--false-alarm-rate", 0.3)
    assert result.exit_code == 0
    assert "--threshold 0.5 replaces the part's threshold of " in result.stderr
    assert "for a false-alarm rate of 0.3" in result.stderr


def test_a_missing_bank_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 1)
    result = run("scan", good, "--part", "nosuch", "--banks", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "there is no such bank; enroll the part first" in error_line(result)


def test_scores_with_a_bank_depend_on_the_image_alone(model: list[str], banks: Path, tmp_path: Path) -> None:
    run("enroll", draw_images(tmp_path / "good", 2), "--part", "p", "--banks", banks, *model)
    images = draw_images(tmp_path / "images", 5, 40)
    arguments = ["scan", images, "--part", "p", "--banks", banks]
    run(*arguments, "--out", tmp_path / "single")
    run(*arguments, "--out", tmp_path / "batch", "--batch-size", 4)
    for mine, theirs in zip(read_rows(tmp_path / "single"), read_rows(tmp_path / "batch"), strict=True):
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), abs=1e-5)


def test_a_bank_of_a_model_folder_works_from_any_folder(
    golden_vit: GoldenCase, banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = draw_images(tmp_path / "good", 2)
    monkeypatch.chdir(golden_vit.folder.parent)
    arguments = [
        "--image-size",
        70,
        "--device",
        "cpu",
        "--projector",
        f"{golden_vit.folder.name}/projector.safetensors",
    ]
    enrolled = run("enroll", good, "--part", "p", "--banks", banks, "--model", golden_vit.folder.name, *arguments)
    assert enrolled.exit_code == 0, enrolled.output
    monkeypatch.chdir(tmp_path)
    scanned = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert scanned.exit_code == 0, scanned.output


def test_a_bank_keeps_the_range_of_its_images(model: list[str], banks: Path, tmp_path: Path) -> None:
    twelve_bit = np.random.default_rng(0).integers(0, 4096, (40, 60), dtype=np.uint16)
    (tmp_path / "good").mkdir()
    Image.fromarray(twelve_bit).save(tmp_path / "good" / "a.png")
    run("enroll", tmp_path / "good", "--part", "p", "--banks", banks, "--range", "0,4095", *model)
    scan = ["scan", tmp_path / "good", "--part", "p", "--banks", banks, "--map-size", "model"]
    assert run(*scan, "--out", tmp_path / "out").exit_code == 0
    assert run(*scan, "--out", tmp_path / "same", "--range", "0,4095").exit_code == 0
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "same")
    other = run(*scan, "--out", tmp_path / "other", "--range", "0,1023")
    assert other.exit_code == 2
    assert "0,4095" in error_line(other)


def test_stages_that_the_banks_model_does_not_have_are_an_error_of_the_bank(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    artifact = read_artifact(banks / "p.safetensors", SCHEMA)
    artifact.fields["spec"]["stages"] = [2, 4, 6, 10**30]
    write_artifact(banks / "p.safetensors", "bank", artifact.tensors, artifact.fields)
    result = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "settings that its model does not have" in error_line(result)


def test_images_that_do_not_show_the_part_are_unrecognised(banks: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for name, folder in ((f"{k:02}.png", "good" if k < 5 else "scanned") for k in range(7)):
        with Image.open(SAMPLES / "washer_good_1.png") as image:
            pixels = np.asarray(image.convert("RGB")) * noise.uniform(0.9, 1.1) + noise.normal(0, 6, (256, 256, 3))
        save_image(tmp_path / folder / name, Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    dark = np.clip(noise.normal(4, 2, (200, 300, 3)), 0, 255).astype(np.uint8)
    save_image(tmp_path / "scanned" / "dead camera.png", Image.fromarray(dark))
    save_image(tmp_path / "scanned" / "white.png", Image.new("RGB", (300, 200), "white"))
    shutil.copy(SAMPLES / "casting_good_1.png", tmp_path / "scanned" / "other part.png")
    shutil.copy(SAMPLES / "washer_crack_3.png", tmp_path / "scanned" / "crack.png")
    run("enroll", tmp_path / "good", "--part", "p", "--banks", banks, "--image-size", 256)
    arguments = ["scan", tmp_path / "scanned", "--part", "p", "--banks", banks, "--threshold", 99]
    result = run(*arguments, "--out", tmp_path / "out", "--fail-on-anomaly")
    assert result.exit_code == 5  # the white image is an error, others are not the part; none reaches 99
    rows = {row["path"]: row for row in read_rows(tmp_path / "out")}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        **{"05.png": "normal", "06.png": "normal", "crack.png": "normal", "white.png": ""},
        **{"dead camera.png": "unrecognised", "other part.png": "unrecognised"},
    }
    assert "blank image" in rows["white.png"]["error"]
    assert "2 unrecognised, which do not look like the part" in result.stdout
    listed = [
        line.split()[2] for line in result.stdout.splitlines() if line.endswith(("dead camera.png", "other part.png"))
    ]
    assert listed == ["unrecognised"] * 2
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["counts"] == {"scored": 5, "unreadable": 1, "anomalous": 0, "unrecognised": 2}
    assert record["recognition"]["rate"] == pytest.approx(record["pixel_threshold"]["rate"] / 10)


def test_a_bank_without_appearances_recognizes_nothing_and_says_so(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, path = draw_images(tmp_path / "good", 2), banks / "p.safetensors"
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    bank = load_bank(path)
    calibration = Calibration(bank.calibration.scores, bank.calibration.map_maxima, "leave-one-out")
    save_bank(replace(bank, appearances=None, fits=None, spacings=None, calibration=calibration), path)
    result = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "enrolled by an earlier version" in result.stderr
    assert {row["verdict"] for row in read_rows(tmp_path / "out")} == {"normal"}


def test_the_summary_tells_what_a_stricter_rate_would_find(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, further = draw_images(tmp_path / "good", 3), draw_images(tmp_path / "further", 19, 100)
    run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    result = run("scan", further, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert "for a false-alarm rate of 0.05)" in result.stdout
    assert "at a rate of 0.01, 0 of them" in result.stdout
    chosen = run("scan", further, "--part", "p", "--banks", banks, "--out", tmp_path / "b", "--false-alarm-rate", 0.1)
    assert "at a rate" not in chosen.stdout
