from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from aprilcli.core import maps, nearest
from aprilcli.core.calibration import Calibration
from aprilcli.core.coreset import coreset
from aprilcli.core.memory_bank import (
    MemoryBank,
    Recipe,
    Source,
    append,
    build,
    new_sources,
    subsample,
    unit_rows,
)
from aprilcli.core.nearest import leave_one_out, nearest_distance
from aprilcli.errors import ArtifactError, InputError
from aprilcli.types import Evidence, ModelSpec

QUERIES = ("query0", "query1", "query2")
WIDTHS = (8, 16)
LENGTHS = (9, 4)


def make_spec(**changes):
    spec = ModelSpec("vit", "tag", "gelu", 42, (2, 4), WIDTHS, 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "f" * 64)
    return replace(spec, **changes)


def draw_tokens(count, seed=0):
    """Draw patch tokens of ``count`` pictures: a common direction and noise, as a tower's tokens have."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        1 + torch.randn(count, n, width, generator=generator) for n, width in zip(LENGTHS, WIDTHS, strict=True)
    )


def make_sources(count, first=0):
    return tuple(Source(f"good/{k}.png", f"{k:064x}") for k in range(first, first + count))


def make_bank(count, seed=0, dtype=torch.float32):
    return build([draw_tokens(count, seed)], make_sources(count), make_spec(), "bolt", dtype=dtype)


def draw_zero_shot(count):
    generator = torch.Generator().manual_seed(3)
    grids = tuple(torch.randn(count, side, side, generator=generator) for side in (3, 2))
    return Evidence(torch.rand(count, generator=generator), grids)


def direct_distance(tokens, rows):
    """Eq. 4 word by word, in float64."""
    tokens, rows = tokens.double(), rows.double()
    cosines = (tokens / tokens.norm(dim=-1, keepdim=True)) @ (rows / rows.norm(dim=-1, keepdim=True)).T
    return (1 - cosines).amin(dim=-1)


# Eq. 4 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_few_shot_maps_are_the_authors(golden, dtype):
    total = {query: torch.zeros(golden.image_size, golden.image_size) for query in QUERIES}
    for stage in range(4):
        bank = unit_rows(golden.numbers[f"bank/{stage}"]).to(dtype)
        for query in QUERIES:
            tokens = golden.numbers[f"{query}/patch_tokens/{stage}"]
            grid = tokens.shape[1:]
            if tokens.ndim == 3:
                tokens = tokens.flatten(1).T
            else:
                tokens = tokens[1:]
                grid = (round(len(tokens) ** 0.5),) * 2
            distances = nearest_distance(tokens[None], bank)
            one = maps.few_shot_map([distances.reshape(1, *grid)], golden.image_size)[0]
            torch.testing.assert_close(one, golden.numbers[f"{query}/few_shot_map/{stage}"], rtol=0, atol=1e-4)
            total[query] += one
    for query in QUERIES:
        torch.testing.assert_close(total[query], golden.numbers[f"{query}/few_shot_map"], rtol=0, atol=1e-4)


def test_a_bank_enrolled_from_the_pictures_gives_the_authors_maps(golden):
    pixels = torch.cat([golden.pixels("ref0"), golden.pixels("ref1")])
    bank = build(
        [golden.encoder.encode(pixels).patch_tokens], make_sources(2), golden.backbone.spec, "x", dtype=torch.float32
    )
    for stage, rows in enumerate(bank.features):
        torch.testing.assert_close(rows, unit_rows(golden.numbers[f"bank/{stage}"]), rtol=0, atol=1e-5)
    features = golden.encoder.encode(golden.pixels("query0"))
    stages = zip(features.patch_tokens, bank.features, features.grids, strict=True)
    distances = [nearest_distance(tokens, rows).reshape(1, *grid) for tokens, rows, grid in stages]
    few_shot = maps.few_shot_map(distances, golden.image_size)[0]
    torch.testing.assert_close(few_shot, golden.numbers["query0/few_shot_map"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk_rows", [1, 7, 300, 10**6])
def test_chunks_change_nothing(monkeypatch, chunk_rows):
    tokens = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(1))
    rows = unit_rows(torch.randn(300, 16, generator=torch.Generator().manual_seed(2)))
    monkeypatch.setattr(nearest, "SIMILARITIES", 4 * 20 * chunk_rows)
    expected = direct_distance(tokens, rows).float()
    torch.testing.assert_close(nearest_distance(tokens, rows), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(nearest_distance(tokens, rows[:50], rows[50:]), expected, rtol=0, atol=1e-6)


def test_no_more_cosines_are_held_than_stated(monkeypatch):
    monkeypatch.setattr(nearest, "SIMILARITIES", 4 * 20 * 32)
    held = []
    amax = torch.Tensor.amax
    monkeypatch.setattr(torch.Tensor, "amax", lambda self, dim: held.append(self.shape) or amax(self, dim=dim))
    nearest_distance(torch.randn(5, 20, 16), unit_rows(torch.randn(100, 16)))
    assert {shape.numel() for shape in held} == {20 * 32, 20 * 4}
    held.clear()
    nearest_distance(torch.randn(1, 2, 40), unit_rows(torch.randn(100, 40)))  # few patches: as little of the bank
    assert {shape.numel() for shape in held} == {2 * 16, 2 * 4}


def test_distances_of_a_picture_do_not_depend_on_its_neighbours():
    tokens = torch.randn(7, 33, 40, generator=torch.Generator().manual_seed(1))
    rows = unit_rows(torch.randn(500, 40, generator=torch.Generator().manual_seed(2)))
    together = nearest_distance(tokens, rows)
    turned = nearest_distance(tokens.flip(0), rows).flip(0)
    alone = torch.cat([nearest_distance(one[None].clone(), rows) for one in tokens])
    assert torch.equal(together, alone)
    assert torch.equal(together, turned)


def test_distances_span_0_to_2_and_ignore_length():
    rows = unit_rows(torch.tensor([[1.0, 0.0]]))
    tokens = torch.tensor([[[5.0, 0.0], [-0.1, 0.0], [0.0, 3.0]]])
    assert nearest_distance(tokens, rows).tolist() == [[0.0, 2.0, 1.0]]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float16, 1e-6)])
def test_a_reference_itself_is_near(dtype, near):
    tokens = draw_tokens(3)
    bank = make_bank(3, dtype=dtype)
    for stage_tokens, rows in zip(tokens, bank.features, strict=True):
        distances = nearest_distance(stage_tokens, rows)
        assert distances.min() >= 0
        assert distances.max() < near


# Banks --------------------------------------------------------------------------------------------------------------


def test_build_normalises_and_remembers_whose_rows_are_whose():
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
    assert start.features[0].shape[0] == 9 * first  # the old bank is left as it was


def test_append_takes_thinned_banks():
    thinned = subsample(make_bank(4), 0.5)
    grown = append(thinned, [draw_tokens(1, seed=9)], make_sources(1, first=4))
    assert [counts[-1] for counts in grown.rows_per_source] == list(LENGTHS)
    assert grown.coreset_fraction == 0.5
    for rows, old in zip(grown.features, thinned.features, strict=True):
        assert torch.equal(rows[: len(old)], old)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_pictures_than_sources_is_a_bug(count):
    with pytest.raises(ValueError, match="2 sources"):
        build([draw_tokens(count)], make_sources(2), make_spec(), "bolt")


def test_a_bank_needs_a_photo():
    with pytest.raises(InputError, match="no good photos"):
        build([], (), make_spec(), "bolt")


def test_the_same_content_is_new_once_whatever_its_name():
    a, b = Source("a.png", "1"), Source("b.png", "2")
    assert new_sources([a], [replace(a, path="copy.png"), b, replace(b, path="copy of b.png")]) == [False, True, False]


def test_duplicates_are_refused():
    twice = (Source("a.png", "1"), Source("copy.png", "1"))
    with pytest.raises(InputError, match=r"copy\.png: the same photo"):
        build([draw_tokens(2)], twice, make_spec(), "bolt")
    with pytest.raises(InputError, match=r"good/1\.png: the same photo"):
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
        make_bank(1).check(make_spec(**change), "", "bolt")


def test_a_model_that_moved_is_the_same_model():
    make_bank(1).check(make_spec(backbone="elsewhere", pretrained=""), "", "bolt")


def test_another_projector_or_name_is_refused_naming_both_sides():
    bank = replace(make_bank(1), recipe=Recipe("vit", None, "a" * 64))
    bank.check(make_spec(), "a" * 64, "bolt")
    with pytest.raises(ArtifactError, match="projector aaaaaaaaaaaa, not with bbbbbbbbbbbb"):
        bank.check(make_spec(), "b" * 64, "bolt")
    with pytest.raises(ArtifactError, match="projector aaaaaaaaaaaa, not with none"):
        bank.check(make_spec(), "", "bolt")
    with pytest.raises(ArtifactError, match=r"'bolt' was calibrated .* not 'nut'"):
        bank.check(make_spec(), "a" * 64, "nut")


@pytest.mark.parametrize("calibrated", [True, False])
def test_round_trip_through_an_artifact(calibrated):
    bank = subsample(make_bank(4, dtype=torch.float16), 0.5)
    if calibrated:
        bank = replace(
            bank,
            calibration=Calibration(np.array([0.1, 0.2]), np.array([0.3, 0.4]), "held-out"),
            recipe=Recipe("vit:tag", "visa", "a" * 64),
            zero_shot=draw_zero_shot(4),
        )
    tensors, fields = bank.to_artifact()
    again = MemoryBank.from_artifact(tensors, json.loads(json.dumps(fields)), created=bank.created, version="0.0.9")
    assert all(torch.equal(a, b) for a, b in zip(again.features, bank.features, strict=True))
    kept = ("rows_per_source", "spec", "object_name", "sources", "coreset_fraction", "created", "recipe")
    assert [getattr(again, name) for name in kept] == [getattr(bank, name) for name in kept]
    assert again.version == "0.0.9"
    assert (again.calibration is not None) == calibrated
    if again.calibration is not None:
        assert again.calibration.method == "held-out"
        assert again.calibration.map_maxima.tolist() == np.float32([0.3, 0.4]).tolist()
        assert torch.equal(again.zero_shot.text_scores, bank.zero_shot.text_scores)
        assert all(torch.equal(a, b) for a, b in zip(again.zero_shot.logits, bank.zero_shot.logits, strict=True))
    else:
        assert again.zero_shot is None


def test_evidence_is_joined_in_the_order_of_the_parts():
    whole = draw_zero_shot(5)
    together = Evidence.concatenate([whole[:2], whole[2:]])
    assert torch.equal(together.text_scores, whole.text_scores)
    assert all(torch.equal(a, b) for a, b in zip(together.logits, whole.logits, strict=True))


def _damage(tensors, fields, what):
    if what == "no spec":
        del fields["spec"]
    elif what == "a stage gone":
        del tensors["features.1"]
    elif what == "mixed types":
        tensors["features.1"] = tensors["features.1"].half()
    elif what == "integers":
        tensors |= {name: rows.int() for name, rows in tensors.items()}
    elif what == "another width":
        tensors["features.0"] = tensors["features.0"][:, 1:]
    elif what == "rows gone":
        tensors["features.0"] = tensors["features.0"][1:]
    elif what == "a source gone":
        fields["sources"] = fields["sources"][1:]
    elif what == "no sources":
        fields["sources"] = []
    elif what == "sources are text":
        fields["sources"] = "abc"
    elif what == "negative rows":
        fields["rows_per_source"] = [[10, 9, -1 + 9], [13, 0, -1]]
    elif what == "no fraction":
        fields["coreset_fraction"] = None
    elif what == "zero-shot of fewer":
        tensors["text_scores"] = torch.zeros(2)
    elif what == "foreign recipe":
        fields["recipe"] = {"code": "x"}
    elif what == "rows of no unit":
        tensors["features.1"] = tensors["features.1"] * torch.linspace(1, 1.5, 12)[:, None]
    elif what == "text scores beyond 1":
        tensors["text_scores"] = torch.full((3,), 3e38)
    elif what == "whole text scores":
        tensors["text_scores"] = torch.ones(3, dtype=torch.int32)
    elif what == "huge logits":
        tensors |= {
            "text_scores": torch.ones(3),
            "logits.0": torch.full((3, 3, 3), -3e38),
            "logits.1": torch.ones(3, 2, 2),
        }
    elif isinstance(what, tuple):
        *path, value = what
        place = fields
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
    elif what == "calibration gone":
        fields["calibration_method"] = "held-out"


@pytest.mark.parametrize(
    "what",
    [
        "no spec",
        "a stage gone",
        "mixed types",
        "integers",
        "another width",
        "rows gone",
        "a source gone",
        "no sources",
        "sources are text",
        "negative rows",
        "no fraction",
        "zero-shot of fewer",
        "foreign recipe",
        "calibration gone",
        "rows of no unit",
        "text scores beyond 1",
        "whole text scores",
        "huge logits",
        ("coreset_fraction", 0),
        ("coreset_fraction", -1.0),
        ("coreset_fraction", 10**400),
        ("coreset_fraction", float("inf")),
        ("rows_per_source", 0, 0, float("inf")),
        ("object", "word " * 41),
        ("object", "\ud800"),
        ("object", "a\0b"),
        ("object", ["a"]),
        ("recipe", "model", "\x1b[31m"),
        ("recipe", "model", "x" * 5000),
        ("recipe", "projector", "\ud800.pth"),
        ("recipe", "value_range", [5, 5]),
        ("recipe", "value_range", [0, 10**400]),
        ("sources", 0, "path", "\ud800"),
        ("sources", 0, "path", 5),
        ("sources", 0, "sha256", "\x1b[31m"),
        ("spec", []),
        ("spec", "x"),
        ("spec", "backbone", "\x1b[31m"),
        ("spec", "activation", "g" * 500),
        ("spec", "stages", [4, 2]),
        ("spec", "\x1b[31m", 1),
    ],
)
def test_a_damaged_bank_is_refused(what):
    tensors, fields = make_bank(3).to_artifact()
    fields = json.loads(json.dumps(fields))
    _damage(tensors, fields, what)
    with pytest.raises(ArtifactError, match="enroll") as caught:
        MemoryBank.from_artifact(tensors, fields, created="2024-01-01T00:00:00+00:00", version="0.1.0")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_zero_rows_and_names_of_any_bytes_are_a_bank():
    tensors, fields = make_bank(3).to_artifact()
    tensors["features.0"][4] = 0
    fields["sources"][0]["path"] = "new\nline \udcff.png"
    bank = MemoryBank.from_artifact(tensors, fields, created="2024-01-01T00:00:00+00:00", version="0.1.0")
    assert bank.sources[0].path == "new\nline \udcff.png"


# Leave one out ------------------------------------------------------------------------------------------------------


def test_leave_one_out_is_the_bank_built_without_each():
    tokens, bank = draw_tokens(4), make_bank(4)
    left_out = list(leave_one_out(bank, bank))
    assert len(left_out) == 4
    for k, distances in enumerate(left_out):
        for stage, found in enumerate(distances):
            others = torch.cat([tokens[stage][j] for j in range(4) if j != k])
            assert found.shape == (1, LENGTHS[stage])
            expected = direct_distance(tokens[stage][k], others).float()
            torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)


def test_leave_one_out_of_a_thinned_bank_is_of_all_patches_against_the_kept_rows_of_others():
    tokens, whole = draw_tokens(4), make_bank(4)
    thinned = subsample(whole, 0.3, seed=5)
    for k, distances in enumerate(leave_one_out(thinned, whole)):
        for stage, found in enumerate(distances):
            owner = torch.repeat_interleave(torch.tensor(thinned.rows_per_source[stage]))
            expected = direct_distance(tokens[stage][k], thinned.features[stage][owner != k]).float()
            torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)


def test_leave_one_out_of_a_stage_with_no_other_rows_is_as_far_as_can_be():
    whole = make_bank(2)
    thinned = subsample(whole, 1e-9)
    assert [sum(counts) for counts in thinned.rows_per_source] == [1, 1]
    left_out = list(leave_one_out(thinned, whole))
    for stage, counts in enumerate(thinned.rows_per_source):
        owner = counts.index(1)
        assert left_out[owner][stage].unique().tolist() == [2.0]
        assert left_out[1 - owner][stage].max() < 2


def test_one_reference_cannot_be_left_out():
    bank = make_bank(1)
    with pytest.raises(InputError, match=r"good/0\.png: one reference alone"):
        next(leave_one_out(bank, bank))


def test_leave_one_out_wants_all_rows_of_the_same_sources():
    bank = make_bank(3)
    for references in (subsample(bank, 0.5), make_bank(2)):
        with pytest.raises(ValueError, match="all rows"):
            next(leave_one_out(bank, references))


def test_a_bank_of_300():
    tokens, bank = draw_tokens(300), make_bank(300, dtype=torch.float16)
    distances = list(leave_one_out(bank, bank))
    k = 137
    expected = direct_distance(tokens[0][k], torch.cat([tokens[0][:k], tokens[0][k + 1 :]]).flatten(0, 1)).float()
    torch.testing.assert_close(distances[k][0][0], expected, rtol=0, atol=1e-3)
    assert len(distances) == 300


@pytest.mark.parametrize("rate", [0.05, 0.25])
def test_held_out_calibration_of_a_bank_keeps_the_false_alarm_rate(rate):
    """200 times 39 calibration pictures and one test picture, all new, against one bank of 4."""
    bank = make_bank(4)

    def score(tokens):
        return sum(
            nearest_distance(stage, rows).amax(dim=1) for stage, rows in zip(tokens, bank.features, strict=True)
        ).numpy()

    called = 0
    for draw in range(200):
        scores = score(draw_tokens(40, seed=1000 + draw))
        calibration = Calibration(scores[:39], scores[:39], "held-out")
        called += calibration.threshold(rate).verdict(scores[39]) == "anomalous"
    low, high = stats.binom.interval(0.999, 200, rate)
    assert low <= called <= high


def test_thin_keeps_rows_of_the_bank_with_their_sources_and_drops_the_calibration():
    bank = replace(make_bank(5), calibration=Calibration(np.ones(5), np.ones(5), "leave-one-out"))
    thinned = subsample(bank, 0.4, seed=3)
    assert thinned.calibration is None
    assert thinned.coreset_fraction == 0.4
    for stage in range(2):
        kept = coreset(bank.features[stage], 0.4, seed=3)
        assert torch.equal(thinned.features[stage], bank.features[stage][kept])
        owners = (kept // LENGTHS[stage]).tolist()
        assert thinned.rows_per_source[stage] == tuple(owners.count(k) for k in range(5))
