"""Anomaly detection methods on the features of a frozen CLIP, one module each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from aprilcli.types import Evidence, ImageFeatures


class Scoring(Protocol):
    """How evidence becomes maps and scores. B inputs, S the side of the model's input in pixels."""

    def maps(self, evidence: Evidence) -> torch.Tensor | None:
        """Return the anomaly maps of B inputs, [B, S, S] float32; None for a method without maps."""
        ...

    def image_score(self, evidence: Evidence, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Return the score [] of an image, from the evidence of its inputs (several if it is tiled) and its map."""
        ...


class Method(Scoring, Protocol):
    """A way to use reference images. It sees features only, so one encoder pass serves every method.

    ``uses_windows``: whether it needs ``ImageFeatures.windows``.
    """

    uses_windows: bool

    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Learn from the features of reference images, at least one, replacing what was learned before."""
        ...

    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return what the method finds in each of B inputs, independently of the others."""
        ...
