"""The images that an int8 model is quantized with."""

from __future__ import annotations

from pathlib import Path

import pytest

from aprilcli.core.quantization import MOST_IMAGES, QuantizationImages
from aprilcli.errors import InputError
from aprilcli.io.images import read_image

SAMPLES = sorted((Path(__file__).parents[1] / "samples").glob("*.png"))


def test_quantization_images_are_the_first_and_the_same_after_they_were_kept() -> None:
    sources = [read_image(path) for path in SAMPLES]
    images = QuantizationImages.first_of(iter(sources * 3), 64)
    assert images.pixels.shape == (MOST_IMAGES, 64, 64, 3)
    again = QuantizationImages.first_of(images.images(), 64)
    assert again.sha256 == images.sha256 == images.describe()["sha256"]
    assert QuantizationImages.first_of(sources, 64).sha256 != images.sha256
    with pytest.raises(InputError, match="no images to quantize the model with"):
        QuantizationImages.first_of([], 64)
