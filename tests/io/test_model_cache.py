"""Converted models in the cache folder: whole or not used, and bounded in number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aprilcli.errors import OutputError
from aprilcli.io import model_cache
from aprilcli.io.model_cache import claimed_cache, find_model, keep_model


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path))
    return tmp_path / "openvino"


def write(layers: Path, weights: Path) -> None:
    layers.write_bytes(b"layers")
    weights.write_bytes(b"weights")


def keep(name: str) -> None:
    with claimed_cache():
        keep_model(name, write)


def test_a_kept_model_is_found_with_its_weights_beside_it(folder: Path) -> None:
    assert find_model("a") is None
    keep("a")
    assert find_model("a") == folder / "a.xml"
    assert [(folder / f"a{suffix}").read_bytes() for suffix in (".xml", ".bin")] == [b"layers", b"weights"]


@pytest.mark.parametrize("suffix", [".xml", ".bin", ".json"])
@pytest.mark.parametrize("content", [b"", b"damaged", b"[1]", None])
def test_a_damaged_or_incomplete_model_is_not_used_and_can_be_kept_again(
    folder: Path, suffix: str, content: bytes | None
) -> None:
    keep("a")
    path = folder / f"a{suffix}"
    path.unlink() if content is None else path.write_bytes(content)
    assert find_model("a") is None
    keep("a")
    assert find_model("a") is not None


def test_a_write_that_fails_leaves_nothing(folder: Path) -> None:
    def fail(layers: Path, weights: Path) -> None:
        layers.write_bytes(b"part of the layers")
        raise OSError("no space")

    with pytest.raises(OutputError, match=r"cannot be written \(no space\)"), claimed_cache():
        keep_model("a", fail)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_what_killed_processes_left_is_deleted(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".aprilcli-12345678-1.bin").write_bytes(b"part")
    keep("a")
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "a.bin", "a.json", "a.xml"]


def test_a_second_process_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache, "_TIMEOUT_S", 0.01)
    with claimed_cache(), pytest.raises(OutputError, match="another process is still converting"), claimed_cache():
        pass


def test_the_models_not_used_for_the_longest_time_are_deleted(folder: Path) -> None:
    names = [f"model{number:02}" for number in range(model_cache.KEPT)]
    for age, name in enumerate(names):
        keep(name)
        os.utime(folder / f"{name}.json", (1000 - age, 1000 - age))
    assert find_model(names[-1]) is not None  # the oldest, used now
    keep("new")
    assert [name for name in (*names, "new") if find_model(name) is None] == [names[-2]]
    assert not list(folder.glob(f"{names[-2]}.*"))
