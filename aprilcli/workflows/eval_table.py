"""The table of an evaluation as text."""

from __future__ import annotations

import math
from collections.abc import Iterable

import rich.box
from rich.table import Table
from rich.text import Text

from aprilcli.text import printable
from aprilcli.workflows.console import table_text
from aprilcli.workflows.eval_results import Report, Summary
from aprilcli.workflows.eval_verdicts import in_words

UNDEFINED = "-"


def draw_table(report: Report) -> str:
    """Return the table in the paper's order, in percent, with its captions; never cut, whatever the terminal.

    Below are the verdicts in words, if there are any.
    """
    table = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("shots")
    table.add_column("object")
    for metric in report.metrics:
        table.add_column(metric, justify="right")
    for shots in report.shots:
        summaries = report.summaries(shots)
        for summary in summaries if len(summaries) > 2 else summaries[:1]:
            for name, values in _table_rows(report, summary):
                table.add_row(str(shots), Text(printable(name)), *values)  # Text: a name may look like markup
        table.add_section()
    captions = map(printable, (*([report.leakage] if report.leakage else []), *report.captions))
    return "\n".join([table_text(table), *captions, *_verdicts(report)])


def _verdicts(report: Report) -> Iterable[str]:
    for shots in report.shots:
        for name in report.objects:
            verdicts = [r.verdicts for r in report.results_of(name, shots) if r.verdicts is not None]
            if verdicts:
                yield from in_words(name, shots, verdicts)


def _table_rows(report: Report, summary: Summary) -> Iterable[tuple[str, list[str]]]:
    yield summary.object_name, [_percent(summary.mean[m] * 100, summary.deviation[m] * 100) for m in report.metrics]
    papers = [report.paper_value(summary, metric) for metric in report.metrics]
    if any(papers):
        yield "  paper", [UNDEFINED if value is None else _percent(*value) for value in papers]
        differences = [
            None if v is None else summary.mean[m] * 100 - v[0] for m, v in zip(report.metrics, papers, strict=True)
        ]
        yield "  difference", [UNDEFINED if d is None or math.isnan(d) else f"{d:+.1f}" for d in differences]


def _percent(mean: float, deviation: float | None) -> str:
    if math.isnan(mean):
        return UNDEFINED
    return f"{mean:.1f}" if deviation is None or math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"
