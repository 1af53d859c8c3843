"""Images compared with the references of all settings of an evaluation.

The nearest distance to a bank is the smallest of the nearest distances to its references. So each image is compared
with each reference once, and every bank is a minimum over some of these distances: exact, and hardly more expensive
for sixteen banks than for one.

Symbols: N stages, h·w patches, K references of all settings, F settings with references.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from aprilcli.core.detector import Detector, EncodedReference, EvidenceOfViews, ModelInput
from aprilcli.core.fusion import balanced_weights
from aprilcli.core.memory_bank import unit_rows
from aprilcli.core.methods import Method
from aprilcli.core.methods.mutual import Mutual
from aprilcli.core.nearest import nearest_distance, nearest_in_banks
from aprilcli.defaults import APRIL_GAN, MUTUAL, WITH_ROTATIONS
from aprilcli.options import EvalFusion
from aprilcli.types import Evidence, ImageEvidence, ImageFeatures
from aprilcli.workflows.eval_settings import Setting


class Comparison:
    """Compares images with the references of every setting.

    ``methods``: of each setting and view. Without an enrolled part, the paper's method compares an image with each
    reference once, and each bank of its settings is a minimum over some of these distances. The others are fitted for
    each setting; only those in ``WITH_ROTATIONS`` see turned references.
    """

    def __init__(
        self,
        detector: Detector,
        settings: Sequence[Setting],
        chosen: Sequence[Sequence[int]],
        references: Sequence[EncodedReference],
        fusion: EvalFusion,
    ) -> None:
        """Fit the methods; ``chosen``: for each setting, positions in ``references``."""
        self._detector = detector
        self._settings = settings
        self._stages = len(detector.encoder.spec.stages)
        own = [
            tuple(features[: len(features.image) // len(image.appearances)] for features in image.features)
            for image in references
        ]  # as they are, without the turned
        self._rows: list[tuple[torch.Tensor, ...]] = []
        if any(setting.method == APRIL_GAN for setting in settings):
            tokens = [[tokens for view in views for tokens in view.patch_tokens] for views in own]
            self._rows = [tuple(unit_rows(stage).flatten(0, 1) for stage in stages) for stages in tokens]
        self._banks = [rows for setting, rows in zip(settings, chosen, strict=True) if _has_bank(setting)]

        def methods(setting: Setting, rows: Sequence[int]) -> tuple[Method | Mutual, ...]:
            if setting.method == MUTUAL:
                return tuple(Mutual(encoder.spec, detector.text_features) for encoder in detector.encoders_of_views)
            if setting.method == APRIL_GAN:
                is_balanced = fusion == EvalFusion.balanced
                return detector.weighted(_weights(self._rows, rows, self._stages) if is_balanced else ())
            turned = setting.method in WITH_ROTATIONS
            views = zip(*(references[k].features if turned else own[k] for k in rows), strict=True)
            return detector.fitted(setting.method, list(views) if rows else [()] * len(detector.views))

        if detector.bank is not None:
            self.methods: tuple[tuple[Method | Mutual, ...], ...] = (detector.methods,)
        else:
            self.methods = tuple(map(methods, settings, chosen))

    def evidence(
        self, images: list[ModelInput], features_of: list[list[ImageFeatures]] | None = None
    ) -> Iterator[tuple[tuple[ImageEvidence, ...], float | None, float | None]]:
        """Encode a batch; yield the evidence of each image under each setting.

        For an enrolled part, also the image's distance to the part, and to its references. The features of each image
        are added to ``features_of``, if it is given.
        """
        detector = self._detector
        if detector.bank is not None:
            found, compared, appearances = detector.compare(images)
            yield from zip(zip(found), detector.part_distances(appearances), compared, strict=True)
            return
        collected = [EvidenceOfViews(images) for _ in self._settings]
        windows = any(method.uses_windows for methods in self.methods for method in methods)
        for view, positions, features in detector.encode(images, windows):
            for row, position in enumerate(positions):
                if features_of is not None:
                    features_of[position].append(features[row : row + 1])
            own = iter(self._april_gan(view, features))
            for setting, methods, of_setting in zip(self._settings, self.methods, collected, strict=True):
                is_own = setting.method == APRIL_GAN
                of_setting.add(view, positions, next(own) if is_own else methods[view].evidence(features))
        for evidence in zip(*(of_setting.by_image() for of_setting in collected), strict=True):
            yield evidence, None, None

    def _april_gan(self, view: int, features: ImageFeatures) -> Iterator[Evidence]:
        """Yield the evidence under each setting of the paper's method."""
        own = [setting for setting in self._settings if setting.method == APRIL_GAN]
        if not own:
            return
        zero_shot = self._detector.zero_shot_methods[view].zero_shot(features)
        stages = []
        if self._banks:
            for stage, (tokens, grid) in enumerate(zip(features.patch_tokens, features.grids, strict=True)):
                rows = [reference[view * self._stages + stage] for reference in self._rows]
                nearest = nearest_in_banks(tokens, rows, self._banks)
                stages.append(nearest.reshape(len(tokens), len(self._banks), *grid))
        banks = iter(range(len(self._banks)))
        for setting in own:
            if _has_bank(setting):
                bank = next(banks)
                yield replace(zero_shot, distances=tuple(stage[:, bank] for stage in stages))
            else:
                yield zero_shot


def _has_bank(setting: Setting) -> bool:
    return setting.method == APRIL_GAN and setting.seed is not None


def _weights(references: list[tuple[torch.Tensor, ...]], chosen: Sequence[int], stages: int) -> tuple[float, ...]:
    """Return the balanced weights of a bank of the references at the ``chosen`` positions; none for fewer than two."""
    if len(chosen) < 2:
        return ()
    means = []
    for rows in zip(*(references[position] for position in chosen), strict=True):
        others = ((row, (*rows[:k], *rows[k + 1 :])) for k, row in enumerate(rows))
        means.append(torch.cat([nearest_distance(row[None], *rest)[0] for row, rest in others]).mean().item())
    return balanced_weights(means, stages)
