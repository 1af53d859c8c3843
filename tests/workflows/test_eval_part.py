"""`eval --part`: a labeled folder against an enrolled bank, as `scan --part` decides."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_images, draw_object, error_line, read_record, read_rows, run, run_eval, run_scan
from PIL import Image

from aprilcli.core.bank_file import load_bank, save_bank
from aprilcli.core.calibration import Calibration


@pytest.fixture
def nut(tmp_path: Path) -> Path:
    """A labeled folder without training images."""
    root = draw_object(tmp_path / "labeled", 100)
    shutil.rmtree(root / "train")
    return root


@pytest.fixture
def enrolled(model: list[str], banks: Path, tmp_path: Path) -> list[object]:
    """The options that select a part with three references, calibrated on 19 images."""
    good, further = draw_images(tmp_path / "good", 3, 500), draw_images(tmp_path / "further", 19, 600)
    chosen = ["--part", "nut", "--banks", banks]
    result = run("enroll", good, *chosen, "--object", "metal nut", "--calibrate", further, *model)
    assert result.exit_code == 0, result.output
    return chosen


def test_scores_and_verdicts_are_those_of_a_scan(nut: Path, enrolled: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_eval(nut, out, *enrolled, "--false-alarm-rate", 0.1, "--maps")
    assert result.exit_code == 0, result.output
    run_scan(nut / "test", *enrolled, "--false-alarm-rate", 0.1, "--out", tmp_path / "scan")
    scanned = {f"test/{row['path']}": row for row in read_rows(tmp_path / "scan")}
    rows = read_rows(out)
    assert len(rows) == len(scanned) == 6
    for row in rows:
        assert [row[name] for name in ("score", "text_score", "map_max")] == [
            scanned[row["path"]][name] for name in ("score", "text_score", "map_max")
        ]
        assert (row["shots"], row["seed"]) == ("3", "")
    (verdicts,) = read_record(out)["verdicts"]
    called = [path.split("/")[1] for path, row in scanned.items() if row["verdict"] != "normal"]
    assert (verdicts["caught"], verdicts["false_alarms"]) == (called.count("scratch"), called.count("good"))
    assert str(np.float32(verdicts["threshold"])) == next(iter(scanned.values()))["threshold"]
    assert (verdicts["shots"], verdicts["seed"], verdicts["rate"], verdicts["guaranteed"]) == (3, None, 0.1, True)
    assert f"labeled, 3 shots: caught {verdicts['caught']} of 3 defects" in result.stdout
    assert "part nut with its 3 references, 'metal nut' in the prompts" in result.stdout
    assert "called anomalous or unrecognised" in result.stdout
    assert len(list((out / "anomaly_maps").rglob("*.tiff"))) == 6
    assert "LEAKAGE" not in result.stdout


def test_metrics_json_names_the_bank_and_its_references(
    nut: Path, enrolled: list[object], model: list[str], tmp_path: Path
) -> None:
    assert run_eval(nut, tmp_path / "out", *enrolled).exit_code == 0
    record = read_record(tmp_path / "out")
    assert record["options"]["part"] == "nut"
    assert record["options"]["model"] == model[1]
    assert Path(record["bank"]["path"]).name == "nut.safetensors"
    assert record["results"][0]["references"] == ["500.png", "501.png", "502.png"]
    assert record["calibration"] == {"labeled": "19 scores of good images (held-out)"}
    assert record["settings"] == [{"shots": 3, "seed": None, "method": "april-gan"}]


def test_unrecognised_images_count_as_caught_and_as_false_alarms(
    nut: Path, enrolled: list[object], banks: Path, tmp_path: Path
) -> None:
    path = banks / "nut.safetensors"
    bank = load_bank(path)
    scores = bank.calibration.scores
    near = Calibration(scores + 9, scores, "held-out", np.full(19, 1e-9, np.float32))  # only unrecognised images
    save_bank(replace(bank, calibration=near), path)
    result = run_eval(nut, tmp_path / "out", *enrolled)
    (verdicts,) = read_record(tmp_path / "out")["verdicts"]
    run_scan(nut / "test", *enrolled, "--out", tmp_path / "scan")
    called = [row["path"].split("/")[0] for row in read_rows(tmp_path / "scan") if row["verdict"] == "unrecognised"]
    assert called
    counts = {"caught": called.count("scratch"), "false_alarms": called.count("good")}
    assert verdicts["unrecognised"] == counts
    assert {name: verdicts[name] for name in counts} == counts
    assert read_record(tmp_path / "out")["results"][0]["metrics"]["far"] == pytest.approx(called.count("good") / 3)
    assert "unrecognised: they do not look like the part" in result.stdout


def test_references_and_calibration_images_among_the_test_images_are_leakage(
    nut: Path, enrolled: list[object], tmp_path: Path
) -> None:
    good = nut / "test" / "good"
    shutil.copy(tmp_path / "good" / "500.png", good / "reference.png")
    shutil.copy(tmp_path / "further" / "600.png", good / "calibrated.png")
    for folder, number in (("good", 501), ("further", 601)):
        with Image.open(tmp_path / folder / f"{number}.png") as image:
            image.save(good / f"saved again {number}.bmp")
    result = run_eval(nut, tmp_path / "out", *enrolled)
    assert result.exit_code == 0
    leakage = read_record(tmp_path / "out")["leakage"]
    assert "copies of reference or calibration images: labeled 4 of 10 (first test/good/calibrated.png)" in leakage
    assert leakage in result.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--shots", "0,1"], "omit --shots"),
        (["--seeds", 2, "--calibrate"], "omit --seeds and --calibrate"),
        (["--fusion", "sum"], "omit --fusion"),
    ],
)
def test_options_that_the_bank_decides_are_refused(
    nut: Path, banks: Path, tmp_path: Path, options: list[object], expected: str
) -> None:
    result = run_eval(nut, tmp_path / "out", "--part", "nut", "--banks", banks, *options)
    assert result.exit_code == 2
    assert error_line(result).endswith(expected)


def test_settings_other_than_the_banks_are_refused(
    nut: Path, enrolled: list[object], model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for options, expected in (
        (["--model", "tiny"], "not tiny: omit --model"),
        (["--image-size", 56], "image size 70, not 56: omit --image-size"),
        (["--tile", 64], "tile none, not 64: omit --tile"),
        (["--range", "0,4095"], "--range: the references of this part were read with no range"),
    ):
        result = run_eval(nut, out, *enrolled, *options)
        assert expected in result.stderr.strip().splitlines()[-1]
        assert result.exit_code != 0
        assert not (out / "metrics.json").exists()
    assert run_eval(nut, out, *enrolled, *model).exit_code == 0


def test_a_bank_is_of_one_object(parts: Path, enrolled: list[object], tmp_path: Path) -> None:
    line = error_line(run_eval(parts, tmp_path / "out", *enrolled))
    assert "several objects (bolt, metal_nut), but a bank is of one part; choose with --objects" in line
    assert run_eval(parts, tmp_path / "out", *enrolled, "--objects", "bolt").exit_code == 0


def test_a_missing_part_is_one_line(nut: Path, banks: Path, tmp_path: Path) -> None:
    line = error_line(run_eval(nut, tmp_path / "out", "--part", "nut", "--banks", banks))
    assert "there is no such bank; enroll the part first" in line
