"""The output of scans that are killed, interrupted, resumed or out of disk, and of competing scans."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GoldenCase, draw_image, happens, read_rows_by_path, run, start
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.core.projector import Projector, save_projector
from aprilcli.workflows import scan_output, scan_resume

COUNT = 12


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed in range(COUNT):
        draw_image(tmp_path / "images" / f"{seed:02}.png", seed)
    (tmp_path / "images" / "05b, broken.png").write_bytes(b"broken")
    return tmp_path / "images"


@pytest.fixture
def arguments(images: Path, golden_vit: GoldenCase) -> list[str]:
    model = ["--model", str(golden_vit.folder), "--image-size", "70", "--device", "cpu"]
    return ["scan", str(images), *model, "--threshold", "0.5", "--false-alarm-rate", "0.01"]


def scan_into(arguments: list[str], out: Path, *more: str) -> Result:
    return run(*arguments, "--out", out, *more)


def start_scan(arguments: list[str], out: Path, *more: str) -> subprocess.Popen[str]:
    return start(*arguments, "--out", out, *more)


def contents(out: Path) -> dict[str, bytes]:
    """Return the bytes that a resumed scan must reproduce: scores.csv and every map."""
    maps = {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "maps").rglob("*") if path.is_file()}
    return maps | {"scores.csv": (out / "scores.csv").read_bytes()}


@pytest.fixture
def undisturbed(arguments: list[str], tmp_path: Path) -> dict[str, bytes]:
    assert scan_into(arguments, tmp_path / "undisturbed").exit_code == 3
    return contents(tmp_path / "undisturbed")


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until scores.csv has more than ``count`` lines, the header included; fail if the scan ends before."""
    assert happens(lambda: count_lines(out) > count, process), process.communicate()


def count_lines(out: Path) -> int:
    return (out / "scores.csv").read_bytes().count(b"\r\n") if (out / "scores.csv").exists() else 0


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
        time.sleep(rng.random() * (0.02 if late else 4))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        interrupted += process.returncode == -signal.SIGKILL and max(before, 1) < count_lines(out) < all_lines
        if process.returncode == 3:
            assert contents(out) == expected
            shutil.rmtree(out)
            compared += 1
    return killed, compared


def test_killed_and_resumed_ends_with_the_same_bytes(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill_loop(arguments, out, undisturbed, 2, seed=7)
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed
    assert not list(out.rglob(".aprilcli-*"))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_fifty_kills(arguments: list[str], tmp_path: Path, batch_size: str) -> None:
    arguments += ["--batch-size", batch_size]
    scan_into(arguments, tmp_path / "complete")
    expected = contents(tmp_path / "complete")
    killed, compared = kill_loop(arguments, tmp_path / "out", expected, 25, seed=int(batch_size))
    assert scan_into(arguments, tmp_path / "out", "--resume").exit_code == 3
    assert contents(tmp_path / "out") == expected
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
    before = contents(out)
    (out / "scores.csv").write_bytes(before["scores.csv"][:keep])
    assert scan_into(arguments, out, "--resume", "--batch-size", batch_size).exit_code == 3
    assert contents(out) == before


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
    assert contents(out) == undisturbed


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
    assert (contents(out) != undisturbed) == (harm is not lose_journal)
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


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
        assert contents(out) == undisturbed, number
    print(f"\n{count} times damaged and resumed, all bytes equal")


@pytest.mark.usefixtures("undisturbed")
def test_changed_added_and_removed_images_are_noticed(arguments: list[str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "undisturbed"
    draw_image(images / "03.png", 77)
    draw_image(images / "01b.png", 78)
    (images / "08.png").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert scan_into(arguments, tmp_path / "again").exit_code == 3
    assert contents(out) == contents(tmp_path / "again")


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
    before = contents(tmp_path / "undisturbed")
    result = scan_into(arguments, tmp_path / "undisturbed", "--resume", *option)
    assert result.exit_code == 1
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents(tmp_path / "undisturbed") == before


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
    before = contents(out)

    def refusal() -> str:
        result = call("scan", "--out", out, "--resume", "--quiet")
        assert result.exit_code == 1, result.output
        assert len(result.stderr.splitlines()) == 1
        assert contents(out) == before
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
    before = contents(out)
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
    assert contents(out) == before
    assert "last digits" in scan_into(arguments, out, "--resume").stderr
    assert "last digits" not in scan_into(arguments, out, "--resume").stderr


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
    assert contents(out) == undisturbed


def test_a_second_scan_is_refused_while_the_first_runs(arguments: list[str], images: Path, tmp_path: Path) -> None:
    for seed in range(COUNT, 60):
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


def contents_of_new_run(arguments: list[str], tmp_path: Path) -> dict[str, bytes]:
    assert scan_into(arguments, tmp_path / "complete").exit_code == 3
    return contents(tmp_path / "complete")


def test_a_full_disk_is_one_line_and_resume_continues(arguments: list[str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aprilcli", *arguments, "--out", str(out)]
    limit = (
        3000  # bytes a file may have: a map outgrows it, as it would a full disk; run.json and the first rows do not
    )
    for seed, image in enumerate(sorted(images.glob("0[0-3].png"))):
        Image.new("RGB", (16, 16), (seed * 40, 90, 30)).save(image)  # their maps are small
    undisturbed = contents_of_new_run(arguments, tmp_path)

    def few_bytes() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=few_bytes, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1
    assert "cannot be written" in result.stderr
    written = (out / "scores.csv").read_bytes()
    assert written.count(b"\r\n") > 2
    assert written.endswith(b"\r\n")
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


def test_a_run_that_is_resumed_is_not_finished(
    arguments: list[str], images: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "undisturbed"
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == COUNT
    draw_image(images / "03.png", 3)  # the same image, written later

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan_resume, "find_resume_point", killed)
        assert scan_into(arguments, out, "--resume").exit_code == 130
    assert json.loads((out / "run.json").read_text()).keys().isdisjoint({"finished", "counts"})
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


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
    assert contents(out) == undisturbed


def test_a_file_that_vanishes_after_it_was_listed_gets_its_row(
    arguments: list[str], images: Path, tmp_path: Path
) -> None:
    for seed in range(COUNT, 60):
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
    assert contents(out) == contents_of_new_run(arguments, tmp_path)


def test_an_output_folder_that_another_user_may_not_write_to(
    arguments: list[str], read_only_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed, another_user = scan_output.claimed, os.geteuid()

    def claimed_by_another_user(out: Path) -> Any:
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
    before = contents(out)
    assert scan_into([*arguments, "--follow"], out, "--resume").exit_code == 3
    assert contents(out) == before


def test_foreign_images_among_the_maps_stay(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    (out / "maps" / "00.png.tiff").unlink()
    others = [draw_image(out / "maps" / name) for name in ("zz mine.png", "notes.tiff")]
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert all(path.exists() for path in others)


@pytest.mark.usefixtures("undisturbed")
def test_a_lost_run_file_gives_advice(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "undisturbed"
    (out / "run.json").unlink()
    for way in ("--resume", "--overwrite"):
        result = scan_into(arguments, out, way)
        assert result.exit_code == 1
        assert "choose another --out" in result.stderr


@pytest.mark.parametrize(("stream", "code"), [("stdout", 1), ("stderr", 3)])
def test_a_summary_that_cannot_be_printed_is_one_line(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path, stream: str, code: int
) -> None:
    out = tmp_path / "out"
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "aprilcli", *arguments, "--out", str(out)]
        result = subprocess.run(command, text=True, check=False, **{**streams, stream: full})
    assert result.returncode == code, result.stderr
    assert contents(out) == undisturbed
    if stream == "stdout":
        assert result.stderr.splitlines()[-1].startswith(
            "aprilcli: error: standard output: cannot be written (No space"
        )


def test_resuming_without_results_starts_a_scan(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert scan_into(arguments, tmp_path / "new", "--resume").exit_code == 3
    assert contents(tmp_path / "new") == undisturbed


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
    before = contents(out)
    (out / "maps" / "ü ö.png.tiff").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 0
    assert contents(out) == before


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
    assert contents(out) == undisturbed


def test_scanning_into_the_scanned_folder_leaves_its_maps_alone(arguments: list[str], images: Path) -> None:
    assert scan_into(arguments, images).exit_code == 3
    before = contents(images)
    assert scan_into(arguments, images, "--resume").exit_code == 3
    assert scan_into(arguments, images, "--overwrite").exit_code == 3
    assert contents(images) == before


def test_a_foreign_folder_called_maps_is_not_removed(arguments: list[str], tmp_path: Path) -> None:
    draw_image(tmp_path / "out" / "maps" / "mine.png")
    result = scan_into(arguments, tmp_path / "out", "--overwrite")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "maps" / "mine.png").exists()


def test_resume_and_overwrite_exclude_each_other(arguments: list[str], tmp_path: Path) -> None:
    assert scan_into(arguments, tmp_path / "out", "--resume", "--overwrite").exit_code == 2


def test_maps_without_rows_are_deleted(
    arguments: list[str], images: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    lines = undisturbed["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:4]))  # maps ran ahead of rows
    (images / "09.png").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents(out) == contents_of_new_run(arguments, tmp_path)


def test_names_that_cannot_be_printed_do_not_end_a_scan(arguments: list[str], images: Path, tmp_path: Path) -> None:
    shutil.rmtree(images)
    draw_image(images / "new\nline.png")
    shutil.copy(images / "new\nline.png", os.fsdecode(os.fsencode(images) + b"/\xff.png"))
    command = [sys.executable, "-m", "aprilcli", *arguments, "--out", str(tmp_path / "out")]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=strict)
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
        assert contents(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_little_memory_is_a_row_or_a_line_never_a_crash(arguments: list[str], images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9000, 9000)).save(images / "large.png")  # 243 MB decoded
    out = tmp_path / "out"
    program = "import resource, sys, torch, open_clip, numpy\n"
    program += "import aprilcli.cli, aprilcli.workflows.scan, aprilcli.io.images\n"
    program += "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    program += "resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)\n"
    program += "aprilcli.cli.main()\n"
    command = [sys.executable, "-c", program, *arguments, "--out", str(out), "--workers", "1"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
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
    before = contents(out)
    (out / "maps" / "10.png.tiff").unlink()
    assert scan_into(arguments, out, "--resume").exit_code == 3
    assert contents(out) == before
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
        assert contents(out) == undisturbed


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
    assert len(paths) == len(set(paths)) == COUNT + 2
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
    assert contents(out) == contents_of_new_run(arguments, tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}"])
def test_a_foreign_run_file_is_one_line(arguments: list[str], tmp_path: Path, content: str) -> None:
    scan_into(arguments, tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(content)
    result = scan_into(arguments, tmp_path / "out", "--resume")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


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
