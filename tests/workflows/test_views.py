"""Several input sizes, and tiles, through the command line: every command that encodes images."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

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
from aprilcli.core.memory_bank import MemoryBank, Source, build, without
from aprilcli.core.resizing import resize_map, resize_mask
from aprilcli.core.tiling import lay_out
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import read_header
from aprilcli.io.images import SourceImage, read_image
from aprilcli.types import Detection, Views
from aprilcli.workflows import eval_encoding

SIZES, BOTH = Views((42, 70)), Views((42, 28), 50)


def options_of(views: Views) -> list[str]:
    """The options that select these views."""
    sizes = ["--image-size", ",".join(map(str, views.sizes))]
    return sizes if views.tile is None else [*sizes, "--tile", str(views.tile)]


@pytest.fixture(scope="module")
def model(golden_vit: GoldenCase) -> list[str]:
    """The options that select ``golden_vit`` on the CPU, without a size."""
    return ["--model", str(golden_vit.folder), "--stages", "2,4,6,8", "--device", "cpu"]


@dataclass(frozen=True)
class Part:
    """An enrolled part: its images, their bank, and a detector without it."""

    views: Views
    good: Path
    banks: Path
    bank: MemoryBank
    detector: Detector

    def detect(self, path: Path, bank: MemoryBank) -> Detection:
        """Score an image against a bank."""
        return self.detector.with_bank(bank).detect_file(path)


@pytest.fixture(scope="module", params=[SIZES, BOTH], ids=["sizes", "sizes and tiles"])
def part(
    request: pytest.FixtureRequest, golden_vit: GoldenCase, model: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Part:
    """A part of four images with different numbers of tiles."""
    folder, views = tmp_path_factory.mktemp("part"), request.param
    good = draw_good(folder / "good", 4)
    bank = enroll(good, folder / "banks", "whole", *model, *options_of(views))
    return Part(views, good, folder / "banks", bank, load_detector(golden_vit.folder, views, golden_vit.stages))


def load_detector(folder: Path, views: Views, stages: tuple[int, ...] | None = None) -> Detector:
    return Detector.load(str(folder), image_size=views.sizes, tile=views.tile, stages=stages, device="cpu")


def at_each_size(detector: Detector) -> list[Detector]:
    """Return a detector for each size of a detector of several."""
    return [Detector(encoder, detector.text_features, detector.projector) for encoder in detector.encoders]


def bank_of(detector: Detector, paths: list[Path]) -> MemoryBank:
    """Make the bank of a model without a projector."""
    encoded = detector.encode_references([detector.prepare(read_image(path)) for path in paths])
    sources = [Source(path.name, f"{number:064}") for number, path in enumerate(paths)]
    batches = [tuple(rows[None] for rows in image.patch_tokens) for image in encoded]
    return build(batches, sources, detector.encoder.spec, "object", views=detector.views, dtype=torch.float32)


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


def draw_good(folder: Path, count: int) -> Path:
    """Draw images of two sizes, which have different numbers of tiles."""
    for seed in range(count):
        draw_image(folder / f"{seed:03}.png", seed, (60 + 45 * (seed % 2), 40))
    return folder


def read_detection(out: Path, name: str) -> Detection:
    """Read the result of an image from a scan."""
    row = read_rows_by_path(out)[name]
    values = (float(row[column]) for column in ("text_score", "map_max", "score"))
    return Detection(*values, tifffile.imread(out / "maps" / f"{name}.tiff"))


def check_detection(found: Detection, expected: Detection) -> None:
    """Compare two results."""
    for name in ("text_score", "map_max", "score"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-5)
    assert (found.anomaly_map is None) == (expected.anomaly_map is None)
    if expected.anomaly_map is not None:
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, atol=1e-5)


def mean_of(each: list[Detection]) -> Detection:
    """Return the mean of the results of an image at several sizes."""
    text, score = (float(np.mean([getattr(found, name) for found in each])) for name in ("text_score", "score"))
    maps = [torch.from_numpy(found.anomaly_map) for found in each if found.anomaly_map is not None]
    if not maps:
        return Detection(text, None, score, None)
    side = max(map(len, maps))
    mean_map = torch.stack([resize_map(values, (side, side)) for values in maps]).mean(dim=0)
    return Detection(text, float(mean_map.max()), score, mean_map.numpy())


# Scan


def test_a_scan_at_two_sizes_is_the_mean_of_scans_at_each(model: list[str], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 2)
    for name in ("70", "42", "70,42"):
        scan(images, tmp_path / name, *model, "--image-size", name, "--batch-size", 2)
    for name in ("000.png", "001.png"):
        each = [read_detection(tmp_path / size, name) for size in ("70", "42")]
        check_detection(read_detection(tmp_path / "70,42", name), mean_of(each))
    for size, views in (("70", None), ("70,42", "70,42")):
        with tifffile.TiffFile(tmp_path / size / "maps" / "000.png.tiff") as tiff:
            assert json.loads(tiff.pages[0].description).get("views") == views


def test_every_tower_gives_means(other_golden: GoldenCase, tmp_path: Path) -> None:
    image = draw_image(tmp_path / "a.png")
    sizes = (64, 96) if other_golden.folder.name == "golden-rn" else (56, 28)
    both = load_detector(other_golden.folder, Views(sizes), other_golden.stages)
    each = [detector.detect_file(image) for detector in at_each_size(both)]
    check_detection(both.detect_file(image), mean_of(each))


@pytest.mark.parametrize("name", ["convnext", "pe-core"])
def test_results_of_a_tower_of_timm_with_a_bank_are_means(name: str, tmp_path: Path) -> None:
    good, image = draw_images(tmp_path / "good", 2), draw_image(tmp_path / "a.png", 50)
    both = load_detector(write_model(tmp_path / "model", name), Views((96, 64)))
    for paths in ([], sorted(good.iterdir())):
        detectors = [both, *at_each_size(both)]
        if paths:
            detectors = [detector.with_bank(bank_of(detector, paths)) for detector in detectors]
        together, *each = (detector.detect_file(image) for detector in detectors)
        check_detection(together, mean_of(each))
        assert (together.anomaly_map is not None) == bool(paths)


def test_the_default_size_given_changes_no_byte(model: list[str], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 2)
    scan(images, tmp_path / "default", *model)
    size = json.loads((tmp_path / "default" / "run.json").read_text())["model"]["image_size"]
    scan(images, tmp_path / "given", *model, "--image-size", size)
    assert contents_of_scan(tmp_path / "default") == contents_of_scan(tmp_path / "given")


def test_a_single_tile_gives_the_result_of_the_whole_image(golden_vit: GoldenCase, tmp_path: Path) -> None:
    tiled = load_detector(golden_vit.folder, Views((42,), 64), golden_vit.stages)
    [plain] = at_each_size(tiled)
    for size_wh in ((60, 40), (64, 64), (1, 1)):
        image = draw_image(tmp_path / "a.png", 0, size_wh)
        check_detection(tiled.detect_file(image), plain.detect_file(image))


def test_maps_of_tiled_images_have_the_size_of_the_canvas(model: list[str], tmp_path: Path) -> None:
    shapes = {"large.png": (130, 200), "long.png": (50, 1000), "tall.png": (1000, 50), "thin.png": (1, 20)}
    for seed, (name, (height, width)) in enumerate(shapes.items()):
        draw_image(tmp_path / "images" / name, seed, (width, height))
    scan(tmp_path / "images", tmp_path / "out", *model, *options_of(Views((42, 70), 50)), "--batch-size", 3)
    for name, shape in shapes.items():
        found = read_detection(tmp_path / "out", name)
        assert found.anomaly_map.shape == tuple(max(70, side) for side in lay_out(shape, 50, 42).canvas_hw)
        assert found.map_max == pytest.approx(float(found.anomaly_map.max()), abs=1e-6)


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


@pytest.mark.parametrize("command", ["scan", "enroll", "eval"])
@pytest.mark.parametrize("tile", ["0", "x"])
def test_a_tile_that_is_no_size_is_wrong_usage(tmp_path: Path, tile: str, command: str) -> None:
    result = run(command, tmp_path, "--tile", tile, *(["--part", "p"] if command == "enroll" else []))
    assert result.exit_code == 2
    assert "Invalid value for '--tile'" in result.stderr


def test_a_scan_is_resumed_with_the_same_views_only(model: list[str], tmp_path: Path) -> None:
    images, out = draw_good(tmp_path / "images", 4), tmp_path / "out"
    arguments = ["scan", str(images), *model]
    assert scan_into(arguments, out, *options_of(BOTH)).exit_code == 0
    assert [tifffile.imread(path).shape for path in sorted(out.rglob("*.tiff"))] == [(40, 60), (40, 105)] * 2
    before = contents_of_scan(out)
    lines = before["scores.csv"].splitlines(keepends=True)
    (out / "scores.csv").write_bytes(b"".join(lines[:3]))
    (out / "maps" / "003.png.tiff").unlink()
    refused = scan_into(arguments, out, *options_of(Views((42, 56), 60)), "--resume")
    assert refused.exit_code == 1
    assert "this run began differently (options.image_size: " in error_line(refused)
    assert "views.sizes: [42, 28] then, [42, 56] now; views.tile: 50 then, 60 now" in error_line(refused)
    resumed = scan_into(arguments, out, *options_of(BOTH), "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed: 2 kept, 2 new" in resumed.stdout
    assert contents_of_scan(out) == before


# Banks


def test_a_bank_remembers_its_views(part: Part, tmp_path: Path) -> None:
    new = draw_image(tmp_path / "images" / "new.png", 99)
    reference = Path(shutil.copy(part.good / "001.png", tmp_path / "images"))
    scan(tmp_path / "images", tmp_path / "out", "--part", "whole", "--banks", part.banks)
    for path, is_reference in ((reference, True), (new, False)):
        found, zero_shot = read_detection(tmp_path / "out", path.name), part.detector.detect_file(path)
        check_detection(found, part.detect(path, part.bank))
        assert found.text_score == pytest.approx(zero_shot.text_score, abs=1e-5)
        few_shot = found.anomaly_map - zero_shot.anomaly_map
        assert (np.abs(few_shot).max() < 1e-3) == is_reference
        assert few_shot.min() > -1e-4
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["views"] == {"sizes": list(part.views.sizes), "tile": part.views.tile}
    with tifffile.TiffFile(tmp_path / "out" / "maps" / "new.png.tiff") as tiff:
        assert json.loads(tiff.pages[0].description)["views"] == part.views.label


def test_a_loaded_bank_is_saved_to_the_same_bytes(part: Part, tmp_path: Path) -> None:
    assert part.bank.views == part.views
    save_bank(part.bank, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (part.banks / "whole.safetensors").read_bytes()


def test_inspect_shows_the_views_and_their_rows(part: Part) -> None:
    lines = [" ".join(line.split()) for line in run("inspect", part.banks / "whole.safetensors").stdout.splitlines()]
    assert f"views {part.views.label}" in lines
    rows = {f"size {size}": 4 * (size // 14) ** 2 for size in part.views.sizes}
    if part.views.tile is not None:
        rows["tiles"] = 9 * sum(len(lay_out((40, width), 50, 42)) for width in (60, 105, 60, 105))
    for stage in part.bank.spec.stages:
        for name, count in rows.items():
            assert any(line.startswith(f"stage {stage}, {name} {count} rows of 64") for line in lines)


def test_other_views_than_the_banks_are_refused(part: Part, tmp_path: Path) -> None:
    image, own, tile = draw_image(tmp_path / "a.png", 99), ",".join(map(str, part.views.sizes)), part.views.tile
    other, kept = ",".join(own.split(",")[::-1]), "none" if tile is None else tile
    for given, expected in (
        (["--image-size", "42"], f"image size {own}, not 42: omit --image-size"),
        (["--image-size", other], f"image size {own}, not {other}: omit --image-size"),
        (["--tile", "60"], f"tile {kept}, not 60: omit --tile"),
        (["--tile", "60", "--image-size", "42"], f"{own}, not 42; tile {kept}, not 60: omit --image-size and --tile"),
    ):
        for command in (["scan", "--out", tmp_path / "out"], ["enroll", "--append"]):
            result = run(*command, image, "--part", "whole", "--banks", part.banks, *given)
            assert result.exit_code == 1
            assert expected in error_line(result)
    for views in (Views((42,)), Views((42, 70), 60)):
        with pytest.raises(ArtifactError, match=f"{part.views.label}, not {views.label}"):
            Detector(part.detector.encoder, part.detector.text_features, views=views, bank=part.bank)


def test_settings_that_are_off_are_named_in_words(model: list[str], banks: Path, tmp_path: Path) -> None:
    images = draw_images(tmp_path / "good", 2)
    enroll(images, banks, "p", *model, "--image-size", 42)
    new = draw_image(tmp_path / "new.png", 99)
    arguments = ["enroll", new, "--append", "--part", "p", "--banks", banks, "--tile", 50, "--rotations"]
    assert "made with tile none, not 50; rotations off, not on: omit --tile and" in error_line(run(*arguments))


def check_equal(mine: MemoryBank, theirs: MemoryBank) -> None:
    """Compare rows, zero-shot evidence and calibration of two banks; last digits depend on the batch."""
    assert (mine.sources, mine.rows_per_source, mine.views) == (theirs.sources, theirs.rows_per_source, theirs.views)
    for own, other in zip(mine.features, theirs.features, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
    for own_image, other_image in zip(mine.zero_shot, theirs.zero_shot, strict=True):
        assert own_image.layout == other_image.layout
        for own_view, other_view in zip(own_image.views, other_image.views, strict=True):
            torch.testing.assert_close(own_view.text_scores, other_view.text_scores, atol=1e-5, rtol=0)
            torch.testing.assert_close(own_view.logits, other_view.logits, atol=1e-3, rtol=0)
    check_equal_calibrations(mine, theirs)


def check_equal_calibrations(mine: MemoryBank, theirs: MemoryBank) -> None:
    assert mine.calibration is not None
    assert theirs.calibration is not None
    assert mine.calibration.method == theirs.calibration.method
    np.testing.assert_allclose(mine.calibration.scores, theirs.calibration.scores, atol=1e-5)
    np.testing.assert_allclose(mine.calibration.map_maxima, theirs.calibration.map_maxima, atol=1e-5)


def test_a_bank_grown_from_one_reference_equals_enrolling_all_at_once(
    part: Part, model: list[str], banks: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copy(part.good / "000.png", tmp_path))
    alone = enroll(first, banks, "p", *model, *options_of(part.views))
    assert alone.calibration is not None
    assert (alone.calibration.method, len(alone.calibration)) == ("augmentations", 8)
    assert (alone.calibration.map_maxima[-4:] > part.detect(first, alone).map_max).all()  # those that are shifted
    grown = enroll(part.good, banks, "p", "--append", "--batch-size", 3)
    check_equal(grown, part.bank)


def test_leave_one_out_is_scanning_against_the_others(part: Part) -> None:
    scored = part.bank.calibration
    assert scored is not None
    assert scored.method == "leave-one-out"
    for number, path in enumerate(sorted(part.good.iterdir())):
        found = part.detect(path, without(part.bank, [number]))
        assert found.score == pytest.approx(float(scored.scores[number]), abs=1e-5)
        assert found.map_max == pytest.approx(float(scored.map_maxima[number]), abs=1e-5)


def test_a_coreset_keeps_its_share_of_each_view(part: Part, model: list[str], banks: Path) -> None:
    half = enroll(part.good, banks, "half", *model, *options_of(part.views), "--coreset", 0.5)
    for mine, theirs in zip(half.features, part.bank.features, strict=True):
        assert abs(len(mine) - len(theirs) / 2) <= 1
    for path in part.good.iterdir():
        assert part.detect(path, half).score >= part.detect(path, part.bank).score - 1e-3
    assert "coreset" in error_line(run("enroll", part.good, "--part", "half", "--banks", banks, "--append"))


def test_calibration_images_are_scored_again_or_given_again_when_the_bank_grows(
    part: Part, model: list[str], banks: Path, tmp_path: Path
) -> None:
    further, path = draw_images(tmp_path / "further", 3, 50), banks / "p.safetensors"
    calibrate = ["--calibrate", further]
    first = [part.good / "000.png", part.good / "001.png"]
    few = run("enroll", *first, "--part", "p", "--banks", banks, *model, *options_of(part.views), *calibrate)
    assert few.exit_code == 0, few.output
    shutil.copy(part.banks / "whole.safetensors", banks)
    result = run("enroll", "--part", "whole", "--banks", banks, *calibrate)
    assert result.exit_code == 0, result.output
    whole = load_bank(banks / "whole.safetensors")
    assert whole.calibration is not None
    assert whole.calibration_images is not None
    by_scan = [part.detect(image, whole).score for image in sorted(further.iterdir())]
    np.testing.assert_allclose(whole.calibration.scores, by_scan, atol=1e-5)
    assert len(whole.calibration_images.pixels) == (0 if part.views.tile else len(part.views.sizes))
    if part.views.tile is None:
        shutil.rmtree(further)  # the bank has what it needs
        calibrate = []
    else:
        before = path.read_bytes()
        refused = run("enroll", part.good, "--part", "p", "--banks", banks, "--append", "--quiet")
        assert refused.exit_code == 1
        assert f"{path}: made with tiles, without its calibration images; repeat --calibrate" in error_line(refused)
        assert path.read_bytes() == before
        more = draw_images(tmp_path / "more", 4, 70)
        replaced = run("enroll", "--part", "whole", "--banks", banks, "--calibrate", more)
        assert "replacing 3 calibration images of the bank" in replaced.stderr
        assert "calibrated on 4 scores of good images (held-out)" in replaced.stdout
    grown = enroll(part.good, banks, "p", "--append", *calibrate)
    check_equal_calibrations(grown, whole)
    save_bank(grown, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


# Evaluation


def test_eval_scores_as_enroll_and_scan_do(part: Part, model: list[str], banks: Path, tmp_path: Path) -> None:
    root, out = draw_object(tmp_path / "object", 100, train=3), tmp_path / "out"
    draw_image(root / "train" / "good" / "000.png", 100, (105, 40))  # another number of tiles
    draw_image(root / "test" / "good" / "000.png", 120, (105, 40))
    arguments = [*model[:4], *options_of(part.views), "--shots", "0,2", "--seeds", 1, "--batch-size", 4]
    result = run_eval(root, out, *arguments)
    assert result.exit_code == 0, result.output
    results = {found["shots"]: found for found in read_record(out)["results"]}
    paths = [root / name for name in results[2]["references"]]
    enrolled = run("enroll", *paths, "--part", "p", "--banks", banks, *model, *options_of(part.views))
    assert enrolled.exit_code == 0, enrolled.output
    detectors = {0: part.detector, 2: part.detector.with_bank(load_bank(banks / "p.safetensors"))}
    rows = read_rows(out)
    assert len(rows) == 2 * 6
    for shots, detector in detectors.items():
        truth, values = [], []
        for row in rows:
            if row["shots"] == str(shots):
                found = detector.detect_file(root / row["path"])
                assert float(row["score"]) == pytest.approx(found.score, abs=1e-5)
                assert float(row["map_max"]) == pytest.approx(found.map_max, abs=1e-5)
                path = root / "ground_truth" / row["defect"] / f"{Path(row['path']).stem}_mask.png"
                mask = np.asarray(Image.open(path)) > 0 if path.exists() else np.zeros((40, 60), bool)
                truth.append(resize_mask(mask, found.anomaly_map.shape).ravel())
                values.append(found.anomaly_map.ravel())
        expected = sklearn.metrics.roc_auc_score(np.concatenate(truth), np.concatenate(values))
        assert results[shots]["metrics"]["auroc_segm"] == pytest.approx(expected, abs=1e-4)


def test_eval_keeps_no_image_that_is_cut_into_tiles(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw_object(tmp_path / "object", 100, train=3)
    alive: list[int] = []

    def count_images(*arguments: object) -> list[object]:
        gc.collect()
        alive.append(sum(type(value) is SourceImage for value in gc.get_objects()))
        return []

    monkeypatch.setattr(eval_encoding, "find_copies", count_images)
    arguments = [*model[:4], *options_of(BOTH), "--shots", "0,2", "--seeds", 1, "--calibrate"]
    result = run_eval(root, tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    assert not any(alive)


def test_eval_refuses_wrong_tiles(parts: Path, model: list[str], tmp_path: Path) -> None:
    result = run_eval(parts, tmp_path / "out", *model[:4], "--image-size", "70,42", "--tile", 60, "--quiet")
    assert result.exit_code == 2
    assert "tile 60: smaller than the model's input of 70 pixels" in error_line(result)


# Training


def test_train_with_two_sizes_is_reproducible_and_recorded(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spotted = draw_spotted_object(tmp_path / "parts")
    first, resumed = tmp_path / "first.safetensors", tmp_path / "resumed.safetensors"
    sizes, single = ([*model[:4], "--image-size", given] for given in ("42,56", "42"))
    result = run_train(spotted, first, sizes, "--epochs", 2, "--workers", 4)
    assert result.exit_code == 0, result.output
    stop_in_second_epoch(spotted, resumed, sizes, monkeypatch)
    other = run_train(spotted, resumed, single, "--epochs", 2, "--resume", "--quiet")
    assert other.exit_code == 1
    assert "of another training (settings image_sizes [42, 56] against null)" in error_line(other)
    assert run_train(spotted, resumed, sizes, "--epochs", 2, "--resume").exit_code == 0
    assert first.read_bytes() == resumed.read_bytes()
    assert read_header(first).fields["settings"]["image_sizes"] == [42, 56]
    assert read_report(first)["settings"]["image_sizes"] == [42, 56]


def test_batches_take_turns_at_the_sizes_over_the_epochs(model: list[str], tmp_path: Path) -> None:
    spotted, losses = draw_spotted_object(tmp_path / "parts"), {}
    for sizes in ("42", "42,56"):
        out = tmp_path / f"{sizes}.safetensors"
        arguments = ["--image-size", sizes, "--batch-size", 16, "--epochs", 2]  # a batch in each epoch
        result = run_train(spotted, out, model[:4], *arguments)
        assert result.exit_code == 0, result.output
        losses[sizes] = [epoch["loss"] for epoch in read_report(out)["history"]]
        assert ("image_sizes" in read_header(out).fields["settings"]) == (sizes == "42,56")
    assert losses["42"][0] == losses["42,56"][0]
    assert losses["42"][1] != losses["42,56"][1]
