"""Maps on disk: their values, and the content that is returned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from aprilcli.io.map_files import write_map


def draw_map(height: int, width: int, dtype: type) -> NDArray[np.floating[Any]]:
    return np.random.default_rng(0).normal(size=(height, width)).cumsum(axis=1).astype(dtype)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (900, 1200), (3, 400_000)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_are_exact_at_any_size(tmp_path: Path, size: tuple[int, int], dtype: type) -> None:
    values = draw_map(*size, dtype)
    write_map(tmp_path / "a.tiff", values, {"model": "m"})
    with tifffile.TiffFile(tmp_path / "a.tiff") as tiff:
        read = tiff.asarray()
        assert len(tiff.pages) == 1
        assert json.loads(tiff.pages[0].description) == {
            "model": "m",
            "range": [float(values.min()), float(values.max())],
        }
    np.testing.assert_array_equal(read, values)
    assert read.dtype == dtype


def test_other_programs_read_a_map(tmp_path: Path) -> None:
    values = draw_map(300, 1000, np.float32)
    write_map(tmp_path / "a.tiff", values, {})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.tiff")), values)  # libtiff


def test_a_view_of_an_array_is_written_as_it_looks(tmp_path: Path) -> None:
    values = draw_map(40, 60, np.float32)[::-1, ::2]
    write_map(tmp_path / "a.tiff", values, {})
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tiff"), values)


def test_the_returned_content_is_that_of_the_file(tmp_path: Path) -> None:
    content = write_map(tmp_path / "a.tiff", draw_map(20, 30, np.float32), {})
    assert (tmp_path / "a.tiff").read_bytes() == content
