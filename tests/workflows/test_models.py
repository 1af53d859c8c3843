"""Models with timm's towers, from training to evaluation, through the command line."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers import (
    change_config,
    draw_images,
    draw_object,
    error_line,
    read_rows,
    run_eval,
    run_scan,
    run_train,
)
from helpers import run as run_command
from safetensors.torch import load_file, save_file
from timm_models import MODELS, SIGLIP_SCALE, build, write_model

from aprilcli.core.model_loading import load_backbone
from aprilcli.core.prompts import encode_prompts
from aprilcli.errors import ArtifactError, OptionError

EXPECTED = {  # stages, widths, grids, logit scale
    "convnext": ((1, 2, 3, 4), (24, 32, 48, 64), (16, 8, 4, 2), 100.0),
    "siglip": ((2, 4, 6, 9), (96,) * 4, (4,) * 4, SIGLIP_SCALE),
    "pe-core": ((3, 6, 9, 12), (192,) * 4, (4,) * 4, 100.0),
}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "siglip":
        pytest.importorskip("transformers")
    return write_model(tmp_path / request.param, request.param)


def test_a_model_trains_enrolls_scans_and_evaluates(folder: Path, tmp_path: Path) -> None:
    stages, widths, sides, scale = EXPECTED[folder.name]
    model = ["--model", str(folder)]
    parts = draw_object(tmp_path / "parts" / "bolt", seed=0, train=1).parent
    images = draw_images(tmp_path / "images", 2)
    projector = tmp_path / "projector.safetensors"
    trained = run_train(parts, projector, model, "--epochs", 1)
    assert trained.exit_code == 0, trained.stderr
    given = [*model, "--projector", projector]
    enrolled = run_command("enroll", images, "--part", "bolt", "--banks", tmp_path / "banks", *given, "--device", "cpu")
    assert enrolled.exit_code == 0, enrolled.stderr
    assert run_scan(images, "--out", tmp_path / "out", "--part", "bolt", "--banks", tmp_path / "banks").exit_code == 0
    rows = read_rows(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(0 < float(row["text_score"]) < 1 and float(row["map_max"]) >= 0 for row in rows)
    spec = json.loads((tmp_path / "out" / "run.json").read_text())["model"]
    assert (tuple(spec["stages"]), tuple(spec["stage_widths"])) == (stages, widths)
    assert spec["logit_scale"] == pytest.approx(scale)
    assert (spec["mean"], spec["std"]) == ([0.5] * 3, [0.5] * 3)
    encoder = load_backbone(str(folder), device="cpu").encoder
    assert encoder.grids == tuple((side, side) for side in sides)
    assert encoder.spec.fingerprint == spec["fingerprint"]
    evaluated = run_eval(parts, tmp_path / "eval", *given, "--shots", "0,1", "--seeds", 1)
    assert evaluated.exit_code == 0, evaluated.stderr


def test_another_size_is_the_same_model(folder: Path) -> None:
    native, other = (load_backbone(str(folder), image_size=size, device="cpu").encoder for size in (None, 96))
    assert native.spec.fingerprint == other.spec.fingerprint
    assert (native.spec.image_size, other.spec.image_size) == (64, 96)
    features = other.encode(torch.randn(2, 3, 96, 96).numpy())
    assert features.grids == other.grids
    assert features.image.shape == (2, MODELS[folder.name]["embed_dim"])


def test_prompts_that_a_text_tower_would_truncate_are_refused(folder: Path) -> None:
    text = load_backbone(str(folder), device="cpu").text
    assert encode_prompts(text, "bolt").isfinite().all()
    with pytest.raises(OptionError, match=r"more than the \d\d tokens that .* reads; use a shorter object name"):
        encode_prompts(text, "1 " * 99)


def test_text_features_are_those_of_open_clip(folder: Path) -> None:
    text = load_backbone(str(folder), device="cpu").text
    model = build(MODELS[folder.name])  # the same seed: the same weights
    tokens = text._tokenizer(["a photo of a bolt.", "there is a damaged bolt in the scene."])
    assert tokens.shape == (2, MODELS[folder.name]["text_cfg"]["context_length"])
    features = text.encode(["a photo of a bolt.", "there is a damaged bolt in the scene."])
    torch.testing.assert_close(features, model.encode_text(tokens, normalize=True).detach(), atol=1e-6, rtol=0)


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return write_model(tmp_path / "siglip", "siglip")


def test_a_tokenizer_of_more_words_than_the_tower_is_refused(siglip: Path) -> None:
    path = siglip / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["bolt"] = 4000
    path.write_text(json.dumps(tokenizer))
    text = load_backbone(str(siglip), device="cpu").text
    with pytest.raises(ArtifactError, match="its tokenizer has more words than its text tower"):
        encode_prompts(text, "bolt")


def test_a_changed_tokenizer_gives_other_text_features(siglip: Path) -> None:
    before = encode_prompts(load_backbone(str(siglip), device="cpu").text, "bolt")
    path = siglip / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    words["bolt"], words["nut"] = words["nut"], words["bolt"]
    path.write_text(json.dumps(tokenizer))
    assert not torch.equal(encode_prompts(load_backbone(str(siglip), device="cpu").text, "bolt"), before)


def test_a_folder_without_its_tokenizer_says_what_to_copy(siglip: Path) -> None:
    (siglip / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing, but .* names the tokenizer somebody/tokeni"):
        load_backbone(str(siglip), device="cpu")


def test_a_folders_tokenizer_runs_no_code_and_asks_no_hub(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_, **__: pytest.fail("a connection"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    encode_prompts(load_backbone(str(siglip), device="cpu").text, "bolt")
    witness = tmp_path / "ran"
    (siglip / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass Evil: pass\n")
    settings = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (siglip / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactError, match="its tokenizer cannot be loaded"):
        encode_prompts(load_backbone(str(siglip), device="cpu").text, "bolt")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("part", "name", "value", "said"),
    [
        ("vision_cfg", "timm_model_name", "hf-hub:somebody/model", "timm has no model hf-hub:somebody/model"),
        ("vision_cfg", "timm_model_name", "naflexvit_base_patch16_gap", "variable resolution are not supported"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224", "weights, its weights file holds"),
        ("vision_cfg", "timm_model_kwargs", {"checkpoint_path": "/etc/passwd"}, "timm_model_kwargs"),
        ("vision_cfg", "timm_pool", "nonsense", "not an open_clip configuration"),
        ("vision_cfg", "timm_proj", "none", "other widths or grids than it declares"),
        ("text_cfg", "width", -32, "not an open_clip configuration"),
    ],
)
def test_unusable_configurations_are_refused_in_one_line(
    tmp_path: Path, part: str, name: str, value: object, said: str
) -> None:
    folder = write_model(tmp_path / "pe-core", "pe-core")
    change_config(folder, lambda config: config[part].update({name: value}))
    assert said in error_line(
        run_scan(draw_images(tmp_path / "images", 1), "--model", folder, "--out", tmp_path / "out")
    )


def test_a_checkpoint_of_another_trunk_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "pe-core", "pe-core")
    other = write_model(tmp_path / "convnext", "convnext")
    shutil.copy(other / "open_clip_model.safetensors", folder)
    with warnings.catch_warnings(), pytest.raises(ArtifactError, match="pe-core"):
        load_backbone(str(folder), device="cpu")


def test_a_logit_scale_that_overflows_is_refused(siglip: Path) -> None:
    weights = load_file(siglip / "open_clip_model.safetensors")
    weights["logit_scale"].fill_(100.0)
    save_file(weights, siglip / "open_clip_model.safetensors")
    with pytest.raises(ArtifactError, match="its logit scale is inf; download or copy the model again"):
        load_backbone(str(siglip), device="cpu")
