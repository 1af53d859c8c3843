"""The verdicts of an evaluation: how many defects are caught at how many false alarms, as counts and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aprilcli.core.calibration import DEFAULT_RATES
from aprilcli.core.decision import DecisionRule
from aprilcli.core.threshold import Threshold
from aprilcli.text import printable
from aprilcli.types import Detection

RuleAt = Callable[[float | None], DecisionRule]  # the rule at a false-alarm rate; None is the default rate


@dataclass(frozen=True)
class AtThreshold:
    """The anomalous images that are called so (``caught``), and the good ones (``false_alarms``).

    Unrecognised images count as called anomalous; ``unrecognised``: how many of the caught and of the false alarms.
    """

    threshold: Threshold
    caught: int
    false_alarms: int
    unrecognised: tuple[int, int]

    def describe(self) -> dict[str, Any]:
        """Return the counts, JSON-ready."""
        used = {"rate": self.threshold.rate, "threshold": self.threshold.value, "guaranteed": self.threshold.guaranteed}
        return {**used, "caught": self.caught, "false_alarms": self.false_alarms}


@dataclass(frozen=True)
class Verdicts:
    """The counts of ``defects`` anomalous and ``good`` readable images, at the threshold in use and at other rates."""

    used: AtThreshold
    defects: int
    good: int
    by_rate: tuple[AtThreshold, ...]

    def describe(self) -> dict[str, Any]:
        """Return the counts, JSON-ready."""
        unrecognised = dict(zip(("caught", "false_alarms"), self.used.unrecognised, strict=True))
        rest = {"defects": self.defects, "good": self.good, "unrecognised": unrecognised}
        return {**self.used.describe(), **rest, "by_rate": [each.describe() for each in self.by_rate]}


def count_verdicts(
    labels: Sequence[int], detections: Sequence[Detection], rule_at: RuleAt, rate: float | None
) -> Verdicts | None:
    """Count the verdicts of images with ``labels`` (1 is anomalous); None without a threshold."""
    used = _count(labels, detections, rule_at(rate))
    if used is None:
        return None
    by_rate = (_count(labels, detections, rule_at(other)) for other in DEFAULT_RATES)
    return Verdicts(used, sum(labels), len(labels) - sum(labels), tuple(each for each in by_rate if each is not None))


def _count(labels: Sequence[int], detections: Sequence[Detection], rule: DecisionRule) -> AtThreshold | None:
    if rule.threshold is None:
        return None
    called = [
        (label, rule.verdict(detection.score, detection.part_distance))
        for label, detection in zip(labels, detections, strict=True)
    ]
    caught, false_alarms = (sum(own == label and verdict != "normal" for own, verdict in called) for label in (1, 0))
    unrecognised = called.count((1, "unrecognised")), called.count((0, "unrecognised"))
    return AtThreshold(rule.threshold, caught, false_alarms, unrecognised)


def in_words(object_name: str, group: str, verdicts: Sequence[Verdicts]) -> Iterator[str]:
    """Yield lines on an object and a ``group`` of settings. ``verdicts``: of each; numbers that differ are ranges."""
    first, used = verdicts[0], [each.used for each in verdicts]
    promise = "" if used[0].threshold.guaranteed else ", not guaranteed"
    seeds = f"; {len(verdicts)} selections of references" if len(verdicts) > 1 else ""
    caught, false_alarms, threshold = _ranges(used)
    yield (
        f"{printable(object_name)}, {group}: caught {caught} of "
        f"{_counted(str(first.defects), 'defect')}, {_counted(false_alarms, 'false alarm')} of "
        f"{_counted(str(first.good), 'good image')} at the threshold in use ({threshold}, "
        f"rate {used[0].threshold.rate:g}{promise}{seeds})"
    )
    if any(count for each in used for count in each.unrecognised):
        caught, false_alarms = (_range([each.unrecognised[k] for each in used]) for k in (0, 1))
        yield (
            f"  of these, {caught} caught and {_counted(false_alarms, 'false alarm')} are unrecognised: they do not "
            "look like the part"
        )
    rates, has_marks = [], False
    for at_rate in zip(*(each.by_rate for each in verdicts), strict=True):
        caught, false_alarms, threshold = _ranges(at_rate)
        mark = "" if at_rate[0].threshold.guaranteed else "*"
        has_marks |= bool(mark)
        rates.append(f"{at_rate[0].threshold.rate:g}{mark}: {caught}, {false_alarms} ({threshold})")
    legend = "; * not guaranteed" if has_marks else ""
    yield f"  caught, false alarms (threshold) by rate: {'; '.join(rates)}{legend}"


def _ranges(counts: Sequence[AtThreshold]) -> tuple[str, str, str]:
    caught, false_alarms = _range([each.caught for each in counts]), _range([each.false_alarms for each in counts])
    return caught, false_alarms, _range([each.threshold.value for each in counts])


def _range(values: Sequence[float]) -> str:
    """Return the smallest and the largest value, or the only one."""
    shown = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in (min(values), max(values))]
    return " to ".join(dict.fromkeys(shown))


def _counted(count: str, noun: str) -> str:
    return f"{count} {noun}" if count == "1" else f"{count} {noun}s"
