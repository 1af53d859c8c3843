"""The quick start: the embedded model on the sample pictures, as the README shows it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from aprilcli.cli import app

SAMPLES = Path(__file__).parent / "samples"
MASKS = Path(__file__).parent / "sample_masks"
NAMES = sorted(path.name for path in SAMPLES.iterdir())
PATCH = 4  # pixels of a patch of the finest stage: a map cannot be sharper
DEFECTIVE = [name for name in NAMES if "good" not in name]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "out"
    result = CliRunner().invoke(app, ["scan", str(SAMPLES), "--out", str(folder), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["model: tiny, the small embedded one; paper is the accurate one"]
    return folder


def scores(out: Path) -> dict[str, float]:
    with (out / "scores.csv").open(newline="") as stream:
        return {row["path"]: float(row["score"]) for row in csv.DictReader(stream)}


def test_every_defective_sample_ranks_above_every_good_one_of_its_kind(out: Path) -> None:
    found = scores(out)
    assert sorted(found) == NAMES
    kinds = {name.split("_")[0] for name in NAMES}
    assert len(kinds) >= 2
    for kind in kinds:
        good = [score for name, score in found.items() if name.startswith(f"{kind}_good")]
        defective = [score for name, score in found.items() if name.startswith(kind) and name in DEFECTIVE]
        assert good
        assert defective
        assert min(defective) > max(good)


@pytest.mark.parametrize("name", DEFECTIVE)
def test_the_peak_of_the_heatmap_lies_on_the_defect(out: Path, name: str) -> None:
    heatmap = tifffile.imread(out / "maps" / f"{name}.tiff")
    mask = np.asarray(Image.open(MASKS / name)) > 0
    assert heatmap.shape == mask.shape[:2]
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert mask[max(y - PATCH, 0) : y + PATCH + 1, max(x - PATCH, 0) : x + PATCH + 1].any()
