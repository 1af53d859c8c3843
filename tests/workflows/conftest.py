"""Fixtures of trainings, and of scans that are interrupted and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import SCANNED, GoldenCase, contents_of_scan, draw_image, draw_spotted_object, scan_into


@pytest.fixture
def spotted(tmp_path: Path) -> Path:
    """A data set to train on."""
    return draw_spotted_object(tmp_path / "parts")


@pytest.fixture
def small_model(golden_vit: GoldenCase) -> list[str]:
    """The options of the model that is trained for."""
    return ["--model", str(golden_vit.folder), "--image-size", "56", "--stages", "2,4,6,8", "--device", "cpu"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, one of which cannot be read."""
    for seed in range(SCANNED):
        draw_image(tmp_path / "images" / f"{seed:02}.png", seed)
    (tmp_path / "images" / "05b, broken.png").write_bytes(b"broken")
    return tmp_path / "images"


@pytest.fixture
def arguments(images: Path, golden_vit: GoldenCase) -> list[str]:
    """The command line of a scan of ``images``, without ``--out``."""
    model = ["--model", str(golden_vit.folder), "--image-size", "70", "--device", "cpu"]
    return ["scan", str(images), *model, "--threshold", "0.5", "--pixel-threshold", "3"]


@pytest.fixture
def undisturbed(arguments: list[str], tmp_path: Path) -> dict[str, bytes]:
    """What a complete scan, in the folder of this name, has written."""
    assert scan_into(arguments, tmp_path / "undisturbed").exit_code == 3
    return contents_of_scan(tmp_path / "undisturbed")
