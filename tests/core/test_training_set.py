"""What a projector is trained on: order, composites, the share held back, masks, and the fingerprint of it all."""

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
    Sample,
    data_fingerprint,
    mosaic_of,
    plan_epoch,
    prepare_input,
    resize_mask,
    split_validation,
    trainable_samples,
)
from aprilcli.io.datasets import LabelledImage, read_dataset


def samples_of(object_name: str, **kinds: int) -> list[Sample]:
    return [
        Sample(
            LabelledImage(Path(f"{object_name}/{kind}/{n}.png"), kind, int(kind != "good")), object_name, object_name
        )
        for kind, count in kinds.items()
        for n in range(count)
    ]


def write_set(root: Path, defects: int = 2) -> Path:
    """Write an object of two good pictures, and bent ones with masks; MVTec AD's layout."""
    rng = np.random.default_rng(0)
    for n in range(2 + defects):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        path = root / "nut" / "test" / ("good" if n < 2 else "bent") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if n >= 2:
            mask = np.zeros((20, 30), np.uint8)
            mask[5:15, 10:20] = n  # a class number, as VisA's masks hold them
            path = root / "nut" / "ground_truth" / "bent" / f"{n}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root


def test_without_composites_an_epoch_is_every_picture_once_in_an_order_of_the_seed() -> None:
    samples = samples_of("nut", good=5, bent=20)
    plans = [plan_epoch(samples, 0.0, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert Counter(item for item in plans[0]) == Counter((sample,) for sample in samples)
    assert plans[0] != [(sample,) for sample in samples]


def test_composites_are_four_of_one_object_in_the_share_asked_for() -> None:
    samples = samples_of("nut", good=500, bent=500) + samples_of("pcb", good=500, short=500)
    plan = plan_epoch(samples, 0.2, np.random.default_rng(0))
    composites = [item for item in plan if len(item) > 1]
    assert len(plan) == len(samples)
    assert len(composites) / len(plan) == pytest.approx(0.2, abs=0.03)
    assert {len(item) for item in composites} == {4}
    assert all(len({part.object_name for part in item}) == 1 for item in composites)
    singles = [item[0] for item in plan if len(item) == 1]
    assert len(set(singles)) == len(singles)


def test_the_parts_of_a_composite_are_drawn_by_kind_first() -> None:
    samples = samples_of("nut", good=90, bent=9, scratch=1)
    plan = plan_epoch(samples * 20, 0.99, np.random.default_rng(0))
    drawn = Counter(part.image.defect for item in plan if len(item) > 1 for part in item)
    for kind in ("good", "bent", "scratch"):
        assert drawn[kind] / drawn.total() == pytest.approx(1 / 3, abs=0.03)


def test_the_share_held_back_is_of_both_labels_and_spread_over_the_objects() -> None:
    samples = [sample for name in "abcde" for sample in samples_of(name, good=10, bent=20)]
    training, validation = split_validation(samples, 0.1, np.random.default_rng(0))
    assert sorted([*training, *validation], key=str) == sorted(samples, key=str)
    assert Counter((s.object_name, s.image.label) for s in validation) == Counter(
        {(name, label): count for name in "abcde" for label, count in ((0, 1), (1, 2))}
    )
    again = split_validation(samples, 0.1, np.random.default_rng(0))[1]
    other = split_validation(samples, 0.1, np.random.default_rng(1))[1]
    assert validation == again != other
    assert split_validation(samples, 0.0, np.random.default_rng(0)) == (samples, [])


def test_objects_too_small_for_the_share_are_held_back_together() -> None:
    samples = [sample for name in "abcdefghij" for sample in samples_of(name, good=1, bent=1)]
    _, validation = split_validation(samples, 0.1, np.random.default_rng(0))
    assert [sample.image.label for sample in sorted(validation, key=lambda s: s.image.label)] == [0, 1]


def test_a_mask_is_squashed_to_zeros_and_ones_at_half_coverage() -> None:
    mask = np.zeros((8, 4), dtype=bool)
    mask[:4, :2] = True
    assert np.array_equal(resize_mask(mask, 2), np.float32([[1, 0], [0, 0]]))  # also from another aspect
    large = np.random.default_rng(0).random((57, 91)) > 0.5
    squashed = resize_mask(large, 28)
    assert squashed.dtype == np.float32
    assert set(np.unique(squashed)) == {0.0, 1.0}
    # Antialiased: a column of three of four pixels is a column still, one of four is none.
    stripes = np.zeros((16, 16), dtype=bool)
    stripes[:, :3], stripes[:, 12] = True, True
    assert resize_mask(stripes, 4).tolist() == [[1, 0, 0, 0]] * 4


@pytest.mark.parametrize("size", [6, 5])
def test_a_composite_goes_row_by_row(size: int) -> None:
    half = (size + 1) // 2
    parts = [np.full((3, half, half), n, np.float32) for n in range(4)]
    whole = mosaic_of(parts, size)
    assert whole.shape == (3, size, size)
    assert whole[0, 0, 0] == 0
    assert whole[0, 0, -1] == 1
    assert whole[0, -1, 0] == 2
    assert whole[0, -1, -1] == 3
    assert (whole[:, :half, :half] == 0).all()
    assert (whole[:, half:, half:] == 3).all()


def test_an_input_is_the_picture_as_scan_sees_it_and_a_composite_four_of_half_the_side(
    golden_vit: GoldenCase, tmp_path: Path
) -> None:
    spec = golden_vit.backbone.spec  # 70 pixels
    samples = trainable_samples(read_dataset(write_set(tmp_path)))
    bent, good = samples[0], samples[-1]
    assert (bent.image.defect, good.image.defect) == ("bent", "good")
    pixels, mask = prepare_input([bent], spec)
    assert pixels.shape == (3, 70, 70)
    assert mask.shape == (70, 70)
    assert mask[35, 35] == 1
    assert mask.mean().item() == pytest.approx(10 * 10 / (20 * 30), abs=0.02)
    assert prepare_input([good], spec)[1].sum() == 0
    composite, composite_mask = prepare_input([bent, good, good, bent], spec)
    assert composite.shape == (3, 70, 70)
    assert composite_mask[:35, 35:].sum() == composite_mask[35:, :35].sum() == 0
    assert torch.equal(composite_mask[:35, :35], composite_mask[35:, 35:])
    assert composite_mask.mean().item() == pytest.approx(mask.mean().item() / 2, abs=0.02)
    shrunk = torch.nn.functional.interpolate(pixels[None], size=35, mode="bicubic", antialias=True)[0]
    assert torch.corrcoef(torch.stack([composite[:, :35, :35].flatten(), shrunk.flatten()]))[0, 1] > 0.95
    assert torch.equal(composite[:, :35, :35], composite[:, 35:, 35:])


def test_the_fingerprint_is_of_names_and_contents_not_of_the_place(tmp_path: Path) -> None:
    def fingerprint(root: Path) -> str:
        dataset = read_dataset(root)
        with ThreadPoolExecutor(2) as pool:
            return data_fingerprint(dataset, trainable_samples(dataset), pool, lambda: None)

    first = write_set(tmp_path / "first")
    moved = Path(shutil.copytree(first, tmp_path / "moved"))
    assert fingerprint(moved) == fingerprint(first)
    renamed = Path(shutil.copytree(first, tmp_path / "renamed"))
    (renamed / "nut" / "test" / "good" / "1.png").rename(renamed / "nut" / "test" / "good" / "9.png")
    masked = Path(shutil.copytree(first, tmp_path / "masked"))
    Image.fromarray(np.full((20, 30), 255, np.uint8)).save(masked / "nut" / "ground_truth" / "bent" / "2_mask.png")
    more = write_set(tmp_path / "more", defects=3)
    assert len({fingerprint(root) for root in (first, renamed, masked, more)}) == 4
