"""`enroll` through the command line: the banks it writes, their calibration, and what it refuses."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from forked import ForkedProcess, limit_files
from helpers import (
    GoldenCase,
    draw_image,
    draw_images,
    error_line,
    happens,
    read_rows,
    run,
    run_and_signal,
    save_image,
)
from PIL import Image

from aprilcli.core.bank_file import SCHEMA, load_bank
from aprilcli.core.calibration import Calibration
from aprilcli.io.artifacts import read_artifact, write_artifact
from aprilcli.workflows import enroll, enroll_checks

SAMPLES = Path(__file__).parents[1] / "samples"


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
    appended = run("enroll", tmp_path / "all", "--part", "grown", "--banks", banks, "--append")
    assert appended.exit_code == 0, appended.output
    assert ", 3 new" in appended.stdout
    assert "2 images were already enrolled" in appended.stdout
    whole, grown = load_bank(banks / "all.safetensors"), load_bank(banks / "grown.safetensors")
    assert whole.sources == grown.sources
    for mine, theirs in zip(whole.features, grown.features, strict=True):
        assert torch.equal(mine, theirs)
    assert whole.calibration is not None
    assert grown.calibration is not None
    np.testing.assert_array_equal(whole.calibration.scores, grown.calibration.scores)


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
    first, second = load_bank(banks / "a.safetensors"), load_bank(banks / "b.safetensors")
    assert [len(rows) for rows in first.features] == [25] * 4  # a quarter of 4 × 25 patches
    for mine, theirs in zip(first.features, second.features, strict=True):
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


def test_a_broken_link_among_the_references_is_listed(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    for name in ("lost1.png", "lost2.png"):
        (good / name).symlink_to(tmp_path / "nowhere.png")
    line = error_line(run("enroll", good, "--part", "p", "--banks", banks, *model))
    assert "lost1.png" in line
    assert "lost2.png" in line


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


def calibration_of(banks: Path, part: str) -> Calibration:
    scored = load_bank(banks / f"{part}.safetensors").calibration
    assert scored is not None
    return scored


def test_a_grown_bank_scores_its_calibration_images_again_and_takes_further_ones(
    model: list[str], banks: Path, tmp_path: Path
) -> None:
    good, further = draw_images(tmp_path / "good", 2), draw_images(tmp_path / "further", 3, 50)
    more, both = draw_images(tmp_path / "more", 2, 60), draw_images(tmp_path / "both", 3, 50)
    draw_images(both, 2, 60)
    run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    draw_image(good / "new.png", 99)
    run("enroll", good, "--part", "whole", "--banks", banks, "--calibrate", further, *model)
    shutil.rmtree(further)  # the bank has what it needs
    assert run("enroll", good, "--part", "p", "--banks", banks, "--append").exit_code == 0
    grown, whole = calibration_of(banks, "p"), calibration_of(banks, "whole")
    assert grown.method == "held-out"
    np.testing.assert_allclose(grown.scores, whole.scores, atol=1e-6)
    added = run("enroll", "--part", "p", "--banks", banks, "--calibrate", more)
    assert ", 0 new" in added.stdout
    run("enroll", "--part", "whole", "--banks", banks, "--calibrate", both, "--overwrite")
    np.testing.assert_allclose(calibration_of(banks, "p").scores, calibration_of(banks, "whole").scores, atol=1e-6)
    assert len(calibration_of(banks, "p")) == 5
    again = run("enroll", "--part", "p", "--banks", banks, "--calibrate", more)
    assert "2 images left out" in again.stderr
    assert len(calibration_of(banks, "p")) == 5


def test_a_calibration_replaces_the_old_one_only_when_asked_to(model: list[str], banks: Path, tmp_path: Path) -> None:
    good, further = draw_images(tmp_path / "good", 2), draw_images(tmp_path / "further", 3, 50)
    run("enroll", good, "--part", "p", "--banks", banks, "--calibrate", further, *model)
    run("enroll", "--part", "p", "--banks", banks, "--calibrate", draw_images(tmp_path / "new", 4, 80), "--overwrite")
    assert len(calibration_of(banks, "p")) == 4
    assert load_bank(banks / "p.safetensors").calibration_images.sources[0].path == "080.png"


def test_without_images_only_an_enrolled_part_is_calibrated(banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 2)
    assert "--calibrate" in error_line(run("enroll", "--part", "p", "--banks", banks))
    missing = run("enroll", "--part", "p", "--banks", banks, "--calibrate", good)
    assert missing.exit_code == 1
    assert "no such bank" in error_line(missing)
    assert "--coreset" in error_line(run("enroll", "--part", "p", "--calibrate", good, "--coreset", 0.5))


@pytest.mark.parametrize("suffix", [".bmp", ".jpg"])
def test_references_saved_again_are_neither_calibration_images_nor_references(
    banks: Path, tmp_path: Path, suffix: str
) -> None:
    names = ("washer_good_1", "washer_crack_4", "casting_good_1")
    for name in names:
        with Image.open(SAMPLES / f"{name}.png") as image:
            save_image(tmp_path / "good" / f"{name}.png", image)
            save_image(tmp_path / "again" / f"{name}{suffix}", image)
    good, again = tmp_path / "good", tmp_path / "again"
    part = ("--part", "p", "--banks", banks, "--image-size", 256)
    refused = run("enroll", good, *part, "--calibrate", again, "--quiet")
    assert refused.exit_code == 1
    assert "calibrate on further good images" in error_line(refused)
    shutil.copy(SAMPLES / "washer_good_2.png", again)
    with Image.open(again / "washer_good_2.png") as image:
        image.save(again / "washer_good_2.tif")
    kept = run("enroll", good, *part, "--calibrate", again, "--overwrite")
    assert "4 images left out" in kept.stderr
    assert len(calibration_of(banks, "p")) == 1


def test_references_that_show_the_same_are_one(banks: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for name in ("washer_good_1", "washer_good_2"):
        with Image.open(shutil.copy(SAMPLES / f"{name}.png", good)) as image:
            image.save(good / f"{name}.bmp")
    result = run("enroll", good, "--part", "p", "--banks", banks, "--image-size", 256)
    assert "2 images were already enrolled" in result.stdout
    assert [source.path for source in load_bank(banks / "p.safetensors").sources] == [
        "washer_good_1.bmp",
        "washer_good_2.bmp",
    ]
    only_known = tmp_path / "known"
    only_known.mkdir()
    with Image.open(good / "washer_good_1.png") as image:
        image.save(only_known / "other.tif")
    refused = run("enroll", only_known, "--part", "p", "--banks", banks, "--append", "--quiet")
    assert "all show the same" in error_line(refused)


def test_references_that_differ_from_the_others_are_named_and_refused_if_strict(banks: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    names = [*[f"washer_good_{1 + k % 2}" for k in range(8)], "washer_crack_3", "washer_crack_4"]
    for index, name in enumerate(names):
        with Image.open(SAMPLES / f"{name}.png") as image:
            pixels = np.asarray(image.convert("RGB")) * noise.uniform(0.9, 1.1) + noise.normal(0, 6, (256, 256, 3))
        save_image(tmp_path / "good" / f"{index}.png", Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    result = run("enroll", tmp_path / "good", "--part", "p", "--banks", banks, "--image-size", 128)
    assert "check these images, which differ from the others: 8.png, 9.png\n" in result.stdout
    refused = run(
        "enroll", tmp_path / "good", "--part", "q", "--banks", banks, "--strict", "--quiet", "--image-size", 128
    )
    assert refused.exit_code == 1
    assert "differ from the others: 8.png, 9.png" in error_line(refused)
    assert not (banks / "q.safetensors").exists()


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
    # Before it is hashed, and after.
    for module, name, lost in ((enroll_checks, "find_images", "010.png"), (enroll, "map_ahead", "011.png")):
        real = getattr(module, name)

        def lose(*arguments: object, real: Callable = real, lost: str = lost, **options: object) -> object:
            items = real(*arguments, **options)
            items = list(items) if lost == "010.png" else items  # the walk is done; reading has not begun
            (good / lost).unlink()
            return items

        with monkeypatch.context() as patch:
            patch.setattr(module, name, lose)
            result = run("enroll", good, "--part", "p", "--banks", banks, "--append")
        assert result.exit_code == 1
        assert lost in error_line(result)
        assert (banks / "p.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_old_bank_complete(model: list[str], banks: Path, tmp_path: Path) -> None:
    good = draw_images(tmp_path / "good", 3)
    run("enroll", good, "--part", "p", "--banks", banks, *model)
    before = (banks / "p.safetensors").read_bytes()
    draw_images(good, 2, 10)

    command = ["enroll", good, "--part", "p", "--banks", banks, "--append"]
    result = ForkedProcess(*command, prepare=limit_files(len(before))).result()
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

    def start_enrolling() -> ForkedProcess:
        lock = banks / ".p.safetensors.lock"
        lock.unlink(missing_ok=True)
        process = ForkedProcess(*command)
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
