"""`enroll`, `scan --part` and `inspect` through the command line: banks, verdicts and refusals."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
import tifffile
import torch
from helpers import (
    GOLDEN,
    QUERIES,
    GoldenCase,
    draw_image,
    draw_images,
    error_line,
    happens,
    read_rows,
    run,
    run_and_signal,
    start,
)
from PIL import Image

from aprilcli.core.bank_file import SCHEMA, load_bank
from aprilcli.io.artifacts import read_artifact, write_artifact
from aprilcli.workflows import enroll


def test_golden_few_shot_maps_and_sums(golden: GoldenCase, tmp_path: Path) -> None:
    for name in ("ref0", "ref1"):
        (tmp_path / "good").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "images" / f"{name}.png", tmp_path / "good")
    for query in QUERIES:
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(GOLDEN / "images" / f"{query}.png", tmp_path / "images")
    stages = ",".join(map(str, golden.stages))
    settings = ["--model", golden.folder, "--image-size", golden.image_size, "--stages", stages]
    banks = ["--part", "nut", "--banks", tmp_path / "banks", "--device", "cpu"]
    enrolled = run("enroll", tmp_path / "good", *settings, *banks, "--object", "metal nut")
    assert enrolled.exit_code == 0, enrolled.output
    result = run("scan", tmp_path / "images", *banks, "--map-size", "model", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for row, query in zip(read_rows(tmp_path / "out"), QUERIES, strict=True):
        expected = golden.numbers[f"{query}/anomaly_map"]
        written = torch.from_numpy(tifffile.imread(tmp_path / "out" / "maps" / f"{query}.png.tiff"))
        torch.testing.assert_close(written, expected, atol=1e-4, rtol=0)
        probability = float(golden.numbers[f"{query}/probability"][1])
        assert float(row["score"]) == pytest.approx(probability + float(expected.max()), abs=1e-4)
        assert float(row["score"]) == pytest.approx(float(row["text_score"]) + float(row["map_max"]), abs=1e-6)


def test_a_reference_has_a_few_shot_map_near_zero(
    golden_vit: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(golden_vit.folder, tmp_path / "bare"))
    (bare / "projector.safetensors").unlink()
    good = draw_images(tmp_path / "good", 3)
    bare_model = ["--model", bare, *model[2:]]
    enrolled = run("enroll", good, "--part", "p", "--banks", banks, *bare_model)
    assert enrolled.stderr.count("no projector") == 1
    draw_image(tmp_path / "images" / "new.png", 99)
    shutil.copy(good / "001.png", tmp_path / "images")
    result = run("scan", tmp_path / "images", "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.stderr.count("no projector") == 1
    reference, new = read_rows(tmp_path / "out")
    assert float(reference["map_max"]) < 1e-3
    assert float(new["map_max"]) > 0.05


def test_verdicts_p_values_and_threshold(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, further = draw_images(tmp_path / "good", 3), draw_images(tmp_path / "further", 19, 100)
    enrolled = run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    assert "calibrated on 19 scores of good images (held-out)" in enrolled.stdout
    scored = load_bank(banks / "p.safetensors").calibration
    assert scored is not None
    arguments = ["scan", further, "--part", "p", "--banks", banks, "--false-alarm-rate", 0.1]
    assert run(*arguments, "--out", tmp_path / "out", "--fail-on-anomaly").exit_code == 4
    results = read_rows(tmp_path / "out")
    by_scan = np.array([float(row["score"]) for row in results], np.float32)
    np.testing.assert_allclose(np.sort(by_scan), np.sort(scored.scores), atol=1e-6)  # calibrated as scan scores
    assert [row["verdict"] for row in results].count("anomalous") == 1  # of 19, p = (1 + 1) / 20 ≤ 0.1
    for row in results:
        reached = sum(other >= np.float32(row["score"]) for other in scored.scores)
        assert float(row["p_value"]) == pytest.approx((1 + reached) / 20)
        assert (row["verdict"] == "anomalous") == (float(row["p_value"]) <= 0.1 + 1e-9)
    described = json.loads((tmp_path / "out" / "run.json").read_text())
    assert described["threshold"]["guaranteed"] is True
    assert described["pixel_threshold"]["value"] > 0
    assert described["bank"]["sha256"]


def test_too_few_images_give_one_note_with_the_number_needed(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 4)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    result = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.stderr.count("99 good images would be enough") == 1
    threshold = json.loads((tmp_path / "out" / "run.json").read_text())["threshold"]
    assert threshold["guaranteed"] is False
    scored = load_bank(banks / "p.safetensors").calibration
    assert scored is not None
    assert threshold["value"] > scored.scores.max()
    given = run("scan", good, "--part", "p", "--banks", banks, "--threshold", 0, "--out", tmp_path / "given")
    assert {row["verdict"] for row in read_rows(tmp_path / "given")} == {"anomalous"}
    assert "would be enough" not in given.stderr


def test_leave_one_out_is_scanning_against_the_others(
    model: list[str], golden_vit: GoldenCase, banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 4)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    scored = load_bank(banks / "p.safetensors").calibration
    assert scored is not None
    assert scored.method == "leave-one-out"
    for index in range(4):
        others = Path(shutil.copytree(good, tmp_path / f"others{index}"))
        alone = tmp_path / f"alone{index}"
        alone.mkdir()
        (others / f"{index:03}.png").rename(alone / "image.png")
        run("enroll", others, "--part", f"p{index}", "--banks", banks, *model)
        run("scan", alone, "--part", f"p{index}", "--banks", banks, "--out", tmp_path / f"out{index}")
        (row,) = read_rows(tmp_path / f"out{index}")
        assert float(row["score"]) == pytest.approx(float(scored.scores[index]), abs=1e-5)
        assert float(row["map_max"]) == pytest.approx(float(scored.map_maxima[index]), abs=1e-5)


def test_one_reference_is_calibrated_on_its_variants(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 1)
    assert run("enroll", good, "--part", "p", "--banks", banks, *model).exit_code == 0
    scored = load_bank(banks / "p.safetensors").calibration
    assert scored is not None
    assert (scored.method, len(scored)) == ("augmentations", 8)
    run("scan", good, "--part", "p", "--banks", banks, "--false-alarm-rate", 0.5, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["threshold"]["guaranteed"] is False


def test_append_equals_enrolling_all_at_once(model: list[str], banks: Path, tmp_path: Path) -> None:
    draw_images(tmp_path / "all", 5)
    draw_images(tmp_path / "first", 2)
    run("enroll", tmp_path / "all", "--part", "all", "--banks", banks, *model)
    run("enroll", tmp_path / "first", "--part", "grown", "--banks", banks, *model)
    grown = run("enroll", tmp_path / "all", "--part", "grown", "--banks", banks, "--append")
    assert grown.exit_code == 0, grown.output
    assert ", 3 new" in grown.stdout
    assert "2 images were already enrolled" in grown.stdout
    one, other = load_bank(banks / "all.safetensors"), load_bank(banks / "grown.safetensors")
    assert one.sources == other.sources
    for mine, theirs in zip(one.features, other.features, strict=True):
        assert torch.equal(mine, theirs)
    assert one.calibration is not None
    assert other.calibration is not None
    np.testing.assert_array_equal(one.calibration.scores, other.calibration.scores)


def test_the_same_image_twice_is_recognized_by_content(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    shutil.copy(good / "000.png", good / "copy.png")
    result = run("enroll", good, "--part", "p", "--banks", banks, *model)
    assert "copy.png" in result.stdout
    assert [source.path for source in load_bank(banks / "p.safetensors").sources] == ["000.png", "001.png"]
    again = run("enroll", good, "--part", "p", "--banks", banks, "--append")
    assert "no new images" in error_line(again)


def test_references_are_left_out_of_their_own_calibration(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    further = draw_images(tmp_path / "further", 3)  # the first two are the references
    result = run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    assert "2 images left out, which are references or appear twice" in result.stderr
    assert "calibrated on 1 scores" in result.stdout
    refused = run("enroll", good, "--part", "q", "--banks", banks, "--calibrate", good, *model)
    assert refused.exit_code == 1
    assert not (banks / "q.safetensors").exists()


def test_unreadable_references_stop_enrolling_with_their_list(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 3)
    (good / "bad1.png").write_bytes(b"nothing")
    (good / "zz2.jpg").write_bytes(b"")
    result = run("enroll", good, "--part", "p", "--banks", banks, *model)
    assert result.exit_code == 1
    line = error_line(result)
    assert "remove the images that cannot be read (2 in all)" in line
    assert "bad1.png" in line
    assert "zz2.jpg" in line
    assert not (banks / "p.safetensors").exists()


def test_coreset_keeps_its_share_and_refuses_to_grow(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 4)
    for part in ("a", "b"):
        run("enroll", good, "--part", part, "--banks", banks, "--coreset", 0.25, "--seed", 3, *model)
    one, other = load_bank(banks / "a.safetensors"), load_bank(banks / "b.safetensors")
    assert [len(rows) for rows in one.features] == [25] * 4  # a quarter of 4 × 25 patches
    for mine, theirs in zip(one.features, other.features, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == torch.float16
    draw_image(good / "more.png", 50)
    assert "coreset" in error_line(run("enroll", good, "--part", "a", "--banks", banks, "--append"))


@pytest.mark.parametrize(
    "name", ["../a.safetensors", "a.safetensors/..", "a/b", "a b", "..", "a..b", "-x", ".hidden", "", "a\nb", "C:\\x"]
)
def test_a_part_is_named_like_a_file(name: str, banks: Path, tmp_path: Path) -> None:
    result = run("enroll", draw_images(tmp_path / "good", 1), f"--part={name}", "--banks", banks)
    assert result.exit_code == 2
    assert f"part name {name!r}: it becomes a file name" in error_line(result)


def test_an_enrolled_part_is_not_overwritten_without_the_option(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    before = (banks / "p.safetensors").read_bytes()
    refused = run("enroll", good, "--part", "p", "--banks", banks, *model)
    assert "--append" in error_line(refused)
    assert (banks / "p.safetensors").read_bytes() == before
    assert run("enroll", good, "--part", "p", "--banks", banks, "--overwrite", *model).exit_code == 0


def test_a_bank_is_refused_by_another_model_projector_or_object(
    golden_vit: GoldenCase, other_golden: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    scan = ["scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out", "--device", "cpu"]
    line = error_line(run(*scan, *other_golden.options))
    assert other_golden.folder.name in line
    assert golden_vit.folder.name in line
    assert "image_size 70 against 56" in error_line(run(*scan, "--image-size", 56))
    assert "'object'" in error_line(run(*scan, "--object", "screw"))
    assert not (tmp_path / "out").exists()


def test_a_missing_bank_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 1)
    result = run("scan", good, "--part", "nosuch", "--banks", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "nosuch.safetensors: there is no such bank; enroll the part first" in error_line(result)


def test_scores_with_a_bank_depend_on_the_image_alone(model: list[str], banks: Path, tmp_path: Path) -> None:
    run("enroll", draw_images(tmp_path / "good", 2), "--part", "p", "--banks", banks, *model)
    images = draw_images(tmp_path / "images", 5, 40)
    arguments = ["scan", images, "--part", "p", "--banks", banks]
    run(*arguments, "--out", tmp_path / "one")
    run(*arguments, "--out", tmp_path / "batch", "--batch-size", 4)
    for mine, theirs in zip(read_rows(tmp_path / "one"), read_rows(tmp_path / "batch"), strict=True):
        assert float(mine["score"]) == pytest.approx(float(theirs["score"]), abs=1e-5)


def test_a_broken_link_among_the_references_is_listed(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    for name in ("lost1.png", "lost2.png"):
        (good / name).symlink_to(tmp_path / "nowhere.png")
    line = error_line(run("enroll", good, "--part", "p", "--banks", banks, *model))
    assert "lost1.png" in line
    assert "lost2.png" in line


def test_a_bank_of_a_model_folder_works_from_any_folder(
    golden_vit: GoldenCase, banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = draw_images(tmp_path / "good", 2)
    monkeypatch.chdir(golden_vit.folder.parent)
    arguments = [
        "--image-size",
        70,
        "--device",
        "cpu",
        "--projector",
        f"{golden_vit.folder.name}/projector.safetensors",
    ]
    enrolled = run("enroll", good, "--part", "p", "--banks", banks, "--model", golden_vit.folder.name, *arguments)
    assert enrolled.exit_code == 0, enrolled.output
    monkeypatch.chdir(tmp_path)
    scanned = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert scanned.exit_code == 0, scanned.output


def test_options_are_checked_before_any_work(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    assert run("enroll", good, "--part", "p", "--banks", banks, "--coreset", 2, *model).exit_code == 2
    missing = run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", tmp_path / "no", *model)
    assert "does not exist" in error_line(missing)
    rate = run("scan", good, *model, "--false-alarm-rate", 5, "--out", tmp_path / "out")
    assert rate.exit_code == 2


def test_a_second_enrollment_of_the_part_is_refused_while_the_first_runs(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 2)
    banks.mkdir()
    with filelock.FileLock(banks / ".p.safetensors.lock"):
        refused = run("enroll", good, "--part", "p", "--banks", banks, *model)
    assert "being enrolled by another process" in error_line(refused)
    assert run("enroll", good, "--part", "p", "--banks", banks, *model).exit_code == 0


def test_appending_without_further_images_notes_the_lost_guarantee(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, further = draw_images(tmp_path / "good", 2), draw_images(tmp_path / "further", 3, 50)
    run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    draw_image(good / "new.png", 99)
    grown = run("enroll", good, "--part", "p", "--banks", banks, "--append")
    assert "without --calibrate" in grown.stderr


@pytest.mark.parametrize(
    ("event", "text", "occurrence"),
    [
        ("open", "008.png", 2),  # while images are encoded; the first time they are hashed
        ("open", ".aprilcli-", 2),  # the new bank is written, and about to be synced
        ("os.rename", "p.safetensors", 1),
    ],
)
def test_a_killed_enrollment_leaves_the_old_bank(
    model: list[str], banks: Path, tmp_path: Path, event: str, text: str, occurrence: int
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    before = (banks / "p.safetensors").read_bytes()
    command = ["enroll", draw_images(good, 10), "--part", "p", "--banks", banks, "--overwrite", *model]
    killed = run_and_signal(signal.SIGKILL, event, text, *command, occurrence=occurrence)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (banks / "p.safetensors").read_bytes() == before
    assert len(list(banks.glob(".aprilcli-*"))) == (text != "008.png")
    assert run(*command).exit_code == 0
    assert len(load_bank(banks / "p.safetensors").sources) == 10
    assert not list(banks.glob(".aprilcli-*"))


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("p.safetensors", ("recipe", "model"), 5),
        ("p.safetensors", ("recipe", "projector"), ["x"]),
        ("p.safetensors", ("spec", "stages"), ["a", 4, 6, 8]),
        ("p.safetensors", ("spec", "image_size"), "70"),
        ("p.safetensors", ("spec", "mean"), [0.5]),
        ("p.safetensors", ("sources",), 7),
        ("p.safetensors", ("recipe", "value_range"), ["a", 1]),
        ("p.safetensors", ("recipe", "projector"), "\0x"),
        ("p.safetensors", ("spec", "image_size"), 2**31),
        ("p.safetensors", ("spec", "image_size"), 2**100),
    ],
)
def test_hostile_banks_are_one_line(
    model: list[str], banks: Path, tmp_path: Path, file: str, field: tuple[str, ...], value: object
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    artifact = read_artifact(banks / file, SCHEMA)
    place = artifact.fields
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    write_artifact(banks / file, "bank", artifact.tensors, artifact.fields)
    for command in (["scan", good, "--part", "p"], ["enroll", good, "--part", "p", "--append"]):
        assert "p.safetensors" in error_line(run(*command, "--banks", banks))


def test_a_bank_whose_rows_are_not_those_of_its_image_size_is_refused(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    artifact = read_artifact(banks / "p.safetensors", SCHEMA)
    artifact.fields["spec"]["image_size"] = 56
    draw_image(good / "new.png", 9)
    write_artifact(banks / "p.safetensors", "bank", artifact.tensors, artifact.fields)
    for command in (["scan", good, "--part", "p"], ["enroll", good, "--part", "p", "--append"]):
        assert "at 56 pixels; enroll the part again" in error_line(run(*command, "--banks", banks))


def test_a_bank_keeps_the_range_of_its_images(model: list[str], banks: Path, tmp_path: Path) -> None:
    twelve_bit = np.random.default_rng(0).integers(0, 4096, (40, 60), dtype=np.uint16)
    (tmp_path / "good").mkdir()
    Image.fromarray(twelve_bit).save(tmp_path / "good" / "a.png")
    run("enroll", tmp_path / "good", "--part", "p", "--banks", banks, "--range", "0,4095", *model)
    scan = ["scan", tmp_path / "good", "--part", "p", "--banks", banks, "--map-size", "model"]
    assert run(*scan, "--out", tmp_path / "out").exit_code == 0
    assert run(*scan, "--out", tmp_path / "same", "--range", "0,4095").exit_code == 0
    assert read_rows(tmp_path / "out") == read_rows(tmp_path / "same")
    other = run(*scan, "--out", tmp_path / "other", "--range", "0,1023")
    assert other.exit_code == 2
    assert "0,4095" in error_line(other)


def test_stages_that_the_banks_model_does_not_have_are_an_error_of_the_bank(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    artifact = read_artifact(banks / "p.safetensors", SCHEMA)
    artifact.fields["spec"]["stages"] = [2, 4, 6, 10**30]
    write_artifact(banks / "p.safetensors", "bank", artifact.tensors, artifact.fields)
    result = run("scan", good, "--part", "p", "--banks", banks, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "settings that its model does not have" in error_line(result)


def test_a_projector_path_that_no_bank_can_keep_is_wrong_usage(
    golden_vit: GoldenCase, model: list[str], banks: Path, tmp_path: Path
) -> None:
    odd = shutil.copy(golden_vit.folder / "projector.safetensors", tmp_path / "new\nline.safetensors")
    result = run(
        "enroll", draw_images(tmp_path / "good", 1), "--part", "p", "--banks", banks, *model, "--projector", odd
    )
    assert result.exit_code == 2
    assert "new\\nline.safetensors" in error_line(result)


def test_an_image_deleted_between_listing_and_reading_stops_enrolling(
    model: list[str], banks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = draw_images(tmp_path / "good", 3)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    before = (banks / "p.safetensors").read_bytes()
    draw_images(good, 2, 10)
    real = {name: getattr(enroll, name) for name in ("find_images", "map_ahead")}
    for name, lost in (("find_images", "010.png"), ("map_ahead", "011.png")):  # before it is hashed, and after

        def lose(*arguments: object, name: str = name, lost: str = lost, **options: object) -> object:
            found = list(real[name](*arguments, **options)) if name == "find_images" else None
            (good / lost).unlink()
            return found if found is not None else real[name](*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(enroll, name, lose)
            result = run("enroll", good, "--part", "p", "--banks", banks, "--append")
        assert result.exit_code == 1
        assert lost in error_line(result)
        assert (banks / "p.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_old_bank_complete(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    before = (banks / "p.safetensors").read_bytes()
    draw_images(good, 2, 10)

    def few_bytes() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), len(before)))

    command = [sys.executable, "-m", "aprilcli", "enroll", good, "--part", "p", "--banks", banks, "--append"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, preexec_fn=few_bytes, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "p.safetensors: cannot be written (File too large)" in result.stderr
    assert (banks / "p.safetensors").read_bytes() == before
    assert not list(banks.glob(".aprilcli-*"))


@pytest.mark.slow
def test_killed_at_any_moment_a_bank_is_the_old_or_the_new_one(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, path = draw_images(tmp_path / "good", 2), banks / "p.safetensors"
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    old = path.read_bytes()
    command = ["enroll", draw_images(good, 40, 10), "--part", "p", "--banks", banks, "--append"]

    def start_enrolling() -> subprocess.Popen[str]:
        lock = banks / ".p.safetensors.lock"
        lock.unlink(missing_ok=True)
        process = start(*command)
        assert happens(lock.exists, process)
        return process

    process, began = start_enrolling(), time.monotonic()
    assert happens(lambda: path.read_bytes() != old, process)
    duration = time.monotonic() - began  # until the new bank is in place
    process.communicate()
    assert process.returncode == 0
    new, rng, found = dated_then(path), random.Random(0), {"old": 0, "new": 0}
    for kill in range(15):
        path.write_bytes(old)
        process = start_enrolling()
        # A third of the kills come close to the end, where the bank is written.
        time.sleep(duration * (rng.uniform(0.85, 1.05) if kill % 3 == 0 else rng.uniform(0, 1.05)))
        process.kill()
        process.communicate()
        is_old = path.read_bytes() == old
        assert is_old or dated_then(path) == new
        assert process.returncode == -signal.SIGKILL or not is_old
        found["old" if is_old else "new"] += 1
        if not is_old:
            duration *= 0.9  # enrolling is faster than when it was measured
    assert found["old"] >= 3
    path.write_bytes(old)
    assert run(*command).exit_code == 0
    assert dated_then(path) == new
    assert not list(banks.glob(".aprilcli-*"))
    print(f"15 kills: {found}")


def dated_then(path: Path) -> bytes:
    """Return the bytes of a bank, with a fixed date."""
    artifact = read_artifact(path, SCHEMA)
    return path.read_bytes().replace(artifact.created.encode(), b"then")
