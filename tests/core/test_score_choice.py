"""The choice of an image score: only for a clear gain, and measured by the AUROC."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from aprilcli.core.score_choice import BOTH, choose, top_mean, variants

NAMES = variants(4)


def draw(shifts: dict[str, float], defects: int = 20, good: int = 40) -> tuple[dict, dict]:
    generator = np.random.default_rng(5)
    lying = {name: generator.normal(shifts.get(name, 0), 1, defects).astype(np.float32) for name in NAMES}
    return lying, {name: generator.normal(0, 1, good).astype(np.float32) for name in NAMES}


def test_a_much_better_score_is_chosen() -> None:
    choice = choose(*draw({BOTH: 0.5, "stage.2": 4.0}))
    assert choice.score == "stage.2"
    assert (choice.defects, choice.good) == (20, 40)


def test_the_papers_score_stays_without_a_clear_gain() -> None:
    assert choose(*draw({})).score == BOTH  # none is better than chance
    assert choose(*draw({BOTH: 4.0, "map": 5.0})).score == BOTH  # there is no room for a gain
    equal = dict.fromkeys(NAMES, 2.0)
    assert choose(*draw(equal)).score == BOTH


def test_chance_seldom_chooses_another_score() -> None:
    chosen = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        sets = [{n: generator.normal(0, 1, count).astype(np.float32) for n in NAMES} for count in (8, 20)]
        chosen += choose(*sets).score != BOTH
    assert chosen / 200 <= 0.08


def test_a_gain_without_variance_is_clear() -> None:
    good = {name: np.zeros(8, np.float32) for name in NAMES}
    defects = {name: np.full(8, name == "text", np.float32) for name in NAMES}
    assert choose(defects, good).score == "text"


def test_the_auroc_is_that_of_scikit_learn_with_ties() -> None:
    defects, good = draw({"map": 1.0})
    defects, good = ({n: np.round(v) for n, v in values.items()} for values in (defects, good))
    measured = choose(defects, good).auroc
    for name in NAMES:
        expected = roc_auc_score([1] * 20 + [0] * 40, np.concatenate([defects[name], good[name]]))
        assert measured[name] == pytest.approx(expected)


def test_the_top_of_a_map() -> None:
    assert top_mean(torch.arange(400.0).reshape(20, 20)) == pytest.approx((396 + 397 + 398 + 399) / 4)
    assert top_mean(torch.tensor([[1.0, 3.0]])) == 3.0
