"""Shared fixtures: the golden cases as open_clip folders; tests without the user's settings and the internet."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# huggingface_hub reads its settings once, when it is imported; processes that tests start inherit them.
_EMPTY_CACHE = tempfile.TemporaryDirectory(prefix="empty-hub-cache-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in as many processes as there are cores
os.environ["HF_HUB_CACHE"] = _EMPTY_CACHE.name

import open_clip  # noqa: E402  # after the settings of huggingface_hub
import pytest  # noqa: E402  # after the settings of huggingface_hub
from helpers import GOLDEN, GoldenCase, draw_object  # noqa: E402  # after the settings of huggingface_hub
from safetensors.torch import load_file, save_file  # noqa: E402  # after the settings of huggingface_hub
from weights_from_names import tensor as tensor_from_name  # noqa: E402  # in tests/golden, beside the golden numbers

from aprilcli.core.model_loading import load_backbone  # noqa: E402  # after the settings of huggingface_hub
from aprilcli.core.projector import Projector, save_projector  # noqa: E402  # after the settings of huggingface_hub

CASES = {
    "golden-vit": (70, (2, 4, 6, 8)),
    "golden-vit-quickgelu": (56, (2, 4, 6, 8)),
    "golden-rn": (96, (1, 2, 3, 4)),
}


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's caches and settings out of every test."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def _write_folder(folder: Path, name: str) -> None:
    config = json.loads((GOLDEN / f"{name}.json").read_text())
    model = open_clip.CLIP(**config)
    state = {key: tensor_from_name(key, tuple(value.shape)) for key, value in model.state_dict().items()}
    folder.mkdir(parents=True)
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


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


@pytest.fixture(scope="session", params=CASES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GoldenCase:
    """Each golden case in turn, loaded as a user's folder is."""
    return _golden_case(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def golden_vit(tmp_path_factory: pytest.TempPathFactory) -> GoldenCase:
    """The GELU case alone, for tests of the flow around the method."""
    return _golden_case("golden-vit", tmp_path_factory)


@pytest.fixture(scope="session", params=[name for name in CASES if name != "golden-vit"])
def other_golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GoldenCase:
    """Each golden case that is not ``golden_vit``, in turn."""
    return _golden_case(request.param, tmp_path_factory)


@pytest.fixture
def model(golden_vit: GoldenCase) -> list[str]:
    """The options that select ``golden_vit`` on the CPU."""
    return [*golden_vit.options, "--device", "cpu"]


@pytest.fixture
def bare_model(golden_vit: GoldenCase, tmp_path: Path) -> Path:
    """A model folder without a projector."""
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "bare"))
    (folder / "projector.safetensors").unlink()
    return folder


@pytest.fixture
def banks(tmp_path: Path) -> Path:
    """The folder for banks; it does not exist yet."""
    return tmp_path / "banks"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A labeled data set of two objects in MVTec AD's layout."""
    draw_object(tmp_path / "parts" / "bolt", 100)
    draw_object(tmp_path / "parts" / "metal_nut", 200)
    return tmp_path / "parts"


@pytest.fixture
def read_only_folder() -> Iterator[Path]:
    """A folder that this process may not write to; root becomes another user meanwhile."""
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
