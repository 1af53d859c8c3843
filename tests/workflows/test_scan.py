"""`scan` through the command line, on a real (tiny) open_clip folder: files, order, numbers, exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import GOLDEN, QUERIES, GoldenCase, draw_image, error_line, read_rows, run_scan
from PIL import Image

HEADER = (
    "path,status,score,text_score,map_max,p_value,threshold,verdict,width,height,error,regions,peak_x,peak_y,cause,"
    "zero_shot_max"
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    draw_image(folder / "b" / "two.png", 2)
    draw_image(folder / "a.jpg", 1, (33, 20))
    draw_image(folder / "b" / "one.PNG", 3)
    return folder


def test_the_files_hold_the_golden_numbers(golden: GoldenCase, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for query in QUERIES:
        shutil.copy(GOLDEN / "images" / f"{query}.png", images)
    out = tmp_path / "out"
    arguments = ["--model", golden.folder, "--image-size", golden.image_size, "--object", "metal nut"]
    arguments += ["--stages", ",".join(map(str, golden.stages)), "--map-size", "model", "--out", out]
    assert run_scan(images, *arguments).exit_code == 0
    for row, query in zip(read_rows(out), QUERIES, strict=True):
        expected = golden.numbers[f"{query}/zero_shot_map"]
        written = torch.from_numpy(tifffile.imread(out / "maps" / f"{query}.png.tiff"))
        torch.testing.assert_close(written, expected, atol=1e-4, rtol=0)
        assert float(row["text_score"]) == pytest.approx(float(golden.numbers[f"{query}/probability"][1]), abs=1e-5)
        assert float(row["map_max"]) == pytest.approx(float(expected.max()), abs=1e-4)
        assert row["score"] == row["text_score"]


def test_one_sorted_row_and_one_map_per_image(images: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_scan(images, *model, "--out", out)
    assert result.exit_code == 0, result.output
    assert (out / "scores.csv").read_bytes().split(b"\r\n")[0].decode() == HEADER
    assert [row["path"] for row in read_rows(out)] == ["a.jpg", "b/one.PNG", "b/two.png"]
    assert [(row["width"], row["height"]) for row in read_rows(out)] == [("33", "20"), ("60", "40"), ("60", "40")]
    assert {row["status"] for row in read_rows(out)} == {"ok"}
    written = sorted(path.relative_to(out / "maps").as_posix() for path in (out / "maps").rglob("*.*"))
    assert written == ["a.jpg.tiff", "b/one.PNG.tiff", "b/two.png.tiff"]
    with tifffile.TiffFile(out / "maps" / "a.jpg.tiff") as tiff:
        page = tiff.pages[0]
        values = page.asarray()
        assert len(tiff.pages) == 1
        assert (values.dtype, values.shape, page.compression.name) == (np.float32, (20, 33), "ADOBE_DEFLATE")
        assert json.loads(page.description)["range"] == [float(values.min()), float(values.max())]
    with Image.open(out / "maps" / "a.jpg.tiff") as image:  # another reader sees the same values
        assert np.array_equal(np.asarray(image), values)


def test_run_json_records_settings(images: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path) -> None:
    run_scan(images, *model, "--out", tmp_path / "out")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["model"]["fingerprint"] == golden_vit.backbone.spec.fingerprint
    assert run["projector"]["fingerprint"] == golden_vit.projector.identity["fingerprint"]
    assert run["counts"] == {"scored": 3, "unreadable": 0, "anomalous": 0, "unrecognised": 0}
    assert run["started"] <= run["finished"]
    assert run["options"]["map_size"] == "source"
    assert run["versions"]["torch"]


def test_a_score_depends_only_on_its_image(images: Path, model: list[str], tmp_path: Path) -> None:
    draw_image(images / "c.png", 4)
    run_scan(images, *model, "--out", tmp_path / "each")
    run_scan(images, *model, "--out", tmp_path / "batch", "--batch-size", 3, "--workers", 1)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(images / "c.png", alone)
    run_scan(alone, *model, "--out", tmp_path / "single")
    each, batch = read_rows(tmp_path / "each"), read_rows(tmp_path / "batch")
    for mine, theirs in zip(each, batch, strict=True):
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), abs=1e-5)
        assert float(mine["map_max"]) == pytest.approx(float(theirs["map_max"]), abs=1e-5)
    assert read_rows(tmp_path / "single")[0] == {**each[-1], "path": "c.png"}


def test_unreadable_files_get_their_row_and_exit_3(images: Path, model: list[str], tmp_path: Path) -> None:
    (images / "b" / "broken.jpg").write_bytes(b"not an image")
    result = run_scan(images, *model, "--out", tmp_path / "out")
    assert result.exit_code == 3
    broken = read_rows(tmp_path / "out")[1]
    assert (broken["path"], broken["status"], broken["score"]) == ("b/broken.jpg", "error", "")
    assert broken["error"]
    assert [row["status"] for row in read_rows(tmp_path / "out")] == ["ok", "error", "ok", "ok"]
    assert "1 could not be read" in result.stdout
    both = run_scan(images, *model, "--out", tmp_path / "both", "--threshold", 0, "--fail-on-anomaly")
    assert both.exit_code == 5
    assert "3 anomalous" in both.stdout
    assert "1 could not be read" in both.stdout
    counts = json.loads((tmp_path / "both" / "run.json").read_text())["counts"]
    assert counts == {"scored": 3, "unreadable": 1, "anomalous": 3, "unrecognised": 0}


def test_an_empty_folder_is_accepted_on_request(model: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [tmp_path / "empty", *model, "--out", tmp_path / "out", "--allow-empty"]
    result = run_scan(*arguments)
    assert result.exit_code == 0, result.output
    assert "0 images scored" in result.stdout
    assert "verdict" not in result.stdout
    assert (tmp_path / "out" / "scores.csv").read_text() == HEADER + "\n"
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(run["counts"].values()) == {0}
    assert run["finished"]
    draw_image(tmp_path / "empty" / "a.png")
    assert run_scan(*arguments[:-1], "--resume").exit_code == 0
    assert len(read_rows(tmp_path / "out")) == 1


def test_a_given_file_that_is_no_image_gets_a_row(model: list[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    assert run_scan(tmp_path / "notes.txt", *model, "--out", tmp_path / "out").exit_code == 3
    assert "not an image" in read_rows(tmp_path / "out")[0]["error"]


def test_the_summary_on_stdout_has_the_five_highest_scores_and_stderr_the_notes(
    model: list[str], tmp_path: Path
) -> None:
    for seed in range(7):
        draw_image(tmp_path / "images" / f"{seed}.png", seed)
    result = run_scan(tmp_path / "images", *model, "--out", tmp_path / "out")
    scores = sorted(((float(row["score"]), row["path"]) for row in read_rows(tmp_path / "out")), reverse=True)
    named = [line.split()[-1] for line in result.stdout.splitlines() if line.endswith(".png")]
    assert named == [path for _, path in scores[:5]]
    assert "no verdicts: without good images or a threshold" in result.stdout
    histogram = [line.split() for line in result.stdout.splitlines() if " to " in line]
    counts = np.histogram([score for score, _ in scores], 10, (0, 1))[0]
    assert [int(line[-1]) if "#" in line[-2] else 0 for line in histogram] == counts.tolist()
    assert "aprilcli enroll" in result.stdout
    assert "--threshold" in result.stdout
    assert result.stderr == ""  # not a terminal: no bar; this model has nothing to say


def test_threshold_gives_verdicts_and_fail_on_anomaly_exit_4(images: Path, model: list[str], tmp_path: Path) -> None:
    run_scan(images, *model, "--out", tmp_path / "first")
    highest = max(read_rows(tmp_path / "first"), key=lambda row: float(row["score"]))
    arguments = [images, *model, "--threshold", highest["score"], "--fail-on-anomaly"]
    second = run_scan(*arguments, "--out", tmp_path / "second")
    assert second.exit_code == 4
    assert f"1 anomalous (score at least {float(highest['score']):.4f})" in second.stdout
    assert "no verdicts" not in second.stdout
    assert [line.split()[-1] for line in second.stdout.splitlines() if line.endswith((".png", ".PNG", ".jpg"))] == [
        highest["path"]
    ]
    verdicts = {row["path"]: row["verdict"] for row in read_rows(tmp_path / "second")}
    assert verdicts == {path: "anomalous" if path == highest["path"] else "normal" for path in verdicts}
    assert run_scan(images, *model, "--threshold", 2, "--fail-on-anomaly", "--out", tmp_path / "third").exit_code == 0


def test_a_false_alarm_rate_without_a_part_gives_a_note(images: Path, model: list[str], tmp_path: Path) -> None:
    result = run_scan(images, *model, "--false-alarm-rate", 0.05, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "--false-alarm-rate has no effect without --part" in result.stderr


def test_no_maps(images: Path, model: list[str], tmp_path: Path) -> None:
    assert run_scan(images, *model, "--no-maps", "--out", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "maps").exists()
    assert all(row["map_max"] for row in read_rows(tmp_path / "out"))


def test_a_model_without_a_projector_gives_text_scores_only_and_one_note(
    images: Path, bare_model: Path, tmp_path: Path
) -> None:
    result = run_scan(images, "--model", bare_model, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.count("no projector") == 1
    assert not (tmp_path / "out" / "maps").exists()
    assert all(row["score"] and not row["map_max"] for row in read_rows(tmp_path / "out"))


def test_results_inside_the_scanned_folder_are_not_scanned(images: Path, model: list[str]) -> None:
    out = images / "results"
    assert run_scan(images, *model, "--out", out).exit_code == 0
    assert run_scan(images, *model, "--out", out, "--overwrite").exit_code == 0
    assert len(read_rows(out)) == 3


def test_results_are_never_overwritten_without_the_option(images: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_scan(images, *model, "--out", out)
    before = (out / "scores.csv").read_bytes()
    refused = run_scan(images, *model, "--out", out)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    (images / "a.jpg").unlink()
    assert (out / "scores.csv").read_bytes() == before
    assert run_scan(images, *model, "--out", out, "--overwrite").exit_code == 0
    assert not (out / "maps" / "a.jpg.tiff").exists()  # nothing of the old run is left


@pytest.mark.parametrize(
    ("folder", "arguments", "code", "expected"),
    [
        ("missing", [], 1, "does not exist"),
        ("empty", [], 1, "no images"),
        ("images", ["--model", "ViT-Z-99"], 1, "unknown model"),
        ("images", ["--model", "paper"], 1, "use the model tiny"),
        ("images", ["--stages", "2,4,6,9"], 2, "8 stages"),
        ("images", ["--image-size", "60"], 2, "multiple of 14"),
        ("images", ["--projector", "missing.safetensors"], 1, "missing.safetensors"),
        ("images", ["--projector", "notes.txt"], 1, "notes.txt"),
        ("images", ["--out", "notes.txt"], 1, "notes.txt"),
    ],
)
def test_bad_input_is_one_line(
    images: Path,
    model: list[str],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    arguments: list[str],
    code: int,
    expected: str,
) -> None:
    monkeypatch.chdir(images.parent)
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    result = run_scan(folder, *model, *arguments)
    assert result.exit_code == code
    assert expected in error_line(result)


def test_a_projector_for_another_model_is_refused_with_both_sides(
    golden_vit: GoldenCase, other_golden: GoldenCase, images: Path, tmp_path: Path
) -> None:
    projector = golden_vit.folder / "projector.safetensors"
    line = error_line(run_scan(images, *other_golden.options, "--projector", projector, "--out", tmp_path / "out"))
    assert golden_vit.folder.name in line
    assert other_golden.folder.name in line
    assert "activation gelu against quickgelu" in line or "stage_widths 64,64,64,64 against 64,128,256,512" in line
    own = run_scan(images, *golden_vit.options, "--projector", projector, "--out", tmp_path / "own")
    assert own.exit_code == 0, own.output


def test_a_projector_of_another_stage_count_is_refused(golden_vit: GoldenCase, images: Path, tmp_path: Path) -> None:
    result = run_scan(images, "--model", golden_vit.folder, "--stages", "2,4,6", "--out", tmp_path / "out")
    assert "stages 2,4,6,8 against 2,4,6" in error_line(result)


@pytest.mark.parametrize("arguments", [["x" * 300], ["images", "--out", "y" * 300], ["images", "--model", "z" * 300]])
def test_names_longer_than_any_path_are_one_line(
    images: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(images.parent)
    result = run_scan(arguments[0], *model, *arguments[1:])
    assert result.exit_code == 1
    error_line(result)
