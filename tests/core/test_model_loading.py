"""Loading models: what is refused; the image encoder alone has the same features, and needs the same weights."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import GoldenCase, change_config
from open_clip.transformer import TextTransformer
from safetensors.torch import load_file, save, save_file
from timm_models import MODELS, build, write_model

from aprilcli.core import model_loading
from aprilcli.core.model_loading import load_backbone, load_image_encoder
from aprilcli.core.prompts import encode_prompts
from aprilcli.errors import ArtifactError, BackboneError, OptionError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": (2, 4, 6, 9)}, "has 8 stages"),
        ({"stages": (4, 2)}, "ascending order"),
        ({"stages": (0, 2)}, "ascending order"),
        ({"image_size": 60}, "multiple of 14"),
        ({"device": "mps"}, "no such device"),
    ],
)
def test_options_that_do_not_fit_are_refused(golden_vit: GoldenCase, options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        load_backbone(str(golden_vit.folder), **{"device": "cpu", **options})  # type: ignore[arg-type]


def test_an_unknown_model_is_named_with_the_available_ones() -> None:
    with pytest.raises(BackboneError, match="unknown model ViT-Z-99"):
        load_backbone("ViT-Z-99")
    with pytest.raises(BackboneError, match=r"no pretrained weights nosuchtag; there are: openai"):
        load_backbone("ViT-L-14-336:nosuchtag")


def test_missing_weights_name_the_model_the_reason_and_three_remedies() -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("paper", device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("ViT-L-14-336:openai", "copy", "give a model folder", "use the model tiny"):
        assert part in message


def test_broken_folders_are_refused_in_one_line(golden_vit: GoldenCase, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(golden_vit.folder, tmp_path / name))

    missing = broken("missing")
    (missing / "open_clip_model.safetensors").unlink()
    truncated = broken("truncated")
    weights = (truncated / "open_clip_model.safetensors").read_bytes()
    (truncated / "open_clip_model.safetensors").write_bytes(weights[: len(weights) // 2])
    garbled = broken("garbled")
    (garbled / "open_clip_config.json").write_text("{]")
    other = broken("other")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 32
    (other / "open_clip_config.json").write_text(json.dumps(config))
    for folder in (missing, truncated, garbled, other):
        with pytest.raises(ArtifactError) as caught:
            load_backbone(str(folder), device="cpu")
        assert folder.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nan_weights_are_refused(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "nan"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0] = torch.nan
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ArtifactError, match="NaN"):
        load_backbone(str(folder), device="cpu")


def test_a_pickle_under_a_safetensors_name_runs_nothing(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "pickled"))
    witness = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(witness),)

    (folder / "open_clip_model.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ArtifactError):
        load_backbone(str(folder), device="cpu")
    assert not witness.exists()


def test_a_folder_named_tiny_is_not_the_embedded_model(golden_vit: GoldenCase, tmp_path: Path) -> None:
    assert load_backbone("tiny", device="cpu").notes
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "tiny"))
    assert load_backbone(str(folder), device="cpu").notes == ()


def test_a_name_longer_than_any_path_is_unknown() -> None:
    with pytest.raises(BackboneError, match="unknown model"):
        load_backbone("y" * 300)


def test_a_huge_image_size_is_wrong_usage(golden_vit: GoldenCase) -> None:
    with pytest.raises(OptionError, match="the largest is 4096"):
        load_backbone(str(golden_vit.folder), image_size=7 * 10**6, device="cpu")


def test_a_custom_text_tower_larger_than_its_file_is_refused_before_it_is_built(
    golden_vit: GoldenCase, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "custom"))
    change_config(
        folder, lambda config: (config.update(custom_text=True), config["text_cfg"].update(vocab_size=2 * 10**7))
    )
    with pytest.raises(ArtifactError, match=r"it declares 640,\d+,\d+ weights"):
        load_backbone(str(folder), device="cpu")


def test_a_folder_name_with_control_characters_is_refused(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "\x1b[31mred"))
    with pytest.raises(BackboneError, match=r"x1b\[31mred: a model folder's path needs printable UTF-8"):
        load_backbone(str(folder), device="cpu")


def assert_same_features(model: str, size: int | None, stages: tuple[int, ...] | None) -> None:
    whole = load_backbone(model, image_size=size, stages=stages, device="cpu").encoder
    alone = load_image_encoder(model, whole.spec, device="cpu")
    pixels = torch.randn(2, 3, whole.spec.image_size, whole.spec.image_size).numpy()
    mine, theirs = alone.encode(pixels), whole.encode(pixels)
    assert (alone.spec, alone.grids, alone.precision) == (whole.spec, whole.grids, whole.precision)
    assert torch.equal(mine.image, theirs.image)
    assert mine.grids == theirs.grids
    assert all(map(torch.equal, mine.patch_tokens, theirs.patch_tokens))


def test_an_image_encoder_alone_has_the_features_of_the_whole_model(golden: GoldenCase) -> None:
    assert_same_features(str(golden.folder), golden.image_size, golden.stages)
    assert_same_features(str(golden.folder), None, None)


@pytest.mark.parametrize("size", [None, 96])
@pytest.mark.parametrize("name", ["convnext", "pe-core"])
def test_an_image_encoder_alone_has_the_features_of_the_whole_model_with_timms_towers(
    tmp_path: Path, name: str, size: int | None
) -> None:
    assert_same_features(str(write_model(tmp_path / name, name)), size, None)


def test_a_text_tower_that_is_not_used_takes_no_memory(golden_vit: GoldenCase, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    real = TextTransformer.__init__

    def note(self: TextTransformer, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)
        built.append(self.positional_embedding.device.type)

    monkeypatch.setattr(TextTransformer, "__init__", note)
    load_image_encoder(str(golden_vit.folder), golden_vit.backbone.spec, device="cpu")
    assert set(built) == {"meta"}


@pytest.mark.parametrize("weight", ["visual.proj", "visual.positional_embedding", "text_projection"])
def test_other_weights_than_the_specs_are_refused(golden_vit: GoldenCase, tmp_path: Path, weight: str) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "golden-vit"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights[weight] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    spec = golden_vit.backbone.spec
    with pytest.raises(ArtifactError, match=f"fingerprint [0-9a-f]{{12}}, not golden-vit's {spec.fingerprint[:12]}"):
        load_image_encoder(str(folder), spec, device="cpu")
    with pytest.raises(ArtifactError, match="fingerprint"):
        load_image_encoder(str(golden_vit.folder), replace(spec, fingerprint="0" * 64), device="cpu")


@pytest.fixture
def settled(golden_vit: GoldenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that was written long ago, and a cache of its own."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("aprilcli.io.cache._SETTLED_S", -1.0)
    return Path(shutil.copytree(golden_vit.folder, tmp_path / "settled"))


def count_digests(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that gets an entry for each fingerprint that is computed."""
    digests: list[object] = []
    real = model_loading.model_fingerprint
    monkeypatch.setattr(model_loading, "model_fingerprint", lambda *given: digests.append(1) or real(*given))
    return digests


def test_an_unchanged_weights_file_is_digested_once(
    golden_vit: GoldenCase, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = count_digests(monkeypatch)
    found = [load_backbone(str(settled), device="cpu", image_size=size).spec.fingerprint for size in (56, 70)]
    assert found == [golden_vit.backbone.spec.fingerprint] * 2
    assert len(digests) == 1


def test_a_weights_file_that_has_just_been_written_is_digested_each_time(
    golden_vit: GoldenCase, settled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aprilcli.io.cache._SETTLED_S", 3600.0)
    digests = count_digests(monkeypatch)
    for _ in range(2):
        load_backbone(str(settled), device="cpu")
    assert len(digests) == 2


def test_weights_that_become_nan_are_refused_after_a_good_load(settled: Path) -> None:
    load_backbone(str(settled), device="cpu")
    weights = load_file(settled / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0] = torch.nan
    save_file(weights, settled / "open_clip_model.safetensors")
    for _ in range(2):
        with pytest.raises(ArtifactError, match="NaN"):
            load_backbone(str(settled), device="cpu")


def test_a_changed_configuration_is_another_fingerprint(settled: Path) -> None:
    before = load_backbone(str(settled), device="cpu").spec.fingerprint
    change_config(settled, lambda config: config.update(quick_gelu=True))
    assert load_backbone(str(settled), device="cpu").spec.fingerprint != before


def test_a_weights_file_may_change_once_both_encoders_have_been_used(settled: Path) -> None:
    backbone = load_backbone(str(settled), device="cpu")
    pixels = torch.randn(1, 3, 56, 56).numpy()
    expected, sentences = backbone.encoder.encode(pixels).image, backbone.text.encode(["a bolt", "a nut"])
    with (settled / "open_clip_model.safetensors").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(bytes(size))  # in place, unlike a rename
    assert torch.equal(backbone.encoder.encode(pixels).image, expected)
    assert torch.equal(backbone.text.encode(["a bolt", "a nut"]), sentences)


def test_half_precision_weights_are_computed_in_float32(golden_vit: GoldenCase, tmp_path: Path) -> None:
    halved, whole = (Path(shutil.copytree(golden_vit.folder, tmp_path / name)) for name in ("half", "whole"))
    weights = {name: tensor.half() for name, tensor in load_file(halved / "open_clip_model.safetensors").items()}
    save_file(weights, halved / "open_clip_model.safetensors")
    save_file({n: w.float() for n, w in weights.items()}, whole / "open_clip_model.safetensors")
    backbones = [load_backbone(str(folder), device="cpu") for folder in (halved, whole)]
    pixels = torch.randn(1, 3, 56, 56).numpy()
    assert len({backbone.spec.fingerprint for backbone in backbones}) == 1
    assert len({backbone.encoder.encode(pixels).image.numpy().tobytes() for backbone in backbones}) == 1
    assert len({backbone.text.encode(["a bolt"]).numpy().tobytes() for backbone in backbones}) == 1


@pytest.mark.parametrize(("name", "size"), [("convnext", 64), ("pe-core", 384)])  # the sizes of timm's trunks
def test_image_features_are_those_of_open_clip(tmp_path: Path, name: str, size: int) -> None:
    backbone = load_backbone(str(write_model(tmp_path / name, name)), image_size=size, device="cpu")
    model = build(MODELS[name])  # the same seed: the same weights
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(backbone.encoder.encode(pixels.numpy()).image, expected, atol=1e-6, rtol=0)


def test_a_weights_file_that_changes_before_prompts_are_encoded_is_refused(settled: Path) -> None:
    backbone = load_backbone(str(settled), device="cpu")
    weights = load_file(settled / "open_clip_model.safetensors")
    good = encode_prompts(load_backbone(str(settled), device="cpu").text, "bolt")
    content = (settled / "open_clip_model.safetensors").read_bytes()
    weights["text_projection"] = -weights["text_projection"]
    (settled / "open_clip_model.safetensors").write_bytes(save(weights))  # in place, unlike a rename
    with pytest.raises(ArtifactError, match="its weights file was changed while it was being loaded; start again"):
        encode_prompts(backbone.text, "nut")
    (settled / "open_clip_model.safetensors").write_bytes(content)
    assert torch.equal(encode_prompts(load_backbone(str(settled), device="cpu").text, "bolt"), good)
