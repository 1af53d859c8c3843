"""The sum of the maps and the image scores, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aprilcli.core import maps
from aprilcli.core.fusion import authors_scores, fuse, fuse_views
from aprilcli.core.methods.april_gan import AprilGan
from aprilcli.core.resizing import resize_map
from aprilcli.core.tiling import lay_out, merge
from aprilcli.types import Detection, Evidence, ImageEvidence, ModelSpec

SIZE = 12


def method(image_size: int) -> AprilGan:
    spec = ModelSpec("model", "", "gelu", image_size, (1, 2), (8, 8), 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "")
    return AprilGan(spec, torch.zeros(2, 8))


def draw_evidence(*, logits: bool, distances: bool) -> Evidence:
    generator = torch.Generator().manual_seed(0)
    grids = [torch.randn(2, side, side, generator=generator) for side in (3, 4)]
    nearest = [torch.rand(2, side, side, generator=generator) for side in (3, 4)]
    return Evidence(torch.tensor([0.25, 0.75]), tuple(grids) if logits else (), tuple(nearest) if distances else ())


@pytest.mark.parametrize(("logits", "distances"), [(True, False), (False, True), (True, True)])
def test_a_map_is_the_sum_of_all_stages_and_the_score_adds_its_maximum_with_references(
    logits: bool, distances: bool
) -> None:
    evidence = draw_evidence(logits=logits, distances=distances)
    for image, detection in enumerate(fuse(method(SIZE), evidence)):
        expected = torch.zeros(SIZE, SIZE)
        for stage in evidence.logits:
            expected += torch.sigmoid(maps.upsample(stage, SIZE))[image]
        for stage in evidence.distances:
            expected += maps.upsample(stage, SIZE)[image]
        np.testing.assert_allclose(detection.anomaly_map, expected, atol=1e-6)
        assert detection.map_max == detection.anomaly_map.max()
        text_score = float(evidence.text_scores[image])
        assert detection.text_score == text_score
        assert detection.score == pytest.approx(text_score + detection.map_max if distances else text_score)


def test_without_projector_and_bank_there_is_only_the_text_score() -> None:
    assert fuse(method(SIZE), draw_evidence(logits=False, distances=False)) == [
        Detection(0.25, None, 0.25, None),
        Detection(0.75, None, 0.75, None),
    ]


def test_a_result_does_not_depend_on_the_other_images() -> None:
    evidence = draw_evidence(logits=True, distances=True)
    together = fuse(method(SIZE), evidence)
    for image, detection in enumerate(together):
        (alone,) = fuse(method(SIZE), evidence[image : image + 1])
        np.testing.assert_allclose(alone.anomaly_map, detection.anomaly_map, atol=1e-6)
        assert alone.score == pytest.approx(detection.score, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "maxima", "expected"),
    [
        ([0.25, 0.5, 0.75], [1.0, 3.0, 2.0], [0.125, 0.75, 0.625]),
        ([0.25, 0.5], [2.0, 2.0], [0.125, 0.25]),
        ([], [], []),
    ],
)
def test_the_authors_scale_maxima_over_all_images(
    text: list[float], maxima: list[float], expected: list[float]
) -> None:
    detections = [Detection(*pair, sum(pair), None) for pair in zip(text, maxima, strict=True)]
    assert authors_scores(detections) == expected


def test_the_result_of_several_views_is_their_mean() -> None:
    views = [draw_evidence(logits=True, distances=True)[:1], draw_evidence(logits=True, distances=True)[1:]]
    small, large = fuse(method(12), views[0])[0], fuse(method(24), views[1])[0]
    mean = fuse_views(ImageEvidence(tuple(views)), [method(12), method(24)], (12, 24))
    assert mean.score == pytest.approx((small.score + large.score) / 2)
    assert mean.text_score == pytest.approx((small.text_score + large.text_score) / 2)
    resized = resize_map(torch.from_numpy(small.anomaly_map), (24, 24))
    expected = (resized + torch.from_numpy(large.anomaly_map)) / 2
    np.testing.assert_allclose(mean.anomaly_map, expected, atol=1e-6)
    assert mean.map_max == mean.anomaly_map.max()


def test_the_most_anomalous_tile_gives_the_text_score_and_the_merged_map_the_rest() -> None:
    layout = lay_out((16, 28), 16, 16)
    assert len(layout) == 2
    tiles = draw_evidence(logits=True, distances=True)
    merged = merge([torch.from_numpy(d.anomaly_map) for d in fuse(method(16), tiles)], layout)
    whole = draw_evidence(logits=True, distances=True)[:1]
    detection = fuse_views(ImageEvidence((whole, tiles), layout), [method(16)] * 2, (16,))
    [alone] = fuse(method(16), whole)
    assert detection.text_score == (alone.text_score + 0.75) / 2
    assert detection.score == pytest.approx((alone.score + 0.75 + float(merged.max())) / 2)
    expected = (resize_map(torch.from_numpy(alone.anomaly_map), layout.canvas_hw) + merged) / 2
    np.testing.assert_allclose(detection.anomaly_map, expected, atol=1e-6)


def test_views_without_maps_have_mean_text_scores() -> None:
    evidence = draw_evidence(logits=False, distances=False)
    layout = lay_out((16, 28), 16, 16)
    image = ImageEvidence((evidence[:1], evidence), layout)
    assert fuse_views(image, [method(16)] * 2, (16,)) == Detection(0.5, None, 0.5, None)
