"""Regions of a map above a threshold, and the place of its peak."""

from __future__ import annotations

import numpy as np
import pytest

from aprilcli.core.regions import find_region_masks, find_regions, peak_of
from aprilcli.types import Region


def map_with(*spots: tuple[int, int, float], shape: tuple[int, int] = (6, 8)) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    for x, y, value in spots:
        values[y, x] = value
    return values


def test_pixels_that_touch_at_a_corner_are_one_region_and_the_highest_peak_comes_first() -> None:
    anomaly_map = map_with((1, 1, 2), (2, 2, 3), (2, 3, 1), (6, 0, 5), (7, 0, 1))
    assert find_regions(anomaly_map, 1) == (
        Region(x=6, y=0, width=2, height=1, area=2, peak=5.0, mean=3.0),
        Region(x=1, y=1, width=2, height=3, area=3, peak=3.0, mean=2.0),
    )
    for region, mask in find_region_masks(anomaly_map, 1):
        assert mask.shape == (region.height, region.width)
        assert mask.sum() == region.area


def test_a_value_equal_to_the_threshold_in_float32_belongs_to_a_region() -> None:
    anomaly_map = map_with((3, 3, 0.1))
    assert len(find_regions(anomaly_map, 0.1)) == 1  # 0.1 as float64 is below 0.1 as float32
    assert find_regions(anomaly_map, float(np.nextafter(np.float32(0.1), np.float32(1)))) == ()


def test_small_regions_are_left_out() -> None:
    anomaly_map = map_with((0, 0, 9), (4, 4, 1), (5, 4, 1))
    assert [region.area for region in find_regions(anomaly_map, 1, min_area=2)] == [2]
    assert find_regions(anomaly_map, 1, min_area=3) == ()


@pytest.mark.parametrize(("size_hw", "expected"), [((6, 8), (6, 2)), ((60, 80), (65, 25)), ((3, 4), (3, 1))])
def test_the_peak_is_given_in_pixels_of_the_image(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert peak_of(map_with((6, 2, 1.0)), size_hw) == expected
