"""Known defects and good images choose the image score of a part, see ``core/score_choice.py``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from aprilcli.core.detector import Detector, ModelInput
from aprilcli.core.fusion import fuse_views
from aprilcli.core.memory_bank import MemoryBank, Source
from aprilcli.core.score_choice import LEAST_DEFECTS, ScoreChoice, choose, variants
from aprilcli.io.walk import FoundImage
from aprilcli.workflows.console import Console

LEAST_GOOD = 8  # images to choose with; as many at least are left for the threshold

Batches = Iterable[list[ModelInput]]
Images = list[tuple[FoundImage, Source]]


def split_good(defects: int, further: Images, console: Console) -> tuple[Images, Images]:
    """Split the calibration images into those that choose a score, and those that calibrate it.

    By content, so the same images are chosen whatever their names and order. None choose if there are too few, of
    these or of the ``defects``; a note then says so.
    """
    short = f"{defects} known defects" if defects < LEAST_DEFECTS else f"{len(further)} calibration images"
    if defects < LEAST_DEFECTS or len(further) < 2 * LEAST_GOOD:
        console.note(
            f"--defects: {short} are too few to choose a score ({LEAST_DEFECTS} defects and {2 * LEAST_GOOD} "
            "calibration images are needed); nothing changes"
        )
        return [], further
    ordered = sorted(further, key=lambda pair: pair[1].sha256)
    chosen = {source.sha256 for _, source in ordered[: len(ordered) // 2]}
    return [p for p in further if p[1].sha256 in chosen], [p for p in further if p[1].sha256 not in chosen]


def choose_score(
    bank: MemoryBank, detector: Detector, defects: tuple[Images, Batches], good: tuple[Images, Batches]
) -> ScoreChoice:
    """Choose the score of a bank from known defects and good images; their content is recorded."""
    compared = detector.with_bank(bank)
    choice = choose(*(_scores(compared, bank, batches) for _, batches in (defects, good)))
    of_defects, of_good = (tuple(source.sha256 for _, source in images) for images, _ in (defects, good))
    return replace(choice, defect_images=of_defects, good_images=of_good)


def _scores(detector: Detector, bank: MemoryBank, batches: Batches) -> dict[str, NDArray[np.float32]]:
    """Return the scores of images under each variant."""
    names = variants(len(bank.spec.stages))
    methods = {name: detector.weighted(bank.stage_weights, name) for name in names}
    scores: dict[str, list[float]] = {name: [] for name in names}
    for batch in batches:
        [evidence], _ = detector.evidence(batch, [detector.methods])
        for image in evidence:
            for name in names:
                scores[name].append(fuse_views(image, methods[name], detector.views.sizes).score)
    return {name: np.array(values, np.float32) for name, values in scores.items()}
