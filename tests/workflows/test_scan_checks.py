"""What `scan` refuses is refused at once: neither torch nor open_clip is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import draw_images, error_line, run_scan

PROGRAM = """
import sys
from aprilcli.cli import main
try:
    main()
finally:
    print(sorted({"torch", "open_clip", "timm"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing: does not exist"),
        (["images", "--out", "results"], "results: already holds results"),
        (["images", "--part", "bolt"], "there is no such bank; enroll the part first"),
        (["images", "--part", "../bolt"], "part name"),
    ],
)
def test_a_refusal_imports_no_torch(tmp_path: Path, arguments: list[str], said: str) -> None:
    draw_images(tmp_path / "images", 1)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "scores.csv").touch()
    command = [sys.executable, "-c", PROGRAM, "scan", *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said in run.stderr
    assert run.stdout == "[]\n"
    assert run.returncode in (1, 2)


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth"])
def test_a_missing_projector_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("aprilcli.core.detector.load_backbone", lambda *_, **__: pytest.fail("the model is loaded"))
    result = run_scan(draw_images(tmp_path / "images", 1), "--projector", name, "--out", tmp_path / "out")
    assert f"{name}: cannot be read (No such file or directory)" in error_line(result)
