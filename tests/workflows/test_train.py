"""`train` through the command line, on tiny CLIPs: learning, files, reproducibility, resuming and refusals."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from helpers import (
    STEPS_PER_EPOCH,
    GoldenCase,
    before_each_step,
    draw_image,
    draw_spot,
    draw_spotted_object,
    error_line,
    happens,
    make_gray,
    run,
    run_train,
    start,
    stop_in_second_epoch,
    stop_in_step,
)
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from aprilcli.core import training
from aprilcli.core.metrics import auroc
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.projector import load_projector, save_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.training_set import prepare_input, split_validation, training_images
from aprilcli.io.artifacts import parse, read_header
from aprilcli.io.datasets import read_dataset
from aprilcli.types import ModelSpec
from aprilcli.workflows import train_run


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return draw_spotted_object(tmp_path / "parts")


@pytest.fixture
def model(golden_vit: GoldenCase) -> list[str]:
    return ["--model", str(golden_vit.folder), "--image-size", "56", "--stages", "2,4,6,8", "--device", "cpu"]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def report_of(out: Path) -> dict[str, object]:
    return dict(json.loads(out.with_name(out.name + ".json").read_text()))


def test_training_learns_the_anomalies_and_scan_uses_the_projector(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "projector.safetensors"
    result = run_train(parts, out, model, "--epochs", 8, "--lr", 0.005)
    assert result.exit_code == 0, result.output
    losses = [record["loss"] for record in read_header(out).fields["history"]]
    assert losses[-1] < 0.75 * losses[0]

    def pixel_auroc(*arguments: object, results: Path) -> float:
        scanned = run("scan", parts / "steel_part" / "test" / "spot", *model, "--out", results, *arguments)
        assert scanned.exit_code == 0, scanned.output
        with (results / "scores.csv").open(newline="") as stream:
            names = [row["path"] for row in csv.DictReader(stream)]
        maps = [tifffile.imread(results / "maps" / f"{name}.tiff") for name in names]
        mask_folder = parts / "steel_part" / "ground_truth" / "spot"
        masks = [np.asarray(Image.open(mask_folder / name.replace(".png", "_mask.png"))) > 0 for name in names]
        return auroc(np.concatenate([mask.ravel() for mask in masks]), np.concatenate([one.ravel() for one in maps]))

    trained = pixel_auroc("--object", "steel_part", "--projector", out, results=tmp_path / "trained")
    first, spec = tmp_path / "first.safetensors", read_header(out).fields["spec"]
    save_projector(training.new_projector(parse(ModelSpec, spec), seed=0), first)
    untrained = pixel_auroc("--object", "steel_part", "--projector", first, results=tmp_path / "untrained")
    assert trained > 0.9
    assert trained > untrained + 0.05


def test_one_seed_gives_one_file_whatever_the_workers(parts: Path, model: list[str], tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "other")]
    for out, workers, seed in zip(outs, (1, 4, 1), (0, 0, 1), strict=True):
        arguments = ["--workers", workers, "--seed", seed, "--mosaic", 0.5]
        assert run_train(parts, out, model, "--epochs", 2, *arguments).exit_code == 0
    one, two, other = (out.read_bytes() for out in outs)
    assert one == two != other
    assert not torch.equal(weights_of(outs[0])["fc.0.weight"], weights_of(outs[2])["fc.0.weight"])


@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH + 2, 2 * STEPS_PER_EPOCH + 1])
def test_a_resumed_training_gives_the_same_file(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    arguments = ["--epochs", 3, "--mosaic", 0.5]
    assert run_train(parts, straight, model, *arguments).exit_code == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        result = run_train(parts, stopped, model, *arguments)
    done = (step - 1) // STEPS_PER_EPOCH
    assert result.exit_code == 130
    assert f"stopped after epoch {done} of 3; continue with --resume" in result.stderr
    assert not stopped.exists()
    assert sorted(path.name for path in tmp_path.glob("stopped*")) == ["stopped.safetensors.checkpoint"]
    refused = run_train(parts, stopped, model, *arguments)
    assert refused.exit_code == 1
    assert "--resume" in error_line(refused)
    resumed = run_train(parts, stopped, model, *arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"continuing after epoch {done} of 3" in resumed.stderr
    assert stopped.read_bytes() == straight.read_bytes()
    names = sorted(path.name for path in tmp_path.glob("stopped*"))
    assert names == ["stopped.safetensors", "stopped.safetensors.json"]  # and no checkpoint


def test_the_epoch_of_the_lowest_validation_loss_is_kept_and_reported(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stopped, short = (tmp_path / f"{name}.safetensors" for name in ("out", "stopped", "short"))
    losses: list[float] = []
    monkeypatch.setattr(training.ProjectorTrainer, "measure", lambda _, batch: (losses.pop(0), batch.masks))
    losses += [3, 1, 2, 1]
    result = run_train(parts, out, model, "--val", 0.34, "--epochs", 4)
    assert result.exit_code == 0, result.output
    fields = read_header(out).fields
    assert [record["val_loss"] for record in fields["history"]] == [3, 1, 2, 1]
    assert fields["kept_epoch"] == 2
    assert "kept: epoch 2 of 4 (lowest validation loss); " in result.stdout
    assert "7 images of 1 object, 3 more for validation" in result.stdout
    assert "epoch 1/4: loss " in result.stderr
    assert ", validation loss 3.0000, pixel AP 1.0000" in result.stderr
    losses += [3, 1]
    assert run_train(parts, short, model, "--val", 0.34, "--epochs", 2).exit_code == 0
    assert all(torch.equal(weight, weights_of(short)[name]) for name, weight in weights_of(out).items())
    losses += [3, 1, 2, 1]
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3 * 2 + 1)  # after the best epoch: the checkpoint has kept it
        assert run_train(parts, stopped, model, "--val", 0.34, "--epochs", 4).exit_code == 130
    assert run_train(parts, stopped, model, "--val", 0.34, "--epochs", 4, "--resume").exit_code == 0
    assert stopped.read_bytes() == out.read_bytes()


def test_validation_is_the_loss_and_the_pixel_ap_of_the_images_held_back(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    for seed in range(10, 20):
        draw_spot(parts, "another", "good" if seed < 14 else "spot", seed)
    out = tmp_path / "p.safetensors"
    assert run_train(parts, out, model, "--val", 0.5, "--epochs", 1, "--batch-size", 2).exit_code == 0
    samples = training_images(read_dataset(parts))
    _, held_back = split_validation(samples, 0.5, np.random.default_rng([0, 0]))
    backbone = load_backbone(str(golden_vit.folder), image_size=56, stages=(2, 4, 6, 8), device="cpu")
    projector = load_projector(str(out), "", backbone.spec)
    assert projector is not None
    trainer = training.ProjectorTrainer(backbone.encoder, projector)
    losses, precisions = [], []
    for name in ("another", "steel_part"):
        scores, labels = [], []
        for sample in held_back:
            if sample.object_name == name:
                pixels, mask = prepare_input([sample], backbone.spec)
                loss, anomaly_map = trainer.measure(
                    training.Batch(pixels[None], encode_prompts(backbone.text, name)[None], mask[None])
                )
                losses.append(loss)
                scores.append(anomaly_map.flatten())
                labels.append(mask.flatten())
        precisions.append(average_precision_score(torch.cat(labels), torch.cat(scores)))
    assert len(losses) == 10
    record = read_header(out).fields["history"][0]
    assert record["val_loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert record["val_pixel_ap"] == pytest.approx(np.mean(precisions), abs=1e-4)


def test_the_file_records_how_it_was_made_and_the_json_also_when(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder" / "projector.safetensors"
    assert run_train(parts, out, model, "--epochs", 1, "--lr", 0.002).exit_code == 0
    header, report = read_header(out), report_of(out)
    assert header.kind == "projector"
    assert header.fields["trained_on"] == "parts"
    assert header.fields["spec"]["fingerprint"] == golden_vit.backbone.spec.fingerprint
    assert header.fields["settings"] == {
        "epochs": 1,
        "batch_size": 4,
        "lr": 0.002,
        "betas": [0.5, 0.999],
        "mosaic": 0.2,
        "val": 0.0,
        "seed": 0,
        "range": None,
        "max_pixels": 100_000_000,
        "device": "cpu",
        "precision": "fp32",
    }
    data = header.fields["data"]
    assert (data["layout"], data["objects"]) == ("mvtec", ["steel_part"])
    assert (data["images"], data["anomalous"]) == (10, 6)
    files = sorted(path.relative_to(parts).as_posix() for path in parts.rglob("*.png"))
    lines = [f"{name}\0{hashlib.sha256((parts / name).read_bytes()).hexdigest()}" for name in files]
    assert data["fingerprint"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    for part in ("settings", "data", "history", "kept_epoch"):
        assert report[part] == header.fields[part]
    assert report["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert str(report["started"]) <= str(report["finished"])
    projector = load_projector(str(out), str(golden_vit.folder), golden_vit.backbone.spec)
    assert projector is not None
    assert projector.identity["fingerprint"] == report["fingerprint"]
    assert projector.identity["trained_on"] == "parts"


@pytest.mark.parametrize(
    ("name", "trained_on", "mosaic"), [("metal_nut", "mvtec", 0.2), ("pcb1", "visa", 0.0), ("own", "set", 0.2)]
)
def test_public_sets_are_recognized_and_visa_is_not_composed(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trained_on: str, mosaic: float
) -> None:
    for seed, kind in enumerate(("good", "spot")):
        draw_spot(tmp_path / "set", name, kind, seed)
    prompted, real = [], train_run.encode_prompts
    monkeypatch.setattr(train_run, "encode_prompts", lambda b, name: prompted.append(name) or real(b, name))
    out = tmp_path / "p.safetensors"
    assert run_train(tmp_path / "set", out, model, "--epochs", 1).exit_code == 0
    fields = read_header(out).fields
    assert (fields["trained_on"], fields["settings"]["mosaic"]) == (trained_on, mosaic)
    assert prompted == [name]  # as the folder spells it


def test_it_trains_for_every_model_and_other_models_refuse_the_projector(
    golden: GoldenCase, golden_vit: GoldenCase, parts: Path, tmp_path: Path
) -> None:
    out, images = tmp_path / "p.safetensors", tmp_path / "images"
    draw_image(images / "a.png")
    model = ["--model", str(golden.folder), "--stages", ",".join(map(str, golden.stages)), "--device", "cpu"]
    assert run_train(parts, out, model, "--epochs", 1).exit_code == 0
    fitting = run("scan", images, *model, "--projector", out, "--out", tmp_path / "fitting")
    assert fitting.exit_code == 0, fitting.output
    if golden.folder == golden_vit.folder:
        return
    other = ["--model", golden_vit.folder, "--stages", "2,4,6,8", "--device", "cpu"]
    refused = run("scan", images, *other, "--projector", out, "--out", tmp_path / "refused")
    assert refused.exit_code == 1
    expected = "activation quickgelu against gelu" if "quickgelu" in golden.folder.name else "stage_widths"
    assert expected in error_line(refused)


def test_the_encoder_may_compute_in_half_precision_the_projector_does_not(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    half, full = tmp_path / "half.safetensors", tmp_path / "full.safetensors"
    assert run_train(parts, half, model, "--epochs", 2, "--precision", "bf16").exit_code == 0
    assert run_train(parts, full, model, "--epochs", 2).exit_code == 0
    assert read_header(half).fields["settings"]["precision"] == "bf16"
    assert {weight.dtype for weight in weights_of(half).values()} == {torch.float32}
    losses = [[record["loss"] for record in read_header(out).fields["history"]] for out in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_masks_may_also_come_from_visa_and_from_a_plain_folder(model: list[str], tmp_path: Path) -> None:
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
        result = run_train(root, out, model, "--epochs", 1)
        assert result.exit_code == 0, result.output
        data = read_header(out).fields["data"]
        assert (data["layout"], data["images"], data["anomalous"]) == (layout, 4, 2)


def test_results_go_to_stdout_epochs_to_stderr_and_quiet_says_less(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    loud = run_train(parts, tmp_path / "a.safetensors", model, "--epochs", 2)
    assert [line.split(",")[0].split(": ")[0] for line in loud.stderr.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert loud.stdout.splitlines()[0].startswith("10 images of 1 object: 2 epochs in ")
    assert loud.stdout.splitlines()[1].startswith("kept: epoch 2 of 2 (the last); loss ")
    assert loud.stdout.splitlines()[2] == f"projector: {tmp_path / 'a.safetensors'}"
    quiet = run_train(parts, tmp_path / "b.safetensors", model, "--epochs", 2, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout.splitlines()[1] == loud.stdout.splitlines()[1]


def test_a_resume_with_other_settings_names_them(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    checkpoint = stop_in_second_epoch(parts, out, model, monkeypatch)
    before = checkpoint.read_bytes()
    draw_spot(parts, "steel_part", "spot", 20)
    result = run_train(parts, out, model, "--epochs", 2, "--lr", 0.01, "--resume")
    assert result.exit_code == 1
    line = error_line(result)
    assert "settings lr 0.001 against 0.01" in line
    assert "data images 10 against 11" in line
    assert "data fingerprint" in line
    assert "seed" not in line
    assert checkpoint.read_bytes() == before


def test_images_of_twelve_bits_are_read_with_the_range(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = make_gray(Path(shutil.copytree(parts, tmp_path / "wide")), 4095)
    gray, ranged, stopped = (tmp_path / f"{name}.safetensors" for name in ("gray", "ranged", "stopped"))
    run_train(make_gray(parts), gray, model, "--epochs", 1)
    result = run_train(wide, ranged, model, "--epochs", 1, "--range", "0,4095")
    assert result.exit_code == 0, result.output
    expected = weights_of(gray)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(ranged).items())
    assert report_of(ranged)["settings"]["range"] == [0, 4095]
    assert report_of(gray)["settings"]["range"] is None
    stop_in_second_epoch(wide, stopped, [*model, "--range", "0,4095"], monkeypatch)
    refused = run_train(wide, stopped, model, "--epochs", 2, "--resume", "--range", "0,2047")
    assert "settings range [0.0, 4095.0] against [0.0, 2047.0]" in error_line(refused)
    again = [*model, "--epochs", 2, "--resume", "--range", "0,4095"]
    assert run_train(wide, stopped, again).exit_code == 0


def test_images_above_the_limit_of_pixels_are_refused(parts: Path, model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    refused = run_train(parts, out, model, "--max-pixels", 40 * 30 - 1)
    assert refused.exit_code == 1
    assert "40 x 30 pixels" in error_line(refused)
    assert run_train(parts, out, model, "--epochs", 1, "--max-pixels", 40 * 30).exit_code == 0
    assert report_of(out)["settings"]["max_pixels"] == 1200


def test_resuming_without_a_checkpoint_starts_a_training(parts: Path, model: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    run_train(parts, first, model, "--epochs", 1)
    result = run_train(parts, second, model, "--epochs", 1, "--resume")
    assert result.exit_code == 0
    assert "no checkpoint; starting from the first epoch" in result.stderr
    assert first.read_bytes() == second.read_bytes()


def test_killed_while_the_last_files_were_written(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_run.records, "write_json", killed)
        assert run_train(parts, out, model, "--epochs", 1).exit_code == 130
    written = out.read_bytes()
    assert run_train(parts, out, model, "--epochs", 1, "--resume").exit_code == 0
    assert out.read_bytes() == written
    assert report_of(out)["kept_epoch"] == 1


def test_a_second_training_into_one_file_is_refused_while_the_first_runs(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    lines = []

    def second(count: int) -> None:
        if count == 2:
            lines.extend(
                error_line(run_train(parts, out, model, "--quiet", *arguments)) for arguments in ([], ["--resume"])
            )

    with monkeypatch.context() as patch:
        before_each_step(patch, second)
        assert run_train(parts, out, model, "--epochs", 1).exit_code == 0
    assert len(lines) == 2
    assert all("another training is writing it" in line for line in lines)
    assert list(tmp_path.glob("*.checkpoint")) == []


def test_existing_files_are_never_overwritten(parts: Path, model: list[str], tmp_path: Path) -> None:
    for name in ("p.safetensors", "p.safetensors.json"):
        (tmp_path / name).write_text("mine")
        for arguments in ([], ["--resume"]):
            result = run_train(parts, tmp_path / "p.safetensors", model, *arguments)
            assert result.exit_code == 1
            assert f"{name}: already exists" in error_line(result)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


@pytest.mark.parametrize("what", ["step", "measure"])
def test_a_loss_that_is_not_finite_ends_the_training(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = getattr(training.ProjectorTrainer, what)

    def broken(self: training.ProjectorTrainer, batch: training.Batch) -> object:
        for weight in self.projector.parameters():
            weight.data.fill_(torch.inf)
        return real(self, batch)

    monkeypatch.setattr(training.ProjectorTrainer, what, broken)
    result = run_train(parts, tmp_path / "p.safetensors", model, "--val", 0.34)
    assert result.exit_code == 2
    assert "use a lower rate" in error_line(result)
    assert list(tmp_path.glob("p.safetensors*")) == []


def test_epochs_before_a_loss_that_is_not_finite_are_kept(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, short = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    assert run_train(parts, short, model, "--epochs", 1).exit_code == 0
    real, count = training.ProjectorTrainer.step, itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(
            training.ProjectorTrainer,
            "step",
            lambda self, batch: real(self, batch) if next(count) <= STEPS_PER_EPOCH else math.nan,
        )
        result = run_train(parts, out, model, "--epochs", 3, "--quiet")
    assert result.exit_code == 2
    assert "the loss became nan in epoch 2/3; use a lower rate; --resume --epochs 1 keeps" in error_line(result)
    assert run_train(parts, out, model, "--epochs", 1, "--resume").exit_code == 0
    assert out.read_bytes() == short.read_bytes()


def test_a_resume_may_ask_for_more_epochs_and_not_for_fewer_than_are_done(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, straight = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    assert run_train(parts, straight, model, "--epochs", 3).exit_code == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2 * STEPS_PER_EPOCH + 1)
        assert run_train(parts, out, model, "--epochs", 4).exit_code == 130
    result = run_train(parts, out, model, "--epochs", 1, "--resume")
    assert result.exit_code == 2
    assert "--epochs 1: 2 are done" in error_line(result)
    assert run_train(parts, out, model, "--epochs", 3, "--resume").exit_code == 0
    assert out.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_a_failure_in_the_first_epoch_leaves_no_checkpoint(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocate: Callable[[int], object]
) -> None:
    with monkeypatch.context() as patch:
        before_each_step(patch, lambda _: allocate(2**50))
        result = run_train(parts, tmp_path / "p.safetensors", model)
        assert result.exit_code == 1
        assert "not enough memory; use a smaller --batch-size" in error_line(result)
    assert run_train(parts, tmp_path / "p.safetensors", model, "--epochs", 1, "--batch-size", 2).exit_code == 0


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH + 1])
def test_a_resume_overwrites_only_what_it_wrote_itself(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    out = tmp_path / "p.safetensors"
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        assert run_train(parts, out, model, "--epochs", 2).exit_code == 130
    other = tmp_path / "q.safetensors"
    assert run_train(parts, other, model, "--epochs", 1).exit_code == 0
    for theirs in (b"mine", other.read_bytes()):
        out.write_bytes(theirs)
        result = run_train(parts, out, model, "--epochs", 2, "--resume")
        assert result.exit_code == 1
        assert "already exists" in error_line(result)
        assert out.read_bytes() == theirs
    out.unlink()
    assert run_train(parts, out, model, "--epochs", 2, "--resume").exit_code == 0


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
    parts: Path, model: list[str], tmp_path: Path, change: object, arguments: list[str], code: int, expected: list[str]
) -> None:
    change(parts)  # type: ignore[operator]
    result = run_train(parts, tmp_path / "p.safetensors", model, "--quiet", *arguments)
    assert result.exit_code == code
    line = error_line(result)
    assert all(words in line for words in expected), line
    assert {path.name for path in tmp_path.iterdir()} <= {parts.name, ".p.safetensors.lock"}


def test_an_object_without_any_mask_gives_a_note(parts: Path, model: list[str], tmp_path: Path) -> None:
    shutil.copytree(parts / "steel_part", parts / "brass_part")
    shutil.rmtree(parts / "brass_part" / "ground_truth")
    result = run_train(parts, tmp_path / "p.safetensors", model, "--epochs", 1)
    assert result.exit_code == 0
    assert "brass_part: none of its 6 anomalous images has a mask; only good images are used" in result.stderr


def test_a_name_too_long_for_a_data_set(model: list[str], tmp_path: Path) -> None:
    result = run_train(tmp_path / ("d" * 300), tmp_path / "p.safetensors", model)
    assert result.exit_code == 1
    assert "File name too long" in error_line(result)


def test_an_anomalous_image_without_a_mask_is_left_out_with_a_note(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    (parts / "steel_part" / "ground_truth" / "spot" / "005_mask.png").unlink()
    out = tmp_path / "p.safetensors"
    result = run_train(parts, out, model, "--epochs", 1)
    assert result.exit_code == 0
    assert "problems in the data set: 1 (list them with --verbose)" in result.stderr
    assert read_header(out).fields["data"]["anomalous"] == 5
    verbose = run_train(parts, tmp_path / "q.safetensors", model, "--epochs", 1, "--verbose")
    assert "spot/005.png" in verbose.stderr


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_first_step(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_step(monkeypatch, 1)
    (tmp_path / "file").write_text("")
    result = run_train(parts, tmp_path / "file" / "p.safetensors", model)
    assert result.exit_code == 1
    assert "cannot be written" in error_line(result)


@pytest.mark.slow
def test_a_training_killed_at_any_moments_and_resumed_gives_the_same_file(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight.safetensors", tmp_path / "killed.safetensors"
    checkpoint = killed.with_name(killed.name + ".checkpoint")

    def start_training(out: Path, *more: str) -> subprocess.Popen[str]:
        return start("train", parts, "--out", out, *model, "--batch-size", 4, "--epochs", 40, *more)

    def when_written() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    process = start_training(straight)
    process.communicate()
    assert process.returncode == 0
    rng, kills = random.Random(0), 0
    while not killed.exists():
        process, epochs = start_training(killed, "--resume"), 0
        for _ in range(rng.randint(1, 5)):
            before = when_written()
            epochs += happens(lambda before=before: when_written() not in (0, before), process)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        kills += not killed.exists() and epochs > 0
    assert kills >= 5  # each after at least one new checkpoint, and before the end
    assert killed.read_bytes() == straight.read_bytes()
    assert not list(tmp_path.glob(".aprilcli-*"))
    print(f"{kills} kills of a training of 40 epochs")
