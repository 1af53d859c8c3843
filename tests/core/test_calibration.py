"""Conformal p-values and thresholds: their definition, the false-alarm rate, and values that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import GoldenCase, inputs
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aprilcli.core.calibration import SMALLEST_SPREAD, Calibration, needed_images
from aprilcli.core.memory_bank import Source, build
from aprilcli.core.threshold import Threshold
from aprilcli.errors import ArtifactError, InputError, OptionError


def calibrate(scores, method="held-out"):
    return Calibration(np.asarray(scores), np.asarray(scores) / 2, method)


def test_p_value_counts_scores_at_least_as_high():
    calibration = calibrate([1, 2, 2, 3])
    expected = {0.5: 1.0, 1: 1.0, 2: 0.8, 2.5: 0.4, 3: 0.4, 3.5: 0.2}
    assert {score: calibration.p_value(score) for score in expected} == expected


# Few distinct values, so that ties are common, and rates that p can take exactly.
@given(
    st.lists(st.integers(-3, 3).map(lambda i: i / 8), min_size=1, max_size=40),
    st.one_of(st.integers(2, 41).map(lambda i: 1 / i), st.sampled_from([0.07, 0.29, 0.3, 0.57, 0.999])),
)
def test_a_score_reaches_the_threshold_if_and_only_if_p_is_at_most_the_rate(scores, rate):
    calibration = calibrate(scores)
    threshold = calibration.threshold(rate)
    assert threshold.guaranteed == (1 / (len(scores) + 1) <= rate) == (len(scores) >= needed_images(rate))
    if not threshold.guaranteed:
        assert threshold.value > max(scores) or max(scores) == 0
        return
    steps = np.array(sorted({*scores, -9, 9}), np.float32)
    for score in np.concatenate([steps, np.nextafter(steps, np.float32(99)), np.nextafter(steps, np.float32(-99))]):
        called = threshold.verdict(float(score)) == "anomalous"
        assert called == (calibration.p_value(float(score)) <= rate)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (40, 0.05), (99, 0.01), (7, 0.3)])
def test_exactly_the_allowed_share_of_n_plus_1_images_is_anomalous_against_the_others(n, rate):
    """The rank argument behind the guarantee, without random draws: without ties it holds with equality."""
    scores = np.random.default_rng(n).normal(size=n + 1).astype(np.float32)
    called = sum(
        calibrate(np.delete(scores, i)).threshold(rate).verdict(scores[i]) == "anomalous" for i in range(n + 1)
    )
    assert called == np.floor(rate * (n + 1) + 1e-9)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_false_alarms_of_200_draws_lie_within_binomial_bounds(draw, rate):
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        scores = getattr(rng, draw)(size=40)
        called += calibrate(scores[:39]).threshold(rate).verdict(scores[39]) == "anomalous"
    low, high = stats.binom.interval(0.999, 200, rate)  # R · (n + 1) is an integer, so the expected rate is exactly R
    assert low <= called <= high


def test_needed_images_is_the_smallest_number_that_reaches_the_rate():
    for rate in [0.5, 0.3, 0.05, 0.01, 0.001, 1 / 3, 1 / 49, 0.07]:
        n = needed_images(rate)
        assert 1 / (n + 1) <= rate < 1 / n


def test_with_too_few_images_the_threshold_is_the_largest_score_plus_the_margin_of_an_exponential_tail():
    scores = np.array([1.0, 1.5, 3.0, 2.5], np.float32)
    threshold = calibrate(scores).threshold(0.01)
    assert threshold.value == pytest.approx(3 + scores.std(ddof=1) * np.log(1 / (0.01 * 5)), rel=1e-6)
    assert not threshold.guaranteed
    assert "4 good images" in threshold.note
    assert "99 good images would be enough" in threshold.note


def test_the_margin_approaches_0_as_the_number_of_images_becomes_enough():
    largest, values = 2.0, []
    for n in (2, 5, 10, 18, 19):
        scores = np.tile([1.0, largest], n)[:n]
        values.append(calibrate(scores).threshold(0.05).value)
    assert values == sorted(values, reverse=True)
    assert values[-2] == pytest.approx(largest, abs=0.03)
    assert values[-1] == np.nextafter(np.float32(largest), np.float32(9))


def test_a_single_score_has_a_margin():
    threshold = calibrate([2.0], "augmentations").threshold(0.05)
    assert threshold.value == pytest.approx(2 + 2 * SMALLEST_SPREAD * np.log(10), rel=1e-6)
    assert not threshold.guaranteed


def test_notes_differ_by_method_and_only_held_out_is_guaranteed():
    scores = np.arange(30)
    held_out, left_out, changed = (
        calibrate(scores, method).threshold(0.1) for method in ("held-out", "leave-one-out", "augmentations")
    )
    assert held_out.value == left_out.value == changed.value
    assert (held_out.guaranteed, left_out.guaranteed, changed.guaranteed) == (True, False, False)
    assert held_out.note == ""
    assert "on the reference images" in left_out.note
    assert "copies of one image" in changed.note


def test_the_pixel_threshold_is_calibrated_on_the_maxima_of_the_maps():
    calibration = Calibration(np.arange(9.0), np.arange(9.0)[::-1] * 10, "held-out")
    assert calibration.pixel_threshold(0.2).value == np.nextafter(np.float32(70), np.float32(99))
    assert calibration.threshold(0.2).value == np.nextafter(np.float32(7), np.float32(99))


def test_a_threshold_chosen_by_the_user():
    threshold = Threshold(0.7)
    assert threshold.rate is None
    assert not threshold.guaranteed
    assert threshold.verdict(float(np.float32(0.7))) == "anomalous"  # as the score is written in scores.csv
    assert threshold.verdict(0.699) == "normal"


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(OptionError, match="between 0 and 1"):
        calibrate([1, 2]).threshold(rate)


def test_nan_and_values_beyond_float32_are_refused():
    with pytest.raises(OptionError, match="not a number"):
        Threshold(float("nan"))
    for beyond in (float("inf"), float("-inf"), 1e300):
        with pytest.raises(OptionError, match="not a number"):
            Threshold(beyond)
    with pytest.raises(ValueError, match="NaN has no verdict"):
        Threshold(1.0).verdict(float("nan"))
    with pytest.raises(ValueError, match="NaN has no p-value"):
        calibrate([1, 2]).p_value(float("nan"))


@pytest.mark.parametrize(
    ("scores", "maxima", "message"),
    [
        ([], [], "expected a list of numbers"),
        ([[1.0]], [1.0], "expected a list of numbers"),
        ([1.0, float("nan")], [1.0, 1.0], "image 2"),
        ([1.0], [float("inf")], "map_maxima.* image 1"),
        ([1.0, 2.0], [1.0], "2 scores but 1 maps"),
    ],
)
def test_unusable_scores_are_refused(scores, maxima, message):
    with pytest.raises(InputError, match=message):
        Calibration(np.array(scores), np.array(maxima), "held-out")


def test_the_values_are_copied_and_read_only():
    scores = np.array([1.0, 2.0])
    calibration = Calibration(scores, scores, "held-out")
    scores[0] = 9
    assert calibration.scores.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        calibration.scores[0] = 9


def test_stored_values_are_read_back():
    calibration = Calibration(np.array([0.1, 0.7, 1 / 3]), np.array([0.2, 0.4, 2 / 3]), "leave-one-out")
    again = Calibration.from_arrays(calibration.to_arrays(), calibration.method)
    assert again.method == "leave-one-out"
    np.testing.assert_array_equal(again.scores, calibration.scores)
    np.testing.assert_array_equal(again.map_maxima, calibration.map_maxima)
    assert {values.dtype for values in again.to_arrays().values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("arrays", "method"),
    [
        ({"scores": np.ones(2)}, "held-out"),
        ({"scores": np.ones(2), "map_maxima": np.ones(3)}, "held-out"),
        ({"scores": np.ones(2), "map_maxima": np.ones(2)}, "guessed"),
        ({"scores": np.ones(2, np.int32), "map_maxima": np.ones(2)}, "held-out"),
        ({"scores": np.ones(2), "map_maxima": np.array([3e38, -3e38])}, "held-out"),
        ({"scores": np.ones(2), "map_maxima": np.ones(2)}, None),
    ],
)
def test_a_damaged_calibration_is_refused(arrays, method):
    with pytest.raises(ArtifactError, match="enroll the part again"):
        Calibration.from_arrays(arrays, method)


def test_false_alarms_of_a_real_model_keep_to_the_rate(golden_vit: GoldenCase) -> None:
    """The share of exchangeable good images that are called anomalous lies within binomial bounds."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(240, 3, 70, 70, generator=generator)
    encode = golden_vit.encoder.encode
    sources = [Source(str(index), str(index)) for index in range(2)]
    bank = build([encode(images[:2]).patch_tokens], sources, golden_vit.backbone.spec, "object")
    plain = golden_vit.detector()
    detector = golden_vit.detector(None, bank)
    assert plain.detect(inputs(images[:1]))[0].anomaly_map is None
    detections = [detection for batch in images[2:].split(34) for detection in detector.detect(inputs(batch))]
    scores = np.array([detection.score for detection in detections], np.float32)
    rng, rate, draws, size = np.random.default_rng(0), 0.1, 200, 19
    alarms = 0
    for _ in range(draws):
        chosen = rng.permutation(len(scores))[: size + 1]
        calibration = Calibration(scores[chosen[:size]], scores[chosen[:size]], "held-out")
        alarms += calibration.threshold(rate).verdict(float(scores[chosen[size]])) == "anomalous"
    deviation = (rate * (1 - rate) / draws) ** 0.5
    assert abs(alarms / draws - rate) < 3.5 * deviation
