"""`inspect` through the command line: banks, projectors and maps, and files that are refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import GoldenCase, draw_image, draw_images, error_line, run

from aprilcli.core.bank_file import SCHEMA, load_bank
from aprilcli.io import map_files
from aprilcli.io.artifacts import read_artifact, write_artifact


def test_inspect_shows_a_bank_a_projector_and_a_map(
    golden_vit: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 3)
    run("enroll", good, "--part", "p", "--banks", banks, "--object", "metal nut", *model)
    shown = run("inspect", banks / "p.safetensors").stdout
    for part in ("metal nut", "leave-one-out", "001.png", "sha256", "gelu", "75 rows of 64"):
        assert part in shown
    assert "projector" in run("inspect", golden_vit.folder / "projector.safetensors").stdout
    run("scan", good, *model, "--out", tmp_path / "out")
    shown = run("inspect", tmp_path / "out" / "maps" / "000.png.tiff").stdout
    assert "map" in shown.split()
    assert "60 x 40" in shown


def test_fingerprints_and_paths_are_whole_on_one_line(
    model: list[str], banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    name = "line 3/2024-05-17_left_camera_after_washing/" + "IMG_exposure_8ms_" * 8 + ".png"
    image = draw_image(tmp_path / "good" / name)
    run("enroll", tmp_path / "good", "--part", "p", "--banks", banks, *model)
    lines = run("inspect", banks / "p.safetensors").stdout.splitlines()
    assert lines[0] == str(banks / "p.safetensors")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    assert sum(line.endswith(f"sha256 {digest}  {name}") for line in lines) == 1
    bank = load_bank(banks / "p.safetensors")
    for fingerprint in (bank.spec.fingerprint, bank.recipe.projector_fingerprint):
        assert any(line.split()[-1] == fingerprint for line in lines)
    assert not any(line.endswith(" ") for line in lines)


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.jpg")
    draw_image(tmp_path / "image.tif")
    draw_image(tmp_path / "b.bin.png").rename(tmp_path / "b.bin")
    for name, content in (
        ("scores.csv", b"path,status\r\n"),
        ("run.json", b"{}"),
        ("notes.txt", "größe".encode() * 40),
        ("x.safetensors", b"hello"),
        ("weights.pth", b"PK\x03\x04" + bytes(90)),
        ("empty", b""),
        ("junk", bytes(range(256))),
    ):
        (tmp_path / name).write_bytes(content)
    for name, kind in (
        (".", "is a folder"),
        ("a.jpg", "is an image (JPEG)"),
        ("image.tif", "a TIFF image without the description of a map"),
        ("b.bin", "is an image (PNG)"),
        ("scores.csv", "is a CSV table"),
        ("run.json", "is a JSON record"),
        ("notes.txt", "is a text file"),
        ("x.safetensors", "is a text file"),
        ("weights.pth", "is a pickle"),
        ("empty", "it is empty"),
        ("junk", "not written by aprilcli"),
        ("missing", "No such file"),
    ):
        line = error_line(run("inspect", tmp_path / name))
        assert kind in line
        if " is a" in kind and "pickle" not in kind:
            assert "give a bank, a projector (.safetensors) or a map of a scan (.tiff)" in line


def test_a_map_is_known_by_its_content(tmp_path: Path) -> None:
    map_files.write_map(tmp_path / "map.tiff", np.zeros((4, 6), np.float32), {"model": "m"})
    (tmp_path / "map.tiff").rename(tmp_path / "map")
    assert "6 x 4" in run("inspect", tmp_path / "map").stdout


@pytest.mark.parametrize("harm", ["strip", "description", "shape"])
def test_inspect_refuses_a_foreign_tiff(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "map.tiff"
    values = np.zeros((64, 64, 3) if harm == "shape" else (64, 64), np.float32)
    tifffile.imwrite(
        path,
        values,
        compression="zlib",
        photometric="rgb" if harm == "shape" else "minisblack",
        description="[1]" if harm == "description" else "{}",
        metadata=None,
    )
    if harm == "strip":
        content = bytearray(path.read_bytes())
        with tifffile.TiffFile(path) as tiff:
            start = tiff.pages[0].dataoffsets[0]
        content[start : start + 8] = b"\xff" * 8
        path.write_bytes(content)
    assert "map.tiff" in error_line(run("inspect", path))


@pytest.mark.parametrize("odd", ["[/foo]", "[red]x", "\x1b[31mred", "x" * 2000])
def test_inspect_shows_texts_literally(
    golden_vit: GoldenCase, model: list[str], banks: Path, tmp_path: Path, odd: str
) -> None:
    shown = "x" * 40 if len(odd) > 1000 else odd.replace("\x1b", "\\x1b")
    path = banks / "p.safetensors"
    run("enroll", draw_images(tmp_path / "good", 2), "--part", "p", "--banks", banks, *model)
    artifact = read_artifact(path, SCHEMA)
    artifact.fields["sources"][0]["path"] = odd
    write_artifact(path, "bank", artifact.tensors, artifact.fields)
    projector = tmp_path / f"{odd[:20].replace('/', '')}.safetensors"
    write_artifact(projector, "projector", dict(golden_vit.projector.state_dict()), {"trained_on": odd})
    for file in (path, projector):
        result = run("inspect", file)
        assert result.exit_code == 0, result.output
        assert shown in result.stdout.replace("\n", "")
        assert "\x1b" not in result.stdout
        assert "x" * 1001 not in "".join(result.stdout.split())


def test_inspect_of_deeply_nested_fields_is_one_line(golden_vit: GoldenCase, tmp_path: Path) -> None:
    path, fields = tmp_path / "p.safetensors", {}
    for _ in range(900):
        fields = {"a": fields}
    write_artifact(path, "projector", dict(golden_vit.projector.state_dict()), fields)
    assert "nested too deep" in error_line(run("inspect", path))


def test_inspect_neither_hangs_on_a_pipe_nor_reads_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tiff")
    (tmp_path / "zero.tiff").symlink_to("/dev/zero")
    for name in ("pipe.tiff", "zero.tiff"):
        assert "is not an ordinary file" in error_line(run("inspect", tmp_path / name))
