"""What good pictures of a part look like: their patch tokens per stage, and how far a new picture's lie (eq. 4).

Symbols: N stages, K sources (reference pictures), L patches, M rows of a bank's stage (K·L, fewer once thinned), Cv the
stage's width. Rows of one source lie together, in the order of the sources, also in a thinned bank: a bank without one
source is two slices of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
import torch.nn.functional as F

from aprilcli import __version__
from aprilcli.core.calibration import Calibration
from aprilcli.core.coreset import coreset
from aprilcli.errors import ArtifactError, InputError
from aprilcli.types import CONTROL, Evidence, ModelSpec

# All of the model that patch tokens depend on. Not its name: a folder may move, and the fingerprint speaks for it.
MUST_MATCH = ("fingerprint", "activation", "image_size", "stages", "stage_widths", "mean", "std")
MAX_PATH = 4096  # characters


@dataclass(frozen=True)
class Source:
    """A reference picture: its path relative to the enrolled folder, with ``/``, and the SHA-256 of its content."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Recipe:
    """The options a bank was made with: what loads its model and projector again.

    ``projector_fingerprint``: SHA-256 of the projector's weights, empty without one. ``value_range``: black and white
    of its photos' samples, None for their type's.
    """

    model: str = ""
    projector: str | None = None
    projector_fingerprint: str = ""
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse values of other types, as a foreign file may hold. Raises TypeError or ValueError."""
        if self.value_range is not None:
            low, high = map(float, self.value_range)
            if not float("-inf") < low < high < float("inf"):
                raise ValueError("a range's black must lie below its white")
            object.__setattr__(self, "value_range", (low, high))
        texts = (self.model, self.projector or "", self.projector_fingerprint)
        if not all(isinstance(one, str) and len(one) <= MAX_PATH and not CONTROL.search(one) for one in texts):
            raise TypeError("a recipe's model, projector and fingerprint must be text on one line")


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """A part's good pictures. Raises ArtifactError where the pieces do not fit each other.

    ``features``: N × [M, Cv] unit rows, all float32 or all float16. ``rows_per_source``: N × K counts that add up to
    the stages' M. ``coreset_fraction``: the share of rows kept, 1.0 for all. ``created``: ISO 8601, UTC; ``version``:
    of the aprilcli that made it. ``recipe``: how to load what the bank was made with. ``zero_shot``: the sources' own
    zero-shot results, which leave-one-out adds its distances to; None where nothing is to be calibrated.
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
    zero_shot: Evidence | None = None

    def __post_init__(self) -> None:
        """Check that rows, counts, sources and model fit each other; date it if it has no date."""
        shapes = [tuple(rows.shape) for rows in self.features]
        widths = list(self.spec.stage_widths)
        counts = self.rows_per_source
        if [shape[1:] for shape in shapes] != [(width,) for width in widths]:
            raise ArtifactError(f"this bank's stages are {shapes}, its model's widths {widths}; enroll the part anew")
        if {rows.dtype for rows in self.features} not in ({torch.float16}, {torch.float32}):
            raise ArtifactError("this bank's rows are neither all float16 nor all float32; enroll the part anew")
        if not self.sources or any(len(stage) != len(self.sources) or min(stage) < 0 for stage in counts):
            raise ArtifactError(f"this bank does not say whose its rows are ({len(self.sources)} sources); enroll anew")
        if [sum(stage) for stage in counts] != [shape[0] for shape in shapes] or any(not shape[0] for shape in shapes):
            raise ArtifactError(f"this bank's stages {shapes} are not what its sources sum to; enroll the part anew")
        if self.zero_shot is not None:
            self._check_zero_shot(self.zero_shot)
        if not self.created:
            object.__setattr__(self, "created", datetime.now(UTC).isoformat(timespec="seconds"))

    def _check_zero_shot(self, results: Evidence) -> None:
        counts = {len(values) for values in (results.text_scores, *results.logits)}
        shaped = results.text_scores.ndim == 1 and all(logits.ndim == 3 for logits in results.logits)
        if counts != {len(self.sources)} or not shaped or len(results.logits) not in (0, len(self.features)):
            raise ArtifactError("this bank's zero-shot results are not one per source and stage; enroll the part anew")

    def check(self, spec: ModelSpec, projector_fingerprint: str, object_name: str) -> None:
        """Refuse what the bank was not made and calibrated with. Raises ArtifactError, naming both sides."""
        sides = self.spec.mismatches(spec, MUST_MATCH)
        if sides:
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made with {self.spec.label}, not with {spec.label} ({sides}); "
                "use the bank's own model, or enroll the part with this one"
            )
        if self.recipe.projector_fingerprint != projector_fingerprint:
            mine, theirs = self.recipe.projector_fingerprint[:12] or "none", projector_fingerprint[:12] or "none"
            raise ArtifactError(
                f"the bank of {self.object_name!r} was made with projector {mine}, not with {theirs}; "
                "use the bank's own projector, or enroll the part with this one"
            )
        if self.object_name != object_name:
            raise ArtifactError(
                f"the bank of {self.object_name!r} was calibrated with that name in its prompts, not {object_name!r}; "
                "leave --object out, or enroll the part under this name"
            )

    def check_grids(self, grids: Sequence[tuple[int, int]]) -> None:
        """Refuse a bank whose rows are not those of a model with these grids N × (h, w). Raises ArtifactError."""
        patches = [height * width for height, width in grids]
        counts = [set(stage) for stage in self.rows_per_source]
        whole = self.coreset_fraction == 1
        fit = all(c == {n} if whole else max(c) <= n for c, n in zip(counts, patches, strict=True))
        logits = () if self.zero_shot is None else self.zero_shot.logits
        if not fit or any(tuple(one.shape[1:]) != grid for one, grid in zip(logits, grids, strict=False)):
            raise ArtifactError(
                f"the bank of {self.object_name!r} does not hold the {patches} patches that its model makes of a "
                f"picture at {self.spec.image_size} pixels; enroll the part anew"
            )


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """L2-normalise the last dimension in float32, [..., Cv]; a row of zeros stays zero."""
    return F.normalize(rows.float(), dim=-1)


def new_sources(known: Iterable[Source], candidates: Iterable[Source]) -> list[bool]:
    """Say of each candidate whether its content is new: not among ``known``, nor an earlier candidate's."""
    seen = {source.sha256 for source in known}
    news = []
    for source in candidates:
        news.append(source.sha256 not in seen)
        seen.add(source.sha256)
    return news


def build(
    batches: Iterable[Sequence[torch.Tensor]],
    sources: Sequence[Source],
    spec: ModelSpec,
    object_name: str,
    *,
    dtype: torch.dtype = torch.float16,
) -> MemoryBank:
    """Enrol references: ``batches`` of raw patch tokens N × [B, L, Cv], in the order of ``sources``, K in all.

    Batches are taken one at a time and normalised into place, so no more than the bank itself and one batch is held.
    Raises InputError where two sources have the same content, or there are none.
    """
    empty = tuple(torch.empty(0, width, dtype=dtype) for width in spec.stage_widths)
    features, counts = _extend(empty, tuple(() for _ in empty), batches, (), sources)
    return MemoryBank(features, counts, spec, object_name, tuple(sources))


def append(bank: MemoryBank, batches: Iterable[Sequence[torch.Tensor]], sources: Sequence[Source]) -> MemoryBank:
    """Enrol further references: the same bank as building it from all of them at once, dated now.

    The calibration is dropped, as it was measured against fewer references. To a thinned bank the new rows are added
    whole. Raises InputError where a source's content is in the bank already; ``new_sources`` says which.
    """
    features, counts = _extend(bank.features, bank.rows_per_source, batches, bank.sources, sources)
    return MemoryBank(
        features,
        counts,
        bank.spec,
        bank.object_name,
        (*bank.sources, *sources),
        coreset_fraction=bank.coreset_fraction,
    )


def subsample(bank: MemoryBank, fraction: float, seed: int = 0) -> MemoryBank:
    """Keep a ``coreset`` of each stage's rows; the calibration is dropped, as it was measured against all of them."""
    features, counts = [], []
    for rows, stage_counts in zip(bank.features, bank.rows_per_source, strict=True):
        kept = coreset(rows, fraction, seed)
        source = torch.repeat_interleave(torch.tensor(stage_counts))[kept]
        features.append(rows[kept])
        counts.append(tuple(torch.bincount(source, minlength=len(stage_counts)).tolist()))
    share = bank.coreset_fraction * fraction
    return replace(
        bank, features=tuple(features), rows_per_source=tuple(counts), calibration=None, coreset_fraction=share
    )


def _extend(
    old: tuple[torch.Tensor, ...],
    old_counts: tuple[tuple[int, ...], ...],
    batches: Iterable[Sequence[torch.Tensor]],
    known: Sequence[Source],
    sources: Sequence[Source],
) -> tuple[tuple[torch.Tensor, ...], tuple[tuple[int, ...], ...]]:
    """Make each stage's tensor once, at its final size, and normalise the pictures into it."""
    if not known and not sources:
        raise InputError("no good photos to enroll; give a folder with at least one")
    for source, is_new in zip(sources, new_sources(known, sources), strict=True):
        if not is_new:
            raise InputError(f"{source.path}: the same photo is in the bank already; leave it out")
    features, lengths = old, [0] * len(old)
    done = 0
    for batch in batches:
        size = len(batch[0])
        if done + size > len(sources):
            break
        if done == 0:
            lengths = [tokens.shape[1] for tokens in batch]
            features = tuple(
                torch.empty(len(rows) + len(sources) * length, rows.shape[1], dtype=rows.dtype)
                for rows, length in zip(old, lengths, strict=True)
            )
            for rows, into in zip(old, features, strict=True):
                into[: len(rows)] = rows
        for tokens, into, before, length in zip(batch, features, old, lengths, strict=True):
            for k, picture in enumerate(tokens.detach(), start=done):
                start = len(before) + k * length
                into[start : start + length] = unit_rows(picture)
        done += size
    else:
        if done == len(sources):
            return features, tuple(
                (*counts, *[length] * done) for counts, length in zip(old_counts, lengths, strict=True)
            )
    raise ValueError(f"{len(sources)} sources, but another number of pictures")
