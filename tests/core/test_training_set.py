"""The training set: order, mosaics, the validation split, model inputs, and the fingerprint of the data."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import GoldenCase
from PIL import Image

from aprilcli.core.training_set import (
    TrainingImage,
    check_images,
    mosaic_of,
    plan_epoch,
    prepare_input,
    split_validation,
    training_images,
)
from aprilcli.io.datasets import LabeledImage, read_dataset


def images_of(object_name: str, **kinds: int) -> list[TrainingImage]:
    return [
        TrainingImage(
            LabeledImage(Path(f"{object_name}/{kind}/{n}.png"), kind, int(kind != "good")), object_name, object_name
        )
        for kind, count in kinds.items()
        for n in range(count)
    ]


def write_set(root: Path, defects: int = 2) -> Path:
    """Write an object with two good images, and bent ones with masks, in MVTec AD's layout."""
    rng = np.random.default_rng(0)
    for n in range(2 + defects):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        path = root / "nut" / "test" / ("good" if n < 2 else "bent") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if n >= 2:
            mask = np.zeros((20, 30), np.uint8)
            mask[5:15, 10:20] = n  # a class number, as in VisA's masks
            path = root / "nut" / "ground_truth" / "bent" / f"{n}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root


def test_without_mosaics_an_epoch_is_every_image_once_in_an_order_given_by_the_seed() -> None:
    images = images_of("nut", good=5, bent=20)
    plans = [plan_epoch(images, 0.0, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert Counter(item for item in plans[0]) == Counter((image,) for image in images)
    assert plans[0] != [(image,) for image in images]


def test_the_requested_share_of_an_epoch_is_mosaics_of_four_images_of_one_object() -> None:
    images = images_of("nut", good=500, bent=500) + images_of("pcb", good=500, short=500)
    plan = plan_epoch(images, 0.2, np.random.default_rng(0))
    mosaics = [item for item in plan if len(item) > 1]
    assert len(plan) == len(images)
    assert len(mosaics) / len(plan) == pytest.approx(0.2, abs=0.03)
    assert {len(item) for item in mosaics} == {4}
    assert all(len({image.object_name for image in item}) == 1 for item in mosaics)
    singles = [item[0] for item in plan if len(item) == 1]
    assert len(set(singles)) == len(singles)


def test_the_images_of_a_mosaic_are_drawn_by_defect_first() -> None:
    images = images_of("nut", good=90, bent=9, scratch=1)
    plan = plan_epoch(images * 20, 0.99, np.random.default_rng(0))
    drawn = Counter(image.labeled.defect for item in plan if len(item) > 1 for image in item)
    for kind in ("good", "bent", "scratch"):
        assert drawn[kind] / drawn.total() == pytest.approx(1 / 3, abs=0.03)


def test_validation_images_have_both_labels_and_are_spread_over_the_objects() -> None:
    images = [image for name in "abcde" for image in images_of(name, good=10, bent=20)]
    training, validation = split_validation(images, 0.1, np.random.default_rng(0))
    assert sorted([*training, *validation], key=str) == sorted(images, key=str)
    assert Counter((s.object_name, s.labeled.label) for s in validation) == Counter(
        {(name, label): count for name in "abcde" for label, count in ((0, 1), (1, 2))}
    )
    again = split_validation(images, 0.1, np.random.default_rng(0))[1]
    other = split_validation(images, 0.1, np.random.default_rng(1))[1]
    assert validation == again != other
    assert split_validation(images, 0.0, np.random.default_rng(0)) == (images, [])


def test_the_validation_share_counts_all_objects_together() -> None:
    images = [image for name in "abcdefghij" for image in images_of(name, good=1, bent=1)]
    _, validation = split_validation(images, 0.1, np.random.default_rng(0))
    assert [image.labeled.label for image in sorted(validation, key=lambda s: s.labeled.label)] == [0, 1]


@pytest.mark.parametrize("size", [6, 5])
def test_a_mosaic_is_arranged_row_by_row(size: int) -> None:
    half = (size + 1) // 2
    tiles = [np.full((3, half, half), n, np.float32) for n in range(4)]
    whole = mosaic_of(tiles, size)
    assert whole.shape == (3, size, size)
    assert whole[0, 0, 0] == 0
    assert whole[0, 0, -1] == 1
    assert whole[0, -1, 0] == 2
    assert whole[0, -1, -1] == 3
    assert (whole[:, :half, :half] == 0).all()
    assert (whole[:, half:, half:] == 3).all()


def test_an_input_is_an_image_at_full_size_or_a_mosaic_of_four_at_half_size(
    golden_vit: GoldenCase, tmp_path: Path
) -> None:
    spec = golden_vit.backbone.spec  # 70 pixels
    images = training_images(read_dataset(write_set(tmp_path)))
    bent, good = images[0], images[-1]
    assert (bent.labeled.defect, good.labeled.defect) == ("bent", "good")
    pixels, mask = prepare_input([bent], spec, spec.image_size)
    assert pixels.shape == (3, 70, 70)
    assert mask.shape == (70, 70)
    assert mask[35, 35] == 1
    assert mask.mean().item() == pytest.approx(10 * 10 / (20 * 30), abs=0.02)
    assert prepare_input([good], spec, spec.image_size)[1].sum() == 0
    mosaic, mosaic_mask = prepare_input([bent, good, good, bent], spec, spec.image_size)
    assert mosaic.shape == (3, 70, 70)
    assert mosaic_mask[:35, 35:].sum() == mosaic_mask[35:, :35].sum() == 0
    assert torch.equal(mosaic_mask[:35, :35], mosaic_mask[35:, 35:])
    assert mosaic_mask.mean().item() == pytest.approx(mask.mean().item() / 2, abs=0.02)
    shrunk = torch.nn.functional.interpolate(pixels[None], size=35, mode="bicubic", antialias=True)[0]
    assert torch.corrcoef(torch.stack([mosaic[:, :35, :35].flatten(), shrunk.flatten()]))[0, 1] > 0.95
    assert torch.equal(mosaic[:, :35, :35], mosaic[:, 35:, 35:])


def test_the_fingerprint_depends_on_names_and_contents_not_on_the_folder(tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        dataset = read_dataset(root)
        with ThreadPoolExecutor(2) as pool:
            return check_images(dataset, training_images(dataset), pool, lambda: None)

    first = write_set(tmp_path / "first")
    moved = Path(shutil.copytree(first, tmp_path / "moved"))
    assert fingerprint(moved) == fingerprint(first)
    renamed = Path(shutil.copytree(first, tmp_path / "renamed"))
    (renamed / "nut" / "test" / "good" / "1.png").rename(renamed / "nut" / "test" / "good" / "9.png")
    masked = Path(shutil.copytree(first, tmp_path / "masked"))
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(masked / "nut" / "ground_truth" / "bent" / "2_mask.png")
    more = write_set(tmp_path / "more", defects=3)
    assert len({fingerprint(root) for root in (first, renamed, masked, more)}) == 4
