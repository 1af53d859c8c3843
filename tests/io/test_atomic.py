"""Files are written completely or not at all, and leftovers of killed writers are deleted."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aprilcli.errors import OutputError
from aprilcli.io.atomic import (
    NOTE_LOCK,
    NOTE_SYNC,
    claimed_file,
    output_errors,
    remove_leftovers,
    remove_tree,
    written_aside,
)
from aprilcli.workflows.console import Console


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_complete_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "scores.csv"
    with written_aside(target) as aside:
        assert aside.parent == target.parent
        assert aside.name.startswith(".")
        assert aside.suffix == ".csv"
        aside.write_text("complete")
        assert not target.exists()
    assert target.read_text() == "complete"
    assert _names(target.parent) == ["scores.csv"]


def test_permissions_equal_those_of_any_new_file(tmp_path: Path) -> None:
    with written_aside(tmp_path / "a") as aside:
        aside.write_text("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_the_old_file_is_unchanged_when_the_body_raises(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "bank.safetensors"
    target.write_text("old")

    def interrupted() -> None:
        with written_aside(target) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["bank.safetensors"]


def test_a_name_of_maximum_length(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250 + ".tiff")
    with written_aside(target) as aside:
        aside.write_text("x")
    assert _names(tmp_path) == [target.name]


@pytest.mark.parametrize("name", ["a b,\"c'.tiff", "-rf=.tiff", "Maß 漢.tiff", "line\nbreak.tiff", "\udcff\udc80.tiff"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    with written_aside(tmp_path / name) as aside:
        aside.write_text("x")
    assert _names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(File name too long\); choose a shorter name$"):
        _write(tmp_path / ("n" * 300))
    assert _names(tmp_path) == []


def test_the_target_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    with pytest.raises(OutputError, match="a folder of this name exists"):
        _write(tmp_path / "maps")
    assert _names(tmp_path) == ["maps"]


def test_the_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a part of this path is a file"):
        _write(tmp_path / "file" / "a.tiff")
    with pytest.raises(OutputError, match="a part of this path is a file"):
        _write(tmp_path / "file" / "deeper" / "a.tiff")


def test_the_old_file_is_unchanged_when_space_is_short(tmp_path: Path) -> None:
    target = tmp_path / "map.tiff"
    target.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match=r"map.tiff: cannot be written \(File too large\)"):
            _write(target, b"x" * 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["map.tiff"]


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "may write to"), (errno.EIO, "another place")]
)
def test_each_error_gives_advice(tmp_path: Path, code: int, advice: str) -> None:
    with pytest.raises(OutputError) as caught, output_errors(tmp_path):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith(f"{tmp_path}: cannot be written ({os.strerror(code)}); ")
    assert advice in str(caught.value)


def test_a_read_only_folder_is_refused(read_only_folder: Path) -> None:
    for path in (read_only_folder / "a.csv", read_only_folder / "maps" / "a.tiff"):
        with pytest.raises(OutputError, match=r"\(Permission denied\); choose a place you may write to$"):
            _write(path)


def test_a_killed_writer_leaves_one_removable_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bank.safetensors"
    target.parent.mkdir()
    target.write_text("old")
    program = (
        "import os, signal, sys, pathlib\n"
        "from aprilcli.io.atomic import written_aside\n"
        "with written_aside(pathlib.Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(_names(target.parent)) == 2  # the target and the unfinished file
    assert remove_leftovers(tmp_path) == 1
    assert _names(target.parent) == ["bank.safetensors"]
    assert remove_leftovers(tmp_path) == 0
    assert remove_leftovers(tmp_path / "missing") == 0


def test_leftovers_below_are_kept_on_request(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "below"):
        folder.mkdir(exist_ok=True)
        (folder / ".aprilcli-0-1").write_text("half")
    assert remove_leftovers(tmp_path, below=False) == 1
    assert _names(tmp_path / "below") == [".aprilcli-0-1"]


def _write(path: Path, content: bytes = b"x") -> None:
    with written_aside(path) as aside:
        aside.write_bytes(content)


def test_claiming_a_file_deletes_the_leftovers_of_its_killed_writers(tmp_path: Path) -> None:
    mine, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    beside = tmp_path / "a.safetensors.checkpoint"
    left = {}
    for path in (mine, beside, other):
        with written_aside(path) as aside:
            aside.write_bytes(b"half")
            left[path] = aside
        left[path].write_bytes(b"half")
    with (
        claimed_file(mine, "busy", beside),
        pytest.raises(OutputError, match=r"a\.safetensors: busy"),
        claimed_file(mine, "busy"),
    ):
        pass
    assert not left[mine].exists()
    assert not left[beside].exists()
    assert left[other].exists()
    assert mine.read_bytes() == b"half"


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """Collect what the module logs."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("aprilcli.io.atomic")
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


def failing(code: int) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


UNSUPPORTED = [errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOLCK]


@pytest.mark.parametrize("code", UNSUPPORTED, ids=errno.errorcode.get)
def test_a_file_system_without_locks_gives_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str], code: int
) -> None:
    monkeypatch.setattr("fcntl.flock", failing(code))
    for _ in range(2):  # no lock is left behind
        with claimed_file(tmp_path / "a", "busy"):
            (tmp_path / "a").write_text("x")
    assert notes == [NOTE_LOCK] * 2


@pytest.mark.parametrize("code", UNSUPPORTED, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_gives_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str], code: int
) -> None:
    monkeypatch.setattr(os, "fsync", failing(code))
    _write(tmp_path / "a", b"complete")
    assert (tmp_path / "a").read_bytes() == b"complete"
    assert notes == [NOTE_SYNC]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_fault_of_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "a").write_text("old")
    for call in ("os.fsync", "fcntl.flock"):
        with monkeypatch.context() as patch:
            patch.setattr(call, failing(code))
            with pytest.raises(OutputError, match=os.strerror(code)), claimed_file(tmp_path / "a", "busy"):
                _write(tmp_path / "a")
        assert (tmp_path / "a").read_text() == "old"


def test_the_console_prints_a_note_of_the_file_system_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOTSUP))
    for quiet, count in ((False, 1), (True, 0)):
        Console(quiet=quiet)
        for _ in range(2):
            _write(tmp_path / "a")
        assert capsys.readouterr().err.count(NOTE_SYNC) == count


def test_removing_a_tree_keeps_the_targets_of_its_links(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "a" / "link").symlink_to(other)
    remove_tree(tree)
    assert _names(tmp_path) == ["other"]
    tree.symlink_to(other)
    with pytest.raises(OutputError, match="a link; its target is not deleted"):
        remove_tree(tree)
    assert (other / "precious.txt").exists()
