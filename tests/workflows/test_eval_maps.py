"""The maps that `eval` writes, in the layouts of the data sets' own evaluators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import tifffile
from helpers import GoldenCase, draw_image, draw_mask, read_csv, read_record, run_eval
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.workflows.eval_maps import inside


def test_maps_are_what_mvtecs_evaluator_reads_and_scikit_learn_agrees(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_eval(parts, out, *model, "--shots", "0,2", "--seeds", 2, "--maps")
    written = sorted(path.relative_to(out / "anomaly_maps").as_posix() for path in out.rglob("*.tif*"))
    assert written == [
        f"{name}/test/{defect}/{number:03}.tiff"
        for name in ("bolt", "metal_nut")
        for defect in ("good", "scratch")
        for number in range(3)
    ]
    rows = [r for r in read_csv(out / "scores.csv") if (r["object"], r["shots"], r["seed"]) == ("bolt", "2", "0")]
    assert len(rows) == 6
    labels, maxima, truth, values = [], [], [], []
    for row in rows:
        name = Path(row["path"])
        anomaly_map = tifffile.imread(out / "anomaly_maps" / name.with_suffix(".tiff"))
        assert (anomaly_map.dtype, anomaly_map.shape) == (np.float32, (40, 60))
        assert 0 < anomaly_map.max() <= float(row["map_max"]) + 1e-6
        mask = parts / "bolt" / "ground_truth" / row["defect"] / f"{name.stem}_mask.png"
        truth.append(np.asarray(Image.open(mask)) > 0 if mask.exists() else np.zeros((40, 60), bool))
        values.append(anomaly_map)
        labels.append(int(row["label"]))
        maxima.append(float(row["score"]))
    (metrics,) = (
        result["metrics"]
        for result in read_record(out)["results"]
        if (result["object"], result["shots"], result["seed"]) == ("bolt", 2, 0)
    )
    assert sklearn.metrics.roc_auc_score(labels, maxima) == pytest.approx(metrics["auroc_cls"], abs=1e-9)
    assert sklearn.metrics.average_precision_score(labels, maxima) == pytest.approx(metrics["ap_cls"], abs=1e-9)
    # At source size, so not to the last digit.
    truth_values = np.concatenate(truth).ravel(), np.concatenate(values).ravel()
    assert sklearn.metrics.roc_auc_score(*truth_values) == pytest.approx(metrics["auroc_segm"], abs=0.02)
    assert sklearn.metrics.average_precision_score(*truth_values) == pytest.approx(metrics["ap_segm"], abs=0.04)


def test_maps_of_mvtec_ad_2_follow_its_submission_layout(tmp_path: Path, model: list[str]) -> None:
    can = tmp_path / "ad2" / "can"
    for number in range(2):
        draw_image(can / "train" / "good" / f"{number:03}_regular.png", number)
        draw_image(can / "test_public" / "good" / f"{number:03}_regular.png", 10 + number)
        draw_image(can / "test_public" / "bad" / f"{number:03}_regular.png", 20 + number)
        draw_mask(can / "test_public" / "ground_truth" / "bad" / f"{number:03}_regular_mask.png")
    result = run_eval(tmp_path / "ad2", tmp_path / "out", *model, "--shots", 0, "--maps")
    assert "layout ad2" in result.stderr
    folder = tmp_path / "out" / "anomaly_images" / "can" / "test_public"
    written = sorted(path.relative_to(folder).as_posix() for path in (tmp_path / "out").rglob("*.tiff"))
    assert written == [f"{defect}/{number:03}_regular.tiff" for defect in ("bad", "good") for number in range(2)]
    values = tifffile.imread(folder / written[0])
    assert (values.dtype, values.shape) == (np.float16, (40, 60))
    assert not (tmp_path / "out" / "anomaly_maps").exists()


def test_no_two_maps_share_a_file_and_names_with_folders_stay_inside(tmp_path: Path, model: list[str]) -> None:
    line = tmp_path / "plant" / "line" / "bolt"
    for number, name in enumerate(("good/a.png", "good/a.jpg", "good/deep/a.png", "bad/a.png", "bad/b/a.png")):
        draw_image(line / name, number)
    run_eval(tmp_path / "plant", tmp_path / "out", *model, "--shots", 0, "--maps")
    folder = tmp_path / "out" / "anomaly_maps" / "line" / "bolt" / "test"
    written = sorted(path.relative_to(folder).as_posix() for path in (tmp_path / "out").rglob("*.tiff"))
    assert written == ["bad/a.tiff", "bad/b/a.tiff", "good/a.jpg.tiff", "good/a.png.tiff", "good/deep/a.tiff"]
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(InputError, match="leads out"):
            inside(tmp_path, name)
