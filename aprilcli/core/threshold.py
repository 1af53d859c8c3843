"""The lowest score that is called anomalous."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aprilcli.errors import OptionError

Verdict = Literal["normal", "anomalous", "unrecognised"]  # the last is given by ``DecisionRule``


@dataclass(frozen=True)
class Threshold:
    """The lowest score that is called anomalous.

    ``value``: representable as float32. ``rate``: the false-alarm rate; None if a user chose the value. ``guaranteed``:
    whether the probability that a good image reaches it is at most ``rate``. ``margin``: what was added to the largest
    calibration score. ``note``: one line for the user, or empty.
    """

    value: float
    rate: float | None = None
    guaranteed: bool = False
    margin: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        """Round the value to float32. Raises OptionError for NaN and values outside the range of float32."""
        if not abs(self.value) <= float(np.finfo(np.float32).max):
            raise OptionError(f"threshold {self.value:g}: not a number that scores can reach; use a value such as 0.5")
        object.__setattr__(self, "value", float(np.float32(self.value)))

    def reached(self, value: float) -> bool:
        """Return whether a value is at least the threshold, compared as float32, the precision of written scores."""
        if math.isnan(value):
            raise ValueError("NaN has no verdict")
        return bool(np.float32(value) >= np.float32(self.value))

    def verdict(self, score: float) -> Verdict:
        """Return the verdict of a score."""
        return "anomalous" if self.reached(score) else "normal"
