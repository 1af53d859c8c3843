"""The metrics against golden numbers, scikit-learn, and slow loops written from the definitions."""

import json
import math
import runpy
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file
from scipy.integrate import trapezoid
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from aprilcli.core import metrics
from aprilcli.core.metrics import (
    IMAGE_METRICS,
    METRICS,
    PIXEL_METRICS,
    PixelScores,
    auroc,
    average_precision,
    f1_max,
    image_metrics,
    mean_metrics,
    roc_curve,
    vand,
)
from aprilcli.errors import InputError

TESTS = Path(__file__).parents[1]
slow = SimpleNamespace(**runpy.run_path(str(TESTS / "reference" / "slow_metrics.py")))
GOLDEN = json.loads((TESTS / "golden" / "metrics.json").read_text(encoding="utf-8"))

few_values = st.sampled_from([-1.5, -0.0, 0.0, 0.1, 0.3, 0.7, 1.0, 3.0])  # so that ties are common
any_values = st.floats(-100, 100, width=32)


@st.composite
def images(draw):
    """Maps and masks of one to three images of different sizes, with and without ties."""
    values = draw(st.sampled_from([few_values, any_values]))
    shapes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3))
    maps = [draw(hnp.arrays(np.float32, shape, elements=values)) for shape in shapes]
    masks = [draw(hnp.arrays(np.bool_, shape)) for shape in shapes]
    return maps, masks


@st.composite
def labeled_scores(draw):
    scores = draw(st.lists(st.one_of(few_values, any_values), min_size=2, max_size=40))
    labels = draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores)))
    return labels, scores


def pixel_scores(maps, masks):
    pixels = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask)
    return pixels


def sklearn_f1_max(labels, scores):
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case):
    data = load_file(TESTS / "golden" / "metrics.safetensors")
    metrics = pixel_scores(data[f"{case}/maps"], data[f"{case}/masks"]).metrics()
    metrics |= image_metrics(data[f"{case}/labels"], data[f"{case}/scores"])
    expected = GOLDEN[case] | {"pro_segm": GOLDEN[case]["pro_segm_200_steps"]}
    for name in set(metrics) - {"aupro_30"}:
        assert metrics[name] == pytest.approx(expected[name], abs=1e-9), name
    # The exact area differs a little from the paper's value, which rescales the FPR and uses 200 steps.
    assert metrics["aupro_30"] == pytest.approx(expected["pro_segm"], abs=0.03)
    assert metrics["aupro_30"] != pytest.approx(expected["pro_segm"], abs=1e-3)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(labeled_scores())
def test_rank_metrics_agree_with_scikit_learn_and_slow_loops(drawn):
    labels, scores = drawn
    if not any(labels) or all(labels):  # F1-max and average precision would be 1 for any scores
        assert math.isnan(auroc(labels, scores))
        assert math.isnan(f1_max(labels, scores))
        assert math.isnan(average_precision(labels, scores))
        return
    assert f1_max(labels, scores) == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)
    assert f1_max(labels, scores) == pytest.approx(slow.f1_max(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert average_precision(labels, scores) == pytest.approx(slow.average_precision(labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(slow.auroc(labels, scores), abs=1e-12)
    fpr, tpr = roc_curve(labels, scores)
    assert trapezoid(tpr, fpr) == pytest.approx(auroc(labels, scores), abs=1e-12)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)


@settings(deadline=None, max_examples=120, derandomize=True)
@given(images())
def test_pixel_metrics_agree_with_scikit_learn_and_slow_loops(drawn):
    maps, masks = drawn
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map in maps])
    metrics = pixel_scores(maps, masks).metrics()
    assert tuple(metrics) == PIXEL_METRICS
    if not labels.any() or labels.all():
        assert all(math.isnan(value) for value in metrics.values())
        return
    assert metrics["f1max_segm"] == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)
    assert metrics["ap_segm"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics["auroc_segm"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics["pro_segm"] == pytest.approx(slow.pro(maps, masks), abs=1e-9, nan_ok=True)
    assert metrics["aupro_30"] == pytest.approx(slow.aupro(maps, masks), abs=1e-12)


@pytest.mark.parametrize("levels", [7, 60, 10**6])
@pytest.mark.parametrize("seed", range(3))
def test_both_pro_metrics_agree_with_slow_loops_on_larger_maps(seed, levels):
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape) < 0.15 for shape in ((14, 22), (9, 31), (12, 12))]
    masks[2][:] = False
    noise = [rng.normal(size=mask.shape) + mask for mask in masks]
    maps = [(np.round(values * levels / 8) / levels).astype(np.float32) for values in noise]
    metrics = pixel_scores(maps, masks).metrics()
    assert not math.isnan(metrics["pro_segm"])
    assert metrics["pro_segm"] == pytest.approx(slow.pro(maps, masks), abs=1e-9)
    assert metrics["aupro_30"] == pytest.approx(slow.aupro(maps, masks), abs=1e-9)


@pytest.mark.parametrize("anomalous_share", [0.02, 0.6])
def test_more_pixels_than_a_block(anomalous_share):
    rng = np.random.default_rng(3)
    shape = (401, 499)  # 200,000 pixels: at 0.6 the anomalous ones fill two blocks
    mask = rng.random(shape) < anomalous_share
    anomaly_map = (rng.integers(0, 5000, shape) + 900 * mask).astype(np.float32) / 7
    metrics = pixel_scores([anomaly_map], [mask]).metrics()
    labels, scores = mask.ravel(), anomaly_map.ravel()
    assert metrics["auroc_segm"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics["ap_segm"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics["f1max_segm"] == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)


def test_regions_have_equal_weights_and_connect_diagonally():
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[0:3, 0:4] = 255  # twelve pixels
    mask[5, 6] = mask[4, 7] = 1  # two that touch at a corner: one region
    anomaly_map = np.linspace(0, 0.5, 48, dtype=np.float32).reshape(6, 8)
    anomaly_map[mask > 0] = -1
    anomaly_map[5, 6] = 2  # half of the small region; the highest score
    # At every FPR below 1, half of one of two regions is covered. Three regions would give 1/3, pixels 1/14.
    assert pixel_scores([anomaly_map], [mask]).metrics()["aupro_30"] == pytest.approx(0.25)


def test_the_order_of_images_and_signed_zeros_do_not_matter_and_metrics_can_be_computed_in_between():
    rng = np.random.default_rng(0)
    maps = list(rng.integers(-4, 5, (3, 5, 7)).astype(np.float32))
    masks = list(rng.random((3, 5, 7)) < 0.3)
    pixels = pixel_scores(maps[:1], masks[:1])
    assert pixels.metrics() == pixel_scores(maps[:1], masks[:1]).metrics()
    for anomaly_map, mask in zip(maps[1:], masks[1:], strict=True):
        pixels.add(np.where(anomaly_map == 0, np.float32(-0.0), anomaly_map), mask)
    expected = pixel_scores(maps[::-1], masks[::-1]).metrics()
    assert pixels.metrics() == pytest.approx(expected, abs=1e-12)
    assert pixels.metrics() == pixels.metrics()


def test_good_images_count_as_normal_pixels():
    defect, mask = np.array([[0.9, 0.1]], np.float32), np.array([[True, False]])
    pixels = pixel_scores([defect], [mask])
    assert pixels.metrics()["auroc_segm"] == 1
    pixels.add(np.array([[2.0], [0.0]], np.float32))
    assert pixels.metrics()["auroc_segm"] == pytest.approx(2 / 3)


def test_constant_maps():
    mask = np.zeros((4, 5), dtype=bool)
    mask[0] = True
    metrics = pixel_scores([np.full((4, 5), 0.25, np.float32)], [mask]).metrics()
    assert metrics["auroc_segm"] == 0.5
    assert metrics["ap_segm"] == 0.25
    assert metrics["f1max_segm"] == pytest.approx(2 * 5 / (20 + 5))
    assert math.isnan(metrics["pro_segm"])
    assert metrics["aupro_30"] == pytest.approx(0.15)  # the diagonal


def test_no_pixels():
    assert all(math.isnan(value) for value in PixelScores().metrics().values())
    assert all(np.isnan(axis).all() for axis in PixelScores().pro_curve())


def test_perfect_maps():
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:4, 2:4] = True
    anomaly_map = np.arange(100, dtype=np.float32).reshape(10, 10) / 100 + 5 * mask
    metrics = pixel_scores([anomaly_map.astype(np.float32)], [mask]).metrics()
    assert {name: metrics[name] for name in PIXEL_METRICS} == pytest.approx(dict.fromkeys(PIXEL_METRICS, 1.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad):
    anomaly_map = np.zeros((3, 3), np.float32)
    anomaly_map[1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        PixelScores().add(anomaly_map)
    with pytest.raises(InputError, match="NaN or infinity"):
        image_metrics([0, 1], [0.5, bad])


def test_wrong_shapes_dtypes_and_labels_are_refused():
    pixels = PixelScores()
    with pytest.raises(InputError, match=r"mask \[2, 3\] does not match map \[3, 2\]"):
        pixels.add(np.zeros((3, 2), np.float32), np.zeros((2, 3), bool))
    with pytest.raises(InputError, match=r"float64 \[3, 2\]"):
        pixels.add(np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"float32 \[6\]"):
        pixels.add(np.zeros(6, np.float32))
    with pytest.raises(InputError, match="3 labels for 2 scores"):
        auroc([0, 1, 1], [0.1, 0.2])
    with pytest.raises(InputError, match="labels other than 0"):
        auroc([0, 2], [0.1, 0.2])


def test_image_metrics_and_summaries():
    metrics = image_metrics([1, 0, 1], [0.3, 0.5, 0.9])
    assert metrics == pytest.approx({"auroc_cls": 0.5, "f1max_cls": 0.8, "ap_cls": 0.5 + 1 / 3})
    assert (*PIXEL_METRICS, *IMAGE_METRICS, "vand") == METRICS
    assert vand(0.8, 0.2) == pytest.approx(0.32)
    assert vand(0.0, 0.0) == 0
    assert math.isnan(vand(0.5, math.nan))
    means = mean_metrics([{"a": 1.0, "b": math.nan}, {"a": 2.0, "b": 0.5}, {"c": math.nan}])
    assert means["a"] == 1.5
    assert means["b"] == 0.5
    assert math.isnan(means["c"])


def test_curves_consist_of_exact_points_from_corner_to_corner():
    rng = np.random.default_rng(1)
    masks = [rng.random((40, 50)) < 0.1 for _ in range(2)]
    maps = [(rng.normal(size=(40, 50)) + mask).astype(np.float32) for mask in masks]
    pixels = pixel_scores(maps, masks)
    metrics = pixels.metrics()
    for points in (20, 5000):
        for fpr, rate in (pixels.roc_curve(points), pixels.pro_curve(points)):
            assert len(fpr) == len(rate) <= 2 * points + 1
            assert (fpr[0], rate[0]) == (0, 0)
            assert (fpr[-1], rate[-1]) == pytest.approx((1, 1))
            assert (np.diff(fpr) >= 0).all()
            assert (np.diff(rate) >= 0).all()
    fpr, tpr = pixels.roc_curve(5000)  # more than there are pixels, so that no point is left out
    assert trapezoid(tpr, fpr) == pytest.approx(metrics["auroc_segm"], abs=1e-12)
    fpr, overlap = pixels.pro_curve(5000)
    limit = np.linspace(0, 0.3, 200_001)
    assert trapezoid(np.interp(limit, fpr, overlap), limit) / 0.3 == pytest.approx(metrics["aupro_30"], abs=1e-5)
    few_fpr, few_overlap = pixels.pro_curve(20)
    assert set(zip(few_fpr, few_overlap.round(9), strict=True)) <= set(zip(fpr, overlap.round(9), strict=True))


def test_memory_stays_within_the_documented_limits():
    rng = np.random.default_rng(2)
    anomaly_map = rng.random((1000, 1000), dtype=np.float32)
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[:500, :500] = True
    tracemalloc.start()
    pixels = PixelScores()
    for _ in range(4):
        pixels.add(anomaly_map, mask)
    kept, _ = tracemalloc.get_traced_memory()
    normal, anomalous = 4 * 750_000, 4 * 250_000
    assert kept < 4 * normal + 8 * anomalous + 1e5
    tracemalloc.reset_peak()
    pixels.metrics()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 * normal + 8 * anomalous + 1e5
    assert peak < 8 * normal + 32 * anomalous + 8e6


@pytest.mark.parametrize("step", [1e-9, 0.25])  # without and with ties
def test_the_precision_recall_curve_is_that_of_scikit_learn(step: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], (30, 20))
    scores = np.round((rng.random(50) + 0.3 * labels) / step) * step
    expected_precision, expected_recall, _ = precision_recall_curve(labels, scores)
    recall, precision = metrics.precision_recall_curve(labels, scores)
    np.testing.assert_allclose(recall, expected_recall[-2::-1])
    np.testing.assert_allclose(precision, expected_precision[-2::-1])
