"""`scan --mutual`: the images of a folder score each other. Scores need all images, so there are three passes.

encode each image, keep its features and write its zero-shot map → compare the images of each subset → write each
image's map, regions and row, in order

``.mutual`` in the output folder holds the features, a line for each encoded image and one for each compared subset.
``--resume`` keeps what they describe as long as the images are unchanged; the last pass is short and starts again.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from aprilcli.core import mutual
from aprilcli.core.calibration import Calibration
from aprilcli.core.decision import DecisionRule
from aprilcli.core.detector import Detector, EvidenceOfViews, ModelInput
from aprilcli.core.fusion import fuse_views
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.mixture import is_mixed
from aprilcli.core.mutual_subsets import LARGEST, LEAST, split
from aprilcli.core.recognition import appearance
from aprilcli.errors import InputError
from aprilcli.io import records, regions_csv
from aprilcli.io.append_file import open_lines
from aprilcli.io.atomic import output_errors, remove_tree
from aprilcli.io.feature_store import FeatureStore
from aprilcli.io.images import normalize
from aprilcli.io.walk import FoundImage, find_images
from aprilcli.options import MutualBy, ScanOptions
from aprilcli.types import Detection, ImageFeatures
from aprilcli.workflows import scan_output as output
from aprilcli.workflows import scan_resume as resume
from aprilcli.workflows.console import Console
from aprilcli.workflows.interrupt import interruptible
from aprilcli.workflows.loading import load_detector, load_part, note_old_bank, range_of
from aprilcli.workflows.mutual_features import Known, MutualFeatures, stored_tokens
from aprilcli.workflows.pipeline import PreparedImage, Reader, batches, images_ahead, map_ahead, stamp, worker_threads
from aprilcli.workflows.scan import describe_map, describe_run, finish, images_to_scan, resized
from aprilcli.workflows.scan_resume import JournaledRow
from aprilcli.workflows.scan_summary import ScanSummary
from aprilcli.workflows.scan_tally import Tally

ENCODED, COMPARED, SCORES = "encoded.jsonl", "compared.jsonl", "scores"
DERIVED = ("threshold", "pixel_threshold", "recognition")  # in run.json, known at the end
NOTE_SCALE = (
    f"mutual scores run from 0 to 1 within a folder (of more than {LARGEST} images, within subsets of about "
    f"{LARGEST // 2} to {LARGEST}): they rank its images, and change with them"
)
NOTE_MIXED = "the folder looks like images of several parts; --mutual-by folder compares the images of each folder only"


@dataclass(frozen=True)
class _Encoded:
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


@dataclass(frozen=True, eq=False)
class _Compared:
    """The scores of all images, by position, and the rule for them; ``digests``: of each image's subset."""

    scores: np.ndarray
    patch_scores: FeatureStore
    digests: dict[int, str]
    rule: DecisionRule


@dataclass
class _Run:
    """A scan in progress."""

    options: ScanOptions
    detector: Detector
    console: Console
    pool: ThreadPoolExecutor
    interrupted: Callable[[], bool]
    found: list[FoundImage]
    kept: list[_Encoded] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the state is."""
        return self.options.out / output.MUTUAL

    def stop_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C."""
        if self.interrupted():
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise KeyboardInterrupt


def run_mutual_scan(options: ScanOptions, total: int, console: Console) -> ScanSummary:
    """Score every image in ``options.paths``, ``total`` in all, by comparing them with each other.

    With an enrolled part, its references and calibration images are compared and scored with them; as they are known to
    be good, their scores give p-values and thresholds. Raises the package's errors; unreadable images get a row.

    Memory, besides the model: that of ``mutual.stage_scores`` for a subset, and a few hundred bytes per image.
    """
    started, began = records.timestamp(), time.monotonic()
    bank = load_part(options.part, options.banks) if options.part is not None else None
    options = replace(options, value_range=range_of(bank, options.value_range))
    detector = load_detector(options, bank, console, images_to_scan(options))
    if bank is not None:
        note_old_bank(bank, console)
        detector.references(bank)  # raises for a bank without the tokens that are compared
    chosen = DecisionRule.at_rate(None, threshold=options.threshold, pixel_threshold=options.pixel_threshold)
    how = {"by": str(options.mutual_by), "subset": LARGEST, "note": "scores depend on the other images of the folder"}
    record = {**describe_run(options, detector, chosen, started), "mutual": how}
    with (
        output.claimed(options.out),
        worker_threads(options.workers) as pool,
        interruptible() as interrupted,
    ):
        found = list(images_to_scan(options))
        run = _Run(options, detector, console, pool, interrupted, found)
        unchanged = _prepare_output(run, record)
        if unchanged is not None:
            tally = Tally()
            for row in unchanged:
                tally.count(row.row)
            rule = _recorded_rule(options)
            return ScanSummary(tally, tally.scored + tally.unreadable, rule, time.monotonic() - began, options.out)
        resumed = len(run.kept) if options.resume else None
        with_store = MutualFeatures(run.folder, detector, len(found), kept=len(run.kept))
        encoded = _encode(run, with_store, total)
        known = None if bank is None else _known_images(detector, bank)
        compared = _compare(run, with_store, encoded, bank, known)
        console.note(NOTE_SCALE)
        for note in compared.rule.notes:
            console.note(note)
        tally = _write_rows(run, with_store, encoded, compared)
        output.flush(options.out)
        with output_errors(run.folder):
            remove_tree(run.folder)
        finished = {**record, **compared.rule.describe(), "counts": tally.counts(), "finished": records.timestamp()}
        records.write_json(options.out / output.RUN, finished)
    return ScanSummary(tally, resumed, compared.rule, time.monotonic() - began, options.out)


def _prepare_output(run: _Run, record: dict[str, Any]) -> list[JournaledRow] | None:
    """Refuse existing results, delete them, or keep what a run that did not finish has encoded.

    Returns the rows of a finished run if no image has changed since, else None.
    """
    options, out = run.options, run.options.out
    if options.resume and output.has_results(out):
        for note in resume.check_same_run(out, record, DERIVED):
            run.console.note(note)
        if run.folder.exists():
            output.remove_derived(out)
            run.kept = _kept_images(run)
            _remove_maps(out, {image.path for image in run.kept})
            records.write_json(out / output.RUN, record)
            return None
        rows = _unchanged_rows(run)
        if rows is not None:
            return rows
        run.console.note("images have changed since then, so all are encoded and compared again")
    elif not options.overwrite:
        output.refuse_results(out)
    output.remove_results(out)
    records.write_json(out / output.RUN, record)
    return None


def _kept_images(run: _Run) -> list[_Encoded]:
    """Return the images at the start of the folder that are encoded already, in whole batches; cut off the rest."""
    kept: list[_Encoded] = []
    end = 0
    lines = _read_lines(run.folder / ENCODED)
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


def _parse(values: dict[str, Any]) -> _Encoded:
    height, width = values["size_hw"]
    return _Encoded(**{**values, "size_hw": (height, width), "notes": tuple(values["notes"])})


def _read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
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
        return _digest_of(output.map_path(options.out, relative, output.ZERO_SHOT).read_bytes())
    except OSError:
        return ""


def _digest_of(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _remove_maps(out: Path, kept: set[str]) -> None:
    """Delete the maps, which are written again, and the zero-shot maps of images that are encoded again."""
    with output_errors(out):
        if (out / output.MAPS).exists():
            remove_tree(out / output.MAPS)
        if (out / output.ZERO_SHOT).exists():
            for found in find_images(out / output.ZERO_SHOT):
                if found.relative.removesuffix(output.TIFF) not in kept:
                    found.path.unlink()


def _unchanged_rows(run: _Run) -> list[JournaledRow] | None:
    """Return the rows of a finished run if its images, subsets, maps and tables are as they were."""
    rows = list(resume.rows_in_place(run.options.out, run.options.csv_safe))
    if [row.row.path for row in rows] != [image.relative for image in run.found]:
        return None
    readable = [row.row.error is None for row in rows]
    together = [
        resume.batch_digest([stamp(image) for image in batch])
        for batch in batches(iter(run.found), run.options.batch_size)
        for _ in batch
    ]
    digests: dict[int, str] = {}
    for subset in _subsets(run, readable):
        digests |= dict.fromkeys(subset, _subset_digest(run, subset, together))
    for position, row in enumerate(rows):
        if row.line != resume.line_on_disk(run.options, digests.get(position, together[position]), row):
            return None
    return list(rows)


def _recorded_rule(options: ScanOptions) -> DecisionRule:
    from aprilcli.workflows.scan_results import ScanResults

    results = ScanResults.open(options.out)
    return DecisionRule(None, results.threshold, results.pixel_threshold)


def _encode(run: _Run, store: MutualFeatures, total: int) -> list[_Encoded]:
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


def _end(run: _Run) -> int:
    with output_errors(run.folder):
        path = run.folder / ENCODED
        return path.stat().st_size if path.exists() else 0


def _encode_rest(run: _Run, store: MutualFeatures, first: int) -> Iterator[_Encoded]:
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

    def write(item: tuple[PreparedImage, Detection | None, str]) -> _Encoded:
        image, detection, together = item
        path, error, digest = image.found.relative, image.error, ""
        if detection is None:
            return _Encoded(path, together, error=error, notes=image.notes)
        if options.maps and detection.anomaly_map is not None:
            try:
                values = resized(options, detection.anomaly_map, image.size_hw)
                digest = _digest_of(output.write_map(options, image.found, values, description, output.ZERO_SHOT))
            except InputError as failure:
                return _Encoded(path, together, error=str(failure), notes=image.notes)
        return _Encoded(
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


def _known_images(detector: Detector, bank: MemoryBank) -> Known:
    """Return the features of a part's references as they are, and of the calibration images that it keeps."""
    images = list(zip(*([f[:1] for f in of_view] for of_view in detector.references(bank)), strict=True))
    kept, spec = bank.calibration_images, detector.encoder.spec
    for sizes in zip(*kept.pixels, strict=True) if kept is not None else ():
        whole = tuple(normalize(pixels.numpy(), spec.mean, spec.std) for pixels in sizes)
        [(views, _)] = _encode_batch(detector, [ModelInput(whole)])
        images.append(tuple(views))
    tokens = [np.stack(stage) for stage in zip(*map(stored_tokens, images), strict=True)]
    return tokens, np.concatenate([views[0].image.cpu().numpy() for views in images])


def _subsets(run: _Run, readable: Sequence[bool]) -> list[list[int]]:
    """Return the positions of the images that score each other. Raises InputError where these are too few."""
    groups: dict[str, list[int]] = {}
    for position, image in enumerate(run.found):
        if readable[position]:
            by_folder = run.options.mutual_by == MutualBy.folder
            groups.setdefault(str(PurePosixPath(image.relative).parent) if by_folder else "", []).append(position)
    subsets = []
    for name, members in groups.items() or {"": []}.items():
        if len(members) < LEAST:
            where = f"folder {name!r}: " if run.options.mutual_by == MutualBy.folder else ""
            raise InputError(
                f"--mutual: {where}{len(members)} readable images, but at least {LEAST} are needed, which are compared "
                "with each other; add images, or scan without it"
            )
        subsets += [[members[k] for k in subset] for subset in split([run.found[k].relative for k in members])]
    return subsets


def _subset_digest(run: _Run, subset: Sequence[int], together: Sequence[str]) -> str:
    """Return a digest of the images of a subset: of their paths and of the batches that they were encoded in."""
    lines = (f"{run.found[position].relative}\0{together[position]}" for position in subset)
    return _digest_of("\n".join(lines).encode("utf-8", "surrogateescape"))


def _compare(
    run: _Run, store: MutualFeatures, encoded: Sequence[_Encoded], bank: MemoryBank | None, known: Known | None
) -> _Compared:
    """Score the images of each subset, and the known images with them; keep the scores of the patches."""
    options = run.options
    subsets = _subsets(run, [image.error is None for image in encoded])
    if options.mutual_by == MutualBy.all and is_mixed(store.appearances(_sample(subsets))):
        run.console.note(NOTE_MIXED)
    done = {values.get("subset"): values for values, _ in _read_lines(run.folder / COMPARED)}
    together = [image.batch for image in encoded]
    kept = len(encoded) if done else 0
    with output_errors(run.folder):
        patch_scores = FeatureStore(run.folder / SCORES, len(encoded), store.grids, kept=kept)
    scores = np.zeros(len(encoded), np.float32)
    digests: dict[int, str] = {}
    rules = []
    count = sum(map(len, subsets))
    with (
        run.console.progress(count, "comparing") as advance,
        open_lines(run.folder / COMPARED, _end_of_lines(run.folder / COMPARED)) as lines,
    ):
        for subset in subsets:
            digest = _subset_digest(run, subset, together)
            values = done.get(digest)
            if values is None:
                values = {"subset": digest, **_compare_subset(run, store, patch_scores, subset, known)}
                lines.write(json.dumps(values) + "\n")
            scores[subset] = values["scores"]
            digests |= dict.fromkeys(subset, digest)
            rules.append(_rule(options, bank, values))
            advance(len(subset))
    return _Compared(scores, patch_scores, digests, DecisionRule.strictest(rules))


def _sample(subsets: Sequence[Sequence[int]]) -> list[int]:
    """Return up to ``LARGEST`` images of all subsets, evenly."""
    each = max(1, LARGEST // len(subsets))
    return [position for subset in subsets[:LARGEST] for position in subset[:each]]


def _end_of_lines(path: Path) -> int:
    return max((end for _, end in _read_lines(path)), default=0)


def _compare_subset(
    run: _Run, store: MutualFeatures, patch_scores: FeatureStore, subset: Sequence[int], known: Known | None
) -> dict[str, list[float]]:
    """Return the scores of a subset's images, and scores and map maxima of the known images."""
    of_images = store.patch_scores(subset, known, run.interrupted)
    run.stop_if_interrupted()
    maxima = torch.tensor([_fuse(store, 0.0, stages).score for stages in of_images])
    images = store.image_features(subset)
    if known is not None:
        images = torch.cat([images, torch.from_numpy(known[1])])
    scores = mutual.smoothed_scores(maxima, images)
    with output_errors(run.folder):
        for position, stages in zip(subset, of_images, strict=False):  # without the known images
            patch_scores.put(position, [stage.numpy() for stage in stages])
    count = len(subset)
    return {
        "scores": scores[:count].tolist(),
        "known_scores": scores[count:].tolist(),
        "known_maxima": maxima[count:].tolist(),
    }


def _fuse(store: MutualFeatures, text_score: float, stages: Sequence[torch.Tensor]) -> Detection:
    return fuse_views(store.evidence(text_score, stages), store.methods, store.sizes)


def _rule(options: ScanOptions, bank: MemoryBank | None, values: dict[str, list[float]]) -> DecisionRule:
    """Return the rule for a subset: its images and the known good images are scored alike, so these calibrate it."""
    calibration = None
    if bank is not None:
        scores, maxima = (np.array(values[name], np.float32) for name in ("known_scores", "known_maxima"))
        distances = None if bank.calibration is None else bank.calibration.distances
        calibration = Calibration(scores, maxima, "held-out", distances)
    return DecisionRule.at_rate(calibration, options.false_alarm_rate, options.threshold, options.pixel_threshold)


def _write_rows(run: _Run, store: MutualFeatures, encoded: Sequence[_Encoded], compared: _Compared) -> Tally:
    """Write the map, the regions and the row of each image, in order."""
    options, rule = run.options, compared.rule
    description = {**describe_map(options, run.detector, rule), "method": "mutual"}
    tally = Tally(rule.stricter)

    def score(position: int) -> JournaledRow:
        image = encoded[position]
        prepared = PreparedImage(run.found[position], size_hw=image.size_hw, error=image.error)
        detection = None
        if image.error is None:
            stages = [torch.from_numpy(stage[0]) for stage in compared.patch_scores.get([position])]
            fused = _fuse(store, image.text_score, stages)
            own = float(compared.scores[position])
            detection = replace(fused, score=own, part_distance=image.part_distance)
        row, regions, content = finish(options, rule, prepared, detection, "map", description)
        row = replace(row, zero_shot_max=image.zero_shot_max if row.status == "ok" else None)
        lines = regions_csv.region_lines(row.path, regions, safe=options.csv_safe)
        batch = compared.digests.get(position, image.batch)
        return JournaledRow(row, resume.journal_line(batch, row, lines, content), lines)

    with_regions = rule.pixel_threshold is not None
    with (
        run.console.progress(len(encoded), "writing") as advance,
        output.open_writer(options.out, output.Ends(), with_regions=with_regions, safe=options.csv_safe) as writer,
    ):
        positions = itertools.takewhile(lambda _: not run.interrupted(), range(len(encoded)))
        for scored in map_ahead(run.pool, score, positions, images_ahead(options, None)):
            writer.write(scored.line, scored.regions, scored.row)
            tally.count(scored.row)
            advance(1)
    run.stop_if_interrupted()
    return tally
