"""The detector: a model with its projector and, if there is one, a part's memory bank."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.methods.april_gan import AprilGan
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.projector import Projector, load_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.recognition import appearance, distance_to
from aprilcli.defaults import TINY
from aprilcli.errors import ArtifactError, OptionError
from aprilcli.io.images import SourceImage, read_image, to_pixels
from aprilcli.text import printable
from aprilcli.types import Detection

DEFAULT_OBJECT = "object"


class Detector:
    """Scores images in one encoder pass: zero-shot, with a memory bank also few-shot.

    ``notes``: what the user should know.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        text_features: torch.Tensor,
        projector: Projector | None = None,
        bank: MemoryBank | None = None,
        object_name: str = DEFAULT_OBJECT,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Score with ``text_features`` [2, C], those of ``object_name`` (see ``encode_prompts``).

        No text tower is needed. Raises ArtifactError where ``bank`` was made with another model, projector or object
        name.
        """
        self.encoder = encoder
        self.projector = projector.to(encoder.device) if projector is not None else None
        self.projector_fingerprint = projector.identity["fingerprint"] if projector is not None else ""
        self.text_features = text_features.to(encoder.device)
        self.object_name = object_name
        self._use_bank(bank)
        self.notes = notes
        if projector is None:
            without = "few-shot maps and text scores" if bank is not None else "text scores, no maps"
            self.notes += (f"this model has no projector: {without} (a projector adds zero-shot maps)",)
        else:
            self.notes += projector.notes

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        projector: str | None = None,
        bank: MemoryBank | None = None,
        object_name: str | None = None,
        image_size: int | None = None,
        stages: tuple[int, ...] | None = None,
        device: str = "auto",
        precision: str = "auto",
        progress: bool = False,
    ) -> Detector:
        """Load model and projector by name, as the command line does.

        An argument that is None is taken from the bank; without a bank it is ``tiny``, ``object`` or the model's own.
        Raises the package's errors.
        """
        if bank is not None:
            model = model or bank.recipe.model
            projector = projector or bank.recipe.projector
            object_name = object_name or bank.object_name
            image_size, stages = image_size or bank.spec.image_size, stages or bank.spec.stages
        model = model or TINY
        if object_name is not None and not object_name.isprintable():
            raise OptionError(f"object name {printable(object_name)[:80]}: give a name without control characters")
        try:
            backbone = load_backbone(model, image_size=image_size, stages=stages, device=device, precision=precision)
        except OptionError as error:
            if bank is None or (image_size, stages) != (bank.spec.image_size, bank.spec.stages):
                raise
            raise ArtifactError(
                f"the bank of {bank.object_name!r} was made with settings that its model does not have ({error}); "
                "enroll the part again"
            ) from error
        layers = load_projector(projector, model, backbone.spec, progress=progress)
        object_name = object_name or DEFAULT_OBJECT
        text_features = encode_prompts(backbone.text, object_name)
        return cls(backbone.encoder, text_features, layers, bank, object_name, backbone.notes)

    def with_bank(self, bank: MemoryBank) -> Detector:
        """Return a copy that uses ``bank``, without encoding the prompts again. Raises ArtifactError."""
        other = copy.copy(self)
        other._use_bank(bank)
        return other

    def _use_bank(self, bank: MemoryBank | None) -> None:
        features: tuple[torch.Tensor, ...] = ()
        if bank is not None:
            bank.check(self.encoder.spec, self.projector_fingerprint, self.object_name)
            bank.check_grids(self.encoder.grids)
            features = tuple(rows.to(self.encoder.device) for rows in bank.features)
        self.bank = bank
        gallery = None if bank is None else bank.gallery
        self._gallery = None if gallery is None else gallery.to(self.encoder.device)
        self.method = AprilGan(self.encoder.spec, self.text_features, self.projector, features)

    def prepare(self, image: SourceImage) -> NDArray[np.float32]:
        """Resize a decoded image to the model's square input and normalize it, [3, S, S] float32."""
        spec = self.encoder.spec
        return to_pixels(image, spec.image_size, spec.mean, spec.std)

    def detect(self, pixels: NDArray[np.float32]) -> list[Detection]:
        """Score prepared images [B, 3, S, S] in one encoder pass, each independently of the others."""
        features = self.encoder.encode(pixels)
        detections = self.method.score(features)
        if self._gallery is None:
            return detections
        distances = distance_to(appearance(features), self._gallery).tolist()
        return [replace(found, part_distance=value) for found, value in zip(detections, distances, strict=True)]

    def detect_file(self, path: str | os.PathLike[str]) -> Detection:
        """Read, prepare and score one file. Raises InputError where it cannot be read."""
        return self.detect(self.prepare(read_image(Path(path)))[None])[0]
