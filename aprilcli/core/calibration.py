"""Conformal p-values and thresholds, calibrated on the scores of good images; no defects are needed.

With n calibration scores c_1 … c_n of good images, an image with the score s has the conformal p-value

    p(s) = (1 + #{i : c_i ≥ s}) / (n + 1)

(Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005; for outliers: Bates, Candès, Lei, Romano, Sesia:
Testing for outliers with conformal p-values, 2023). If a good image and the calibration images are exchangeable, then
P(p ≤ R) ≤ R for every R, for any distribution of the scores and for any n: calling p ≤ R anomalous causes false alarms
at a rate of at most R. The rate is an average over calibrations; that of a single calibration scatters around it.

Whether the images are exchangeable depends on the source of the scores:

- ``held-out``: other good images, scored against the finished bank as ``scan`` does. Exchangeable, hence guaranteed.
- ``leave-one-out``: each reference image against the bank without it. Not exactly exchangeable: a reference image is
  compared with K − 1 images and a new image with all K, and the scores depend on each other. Removing an image from the
  bank can only increase distances, so the scores tend to be too high, which means fewer false alarms; the effect
  shrinks as K grows. There is no proof of this, as there is none for the jackknife (Barber, Candès, Ramdas, Tibshirani:
  Predictive inference with the jackknife+, 2021).
- ``augmentations``: slightly changed copies of the only reference image, against that image. Far from exchangeable,
  because real parts differ more. A stopgap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aprilcli.core.threshold import Threshold
from aprilcli.defaults import FALSE_ALARM_RATE
from aprilcli.errors import ArtifactError, InputError, OptionError

CalibrationMethod = Literal["held-out", "leave-one-out", "augmentations"]
DEFAULT_RATES = (FALSE_ALARM_RATE, 0.02, 0.05, 0.1)  # a higher rate than the last is hardly useful
SAME_SURFACE = 0.01  # a distance that few good images, which hardly differ, do not make suspicious
STRICTNESS = 10  # of the threshold for distances, compared with that for scores
LARGEST = 1e6  # far above any score or map value; thresholds computed from the largest float32 values would overflow
SMALLEST_SPREAD = 0.05  # relative to the largest score; a few scores may be close together by chance


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of good images, kept with the bank they were measured against.

    ``scores`` [n]: image scores; ``map_maxima`` [n]: maxima of the anomaly maps; ``distances`` [m]: of each good image
    of the part to the others (see ``core/recognition.py``), None in banks of earlier versions. All are copied to
    read-only float32 arrays. Raises InputError if they are empty, not finite or of different lengths.
    """

    scores: NDArray[np.float32]
    map_maxima: NDArray[np.float32]
    method: CalibrationMethod
    distances: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check the values and make read-only copies."""
        if self.method not in get_args(CalibrationMethod):
            raise ValueError(f"method {self.method!r} is none of {get_args(CalibrationMethod)}")
        for name in self.to_arrays():
            values = np.array(getattr(self, name), dtype=np.float32)
            if values.ndim != 1 or len(values) == 0:
                raise InputError(f"calibration {name}: expected a list of numbers, one per good image; add good images")
            if not np.isfinite(values).all():
                raise InputError(
                    f"calibration {name}: not finite for image {_first_not_finite(values)}; remove that image"
                )
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if len(self.scores) != len(self.map_maxima):
            raise InputError(
                f"calibration: {len(self.scores)} scores but {len(self.map_maxima)} maps; pass one per image"
            )

    def __len__(self) -> int:
        """Return the number of images, n."""
        return len(self.scores)

    def p_value(self, score: float) -> float:
        """Return the conformal p-value of an image score, in [1/(n+1), 1]; small means unlike the good images."""
        if math.isnan(score):
            raise ValueError("NaN has no p-value")
        return float(1 + np.count_nonzero(self.scores >= np.float32(score))) / (len(self) + 1)

    @property
    def default_rate(self) -> float:
        """The false-alarm rate where none is chosen."""
        return default_rate(len(self))

    def threshold(self, rate: float = FALSE_ALARM_RATE) -> Threshold:
        """Return the image score at and above which p ≤ ``rate``; see ``threshold_at``."""
        return threshold_at(self.scores, rate, self.method)

    def pixel_threshold(self, rate: float = FALSE_ALARM_RATE) -> Threshold:
        """Return the map value that a good image's map reaches **anywhere** with a probability of at most ``rate``.

        For drawing regions. It is calibrated on the maxima of the maps, as ``threshold`` is on the scores.
        """
        return threshold_at(self.map_maxima, rate, self.method)

    def recognition_threshold(self, rate: float = FALSE_ALARM_RATE) -> Threshold | None:
        """Return the distance from which on an image does not show the part; None without ``distances``.

        As for scores, at a rate ``STRICTNESS`` times stricter. With too few good images for that, at least 3 times the
        largest of n distances (24/n times for n < 8): on five sets of photographs, other materials and made frames
        (noise, blur, darkness) lay mostly beyond that, good images seldom.
        """
        if self.distances is None:
            return None
        threshold = threshold_at(self.distances, rate / STRICTNESS, "leave-one-out")
        largest = float(self.distances.max())
        if threshold.margin:
            value = max(threshold.value, max(3, 24 / len(self.distances)) * largest, SAME_SURFACE)
            threshold = replace(threshold, value=value, margin=value - largest)
        return replace(threshold, note="")

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the values by name, to be stored with ``method``; ``from_arrays`` reads them."""
        arrays = {"scores": self.scores, "map_maxima": self.map_maxima}
        return arrays if self.distances is None else {**arrays, "distances": self.distances}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], method: Any) -> Self:
        """Build from stored values. Raises ArtifactError if they are not a valid calibration."""
        try:
            names = ("scores", "map_maxima", *(name for name in arrays if name == "distances"))
            values = {name: np.asarray(arrays[name]) for name in names}
            if not all(np.issubdtype(v.dtype, np.floating) and (np.abs(v) <= LARGEST).all() for v in values.values()):
                raise ValueError(f"its values are not floats within ±{LARGEST:g}")
            return cls(**values, method=method)
        except KeyError as error:
            raise ArtifactError(f"its calibration lacks {error.args[0]}; enroll the part again") from error
        except (InputError, TypeError, ValueError) as error:
            raise ArtifactError(f"its calibration cannot be used ({error}); enroll the part again") from error


def threshold_at(scores: NDArray[np.float32], rate: float, method: CalibrationMethod) -> Threshold:
    """Return the threshold for a false-alarm rate R = ``rate`` in (0, 1), from n scores of good images.

    Let m be the largest integer with (1 + m)/(n + 1) ≤ R. Then p(s) ≤ R if and only if at most m calibration scores are
    ≥ s, that is, if s is greater than the (m + 1)-th largest of them, with or without ties. Scores are float32, so the
    smallest such s is the next float32 after it. That is ``value``: ``score >= value`` is equivalent to p ≤ R.

    If n is too small (R < 1/(n + 1)), even an s above all scores has p > R. Then ``value`` is the largest score plus a
    margin of spread · ln(1/(R(n + 1))), the distance over which an exponential tail with the scale ``spread`` falls
    from the probability 1/(n + 1) to R. The spread is the standard deviation of the scores (n − 1 in the denominator),
    but at least ``SMALLEST_SPREAD`` times the magnitude of the largest score. The margin approaches 0 as n approaches
    the number that is enough. It extrapolates a tail without data, so it is not guaranteed.
    """
    check_rate(rate)
    n = len(scores)
    largest = float(scores.max())
    allowed = np.count_nonzero((1 + np.arange(n)) / (n + 1) <= rate)  # m + 1; the same division as in p_value
    if allowed == 0:
        deviation = float(np.std(scores.astype(np.float64), ddof=1)) if n > 1 else 0.0
        spread = max(deviation, SMALLEST_SPREAD * abs(largest))
        margin = spread * math.log(1 / (rate * (n + 1)))
        return Threshold(largest + margin, rate, margin=margin, note=_too_few(n, rate, method))
    bound = np.sort(scores)[n - allowed]
    value = float(np.nextafter(bound, np.float32(np.inf)))
    return Threshold(value, rate, guaranteed=method == "held-out", note=_not_guaranteed(method))


def default_rate(count: int) -> float:
    """Return the lowest of ``DEFAULT_RATES`` that a number of good images is enough for; for too few, the last."""
    return next((rate for rate in DEFAULT_RATES if needed_images(rate) <= count), DEFAULT_RATES[-1])


def check_rate(rate: float | None) -> None:
    """Raise OptionError for a false-alarm rate outside (0, 1); None is the default rate."""
    if rate is not None and not 0 < rate < 1:
        raise OptionError(
            f"the false-alarm rate must lie between 0 and 1, not {rate}; use a value such as {FALSE_ALARM_RATE}"
        )


def needed_images(rate: float) -> int:
    """Return how many good images are enough for a false-alarm rate: the smallest n with 1/(n + 1) ≤ ``rate``."""
    return math.ceil(1 / rate - 1e-9) - 1  # rounding may put 1/rate just above an integer


def _too_few(n: int, rate: float, method: CalibrationMethod) -> str:
    images = "1 good image" if n == 1 else f"{n} good images"
    what = {
        "held-out": images,
        "leave-one-out": f"{images}, each compared with the others",
        "augmentations": f"{n} changed copies of one image",
    }[method]
    return (
        f"calibrated on {what}, too few for a false-alarm rate of {rate:g}: the threshold is the largest of "
        f"their scores plus a margin and is not guaranteed; {needed_images(rate)} good images would be enough"
    )


def _not_guaranteed(method: CalibrationMethod) -> str:
    if method == "held-out":
        return ""
    if method == "leave-one-out":
        return (
            "calibrated on the reference images: the false-alarm rate is approximate; only further images guarantee it"
        )
    return "calibrated on changed copies of one image: the false-alarm rate is not guaranteed, add more images"


def _first_not_finite(values: NDArray[np.float32]) -> int:
    return int(np.flatnonzero(~np.isfinite(values))[0]) + 1
