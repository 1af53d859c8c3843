"""Labels from a report: good images become references, labeled images are evaluated."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import draw_images, draw_object, error_line, read_record, read_rows, run, run_eval

from aprilcli.core.bank_file import load_bank
from aprilcli.io.walk import FoundImage, find_images


def write_labels(path: Path, **label_of: str) -> Path:
    """Write a labels.csv; images are named by their keyword, ``_000`` for ``000.png``."""
    rows = "".join(f"{name.strip('_').replace('__', '/')}.png,{label}\r\n" for name, label in label_of.items())
    path.write_bytes(b"path,label\r\n" + rows.encode())
    return path


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """A folder without labels: images of an object, good and anomalous ones."""
    root = draw_object(tmp_path / "object", 100)
    for kind in ("good", "scratch"):
        shutil.copytree(root / "test" / kind, tmp_path / "shift" / kind)
    return tmp_path / "shift"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Labels of five of the six images in ``scanned``."""
    good = dict.fromkeys(("good__000", "good__001", "good__002"), "good")
    return write_labels(tmp_path / "labels.csv", **good, scratch__000="defect", scratch__001="defect")


def test_false_alarms_become_further_references(
    scanned: Path, labels: Path, model: list[str], banks: Path, tmp_path: Path
) -> None:
    part = ["--part", "nut", "--banks", banks]
    assert run("enroll", draw_images(tmp_path / "good", 2, 500), *part, *model).exit_code == 0
    result = run("enroll", scanned, *part, "--append", "--labels", labels)
    assert result.exit_code == 0, result.output
    assert "5 reference images of 'object', 3 new" in result.stdout
    paths = [source.path for source in load_bank(banks / "nut.safetensors").sources]
    assert paths == ["500.png", "501.png", "good/000.png", "good/001.png", "good/002.png"]


def test_paths_of_several_folders_are_relative_to_the_folder_that_holds_them(
    scanned: Path, labels: Path, model: list[str], banks: Path
) -> None:
    part = ["--part", "nut", "--banks", banks]
    folders = [scanned / "good", scanned / "scratch"]
    result = run("enroll", *folders, *part, "--labels", labels, *model)
    assert "3 reference images of 'object', 3 new" in result.stdout
    line = error_line(run("enroll", folders[0], *part, "--labels", labels, "--overwrite", *model))
    assert "5 labeled images are not in the given folder: good/000.png" in line


def test_a_folder_that_cannot_be_listed_matters_only_if_labeled_images_are_missing(
    scanned: Path, labels: Path, model: list[str], banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_more(*arguments: Any, **options: Any) -> Iterator[FoundImage]:
        yield from find_images(*arguments, **options)
        yield FoundImage(scanned / "lost+found", "lost+found/", "lost+found: the folder cannot be listed")

    for module in ("workflows.enroll_checks", "io.labels_csv"):
        monkeypatch.setattr(f"aprilcli.{module}.find_images", find_more)
    enroll = ("enroll", scanned, "--part", "nut", "--banks", banks, "--labels", labels, *model)
    evaluate = ("eval", scanned, "--labels", labels, "--out", tmp_path / "eval", *model)
    for command in (enroll, evaluate):
        result = run(*command)
        assert result.exit_code == 0, result.output
    (scanned / "good" / "001.png").unlink()
    for command in (enroll, evaluate):
        line = error_line(run(*command, "--overwrite"))
        assert "good/001.png" in line
        assert "lost+found: the folder cannot be listed" in line


def test_enrolling_without_images_that_are_labeled_good_is_refused(
    scanned: Path, model: list[str], banks: Path, tmp_path: Path
) -> None:
    part = ["--part", "nut", "--banks", banks]
    table = write_labels(tmp_path / "bad.csv", scratch__000="defect")
    line = error_line(run("enroll", scanned, *part, "--labels", table, *model))
    assert f"{table}: no image is labeled good" in line
    without = run("enroll", "--calibrate", scanned, *part, "--labels", table, *model)
    assert without.exit_code == 2
    assert "--labels: give the folder of the labeled images, too" in error_line(without)
    assert not (banks / "nut.safetensors").exists()


def test_calibration_images_do_not_become_references(model: list[str], banks: Path, tmp_path: Path) -> None:
    part = ["--part", "nut", "--banks", banks]
    further = draw_images(tmp_path / "further", 9, 600)
    run("enroll", draw_images(tmp_path / "good", 2, 500), *part, *model, "--calibrate", further)
    before = load_bank(banks / "nut.safetensors").calibration
    table = write_labels(tmp_path / "labels.csv", _600="good")
    line = error_line(run("enroll", further, *part, "--append", "--labels", table))
    assert "no new images; all are in" in line
    shutil.copy(tmp_path / "further" / "600.png", draw_images(tmp_path / "more", 1, 700) / "alarm.png")
    result = run("enroll", tmp_path / "more", *part, "--append")
    assert "1 images were already enrolled, as references or for the calibration (same content): alarm.png" in (
        result.stdout
    )
    bank = load_bank(banks / "nut.safetensors")
    assert [source.path for source in bank.sources] == ["500.png", "501.png", "700.png"]
    assert len(bank.calibration) == len(before) == 9


def test_labeled_images_of_any_folder_are_evaluated(
    scanned: Path, labels: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run_eval(scanned, out, *model, "--labels", labels)
    assert result.exit_code == 0, result.output
    assert [(row["path"], row["defect"], row["label"]) for row in read_rows(out)] == [
        *((f"good/00{k}.png", "good", "0") for k in range(3)),
        *((f"scratch/00{k}.png", "defect", "1") for k in range(2)),
    ]
    (result_of_shift,) = read_record(out)["results"]
    assert (result_of_shift["object"], result_of_shift["shots"]) == ("shift", 0)
    assert result_of_shift["metrics"]["auroc_cls"] is not None
    assert "images without a label, which are left out: 1" in result.stderr
    assert read_record(out)["dataset"]["layout"] == "labels"


def test_labeled_images_are_evaluated_against_a_part(
    scanned: Path, labels: Path, model: list[str], banks: Path, tmp_path: Path
) -> None:
    part = ["--part", "nut", "--banks", banks]
    run("enroll", draw_images(tmp_path / "good", 4, 500), *part, *model)
    result = run_eval(scanned, tmp_path / "out", *part, "--labels", labels)
    assert result.exit_code == 0, result.output
    assert "shift, 4 shots: caught " in result.stdout
    (verdicts,) = read_record(tmp_path / "out")["verdicts"]
    assert (verdicts["defects"], verdicts["good"]) == (2, 3)


def test_bad_labels_are_one_line(scanned: Path, labels: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = error_line(run_eval(scanned, out, *model, "--labels", labels, "--layout", "mvtec"))
    assert "--labels: the labels come from this file, not from a layout; omit --layout" in line
    labels.write_text("path,label\nx.png,broken\n")
    assert "line 2: unknown label 'broken'" in error_line(run_eval(scanned, out, *model, "--labels", labels))
    assert not out.exists()
