"""Copies of images: found after renaming and compression, not among photos of the same part or changed copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import GoldenCase, read_record, run_eval
from PIL import Image, ImageDraw

from aprilcli.io.images import read_image, to_pixels
from aprilcli.types import ModelSpec
from aprilcli.workflows.eval_copies import Thumbnail, equal_files, find_copies, make_thumbnail

SAMPLES = Path(__file__).parents[1] / "samples"
PHOTO = SAMPLES / "washer_good_1.png"


def thumbnail(path: Path, spec: ModelSpec) -> Thumbnail:
    pixels = to_pixels(read_image(path), spec.image_size, spec.mean, spec.std)
    return make_thumbnail(path, path.name, pixels, spec)


def is_copy(first: Path, second: Path, spec: ModelSpec) -> bool:
    pairs = find_copies([thumbnail(first, spec)], [thumbnail(second, spec)])
    return [(a.name, b.name) for a, b in pairs] == [(first.name, second.name)]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg", ".webp"])
def test_a_saved_copy_is_found(golden_vit: GoldenCase, tmp_path: Path, suffix: str) -> None:
    with Image.open(PHOTO) as image:
        image.convert("RGB").save(tmp_path / f"other{suffix}")
    assert is_copy(PHOTO, tmp_path / f"other{suffix}", golden_vit.backbone.spec)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_a_compressed_copy_is_found(golden_vit: GoldenCase, tmp_path: Path, quality: int) -> None:
    with Image.open(PHOTO) as image:
        image.convert("RGB").save(tmp_path / "a.jpg", quality=quality)
    assert is_copy(PHOTO, tmp_path / "a.jpg", golden_vit.backbone.spec)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_defect_drawn_on_a_copy_makes_another_image(golden_vit: GoldenCase, tmp_path: Path, suffix: str) -> None:
    with Image.open(PHOTO) as image:
        changed = image.convert("RGB")
    ImageDraw.Draw(changed).line((100, 100, 130, 120), fill=(60, 60, 60), width=2)
    changed.save(tmp_path / f"changed{suffix}", quality=90)
    assert not is_copy(PHOTO, tmp_path / f"changed{suffix}", golden_vit.backbone.spec)


def test_other_photos_are_not_copies(golden_vit: GoldenCase, tmp_path: Path) -> None:
    spec = golden_vit.backbone.spec
    photos = sorted(SAMPLES.glob("*.png"))
    assert len(photos) > 2
    found = find_copies([thumbnail(p, spec) for p in photos], [thumbnail(p, spec) for p in photos])
    assert [(a.name, b.name) for a, b in found] == [(p.name, p.name) for p in photos]
    with Image.open(PHOTO) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    noise = np.random.default_rng(0).integers(-6, 7, pixels.shape)  # of a second photo of the same unmoved part
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(tmp_path / "noisy.png")
    assert not is_copy(PHOTO, tmp_path / "noisy.png", spec)
    assert find_copies([], []) == []


def test_equal_files(tmp_path: Path) -> None:
    for name, content in (("a", b"12"), ("b", b"12"), ("c", b"13"), ("d", b"123")):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert equal_files([a, d, tmp_path / "gone"], [b, c]) == [(a, b)]


def test_leakage_and_images_under_two_labels_are_told(parts: Path, model: list[str], tmp_path: Path) -> None:
    root = parts / "bolt"
    shutil.copy(root / "test" / "good" / "000.png", root / "train" / "good" / "renamed.png")
    shutil.copy(root / "test" / "good" / "001.png", root / "test" / "scratch" / "wrong.png")
    result = run_eval(root, tmp_path / "all", *model, "--shots", 6, "--seeds", 1)
    record = read_record(tmp_path / "all")
    assert "LEAKAGE: test images are copies" in result.stdout
    assert "bolt 1 of 7 (first test/good/000.png)" in record["leakage"]
    same = (
        "bolt: 2 test images are the same under different labels (first test/good/001.png and test/scratch/wrong.png)"
    )
    assert any(problem.startswith(same) for problem in record["problems"])
    assert f"problem: {same}" in result.stderr
    result = run_eval(root, tmp_path / "none", *model, "--shots", 0)
    assert "LEAKAGE" not in result.stdout  # no setting uses the copy
    assert "bolt: 1 test images are also training images (first test/good/000.png" in result.stderr
