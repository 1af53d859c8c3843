"""The plots of `eval`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import draw_image, error_line, run_eval
from PIL import Image


def test_every_object_has_a_plot(parts: Path, model: list[str], tmp_path: Path) -> None:
    for number in range(2):
        draw_image(parts / "cog" / "test" / "good" / f"{number}.png", number)  # no anomalies: curves are undefined
    result = run_eval(parts, tmp_path / "out", *model, "--shots", 0, "--plots")
    assert result.exit_code == 0, result.output
    for name in ("bolt", "metal_nut", "cog"):
        with Image.open(tmp_path / "out" / "plots" / f"{name}.png") as image:
            assert image.format == "PNG"
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_plots_without_matplotlib_are_refused_before_any_work(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = run_eval(parts, tmp_path / "out", *model, "--plots")
    assert result.exit_code == 2
    assert "pip install 'aprilcli[plots]'" in error_line(result)
    assert not (tmp_path / "out").exists()
