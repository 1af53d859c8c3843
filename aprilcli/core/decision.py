"""From image scores to p-values and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from aprilcli.core.calibration import Calibration
from aprilcli.core.threshold import Threshold, Verdict
from aprilcli.defaults import FALSE_ALARM_RATE

Cause = Literal["text", "map"]
ScoreOf = Literal["text", "map", "both"]  # what an image score is of: the text score, the map, or their sum


@dataclass(frozen=True)
class DecisionRule:
    """Turns image scores into p-values and verdicts, as far as there is a calibration or a threshold.

    ``threshold`` is for image scores, ``pixel_threshold`` for map values, ``recognition`` for the distances of
    ``core/recognition.py``. ``stricter``: the threshold for scores at ``FALSE_ALARM_RATE``, where the calibration has
    too few images for it and no rate was chosen. ``further``: calibrations of which each is valid for some images, as
    is ``calibration`` (see ``strictest``).

    A good image has a region with a probability of at most ``pixel_threshold.rate``, under the same conditions as it
    reaches ``threshold``: both are conformal, the one on the maxima of good maps, the other on good scores.
    """

    calibration: Calibration | None
    threshold: Threshold | None
    pixel_threshold: Threshold | None
    recognition: Threshold | None = None
    stricter: Threshold | None = None
    further: tuple[Calibration, ...] = ()

    @classmethod
    def at_rate(
        cls,
        calibration: Calibration | None,
        rate: float | None = None,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> DecisionRule:
        """Use the calibration at false-alarm rate ``rate``, by default the lowest that its number of images allows.

        A given ``threshold`` replaces the calibrated threshold of scores, ``pixel_threshold`` that of map values.
        """
        chosen = Threshold(threshold) if threshold is not None else None
        chosen_pixel = Threshold(pixel_threshold) if pixel_threshold is not None else None
        if calibration is None:
            return cls(None, chosen, chosen_pixel)
        used = calibration.default_rate if rate is None else rate
        stricter = None
        if rate is None and chosen is None and used > FALSE_ALARM_RATE:
            stricter = calibration.threshold(FALSE_ALARM_RATE)
        return cls(
            calibration,
            chosen or calibration.threshold(used),
            chosen_pixel or calibration.pixel_threshold(used),
            calibration.recognition_threshold(used),
            stricter,
        )

    @classmethod
    def strictest(cls, rules: Sequence[DecisionRule]) -> DecisionRule:
        """Join rules of which each is valid for some images into one that is valid for all.

        Its thresholds are the highest, and so are its p-values: what a rule promises of good images holds for it, too.
        """

        def highest(thresholds: Iterable[Threshold | None]) -> Threshold | None:
            return max((t for t in thresholds if t is not None), key=lambda t: t.value, default=None)

        calibrations = [rule.calibration for rule in rules if rule.calibration is not None]
        return cls(
            calibrations[0] if calibrations else None,
            highest(rule.threshold for rule in rules),
            highest(rule.pixel_threshold for rule in rules),
            highest(rule.recognition for rule in rules),
            highest(rule.stricter for rule in rules),
            tuple(calibrations[1:]),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the verdicts."""
        thresholds = (self.threshold, self.pixel_threshold)
        return tuple(dict.fromkeys(t.note for t in thresholds if t is not None and t.note))

    def p_value(self, score: float) -> float | None:
        """Return the conformal p-value in (0, 1]; None without a calibration."""
        if self.calibration is None:
            return None
        return max(calibration.p_value(score) for calibration in (self.calibration, *self.further))

    def verdict(self, score: float, part_distance: float | None = None) -> Verdict | None:
        """Return the verdict; None without a threshold. ``part_distance``: see ``Detection``."""
        if self.recognition is not None and part_distance is not None and self.recognition.reached(part_distance):
            return "unrecognised"
        return None if self.threshold is None else self.threshold.verdict(score)

    def cause(self, score: float, map_max: float | None, score_of: ScoreOf) -> Cause:
        """Return which part of an anomalous image's score is higher above that of good images: text score or map.

        Good images: the medians of the calibration, or 0 without one.
        """
        if score_of != "both" or map_max is None:
            return "map" if score_of == "map" else "text"
        text, anomaly_map = score - map_max, map_max
        if self.calibration is not None:
            text -= float(np.median(self.calibration.scores - self.calibration.map_maxima))
            anomaly_map -= float(np.median(self.calibration.map_maxima))
        return "map" if anomaly_map >= text else "text"

    def describe(self) -> dict[str, Any]:
        """Return the thresholds, JSON-ready; None where there is none."""
        thresholds = {name: getattr(self, name) for name in ("threshold", "pixel_threshold", "recognition")}
        return {name: None if threshold is None else asdict(threshold) for name, threshold in thresholds.items()}
