"""The cache: what counts as unknown, and that it is never the cause of an error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aprilcli.errors import OutputError
from aprilcli.io.cache import cache_folder, recall, remember, state_of_file

KEY = {"model": "a", "threads": 2}
VALUE = torch.tensor([[0.1, -2.5], [1e-30, 3.0]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder; it does not exist yet."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def only_file(cache: Path) -> Path:
    (path,) = (cache / "numbers").iterdir()
    return path


def test_a_stored_tensor_has_the_same_bits() -> None:
    assert recall("numbers", KEY) is None
    remember("numbers", KEY, VALUE)
    found = recall("numbers", KEY)
    assert found is not None
    assert found.numpy().tobytes() == VALUE.numpy().tobytes()


def test_another_key_or_kind_is_unknown() -> None:
    remember("numbers", KEY, VALUE)
    assert recall("numbers", {**KEY, "threads": 1}) is None
    assert recall("others", KEY) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_another_tool(path: Path) -> None:
    save_file({"value": VALUE}, path)


def copy_from_another_key(path: Path) -> None:
    remember("numbers", {"model": "b"}, VALUE + 1)
    (other,) = set(path.parent.iterdir()) - {path}
    other.replace(path)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, replace_by_another_tool, copy_from_another_key])
def test_a_damaged_or_foreign_file_is_unknown_and_replaced(cache: Path, damage: Callable[[Path], None]) -> None:
    remember("numbers", KEY, VALUE)
    damage(only_file(cache))
    assert recall("numbers", KEY) is None
    remember("numbers", KEY, VALUE)
    found = recall("numbers", KEY)
    assert found is not None
    assert torch.equal(found, VALUE)
    only_file(cache)


def test_a_folder_in_place_of_the_file_is_no_error(cache: Path) -> None:
    remember("numbers", KEY, VALUE)
    path = only_file(cache)
    path.unlink()
    path.mkdir()
    remember("numbers", KEY, VALUE)
    assert recall("numbers", KEY) is None


def test_a_folder_that_cannot_be_written_is_no_error(read_only_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRILCLI_CACHE", str(read_only_folder / "cache"))
    remember("numbers", KEY, VALUE)
    assert recall("numbers", KEY) is None


def test_a_full_disk_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    remember("numbers", KEY, VALUE)
    assert recall("numbers", KEY) is None
    assert list((cache / "numbers").iterdir()) == []


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APRILCLI_CACHE")
    assert cache_folder().name == "aprilcli"


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass."""
    now = path.stat().st_ctime + 60
    monkeypatch.setattr(time, "time", lambda: now)


def test_the_state_of_a_file_changes_with_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    before = path.stat()
    settle(path, monkeypatch)
    state = state_of_file(path)
    assert state is not None
    assert state == state_of_file(path)
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a file system moves in steps
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settle(path, monkeypatch)
    assert state_of_file(path) not in (None, state)


def test_the_state_of_a_file_that_has_just_been_changed_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    assert state_of_file(tmp_path / "file") is None


def test_a_user_without_a_home_folder_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("APRILCLI_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    remember("numbers", KEY, VALUE)
    assert recall("numbers", KEY) is None
    with pytest.raises(OutputError, match="set APRILCLI_CACHE to a folder"):
        cache_folder()
