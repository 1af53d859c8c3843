"""The quick start of the README: the embedded model on the sample images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import read_rows, run_scan
from PIL import Image

SAMPLES = Path(__file__).parent / "samples"
MASKS = Path(__file__).parent / "sample_masks"
NAMES = sorted(path.name for path in SAMPLES.iterdir())
PATCH = 4  # pixels per patch of the finest stage, the resolution of a map
DEFECTIVE = [name for name in NAMES if "good" not in name]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "out"
    result = run_scan(SAMPLES, "--out", folder)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["model: tiny (small, included); the model paper is more accurate"]
    return folder


def scores(out: Path) -> dict[str, float]:
    return {row["path"]: float(row["score"]) for row in read_rows(out)}


def test_every_defective_sample_has_a_higher_score_than_every_good_sample_of_its_product(out: Path) -> None:
    found = scores(out)
    assert sorted(found) == NAMES
    products = {name.split("_")[0] for name in NAMES}
    assert len(products) >= 2
    for product in products:
        good = [score for name, score in found.items() if name.startswith(f"{product}_good")]
        defective = [score for name, score in found.items() if name.startswith(product) and name in DEFECTIVE]
        assert good
        assert defective
        assert min(defective) > max(good)


@pytest.mark.parametrize("name", DEFECTIVE)
def test_the_maximum_of_the_map_lies_on_the_defect(out: Path, name: str) -> None:
    anomaly_map = tifffile.imread(out / "maps" / f"{name}.tiff")
    mask = np.asarray(Image.open(MASKS / name)) > 0
    assert anomaly_map.shape == mask.shape[:2]
    y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    assert mask[max(y - PATCH, 0) : y + PATCH + 1, max(x - PATCH, 0) : x + PATCH + 1].any()
