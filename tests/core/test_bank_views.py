"""Bank files with several sizes and tiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_banks import WIDTHS, make_bank, make_sources, make_spec, refusal_of

from aprilcli.core.bank_file import KIND, load_bank, save_bank, to_artifact
from aprilcli.core.calibration import Calibration
from aprilcli.core.memory_bank import CalibrationImages, MemoryBank, append, build, subsample, without
from aprilcli.core.tiling import lay_out
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import write_artifact
from aprilcli.types import Evidence, ImageEvidence, Views

SOURCES_HW = ((40, 60), (40, 200), (90, 90))
GRIDS = ((3, 2), (5, 4), (3, 2))  # of both stages: at 42 and 70 pixels, and of a tile
VIEWS = [Views((42, 70)), Views((42,), 50), Views((42, 70), 50)]


def draw_bank(views: Views) -> MemoryBank:
    """Draw a bank of three sources of different sizes, with zero-shot evidence."""
    generator = torch.Generator().manual_seed(1)
    tokens, images = [], []
    for size_hw in SOURCES_HW:
        layout = None if views.tile is None else lay_out(size_hw, views.tile, views.sizes[0])
        counts = [1] * len(views.sizes) + ([] if layout is None else [len(layout)])
        grids = GRIDS[: len(views.sizes)] if layout is None else (*GRIDS[: len(views.sizes)], GRIDS[2])
        rows, evidence = [], []
        for count, sides in zip(counts, grids, strict=True):
            rows += [
                1 + torch.randn(1, count * side * side, width, generator=generator)
                for side, width in zip(sides, WIDTHS, strict=True)
            ]
            logits = tuple(torch.randn(count, side, side, generator=generator) for side in sides)
            evidence.append(Evidence(torch.rand(count, generator=generator), logits))
        tokens.append(tuple(rows))
        images.append(ImageEvidence(tuple(evidence), layout))
    bank = build(tokens, make_sources(3), make_spec(), "bolt", views=views, dtype=torch.float32)
    return replace(bank, zero_shot=tuple(images))


def with_calibration(bank: MemoryBank) -> MemoryBank:
    """Add two calibration images; with tiles their pixels are not kept."""
    pixels = [torch.full((2, size, size, 3), size, dtype=torch.uint8) for size in bank.views.sizes]
    images = CalibrationImages(
        make_sources(2, 10), tuple(pixels) if bank.tile is None else (), torch.rand(2, sum(WIDTHS))
    )
    scores = Calibration(np.array([0.1, 0.2]), np.array([0.3, 0.4]), "held-out")
    return replace(bank, calibration=scores, calibration_images=images, appearances=torch.rand(3, sum(WIDTHS)))


def each_view(views: Views) -> str:
    return views.label


@pytest.mark.parametrize("views", VIEWS, ids=each_view)
def test_round_trip_through_a_file(tmp_path: Path, views: Views) -> None:
    bank = with_calibration(draw_bank(views))
    save_bank(bank, tmp_path / "bolt.safetensors")
    again = load_bank(tmp_path / "bolt.safetensors")
    assert again.views == views
    for name in ("rows_per_source", "spec", "sources", "further_sizes", "tile", "created"):
        assert getattr(again, name) == getattr(bank, name)
    for view in range(len(views)):
        assert len(again.features_of(view)) == len(WIDTHS)
        assert all(map(torch.equal, again.features_of(view), bank.features_of(view)))
    for mine, theirs in zip(again.zero_shot, bank.zero_shot, strict=True):
        assert mine.layout == theirs.layout
        for own, other in zip(mine.views, theirs.views, strict=True):
            assert torch.equal(own.text_scores, other.text_scores)
            assert all(map(torch.equal, own.logits, other.logits))
    assert again.calibration_images is not None
    assert bank.calibration_images is not None
    assert len(again.calibration_images.pixels) == (0 if views.tile else len(views.sizes))
    assert all(map(torch.equal, again.calibration_images.pixels, bank.calibration_images.pixels))
    save_bank(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "bolt.safetensors").read_bytes()


def test_a_bank_of_one_size_has_no_fields_of_views() -> None:
    tensors, fields = to_artifact(make_bank(3))
    assert not fields.keys() & {"further_sizes", "tile", "source_sizes"}
    assert sorted(tensors) == ["features.0", "features.1", "norms.0", "norms.1"]


@pytest.mark.parametrize("views", VIEWS, ids=each_view)
def test_grown_shrunk_and_subsampled_banks_keep_their_views(views: Views) -> None:
    bank = draw_bank(views)
    tokens = tuple(rows[None] for rows in (stage[: stage.shape[0] // 3] for stage in bank.features))
    grown = append(bank, [tokens], make_sources(1, 5))
    half, fewer = subsample(bank, 0.5), without(bank, [1])
    assert {grown.views, half.views, fewer.views} == {views}
    assert [image.layout for image in fewer.zero_shot] == [bank.zero_shot[k].layout for k in (0, 2)]
    for mine, theirs in zip(half.features, bank.features, strict=True):
        assert abs(len(mine) - len(theirs) / 2) <= 1


def test_grids_are_checked_in_each_view() -> None:
    bank = draw_bank(VIEWS[2])
    grids = [[(side, side) for side in sides] for sides in GRIDS]
    bank.check_grids(grids)
    subsample(bank, 0.5).check_grids(grids)
    for view in range(3):
        wrong = [list(of_view) for of_view in grids]
        wrong[view][1] = (1, 1)
        with pytest.raises(ArtifactError, match="at 42,70, tiles of 50 pixels; enroll the part again"):
            bank.check_grids(wrong)


@pytest.mark.parametrize("other", [Views((42,)), Views((42, 70)), Views((42, 70), 60), Views((42, 84), 50)])
def test_other_views_are_refused_with_both_sides(other: Views) -> None:
    bank = draw_bank(VIEWS[2])
    with pytest.raises(ArtifactError, match=f"42,70, tiles of 50, not {other.label}; use the bank's own"):
        bank.check(bank.spec, other, "", "bolt")


Damage = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, fields: tensors.pop("text_scores.1"),
        lambda tensors, fields: tensors.pop("features.5"),
        lambda tensors, fields: tensors.update({"text_scores.2": torch.zeros(2)}),
        lambda tensors, fields: tensors.pop("logits.4"),
        lambda tensors, fields: fields.update(further_sizes=[70, 84]),
        lambda tensors, fields: fields.update(further_sizes=[70] * 5),
        lambda tensors, fields: fields.update(further_sizes=["70"]),
        lambda tensors, fields: fields.update(further_sizes=[0]),
        lambda tensors, fields: fields.update(tile=0),
        lambda tensors, fields: fields.update(tile="50"),
        lambda tensors, fields: fields.update(tile=None),
        lambda tensors, fields: fields.update(source_sizes=[[40, 60]] * 2),
        lambda tensors, fields: fields.update(source_sizes=[[40, 60]] * 3),
        lambda tensors, fields: fields.update(source_sizes=[[40, 60, 3]] * 3),
        lambda tensors, fields: fields.update(source_sizes=[[-1, 60]] * 3),
        lambda tensors, fields: fields.update(source_sizes=[[10**15, 10**15]] * 3),
        lambda tensors, fields: fields.update(source_sizes=[[10**400, 60]] * 3),
        lambda tensors, fields: fields.update(tile=1, source_sizes=[[10**7, 10**7]] * 3),
    ],
)
def test_a_damaged_bank_is_refused(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "bolt.safetensors"
    tensors, fields = to_artifact(draw_bank(VIEWS[2]))
    fields = json.loads(json.dumps(fields))
    damage(tensors, fields)
    write_artifact(path, KIND, tensors, fields)
    refusal_of(path)
