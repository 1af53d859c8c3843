"""`train` through the command line, on tiny CLIPs: learning, data sets, options and refusals."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import (
    GoldenCase,
    before_each_step,
    draw_images,
    draw_spot,
    error_line,
    make_gray,
    read_report,
    run,
    run_train,
    stop_in_second_epoch,
    stop_in_step,
)
from PIL import Image
from safetensors.torch import load_file

from aprilcli.core import training
from aprilcli.core.metrics import auroc
from aprilcli.core.projector import save_projector
from aprilcli.io.artifacts import parse, read_header
from aprilcli.types import ModelSpec
from aprilcli.workflows import train_run


def test_training_learns_the_anomalies_and_scan_uses_the_projector(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "projector.safetensors"
    result = run_train(spotted, out, small_model, "--epochs", 8, "--lr", 0.005)
    assert result.exit_code == 0, result.output
    losses = [record["loss"] for record in read_header(out).fields["history"]]
    assert losses[-1] < 0.75 * losses[0]

    def pixel_auroc(*arguments: object, results: Path) -> float:
        scanned = run("scan", spotted / "steel_part" / "test" / "spot", *small_model, "--out", results, *arguments)
        assert scanned.exit_code == 0, scanned.output
        with (results / "scores.csv").open(newline="") as stream:
            names = [row["path"] for row in csv.DictReader(stream)]
        maps = [tifffile.imread(results / "maps" / f"{name}.tiff") for name in names]
        mask_folder = spotted / "steel_part" / "ground_truth" / "spot"
        masks = [np.asarray(Image.open(mask_folder / name.replace(".png", "_mask.png"))) > 0 for name in names]
        return auroc(
            np.concatenate([mask.ravel() for mask in masks]),
            np.concatenate([anomaly_map.ravel() for anomaly_map in maps]),
        )

    trained = pixel_auroc("--object", "steel_part", "--projector", out, results=tmp_path / "trained")
    first, spec = tmp_path / "first.safetensors", read_header(out).fields["spec"]
    save_projector(training.new_projector(parse(ModelSpec, spec), seed=0), first)
    untrained = pixel_auroc("--object", "steel_part", "--projector", first, results=tmp_path / "untrained")
    assert trained > 0.9
    assert trained > untrained + 0.05


@pytest.mark.parametrize(
    ("name", "trained_on", "mosaic"), [("metal_nut", "mvtec", 0.2), ("pcb1", "visa", 0.0), ("own", "set", 0.2)]
)
def test_public_sets_are_recognized_and_visa_is_not_composed(
    small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trained_on: str, mosaic: float
) -> None:
    for seed, kind in enumerate(("good", "spot")):
        draw_spot(tmp_path / "set", name, kind, seed)
    prompted, real = [], train_run.encode_prompts
    monkeypatch.setattr(train_run, "encode_prompts", lambda b, name: prompted.append(name) or real(b, name))
    out = tmp_path / "p.safetensors"
    assert run_train(tmp_path / "set", out, small_model, "--epochs", 1).exit_code == 0
    fields = read_header(out).fields
    assert (fields["trained_on"], fields["settings"]["mosaic"]) == (trained_on, mosaic)
    assert prompted == [name]  # as the folder spells it


def train_and_scan(case: GoldenCase, spotted: Path, out: Path, images: Path) -> Path:
    """Train a projector for a model, and scan with both; return the projector."""
    model = ["--model", case.folder, "--stages", ",".join(map(str, case.stages)), "--device", "cpu"]
    assert run_train(spotted, out, model, "--epochs", 1).exit_code == 0
    scanned = run("scan", images, *model, "--projector", out, "--out", out.with_name("scanned"))
    assert scanned.exit_code == 0, scanned.output
    return out


def test_it_trains_for_every_model(golden: GoldenCase, spotted: Path, tmp_path: Path) -> None:
    train_and_scan(golden, spotted, tmp_path / "p.safetensors", draw_images(tmp_path / "images", 1))


def test_another_model_refuses_the_projector(
    golden_vit: GoldenCase, other_golden: GoldenCase, spotted: Path, tmp_path: Path
) -> None:
    images = draw_images(tmp_path / "images", 1)
    projector = train_and_scan(other_golden, spotted, tmp_path / "p.safetensors", images)
    model = ["--model", golden_vit.folder, "--stages", "2,4,6,8", "--device", "cpu"]
    refused = run("scan", images, *model, "--projector", projector, "--out", tmp_path / "refused")
    assert refused.exit_code == 1
    expected = "activation quickgelu against gelu" if "quickgelu" in other_golden.folder.name else "stage_widths"
    assert expected in error_line(refused)


def test_the_encoder_may_compute_in_half_precision_the_projector_does_not(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    half, full = tmp_path / "half.safetensors", tmp_path / "full.safetensors"
    assert run_train(spotted, half, small_model, "--epochs", 2, "--precision", "bf16").exit_code == 0
    assert run_train(spotted, full, small_model, "--epochs", 2).exit_code == 0
    assert read_header(half).fields["settings"]["precision"] == "bf16"
    assert {weight.dtype for weight in load_file(half).values()} == {torch.float32}
    losses = [[record["loss"] for record in read_header(out).fields["history"]] for out in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_masks_may_also_come_from_visa_and_from_a_plain_folder(small_model: list[str], tmp_path: Path) -> None:
    for seed in range(4):
        draw_spot(tmp_path, "thing", "good" if seed < 2 else "spot", seed)
    visa, plain = tmp_path / "visa", tmp_path / "plain"
    lines = ["object,split,label,image,mask"]
    for seed in range(4):
        kind, folder = ("good", "Normal") if seed < 2 else ("spot", "Anomaly")
        image, mask = f"thing/Data/Images/{folder}/{seed:03}.JPG", f"thing/Data/Masks/{folder}/{seed:03}.png"
        (visa / image).parent.mkdir(parents=True, exist_ok=True)
        Image.open(tmp_path / "thing" / "test" / kind / f"{seed:03}.png").save(visa / image, "JPEG")
        if seed >= 2:
            (visa / mask).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "thing" / "ground_truth" / kind / f"{seed:03}_mask.png", visa / mask)
        lines.append(f"thing,test,{'normal' if seed < 2 else 'anomaly'},{image},{mask if seed >= 2 else ''}")
    (visa / "split_csv").mkdir()
    (visa / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")
    for kind in ("good", "spot"):
        shutil.copytree(tmp_path / "thing" / "test" / kind, plain / "thing" / kind)
    shutil.copytree(tmp_path / "thing" / "ground_truth", plain / "thing" / "masks")
    for root, layout in ((visa, "visa"), (plain, "folder")):
        out = tmp_path / f"{layout}.safetensors"
        result = run_train(root, out, small_model, "--epochs", 1)
        assert result.exit_code == 0, result.output
        data = read_header(out).fields["data"]
        assert (data["layout"], data["images"], data["anomalous"]) == (layout, 4, 2)


def test_results_go_to_stdout_epochs_to_stderr_and_quiet_says_less(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    loud = run_train(spotted, tmp_path / "a.safetensors", small_model, "--epochs", 2)
    assert [line.split(",")[0].split(": ")[0] for line in loud.stderr.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert loud.stdout.splitlines()[0].startswith("10 images of 1 object: 2 epochs in ")
    assert loud.stdout.splitlines()[1].startswith("kept: epoch 2 of 2 (the last); loss ")
    assert loud.stdout.splitlines()[2] == f"projector: {tmp_path / 'a.safetensors'}"
    quiet = run_train(spotted, tmp_path / "b.safetensors", small_model, "--epochs", 2, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout.splitlines()[1] == loud.stdout.splitlines()[1]


def test_images_of_twelve_bits_are_read_with_the_range(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = make_gray(Path(shutil.copytree(spotted, tmp_path / "wide")), 4095)
    gray, ranged, stopped = (tmp_path / f"{name}.safetensors" for name in ("gray", "ranged", "stopped"))
    run_train(make_gray(spotted), gray, small_model, "--epochs", 1)
    result = run_train(wide, ranged, small_model, "--epochs", 1, "--range", "0,4095")
    assert result.exit_code == 0, result.output
    expected = load_file(gray)
    assert all(torch.equal(weight, expected[name]) for name, weight in load_file(ranged).items())
    assert read_report(ranged)["settings"]["range"] == [0, 4095]
    assert read_report(gray)["settings"]["range"] is None
    stop_in_second_epoch(wide, stopped, [*small_model, "--range", "0,4095"], monkeypatch)
    refused = run_train(wide, stopped, small_model, "--epochs", 2, "--resume", "--range", "0,2047")
    assert "settings range [0.0, 4095.0] against [0.0, 2047.0]" in error_line(refused)
    again = [*small_model, "--epochs", 2, "--resume", "--range", "0,4095"]
    assert run_train(wide, stopped, again).exit_code == 0


def test_images_above_the_limit_of_pixels_are_refused(spotted: Path, small_model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    refused = run_train(spotted, out, small_model, "--max-pixels", 40 * 30 - 1)
    assert refused.exit_code == 1
    assert "40 x 30 pixels" in error_line(refused)
    assert run_train(spotted, out, small_model, "--epochs", 1, "--max-pixels", 40 * 30).exit_code == 0
    assert read_report(out)["settings"]["max_pixels"] == 1200


def test_a_second_training_into_one_file_is_refused_while_the_first_runs(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    lines = []

    def second(count: int) -> None:
        if count == 2:
            lines.extend(
                error_line(run_train(spotted, out, small_model, "--quiet", *arguments))
                for arguments in ([], ["--resume"])
            )

    with monkeypatch.context() as patch:
        before_each_step(patch, second)
        assert run_train(spotted, out, small_model, "--epochs", 1).exit_code == 0
    assert len(lines) == 2
    assert all("another training is writing it" in line for line in lines)
    assert list(tmp_path.glob("*.checkpoint")) == []


def only_good(root: Path) -> None:
    shutil.rmtree(root / "steel_part" / "test" / "spot")
    shutil.rmtree(root / "steel_part" / "ground_truth")


def only_spots(root: Path) -> None:
    good = root / "steel_part" / "test" / "good"
    (root / "steel_part" / "train").mkdir()
    good.rename(root / "steel_part" / "train" / "good")


def no_masks(root: Path) -> None:
    shutil.rmtree(root / "steel_part" / "ground_truth")


def other_size(root: Path) -> None:
    Image.fromarray(np.full((3, 3), 255, np.uint8)).save(root / "steel_part" / "ground_truth" / "spot" / "005_mask.png")


def empty_mask(root: Path) -> None:
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(root / "steel_part" / "ground_truth" / "spot" / "005_mask.png")


def unreadable(root: Path) -> None:
    for name in ("good/001", "spot/006", "spot/007"):
        (root / "steel_part" / "test" / f"{name}.png").write_bytes(b"not an image")


def empty(root: Path) -> None:
    shutil.rmtree(root)
    (root / "steel_part" / "test" / "good").mkdir(parents=True)


def missing(root: Path) -> None:
    shutil.rmtree(root)


def circle(root: Path) -> None:
    shutil.rmtree(root)
    root.symlink_to(root.name)


def intact(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "arguments", "code", "expected"),
    [
        (only_good, [], 1, ["no anomalous images"]),
        (only_spots, [], 1, ["no normal images"]),
        (no_masks, [], 1, ["none of its anomalous images has a mask"]),
        (other_size, [], 1, ["005_mask.png: mask of 3 by 3 pixels", "spot/005.png of 40 by 30"]),
        (empty_mask, [], 1, ["005_mask.png: empty mask"]),
        (unreadable, [], 1, ["spot/006.png", "spot/007.png", "good/001.png", "2 more"]),
        (empty, [], 1, ["no labeled images"]),
        (missing, [], 1, ["no such folder"]),
        (intact, ["--layout", "imagenet"], 2, ["unknown layout imagenet", "mvtec"]),
        (intact, ["--layout", "visa"], 1, ["no labeled folder (visa)"]),
        (intact, ["--out", "p.pth"], 2, [".safetensors"]),
        (intact, ["--val", "1.0"], 2, ["--val 1.0"]),
        (intact, ["--val", "0.1"], 2, ["too small to hold out any of 6 anomalous images"]),
        (intact, ["--mosaic", "-0.1"], 2, ["--mosaic -0.1"]),
        (intact, ["--lr", "0"], 2, ["--lr 0.0"]),
        (intact, ["--lr", "1e39"], 2, ["--lr 1e+39"]),
        (intact, ["--lr", "nan"], 2, ["--lr nan"]),
        (circle, [], 1, ["no such folder"]),
        (intact, ["--out", "o" * 240 + ".safetensors"], 1, ["File name too long", "choose a shorter name"]),
        (intact, ["--image-size", "60"], 2, ["multiple of 14"]),
        (intact, ["--model", "ViT-Z-99"], 1, ["unknown model"]),
    ],
)
def test_refused_in_one_line_before_anything_is_written(
    spotted: Path,
    small_model: list[str],
    tmp_path: Path,
    change: object,
    arguments: list[str],
    code: int,
    expected: list[str],
) -> None:
    change(spotted)  # type: ignore[operator]
    result = run_train(spotted, tmp_path / "p.safetensors", small_model, "--quiet", *arguments)
    assert result.exit_code == code
    line = error_line(result)
    assert all(words in line for words in expected), line
    assert {path.name for path in tmp_path.iterdir()} <= {spotted.name, ".p.safetensors.lock"}


def test_how_masks_were_read_and_what_was_left_out_is_told_once(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    for path in (spotted / "steel_part" / "ground_truth" / "spot").glob("*.png"):
        with Image.open(path) as mask:
            mask.save(path.with_suffix(".jpg"))
        path.unlink()
    draw_images(spotted / "steel_part" / "test" / "spot" / "@eaDir", 2)
    result = run_train(spotted, tmp_path / "p.safetensors", small_model, "--epochs", 1)
    assert result.exit_code == 0, result.output
    noted = [line for line in result.stderr.splitlines() if "compression or soft edges" in line]
    assert len(noted) == 1
    assert noted[0].startswith("problem: steel_part: 6 masks, first steel_part/ground_truth/spot/")
    assert result.stderr.count("left out system folders: steel_part/test/spot/@eaDir/") == 1


def test_an_object_without_any_mask_gives_a_note(spotted: Path, small_model: list[str], tmp_path: Path) -> None:
    shutil.copytree(spotted / "steel_part", spotted / "brass_part")
    shutil.rmtree(spotted / "brass_part" / "ground_truth")
    result = run_train(spotted, tmp_path / "p.safetensors", small_model, "--epochs", 1)
    assert result.exit_code == 0
    assert "brass_part: none of its 6 anomalous images has a mask; only good images are used" in result.stderr


def test_a_name_too_long_for_a_data_set(small_model: list[str], tmp_path: Path) -> None:
    result = run_train(tmp_path / ("d" * 300), tmp_path / "p.safetensors", small_model)
    assert result.exit_code == 1
    assert "File name too long" in error_line(result)


def test_an_anomalous_image_without_a_mask_is_left_out_with_a_note(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    (spotted / "steel_part" / "ground_truth" / "spot" / "005_mask.png").unlink()
    out = tmp_path / "p.safetensors"
    result = run_train(spotted, out, small_model, "--epochs", 1)
    assert result.exit_code == 0
    assert "problems in the data set: 1 (list them with --verbose)" in result.stderr
    assert read_header(out).fields["data"]["anomalous"] == 5
    verbose = run_train(spotted, tmp_path / "q.safetensors", small_model, "--epochs", 1, "--verbose")
    assert "spot/005.png" in verbose.stderr


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_first_step(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(monkeypatch, 1)
    (tmp_path / "file").write_text("")
    result = run_train(spotted, tmp_path / "file" / "p.safetensors", small_model)
    assert result.exit_code == 1
    assert "cannot be written" in error_line(result)
