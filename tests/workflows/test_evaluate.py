"""`eval` through the command line, on a real (tiny) open_clip folder: numbers checked by hand, files, words."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pytest
import sklearn.metrics
import tifffile
import torch
from conftest import GoldenCase, draw_photo, hear_ctrl_c
from PIL import Image
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.core.detector import Detector
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.memory_bank import Source, build
from aprilcli.core.metrics import METRICS, PixelScores, image_metrics, vand
from aprilcli.core.projector import save_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.training_set import resize_mask
from aprilcli.errors import InputError
from aprilcli.io.datasets import read_dataset, read_mask
from aprilcli.io.images import read_image
from aprilcli.io.paper_tables import paper_objects, paper_value
from aprilcli.types import ImageFeatures
from aprilcli.workflows import eval_plots, eval_report, evaluate
from aprilcli.workflows.eval_encoding import ObjectEncoder, Setting, draw_order
from aprilcli.workflows.eval_maps import inside

SIZE_WH = (60, 40)
SETTINGS = ["--shots", "0,1,2", "--seeds", "2"]


def run(dataset: Path, out: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", str(dataset), "--out", str(out), *map(str, arguments), "--device", "cpu"])


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def record_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def draw_mask(path: Path, box: tuple[int, int, int, int] = (5, 5, 30, 25), size_wh: tuple[int, int] = SIZE_WH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size_wh)
    mask.paste(255, box)
    mask.save(path)


def draw_object(folder: Path, seed: int, train: int = 5, masks: bool = True) -> Path:
    """An object in MVTec AD's layout: noise, and on it squares of another brightness."""
    for number in range(train):
        draw_photo(folder / "train" / "good" / f"{number:03}.png", seed + number)
    for number in range(3):
        draw_photo(folder / "test" / "good" / f"{number:03}.png", seed + 20 + number)
        defective = draw_photo(folder / "test" / "scratch" / f"{number:03}.png", seed + 40 + number)
        box = (5 + 6 * number, 5, 30 + 6 * number, 25)
        with Image.open(defective) as photo:
            photo.paste((250, 10, 10), box)
            photo.save(defective)
        if masks:
            draw_mask(folder / "ground_truth" / "scratch" / f"{number:03}_mask.png", box)
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    draw_object(tmp_path / "parts" / "bolt", 100)
    draw_object(tmp_path / "parts" / "metal_nut", 200)
    return tmp_path / "parts"


@pytest.fixture
def model(golden_vit: GoldenCase) -> list[str]:
    return ["--model", str(golden_vit.folder), "--image-size", "70", "--stages", "2,4,6,8"]


def renamed_projector(golden_vit: GoldenCase, path: Path, trained_on: str, **fields: object) -> Path:
    """The golden projector, saying that it was trained on something."""
    kept = golden_vit.projector.trained_on, golden_vit.projector.fields
    golden_vit.projector.trained_on, golden_vit.projector.fields = trained_on, fields
    save_projector(golden_vit.projector, path)
    golden_vit.projector.trained_on, golden_vit.projector.fields = kept
    return path


def measure_directly(golden: GoldenCase, root: Path, name: str, references: list[str], fusion: str) -> dict[str, float]:
    """Measure one setting with a detector and a bank of its own, as someone would by hand."""
    one = next(one for one in read_dataset(root).objects if one.name == name)
    bank = None
    if references:
        encoder = golden.detector(golden.projector, None, one.category)
        tokens = [
            golden.encoder.encode(torch.from_numpy(encoder.prepare(read_image(root / path))[None])).patch_tokens
            for path in references
        ]
        sources = [Source(path, path) for path in references]
        bank = build(tokens, sources, golden.backbone.spec, one.category, dtype=torch.float32)
        fingerprint = encoder.projector_fingerprint
        bank = type(bank)(**{**vars(bank), "recipe": type(bank.recipe)(projector_fingerprint=fingerprint)})
    detector = golden.detector(golden.projector, bank, one.category)
    detections = [detector.detect_file(image.path) for image in one.test]
    pixels = PixelScores()
    for image, detection in zip(one.test, detections, strict=True):
        mask = resize_mask(read_mask(image, (SIZE_WH[1], SIZE_WH[0])), golden.image_size)
        pixels.add(detection.anomaly_map, mask if mask.any() else None)
    scores = np.array([detection.score for detection in detections])
    if fusion == "authors" and references:
        maxima = np.array([detection.map_max for detection in detections])
        scaled = (maxima - maxima.min()) / (maxima.max() - maxima.min())
        scores = (np.array([detection.text_score for detection in detections]) + scaled) / 2
    measured = {**pixels.metrics(), **image_metrics([image.label for image in one.test], scores)}
    return {**measured, "vand": vand(measured["f1max_cls"], measured["f1max_segm"])}


@pytest.mark.parametrize("fusion", ["sum", "authors"])
def test_every_number_is_that_of_a_detector_with_a_bank_of_its_own(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path, fusion: str
) -> None:
    out = tmp_path / "out"
    result = run(parts, out, *model, *SETTINGS, "--fusion", fusion, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    results = record_of(out)["results"]
    assert [(one["object"], one["shots"], one["seed"]) for one in results] == [
        (name, *setting) for name in ("bolt", "metal_nut") for setting in ((0, None), (1, 0), (1, 1), (2, 0), (2, 1))
    ]
    for one in results:
        assert len(set(one["references"])) == one["shots"]
        expected = measure_directly(golden_vit, parts, one["object"], one["references"], fusion)
        assert one["metrics"] == pytest.approx(expected, abs=1e-6)


class CountingEncoder:
    """An ``ImageEncoder`` that counts the images another one encodes."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.spec, self.grids = encoder.spec, encoder.grids
        self.device, self.precision = encoder.device, encoder.precision
        self.count = 0
        self._encoder = encoder

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        self.count += len(pixels)
        return self._encoder.encode(pixels)


def test_each_image_is_encoded_once_for_all_settings(parts: Path, golden_vit: GoldenCase) -> None:
    encoder = CountingEncoder(golden_vit.encoder)
    (bolt,) = (one for one in read_dataset(parts).objects if one.name == "bolt")
    detector = Detector(encoder, encode_prompts(golden_vit.backbone.text, "bolt"), golden_vit.projector)
    settings = [Setting(0), *(Setting(shots, seed) for shots in (1, 2, 4) for seed in range(5))]
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoded = ObjectEncoder(parts, settings, pool, 2, 2).encode(bolt, detector, lambda: None)
    drawn = {reference for references in encoded.references for reference in references}
    assert len(drawn) == 5
    assert encoder.count == 6 + len(drawn)


def test_references_are_drawn_by_seed_alone(parts: Path, model: list[str], tmp_path: Path) -> None:
    def references(out: str, dataset: Path, *arguments: object) -> dict[tuple[str, int, int], list[str]]:
        assert run(dataset, tmp_path / out, *model, *arguments).exit_code == 0
        results = record_of(tmp_path / out)["results"]
        return {
            (one["object"], one["shots"], one["seed"]): [Path(path).name for path in one["references"]]
            for one in results
        }

    all_seeds = references("all", parts, "--shots", "1,2,4", "--seeds", 3)
    assert references("later", parts, "--shots", "2", "--seeds", 1, "--seed", 2, "--objects", "bolt") == {
        ("bolt", 2, 2): all_seeds["bolt", 2, 2]
    }
    assert references("alone", parts / "bolt", "--shots", "4", "--seeds", 1)["bolt", 4, 0] == all_seeds["bolt", 4, 0]
    for (name, shots, seed), drawn in all_seeds.items():
        assert drawn == all_seeds[name, 4, seed][:shots]
    assert len({tuple(drawn) for key, drawn in all_seeds.items() if key[1] == 4}) > 1
    order = draw_order("bolt", 5, 0)
    assert all_seeds["bolt", 4, 0] == [f"{index:03}.png" for index in order[:4]]
    assert (order, draw_order("metal_nut", 8, 3)) == ([2, 1, 4, 0, 3], [2, 5, 7, 3, 4, 6, 1, 0])  # on every machine


def test_the_same_run_gives_the_same_files_whatever_the_batch(parts: Path, model: list[str], tmp_path: Path) -> None:
    run(parts, tmp_path / "one", *model, *SETTINGS)
    run(parts, tmp_path / "two", *model, *SETTINGS, "--workers", 1)
    run(parts, tmp_path / "batch", *model, *SETTINGS, "--batch-size", 5)
    for name in ("metrics.csv", "scores.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    for mine, theirs in zip(*(table_of(tmp_path / out / "scores.csv") for out in ("one", "batch")), strict=True):
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), abs=1e-5)


def test_scores_csv_has_a_row_per_picture_and_setting(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    run(parts, tmp_path / "out", *model, *SETTINGS)
    header = (tmp_path / "out" / "scores.csv").read_bytes().split(b"\r\n")[0].decode()
    assert header == "object,defect,path,label,shots,seed,text_score,map_max,score,status,error"
    rows = table_of(tmp_path / "out" / "scores.csv")
    assert len(rows) == 2 * 6 * 5
    assert {row["status"] for row in rows} == {"ok"}
    first = rows[0]
    assert (first["object"], first["defect"], first["label"], first["shots"], first["seed"]) == (
        *("bolt", "good", "0", "0"),
        "",
    )
    detector = golden_vit.detector(golden_vit.projector, None, "bolt")
    detection = detector.detect_file(parts / first["path"])
    assert (float(first["text_score"]), float(first["map_max"])) == pytest.approx(
        (detection.text_score, detection.map_max), abs=1e-6
    )
    assert first["score"] == first["text_score"]
    for row in rows:
        if row["shots"] != "0":
            assert np.float32(row["score"]) == np.float32(row["text_score"]) + np.float32(row["map_max"])
            assert (row["label"] == "1") == (row["defect"] == "scratch") == ("/scratch/" in row["path"])


def test_metrics_csv_has_means_over_objects_and_seeds(parts: Path, model: list[str], tmp_path: Path) -> None:
    run(parts, tmp_path / "out", *model, *SETTINGS)
    rows = {(row["object"], row["shots"], row["seed"]): row for row in table_of(tmp_path / "out" / "metrics.csv")}
    assert list(next(iter(rows.values()))) == ["object", "shots", "seed", *METRICS]
    assert set(rows) == {
        (name, shots, seed)
        for name in ("bolt", "metal_nut", "mean")
        for shots, seeds in (("0", ("", "mean")), *((k, ("0", "1", "mean", "deviation")) for k in "12"))
        for seed in seeds
    }
    results = {(one["object"], one["shots"], one["seed"]): one for one in record_of(tmp_path / "out")["results"]}
    for metric in METRICS:
        bolt = [results["bolt", 2, seed]["metrics"][metric] for seed in (0, 1)]
        nut = [results["metal_nut", 2, seed]["metrics"][metric] for seed in (0, 1)]
        means = [(a + b) / 2 for a, b in zip(bolt, nut, strict=True)]
        expected = {
            ("bolt", "2", "0"): bolt[0],
            ("bolt", "2", "mean"): statistics.mean(bolt),
            ("bolt", "2", "deviation"): statistics.stdev(bolt),
            ("mean", "2", "1"): means[1],
            ("mean", "2", "mean"): statistics.mean(means),
            ("mean", "2", "deviation"): statistics.stdev(means),
        }
        assert {key: float(rows[key][metric]) for key in expected} == pytest.approx(expected, abs=1e-12)
        assert rows["bolt", "0", ""][metric] == rows["bolt", "0", "mean"][metric]


def test_the_table_is_on_stdout_uncut_and_notes_are_on_stderr(parts: Path, model: list[str], tmp_path: Path) -> None:
    result = run(parts, tmp_path / "out", *model, *SETTINGS)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["shots", "object", *METRICS]
    assert [tuple(line.split()[:2]) for line in lines[2:11]] == [
        (shots, name) for shots in "012" for name in ("bolt", "metal_nut", "mean")
    ]
    summary = record_of(tmp_path / "out")["summaries"][4]
    assert (summary["object"], summary["shots"]) == ("metal_nut", 1)
    cells = [f"{100 * summary['mean'][m]:.1f} ± {100 * summary['deviation'][m]:.1f}" for m in METRICS]
    assert lines[6].split() == ["1", "metal_nut", *" ".join(cells).split()]
    assert "70 x 70" in result.stdout
    assert "layout mvtec, 2 objects" in result.stderr
    assert "bolt: 5 good to learn from; test: 3 good, 3 anomalous (scratch 3), 3 masks" in result.stderr
    assert "shots" not in result.stderr
    quiet = run(parts, tmp_path / "quiet", *model, *SETTINGS, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == result.stdout


def test_metrics_json_says_with_what(parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path) -> None:
    run(parts, tmp_path / "out", *model, *SETTINGS)
    record = record_of(tmp_path / "out")
    assert record["model"]["fingerprint"] == golden_vit.backbone.spec.fingerprint
    assert record["projector"]["fingerprint"] == golden_vit.projector.identity["fingerprint"]
    assert record["versions"]["torch"]
    assert record["options"]["seeds"] == 2
    assert record["settings"][:2] == [{"shots": 0, "seed": None}, {"shots": 1, "seed": 0}]
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
    draw_photo(parts / "bolt" / "test" / "good" / "000.png", 999)
    run(parts, tmp_path / "other", *model, "--shots", 0)
    assert record_of(tmp_path / "other")["dataset"]["fingerprint"] != record["dataset"]["fingerprint"]


@pytest.mark.parametrize(
    ("trained_on", "leaks"), [("parts", True), ("PARTS", True), ("visa", False), ("", False), ("bolt", False)]
)
def test_leakage_is_announced(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path, trained_on: str, leaks: bool
) -> None:
    projector = renamed_projector(golden_vit, tmp_path / "p.safetensors", trained_on)
    for dataset, out in ((parts, tmp_path / "all"), (parts / "metal_nut", tmp_path / "one")):
        result = run(dataset, out, *model, "--projector", projector, "--shots", 0)
        assert ("LEAKAGE" in result.stdout) == leaks
        assert bool(record_of(out)["leakage"]) == leaks


def test_leakage_is_seen_by_name_of_the_benchmark_and_by_content(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    run(parts, tmp_path / "first", *model, "--shots", 0)
    fingerprint = record_of(tmp_path / "first")["dataset"]["fingerprint"]
    moved = Path(shutil.copytree(parts, tmp_path / "elsewhere"))
    data = {"fingerprint": fingerprint}
    projector = renamed_projector(golden_vit, tmp_path / "same.safetensors", "mine", data=data)
    assert "LEAKAGE" in run(moved, tmp_path / "same", *model, "--projector", projector, "--shots", 0).stdout
    draw_photo(moved / "bolt" / "test" / "good" / "003.png", 7)
    assert "LEAKAGE" not in run(moved, tmp_path / "more", *model, "--projector", projector, "--shots", 0).stdout
    benchmark = draw_object(tmp_path / "benchmark" / "metal_nut", 300).parent
    projector = renamed_projector(golden_vit, tmp_path / "mvtec.safetensors", "mvtec")
    assert "LEAKAGE" in run(benchmark, tmp_path / "mvtec", *model, "--projector", projector, "--shots", 0).stdout


def test_without_masks_pictures_alone_are_measured(tmp_path: Path, model: list[str]) -> None:
    draw_object(tmp_path / "set" / "bolt", 100)
    draw_object(tmp_path / "set" / "cog", 200, masks=False)
    result = run(tmp_path / "set", tmp_path / "out", *model, "--shots", 0)
    assert result.exit_code == 0
    bolt, cog = (one["metrics"] for one in record_of(tmp_path / "out")["results"])
    assert [name for name in METRICS if cog[name] is None] == [*METRICS[:5], "vand"]
    assert None not in bolt.values()
    mean = record_of(tmp_path / "out")["summaries"][-1]["mean"]
    assert mean["ap_segm"] == bolt["ap_segm"]
    assert mean["ap_cls"] == (bolt["ap_cls"] + cog["ap_cls"]) / 2
    assert "no masks, so no pixel measures: cog" in result.stdout
    assert table_of(tmp_path / "out" / "metrics.csv")[2]["ap_segm"] == ""
    assert "nan" not in result.stdout


def test_what_cannot_be_measured_is_listed_and_left_out_of_the_pixels_alone(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    masks = parts / "bolt" / "ground_truth" / "scratch"
    run(parts / "bolt", tmp_path / "whole", *model, "--shots", 0)
    draw_mask(masks / "000_mask.png", size_wh=(61, 40))
    (masks / "001_mask.png").unlink()
    result = run(parts / "bolt", tmp_path / "out", *model, "--shots", 0)
    assert result.exit_code == 0
    problems = record_of(tmp_path / "out")["problems"]
    assert ["001.png" in problems[0], "61 by 40" in problems[1], len(problems)] == [True, True, 2]
    assert all(f"problem: {problem}" in result.stderr for problem in problems)
    whole, left = (record_of(tmp_path / out)["results"][0]["metrics"] for out in ("whole", "out"))
    assert [whole[name] == left[name] for name in METRICS[5:8]] == [True] * 3
    detector = golden_vit.detector(golden_vit.projector, None, "bolt")
    pixels = PixelScores()
    for name in ("good/000", "good/001", "good/002", "scratch/002"):
        detection = detector.detect_file(parts / "bolt" / "test" / f"{name}.png")
        mask = None
        if "scratch" in name:
            with Image.open(masks / "002_mask.png") as picture:
                mask = resize_mask(np.asarray(picture) > 0, golden_vit.image_size)
        pixels.add(detection.anomaly_map, mask)
    assert left["ap_segm"] == pytest.approx(pixels.metrics()["ap_segm"], abs=1e-9)


def test_a_defect_that_vanishes_at_the_models_size_is_a_problem(parts: Path, model: list[str], tmp_path: Path) -> None:
    big = (600, 400)
    draw_photo(parts / "bolt" / "test" / "scratch" / "000.png", 1, big)
    draw_mask(parts / "bolt" / "ground_truth" / "scratch" / "000_mask.png", (9, 9, 11, 11), big)
    result = run(parts / "bolt", tmp_path / "out", *model, "--shots", 0)
    (problem,) = record_of(tmp_path / "out")["problems"]
    assert problem.startswith("test/scratch/000.png: its defect is too small")
    assert problem in result.stderr


def test_unreadable_pictures_get_rows_and_exit_3(parts: Path, model: list[str], tmp_path: Path) -> None:
    (parts / "bolt" / "test" / "scratch" / "001.png").write_bytes(b"not a picture")
    result = run(parts, tmp_path / "out", *model, "--shots", "0,1", "--seeds", 2)
    assert result.exit_code == 3
    broken = [row for row in table_of(tmp_path / "out" / "scores.csv") if row["status"] == "error"]
    assert [(row["shots"], row["seed"]) for row in broken] == [("0", ""), ("1", "0"), ("1", "1")]
    assert {(row["path"], row["score"], row["text_score"], row["map_max"]) for row in broken} == {
        ("bolt/test/scratch/001.png", "", "", "")
    }
    assert all(row["error"] for row in broken)
    assert record_of(tmp_path / "out")["unreadable"] == 1
    assert "001.png: left out" in result.stderr
    assert "mean" in result.stdout


def test_an_unreadable_reference_is_replaced_by_the_next_drawn(parts: Path, model: list[str], tmp_path: Path) -> None:
    order = draw_order("bolt", 5, 0)
    (parts / "bolt" / "train" / "good" / f"{order[0]:03}.png").write_bytes(b"")
    result = run(parts / "bolt", tmp_path / "out", *model, "--shots", 2, "--seeds", 1)
    assert result.exit_code == 0
    expected = [f"train/good/{index:03}.png" for index in order[1:3]]
    assert record_of(tmp_path / "out")["results"][0]["references"] == expected
    assert "another reference is drawn" in record_of(tmp_path / "out")["problems"][0]
    refused = run(parts / "bolt", tmp_path / "five", *model, "--shots", 5, "--seeds", 1)
    assert refused.exit_code == 1
    assert "only 4 can be read" in refused.stderr


def test_default_shots_are_those_there_are_photos_for(tmp_path: Path, model: list[str]) -> None:
    draw_object(tmp_path / "bolt", 1, train=3)
    result = run(tmp_path / "bolt", tmp_path / "three", *model, "--seeds", 1)
    assert {one["shots"] for one in record_of(tmp_path / "three")["results"]} == {0, 1, 2}
    assert "3 good training photos: evaluating 0, 1, 2 shots" in result.stderr
    shutil.rmtree(tmp_path / "bolt" / "train")
    result = run(tmp_path / "bolt", tmp_path / "none", *model)
    assert {one["shots"] for one in record_of(tmp_path / "none")["results"]} == {0}
    assert "0 good training photos: evaluating 0 shots" in result.stderr


def test_maps_are_what_mvtecs_evaluator_reads_and_scikit_learn_agrees(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(parts, out, *model, "--shots", "0,2", "--seeds", 2, "--maps")
    written = sorted(path.relative_to(out / "anomaly_maps").as_posix() for path in out.rglob("*.tif*"))
    assert written == [
        f"{name}/test/{defect}/{number:03}.tiff"
        for name in ("bolt", "metal_nut")
        for defect in ("good", "scratch")
        for number in range(3)
    ]
    rows = [r for r in table_of(out / "scores.csv") if (r["object"], r["shots"], r["seed"]) == ("bolt", "2", "0")]
    assert len(rows) == 6
    labels, maxima, truth, values = [], [], [], []
    for row in rows:
        name = Path(row["path"])
        anomaly_map = tifffile.imread(out / "anomaly_maps" / name.with_suffix(".tiff"))
        assert (anomaly_map.dtype, anomaly_map.shape) == (np.float32, (40, 60))
        assert 0 < anomaly_map.max() <= float(row["map_max"]) + 1e-6
        mask = parts / "bolt" / "ground_truth" / row["defect"] / f"{name.stem}_mask.png"
        truth.append(np.asarray(Image.open(mask)) > 0 if mask.exists() else np.zeros((40, 60), bool))
        values.append(anomaly_map)
        labels.append(int(row["label"]))
        maxima.append(float(row["score"]))
    (metrics,) = (
        one["metrics"]
        for one in record_of(out)["results"]
        if (one["object"], one["shots"], one["seed"]) == ("bolt", 2, 0)
    )
    assert sklearn.metrics.roc_auc_score(labels, maxima) == pytest.approx(metrics["auroc_cls"], abs=1e-9)
    assert sklearn.metrics.average_precision_score(labels, maxima) == pytest.approx(metrics["ap_cls"], abs=1e-9)
    # At source size, so not to the last digit.
    truth_values = np.concatenate(truth).ravel(), np.concatenate(values).ravel()
    assert sklearn.metrics.roc_auc_score(*truth_values) == pytest.approx(metrics["auroc_segm"], abs=0.02)
    assert sklearn.metrics.average_precision_score(*truth_values) == pytest.approx(metrics["ap_segm"], abs=0.04)


def test_maps_of_mvtec_ad_2_follow_its_submission_layout(tmp_path: Path, model: list[str]) -> None:
    can = tmp_path / "ad2" / "can"
    for number in range(2):
        draw_photo(can / "train" / "good" / f"{number:03}_regular.png", number)
        draw_photo(can / "test_public" / "good" / f"{number:03}_regular.png", 10 + number)
        draw_photo(can / "test_public" / "bad" / f"{number:03}_regular.png", 20 + number)
        draw_mask(can / "test_public" / "ground_truth" / "bad" / f"{number:03}_regular_mask.png")
    result = run(tmp_path / "ad2", tmp_path / "out", *model, "--shots", 0, "--maps")
    assert "layout ad2" in result.stderr
    folder = tmp_path / "out" / "anomaly_images" / "can" / "test_public"
    written = sorted(path.relative_to(folder).as_posix() for path in (tmp_path / "out").rglob("*.tiff"))
    assert written == [f"{defect}/{number:03}_regular.tiff" for defect in ("bad", "good") for number in range(2)]
    values = tifffile.imread(folder / written[0])
    assert (values.dtype, values.shape) == (np.float16, (40, 60))
    assert not (tmp_path / "out" / "anomaly_maps").exists()


def test_no_two_maps_share_a_file_and_names_with_folders_stay_inside(tmp_path: Path, model: list[str]) -> None:
    line = tmp_path / "plant" / "line" / "bolt"
    for number, name in enumerate(("good/a.png", "good/a.jpg", "good/deep/a.png", "bad/a.png", "bad/b/a.png")):
        draw_photo(line / name, number)
    run(tmp_path / "plant", tmp_path / "out", *model, "--shots", 0, "--maps")
    folder = tmp_path / "out" / "anomaly_maps" / "line" / "bolt" / "test"
    written = sorted(path.relative_to(folder).as_posix() for path in (tmp_path / "out").rglob("*.tiff"))
    assert written == ["bad/a.tiff", "bad/b/a.tiff", "good/a.jpg.tiff", "good/a.png.tiff", "good/deep/a.tiff"]
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(InputError, match="leads out"):
            inside(tmp_path, name)


@pytest.mark.parametrize("whole", [True, False])
def test_the_papers_values_stand_beside_those_of_the_paper_model(whole: bool) -> None:
    names = paper_objects("mvtec") if whole else ("bottle", "metal_nut")
    results = [
        eval_report.Result(name, name, Setting(1, seed), (), dict.fromkeys(METRICS, 0.5 + seed / 10), ())
        for name in names
        for seed in (0, 1)
    ]
    lines = eval_report.draw_table(eval_report.Report(tuple(results), (), paper="mvtec")).splitlines()
    bottle = next(number for number, line in enumerate(lines) if line.split()[:2] == ["1", "bottle"])
    value, deviation = paper_value("mvtec", 1, "bottle", "auroc_segm")
    assert lines[bottle + 1].split()[1:5] == ["paper", f"{value:.1f}", "±", f"{deviation:.1f}"]
    assert lines[bottle + 2].split()[1:3] == ["difference", f"{55 - value:+.1f}"]
    assert lines[bottle + 1].split()[-1] == lines[bottle + 2].split()[-1] == "-"  # the paper has no vand
    mean = next(number for number, line in enumerate(lines) if line.split()[:2] == ["1", "mean"])
    assert (mean + 1 < len(lines) and "paper" in lines[mean + 1]) == whole
    described = eval_report.describe_report(eval_report.Report(tuple(results), (), paper="mvtec"))["summaries"]
    described_bottle = next(one for one in described if one["object"] == "bottle")
    assert described_bottle["paper"]["auroc_segm"] == pytest.approx(value / 100)
    assert ("paper" in described[-1]) == whole
    assert "paper" not in eval_report.draw_table(eval_report.Report(tuple(results), ()))


def test_only_the_paper_model_on_its_data_is_compared(
    golden_vit: GoldenCase, tmp_path: Path, model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = draw_object(tmp_path / "benchmark" / "metal_nut", 300).parent
    own = draw_object(tmp_path / "own" / "bolt", 300).parent
    assert "paper" not in run(benchmark, tmp_path / "other", *model, "--shots", 0).stdout
    monkeypatch.setattr(evaluate, "load_backbone", lambda *_, **__: golden_vit.backbone)
    monkeypatch.setattr(evaluate, "load_projector", lambda *_, **__: golden_vit.projector)
    assert "  paper" in run(benchmark, tmp_path / "paper", "--model", "paper", "--shots", 0).stdout
    assert "  paper" not in run(own, tmp_path / "own-out", "--model", "paper", "--shots", 0).stdout


def test_a_model_without_a_projector_has_few_shot_maps_only(
    parts: Path, golden_vit: GoldenCase, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(golden_vit.folder, tmp_path / "bare"))
    (bare / "projector.safetensors").unlink()
    result = run(parts / "bolt", tmp_path / "out", "--model", bare, "--shots", "0,1", "--seeds", 1, "--maps")
    assert result.exit_code == 0
    assert result.stderr.count("no projector") == 1
    zero, one = (result["metrics"] for result in record_of(tmp_path / "out")["results"])
    assert (zero["ap_segm"], zero["ap_cls"] is None, one["ap_segm"] is None) == (None, False, False)
    rows = table_of(tmp_path / "out" / "scores.csv")
    assert [row["map_max"] == "" for row in rows] == [True] * 6 + [False] * 6


def test_plots_are_pictures_of_every_object(parts: Path, model: list[str], tmp_path: Path) -> None:
    for number in range(2):
        draw_photo(parts / "cog" / "test" / "good" / f"{number}.png", number)  # no anomalies: curves are undefined
    result = run(parts, tmp_path / "out", *model, "--shots", 0, "--plots")
    assert result.exit_code == 0, result.output
    for name in ("bolt", "metal_nut", "cog"):
        with Image.open(tmp_path / "out" / "plots" / f"{name}.png") as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_plots_without_matplotlib_are_refused_at_once(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_plots.importlib.util, "find_spec", lambda _: None)
    result = run(parts, tmp_path / "out", *model, "--plots")
    assert result.exit_code == 2
    assert "pip install 'aprilcli[plots]'" in line_of(result)
    assert not (tmp_path / "out").exists()


def test_results_are_never_overwritten_unasked(parts: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(parts, out, *model, "--shots", 0, "--maps")
    before = (out / "metrics.csv").read_bytes()
    refused = run(parts, out, *model, "--shots", 0)
    assert refused.exit_code == 1
    assert "--overwrite" in line_of(refused)
    broken = run(parts, out, "--model", "ViT-Z-99", "--overwrite")
    assert broken.exit_code == 1
    assert (out / "metrics.csv").read_bytes() == before
    assert run(parts, out, *model, "--shots", 0, "--objects", "bolt", "--overwrite").exit_code == 0
    assert not (out / "anomaly_maps").exists()  # nothing of the old run is left
    assert len(record_of(out)["results"]) == 1


def line_of(result: Result) -> str:
    """The one line an error is: no traceback, nothing else but notes before it."""
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("aprilcli: error: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.strip().endswith(lines[0])
    assert isinstance(result.exception, SystemExit)
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing"], 1, "no such folder"),
        (["empty"], 1, "no labelled folder"),
        (["parts", "--layout", "btad"], 1, "no labelled folder (btad)"),
        (["parts", "--layout", "mvtek"], 1, "layout mvtek is unknown"),
        (["parts", "--objects", "bolt,cog"], 2, "--objects cog"),
        (["parts", "--shots", "one"], 2, "--shots one"),
        (["parts", "--shots=-1"], 2, "--shots"),
        (["parts", "--shots", "0,6"], 1, "bolt has 5 good training photos, too few for 6 shots"),
        (["parts", "--out", "notes.txt"], 1, "notes.txt"),
        (["parts", "--model", "ViT-Z-99"], 1, "unknown model"),
    ],
)
def test_bad_input_is_one_line(
    parts: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(parts.parent)
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    result = CliRunner().invoke(app, ["eval", *arguments[:1], *model, *arguments[1:], "--device", "cpu"])
    assert result.exit_code == code
    assert said in line_of(result)


def test_nan_is_never_written_as_a_number(tmp_path: Path, model: list[str]) -> None:
    for number in range(2):
        draw_photo(tmp_path / "set" / "good" / f"{number}.png", number)
    result = run(tmp_path / "set", tmp_path / "out", *model)
    assert result.exit_code == 0
    assert "nan" not in (result.stdout + (tmp_path / "out" / "metrics.csv").read_text()).casefold()
    assert "NaN" not in (tmp_path / "out" / "metrics.json").read_text()
    assert set(record_of(tmp_path / "out")["results"][0]["metrics"].values()) == {None}
    assert not math.isnan(float(table_of(tmp_path / "out" / "scores.csv")[0]["score"]))


def test_a_second_evaluation_into_the_folder_is_refused_before_anything_is_loaded(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        refused = run(parts, out, "--model", "ViT-Z-99")
    assert refused.exit_code == 1
    assert f"{out}: another eval is writing there" in line_of(refused)
    assert run(parts, out, *model, "--shots", 0).exit_code == 0
    assert "already holds results" in line_of(run(parts, out, "--model", "ViT-Z-99"))


def test_what_a_killed_evaluation_left_is_taken_away(parts: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    left = [out / ".aprilcli-1.csv", out / "anomaly_maps" / "bolt" / ".aprilcli-2.tiff"]
    others = out / "elsewhere" / ".aprilcli-3.csv"  # in a folder that is not ours
    for path in (*left, others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert run(parts, out, *model, "--shots", 0, "--overwrite").exit_code == 0
    assert not any(path.exists() for path in left)
    assert others.exists()


@pytest.mark.parametrize("name", ["a" * 300, "file/out"])
def test_a_place_that_cannot_be_written_is_one_line(parts: Path, model: list[str], tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    result = run(parts, tmp_path / name, *model, "--shots", 0)
    assert result.exit_code == 1
    assert "cannot be written" in line_of(result)


def test_ctrl_c_ends_an_evaluation_with_130(parts: Path, model: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aprilcli", "eval", parts, *model, "--out", tmp_path / "out", "--seeds", 500]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(list(map(str, command)), text=True, preexec_fn=hear_ctrl_c, **pipes)
    while not (tmp_path / "out" / ".lock").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_names_that_look_like_markup_stand_in_the_table(parts: Path, model: list[str], tmp_path: Path) -> None:
    for name, odd in (("bolt", "[red]bolt"), ("metal_nut", "\x1b[31mnut[")):
        (parts / name).rename(parts / odd)
    draw_object(parts / "x[" / "y]", 300)  # "[/" would close a style that is not open
    result = run(parts, tmp_path / "out", *model, "--shots", 0)
    assert result.exit_code == 0, result.output
    assert "[red]bolt" in result.stdout
    assert "\\x1b[31mnut[" in result.stdout
    assert "\x1b" not in result.stdout
