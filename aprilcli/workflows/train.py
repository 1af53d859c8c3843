"""`train`: labelled anomalies in, a projector out; the backbone stays as it is.

read the data set → look at every picture and mask → per epoch: draw order and composites → decode ahead on threads →
one encode → focal + dice → Adam → validation → checkpoint; at the end FILE and FILE.json
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aprilcli.core.backbone import Backbone, load_backbone
from aprilcli.core.catalogue import TINY
from aprilcli.core.metrics import average_precision
from aprilcli.core.projector import KIND, UNDATED, save_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.training import BETAS, LEARNING_RATE, Batch, ProjectorTrainer, new_projector
from aprilcli.core.training_set import (
    MOSAIC_SHARE,
    TrainingImage,
    data_fingerprint,
    plan_epoch,
    prepare_input,
    split_validation,
    training_images,
)
from aprilcli.errors import ArtifactError, OptionError, OutputError
from aprilcli.io import reports
from aprilcli.io.artifacts import read_header, sha256_of_file
from aprilcli.io.atomic import claimed_file, output_errors
from aprilcli.io.datasets import LabelledDataset, read_dataset
from aprilcli.io.paper_tables import recognise
from aprilcli.workflows.checkpoint import Checkpoint, Record
from aprilcli.workflows.console import Console
from aprilcli.workflows.pipeline import map_ahead

SUFFIX = ".safetensors"

Input = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # pixels [3, S, S], text features [2, C], mask [S, S]


@dataclass(frozen=True)
class TrainOptions:
    """What to train on, how, and where the projector goes; see ``aprilcli train --help``."""

    dataset: Path
    out: Path
    layout: str = "auto"
    model: str = TINY
    image_size: int | None = None
    stages: tuple[int, ...] | None = None
    device: str = "auto"
    precision: str = "auto"
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = LEARNING_RATE
    mosaic: float | None = None
    validation: float = 0.0
    workers: int = 2
    seed: int = 0
    resume: bool = False

    @property
    def checkpoint(self) -> Path:
        """Where the state after each epoch is kept until the training is done."""
        return self.out.with_name(self.out.name + ".checkpoint")

    @property
    def report(self) -> Path:
        """Where the run is described."""
        return self.out.with_name(self.out.name + ".json")


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended; ``kept`` is the record of the epoch whose weights were kept."""

    pictures: int
    validated: int
    objects: int
    history: tuple[Record, ...]
    kept: Record
    seconds: float
    out: Path


def run_train(options: TrainOptions, console: Console) -> TrainSummary:
    """Train the projector of a frozen backbone and write it. Raises the package's errors."""
    started, began = reports.timestamp(), time.monotonic()
    _check_options(options)
    # Unlike Path.resolve, this takes links in a circle, which are then no folder.
    dataset = read_dataset(Path(os.path.realpath(options.dataset)), options.layout)
    images = training_images(dataset)
    _tell_problems(dataset, console)
    rng = np.random.default_rng([options.seed, 0])  # epochs count from 1
    training, validation = split_validation(images, options.validation, rng)
    if options.validation and not _count_anomalous(validation):
        count = _count_anomalous(images)
        raise OptionError(
            f"--val {options.validation}: of {count} anomalous pictures that is none; give a larger share"
        )
    backbone = load_backbone(
        options.model,
        image_size=options.image_size,
        stages=options.stages,
        device=options.device,
        precision=options.precision,
    )
    for note in backbone.notes:
        console.note(note)
    busy = "a training is writing it already; wait for it to end"
    with (
        claimed_file(options.out, busy, options.checkpoint, options.report),
        ThreadPoolExecutor(max_workers=options.workers) as pool,
    ):
        _check_outputs(options)
        public_set = recognise(one.category for one in dataset.objects)
        trained_on = public_set or dataset.root.name
        if public_set == "visa" and options.mosaic is None:
            console.note("these are objects of VisA: no 2x2 composites, as in the paper (--mosaic 0.2 makes them)")
        description = {
            "data": _describe_data(dataset, images, len(validation), pool, console),
            "settings": _settings(options, public_set, backbone),
            "spec": backbone.spec.to_json(),
        }
        run = _Run(options, backbone, trained_on, description, pool)
        if options.resume:
            run.resume(console)
        run.save_checkpoint(run.history)  # now, and not first after an epoch, it shows whether this can be written
        try:
            run.train(training, validation, console)
        except KeyboardInterrupt:
            console.note(f"stopped after epoch {len(run.history)} of {options.epochs}; --resume goes on from there")
            raise
        except Exception:
            if not run.history:  # nothing to go on from, so nothing in the way of the next attempt
                options.checkpoint.unlink(missing_ok=True)
            raise
        run.write_projector(started)
    return TrainSummary(
        pictures=len(training),
        validated=len(validation),
        objects=len(dataset.objects),
        history=tuple(run.history),
        kept=_kept(run.history),
        seconds=time.monotonic() - began,
        out=options.out,
    )


def _check_options(options: TrainOptions) -> None:
    if options.out.suffix != SUFFIX:
        raise OptionError(f"--out {options.out}: a projector is a {SUFFIX} file; give such a name")
    for option, share in (("--mosaic", options.mosaic), ("--val", options.validation)):
        if share is not None and not 0 <= share < 1:
            raise OptionError(f"{option} {share}: give a share from 0 to below 1")
    if not 0 < options.learning_rate <= 1:
        raise OptionError(f"--lr {options.learning_rate}: give one above 0 and not above 1, such as {LEARNING_RATE}")


def _check_outputs(options: TrainOptions) -> None:
    """Refuse what stands where this training writes; what a resumed one finds there, its checkpoint tells."""
    with output_errors(options.out):
        if not options.checkpoint.exists():
            _refuse_existing(options)
        elif not options.resume:
            raise OutputError(f"{options.checkpoint}: a training stopped here; --resume goes on, or delete this file")


def _refuse_existing(options: TrainOptions) -> None:
    for path in (options.out, options.report):
        if path.exists():
            raise OutputError(f"{path}: already exists; choose another --out, or move it away")


def _tell_problems(dataset: LabelledDataset, console: Console) -> None:
    for problem in dataset.problems:
        console.detail(problem)
    if dataset.problems and not console.verbose:
        console.note(f"left out of the data set, --verbose names them: {len(dataset.problems)}")
    for one in dataset.objects:
        anomalous = [image for image in one.test if image.label]
        if anomalous and not any(image.has_mask for image in anomalous):
            console.note(
                f"{one.name}: none of its {len(anomalous)} anomalous pictures has a mask; only good ones teach"
            )


def _describe_data(
    dataset: LabelledDataset,
    images: Sequence[TrainingImage],
    validated: int,
    pool: ThreadPoolExecutor,
    console: Console,
) -> dict[str, Any]:
    with console.progress(len(images), "checking the pictures") as advance:
        fingerprint = data_fingerprint(dataset, images, pool, advance)
    return {
        "name": dataset.root.name,
        "layout": dataset.layout,
        "objects": [one.name for one in dataset.objects],
        "pictures": len(images),
        "anomalous": _count_anomalous(images),
        "validation": validated,
        "fingerprint": fingerprint,
    }


def _count_anomalous(images: Sequence[TrainingImage]) -> int:
    return sum(image.labelled.label for image in images)


def _settings(options: TrainOptions, public_set: str | None, backbone: Backbone) -> dict[str, Any]:
    """Return all that the weights after an epoch depend on beside data and model."""
    mosaic = 0.0 if public_set == "visa" else MOSAIC_SHARE  # the paper composes MVTec AD, not VisA
    return {
        "batch_size": options.batch_size,
        "lr": options.learning_rate,
        "betas": BETAS,
        "mosaic": mosaic if options.mosaic is None else options.mosaic,
        "val": options.validation,
        "seed": options.seed,
        "device": backbone.encoder.device.type,
        "precision": backbone.encoder.precision,
    }


class _Run:
    """A training under way: the trainer, the epochs so far and the weights to keep."""

    def __init__(
        self,
        options: TrainOptions,
        backbone: Backbone,
        trained_on: str,
        description: dict[str, Any],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._options = options
        self._backbone = backbone
        self._description: dict[str, Any] = json.loads(json.dumps(description))  # as it is read back
        self._pool = pool
        projector = new_projector(backbone.spec, options.seed, trained_on)
        self._trainer = ProjectorTrainer(backbone.encoder, projector, options.learning_rate)
        self._kept_weights = self._trainer.weights()
        self._text_features: dict[str, torch.Tensor] = {}
        self.history: list[Record] = []  # of the epochs whose end is on disk

    def resume(self, console: Console) -> None:
        """Go on from the checkpoint, if there is one. Raises ArtifactError where it is of another training."""
        path = self._options.checkpoint
        if not path.exists():
            console.note(f"{path}: no checkpoint, so the training starts anew")
            return
        saved = self._checkpoint(self.history).read(path)
        self._trainer.restore(saved.state)
        self._kept_weights, self.history = dict(saved.kept), saved.history
        if len(self.history) > self._options.epochs:
            raise OptionError(f"--epochs {self._options.epochs}: {len(self.history)} are done already; give as many")
        if not self._has_written():
            _refuse_existing(self._options)
        console.note(f"going on after epoch {len(self.history)} of {self._options.epochs}")

    def _has_written(self) -> bool:
        """Whether the projector that stands there is this training's, which was stopped before its last step."""
        try:
            fields = read_header(self._options.out).fields
        except ArtifactError:
            return False
        return bool(self.history) and all(fields.get(name) == value for name, value in self._result_fields().items())

    def save_checkpoint(self, history: list[Record]) -> None:
        """Write the state after the last epoch of ``history``, which counts as done from then on."""
        self._checkpoint(history).write(self._options.checkpoint)
        self.history = history

    def _checkpoint(self, history: list[Record]) -> Checkpoint:
        return Checkpoint(self._description, history, self._trainer.state(), self._kept_weights)

    def train(self, training: Sequence[TrainingImage], validation: Sequence[TrainingImage], console: Console) -> None:
        """Run the epochs that are left, each ending with a checkpoint and a note."""
        for name in sorted({image.category for image in (*training, *validation)}):
            self._text_features[name] = encode_prompts(self._backbone.text, name).cpu()
        epochs, first = self._options.epochs, len(self.history) + 1
        total = (epochs + 1 - first) * (len(training) + len(validation))
        with console.progress(total, "training") as advance:
            for epoch in range(first, epochs + 1):
                what = f"epoch {epoch}/{epochs}"
                record: Record = {"epoch": epoch, "loss": self._epoch(epoch, training, what, advance)}
                if validation:
                    record |= self._validate(validation, what, advance)
                history = [*self.history, record]
                if _kept(history) is record:
                    self._kept_weights = self._trainer.weights()
                self.save_checkpoint(history)
                console.note(f"{what}: {_measures(record)}")

    def _epoch(self, epoch: int, images: Sequence[TrainingImage], what: str, advance: Callable[..., None]) -> float:
        rng = np.random.default_rng([self._options.seed, epoch])
        plan = plan_epoch(images, self._description["settings"]["mosaic"], rng)
        total = 0.0
        for batch in self._batches(plan):
            loss = self._trainer.step(batch)
            self._check_finite(loss, what)
            total += loss * len(batch.pixels)
            advance(len(batch.pixels), f"{what}, loss {loss:.4f}")
        return total / len(plan)

    def _check_finite(self, loss: float, what: str) -> None:
        if not math.isfinite(loss):
            way_on = (
                "give a lower one"
                if self._backbone.encoder.precision == "fp32"
                else "give a lower one, or --precision fp32"
            )
            if self.history:
                way_on += f"; --resume --epochs {len(self.history)} keeps what came before"
            raise OptionError(f"--lr {self._options.learning_rate}: the loss became {loss} in {what}; {way_on}")

    def _validate(self, images: Sequence[TrainingImage], what: str, advance: Callable[..., None]) -> Record:
        """Return mean loss, and pixel AP at the model's size, mean over the objects with anomalies.

        The pixels of one object are in memory at a time, some 35 bytes each while they are sorted.
        """
        total, precisions = 0.0, []
        for name in sorted({image.object_name for image in images}):
            scores, labels = [], []
            for batch in self._batches([(one,) for one in images if one.object_name == name]):
                loss, anomaly_maps = self._trainer.measure(batch)
                self._check_finite(loss, what)
                total += loss * len(batch.pixels)
                scores.append(anomaly_maps.cpu().numpy().ravel())
                labels.append(batch.masks.numpy().astype(np.uint8).ravel())
                advance(len(batch.pixels), f"{what}, validating")
            precision = average_precision(np.concatenate(labels), np.concatenate(scores))
            if not math.isnan(precision):  # no anomalous pixel
                precisions.append(precision)
        mean_precision = math.fsum(precisions) / len(precisions) if precisions else None
        return {"val_loss": total / len(images), "val_pixel_ap": mean_precision}

    def _batches(self, plan: Sequence[Sequence[TrainingImage]]) -> Iterator[Batch]:
        """Prepare inputs in order; those of the next step on threads while this one trains."""
        size = self._options.batch_size
        inputs = map_ahead(self._pool, self._prepare, plan, size + self._options.workers)
        while batch := list(itertools.islice(inputs, size)):
            pixels, text_features, masks = zip(*batch, strict=True)
            yield Batch(torch.stack(pixels), torch.stack(text_features), torch.stack(masks))

    def _prepare(self, parts: Sequence[TrainingImage]) -> Input:
        pixels, mask = prepare_input(parts, self._backbone.spec)
        return pixels, self._text_features[parts[0].category], mask

    def write_projector(self, started: str) -> None:
        """Write FILE and FILE.json with the weights that are kept, and remove the checkpoint."""
        options, projector = self._options, self._trainer.projector
        projector.load_state_dict(self._kept_weights)
        projector.fields = self._result_fields()
        save_projector(projector, options.out, created=UNDATED)
        report = {
            "kind": KIND,
            "file": options.out.name,
            "sha256": sha256_of_file(options.out),
            "fingerprint": projector.identity["fingerprint"],
            **projector.fields,
            "model": projector.spec.to_json(),
            "versions": reports.versions(),
            "started": started,
            "finished": reports.timestamp(),
        }
        reports.write_json(options.report, report)
        with output_errors(options.checkpoint):
            options.checkpoint.unlink()

    def _result_fields(self) -> dict[str, Any]:
        """Return what the projector's file says of the training."""
        return {
            "data": self._description["data"],
            "settings": {"epochs": self._options.epochs, **self._description["settings"]},
            "history": self.history,
            "kept_epoch": _kept(self.history)["epoch"],
        }


def _kept(history: Sequence[Record]) -> Record:
    """Return the epoch of the lowest validation loss, the first of equals; without validation the last."""
    return min(history, key=lambda record: record["val_loss"]) if "val_loss" in history[-1] else history[-1]


def _measures(record: Record) -> str:
    said = f"loss {record['loss']:.4f}"
    if "val_loss" in record:
        said += f", validation loss {record['val_loss']:.4f}"
    if record.get("val_pixel_ap") is not None:
        said += f", pixel AP {record['val_pixel_ap']:.4f}"
    return said


def summarise(summary: TrainSummary) -> str:
    """Say in a few lines how a training ended."""
    kept, last = summary.kept, len(summary.history)
    why = "the lowest validation loss" if "val_loss" in kept else "the last"
    pictures = f"{summary.pictures} pictures of {summary.objects} object{'s' * (summary.objects != 1)}"
    validated = f", {summary.validated} more for validation" if summary.validated else ""
    return "\n".join(
        [
            f"{pictures}{validated}: {last} epochs in {summary.seconds:.1f} s",
            f"kept: epoch {kept['epoch']} of {last}, {why}; {_measures(kept)}",
            f"projector: {summary.out}",
        ]
    )
