"""The results of an evaluation: measures and scores per object and setting, and their means."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aprilcli.core.metrics import METRICS, mean_metrics
from aprilcli.io import paper_tables
from aprilcli.io.datasets import LabeledObject
from aprilcli.types import Detection
from aprilcli.workflows.eval_encoding import EncodedImage
from aprilcli.workflows.eval_plots import Curves
from aprilcli.workflows.eval_settings import Group, Setting
from aprilcli.workflows.eval_verdicts import Verdicts

MEAN = "mean"
VERDICT_METRICS = ("far", "tpr")  # false-alarm rate on good, detection rate on anomalous test images
SCORE_COLUMNS = (
    *("object", "defect", "path", "label", "shots", "seed"),
    *("text_score", "map_max", "score", "status", "error", "method"),
)


@dataclass(frozen=True)
class EvalScoreRow:
    """The scores of an image under a setting; None if ``error`` gives the reason, or without a map."""

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
        """Return the cells of ``SCORE_COLUMNS``; numbers are the shortest that give the same float32."""
        numbers = (
            "" if value is None else str(np.float32(value)) for value in (self.text_score, self.map_max, self.score)
        )
        seed = "" if self.setting.seed is None else str(self.setting.seed)
        where = [self.object_name, self.defect, self.path, str(self.label), str(self.setting.shots), seed]
        return [*where, *numbers, "error" if self.error else "ok", self.error or "", self.setting.method]


@dataclass(frozen=True)
class Result:
    """The measures of an object under a setting, in [0, 1] or nan; ``references``: the images drawn.

    ``verdicts``: those at a calibrated threshold, if there is one.
    """

    object_name: str
    category: str
    setting: Setting
    references: tuple[str, ...]
    metrics: dict[str, float]
    rows: tuple[EvalScoreRow, ...] = field(repr=False)
    verdicts: Verdicts | None = None
    curves: Curves | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Summary:
    """The mean over seeds of an object (or of all), and the sample standard deviation of two seeds or more."""

    object_name: str
    category: str
    group: Group
    mean: dict[str, float]
    deviation: dict[str, float]


@dataclass(frozen=True)
class Report:
    """All results. ``paper``: the data set of the paper to compare with; ``leakage``: a warning, or None."""

    results: tuple[Result, ...]
    captions: tuple[str, ...]
    leakage: str | None = None
    paper: str | None = None
    is_calibrated: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the measures, in order."""
        return (*METRICS, *VERDICT_METRICS) if self.is_calibrated else METRICS

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in order."""
        return tuple(dict.fromkeys(result.setting.method for result in self.results))

    @property
    def groups(self) -> list[Group]:
        """The numbers of shots, ascending, each with every method that has results."""
        groups = dict.fromkeys(result.setting.group for result in self.results)
        return sorted(groups, key=lambda group: (group.shots, self.methods.index(group.method)))

    @property
    def objects(self) -> dict[str, str]:
        """Each object's name with its category, in order."""
        return {result.object_name: result.category for result in self.results}

    def seed_means(self, group: Group) -> dict[Setting, dict[str, float]]:
        """Return the mean over objects, per seed."""
        settings = dict.fromkeys(result.setting for result in self.results if result.setting.group == group)
        return {s: mean_metrics([r.metrics for r in self.results if r.setting == s]) for s in settings}

    def summaries(self, group: Group) -> list[Summary]:
        """Return the summary of each object, and last that of the mean over objects."""
        found = [
            _summarize(name, category, group, [r.metrics for r in self.results_of(name, group)])
            for name, category in self.objects.items()
        ]
        return [*found, _summarize(MEAN, MEAN, group, list(self.seed_means(group).values()))]

    def results_of(self, name: str, group: Group) -> list[Result]:
        """Return the results of an object under each seed."""
        return [r for r in self.results if r.object_name == name and r.setting.group == group]

    def paper_value(self, summary: Summary, metric: str) -> tuple[float, float | None] | None:
        """Return the paper's mean and deviation in percent; its mean over objects only if all objects were measured."""
        if self.paper is None:
            return None
        is_whole = set(self.objects.values()) == set(paper_tables.paper_objects(self.paper))
        if summary.object_name == MEAN and not is_whole:
            return None
        shots, method = summary.group.shots, summary.group.method
        return paper_tables.paper_value(self.paper, shots, summary.category, metric, method)


def _summarize(name: str, category: str, group: Group, metrics: Sequence[Mapping[str, float]]) -> Summary:
    mean, deviation = mean_metrics(metrics), {}
    for metric in mean:
        values = [by_seed[metric] for by_seed in metrics if not math.isnan(by_seed[metric])]
        deviation[metric] = statistics.stdev(values) if len(values) > 1 else math.nan
    return Summary(name, category, group, mean, deviation)


def count_defects(item: LabeledObject) -> dict[str, int]:
    """Return the number of test images of each kind of defect."""
    return dict(sorted(Counter(image.defect for image in item.test if image.label).items()))


def score_rows(
    object_name: str,
    setting: Setting,
    images: Sequence[EncodedImage],
    detections: Sequence[Detection],
    scores: Sequence[float],
) -> tuple[EvalScoreRow, ...]:
    """Return a row per image; ``detections`` and ``scores`` are those of the readable images."""
    rows, results = [], zip(detections, scores, strict=True)
    for image in images:
        where = (object_name, image.image.defect, image.path, image.image.label, setting)
        if image.error is not None:
            rows.append(EvalScoreRow(*where, error=image.error))
        else:
            detection, score = next(results)
            rows.append(EvalScoreRow(*where, detection.text_score, detection.map_max, score))
    return tuple(rows)
