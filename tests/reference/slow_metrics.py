"""Metrics as slow loops written from the definitions, to test the fast ones; maps and masks are lists of [H, W]."""

from collections import deque
from itertools import pairwise

import numpy as np


def confusion(labels, scores, threshold):
    """Return (tp, fp) if scores >= threshold are called anomalous."""
    tp = sum(1 for label, score in zip(labels, scores, strict=True) if label and score >= threshold)
    fp = sum(1 for label, score in zip(labels, scores, strict=True) if not label and score >= threshold)
    return tp, fp


def f1_max(labels, scores):
    best = 0.0
    for threshold in sorted(set(scores)):
        tp, fp = confusion(labels, scores, threshold)
        best = max(best, 2 * tp / (tp + fp + sum(labels)))
    return best


def average_precision(labels, scores):
    total, last_recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        tp, fp = confusion(labels, scores, threshold)
        total += (tp / sum(labels) - last_recall) * tp / (tp + fp)
        last_recall = tp / sum(labels)
    return total


def auroc(labels, scores):
    """Return the probability that an anomalous element has a higher score than a normal one; a tie counts one half."""
    anomalous = [score for score, label in zip(scores, labels, strict=True) if label]
    normal = [score for score, label in zip(scores, labels, strict=True) if not label]
    wins = sum(1.0 if a > n else 0.5 if a == n else 0.0 for a in anomalous for n in normal)
    return wins / (len(anomalous) * len(normal))


def regions(mask):
    """Return the 8-connected regions of a mask as lists of (row, column)."""
    remaining = {(int(i), int(j)) for i, j in np.argwhere(mask)}
    found = []
    while remaining:
        queue, region = deque([remaining.pop()]), []
        while queue:
            i, j = queue.popleft()
            region.append((i, j))
            for neighbor in [(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]:
                if neighbor in remaining:
                    remaining.remove(neighbor)
                    queue.append(neighbor)
        found.append(region)
    return found


def overlap_and_fpr(maps, masks, is_positive):
    overlaps = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        for region in regions(mask):
            overlaps.append(sum(bool(is_positive(anomaly_map[pixel])) for pixel in region) / len(region))
    normal = np.concatenate([m[k == 0] for m, k in zip(maps, masks, strict=True)])
    return float(np.mean(overlaps)), sum(bool(is_positive(score)) for score in normal) / len(normal)


def pro(maps, masks, steps=200, limit=0.3):
    """Return the paper's PRO: equally spaced thresholds, pixels strictly above, rescaled FPR; nan for a single FPR."""
    low, high = min(m.min() for m in maps), max(m.max() for m in maps)
    delta = (high - low) / steps
    if low + delta == low:
        return float("nan")
    points = []
    for threshold in np.arange(low, high, delta)[:steps]:
        overlap, fpr = overlap_and_fpr(maps, masks, lambda score, t=threshold: score > t)
        if fpr < limit:
            points.append((fpr, overlap))
    fprs = [fpr for fpr, _ in points]
    if not points or min(fprs) == max(fprs):
        return float("nan")
    points = [((fpr - min(fprs)) / (max(fprs) - min(fprs)), overlap) for fpr, overlap in reversed(points)]
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))


def aupro(maps, masks, limit=0.3):
    """Return the area under (FPR, overlap) over all thresholds up to the limit, interpolated there, over the limit."""
    curve = [(0.0, 0.0)]
    for threshold in sorted({float(score) for m in maps for score in m.ravel()}, reverse=True):
        overlap, fpr = overlap_and_fpr(maps, masks, lambda score, t=threshold: score >= t)
        curve.append((fpr, overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 > limit:
            if x0 < limit:
                y_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
                area += (limit - x0) * (y0 + y_limit) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit
