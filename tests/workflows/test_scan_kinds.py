"""`scan` over a folder of every kind of image file: the same score for each form, or a row with the reason."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from image_kinds import bitmap_forms, bomb, color_forms, encoded, gray_forms, lossy_forms, png, wide
from PIL import Image
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.io.images import MAX_SCANS, NOTE_PAGES, NOTE_TRANSPARENT

SAMPLE = Path(__file__).parents[1] / "samples" / "washer_crack_3.png"
SIXTEEN_BIT_TOLERANCE = 2e-3  # between the scores of a 16-bit image and its 8-bit copy
LOSSY_TOLERANCE = 0.1  # JPEG and palettes change the pixels


def scan(folder: Path, out: Path, *more: str) -> tuple[Result, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(
        app, ["scan", str(folder), "--out", str(out), "--device", "cpu", "--image-size", "256", *more]
    )
    with (out / "scores.csv").open(newline="", encoding="utf-8") as stream:
        return result, {row["path"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def color() -> np.ndarray:
    """Return a sample with a white frame, which is transparent in the forms with alpha."""
    values = np.asarray(Image.open(SAMPLE).convert("RGB")).copy()
    values[:3] = values[-3:] = 255
    return values


def file_name(kind: str) -> str:
    return f"{kind}.{kind.split()[0].strip(',')}"


def damaged_forms(files: dict[str, bytes]) -> dict[str, tuple[bytes, str]]:
    """Return damaged files by name, each with a part of the error that its row must hold."""
    jpeg = files["jpg progressive"]
    start = jpeg.index(b"\xff\xda")
    scan_header = jpeg[start : start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")]
    cut = {f"{name}, cut": (content[: len(content) // 2], "") for name, content in files.items()}
    canvas = b"VP8X" + bytes([10, 0, 0, 0]) + bytes(4) + b"\xff" * 6
    return cut | {
        "png blank": (encoded("PNG", np.full((40, 60), 200, np.uint8)), "a blank image"),
        "png, one pixel": (encoded("PNG", np.full((1, 1), 200, np.uint8)), "a blank image"),
        "png empty": (b"", "the file is empty"),
        "jpg text": (b"hello", "not an image, or not in a supported format"),
        "png gif": (b"GIF89a\x01\x00\x01\x00", "a damaged GIF"),
        "heic random": (b"\0\0\0\x18ftypheic" + bytes(range(256)) * 8, "a damaged HEIC image"),
        "jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not a supported format; save it as JPEG, PNG or TIFF"),
        "gif bomb": (b"GIF89a\xff\xff\xff\xff\0\0\0", "65535 x 65535 pixels are more than the limit"),
        "png bomb": (bomb(files["png"]), "20000 x 20000 pixels are more than the limit"),
        "webp bomb": (b"RIFF" + bytes([22, 0, 0, 0]) + b"WEBP" + canvas, "16777216 x 16777216 pixels"),
        "pgm bomb": (b"P5 99999 99999 255\n" + bytes(100), "99999 x 99999 pixels are more than the limit"),
        "jpg endless": (jpeg[:start] + scan_header * (MAX_SCANS + 1) + jpeg[start:], "scans"),
    }


def test_every_kind_of_image_in_one_folder(tmp_path: Path, color: np.ndarray) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    gray = np.asarray(Image.fromarray(color).convert("L"))
    groups = {"color": color_forms(color), "gray": gray_forms(gray), "lossy": lossy_forms(color)}
    groups["bitmap"] = bitmap_forms(gray)
    groups["odd"] = {
        "png, two pixels": encoded("PNG", np.array([[100, 200]], np.uint8)),
        "jpg, 20000 x 30": encoded("JPEG", np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[:, None], 20000, axis=1)),
        "tif, 30 x 20000": encoded("TIFF", np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None], 20000, axis=0)),
        "JPG, upper case": groups["lossy"]["jpg"],
    }
    groups["color"] |= {"jpg, a PNG": groups["color"]["png"], "bmp, a TIFF": groups["color"]["tif"]}
    damaged = damaged_forms({**groups["color"], **groups["lossy"]})
    files = {file_name(kind): content for group in groups.values() for kind, content in group.items()}
    files |= {file_name(kind): content for kind, (content, _) in damaged.items()}
    for name, content in files.items():
        (folder / name).write_bytes(content)

    result, rows = scan(folder, tmp_path / "out")
    assert result.exit_code == 3, result.output
    assert rows.keys() == files.keys()
    for kind, group in groups.items():
        for name in group:
            row = rows[file_name(name)]
            assert row["status"] == "ok", (name, row["error"])
            like = {"gray": "png gray.png"}.get(kind, "png.png")
            tolerance = {"color": SIXTEEN_BIT_TOLERANCE, "gray": SIXTEEN_BIT_TOLERANCE, "lossy": LOSSY_TOLERANCE}
            if kind in tolerance:
                assert float(row["score"]) == pytest.approx(float(rows[like]["score"]), abs=tolerance[kind]), name
    for name, (_, reason) in damaged.items():
        row = rows[file_name(name)]
        if row["status"] == "ok":  # the truncated part was a second page, or not needed for the first
            assert reason == ""
            assert any(word in name for word in ("pages", "animated", "two views"))
        else:
            assert reason in row["error"]
            assert row["error"].isprintable()
            assert row["score"] == ""
    for note in (NOTE_PAGES, NOTE_TRANSPARENT):
        assert result.stderr.count(note) == 1
    print()
    for kind in (*(kind for group in groups.values() for kind in group), *damaged):
        row = rows[file_name(kind)]
        print(f"{kind:32} {row['status']:6} {row['score'] or row['error'].partition(file_name(kind))[2]}")
    print(f"{len(rows)} files, {sum(row['status'] == 'ok' for row in rows.values())} scored")


def test_twelve_bits_in_sixteen_score_as_their_eight_bit_copy(tmp_path: Path, color: np.ndarray) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    gray = np.asarray(Image.fromarray(color).convert("L"))
    for name, values in (("gray.png", gray[..., None]), ("color.png", color)):
        (folder / name).write_bytes(png(wide(values) >> 4))
        (folder / f"eight {name}").write_bytes(png(values))
    result, rows = scan(folder, tmp_path / "out", "--range", "0,4095")
    assert result.exit_code == 0, result.output
    for name in ("gray.png", "color.png"):
        scores = [float(rows[path]["score"]) for path in (name, f"eight {name}")]
        assert scores[0] == pytest.approx(scores[1], abs=SIXTEEN_BIT_TOLERANCE)
    assert scan(folder, tmp_path / "no range")[1]["gray.png"]["score"] != rows["gray.png"]["score"]


def test_the_limit_on_pixels_can_be_raised(tmp_path: Path, color: np.ndarray) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(color))
    result, rows = scan(folder, tmp_path / "low", "--max-pixels", "1000")
    assert result.exit_code == 3
    assert "raise the limit of pixels" in rows["a.png"]["error"]
    assert scan(folder, tmp_path / "high", "--max-pixels", "100000")[0].exit_code == 0
