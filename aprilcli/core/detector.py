"""The detector: a model with its projector and, if there is one, a part's memory bank."""

from __future__ import annotations

import collections
import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageOps

from aprilcli.core.decision import ScoreOf
from aprilcli.core.device import TORCH, engine_for_bank
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.fusion import fuse_views
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.methods import Method
from aprilcli.core.methods.april_gan import AprilGan
from aprilcli.core.methods.classes import METHOD_CLASSES
from aprilcli.core.model_loading import load_backbone, resolve_engine
from aprilcli.core.projector import Projector, check_projector_file, load_projector
from aprilcli.core.prompts import check_length, encode_prompts
from aprilcli.core.recognition import appearance, distance_to
from aprilcli.core.score_choice import BOTH
from aprilcli.core.tiling import boxes, lay_out
from aprilcli.defaults import APRIL_GAN, TINY
from aprilcli.errors import ArtifactError, OptionError
from aprilcli.io.images import SourceImage, read_image, to_pixels
from aprilcli.text import printable
from aprilcli.types import Detection, Evidence, ImageEvidence, ImageFeatures, TileLayout, Views

DEFAULT_OBJECT = "object"
TILES_PER_PASS = 8
LARGE = 8  # times the model's input
NOTE_LARGE = (
    f"images of more than {LARGE} times the model's input: defects of a few pixels are lost; encode them in tiles, too"
)
NOTE_SINGLE_TILE = "images no larger than a tile: each is a single tile"


@dataclass(frozen=True, eq=False)
class ModelInput:
    """An image prepared for the model.

    ``whole``: for each size [3, S, S] float32. ``source`` and ``layout``: what its tiles are cut from, when they are
    encoded; None without tiles. ``notes``: what the user should know about its size. ``thumbnail``: a small JPEG of a
    reference, for its bank; empty elsewhere.
    """

    whole: tuple[NDArray[np.float32], ...]
    source: SourceImage | None = None
    layout: TileLayout | None = None
    notes: tuple[str, ...] = ()
    thumbnail: bytes = b""


@dataclass(frozen=True, eq=False)
class EncodedReference:
    """A reference image: its features in each of V views, its zero-shot evidence and its appearance [1, ΣCv].

    With rotations it has ``ROTATIONS`` times as many features and appearances; the first are those of the image as it
    is.
    """

    features: tuple[ImageFeatures, ...]
    zero_shot: ImageEvidence
    appearances: torch.Tensor

    @property
    def patch_tokens(self) -> tuple[torch.Tensor, ...]:
        """The raw patch tokens, V·N × [L, Cv]."""
        return tuple(tokens.flatten(0, 1) for view in self.features for tokens in view.patch_tokens)


class Detector:
    """Scores images in one encoder pass per view: zero-shot, with a memory bank also few-shot.

    ``encoders``: one for each size of ``views``; ``encoder`` is the first. ``methods``: one for each view. ``notes``:
    what the user should know.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        text_features: torch.Tensor,
        projector: Projector | None = None,
        bank: MemoryBank | None = None,
        object_name: str = DEFAULT_OBJECT,
        notes: tuple[str, ...] = (),
        views: Views | None = None,
    ) -> None:
        """Score with ``text_features`` [2, C], those of ``object_name`` (see ``encode_prompts``).

        No text tower is needed. ``views``: by default the whole image at the encoder's size.
        Raises ArtifactError where ``bank`` was made with another model, projector, object name or views.
        """
        own = encoder.spec.image_size
        self.views = views or Views((own,))
        self.encoders = tuple(encoder if size == own else encoder.at_size(size) for size in self.views.sizes)
        self.encoder = self.encoders[0]
        self.projector = projector.to(encoder.device) if projector is not None else None
        self.projector_fingerprint = projector.identity["fingerprint"] if projector is not None else ""
        self.text_features = text_features.to(encoder.device)
        self.object_name = object_name
        self._use_bank(bank)
        self.notes = notes
        if projector is not None:
            self.notes += projector.notes
        elif bank is None or bank.recipe.method == APRIL_GAN:  # other methods use none
            without = "few-shot maps and text scores" if bank is not None else "text scores, no maps"
            self.notes += (f"this model has no projector: {without} (a projector adds zero-shot maps)",)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        *,
        projector: str | None = None,
        bank: MemoryBank | None = None,
        object_name: str | None = None,
        image_size: int | Sequence[int] | None = None,
        tile: int | None = None,
        stages: tuple[int, ...] | None = None,
        device: str = "auto",
        precision: str = "auto",
        engine: str | None = None,
        quantize_on: Iterable[SourceImage] = (),
        progress: bool = False,
    ) -> Detector:
        """Load model and projector by name, as the command line does.

        ``image_size``: one or several sizes. ``tile``: see ``Views``. ``engine``: torch or openvino. ``quantize_on``:
        images for the precision int8, unless the bank keeps some. An argument that is None is taken from the bank;
        without a bank it is ``tiny``, ``object``, ``torch``, no tiles or the model's own. The precision auto is that of
        a bank in bf16 or int8.
        Raises the package's errors.
        """
        notes: tuple[str, ...] = ()
        if bank is not None:
            model = model or bank.recipe.model
            projector = projector or bank.recipe.projector
            object_name = object_name or bank.object_name
            image_size, stages = image_size or bank.views.sizes, stages or bank.spec.stages
            tile = tile or bank.tile
            own = (bank.recipe.engine, bank.recipe.precision)
            engine, precision, note = engine_for_bank(own, engine, device, precision)
            notes = (note,) if note else ()
            quantize_on = quantize_on if bank.quantization is None else bank.quantization.images()
        model = model or TINY
        if object_name is not None and not object_name.isprintable():
            raise OptionError(f"object name {printable(object_name)[:80]}: give a name without control characters")
        check_length(object_name or "")
        if projector is not None:
            check_projector_file(projector)
        resolve_engine(engine or TORCH, device, precision)  # these errors are not of the bank's settings
        try:
            backbone = load_backbone(
                model,
                image_size=image_size,
                tile=tile,
                stages=stages,
                device=device,
                precision=precision,
                engine=engine or TORCH,
                quantize_on=quantize_on,
            )
        except OptionError as error:
            if bank is None or (image_size, stages) != (bank.views.sizes, bank.spec.stages):
                raise
            raise ArtifactError(
                f"the bank of {bank.object_name!r} was made with settings that its model does not have ({error}); "
                "enroll the part again"
            ) from error
        layers = load_projector(projector, model, backbone.spec, progress=progress)
        object_name = object_name or DEFAULT_OBJECT
        text_features = encode_prompts(backbone.text, object_name)
        return cls(backbone.encoder, text_features, layers, bank, object_name, notes + backbone.notes, backbone.views)

    def with_bank(self, bank: MemoryBank) -> Detector:
        """Return a copy that uses ``bank``, without encoding the prompts again. Raises ArtifactError."""
        other = copy.copy(self)
        other._use_bank(bank)
        return other

    @property
    def has_maps(self) -> bool:
        """Whether results have a map: with a projector or a bank."""
        return self.projector is not None or self.bank is not None

    @property
    def score_of(self) -> ScoreOf:
        """What the image scores are of."""
        if self.bank is None:
            return "text"
        if self.bank.recipe.method != APRIL_GAN:
            return "map"
        return "both" if self.bank.score == BOTH else "text" if self.bank.score == "text" else "map"

    @property
    def encoders_of_views(self) -> tuple[ImageEncoder, ...]:
        """The encoder of each view."""
        return self.encoders if self.views.tile is None else (*self.encoders, self.encoder)

    def _use_bank(self, bank: MemoryBank | None) -> None:
        encoders = self.encoders_of_views
        if bank is not None:
            bank.check(self.encoder.spec, self.views, self.projector_fingerprint, self.object_name)
            bank.check_engine(self.encoder)
            bank.check_grids([encoder.grids for encoder in encoders])
        self.bank = bank
        gallery = None if bank is None else bank.gallery
        self._gallery = None if gallery is None else gallery.to(self.encoder.device)
        self.zero_shot_methods = self.weighted(())
        self.methods: tuple[Method, ...] = self.zero_shot_methods
        if bank is not None:
            name = bank.recipe.method
            self.methods = self.april_gan(bank) if name == APRIL_GAN else self.fitted(name, self.references(bank))

    def april_gan(self, bank: MemoryBank) -> tuple[AprilGan, ...]:
        """Return the paper's method for each view, with the bank's rows, whatever the bank's own method."""
        methods = self.weighted(bank.stage_weights, bank.score)
        for view, method in enumerate(methods):
            method.bank_features = tuple(rows.to(self.encoder.device) for rows in bank.features_of(view))
        return methods

    def weighted(self, stage_weights: Sequence[float], score: str = BOTH) -> tuple[AprilGan, ...]:
        """Return the paper's method for each view, without references; ``stage_weights``: V·N, or none."""
        stages, encoders = len(self.encoder.spec.stages), self.encoders_of_views
        weights = [stage_weights[view * stages : (view + 1) * stages] for view in range(len(encoders))]
        return tuple(
            AprilGan(encoder.spec, self.text_features, self.projector, stage_weights=of_view, score=score)
            for encoder, of_view in zip(encoders, weights, strict=True)
        )

    def references(self, bank: MemoryBank) -> list[list[ImageFeatures]]:
        """Return the features of a bank's K sources in each of V views, V × K, on the detector's device."""
        views = enumerate(self.encoders_of_views)
        return [[features.to(e.device) for features in bank.references(view, e.grids)] for view, e in views]

    def fitted(self, name: str, references: Sequence[Sequence[ImageFeatures]]) -> tuple[Method, ...]:
        """Return the methods of each view, fitted to ``references`` V × K: not for the paper's own."""
        methods = tuple(METHOD_CLASSES[name](encoder.spec, self.text_features) for encoder in self.encoders_of_views)
        for method, of_view in zip(methods, references, strict=True):
            if of_view:
                method.fit(of_view)
        return methods

    def prepare(self, image: SourceImage) -> ModelInput:
        """Resize a decoded image to each square input of the model and normalize it; lay out its tiles."""
        spec = self.encoder.spec
        whole = tuple(to_pixels(image, size, spec.mean, spec.std) for size in self.views.sizes)
        if self.views.tile is None:
            is_large = max(image.size_hw) > LARGE * max(self.views.sizes)
            return ModelInput(whole, notes=(NOTE_LARGE,) if is_large else ())
        layout = lay_out(image.size_hw, self.views.tile, spec.image_size)
        return ModelInput(whole, image, layout, (NOTE_SINGLE_TILE,) if len(layout) == 1 else ())

    def encode(
        self, images: Sequence[ModelInput], windows: bool = False
    ) -> Iterator[tuple[int, list[int], ImageFeatures]]:
        """Encode images: in one pass for each size, and ``TILES_PER_PASS`` tiles of an image at a time.

        Yields the view, the position of the image that each row of the features belongs to, and the features;
        ``windows``: with those of windows.
        """
        for view, encoder in enumerate(self.encoders):
            pixels = np.stack([image.whole[view] for image in images])
            yield view, list(range(len(images))), encoder.encode(pixels, windows=windows)
        for position, image in enumerate(images):
            for pixels in self._tiles(image):
                yield len(self.encoders), [position] * len(pixels), self.encoder.encode(pixels, windows=windows)

    def _tiles(self, image: ModelInput) -> Iterator[NDArray[np.float32]]:
        """Yield the tiles of an image, [T, 3, S, S] with T up to ``TILES_PER_PASS``."""
        if image.source is None or image.layout is None:
            return
        spec = self.encoder.spec
        remaining = boxes(image.layout)
        while some := list(itertools.islice(remaining, TILES_PER_PASS)):
            yield np.stack([to_pixels(image.source, spec.image_size, spec.mean, spec.std, box) for box in some])

    def encode_turned(self, image: ModelInput, windows: bool = False) -> EncodedReference:
        """Encode an image for a bank in ``ROTATIONS`` positions: itself, turned and mirrored."""
        encoded = [reference for turned in self._turn(image) for reference in self.encode_references([turned], windows)]
        features = tuple(
            map(ImageFeatures.concatenate, zip(*(reference.features for reference in encoded), strict=True))
        )
        appearances = torch.cat([reference.appearances for reference in encoded])
        return EncodedReference(features, encoded[0].zero_shot, appearances)

    def _turn(self, image: ModelInput) -> Iterator[ModelInput]:
        for quarters, mirrored in itertools.product(range(4), (False, True)):
            whole = tuple(np.rot90(pixels, quarters, axes=(1, 2)) for pixels in image.whole)
            whole = tuple(np.ascontiguousarray(p[..., ::-1] if mirrored else p) for p in whole)
            if image.source is None or self.views.tile is None:
                yield ModelInput(whole)
                continue
            rgb = image.source.rgb.rotate(90 * quarters, expand=True)
            source = SourceImage(ImageOps.mirror(rgb) if mirrored else rgb)
            yield ModelInput(whole, source, lay_out(source.size_hw, self.views.tile, self.encoder.spec.image_size))

    def encode_references(self, images: Sequence[ModelInput], windows: bool = False) -> list[EncodedReference]:
        """Encode images for a bank; ``windows``: with their features of windows."""
        collected = EvidenceOfViews(images)
        features: list[list[list[ImageFeatures]]] = [[[] for _ in range(len(self.views))] for _ in images]
        appearances = torch.empty(0)
        for view, positions, encoded in self.encode(images, windows):
            if view == 0:
                appearances = appearance(encoded)
            collected.add(view, positions, self.zero_shot_methods[view].zero_shot(encoded))
            for row, position in enumerate(positions):
                features[position][view].append(encoded[row : row + 1])
        joined = [tuple(map(ImageFeatures.concatenate, views)) for views in features]
        each = zip(joined, collected.by_image(), torch.split(appearances, 1), strict=True)
        return list(itertools.starmap(EncodedReference, each))

    def evidence(
        self, images: Sequence[ModelInput], method_sets: Sequence[Sequence[Method]]
    ) -> tuple[list[list[ImageEvidence]], torch.Tensor]:
        """Encode images once; return their evidence under each set of methods (one for each view).

        Also returns their appearances [B, ΣCv] (see ``core/recognition.py``).
        """
        collected = [EvidenceOfViews(images) for _ in method_sets]
        appearances = torch.empty(0)
        windows = any(method.uses_windows for methods in method_sets for method in methods)
        for view, positions, features in self.encode(images, windows):
            if view == 0:
                appearances = appearance(features)
            for methods, of_set in zip(method_sets, collected, strict=True):
                of_set.add(view, positions, methods[view].evidence(features))
        return [of_set.by_image() for of_set in collected], appearances

    def compare(self, images: Sequence[ModelInput]) -> tuple[list[ImageEvidence], list[float], torch.Tensor]:
        """Return the evidence of images, the mean distance of each to the bank's rows (eq. 4), and their appearances.

        The distances are the paper's, whatever the bank's method: they tell whether two images show the same.
        """
        if self.bank is None:
            raise ValueError("there is no bank to compare with")
        method_sets = [self.methods]
        if self.bank.recipe.method != APRIL_GAN:
            method_sets.append(self.april_gan(self.bank))
        evidence, appearances = self.evidence(images, method_sets)
        return evidence[0], [image.mean_distance for image in evidence[-1]], appearances

    def fuse(self, image: ImageEvidence) -> Detection:
        """Return the result of an image from its evidence under the detector's own methods."""
        return fuse_views(image, self.methods, self.views.sizes)

    def detect(self, images: Sequence[ModelInput]) -> list[Detection]:
        """Score prepared images, each independently of the others."""
        [evidence], appearances = self.evidence(images, [self.methods])
        distances = self.part_distances(appearances)
        return [
            replace(self.fuse(image), part_distance=value) for image, value in zip(evidence, distances, strict=True)
        ]

    def part_distances(self, appearances: torch.Tensor) -> list[float | None]:
        """Return the distance of each of B appearances to the part (see ``Detection``)."""
        if self._gallery is None:
            return [None] * len(appearances)
        return list(distance_to(appearances, self._gallery).tolist())

    def detect_file(self, path: str | os.PathLike[str]) -> Detection:
        """Read, prepare and score one file. Raises InputError where it cannot be read."""
        return self.detect([self.prepare(read_image(Path(path)))])[0]


class EvidenceOfViews:
    """Sorts the evidence of each view, as ``Detector.encode`` yields their features, by image."""

    def __init__(self, images: Sequence[ModelInput]) -> None:
        """Start without any."""
        self._layouts = [image.layout for image in images]
        self._parts: list[dict[int, list[Evidence]]] = [collections.defaultdict(list) for _ in images]

    def add(self, view: int, positions: Sequence[int], evidence: Evidence) -> None:
        """Add the evidence of some inputs, which belong to the images at ``positions``."""
        for row, position in enumerate(positions):
            self._parts[position][view].append(evidence[row : row + 1])

    def by_image(self) -> list[ImageEvidence]:
        """Return the evidence of each image."""
        return [
            ImageEvidence(tuple(Evidence.concatenate(views[view]) for view in sorted(views)), layout)
            for views, layout in zip(self._parts, self._layouts, strict=True)
        ]
