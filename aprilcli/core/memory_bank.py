"""A memory bank: unit patch tokens of a part's reference images, per stage (the rows of eq. 4), and how it is built.

Symbols: V views (input sizes and tiles), N stages, K sources (reference images), L patches of a source in a view, M
rows of a stage (the sum of L over the sources, fewer after subsampling), Cv the stage's width. Rows of one source are
adjacent, in the order of the sources, also after subsampling: the bank without one source is two slices of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, Strict

from aprilcli import __version__
from aprilcli.core.calibration import Calibration
from aprilcli.core.coreset import coreset
from aprilcli.core.device import is_interchangeable
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.quantization import QuantizationImages
from aprilcli.core.score_choice import BOTH, ScoreChoice
from aprilcli.defaults import APRIL_GAN, METHODS
from aprilcli.errors import ArtifactError, InputError
from aprilcli.types import STRICT, ImageEvidence, ImageFeatures, ModelSpec, Number, Views, one_line

# What patch tokens depend on. Not the model's name: a folder may move, and the fingerprint identifies its weights.
MUST_MATCH = ("fingerprint", "activation", "image_size", "stages", "stage_widths", "mean", "std")
MAX_PATH = 4096  # characters
ROTATIONS = 8  # turned by 90° steps, each also mirrored; the first is the image itself


def _file_path(path: str) -> str:
    # os.fsdecode turns bytes that are not UTF-8 into U+DC80 to U+DCFF; a file's name has no other surrogates.
    if len(path) > MAX_PATH or re.search("[\ud800-\udc7f\udd00-\udfff]", path):
        raise ValueError(f"must be a path of at most {MAX_PATH} characters")
    return path


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("black must be below white")
    return limits


_Text = Annotated[str, Field(max_length=MAX_PATH), AfterValidator(one_line)]


@dataclass(frozen=True)
class Source:
    """A reference image: its path relative to the enrolled folder, with ``/``, and the SHA-256 of its content."""

    path: Annotated[str, Strict(), AfterValidator(_file_path)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Recipe:
    """The options a bank was made with; they load its model and projector again.

    ``projector_fingerprint``: SHA-256 of the projector's weights, empty without a projector. ``value_range``: the
    sample values of black and white in its images, None for the range of their type. ``fusion``: sum, or balanced (see
    ``stage_weights``). ``rotations``: each source is in the bank in ``ROTATIONS`` positions. ``engine`` and
    ``precision``: of the image encoder; the precision is None in banks of earlier versions, which do not know it.
    ``method``: how the references are used (see ``core/methods``).
    """

    __pydantic_config__: ClassVar = STRICT

    model: _Text = ""
    projector: _Text | None = None
    projector_fingerprint: _Text = ""
    value_range: Annotated[tuple[Number, Number], AfterValidator(_rising)] | None = None
    rotations: Annotated[bool, Strict()] = False
    fusion: Annotated[str, Field(pattern="^(sum|balanced)$")] = "sum"
    engine: Annotated[str, Field(pattern="^(torch|openvino)$")] = "torch"
    precision: Annotated[str, Field(pattern="^(fp32|bf16|fp16|int8)$")] | None = None
    method: Annotated[str, Field(pattern=f"^({'|'.join(METHODS)})$")] = APRIL_GAN


@dataclass(frozen=True, eq=False)
class CalibrationImages:
    """Good images that a bank was calibrated on, kept to score them again when the bank grows.

    ``pixels``: for each size [n, S, S, 3] uint8, what the encoder sees, before normalization; empty with tiles, which
    would take as much space as the images. ``appearances`` [n, ΣCv].
    """

    sources: tuple[Source, ...]
    pixels: tuple[torch.Tensor, ...]
    appearances: torch.Tensor


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """A part's reference images. Raises ArtifactError where its pieces do not fit each other.

    ``features``: V·N × [M, Cv] unit rows, all float32 or all float16, view by view. ``rows_per_source``: V·N × K counts
    that add up to the stages' M. ``spec``: the model at the first size. ``coreset_fraction``: the share of rows kept,
    in (0, 1]. ``created``: ISO 8601, UTC; ``version``: of the aprilcli that made it. ``recipe``: how to load the model
    and projector. ``zero_shot``: the evidence of each source, to which leave-one-out adds distances. ``appearances``
    [K, ΣCv], with rotations [8·K, ΣCv]: see ``core/recognition.py``; ``fits`` [K]: the score of each source against the
    others, by which outliers are found; ``spacings`` [K]: mean distance of its patches to the nearest other source.
    These four are empty or None in banks of earlier versions. ``calibration_images``: those given for the calibration.
    ``further_sizes``, ``tile``: see ``views``. ``stage_weights``: V·N factors of the distances (see
    ``fusion.balanced_weights``); empty for 1. ``quantization``: the images that an int8 model is quantized with.
    ``thumbnails``: a small JPEG of each source, empty for those that an earlier version enrolled; () without any.
    ``norms``: V·N × [M], the lengths of the tokens before they became unit rows; ``image_features``: V × [inputs, C],
    of all inputs of all sources, in their order; ``windows``: V × W × [inputs, h', w', C] (see ``ImageFeatures``).
    These three are empty in banks of earlier versions and in coresets, ``windows`` also for methods without them.
    ``choice``: of the image score; None for that of the method.
    """

    features: tuple[torch.Tensor, ...]
    rows_per_source: tuple[tuple[int, ...], ...]
    spec: ModelSpec
    object_name: str
    sources: tuple[Source, ...]
    calibration: Calibration | None = None
    coreset_fraction: float = 1.0
    created: str = ""
    version: str = __version__
    recipe: Recipe = Recipe()
    zero_shot: tuple[ImageEvidence, ...] = ()
    appearances: torch.Tensor | None = None
    fits: torch.Tensor | None = None
    spacings: torch.Tensor | None = None
    calibration_images: CalibrationImages | None = None
    further_sizes: tuple[int, ...] = ()
    tile: int | None = None
    stage_weights: tuple[float, ...] = ()
    quantization: QuantizationImages | None = None
    thumbnails: tuple[bytes, ...] = field(default=(), repr=False)
    norms: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    image_features: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    windows: tuple[tuple[torch.Tensor, ...], ...] = field(default=(), repr=False)
    choice: ScoreChoice | None = None

    def __post_init__(self) -> None:
        """Check that rows, counts, sources and model fit each other; set ``created`` to now if empty."""
        shapes = [tuple(rows.shape) for rows in self.features]
        widths = list(self.spec.stage_widths) * len(self.views)
        counts = self.rows_per_source
        if [shape[1:] for shape in shapes] != [(width,) for width in widths]:
            raise ArtifactError(
                f"this bank's stages have shapes {shapes}, but its model has widths {widths}; enroll the part again"
            )
        if {rows.dtype for rows in self.features} not in ({torch.float16}, {torch.float32}):
            raise ArtifactError("this bank's rows are neither all float16 nor all float32; enroll the part again")
        if not self.sources or any(len(stage) != len(self.sources) or min(stage) < 0 for stage in counts):
            raise ArtifactError(
                f"this bank's rows_per_source does not match its {len(self.sources)} sources; enroll the part again"
            )
        if [sum(stage) for stage in counts] != [shape[0] for shape in shapes] or any(not shape[0] for shape in shapes):
            raise ArtifactError(
                f"this bank's stages {shapes} do not match the sums of rows_per_source; enroll the part again"
            )
        if (self.recipe.precision == "int8") != (self.quantization is not None):
            raise ArtifactError("this bank needs quantization_images for int8, and only for it; enroll the part again")
        if len(self.thumbnails) not in (0, len(self.sources)):
            raise ArtifactError(
                f"this bank has {len(self.thumbnails)} thumbnails of {len(self.sources)} sources; enroll the part again"
            )
        if self.norms and [len(norms) for norms in self.norms] != [shape[0] for shape in shapes]:
            raise ArtifactError("this bank's norms do not match its rows; enroll the part again")
        if self.zero_shot:
            self._check_zero_shot(self.zero_shot)
        if not self.created:
            object.__setattr__(self, "created", datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def views(self) -> Views:
        """The views of each source."""
        return Views((self.spec.image_size, *self.further_sizes), self.tile)

    @property
    def score(self) -> str:
        """The variant of the image score."""
        return BOTH if self.choice is None else self.choice.score

    @property
    def copies(self) -> int:
        """In how many positions each source is in the bank."""
        return ROTATIONS if self.recipe.rotations else 1

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """The number of inputs of each view of each source as it is, K × V; 1 without tiles."""
        return [image.inputs for image in self.zero_shot] or [(1,) * len(self.views)] * len(self.sources)

    @property
    def gallery(self) -> torch.Tensor | None:
        """The appearances of all its good images, [M, ΣCv]; None in banks of earlier versions."""
        if self.appearances is None or self.calibration_images is None:
            return self.appearances
        return torch.cat([self.appearances, self.calibration_images.appearances])

    def features_of(self, view: int) -> tuple[torch.Tensor, ...]:
        """Return the rows of a view's stages, N × [M, Cv]."""
        stages = len(self.spec.stages)
        return self.features[view * stages : (view + 1) * stages]

    def check_references(self) -> None:
        """Refuse a bank that lacks what ``references`` returns. Raises ArtifactError."""
        if not self.norms or not self.image_features:
            made = "is a coreset" if self.coreset_fraction < 1 else "was made by an earlier version"
            raise ArtifactError(
                f"the bank of {self.object_name!r} {made}: it lacks features of its references; enroll the part again"
            )

    def references(self, view: int, grids: Sequence[tuple[int, int]]) -> list[ImageFeatures]:
        """Return the features of each source in a view, float32; ``grids``: the patches of its stages.

        With tiles or rotations a source has several inputs: those of the image as it is come first. Raises
        ArtifactError for a bank that does not keep them.
        """
        self.check_references()
        stages = range(view * len(grids), (view + 1) * len(grids))
        tokens = []
        for stage, (height, width) in zip(stages, grids, strict=True):
            rows = self.features[stage].float() * self.norms[stage].float()[:, None]
            sources = torch.split(rows, list(self.rows_per_source[stage]))
            tokens.append([source.reshape(-1, height * width, source.shape[1]) for source in sources])
        counts = [len(inputs) for inputs in tokens[0]]
        images = torch.split(self.image_features[view], counts)
        windows = [torch.split(rows, counts) for rows in (self.windows[view] if self.windows else ())]
        return [
            ImageFeatures(images[k], tuple(stage[k] for stage in tokens), tuple(grids), tuple(w[k] for w in windows))
            for k in range(len(self.sources))
        ]

    def _check_zero_shot(self, results: Sequence[ImageEvidence]) -> None:
        fit = len(results) == len(self.sources)
        for image in results:
            fit &= len(image.views) == len(self.views)
            for evidence, count in zip(image.views, image.inputs, strict=True):
                fit &= {len(values) for values in (evidence.text_scores, *evidence.logits)} == {count}
                fit &= len(evidence.logits) in (0, len(self.spec.stages))
        if not fit:
            raise ArtifactError(
                "this bank's zero-shot results do not match its sources and stages; enroll the part again"
            )

    def check(self, spec: ModelSpec, views: Views, projector_fingerprint: str, object_name: str) -> None:
        """Refuse settings other than the bank's. Raises ArtifactError, naming both sides."""
        sides = self.spec.mismatches(spec, MUST_MATCH)
        if sides:
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made with {self.spec.label}, not with {spec.label} ({sides}); "
                "use the bank's own model, or enroll the part again with this model"
            )
        if self.views != views:
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made at image size {self.views.label}, not {views.label}; "
                "use the bank's own sizes and tiles, or enroll the part again"
            )
        if self.recipe.projector_fingerprint != projector_fingerprint:
            mine, theirs = self.recipe.projector_fingerprint[:12] or "none", projector_fingerprint[:12] or "none"
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made with projector {mine}, not with {theirs}; "
                "use the bank's own projector, or enroll the part again with this projector"
            )
        if self.object_name != object_name:
            raise ArtifactError(
                f"the bank of {self.object_name!r} was calibrated with that name in its prompts, not {object_name!r}; "
                "use the bank's own name, or enroll the part again under this name"
            )

    def check_engine(self, encoder: ImageEncoder) -> None:
        """Refuse an encoder whose features differ from the bank's by more than rounding. Raises ArtifactError."""
        own, other = (self.recipe.engine, self.recipe.precision), (encoder.engine, encoder.precision)
        if not is_interchangeable(own, other):
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made with engine {own[0]} and precision {own[1] or 'unknown'}, "
                f"not with {other[0]} and {other[1]}; use the bank's own, or enroll the part again"
            )
        mine, theirs = (
            "none" if images is None else images.sha256 for images in (self.quantization, encoder.quantization)
        )
        if encoder.precision == "int8" and mine != theirs:
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made with a model quantized on images {mine[:12]}, not "
                f"{theirs[:12]}; use the images that the bank keeps, or enroll the part again"
            )

    def check_grids(self, grids: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Refuse a bank whose row counts do not match a model's grids V × N × (h, w). Raises ArtifactError."""
        patches = [height * width for view in grids for height, width in view]
        whole, copies = self.coreset_fraction == 1, self.copies
        fit = True
        for stage, (counts, patch_count) in enumerate(zip(self.rows_per_source, patches, strict=True)):
            most = [copies * patch_count * image[stage // len(self.spec.stages)] for image in self.inputs]
            fit &= all(n == m if whole else n <= m for n, m in zip(counts, most, strict=True))
        for image in self.zero_shot:
            for evidence, view_grids in zip(image.views, grids, strict=True):
                shapes = [tuple(logits.shape[1:]) for logits in evidence.logits]
                fit &= shapes in ([], list(view_grids))
        if not fit:
            raise ArtifactError(
                f"the bank of {self.object_name!r} does not hold the {patches} patches that its model makes of an "
                f"image at {self.views.label} pixels; enroll the part again"
            )


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """L2-normalize the last dimension in float32, [..., Cv]; a row of zeros stays zero."""
    return F.normalize(rows.float(), dim=-1)


def new_sources(known: Iterable[Source], candidates: Iterable[Source]) -> list[bool]:
    """Return for each candidate whether its content is new: neither in ``known`` nor in an earlier candidate."""
    seen = {source.sha256 for source in known}
    is_new = []
    for source in candidates:
        is_new.append(source.sha256 not in seen)
        seen.add(source.sha256)
    return is_new


def build(
    batches: Iterable[Sequence[torch.Tensor]],
    sources: Sequence[Source],
    spec: ModelSpec,
    object_name: str,
    *,
    views: Views | None = None,
    dtype: torch.dtype = torch.float16,
) -> MemoryBank:
    """Build a bank: ``batches`` of raw patch tokens V·N × [B, L, Cv], in the order of ``sources``, K in all.

    ``views``: by default the whole image at the spec's size. Batches are normalized one at a time: memory holds the
    bank, one batch and, at the end, a second copy of one stage.
    Raises InputError where two sources have the same content, or there are no sources.
    """
    views = views or Views((spec.image_size,))
    empty = tuple(torch.empty(0, width, dtype=dtype) for width in spec.stage_widths * len(views))
    features, counts, norms = _extend(empty, tuple(() for _ in empty), (), batches, (), sources)
    return MemoryBank(
        features, counts, spec, object_name, tuple(sources), further_sizes=views.sizes[1:], tile=views.tile, norms=norms
    )


def append(bank: MemoryBank, batches: Iterable[Sequence[torch.Tensor]], sources: Sequence[Source]) -> MemoryBank:
    """Add references: the result equals a bank built from all of them at once, dated now.

    Drops the calibration, which was measured against fewer references. A subsampled bank keeps all new rows.
    Raises InputError where a source's content is already in the bank; ``new_sources`` finds those.
    """
    features, counts, norms = _extend(bank.features, bank.rows_per_source, bank.norms, batches, bank.sources, sources)
    return MemoryBank(
        features,
        counts,
        bank.spec,
        bank.object_name,
        (*bank.sources, *sources),
        coreset_fraction=bank.coreset_fraction,
        further_sizes=bank.further_sizes,
        tile=bank.tile,
        norms=norms,
        choice=bank.choice,
    )


def add_features(bank: MemoryBank, old: MemoryBank | None, features: Sequence[Sequence[ImageFeatures]]) -> MemoryBank:
    """Keep the image features and windows of new sources, K × V, after those of ``old``, if it has them.

    Their patch tokens are in the bank already.
    """
    if old is not None and not old.image_features:
        return bank
    views = [ImageFeatures.concatenate(of_view) for of_view in zip(*features, strict=True)]
    if old is not None and views:
        windows = old.windows or ((),) * len(views)
        before = [ImageFeatures(i, (), (), w) for i, w in zip(old.image_features, windows, strict=True)]
        views = [ImageFeatures.concatenate(pair) for pair in zip(before, views, strict=True)]
    has_windows = any(view.windows for view in views)
    return replace(
        bank,
        image_features=tuple(view.image for view in views),
        windows=tuple(view.windows for view in views) if has_windows else (),
    )


def without(bank: MemoryBank, positions: Sequence[int]) -> MemoryBank:
    """Leave out the sources at these positions. Drops what was measured with them."""
    kept = [k for k in range(len(bank.sources)) if k not in positions]

    def keep(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        pieces = torch.split(values, list(counts))
        return torch.cat([pieces[k] for k in kept])

    by_stage = bank.rows_per_source
    inputs = [[copies * bank.copies for copies in counts] for counts in zip(*bank.inputs, strict=True)]
    return replace(
        bank,
        features=tuple(map(keep, bank.features, by_stage)),
        rows_per_source=tuple(tuple(counts[k] for k in kept) for counts in by_stage),
        norms=tuple(keep(norms, counts) for norms, counts in zip(bank.norms, by_stage, strict=False)),
        image_features=tuple(keep(rows, counts) for rows, counts in zip(bank.image_features, inputs, strict=False)),
        windows=tuple(
            tuple(keep(rows, counts) for rows in scales) for scales, counts in zip(bank.windows, inputs, strict=False)
        ),
        sources=tuple(bank.sources[k] for k in kept),
        zero_shot=tuple(bank.zero_shot[k] for k in kept) if bank.zero_shot else (),
        appearances=None
        if bank.appearances is None
        else bank.appearances.reshape(len(bank.sources), bank.copies, -1)[kept].flatten(0, 1),
        calibration=None,
        fits=None,
        spacings=None,
        stage_weights=(),
        thumbnails=tuple(bank.thumbnails[k] for k in kept) if bank.thumbnails else (),
    )


def subsample(bank: MemoryBank, fraction: float, seed: int = 0) -> MemoryBank:
    """Keep a ``coreset`` of each stage's rows. Drops the calibration, which was measured against all rows."""
    features, counts = [], []
    for rows, stage_counts in zip(bank.features, bank.rows_per_source, strict=True):
        kept = coreset(rows, fraction, seed)
        source = torch.repeat_interleave(torch.tensor(stage_counts))[kept]
        features.append(rows[kept])
        counts.append(tuple(torch.bincount(source, minlength=len(stage_counts)).tolist()))
    return replace(
        bank,
        features=tuple(features),
        rows_per_source=tuple(counts),
        calibration=None,
        coreset_fraction=bank.coreset_fraction * fraction,
        norms=(),
        image_features=(),
        windows=(),
    )


def _extend(
    old: tuple[torch.Tensor, ...],
    old_counts: tuple[tuple[int, ...], ...],
    old_norms: tuple[torch.Tensor, ...],
    batches: Iterable[Sequence[torch.Tensor]],
    known: Sequence[Source],
    sources: Sequence[Source],
) -> tuple[tuple[torch.Tensor, ...], tuple[tuple[int, ...], ...], tuple[torch.Tensor, ...]]:
    """Append the images' unit rows to each stage, their numbers to the counts, and the lengths of their tokens.

    There are no lengths if they are missing for the old rows.
    """
    if not known and not sources:
        raise InputError("no good images to enroll; give a folder of at least one image")
    for source, is_new in zip(sources, new_sources(known, sources), strict=True):
        if not is_new:
            raise InputError(f"{source.path}: the same image is already in the bank; leave it out")
    stages = [[rows] for rows in old]
    lengths = [[norms] for norms in old_norms] if known else [[torch.empty(0)] for _ in old]
    for batch in batches:
        for pieces, tokens in zip(stages, batch, strict=True):
            pieces += [unit_rows(image_tokens).to("cpu", pieces[0].dtype) for image_tokens in tokens.detach()]
        for norms, tokens in zip(lengths, batch, strict=False):
            norms += [image_tokens.float().norm(dim=-1).cpu() for image_tokens in tokens.detach()]
    if any(len(pieces) != 1 + len(sources) for pieces in stages):
        raise ValueError(f"{len(sources)} sources, but a different number of images")
    counts = tuple((*before, *map(len, pieces[1:])) for before, pieces in zip(old_counts, stages, strict=True))
    features = []
    while stages:  # each stage's pieces are freed once they are joined
        features.append(torch.cat(stages.pop(0)))
    return tuple(features), counts, tuple(map(torch.cat, lengths))
