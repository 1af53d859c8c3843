"""From image scores to p-values and verdicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aprilcli.core.calibration import Calibration, Threshold
from aprilcli.core.memory_bank import MemoryBank


@dataclass(frozen=True)
class DecisionRule:
    """What turns scores into p-values and verdicts: a person's threshold, or a bank's calibration, or nothing."""

    calibration: Calibration | None
    threshold: Threshold | None
    pixel_threshold: Threshold | None

    @classmethod
    def for_bank(cls, bank: MemoryBank | None, threshold: float | None, rate: float) -> DecisionRule:
        """Take the bank's calibration at a false-alarm ``rate``; a ``threshold`` overrides its verdicts."""
        calibration = bank.calibration if bank is not None else None
        chosen = Threshold(threshold) if threshold is not None else None
        if calibration is None:
            return cls(None, chosen, None)
        return cls(calibration, chosen or calibration.threshold(rate), calibration.pixel_threshold(rate))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the verdicts."""
        return (self.threshold.note,) if self.threshold is not None and self.threshold.note else ()

    def p_value(self, score: float) -> float | None:
        """Return the conformal p-value, where there is a calibration."""
        return None if self.calibration is None else self.calibration.p_value(score)

    def describe(self) -> dict[str, Any]:
        """Return what run.json says of it; ``threshold`` is in image scores, ``pixel_threshold`` in map values."""
        return {
            name: None if threshold is None else asdict(threshold)
            for name, threshold in (("threshold", self.threshold), ("pixel_threshold", self.pixel_threshold))
        }
