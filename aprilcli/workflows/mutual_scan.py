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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from aprilcli.core import mutual
from aprilcli.core.calibration import Calibration
from aprilcli.core.decision import DecisionRule
from aprilcli.core.fusion import fuse_views
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.mixture import is_mixed
from aprilcli.core.mutual_subsets import LARGEST, LEAST, split
from aprilcli.errors import InputError
from aprilcli.io import records, regions_csv
from aprilcli.io.append_file import open_lines
from aprilcli.io.atomic import output_errors, remove_tree
from aprilcli.io.feature_store import FeatureStore
from aprilcli.options import MutualBy, ScanOptions
from aprilcli.types import Detection
from aprilcli.workflows import scan_output as output
from aprilcli.workflows import scan_resume as resume
from aprilcli.workflows.console import Console
from aprilcli.workflows.interrupt import interruptible
from aprilcli.workflows.loading import load_detector, load_part, note_old_bank, range_of
from aprilcli.workflows.mutual_encoding import (
    ENCODED,
    EncodedImage,
    MutualRun,
    digest_of,
    encode_images,
    kept_images,
    known_images,
    read_lines,
    remove_maps,
)
from aprilcli.workflows.mutual_features import Known, MutualFeatures
from aprilcli.workflows.pipeline import PreparedImage, batches, images_ahead, map_ahead, stamp, worker_threads
from aprilcli.workflows.scan import RATE_WITHOUT_PART, describe_map, describe_run, finish, images_to_scan
from aprilcli.workflows.scan_results import ScanResults
from aprilcli.workflows.scan_resume import JournaledRow
from aprilcli.workflows.scan_summary import ScanSummary
from aprilcli.workflows.scan_tally import Tally

COMPARED, SCORES = "compared.jsonl", "scores"
DERIVED = ("threshold", "pixel_threshold", "recognition")  # in run.json, known at the end
NOTE_SCALE = (
    f"mutual scores run from 0 to 1 within a folder (of more than {LARGEST} images, within subsets of about "
    f"{LARGEST // 2} to {LARGEST}): they rank its images, and change with them"
)
NOTE_SCALE_OF_PART = (
    "mutual scores are maxima of the maps, averaged over similar images: they change with the images of the folder"
)
NOTE_MIXED = (
    "the folder looks like images of several parts (or has many defects); --mutual-by folder compares the images of "
    "each folder only"
)
NOTE_COPIES = "the folder has references or calibration images of the part: they do not count as known good images here"
SAME_IMAGE = 1e-5  # distance of image features


@dataclass(frozen=True, eq=False)
class _Compared:
    """The scores of all images, by position, and the rule for them; ``digests``: of each image's subset."""

    scores: np.ndarray
    patch_scores: FeatureStore
    digests: dict[int, str]
    rule: DecisionRule


def run_mutual_scan(options: ScanOptions, total: int, console: Console) -> ScanSummary:
    """Score every image in ``options.paths``, ``total`` in all, by comparing them with each other.

    With an enrolled part, its references and calibration images are compared and scored with them; as they are known to
    be good, their scores give p-values and thresholds. Raises the package's errors; unreadable images get a row.

    Memory, besides the model: that of ``mutual.stage_scores`` for a subset with the known images, and a few hundred
    bytes per image.
    """
    started, began = records.timestamp(), time.monotonic()
    bank = load_part(options.part, options.banks) if options.part is not None else None
    options = replace(options, value_range=range_of(bank, options.value_range))
    detector = load_detector(options, bank, console, images_to_scan(options))
    if bank is not None:
        note_old_bank(bank, console)
        bank.check_references()
    elif options.false_alarm_rate is not None:
        console.note(RATE_WITHOUT_PART)
    chosen = DecisionRule.at_rate(None, threshold=options.threshold, pixel_threshold=options.pixel_threshold)
    how = {"by": str(options.mutual_by), "subset": LARGEST, "note": "scores depend on the other images of the folder"}
    record = {**describe_run(options, detector, chosen, started), "mutual": how}
    with (
        output.claimed(options.out),
        worker_threads(options.workers) as pool,
        interruptible() as interrupted,
    ):
        found = list(images_to_scan(options))
        run = MutualRun(options, detector, console, pool, interrupted, found)
        _subsets(run, [True] * len(found))  # raises for a folder with too few images, before anything is deleted
        unchanged = _prepare_output(run, record)
        if unchanged is not None:
            tally = Tally()
            for row in unchanged:
                tally.count(row.row)
            rule = _recorded_rule(options)
            return ScanSummary(tally, tally.scored + tally.unreadable, rule, time.monotonic() - began, options.out)
        resumed = len(run.kept) if options.resume else None
        store = MutualFeatures(run.folder, detector, len(found), kept=len(run.kept))
        encoded = encode_images(run, store, total)
        known = None if bank is None else known_images(detector, bank)
        compared = _compare(run, store, encoded, bank, known)
        console.note(NOTE_SCALE if bank is None else NOTE_SCALE_OF_PART)
        for note in compared.rule.notes:
            console.note(note)
        tally = _write_rows(run, store, encoded, compared)
        output.flush(options.out)
        finished = {**record, **compared.rule.describe(), "counts": tally.counts(), "finished": records.timestamp()}
        records.write_json(options.out / output.RUN, finished)
        with output_errors(run.folder):
            for name in (COMPARED, ENCODED):  # first, so that a killed run leaves no lines without what they describe
                (run.folder / name).unlink()
            remove_tree(run.folder)
    return ScanSummary(tally, resumed, compared.rule, time.monotonic() - began, options.out)


def _prepare_output(run: MutualRun, record: dict[str, Any]) -> list[JournaledRow] | None:
    """Refuse existing results, delete them, or keep what a run that did not finish has encoded.

    Returns the rows of a finished run if no image has changed since, else None.
    """
    options, out = run.options, run.options.out
    if options.resume and output.has_results(out):
        for note in resume.check_same_run(out, record, DERIVED):
            run.console.note(note)
        if run.folder.exists():
            output.remove_derived(out)
            run.kept = kept_images(run)
            remove_maps(out, {image.path for image in run.kept})
            records.write_json(out / output.RUN, record)
            return None
        rows = _unchanged_rows(run)
        if rows is not None:
            return rows
        run.console.note("images or results have changed since then, so all images are encoded and compared again")
    elif not options.overwrite:
        output.refuse_results(out)
    output.remove_results(out)
    records.write_json(out / output.RUN, record)
    return None


def _unchanged_rows(run: MutualRun) -> list[JournaledRow] | None:
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
        zero_shot = output.map_path(run.options.out, row.row.path, output.ZERO_SHOT)
        if run.options.maps and row.row.zero_shot_max is not None and not zero_shot.exists():
            return None
    return list(rows)


def _recorded_rule(options: ScanOptions) -> DecisionRule:
    results = ScanResults.open(options.out)
    return DecisionRule(None, results.threshold, results.pixel_threshold)


def _subsets(run: MutualRun, readable: Sequence[bool]) -> list[list[int]]:
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


def _subset_digest(run: MutualRun, subset: Sequence[int], together: Sequence[str]) -> str:
    """Return a digest of the images of a subset: of their paths and of the batches that they were encoded in."""
    lines = (f"{run.found[position].relative}\0{together[position]}" for position in subset)
    return digest_of("\n".join(lines).encode("utf-8", "surrogateescape"))


def _compare(
    run: MutualRun, store: MutualFeatures, encoded: Sequence[EncodedImage], bank: MemoryBank | None, known: Known | None
) -> _Compared:
    """Score the images of each subset, and the known images with them; keep the scores of the patches."""
    options = run.options
    subsets = _subsets(run, [image.error is None for image in encoded])
    if options.mutual_by == MutualBy.all and is_mixed(store.appearances(_sample(subsets))):
        run.console.note(NOTE_MIXED)
    together = [image.batch for image in encoded]
    digests_of_subsets = [_subset_digest(run, subset, together) for subset in subsets]
    done, end = _compared_before(run, subsets, digests_of_subsets)
    kept = len(encoded) if done else 0
    with output_errors(run.folder):
        patch_scores = FeatureStore(run.folder / SCORES, len(encoded), store.grids, kept=kept)
    scores = np.zeros(len(encoded), np.float32)
    digests: dict[int, str] = {}
    rules = []
    count = sum(map(len, subsets))
    with (
        run.console.progress(count, "comparing") as advance,
        open_lines(run.folder / COMPARED, end) as lines,
    ):
        for number, (subset, digest) in enumerate(zip(subsets, digests_of_subsets, strict=True)):
            if number < len(done):
                values = done[number]
            else:
                found = _compare_subset(run, store, patch_scores, subset, known)
                values = {"subset": digest, "positions": subset, **found}
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


def _compared_before(
    run: MutualRun, subsets: Sequence[Sequence[int]], digests: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of the first subsets that an earlier run compared, and the position after them.

    The rest is not kept: added images move those after them, whose places may then hold scores of other images.
    """
    done: list[dict[str, Any]] = []
    end = 0
    for (values, after), subset, digest in zip(read_lines(run.folder / COMPARED), subsets, digests, strict=False):
        if (values.get("subset"), values.get("positions")) != (digest, subset):
            break
        done.append(values)
        end = after
    return done, end


def _compare_subset(
    run: MutualRun, store: MutualFeatures, patch_scores: FeatureStore, subset: Sequence[int], known: Known | None
) -> dict[str, Any]:
    """Return the scores of a subset's images, and scores and map maxima of the known images."""
    images = store.image_features(subset)
    if known is not None:
        known = _without_copies(known, images, run.console)
    of_images = store.patch_scores(subset, known, run.interrupted)
    run.stop_if_interrupted()
    maxima = torch.tensor([_fuse(store, 0.0, stages).score for stages in of_images])
    if known is not None:
        images = torch.cat([images, torch.from_numpy(known[1])])
    scores = mutual.smoothed_scores(maxima, images, scaled=known is None)
    with output_errors(run.folder):
        for position, stages in zip(subset, of_images, strict=False):  # without the known images
            patch_scores.put(position, [stage.numpy() for stage in stages])
    count = len(subset)
    return {
        "scores": scores[:count].tolist(),
        "known_scores": scores[count:].tolist(),
        "known_maxima": maxima[count:].tolist(),
    }


def _without_copies(known: Known, images: torch.Tensor, console: Console) -> Known:
    """Leave out known images that are in the subset, too: beside its copy, an image has a lower score."""
    tokens, features = known
    apart = torch.cdist(torch.from_numpy(features), images, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
    kept = (apart > SAME_IMAGE).numpy()
    if not kept.all():
        console.note_once(NOTE_COPIES)
    return [stage[kept] for stage in tokens], features[kept]


def _fuse(store: MutualFeatures, text_score: float, stages: Sequence[torch.Tensor]) -> Detection:
    return fuse_views(store.evidence(text_score, stages), store.methods, store.sizes)


def _rule(options: ScanOptions, bank: MemoryBank | None, values: dict[str, Any]) -> DecisionRule:
    """Return the rule for a subset: its images and the known good images are scored alike, so these calibrate it."""
    calibration = None
    if values["known_scores"] and bank is not None:
        scores, maxima = (np.array(values[name], np.float32) for name in ("known_scores", "known_maxima"))
        distances = None if bank.calibration is None else bank.calibration.distances
        calibration = Calibration(scores, maxima, "held-out", distances)
    return DecisionRule.at_rate(calibration, options.false_alarm_rate, options.threshold, options.pixel_threshold)


def _write_rows(run: MutualRun, store: MutualFeatures, encoded: Sequence[EncodedImage], compared: _Compared) -> Tally:
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
