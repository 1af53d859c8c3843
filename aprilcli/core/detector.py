"""The façade: a backbone, its projector and, where there is one, a part's memory bank, scoring pictures."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import maps
from aprilcli.core.backbone import TINY, Backbone, load_backbone
from aprilcli.core.memory_bank import MAX_OBJECT_NAME, MemoryBank
from aprilcli.core.nearest import nearest_distance
from aprilcli.core.projector import Projector, load_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.errors import ArtifactError, OptionError
from aprilcli.io.images import SourceImage, read_image, to_pixels
from aprilcli.text import printable
from aprilcli.types import Detection, ImageFeatures

DEFAULT_OBJECT = "object"


class Detector:
    """Scores pictures: zero-shot, and few-shot where a memory bank is given, in one encoder pass.

    ``notes`` holds what the user should hear once.
    """

    def __init__(
        self,
        backbone: Backbone,
        projector: Projector | None = None,
        bank: MemoryBank | None = None,
        object_name: str = DEFAULT_OBJECT,
    ) -> None:
        """Encode the prompts once. Raises ArtifactError where ``bank`` was made with anything else than the rest.

        OptionError for a name too long.
        """
        self.backbone = backbone
        self.projector = projector.to(backbone.device) if projector is not None else None
        self.projector_fingerprint = projector.identity["fingerprint"] if projector is not None else ""
        if len(object_name) > MAX_OBJECT_NAME:
            raise OptionError(f"--object: a name of {len(object_name):,} characters; give at most {MAX_OBJECT_NAME}")
        self.object_name = object_name
        self._take(bank)
        self.text_features = encode_prompts(backbone, object_name)
        self.notes = backbone.notes
        if projector is None:
            without = "few-shot maps and text scores" if bank is not None else "text scores, no maps"
            self.notes += (f"this model has no projector: {without} (--projector FILE adds zero-shot maps)",)

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

        What is None comes from the bank's own settings, without a bank from the defaults: ``tiny``, ``object`` and the
        model's own. Raises the package's errors.
        """
        if bank is not None:
            model = model or bank.recipe.model
            projector = projector or bank.recipe.projector
            object_name = object_name or bank.object_name
            image_size, stages = image_size or bank.spec.image_size, stages or bank.spec.stages
        model = model or TINY
        if object_name is not None and not object_name.isprintable():
            raise OptionError(f"--object {printable(object_name)[:80]}: give a name without control characters")
        try:
            backbone = load_backbone(model, image_size=image_size, stages=stages, device=device, precision=precision)
        except OptionError as error:
            if bank is None or (image_size, stages) != (bank.spec.image_size, bank.spec.stages):
                raise
            raise ArtifactError(
                f"the bank of {bank.object_name!r} was made with settings that its model does not have ({error}); "
                "enroll the part anew"
            ) from error
        layers = load_projector(projector, model, backbone.spec, progress=progress)
        return cls(backbone, layers, bank, object_name or DEFAULT_OBJECT)

    def with_bank(self, bank: MemoryBank) -> Detector:
        """Return this detector with ``bank`` in it; the prompts are not encoded again. Raises ArtifactError."""
        other = copy.copy(self)
        other._take(bank)
        return other

    def _take(self, bank: MemoryBank | None) -> None:
        """Compare with ``bank`` from now on, its rows on the model's device. Raises ArtifactError."""
        if bank is not None:
            bank.check(self.backbone.spec, self.projector_fingerprint, self.object_name)
            bank.check_grids(self.backbone.grids)
        self.bank = bank
        self._bank_features = tuple(rows.to(self.backbone.device) for rows in bank.features) if bank is not None else ()

    @property
    def has_maps(self) -> bool:
        """Whether there is anything to draw a map from."""
        return self.projector is not None or self.bank is not None

    def prepare(self, picture: SourceImage) -> NDArray[np.float32]:
        """Squash and normalise a decoded picture to the model's input, [3, S, S] float32."""
        spec = self.backbone.spec
        return to_pixels(picture, spec.image_size, spec.mean, spec.std)

    def detect(self, pixels: NDArray[np.float32] | torch.Tensor) -> list[Detection]:
        """Score prepared pictures [B, 3, S, S] in one encoder pass; a score never depends on its neighbours."""
        return self.score(self.backbone.encode(torch.as_tensor(pixels)))

    def detect_file(self, path: str | os.PathLike[str]) -> Detection:
        """Read, prepare and score one file. Raises InputError where it cannot be read."""
        return self.detect(self.prepare(read_image(Path(path)))[None])[0]

    @torch.inference_mode()
    def score(self, features: ImageFeatures) -> list[Detection]:
        """Turn features into results: eq. 1, and the sum of eqs. 3 and 4."""
        text_scores = self.text_scores(features)
        if not self.has_maps:
            return [Detection(text, None, text, None) for text in text_scores.tolist()]
        anomaly_maps = self._anomaly_maps(features)
        maxima = self.backbone.check_finite(anomaly_maps.flatten(1).amax(dim=1))
        scores = text_scores + maxima if self.bank is not None else text_scores  # in float32, as they are written
        columns = zip(text_scores.tolist(), maxima.tolist(), scores.tolist(), anomaly_maps.cpu().numpy(), strict=True)
        return [Detection(*values) for values in columns]

    @torch.inference_mode()
    def text_scores(self, features: ImageFeatures) -> torch.Tensor:
        """Eq. 1, [B] in [0, 1]."""
        return maps.text_score(features.image, self.text_features)

    @torch.inference_mode()
    def logits(self, features: ImageFeatures) -> tuple[torch.Tensor, ...]:
        """Eq. 2: per stage the anomalous minus the normal logit, N × [B, h, w]; none without a projector."""
        if self.projector is None:
            return ()
        projected = self.projector(features.patch_tokens)
        logits = tuple(
            maps.anomaly_logits(tokens, self.text_features, grid)
            for tokens, grid in zip(projected, features.grids, strict=True)
        )
        if not torch.stack([stage.sum() for stage in logits]).isfinite().all():  # NaN adds up; one look for all stages
            raise ArtifactError(
                f"{printable(self.projector.name or 'the projector')}: its weights overflow to NaN; "
                "train or fetch it anew"
            )
        return logits

    def _anomaly_maps(self, features: ImageFeatures) -> torch.Tensor:
        """The sum of what there is: eq. 3 with a projector, eq. 4 with a bank. [B, S, S]."""
        size = self.backbone.spec.image_size
        branches = []
        if self.projector is not None:
            branches.append(maps.zero_shot_map(self.logits(features), size))
        if self.bank is not None:
            searched = zip(features.patch_tokens, self._bank_features, features.grids, strict=True)
            distances = (nearest_distance(tokens, rows).reshape(-1, *grid) for tokens, rows, grid in searched)
            branches.append(maps.few_shot_map(distances, size))
        return sum(branches[1:], branches[0])
