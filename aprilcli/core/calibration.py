"""From the scores of good pictures to p-values and thresholds: conformal, no defects needed.

With n calibration scores c_1 … c_n of good pictures, a picture that scores s has the conformal p-value

    p(s) = (1 + #{i : c_i ≥ s}) / (n + 1)

(Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005; for outliers: Bates, Candès, Lei, Romano, Sesia:
Testing for outliers with conformal p-values, 2023). Where a good picture and the calibration pictures are exchangeable,
P(p ≤ R) ≤ R for every R, whatever the scores' distribution and for any n: calling p ≤ R anomalous raises false alarms
at a rate of at most R. The rate is an average over calibrations: one calibration of n pictures scatters around it.

How far exchangeability goes depends on where the scores come from:

- ``held-out``: other good pictures, scored against the finished bank as ``scan`` does. Exchangeable, hence guaranteed.
- ``leave-one-out``: each reference against the bank without itself. Not exactly exchangeable: each stands before a
  bank of K − 1 pictures, a new picture before all K, and the scores depend on each other. As a picture's distance
  can only grow where the bank loses a picture, the scores tend to err upward, to the side of fewer false alarms, the
  less the larger K is; but there is no proof, as there is none for the jackknife (Barber, Candès, Ramdas, Tibshirani:
  Predictive inference with the jackknife+, 2021).
- ``augmentations``: the only reference, slightly changed, against itself. Far from exchangeable: real parts differ
  more. A stopgap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aprilcli.errors import ArtifactError, InputError, OptionError

Method = Literal["held-out", "leave-one-out", "augmentations"]
Verdict = Literal["normal", "anomalous"]
DEFAULT_RATE = 0.01
LARGEST = 1e6  # far beyond any score or map: thresholds drawn from the largest float32s would overflow
SMALLEST_SPREAD = 0.05  # of the largest score's magnitude: few scores may lie close together by chance


@dataclass(frozen=True)
class Threshold:
    """The lowest score called anomalous.

    ``value`` is a float32's value. ``guaranteed``: whether a good picture reaches it with probability ``rate`` at
    most. ``rate`` is None where a person chose the value. ``margin``: what was added to the largest calibration score.
    ``note``: what a person should know of it, one line or empty.
    """

    value: float
    rate: float | None = None
    guaranteed: bool = False
    margin: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse NaN and what no float32 reaches, and bring the value to float32. Raises OptionError."""
        if not abs(self.value) <= float(np.finfo(np.float32).max):
            raise OptionError("the threshold is not a number that scores can reach; give one like 0.5")
        object.__setattr__(self, "value", float(np.float32(self.value)))

    def verdict(self, score: float) -> Verdict:
        """Call a score anomalous where it reaches the threshold, compared as float32: as scores are written."""
        if math.isnan(score):
            raise ValueError("a score that is not a number has no verdict")
        return "anomalous" if np.float32(score) >= np.float32(self.value) else "normal"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of good pictures, kept with the bank they were measured against.

    ``scores`` [n]: their image scores; ``map_maxima`` [n]: the maxima of their anomaly maps. Both are copied, float32
    and read-only. Raises InputError where they are empty, not finite or not of one length.
    """

    scores: NDArray[np.float32]
    map_maxima: NDArray[np.float32]
    method: Method

    def __post_init__(self) -> None:
        """Check, copy and freeze."""
        if self.method not in get_args(Method):
            raise ValueError(f"method {self.method!r} is none of {get_args(Method)}")
        for name in ("scores", "map_maxima"):
            values = np.array(getattr(self, name), dtype=np.float32)
            if values.ndim != 1 or len(values) == 0:
                raise InputError(f"calibration {name}: a list of numbers is needed, one per good photo; give photos")
            if not np.isfinite(values).all():
                raise InputError(f"calibration {name}: not finite for photo {_first_bad(values)}; leave that photo out")
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if len(self.scores) != len(self.map_maxima):
            raise InputError(
                f"calibration: {len(self.scores)} scores but {len(self.map_maxima)} maps; give both of each"
            )

    def __len__(self) -> int:
        """Count the photos, n."""
        return len(self.scores)

    def p_value(self, score: float) -> float:
        """Return the conformal p-value of an image score, in [1/(n+1), 1]; small means unlike the good photos."""
        if math.isnan(score):
            raise ValueError("a score that is not a number has no p-value")
        return float(1 + np.count_nonzero(self.scores >= np.float32(score))) / (len(self) + 1)

    def threshold(self, rate: float = DEFAULT_RATE) -> Threshold:
        """Return the image score from which on p ≤ ``rate``; see ``threshold_at``."""
        return threshold_at(self.scores, rate, self.method)

    def pixel_threshold(self, rate: float = DEFAULT_RATE) -> Threshold:
        """Return the map value that the map of a good picture reaches **anywhere** with probability ``rate`` at most.

        For drawing regions: calibrated on the maps' maxima as ``threshold`` is on the scores.
        """
        return threshold_at(self.map_maxima, rate, self.method)

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the values by name, to be stored beside ``method``; ``from_arrays`` reads them back."""
        return {"scores": self.scores, "map_maxima": self.map_maxima}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], method: Any) -> Self:
        """Rebuild from stored values. Raises ArtifactError where they make no calibration."""
        try:
            values = [np.asarray(arrays[name]) for name in ("scores", "map_maxima")]
            if not all(np.issubdtype(one.dtype, np.floating) and (np.abs(one) <= LARGEST).all() for one in values):
                raise ValueError(f"its values are not floats within ±{LARGEST:g}")
            return cls(values[0], values[1], method)
        except KeyError as error:
            raise ArtifactError(f"its calibration lacks {error.args[0]}; enroll the part anew") from error
        except (InputError, TypeError, ValueError) as error:
            raise ArtifactError(f"its calibration cannot be used ({error}); enroll the part anew") from error


def threshold_at(scores: NDArray[np.float32], rate: float, method: Method) -> Threshold:
    """Return the threshold for a false-alarm rate R = ``rate`` in (0, 1), from n scores of good pictures.

    Let m be the largest count of calibration scores ≥ s with (1 + m)/(n + 1) ≤ R. Then p(s) ≤ R is: at most m of them
    are ≥ s, which is: s lies above the (m + 1)-th largest, ties or not. As scores are float32, s lies above it where s
    reaches the next float32 after it: that is ``value``, so ``score >= value`` and p ≤ R are the same.

    Where n is too small (R < 1/(n + 1)) even s above all scores has p > R. Then ``value`` is the largest score plus
    the margin spread · ln(1/(R(n + 1))): what an exponential tail adds between the probabilities 1/(n + 1) and R, its
    scale the spread. The spread is the scores' standard deviation (n − 1 in the denominator), at least
    ``SMALLEST_SPREAD`` of the largest score's magnitude. The margin shrinks to nothing as n gets large enough.
    It is a guess at a tail nobody has seen: not guaranteed.
    """
    check_rate(rate)
    n = len(scores)
    largest = float(scores.max())
    allowed = np.count_nonzero((1 + np.arange(n)) / (n + 1) <= rate)  # m + 1; divided as p_value does, to agree in ties
    if allowed == 0:
        deviation = float(np.std(scores.astype(np.float64), ddof=1)) if n > 1 else 0.0
        spread = max(deviation, SMALLEST_SPREAD * abs(largest))
        margin = spread * math.log(1 / (rate * (n + 1)))
        return Threshold(largest + margin, rate, margin=margin, note=_too_few(n, rate, method))
    bound = np.sort(scores)[n - allowed]
    value = float(np.nextafter(bound, np.float32(np.inf)))
    return Threshold(value, rate, guaranteed=method == "held-out", note=_only_near(method))


def check_rate(rate: float) -> None:
    """Raise OptionError for a false-alarm rate outside (0, 1)."""
    if not 0 < rate < 1:
        raise OptionError(f"a false-alarm rate lies between 0 and 1, not {rate}; give one like {DEFAULT_RATE}")


def needed_photos(rate: float) -> int:
    """Return how many good photos are enough for a false-alarm rate: the smallest n with 1/(n + 1) ≤ ``rate``."""
    return math.ceil(1 / rate - 1e-9) - 1  # 1/rate may lie a rounding above a whole number


def _too_few(n: int, rate: float, method: Method) -> str:
    photos = "1 photo" if n == 1 else f"{n} photos"
    what = {
        "held-out": f"{photos} of good parts",
        "leave-one-out": f"{photos} of good parts, each against the others",
        "augmentations": f"{n} changed copies of one photo",
    }[method]
    return (
        f"calibrated on {what}, too few for a false-alarm rate of {rate:g}: the threshold is the largest of "
        f"their scores plus a margin, not guaranteed; {needed_photos(rate)} good photos would be enough"
    )


def _only_near(method: Method) -> str:
    if method == "held-out":
        return ""
    if method == "leave-one-out":
        return "calibrated on the references themselves: near the false-alarm rate, guaranteed only with further photos"
    return "calibrated on changed copies of one photo: the false-alarm rate is not guaranteed, give more photos"


def _first_bad(values: NDArray[np.float32]) -> int:
    return int(np.flatnonzero(~np.isfinite(values))[0]) + 1
