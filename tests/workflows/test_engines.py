"""The engine openvino and its precisions through the command line: banks, refusals, and records of runs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    draw_images,
    draw_object,
    error_line,
    read_record,
    read_rows,
    run,
    run_eval,
    run_train,
)
from timm_models import SMALL_VIT, write_config
from typer.testing import Result

from aprilcli import Detector
from aprilcli.core.bank_file import load_bank
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.quantization import QuantizationImages
from aprilcli.errors import ArtifactError
from aprilcli.io.images import read_image

SAMPLES = sorted((Path(__file__).parents[1] / "samples").glob("*.png"))
OPENVINO = ("--engine", "openvino")
INT8 = (*OPENVINO, "--precision", "int8")


def record_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text()))


def scores_of(out: Path) -> list[float]:
    return [float(row["score"]) for row in read_rows(out)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "images", 3)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The option that selects a small ViT without a projector, so that maps show the distances to a bank alone."""
    return ["--model", str(write_config(tmp_path_factory.mktemp("models") / "small", SMALL_VIT))]


@pytest.fixture(scope="session")
def enrolled(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks of the same three images: plain (torch, fp32), bf16 (torch), openvino (fp32) and int8."""
    folder = tmp_path_factory.mktemp("engines")
    images = draw_images(folder / "images", 3)
    settings = {"plain": (), "bf16": ("--precision", "bf16"), "openvino": OPENVINO, "int8": INT8}
    for part, given in settings.items():
        result = run("enroll", images, "--part", part, "--banks", folder / "banks", *small, *given)
        assert result.exit_code == 0, result.stderr
    return folder / "banks"


def scan(images: Path, out: Path, banks: Path, part: str, *given: object) -> Result:
    return run("scan", images, "--out", out, "--banks", banks, "--part", part, *given)


def bank_of(banks: Path, part: str) -> MemoryBank:
    return load_bank(banks / f"{part}.safetensors")


def test_tiny_scans_as_with_torch(tmp_path: Path) -> None:
    for engine in ("torch", "openvino"):
        given = ("--image-size", 256, "--engine", engine)
        assert run("scan", *SAMPLES[:3], "--out", tmp_path / engine, *given).exit_code == 0
    record = record_of(tmp_path / "openvino")
    assert (record["engine"], record["device"], record["precision"]) == ("openvino", "cpu", "fp32")
    assert "openvino" in record["versions"]
    assert "quantization" not in record
    assert scores_of(tmp_path / "openvino") == pytest.approx(scores_of(tmp_path / "torch"), abs=1e-4)


@pytest.mark.parametrize("part", ["plain", "openvino"])
def test_float32_banks_can_be_used_with_both_engines(enrolled: Path, images: Path, tmp_path: Path, part: str) -> None:
    assert (bank_of(enrolled, part).recipe.engine == "openvino") == (part == "openvino")
    for engine in ("torch", "openvino"):
        assert scan(images, tmp_path / engine, enrolled, part, "--engine", engine).exit_code == 0
        assert record_of(tmp_path / engine)["engine"] == engine
    assert scan(images, tmp_path / "silent", enrolled, part).exit_code == 0
    assert record_of(tmp_path / "silent")["engine"] == ("openvino" if part == "openvino" else "torch")
    assert scores_of(tmp_path / "torch") == pytest.approx(scores_of(tmp_path / "openvino"), abs=1e-3)


def test_an_int8_bank_keeps_what_it_was_quantized_with(
    enrolled: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = bank_of(enrolled, "int8")
    assert (bank.recipe.engine, bank.recipe.precision) == ("openvino", "int8")
    assert bank.quantization is not None
    assert bank.quantization.pixels.shape == (3, 56, 56, 3)
    others = draw_images(tmp_path / "others", 2, first_seed=50)
    assert scan(others, tmp_path / "out", enrolled, "int8").exit_code == 0
    record = record_of(tmp_path / "out")
    assert record["precision"] == "int8"
    assert record["quantization"] == {"images": 3, "sha256": bank.quantization.sha256}
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "empty"))  # another machine
    assert scan(others, tmp_path / "again", enrolled, "int8").exit_code == 0
    assert scores_of(tmp_path / "again") == scores_of(tmp_path / "out")
    # The references are found in the bank, as they went through the same model.
    assert scan(images, tmp_path / "references", enrolled, "int8").exit_code == 0
    assert max(float(row["map_max"]) for row in read_rows(tmp_path / "references")) < 0.01
    shown = run("inspect", enrolled / "int8.safetensors").stdout
    assert "int8, quantized on 3 images" in shown


def test_references_are_appended_with_the_banks_own_quantization(enrolled: Path, tmp_path: Path) -> None:
    banks = Path(shutil.copytree(enrolled, tmp_path / "banks"))
    more = draw_images(tmp_path / "more", 1, first_seed=9)
    result = run("enroll", more, "--part", "int8", "--banks", banks, "--append")
    assert result.exit_code == 0, result.stderr
    before, after = bank_of(enrolled, "int8"), bank_of(banks, "int8")
    assert (len(before.sources), len(after.sources)) == (3, 4)
    assert before.quantization is not None
    assert after.quantization is not None
    assert after.quantization.sha256 == before.quantization.sha256


def test_a_resumed_int8_scan_needs_the_same_first_images(small: list[str], images: Path, tmp_path: Path) -> None:
    (images / "000, broken.png").write_bytes(b"broken")  # passed over
    arguments = ["scan", images, "--out", tmp_path / "out", *small, *INT8]
    assert run(*arguments).exit_code == 3
    assert record_of(tmp_path / "out")["quantization"]["images"] == 3
    assert run(*arguments, "--resume").exit_code == 3
    (images / "000.png").unlink()
    message = error_line(run(*arguments, "--resume", "--quiet"))
    assert "quantization.images: 3 then, 2 now" in message


@pytest.mark.parametrize(
    ("part", "given", "message"),
    [
        ("int8", ("--precision", "fp32"), "precision int8, not fp32: omit --precision"),
        ("int8", ("--engine", "torch"), "engine openvino, not torch: omit --engine"),
        ("plain", INT8, "engine torch, not openvino; precision fp32, not int8: omit --engine and --precision"),
        ("openvino", INT8, "precision fp32, not int8: omit --precision"),
        ("plain", ("--precision", "bf16"), "precision fp32, not bf16: omit --precision"),
        ("bf16", ("--precision", "fp32"), "precision bf16, not fp32: omit --precision"),
        ("bf16", OPENVINO, "engine torch, not openvino: omit --engine"),
        ("int8", ("--device", "cuda"), "device cuda: the engine openvino runs on the CPU"),
    ],
)
def test_other_arithmetic_than_the_banks_is_refused(
    enrolled: Path, images: Path, tmp_path: Path, part: str, given: tuple[str, ...], message: str
) -> None:
    assert message in error_line(scan(images, tmp_path / "out", enrolled, part, *given))


def test_a_detector_refuses_a_bank_of_another_quantization(enrolled: Path, small: list[str]) -> None:
    bank = bank_of(enrolled, "int8")
    plain = Detector.load(small[1], engine="openvino")
    with pytest.raises(ArtifactError, match="engine openvino and precision int8, not with openvino and fp32"):
        plain.with_bank(bank)
    detector = Detector.load(bank=bank)
    assert detector.encoder.precision == "int8"
    other = QuantizationImages.first_of([read_image(SAMPLES[0])], 56)
    with pytest.raises(ArtifactError, match=r"a model quantized on images \w{12}, not \w{12}; use the images that"):
        detector.with_bank(replace(bank, quantization=other))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--precision", "int8"), "precision int8: only the engine openvino computes in it"),
        ((*OPENVINO, "--device", "cuda"), "device cuda: the engine openvino runs on the CPU"),
        ((*OPENVINO, "--precision", "fp16"), "precision fp16: the engine openvino does not compute in it"),
    ],
)
def test_what_an_engine_cannot_run_is_wrong_usage(
    small: list[str], images: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    result = run("scan", images, "--out", tmp_path / "out", *small, *given)
    assert message in error_line(result)
    assert result.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_missing_device_is_not_taken_for_a_setting_of_the_bank(enrolled: Path, images: Path, tmp_path: Path) -> None:
    message = error_line(scan(images, tmp_path / "out", enrolled, "plain", "--device", "cuda"))
    assert message.startswith("aprilcli: error: device cuda: this machine has no such device")


def test_bfloat16_runs_where_the_processor_computes_in_it(small: list[str], images: Path, tmp_path: Path) -> None:
    import openvino

    given = (*small, *OPENVINO, "--precision", "bf16")
    result = run("scan", images, "--out", tmp_path / "out", *given)
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert result.exit_code == 0, result.stderr
        assert record_of(tmp_path / "out")["precision"] == "bf16"
    else:
        assert "precision bf16: this processor does not compute in it; use fp32" in error_line(result)


def test_without_the_package_only_float32_banks_can_be_used(
    enrolled: Path, small: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run("scan", images, "--out", tmp_path / "out", *small, *OPENVINO)
    assert error_line(result).endswith("the engine openvino needs openvino; run: pip install 'aprilcli[openvino]'")
    assert "the engine openvino needs openvino; run" in error_line(scan(images, tmp_path / "out", enrolled, "int8"))
    result = scan(images, tmp_path / "out", enrolled, "openvino")
    assert result.exit_code == 0
    assert "the bank was made with the engine openvino, which is not installed: using torch" in result.stderr
    assert record_of(tmp_path / "out")["engine"] == "torch"


def test_eval_measures_the_same_and_quantizes_on_training_images_of_all_objects(
    small: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "parts"
    for number, name in enumerate(("bolt", "nut")):
        draw_object(data / name, 100 * number, train=2)
    settings = [*small, "--shots", "0,1", "--seeds", "1"]
    for name, given in (("torch", ()), ("openvino", OPENVINO), ("int8", INT8)):
        result = run_eval(data, tmp_path / name, *settings, *given)
        assert result.exit_code == 0, result.stderr
    for mine, theirs in zip(read_rows(tmp_path / "openvino"), read_rows(tmp_path / "torch"), strict=True):
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), abs=1e-3)
    record = read_record(tmp_path / "int8")
    assert (record["engine"], record["precision"], record["quantization"]["images"]) == ("openvino", "int8", 4)


def test_training_refuses_int8(small: list[str], parts: Path, tmp_path: Path) -> None:
    result = run_train(parts, tmp_path / "p.safetensors", small, "--precision", "int8", "--quiet")
    assert "precision int8: only the engine openvino computes in it" in error_line(result)
