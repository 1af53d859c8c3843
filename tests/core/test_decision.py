"""The decision rule: p-values and verdicts from a calibration, a given threshold, both or neither."""

from __future__ import annotations

import numpy as np
import pytest

from aprilcli.core.calibration import Calibration
from aprilcli.core.decision import DecisionRule

SCORES = np.arange(1, 20, dtype=np.float32)  # 19: enough for a rate of 0.05


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(SCORES, SCORES / 10, "held-out")


def test_without_calibration_and_threshold_nothing_is_decided() -> None:
    rule = DecisionRule.at_rate(None, 0.05)
    assert (rule.p_value(3.0), rule.verdict(3.0), rule.notes) == (None, None, ())
    assert rule.describe() == {"threshold": None, "pixel_threshold": None, "recognition": None}


def test_a_given_threshold_alone_gives_verdicts_and_no_p_values() -> None:
    rule = DecisionRule.at_rate(None, 0.05, threshold=0.5)
    assert [rule.verdict(score) for score in (0.4, 0.5)] == ["normal", "anomalous"]
    assert rule.p_value(0.5) is None
    assert rule.describe()["threshold"]["value"] == 0.5


def test_verdicts_are_p_values_at_the_rate(calibration: Calibration) -> None:
    for rate in (0.05, 0.1, 0.5):
        rule = DecisionRule.at_rate(calibration, rate)
        for score in np.arange(0, 21, 0.5):
            assert (rule.verdict(score) == "anomalous") == (rule.p_value(score) <= rate)
    assert rule.threshold.guaranteed
    assert rule.pixel_threshold.value == pytest.approx(calibration.pixel_threshold(0.5).value)


def test_a_given_threshold_replaces_the_calibrated_one_and_keeps_the_p_values(calibration: Calibration) -> None:
    rule = DecisionRule.at_rate(calibration, 0.05, threshold=3)
    assert (rule.verdict(3.0), rule.threshold.rate) == ("anomalous", None)
    assert rule.p_value(3.0) == calibration.p_value(3.0)
    assert rule.pixel_threshold == calibration.pixel_threshold(0.05)


@pytest.mark.parametrize(
    ("count", "rate"), [(4, 0.1), (9, 0.1), (18, 0.1), (19, 0.05), (49, 0.02), (99, 0.01), (999, 0.01)]
)
def test_the_default_rate_is_the_lowest_that_the_number_of_images_allows(count: int, rate: float) -> None:
    scores = np.arange(1, count + 1, dtype=np.float32)
    rule = DecisionRule.at_rate(Calibration(scores, scores, "held-out"))
    assert rule.threshold.rate == rate
    assert rule.threshold.guaranteed == (count >= 9)
    assert (rule.stricter is None) == (rate == 0.01)


def test_an_image_far_from_the_good_ones_is_unrecognised_whatever_its_score() -> None:
    scores, distances = np.arange(20, dtype=np.float32), np.full(20, 0.1, np.float32)
    rule = DecisionRule.at_rate(Calibration(scores, scores, "held-out", distances), 0.05)
    assert rule.recognition.value == pytest.approx(0.3)  # three times the largest distance
    assert [rule.verdict(0, distance) for distance in (0.29, 0.31)] == ["normal", "unrecognised"]
    assert [rule.verdict(30, distance) for distance in (0.29, 0.31)] == ["anomalous", "unrecognised"]
    four = DecisionRule.at_rate(Calibration(scores, scores, "held-out", distances[:4]), 0.05)
    assert four.recognition.value == pytest.approx(0.6)
    many = np.linspace(0, 1, 999, dtype=np.float32)
    enough = DecisionRule.at_rate(Calibration(many, many, "held-out", many), 0.01)
    assert enough.recognition.value == pytest.approx(1, abs=1e-3)  # the conformal bound at a rate of 0.001


def test_too_few_images_give_a_note(calibration: Calibration) -> None:
    assert len(DecisionRule.at_rate(calibration, 0.01).notes) == 1
    assert DecisionRule.at_rate(calibration, 0.05).notes == ()
