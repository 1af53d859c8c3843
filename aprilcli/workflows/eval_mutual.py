"""Mutual scoring in an evaluation: the test images of an object score each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from aprilcli.core import mutual
from aprilcli.core.detector import Detector
from aprilcli.core.grids import coarse_grid, coarsen
from aprilcli.core.mutual_subsets import LEAST, split
from aprilcli.errors import ArtifactError, InputError, OutputError
from aprilcli.io.feature_store import FeatureStore, free_bytes, remove_store, slot_bytes
from aprilcli.types import Detection, ImageEvidence, ImageFeatures

GIB = 2**30


class MutualImages:
    """The features of an object's readable test images, float16 on disk until the images are scored."""

    def __init__(self, folder: Path, detector: Detector, count: int) -> None:
        """Make room for ``count`` images in ``folder``. Raises OutputError if the disk lacks it."""
        encoders = detector.encoders_of_views
        self._device = detector.encoder.device
        self._stages = len(detector.encoder.spec.stages)
        self._grids = [coarse_grid(grid) for encoder in encoders for grid in encoder.grids]
        widths = [width for encoder in encoders for width in encoder.spec.stage_widths]
        shapes = [(h * w, width) for (h, w), width in zip(self._grids, widths, strict=True)]
        self._folder = folder
        self._names: list[str] = []
        self._evidence: list[ImageEvidence] = []
        self._images: list[torch.Tensor] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            needed, free = count * slot_bytes(shapes, np.float16), free_bytes(folder)
            if needed > free:
                raise OutputError(
                    f"{folder}: mutual scoring keeps the features of {count} images there, {needed / GIB:.1f} GiB, but "
                    f"only {free / GIB:.1f} GiB are free; free some, or write elsewhere"
                )
            self._store = FeatureStore(folder, count, shapes, np.float16)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error

    def add(self, name: str, views: Sequence[ImageFeatures], evidence: ImageEvidence) -> None:
        """Keep the features of an image in each view, and its ``evidence`` without distances. Raises OutputError."""
        tokens = [
            coarsen(stage, grid)[0][0].cpu().numpy().astype(np.float16)
            for view in views
            for stage, grid in zip(view.patch_tokens, view.grids, strict=True)
        ]
        if not all(np.isfinite(stage).all() for stage in tokens):
            raise ArtifactError("mutual scoring keeps patch tokens in float16, which this model's tokens exceed")
        try:
            self._store.put(len(self._names), tokens)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{self._folder}: cannot be written ({reason}); free some space") from error
        self._names.append(name)
        self._evidence.append(evidence)
        self._images.append(views[0].image.cpu())

    def score(self) -> list[ImageEvidence]:
        """Return the evidence of each image, in order, with the scores of its patches; deletes the features.

        Raises InputError for fewer than ``LEAST`` images.
        """
        try:
            if len(self._names) < LEAST:
                raise InputError(
                    f"{len(self._names)} readable images: mutual scores need at least {LEAST}, which are compared with "
                    "each other"
                )
            distances: list[list[torch.Tensor]] = [[] for _ in self._names]
            for subset in split(self._names):
                for number, grid in enumerate(self._grids):
                    tokens = torch.from_numpy(self._store.get_stage(number, subset)).to(self._device)
                    scores = mutual.stage_scores(tokens, len(subset), grid)
                    for position, of_image in zip(subset, scores, strict=True):
                        distances[position].append(of_image[None])
        finally:
            remove_store(self._folder)
        return [
            image.with_distances(
                tuple(stages[first : first + self._stages]) for first in range(0, len(stages), self._stages)
            )
            for image, stages in zip(self._evidence, distances, strict=True)
        ]

    def smoothed(self, detections: Sequence[Detection]) -> list[float]:
        """Return the image scores of all images, smoothed over similar images of their subset (RsCIN)."""
        scores = torch.tensor([detection.score for detection in detections])
        images = torch.cat(self._images)
        result = torch.empty(len(scores))
        for subset in split(self._names):
            result[subset] = mutual.smoothed_scores(scores[subset], images[subset])
        return list(result.tolist())
