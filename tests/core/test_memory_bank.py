from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_banks import LENGTHS, draw_tokens, draw_zero_shot, make_bank, make_sources, make_spec

from aprilcli.core.calibration import Calibration
from aprilcli.core.coreset import coreset
from aprilcli.core.memory_bank import (
    Recipe,
    Source,
    append,
    build,
    new_sources,
    subsample,
)
from aprilcli.errors import ArtifactError, InputError
from aprilcli.types import Evidence


def test_build_normalizes_rows_and_counts_them_per_source():
    bank = make_bank(3)
    assert [tuple(rows.shape) for rows in bank.features] == [(27, 8), (12, 16)]
    assert bank.rows_per_source == ((9, 9, 9), (4, 4, 4))
    for tokens, rows in zip(draw_tokens(3), bank.features, strict=True):
        torch.testing.assert_close(rows, torch.nn.functional.normalize(tokens.flatten(0, 1), dim=-1))
    assert bank.calibration is None
    assert bank.created.endswith("+00:00")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("first", [1, 3])
def test_append_equals_enrolling_all_at_once(first, dtype):
    tokens, sources = draw_tokens(5), make_sources(5)
    whole = build([tokens], sources, make_spec(), "bolt", dtype=dtype)
    start = build([tuple(stage[:first] for stage in tokens)], sources[:first], make_spec(), "bolt", dtype=dtype)
    start = replace(start, calibration=Calibration(np.ones(first), np.ones(first), "leave-one-out"))
    one_by_one = [tuple(stage[k : k + 1] for stage in tokens) for k in range(first, 5)]
    grown = append(start, one_by_one, sources[first:])
    assert all(torch.equal(a, b) for a, b in zip(grown.features, whole.features, strict=True))
    assert grown.features[0].dtype == dtype
    assert (grown.rows_per_source, grown.sources, grown.spec) == (whole.rows_per_source, whole.sources, whole.spec)
    assert grown.calibration is None
    assert start.features[0].shape[0] == 9 * first  # the old bank is unchanged


def test_append_to_a_subsampled_bank():
    subsampled = subsample(make_bank(4), 0.5)
    grown = append(subsampled, [draw_tokens(1, seed=9)], make_sources(1, first=4))
    assert [counts[-1] for counts in grown.rows_per_source] == list(LENGTHS)
    assert grown.coreset_fraction == 0.5
    for rows, old in zip(grown.features, subsampled.features, strict=True):
        assert torch.equal(rows[: len(old)], old)


@pytest.mark.parametrize("count", [1, 3])
def test_a_different_number_of_images_than_sources_is_a_bug(count):
    with pytest.raises(ValueError, match="2 sources"):
        build([draw_tokens(count)], make_sources(2), make_spec(), "bolt")


def test_a_bank_needs_an_image():
    with pytest.raises(InputError, match="no good images"):
        build([], (), make_spec(), "bolt")


def test_content_is_new_once_under_any_name():
    a, b = Source("a.png", "1"), Source("b.png", "2")
    assert new_sources([a], [replace(a, path="copy.png"), b, replace(b, path="copy of b.png")]) == [False, True, False]


def test_duplicates_are_refused():
    twice = (Source("a.png", "1"), Source("copy.png", "1"))
    with pytest.raises(InputError, match=r"copy\.png: the same image"):
        build([draw_tokens(2)], twice, make_spec(), "bolt")
    with pytest.raises(InputError, match=r"good/1\.png: the same image"):
        append(make_bank(2), [draw_tokens(1)], make_sources(2)[1:])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation": "quickgelu"}, "activation gelu against quickgelu"),
        ({"image_size": 56}, "image_size 42 against 56"),
        ({"stages": (1, 4)}, "stages 2,4 against 1,4"),
        ({"fingerprint": "0" * 64}, "fingerprint ffffffffffff against 000000000000"),
        ({"mean": (0.0, 0.0, 0.0)}, "mean 0.5,0.5,0.5 against 0.0,0.0,0.0"),
        ({"std": (1.0, 1.0, 1.0)}, "std 0.2,0.2,0.2 against 1.0,1.0,1.0"),
    ],
)
def test_another_model_is_refused_naming_both_sides(change, named):
    with pytest.raises(ArtifactError, match=named):
        make_bank(1).check(make_spec(**change), make_bank(1).views, "", "bolt")


def test_a_model_in_another_folder_is_the_same_model():
    make_bank(1).check(make_spec(backbone="elsewhere", pretrained=""), make_bank(1).views, "", "bolt")


def test_another_projector_or_name_is_refused_naming_both_sides():
    bank = replace(make_bank(1), recipe=Recipe("vit", None, "a" * 64))
    bank.check(make_spec(), bank.views, "a" * 64, "bolt")
    with pytest.raises(ArtifactError, match="projector aaaaaaaaaaaa, not with bbbbbbbbbbbb"):
        bank.check(make_spec(), bank.views, "b" * 64, "bolt")
    with pytest.raises(ArtifactError, match="projector aaaaaaaaaaaa, not with none"):
        bank.check(make_spec(), bank.views, "", "bolt")
    with pytest.raises(ArtifactError, match=r"'bolt' was calibrated .* not 'nut'"):
        bank.check(make_spec(), bank.views, "a" * 64, "nut")


def test_evidence_is_joined_in_the_order_of_the_parts():
    parts = [image.views[0] for image in draw_zero_shot(5)]
    whole = Evidence.concatenate(parts)
    together = Evidence.concatenate([whole[:2], whole[2:]])
    assert torch.equal(together.text_scores, torch.cat([part.text_scores for part in parts]))
    assert all(map(torch.equal, together.logits, whole.logits))


def test_subsample_keeps_rows_with_their_sources_and_drops_the_calibration():
    bank = replace(make_bank(5), calibration=Calibration(np.ones(5), np.ones(5), "leave-one-out"))
    subsampled = subsample(bank, 0.4, seed=3)
    assert subsampled.calibration is None
    assert subsampled.coreset_fraction == 0.4
    for stage in range(2):
        kept = coreset(bank.features[stage], 0.4, seed=3)
        assert torch.equal(subsampled.features[stage], bank.features[stage][kept])
        owners = (kept // LENGTHS[stage]).tolist()
        assert subsampled.rows_per_source[stage] == tuple(owners.count(k) for k in range(5))
