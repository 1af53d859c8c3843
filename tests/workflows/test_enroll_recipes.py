"""`enroll --fusion` and `--rotations`: what is kept of the references, and how their distances are added up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw_image, draw_images, error_line, read_record, read_rows, run, run_eval, save_image
from PIL import Image, ImageOps

from aprilcli.core import maps
from aprilcli.core.bank_file import load_bank
from aprilcli.core.detector import Detector
from aprilcli.core.fusion import balanced_weights
from aprilcli.core.nearest import leave_one_out
from aprilcli.io.images import read_image


def enroll(good: Path, banks: Path, model: list[str], *more: object) -> Path:
    """Enroll a part called bolt; return its bank's path."""
    result = run("enroll", good, "--part", "bolt", "--object", "bolt", "--banks", banks, *model, *more)
    assert result.exit_code == 0, result.output
    return banks / "bolt.safetensors"


def test_balanced_weights_equalize_the_means_of_each_view() -> None:
    weights = balanced_weights([0.1, 0.3, 0.2, 0.2], 2)
    assert weights == pytest.approx((2, 2 / 3, 1, 1))
    assert balanced_weights([0.0, 0.3], 2) == pytest.approx((1, 0.5))
    assert balanced_weights([1e-7, 0.3], 2) == pytest.approx((10, 0.5), rel=1e-5)


def closest(stages: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Return the distances of a source's patches to the nearest other source."""
    return [stage.amin(dim=0) for stage in stages]


def test_a_balanced_bank_weighs_distances_by_their_means_over_the_references(
    banks: Path, model: list[str], tmp_path: Path
) -> None:
    good, image = draw_images(tmp_path / "good", 3), draw_image(tmp_path / "images" / "new.png", 9)
    bank = load_bank(enroll(good, banks, model, "--fusion", "balanced"))
    means = [torch.cat(stage).mean().item() for stage in zip(*map(closest, leave_one_out(bank, bank)), strict=True)]
    assert bank.stage_weights == pytest.approx(balanced_weights(means, 4))
    scanned = run("scan", image, "--part", "bolt", "--banks", banks, "--out", tmp_path / "out", "--device", "cpu")
    assert scanned.exit_code == 0, scanned.output
    detector = Detector.load(bank=bank, device="cpu")
    [[evidence]], _ = detector.evidence([detector.prepare(read_image(image))], [detector.methods])
    [view] = evidence.views
    weighted = [stage * weight for stage, weight in zip(view.distances, bank.stage_weights, strict=True)]
    size = bank.spec.image_size
    expected = maps.zero_shot_map(view.logits, size) + maps.few_shot_map(weighted, size)
    [row] = read_rows(tmp_path / "out")
    assert float(row["map_max"]) == pytest.approx(float(expected.max()), abs=1e-5)


def test_the_calibration_of_a_balanced_bank_uses_its_weights(banks: Path, model: list[str], tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 3)
    further = draw_images(tmp_path / "further", 4, 50)
    path = enroll(good, banks, model, "--fusion", "balanced", "--calibrate", further)
    detector = Detector.load(bank=load_bank(path), device="cpu")
    scores = [detector.detect_file(image).score for image in sorted(further.iterdir())]
    assert load_bank(path).calibration.scores == pytest.approx(scores, abs=1e-5)


def test_eval_gives_the_scores_of_a_balanced_bank(parts: Path, banks: Path, model: list[str], tmp_path: Path) -> None:
    settings = ("--shots", "2", "--seeds", 1, "--objects", "bolt", "--fusion", "balanced")
    assert run_eval(parts, tmp_path / "out", *model, *settings).exit_code == 0
    [result] = read_record(tmp_path / "out")["results"]
    references = [parts / name for name in result["references"]]
    bank = load_bank(enroll(references[0], banks, model, references[1], "--fusion", "balanced"))
    detector = Detector.load(bank=bank, device="cpu")
    for row in read_rows(tmp_path / "out"):
        assert float(row["score"]) == pytest.approx(detector.detect_file(parts / row["path"]).score, abs=1e-4)


def test_models_other_than_tiny_add_up_distances_as_they_are(banks: Path, model: list[str], tmp_path: Path) -> None:
    bank = load_bank(enroll(draw_images(tmp_path / "good", 3), banks, model))
    assert (bank.recipe.fusion, bank.stage_weights) == ("sum", ())


def test_references_of_tiny_are_balanced_by_default(banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    bank = load_bank(enroll(good, banks, ["--device", "cpu", "--image-size", "64,96"]))
    assert bank.recipe.fusion == "balanced"
    assert len(bank.stage_weights) == 8


def test_a_single_reference_has_no_weights_until_more_are_appended(
    banks: Path, model: list[str], tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 3)
    first, *others = sorted(good.iterdir())
    path = enroll(first, banks, model, "--fusion", "balanced")
    assert load_bank(path).stage_weights == ()
    grown = load_bank(enroll(others[0], banks, [], others[1], "--append"))
    at_once = load_bank(enroll(good, tmp_path / "other", model, "--fusion", "balanced"))
    assert grown.stage_weights == pytest.approx(at_once.stage_weights)


@pytest.mark.parametrize("tile", [[], ["--tile", 70]])
def test_turned_references_know_a_turned_image(
    banks: Path, model: list[str], tmp_path: Path, tile: list[object]
) -> None:
    good = draw_images(tmp_path / "good", 2)
    with Image.open(good / "001.png") as image:
        (tmp_path / "images").mkdir()
        ImageOps.mirror(image.rotate(90, expand=True)).save(tmp_path / "images" / "turned.png")
    maxima = []
    for option in ("--no-rotations", "--rotations"):
        path = enroll(good, banks, model, option, *tile, "--overwrite")
        detector = Detector.load(bank=load_bank(path), device="cpu")
        turned = detector.prepare(read_image(tmp_path / "images" / "turned.png"))
        [[evidence]], _ = detector.evidence([turned], [detector.methods])
        maxima.append(max(float(stage.max()) for view in evidence.views for stage in view.distances))
    assert maxima[1] < 1e-3 < maxima[0]


def test_a_turned_good_image_is_recognized(banks: Path, model: list[str], tmp_path: Path) -> None:
    good = []
    for seed in range(3):
        stripes = np.random.default_rng(seed).integers(0, 40, (60, 60, 3)) + np.arange(60)[:, None] % 6 // 3 * 200
        good.append(save_image(tmp_path / "good" / f"{seed}.png", Image.fromarray(stripes.astype(np.uint8))))
    with Image.open(good[0]) as image:
        turned = save_image(tmp_path / "turned.png", image.rotate(90))
    distances = {}
    for option in ("--no-rotations", "--rotations"):
        bank = load_bank(enroll(good[0].parent, banks, model, option, "--overwrite"))
        detector = Detector.load(bank=bank, device="cpu")
        distances[option] = detector.detect_file(turned).part_distance
        assert len(bank.calibration.distances) == 3
    assert distances["--rotations"] < 1e-3 < distances["--no-rotations"]


def test_a_reference_is_compared_as_it_is_with_turned_others(banks: Path, model: list[str], tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 3)
    plain = load_bank(enroll(good, banks, model))
    turned = load_bank(enroll(good, banks, model, "--rotations", "--overwrite"))
    assert [8 * count for stage in plain.rows_per_source for count in stage] == [
        count for stage in turned.rows_per_source for count in stage
    ]
    assert (turned.calibration.scores <= plain.calibration.scores + 1e-6).all()
    assert np.array_equal(turned.appearances[::8], plain.appearances)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--fusion", "balanced"], "fusion sum, not balanced: omit --fusion"),
        (["--rotations"], "rotations off, not on: omit --rotations"),
    ],
)
def test_appending_keeps_the_banks_recipe(
    banks: Path, model: list[str], tmp_path: Path, options: list[str], named: str
) -> None:
    enroll(draw_images(tmp_path / "good", 2), banks, model)
    more = draw_images(tmp_path / "more", 1, 20)
    result = run("enroll", more, "--part", "bolt", "--banks", banks, "--append", *options, "--device", "cpu")
    assert result.exit_code == 1
    assert named in error_line(result)
