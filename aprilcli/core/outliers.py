"""Good images that differ from the other good images, found by their scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FEWEST = 4  # scores; of fewer, it cannot be known which differ
FENCE = 2.0  # interquartile ranges; with 1.5, one of ten sets of ten good images has an outlier


def find_outliers(scores: NDArray[np.float32]) -> list[int]:
    """Return the positions of scores far above the others; none of fewer than ``FEWEST`` scores.

    Tukey's rule: above the upper quartile by more than ``FENCE`` interquartile ranges. Up to a quarter of the scores
    may be outliers without hiding each other.
    """
    if len(scores) < FEWEST:
        return []
    lower, upper = np.percentile(scores, [25, 75])
    positions: list[int] = np.flatnonzero(scores > upper + FENCE * (upper - lower)).tolist()
    return positions
