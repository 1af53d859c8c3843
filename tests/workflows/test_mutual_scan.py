"""`scan --mutual`: scores against a slow computation, and interrupted scans that end with the same bytes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from forked import ForkedProcess
from helpers import contents_of_scan, draw_image, draw_images, error_line, read_rows, run, save_image
from PIL import Image, ImageOps

from aprilcli.core import mutual, mutual_subsets
from aprilcli.core.detector import Detector
from aprilcli.core.resizing import resize_map
from aprilcli.io.images import read_image
from aprilcli.workflows import mutual_encoding, mutual_features, mutual_scan

COUNT = 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nearly equal images in two folders, one with a defect, and a file that cannot be read."""
    base = np.random.default_rng(0).integers(60, 200, (40, 60, 3))
    for number in range(COUNT):
        noise = np.random.default_rng(number + 1).normal(0, 4, base.shape)
        pixels = np.clip(base + noise, 0, 255).astype(np.uint8)
        if number == 5:
            pixels[10:25, 20:45] = (250, 10, 10)
        save_image(tmp_path / "images" / "ab"[number % 2] / f"{number:02}.png", Image.fromarray(pixels))
    (tmp_path / "images" / "a" / "03 broken.png").write_bytes(b"broken")
    return tmp_path / "images"


@pytest.fixture
def command(folder: Path, model: list[str]) -> list[str]:
    """The command line of a scan, without its output folder."""
    return ["scan", str(folder), *model, "--mutual", "--device", "cpu"]


@pytest.fixture
def small_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make subsets of at most ten images, each of which may be smaller than usual."""
    monkeypatch.setattr(mutual_subsets, "LARGEST", 10)


def everything(out: Path) -> dict[str, bytes]:
    """Return the bytes that a resumed scan must reproduce."""
    zero_shot = (path for path in (out / "zero_shot_maps").rglob("*") if path.is_file())
    return contents_of_scan(out) | {path.relative_to(out).as_posix(): path.read_bytes() for path in zero_shot}


def scored(out: Path) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in read_rows(out) if row["status"] == "ok"}


def test_scores_and_maps_are_those_of_the_method(command: list[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*command, "--out", out)
    assert result.exit_code == 3, result.output
    assert "mutual scores run from 0 to 1" in result.stderr
    rows = scored(out)
    assert len(rows) == COUNT
    assert max(rows, key=lambda path: float(rows[path]["score"])) == "b/05.png"
    detector = Detector.load(command[3], image_size=70, stages=(2, 4, 6, 8), device="cpu")
    images = [detector.prepare(read_image(folder / path)) for path in rows]
    features = [next(iter(detector.encode([image])))[2] for image in images]
    stages = [torch.cat([f.patch_tokens[n] for f in features]).half() for n in range(4)]
    scores = [mutual.stage_scores(tokens, COUNT, grid) for tokens, grid in zip(stages, features[0].grids, strict=True)]
    maps = [mutual.mutual_map([stage[k] for stage in scores], 70) for k in range(COUNT)]
    maxima = torch.tensor([values.max() for values in maps])
    smoothed = mutual.smoothed_scores(maxima, torch.cat([f.image for f in features]))
    for k, (path, row) in enumerate(rows.items()):
        assert float(row["score"]) == pytest.approx(float(smoothed[k]), abs=1e-5)
        assert float(row["map_max"]) == pytest.approx(float(maxima[k]), abs=1e-5)
        np.testing.assert_allclose(
            tifffile.imread(out / "maps" / f"{path}.tiff"), resize_map(maps[k], (40, 60)), atol=1e-5
        )


def test_zero_shot_results_stand_beside_the_scores(command: list[str], folder: Path, tmp_path: Path) -> None:
    run(*command, "--out", tmp_path / "out")
    plain = [argument for argument in command if argument != "--mutual"]
    run(*plain, "--out", tmp_path / "plain")
    mine, theirs = scored(tmp_path / "out"), scored(tmp_path / "plain")
    for path, row in mine.items():
        assert (row["text_score"], row["zero_shot_max"]) == (theirs[path]["text_score"], theirs[path]["map_max"])
        assert theirs[path]["zero_shot_max"] == ""
        own = tifffile.imread(tmp_path / "out" / "zero_shot_maps" / f"{path}.tiff")
        np.testing.assert_array_equal(own, tifffile.imread(tmp_path / "plain" / "maps" / f"{path}.tiff"))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["mutual"]["note"] == "scores depend on the other images of the folder"
    assert not (tmp_path / "out" / ".mutual").exists()


def interrupts(*_: object) -> None:
    raise KeyboardInterrupt


STEPS: dict[str, tuple[object, str]] = {
    "encoding": (mutual_encoding, "_encode_batch"),
    "comparing": (mutual_scan, "_compare_subset"),
    "writing": (mutual_scan, "finish"),
}


@pytest.mark.usefixtures("small_subsets")
@pytest.mark.parametrize("batch_size", ["1", "4"])
@pytest.mark.parametrize("step", STEPS)
def test_a_scan_that_fails_anywhere_ends_with_the_same_bytes(
    step: str, batch_size: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual_scan, "LEAST", 1)
    command += ["--batch-size", batch_size]
    run(*command, "--out", tmp_path / "whole")
    module, name = STEPS[step]
    own: Callable[..., object] = getattr(module, name)
    calls = []

    def fails_once(*arguments: object) -> object:
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(module, name, fails_once)
    out = tmp_path / "out"
    assert run(*command, "--out", out).exit_code == 130
    encoded = (out / ".mutual" / "encoded.jsonl").read_bytes()
    with (out / ".mutual" / "encoded.jsonl").open("ab") as stream:
        stream.write(b'{"path": "torn')
    before = len(calls)
    result = run(*command, "--out", out, "--resume")
    assert result.exit_code == 3, result.output
    assert everything(out) == everything(tmp_path / "whole")
    if step == "comparing":
        assert encoded.count(b"\n") == COUNT + 1
        subsets = mutual_subsets.split(sorted(scored(out)))
        assert len(calls) - before == len(subsets) - 1  # the first was kept


def test_a_killed_scan_ends_with_the_same_bytes(command: list[str], tmp_path: Path) -> None:
    run(*command, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    process = ForkedProcess(*command, "--out", out)
    deadline = time.monotonic() + 60
    lines = out / ".mutual" / "encoded.jsonl"
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    result = run(*command, "--out", out, "--resume")
    assert result.exit_code == 3, result.output
    assert everything(out) == everything(tmp_path / "whole")


def test_a_finished_scan_is_kept_and_a_changed_folder_is_scored_again(
    command: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(*command, "--out", out)
    before = everything(out)
    with monkeypatch.context() as patch:
        patch.setattr(mutual_encoding, "_encode_batch", None)
        result = run(*command, "--out", out, "--resume")
    assert (result.exit_code, everything(out)) == (3, before)
    assert f"resumed: {COUNT + 1} kept, 0 new" in result.stdout
    shutil.copy(folder / "a" / "00.png", folder / "a" / "new.png")
    result = run(*command, "--out", out, "--resume")
    assert "images or results have changed since then" in result.stderr
    run(*command, "--out", tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


@pytest.mark.usefixtures("small_subsets")
@pytest.mark.parametrize("step", ["_compare_subset", "finish"])
def test_images_added_or_removed_before_a_resume(
    step: str, command: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual_scan, "LEAST", 1)
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutual_scan, step, stop)
        assert run(*command, "--out", out).exit_code == 130
    draw_image(folder / "a" / "00 new.png", 3)
    (folder / "b" / "09.png").unlink()
    assert run(*command, "--out", out, "--resume").exit_code == 3
    run(*command, "--out", tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


def test_an_image_that_comes_and_goes_between_interrupted_runs(
    command: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        draw_image(folder / "a" / f"1 more {number}.png", 50 + number)
        draw_image(folder / "b" / f"more {number}.png", 60 + number)
    command += ["--mutual-by", "folder"]
    out, own = tmp_path / "out", mutual_scan._compare_subset
    monkeypatch.setattr(mutual_scan, "finish", interrupts)
    assert run(*command, "--out", out).exit_code == 130
    draw_image(folder / "a" / "00 new.png", 3)  # moves all other images by one
    calls = []

    def interrupts_the_second(*arguments: Any) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(mutual_scan, "_compare_subset", interrupts_the_second)
    assert run(*command, "--out", out, "--resume").exit_code == 130
    (folder / "a" / "00 new.png").unlink()
    monkeypatch.undo()
    assert run(*command, "--out", out, "--resume").exit_code == 3
    run(*command, "--out", tmp_path / "whole")
    assert everything(out) == everything(tmp_path / "whole")


@pytest.mark.parametrize("step", ["before", "while"])
def test_a_scan_that_stops_at_the_very_end_is_finished_by_a_resume(
    step: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command += ["--threshold", "0.5"]
    run(*command, "--out", tmp_path / "whole")
    out = tmp_path / "out"

    def removes_a_part(state: Path) -> None:
        if step == "while":
            shutil.rmtree(state / "tokens")
            shutil.rmtree(state / "scores")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mutual_scan, "remove_tree", removes_a_part)
        assert run(*command, "--out", out).exit_code == 130
    assert run(*command, "--out", out, "--resume").exit_code == 3
    assert everything(out) == everything(tmp_path / "whole")
    assert not (out / ".mutual").exists()
    assert json.loads((out / "run.json").read_text())["counts"]


@pytest.mark.usefixtures("small_subsets")
def test_an_added_image_changes_only_its_own_subset(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual_scan, "LEAST", 1)
    images = draw_images(tmp_path / "images", 24)
    command = ["scan", images, *model, "--mutual", "--no-maps", "--device", "cpu"]
    run(*command, "--out", tmp_path / "first")
    draw_image(images / "new.png", 99)
    run(*command, "--out", tmp_path / "second")
    first, second = scored(tmp_path / "first"), scored(tmp_path / "second")
    changed = {path for path in first if first[path] != second[path]}
    names = sorted(first)
    own = [{names[k] for k in subset} for subset in mutual_subsets.split(names)]
    assert changed <= next(subset for subset in own if changed & subset)
    assert 0 < len(changed) < len(first)


def test_folders_by_themselves(command: list[str], folder: Path, tmp_path: Path) -> None:
    draw_images(folder / "a", 3, 50)
    draw_images(folder / "b", 3, 60)
    run(*command, "--mutual-by", "folder", "--out", tmp_path / "both")
    alone = ["scan", str(folder / "a"), *command[2:], "--out", tmp_path / "alone"]
    run(*alone)
    both, one = scored(tmp_path / "both"), scored(tmp_path / "alone")
    for path, row in one.items():
        assert both[f"a/{path}"]["score"] == row["score"]


def enroll(folder: Path, model: list[str], tmp_path: Path, *more: object) -> None:
    good = tmp_path / "good"
    for number, path in enumerate(sorted((folder / "a").glob("*0*.png"))[:3]):
        if "broken" not in path.name:
            with Image.open(path) as image:
                save_image(good / f"{number}.png", image.point(lambda value: min(255, value + 2)))
    options = ("--part", "bolt", "--banks", tmp_path / "banks", *model, *more)
    result = run("enroll", good, *options)
    assert result.exit_code == 0, result.output


def noisy_copy(image: Path, seed: int) -> Image.Image:
    """Return an image with noise, as another photograph of the same part."""
    noise = np.random.default_rng(seed).normal(0, 4, (40, 60, 3))
    with Image.open(image) as source:
        return Image.fromarray(np.clip(np.asarray(source) + noise, 0, 255).astype(np.uint8))


def test_known_good_images_give_thresholds_and_p_values(folder: Path, model: list[str], tmp_path: Path) -> None:
    further = tmp_path / "further"
    for number in range(17):
        save_image(further / f"{number:02}.png", noisy_copy(folder / "b" / "01.png", 100 + number))
    enroll(folder, model, tmp_path, "--calibrate", further)
    out = tmp_path / "out"
    options = ("--part", "bolt", "--banks", tmp_path / "banks", "--device", "cpu", "--fail-on-anomaly", "--report")
    result = run("scan", folder, "--mutual", *options, "--out", out)
    assert result.exit_code == 5, result.output
    rows = scored(out)
    assert rows["b/05.png"]["verdict"] in ("anomalous", "unrecognised")
    for row in rows.values():
        known = len(list(further.iterdir())) + 2
        steps = float(row["p_value"]) * (known + 1)
        assert steps == pytest.approx(round(steps), abs=1e-3)
        assert (float(row["score"]) >= float(row["threshold"])) == (float(row["p_value"]) <= 0.05)
    record = json.loads((out / "run.json").read_text())
    assert record["threshold"]["guaranteed"]
    assert len(rows) == COUNT  # no rows of the known images
    assert (out / "report.html").exists()


def test_copies_of_known_images_in_the_folder_do_not_count(folder: Path, model: list[str], tmp_path: Path) -> None:
    enroll(folder, model, tmp_path)
    shutil.copy(tmp_path / "good" / "0.png", folder / "a" / "copy.png")
    options = ("--part", "bolt", "--banks", tmp_path / "banks", "--device", "cpu")
    result = run("scan", folder, "--mutual", *options, "--out", tmp_path / "out")
    assert "do not count as known good images here" in result.stderr
    p_values = {float(row["p_value"]) for row in scored(tmp_path / "out").values()}
    assert p_values <= {0.5, 1.0}  # of one known image: two were enrolled


def test_subsets_without_defects_do_not_hide_those_of_others(folder: Path, model: list[str], tmp_path: Path) -> None:
    good = tmp_path / "further"
    for number in range(20):
        save_image(good / f"{number:02}.png", noisy_copy(folder / "b" / "01.png", 100 + number))
        if number < 8:
            other = noisy_copy(good / f"{number:02}.png", 200 + number)
            save_image(folder / "ab"[number % 2] / f"more{number}.png", other)
            save_image(folder / "c" / f"{number}.png", ImageOps.mirror(other))
    enroll(folder, model, tmp_path, "--calibrate", good)
    options = ("--part", "bolt", "--banks", tmp_path / "banks", "--device", "cpu", "--mutual-by", "folder")
    assert run("scan", folder, "--mutual", *options, "--out", tmp_path / "out").exit_code == 3
    row = scored(tmp_path / "out")["b/05.png"]
    assert float(row["score"]) >= float(row["threshold"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tile", "80"], "--mutual compares whole images, without tiles"),
        (["--fail-on-anomaly"], "no image can be anomalous without a threshold"),
        (["--mutual-by", "folder"], "folder 'b': 7 readable images, but at least 8 are needed"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], said: str, command: list[str], tmp_path: Path) -> None:
    assert said in error_line(run(*command, *arguments, "--out", tmp_path / "out"))


def test_seven_images_are_refused_at_once(model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images(tmp_path / "images", 7)
    result = run("scan", images, "--mutual", *model, "--out", tmp_path / "out")
    assert "7 images, but --mutual needs at least 8" in error_line(result)
    (images / "broken.png").write_bytes(b"broken")
    result = run("scan", images, "--mutual", *model, "--out", tmp_path / "out", "--device", "cpu")
    assert "7 readable images, but at least 8 are needed" in error_line(result)


def test_a_folder_with_too_few_images_is_refused_before_results_are_deleted(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*command, "--out", out)
    before = everything(out)
    result = run(*command, "--mutual-by", "folder", "--out", out, "--overwrite")
    assert "folder 'b': 7 readable images, but at least 8 are needed" in error_line(result)
    assert everything(out) == before


def test_an_empty_folder_that_is_allowed(model: list[str], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    result = run("scan", tmp_path / "images", "--mutual", "--allow-empty", *model, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_results_among_the_images_are_not_scanned(command: list[str], folder: Path) -> None:
    run(*command, "--out", folder / "out")
    before = everything(folder / "out")
    result = run(*command, "--out", folder / "out", "--resume")
    assert "out/zero_shot_maps/" in result.stderr
    assert f"resumed: {COUNT + 1} kept, 0 new" in result.stdout
    assert everything(folder / "out") == before


def test_zero_shot_maps_are_not_replaced_by_their_own_scan(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(*command, "--out", out)
    before = everything(out)
    result = run("scan", out / "zero_shot_maps", *command[2:], "--out", out, "--overwrite")
    assert "these are the maps in --out" in error_line(result)
    assert everything(out) == before


def test_a_disk_without_room_is_one_line_with_the_size(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual_features, "free_bytes", lambda _: 1000)
    line = error_line(run(*command, "--out", tmp_path / "out"))
    assert "keeps the features of 15 images here, 0.00 GiB, but only 0.00 GiB are free" in line


def test_a_bank_without_the_tokens_is_one_line(folder: Path, model: list[str], tmp_path: Path) -> None:
    enroll(folder, model, tmp_path, "--coreset", "0.5")
    options = ("--part", "bolt", "--banks", tmp_path / "banks", "--device", "cpu")
    result = run("scan", folder, "--mutual", *options, "--out", tmp_path / "out")
    assert "is a coreset: it lacks features of its references" in error_line(result)


def test_two_parts_in_a_folder_give_a_note(tmp_path: Path) -> None:
    for number in range(10):
        shade = np.random.default_rng(number).integers(0, 4, (64, 64, 3))
        save_image(tmp_path / "images" / f"dark{number}.png", Image.fromarray((20 + shade).astype(np.uint8)))
        draw_image(tmp_path / "images" / f"noise{number}.png", number, (64, 64))
    result = run("scan", tmp_path / "images", "--mutual", "--image-size", "64", "--out", tmp_path / "out")
    assert "--mutual-by folder" in result.stderr
