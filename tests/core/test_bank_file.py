from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from operator import getitem

import numpy as np
import pytest
import torch
from small_banks import draw_zero_shot, make_bank, refusal_of

from aprilcli.core.bank_file import KIND, load_bank, save_bank, to_artifact
from aprilcli.core.calibration import Calibration
from aprilcli.core.memory_bank import Recipe, subsample, without
from aprilcli.core.quantization import QuantizationImages
from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.artifacts import write_artifact

INFINITE = 1e308  # as the writer accepts it; in the file it becomes 1e+999


@pytest.mark.parametrize("calibrated", [True, False])
def test_round_trip_through_a_file(tmp_path, monkeypatch, calibrated):
    monkeypatch.setattr("aprilcli.io.artifacts.__version__", "0.0.9")
    bank = subsample(make_bank(4, dtype=torch.float16), 0.5)
    if calibrated:
        bank = replace(
            bank,
            calibration=Calibration(np.array([0.1, 0.2]), np.array([0.3, 0.4]), "held-out"),
            recipe=Recipe("vit:tag", "visa", "a" * 64, (0.0, 4095.0)),
            zero_shot=draw_zero_shot(4),
        )
    save_bank(bank, tmp_path / "bolt.safetensors")
    again = load_bank(tmp_path / "bolt.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.features, bank.features, strict=True))
    kept = ("rows_per_source", "spec", "object_name", "sources", "coreset_fraction", "created", "recipe")
    assert [getattr(again, name) for name in kept] == [getattr(bank, name) for name in kept]
    assert again.version == "0.0.9"
    assert (again.calibration is not None) == calibrated
    if again.calibration is not None:
        assert again.calibration.method == "held-out"
        assert again.calibration.map_maxima.tolist() == np.float32([0.3, 0.4]).tolist()
        for mine, theirs in zip(again.zero_shot, bank.zero_shot, strict=True):
            assert torch.equal(mine.views[0].text_scores, theirs.views[0].text_scores)
            assert all(map(torch.equal, mine.views[0].logits, theirs.views[0].logits))
    else:
        assert again.zero_shot == ()


def quantized_bank():
    pixels = np.arange(2 * 42 * 42 * 3, dtype=np.uint8).reshape(2, 42, 42, 3)
    recipe = Recipe("vit", engine="openvino", precision="int8")
    return replace(make_bank(2), recipe=recipe, quantization=QuantizationImages(pixels))


def test_an_int8_bank_keeps_its_quantization_images(tmp_path):
    bank = quantized_bank()
    save_bank(bank, tmp_path / "bolt.safetensors")
    again = load_bank(tmp_path / "bolt.safetensors")
    assert again.recipe == bank.recipe
    assert again.quantization.sha256 == bank.quantization.sha256


def test_a_bank_of_an_earlier_version_knows_no_precision(tmp_path):
    tensors, fields = to_artifact(make_bank(2))
    del fields["recipe"]["engine"], fields["recipe"]["precision"]
    write_artifact(tmp_path / "bolt.safetensors", KIND, tensors, fields)
    recipe = load_bank(tmp_path / "bolt.safetensors").recipe
    assert (recipe.engine, recipe.precision) == ("torch", None)


@pytest.mark.parametrize("what", ["missing", "another size", "floats", "of a float32 bank"])
def test_quantization_images_that_do_not_fit_are_refused(tmp_path, what):
    tensors, fields = to_artifact(quantized_bank())
    pixels = tensors.pop("quantization_images")
    if what == "another size":
        tensors["quantization_images"] = pixels[:, :41]
    elif what == "floats":
        tensors["quantization_images"] = pixels.float()
    elif what == "of a float32 bank":
        tensors["quantization_images"] = pixels
        fields["recipe"]["precision"] = "fp32"
    write_artifact(tmp_path / "bolt.safetensors", KIND, tensors, fields)
    assert "quantization_images" in refusal_of(tmp_path / "bolt.safetensors")


def test_an_int8_bank_without_its_images_cannot_be_made():
    with pytest.raises(ArtifactError, match="quantization_images"):
        replace(quantized_bank(), quantization=None)


def test_a_bank_keeps_its_thumbnails(tmp_path):
    bank = replace(make_bank(3), thumbnails=(b"first", b"", b"third!"))
    save_bank(bank, tmp_path / "bolt.safetensors")
    assert load_bank(tmp_path / "bolt.safetensors").thumbnails == (b"first", b"", b"third!")
    assert without(bank, [0]).thumbnails == (b"", b"third!")


def test_a_bank_of_an_earlier_version_has_no_thumbnails(tmp_path):
    for thumbnails in ((), (b"", b"")):
        save_bank(replace(make_bank(2), thumbnails=thumbnails), tmp_path / "bolt.safetensors")
        assert load_bank(tmp_path / "bolt.safetensors").thumbnails == ()
    assert "thumbnail_bytes" not in to_artifact(make_bank(2))[1]


@pytest.mark.parametrize("lengths", [[5, 3], [5, 5, 1], [-1, 9], [2**40, 9], [0, 0]])
def test_thumbnails_that_do_not_fit_are_refused(tmp_path, lengths):
    tensors, fields = to_artifact(replace(make_bank(2), thumbnails=(b"first", b"second")))
    fields["thumbnail_bytes"] = lengths
    write_artifact(tmp_path / "bolt.safetensors", KIND, tensors, fields)
    assert "thumbnail" in refusal_of(tmp_path / "bolt.safetensors")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("m", engine="onnx"),
        Recipe("m", precision="int4"),
        Recipe("model\n"),
        Recipe("m", "x" * 5000),
        Recipe("m", None, "", (5.0, 5.0)),
    ],
)
def test_settings_that_could_not_be_read_back_are_not_written(tmp_path, recipe):
    with pytest.raises(OutputError, match=r"bolt\.safetensors: a bank cannot keep these settings \(recipe\.\w+: "):
        save_bank(replace(make_bank(2), recipe=recipe), tmp_path / "bolt.safetensors")
    assert list(tmp_path.iterdir()) == []


def damage(tensors, fields, what):
    if what == "no spec":
        del fields["spec"]
    elif what == "a stage missing":
        del tensors["features.1"]
    elif what == "mixed types":
        tensors["features.1"] = tensors["features.1"].half()
    elif what == "integers":
        tensors |= {name: rows.int() for name, rows in tensors.items()}
    elif what == "another width":
        tensors["features.0"] = tensors["features.0"][:, 1:]
    elif what == "rows missing":
        tensors["features.0"] = tensors["features.0"][1:]
    elif what == "a source missing":
        fields["sources"] = fields["sources"][1:]
    elif what == "no sources":
        fields["sources"] = []
    elif what == "sources are text":
        fields["sources"] = "abc"
    elif what == "negative rows":
        fields["rows_per_source"] = [[10, 9, -1 + 9], [13, 0, -1]]
    elif what == "no fraction":
        fields["coreset_fraction"] = None
    elif what == "zero-shot of fewer":
        tensors["text_scores"] = torch.zeros(2)
    elif what == "foreign recipe":
        fields["recipe"] = {"code": "x"}
    elif what == "rows not of length 1":
        tensors["features.1"] = tensors["features.1"] * torch.linspace(1, 1.5, 12)[:, None]
    elif what == "text scores beyond 1":
        tensors["text_scores"] = torch.full((3,), 3e38)
    elif what == "integer text scores":
        tensors["text_scores"] = torch.ones(3, dtype=torch.int32)
    elif what == "huge logits":
        tensors |= {
            "text_scores": torch.ones(3),
            "logits.0": torch.full((3, 3, 3), -3e38),
            "logits.1": torch.ones(3, 2, 2),
        }
    elif isinstance(what, tuple):
        *path, last, value = what
        reduce(getitem, path, fields)[last] = value
    elif what == "calibration missing":
        fields["calibration_method"] = "held-out"


@pytest.mark.parametrize(
    "what",
    [
        "no spec",
        "a stage missing",
        "mixed types",
        "integers",
        "another width",
        "rows missing",
        "a source missing",
        "no sources",
        "sources are text",
        "negative rows",
        "no fraction",
        "zero-shot of fewer",
        "foreign recipe",
        "calibration missing",
        "rows not of length 1",
        "text scores beyond 1",
        "integer text scores",
        "huge logits",
        ("coreset_fraction", 0),
        ("coreset_fraction", -1.0),
        ("coreset_fraction", 10**400),
        ("coreset_fraction", INFINITE),
        ("rows_per_source", 0, 0, INFINITE),
        ("object", "word " * 41),
        ("object", "\ud800"),
        ("object", "a\0b"),
        ("object", ["a"]),
        ("recipe", "model", "\x1b[31m"),
        ("recipe", "model", "x" * 5000),
        ("recipe", "projector", "\ud800.pth"),
        ("recipe", "value_range", [5, 5]),
        ("recipe", "value_range", [0, 10**400]),
        ("sources", 0, "path", "\ud800"),
        ("sources", 0, "path", 5),
        ("sources", 0, "sha256", "\x1b[31m"),
        ("spec", []),
        ("spec", "x"),
        ("spec", "backbone", "\x1b[31m"),
        ("spec", "activation", "g" * 500),
        ("spec", "stages", [4, 2]),
        ("spec", "\x1b[31m", 1),
    ],
)
def test_a_damaged_bank_is_refused(tmp_path, what):
    path = tmp_path / "bolt.safetensors"
    tensors, fields = to_artifact(make_bank(3))
    fields = json.loads(json.dumps(fields))
    damage(tensors, fields, what)
    write_artifact(path, KIND, tensors, fields)
    path.write_bytes(path.read_bytes().replace(b"1e+308", b"1e+999"))
    message = refusal_of(path)
    if isinstance(what, tuple):
        assert what[0] in message


def test_zero_rows_and_file_names_of_any_bytes_are_valid(tmp_path):
    tensors, fields = to_artifact(make_bank(3))
    tensors["features.0"][4] = 0
    fields["sources"][0]["path"] = "new\nline \udcff.png"
    write_artifact(tmp_path / "bolt.safetensors", KIND, tensors, fields)
    assert load_bank(tmp_path / "bolt.safetensors").sources[0].path == "new\nline \udcff.png"
