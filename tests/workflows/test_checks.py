"""What the commands refuse is refused at once: neither torch nor open_clip is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import draw_images, draw_object, error_line, run_scan

from aprilcli.io.records import write_json

PROGRAM = """
import json, sys
from aprilcli.cli import app
for arguments in json.loads(sys.argv[1]):
    code = app(arguments, standalone_mode=False)
    print(sorted({"torch", "open_clip", "timm"} & set(sys.modules)) if code in (1, 2) else code)
"""

REFUSED = {
    "scan missing": "missing: does not exist",
    "scan empty": "empty: no images in it",
    "scan images --out results": "results: already holds results",
    "scan images --out file": "file: cannot be written",
    "scan images --out file/below": "below: cannot be written",
    f"scan images --out {'y' * 300}": "cannot be written (File name too long)",
    "scan images --part bolt": "there is no such bank; enroll the part first",
    "scan images --part ../bolt": "part name",
    "enroll missing --part nut": "missing: does not exist",
    "enroll images --calibrate missing --part nut": "missing: does not exist",
    "enroll images --part ../nut": "part name",
    "enroll images --part nut --coreset 2": "--coreset 2: give a share of the rows",
    "enroll --part nut": "give a folder of good images",
    "enroll --calibrate images --part nut --coreset 0.5": "--coreset: it keeps a share of references",
    "enroll images --part old": "old.safetensors: this part is already enrolled",
    "enroll images --part nut --append": "there is no such bank; enroll the part first",
    "enroll --calibrate images --part nut": "there is no such bank; enroll the part first",
    "enroll empty --part nut": "empty: no images in it",
    "enroll images --part nut --banks file": "file: cannot be written",
    "train missing --out p.safetensors": "missing: no such folder",
    "train parts --out p.pth": "p.pth: not a .safetensors file",
    "train parts --out p.safetensors --val 1": "--val 1.0: give a share",
    "train parts --out banks/old.safetensors": "old.safetensors: already exists",
    "train parts --out file/p.safetensors": "file: cannot be written",
    "eval missing": "missing: no such folder",
    "eval parts --out results": "results: metrics.csv, scores.csv would be replaced",
    "eval parts --out evaluated": "evaluated: already holds results",
    "eval parts --out file": "file: cannot be written",
    "eval parts --objects nail": "--objects nail: not in parts",
    "eval parts --shots=-1": "--shots: give numbers of references from 0",
    "eval parts --calibrate --fusion authors": "--calibrate: scores with --fusion authors",
    "eval empty": "empty: ",
}


def test_a_refusal_imports_no_torch(tmp_path: Path) -> None:
    draw_images(tmp_path / "images", 1)
    draw_object(tmp_path / "parts" / "bolt", 1)
    for name in ("results/scores.csv", "results/metrics.csv", "banks/old.safetensors", "file", "empty/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    record = {"versions": {"aprilcli": "0.1.0"}, "outputs": ["metrics.json"], "finished": "then"}
    write_json(tmp_path / "evaluated" / "metrics.json", record)
    before = sorted(tmp_path.rglob("*"))
    commands = json.dumps([command.split() for command in REFUSED])
    command = [sys.executable, "-c", PROGRAM, commands]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]"] * len(REFUSED), run.stderr
    for (words, said), line in zip(REFUSED.items(), run.stderr.splitlines(), strict=True):
        assert line.startswith("aprilcli: error: "), words
        assert said in line, words
    assert sorted(tmp_path.rglob("*")) == before  # nothing was created


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pth"])
def test_a_missing_projector_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("aprilcli.core.detector.load_backbone", lambda *_, **__: pytest.fail("the model is loaded"))
    result = run_scan(draw_images(tmp_path / "images", 1), "--projector", name, "--out", tmp_path / "out")
    assert f"{name}: cannot be read (No such file or directory)" in error_line(result)
