"""The run of a training: epochs between checkpoints, and the projector at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aprilcli.core.backbone import Backbone
from aprilcli.core.metrics import average_precision
from aprilcli.core.projector import KIND, save_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.training import Batch, ProjectorTrainer, encode_singly, new_projector
from aprilcli.core.training_set import TrainingImage, plan_epoch, prepare_input
from aprilcli.errors import ArtifactError, OptionError
from aprilcli.io import records
from aprilcli.io.artifacts import read_header
from aprilcli.io.atomic import output_errors
from aprilcli.io.files import sha256_of_file
from aprilcli.io.images import SourceImage, read_image
from aprilcli.options import TrainOptions
from aprilcli.workflows.checkpoint import Checkpoint, Record
from aprilcli.workflows.console import Console
from aprilcli.workflows.feature_cache import FeatureCache, remove_features
from aprilcli.workflows.pipeline import batches, map_ahead
from aprilcli.workflows.train_checks import refuse_existing


@dataclass(frozen=True)
class _Input:
    """One input of the model: of an image, or of the four of a mosaic.

    ``pixels`` [1, 3, S, S], None where the patch ``tokens`` N × [L, Cv] are known. ``mask`` [S, S].
    """

    parts: Sequence[TrainingImage]
    size: int
    pixels: torch.Tensor | None
    tokens: tuple[torch.Tensor, ...]
    mask: torch.Tensor


class TrainingRun:
    """A training in progress: the trainer, the epochs so far and the weights to keep.

    ``history``: the records of the epochs in the checkpoint.
    """

    def __init__(
        self,
        options: TrainOptions,
        backbone: Backbone,
        trained_on: str,
        description: dict[str, Any],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Begin at the first epoch; ``description``: the data, settings and model that a checkpoint must agree with."""
        self._options = options
        self._backbone = backbone
        self._description: dict[str, Any] = json.loads(json.dumps(description))  # as it will be read back
        self._pool = pool
        projector = new_projector(backbone.spec, options.seed, trained_on)
        self._encoders = {size: backbone.encoder.at_size(size) for size in backbone.views.sizes}
        self._cache: FeatureCache | None = None
        self._trainer = ProjectorTrainer(projector, backbone.encoder.device, options.learning_rate)
        self._kept_weights = self._trainer.weights()
        self._text_features: dict[str, torch.Tensor] = {}
        self._read = image_reader(options)
        self.history: list[Record] = []

    @property
    def kept(self) -> Record:
        """The record of the epoch whose weights are kept."""
        return _best(self.history)

    def resume(self, console: Console) -> None:
        """Continue from the checkpoint, if there is one. Raises ArtifactError if it is from another training."""
        path = self._options.checkpoint
        if not path.exists():
            console.note(f"{path}: no checkpoint; starting from the first epoch")
            return
        saved = self._checkpoint(self.history).read(path)
        self._trainer.restore(saved.state)
        self._kept_weights, self.history = dict(saved.kept), saved.history
        if len(self.history) > self._options.epochs:
            raise OptionError(f"--epochs {self._options.epochs}: {len(self.history)} are done; give at least as many")
        if not self._has_written():
            refuse_existing(self._options)
        console.note(f"continuing after epoch {len(self.history)} of {self._options.epochs}")

    def _has_written(self) -> bool:
        """Return whether an existing projector is from this training, stopped before it deleted the checkpoint."""
        try:
            fields = read_header(self._options.out).fields
        except ArtifactError:
            return False
        return bool(self.history) and all(fields.get(name) == value for name, value in self._result_fields().items())

    def save_checkpoint(self, history: list[Record]) -> None:
        """Write the state after the last epoch of ``history``; these epochs are then done."""
        self._checkpoint(history).write(self._options.checkpoint)
        self.history = history

    def _checkpoint(self, history: list[Record]) -> Checkpoint:
        return Checkpoint(self._description, history, self._trainer.state(), self._kept_weights)

    def train(self, training: Sequence[TrainingImage], validation: Sequence[TrainingImage], console: Console) -> None:
        """Run the remaining epochs; each ends with a checkpoint and a note."""
        for name in sorted({image.category for image in (*training, *validation)}):
            self._text_features[name] = encode_prompts(self._backbone.text, name).cpu()
        remove_features(self._options.features)  # of a killed training
        if self._options.epochs - len(self.history) > 1:
            paths = [image.labeled.path for image in (*training, *validation)]
            self._cache = FeatureCache(self._options.features, self._encoders, paths, console.note)
        try:
            self._train(training, validation, console)
        finally:
            self._cache = None
            remove_features(self._options.features)

    def _train(self, training: Sequence[TrainingImage], validation: Sequence[TrainingImage], console: Console) -> None:
        epochs, first = self._options.epochs, len(self.history) + 1
        total = (epochs + 1 - first) * (len(training) + len(validation))
        with console.progress(total, "training") as advance:
            for epoch in range(first, epochs + 1):
                task = f"epoch {epoch}/{epochs}"
                record: Record = {"epoch": epoch, "loss": self._epoch(epoch, training, task, advance)}
                if validation:
                    record |= self._validate(validation, task, advance)
                history = [*self.history, record]
                if _best(history) is record:
                    self._kept_weights = self._trainer.weights()
                self.save_checkpoint(history)
                console.note(f"{task}: {describe_record(record)}")

    def _epoch(self, epoch: int, images: Sequence[TrainingImage], task: str, advance: Callable[..., None]) -> float:
        rng = np.random.default_rng([self._options.seed, epoch])
        plan = plan_epoch(images, self._description["settings"]["mosaic"], rng)
        total = 0.0
        done = (epoch - 1) * math.ceil(len(plan) / self._options.batch_size)
        for batch in self._batches(plan, done):
            loss = self._trainer.step(batch)
            self._check_finite(loss, task)
            total += loss * len(batch.masks)
            advance(len(batch.masks), f"{task}, loss {loss:.4f}")
        return total / len(plan)

    def _check_finite(self, loss: float, task: str) -> None:
        if not math.isfinite(loss):
            advice = "use a lower rate"
            if self._backbone.encoder.precision != "fp32":
                advice += ", or --precision fp32"
            if self.history:
                advice += f"; --resume --epochs {len(self.history)} keeps the epochs before"
            raise OptionError(f"--lr {self._options.learning_rate}: the loss became {loss} in {task}; {advice}")

    def _validate(self, images: Sequence[TrainingImage], task: str, advance: Callable[..., None]) -> Record:
        """Return the mean loss, and the pixel AP at the model's input size, averaged over objects with anomalies.

        Memory: the pixels of one object at a time, about 35 bytes each while they are sorted.
        """
        total, precisions = 0.0, []
        for name in sorted({image.object_name for image in images}):
            scores, labels = [], []
            for batch in self._batches([(image,) for image in images if image.object_name == name]):
                loss, anomaly_maps = self._trainer.measure(batch)
                self._check_finite(loss, task)
                total += loss * len(batch.masks)
                scores.append(anomaly_maps.cpu().numpy().ravel())
                labels.append(batch.masks.numpy().astype(np.uint8).ravel())
                advance(len(batch.masks), f"{task}, validating")
            precision = average_precision(np.concatenate(labels), np.concatenate(scores))
            if not math.isnan(precision):  # nan: no anomalous pixels
                precisions.append(precision)
        mean_precision = math.fsum(precisions) / len(precisions) if precisions else None
        return {"val_loss": total / len(images), "val_pixel_ap": mean_precision}

    def _batches(self, plan: Sequence[Sequence[TrainingImage]], done: int = 0) -> Iterator[Batch]:
        """Prepare inputs in order, on threads that run ahead of the training.

        The batches take turns at the sizes, after ``done`` earlier batches.
        """
        count, sizes = self._options.batch_size, self._backbone.views.sizes
        sized = ((parts, sizes[(done + number // count) % len(sizes)]) for number, parts in enumerate(plan))
        inputs = map_ahead(self._pool, self._prepare, sized, count + self._options.workers)
        for batch in batches(inputs, count):
            encoded = [self._encode(item) for item in batch]
            yield Batch(
                tuple(torch.stack(stage) for stage in zip(*(item.tokens for item in encoded), strict=True)),
                self._encoders[batch[0].size].grids,
                torch.stack([self._text_features[item.parts[0].category] for item in encoded]),
                torch.stack([item.mask for item in encoded]),
            )

    def _prepare(self, sized: tuple[Sequence[TrainingImage], int]) -> _Input:
        parts, size = sized
        if self._cache is not None and len(parts) == 1:
            features = self._cache.find(parts[0].labeled.path, size)
            if features is not None:
                return _Input(parts, size, None, *features)
        pixels, mask = prepare_input(parts, self._backbone.spec, size, self._read)
        return _Input(parts, size, pixels[None], (), mask)

    def _encode(self, item: _Input) -> _Input:
        """Return the input with patch tokens; those of a single image are kept for the next epochs."""
        device = self._backbone.encoder.device
        if item.pixels is None:
            return replace(item, tokens=tuple(stage.to(device) for stage in item.tokens))
        tokens = tuple(stage[0] for stage in encode_singly(self._encoders[item.size], item.pixels))
        if self._cache is not None and len(item.parts) == 1:
            self._cache.keep(item.parts[0].labeled.path, item.size, (tokens, item.mask))
        return replace(item, pixels=None, tokens=tokens)

    def write_projector(self, started: str) -> None:
        """Write FILE, with the weights to keep, and FILE.json; delete the checkpoint."""
        options, projector = self._options, self._trainer.projector
        projector.load_state_dict(self._kept_weights)
        projector.fields = self._result_fields()
        save_projector(projector, options.out)
        report = {
            "kind": KIND,
            "file": options.out.name,
            "sha256": sha256_of_file(options.out),
            "fingerprint": projector.identity["fingerprint"],
            **projector.fields,
            "model": projector.spec.to_json(),
            "versions": records.versions(),
            "started": started,
            "finished": records.timestamp(),
        }
        records.write_json(options.report, report)
        with output_errors(options.checkpoint):
            options.checkpoint.unlink()

    def _result_fields(self) -> dict[str, Any]:
        """Return what the projector's file records of the training."""
        return {
            "data": self._description["data"],
            "settings": {"epochs": self._options.epochs, **self._description["settings"]},
            "history": self.history,
            "kept_epoch": self.kept["epoch"],
        }


def _best(history: Sequence[Record]) -> Record:
    """Return the record of the lowest validation loss (the first of equals); without validation the last record."""
    return min(history, key=lambda record: record["val_loss"]) if "val_loss" in history[-1] else history[-1]


def describe_record(record: Record) -> str:
    """Return the losses of an epoch as text."""
    text = f"loss {record['loss']:.4f}"
    if "val_loss" in record:
        text += f", validation loss {record['val_loss']:.4f}"
    if record.get("val_pixel_ap") is not None:
        text += f", pixel AP {record['val_pixel_ap']:.4f}"
    return text


def image_reader(
    options: TrainOptions, note: Callable[[str], None] = lambda text: None
) -> Callable[[Path], SourceImage]:
    """Return the function that decodes training images; it calls ``note`` with each image's notes."""

    def read(path: Path) -> SourceImage:
        source = read_image(path, value_range=options.value_range, max_pixels=options.max_pixels)
        for text in source.notes:
            note(text)
        return source

    return read
