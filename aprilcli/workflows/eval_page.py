"""The report page of an evaluation, from metrics.json, scores.csv and the data set. Imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from aprilcli.core.metrics import precision_recall_curve, roc_curve
from aprilcli.defaults import APRIL_GAN
from aprilcli.errors import AprilError, InputError
from aprilcli.io import html_report as html
from aprilcli.io.datasets import LabeledImage, read_dataset
from aprilcli.io.masks import read_mask
from aprilcli.io.overlays import draw_mask, line_width
from aprilcli.io.records import read_own, timestamp
from aprilcli.text import first_line, printable
from aprilcli.workflows.eval_output import RECORD
from aprilcli.workflows.eval_settings import Group
from aprilcli.workflows.pipeline import map_ahead, read_as_recorded

SCORES = "scores.csv"
TEMPLATE = "eval.html.j2"
WORST = 6  # misses and false alarms shown of an object
MAX_POINTS = 400  # of a curve; more cannot be seen
COLUMNS = ("path", "facts")
TITLES = {
    "auroc_segm": "AUROC-segm",
    "f1max_segm": "F1-max-segm",
    "ap_segm": "AP-segm",
    "pro_segm": "PRO-segm",
    "aupro_30": "AUPRO-30",
    "auroc_cls": "AUROC-cls",
    "f1max_cls": "F1-max-cls",
    "ap_cls": "AP-cls",
    "vand": "VAND",
    "far": "false alarms",
    "tpr": "detected",
}
MEAN = "mean"


@dataclass(frozen=True)
class Scored:
    """A row of scores.csv: an image under a setting. ``seed``: empty where nothing was drawn."""

    object_name: str
    defect: str
    path: str
    label: int
    shots: int
    seed: str
    score: float
    method: str

    @property
    def group(self) -> Group:
        """The settings that differ from this row's by their seed only."""
        return Group(self.shots, self.method)


@dataclass(frozen=True)
class EvalResults:
    """What an evaluation wrote to ``out``. ``record``: metrics.json; ``images``: the data set's folder."""

    out: Path
    record: dict[str, Any]
    images: Path

    @classmethod
    def open(cls, out: Path, images: Path | None = None) -> EvalResults:
        """Read metrics.json; ``images``: where the data set is now. Raises InputError without finished results."""
        path = out / RECORD
        try:
            record = read_own(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give the output folder of eval") from error
        if not record or ("finished" in record and not record.keys() >= {"results", "summaries", "dataset"}):
            raise InputError(f"{path}: not the record of an evaluation by this version; evaluate again")
        if "finished" not in record:
            raise InputError(f"{out}: this evaluation has not finished; run it again with --overwrite")
        return cls(out, record, images if images is not None else Path(record["dataset"]["root"]))

    def scores(self) -> list[Scored]:
        """Return the rows of scores.csv that have a score. Raises InputError."""
        try:
            with (self.out / SCORES).open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                return [
                    Scored(
                        object_name=row["object"],
                        defect=row["defect"],
                        path=row["path"],
                        label=int(row["label"]),
                        shots=int(row["shots"]),
                        seed=row["seed"],
                        score=float(row["score"]),
                        method=row.get("method") or APRIL_GAN,  # earlier versions knew no other
                    )
                    for row in csv.DictReader(stream)
                    if row["score"]
                ]
        except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(f"{self.out / SCORES}: cannot be read ({first_line(error)}); evaluate again") from error


def write(results: EvalResults, path: Path, pool: ThreadPoolExecutor, ahead: int) -> int:
    """Write the page; return how many images it shows. Raises InputError for tables, OutputError."""
    rows: list[Scored] = []  # shown as cards, by their number
    objects = [_object(results, item["name"], scored, rows) for item, scored in _by_object(results)]
    labeled, warnings = _read_labeled(results)
    side = html.preview_side(len(rows))

    def preview(numbered: tuple[int, Scored]) -> html.Preview:
        number, row = numbered
        return _preview(results, number, row, labeled.get(row.path), side)

    previews = map_ahead(pool, preview, enumerate(rows), ahead)
    return html.write_page(path, TEMPLATE, _content(results, objects, rows, warnings), previews)


def _by_object(results: EvalResults) -> Iterator[tuple[dict[str, Any], list[Scored]]]:
    scores: dict[str, list[Scored]] = {}
    for row in results.scores():
        scores.setdefault(row.object_name, []).append(row)
    for item in results.record["dataset"]["objects"]:
        yield item, scores.get(item["name"], [])


def _read_labeled(results: EvalResults) -> tuple[dict[str, LabeledImage], list[str]]:
    """Return the test images by their path in scores.csv, and warnings."""
    options = results.record["options"]
    if options.get("labels") is not None:  # they come without masks
        return {}, []
    if not results.images.is_dir():
        advice = "name its folder with --images"
        return {}, [f"The data set is not in {printable(results.images)} any more, so no image is shown: {advice}."]
    try:
        dataset = read_dataset(results.images, options["layout"], follow=options["follow"])
    except AprilError as error:  # for example labeled by a table
        return {}, [f"Masks are not shown: {printable(str(error))}."]
    images = (image for item in dataset.objects for image in item.test)
    return {image.path.relative_to(results.images).as_posix(): image for image in images}, []


def _preview(results: EvalResults, number: int, row: Scored, labeled: LabeledImage | None, side: int) -> html.Preview:
    try:
        image = read_as_recorded(results.images / row.path, results.record["options"])
    except InputError as error:
        return html.Preview(number, note=printable(first_line(error)))
    size, small = html.small_image(image, side)
    if labeled is None or not labeled.mask_paths:
        return html.Preview(number, image.size, small)
    try:
        mask = read_mask(labeled, (image.height, image.width))
    except InputError as error:
        return html.Preview(number, image.size, small, note=str(error))
    # A defect of less than a pixel of the small image is still drawn.
    shrunk = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 0
    return html.Preview(number, image.size, small, html.image_uri(draw_mask(shrunk, line_width(size))))


def _content(
    results: EvalResults, objects: Sequence[Mapping[str, Any]], rows: Sequence[Scored], warnings: Sequence[str]
) -> dict[str, Any]:
    record = results.record
    metrics = list(record["results"][0]["metrics"]) if record["results"] else []
    model = record["model"]["backbone"]
    has_methods = len({result.get("method", APRIL_GAN) for result in record["results"]}) > 1
    if record["leakage"]:
        warnings = [record["leakage"], *warnings]
    if record["unreadable"]:
        warnings = [*warnings, f"{record['unreadable']} images could not be read: see {SCORES}."]
    return {
        "title": f"Evaluation on {printable(results.images.name or str(results.images))}",
        "subtitle": f"Model {printable(model)}, evaluated {record['started'][:16].replace('T', ' ')} UTC",
        "written": timestamp()[:16].replace("T", " ") + " UTC",
        "warnings": warnings,
        "has_methods": has_methods,
        "metrics": [TITLES.get(metric, metric) for metric in metrics],
        "measures": list(_measures(record, metrics)),
        "captions": list(map(printable, record["captions"])),
        "verdicts": list(_verdicts(record.get("verdicts", []), only_used=has_methods)),
        "objects": objects,
        "layer_name": "Mask",
        "data": {
            "kind": "eval",
            "id": "",
            "columns": COLUMNS,
            "rows": [[row.path, _facts(row)] for row in rows],
            "no_preview": "The page would be too large for a preview of this image.",
        },
    }


def _measures(record: Mapping[str, Any], metrics: Sequence[str]) -> Iterator[tuple[str, int, str, str, list[str]]]:
    """Yield kind, shots, method, object and cells of each row of the table of measures."""
    is_single = len(record["dataset"]["objects"]) == 1
    for summary in record["summaries"]:
        name, where = summary["object"], (summary["shots"], summary.get("method", APRIL_GAN))
        is_mean = name == MEAN
        if is_mean and is_single:
            continue
        cells = [_percent(summary["mean"].get(metric), summary["deviation"].get(metric)) for metric in metrics]
        yield "mean" if is_mean else "", *where, printable(name), cells
        if "paper" in summary:
            yield "paper", *where, "  paper", [_percent(summary["paper"].get(metric), None) for metric in metrics]


def _percent(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _verdicts(verdicts: Sequence[Mapping[str, Any]], only_used: bool) -> Iterator[dict[str, Any]]:
    """Yield a row of text for each setting and each false-alarm rate, or only for the rate in use."""
    for verdict in verdicts:
        others = () if only_used else verdict.get("by_rate", ())
        rates = {entry["rate"]: entry for entry in others} | {verdict["rate"]: verdict}
        for rate, entry in sorted(rates.items()):
            yield {
                "is_used": entry is verdict,
                "object": printable(verdict["object"]),
                "shots": verdict["shots"],
                "method": verdict.get("method", APRIL_GAN),
                "seed": "" if verdict["seed"] is None else verdict["seed"],
                "rate": f"{rate:g}",
                "threshold": f"{entry['threshold']:.4f}",
                "caught": f"{entry['caught']} of {verdict['defects']}",
                "false_alarms": f"{entry['false_alarms']} of {verdict['good']}",
                "promise": "guaranteed" if entry["guaranteed"] else "not guaranteed",
            }


def _object(results: EvalResults, name: str, scored: Sequence[Scored], rows: list[Scored]) -> dict[str, Any]:
    """Return charts and worst images of an object; the images are appended to ``rows``, which numbers them."""
    first_seeds: dict[Group, str] = {}
    firsts: dict[Group, list[Scored]] = {}
    for row in scored:
        if first_seeds.setdefault(row.group, row.seed) == row.seed:
            firsts.setdefault(row.group, []).append(row)
    methods = tuple(dict.fromkeys(group.method for group in firsts))
    most_shots = max((group.shots for group in firsts), default=0)
    drawn = [group for group in firsts if len(methods) == 1 or group.shots == most_shots]
    last = next((firsts[group] for group in firsts if group.shots == most_shots), [])
    setting = _setting_text(last[0], methods) if last else "none"
    curves: dict[str, list[tuple[str, list[list[float]]]]] = {"roc": [], "pr": []}
    for group in sorted(drawn, key=lambda group: group.shots):
        of_group = firsts[group]
        labels, values = [row.label for row in of_group], [row.score for row in of_group]
        if len(set(labels)) == 2:
            metrics = _result_of(results.record, of_group[0])["metrics"]
            for key, curve, metric in (
                ("roc", roc_curve(labels, values), "auroc_cls"),
                ("pr", precision_recall_curve(labels, values), "ap_cls"),
            ):
                keep = np.unique(np.linspace(0, len(curve[0]) - 1, MAX_POINTS).astype(int))
                title = f"{group.label(methods)}: {TITLES[metric]} {_percent(metrics.get(metric), None)} %"
                curves[key].append((title, np.stack(curve, axis=1)[keep].tolist()))
    ascending = sorted(last, key=lambda row: row.score)
    groups = {
        "misses": [row for row in ascending if row.label][:WORST],
        "false_alarms": [row for row in reversed(ascending) if not row.label][:WORST],
    }
    cards: dict[str, list[tuple[int, str, str]]] = {}
    for key, shown in groups.items():
        cards[key] = [
            (len(rows) + place, printable(row.path.removeprefix(f"{name}/")), f"{row.score:.4f}")
            for place, row in enumerate(shown)
        ]
        rows.extend(shown)
    kinds = {
        "good": [row.score for row in last if not row.label],
        "anomalous": [row.score for row in last if row.label],
    }
    threshold = _result_of(results.record, last[0]).get("threshold") if last else None
    return {
        "name": printable(name),
        "setting": setting,
        "histogram": html.histogram(kinds, threshold["value"] if threshold else None),
        **curves,
        **cards,
    }


def _result_of(record: Mapping[str, Any], row: Scored) -> dict[str, Any]:
    """Return the result of a row's object under its setting; empty if metrics.json has none."""
    setting = (row.object_name, row.shots, row.method, row.seed)
    for result in record["results"]:
        seed = "" if result["seed"] is None else str(result["seed"])
        if (result["object"], result["shots"], result.get("method", APRIL_GAN), seed) == setting:
            return dict(result)
    return {}


def _setting_text(row: Scored, methods: Sequence[str]) -> str:
    return row.group.label(methods) + (f", seed {row.seed}" if row.seed else "")


def _facts(row: Scored) -> list[tuple[str, str]]:
    return [
        ("Object", printable(row.object_name)),
        ("Labeled", printable(row.defect)),
        ("Score", f"{row.score:.4f}"),
        ("Setting", _setting_text(row, (row.method,))),
    ]
