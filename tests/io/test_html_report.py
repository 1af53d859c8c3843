"""Pages: data that stay data, charts as numbers, and what a page of any template has."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import run
from PIL import Image
from result_folders import scored_row, write_results

from aprilcli.io import html_report as html
from aprilcli.io.overlays import Scale


def test_json_in_a_page_cannot_end_its_script_and_keeps_every_name() -> None:
    names = ["</script><!--", "&amp;", "caf\udce9", "\u2028", '"\\']
    block = html.json_block(names)
    assert re.fullmatch(r"[ -~]*", block)
    assert not set("<>&") & set(block)
    assert json.loads(block) == names


@pytest.mark.parametrize("threshold", [None, 0.25, 3.0, -2.0])
def test_a_histogram_counts_every_score_on_its_side_of_the_threshold(threshold: float | None) -> None:
    scores = np.random.default_rng(0).random(200)
    limit = -1 if threshold is None else threshold
    kinds = {"normal": scores[scores < limit].tolist(), "anomalous": scores[scores >= limit].tolist()}
    chart = html.histogram(kinds, threshold)
    assert chart is not None
    counted = {kind: sum(int(bar[5].split()[3]) for bar in chart.bars if bar[0] == kind) for kind in kinds}
    assert counted == {kind: len(values) for kind, values in kinds.items()}
    if chart.threshold is not None:
        assert 0 <= chart.threshold <= 1
        for kind, left, width, *_ in chart.bars:
            is_left = left + width <= chart.threshold + 1e-9
            assert is_left == (kind == "normal")


def test_a_histogram_of_equal_scores_or_none() -> None:
    assert html.histogram({"good": [], "anomalous": []}) is None
    chart = html.histogram({"good": [0.5, 0.5], "anomalous": []})
    assert chart is not None
    assert (chart.highest, len(chart.bars)) == (2, 1)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.02, 0.94), (1.5, 6.1), (-3, 120), (0.9991, 0.9993)])
def test_axes_have_a_few_round_ticks_inside(low: float, high: float) -> None:
    axis = html.Axis.over(low, high)
    assert 2 <= len(axis.ticks) <= 7
    for position, text in axis.ticks:
        assert -1e-9 <= position <= 1 + 1e-9
        assert axis(float(text)) == pytest.approx(position, abs=1e-6)
    assert len({text for _, text in axis.ticks}) == len(axis.ticks)


def test_the_legend_marks_the_alarm_in_its_middle() -> None:
    legend = html.ramp(Scale.for_run(2.0, 4, has_bank=True))
    assert legend["alarm"] == pytest.approx(0.5)
    opacities = [opacity for _, _, opacity in legend["steps"]]
    assert opacities == sorted(opacities)
    assert html.ramp(Scale.for_run(None, 4, has_bank=False))["alarm"] is None


def test_images_are_data_of_the_page() -> None:
    assert html.image_uri(Image.new("RGB", (5, 5))).startswith("data:image/jpeg;base64,")
    layer = html.layer_uri(Image.new("L", (5, 5), 200), Scale.for_run(2.0, 4, has_bank=True))
    assert base64.b64decode(layer.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_the_policy_has_the_hashes_of_style_and_script(tmp_path: Path) -> None:
    out = write_results(tmp_path / "out", tmp_path / "images", [scored_row("a.png", 4.0)])
    assert run("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}" in page or f"{tag}-src 'sha256-{digest}'" in page
