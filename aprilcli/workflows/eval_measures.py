"""The measures of an encoded object under each setting, with its maps and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import resizing
from aprilcli.core.calibration import default_rate, threshold_at
from aprilcli.core.decision import DecisionRule
from aprilcli.core.detector import Detector
from aprilcli.core.fusion import authors_scores
from aprilcli.core.metrics import PixelScores, image_metrics, roc_curve, vand
from aprilcli.defaults import APRIL_GAN, MUTUAL
from aprilcli.io.datasets import LabeledObject
from aprilcli.options import EvalFusion, EvalOptions
from aprilcli.types import Detection
from aprilcli.workflows.eval_encoding import EncodedObject
from aprilcli.workflows.eval_maps import MapFiles, inside
from aprilcli.workflows.eval_plots import Curves, plot_object
from aprilcli.workflows.eval_results import VERDICT_METRICS, Result, score_rows
from aprilcli.workflows.eval_settings import Setting
from aprilcli.workflows.eval_verdicts import RuleAt, Verdicts, count_verdicts

WriteMap = Callable[[int, NDArray[np.float32]], None]


def measure_object(
    options: EvalOptions,
    layout: str,
    item: LabeledObject,
    encoded: EncodedObject,
    detector: Detector,
    pool: ThreadPoolExecutor,
) -> list[Result]:
    """Measure every setting, several at a time; write the maps of one setting, and a plot, if asked to."""
    most_shots = max(setting.shots for setting in encoded.settings)
    mapped = next(setting for setting in encoded.settings if setting.shots == most_shots)  # first method and seed
    files = None
    if options.maps:
        description = {"model": detector.encoder.spec.label, **asdict(mapped)}
        images = [image.image for image in encoded.images]
        files = MapFiles(options.out, item.name, layout, images, description)

    def measure(setting: Setting) -> Result:
        write = files.write if files is not None and setting == mapped else None
        return _measure(options, item, encoded, setting, detector.views.sizes, write)

    results = list(pool.map(measure, encoded.settings))
    if options.plots:
        path = inside(options.out / "plots", f"{item.name}.png")
        plot_object(path, item.name, [result.curves for result in results if result.curves is not None])
    return [replace(result, curves=None) for result in results]


def _measure(
    options: EvalOptions,
    item: LabeledObject,
    encoded: EncodedObject,
    setting: Setting,
    sizes: Sequence[int],
    write_map: WriteMap | None,
) -> Result:
    """Fuse the evidence of each image, add its pixels, and keep its scores."""
    position = encoded.settings.index(setting)
    methods = encoded.methods[position]
    readable = [image for image in encoded.images if image.error is None]
    has_masks = any(image.has_pixels and image.image.label for image in readable)
    pixels, detections = PixelScores(), list[Detection]()
    for number, image in enumerate(encoded.images):
        detection = image.detect(position, methods, sizes)
        if detection is None:
            continue
        detections.append(replace(detection, anomaly_map=None))
        if detection.anomaly_map is None:
            continue
        if has_masks and image.has_pixels:
            pixels.add(detection.anomaly_map, image.mask)
        if write_map is not None:
            source = resizing.resize_map(torch.from_numpy(detection.anomaly_map), image.size_hw)
            write_map(number, source.numpy())
    labels = [image.image.label for image in readable]
    scores = [detection.score for detection in detections]
    if options.fusion == EvalFusion.authors and setting.shots and setting.method == APRIL_GAN:
        scores = authors_scores(detections)
    if setting.method == MUTUAL and encoded.mutual is not None:
        scores = encoded.mutual.smoothed(detections)
    measured = {**pixels.metrics(), **image_metrics(labels, scores)}
    measured["vand"] = vand(measured["f1max_cls"], measured["f1max_segm"])
    verdicts = None
    if options.is_calibrated:
        rule_at = _rule(encoded, position, sizes)
        verdicts = None if rule_at is None else count_verdicts(labels, detections, rule_at, options.false_alarm_rate)
        measured |= _verdict_metrics(verdicts)
    curves = None
    if options.plots and setting.seed in (None, options.seed):
        name = f"{setting.shots}-shot" + ("" if setting.seed is None else f", seed {setting.seed}")
        name += "" if setting.method == APRIL_GAN else f", {setting.method}"
        image_roc = roc_curve(labels, scores)
        curves = Curves(name, measured, image_roc, pixels.roc_curve(), pixels.pro_curve(), labels, scores)
    return Result(
        object_name=item.name,
        category=item.category,
        setting=setting,
        references=encoded.references[position],
        metrics=measured,
        rows=score_rows(item.name, setting, encoded.images, detections, scores),
        verdicts=verdicts,
        curves=curves,
    )


def _rule(encoded: EncodedObject, setting: int, sizes: Sequence[int]) -> RuleAt | None:
    """Return the rule of an enrolled part, or one from the scores of the calibration images; None without images."""
    if encoded.part is not None:
        return partial(DecisionRule.at_rate, encoded.part.calibration)
    if encoded.settings[setting].method == MUTUAL:  # scores of images that are compared with each other only
        return None
    detections = [image.detect(setting, encoded.methods[setting], sizes) for image in encoded.calibration]
    scores = np.array([detection.score for detection in detections if detection is not None], np.float32)
    if not len(scores):
        return None

    def rule_at(rate: float | None) -> DecisionRule:
        threshold = threshold_at(scores, default_rate(len(scores)) if rate is None else rate, "held-out")
        return DecisionRule(None, threshold, None)

    return rule_at


def _verdict_metrics(verdicts: Verdicts | None) -> dict[str, float]:
    """Return the shares of good (far) and of anomalous images (tpr) that are called so; nan if undefined."""
    if verdicts is None:
        return dict.fromkeys(VERDICT_METRICS, np.nan)
    called = ((verdicts.used.false_alarms, verdicts.good), (verdicts.used.caught, verdicts.defects))
    shares = (count / images if images else np.nan for count, images in called)
    return dict(zip(VERDICT_METRICS, shares, strict=True))
