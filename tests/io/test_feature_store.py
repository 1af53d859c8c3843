"""Arrays of images in files: what is put in comes back, and what cannot be written is an OSError."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aprilcli.io.feature_store import FeatureStore, remove_store, slot_bytes

SHAPES = [(6, 4), (3, 5)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_put_in_comes_back(tmp_path: Path, dtype: type) -> None:
    store = FeatureStore(tmp_path / "store", 3, SHAPES, dtype)
    rng = np.random.default_rng(0)
    images = {index: [rng.random(shape).astype(dtype) for shape in SHAPES] for index in (2, 0)}
    for index, arrays in images.items():
        store.put(index, arrays)
    assert [store.has(index) for index in range(3)] == [True, False, True]
    for stage, found in enumerate(store.get([2, 0])):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, [images[2][stage], images[0][stage]])
    with pytest.raises(KeyError):
        store.get([0, 1])


def test_arrays_of_other_shapes_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 1, SHAPES)
    with pytest.raises(ValueError, match="against"):
        store.put(0, [np.zeros((6, 4)), np.zeros((3, 4))])
    assert not store.has(0)


def test_a_store_needs_the_bytes_that_are_announced(tmp_path: Path) -> None:
    FeatureStore(tmp_path, 1000, SHAPES)
    needed = 1000 * slot_bytes(SHAPES)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == needed


@pytest.mark.parametrize("slots", [2, 3, 7])
def test_the_first_images_of_an_earlier_store_stay(tmp_path: Path, slots: int) -> None:
    store = FeatureStore(tmp_path, 3, SHAPES)
    images = [[np.full(shape, index + 1, np.float32) for shape in SHAPES] for index in range(3)]
    for index, arrays in enumerate(images):
        store.put(index, arrays)
    again = FeatureStore(tmp_path, slots, SHAPES, kept=2)
    assert [again.has(index) for index in range(slots)] == [True, True, False, False, False, False, False][:slots]
    np.testing.assert_array_equal(again.get([1])[1], [images[1][1]])


def test_removing_a_store_leaves_other_files(tmp_path: Path) -> None:
    FeatureStore(tmp_path / "store", 1, SHAPES)
    (tmp_path / "store" / "mine.txt").write_text("mine")
    remove_store(tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_is_an_error(read_only_folder: Path) -> None:
    with pytest.raises(PermissionError):
        FeatureStore(read_only_folder / "store", 1, SHAPES)
