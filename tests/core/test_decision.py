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
    assert rule.describe() == {"threshold": None, "pixel_threshold": None}


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


def test_too_few_images_give_a_note(calibration: Calibration) -> None:
    assert len(DecisionRule.at_rate(calibration, 0.01).notes) == 1
    assert DecisionRule.at_rate(calibration, 0.05).notes == ()
