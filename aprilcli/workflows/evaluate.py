"""`eval`: how good a model is on a labelled folder, in the paper's measures, for all shots and seeds at once.

read the folder → per object: draw references → encode each picture once → per setting: maps → measures → files, table
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import maps
from aprilcli.core.backbone import Backbone, load_backbone
from aprilcli.core.catalogue import PAPER, TINY
from aprilcli.core.detector import Detector
from aprilcli.core.fusion import authors_scores
from aprilcli.core.metrics import PixelScores, image_metrics, roc_curve, vand
from aprilcli.core.projector import Projector, load_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.errors import InputError, OptionError, OutputError
from aprilcli.io import paper_tables, reports
from aprilcli.io.atomic import claimed, output_errors, remove_leftovers
from aprilcli.io.datasets import LabelledDataset, LabelledObject, read_dataset
from aprilcli.workflows import eval_report
from aprilcli.workflows.console import Console
from aprilcli.workflows.eval_encoding import EncodedObject, ObjectEncoder, Setting
from aprilcli.workflows.eval_maps import MapFiles, inside
from aprilcli.workflows.eval_plots import Curves, plot_object, require_matplotlib
from aprilcli.workflows.eval_report import Report, Result

SHOTS = (0, 1, 2, 4)  # the paper's
FUSIONS = ("sum", "authors")
OUTPUTS = ("metrics.csv", "metrics.json", "scores.csv", "anomaly_maps", "anomaly_images", "plots")
TOLD_PROBLEMS = 20


@dataclass(frozen=True)
class EvalOptions:
    """What to measure, with what, and where the results go; see ``aprilcli eval --help``.

    ``shots``: None means those of ``SHOTS`` for which every object has good training photos.
    """

    dataset: Path
    out: Path = Path("april-eval")
    layout: str = "auto"
    shots: tuple[int, ...] | None = None
    seeds: int = 5
    fusion: str = "sum"
    maps: bool = False
    plots: bool = False
    objects: tuple[str, ...] | None = None
    model: str = TINY
    projector: str | None = None
    image_size: int | None = None
    stages: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 1
    workers: int = 2
    seed: int = 0
    overwrite: bool = False


@dataclass(frozen=True)
class EvalSummary:
    """How an evaluation ended: the table as text, and how many pictures could not be read."""

    table: str
    results: tuple[Result, ...]
    unreadable: int
    seconds: float = 0.0


def run_eval(options: EvalOptions, console: Console) -> EvalSummary:
    """Measure every object under every setting. Raises the package's errors; unreadable pictures get their rows.

    Memory, beside the model: of one object, what ``ObjectEncoder.encode`` says, and ``options.workers`` settings'
    ``PixelScores`` at a time (4 to 8 bytes per pixel of the maps, while they are sorted up to three times that).
    """
    started, began = reports.timestamp(), time.monotonic()
    _check_options(options)
    dataset = _choose_objects(read_dataset(options.dataset, options.layout), options.objects)
    settings = _settings(options, dataset, console)
    _tell_dataset(dataset, console)
    busy = f"{options.out}: another eval is writing there; wait for it, or choose another --out"
    with claimed(options.out / ".lock", busy):
        summary = _evaluate(options, dataset, settings, started, console)
    return replace(summary, seconds=time.monotonic() - began)


def _evaluate(
    options: EvalOptions, dataset: LabelledDataset, settings: tuple[Setting, ...], started: str, console: Console
) -> EvalSummary:
    """Measure and write, as the only one who does so in the output folder."""
    _prepare_output(options.out, options.overwrite)
    backbone, projector = _load(options, console)
    _clear_output(options.out)
    results: list[Result] = []
    problems, notes = list(dataset.problems), list[str]()
    digests: list[str] = []
    total = sum(len(one.test) for one in dataset.objects)
    with ThreadPoolExecutor(max_workers=options.workers) as pool:
        encoder = ObjectEncoder(dataset.root, settings, pool, options.workers, options.batch_size)
        with console.progress(total, "evaluating") as advance:
            for one in dataset.objects:
                text_features = encode_prompts(backbone.text, one.category)
                detector = Detector(
                    backbone.encoder, text_features, projector, object_name=one.category, notes=backbone.notes
                )
                notes += [note for note in detector.notes if note not in notes]
                encoded = encoder.encode(one, detector, advance)
                problems += encoded.problems
                digests += encoded.digests
                notes += [note for note in encoded.notes if note not in notes]
                results += _measure_object(options, dataset, one, encoded, backbone, pool)
    for note in notes:
        console.note_once(note)
    fingerprint = sha256("\n".join(sorted(digests)).encode("utf-8", "surrogateescape")).hexdigest()
    unreadable = [row for result in results if result.setting == settings[0] for row in result.rows if row.error]
    problems += [f"{row.path}: left out ({row.error})" for row in unreadable]
    _tell_problems(problems[len(dataset.problems) :], console)
    report = Report(
        results=tuple(results),
        captions=_captions(options, dataset, backbone),
        leakage=_leakage(dataset, projector, fingerprint),
        paper=paper_tables.recognise(one.category for one in dataset.objects) if options.model == PAPER else None,
    )
    eval_report.write_metrics_csv(options.out / "metrics.csv", report)
    eval_report.write_scores_csv(options.out / "scores.csv", results)
    record = {
        **_describe(options, dataset, settings, backbone, projector),
        "dataset": eval_report.describe_dataset(dataset, fingerprint),
        "problems": problems,
        "unreadable": len(unreadable),
        **eval_report.describe_report(report),
        "started": started,
        "finished": reports.timestamp(),
    }
    reports.write_json(options.out / "metrics.json", record)
    return EvalSummary(eval_report.draw_table(report), tuple(results), len(unreadable))


def _check_options(options: EvalOptions) -> None:
    if options.fusion not in FUSIONS:
        raise OptionError(f"--fusion {options.fusion}: choose {' or '.join(FUSIONS)}")
    if options.shots is not None and (not options.shots or min(options.shots) < 0):
        raise OptionError("--shots: give numbers of reference photos from 0, such as 0,1,2,4")
    if options.plots:
        require_matplotlib()


def _choose_objects(dataset: LabelledDataset, names: tuple[str, ...] | None) -> LabelledDataset:
    """Keep the objects asked for, by name or by category."""
    if names is not None:
        known = {name for one in dataset.objects for name in (one.name, one.category)}
        if unknown := [name for name in names if name not in known]:
            there = ", ".join(one.name for one in dataset.objects)
            raise OptionError(f"--objects {','.join(unknown)}: not in {dataset.root}; it has {there}")
        chosen = tuple(one for one in dataset.objects if one.name in names or one.category in names)
        dataset = replace(dataset, objects=chosen)
    if not any(one.test for one in dataset.objects):
        raise InputError(f"{dataset.root}: no test pictures in layout {dataset.layout}; check the path")
    return dataset


def _settings(options: EvalOptions, dataset: LabelledDataset, console: Console) -> tuple[Setting, ...]:
    """Return zero shots once, and every other number of shots with every seed."""
    fewest = min(dataset.objects, key=lambda one: len(one.train_good))
    available = len(fewest.train_good)
    shots = tuple(sorted(set(options.shots if options.shots is not None else SHOTS)))
    if shots[-1] > available:
        short = f"{fewest.name} has {available} good training photos"
        if options.shots is not None:
            raise InputError(
                f"{short}, too few for {shots[-1]} shots; put some into train/good, ask for fewer --shots, "
                "or choose --objects"
            )
        shots = tuple(k for k in shots if k <= available)
        console.note(f"{short}: evaluating {', '.join(map(str, shots))} shots")
    seeds = range(options.seed, options.seed + options.seeds)
    return tuple(Setting(k, seed) for k in shots for seed in (seeds if k else (None,)))


def _tell_dataset(dataset: LabelledDataset, console: Console) -> None:
    console.note(f"{dataset.root}: layout {dataset.layout}, {len(dataset.objects)} objects")
    for one in dataset.objects:
        defects = ", ".join(f"{kind} {count}" for kind, count in eval_report.count_defects(one).items())
        masks = sum(bool(image.mask_paths) for image in one.test)
        anomalous = sum(image.label for image in one.test)
        good = len(one.test) - anomalous
        console.note(
            f"  {one.name}: {len(one.train_good)} good to learn from; test: {good} good, "
            f"{anomalous} anomalous ({defects or 'none'}), {masks or 'no'} masks"
        )
    _tell_problems(dataset.problems, console)


def _tell_problems(problems: Sequence[str], console: Console) -> None:
    told = problems if console.verbose else problems[:TOLD_PROBLEMS]
    for problem in told:
        console.note(f"problem: {problem}")
    if len(told) < len(problems):
        console.note(f"and {len(problems) - len(told)} more problems; metrics.json lists them all")


def _prepare_output(out: Path, overwrite: bool) -> None:
    """Take away what killed writers left, and refuse a folder that holds results already."""
    with output_errors(out):
        present = [name for name in OUTPUTS if (out / name).exists()]
    if present and not overwrite:
        raise OutputError(f"{out}: already holds results ({', '.join(present)}); choose another --out, or --overwrite")
    remove_leftovers(out, below=False)  # those deeper lie in results, which go as a whole


def _clear_output(out: Path) -> None:
    for path in (out / name for name in OUTPUTS):
        with output_errors(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _load(options: EvalOptions, console: Console) -> tuple[Backbone, Projector | None]:
    backbone = load_backbone(
        options.model,
        image_size=options.image_size,
        stages=options.stages,
        device=options.device,
        precision=options.precision,
    )
    for note in backbone.notes:
        console.note_once(note)
    return backbone, load_projector(options.projector, options.model, backbone.spec, progress=console.is_interactive)


def _measure_object(
    options: EvalOptions,
    dataset: LabelledDataset,
    one: LabelledObject,
    encoded: EncodedObject,
    backbone: Backbone,
    pool: ThreadPoolExecutor,
) -> list[Result]:
    """Measure every setting, some at a time; write maps of one of them, and a plot, where asked to."""
    shown = Setting(encoded.settings[-1].shots, options.seed if encoded.settings[-1].shots else None)
    files = None
    if options.maps:
        description = {"model": backbone.spec.label, "shots": shown.shots, "seed": shown.seed}
        files = MapFiles(
            options.out, one.name, dataset.layout, [picture.image for picture in encoded.pictures], description
        )

    def measure(setting: Setting) -> Result:
        write = files.write if files is not None and setting == shown else None
        with_curves = options.plots and setting.seed in (None, options.seed)
        return _measure(one, encoded, setting, options.fusion, backbone.spec.image_size, write, with_curves)

    results = list(pool.map(measure, encoded.settings))
    if options.plots:
        path = inside(options.out / "plots", f"{one.name}.png")
        plot_object(path, one.name, [result.curves for result in results if result.curves is not None])
    return [replace(result, curves=None) for result in results]


def _measure(
    one: LabelledObject,
    encoded: EncodedObject,
    setting: Setting,
    fusion: str,
    image_size: int,
    write: Callable[[int, NDArray[np.float32]], None] | None,
    with_curves: bool,
) -> Result:
    """Fuse every image's evidence, add its pixels, and keep its scores."""
    bank = encoded.bank_of(setting)
    readable = [picture for picture in encoded.pictures if picture.error is None]
    has_masks = any(picture.has_pixels and picture.image.label for picture in readable)
    pixels, detections = PixelScores(), []
    for position, picture in enumerate(encoded.pictures):
        detection = picture.detect(bank, image_size)
        if detection is None:
            continue
        detections.append(replace(detection, anomaly_map=None))
        if detection.anomaly_map is None:
            continue
        if has_masks and picture.has_pixels:
            pixels.add(detection.anomaly_map, picture.mask)
        if write is not None:
            source = maps.resize_map(torch.from_numpy(detection.anomaly_map), picture.size_hw)
            write(position, source.numpy())
    labels = [picture.image.label for picture in readable]
    scores = [detection.score for detection in detections]
    if fusion == "authors" and setting.shots:
        scores = authors_scores(detections)
    measured = {**pixels.metrics(), **image_metrics(labels, scores)}
    measured["vand"] = vand(measured["f1max_cls"], measured["f1max_segm"])
    curves = None
    if with_curves:
        name = f"{setting.shots}-shot" + ("" if setting.seed is None else f", seed {setting.seed}")
        image_roc = roc_curve(labels, scores)
        curves = Curves(name, measured, image_roc, pixels.roc_curve(), pixels.pro_curve(), labels, scores)
    return Result(
        object_name=one.name,
        category=one.category,
        setting=setting,
        references=encoded.references[encoded.settings.index(setting)],
        metrics=measured,
        rows=eval_report.score_rows(one.name, setting, encoded.pictures, detections, scores),
        curves=curves,
    )


def _leakage(dataset: LabelledDataset, projector: Projector | None, fingerprint: str) -> str | None:
    """Say so where the projector was trained on what it is measured on."""
    if projector is None:
        return None
    names = {dataset.root.resolve().name.casefold()}
    if [one.name for one in dataset.objects] == [dataset.root.resolve().name]:  # one object of a set
        names.add(dataset.root.resolve().parent.name.casefold())
    known = paper_tables.recognise(one.category for one in dataset.objects)
    learnt = projector.fields.get("data")
    same_content = isinstance(learnt, dict) and learnt.get("fingerprint") == fingerprint
    trained_on = projector.trained_on
    if same_content or (trained_on and (trained_on == known or trained_on.casefold() in names)):
        return (
            f"LEAKAGE: the projector was trained on this data set ({trained_on or 'the same pictures'}); "
            "these numbers say nothing about unseen objects"
        )
    return None


def _captions(options: EvalOptions, dataset: LabelledDataset, backbone: Backbone) -> tuple[str, ...]:
    size = backbone.spec.image_size
    fusion = {"sum": "text score + map maximum", "authors": "mean of text score and min-max scaled map maximum"}
    lines = [
        f"{dataset.root.resolve().name} ({dataset.layout}), model {backbone.spec.label}; in percent"
        + (", mean ± standard deviation over seeds" if options.seeds > 1 else ""),
        f"pixels (segm) at {size} x {size}, masks resized with them; "
        f"pictures (cls): text score, with shots {fusion[options.fusion]}",
    ]
    without = [one.name for one in dataset.objects if not any(i.label and i.mask_paths for i in one.test)]
    if without:
        lines.append(f"no masks, so no pixel measures: {', '.join(without)}")
    return tuple(lines)


def _describe(
    options: EvalOptions,
    dataset: LabelledDataset,
    settings: Sequence[Setting],
    backbone: Backbone,
    projector: Projector | None,
) -> dict[str, Any]:
    return {
        "versions": reports.versions(),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()},
        "model": backbone.spec.to_json(),
        "device": str(backbone.encoder.device),
        "precision": backbone.encoder.precision,
        "projector": projector.identity if projector is not None else None,
        "settings": [asdict(setting) for setting in settings],
    }
