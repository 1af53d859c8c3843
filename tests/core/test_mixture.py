"""Folders of several parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from aprilcli.core.mixture import is_mixed


def draw(center: int, count: int, spread: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(center)
    noise = spread * torch.randn(count, 16, generator=generator)
    return F.normalize(F.one_hot(torch.tensor(center), 16) + noise, dim=1)


def test_two_parts_are_mixed_and_one_is_not() -> None:
    assert is_mixed(torch.cat([draw(0, 30), draw(1, 20)]))
    assert not is_mixed(draw(0, 50))


def test_a_few_odd_images_are_not_another_part() -> None:
    assert not is_mixed(torch.cat([draw(0, 50), draw(1, 2)]))


def test_equal_images_and_very_few_are_one_part() -> None:
    assert not is_mixed(draw(0, 1).expand(20, -1))
    assert not is_mixed(torch.cat([draw(0, 1), draw(1, 1)]))
