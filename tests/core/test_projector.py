"""Projectors: finding, reading, checking against a model, writing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import GoldenCase, inputs

from aprilcli.core.bank_file import load_bank, save_bank
from aprilcli.core.memory_bank import Source, build
from aprilcli.core.projector import Projector, load_projector, save_projector
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import write_artifact
from aprilcli.io.authors_format import read_authors_projector


def authors_file(path: Path, widths: tuple[int, ...], joint_width: int) -> Path:
    layers = {f"fc.{n}.weight": torch.randn(joint_width, width) for n, width in enumerate(widths)}
    layers |= {f"fc.{n}.bias": torch.randn(joint_width) for n in range(len(widths))}
    torch.save({"trainable_linearlayer": layers}, path)
    return path


def test_a_saved_projector_projects_the_same(golden: GoldenCase, tmp_path: Path) -> None:
    save_projector(golden.projector, tmp_path / "p.safetensors")
    loaded = load_projector(str(tmp_path / "p.safetensors"), "any", golden.backbone.spec)
    assert loaded is not None
    assert loaded.identity["fingerprint"] == golden.projector.identity["fingerprint"]
    tokens = golden.encoder.encode(golden.pixels("query0")).patch_tokens
    for mine, theirs in zip(loaded(tokens), golden.projector(tokens), strict=True):
        assert torch.equal(mine, theirs)


def test_a_folder_has_its_own_projector_or_none(golden_vit: GoldenCase, tmp_path: Path) -> None:
    assert load_projector(None, str(golden_vit.folder), golden_vit.backbone.spec) is not None
    assert load_projector(None, str(tmp_path), golden_vit.backbone.spec) is None


def test_a_projector_fits_any_image_size(golden_vit: GoldenCase) -> None:
    spec = replace(golden_vit.backbone.spec, image_size=112)
    assert load_projector(None, str(golden_vit.folder), spec) is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "f" * 64}, "fingerprint"),
        ({"activation": "quickgelu"}, "activation gelu against quickgelu"),
        ({"stages": (1, 2, 3, 4)}, "stages 2,4,6,8 against 1,2,3,4"),
        ({"joint_width": 64}, "joint_width 48 against 64"),
    ],
)
def test_another_model_is_refused_naming_both(golden_vit: GoldenCase, change: dict[str, object], said: str) -> None:
    spec = replace(golden_vit.backbone.spec, **change)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=said):
        load_projector(None, str(golden_vit.folder), spec)


PAPER_SHAPE = {"stages": (6, 12, 18, 24), "stage_widths": (1024,) * 4, "joint_width": 768}


def test_a_published_projector_fits_the_papers_model_only(
    golden_vit: GoldenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = read_authors_projector(authors_file(tmp_path / "visa.pth", (1024,) * 4, 768))
    monkeypatch.setattr("aprilcli.core.projector.fetch_projector", lambda name, progress: published)
    folder = replace(golden_vit.backbone.spec, **PAPER_SHAPE)  # type: ignore[arg-type]
    paper = replace(folder, backbone="ViT-L-14-336", pretrained="openai")
    for spec in (folder, paper):
        projector = load_projector("visa", "folder", spec)
        assert projector is not None
        assert projector.identity["trained_on"] == "visa"
        assert projector.notes == ()
    with pytest.raises(ArtifactError, match="activation gelu against quickgelu"):
        load_projector("visa", "folder", replace(folder, activation="quickgelu"))
    with pytest.raises(ArtifactError, match="stage_widths"):
        load_projector("visa", "folder", golden_vit.backbone.spec)
    other = replace(folder, backbone="ViT-L-14", pretrained="laion2b_s32b_b82k")
    with pytest.raises(ArtifactError, match="backbone ViT-L-14-336 against ViT-L-14"):
        load_projector("visa", "ViT-L-14", other)


def test_a_file_in_the_authors_format_fits_every_model_of_its_widths(golden: GoldenCase, tmp_path: Path) -> None:
    spec = golden.backbone.spec
    path = authors_file(tmp_path / "own.pth", spec.stage_widths, spec.joint_width)
    projector = load_projector(str(path), "any", spec)
    assert projector is not None
    assert projector.identity == {**projector.identity, "name": str(path), "trained_on": ""}
    note = f"{path}: the file does not state the model it was trained with; it fits {spec.label}"
    assert projector.notes == (note,)
    assert golden.detector(projector).notes == (note,)
    assert golden.detector(projector).detect(inputs(golden.pixels("query0")))[0].anomaly_map is not None


@pytest.mark.parametrize("widths", [(64, 64, 64), (64, 64, 64, 32)])
def test_a_file_in_the_authors_format_that_does_not_fit_is_refused_naming_both(
    golden_vit: GoldenCase, tmp_path: Path, widths: tuple[int, ...]
) -> None:
    path = authors_file(tmp_path / "own.pth", widths, 48)
    given = ",".join(map(str, widths))
    said = f"stage widths {given} and joint width 48, golden-vit has 64,64,64,64 and 48; give the model"
    with pytest.raises(ArtifactError, match=said):
        load_projector(str(path), "any", golden_vit.backbone.spec)


def test_missing_or_surplus_layers_are_refused(golden_vit: GoldenCase, tmp_path: Path) -> None:
    fields = {"spec": golden_vit.backbone.spec.to_json(), "trained_on": ""}
    tensors = dict(golden_vit.projector.state_dict())
    path = tmp_path / "p.safetensors"
    write_artifact(path, "projector", {**tensors, "fc.4.bias": torch.zeros(48)}, fields)
    with pytest.raises(ArtifactError, match="not a valid projector"):
        load_projector(str(path), "any", golden_vit.backbone.spec)
    del tensors["fc.3.bias"]
    write_artifact(path, "projector", tensors, fields)
    with pytest.raises(ArtifactError, match="not a valid projector"):
        load_projector(str(path), "any", golden_vit.backbone.spec)


def test_metadata_without_a_model_is_refused(golden_vit: GoldenCase, tmp_path: Path) -> None:
    write_artifact(tmp_path / "p.safetensors", "projector", dict(golden_vit.projector.state_dict()), {})
    with pytest.raises(ArtifactError, match=r"not a valid projector \(spec: Field required\); train or download"):
        load_projector(str(tmp_path / "p.safetensors"), "any", golden_vit.backbone.spec)


def test_initial_weights_are_pytorchs(golden_vit: GoldenCase) -> None:
    torch.manual_seed(3)
    mine = Projector(golden_vit.backbone.spec).fc[0].weight
    torch.manual_seed(3)
    assert torch.equal(mine, torch.nn.Linear(64, 48).weight)


@pytest.mark.parametrize("spec", [[], None, "x", {}])
def test_invalid_settings_of_the_model_are_refused(golden_vit: GoldenCase, tmp_path: Path, spec: object) -> None:
    path = tmp_path / "p.safetensors"
    write_artifact(path, "projector", dict(golden_vit.projector.state_dict()), {"spec": spec})
    with pytest.raises(ArtifactError, match=r"not a valid projector \(spec[.:].*\); train or download"):
        load_projector(str(path), "any", golden_vit.backbone.spec)


def with_surplus(path: Path, name: str) -> Path:
    """Add a sparse tensor of 16 GB, which takes no space on disk, to an artifact."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    header[name] = {"dtype": "F32", "shape": [2**32], "data_offsets": [len(values), len(values) + 2**34]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    os.truncate(path, 8 + len(text) + len(values) + 2**34)
    return path


@pytest.mark.parametrize("kind", ["projector", "bank"])
def test_surplus_tensors_are_refused_before_allocation(golden_vit: GoldenCase, tmp_path: Path, kind: str) -> None:
    spec, path = golden_vit.backbone.spec, tmp_path / "p.safetensors"
    if kind == "projector":
        save_projector(golden_vit.projector, path)
    else:
        tokens = golden_vit.encoder.encode(golden_vit.pixels("query0")).patch_tokens
        save_bank(build([tokens], [Source("a.png", "0" * 64)], spec, "nut"), path)
    with_surplus(path, "features.9\x1b[31m" + "x" * 1000)
    with pytest.raises(ArtifactError, match=r"tensor '?features\.9\\x1b") as caught:
        load_projector(str(path), "any", spec) if kind == "projector" else load_bank(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_bank_path_that_is_too_long_gives_one_line() -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_bank(Path("a" * 300 + ".safetensors"))
