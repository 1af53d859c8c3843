"""`enroll --defects`: known defects choose the image score, and the threshold keeps its promise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import draw_images, error_line, read_rows, run, save_image
from PIL import Image

from aprilcli.core.bank_file import load_bank, save_bank
from aprilcli.core.detector import Detector
from aprilcli.core.score_choice import BOTH, ScoreChoice, top_mean
from aprilcli.io.images import read_image


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Images of noise: references, calibration images, and defects, which are half black."""
    folders = {"good": draw_images(tmp_path / "good", 3), "further": draw_images(tmp_path / "further", 20, 100)}
    folders["defects"] = tmp_path / "defects"
    for number, path in enumerate(sorted(draw_images(tmp_path / "drawn", 9, 200).iterdir())):
        with Image.open(path) as image:
            image.paste((0, 0, 0), (0, 0, 30 + number, 40))
            save_image(folders["defects"] / path.name, image)
    return folders


def enroll(folders: dict[str, Path], model: list[str], part: str, *more: object) -> tuple[Path, str]:
    """Enroll a part; return its bank's path, and what was printed."""
    banks = folders["good"].parent / "banks"
    options = ("--part", part, "--banks", banks, "--calibrate", folders["further"], *model)
    result = run("enroll", folders["good"], *options, *more)
    assert result.exit_code == 0, result.output
    return banks / f"{part}.safetensors", result.output


def test_images_that_choose_the_score_do_not_set_the_threshold(folders: dict[str, Path], model: list[str]) -> None:
    plain, _ = enroll(folders, model, "plain")
    path, printed = enroll(folders, model, "chosen", "--defects", folders["defects"])
    bank, whole = load_bank(path), load_bank(plain)
    assert bank.choice is not None
    assert (bank.choice.defects, bank.choice.good, len(bank.choice.images)) == (9, 10, 19)
    assert f"score: {bank.choice.describe()}" in printed
    calibrated = {source.sha256 for source in bank.calibration_images.sources}
    assert len(calibrated) == len(bank.calibration) == 10
    assert not calibrated & set(bank.choice.images)
    assert len(bank.sources) == 3  # defects never enter the bank
    assert whole.choice is None
    if bank.score == BOTH:
        assert set(bank.calibration.scores.tolist()) < set(whole.calibration.scores.tolist())
    refused = run("enroll", folders["defects"], "--part", "chosen", "--banks", path.parent, "--append")
    assert "enrolled as known defects before" in error_line(refused)
    again = run("enroll", "--part", "chosen", "--banks", path.parent, "--calibrate", folders["further"])
    assert "20 images left out" in again.output  # also those that chose
    assert len(load_bank(path).calibration) == 10


def test_the_choice_does_not_depend_on_names(folders: dict[str, Path], model: list[str]) -> None:
    first = load_bank(enroll(folders, model, "first", "--defects", folders["defects"])[0])
    for path in list(folders["further"].iterdir()):
        path.rename(path.with_name(f"{1000 - int(path.stem)}.png"))
    second = load_bank(enroll(folders, model, "second", "--defects", folders["defects"])[0])
    assert set(first.choice.images) == set(second.choice.images)
    assert first.choice.auroc == second.choice.auroc


@pytest.mark.parametrize("few", ["defects", "further"])
def test_with_few_images_nothing_changes(few: str, folders: dict[str, Path], model: list[str]) -> None:
    for path in sorted(folders[few].iterdir())[7:]:
        path.unlink()
    plain, _ = enroll(folders, model, "plain")
    path, printed = enroll(folders, model, "chosen", "--defects", folders["defects"])
    count = "7 known defects are too few" if few == "defects" else "7 calibration images are too few"
    assert count in printed
    mine, theirs = load_bank(path), load_bank(plain)
    assert mine.choice is None
    assert mine.calibration.scores.tolist() == theirs.calibration.scores.tolist()


@pytest.mark.parametrize("score", ["text", "map", "top", "stage.2"])
def test_scan_uses_the_chosen_score(score: str, folders: dict[str, Path], model: list[str], tmp_path: Path) -> None:
    bank = load_bank(enroll(folders, model, "part")[0])
    choice = ScoreChoice(score, 8, 8, {BOTH: 0.5, score: 0.9}, ("0" * 64,), ("1" * 64,))
    chosen = tmp_path / "chosen.safetensors"
    save_bank(replace(bank, choice=choice), chosen)
    out = tmp_path / "out"
    result = run("scan", folders["defects"], "--part", chosen, "--out", out, "--threshold", "-1")
    assert result.exit_code == 0, result.output
    row = read_rows(out)[0]
    detector = Detector.load(bank=bank, device="cpu")
    image = detector.prepare(read_image(folders["defects"] / row["path"]))
    [detection] = detector.detect([image])
    [[evidence]], _ = detector.evidence([image], [detector.methods])
    (view,) = evidence.views
    second = replace(view, logits=view.logits[1:2], distances=view.distances[1:2])
    expected = {
        "text": detection.text_score,
        "map": detection.map_max,
        "top": top_mean(torch.from_numpy(detection.anomaly_map)).item(),
        "stage.2": detector.methods[0]
        .maps(replace(second, logits=second.logits * 4, distances=second.distances * 4))
        .max()
        .item()
        / 4,
    }
    assert float(row["score"]) == pytest.approx(expected[score], abs=1e-5)
    assert row["cause"] == ("text" if score == "text" else "map")
    assert choice.describe() in run("inspect", chosen).output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--defects", "further"], "also given as good images: 100.png"),
        (["--defects", "defects", "--method", "padim"], "--defects: not with --method padim"),
        (["--defects", "missing"], "missing: does not exist"),
        (["--defects", "defects", "--append"], "without --append"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], said: str, folders: dict[str, Path], model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["good"].parent)
    result = run("enroll", "good", "--part", "bolt", "--calibrate", "further", *arguments, *model)
    assert said in error_line(result)
    assert not list(Path("banks").glob("*.safetensors"))


def test_images_that_chose_the_score_are_leakage_in_a_test_set(
    folders: dict[str, Path], model: list[str], tmp_path: Path
) -> None:
    path, _ = enroll(folders, model, "part", "--defects", folders["defects"])
    shutil.copytree(folders["defects"], tmp_path / "set" / "test" / "black")
    draw_images(tmp_path / "set" / "test" / "good", 2, 300)
    result = run("eval", tmp_path / "set", "--part", path, "--out", tmp_path / "out", "--device", "cpu")
    assert "copies of reference or calibration images: set 9 of 11" in result.output
