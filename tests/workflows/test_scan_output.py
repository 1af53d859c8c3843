"""The output of scans that are interrupted or out of disk, of odd names, and of competing scans."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from forked import ForkedProcess, limit_files, limit_memory
from helpers import (
    SCANNED,
    contents_of_new_scan,
    contents_of_scan,
    count_lines,
    draw_image,
    happens,
    read_rows_by_path,
    scan_into,
    start_scan,
    wait_for_rows,
)
from PIL import Image

from aprilcli.workflows import scan_output


def test_ctrl_c_finishes_the_images_in_progress_and_exits_130(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start_scan(arguments, out)
    wait_for_rows(out, 1, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    scored = {f"{path}.tiff" for path, row in read_rows_by_path(out).items() if row["status"] == "ok"}
    assert {path.name for path in (out / "maps").iterdir()} == scored
    assert json.loads((out / "run.json").read_text()).keys().isdisjoint({"finished", "counts"})
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == undisturbed


def test_a_second_scan_is_refused_while_the_first_runs(arguments: list[str], images: Path, tmp_path: Path) -> None:
    for seed in range(SCANNED, 60):
        draw_image(images / f"{seed}.png", seed)
    out = tmp_path / "out"
    first = start_scan(arguments, out)
    wait_for_rows(out, 0, first)
    first.send_signal(signal.SIGSTOP)  # it lives, and cannot finish while the second tries
    second = scan_into(arguments, out, "--resume")
    first.kill()
    first.communicate()
    assert second.exit_code == 1
    assert "another scan is writing here" in second.stderr
    third = scan_into(arguments, out, "--resume")
    assert third.exit_code == 3, third.output


def test_a_full_disk_is_one_line_and_resume_continues(arguments: list[str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    limit = (
        3000  # bytes a file may have: a map outgrows it, as it would a full disk; run.json and the first rows do not
    )
    for seed, image in enumerate(sorted(images.glob("0[0-3].png"))):
        small = Image.new("RGB", (16, 16), (seed * 40, 90, 30))  # so are their maps
        small.putpixel((8, 8), (200, 200, 200))
        small.save(image)
    undisturbed = contents_of_new_scan(arguments, tmp_path)

    result = ForkedProcess(*arguments, "--out", out, prepare=limit_files(limit)).result()
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1
    assert "cannot be written" in result.stderr
    written = (out / "scores.csv").read_bytes()
    assert written.count(b"\r\n") > 2
    assert written.endswith(b"\r\n")
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == undisturbed


def test_a_file_that_vanishes_after_it_was_listed_gets_its_row(
    arguments: list[str], images: Path, tmp_path: Path
) -> None:
    for seed in range(SCANNED, 60):
        draw_image(images / f"{seed}.png", seed)
    out = tmp_path / "out"
    process = start_scan(arguments, out)
    wait_for_rows(out, 1, process)  # a row: the header is written before the names are listed
    process.send_signal(signal.SIGSTOP)
    (images / "59.png").unlink()
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    rows = read_rows_by_path(out)
    assert len(rows) == 61
    assert "59.png: cannot be read as an image (No such file or directory)" in rows["59.png"]["error"]
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == contents_of_new_scan(arguments, tmp_path)


def test_an_output_folder_that_another_user_may_not_write_to(
    arguments: list[str], read_only_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, another_user = scan_output.claimed, os.geteuid()

    def claimed_by_another_user(out: Path) -> object:
        os.seteuid(another_user)
        return claimed(out)

    os.seteuid(os.getuid())  # tests' own folders, and perhaps the installed packages, are closed to others
    monkeypatch.setattr(scan_output, "claimed", claimed_by_another_user)
    result = scan_into(arguments, read_only_folder / "out")
    assert result.exit_code == 1, result.output
    assert f"{read_only_folder / 'out'}" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("(Permission denied); choose a place you may write to")
    assert list(read_only_folder.iterdir()) == []


def test_linked_results_are_not_scanned(arguments: list[str], images: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (images / "link").symlink_to(tmp_path / "elsewhere")
    out = images / "link" / "out"
    assert scan_into([*arguments, "--follow"], out).exit_code == 3
    before = contents_of_scan(out)
    assert scan_into([*arguments, "--follow"], out, "--resume").exit_code == 3
    assert contents_of_scan(out) == before


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_summary_that_cannot_be_printed_is_one_line(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path, stream: str
) -> None:
    out = tmp_path / "out"
    result = ForkedProcess(*arguments, "--out", out, **{stream: "/dev/full"}).result()
    assert result.returncode == 3, result.stderr  # an image of these cannot be read
    assert contents_of_scan(out) == undisturbed
    if stream == "stdout":
        assert result.stderr.splitlines()[-1].startswith(
            "aprilcli: error: standard output: cannot be written (No space"
        )


def test_odd_names_round_trip_and_keep_their_own_maps(arguments: list[str], images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images)
    names = ["a.png", "a.jpg", "A.png", "-x.png", "=1+1.png", 'quote".png', "comma,.png", "new\nline.png", "ü ö.png"]
    for seed, name in enumerate(names):
        draw_image(images / name, seed)
    raw = os.fsencode(images) + b"/\xff.png"
    shutil.copy(images / "a.png", os.fsdecode(raw))
    out = tmp_path / "out"
    assert scan_into(arguments, out).exit_code == 0
    with (out / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    assert sorted(paths) == sorted([*names, os.fsdecode(b"\xff.png")])
    assert all((out / "maps" / f"{path}.tiff").exists() for path in paths)
    before = contents_of_scan(out)
    (out / "maps" / "ü ö.png.tiff").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 0
    assert contents_of_scan(out) == before


def test_scanning_into_the_scanned_folder_leaves_its_maps_alone(arguments: list[str], images: Path) -> None:
    assert scan_into(arguments, images).exit_code == 3
    before = contents_of_scan(images)
    assert scan_into(arguments, images, "--resume").exit_code == 3
    assert scan_into(arguments, images, "--overwrite").exit_code == 3
    assert contents_of_scan(images) == before


def test_a_foreign_folder_called_maps_is_not_removed(arguments: list[str], tmp_path: Path) -> None:
    draw_image(tmp_path / "out" / "maps" / "mine.png")
    result = scan_into(arguments, tmp_path / "out", "--overwrite")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "maps" / "mine.png").exists()


def test_resume_and_overwrite_exclude_each_other(arguments: list[str], tmp_path: Path) -> None:
    assert scan_into(arguments, tmp_path / "out", "--resume", "--overwrite").exit_code == 2


def test_names_that_cannot_be_printed_do_not_end_a_scan(arguments: list[str], images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images)
    draw_image(images / "new\nline.png")
    shutil.copy(images / "new\nline.png", os.fsdecode(os.fsencode(images) + b"/\xff.png"))
    result = ForkedProcess(*arguments, "--out", tmp_path / "out").result()  # its streams are strict
    assert result.returncode == 0, result.stderr
    assert "\\xff.png" in result.stdout
    assert "new\\nline.png" in result.stdout


@pytest.mark.mount
def test_a_small_disk_that_fills_up(arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        full = scan_into(arguments, disk / "out")
        assert full.exit_code == 1
        assert "No space left on device" in full.stderr
        rows = (disk / "out" / "scores.csv").read_bytes()
        assert rows.endswith(b"\r\n")
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert scan_into(arguments, disk / "out", "--resume").exit_code == 3
        assert contents_of_scan(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_little_memory_is_a_row_or_a_line_never_a_crash(arguments: list[str], images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9000, 9000)).save(images / "large.png", compress_level=1)  # 243 MB decoded
    out = tmp_path / "out"
    little = limit_memory(400 * 2**20)
    result = ForkedProcess(*arguments, "--out", out, "--workers", 1, prepare=little).result()
    assert result.returncode in (1, 3), result.stderr
    assert "Traceback" not in result.stderr
    message = result.stderr if result.returncode == 1 else read_rows_by_path(out)["large.png"]["error"]
    assert "not enough memory" in message


def test_an_image_whose_map_has_no_place_gets_an_error_row(arguments: list[str], images: Path, tmp_path: Path) -> None:
    long_name = "b" * 247 + ".png"  # the map's would be four bytes longer than a name may be
    draw_image(images / long_name)
    draw_image(images / "01.png.tiff" / "x.png")  # its folder would be the map of 01.png
    draw_image(images / "notes.txt.tiff" / "y.png")
    (images / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    assert scan_into(arguments, out).exit_code == 3
    rows = read_rows_by_path(out)
    assert "too long" in rows[long_name]["error"]
    assert "another image's map" in rows["01.png.tiff/x.png"]["error"]
    assert rows["11.png"]["status"] == rows["01.png"]["status"] == rows["notes.txt.tiff/y.png"]["status"] == "ok"
    before = contents_of_scan(out)
    (out / "maps" / "10.png.tiff").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == before
    assert scan_into(arguments, tmp_path / "no maps", "--no-maps").exit_code == 3
    assert read_rows_by_path(tmp_path / "no maps")[long_name]["status"] == "ok"


def test_killed_while_overwriting_it_can_be_resumed_or_overwritten(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("--resume", "--overwrite"):
        out = Path(shutil.copytree(tmp_path / "undisturbed", tmp_path / way))

        def killed(folder: Path) -> None:
            (folder / "00.png.tiff").unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(scan_output, "remove_tree", killed)
            assert scan_into(arguments, out, "--overwrite").exit_code == 130
        assert scan_into(arguments, out, way).exit_code == 3
        assert contents_of_scan(out) == undisturbed


def test_a_scores_file_that_is_a_folder_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    scan_into(arguments, tmp_path / "out")
    (tmp_path / "out" / "scores.csv").unlink()
    (tmp_path / "out" / "scores.csv").mkdir()
    result = scan_into(arguments, tmp_path / "out", "--resume")
    assert result.exit_code == 1
    assert "scores.csv: cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_foreign_journal_is_not_cut(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".journal").write_text("mine")
    assert scan_into(arguments, tmp_path / "out").exit_code == 1
    assert (tmp_path / "out" / ".journal").read_text() == "mine"


def test_a_second_interruption_does_not_wait_for_the_batch(tmp_path: Path) -> None:
    large = ["--image-size", "1024", "--batch-size", "8", "--device", "cpu"]
    out = tmp_path / "out"
    process = ForkedProcess("scan", Path(__file__).parents[1] / "samples", *large, "--out", out)
    assert happens((out / "run.json").exists, process)
    for _ in range(2):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.endswith("aprilcli: interrupted. Output so far is complete; continue scan or train with --resume.\n")
    assert count_lines(out) == 1  # the header: a batch of all images would have taken longer
