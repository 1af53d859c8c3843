from __future__ import annotations

import pytest
import torch
from scipy import stats
from small_banks import LENGTHS, draw_tokens, make_bank, make_sources

from aprilcli.core import maps, nearest
from aprilcli.core.calibration import Calibration
from aprilcli.core.memory_bank import (
    build,
    subsample,
    unit_rows,
)
from aprilcli.core.nearest import leave_one_out, nearest_distance, nearest_euclidean
from aprilcli.errors import InputError

QUERIES = ("query0", "query1", "query2")


def direct_distance(tokens, rows):
    """Eq. 4 as written, in float64."""
    tokens, rows = tokens.double(), rows.double()
    cosines = (tokens / tokens.norm(dim=-1, keepdim=True)) @ (rows / rows.norm(dim=-1, keepdim=True)).T
    return (1 - cosines).amin(dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_few_shot_maps_equal_the_authors(golden, dtype):
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
            few_shot = maps.few_shot_map([distances.reshape(1, *grid)], golden.image_size)[0]
            torch.testing.assert_close(few_shot, golden.numbers[f"{query}/few_shot_map/{stage}"], rtol=0, atol=1e-4)
            total[query] += few_shot
    for query in QUERIES:
        torch.testing.assert_close(total[query], golden.numbers[f"{query}/few_shot_map"], rtol=0, atol=1e-4)


def test_a_bank_built_from_the_reference_images_gives_the_authors_maps(golden):
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


def test_the_limit_on_cosines_in_memory_holds(monkeypatch):
    monkeypatch.setattr(nearest, "SIMILARITIES", 4 * 20 * 32)
    held = []
    amax = torch.Tensor.amax
    monkeypatch.setattr(torch.Tensor, "amax", lambda self, dim: held.append(self.shape) or amax(self, dim=dim))
    nearest_distance(torch.randn(5, 20, 16), unit_rows(torch.randn(100, 16)))
    assert {shape.numel() for shape in held} == {20 * 32, 20 * 4}
    held.clear()
    nearest_distance(
        torch.randn(1, 2, 40), unit_rows(torch.randn(100, 40))
    )  # few patches: still no larger chunk of the bank
    assert {shape.numel() for shape in held} == {2 * 16, 2 * 4}


def test_distances_of_an_image_do_not_depend_on_its_batch():
    tokens = torch.randn(7, 33, 40, generator=torch.Generator().manual_seed(1))
    rows = unit_rows(torch.randn(500, 40, generator=torch.Generator().manual_seed(2)))
    together = nearest_distance(tokens, rows)
    reversed_batch = nearest_distance(tokens.flip(0), rows).flip(0)
    alone = torch.cat([nearest_distance(image[None].clone(), rows) for image in tokens])
    assert torch.equal(together, alone)
    assert torch.equal(together, reversed_batch)


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


def test_leave_one_out_equals_a_bank_built_without_each_image():
    tokens, bank = draw_tokens(4), make_bank(4)
    left_out = list(leave_one_out(bank, bank))
    assert len(left_out) == 4
    for k, distances in enumerate(left_out):
        for stage, found in enumerate(distances):
            others = torch.cat([tokens[stage][j] for j in range(4) if j != k])
            assert found.shape == (3, LENGTHS[stage])
            expected = direct_distance(tokens[stage][k], others).float()
            torch.testing.assert_close(found.amin(dim=0), expected, rtol=0, atol=1e-6)
            first = direct_distance(tokens[stage][k], tokens[stage][0 if k else 1]).float()
            torch.testing.assert_close(found[0], first, rtol=0, atol=1e-6)


def test_leave_one_out_of_a_subsampled_bank_compares_all_patches_with_the_kept_rows_of_others():
    tokens, whole = draw_tokens(4), make_bank(4)
    subsampled = subsample(whole, 0.3, seed=5)
    for k, distances in enumerate(leave_one_out(subsampled, whole)):
        for stage, found in enumerate(distances):
            owner = torch.repeat_interleave(torch.tensor(subsampled.rows_per_source[stage]))
            expected = direct_distance(tokens[stage][k], subsampled.features[stage][owner != k]).float()
            torch.testing.assert_close(found.amin(dim=0), expected, rtol=0, atol=1e-6)


def test_leave_one_out_of_a_stage_without_other_rows_gives_the_largest_distance():
    whole = make_bank(2)
    subsampled = subsample(whole, 1e-9)
    assert [sum(counts) for counts in subsampled.rows_per_source] == [1, 1]
    left_out = list(leave_one_out(subsampled, whole))
    for stage, counts in enumerate(subsampled.rows_per_source):
        owner = counts.index(1)
        assert left_out[owner][stage].unique().tolist() == [2.0]
        assert left_out[1 - owner][stage].max() < 2


def test_one_reference_cannot_be_left_out():
    bank = make_bank(1)
    with pytest.raises(InputError, match=r"good/0\.png: a single reference cannot be left out"):
        next(leave_one_out(bank, bank))


def test_leave_one_out_needs_all_rows_of_the_same_sources():
    bank = make_bank(3)
    for references in (subsample(bank, 0.5), make_bank(2)):
        with pytest.raises(ValueError, match="all rows"):
            next(leave_one_out(bank, references))


def test_a_bank_of_100():
    tokens, bank = draw_tokens(100), make_bank(100, dtype=torch.float16)
    distances = list(leave_one_out(bank, bank))
    k = 37
    expected = direct_distance(tokens[0][k], torch.cat([tokens[0][:k], tokens[0][k + 1 :]]).flatten(0, 1)).float()
    torch.testing.assert_close(distances[k][0].amin(dim=0), expected, rtol=0, atol=1e-3)
    assert len(distances) == 100


@pytest.mark.parametrize("rate", [0.05, 0.25])
def test_held_out_calibration_of_a_bank_keeps_the_false_alarm_rate(rate):
    """200 draws of 39 calibration images and one test image against one bank of 4."""
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


def test_the_distances_of_large_images_are_found_piece_by_piece(monkeypatch):
    tokens, rows = torch.randn(2, 50, 8), unit_rows(torch.randn(30, 8))
    expected = 1 - (unit_rows(tokens) @ rows.T).amax(dim=-1)
    monkeypatch.setattr(nearest, "PIECE", 16)
    torch.testing.assert_close(nearest_distance(tokens, rows), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("size", [8 * 1024**2, 100])
def test_euclidean_distances_are_those_of_the_differences(monkeypatch, size, offset):
    monkeypatch.setattr(nearest, "SIMILARITIES", size)
    generator = torch.Generator().manual_seed(0)
    rows = offset + torch.randn(30, 16, generator=generator)
    others = offset + torch.randn(50, 16, generator=generator)
    others[7], others[40] = rows[3], rows[11]
    direct = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
    distances, positions = nearest_euclidean(rows, others)
    torch.testing.assert_close(distances, direct.amin(dim=1), rtol=1e-6, atol=0)
    assert torch.equal(positions, direct.argmin(dim=1))
    assert distances[[3, 11]].tolist() == [0, 0]
