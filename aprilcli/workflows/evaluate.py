"""`eval`: measures a model on a labeled folder as the paper does, for all shots and seeds from one encoding.

read the folder → per object: draw references → encode each image once → per setting: maps → measures → files, table
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aprilcli.core.detector import Detector
from aprilcli.core.encoder import ImageEncoder, describe_encoder
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.projector import Projector, load_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.defaults import MUTUAL, PAPER, SHOTS, WITHOUT_REFERENCES
from aprilcli.errors import InputError
from aprilcli.io import paper_tables, records
from aprilcli.io.atomic import claimed
from aprilcli.io.data_fingerprint import data_fingerprint
from aprilcli.io.datasets import LabeledDataset, LabeledObject
from aprilcli.options import EvalOptions, describe
from aprilcli.types import Views
from aprilcli.workflows import eval_leakage, eval_output, eval_report, eval_table
from aprilcli.workflows.console import Console
from aprilcli.workflows.dataset_notes import print_dataset_notes
from aprilcli.workflows.eval_encoding import ObjectEncoder
from aprilcli.workflows.eval_measures import measure_object
from aprilcli.workflows.eval_page import EvalResults
from aprilcli.workflows.eval_references import fusion_of
from aprilcli.workflows.eval_results import Report, Result, count_defects
from aprilcli.workflows.eval_settings import Setting
from aprilcli.workflows.loading import (
    check_windows,
    describe_bank,
    load_detector,
    load_model,
    load_part,
    note_old_bank,
    range_of,
)
from aprilcli.workflows.pipeline import worker_threads
from aprilcli.workflows.report import write_for_eval

LISTED_PROBLEMS = 20
LISTED_ALIKE = 5  # problems with the same message, so that they do not hide others


@dataclass(frozen=True)
class EvalSummary:
    """How an evaluation ended: the table as text, and the number of images that could not be read."""

    table: str
    results: tuple[Result, ...]
    unreadable: int
    seconds: float = 0.0


def run_eval(options: EvalOptions, dataset: LabeledDataset, console: Console) -> EvalSummary:
    """Measure every object of ``eval_checks.check`` under every setting.

    Raises the package's errors; unreadable images get their rows.

    Memory, besides the model: of one object, see ``ObjectEncoder.encode``, and the ``PixelScores`` of
    ``options.workers`` settings at a time (4 to 8 bytes per map pixel, three times that while they are sorted).
    """
    started, began = records.timestamp(), time.monotonic()
    bank = load_part(options.part, options.banks) if options.part is not None else None
    options = replace(options, value_range=range_of(bank, options.value_range))
    settings = _settings(options, dataset, console) if bank is None else _setting_of_part(bank, dataset)
    _print_dataset(dataset, console)
    busy = f"{options.out}: another eval is writing here; wait for it, or choose another --out"
    with claimed(options.out / ".lock", busy):
        summary = _evaluate(options, bank, dataset, settings, started, console)
    return replace(summary, seconds=time.monotonic() - began)


def _evaluate(
    options: EvalOptions,
    bank: MemoryBank | None,
    dataset: LabeledDataset,
    settings: tuple[Setting, ...],
    started: str,
    console: Console,
) -> EvalSummary:
    """Measure and write, while the output folder is locked."""
    planned = eval_output.planned_outputs(options, dataset)
    owned = eval_output.check_output(options.out, options.overwrite, planned)
    model = _load(options, dataset, console) if bank is None else _load_part(options, bank, console)
    eval_output.remove_outputs(options.out, owned)
    begun = {
        "versions": records.versions(model.encoder.engine, model.encoder.precision),
        "outputs": planned,
        "started": started,
    }
    records.write_json(options.out / eval_output.RECORD, begun)  # without "finished"
    results: list[Result] = []
    problems: list[str] = []
    notes: list[str] = []
    digests: list[str] = []
    sources: dict[str, str] = {}
    leaked: dict[str, tuple[str, ...]] = {}
    with worker_threads(options.workers) as pool:
        encoder = ObjectEncoder(dataset.root, settings, pool, options)
        total = sum(encoder.count_images(item) for item in dataset.objects)
        with console.progress(total, "evaluating") as advance:
            for item in dataset.objects:
                detector = model.detector_of(item)
                encoded = encoder.encode(item, detector, advance)
                problems += encoded.problems
                digests += encoded.digests
                sources[item.name] = encoded.calibration_source
                leaked[item.name] = encoded.leaked
                measured = measure_object(options, dataset.layout, item, encoded, detector, pool)
                results += measured
                notes += [*detector.notes, *encoded.notes]
                # All settings of an object have as many calibration images, so the same note.
                thresholds = [r.verdicts.used.threshold for r in measured if r.verdicts is not None]
                notes += [f"{item.name}: {threshold.note}" for threshold in thresholds if threshold.note]
    for note in notes:
        console.note_once(note)
    fingerprint = data_fingerprint(digests)
    unreadable = [row for result in results if result.setting == settings[0] for row in result.rows if row.error]
    problems += [f"{row.path}: left out ({row.error})" for row in unreadable]
    _print_problems([*problems, *dataset.other_files], console)
    report = Report(
        results=tuple(results),
        captions=eval_report.captions(options, dataset, model.encoder.spec, model.views, sources, bank),
        leakage=eval_leakage.leakage(dataset, model.projector, fingerprint, leaked),
        paper=paper_tables.recognize(item.category for item in dataset.objects) if options.model == PAPER else None,
        is_calibrated=options.is_calibrated,
    )
    eval_report.write_metrics_csv(options.out / "metrics.csv", report)
    eval_report.write_scores_csv(options.out / "scores.csv", results)
    record = {
        **begun,
        "options": {**describe(options), "model": _model_name(options, bank), "fusion": fusion_of(options, bank)},
        "model": model.encoder.spec.to_json(),
        "views": asdict(model.views),
        **describe_encoder(model.encoder),
        "projector": model.projector.identity if model.projector is not None else None,
        **({} if bank is None else {"bank": describe_bank(bank, str(options.part), options.banks)}),
        "settings": [asdict(setting) for setting in settings],
        "dataset": eval_report.describe_dataset(dataset, fingerprint),
        "problems": [*dataset.problems, *problems, *dataset.other_files],
        "unreadable": len(unreadable),
        **({"calibration": sources} if options.is_calibrated else {}),
        **eval_report.describe_report(report),
        "finished": records.timestamp(),
    }
    records.write_json(options.out / eval_output.RECORD, record)
    if options.report:
        write_for_eval(EvalResults.open(options.out), console, options.workers)
    return EvalSummary(eval_table.draw_table(report), tuple(results), len(unreadable))


def _settings(options: EvalOptions, dataset: LabeledDataset, console: Console) -> tuple[Setting, ...]:
    """Return every number of shots with every method; zero shots once, the others with every seed."""
    fewest = min(dataset.objects, key=lambda item: len(item.train_good))
    available = len(fewest.train_good)
    shots = tuple(sorted(set(options.shots if options.shots is not None else SHOTS)))
    if shots[-1] > available:
        short = f"{fewest.name} has {available} good training images"
        if options.shots is not None:
            raise InputError(
                f"{short}, too few for {shots[-1]} shots; add images to train/good, or use fewer --shots or other "
                "--objects"
            )
        shots = tuple(k for k in shots if k <= available)
        console.note(f"{short}: evaluating {', '.join(map(str, shots))} shots")
    seeds = range(options.seed, options.seed + options.seeds)
    settings = tuple(
        Setting(k, seed, method)
        for k in shots
        for method in options.method_names
        if k or method in WITHOUT_REFERENCES
        for seed in (seeds if k else (None,))
    )
    if options.mutual:
        settings = (Setting(0, None, MUTUAL), *settings)
    if not settings:
        raise InputError(
            f"{fewest.name} has no good training images, but {', '.join(options.method_names)} needs references; add "
            "images to train/good, or choose another --method"
        )
    return settings


def _setting_of_part(bank: MemoryBank, dataset: LabeledDataset) -> tuple[Setting, ...]:
    if len(dataset.objects) > 1:
        names = ", ".join(item.name for item in dataset.objects)
        raise InputError(f"{dataset.root}: several objects ({names}), but a bank is of one part; choose with --objects")
    return (Setting(len(bank.sources), method=bank.recipe.method),)


def _quantization_images(dataset: LabeledDataset) -> Iterator[Path]:
    """Return the good training images, of all objects in turn; good test images if there are none."""
    by_object = [item.train_good for item in dataset.objects]
    if not any(by_object):
        by_object = [tuple(image.path for image in item.test if not image.label) for item in dataset.objects]
    return (path for turn in itertools.zip_longest(*by_object) for path in turn if path is not None)


@dataclass(frozen=True)
class _Model:
    """What all objects share, and the detector of each."""

    encoder: ImageEncoder
    views: Views
    projector: Projector | None
    detector_of: Callable[[LabeledObject], Detector]


def _load(options: EvalOptions, dataset: LabeledDataset, console: Console) -> _Model:
    backbone = load_model(options, console, _quantization_images(dataset))
    check_windows(backbone.encoder, options.method_names)
    projector = load_projector(options.projector, options.model_name, backbone.spec, progress=console.is_interactive)
    # All at the start: a name that is refused ends the run at once, and the text tower's file is not needed later.
    text_features = {item.category: encode_prompts(backbone.text, item.category) for item in dataset.objects}

    def detector_of(item: LabeledObject) -> Detector:
        notes, views = backbone.notes, backbone.views
        text = text_features[item.category]
        return Detector(backbone.encoder, text, projector, object_name=item.category, notes=notes, views=views)

    return _Model(backbone.encoder, backbone.views, projector, detector_of)


def _load_part(options: EvalOptions, bank: MemoryBank, console: Console) -> _Model:
    detector = load_detector(options, bank, console)
    note_old_bank(bank, console)
    return _Model(detector.encoder, detector.views, detector.projector, lambda _: detector)


def _model_name(options: EvalOptions, bank: MemoryBank | None) -> str:
    return options.model_name if bank is None else bank.recipe.model


def _print_dataset(dataset: LabeledDataset, console: Console) -> None:
    console.note(f"{dataset.root}: layout {dataset.layout}, {len(dataset.objects)} objects")
    for item in dataset.objects:
        defects = ", ".join(f"{kind} {count}" for kind, count in count_defects(item).items())
        masks = sum(bool(image.mask_paths) for image in item.test)
        anomalous = sum(image.label for image in item.test)
        good = len(item.test) - anomalous
        console.note(
            f"  {item.name}: {len(item.train_good)} good for training; test: {good} good, "
            f"{anomalous} anomalous ({defects or 'none'}), {masks or 'no'} masks"
        )
    print_dataset_notes(dataset, console)
    _print_problems(dataset.problems, console)


def _print_problems(problems: Sequence[str], console: Console) -> None:
    listed = problems
    if not console.verbose:
        alike = Counter[str]()
        listed = []
        for problem in problems:
            message = problem.partition(": ")[2] or problem
            alike[message] += 1
            if alike[message] <= LISTED_ALIKE:
                listed.append(problem)
        listed = listed[:LISTED_PROBLEMS]
    for problem in listed:
        console.note(f"problem: {problem}")
    if len(listed) < len(problems):
        console.note(f"and {len(problems) - len(listed)} more problems; metrics.json lists them all")
