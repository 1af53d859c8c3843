"""Mutual scoring in an evaluation: the test images of an object score each other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from aprilcli.core import mutual
from aprilcli.core.detector import Detector
from aprilcli.core.mutual_subsets import LEAST, split
from aprilcli.errors import InputError, OutputError
from aprilcli.types import Detection, ImageEvidence, ImageFeatures
from aprilcli.workflows.mutual_features import MutualFeatures


class MutualImages:
    """An object's readable test images, in order; their features are on disk until they are scored."""

    def __init__(self, folder: Path, detector: Detector, count: int) -> None:
        """Make room for ``count`` images in ``folder``. Raises OutputError if the disk lacks it."""
        self._folder = folder
        try:
            self._features = MutualFeatures(folder, detector, count)
        except OutputError:
            self.remove()
            raise
        self._names: list[str] = []
        self._text_scores: list[float] = []
        self._images = torch.empty(0)

    def add(self, name: str, views: Sequence[ImageFeatures], text_score: float) -> None:
        """Keep the features of an image in each view. Raises OutputError."""
        self._features.put(len(self._names), views)
        self._names.append(name)
        self._text_scores.append(text_score)

    def score(self) -> list[ImageEvidence]:
        """Return the evidence of each image, in order: the scores of its patches.

        Raises InputError for fewer than ``LEAST`` images.
        """
        if len(self._names) < LEAST:
            raise InputError(
                f"{len(self._names)} readable images, but mutual scoring needs at least {LEAST}, which are compared "
                "with each other"
            )
        scores: dict[int, list[torch.Tensor]] = {}
        for subset in split(self._names):
            scores |= zip(subset, self._features.patch_scores(subset), strict=True)
        self._images = self._features.image_features(range(len(self._names)))
        return [self._features.evidence(text, scores[k]) for k, text in enumerate(self._text_scores)]

    def smoothed(self, detections: Sequence[Detection]) -> list[float]:
        """Return the image scores of all images, smoothed over similar images of their subset (RsCIN)."""
        scores = torch.tensor([detection.score for detection in detections])
        for subset in split(self._names):
            scores[subset] = mutual.smoothed_scores(scores[subset], self._images[subset])
        return list(scores.tolist())

    def remove(self) -> None:
        """Delete the features; what cannot be deleted stays."""
        shutil.rmtree(self._folder, ignore_errors=True)
