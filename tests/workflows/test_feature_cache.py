"""Features kept during a training: the same result with all, some or none of them, and nothing left afterwards."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import STEPS_PER_EPOCH, GoldenCase, before_each_step, run_train

from aprilcli.io.feature_store import slot_bytes
from aprilcli.types import ModelSpec

ARGUMENTS = ("--epochs", 3, "--mosaic", 0.3, "--val", 0.34)


def bytes_per_image(spec: ModelSpec, sizes: tuple[int, ...]) -> int:
    """Return what patch tokens of patches of 14 pixels and a mask take for each size."""
    return sum(slot_bytes([((size // 14) ** 2, width) for width in spec.stage_widths]) + size**2 for size in sizes)


@pytest.mark.parametrize("sizes", [(56,), (56, 84)])
@pytest.mark.parametrize("places", [0, 4])
def test_without_space_for_all_features_the_result_is_the_same(
    *, spotted: Path, small_model: list[str], golden_vit: GoldenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    sizes: tuple[int, ...], places: int,
) -> None:  # fmt: skip
    arguments = [*ARGUMENTS, "--image-size", ",".join(map(str, sizes))]
    kept, short = tmp_path / "kept.safetensors", tmp_path / "short.safetensors"
    result = run_train(spotted, kept, small_model, *arguments)
    assert result.exit_code == 0, result.output
    assert "no space" not in result.stderr
    free = 2 * places * bytes_per_image(golden_vit.backbone.spec, sizes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    result = run_train(spotted, short, small_model, *arguments)
    assert result.exit_code == 0, result.output
    assert f"no space to keep the features of {10 - places} of 10 images" in " ".join(result.stderr.split())
    assert short.read_bytes() == kept.read_bytes()
    assert not list(tmp_path.glob("*.features"))


def test_later_epochs_neither_decode_nor_encode(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, out = tmp_path / "straight.safetensors", tmp_path / "p.safetensors"
    arguments = ("--epochs", 3, "--mosaic", 0)
    assert run_train(spotted, straight, small_model, *arguments).exit_code == 0
    folder = tmp_path / "p.safetensors.features"
    existed = []

    def remove_images(step: int) -> None:
        existed.append(folder.is_dir())
        if step == STEPS_PER_EPOCH:
            shutil.rmtree(spotted)

    before_each_step(monkeypatch, remove_images)
    result = run_train(spotted, out, small_model, *arguments)
    assert result.exit_code == 0, result.output
    assert existed == [True] * 3 * STEPS_PER_EPOCH
    assert out.read_bytes() == straight.read_bytes()
    assert not folder.exists()


def test_every_kind_of_model_keeps_its_features(golden: GoldenCase, spotted: Path, tmp_path: Path) -> None:
    arguments = [*golden.options, "--device", "cpu"]
    result = run_train(spotted, tmp_path / "p.safetensors", arguments, "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert "features" not in result.stderr


def test_a_place_for_features_that_cannot_be_written_is_a_note(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    out, other = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    (tmp_path / "p.safetensors.features").write_text("mine")
    result = run_train(spotted, out, small_model, *ARGUMENTS)
    assert result.exit_code == 0, result.output
    assert f"cannot be written ({os.strerror(errno.EEXIST)})" in " ".join(result.stderr.split())
    assert (tmp_path / "p.safetensors.features").read_text() == "mine"
    assert run_train(spotted, other, small_model, *ARGUMENTS).exit_code == 0
    assert out.read_bytes() == other.read_bytes()


def test_features_that_a_killed_training_left_are_not_used(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    out, other = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    left = tmp_path / "p.safetensors.features" / "56-tokens"
    left.mkdir(parents=True)
    (left / "stage1.bin").write_bytes(b"of another training")
    for path in (out, other):
        assert run_train(spotted, path, small_model, *ARGUMENTS).exit_code == 0
    assert out.read_bytes() == other.read_bytes()
    assert not left.parent.exists()


def test_an_error_in_writing_features_does_not_end_the_training(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    assert run_train(spotted, other, small_model, *ARGUMENTS).exit_code == 0
    masks = tmp_path / "p.safetensors.features" / "56-masks"
    before_each_step(monkeypatch, lambda step: (masks / "stage1.bin").unlink() if step == 1 else None)
    result = run_train(spotted, out, small_model, *ARGUMENTS)
    assert result.exit_code == 0, result.output
    assert " ".join(result.stderr.split()).count("cannot be written") == 1
    assert out.read_bytes() == other.read_bytes()
