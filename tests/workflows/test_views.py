"""Several input sizes, and tiles, through the command line: every command that encodes images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import tifffile
import torch
from helpers import (
    GoldenCase,
    contents_of_scan,
    draw_image,
    draw_images,
    draw_object,
    draw_spotted_object,
    error_line,
    read_record,
    read_report,
    read_rows,
    read_rows_by_path,
    run,
    run_eval,
    run_train,
    scan_into,
    stop_in_second_epoch,
)
from PIL import Image
from timm_models import write_model

from aprilcli.core.bank_file import load_bank, save_bank
from aprilcli.core.detector import Detector
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.resizing import resize_map, resize_mask
from aprilcli.core.tiling import lay_out
from aprilcli.io.artifacts import read_header

SIZES = ("--image-size", "42,70")
TILES = ("--image-size", "42", "--tile", "50")
BOTH = ("--image-size", "42,28", "--tile", "50")
EACH = pytest.mark.parametrize("views", [SIZES, TILES, BOTH], ids=["sizes", "tiles", "both"])
TWO_SIZES = {"golden-vit": (42, 70), "golden-vit-quickgelu": (56, 28), "golden-rn": (64, 96)}


@pytest.fixture
def model(golden_vit: GoldenCase) -> list[str]:
    """The options that select ``golden_vit`` on the CPU, without a size."""
    return options_of(golden_vit)


def options_of(golden: GoldenCase) -> list[str]:
    return ["--model", str(golden.folder), "--stages", ",".join(map(str, golden.stages)), "--device", "cpu"]


def scan(images: Path, out: Path, *arguments: object) -> dict[str, dict[str, str]]:
    """Scan with maps at the size of the model; return the rows by path."""
    result = run("scan", images, "--out", out, "--map-size", "model", *arguments)
    assert result.exit_code == 0, result.output
    return read_rows_by_path(out)


def enroll(good: Path, banks: Path, part: str, *arguments: object) -> MemoryBank:
    """Enroll a part; return its bank."""
    result = run("enroll", good, "--part", part, "--banks", banks, *arguments)
    assert result.exit_code == 0, result.output
    return load_bank(banks / f"{part}.safetensors")


def read_map(out: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(tifffile.imread(out / "maps" / f"{name}.tiff"))


def number(row: dict[str, str], column: str) -> float:
    return float(row[column])


def draw_good(folder: Path, count: int) -> Path:
    """Draw images of several sizes, so that they have different numbers of tiles."""
    for seed in range(count):
        draw_image(folder / f"{seed:03}.png", seed, (60 + 45 * (seed % 2), 40))
    return folder


def check_means(images: Path, both: Path, each: list[Path], columns: tuple[str, ...]) -> None:
    """Compare a scan with the means of scans at each of its sizes."""
    for name, row in read_rows_by_path(both).items():
        others = [read_rows_by_path(out)[name] for out in each]
        for column in columns:
            mean = np.mean([number(other, column) for other in others])
            assert number(row, column) == pytest.approx(mean, abs=1e-5)
        if row["map_max"]:
            maps = [read_map(out, name) for out in each]
            side = max(map(len, maps))
            mean_map = torch.stack([resize_map(values, (side, side)) for values in maps]).mean(dim=0)
            torch.testing.assert_close(read_map(both, name), mean_map, atol=1e-5, rtol=0)
            assert number(row, "map_max") == pytest.approx(float(mean_map.max()), abs=1e-5)


# Scan


def test_results_at_two_sizes_are_the_means_of_results_at_each(golden: GoldenCase, tmp_path: Path) -> None:
    images, sizes = draw_images(tmp_path / "images", 2), TWO_SIZES[golden.folder.name]
    each = [tmp_path / f"{size}" for size in sizes]
    for size, out in zip(sizes, each, strict=True):
        scan(images, out, *options_of(golden), "--image-size", size)
    both = tmp_path / "both"
    scan(images, both, *options_of(golden), "--image-size", ",".join(map(str, sizes)), "--batch-size", 2)
    check_means(images, both, each, ("score", "text_score"))


def test_results_with_a_bank_are_means_too_with_a_tower_of_timm(banks: Path, tmp_path: Path) -> None:
    good, images = draw_images(tmp_path / "good", 2), draw_images(tmp_path / "images", 2, 50)
    folder = write_model(tmp_path / "convnext", "convnext")
    for name, sizes in (("a", "64"), ("b", "96"), ("both", "96,64")):
        enroll(good, banks, name, "--model", folder, "--device", "cpu", "--image-size", sizes)
        scan(images, tmp_path / name, "--part", name, "--banks", banks, "--device", "cpu")
    check_means(images, tmp_path / "both", [tmp_path / "a", tmp_path / "b"], ("score", "text_score"))


def test_the_default_size_given_changes_no_byte(golden_vit: GoldenCase, model: list[str], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 2)
    scan(images, tmp_path / "default", *model)
    size = json.loads((tmp_path / "default" / "run.json").read_text())["model"]["image_size"]
    scan(images, tmp_path / "given", *model, "--image-size", size)
    assert contents_of_scan(tmp_path / "default") == contents_of_scan(tmp_path / "given")


def test_a_single_tile_gives_the_result_of_the_whole_image(model: list[str], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 1)
    draw_image(images / "exact.png", 7, (64, 64))
    [plain, tiled] = (
        scan(images, tmp_path / name, *model, "--image-size", 42, *tile)
        for name, tile in (("plain", ()), ("tiled", ("--tile", 64)))
    )
    for name, row in plain.items():
        assert number(tiled[name], "score") == pytest.approx(number(row, "score"), abs=1e-5)
        expected = read_map(tmp_path / "plain", name)
        torch.testing.assert_close(read_map(tmp_path / "tiled", name), expected, atol=1e-5, rtol=0)


def test_maps_of_tiled_images_have_the_size_of_the_canvas_or_of_the_image(model: list[str], tmp_path: Path) -> None:
    shapes = {"large.png": (130, 200), "long.png": (50, 1000), "tall.png": (1000, 50), "thin.png": (1, 20)}
    for seed, (name, (height, width)) in enumerate(shapes.items()):
        draw_image(tmp_path / "images" / name, seed, (width, height))
    tiles = ("--image-size", "42,70", "--tile", "50", "--batch-size", 3)
    scan(tmp_path / "images", tmp_path / "model", *model, *tiles)
    assert run("scan", tmp_path / "images", "--out", tmp_path / "source", *model, *tiles).exit_code == 0
    for name, shape in shapes.items():
        canvas = lay_out(shape, 50, 42).canvas_hw
        assert read_map(tmp_path / "model", name).shape == tuple(max(70, side) for side in canvas)
        assert read_map(tmp_path / "source", name).shape == shape
    assert (tmp_path / "model" / "scores.csv").read_bytes() == (tmp_path / "source" / "scores.csv").read_bytes()


@EACH
def test_several_views_are_recorded(model: list[str], tmp_path: Path, views: tuple[str, ...]) -> None:
    image = draw_image(tmp_path / "a.png")
    scan(image, tmp_path / "out", *model, *views)
    options = dict(zip(views[::2], views[1::2], strict=True))
    sizes, tile = list(map(int, options["--image-size"].split(","))), options.get("--tile")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["views"] == {"sizes": sizes, "tile": None if tile is None else int(tile)}
    with tifffile.TiffFile(tmp_path / "out" / "maps" / "a.png.tiff") as tiff:
        label = json.loads(tiff.pages[0].description)["views"]
    assert label == options["--image-size"] + ("" if tile is None else f", tiles of {tile}")


def test_a_single_view_is_not_in_the_maps(model: list[str], tmp_path: Path) -> None:
    image = draw_image(tmp_path / "a.png")
    scan(image, tmp_path / "out", *model, "--image-size", 42)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["views"] == {"sizes": [42], "tile": None}
    with tifffile.TiffFile(tmp_path / "out" / "maps" / "a.png.tiff") as tiff:
        assert "views" not in json.loads(tiff.pages[0].description)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (("--image-size", "42,71"), "image size 71: golden-vit needs a multiple of 14"),
        (("--image-size", "14,28,42,56,70"), "5 sizes, but at most 4"),
        (("--image-size", "42,70,42"), "image size 42,70,42: give each size once"),
        (("--image-size", "256,abc"), "--image-size 256,abc: give integers separated by commas, such as 256,384"),
        (("--image-size", "42,"), "--image-size 42,: give integers separated by commas"),
        (("--image-size", "0"), "--image-size 0: sizes start at 1"),
        (("--image-size", "42,-14"), "--image-size 42,-14: sizes start at 1"),
        (("--image-size", "70,42", "--tile", "69"), "tile 69: smaller than the model's input of 70 pixels"),
    ],
)
def test_wrong_sizes_and_tiles_are_wrong_usage(
    model: list[str], tmp_path: Path, views: tuple[str, ...], expected: str
) -> None:
    image = draw_image(tmp_path / "a.png")
    result = run("scan", image, "--out", tmp_path / "out", *model, *views)
    assert result.exit_code == 2
    assert expected in error_line(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tile", ["0", "-5", "x"])
def test_a_tile_that_is_no_size_is_wrong_usage(model: list[str], tmp_path: Path, tile: str) -> None:
    result = run("scan", draw_image(tmp_path / "a.png"), "--out", tmp_path / "out", *model, "--tile", tile)
    assert result.exit_code == 2
    assert "--tile" in result.stderr
    assert isinstance(result.exception, SystemExit)


@EACH
def test_a_scan_is_resumed_with_the_same_views_only(model: list[str], tmp_path: Path, views: tuple[str, ...]) -> None:
    images, out = draw_good(tmp_path / "images", 4), tmp_path / "out"
    arguments = ["scan", str(images), *model]
    assert scan_into(arguments, out, *views).exit_code == 0
    before = contents_of_scan(out)
    lines = before["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:3]))
    other = ("--image-size", "42,56", "--tile", "60")
    refused = scan_into(arguments, out, *other, "--resume")
    assert refused.exit_code == 1
    assert "views." in error_line(refused)
    assert "this run began differently" in error_line(refused)
    resumed = scan_into(arguments, out, *views, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed: 2 kept, 2 new" in resumed.stdout
    assert contents_of_scan(out) == before


# Banks


@EACH
def test_a_bank_remembers_its_views(model: list[str], banks: Path, tmp_path: Path, views: tuple[str, ...]) -> None:
    good = draw_good(tmp_path / "good", 3)
    bank = enroll(good, banks, "p", *model, *views)
    draw_image(tmp_path / "images" / "new.png", 99)
    shutil.copy(good / "001.png", tmp_path / "images")
    plain = scan(tmp_path / "images", tmp_path / "plain", *model, *views)
    rows = scan(tmp_path / "images", tmp_path / "out", "--part", "p", "--banks", banks, "--device", "cpu")
    reference = rows["001.png"]
    assert number(reference, "text_score") == pytest.approx(number(plain["001.png"], "text_score"), abs=1e-5)
    few_shot = {name: read_map(tmp_path / "out", name) - read_map(tmp_path / "plain", name) for name in rows}
    assert few_shot["001.png"].abs().max() < 1e-3
    assert few_shot["new.png"].max() > 0.05
    same = scan(tmp_path / "images", tmp_path / "same", "--part", "p", "--banks", banks, "--device", "cpu", *views)
    assert same == rows
    save_bank(bank, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (banks / "p.safetensors").read_bytes()
    shown = run("inspect", banks / "p.safetensors").stdout
    assert bank.views.label in " ".join(shown.split())
    names = [f"size {size}" for size in bank.views.sizes] + ["tiles"] * (bank.tile is not None)
    lines = [line.strip() for line in shown.splitlines()]
    for view, name in enumerate(names):
        for stage, features in zip(bank.spec.stages, bank.features_of(view), strict=True):
            [line] = [line for line in lines if line.startswith(f"stage {stage}, {name} ")]
            assert f"{len(features)} rows of 64" in line
    patches = [(size // 14) ** 2 for size in bank.views.sizes]
    tiles = sum(len(lay_out((40, width), 50, 42)) for width in (60, 105, 60))
    inputs = [3] * len(patches) + [tiles] * (bank.tile is not None)
    patches += [9] * (bank.tile is not None)
    counts = [patch_count * count for patch_count, count in zip(patches, inputs, strict=True)]
    assert [len(bank.features_of(view)[0]) for view in range(len(bank.views))] == counts


@pytest.mark.parametrize(
    ("enrolled", "given", "expected"),
    [
        (SIZES, ("--image-size", "42"), "image size 42,70, not 42: omit --image-size"),
        (SIZES, ("--image-size", "70,42"), "image size 42,70, not 70,42: omit --image-size"),
        (SIZES, ("--tile", "50"), "tile None, not 50: omit --tile"),
        (BOTH, ("--tile", "60"), "tile 50, not 60: omit --tile"),
        (
            BOTH,
            ("--tile", "60", "--image-size", "42"),
            "image size 42,28, not 42; tile 50, not 60: omit --image-size and --tile",
        ),
    ],
)
def test_other_views_than_the_banks_are_refused(
    model: list[str],
    banks: Path,
    tmp_path: Path,
    enrolled: tuple[str, ...],
    given: tuple[str, ...],
    expected: str,
) -> None:
    good = draw_good(tmp_path / "good", 1)
    enroll(good, banks, "p", *model, *enrolled)
    draw_image(good / "new.png", 70)
    for command in (["scan", "--out", tmp_path / "out"], ["enroll", "--append"]):
        result = run(*command, good, "--part", "p", "--banks", banks, *given)
        assert result.exit_code == 1
        assert expected in error_line(result)


@EACH
def test_append_equals_enrolling_all_at_once(
    model: list[str], banks: Path, tmp_path: Path, views: tuple[str, ...]
) -> None:
    good, first = draw_good(tmp_path / "good", 4), draw_good(tmp_path / "first", 1)
    whole = enroll(good, banks, "whole", *model, *views, "--batch-size", 3)
    enroll(first, banks, "grown", *model, *views)
    grown = enroll(good, banks, "grown", "--append", "--batch-size", 3)
    check_equal(grown, whole)


def check_equal(mine: MemoryBank, theirs: MemoryBank) -> None:
    """Compare rows, zero-shot evidence and calibration of two banks, up to the last digits of a batch."""
    assert (mine.sources, mine.rows_per_source, mine.views) == (theirs.sources, theirs.rows_per_source, theirs.views)
    for own, other in zip(mine.features, theirs.features, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
    for own_image, other_image in zip(mine.zero_shot, theirs.zero_shot, strict=True):
        assert own_image.layout == other_image.layout
        for own_view, other_view in zip(own_image.views, other_image.views, strict=True):
            torch.testing.assert_close(own_view.text_scores, other_view.text_scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(own_view.logits, other_view.logits, atol=1e-3, rtol=0)
    assert mine.calibration is not None
    assert theirs.calibration is not None
    assert mine.calibration.method == theirs.calibration.method
    np.testing.assert_allclose(mine.calibration.scores, theirs.calibration.scores, atol=1e-5)
    np.testing.assert_allclose(mine.calibration.map_maxima, theirs.calibration.map_maxima, atol=1e-5)


@EACH
def test_leave_one_out_is_scanning_against_the_others(
    model: list[str], banks: Path, tmp_path: Path, views: tuple[str, ...]
) -> None:
    good = draw_good(tmp_path / "good", 3)
    scored = enroll(good, banks, "p", *model, *views).calibration
    assert scored is not None
    assert scored.method == "leave-one-out"
    (good / "001.png").rename(tmp_path / "alone.png")
    enroll(good, banks, "others", *model, *views)
    [row] = scan(tmp_path / "alone.png", tmp_path / "out", "--part", "others", "--banks", banks).values()
    assert number(row, "score") == pytest.approx(float(scored.scores[1]), abs=1e-5)
    assert number(row, "map_max") == pytest.approx(float(scored.map_maxima[1]), abs=1e-5)


@EACH
def test_one_reference_is_calibrated_on_its_variants(
    model: list[str], banks: Path, tmp_path: Path, views: tuple[str, ...]
) -> None:
    image = draw_image(tmp_path / "good.png", 3, (105, 40))
    scored = enroll(image, banks, "p", *model, *views).calibration
    assert scored is not None
    assert (scored.method, len(scored)) == ("augmentations", 8)
    [row] = scan(image, tmp_path / "out", "--part", "p", "--banks", banks).values()
    assert (scored.map_maxima > number(row, "map_max")).all()


def test_a_bank_of_several_sizes_scores_its_calibration_images_again(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, further = draw_good(tmp_path / "good", 2), draw_images(tmp_path / "further", 3, 50)
    enroll(good, banks, "p", *model, *SIZES, "--calibrate", further)
    draw_image(good / "new.png", 99)
    whole = enroll(good, banks, "whole", *model, *SIZES, "--calibrate", further)
    shutil.rmtree(further)  # the bank has what it needs
    check_equal(enroll(good, banks, "p", "--append"), whole)
    save_bank(whole, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (banks / "whole.safetensors").read_bytes()


def test_a_bank_with_tiles_is_calibrated_again_when_it_grows(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, further = draw_good(tmp_path / "good", 2), draw_images(tmp_path / "further", 3, 50)
    bank = enroll(good, banks, "p", *model, *BOTH, "--calibrate", further)
    assert bank.calibration_images is not None
    assert bank.calibration_images.pixels == ()
    rows = scan(further, tmp_path / "out", "--part", "p", "--banks", banks)
    assert bank.calibration is not None
    by_scan = [number(row, "score") for row in rows.values()]
    np.testing.assert_allclose(np.sort(by_scan), np.sort(bank.calibration.scores), atol=1e-5)
    draw_image(good / "new.png", 99)
    before = (banks / "p.safetensors").read_bytes()
    refused = run("enroll", good, "--part", "p", "--banks", banks, "--append")
    assert refused.exit_code == 1
    assert "--calibrate" in error_line(refused)
    assert (banks / "p.safetensors").read_bytes() == before
    whole = enroll(good, banks, "whole", *model, *BOTH, "--calibrate", further)
    check_equal(enroll(good, banks, "p", "--append", "--calibrate", further), whole)


def test_a_bank_with_tiles_takes_other_calibration_images(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, further = draw_good(tmp_path / "good", 2), draw_images(tmp_path / "further", 3, 50)
    enroll(good, banks, "p", *model, *TILES)
    for images in (further, draw_images(tmp_path / "more", 4, 70)):
        result = run("enroll", "--part", "p", "--banks", banks, "--calibrate", images)
        assert result.exit_code == 0, result.output
        calibration = load_bank(banks / "p.safetensors").calibration
        assert calibration is not None
        assert (calibration.method, len(calibration)) == ("held-out", len(list(images.iterdir())))


@EACH
def test_a_coreset_keeps_its_share_of_each_view(
    model: list[str], banks: Path, tmp_path: Path, views: tuple[str, ...]
) -> None:
    good = draw_good(tmp_path / "good", 3)
    whole = enroll(good, banks, "whole", *model, *views)
    half = enroll(good, banks, "half", *model, *views, "--coreset", 0.5)
    for mine, theirs in zip(half.features, whole.features, strict=True):
        assert abs(len(mine) - len(theirs) / 2) <= 1
    rows = scan(good, tmp_path / "out", "--part", "half", "--banks", banks)
    against_all = scan(good, tmp_path / "all", "--part", "whole", "--banks", banks)
    assert all(number(rows[name], "score") >= number(row, "score") - 1e-3 for name, row in against_all.items())


def test_the_detector_takes_views_as_the_command_line_does(
    golden_vit: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_good(tmp_path / "good", 2)
    bank = enroll(good, banks, "p", *model, *BOTH)
    rows = scan(good, tmp_path / "plain", *model, *BOTH)
    settings: dict[str, Any] = {"stages": golden_vit.stages, "device": "cpu"}
    detector = Detector.load(str(golden_vit.folder), image_size=[42, 28], tile=50, **settings)
    found = detector.detect_file(good / "001.png")
    assert found.score == pytest.approx(number(rows["001.png"], "score"), abs=1e-6)
    rows = scan(good, tmp_path / "part", "--part", "p", "--banks", banks)
    for with_bank in (detector.with_bank(bank), Detector.load(bank=bank, device="cpu")):
        found = with_bank.detect_file(good / "001.png")
        assert found.score == pytest.approx(number(rows["001.png"], "score"), abs=1e-6)


# Evaluation


@EACH
def test_eval_scores_as_enroll_and_scan_do(
    model: list[str], banks: Path, tmp_path: Path, views: tuple[str, ...]
) -> None:
    bolt, out = draw_object(tmp_path / "bolt", 100, train=3), tmp_path / "out"
    draw_image(bolt / "train" / "good" / "000.png", 100, (105, 40))  # another number of tiles
    result = run_eval(bolt, out, *model[:4], *views, "--shots", "0,2", "--seeds", 1, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    results = {found["shots"]: found for found in read_record(out)["results"]}
    for name in results[2]["references"]:
        (tmp_path / "good").mkdir(exist_ok=True)
        shutil.copy(bolt / name, tmp_path / "good")
    enroll(tmp_path / "good", banks, "p", *model, *views, "--object", "bolt")
    scanned = {
        0: scan(bolt / "test", tmp_path / "0", *model, *views, "--object", "bolt"),
        2: scan(bolt / "test", tmp_path / "2", "--part", "p", "--banks", banks),
    }
    rows = read_rows(out)
    assert len(rows) == 2 * 6
    for row in rows:
        expected = scanned[int(row["shots"])][row["path"].removeprefix("bolt/").removeprefix("test/")]
        for column in ("score", "map_max"):
            assert number(row, column) == pytest.approx(number(expected, column), abs=1e-5)
    for shots, measured in results.items():
        truth, values = [], []
        for name in scanned[shots]:
            anomaly_map = read_map(tmp_path / str(shots), name)
            path = bolt / "ground_truth" / f"{name.removesuffix('.png')}_mask.png"
            mask = np.asarray(Image.open(path)) > 0 if path.exists() else np.zeros((40, 60), bool)
            truth.append(resize_mask(mask, tuple(anomaly_map.shape)).ravel())
            values.append(anomaly_map.numpy().ravel())
        expected_auroc = sklearn.metrics.roc_auc_score(np.concatenate(truth), np.concatenate(values))
        assert measured["metrics"]["auroc_segm"] == pytest.approx(expected_auroc, abs=1e-4)


def test_eval_refuses_wrong_tiles(parts: Path, model: list[str], tmp_path: Path) -> None:
    result = run_eval(parts, tmp_path / "out", *model[:4], "--image-size", "70,42", "--tile", 60)
    assert result.exit_code == 2
    assert "tile 60: smaller than the model's input of 70 pixels" in error_line(result)


# Training


def test_train_with_two_sizes_is_reproducible_and_recorded(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spotted, sizes = draw_spotted_object(tmp_path / "parts"), [*model[:4], "--image-size", "42,56"]
    outs = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "resumed", "single")]
    for out, workers in zip(outs[:2], (1, 4), strict=True):
        result = run_train(spotted, out, sizes, "--epochs", 2, "--workers", workers)
        assert result.exit_code == 0, result.output
    stop_in_second_epoch(spotted, outs[2], sizes, monkeypatch)
    assert run_train(spotted, outs[2], sizes, "--epochs", 2, "--resume").exit_code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    assert run_train(spotted, outs[3], [*model[:4], "--image-size", "42"], "--epochs", 2).exit_code == 0
    assert read_header(outs[0]).fields["settings"]["image_sizes"] == [42, 56]
    assert read_report(outs[0])["settings"]["image_sizes"] == [42, 56]
    assert "image_sizes" not in read_header(outs[3]).fields["settings"]
    losses = [read_report(out)["history"][0]["loss"] for out in (outs[0], outs[3])]
    assert losses[0] != losses[1]
    scan(spotted / "steel_part" / "test" / "good", tmp_path / "out", *model, *SIZES, "--projector", outs[0])


def test_train_is_not_resumed_with_other_sizes(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spotted, out = draw_spotted_object(tmp_path / "parts"), tmp_path / "out.safetensors"
    stop_in_second_epoch(spotted, out, [*model[:4], "--image-size", "42,56"], monkeypatch)
    for sizes in ("42", "42,28", "56,42"):
        other = run_train(spotted, out, [*model[:4], "--image-size", sizes], "--epochs", 2, "--resume")
        assert other.exit_code == 1
        assert "image_size" in error_line(other)
