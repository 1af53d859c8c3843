"""The command line itself: version, environment variables, values that cannot be parsed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import GoldenCase, draw_images, error_line, run, run_scan

import aprilcli
from aprilcli.errors import OutputError
from aprilcli.io.atomic import check_writable


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", 3)


def test_options_come_from_the_environment(
    images: Path, golden_vit: GoldenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APRILCLI_MODEL", str(golden_vit.folder))
    monkeypatch.setenv("APRILCLI_OUT", str(tmp_path / "there"))
    monkeypatch.setenv("APRILCLI_IMAGE_SIZE", "56")
    assert run_scan(images).exit_code == 0
    assert json.loads((tmp_path / "there" / "run.json").read_text())["model"]["image_size"] == 56


def test_fail_on_anomaly_without_a_threshold_is_wrong_usage(images: Path) -> None:
    result = run_scan(images, "--fail-on-anomaly")
    assert result.exit_code == 2
    assert "use --threshold or --part" in result.stderr


def test_python_m_is_the_console_script() -> None:
    run = subprocess.run([sys.executable, "-m", "aprilcli", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"aprilcli {aprilcli.__version__}"


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        ("scan", ["--range=-inf,5"], "--range -inf,5"),
        ("scan", ["--stages", "two"], "integers separated by commas"),
        ("eval", ["--shots", "one"], "--shots one"),
        ("eval", ["--false-alarm-rate", "5%"], "--false-alarm-rate 5%: give a decimal number, such as 0.05"),
        ("scan", ["--threshold", "0,5"], "--threshold 0,5: give a decimal number, such as 0.5"),
    ],
)
def test_values_that_cannot_be_parsed_are_one_line(
    images: Path, command: str, option: list[str], expected: str
) -> None:
    result = run(command, images, *option)
    assert result.exit_code == 2
    assert expected in error_line(result)


def test_an_output_folder_that_may_not_be_written_is_refused(read_only_folder: Path) -> None:
    expected = "cannot be written (Permission denied); choose a place you may write to"
    for out in (read_only_folder, read_only_folder / "new" / "out"):
        with pytest.raises(OutputError, match=re.escape(f"{out}: {expected}")):
            check_writable(out)


def test_version() -> None:
    assert run("--version").stdout == f"aprilcli {aprilcli.__version__}\n"
