"""Overlays: the color scale, levels, contours, and the files."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from aprilcli.core.regions import find_regions
from aprilcli.core.resizing import resize_map
from aprilcli.errors import InputError
from aprilcli.io import overlays
from aprilcli.io.map_files import write_map
from aprilcli.io.overlays import ALARM, Scale, alpha_table, color_table, draw_over, read_levels, write_overlay

CALIBRATED = Scale.for_run(2.0, 4, has_bank=True)


def to_oklab(srgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return OKLab of sRGB colors [n, 3], from the matrices of its author."""
    value = srgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cone = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cone) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def test_colors_change_evenly_and_become_lighter() -> None:
    colors = to_oklab(color_table()[::15])
    steps = [float(np.linalg.norm(after - before)) for before, after in pairwise(colors)]
    assert max(steps) < 1.3 * min(steps)
    lightness = np.diff(colors[:, 0])
    assert (lightness > 0).all()
    assert lightness.max() < 1.3 * lightness.min()


def test_low_values_are_transparent_and_opacity_never_falls() -> None:
    alphas = alpha_table().astype(int)
    assert alphas[0] == 0
    assert (np.diff(alphas) >= 0).all()
    assert 150 < alphas[ALARM] == alphas[-1] < 255


def test_the_scale_of_a_run_has_the_alarm_in_its_middle_or_that_of_the_model() -> None:
    assert Scale(1.0, 3.0, 2.0) == CALIBRATED
    without = Scale.for_run(None, 4, has_bank=False)
    assert 0 < without.low < without.high < 4
    assert without.alarm is None
    assert Scale.for_run(0.0, 4, has_bank=False) == without  # all of every image would be a region


@pytest.mark.parametrize("alarm", [2.0, 0.1, 3.1942439])
def test_levels_from_the_alarm_on_are_exactly_the_regions(alarm: float) -> None:
    scale = Scale.for_run(alarm, 4, has_bank=True)
    exact = np.float32(alarm)
    values = np.array(
        [0, np.nextafter(exact, np.float32(0)), exact, np.nextafter(exact, np.float32(9)), 99], np.float32
    )
    assert (scale.levels(values) >= ALARM).tolist() == [False, False, True, True, True]


def map_file(tmp_path: Path, values: NDArray[np.float32]) -> Path:
    write_map(tmp_path / "map.tiff", values, {})
    return tmp_path / "map.tiff"


def test_a_map_of_the_models_size_has_the_regions_of_the_scan(tmp_path: Path) -> None:
    import torch

    small = np.random.default_rng(0).random((8, 8), np.float32) * 4
    at_source = resize_map(torch.from_numpy(small), (50, 70)).numpy()
    levels = np.asarray(read_levels(map_file(tmp_path, small), (70, 50), CALIBRATED))
    near = np.abs(at_source - 2.0) < 1e-4  # both ways of resizing round differently
    assert ((levels >= ALARM) == (at_source >= 2.0))[~near].all()
    assert find_regions(at_source, 2.0)


def test_a_reduced_map_keeps_the_peak_of_a_defect_of_one_pixel(tmp_path: Path) -> None:
    values = np.zeros((300, 500), np.float32)
    values[123, 321] = 9
    levels = np.asarray(read_levels(map_file(tmp_path, values), (50, 30), CALIBRATED))
    assert levels.max() == 255
    assert np.argwhere(levels).tolist() == [[12, 32]]


def test_a_missing_or_damaged_map_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"map.tiff: there is no such map; scan again"):
        read_levels(tmp_path / "map.tiff", (5, 5), CALIBRATED)
    (tmp_path / "map.tiff").write_bytes(b"II*\0 damaged")
    logging.disable()
    with pytest.raises(InputError, match=r"map.tiff: the map cannot be read; scan again"):
        read_levels(tmp_path / "map.tiff", (5, 5), CALIBRATED)
    logging.disable(logging.NOTSET)


def drawn(values: NDArray[np.float32], scale: Scale) -> NDArray[np.int64]:
    image = Image.new("RGB", values.shape[::-1], (90, 100, 110))
    draw_over(image, Image.fromarray(scale.levels(values)), scale)
    return np.asarray(image).astype(int)


def test_a_good_part_looks_good_and_a_region_is_colored_with_a_contour() -> None:
    values = np.full((60, 90), 1.05, np.float32)  # just above the transparent values
    good = drawn(values, CALIBRATED)
    assert np.abs(good - (90, 100, 110)).max() <= 1
    values[20:40, 30:60] = 2.5
    pixels = drawn(values, CALIBRATED)
    assert pixels[30, 45, 0] > 180  # reddish
    assert pixels[30, 45, 2] < 110
    assert pixels[30, 29].tolist() == [255, 255, 255]
    assert pixels[30, 27].max() < 115
    assert (pixels[30, 15] == good[30, 15]).all()


def test_contours_grow_with_the_image() -> None:
    widths = []
    for side in (100, 4000):
        values = np.zeros((8, side), np.float32)
        values[:, : side // 2] = 3
        row = drawn(values, CALIBRATED)[4]
        widths.append(int((row == 255).all(axis=-1).sum()))
    assert widths == [1, 10]


def test_bands_are_drawn_as_a_whole_image_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random((50, 40), np.float32).repeat(3, 0).repeat(3, 1) * 3
    whole = drawn(values, CALIBRATED)
    monkeypatch.setattr(overlays, "BAND", 7)
    assert (drawn(values, CALIBRATED) == whole).all()


def test_without_an_alarm_there_are_no_contours() -> None:
    values = np.zeros((20, 20), np.float32)
    values[5:10, 5:10] = 4
    pixels = drawn(values, Scale(1.0, 3.0))
    assert not (pixels == 255).all(axis=-1).any()
    assert (pixels[4, 4] == (90, 100, 110)).all()


def test_an_image_too_large_for_a_jpeg_is_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlays, "LARGEST_SIDE", 50)
    values = np.zeros((20, 100), np.float32)
    path = tmp_path / "a" / "wide.png.jpg"
    write_overlay(path, Image.new("RGB", (100, 20)), map_file(tmp_path, values), CALIBRATED)
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (50, 10))


def test_only_overlays_that_are_not_wanted_are_deleted(tmp_path: Path) -> None:
    path = map_file(tmp_path, np.zeros((5, 5), np.float32))
    folder = tmp_path / "overlays"
    for name in ("kept.png", "old.png", "gone/old.png"):
        write_overlay(overlays.overlay_path(folder, name), Image.new("RGB", (5, 5)), path, CALIBRATED)
    Image.new("RGB", (5, 5)).save(folder / "own photo.jpg")
    overlays.remove_others(folder, lambda name: name == "kept.png")
    assert sorted(p.name for p in folder.rglob("*")) == ["kept.png.jpg", "own photo.jpg"]
