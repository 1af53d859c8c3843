"""`eval` through the command line, on a real (tiny) open_clip folder: numbers recomputed, files, messages."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from helpers import (
    EVAL_SETTINGS,
    GoldenCase,
    draw_image,
    draw_mask,
    draw_object,
    make_gray,
    read_csv,
    read_record,
    run_and_signal,
    run_eval,
)
from PIL import Image
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.core.memory_bank import Source, build
from aprilcli.core.metrics import METRICS, PixelScores, image_metrics, vand
from aprilcli.core.projector import save_projector
from aprilcli.core.resizing import resize_mask
from aprilcli.io.datasets import read_dataset
from aprilcli.io.images import read_image
from aprilcli.io.masks import read_mask
from aprilcli.workflows import evaluate, loading


def renamed_projector(golden_vit: GoldenCase, path: Path, trained_on: str, **fields: object) -> Path:
    """Save the golden projector with another record of its training data."""
    kept = golden_vit.projector.trained_on, golden_vit.projector.fields
    golden_vit.projector.trained_on, golden_vit.projector.fields = trained_on, fields
    save_projector(golden_vit.projector, path)
    golden_vit.projector.trained_on, golden_vit.projector.fields = kept
    return path


def measure_directly(golden: GoldenCase, root: Path, name: str, references: list[str], fusion: str) -> dict[str, float]:
    """Measure one setting with a detector and its own bank."""
    item = next(item for item in read_dataset(root).objects if item.name == name)
    bank = None
    if references:
        encoder = golden.detector(golden.projector, None, item.category)
        tokens = [
            golden.encoder.encode(
                torch.from_numpy(encoder.prepare(read_image(root / path)).whole[0][None])
            ).patch_tokens
            for path in references
        ]
        sources = [Source(path, path) for path in references]
        bank = build(tokens, sources, golden.backbone.spec, item.category, dtype=torch.float32)
        fingerprint = encoder.projector_fingerprint
        bank = type(bank)(**{**vars(bank), "recipe": type(bank.recipe)(projector_fingerprint=fingerprint)})
    detector = golden.detector(golden.projector, bank, item.category)
    detections = [detector.detect_file(image.path) for image in item.test]
    pixels = PixelScores()
    for image, detection in zip(item.test, detections, strict=True):
        mask = resize_mask(read_mask(image, (40, 60)), (golden.image_size, golden.image_size))
        pixels.add(detection.anomaly_map, mask if mask.any() else None)
    scores = np.array([detection.score for detection in detections])
    if fusion == "authors" and references:
        maxima = np.array([detection.map_max for detection in detections])
        scaled = (maxima - maxima.min()) / (maxima.max() - maxima.min())
        scores = (np.array([detection.text_score for detection in detections]) + scaled) / 2
    measured = {**pixels.metrics(), **image_metrics([image.label for image in item.test], scores)}
    return {**measured, "vand": vand(measured["f1max_cls"], measured["f1max_segm"])}


@pytest.mark.parametrize("fusion", ["sum", "authors"])
def test_every_number_equals_that_of_a_detector_with_its_own_bank(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path, fusion: str
) -> None:
    out = tmp_path / "out"
    result = run_eval(parts, out, *model, *EVAL_SETTINGS, "--fusion", fusion, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    results = read_record(out)["results"]
    assert [(row["object"], row["shots"], row["seed"]) for row in results] == [
        (name, *setting) for name in ("bolt", "metal_nut") for setting in ((0, None), (1, 0), (1, 1), (2, 0), (2, 1))
    ]
    for row in results:
        assert len(set(row["references"])) == row["shots"]
        expected = measure_directly(golden_vit, parts, row["object"], row["references"], fusion)
        # Batches of four change the last bits of features, so that two pixels may change places.
        assert row["metrics"] == pytest.approx(expected, abs=1e-5)


def test_the_same_run_gives_the_same_files_whatever_the_batch(parts: Path, model: list[str], tmp_path: Path) -> None:
    run_eval(parts, tmp_path / "one", *model, *EVAL_SETTINGS)
    run_eval(parts, tmp_path / "two", *model, *EVAL_SETTINGS, "--workers", 1)
    run_eval(parts, tmp_path / "batch", *model, *EVAL_SETTINGS, "--batch-size", 5)
    for name in ("metrics.csv", "scores.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for mine, theirs in zip(*(read_csv(tmp_path / out / "scores.csv") for out in ("one", "batch")), strict=True):
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), abs=1e-5)


def test_metrics_json_records_settings_and_data(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    run_eval(parts, tmp_path / "out", *model, *EVAL_SETTINGS)
    record = read_record(tmp_path / "out")
    assert record["model"]["fingerprint"] == golden_vit.backbone.spec.fingerprint
    assert record["projector"]["fingerprint"] == golden_vit.projector.identity["fingerprint"]
    assert record["versions"]["torch"]
    assert record["options"]["seeds"] == 2
    own = {"method": "april-gan"}
    assert record["settings"][:2] == [{"shots": 0, "seed": None, **own}, {"shots": 1, "seed": 0, **own}]
    assert (record["problems"], record["unreadable"], record["leakage"]) == ([], 0, None)
    assert record["started"] <= record["finished"]
    assert record["dataset"]["objects"][0] == {
        "name": "bolt",
        "category": "bolt",
        "good_train": 5,
        "test_good": 3,
        "test_anomalous": 3,
        "defects": {"scratch": 3},
        "masks": 3,
    }
    draw_image(parts / "bolt" / "test" / "good" / "000.png", 999)
    run_eval(parts, tmp_path / "other", *model, "--shots", 0)
    assert read_record(tmp_path / "other")["dataset"]["fingerprint"] != record["dataset"]["fingerprint"]


@pytest.mark.parametrize(
    ("trained_on", "leaks"), [("parts", True), ("PARTS", True), ("visa", False), ("", False), ("bolt", False)]
)
def test_leakage_is_reported(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path, trained_on: str, leaks: bool
) -> None:
    projector = renamed_projector(golden_vit, tmp_path / "p.safetensors", trained_on)
    for dataset, out in ((parts, tmp_path / "all"), (parts / "metal_nut", tmp_path / "one")):
        result = run_eval(dataset, out, *model, "--projector", projector, "--shots", 0)
        assert ("LEAKAGE" in result.stdout) == leaks
        assert bool(read_record(out)["leakage"]) == leaks


def test_leakage_is_recognized_by_name_of_the_benchmark_and_by_content(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    run_eval(parts, tmp_path / "first", *model, "--shots", 0)
    fingerprint = read_record(tmp_path / "first")["dataset"]["fingerprint"]
    moved = Path(shutil.copytree(parts, tmp_path / "elsewhere"))
    data = {"fingerprint": fingerprint}
    projector = renamed_projector(golden_vit, tmp_path / "same.safetensors", "mine", data=data)
    assert "LEAKAGE" in run_eval(moved, tmp_path / "same", *model, "--projector", projector, "--shots", 0).stdout
    draw_image(moved / "bolt" / "test" / "good" / "003.png", 7)
    assert "LEAKAGE" not in run_eval(moved, tmp_path / "more", *model, "--projector", projector, "--shots", 0).stdout
    benchmark = draw_object(tmp_path / "benchmark" / "metal_nut", 300).parent
    projector = renamed_projector(golden_vit, tmp_path / "mvtec.safetensors", "mvtec")
    assert "LEAKAGE" in run_eval(benchmark, tmp_path / "mvtec", *model, "--projector", projector, "--shots", 0).stdout


def test_without_masks_only_images_are_measured(tmp_path: Path, model: list[str]) -> None:
    draw_object(tmp_path / "set" / "bolt", 100)
    draw_object(tmp_path / "set" / "cog", 200, masks=False)
    result = run_eval(tmp_path / "set", tmp_path / "out", *model, "--shots", 0)
    assert result.exit_code == 0
    bolt, cog = (row["metrics"] for row in read_record(tmp_path / "out")["results"])
    assert [name for name in METRICS if cog[name] is None] == [*METRICS[:5], "vand"]
    assert None not in bolt.values()
    mean = read_record(tmp_path / "out")["summaries"][-1]["mean"]
    assert mean["ap_segm"] == bolt["ap_segm"]
    assert mean["ap_cls"] == (bolt["ap_cls"] + cog["ap_cls"]) / 2
    assert "no masks, so no pixel measures: cog" in result.stdout
    assert read_csv(tmp_path / "out" / "metrics.csv")[2]["ap_segm"] == ""
    assert "nan" not in result.stdout


def test_unusable_masks_are_problems_and_only_their_pixels_are_left_out(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    masks = parts / "bolt" / "ground_truth" / "scratch"
    run_eval(parts / "bolt", tmp_path / "whole", *model, "--shots", 0)
    draw_mask(masks / "000_mask.png", size_wh=(61, 40))
    (masks / "001_mask.png").unlink()
    result = run_eval(parts / "bolt", tmp_path / "out", *model, "--shots", 0)
    assert result.exit_code == 0
    problems = read_record(tmp_path / "out")["problems"]
    assert ["001.png" in problems[0], "61 by 40" in problems[1], len(problems)] == [True, True, 2]
    assert all(f"problem: {problem}" in result.stderr for problem in problems)
    whole, left = (read_record(tmp_path / out)["results"][0]["metrics"] for out in ("whole", "out"))
    assert [whole[name] == left[name] for name in METRICS[5:8]] == [True] * 3
    detector = golden_vit.detector(golden_vit.projector, None, "bolt")
    pixels = PixelScores()
    for name in ("good/000", "good/001", "good/002", "scratch/002"):
        detection = detector.detect_file(parts / "bolt" / "test" / f"{name}.png")
        mask = None
        if "scratch" in name:
            with Image.open(masks / "002_mask.png") as image:
                mask = resize_mask(np.asarray(image) > 0, (golden_vit.image_size, golden_vit.image_size))
        pixels.add(detection.anomaly_map, mask)
    assert left["ap_segm"] == pytest.approx(pixels.metrics()["ap_segm"], abs=1e-9)


def test_a_defect_that_vanishes_at_the_models_size_is_a_problem(parts: Path, model: list[str], tmp_path: Path) -> None:
    big = (600, 400)
    draw_image(parts / "bolt" / "test" / "scratch" / "000.png", 1, big)
    draw_mask(parts / "bolt" / "ground_truth" / "scratch" / "000_mask.png", (9, 9, 11, 11), big)
    result = run_eval(parts / "bolt", tmp_path / "out", *model, "--shots", 0)
    (problem,) = read_record(tmp_path / "out")["problems"]
    assert problem.startswith("test/scratch/000.png: its defect is too small")
    assert problem in result.stderr


def test_unreadable_images_get_rows_and_exit_3(parts: Path, model: list[str], tmp_path: Path) -> None:
    (parts / "bolt" / "test" / "scratch" / "001.png").write_bytes(b"not an image")
    result = run_eval(parts, tmp_path / "out", *model, "--shots", "0,1", "--seeds", 2)
    assert result.exit_code == 3
    broken = [row for row in read_csv(tmp_path / "out" / "scores.csv") if row["status"] == "error"]
    assert [(row["shots"], row["seed"]) for row in broken] == [("0", ""), ("1", "0"), ("1", "1")]
    assert {(row["path"], row["score"], row["text_score"], row["map_max"]) for row in broken} == {
        ("bolt/test/scratch/001.png", "", "", "")
    }
    assert all(row["error"] for row in broken)
    assert read_record(tmp_path / "out")["unreadable"] == 1
    assert "001.png: left out" in result.stderr
    assert "mean" in result.stdout


def test_images_of_twelve_bits_are_read_with_the_range(parts: Path, model: list[str], tmp_path: Path) -> None:
    wide = make_gray(Path(shutil.copytree(parts, tmp_path / "wide" / "parts")), 4095)
    settings = (*model, "--shots", "0,1", "--seeds", 1, "--calibrate")
    run_eval(make_gray(parts), tmp_path / "gray", *settings)
    result = run_eval(wide, tmp_path / "ranged", *settings, "--range", "0,4095")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "ranged" / "metrics.csv").read_bytes() == (tmp_path / "gray" / "metrics.csv").read_bytes()
    assert read_record(tmp_path / "ranged")["options"]["value_range"] == [0, 4095]
    run_eval(wide, tmp_path / "dark", *settings)
    assert (tmp_path / "dark" / "metrics.csv").read_bytes() != (tmp_path / "gray" / "metrics.csv").read_bytes()


def test_images_above_the_limit_of_pixels_are_left_out(parts: Path, model: list[str], tmp_path: Path) -> None:
    draw_image(parts / "bolt" / "test" / "good" / "large.png", 1, (61, 40))
    draw_image(parts / "bolt" / "train" / "good" / "large.png", 2, (61, 40))
    result = run_eval(parts, tmp_path / "out", *model, "--shots", "5", "--seeds", 1, "--max-pixels", 60 * 40)
    assert result.exit_code == 3
    record = read_record(tmp_path / "out")
    assert (record["unreadable"], record["options"]["max_pixels"]) == (1, 2400)
    assert all("large.png" in problem for problem in record["problems"])
    assert not any("large" in path for result in record["results"] for path in result["references"])


def test_default_shots_are_limited_by_the_training_images(tmp_path: Path, model: list[str]) -> None:
    draw_object(tmp_path / "bolt", 1, train=3)
    result = run_eval(tmp_path / "bolt", tmp_path / "three", *model, "--seeds", 1)
    assert {row["shots"] for row in read_record(tmp_path / "three")["results"]} == {0, 1, 2}
    assert "3 good training images: evaluating 0, 1, 2 shots" in result.stderr
    shutil.rmtree(tmp_path / "bolt" / "train")
    result = run_eval(tmp_path / "bolt", tmp_path / "none", *model)
    assert {row["shots"] for row in read_record(tmp_path / "none")["results"]} == {0}
    assert "0 good training images: evaluating 0 shots" in result.stderr


def test_only_the_paper_model_on_its_data_is_compared(
    golden_vit: GoldenCase, tmp_path: Path, model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = draw_object(tmp_path / "benchmark" / "metal_nut", 300).parent
    own = draw_object(tmp_path / "own" / "bolt", 300).parent
    assert "paper" not in run_eval(benchmark, tmp_path / "other", *model, "--shots", 0).stdout
    monkeypatch.setattr(loading, "load_backbone", lambda *_, **__: golden_vit.backbone)
    monkeypatch.setattr(evaluate, "load_projector", lambda *_, **__: golden_vit.projector)
    assert "  paper" in run_eval(benchmark, tmp_path / "paper", "--model", "paper", "--shots", 0).stdout
    assert "  paper" not in run_eval(own, tmp_path / "own-out", "--model", "paper", "--shots", 0).stdout


def test_a_model_without_a_projector_has_few_shot_maps_only(
    parts: Path, golden_vit: GoldenCase, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(golden_vit.folder, tmp_path / "bare"))
    (bare / "projector.safetensors").unlink()
    result = run_eval(parts / "bolt", tmp_path / "out", "--model", bare, "--shots", "0,1", "--seeds", 1, "--maps")
    assert result.exit_code == 0
    assert result.stderr.count("no projector") == 1
    zero_shot, one_shot = (result["metrics"] for result in read_record(tmp_path / "out")["results"])
    assert (zero_shot["ap_segm"], zero_shot["ap_cls"] is None, one_shot["ap_segm"] is None) == (None, False, False)
    rows = read_csv(tmp_path / "out" / "scores.csv")
    assert [row["map_max"] == "" for row in rows] == [True] * 6 + [False] * 6


def test_results_are_never_overwritten_without_the_option(parts: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_eval(parts, out, *model, "--shots", 0, "--maps")
    before = (out / "metrics.csv").read_bytes()
    refused = run_eval(parts, out, *model, "--shots", 0)
    assert refused.exit_code == 1
    assert "--overwrite" in line_of(refused)
    broken = run_eval(parts, out, "--model", "ViT-Z-99", "--overwrite")
    assert broken.exit_code == 1
    assert (out / "metrics.csv").read_bytes() == before
    assert run_eval(parts, out, *model, "--shots", 0, "--objects", "bolt", "--overwrite").exit_code == 0
    assert not (out / "anomaly_maps").exists()  # nothing of the old run is left
    assert len(read_record(out)["results"]) == 1


def line_of(result: Result) -> str:
    """Return the only error line; there is no traceback, only notes may precede it."""
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("aprilcli: error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.strip().endswith(lines[0])
    assert isinstance(result.exception, SystemExit)
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["missing"], 1, "no such folder"),
        (["empty"], 1, "no labeled folder"),
        (["parts", "--layout", "btad"], 1, "no labeled folder (btad)"),
        (["parts", "--layout", "mvtek"], 2, "unknown layout mvtek"),
        (["parts", "--objects", "bolt,cog"], 2, "--objects cog"),
        (["parts", "--shots=-1"], 2, "--shots"),
        (["parts", "--shots", "0,6"], 1, "bolt has 5 good training images, too few for 6 shots"),
        (["parts", "--out", "notes.txt"], 1, "notes.txt"),
        (["parts", "--model", "ViT-Z-99"], 1, "unknown model"),
    ],
)
def test_bad_input_is_one_line(
    parts: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, expected: str
) -> None:
    monkeypatch.chdir(parts.parent)
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    result = CliRunner().invoke(app, ["eval", *arguments[:1], *model, *arguments[1:], "--device", "cpu"])
    assert result.exit_code == code
    assert expected in line_of(result)


def test_nan_is_never_written_as_a_number(tmp_path: Path, model: list[str]) -> None:
    for number in range(2):
        draw_image(tmp_path / "set" / "good" / f"{number}.png", number)
    result = run_eval(tmp_path / "set", tmp_path / "out", *model)
    assert result.exit_code == 0
    assert "nan" not in (result.stdout + (tmp_path / "out" / "metrics.csv").read_text()).casefold()
    assert "NaN" not in (tmp_path / "out" / "metrics.json").read_text()
    assert set(read_record(tmp_path / "out")["results"][0]["metrics"].values()) == {None}
    assert not math.isnan(float(read_csv(tmp_path / "out" / "scores.csv")[0]["score"]))


def test_a_second_evaluation_into_the_folder_is_refused_before_loading(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        refused = run_eval(parts, out, "--model", "ViT-Z-99")
    assert refused.exit_code == 1
    assert f"{out}: another eval is writing here" in line_of(refused)
    assert run_eval(parts, out, *model, "--shots", 0).exit_code == 0
    assert "already holds results" in line_of(run_eval(parts, out, "--model", "ViT-Z-99"))


def test_files_left_by_a_killed_evaluation_are_removed(parts: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    left = [out / ".aprilcli-1.csv", out / "anomaly_maps" / "bolt" / ".aprilcli-2.tiff"]
    others = out / "elsewhere" / ".aprilcli-3.csv"  # in a folder that is not ours
    for path in (*left, others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert run_eval(parts, out, *model, "--shots", 0, "--overwrite").exit_code == 0
    assert not any(path.exists() for path in left)
    assert others.exists()


@pytest.mark.parametrize("name", ["a" * 300, "file/out"])
def test_an_output_folder_that_cannot_be_written_is_one_line(
    parts: Path, model: list[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("")
    result = run_eval(parts, tmp_path / name, *model, "--shots", 0)
    assert result.exit_code == 1
    assert "cannot be written" in line_of(result)


def test_ctrl_c_ends_an_evaluation_with_130(parts: Path, model: list[str], tmp_path: Path) -> None:
    command = ["eval", parts, *model, "--out", tmp_path / "out"]
    interrupted = run_and_signal(signal.SIGINT, "open", "metal_nut/test/scratch/000.png", *command)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert "finished" not in read_record(tmp_path / "out")
