"""Nothing is lost: kills, interruptions, changed pictures, full disks and second writers, on real runs."""

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
from conftest import GoldenCase, draw_photo, hear_ctrl_c
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.core.projector import Projector, save_projector
from aprilcli.errors import OutputError
from aprilcli.io.reports import open_lines
from aprilcli.workflows import scan_output

COUNT = 12


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(COUNT):
        draw_photo(tmp_path / "photos" / f"{seed:02}.png", seed)
    (tmp_path / "photos" / "05b, broken.png").write_bytes(b"broken")
    return tmp_path / "photos"


@pytest.fixture
def arguments(photos: Path, golden_vit: GoldenCase) -> list[str]:
    model = ["--model", str(golden_vit.folder), "--image-size", "70", "--device", "cpu"]
    return ["scan", str(photos), *model, "--threshold", "0.5", "--false-alarm-rate", "0.01"]


def run(arguments: list[str], out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--out", str(out), *more])


def start(arguments: list[str], out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "aprilcli", *arguments, "--out", str(out), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, preexec_fn=hear_ctrl_c, **pipes)


def contents(out: Path) -> dict[str, bytes]:
    """Everything a scan promises to reproduce: scores.csv and every map, byte by byte."""
    maps = {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "maps").rglob("*") if path.is_file()}
    return maps | {"scores.csv": (out / "scores.csv").read_bytes()}


@pytest.fixture
def undisturbed(arguments: list[str], tmp_path: Path) -> dict[str, bytes]:
    assert run(arguments, tmp_path / "undisturbed").exit_code == 3
    return contents(tmp_path / "undisturbed")


def wait_for_rows(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if count_rows(out) > count:
            return
        time.sleep(0.002)


def count_rows(out: Path) -> int:
    return (out / "scores.csv").read_bytes().count(b"\r\n") if (out / "scores.csv").exists() else 0


def kill_loop(arguments: list[str], out: Path, expected: dict[str, bytes], kills: int, seed: int) -> tuple[int, int]:
    """Kill scans at random moments: some while they load, most between the next rows.

    Each one that gets to the end is compared and begun anew. Returns how many were killed and how many compared.
    """
    rng, killed, compared = random.Random(seed), 0, 0
    while killed < kills:
        rows, late = count_rows(out), rng.random() < 0.7
        process = start(arguments, out, "--resume")
        if late:
            wait_for_rows(out, rows + rng.randrange(4), process)
        time.sleep(rng.random() * (0.02 if late else 4))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if process.returncode == 3:
            assert contents(out) == expected
            shutil.rmtree(out)
            compared += 1
    return killed, compared


def test_killed_and_resumed_ends_with_the_same_bytes(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    kill_loop(arguments, out, undisturbed, 2, 0)
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed
    assert not list(out.rglob(".aprilcli-*"))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_fifty_kills(arguments: list[str], tmp_path: Path, batch_size: str) -> None:
    arguments += ["--batch-size", batch_size]
    run(arguments, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    killed, compared = kill_loop(arguments, tmp_path / "out", expected, 25, int(batch_size))
    assert run(arguments, tmp_path / "out", "--resume").exit_code == 3
    assert contents(tmp_path / "out") == expected
    size = sum(map(len, expected.values()))
    print(f"\nscan, batch size {batch_size}: {killed} kills, {compared + 1} whole runs of {size} bytes compared, equal")


@pytest.mark.parametrize("batch_size", ["1", "4"])
@pytest.mark.parametrize("keep", [0, 1, 37, 400, 900])
def test_a_torn_scores_file_is_mended(arguments: list[str], tmp_path: Path, keep: int, batch_size: str) -> None:
    out = tmp_path / "out"
    run(arguments, out, "--batch-size", batch_size)
    before = contents(out)
    (out / "scores.csv").write_bytes(before["scores.csv"][:keep])
    assert run(arguments, out, "--resume", "--batch-size", batch_size).exit_code == 3
    assert contents(out) == before


def test_what_is_whole_is_not_done_again(arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = Path(shutil.copytree(tmp_path / "undisturbed", tmp_path / "out"))
    lines = undisturbed["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:8]))
    kept, redone = out / "maps" / "01.png.tiff", out / "maps" / "10.png.tiff"
    times = kept.stat().st_mtime_ns, redone.stat().st_mtime_ns
    assert run(arguments, out, "--resume").exit_code == 3
    assert kept.stat().st_mtime_ns == times[0]
    assert redone.stat().st_mtime_ns > times[1]
    assert contents(out) == undisturbed


def damage_map(out: Path, photos: Path) -> None:
    (out / "maps" / "03.png.tiff").write_bytes(b"II*\0")


def lose_map(out: Path, photos: Path) -> None:
    (out / "maps" / "03.png.tiff").unlink()


def lose_journal(out: Path, photos: Path) -> None:
    (out / ".journal").unlink()


def exchange_map(out: Path, photos: Path) -> None:
    shutil.copy(out / "maps" / "04.png.tiff", out / "maps" / "03.png.tiff")


def blank_a_sector_of_a_map(out: Path, photos: Path) -> None:
    path = out / "maps" / "03.png.tiff"
    content = path.read_bytes()
    path.write_bytes(content[:512] + bytes(512) + content[1024:])


def change_a_digit(out: Path, photos: Path) -> None:
    lines = (out / "scores.csv").read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b",0.", b",1.", 1)
    (out / "scores.csv").write_bytes(b"".join(lines))


def blank_a_byte_of_a_row(out: Path, photos: Path) -> None:
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
def test_what_is_damaged_is_done_again(
    arguments: list[str],
    undisturbed: dict[str, bytes],
    photos: Path,
    tmp_path: Path,
    harm: Callable[[Path, Path], None],
) -> None:
    out = tmp_path / "undisturbed"
    harm(out, photos)
    assert (contents(out) != undisturbed) == (harm is not lose_journal)
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


def damage(content: bytes, rng: random.Random) -> bytes:
    """What a power cut or a failing disk leaves: a cut end, a stretch of zeros, a flipped bit, old bytes behind."""
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
def test_any_damage_is_mended(arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path, count: int) -> None:
    out, rng = tmp_path / "undisturbed", random.Random(count)
    for number in range(count):
        for path in rng.sample([out / name for name in (".journal", *undisturbed)], rng.randrange(1, 4)):
            path.write_bytes(damage(path.read_bytes(), rng))
        assert run(arguments, out, "--resume").exit_code == 3, number
        assert contents(out) == undisturbed, number
    print(f"\n{count} times damaged and resumed, all bytes equal")


@pytest.mark.usefixtures("undisturbed")
def test_changed_added_and_removed_pictures_are_noticed(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "undisturbed"
    draw_photo(photos / "03.png", 77)
    draw_photo(photos / "01b.png", 78)
    (photos / "08.png").unlink()
    assert run(arguments, out, "--resume").exit_code == 3
    assert run(arguments, tmp_path / "anew").exit_code == 3
    assert contents(out) == contents(tmp_path / "anew")


@pytest.mark.usefixtures("undisturbed")
@pytest.mark.parametrize(
    ("option", "said"),
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
    arguments: list[str], tmp_path: Path, option: list[str], said: str
) -> None:
    before = contents(tmp_path / "undisturbed")
    result = run(arguments, tmp_path / "undisturbed", "--resume", *option)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents(tmp_path / "undisturbed") == before


def test_another_model_projector_bank_or_machine_is_refused_with_its_name(
    photos: Path, golden_vit: GoldenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(golden_vit.folder, tmp_path / "model"))
    (photos / "05b, broken.png").unlink()
    banks = tmp_path / "banks"
    runner = CliRunner()

    def call(command: str, *more: object) -> Result:
        options = ["--banks", banks, "--part", "p", *more]
        return runner.invoke(app, [command, *map(str, (photos, *options)), "--device", "cpu"])

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

    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 99)
        assert "99 now" in refusal()
    (photos / "00.png").rename(tmp_path / "aside.png")
    assert call("enroll", *settings, "--overwrite").exit_code == 0
    (tmp_path / "aside.png").rename(photos / "00.png")
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


def test_ctrl_c_finishes_the_picture_in_hand_and_exits_130(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(arguments, out)
    wait_for_rows(out, 1, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    scored = {f"{path}.tiff" for path, row in rows_of(out).items() if row["status"] == "ok"}
    assert {path.name for path in (out / "maps").iterdir()} == scored
    assert json.loads((out / "run.json").read_text()).keys().isdisjoint({"finished", "counts"})
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


def test_a_second_scan_is_refused_while_the_first_lives(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    for seed in range(COUNT, 60):
        draw_photo(photos / f"{seed}.png", seed)
    out = tmp_path / "out"
    first = start(arguments, out)
    wait_for_rows(out, 0, first)
    first.send_signal(signal.SIGSTOP)  # it lives, and cannot finish while the second tries
    second = run(arguments, out, "--resume")
    first.kill()
    first.communicate()
    assert second.exit_code == 1
    assert "another scan is writing there" in second.stderr
    third = run(arguments, out, "--resume")
    assert third.exit_code == 3, third.output


def contents_of_new_run(arguments: list[str], tmp_path: Path) -> dict[str, bytes]:
    assert run(arguments, tmp_path / "whole").exit_code == 3
    return contents(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_resume_goes_on(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aprilcli", *arguments, "--out", str(out)]
    limit = (
        3000  # bytes a file may have: a map outgrows it, as it would a full disk; run.json and the first rows do not
    )
    for seed, photo in enumerate(sorted(photos.glob("0[0-3].png"))):
        Image.new("RGB", (16, 16), (seed * 40, 90, 30)).save(photo)  # their maps are small
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
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


def test_a_run_that_is_resumed_is_not_finished(
    arguments: list[str], photos: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "undisturbed"
    assert json.loads((out / "run.json").read_text())["counts"]["scored"] == COUNT
    draw_photo(photos / "03.png", 3)  # the same picture, written later

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scan_output, "find_resume_point", killed)
        assert run(arguments, out, "--resume").exit_code == 130
    assert json.loads((out / "run.json").read_text()).keys().isdisjoint({"finished", "counts"})
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


@pytest.mark.parametrize("trouble", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_what_the_machine_could_not_read_is_read_again(
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
        assert run(arguments, out).exit_code == 3
    assert rows_of(out)["04.png"]["status"] == "error"
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == undisturbed


def test_a_file_that_vanishes_after_it_was_listed_gets_its_row(
    arguments: list[str], photos: Path, tmp_path: Path
) -> None:
    for seed in range(COUNT, 60):
        draw_photo(photos / f"{seed}.png", seed)
    out = tmp_path / "out"
    process = start(arguments, out)
    wait_for_rows(out, 0, process)
    process.send_signal(signal.SIGSTOP)
    (photos / "59.png").unlink()  # one folder is listed whole, so it is awaited
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    rows = rows_of(out)
    assert len(rows) == 61
    assert "59.png: cannot be read as an image (No such file or directory)" in rows["59.png"]["error"]
    assert run(arguments, out, "--resume").exit_code == 3
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
    result = run(arguments, read_only_folder / "out")
    assert result.exit_code == 1, result.output
    assert f"{read_only_folder / 'out'}" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("(Permission denied); choose a place you may write to")
    assert list(read_only_folder.iterdir()) == []


def test_linked_results_are_not_scanned(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (photos / "link").symlink_to(tmp_path / "elsewhere")
    out = photos / "link" / "out"
    assert run([*arguments, "--follow"], out).exit_code == 3
    before = contents(out)
    assert run([*arguments, "--follow"], out, "--resume").exit_code == 3
    assert contents(out) == before


def test_pictures_of_others_among_the_maps_stay(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    (out / "maps" / "00.png.tiff").unlink()
    others = [draw_photo(out / "maps" / name) for name in ("zz mine.png", "notes.tiff")]
    assert run(arguments, out, "--resume").exit_code == 3
    assert all(path.exists() for path in others)


@pytest.mark.usefixtures("undisturbed")
def test_a_lost_run_file_leads_to_a_way_on(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "undisturbed"
    (out / "run.json").unlink()
    for way in ("--resume", "--overwrite"):
        result = run(arguments, out, way)
        assert result.exit_code == 1
        assert "choose another --out" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("stream", "code"), [("stdout", 1), ("stderr", 3)])
def test_a_summary_that_has_no_room(
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


def test_resuming_nothing_begins(arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert run(arguments, tmp_path / "new", "--resume").exit_code == 3
    assert contents(tmp_path / "new") == undisturbed


def test_odd_names_round_trip_and_keep_their_own_maps(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos)
    names = ["a.png", "a.jpg", "A.png", "-x.png", "=1+1.png", 'quote".png', "comma,.png", "new\nline.png", "ü ö.png"]
    for seed, name in enumerate(names):
        draw_photo(photos / name, seed)
    raw = os.fsencode(photos) + b"/\xff.png"
    shutil.copy(photos / "a.png", os.fsdecode(raw))
    out = tmp_path / "out"
    assert run(arguments, out).exit_code == 0
    with (out / "scores.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    assert sorted(paths) == sorted([*names, os.fsdecode(b"\xff.png")])
    assert all((out / "maps" / f"{path}.tiff").exists() for path in paths)
    before = contents(out)
    (out / "maps" / "ü ö.png.tiff").unlink()
    assert run(arguments, out, "--resume").exit_code == 0
    assert contents(out) == before


def test_a_row_that_does_not_fit_is_not_left_torn(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "lines"
    try:
        with open_lines(path) as lines:
            lines.write("whole\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
            with pytest.raises(OutputError, match="File too large"):
                lines.write("too long a line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "whole\n"


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
    assert run(arguments, out, "--resume").exit_code == 3
    assert all(victim.read_bytes() == b"precious" for victim in victims)
    victims[1].unlink()
    assert contents(out) == undisturbed


def test_scanning_into_the_scanned_folder_leaves_its_maps_alone(arguments: list[str], photos: Path) -> None:
    assert run(arguments, photos).exit_code == 3
    before = contents(photos)
    assert run(arguments, photos, "--resume").exit_code == 3
    assert run(arguments, photos, "--overwrite").exit_code == 3
    assert contents(photos) == before


def test_a_folder_called_maps_that_is_no_scans_is_not_removed(arguments: list[str], tmp_path: Path) -> None:
    draw_photo(tmp_path / "out" / "maps" / "mine.png")
    result = run(arguments, tmp_path / "out", "--overwrite")
    assert result.exit_code == 1
    assert (tmp_path / "out" / "maps" / "mine.png").exists()


def test_resume_and_overwrite_exclude_each_other(arguments: list[str], tmp_path: Path) -> None:
    assert run(arguments, tmp_path / "out", "--resume", "--overwrite").exit_code == 2


def test_maps_without_rows_go(
    arguments: list[str], photos: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "undisturbed"
    lines = undisturbed["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:4]))  # maps ran ahead of rows
    (photos / "09.png").unlink()
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == contents_of_new_run(arguments, tmp_path)


def test_names_that_no_terminal_takes_do_not_end_a_scan(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos)
    draw_photo(photos / "new\nline.png")
    shutil.copy(photos / "new\nline.png", os.fsdecode(os.fsencode(photos) + b"/\xff.png"))
    command = [sys.executable, "-m", "aprilcli", *arguments, "--out", str(tmp_path / "out")]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=strict)
    assert result.returncode == 0, result.stderr
    assert "\\xff.png" in result.stdout
    assert "new\\nline.png" in result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_small_disk_that_fills_up(arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine mounts nothing")
    try:
        full = run(arguments, disk / "out")
        assert full.exit_code == 1
        assert "No space left on device" in full.stderr
        rows = (disk / "out" / "scores.csv").read_bytes()
        assert rows.endswith(b"\r\n")
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(arguments, disk / "out", "--resume").exit_code == 3
        assert contents(disk / "out") == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


def test_little_memory_is_a_row_or_a_line_never_a_crash(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9000, 9000)).save(photos / "large.png")  # 243 MB decoded
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


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "scores.csv").open(newline="") as stream:
        return {row["path"]: row for row in csv.DictReader(stream)}


def test_a_picture_whose_map_has_no_place_gets_its_row_and_the_scan_goes_on(
    arguments: list[str], photos: Path, tmp_path: Path
) -> None:
    long_name = "b" * 247 + ".png"  # the map's would be four bytes longer than a name may be
    draw_photo(photos / long_name)
    draw_photo(photos / "01.png.tiff" / "x.png")  # its folder would be the map of 01.png
    draw_photo(photos / "notes.txt.tiff" / "y.png")
    (photos / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    assert run(arguments, out).exit_code == 3
    rows = rows_of(out)
    assert "too long" in rows[long_name]["error"]
    assert "another picture's heatmap" in rows["01.png.tiff/x.png"]["error"]
    assert rows["11.png"]["status"] == rows["01.png"]["status"] == rows["notes.txt.tiff/y.png"]["status"] == "ok"
    before = contents(out)
    (out / "maps" / "10.png.tiff").unlink()
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == before
    assert run(arguments, tmp_path / "no maps", "--no-maps").exit_code == 3
    assert rows_of(tmp_path / "no maps")[long_name]["status"] == "ok"


def test_killed_while_overwriting_it_goes_on_either_way(
    arguments: list[str], undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in ("--resume", "--overwrite"):
        out = Path(shutil.copytree(tmp_path / "undisturbed", tmp_path / way))

        def killed(folder: Path) -> None:
            (folder / "00.png.tiff").unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(scan_output, "remove_tree", killed)
            assert run(arguments, out, "--overwrite").exit_code == 130
        assert run(arguments, out, way).exit_code == 3
        assert contents(out) == undisturbed


def test_a_picture_that_comes_while_resuming_shifts_no_row(
    arguments: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(arguments, out)
    (out / "maps" / "06.png.tiff").unlink()
    find_resume_point = scan_output.find_resume_point

    def then_comes_a_picture(*given: Any) -> Any:
        kept = find_resume_point(*given)
        draw_photo(photos / "00a.png", 80)
        draw_photo(photos / "07a.png", 81)
        return kept

    monkeypatch.setattr(scan_output, "find_resume_point", then_comes_a_picture)
    assert run(arguments, out, "--resume").exit_code == 3
    with (out / "scores.csv").open(newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    assert len(paths) == len(set(paths)) == COUNT + 2
    assert "07a.png" in paths


def test_a_file_made_readable_and_one_exchanged_for_its_twin_in_size_and_time_are_scored_anew(
    arguments: list[str], photos: Path, tmp_path: Path
) -> None:
    for name, seed in (("20.bmp", 20), ("21.bmp", 21)):
        os.utime(draw_photo(photos / name, seed), ns=(10**18, 10**18))
    (photos / "22.png").symlink_to(tmp_path / "later.png")
    out = tmp_path / "out"
    run(arguments, out)
    (photos / "20.bmp").rename(photos / "x")
    (photos / "21.bmp").rename(photos / "20.bmp")
    (photos / "x").rename(photos / "21.bmp")
    draw_photo(tmp_path / "later.png")
    assert run(arguments, out, "--resume").exit_code == 3
    assert contents(out) == contents_of_new_run(arguments, tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "{}"])
def test_a_foreign_run_file_is_one_line(arguments: list[str], tmp_path: Path, content: str) -> None:
    run(arguments, tmp_path / "out")
    (tmp_path / "out" / "run.json").write_text(content)
    result = run(arguments, tmp_path / "out", "--resume")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_scores_file_that_is_a_folder_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    run(arguments, tmp_path / "out")
    (tmp_path / "out" / "scores.csv").unlink()
    (tmp_path / "out" / "scores.csv").mkdir()
    result = run(arguments, tmp_path / "out", "--resume")
    assert result.exit_code == 1
    assert "scores.csv: cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_journal_that_is_not_ours_is_not_cut(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".journal").write_text("mine")
    assert run(arguments, tmp_path / "out").exit_code == 1
    assert (tmp_path / "out" / ".journal").read_text() == "mine"
