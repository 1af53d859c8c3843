"""The time of all pixel metrics relative to a sort: run ``python tests/benchmarks/bench_metrics.py [--slow]``.

40 maps of 518 × 518, smooth like those of a model. The unit is one ``np.sort`` of all their pixels (float32), timed in
the same run. ``--slow`` adds scikit-learn's three pixel metrics. Exits with 1 if the metrics take longer than 4 sorts.
"""

import argparse
import sys
import time

import numpy as np
from scipy import ndimage

from aprilcli.core.metrics import PixelScores

IMAGES, SIDE, LIMIT = 40, 518, 4.0


def draw(rng, defects):
    """Return maps [40, 518, 518] float32 and masks: half the images have ``defects`` discs of radius 12 to 30."""
    maps = np.empty((IMAGES, SIDE, SIDE), np.float32)
    masks = np.zeros((IMAGES, SIDE, SIDE), bool)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for image in range(IMAGES):
        for _ in range(defects if image % 2 else 0):
            row, column = rng.integers(0, SIDE, 2)
            masks[image] |= (rows - row) ** 2 + (columns - column) ** 2 < rng.integers(12, 30) ** 2
        grid = ndimage.zoom(rng.normal(size=(37, 37)).astype(np.float32), SIDE / 37, order=1)
        maps[image] = grid + ndimage.gaussian_filter(masks[image].astype(np.float32), 6)
    return maps, masks


def measure(maps, masks):
    pixels = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.add(anomaly_map, mask if mask.any() else None)
    return pixels.metrics()


def sklearn_pixels(maps, masks):
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    labels, scores = masks.ravel(), maps.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    return roc_auc_score(labels, scores), f1, average_precision_score(labels, scores)


def seconds(function, *arguments, repeat=3):
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        function(*arguments)
        best = min(best, time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true")
    slow = parser.parse_args().slow
    worst = 0.0
    for defects in (3, 100):
        maps, masks = draw(np.random.default_rng(0), defects)
        sort = seconds(lambda pixels: np.sort(pixels), maps.ravel())
        ours = seconds(measure, maps, masks)
        worst = max(worst, ours / sort)
        print(
            f"{masks.mean():6.2%} anomalous: sort {sort:.2f} s, all metrics {ours:.2f} s, ratio {ours / sort:.2f}"
            f" (at most {LIMIT})"
        )
        if slow:
            theirs = seconds(sklearn_pixels, maps, masks, repeat=1)
            print(f"{'':17} scikit-learn's three {theirs:.2f} s, ratio {theirs / sort:.2f}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
