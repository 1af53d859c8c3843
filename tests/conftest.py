"""Shared fixtures: the golden cases as real open_clip folders, and a part of the world kept out of the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aprilcli.core.backbone import Backbone, TorchImageEncoder, load_backbone
from aprilcli.core.detector import Detector
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.projector import Projector, save_projector
from aprilcli.core.prompts import encode_prompts

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
from weights_from_names import tensor as tensor_from_name  # noqa: E402  # data of the golden set, beside its numbers

CASES = {
    "golden-vit": (70, (2, 4, 6, 8)),
    "golden-vit-quickgelu": (56, (2, 4, 6, 8)),
    "golden-rn": (96, (1, 2, 3, 4)),
}
QUERIES = ("query0", "query1", "query2")


@pytest.fixture(autouse=True)
def _own_world(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's caches and settings, and the internet, out of every test."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "120")


@dataclass(frozen=True)
class GoldenCase:
    """A tiny CLIP in open_clip's local-dir form with what the authors' program computed on it."""

    folder: Path
    image_size: int
    stages: tuple[int, ...]
    numbers: dict[str, torch.Tensor]
    backbone: Backbone
    projector: Projector

    @property
    def encoder(self) -> TorchImageEncoder:
        """The image encoder alone."""
        return self.backbone.encoder

    def detector(
        self, projector: Projector | None = None, bank: MemoryBank | None = None, object_name: str = "object"
    ) -> Detector:
        """Make a detector of this model."""
        return Detector(self.encoder, encode_prompts(self.backbone.text, object_name), projector, bank, object_name)

    def pixels(self, picture: str) -> torch.Tensor:
        """Prepare a golden picture as the tool does: [1, 3, S, S]."""
        from aprilcli.io.images import read_image, to_pixels

        source = read_image(GOLDEN / "images" / f"{picture}.png")
        spec = self.backbone.spec
        return torch.from_numpy(to_pixels(source, spec.image_size, spec.mean, spec.std))[None]


def _write_folder(folder: Path, name: str) -> None:
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    model = open_clip.CLIP(**config)
    state = {key: tensor_from_name(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    folder.mkdir(parents=True)
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


@pytest.fixture(scope="session", params=CASES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GoldenCase:
    """Each golden case in turn, loaded the way a user's folder is."""
    return _golden_case(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def golden_vit(tmp_path_factory: pytest.TempPathFactory) -> GoldenCase:
    """The GELU case alone, for tests of the flow around the method."""
    return _golden_case("golden-vit", tmp_path_factory)


_cases: dict[str, GoldenCase] = {}


def _golden_case(name: str, factory: pytest.TempPathFactory) -> GoldenCase:
    if name not in _cases:
        image_size, stages = CASES[name]
        folder = factory.mktemp("golden") / name
        _write_folder(folder, name)
        backbone = load_backbone(str(folder), image_size=image_size, stages=stages, device="cpu")
        projector = Projector(backbone.spec)
        weights = {
            key: tensor_from_name(f"projector.{key}", tuple(v.shape)) for key, v in projector.state_dict().items()
        }
        projector.load_state_dict(weights)
        projector.requires_grad_(False)
        save_projector(projector, folder / "projector.safetensors")
        numbers = load_file(GOLDEN / f"{name}.safetensors")
        _cases[name] = GoldenCase(folder, image_size, stages, numbers, backbone, projector)
    return _cases[name]


def draw_photo(path: Path, seed: int = 0, size_wh: tuple[int, int] = (60, 40)) -> Path:
    """Write a small picture of noise, its own for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that this process may not write to; root is nobody for a while."""
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
    folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def hear_ctrl_c() -> None:
    """Run in a child before its program: where the tests run in the background, it would inherit a deaf ear."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
