"""The table of an evaluation as text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import rich.box
from rich.table import Table
from rich.text import Text

from aprilcli.text import printable
from aprilcli.workflows.console import table_text
from aprilcli.workflows.eval_results import Report, Summary
from aprilcli.workflows.eval_verdicts import in_words

UNDEFINED = "-"
PAPER_METRICS = ("auroc_segm", "f1max_segm", "ap_segm", "pro_segm", "auroc_cls", "f1max_cls", "ap_cls")


def draw_table(report: Report) -> str:
    """Return the table in the paper's order, in percent, with its captions; never cut, whatever the terminal.

    With several methods it has the rows and columns of the paper's tables 3 and 4: the means over the objects, under
    each setting and method. Below are the verdicts in words, if there are any.
    """
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    is_comparison = len(report.methods) > 1
    metrics = PAPER_METRICS if is_comparison else report.metrics
    for title in ("shots", "method" if is_comparison else "object"):
        table.add_column(title)
    for metric in metrics:
        table.add_column(metric, justify="right")
    for shots, groups in itertools.groupby(report.groups, lambda group: group.shots):
        for group in groups:
            summaries = report.summaries(group)
            if is_comparison:
                summaries = [replace(summaries[-1 if len(summaries) > 2 else 0], object_name=group.method)]
            for summary in summaries if len(summaries) > 2 else summaries[:1]:
                for name, values in _table_rows(report, summary, metrics):
                    table.add_row(str(shots), Text(printable(name)), *values)  # Text: a name may look like markup
        table.add_section()
    captions = [*([report.leakage] if report.leakage else []), *report.captions]
    if is_comparison and len(report.objects) > 1:
        captions.append(f"means over {len(report.objects)} objects; metrics.csv has the numbers of each")
    return "\n".join([table_text(table), *map(printable, captions), *_verdicts(report)])


def _verdicts(report: Report) -> Iterable[str]:
    for group in report.groups:
        for name in report.objects:
            verdicts = [r.verdicts for r in report.results_of(name, group) if r.verdicts is not None]
            if verdicts:
                yield from in_words(name, group.label(report.methods), verdicts)


def _table_rows(report: Report, summary: Summary, metrics: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
    yield summary.object_name, [_percent(summary.mean[m] * 100, summary.deviation[m] * 100) for m in metrics]
    papers = [report.paper_value(summary, metric) for metric in metrics]
    if any(papers):
        yield "  paper", [UNDEFINED if value is None else _percent(*value) for value in papers]
        differences = [
            None if v is None else summary.mean[m] * 100 - v[0] for m, v in zip(metrics, papers, strict=True)
        ]
        yield "  difference", [UNDEFINED if d is None or math.isnan(d) else f"{d:+.1f}" for d in differences]


def _percent(mean: float, deviation: float | None) -> str:
    if math.isnan(mean):
        return UNDEFINED
    return f"{mean:.1f}" if deviation is None or math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"
