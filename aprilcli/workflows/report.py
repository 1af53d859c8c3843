"""`report`: writes the page, overlays and exports of a scan or an evaluation from the results that are there.

Imports no torch, except for COCO files. `scan` and `eval` call the same functions when they are done.
"""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor

from aprilcli.errors import InputError, OptionError, OutputError
from aprilcli.io.atomic import check_writable, output_errors, remove_leftovers
from aprilcli.io.atomic import claimed as claimed_lock
from aprilcli.io.overlays import overlay_path, remove_others, write_overlay
from aprilcli.io.records import write_json
from aprilcli.io.scores_csv import ScoreRow
from aprilcli.options import ReportOptions
from aprilcli.text import listed
from aprilcli.workflows import eval_output, eval_page, scan_page
from aprilcli.workflows.console import Console
from aprilcli.workflows.pipeline import map_ahead
from aprilcli.workflows.scan_output import LOCK, OVERLAYS, REPORT, RUN, claimed
from aprilcli.workflows.scan_results import ScanResults

NAME_ERRORS = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)  # a name leaves no place for a file
LISTED = 5  # images without an overlay in a note; the others are counted


def run_report(options: ReportOptions, console: Console) -> str:
    """Write the report of ``options.results``; return a line on it. Raises InputError, OutputError."""
    out = options.results
    if options.images is not None and not options.images.is_dir():
        raise InputError(f"{options.images}: no such folder; give the folder of the images")
    if (out / eval_output.RECORD).exists() and not (out / RUN).exists():
        return _report_on_eval(options, console)
    results = ScanResults.open(out, options.images)
    check_writable(out)
    write_for_scan(results, console, options.workers, overlays=options.overlays, coco=options.coco, report=True)
    return f"report: {out / REPORT}"


def _report_on_eval(options: ReportOptions, console: Console) -> str:
    out = options.results
    if options.overlays or options.coco:
        raise OptionError("--overlays and --coco: an evaluation has none; give the output folder of a scan")
    results = eval_page.EvalResults.open(out, options.images)
    check_writable(out)
    with claimed_lock(out / LOCK, f"{out}: an eval is writing here; wait for it"):
        outputs = results.record.get("outputs", [*eval_output.TABLES, eval_output.RECORD])
        if (out / REPORT).exists() and REPORT not in outputs:
            raise OutputError(f"{out / REPORT}: no evaluation wrote it; move it")
        if REPORT not in outputs:  # so that --overwrite may replace it
            write_json(out / eval_output.RECORD, {**results.record, "outputs": [*outputs, REPORT]})
        write_for_eval(results, console, options.workers)
    return f"report: {out / REPORT}"


def write_for_eval(results: eval_page.EvalResults, console: Console, workers: int) -> None:
    """Write the report of an evaluation, which must be locked. Raises InputError, OutputError."""
    with ThreadPoolExecutor(workers) as pool, console.progress(0, "writing the report"):
        eval_page.write(results, results.out / REPORT, pool, 2 * workers)


def write_for_scan(
    results: ScanResults, console: Console, workers: int, *, overlays: bool, coco: bool, report: bool
) -> None:
    """Write what is wanted of a scan's results, on ``workers`` threads. Raises InputError, OutputError."""
    if overlays and not scan_page.has_maps(results):
        raise InputError(f"{results.out}: the scan wrote no maps to draw; scan again with --maps")
    with claimed(results.out):
        if overlays:
            _write_overlays(results, console, workers)
        if coco:
            from aprilcli.workflows.coco import write_coco  # imports torch

            write_coco(results)
        if report:
            _write_report(results, console, workers)


def _write_overlays(results: ScanResults, console: Console, workers: int) -> None:
    folder = results.out / OVERLAYS
    scale = scan_page.scale_of(results)
    remove_leftovers(folder)
    rows = [row for row, _ in results.rows() if row.status == "ok" and row.map_max is not None]

    def draw(row: ScoreRow) -> tuple[ScoreRow, str | None]:
        try:
            image = scan_page.read_scanned(results, row)
            write_overlay(overlay_path(folder, row.path), image, results.map_path(row), scale)
        except InputError as error:
            return row, str(error)
        except OutputError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NAME_ERRORS:
                return row, str(error)
            raise
        return row, None

    drawn: set[str] = set()
    skipped: dict[str, str] = {}  # with the reasons
    with ThreadPoolExecutor(workers) as pool, console.progress(len(rows), "drawing overlays") as advance:
        for row, reason in map_ahead(pool, draw, rows, 2 * workers):
            if reason is None:
                drawn.add(row.path)
            else:
                skipped[row.path] = reason
                console.detail(reason)
            advance(1)
    with output_errors(folder):
        remove_others(folder, drawn.__contains__)
    if skipped:
        first = next(iter(skipped.values()))
        console.note(f"{len(skipped)} without an overlay: {listed([*skipped], LISTED)} ({first})")


def _write_report(results: ScanResults, console: Console, workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool, console.progress(0, "writing the report"):
        _, without = scan_page.write(results, results.out / REPORT, pool, 2 * workers)
    if "finished" not in results.record:
        console.note(f"{results.out / RUN}: the scan has not finished; the report shows what it has so far")
    if without:
        console.note(f"{without} images have no preview in the report, which would be too large")
