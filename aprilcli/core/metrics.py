"""Exact metrics of anomaly detection over pixels and over images: AUROC, F1-max, AP and PRO.

Every metric except the 200-threshold PRO is a sum (or maximum) over the *anomalous* elements only. With P anomalous and
N normal elements and, for an anomalous score ``s``, tp = number of anomalous scores >= s, fp = number of normal scores
>= s, above = number of normal scores > s:

    AUROC  = mean of 1 - (fp + above) / 2N       a tie counts one half, as the ROC curve interpolates linearly
    AP     = mean of tp / (tp + fp)              precision, summed over the steps of recall
    F1-max = max of 2 tp / (tp + fp + P)         at any other threshold F1 is lower
    AUPRO  = sum of share · (area below the FPR limit that this pixel adds); shares are 1 / (region size · regions)

Normal and anomalous elements are therefore sorted separately, once, and the counts are binary searches. Scores are not
binned. An undefined metric is ``nan``, as each function states, never 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from aprilcli.errors import InputError

PIXEL_METRICS = ("auroc_segm", "f1max_segm", "ap_segm", "pro_segm", "aupro_30")
IMAGE_METRICS = ("auroc_cls", "f1max_cls", "ap_cls")
METRICS = (*PIXEL_METRICS, *IMAGE_METRICS, "vand")  # in the order of the paper's tables, then the challenge's summary

FPR_LIMIT = 0.3  # fraction of normal pixels, of both PRO metrics
PRO_STEPS = 200  # thresholds of the paper's PRO
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)  # as in the authors' program and in MVTec's evaluator
_BLOCK = 1 << 16  # anomalous elements processed at a time, which limits the working memory to a few MB

Scores = NDArray[np.floating[Any]]
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve, in [0, 1]; nan unless both labels occur.

    ``labels``: 0 (normal) or 1 (anomalous); ``scores``: the same number, finite, higher is more anomalous. Raises
    InputError for NaN, infinity, other labels and different numbers, as all functions of labels and scores here do.
    """
    return _rank_metrics(*_split(labels, scores))[0]


def f1_max(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the best F1 over all thresholds, in [0, 1]; nan unless both labels occur: it would be 1 for any scores."""
    return _rank_metrics(*_split(labels, scores))[1]


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the sum of (recall_n - recall_{n-1}) · precision_n, in [0, 1]; nan unless both labels occur, as F1."""
    return _rank_metrics(*_split(labels, scores))[2]


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """Return ``IMAGE_METRICS`` of one object's images: ``auroc``, ``f1_max`` and ``average_precision``."""
    return dict(zip(IMAGE_METRICS, _rank_metrics(*_split(labels, scores)), strict=True))


def vand(f1max_cls: float, f1max_segm: float) -> float:
    """Return the VAND challenge's summary of an object: the harmonic mean of its two F1-max; nan if either is nan."""
    total = f1max_cls + f1max_segm
    return 0.0 if total == 0 else 2 * f1max_cls * f1max_segm / total


def mean_metrics(objects: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each metric's mean over the objects for which it is defined (present and not nan), or nan if for none."""
    names = dict.fromkeys(name for metrics in objects for name in metrics)
    means = {}
    for name in names:
        values = [metrics[name] for metrics in objects if name in metrics and not math.isnan(metrics[name])]
        means[name] = math.fsum(values) / len(values) if values else math.nan
    return means


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Curve:
    """Return (fpr, tpr), float64, from (0, 0) to (1, 1), one point per distinct score; nan if a label is missing."""
    anomalous, normal = _split(labels, scores)
    thresholds = np.unique(np.concatenate([anomalous, normal]))
    return _fraction_at_least(normal, thresholds), _fraction_at_least(anomalous, thresholds)


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> Curve:
    """Return (recall, precision), float64, one point per distinct score, highest first; nan if a label is missing."""
    anomalous, normal = _split(labels, scores)
    thresholds = np.unique(np.concatenate([anomalous, normal]))
    recall = _fraction_at_least(anomalous, thresholds)[1:]  # without the point of no image, which has no precision
    tp, fp = recall * len(anomalous), _fraction_at_least(normal, thresholds)[1:] * len(normal)
    return recall, tp / (tp + fp)


class PixelScores:
    """All pixels of one object's anomaly maps, added image by image, and their exact metrics.

    Memory: 4 bytes per normal and 8 per anomalous pixel, 8 and 32 while they are concatenated and sorted, plus a few MB
    for any number of pixels. Time: about that of one ``np.sort`` of all pixels.
    """

    def __init__(self) -> None:
        """Start without pixels."""
        self._normal: list[NDArray[np.float32]] = []  # chunks, which _sort concatenates and sorts
        self._anomalous: list[NDArray[np.float32]] = []
        self._region: list[NDArray[np.uint32]] = []  # the region of each anomalous pixel
        self._region_sizes: list[NDArray[np.int64]] = []
        self._region_count = 0
        self._is_sorted = False

    def add(self, anomaly_map: NDArray[np.floating[Any]], mask: NDArray[Any] | None = None) -> None:
        """Add an image.

        ``anomaly_map``: [H, W] float32 (or float16), finite, higher is more anomalous; sizes may differ by image.
        ``mask``: [H, W], anomalous where > 0; None means that every pixel is normal. The arrays are not kept.
        Raises InputError for other dtypes and shapes, NaN and infinity.
        """
        if anomaly_map.ndim != 2 or not np.can_cast(anomaly_map.dtype, np.float32):
            found = f"{anomaly_map.dtype} {list(anomaly_map.shape)}"
            raise InputError(f"the anomaly map is {found}, not float32 [H, W]; convert it first")
        if not np.isfinite(anomaly_map).all():
            raise InputError(
                "the anomaly map contains NaN or infinity, which cannot be ranked; check the model that computed it"
            )
        scores = anomaly_map.astype(np.float32)
        self._is_sorted = False
        if mask is None:
            self._normal.append(scores.ravel())
            return
        if mask.shape != scores.shape:
            raise InputError(
                f"mask {list(mask.shape)} does not match map {list(scores.shape)}; resize the mask or the map"
            )
        regions, count = ndimage.label(mask > 0, structure=_EIGHT_CONNECTED)
        anomalous = regions > 0
        region = regions[anomalous] - 1
        self._normal.append(scores[~anomalous])
        self._anomalous.append(scores[anomalous])
        self._region.append((region + self._region_count).astype(np.uint32))
        self._region_sizes.append(np.bincount(region, minlength=count))
        self._region_count += count

    def metrics(self) -> dict[str, float]:
        """Return ``PIXEL_METRICS``, each in [0, 1].

        nan: all of them unless there are anomalous and normal pixels; ``pro_segm`` also if its thresholds give only one
        FPR below the limit, for example for a constant map, because the area is divided by the range of the FPR.

        ``pro_segm`` is the paper's: 200 equally spaced thresholds from the smallest score towards the largest, pixels
        strictly above, overlap averaged over regions, FPR < 0.3 rescaled to [0, 1] by its range, trapezoidal rule.
        ``aupro_30`` is the exact area under (FPR, overlap) over all thresholds, up to an FPR of 0.3, divided by 0.3.
        """
        self._sort()
        anomalous, normal = self._anomalous[0], self._normal[0]
        ranks = _rank_metrics(anomalous, normal)
        pros = (self._pro(), self._aupro()) if len(anomalous) and len(normal) else (math.nan, math.nan)
        return dict(zip(PIXEL_METRICS, (*ranks, *pros), strict=True))

    def roc_curve(self, points: int = 500) -> Curve:
        """Return (fpr, tpr) for a plot: exact points from (0, 0) to (1, 1), at most 2 · ``points`` + 1 of them."""
        thresholds = self._plot_thresholds(points)
        return _fraction_at_least(self._normal[0], thresholds), _fraction_at_least(self._anomalous[0], thresholds)

    def pro_curve(self, points: int = 500) -> Curve:
        """Return (fpr, overlap averaged over regions) for a plot, as ``roc_curve``; nan if undefined."""
        thresholds = self._plot_thresholds(points)
        fpr = _fraction_at_least(self._normal[0], thresholds)
        if not self._region_count:
            return fpr, np.full_like(fpr, np.nan)
        return fpr, np.append(0.0, self._overlap(thresholds, "right")[::-1])

    def _sort(self) -> None:
        """Concatenate and sort the pixels; afterwards each list contains one ascending array."""
        if self._is_sorted:
            return
        normal = np.concatenate([np.empty(0, np.float32), *self._normal])
        normal.sort()
        anomalous = np.concatenate([np.empty(0, np.float32), *self._anomalous])
        region = np.concatenate([np.empty(0, np.uint32), *self._region])
        order = np.argsort(anomalous)
        self._normal, self._anomalous, self._region = [normal], [anomalous[order]], [region[order]]
        self._is_sorted = True

    def _plot_thresholds(self, points: int) -> NDArray[np.float32]:
        """Return scores at evenly spaced ranks among the normal and among the anomalous pixels, ascending, distinct."""
        self._sort()
        sides = [side for side in (self._normal[0], self._anomalous[0]) if len(side)]
        ranks = [side[np.linspace(0, len(side) - 1, points).astype(np.intp)] for side in sides]
        return np.unique(np.concatenate([np.empty(0, np.float32), *ranks]))

    def _blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
        """Yield the anomalous scores, ascending, each with its share of the mean overlap; the shares sum to 1."""
        shares = 1 / (np.concatenate(self._region_sizes) * float(self._region_count))
        for start in range(0, len(self._anomalous[0]), _BLOCK):
            block = slice(start, start + _BLOCK)
            yield self._anomalous[0][block], shares[self._region[0][block]]

    def _overlap(self, thresholds: NDArray[np.float32], side: Literal["left", "right"]) -> NDArray[np.float64]:
        """Return the mean over regions of the fraction of pixels > (left) or >= (right) each ascending threshold."""
        gained = np.zeros(len(thresholds) + 1)  # at k: by the pixels that pass exactly the first k thresholds
        for scores, shares in self._blocks():
            gained += np.bincount(np.searchsorted(thresholds, scores, side), shares, minlength=len(gained))
        return gained[:0:-1].cumsum()[::-1]

    def _pro(self) -> float:
        anomalous, normal = self._anomalous[0], self._normal[0]
        low, high = min(anomalous[0], normal[0]), max(anomalous[-1], normal[-1])
        # In float32, with the step as rounded by adding it to the smallest score, as in the paper's program.
        step = (low + (high - low) / np.float32(PRO_STEPS)) - low
        thresholds = low + np.arange(PRO_STEPS, dtype=np.float32) * step
        fpr = (len(normal) - np.searchsorted(normal, thresholds, "right")) / len(normal)
        below = fpr < FPR_LIMIT  # thresholds ascend, so FPR descends
        fpr, overlap = fpr[below][::-1], self._overlap(thresholds, "left")[below][::-1]
        if not len(fpr) or fpr[0] == fpr[-1]:
            return math.nan
        return float(np.diff(fpr) @ (overlap[1:] + overlap[:-1])) / (2 * float(fpr[-1] - fpr[0]))

    def _aupro(self) -> float:
        """Add up what each pixel gains: its share, reached linearly between the FPRs ``above`` and ``fp``."""
        normal = self._normal[0]
        area = []
        for scores, shares in self._blocks():
            above = 1 - np.searchsorted(normal, scores, "right") / len(normal)
            fp = 1 - np.searchsorted(normal, scores, "left") / len(normal)
            rise = np.clip(np.minimum(fp, FPR_LIMIT) - above, 0, None)
            gain = np.maximum(FPR_LIMIT - fp, 0) + rise**2 / (2 * np.where(fp > above, fp - above, 1))
            area.append(float(shares @ gain))
        return math.fsum(area) / FPR_LIMIT


def _split(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check labels and scores; return anomalous and normal scores, each ascending."""
    is_anomalous, ranked = np.asarray(labels).ravel(), np.asarray(scores, dtype=np.float64).ravel()
    if is_anomalous.shape != ranked.shape:
        raise InputError(f"{is_anomalous.size} labels for {ranked.size} scores; pass one label and one score per image")
    if not np.isin(is_anomalous, (0, 1)).all():
        raise InputError("labels other than 0 (normal) and 1 (anomalous); use only these")
    if not np.isfinite(ranked).all():
        raise InputError(
            "the scores contain NaN or infinity, which cannot be ranked; check the model that computed them"
        )
    is_anomalous = is_anomalous.astype(bool)
    return np.sort(ranked[is_anomalous]), np.sort(ranked[~is_anomalous])


def _rank_metrics(anomalous: Scores, normal: Scores) -> tuple[float, float, float]:
    """Return AUROC, F1-max and AP of ascending scores of one dtype, by the sums in the module's docstring."""
    p, n = len(anomalous), len(normal)
    if not p or not n:
        return math.nan, math.nan, math.nan
    wins, f1, precisions = 0, 0.0, []  # wins: 2 per pair in which the anomalous score is higher, 1 per tie
    for start in range(0, p, _BLOCK):
        scores = anomalous[start : start + _BLOCK]
        tp = p - np.searchsorted(anomalous, scores, "left")
        below, not_above = np.searchsorted(normal, scores, "left"), np.searchsorted(normal, scores, "right")
        fp = n - below
        wins += int(below.sum()) + int(not_above.sum())
        f1 = max(f1, float((2 * tp / (tp + fp + p)).max()))
        precisions.append(float((tp / (tp + fp)).sum()))
    return wins / (2 * n * p), f1, math.fsum(precisions) / p


def _fraction_at_least(ascending: Scores, thresholds: Scores) -> NDArray[np.float64]:
    """Return 0 and then the fraction of scores >= each threshold, highest threshold first; nan without scores."""
    if not len(ascending):
        return np.full(len(thresholds) + 1, np.nan)
    return np.append(0, (len(ascending) - np.searchsorted(ascending, thresholds))[::-1]) / len(ascending)
