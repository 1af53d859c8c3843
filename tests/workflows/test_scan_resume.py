"""How scans continue with --resume: the same bytes after kills, damage and changes, or a refusal."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    SCANNED,
    GoldenCase,
    contents_of_new_scan,
    contents_of_scan,
    count_lines,
    draw_image,
    error_line,
    happens,
    read_rows_by_path,
    scan_into,
    start_scan,
)
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.core.detector import Detector
from aprilcli.core.projector import Projector, save_projector
from aprilcli.io import append_file
from aprilcli.workflows import scan_output, scan_resume


def kill_loop(arguments: list[str], out: Path, expected: dict[str, bytes], kills: int, seed: int) -> tuple[int, int]:
    """Kill scans at random moments: some while they load, most between the next rows.

    Goes on until so many kills met a scan that had written rows and was not done. A scan that reaches its end is
    compared, and its output removed. Returns the number of all kills and of comparisons.
    """
    rng, killed, interrupted, compared = random.Random(seed), 0, 0, 0
    all_lines = expected["scores.csv"].count(b"\r\n")
    while interrupted < kills:
        assert killed + compared < 10 * kills, "kills hardly ever meet a scan at work"
        before, late, ahead = count_lines(out), rng.random() < 0.7, 1 + rng.randrange(4)
        process = start_scan(arguments, out, "--resume")
        if late:
            happens(lambda before=before, ahead=ahead: count_lines(out) >= before + ahead, process)
        time.sleep(rng.random() * (0.02 if late else 0.5))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        interrupted += process.returncode == -signal.SIGKILL and max(before, 1) < count_lines(out) < all_lines
        if process.returncode == 3:
            assert contents_of_scan(out) == expected
            shutil.rmtree(out)
            compared += 1
    return killed, compared


def test_killed_and_resumed_ends_with_the_same_bytes(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill_loop(arguments, out, undisturbed, 2, seed=7)
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == undisturbed
    assert not list(out.rglob(".aprilcli-*"))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_fifty_kills(arguments: list[str], tmp_path: Path, batch_size: str) -> None:
    arguments += ["--batch-size", batch_size]
    scan_into(arguments, tmp_path / "complete")
    expected = contents_of_scan(tmp_path / "complete")
    killed, compared = kill_loop(arguments, tmp_path / "out", expected, 25, seed=int(batch_size))
    assert scan_into(arguments, tmp_path / "out", "--resume").exit_code == 3
    assert contents_of_scan(tmp_path / "out") == expected
    size = sum(map(len, expected.values()))
    print(
        f"\nscan, batch size {batch_size}: {killed} kills, {compared + 1} complete runs of {size} bytes compared, equal"
    )


@pytest.mark.parametrize("batch_size", ["1", "4"])
@pytest.mark.parametrize("keep", [0, 1, 37, 400, 900])
def test_an_incomplete_scores_file_is_completed(
    arguments: list[str], tmp_path: Path, keep: int, batch_size: str
) -> None:
    out = tmp_path / "out"
    scan_into(arguments, out, "--batch-size", batch_size)
    before = contents_of_scan(out)
    (out / "scores.csv").write_bytes(before["scores.csv"][:keep])
    assert scan_into(arguments, out, "--resume", "--batch-size", batch_size).exit_code == 3
    assert contents_of_scan(out) == before


def test_complete_rows_are_not_scanned_again(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tmp_path / "undisturbed", tmp_path / "out"))
    lines = undisturbed["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:8]))
    kept, redone = out / "maps" / "01.png.tiff", out / "maps" / "10.png.tiff"
    times = kept.stat().st_mtime_ns, redone.stat().st_mtime_ns
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert kept.stat().st_mtime_ns == times[0]
    assert redone.stat().st_mtime_ns > times[1]
    assert contents_of_scan(out) == undisturbed


def damage_map(out: Path, images: Path) -> None:
    (out / "maps" / "03.png.tiff").write_bytes(b"II*\0")


def lose_map(out: Path, images: Path) -> None:
    (out / "maps" / "03.png.tiff").unlink()


def lose_journal(out: Path, images: Path) -> None:
    (out / ".journal").unlink()


def exchange_map(out: Path, images: Path) -> None:
    shutil.copy(out / "maps" / "04.png.tiff", out / "maps" / "03.png.tiff")


def blank_a_sector_of_a_map(out: Path, images: Path) -> None:
    path = out / "maps" / "03.png.tiff"
    content = path.read_bytes()
    path.write_bytes(content[:512] + bytes(512) + content[1024:])


def change_a_digit(out: Path, images: Path) -> None:
    lines = (out / "scores.csv").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b",0.", b",1.", 1)
    (out / "scores.csv").write_bytes(b"".join(lines))


def blank_a_byte_of_a_row(out: Path, images: Path) -> None:
    content = (out / "scores.csv").read_bytes()
    (out / "scores.csv").write_bytes(content.replace(b"\r\n05.png", b"\0\n05.png"))


@pytest.mark.parametrize(
    "harm",
    [
        damage_map,
        lose_map,
        lose_journal,
        exchange_map,
        blank_a_sector_of_a_map,
        change_a_digit,
        blank_a_byte_of_a_row,
    ],
)
def test_damaged_rows_and_maps_are_scanned_again(
    arguments: list[str],
    undisturbed: dict[str, bytes],
    images: Path,
    tmp_path: Path,
    harm: Callable[[Path, Path], None],
) -> None:
    out = tmp_path / "undisturbed"
    harm(out, images)
    assert (contents_of_scan(out) != undisturbed) == (harm is not lose_journal)
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == undisturbed


def damage(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes as a power cut or a failing disk does: cut the end, blank some, flip a bit, append old bytes."""
    place = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            return content[:place]
        case 1:
            zeros = bytes(min(rng.choice((1, 16, 512, 4096)), len(content) - place))
            return content[:place] + zeros + content[place + len(zeros) :]
        case 2:
            return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        case _:
            return content + content[place:]


@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_any_damage_is_repaired(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path, count: int
) -> None:
    out, rng = tmp_path / "undisturbed", random.Random(count)
    for number in range(count):
        for path in rng.sample([out / name for name in (".journal", *undisturbed)], rng.randrange(1, 4)):
            path.write_bytes(damage(path.read_bytes(), rng))
        assert scan_into(arguments, out, "--resume").exit_code == 3, number
        assert contents_of_scan(out) == undisturbed, number
    print(f"\n{count} times damaged and resumed, all bytes equal")


@pytest.mark.usefixtures("undisturbed")
def test_changed_added_and_removed_images_are_noticed(arguments: list[str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "undisturbed"
    draw_image(images / "03.png", 77)
    draw_image(images / "01b.png", 78)
    (images / "08.png").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert scan_into(arguments, tmp_path / "again").exit_code == 3
    assert contents_of_scan(out) == contents_of_scan(tmp_path / "again")


def count_detected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list to which every encoder pass will add its number of images."""
    counts: list[int] = []
    detect = Detector.detect

    def counted(self: Detector, pixels: Any) -> Any:
        counts.append(len(pixels))
        return detect(self, pixels)

    monkeypatch.setattr(Detector, "detect", counted)
    return counts


@pytest.mark.parametrize("batch_size", ["1", "5"])
def test_a_finished_run_is_kept_as_it_is(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: str
) -> None:
    out, settings = tmp_path / "out", ("--batch-size", batch_size)
    assert "resumed: " not in scan_into(arguments, out, *settings).stdout
    before = contents_of_scan(out)
    counts = count_detected(monkeypatch)
    result = scan_into(arguments, out, "--resume", *settings)
    assert result.exit_code == 3
    assert "12 images scored\nresumed: 13 kept, 0 new in " in result.stdout
    assert counts == []
    assert contents_of_scan(out) == before
    assert not (out / ".kept").exists()


def change_images(images: Path) -> None:
    """Delete two images and an unreadable file, change one, and add two: 8 of 13 rows are kept, 3 are new."""
    for name in ("00.png", "05b, broken.png", "11.png"):
        (images / name).unlink()
    draw_image(images / "03.png", 77)
    (images / "07.png").write_bytes(b"broken now")
    draw_image(images / "04a.png", 78)


def test_rows_of_unchanged_images_are_kept_after_a_change(
    arguments: list[str],
    images: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "undisturbed"
    change_images(images)
    with monkeypatch.context() as patch:
        counts = count_detected(patch)
        result = scan_into(arguments, out, "--resume")
    assert result.exit_code == 3
    assert "10 images scored\nresumed: 8 kept, 3 new in " in result.stdout
    assert sum(counts) == 2
    assert contents_of_scan(out) == contents_of_new_scan(arguments, tmp_path)
    assert contents_of_scan(out).keys() < undisturbed.keys() | {"maps/04a.png.tiff"}
    assert not list(out.glob(".kept"))


def test_only_batches_whose_images_are_all_the_same_are_kept(
    arguments: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments += ["--batch-size", "2"]
    out = tmp_path / "out"
    scan_into(arguments, out)  # 00 01, 02 03, 04 05, 05b 06, 07 08, 09 10, 11
    for name in ("00.png", "01.png", "05b, broken.png", "10.png"):
        (images / name).unlink()
    draw_image(images / "05a.png", 79)
    counts = count_detected(monkeypatch)
    result = scan_into(arguments, out, "--resume")  # 02 03, 04 05, 05a 06, 07 08, 09 11
    assert result.exit_code == 0
    assert "resumed: 6 kept, 4 new" in result.stdout
    assert counts == [2, 2]
    assert scan_into(arguments, tmp_path / "complete").exit_code == 0
    assert contents_of_scan(out) == contents_of_scan(tmp_path / "complete")


class Killed(BaseException):
    """Ends a run where a kill would."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, occurrence: int) -> None:
    """Raise ``Killed`` instead of a certain call of a function."""
    real, count = getattr(owner, name), 0

    def killed(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == occurrence:
            raise Killed
        return real(*given, **named)

    monkeypatch.setattr(owner, name, killed)


def test_a_resumed_run_that_is_killed_anywhere_keeps_what_it_had(
    arguments: list[str],
    images: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_images(images)
    expected = contents_of_new_scan(arguments, tmp_path)
    for owner, name, occurrence, new in (
        (os, "fsync", 2, 3),  # of .kept; the first is of run.json
        (scan_resume, "_remove_other_maps", 1, 3),
        (scan_resume, "insert_kept_rows", 1, 3),
        (append_file.LineFile, "write", 3, 3),  # the first journal line has no row
        (append_file.LineFile, "write", 14, 2),
        (append_file.LineFile, "write", 24, 1),
        (scan_output, "remove_kept", 1, 0),
    ):
        out = Path(shutil.copytree(tmp_path / "undisturbed", tmp_path / f"{name} {occurrence}"))
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, occurrence)
            with pytest.raises(Killed):
                scan_into(arguments, out, "--resume")
        result = scan_into(arguments, out, "--resume")
        assert result.exit_code == 3, name
        assert f"{11 - new} kept, {new} new" in result.stdout, (name, occurrence)
        assert contents_of_scan(out) == expected, (name, occurrence)
        assert not (out / ".kept").exists()


def test_damaged_kept_rows_are_scored_again(
    arguments: list[str], images: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_images(images)
    expected, out, rng = contents_of_new_scan(arguments, tmp_path), tmp_path / "undisturbed", random.Random(3)
    for number in range(4):
        (images / "02.png").touch()  # a gap near the start
        with monkeypatch.context() as patch:
            kill_at(patch, append_file.LineFile, "write", 1 + 2 * (number == 0))
            with pytest.raises(Killed):
                scan_into(arguments, out, "--resume")
        assert (out / ".kept").exists()
        content = damage((out / ".kept").read_bytes(), rng)
        (out / ".kept").write_bytes(content if number else b'["a", {"path": "\\ud800", "status": 1}]\n' + content)
        assert scan_into(arguments, out, "--resume").exit_code == 3
        assert contents_of_scan(out) == expected


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--threshold", "0.7"], "threshold"),
        (["--image-size", "56"], "image_size"),
        (["--no-maps"], "options.maps: True then, False now"),
        (["--follow"], "options.follow: False then, True now"),
        (["--object", "nut"], "options.object_name: None then, nut now"),
        (["--max-pixels", "5000"], "options.max_pixels"),
    ],
)
def test_another_option_is_refused_with_its_name(
    arguments: list[str], tmp_path: Path, option: list[str], expected: str
) -> None:
    before = contents_of_scan(tmp_path / "undisturbed")
    result = scan_into(arguments, tmp_path / "undisturbed", "--resume", *option)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents_of_scan(tmp_path / "undisturbed") == before


def test_another_model_projector_or_bank_is_refused_with_its_name(
    images: Path, golden_vit: GoldenCase, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(golden_vit.folder, tmp_path / "model"))
    (images / "05b, broken.png").unlink()
    banks = tmp_path / "banks"
    runner = CliRunner()

    def call(command: str, *more: object) -> Result:
        options = ["--banks", banks, "--part", "p", *more]
        return runner.invoke(app, [command, *map(str, (images, *options)), "--device", "cpu"])

    settings = ("--model", model, "--image-size", 70)
    assert call("enroll", *settings).exit_code == 0
    out = tmp_path / "out"
    assert call("scan", "--out", out).exit_code == 0
    before = contents_of_scan(out)

    def refusal() -> str:
        result = call("scan", "--out", out, "--resume", "--quiet")
        assert result.exit_code == 1, result.output
        assert len(result.stderr.splitlines()) == 1
        assert contents_of_scan(out) == before
        return result.stderr

    (images / "00.png").rename(tmp_path / "aside.png")
    assert call("enroll", *settings, "--overwrite").exit_code == 0
    (tmp_path / "aside.png").rename(images / "00.png")
    assert "bank.sha256: " in refusal()
    projector = load_file(model / "projector.safetensors")
    other = Projector(golden_vit.backbone.spec)
    other.load_state_dict({name: 1.5 * weight for name, weight in projector.items()})
    save_projector(other, model / "projector.safetensors")
    assert call("enroll", *settings, "--overwrite").exit_code == 0
    assert "projector.fingerprint: " in refusal()
    (model / "projector.safetensors").unlink()
    weights = load_file(model / "open_clip_model.safetensors")
    weights["visual.proj"] *= 1.5
    save_file(weights, model / "open_clip_model.safetensors")
    assert call("enroll", *settings, "--overwrite").exit_code == 0
    assert "model.fingerprint: " in refusal()


@pytest.mark.usefixtures("undisturbed")
def test_another_machine_is_a_note(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "undisturbed"
    before = contents_of_scan(out)
    lose_journal(out, tmp_path)
    threads, cpu = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
        result = scan_into(arguments, out, "--resume")
    assert result.exit_code == 3
    for note in (
        f"number of threads than at the start of this run ({threads} then, 99 now)",
        f"({cpu} then, other now)",
    ):
        assert f"{note}: the last digits of scores may differ" in result.stderr
    assert json.loads((out / "run.json").read_text())["omp_num_threads"] == 99
    assert contents_of_scan(out) == before
    assert "last digits" in scan_into(arguments, out, "--resume").stderr
    assert "last digits" not in scan_into(arguments, out, "--resume").stderr


def test_a_run_that_is_resumed_is_not_finished(
    arguments: list[str], images: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "undisturbed"
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == SCANNED
    draw_image(images / "03.png", 3)  # the same image, written later

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan_resume, "find_resume_point", killed)
        assert scan_into(arguments, out, "--resume").exit_code == 130
    assert json.loads((out / "run.json").read_text()).keys().isdisjoint({"finished", "counts"})
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == undisturbed


@pytest.mark.parametrize("trouble", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_images_that_failed_for_reasons_of_the_machine_are_read_again(
    arguments: list[str],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
) -> None:
    out, opened = tmp_path / "out", Path.open

    def failing(path: Path, *how: Any, **options: Any) -> Any:
        if path.name == "04.png":
            raise trouble
        return opened(path, *how, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        assert scan_into(arguments, out).exit_code == 3
    assert read_rows_by_path(out)["04.png"]["status"] == "error"
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == undisturbed


def test_foreign_images_among_the_maps_stay(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    (out / "maps" / "00.png.tiff").unlink()
    others = [draw_image(out / "maps" / name) for name in ("zz mine.png", "notes.tiff")]
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert all(path.exists() for path in others)


def test_the_map_of_a_deleted_image_without_an_extension_vanishes(
    arguments: list[str], images: Path, tmp_path: Path
) -> None:
    (images / "12.png").write_bytes((images / "11.png").read_bytes())
    (images / "12.png").rename(images / "no extension")
    out = tmp_path / "out"
    scan_into(arguments, out)
    assert (out / "maps" / "no extension.tiff").exists()
    (images / "no extension").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert not (out / "maps" / "no extension.tiff").exists()


@pytest.mark.usefixtures("undisturbed")
def test_a_lost_run_file_gives_advice(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "undisturbed"
    (out / "run.json").unlink()
    for way in ("--resume", "--overwrite"):
        result = scan_into(arguments, out, way)
        assert result.exit_code == 1
        assert "choose another --out" in result.stderr


def test_resuming_without_results_starts_a_scan(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert scan_into(arguments, tmp_path / "new", "--resume").exit_code == 3
    assert contents_of_scan(tmp_path / "new") == undisturbed


def test_paths_in_a_foreign_scores_file_never_leave_the_output_folder(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    victims = [tmp_path / "victim.tiff", out / "victim.tiff"]
    for victim in victims:
        victim.write_bytes(b"precious")
    lines = undisturbed["scores.csv"].splitlines(keepends=True)
    hostile = [
        b"../../victim,ok" + b",1" * 3 + b"," * 6 + b"\r\n",
        str(victims[0])[:-5].encode() + b",ok" + b"," * 9 + b"\r\n",
    ]
    (out / "scores.csv").write_bytes(b"".join([*lines[:3], *hostile, *lines[3:]]))
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert all(victim.read_bytes() == b"precious" for victim in victims)
    victims[1].unlink()
    assert contents_of_scan(out) == undisturbed


def test_maps_without_rows_are_deleted(
    arguments: list[str], images: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    lines = undisturbed["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:4]))  # maps ran ahead of rows
    (images / "09.png").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == contents_of_new_scan(arguments, tmp_path)


def test_an_image_added_while_resuming_shifts_no_row(
    arguments: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    scan_into(arguments, out)
    (out / "maps" / "06.png.tiff").unlink()
    find_resume_point = scan_resume.find_resume_point

    def add_image_after(*given: Any) -> Any:
        kept = find_resume_point(*given)
        draw_image(images / "00a.png", 80)
        draw_image(images / "07a.png", 81)
        return kept

    monkeypatch.setattr(scan_resume, "find_resume_point", add_image_after)
    assert scan_into(arguments, out, "--resume").exit_code == 3
    with (out / "scores.csv").open(newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    assert len(paths) == len(set(paths)) == SCANNED + 2
    assert "07a.png" in paths


def test_a_file_made_readable_and_one_replaced_with_equal_size_and_time_are_scored_again(
    arguments: list[str], images: Path, tmp_path: Path
) -> None:
    for name, seed in (("20.bmp", 20), ("21.bmp", 21)):
        os.utime(draw_image(images / name, seed), ns=(10**18, 10**18))
    (images / "22.png").symlink_to(tmp_path / "later.png")
    out = tmp_path / "out"
    scan_into(arguments, out)
    (images / "20.bmp").rename(images / "x")
    (images / "21.bmp").rename(images / "20.bmp")
    (images / "x").rename(images / "21.bmp")
    draw_image(tmp_path / "later.png")
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents_of_scan(out) == contents_of_new_scan(arguments, tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}"])
def test_a_foreign_run_file_is_one_line(arguments: list[str], tmp_path: Path, content: str) -> None:
    scan_into(arguments, tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(content)
    result = scan_into(arguments, tmp_path / "out", "--resume")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_results_are_not_lost_where_the_images_have_gone(arguments: list[str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan_into(arguments, out)
    before = contents_of_scan(out)
    for image in images.rglob("*.png"):
        image.unlink()
    for image in images.iterdir():
        shutil.rmtree(image, ignore_errors=True)
    result = scan_into(arguments, out, "--resume", "--allow-empty")
    assert result.exit_code == 1
    assert "no images in it" in error_line(result)
    assert contents_of_scan(out) == before
