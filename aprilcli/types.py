"""Values passed between modules: frozen, with their shapes, dtypes and limits.

Symbols: B images, S input side in pixels, N stages, L = h·w patches, Cv vision width of a stage, C joint width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict

if TYPE_CHECKING:
    import numpy as np
    import torch


LOGIT_SCALE = 100.0  # CLIP's, as the authors fix it
MAX_LOGIT_SCALE = 1e6
MAX_IMAGE_SIZE = 4096  # pixels; a larger input would exhaust memory
MAX_SIZES = 4  # each costs a pass of the encoder
WINDOWS = (2, 3)  # sides in patches of WinCLIP's windows
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and lone surrogates
MAX_OBJECT_NAME = 200  # characters
MAX_TEXT = 300  # characters; a folder's name has 255 at most
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # for dataclasses that describe JSON from files


def one_line(text: str) -> str:
    """Refuse text with control characters or surrogates. Raises ValueError."""
    if CONTROL.search(text):
        raise ValueError("must be one line without control characters")
    return text


def _ascending(stages: tuple[int, ...]) -> tuple[int, ...]:
    if any(stage >= following for stage, following in pairwise(stages)):
        raise ValueError("must be in ascending order")
    return stages


def _no_integer(value: object) -> object:
    if isinstance(value, int):
        raise ValueError("must be a float")
    return value


Number = Annotated[float, Strict()]  # takes integers too
Float = Annotated[Number, BeforeValidator(_no_integer)]
Size = Annotated[int, Strict(), Field(ge=1)]
Name = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(one_line)]


@dataclass(frozen=True)
class ModelSpec:
    """A frozen CLIP and how images enter it: all that a projector or a bank depends on.

    ``backbone``: an open_clip name, ``tiny``, or a folder's name. ``pretrained``: open_clip's tag, empty for folders.
    ``activation``: ``gelu`` or ``quickgelu``, of a ViT and of the text encoder. ``image_size``: S in pixels.
    ``stages``: stages of the image tower, numbered from 1 as in the paper. ``mean``, ``std``: per RGB channel, of pixel
    values in [0, 1]. ``fingerprint``: SHA-256 over the weights' names, shapes and values.
    ``logit_scale``: factor applied to cosines before a softmax.
    """

    __pydantic_config__: ClassVar = STRICT

    backbone: Name
    pretrained: Name
    activation: Name
    image_size: Annotated[Size, Field(le=MAX_IMAGE_SIZE)]
    stages: Annotated[tuple[Size, ...], AfterValidator(_ascending)]
    stage_widths: tuple[Size, ...]
    joint_width: Size
    mean: tuple[Float, Float, Float]
    std: tuple[Float, Float, Float]
    fingerprint: Name
    logit_scale: Annotated[Float, Field(gt=0, lt=MAX_LOGIT_SCALE)] = LOGIT_SCALE

    def __post_init__(self) -> None:
        """Check that each stage has a width. Raises ValueError."""
        if len(self.stages) != len(self.stage_widths):
            raise ValueError(f"{len(self.stages)} stages but {len(self.stage_widths)} stage_widths")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The model's name for users: ``ViT-L-14-336:openai``."""
        return f"{self.backbone}:{self.pretrained}" if self.pretrained else self.backbone

    def mismatches(self, other: ModelSpec, names: Iterable[str]) -> str:
        """List the fields among ``names`` that differ, with both values: ``activation gelu against quickgelu``."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(f"{n} {_shown(mine[n])} against {_shown(theirs[n])}" for n in names if mine[n] != theirs[n])


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)  # fingerprints are shortened


@dataclass(frozen=True)
class Views:
    """The inputs that the model gets of an image: the whole image at each size, and tiles.

    ``sizes``: sides of the inputs in pixels; tiles are resized to the first. ``tile``: the side of a tile in pixels of
    the image; None for no tiles.
    """

    __pydantic_config__: ClassVar = STRICT

    sizes: Annotated[tuple[Annotated[Size, Field(le=MAX_IMAGE_SIZE)], ...], Field(min_length=1, max_length=MAX_SIZES)]
    tile: Size | None = None

    def __len__(self) -> int:
        """Return the number of views, V."""
        return len(self.sizes) + (self.tile is not None)

    @property
    def label(self) -> str:
        """The views for users: ``256,384, tiles of 512``."""
        sizes = ",".join(map(str, self.sizes))
        return sizes if self.tile is None else f"{sizes}, tiles of {self.tile}"


@dataclass(frozen=True)
class ImageFeatures:
    """Output of one encoder pass, float32.

    ``image`` [B, C] unit rows; ``patch_tokens`` N × [B, L, Cv] raw; ``grids`` N × (h, w) with h·w = L. ``windows``:
    the features of windows of each side of ``WINDOWS``, [B, h', w', C] unit rows; empty unless they were asked for.
    """

    image: torch.Tensor
    patch_tokens: tuple[torch.Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    windows: tuple[torch.Tensor, ...] = ()

    def __getitem__(self, images: slice) -> ImageFeatures:
        """Return the features of some of the images, as views."""
        return self._map(lambda values: values[images])

    def to(self, device: torch.device) -> ImageFeatures:
        """Return the features on a device."""
        return self._map(lambda values: values.to(device))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ImageFeatures:
        patch_tokens, windows = tuple(map(function, self.patch_tokens)), tuple(map(function, self.windows))
        return ImageFeatures(function(self.image), patch_tokens, self.grids, windows)

    @classmethod
    def concatenate(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Join the images of all parts, in order; each part has the same grids."""
        import torch

        return cls(
            torch.cat([part.image for part in parts]),
            tuple(map(torch.cat, zip(*(part.patch_tokens for part in parts), strict=True))),
            parts[0].grids,
            tuple(map(torch.cat, zip(*(part.windows for part in parts), strict=True))),
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """A method's results for B images before ``fuse`` turns them into scores and maps; float32.

    ``text_scores`` [B] in [0, 1] (eq. 1); ``logits`` N × [B, h, w], anomalous minus normal (eq. 2), empty without a
    projector; ``distances`` N × [B, h, w] in [0, 2] (eq. 4), empty without a bank. Other methods than the paper's
    have distances of their own, and ``image_scores`` [B] if these do not follow from the map (see ``core/methods``).
    """

    text_scores: torch.Tensor
    logits: tuple[torch.Tensor, ...] = ()
    distances: tuple[torch.Tensor, ...] = ()
    image_scores: torch.Tensor | None = None

    def __getitem__(self, images: slice) -> Evidence:
        """Return the evidence of some of the images, as views."""
        return self._map(lambda values: values[images])

    def cpu(self) -> Evidence:
        """Return the evidence in main memory."""
        return self._map(lambda values: values.cpu())

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Evidence:
        return Evidence(
            function(self.text_scores),
            tuple(map(function, self.logits)),
            tuple(map(function, self.distances)),
            None if self.image_scores is None else function(self.image_scores),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Evidence]) -> Evidence:
        """Join the images of all parts, in order; each part has the same stages."""
        import torch

        image_scores = [part.image_scores for part in parts if part.image_scores is not None]
        return cls(
            torch.cat([part.text_scores for part in parts]),
            tuple(map(torch.cat, zip(*(part.logits for part in parts), strict=True))),
            tuple(map(torch.cat, zip(*(part.distances for part in parts), strict=True))),
            torch.cat(image_scores) if image_scores else None,
        )


@dataclass(frozen=True)
class TileLayout:
    """The tiles of an image, row by row (see ``core/tiling.py``).

    ``size_hw``: of the image, in source pixels. ``canvas_hw``: of its map. ``tops``, ``lefts``: where the rows and
    columns of tiles start, in canvas pixels. ``side``: S, of a tile on the canvas.
    """

    size_hw: tuple[int, int]
    canvas_hw: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    side: int

    def __len__(self) -> int:
        """Return the number of tiles, T."""
        return len(self.tops) * len(self.lefts)


@dataclass(frozen=True, eq=False)
class ImageEvidence:
    """A method's results for one image: ``views`` has the evidence of each of V views.

    It is of one input for a whole image, and of T for the view of the tiles, which lie as ``layout`` says.
    """

    views: tuple[Evidence, ...]
    layout: TileLayout | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The number of inputs of each view."""
        whole = len(self.views) - (self.layout is not None)
        return (1,) * whole if self.layout is None else (*(1,) * whole, len(self.layout))

    @property
    def mean_distance(self) -> float:
        """The mean distance of the patches, each stage of each view counting the same."""
        import torch

        return torch.stack([stage.mean() for view in self.views for stage in view.distances]).mean().item()

    def cpu(self) -> ImageEvidence:
        """Return the evidence in main memory."""
        return replace(self, views=tuple(view.cpu() for view in self.views))

    def with_distances(self, distances: Iterable[tuple[torch.Tensor, ...]]) -> ImageEvidence:
        """Return the same evidence with the distances of each view, V × N × [1 or T, h, w]."""
        views = zip(self.views, distances, strict=True)
        return replace(self, views=tuple(replace(view, distances=stages) for view, stages in views))


@dataclass(frozen=True, slots=True)  # there may be millions in a report
class Region:
    """A connected region of an image whose map reaches the pixel threshold; in pixels of the image.

    ``x``, ``y``: of the top left pixel of the bounding box. ``area``: number of pixels of the region. ``peak`` and
    ``mean``: of the map's values in it.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    mean: float


@dataclass(frozen=True)
class Detection:
    """One image's result.

    ``text_score`` in [0, 1] (eq. 1); ``map_max``: the maximum of ``anomaly_map``, None without a map;
    ``score``: ``text_score`` without a bank, ``text_score + map_max`` with one; with several views the mean of their
    scores. ``anomaly_map`` [S, S] float32 at the model's largest input size, with tiles that of their layout; None
    without projector and bank. ``part_distance`` in [0, 2]: how far the image is from the
    part's good images (see ``core/recognition.py``), None without a bank that keeps their appearance.
    """

    text_score: float
    map_max: float | None
    score: float
    anomaly_map: np.ndarray | None = field(repr=False)
    part_distance: float | None = None
