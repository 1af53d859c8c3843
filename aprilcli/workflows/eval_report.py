"""What was measured, summed up: the table, metrics.csv, metrics.json and scores.csv.

``metrics.csv``: ``object,shots,seed`` and a column per measure of ``METRICS``, as fractions, empty where undefined. A
row per object, shots and seed (empty for zero shots, where nothing is drawn); then rows whose ``seed`` is ``mean`` and,
of two seeds or more, ``deviation`` (the sample's standard deviation). The object ``mean`` is the mean over objects, per
seed, and of these again the mean and deviation over seeds.

``scores.csv``: ``object,defect,path,label,shots,seed,text_score,map_max,score,status,error``, a row per picture and
setting; label 1 is anomalous, ``path`` is relative to the data set.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
import rich.console
from rich.table import Table
from rich.text import Text

from aprilcli.core.metrics import METRICS, mean_metrics
from aprilcli.io import paper_tables
from aprilcli.io.atomic import written_aside
from aprilcli.io.datasets import LabelledDataset, LabelledObject
from aprilcli.text import printable
from aprilcli.types import Detection
from aprilcli.workflows.eval_encoding import Setting, TestImage
from aprilcli.workflows.eval_plots import Curves

MEAN, DEVIATION = "mean", "deviation"
UNDEFINED = "-"
SCORE_COLUMNS = (
    *("object", "defect", "path", "label", "shots", "seed"),
    *("text_score", "map_max", "score", "status", "error"),
)
WIDEST = 1000  # characters: the table is never cut


@dataclass(frozen=True)
class ScoreRow:
    """One picture's scores under one setting; None where ``error`` says why, or where there is no map."""

    object_name: str
    defect: str
    path: str
    label: int
    setting: Setting
    text_score: float | None = None
    map_max: float | None = None
    score: float | None = None
    error: str | None = None

    def cells(self) -> list[str]:
        """Return the line of ``SCORE_COLUMNS``; numbers are the shortest that give the same float32."""
        numbers = (
            "" if value is None else str(np.float32(value)) for value in (self.text_score, self.map_max, self.score)
        )
        seed = "" if self.setting.seed is None else str(self.setting.seed)
        where = [self.object_name, self.defect, self.path, str(self.label), str(self.setting.shots), seed]
        return [*where, *numbers, "error" if self.error else "ok", self.error or ""]


@dataclass(frozen=True)
class Result:
    """One object under one setting; ``metrics``: ``METRICS`` in [0, 1] or nan; ``references``: the photos drawn."""

    object_name: str
    category: str
    setting: Setting
    references: tuple[str, ...]
    metrics: dict[str, float]
    rows: tuple[ScoreRow, ...] = field(repr=False)
    curves: Curves | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Summary:
    """An object's (or all objects') mean over seeds and, of two or more, the sample's standard deviation."""

    object_name: str
    category: str
    shots: int
    mean: dict[str, float]
    deviation: dict[str, float]


@dataclass(frozen=True)
class Report:
    """Everything measured. ``paper``: the data set of the paper to compare with; ``leakage``: a warning, or None."""

    results: tuple[Result, ...]
    captions: tuple[str, ...]
    leakage: str | None = None
    paper: str | None = None

    @property
    def shots(self) -> list[int]:
        """The numbers of shots, ascending."""
        return sorted({result.setting.shots for result in self.results})

    @property
    def objects(self) -> dict[str, str]:
        """Each object's name with its category, in order."""
        return {result.object_name: result.category for result in self.results}

    def seed_means(self, shots: int) -> dict[Setting, dict[str, float]]:
        """Return the mean over objects, per seed."""
        settings = dict.fromkeys(result.setting for result in self.results if result.setting.shots == shots)
        return {one: mean_metrics([r.metrics for r in self.results if r.setting == one]) for one in settings}

    def summaries(self, shots: int) -> list[Summary]:
        """Return each object's summary, and last that of the mean over objects."""
        found = [
            _summarise(name, category, shots, [r.metrics for r in self._of(name, shots)])
            for name, category in self.objects.items()
        ]
        return [*found, _summarise(MEAN, MEAN, shots, list(self.seed_means(shots).values()))]

    def _of(self, name: str, shots: int) -> list[Result]:
        return [r for r in self.results if r.object_name == name and r.setting.shots == shots]

    def paper_value(self, summary: Summary, metric: str) -> tuple[float, float | None] | None:
        """Return the paper's mean and deviation in percent; its mean over objects only beside that of all of them."""
        if self.paper is None:
            return None
        is_whole = set(self.objects.values()) == set(paper_tables.paper_objects(self.paper))
        if summary.object_name == MEAN and not is_whole:
            return None
        return paper_tables.paper_value(self.paper, summary.shots, summary.category, metric)


def _summarise(name: str, category: str, shots: int, metrics: Sequence[Mapping[str, float]]) -> Summary:
    deviation = {}
    for metric in METRICS:
        values = [one[metric] for one in metrics if not math.isnan(one[metric])]
        deviation[metric] = statistics.stdev(values) if len(values) > 1 else math.nan
    return Summary(name, category, shots, mean_metrics(metrics), deviation)


def count_defects(one: LabelledObject) -> dict[str, int]:
    """Return the number of test pictures of each kind of defect."""
    return dict(sorted(Counter(image.defect for image in one.test if image.label).items()))


def score_rows(
    object_name: str,
    setting: Setting,
    pictures: Sequence[TestImage],
    detections: Sequence[Detection],
    scores: Sequence[float],
) -> tuple[ScoreRow, ...]:
    """Return a row per image; ``detections`` and ``scores`` are those of the readable ones."""
    rows, results = [], zip(detections, scores, strict=True)
    for one in pictures:
        where = (object_name, one.image.defect, one.path, one.image.label, setting)
        if one.error is not None:
            rows.append(ScoreRow(*where, error=one.error))
        else:
            detection, score = next(results)
            rows.append(ScoreRow(*where, detection.text_score, detection.map_max, score))
    return tuple(rows)


def write_scores_csv(path: Path, results: Iterable[Result]) -> None:
    """Write scores.csv. Raises OutputError."""
    _write_csv(path, SCORE_COLUMNS, (row.cells() for result in results for row in result.rows))


def write_metrics_csv(path: Path, report: Report) -> None:
    """Write metrics.csv. Raises OutputError."""
    _write_csv(path, ("object", "shots", "seed", *METRICS), (line for k in report.shots for line in _lines(report, k)))


def _lines(report: Report, shots: int) -> Iterable[list[str]]:
    means = report.seed_means(shots)
    for summary in report.summaries(shots):
        name = summary.object_name
        seeds = {r.setting: r.metrics for r in report.results if r.object_name == name and r.setting.shots == shots}
        if summary.category == MEAN and not seeds:
            seeds = means
        named = [("" if one.seed is None else str(one.seed), metrics) for one, metrics in seeds.items()]
        named.append((MEAN, summary.mean))
        if len(seeds) > 1:
            named.append((DEVIATION, summary.deviation))
        for seed, metrics in named:
            values = ["" if math.isnan(metrics[metric]) else repr(metrics[metric]) for metric in METRICS]
            yield [name, str(shots), seed, *values]


def _write_csv(path: Path, columns: Sequence[str], lines: Iterable[list[str]]) -> None:
    with (
        written_aside(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\r\n")
        writer.writerow(columns)
        writer.writerows(lines)


def describe_dataset(dataset: LabelledDataset, fingerprint: str) -> dict[str, Any]:
    """Return what was recognised; ``fingerprint``: SHA-256 over the test pictures and masks, as ``train`` keeps it."""
    return {
        "root": str(dataset.root),
        "layout": dataset.layout,
        "fingerprint": fingerprint,
        "objects": [
            {
                "name": one.name,
                "category": one.category,
                "good_train": len(one.train_good),
                "test_good": sum(not image.label for image in one.test),
                "test_anomalous": sum(image.label for image in one.test),
                "defects": count_defects(one),
                "masks": sum(bool(image.mask_paths) for image in one.test),
            }
            for one in dataset.objects
        ],
    }


def describe_report(report: Report) -> dict[str, Any]:
    """Return results and summaries for metrics.json, as fractions; None where undefined."""
    summaries = []
    for summary in (one for shots in report.shots for one in report.summaries(shots)):
        papers = {metric: report.paper_value(summary, metric) for metric in METRICS}
        compared = {metric: round(value[0] / 100, 5) for metric, value in papers.items() if value is not None}
        summaries.append(
            {
                "object": summary.object_name,
                "shots": summary.shots,
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
                "shots": result.setting.shots,
                "seed": result.setting.seed,
                "references": list(result.references),
                "metrics": _defined(result.metrics),
            }
            for result in report.results
        ],
    }


def _defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def draw_table(report: Report) -> str:
    """Return the table in the paper's order, in percent, and its caption; never cut, however narrow the terminal."""
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("shots")
    table.add_column("object")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for shots in report.shots:
        summaries = report.summaries(shots)
        for summary in summaries if len(summaries) > 2 else summaries[:1]:
            for name, values in _table_rows(report, summary):
                table.add_row(str(shots), Text(printable(name)), *values)  # Text: a name may look like markup
        table.add_section()
    stream = io.StringIO()
    rich.console.Console(file=stream, width=WIDEST, color_system=None).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    captions = map(printable, (*([report.leakage] if report.leakage else []), *report.captions))
    return "\n".join([*(line for line in lines if line), *captions])


def _table_rows(report: Report, summary: Summary) -> Iterable[tuple[str, list[str]]]:
    yield summary.object_name, [_percent(summary.mean[m] * 100, summary.deviation[m] * 100) for m in METRICS]
    papers = [report.paper_value(summary, metric) for metric in METRICS]
    if any(papers):
        yield "  paper", [UNDEFINED if value is None else _percent(*value) for value in papers]
        differences = [
            None if v is None else summary.mean[m] * 100 - v[0] for m, v in zip(METRICS, papers, strict=True)
        ]
        yield "  difference", [UNDEFINED if d is None or math.isnan(d) else f"{d:+.1f}" for d in differences]


def _percent(mean: float, deviation: float | None) -> str:
    if math.isnan(mean):
        return UNDEFINED
    return f"{mean:.1f}" if deviation is None or math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"
