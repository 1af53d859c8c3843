"""Verdicts of an evaluation, counted and in words, against the scores of the same run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import draw_object, read_record, read_rows, run_eval

from aprilcli.core.calibration import Calibration
from aprilcli.core.decision import DecisionRule
from aprilcli.types import Detection
from aprilcli.workflows.eval_verdicts import Verdicts, count_verdicts, in_words


def make_verdicts(defects: list[float], good: list[float], distances: list[float] | None = None) -> Verdicts:
    """Count the verdicts of scores, at thresholds from the 19 scores 0.05, 0.10 … 0.95 of good images."""
    calibrated = np.arange(1, 20, dtype=np.float32) / 20
    calibration = Calibration(calibrated, calibrated, "held-out", np.full(19, 0.01, np.float32))
    found = [Detection(0.0, 0.0, score, None) for score in (*defects, *good)]
    if distances is not None:
        found = [Detection(0.0, 0.0, d.score, None, distance) for d, distance in zip(found, distances, strict=True)]
    labels = [1] * len(defects) + [0] * len(good)
    verdicts = count_verdicts(labels, found, lambda rate: DecisionRule.at_rate(calibration, rate), None)
    assert verdicts is not None
    return verdicts


def test_counts_are_those_of_the_scores_at_each_threshold(tmp_path: Path, model: list[str]) -> None:
    root, out = draw_object(tmp_path / "bolt", 100, train=10), tmp_path / "out"
    result = run_eval(root, out, *model, "--shots", "0,1", "--seeds", 2, "--calibrate", "--false-alarm-rate", 0.3)
    assert result.exit_code == 0, result.output
    record = read_record(out)
    assert [(v["object"], v["shots"], v["seed"]) for v in record["verdicts"]] == [
        ("bolt", 0, None),
        ("bolt", 1, 0),
        ("bolt", 1, 1),
    ]
    for verdicts, of_setting in zip(record["verdicts"], record["results"], strict=True):
        seed = "" if verdicts["seed"] is None else str(verdicts["seed"])
        rows = [row for row in read_rows(out) if (row["shots"], row["seed"]) == (str(verdicts["shots"]), seed)]
        assert (verdicts["defects"], verdicts["good"], verdicts["rate"]) == (3, 3, 0.3)
        assert verdicts["threshold"] == of_setting["threshold"]["value"]
        assert verdicts["guaranteed"] is True
        assert verdicts["caught"] / 3 == pytest.approx(of_setting["metrics"]["tpr"])
        assert [each["rate"] for each in verdicts["by_rate"]] == [0.01, 0.02, 0.05, 0.1]
        for each in (verdicts, *verdicts["by_rate"]):
            called = [row["label"] for row in rows if np.float32(row["score"]) >= np.float32(each["threshold"])]
            assert (each["caught"], each["false_alarms"]) == (called.count("1"), called.count("0"))
    words = [line for line in result.stdout.splitlines() if "caught" in line]
    assert re.match(r"bolt, 0 shots: caught \d of 3 defects, .* of 3 good images at the threshold in use \(", words[0])
    assert "rate 0.3" in words[0]
    assert "; 2 selections of references)" in words[2]
    assert words[3].startswith("  caught, false alarms (threshold) by rate: 0.01*: ")


def test_without_a_calibration_there_are_no_verdicts(parts: Path, model: list[str], tmp_path: Path) -> None:
    result = run_eval(parts / "bolt", tmp_path / "out", *model, "--shots", 0)
    assert "caught" not in result.stdout
    assert "verdicts" not in read_record(tmp_path / "out")


def test_words_say_what_is_guaranteed() -> None:
    lines = list(in_words("nut", "1 shot", [make_verdicts([0.9, 0.96, 2.0], [0.1, 0.97])]))
    assert lines[0] == (
        "nut, 1 shot: caught 2 of 3 defects, 1 false alarm of 2 good images at the threshold in use (0.9500, rate 0.05)"
    )
    assert re.fullmatch(
        r"  caught, false alarms \(threshold\) by rate: 0\.01\*: 1, 0 \(1\.\d{4}\); 0\.02\*: 1, 0 \(1\.\d{4}\); "
        r"0\.05: 2, 1 \(0\.9500\); 0\.1: 2, 1 \(0\.9000\); \* not guaranteed",
        lines[1],
    )


def test_numbers_that_differ_between_seeds_are_ranges() -> None:
    several = [make_verdicts([2.0, score], [score]) for score in (0.1, 3.0, 0.2)]
    assert next(in_words("nut", "4 shots", several)) == (
        "nut, 4 shots: caught 1 to 2 of 2 defects, 0 to 1 false alarms of 1 good image at the threshold in use "
        "(0.9500, rate 0.05; 3 selections of references)"
    )


def test_unrecognised_images_count_as_called_anomalous_and_are_named() -> None:
    verdicts = make_verdicts([0.1, 2.0], [0.1, 0.2], distances=[1.5, 0.0, 1.5, 0.0])
    assert (verdicts.used.caught, verdicts.used.false_alarms, verdicts.used.unrecognised) == (2, 1, (1, 1))
    assert "of these, 1 caught and 1 false alarm are unrecognised" in list(in_words("nut", "4 shots", [verdicts]))[1]
    assert verdicts.describe()["unrecognised"] == {"caught": 1, "false_alarms": 1}
