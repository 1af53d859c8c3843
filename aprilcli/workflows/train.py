"""`train`: makes a projector from images with known anomalies; the model stays frozen.

read the data set → check every image and mask → per epoch: draw order and composites → decode ahead on threads →
one encoder pass, or kept features → focal + dice → Adam → validation → checkpoint; at the end FILE and FILE.json
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aprilcli.core.backbone import Backbone
from aprilcli.core.training import BETAS
from aprilcli.core.training_set import (
    TrainingImage,
    check_images,
    split_validation,
    training_images,
)
from aprilcli.defaults import MOSAIC_SHARE
from aprilcli.errors import OptionError
from aprilcli.io import records
from aprilcli.io.atomic import claimed_file
from aprilcli.io.datasets import LabeledDataset
from aprilcli.io.paper_tables import recognize
from aprilcli.options import TrainOptions
from aprilcli.workflows.checkpoint import Record
from aprilcli.workflows.console import Console
from aprilcli.workflows.dataset_notes import MaskNotes, print_dataset_notes
from aprilcli.workflows.loading import load_model
from aprilcli.workflows.pipeline import worker_threads
from aprilcli.workflows.train_checks import check_outputs
from aprilcli.workflows.train_run import TrainingRun, describe_record, image_reader


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended; ``kept`` is the record of the epoch whose weights were kept."""

    trained: int
    validated: int
    objects: int
    history: tuple[Record, ...]
    kept: Record
    seconds: float
    out: Path


def run_train(options: TrainOptions, dataset: LabeledDataset, console: Console) -> TrainSummary:
    """Train a projector for a frozen model on the data set of ``train_checks.check``, and write it.

    Raises the package's errors.
    """
    started, began = records.timestamp(), time.monotonic()
    images = training_images(dataset)
    _print_problems(dataset, console)
    rng = np.random.default_rng([options.seed, 0])  # epochs count from 1
    training, validation = split_validation(images, options.validation, rng)
    if options.validation and not _count_anomalous(validation):
        count = _count_anomalous(images)
        raise OptionError(
            f"--val {options.validation}: too small to hold out any of {count} anomalous images; give a larger share"
        )
    backbone = load_model(options, console)
    busy = "another training is writing it; wait for it"
    with (
        claimed_file(options.out, busy, options.checkpoint, options.report),
        worker_threads(options.workers) as pool,
    ):
        check_outputs(options)
        public_set = recognize(item.category for item in dataset.objects)
        trained_on = public_set or dataset.root.name
        if public_set == "visa" and options.mosaic is None:
            console.note(
                "these are objects of VisA: no 2x2 composites, as in the paper "
                f"(use --mosaic {MOSAIC_SHARE} for composites)"
            )
        description = {
            "data": _describe_data(options, dataset, images, len(validation), pool, console),
            "settings": _settings(options, public_set, backbone),
            "spec": backbone.spec.to_json(),
        }
        run = TrainingRun(options, backbone, trained_on, description, pool)
        if options.resume:
            run.resume(console)
        run.save_checkpoint(run.history)  # before the first epoch: an error in writing shows at once
        try:
            run.train(training, validation, console)
        except KeyboardInterrupt:
            console.note(f"stopped after epoch {len(run.history)} of {options.epochs}; continue with --resume")
            raise
        except Exception:
            if not run.history:  # nothing to resume, so nothing to block the next attempt
                options.checkpoint.unlink(missing_ok=True)
            raise
        run.write_projector(started)
    return TrainSummary(
        trained=len(training),
        validated=len(validation),
        objects=len(dataset.objects),
        history=tuple(run.history),
        kept=run.kept,
        seconds=time.monotonic() - began,
        out=options.out,
    )


def _print_problems(dataset: LabeledDataset, console: Console) -> None:
    print_dataset_notes(dataset, console)
    for problem in (*dataset.problems, *dataset.other_files):
        console.detail(problem)
    if dataset.problems and not console.verbose:
        console.note(f"problems in the data set: {len(dataset.problems)} (list them with --verbose)")
    for item in dataset.objects:
        anomalous = [image for image in item.test if image.label]
        if anomalous and not any(image.has_mask for image in anomalous):
            console.note(
                f"{item.name}: none of its {len(anomalous)} anomalous images has a mask; only good images are used"
            )


def _describe_data(
    options: TrainOptions,
    dataset: LabeledDataset,
    images: Sequence[TrainingImage],
    validated: int,
    pool: ThreadPoolExecutor,
    console: Console,
) -> dict[str, Any]:
    mask_notes = MaskNotes()
    with console.progress(len(images), "checking images") as advance:
        fingerprint = check_images(
            *(dataset, images, pool, advance, image_reader(options, console.note_once)),
            on_mask_note=lambda image, note: mask_notes.add(image.object_name, image.labeled.mask_paths[0], note),
        )
    for problem in mask_notes.problems(dataset.root):
        console.note(f"problem: {problem}")
    return {
        "name": dataset.root.name,
        "layout": dataset.layout,
        "objects": [item.name for item in dataset.objects],
        "images": len(images),
        "anomalous": _count_anomalous(images),
        "validation": validated,
        "fingerprint": fingerprint,
    }


def _count_anomalous(images: Sequence[TrainingImage]) -> int:
    return sum(image.labeled.label for image in images)


def _settings(options: TrainOptions, public_set: str | None, backbone: Backbone) -> dict[str, Any]:
    """Return what the weights after an epoch depend on, besides data and model."""
    mosaic = 0.0 if public_set == "visa" else MOSAIC_SHARE  # the paper has composites of MVTec AD only
    return {
        "batch_size": options.batch_size,
        "lr": options.learning_rate,
        "betas": BETAS,
        "mosaic": mosaic if options.mosaic is None else options.mosaic,
        "val": options.validation,
        "seed": options.seed,
        "range": options.value_range,
        "max_pixels": options.max_pixels,
        "device": backbone.encoder.device.type,
        "precision": backbone.encoder.precision,
        **({} if len(backbone.views) == 1 else {"image_sizes": backbone.views.sizes}),
    }


def summarize(summary: TrainSummary) -> str:
    """Return a few lines on how a training ended."""
    kept, last = summary.kept, len(summary.history)
    reason = "lowest validation loss" if "val_loss" in kept else "the last"
    images = f"{summary.trained} images of {summary.objects} object{'s' * (summary.objects != 1)}"
    validated = f", {summary.validated} more for validation" if summary.validated else ""
    return "\n".join(
        [
            f"{images}{validated}: {last} epochs in {summary.seconds:.1f} s",
            f"kept: epoch {kept['epoch']} of {last} ({reason}); {describe_record(kept)}",
            f"projector: {summary.out}",
        ]
    )
