"""The recipe of the embedded model (weights/tiny) at a small scale: draw, train ten steps, export, score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import aprilcli
from aprilcli import Detector
from aprilcli.io.images import SourceImage

RECIPE = Path(__file__).parents[1] / "weights" / "tiny"
sys.path.append(str(RECIPE))
import export  # noqa: E402
import measure  # noqa: E402

PRODUCTS = 8  # one of each of the first kinds, which include the texture from photographs
SIDE = 256  # pixels of a drawn image and of the model's input


def run(script: str, *arguments: str | Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(aprilcli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, RECIPE / script, *map(str, arguments)]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe") / "drawn"
    run("draw.py", folder, "--products", str(PRODUCTS), "--seed", "0")
    return folder


@pytest.fixture(scope="module")
def checkpoint(drawn: Path) -> Path:
    path = drawn.parent / "checkpoint.pt"
    phases = ("--phases", "[[6, 64, 3], [4, 96, 2]]", "--processes", "1")
    run("train_clip.py", path, drawn, *phases, "--width", "8", "--worn", "0.5", "--rank-pixels")
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "model"
    export.export(checkpoint, folder)
    return folder


def test_a_drawn_set_has_masks_of_the_anomalous_images_alone(drawn: Path) -> None:
    images, masks = np.load(drawn / "images.npy"), np.load(drawn / "masks.npy")
    products = json.loads((drawn / "products.json").read_text())
    assert images.shape == (PRODUCTS, 6, SIDE, SIDE, 3)
    assert len({facts["kind"] for facts in products}) == PRODUCTS
    assert not masks[:, :3].any()
    assert masks[:, 3:].any(axis=(2, 3)).all()
    for facts in products:
        assert [bool(defects) for defects in facts["defects"]] == [False] * 3 + [True] * 3


def test_training_takes_ten_steps_and_changes_the_weights(checkpoint: Path) -> None:
    saved = torch.load(checkpoint)
    assert saved["steps"] == 10
    assert saved["images"] == 5 * (6 * 3 + 4 * 2)
    assert (saved["model"]["offset"] != 0.25).all()  # its first value
    assert all(weights.isfinite().all() for weights in saved["model"].values())


def test_the_exported_folder_scores_an_image(drawn: Path, model: Path) -> None:
    detector = Detector.load(str(model), object_name="metal", device="cpu")
    image = SourceImage(Image.fromarray(np.load(drawn / "images.npy", mmap_mode="r")[0, 3]))
    [detection] = detector.detect([detector.prepare(image)])
    assert 0 <= detection.score <= 1
    assert detection.anomaly_map is not None
    assert detection.anomaly_map.shape == (SIDE, SIDE)
    assert 0 <= detection.anomaly_map.min() < detection.anomaly_map.max() <= 4


def test_the_exported_projector_is_the_trained_one(checkpoint: Path, model: Path) -> None:
    trained = torch.load(checkpoint)["model"]
    projector = Detector.load(str(model), device="cpu").projector
    assert projector is not None
    for stage in range(3):
        assert torch.equal(projector.fc[stage].weight, trained[f"projector.{stage}.weight"])
    pool = "clip.visual.attnpool"
    last = trained[f"{pool}.c_proj.weight"] @ trained[f"{pool}.v_proj.weight"]
    torch.testing.assert_close(projector.fc[3].weight, last)


def test_measuring_sums_zero_shot_and_bank(drawn: Path, model: Path) -> None:
    detector = Detector.load(str(model), object_name="metal", device="cpu")
    reference, *images = (SourceImage(Image.fromarray(rgb)) for rgb in np.load(drawn / "images.npy")[0, ::2])
    pixels = [detector.prepare(image) for image in images]
    zero_shot = detector.detect(pixels)
    detector.methods[0].fit([measure.encode(detector, [reference])])
    few_shot = detector.detect(pixels)
    for k, detections in enumerate(measure.detect(detector, images)):
        words, both, bank = (detections[method] for method in ("zero-shot", "sum", "bank"))
        assert words.score == zero_shot[k].score
        assert both.score == few_shot[k].score
        assert bank.score == bank.anomaly_map.max()
        np.testing.assert_array_equal(words.anomaly_map, zero_shot[k].anomaly_map)
        np.testing.assert_array_equal(both.anomaly_map, few_shot[k].anomaly_map)
        np.testing.assert_array_equal(both.anomaly_map, words.anomaly_map + bank.anomaly_map)


@pytest.mark.parametrize("worn", [False, True])
def test_measuring_a_drawn_set_gives_a_table_for_each_kind(drawn: Path, model: Path, worn: bool) -> None:
    within, together = measure.measure_drawn(model, drawn, 1, worn, None)
    assert list(within) == ["metal"]
    assert within == together  # the kind has one product
    assert len(within["metal"]) == 6
    assert all(0 <= auroc <= 1 for auroc in within["metal"].values())


def test_measuring_a_labeled_folder_uses_its_masks(drawn: Path, model: Path, tmp_path: Path) -> None:
    images, masks = (np.load(drawn / f"{name}.npy", mmap_mode="r")[1] for name in ("images", "masks"))
    places = [("train/good", k % 3) for k in range(4)] + [("test/good", 0), ("test/scratch", 3), ("test/scratch", 4)]
    for number, (place, index) in enumerate(places):
        (tmp_path / "casting" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(tmp_path / "casting" / place / f"{number}.png")
        if index >= 3:
            (tmp_path / "casting" / "ground_truth" / "scratch").mkdir(parents=True, exist_ok=True)
            mask = tmp_path / "casting" / "ground_truth" / "scratch" / f"{number}_mask.png"
            Image.fromarray(masks[index] * np.uint8(255)).save(mask)
    [labeled] = measure.read_dataset(tmp_path).objects
    table = measure.measure_labeled(model, labeled, None)
    assert table["bank image"] == 1  # the good test image is a reference, too
    assert all(0 <= auroc <= 1 for auroc in table.values())
