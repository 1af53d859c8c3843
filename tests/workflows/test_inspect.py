"""`inspect` through the command line: banks, projectors and maps, and files that are refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import GoldenCase, draw_image, draw_images, error_line, run
from PIL import ExifTags, Image

from aprilcli.core.bank_file import SCHEMA, load_bank
from aprilcli.io import map_files
from aprilcli.io.artifacts import read_artifact, write_artifact


@pytest.fixture(scope="module")
def enrolled(golden_vit: GoldenCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of three references, which no test changes."""
    folder = tmp_path_factory.mktemp("enrolled")
    good = draw_images(folder / "good", 3)
    model = [*golden_vit.options, "--device", "cpu"]
    run("enroll", good, "--part", "p", "--banks", folder, "--object", "metal nut", *model)
    return folder / "p.safetensors"


@pytest.fixture
def bank(enrolled: Path, banks: Path) -> Path:
    """A copy of ``enrolled``."""
    banks.mkdir()
    return Path(shutil.copy(enrolled, banks))


def test_inspect_shows_a_bank_a_projector_and_a_map(
    golden_vit: GoldenCase, model: list[str], bank: Path, tmp_path: Path
) -> None:
    shown = run("inspect", bank).stdout
    for part in ("metal nut", "leave-one-out", "001.png", "sha256", "gelu", "75 rows of 64"):
        assert part in shown
    assert "projector" in run("inspect", golden_vit.folder / "projector.safetensors").stdout
    run("scan", draw_images(tmp_path / "images", 1), *model, "--out", tmp_path / "out")
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


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({}, ["range 0.0000 to 2.5000", "mean 0.1875", "peak 2.5000 at x 5, y 2", "model m"]),
        (
            {"pixel_threshold": 2},
            ["peak 2.5000 at x 5, y 2; pixels alarm from 2.0000", "alarming pixels 2 of 24 (8.33%)"],
        ),
        ({"pixel_threshold": None}, ["peak 2.5000 at x 5, y 2", "alarming pixels unknown: the scan had no level for"]),
    ],
)
def test_a_map_is_summarized(tmp_path: Path, description: dict[str, object], expected: list[str]) -> None:
    values = np.zeros((4, 6), np.float32)
    values[2, 5], values[3, 0] = 2.5, 2
    map_files.write_map(tmp_path / "map.tiff", values, {"model": "m", **description})
    shown = run("inspect", tmp_path / "map.tiff").stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for text in expected:
        assert any(line.startswith(text) for line in lines), shown
    assert ("alarm" in shown) == bool(description)
    assert sum(line.startswith("range") for line in lines) == 1
    assert "pixel_threshold" not in shown


def test_a_map_whose_threshold_is_no_number_is_refused(tmp_path: Path) -> None:
    for value in ([1], "x", 10**400):
        map_files.write_map(tmp_path / "map.tiff", np.zeros((4, 6), np.float32), {"pixel_threshold": value})
        assert "not a map of this program" in error_line(run("inspect", tmp_path / "map.tiff"))


def test_a_contact_sheet_shows_the_references_that_a_bank_was_made_of_and_grew_by(
    bank: Path, banks: Path, tmp_path: Path
) -> None:
    draw_images(tmp_path / "good", 3)
    sideways = Image.new("RGB", (60, 40), "blue")
    sideways.paste("lime", (0, 0, 30, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the left side is the top
    sideways.save(tmp_path / "good" / "new.jpg", exif=exif)
    assert run("enroll", tmp_path / "good", "--part", "p", "--banks", banks, "--append").exit_code == 0
    thumbnails = load_bank(bank).thumbnails
    assert len(thumbnails) == 4
    with Image.open(BytesIO(thumbnails[3])) as upright:
        assert upright.size == (40, 60)
        assert np.abs(np.array(upright.getpixel((20, 10))) - (0, 255, 0)).max() < 12
    result = run("inspect", bank, "--sheet", tmp_path / "sheet.jpg")
    assert result.exit_code == 0, result.output
    assert f"contact sheet: {tmp_path / 'sheet.jpg'}" in result.stderr
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        greenish = np.abs(np.asarray(sheet).astype(int) - (0, 255, 0)).max(axis=-1) < 40
    assert 1000 < greenish.sum() < 1400  # half of 40 x 60


def test_a_contact_sheet_is_replaced_only_when_asked_to(bank: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    assert "--overwrite" in error_line(run("inspect", bank, "--sheet", sheet))
    assert sheet.read_bytes() == b"mine"
    assert run("inspect", bank, "--sheet", sheet, "--overwrite").exit_code == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_bank_of_an_earlier_version_has_no_contact_sheet(bank: Path, tmp_path: Path) -> None:
    artifact = read_artifact(bank, SCHEMA)
    del artifact.tensors["thumbnails"], artifact.fields["thumbnail_bytes"]
    write_artifact(bank, "bank", artifact.tensors, artifact.fields)
    assert run("inspect", bank).exit_code == 0
    refused = error_line(run("inspect", bank, "--sheet", tmp_path / "sheet.png"))
    assert "without thumbnails of its images; enroll the part again" in refused
    grown = run("enroll", draw_images(tmp_path / "more", 1, 9), "--part", "p", "--banks", bank.parent, "--append")
    assert grown.exit_code == 0, grown.output
    assert [bool(thumbnail) for thumbnail in load_bank(bank).thumbnails] == [False, False, False, True]
    assert run("inspect", bank, "--sheet", tmp_path / "sheet.png").exit_code == 0


def test_a_damaged_thumbnail_is_one_line(bank: Path, tmp_path: Path) -> None:
    artifact = read_artifact(bank, SCHEMA)
    artifact.tensors["thumbnails"][:] = 0
    write_artifact(bank, "bank", artifact.tensors, artifact.fields)
    refused = error_line(run("inspect", bank, "--sheet", tmp_path / "sheet.png"))
    assert "p.safetensors: the thumbnail of 00" in refused
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("file", "sheet", "code", "said"),
    [
        ("map.tiff", "sheet.jpg", 2, "map.tiff is a map; only a bank has images"),
        ("projector.safetensors", "sheet.jpg", 2, "projector.safetensors is a projector; only a bank has images"),
        ("map.tiff", "sheet.gif", 2, "give a name that ends in .jpg or .png"),
        ("map.tiff", "sheet", 2, "give a name that ends in .jpg or .png"),
        ("map.tiff", "map.tiff/sheet.jpg", 1, "cannot be written (Not a directory)"),
        ("map.tiff", "folder.jpg", 1, "folder.jpg: already exists"),
    ],
)
def test_contact_sheets_that_cannot_be_made_are_refused(
    golden_vit: GoldenCase, tmp_path: Path, file: str, sheet: str, code: int, said: str
) -> None:
    map_files.write_map(tmp_path / "map.tiff", np.zeros((4, 6), np.float32), {})
    shutil.copy(golden_vit.folder / "projector.safetensors", tmp_path)
    (tmp_path / "folder.jpg").mkdir()
    result = run("inspect", tmp_path / file, "--sheet", tmp_path / sheet, "--overwrite")
    assert said in error_line(result)
    assert result.exit_code == code


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
def test_inspect_shows_texts_literally(golden_vit: GoldenCase, bank: Path, tmp_path: Path, odd: str) -> None:
    shown = "x" * 40 if len(odd) > 1000 else odd.replace("\x1b", "\\x1b")
    artifact = read_artifact(bank, SCHEMA)
    artifact.fields["sources"][0]["path"] = odd
    write_artifact(bank, "bank", artifact.tensors, artifact.fields)
    projector = tmp_path / f"{odd[:20].replace('/', '')}.safetensors"
    write_artifact(projector, "projector", dict(golden_vit.projector.state_dict()), {"trained_on": odd})
    for file in (bank, projector):
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
