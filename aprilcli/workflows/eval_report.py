"""The report of an evaluation: the table, metrics.csv, metrics.json and scores.csv.

``metrics.csv``: ``object,shots,seed``, a column per measure of ``METRICS``, as fractions, empty if undefined; with a
calibration also ``far,tpr``; and ``method``. A row per object, shots, method and seed (empty for zero shots, where
nothing is drawn); then rows whose ``seed`` is ``mean`` and, for two seeds or more, ``deviation`` (sample standard
deviation). The object ``mean`` is the mean over objects per seed, followed by mean and deviation of these over seeds.

``scores.csv``: ``object,defect,path,label,shots,seed,text_score,map_max,score,status,error,method``, a row per image
and setting; label 1 is anomalous, ``path`` is relative to the data set.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.metrics import METRICS
from aprilcli.core.mutual_subsets import LARGEST
from aprilcli.defaults import APRIL_GAN, MUTUAL
from aprilcli.io.atomic import written_aside
from aprilcli.io.datasets import LabeledDataset
from aprilcli.options import EvalFusion, EvalOptions
from aprilcli.types import ModelSpec, Views
from aprilcli.workflows.eval_references import fusion_of
from aprilcli.workflows.eval_results import MEAN, SCORE_COLUMNS, Report, Result, count_defects
from aprilcli.workflows.eval_settings import Group

DEVIATION = "deviation"
FEW = 10  # test images of a kind, below which one image changes the measures by more than a few points


def write_scores_csv(path: Path, results: Iterable[Result]) -> None:
    """Write scores.csv. Raises OutputError."""
    _write_csv(path, SCORE_COLUMNS, (row.cells() for result in results for row in result.rows))


def write_metrics_csv(path: Path, report: Report) -> None:
    """Write metrics.csv. Raises OutputError."""
    _write_csv(
        path,
        ("object", "shots", "seed", *report.metrics, "method"),
        (line for group in report.groups for line in _lines(report, group)),
    )


def _lines(report: Report, group: Group) -> Iterable[list[str]]:
    means = report.seed_means(group)
    for summary in report.summaries(group):
        name = summary.object_name
        seeds = {r.setting: r.metrics for r in report.results_of(name, group)}
        if summary.category == MEAN and not seeds:
            seeds = means
        named = [("" if setting.seed is None else str(setting.seed), metrics) for setting, metrics in seeds.items()]
        named.append((MEAN, summary.mean))
        if len(seeds) > 1:
            named.append((DEVIATION, summary.deviation))
        for seed, metrics in named:
            values = ["" if math.isnan(metrics[metric]) else repr(metrics[metric]) for metric in report.metrics]
            yield [name, str(group.shots), seed, *values, group.method]


def _write_csv(path: Path, columns: Sequence[str], lines: Iterable[list[str]]) -> None:
    with (
        written_aside(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows(lines)


def captions(
    options: EvalOptions,
    dataset: LabeledDataset,
    spec: ModelSpec,
    views: Views,
    sources: Mapping[str, str],
    bank: MemoryBank | None,
) -> tuple[str, ...]:
    """Return the lines under the table; ``sources``: where the calibration images of each object come from.

    ``bank``: of the enrolled part that is measured.
    """
    size = max(views.sizes)
    pixels = f"at {size} x {size}" if views.tile is None else "at the size of the maps"
    several = f" at image size {views.label} (means over these)" if len(views) > 1 else ""
    fusion = {
        EvalFusion.sum: "text score + map maximum",
        EvalFusion.balanced: "text score + map maximum, distances of the stages scaled to equal means",
        EvalFusion.authors: "mean of text score and min-max scaled map maximum",
    }
    part = ""
    if bank is not None:
        part = f", part {options.part} with its {len(bank.sources)} references, {bank.object_name!r} in the prompts"
    names = options.method_names if bank is None else (bank.recipe.method,)
    scores = f"text score, with shots {fusion[fusion_of(options, bank)]}"
    if bank is not None and bank.choice is not None:
        scores = bank.choice.describe()
    if names != (APRIL_GAN,):
        scores = f"{APRIL_GAN}: {scores}; others: their own scores" if APRIL_GAN in names else "the methods' own scores"
    lines = [
        f"{dataset.root.resolve().name} ({dataset.layout}), model {spec.label}{several}{part}; in percent"
        + (", mean ± standard deviation over seeds" if options.seeds > 1 and bank is None else ""),
        f"pixels (segm) {pixels}, masks resized to it; images (cls): {scores}",
    ]
    if options.mutual:
        lines.append(
            f"{MUTUAL}: test images of an object score each other, in subsets of at most {LARGEST}; a score depends on "
            "the other images"
        )
    without = [item.name for item in dataset.objects if not any(i.label and i.mask_paths for i in item.test)]
    if without:
        lines.append(f"no masks, so no pixel measures: {', '.join(without)}")
    lines += _thin_sets(dataset)
    if options.is_calibrated:
        listed = "; ".join(f"{name} {source or 'no images, so no threshold'}" for name, source in sources.items())
        chosen = options.false_alarm_rate
        rate = "the lowest false-alarm rate that their number allows" if chosen is None else f"a rate of {chosen:g}"
        called, calibrated = "anomalous", "calibrated on good images that are neither tested nor references"
        if bank is not None:
            called, calibrated = "anomalous or unrecognised", "calibrated when the part was enrolled"
        lines.append(
            f"far and tpr: good and anomalous test images called {called}, at the threshold for "
            f"{rate}; {calibrated}: {listed}"
        )
    return tuple(lines)


def _thin_sets(dataset: LabeledDataset) -> Iterator[str]:
    """Yield a line on the objects with test images of one kind only, and one on those with few of a kind."""
    counts = {
        item.name: (sum(not i.label for i in item.test), sum(i.label for i in item.test)) for item in dataset.objects
    }
    one_kind = {name: "good" if not good else "anomalous" for name, (good, bad) in counts.items() if not (good and bad)}
    if one_kind:
        listed = ", ".join(f"{name} (no {kind} test images)" for name, kind in one_kind.items())
        yield f"undefined and not in the means: image measures of {listed}"
    few = [f"{name} ({good} good, {bad} anomalous)" for name, (good, bad) in counts.items() if 0 < min(good, bad) < FEW]
    if few:
        yield f"fewer than {FEW} test images of a kind, so the numbers are rough: {', '.join(few)}"


def describe_dataset(dataset: LabeledDataset, fingerprint: str) -> dict[str, Any]:
    """Return what was recognized; ``fingerprint``: SHA-256 over test images and masks, as ``train`` records it."""
    return {
        "root": str(dataset.root.resolve()),
        "layout": dataset.layout,
        "fingerprint": fingerprint,
        "objects": [
            {
                "name": item.name,
                "category": item.category,
                "good_train": len(item.train_good),
                "test_good": sum(not image.label for image in item.test),
                "test_anomalous": sum(image.label for image in item.test),
                "defects": count_defects(item),
                "masks": sum(bool(image.mask_paths) for image in item.test),
            }
            for item in dataset.objects
        ],
    }


def describe_report(report: Report) -> dict[str, Any]:
    """Return results and summaries for metrics.json, as fractions; None if undefined."""
    summaries = []
    for summary in itertools.chain.from_iterable(map(report.summaries, report.groups)):
        papers = {metric: report.paper_value(summary, metric) for metric in METRICS}
        compared = {metric: round(value[0] / 100, 5) for metric, value in papers.items() if value is not None}
        summaries.append(
            {
                "object": summary.object_name,
                **asdict(summary.group),
                "mean": _defined(summary.mean),
                "deviation": _defined(summary.deviation),
                **({"paper": compared} if compared else {}),
            }
        )
    return {
        "leakage": report.leakage,
        "captions": list(report.captions),
        "summaries": summaries,
        "results": [
            {
                "object": result.object_name,
                **asdict(result.setting),
                "references": list(result.references),
                "metrics": _defined(result.metrics),
                **({"threshold": _threshold(result)} if report.is_calibrated else {}),
            }
            for result in report.results
        ],
        **({"verdicts": list(_verdicts(report))} if report.is_calibrated else {}),
    }


def _threshold(result: Result) -> dict[str, Any] | None:
    return None if result.verdicts is None else asdict(result.verdicts.used.threshold)


def _verdicts(report: Report) -> Iterator[dict[str, Any]]:
    for result in report.results:
        if result.verdicts is not None:
            yield {"object": result.object_name, **asdict(result.setting), **result.verdicts.describe()}


def _defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
