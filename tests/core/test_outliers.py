"""Outliers among the scores of good images."""

from __future__ import annotations

import numpy as np
import pytest

from aprilcli.core.outliers import find_outliers


@pytest.mark.parametrize(
    ("scores", "outliers"),
    [
        ([3.0, 3.1, 3.2, 3.1, 3.0, 3.3, 3.2, 3.1, 5.0, 5.1], [8, 9]),  # one does not hide the other
        ([3.0, 3.1, 3.2, 3.1, 3.0, 3.3, 3.2, 3.1, 3.2, 1.0], []),  # a low score is no reason for doubt
        ([3.0, 3.1, 3.2, 3.3], []),
        ([1.0, 1.0, 9.0], []),  # too few to know which differ
        ([1.0], []),
    ],
)
def test_scores_far_above_the_others_are_outliers(scores: list[float], outliers: list[int]) -> None:
    assert find_outliers(np.array(scores, np.float32)) == outliers
