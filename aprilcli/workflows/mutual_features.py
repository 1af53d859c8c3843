"""The features of a folder's images for mutual scoring (see ``core/mutual.py``), on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aprilcli.core import mutual
from aprilcli.core.detector import Detector
from aprilcli.core.grids import coarse_grid, coarsen
from aprilcli.core.methods.mutual import Mutual
from aprilcli.core.recognition import appearance
from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.feature_store import FeatureStore, free_bytes, slot_bytes
from aprilcli.types import Evidence, ImageEvidence, ImageFeatures

GIB = 2**30
TOKENS, IMAGES = "tokens", "images"

Known = tuple[list[NDArray[np.float16]], NDArray[np.float32]]  # tokens V·N × [M, L, Cv] and image features [M, C]


class MutualFeatures:
    """A slot per image: coarsened patch tokens of each view and stage, float16; image features and appearances.

    ``methods``: what turns the scores of patches into maps, for each view. ``grids``: V·N.
    """

    def __init__(self, folder: Path, detector: Detector, slots: int, kept: int = 0) -> None:
        """Make room for ``slots`` images in ``folder``; the first ``kept`` are there. Raises OutputError."""
        encoders = detector.encoders_of_views
        self.methods = tuple(Mutual(encoder.spec, detector.text_features) for encoder in encoders)
        self.sizes = detector.views.sizes
        self.grids = [coarse_grid(grid) for encoder in encoders for grid in encoder.grids]
        self._device = detector.encoder.device
        self._folder = folder
        widths = [width for encoder in encoders for width in encoder.spec.stage_widths]
        shapes = [(h * w, width) for (h, w), width in zip(self.grids, widths, strict=True)]
        spec = detector.encoder.spec
        joint = [(spec.joint_width,), (sum(spec.stage_widths),)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            each = slot_bytes(shapes, np.float16) + slot_bytes(joint)
            needed, free = (slots - kept) * each, free_bytes(folder)
            if needed > free:
                raise OutputError(
                    f"{folder}: mutual scoring keeps the features of {slots - kept} images here, "
                    f"{needed / GIB:.2f} GiB, but only {free / GIB:.2f} GiB are free; free some, or write elsewhere"
                )
            self._tokens = FeatureStore(folder / TOKENS, slots, shapes, np.float16, kept=kept)
            self._images = FeatureStore(folder / IMAGES, slots, joint, kept=kept)
        except OSError as error:
            raise _not_written(folder, error) from error

    def put(self, slot: int, views: Sequence[ImageFeatures]) -> None:
        """Keep the features of an image in each view. Raises OutputError."""
        try:
            self._tokens.put(slot, stored_tokens(views))
            self._images.put(slot, [v[0].cpu().numpy() for v in (views[0].image, appearance(views[0]))])
        except OSError as error:
            raise _not_written(self._folder, error) from error

    def image_features(self, slots: Sequence[int]) -> torch.Tensor:
        """Return the image features of some images, [n, C]."""
        return torch.from_numpy(self._images.get_stage(0, slots))

    def appearances(self, slots: Sequence[int]) -> torch.Tensor:
        """Return the appearances of some images, [n, ΣCv] (see ``core/recognition.py``)."""
        return torch.from_numpy(self._images.get_stage(1, slots))

    def patch_scores(
        self, slots: Sequence[int], known: Known | None = None, interrupted: Callable[[], bool] = lambda: False
    ) -> list[list[torch.Tensor]]:
        """Return the scores of the patches of images that score each other: for each image, V·N × [h, w].

        ``known``: further images, which come last. If ``interrupted``, returns nothing.
        """
        scores: list[list[torch.Tensor]] = [[] for _ in range(len(slots) + (0 if known is None else len(known[1])))]
        for number, grid in enumerate(self.grids):
            if interrupted():
                return []
            tokens = torch.from_numpy(self._tokens.get_stage(number, slots))
            if known is not None:
                tokens = torch.cat([tokens, torch.from_numpy(known[0][number])])
            tokens = tokens.to(self._device)
            for image, of_stage in zip(scores, mutual.stage_scores(tokens, len(tokens), grid).cpu(), strict=True):
                image.append(of_stage)
        return scores

    def evidence(self, text_score: float, stages: Sequence[torch.Tensor]) -> ImageEvidence:
        """Return the evidence of an image from the scores of its patches, V·N × [h, w]."""
        count = len(self.grids) // len(self.methods)
        text = torch.tensor([text_score])
        views = (stages[first : first + count] for first in range(0, len(stages), count))
        return ImageEvidence(tuple(Evidence(text, distances=tuple(stage[None] for stage in view)) for view in views))


def stored_tokens(views: Sequence[ImageFeatures]) -> list[NDArray[np.float16]]:
    """Return the tokens of an image as they are kept, V·N × [L, Cv]. Raises ArtifactError if they are too large."""
    tokens = [
        coarsen(stage, grid)[0][0].cpu().numpy().astype(np.float16)
        for view in views
        for stage, grid in zip(view.patch_tokens, view.grids, strict=True)
    ]
    if not all(np.isfinite(stage).all() for stage in tokens):
        raise ArtifactError("this model's patch tokens are too large for float16, in which mutual scoring keeps them")
    return tokens


def _not_written(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder}: cannot be written ({error.strerror or error}); free some space, or write elsewhere")
