"""From the scores of good pictures to p-values, thresholds and verdicts (conformal prediction, Vovk et al. 2005).

Held-out good pictures and a new good one are exchangeable, so P(p ≤ R) ≤ R holds exactly. Scores from leave-one-out
are the jackknife's: each reference meets a bank one picture smaller than a new picture will, so the rate is close but
not proven, mostly on the safe side. Scores of augmented copies of a single picture promise nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aprilcli.errors import OptionError

LEAVE_ONE_OUT, HELD_OUT, AUGMENTATIONS = "leave-one-out", "held-out", "augmentations"


@dataclass(frozen=True)
class Threshold:
    """From ``value`` on a score is anomalous.

    ``guaranteed``: the false-alarm rate follows from the calibration scores; otherwise they were too few (or of one
    picture), ``margin`` was added to the largest, and ``needed`` good pictures would be enough.
    """

    value: float
    guaranteed: bool
    margin: float
    needed: int


@dataclass(frozen=True)
class Calibration:
    """Scores of good pictures as a scan would give them.

    ``scores`` [n] float32 image scores, ``map_maxima`` [n] float32 maxima of their maps, ``method``: ``held-out``,
    ``leave-one-out`` or ``augmentations``.
    """

    scores: NDArray[np.float32]
    map_maxima: NDArray[np.float32]
    method: str

    def __post_init__(self) -> None:
        """Refuse what cannot be compared. Raises ValueError."""
        if len(self.scores) == 0 or len(self.scores) != len(self.map_maxima):
            raise ValueError("calibration needs as many scores as map maxima, and one at least")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.map_maxima).all()):
            raise ValueError("calibration scores must be finite")

    def p_value(self, score: float) -> float:
        """(1 + number of calibration scores ≥ ``score``) / (n + 1), in (0, 1]."""
        return (1 + int((self.scores >= np.float32(score)).sum())) / (len(self.scores) + 1)

    def score_threshold(self, rate: float) -> Threshold:
        """Return the image score from which p ≤ ``rate``."""
        return self._threshold(self.scores, rate)

    def pixel_threshold(self, rate: float) -> Threshold:
        """Return the map value which at most a share ``rate`` of good pictures reaches anywhere."""
        return self._threshold(self.map_maxima, rate)

    def _threshold(self, values: NDArray[np.float32], rate: float) -> Threshold:
        """Find the smallest float32 t with: score ≥ t exactly where p ≤ ``rate``.

        p ≤ R means that at most k − 1 calibration scores reach the score, k = ⌊R (n + 1)⌋: it exceeds the k-th largest.
        Where k = 0 the tail above the largest is taken for exponential, its mean excess β being that of the scores
        above the median: the 1 − R quantile then lies β · ln(1 / (R (n + 1))) above the largest.
        """
        check_rate(rate)
        count = len(values)
        needed = math.ceil(1 / rate - 1e-9) - 1
        rank = math.floor(rate * (count + 1) + 1e-9)
        descending = np.sort(values)[::-1]
        if rank >= 1:
            value = np.nextafter(descending[rank - 1], np.float32(np.inf))
            return Threshold(float(value), self.method != AUGMENTATIONS, 0.0, needed)
        median = np.median(values)
        above = values[values > median]
        excess = float((above - median).mean()) if len(above) else 0.0
        margin = excess * math.log(1 / (rate * (count + 1)))
        value = np.nextafter(np.float32(descending[0] + margin), np.float32(np.inf))
        return Threshold(float(value), False, margin, needed)


def check_rate(rate: float) -> None:
    """Refuse a false-alarm rate outside (0, 1). Raises OptionError."""
    if not 0 < rate < 1:
        raise OptionError(f"--false-alarm-rate {rate:g}: give a share between 0 and 1, such as 0.01")
