"""How commands read images: failures and blank images become errors of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_kinds import COLOR, encoded, tiff, wide
from PIL import Image

from aprilcli.core.detector import ModelInput
from aprilcli.io.images import NOTE_RANGE, SourceImage
from aprilcli.io.walk import FoundImage
from aprilcli.workflows.pipeline import PreparedImage, Reader


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
