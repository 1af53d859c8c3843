"""APRIL-GAN (Chen, Han, Zhang 2023): text comparison (eqs. 1-3) and a memory bank per stage (eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from aprilcli.core import maps
from aprilcli.core.memory_bank import unit_rows
from aprilcli.core.nearest import nearest_distance
from aprilcli.core.projector import Projector
from aprilcli.core.score_choice import BOTH, top_mean
from aprilcli.errors import ArtifactError
from aprilcli.text import printable
from aprilcli.types import Evidence, ImageFeatures, ModelSpec


class AprilGan:
    """The paper's method; all tensors are on one device.

    ``text_features`` [2, C]: row 0 normal, row 1 anomalous. Without a projector there is no zero-shot map, without
    ``bank_features`` (N × [M, Cv] unit rows) no few-shot map. ``stage_weights``: N factors of the stages' distances
    (see ``fusion.balanced_weights``), by default 1 as in the paper. ``score``: a variant of ``core/score_choice.py``.
    """

    uses_windows = False

    def __init__(
        self,
        spec: ModelSpec,
        text_features: torch.Tensor,
        projector: Projector | None = None,
        bank_features: tuple[torch.Tensor, ...] = (),
        stage_weights: Sequence[float] = (),
        score: str = BOTH,
    ) -> None:
        """Use these tensors as they are, without copying."""
        self.spec = spec
        self.text_features = text_features
        self.projector = projector
        self.bank_features = bank_features
        self.stage_weights = stage_weights
        self.score = score

    def fit(self, references: Sequence[ImageFeatures]) -> None:
        """Make the bank from all patch tokens of the references, float32."""
        stages = zip(*(features.patch_tokens for features in references), strict=True)
        self.bank_features = tuple(unit_rows(torch.cat([stage.flatten(0, 1) for stage in tokens])) for tokens in stages)

    @torch.inference_mode()
    def maps(self, evidence: Evidence) -> torch.Tensor | None:
        """Return the zero-shot maps (eq. 3) plus the few-shot maps (eq. 4), whichever there are: [B, S, S]."""
        return self._maps(evidence, range(len(self.spec.stages)))

    def _maps(self, evidence: Evidence, stages: Sequence[int]) -> torch.Tensor | None:
        """Return the maps of some of the stages."""
        branches, size = [], self.spec.image_size
        if evidence.logits:
            branches.append(maps.zero_shot_map((evidence.logits[n] for n in stages), size))
        if evidence.distances:
            factors = self.stage_weights or (1.0,) * len(evidence.distances)
            chosen = ((evidence.distances[n], factors[n]) for n in stages)
            weighted = (distances if w == 1 else distances * w for distances, w in chosen)
            branches.append(maps.few_shot_map(weighted, size))
        return sum(branches[1:], branches[0]) if branches else None

    def image_score(self, evidence: Evidence, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Return the text score; with distances the text score plus the map maximum, or another chosen score."""
        text = evidence.text_scores.max()
        if anomaly_map is None or not evidence.distances or self.score == "text":
            return text
        if self.score == "top":
            return top_mean(anomaly_map)
        if self.score.startswith("stage."):
            stage_maps = self._maps(evidence, [int(self.score.removeprefix("stage.")) - 1])
            return text if stage_maps is None else stage_maps.max()
        return anomaly_map.max() if self.score == "map" else text.to(anomaly_map.device) + anomaly_map.max()

    @torch.inference_mode()
    def zero_shot(self, features: ImageFeatures) -> Evidence:
        """Return text scores (eq. 1) and logits (eq. 2). Raises ArtifactError where the projector gives NaN."""
        text_scores = maps.text_score(features.image, self.text_features, self.spec.logit_scale)
        return Evidence(text_scores, self._logits(features))

    @torch.inference_mode()
    def evidence(self, features: ImageFeatures) -> Evidence:
        """Return the zero-shot evidence and, with a bank, the distances (eq. 4)."""
        if not self.bank_features:
            return self.zero_shot(features)
        searched = zip(features.patch_tokens, self.bank_features, features.grids, strict=True)
        distances = tuple(nearest_distance(tokens, rows).reshape(-1, *grid) for tokens, rows, grid in searched)
        return replace(self.zero_shot(features), distances=distances)

    def _logits(self, features: ImageFeatures) -> tuple[torch.Tensor, ...]:
        if self.projector is None:
            return ()
        projected = self.projector(features.patch_tokens)
        logits = tuple(
            maps.anomaly_logits(tokens, self.text_features, grid, self.spec.logit_scale)
            for tokens, grid in zip(projected, features.grids, strict=True)
        )
        if not torch.stack([stage.sum() for stage in logits]).isfinite().all():  # a sum with NaN is NaN
            name = printable(self.projector.name or "the projector")
            raise ArtifactError(f"{name}: its weights overflow to NaN; train it again or download it again")
        return logits
