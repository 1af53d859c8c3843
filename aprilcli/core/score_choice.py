"""Which image score separates known defects best from good images, and whether that is clear.

The score of the paper adds up the text score and the map maximum. For a given part another score may be better:

- ``text``: the text score; ``map``: the map maximum;
- ``top``: the mean of the highest 1 % of the map, for large and faint defects;
- ``stage.n``: the maximum of the map of the n-th stage alone.

Each is measured by the AUROC between defects and good images. Another score is chosen only where its gain over the
paper's is clear: at least ``LEAST_GAIN``, and significant in a one-sided test of the difference of two AUROCs on the
same images (DeLong, DeLong, Clarke-Pearson 1988), at ``SIGNIFICANCE`` shared by all variants (Bonferroni).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from aprilcli.types import STRICT, Number

BOTH = "both"
VARIANT = r"^(both|text|map|top|stage\.[1-9][0-9]*)$"
TOP_SHARE = 0.01  # of the pixels of a map
LEAST_DEFECTS = 8
LEAST_GAIN = 0.03
SIGNIFICANCE = 0.05

_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ScoreChoice:
    """The score that was chosen for a part, and the evidence for it.

    ``auroc``: of each variant, between ``defects`` known defects and ``good`` good images. ``defect_images``,
    ``good_images``: the SHA-256 of these, which must neither calibrate nor test.
    """

    __pydantic_config__: ClassVar = STRICT

    score: Annotated[str, Field(pattern=VARIANT)]
    defects: Annotated[int, Field(ge=LEAST_DEFECTS)]
    good: Annotated[int, Field(ge=1)]
    auroc: dict[Annotated[str, Field(pattern=VARIANT)], Number]
    defect_images: tuple[_Digest, ...] = ()
    good_images: tuple[_Digest, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """All images that chose the score."""
        return (*self.defect_images, *self.good_images)

    def describe(self) -> str:
        """Return the score and the evidence for it, for users."""
        names = {
            BOTH: "the text score plus the map maximum",
            "text": "the text score",
            "map": "the map maximum",
            "top": "the mean of the highest 1 % of the map",
        }
        name = names.get(self.score, f"the maximum of the map of stage {self.score.removeprefix('stage.')} alone")
        on = f"on {self.defects} known defects and {self.good} good images"
        if self.score == BOTH:
            return f"{name} (AUROC {self.auroc[BOTH]:.3f} {on}; no other score is clearly better)"
        return f"{name} (AUROC {self.auroc[self.score]:.3f} instead of {self.auroc[BOTH]:.3f} {on})"


def variants(stages: int) -> tuple[str, ...]:
    """Return the names of all scores of a model with N stages; the paper's is the first."""
    return (BOTH, "text", "map", "top", *(f"stage.{n}" for n in range(1, stages + 1)))


def top_mean(anomaly_map: torch.Tensor) -> torch.Tensor:
    """Return the mean of the highest ``TOP_SHARE`` of a map's pixels, at least one."""
    values = anomaly_map.flatten()
    return values.topk(max(1, math.ceil(TOP_SHARE * len(values)))).values.mean()


def choose(defects: Mapping[str, NDArray[np.float32]], good: Mapping[str, NDArray[np.float32]]) -> ScoreChoice:
    """Choose among the scores of m defects and n good images under each variant; ``BOTH`` unless the gain is clear."""
    wins = {name: _wins(defects[name], good[name]) for name in defects}
    auroc = {name: float(values.mean()) for name, values in wins.items()}
    clear = [name for name in wins if name != BOTH and _is_clear(wins[name], wins[BOTH], len(wins) - 1)]
    chosen = max(clear, key=lambda name: auroc[name], default=BOTH)
    return ScoreChoice(chosen, len(defects[BOTH]), len(good[BOTH]), auroc)


def _wins(defects: NDArray[np.float32], good: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [m, n]: 1 where a defect has a higher score than a good image, 1/2 where they are equal."""
    return np.heaviside(defects[:, None].astype(np.float64) - good, 0.5)


def _is_clear(wins: NDArray[np.float64], own: NDArray[np.float64], comparisons: int) -> bool:
    difference = wins - own
    gain = difference.mean()
    if gain < LEAST_GAIN:
        return False
    variance = sum(np.var(difference.mean(axis=axis), ddof=1) / difference.shape[1 - axis] for axis in (0, 1))
    if variance == 0:  # every image has the same gain
        return True
    p_value = 1 - statistics.NormalDist().cdf(gain / math.sqrt(variance))
    return bool(p_value < SIGNIFICANCE / comparisons)
