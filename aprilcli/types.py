"""The values that travel between the rooms: frozen, with shapes and dtypes said once, here.

Symbols: B images, S input side in pixels, N stages, L = h·w patches, Cv vision width of a stage, C joint width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


LOGIT_SCALE = 100.0  # CLIP's, as the authors fix it
MAX_IMAGE_SIZE = 4096  # pixels of the model's input; a mistyped or hostile size would take all memory
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # and lone surrogates: no name that a file keeps has them
MAX_OBJECT_NAME = 200  # characters
MAX_TEXT = 300  # characters; a folder's name has 255 at most
_TEXTS = ("backbone", "pretrained", "activation", "fingerprint")
_COUNTS = ("image_size", "joint_width")


@dataclass(frozen=True)
class ModelSpec:
    """Which frozen CLIP, and how pictures enter it: all that a projector or a bank depends on.

    ``backbone``: an open_clip name, ``tiny``, or a folder's name. ``pretrained``: open_clip's tag, empty for folders.
    ``activation``: ``gelu`` or ``quickgelu``, of a ViT and of the text tower. ``image_size``: S in pixels.
    ``stages``: 1-based, as the paper counts blocks (ViT) or layers (ResNet). ``mean``, ``std``: per RGB channel, of
    pixel values in [0, 1]. ``fingerprint``: SHA-256 over the weights' names, shapes and values.
    ``logit_scale``: what cosines are multiplied by before a softmax.
    """

    backbone: str
    pretrained: str
    activation: str
    image_size: int
    stages: tuple[int, ...]
    stage_widths: tuple[int, ...]
    joint_width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fingerprint: str
    logit_scale: float = LOGIT_SCALE

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; ``from_json`` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ModelSpec:
        """Rebuild from ``to_json``'s dictionary (lists become tuples). Raises TypeError or ValueError."""
        if not isinstance(fields, Mapping):
            raise TypeError("the settings of a model are an object")
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in fields.items()}
        spec = cls(**values)
        of_kinds: list[tuple[Any, type]] = [(one, str) for name in _TEXTS for one in [values[name]]]
        of_kinds += [(one, int) for name in _COUNTS for one in [values[name]]]
        of_kinds += [(one, int) for one in (*spec.stages, *spec.stage_widths)]
        of_kinds += [(one, float) for one in (*spec.mean, *spec.std, spec.logit_scale)]
        if not all(isinstance(one, kind) for one, kind in of_kinds):
            raise TypeError("a setting of the model is of another type than it should be")
        if min(spec.image_size, spec.joint_width, *spec.stages, *spec.stage_widths) < 1 or not (
            len(spec.stages) == len(spec.stage_widths) and len(spec.mean) == len(spec.std) == 3
        ):
            raise ValueError("sizes must be positive, with a width for each stage and three channels")
        if any(len(values[name]) > MAX_TEXT or CONTROL.search(values[name]) for name in _TEXTS):
            raise ValueError("a text of the model is too long or holds control characters")
        if list(spec.stages) != sorted(set(spec.stages)):
            raise ValueError("stages must rise")
        if not 0 < spec.logit_scale < 1e6:
            raise ValueError(f"logit_scale {spec.logit_scale} must lie between 0 and a million")
        if spec.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size {spec.image_size} is beyond {MAX_IMAGE_SIZE}")
        return spec

    @property
    def label(self) -> str:
        """What a person calls the model: ``ViT-L-14-336:openai``."""
        return f"{self.backbone}:{self.pretrained}" if self.pretrained else self.backbone

    def mismatches(self, other: ModelSpec, names: Iterable[str]) -> str:
        """Name each of ``names`` in which two models differ, both sides: ``activation gelu against quickgelu``."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(f"{n} {_say(mine[n])} against {_say(theirs[n])}" for n in names if mine[n] != theirs[n])


def _say(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)  # a fingerprint: its head


@dataclass(frozen=True)
class ImageFeatures:
    """What one encoder pass gives, float32.

    ``image`` [B, C] unit rows; ``patch_tokens`` N × [B, L, Cv] raw; ``grids`` N × (h, w) with h·w = L.
    """

    image: torch.Tensor
    patch_tokens: tuple[torch.Tensor, ...]
    grids: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a method knows of B images before it is fused into scores and maps; float32.

    ``text_scores`` [B] in [0, 1] (eq. 1); ``logits`` N × [B, h, w], anomalous minus normal (eq. 2), empty without a
    projector; ``distances`` N × [B, h, w] in [0, 2] (eq. 4), empty without a bank.
    """

    text_scores: torch.Tensor
    logits: tuple[torch.Tensor, ...] = ()
    distances: tuple[torch.Tensor, ...] = ()

    def __getitem__(self, images: slice) -> Evidence:
        """Return the evidence of some of the images, as views."""
        return self._map(lambda values: values[images])

    def clone(self) -> Evidence:
        """Return a copy that shares no memory with this."""
        return self._map(lambda values: values.clone())

    def cpu(self) -> Evidence:
        """Return it in main memory."""
        return self._map(lambda values: values.cpu())

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Evidence:
        return Evidence(
            function(self.text_scores), tuple(map(function, self.logits)), tuple(map(function, self.distances))
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Evidence]) -> Evidence:
        """Join the images of all parts, in order; each part has the same stages."""
        import torch

        return cls(
            torch.cat([part.text_scores for part in parts]),
            tuple(map(torch.cat, zip(*(part.logits for part in parts), strict=True))),
            tuple(map(torch.cat, zip(*(part.distances for part in parts), strict=True))),
        )


@dataclass(frozen=True)
class Detection:
    """One picture's result.

    ``text_score`` in [0, 1] (eq. 1); ``map_max``: the maximum of ``anomaly_map``, None without a map;
    ``score``: ``text_score`` without a bank, ``text_score + map_max`` with one. ``anomaly_map`` [S, S] float32 at the
    model's size, None where neither projector nor bank is there to draw one.
    """

    text_score: float
    map_max: float | None
    score: float
    anomaly_map: np.ndarray | None = field(repr=False)
