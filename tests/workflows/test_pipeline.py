"""How commands read images: on threads, ahead and in order; failures and blank images become errors of their files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_kinds import COLOR, encoded, tiff, wide
from PIL import Image

from aprilcli.core.detector import ModelInput
from aprilcli.io.images import NOTE_RANGE, SourceImage
from aprilcli.io.walk import FoundImage
from aprilcli.workflows.pipeline import PreparedImage, Reader, map_ahead, worker_threads


def read(path: Path) -> PreparedImage:
    def prepare(source: SourceImage) -> ModelInput:
        return ModelInput((np.zeros((3, *source.size_hw), np.float32),))

    return Reader(prepare, None, 10_000_000)(FoundImage(path, path.name))


def noise(levels: int, channels: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Return [40, 60, 3] uint8 around 120 with this number of gray levels in some channels."""
    values = np.full((40, 60, 3), 120, np.uint8)
    values[..., channels] += np.random.default_rng(0).integers(0, levels, (40, 60, len(channels)), dtype=np.uint8)
    return values


@pytest.mark.parametrize(
    "content",
    [
        encoded("PNG", np.zeros((40, 60), np.uint8)),
        encoded("PNG", np.full((40, 60, 3), 255, np.uint8)),
        encoded("JPEG", np.full((40, 60, 3), (200, 30, 90), np.uint8)),
        encoded("PNG", noise(3)),
        encoded("PNG", np.zeros((40, 60, 4), np.uint8)),
        tiff(np.full((40, 60), 30_000, np.uint16), photometric="minisblack"),
        tiff(np.full((40, 60), 0.5, np.float32), photometric="minisblack"),
    ],
    ids=["black", "white", "a color", "noise", "transparent", "16 bit", "float"],
)
def test_a_blank_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    image = read(tmp_path / "a.png")
    assert image.input is None
    assert image.error == (
        f"{tmp_path}/a.png: a blank image, all pixels are nearly equal; check the camera, its lens cap and the light"
    )
    assert image.stamp  # a resumed scan reads the file again only if it has changed


@pytest.mark.parametrize("values", [noise(5), noise(5, (2,)), COLOR // 16], ids=["gray", "one channel", "dark"])
def test_little_contrast_is_no_blank_image(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG", values))
    assert read(tmp_path / "a.png").error is None


def test_a_single_other_pixel_is_enough(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.putpixel((3, 4), (255, 255, 250))
    image.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").error is None


def test_the_notes_of_a_blank_image_are_kept(tmp_path: Path) -> None:
    values = wide(COLOR[..., 0]) >> 9  # 7 bits of 16
    (tmp_path / "a.tif").write_bytes(tiff(values, photometric="minisblack"))
    image = read(tmp_path / "a.tif")
    assert "a blank image" in str(image.error)
    assert image.notes == (NOTE_RANGE,)


def test_a_result_is_there_while_the_next_item_is_made() -> None:
    is_used = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert is_used.wait(30)
        yield 2

    with worker_threads(2) as pool:
        results = map_ahead(pool, str, items(), 2)
        assert next(results) == "1"
        is_used.set()
        assert list(results) == ["2"]


def test_results_keep_the_order_of_the_items() -> None:
    first_may_end = threading.Event()

    def wait_for_second(item: int) -> int:
        if item == 0:
            assert first_may_end.wait(30)
        first_may_end.set()
        return item

    with ThreadPoolExecutor(2) as pool:
        assert list(map_ahead(pool, wait_for_second, iter(range(20)), 3)) == list(range(20))


def test_no_more_items_are_made_than_results_may_wait() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, str, items(), 3)
        for used in range(1, 20):
            next(results)
            assert len(made) <= used + 3


@pytest.mark.parametrize("where", ["items", "function"])
def test_an_error_is_raised_where_the_results_are_used(where: str) -> None:
    def items() -> Iterator[int]:
        yield 1
        if where == "items":
            raise ValueError("no more")
        yield 0

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, lambda item: 1 // item, items(), 2)
        assert next(results) == 1
        with pytest.raises((ValueError, ZeroDivisionError)):
            next(results)


def test_results_that_nobody_wants_end_the_items() -> None:
    is_closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            is_closed.set()

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, str, items(), 2)
        assert next(results) == "0"
        results.close()
        assert is_closed.wait(30)
