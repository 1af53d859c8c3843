"""Whether an image shows the part: appearances and their distances."""

from __future__ import annotations

import numpy as np
import torch
from small_banks import draw_tokens

from aprilcli.core.recognition import appearance, distance_to, distances_to_others
from aprilcli.types import ImageFeatures


def features(tokens: tuple[torch.Tensor, ...]) -> ImageFeatures:
    return ImageFeatures(torch.zeros(len(tokens[0]), 4), tokens, ((3, 3), (2, 2)))


def test_the_appearance_ignores_order_and_length_of_patch_tokens_and_is_of_unit_length() -> None:
    tokens = draw_tokens(3)
    expected = appearance(features(tokens))
    assert expected.shape == (3, 24)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))
    changed = appearance(features(tuple(3 * stage.flip(1) for stage in tokens)))
    torch.testing.assert_close(changed, expected)


def test_the_appearance_is_the_unit_mean_of_unit_tokens_per_stage() -> None:
    tokens = draw_tokens(1)
    stages = [sum(row / row.norm() for row in stage[0]) for stage in tokens]
    joined = torch.cat([stage / stage.norm() for stage in stages])
    torch.testing.assert_close(appearance(features(tokens))[0], joined / joined.norm())


def test_distances_are_cosine_distances_to_the_nearest_good_image() -> None:
    gallery = appearance(features(draw_tokens(5)))
    direct = 1 - gallery.double() @ gallery.double().T
    direct.fill_diagonal_(9)
    np.testing.assert_allclose(distances_to_others(gallery, [1] * len(gallery)), direct.amin(dim=1), atol=1e-6)
    np.testing.assert_allclose(distance_to(gallery, gallery), 0, atol=1e-6)
    assert distances_to_others(gallery[:1], [1]).tolist() == [2]
