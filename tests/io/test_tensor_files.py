"""Safetensors files are read with and without mapping them into memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import GoldenCase
from safetensors import SafetensorError
from safetensors.torch import save_file

from aprilcli.core.model_loading import load_backbone
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import read_header, write_artifact
from aprilcli.io.tensor_files import open_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture(params=["mapped", "not mappable"])
def is_mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "not mappable":
        refuse_to_map(monkeypatch)
    return request.param == "mapped"


def refuse_to_map(monkeypatch: pytest.MonkeyPatch, below: str = "/") -> None:
    from safetensors import safe_open

    def refusing(path: Path, *arguments: object, **options: object) -> object:
        if str(path).startswith(below):
            raise OSError("No such device (os error 19)")
        return safe_open(path, *arguments, **options)

    monkeypatch.setattr("aprilcli.io.tensor_files.safe_open", refusing)
    monkeypatch.setattr("safetensors.torch.safe_open", refusing)


@pytest.mark.usefixtures("is_mapped")
def test_names_shapes_types_values_and_metadata(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"format": "x"})
    with open_tensors(tmp_path / "a.safetensors") as file:
        assert sorted(file.keys()) == ["a", "b"]
        assert file.metadata() == {"format": "x"}
        for name, tensor in TENSORS.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_slice(name).get_shape() == list(tensor.shape)
        assert [file.get_slice(name).get_dtype() for name in ("a", "b")] == ["F32", "BF16"]


@pytest.mark.usefixtures("is_mapped")
def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_tensors(tmp_path / "missing"):
        pass
    (tmp_path / "a").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(SafetensorError), open_tensors(tmp_path / "a"):
        pass


@pytest.mark.usefixtures("is_mapped")
def test_artifacts_are_read(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a.safetensors", "bank", TENSORS, {"x": 1})
    header = read_header(tmp_path / "a.safetensors")
    assert header.fields == {"x": 1}
    assert header.shapes == {"a": (2, 3), "b": (3,)}
    with pytest.raises(ArtifactError, match="No such file or directory"):
        read_header(tmp_path / "missing.safetensors")


def test_a_model_folder_is_loaded(golden_vit: GoldenCase, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_backbone(str(golden_vit.folder), device="cpu")
    refuse_to_map(monkeypatch, str(golden_vit.folder))
    assert load_backbone(str(golden_vit.folder), device="cpu").spec == expected.spec
