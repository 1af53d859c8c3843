"""The first pass of `scan --mutual`: each image is encoded, its features are kept and its zero-shot map is written.

``.mutual`` in the output folder holds the features and ``encoded.jsonl``, a line for each encoded image, in order.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aprilcli.core.decision import DecisionRule
from aprilcli.core.detector import Detector, EvidenceOfViews, ModelInput
from aprilcli.core.fusion import fuse_views
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.recognition import appearance
from aprilcli.errors import InputError
from aprilcli.io.append_file import open_lines
from aprilcli.io.atomic import output_errors, remove_tree
from aprilcli.io.images import normalize
from aprilcli.io.walk import FoundImage, find_images
from aprilcli.options import ScanOptions
from aprilcli.types import Detection, ImageFeatures
from aprilcli.workflows import scan_output as output
from aprilcli.workflows import scan_resume as resume
from aprilcli.workflows.console import Console
from aprilcli.workflows.mutual_features import Known, MutualFeatures, stored_tokens
from aprilcli.workflows.pipeline import PreparedImage, Reader, batches, images_ahead, map_ahead, stamp
from aprilcli.workflows.scan import describe_map, resized

ENCODED = "encoded.jsonl"


@dataclass(frozen=True)
class EncodedImage:
    """What the first pass finds of an image. ``batch``: the digest of the images encoded with it.

    ``error``: why it could not be read. ``map_digest``: of its zero-shot map, empty without one.
    """

    path: str
    batch: str
    size_hw: tuple[int, int] = (0, 0)
    text_score: float = 0.0
    zero_shot_max: float | None = None
    part_distance: float | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    map_digest: str = ""


@dataclass
class MutualRun:
    """A scan in progress."""

    options: ScanOptions
    detector: Detector
    console: Console
    pool: ThreadPoolExecutor
    interrupted: Callable[[], bool]
    found: list[FoundImage]
    kept: list[EncodedImage] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the state is."""
        return self.options.out / output.MUTUAL

    def stop_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C."""
        if self.interrupted():
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise KeyboardInterrupt


def kept_images(run: MutualRun) -> list[EncodedImage]:
    """Return the images at the start of the folder that are encoded already, in whole batches; cut off the rest."""
    kept: list[EncodedImage] = []
    end = 0
    lines = read_lines(run.folder / ENCODED)
    for batch in batches(iter(run.found), run.options.batch_size):
        together = resume.batch_digest([stamp(image) for image in batch])
        some = list(itertools.islice(lines, len(batch)))
        try:
            images = [_parse(values) for values, _ in some]
        except (TypeError, KeyError, ValueError):
            break
        if [(image.path, image.batch) for image in images] != [(image.relative, together) for image in batch]:
            break
        if any(image.map_digest != _map_digest(run.options, image.path) for image in images if image.map_digest):
            break
        kept += images
        end = some[-1][1]
    with open_lines(run.folder / ENCODED, end):
        pass
    return kept


def _parse(values: dict[str, Any]) -> EncodedImage:
    height, width = values["size_hw"]
    return EncodedImage(**{**values, "size_hw": (height, width), "notes": tuple(values["notes"])})


def read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the complete lines of a file of JSON objects, each with the position after it."""
    try:
        with path.open("rb") as stream:
            end = 0
            for line in stream:
                end += len(line)
                if not line.endswith(b"\n"):
                    return
                values = json.loads(line)
                if not isinstance(values, dict):
                    return
                yield values, end
    except (OSError, ValueError, RecursionError):
        return


def _map_digest(options: ScanOptions, relative: str) -> str:
    try:
        return digest_of(output.map_path(options.out, relative, output.ZERO_SHOT).read_bytes())
    except OSError:
        return ""


def digest_of(content: bytes) -> str:
    """Return a short digest, in hexadecimal digits."""
    return blake2b(content, digest_size=16).hexdigest()


def remove_maps(out: Path, kept: set[str]) -> None:
    """Delete the maps, which are written again, and the zero-shot maps of images that are encoded again."""
    with output_errors(out):
        if (out / output.MAPS).exists():
            remove_tree(out / output.MAPS)
        if (out / output.ZERO_SHOT).exists():
            for found in find_images(out / output.ZERO_SHOT):
                if found.relative.removesuffix(output.TIFF) not in kept:
                    found.path.unlink()


def encode_images(run: MutualRun, store: MutualFeatures, total: int) -> list[EncodedImage]:
    """Encode the images that are not kept; return all."""
    encoded = run.kept
    with run.console.progress(total, "encoding") as advance, open_lines(run.folder / ENCODED, _end(run)) as lines:
        advance(len(encoded))
        for image in _encode_rest(run, store, len(encoded)):
            lines.write(json.dumps(asdict(image)) + "\n")
            encoded.append(image)
            advance(1)
    run.stop_if_interrupted()
    for note in dict.fromkeys(note for image in encoded for note in image.notes):
        run.console.note_once(note)
    return encoded


def _end(run: MutualRun) -> int:
    with output_errors(run.folder):
        path = run.folder / ENCODED
        return path.stat().st_size if path.exists() else 0


def _encode_rest(run: MutualRun, store: MutualFeatures, first: int) -> Iterator[EncodedImage]:
    options, detector = run.options, run.detector
    reader = Reader(detector.prepare, options.value_range, options.max_pixels)
    ahead = images_ahead(options, None)
    images = map_ahead(run.pool, reader, run.found[first:], ahead)
    description = describe_map(options, detector, DecisionRule(None, None, None))

    def detect() -> Iterator[tuple[PreparedImage, Detection | None, str]]:
        slots = itertools.count(first)
        while not run.interrupted() and (batch := list(itertools.islice(images, options.batch_size))):
            together = resume.batch_digest([image.stamp for image in batch])
            inputs = [image.input for image in batch if image.input is not None]
            results = iter(_encode_batch(detector, inputs) if inputs else ())
            for image, slot in zip(batch, slots, strict=False):  # in this order: zip takes no further slot
                if image.input is None:
                    yield image, None, together
                else:
                    views, detection = next(results)
                    store.put(slot, views)
                    yield replace(image, input=None), detection, together

    def write(item: tuple[PreparedImage, Detection | None, str]) -> EncodedImage:
        image, detection, together = item
        path, error, digest = image.found.relative, image.error, ""
        if detection is None:
            return EncodedImage(path, together, error=error, notes=image.notes)
        if options.maps and detection.anomaly_map is not None:
            try:
                values = resized(options, detection.anomaly_map, image.size_hw)
                digest = digest_of(output.write_map(options, image.found, values, description, output.ZERO_SHOT))
            except InputError as failure:
                return EncodedImage(path, together, error=str(failure), notes=image.notes)
        return EncodedImage(
            path=path,
            batch=together,
            size_hw=image.size_hw,
            text_score=detection.text_score,
            zero_shot_max=detection.map_max,
            part_distance=detection.part_distance,
            notes=image.notes,
            map_digest=digest,
        )

    return map_ahead(run.pool, write, detect(), ahead)


def _encode_batch(detector: Detector, images: Sequence[ModelInput]) -> Iterator[tuple[list[ImageFeatures], Detection]]:
    """Yield the features of each image in each view, and its zero-shot result."""
    collected = EvidenceOfViews(images)
    views: list[list[ImageFeatures]] = [[] for _ in images]
    appearances = torch.empty(0)
    for view, positions, features in detector.encode(images):
        if view == 0:
            appearances = appearance(features)
        collected.add(view, positions, detector.zero_shot_methods[view].evidence(features))
        for row, position in enumerate(positions):
            views[position].append(features[row : row + 1])
    distances = detector.part_distances(appearances)
    for of_image, evidence, distance in zip(views, collected.by_image(), distances, strict=True):
        detection = fuse_views(evidence, detector.zero_shot_methods, detector.views.sizes)
        yield of_image, replace(detection, part_distance=distance)


def known_images(detector: Detector, bank: MemoryBank) -> Known:
    """Return the features of a part's references as they are, and of the calibration images that it keeps."""
    references = zip(*([f[:1] for f in of_view] for of_view in detector.references(bank)), strict=True)
    kept, spec = bank.calibration_images, detector.encoder.spec

    def calibration_images() -> Iterator[list[ImageFeatures]]:
        for sizes in zip(*kept.pixels, strict=True) if kept is not None else ():
            whole = tuple(normalize(pixels.numpy(), spec.mean, spec.std) for pixels in sizes)
            [(views, _)] = _encode_batch(detector, [ModelInput(whole)])
            yield views

    tokens, images = [], []  # coarse and in float16 at once: there may be hundreds of images
    for views in itertools.chain(references, calibration_images()):
        tokens.append(stored_tokens(views))
        images.append(views[0].image.cpu().numpy())
    return [np.stack(stage) for stage in zip(*tokens, strict=True)], np.concatenate(images)
