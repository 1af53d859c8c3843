"""Anomaly detection methods on the features of a frozen CLIP, one module each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aprilcli.types import Detection, ImageFeatures


class Method(Protocol):
    """A way to use reference images. It sees features only, so one encoder pass serves every method."""

    def fit(self, references: Iterable[ImageFeatures]) -> None:
        """Learn from the features of reference images, replacing what was learned before."""
        ...

    def score(self, features: ImageFeatures) -> list[Detection]:
        """Score the B images of ``features``, each independently of the others."""
        ...
