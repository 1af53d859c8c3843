"""From image scores to p-values and verdicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aprilcli.core.calibration import Calibration
from aprilcli.core.threshold import Threshold, Verdict


@dataclass(frozen=True)
class DecisionRule:
    """Turns image scores into p-values and verdicts, as far as there is a calibration or a threshold.

    ``threshold`` is for image scores, ``pixel_threshold`` for map values.
    """

    calibration: Calibration | None
    threshold: Threshold | None
    pixel_threshold: Threshold | None

    @classmethod
    def at_rate(cls, calibration: Calibration | None, rate: float, threshold: float | None = None) -> DecisionRule:
        """Use the calibration at false-alarm rate ``rate``; a given ``threshold`` replaces the calibrated threshold."""
        chosen = Threshold(threshold) if threshold is not None else None
        if calibration is None:
            return cls(None, chosen, None)
        return cls(calibration, chosen or calibration.threshold(rate), calibration.pixel_threshold(rate))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the verdicts."""
        return (self.threshold.note,) if self.threshold is not None and self.threshold.note else ()

    def p_value(self, score: float) -> float | None:
        """Return the conformal p-value in (0, 1]; None without a calibration."""
        return None if self.calibration is None else self.calibration.p_value(score)

    def verdict(self, score: float) -> Verdict | None:
        """Return the verdict; None without a threshold."""
        return None if self.threshold is None else self.threshold.verdict(score)

    def describe(self) -> dict[str, Any]:
        """Return both thresholds, JSON-ready; None where there is none."""
        return {
            name: None if threshold is None else asdict(threshold)
            for name, threshold in (("threshold", self.threshold), ("pixel_threshold", self.pixel_threshold))
        }
