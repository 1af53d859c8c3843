"""`eval --method` and `eval --mutual`: several methods on the same encoded images."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from helpers import (
    EVAL_SETTINGS,
    GoldenCase,
    draw_image,
    draw_object,
    error_line,
    read_csv,
    read_record,
    read_rows,
    run,
    run_eval,
)

from aprilcli.core.mutual import mutual_map, smoothed_scores, stage_scores
from aprilcli.defaults import WITHOUT_REFERENCES
from aprilcli.io.feature_store import FeatureStore
from aprilcli.io.images import read_image, to_pixels
from aprilcli.workflows import mutual_features

RIVALS = ("spade", "padim", "patchcore", "winclip", "subspacead")
SEVERAL = ("--method", ",".join(("april-gan", *RIVALS)))

each_rival = pytest.mark.parametrize("method", RIVALS)


@pytest.fixture
def nut(tmp_path: Path) -> Path:
    """A labeled folder of one object."""
    return draw_object(tmp_path / "labeled" / "nut", 100, train=3)


@pytest.fixture
def eight(tmp_path: Path) -> Path:
    """A labeled folder of one object with eight test images."""
    root = draw_object(tmp_path / "labeled" / "nut", 100, train=3)
    for number in (3, 4):
        draw_image(root / "test" / "good" / f"{number:03}.png", 300 + number)
    return root


def test_every_method_has_its_rows_and_april_gan_its_numbers(nut: Path, model: list[str], tmp_path: Path) -> None:
    result = run_eval(nut, tmp_path / "several", *SEVERAL, *EVAL_SETTINGS, *model)
    assert result.exit_code == 0, result.output
    run_eval(nut, tmp_path / "alone", *EVAL_SETTINGS, *model)
    for name in ("metrics.csv", "scores.csv"):
        several, alone = (read_csv(tmp_path / out / name) for out in ("several", "alone"))
        assert [row for row in several if row["method"] == "april-gan"] == alone
        for method in RIVALS:
            of_method = [row for row in several if row["method"] == method]
            assert {row["shots"] for row in of_method} == {"1", "2"} | (
                {"0"} if method in WITHOUT_REFERENCES else set()
            )
            assert {row["seed"] for row in of_method} >= {"0", "1"}
    several, alone = (read_record(tmp_path / out) for out in ("several", "alone"))
    for name in ("results", "summaries"):
        assert [row for row in several[name] if row["method"] == "april-gan"] == alone[name]
    for method in RIVALS:
        assert method in result.stdout


@each_rival
def test_scores_are_those_of_a_bank_of_the_same_references(
    method: str, nut: Path, model: list[str], banks: Path, tmp_path: Path
) -> None:
    result = run_eval(nut, tmp_path / "drawn", "--method", method, "--shots", 2, "--seeds", 1, *model)
    assert result.exit_code == 0, result.output
    (drawn,) = read_record(tmp_path / "drawn")["results"]
    good = tmp_path / "good"
    good.mkdir()
    for number, path in enumerate(drawn["references"]):  # PatchCore's coreset depends on their order
        shutil.copy(nut / path, good / f"{number}.png")
    chosen = ("--part", "p", "--banks", banks)
    enrolled = run("enroll", good, *chosen, "--method", method, "--object", "nut", *model)
    assert enrolled.exit_code == 0, enrolled.output
    measured = run_eval(nut, tmp_path / "enrolled", *chosen)
    assert measured.exit_code == 0, measured.output
    for mine, theirs in zip(read_rows(tmp_path / "drawn"), read_rows(tmp_path / "enrolled"), strict=True):
        assert (mine["path"], mine["method"]) == (theirs["path"], method)
        for name in ("score", "map_max", "text_score"):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=1e-4)
    record = read_record(tmp_path / "enrolled")
    assert record["bank"]["method"] == record["settings"][0]["method"] == method


def test_report_plots_maps_and_verdicts_of_several_methods(nut: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--shots", "0,1", "--seeds", 1, "--calibrate", "--report", "--plots", "--maps")
    result = run_eval(nut, out, *SEVERAL, *options, *model)
    assert result.exit_code == 0, result.output
    page = (out / "report.html").read_text()
    assert (out / "plots" / "nut.png").exists()
    assert len(list((out / "anomaly_maps").rglob("*.tiff"))) == 6
    verdicts = read_record(out)["verdicts"]
    assert [(verdict["shots"], verdict["method"]) for verdict in verdicts] == [
        *((0, method) for method in WITHOUT_REFERENCES),
        (1, "april-gan"),
        *((1, method) for method in RIVALS),
    ]
    for method in RIVALS:
        assert f"1 shot, {method}" in page
    assert page.count("not guaranteed</td>") == len(verdicts)  # at the rate in use only


def test_methods_that_are_refused(nut: Path, model: list[str], tmp_path: Path) -> None:
    for options, expected in (
        (["--method", "cutpaste"], "--method cutpaste: give all, or methods among april-gan"),
        (["--method", ""], "--method : give all"),
        (["--method", "spade", "--shots", 0], "--method spade: needs references; give --shots of 1 or more"),
    ):
        line = error_line(run_eval(nut, tmp_path / "out", *options, *model))
        assert expected in line


def test_mutual_scores_equal_a_direct_computation(
    eight: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run_eval(eight, out, "--mutual", "--shots", "0,1", "--seeds", 1, *model, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    rows = [row for row in read_rows(out) if row["method"] == "mutual"]
    spec = golden_vit.backbone.spec
    pixels = [to_pixels(read_image(eight / row["path"]), 70, spec.mean, spec.std) for row in rows]
    features = [golden_vit.encoder.encode(image[None]) for image in pixels]
    stages = [
        stage_scores(torch.cat([image.patch_tokens[number].half() for image in features]), 8, grid)
        for number, grid in enumerate(golden_vit.encoder.grids)
    ]
    maxima = [float(mutual_map([stage[k] for stage in stages], 70).max()) for k in range(8)]
    scores = smoothed_scores(torch.tensor(maxima), torch.cat([image.image for image in features]))
    assert [float(row["map_max"]) for row in rows] == pytest.approx(maxima, rel=1e-3)
    assert [float(row["score"]) for row in rows] == pytest.approx(scores.tolist(), abs=2e-3)
    assert {row["method"] for row in read_rows(out)} == {"mutual", "april-gan"}
    assert not (out / ".features").exists()


def test_mutual_with_every_output(eight: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--shots", "0,1", "--seeds", 1, "--calibrate", "--report", "--plots", "--maps")
    result = run_eval(eight, out, "--mutual", "--method", "april-gan,padim", *options, *model)
    assert result.exit_code == 0, result.output
    assert "mutual" in (out / "report.html").read_text()
    assert not (out / ".features").exists()


def test_mutual_scoring_is_refused(nut: Path, eight: Path, model: list[str], banks: Path, tmp_path: Path) -> None:
    few = draw_object(tmp_path / "few", 100)
    for dataset, options, expected in (
        (few, [], "few: 6 test images, but --mutual needs at least 8"),
        (eight, ["--tile", 100], "--mutual compares whole images, without tiles; omit --tile"),
        (eight, ["--part", "nut", "--banks", banks], "omit --mutual"),
    ):
        result = run_eval(dataset, tmp_path / "out", "--mutual", *options, *model)
        assert expected in error_line(result)
        assert not (tmp_path / "out" / ".features").exists()


def test_too_few_readable_images_for_mutual_scoring(eight: Path, model: list[str], tmp_path: Path) -> None:
    (eight / "test" / "good" / "000.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    result = run_eval(eight, out, "--mutual", "--shots", 0, *model)
    assert result.exit_code == 1
    assert "nut: 7 readable images" in result.stderr.strip().splitlines()[-1]
    assert not (out / ".features").exists()


def test_mutual_scoring_without_room(
    eight: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual_features, "free_bytes", lambda _: 1000)
    result = run_eval(eight, tmp_path / "out", "--mutual", "--shots", 0, *model)
    assert result.exit_code == 1
    assert "mutual scoring keeps the features of 8 images here" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out" / ".features").exists()


def test_a_full_disk_while_features_are_kept_is_one_line(
    eight: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FeatureStore, "put", full)
    result = run_eval(eight, tmp_path / "out", "--mutual", "--shots", 0, *model)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr.strip().splitlines()[-1]
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "out" / ".features").exists()
