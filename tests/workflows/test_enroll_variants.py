"""The changed copies on which a bank of a single reference is calibrated."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from aprilcli.core.detector import Detector
from aprilcli.io.images import SourceImage
from aprilcli.workflows import enroll_calibration


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(image_size=32, tile=50, device="cpu")


def test_changed_copies_of_an_image_with_tiles_have_its_changed_pixels(detector: Detector) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    image = detector.prepare(SourceImage(Image.fromarray(pixels)))
    variants = list(enroll_calibration._variants(image, detector))
    copies = [np.asarray(variant.source.rgb) for variant in variants if variant.source is not None]
    expected = [np.rint(np.clip(pixels * np.float32(f), 0, 255)) for f in enroll_calibration.BRIGHTNESS]
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    expected += [padded[2 + down : 62 + down, 2 + right : 72 + right] for down, right in enroll_calibration.SHIFTS]
    np.testing.assert_array_equal(copies, expected)


def test_changed_copies_of_a_large_image_take_a_few_times_its_memory(detector: Detector) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    image = detector.prepare(SourceImage(Image.fromarray(pixels)))
    tracemalloc.start()
    for _ in enroll_calibration._variants(image, detector):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * pixels.nbytes
