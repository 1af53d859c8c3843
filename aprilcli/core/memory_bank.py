"""What good pictures of a part look like: their patch tokens per stage, and how far a new picture's lie (eq. 4).

Symbols: N stages, K sources (reference pictures), L patches, M rows of a bank's stage (K·L, fewer once thinned), Cv the
stage's width. Rows of one source lie together, in the order of the sources, also in a thinned bank: a bank without one
source is two slices of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
import torch.nn.functional as F

from aprilcli import __version__
from aprilcli.core.calibration import LARGEST, Calibration
from aprilcli.core.coreset import coreset
from aprilcli.errors import ArtifactError, InputError
from aprilcli.text import printable
from aprilcli.types import CONTROL, MAX_OBJECT_NAME, Evidence, ModelSpec

KIND = "bank"
# All of the model that patch tokens depend on. Not its name: a folder may move, and the fingerprint speaks for it.
MUST_MATCH = ("fingerprint", "activation", "image_size", "stages", "stage_widths", "mean", "std")
MAX_PATH = 4096  # characters
CHECKED_BYTES = 8 * 1024**2  # of rows checked at a time
UNIT_TOLERANCE = 0.01  # of rows' lengths: float16 rounds them by a tenth of that


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

    def to_artifact(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and JSON-ready fields to be written; ``from_artifact`` reads them back."""
        tensors = {f"features.{stage}": rows for stage, rows in enumerate(self.features)}
        fields: dict[str, Any] = {
            "spec": self.spec.to_json(),
            "object": self.object_name,
            "sources": [asdict(source) for source in self.sources],
            "rows_per_source": self.rows_per_source,
            "coreset_fraction": self.coreset_fraction,
            "recipe": asdict(self.recipe),
        }
        if self.zero_shot is not None:
            tensors["text_scores"] = self.zero_shot.text_scores
            tensors |= {f"logits.{stage}": logits for stage, logits in enumerate(self.zero_shot.logits)}
        if self.calibration is not None:
            arrays = self.calibration.to_arrays()
            tensors |= {f"calibration.{name}": torch.tensor(values) for name, values in arrays.items()}
            fields["calibration_method"] = self.calibration.method
        return tensors, fields

    @classmethod
    def from_artifact(
        cls, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, Any], *, created: str, version: str
    ) -> MemoryBank:
        """Rebuild from what ``to_artifact`` gave. Raises ArtifactError, without the file's name, on anything else."""
        with _foreign():
            spec = ModelSpec.from_json(fields["spec"])
            _check_values(tensors)
            calibration = None
            if "calibration_method" in fields:
                arrays = {name.removeprefix("calibration."): values.numpy() for name, values in tensors.items()}
                calibration = Calibration.from_arrays(arrays, fields["calibration_method"])
            zero_shot = None
            if "text_scores" in tensors:
                logits = (f"logits.{stage}" for stage in range(len(spec.stages)))
                zero_shot = Evidence(tensors["text_scores"], tuple(tensors[n] for n in logits if n in tensors))
            return cls(
                features=tuple(tensors[f"features.{stage}"] for stage in range(len(spec.stages))),
                rows_per_source=tuple(tuple(int(count) for count in stage) for stage in fields["rows_per_source"]),
                spec=spec,
                object_name=_object_name(fields["object"]),
                sources=tuple(_source(source["path"], source["sha256"]) for source in fields["sources"]),
                calibration=calibration,
                coreset_fraction=_share(fields["coreset_fraction"]),
                created=created,
                version=version,
                recipe=Recipe(**fields["recipe"]),
                zero_shot=zero_shot,
            )


def check_names(names: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Refuse tensors that no bank with these fields has. Raises ArtifactError, without the file's name."""
    with _foreign():
        stages = range(len(ModelSpec.from_json(fields["spec"]).stages))
        known = {"text_scores", "calibration.scores", "calibration.map_maxima"}
        known |= {f"{kind}.{stage}" for kind in ("features", "logits") for stage in stages}
        if surplus := sorted(set(names) - known):
            raise ValueError(f"a tensor {surplus[0]}")


@contextmanager
def _foreign() -> Iterator[None]:
    """Turn what values of any kind and size raise into an ArtifactError of one short line."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = printable(f"{type(error).__name__}: {error}"[:200])
        raise ArtifactError(f"not a whole bank ({reason}); enroll the part anew") from error


def _check_values(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse values that no picture gives, and that would make scores nonsense. Raises ValueError or TypeError."""
    for name, values in tensors.items():
        kind = name.partition(".")[0]
        if not values.is_floating_point():
            raise TypeError(f"{name} holds no floats")
        if kind == "features":
            for rows in torch.split(values, max(1, CHECKED_BYTES // (4 * values.shape[-1]))):
                lengths = rows.float().norm(dim=-1)
                if not (((lengths - 1).abs() <= UNIT_TOLERANCE) | (lengths == 0)).all():
                    raise ValueError(f"{name} holds rows of other lengths than 1")
        elif kind == "text_scores" and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} lie outside 0 to 1")
        elif kind == "logits" and not (values.abs() <= LARGEST).all():
            raise ValueError(f"{name} holds values beyond {LARGEST:g}")


def _object_name(name: Any) -> str:
    if not isinstance(name, str) or len(name) > MAX_OBJECT_NAME or CONTROL.search(name):
        raise ValueError(f"its object's name is no text of at most {MAX_OBJECT_NAME} characters")
    return name


def _source(path: Any, sha256: Any) -> Source:
    # Bytes that are not UTF-8 stand as surrogates from \udc80 on (os.fsdecode); no others come from a file's name.
    if not isinstance(path, str) or len(path) > MAX_PATH or re.search("[\ud800-\udc7f\udd00-\udfff]", path):
        raise ValueError("a source's path is no path")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("a source's sha256 is none")
    return Source(path, sha256)


def _share(value: Any) -> float:
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share:g} of its rows")
    return share


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
