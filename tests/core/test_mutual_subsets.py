"""The split of a large folder into subsets."""

from __future__ import annotations

import pytest

from aprilcli.core import mutual_subsets
from aprilcli.core.mutual_subsets import LARGEST, split

NAMES = [f"folder/{number:05}.png" for number in range(3000)]


def members(names: list[str]) -> list[set[str]]:
    return [{names[position] for position in subset} for subset in split(names)]


def test_every_image_is_in_one_subset_of_moderate_size() -> None:
    subsets = split(NAMES)
    assert sorted(position for subset in subsets for position in subset) == list(range(len(NAMES)))
    assert all(subset == sorted(subset) and LARGEST // 4 <= len(subset) <= LARGEST for subset in subsets)


@pytest.mark.parametrize("count", [0, 1, LARGEST])
def test_a_small_folder_is_one_subset(count: int) -> None:
    assert split(NAMES[:count]) == [list(range(count))]


def test_an_added_image_changes_only_its_own_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutual_subsets, "LARGEST", 40)
    before = members(NAMES[:500])
    for name in ("new.png", "a/b.png", "z"):
        after = members(sorted([*NAMES[:500], name]))
        changed = [subset for subset in before if subset not in after]
        assert len(changed) == 1
        assert {name, *changed[0]} == set().union(*(subset for subset in after if subset not in before))


def test_the_split_does_not_depend_on_the_order() -> None:
    backwards = NAMES[::-1]
    assert sorted(map(sorted, members(backwards))) == sorted(map(sorted, members(NAMES)))
