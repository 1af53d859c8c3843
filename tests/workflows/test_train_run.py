"""The run of a training: its epochs, the weights it keeps, the files it writes, and how it resumes."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import ForkedProcess
from helpers import (
    STEPS_PER_EPOCH,
    GoldenCase,
    before_each_step,
    draw_spot,
    error_line,
    happens,
    read_report,
    run_train,
    stop_in_second_epoch,
    stop_in_step,
)
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from aprilcli.core import training
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.projector import load_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.training_set import prepare_input, split_validation, training_images
from aprilcli.io.artifacts import read_header
from aprilcli.io.datasets import read_dataset
from aprilcli.io.images import NOTE_RANGE
from aprilcli.options import TrainOptions
from aprilcli.workflows import train_run
from aprilcli.workflows.train_run import image_reader


def test_one_seed_gives_one_file_whatever_the_workers(spotted: Path, small_model: list[str], tmp_path: Path) -> None:
    outs = [tmp_path / f"{name}.safetensors" for name in ("first", "second", "other")]
    for out, workers, seed in zip(outs, (1, 4, 1), (0, 0, 1), strict=True):
        arguments = ["--workers", workers, "--seed", seed, "--mosaic", 0.5]
        assert run_train(spotted, out, small_model, "--epochs", 2, *arguments).exit_code == 0
    first, second, other = (out.read_bytes() for out in outs)
    assert first == second != other
    assert not torch.equal(load_file(outs[0])["fc.0.weight"], load_file(outs[2])["fc.0.weight"])


@pytest.mark.parametrize("step", [2, STEPS_PER_EPOCH + 2, 2 * STEPS_PER_EPOCH + 1])
def test_a_resumed_training_gives_the_same_file(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    arguments = ["--epochs", 3, "--mosaic", 0.5]
    assert run_train(spotted, straight, small_model, *arguments).exit_code == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        result = run_train(spotted, stopped, small_model, *arguments)
    done = (step - 1) // STEPS_PER_EPOCH
    assert result.exit_code == 130
    assert f"stopped after epoch {done} of 3; continue with --resume" in result.stderr
    assert not stopped.exists()
    assert sorted(path.name for path in tmp_path.glob("stopped*")) == ["stopped.safetensors.checkpoint"]
    refused = run_train(spotted, stopped, small_model, *arguments)
    assert refused.exit_code == 1
    assert "--resume" in error_line(refused)
    resumed = run_train(spotted, stopped, small_model, *arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"continuing after epoch {done} of 3" in resumed.stderr
    assert stopped.read_bytes() == straight.read_bytes()
    names = sorted(path.name for path in tmp_path.glob("stopped*"))
    assert names == ["stopped.safetensors", "stopped.safetensors.json"]  # and no checkpoint


def test_the_epoch_of_the_lowest_validation_loss_is_kept_and_reported(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, stopped, short = (tmp_path / f"{name}.safetensors" for name in ("out", "stopped", "short"))
    losses: list[float] = []
    monkeypatch.setattr(training.ProjectorTrainer, "measure", lambda _, batch: (losses.pop(0), batch.masks))
    losses += [3, 1, 2, 1]
    result = run_train(spotted, out, small_model, "--val", 0.34, "--epochs", 4)
    assert result.exit_code == 0, result.output
    fields = read_header(out).fields
    assert [record["val_loss"] for record in fields["history"]] == [3, 1, 2, 1]
    assert fields["kept_epoch"] == 2
    assert "kept: epoch 2 of 4 (lowest validation loss); " in result.stdout
    assert "7 images of 1 object, 3 more for validation" in result.stdout
    assert "epoch 1/4: loss " in result.stderr
    assert ", validation loss 3.0000, pixel AP 1.0000" in result.stderr
    losses += [3, 1]
    assert run_train(spotted, short, small_model, "--val", 0.34, "--epochs", 2).exit_code == 0
    assert all(torch.equal(weight, load_file(short)[name]) for name, weight in load_file(out).items())
    losses += [3, 1, 2, 1]
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3 * 2 + 1)  # after the best epoch: the checkpoint has kept it
        assert run_train(spotted, stopped, small_model, "--val", 0.34, "--epochs", 4).exit_code == 130
    assert run_train(spotted, stopped, small_model, "--val", 0.34, "--epochs", 4, "--resume").exit_code == 0
    assert stopped.read_bytes() == out.read_bytes()


def test_validation_is_the_loss_and_the_pixel_ap_of_the_images_held_back(
    spotted: Path, small_model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    for seed in range(10, 20):
        draw_spot(spotted, "another", "good" if seed < 14 else "spot", seed)
    out = tmp_path / "p.safetensors"
    assert run_train(spotted, out, small_model, "--val", 0.5, "--epochs", 1, "--batch-size", 2).exit_code == 0
    samples = training_images(read_dataset(spotted))
    _, held_back = split_validation(samples, 0.5, np.random.default_rng([0, 0]))
    backbone = load_backbone(str(golden_vit.folder), image_size=56, stages=(2, 4, 6, 8), device="cpu")
    projector = load_projector(str(out), "", backbone.spec)
    assert projector is not None
    trainer = training.ProjectorTrainer(projector, backbone.encoder.device)
    losses, precisions = [], []
    for name in ("another", "steel_part"):
        scores, labels = [], []
        for sample in held_back:
            if sample.object_name == name:
                pixels, mask = prepare_input([sample], backbone.spec, 56)
                loss, anomaly_map = trainer.measure(
                    training.Batch(
                        training.encode_singly(backbone.encoder, pixels[None]),
                        backbone.encoder.grids,
                        encode_prompts(backbone.text, name)[None],
                        mask[None],
                    )
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
    spotted: Path, small_model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder" / "projector.safetensors"
    assert run_train(spotted, out, small_model, "--epochs", 1, "--lr", 0.002).exit_code == 0
    header, report = read_header(out), read_report(out)
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
        "max_pixels": 150_000_000,
        "device": "cpu",
        "precision": "fp32",
    }
    data = header.fields["data"]
    assert (data["layout"], data["objects"]) == ("mvtec", ["steel_part"])
    assert (data["images"], data["anomalous"]) == (10, 6)
    files = sorted(path.relative_to(spotted).as_posix() for path in spotted.rglob("*.png"))
    lines = [f"{name}\0{hashlib.sha256((spotted / name).read_bytes()).hexdigest()}" for name in files]
    assert data["fingerprint"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    for part in ("settings", "data", "history", "kept_epoch"):
        assert report[part] == header.fields[part]
    assert report["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert str(report["started"]) <= str(report["finished"])
    projector = load_projector(str(out), str(golden_vit.folder), golden_vit.backbone.spec)
    assert projector is not None
    assert projector.identity["fingerprint"] == report["fingerprint"]
    assert projector.identity["trained_on"] == "parts"


def test_a_resume_with_other_settings_names_them(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    checkpoint = stop_in_second_epoch(spotted, out, small_model, monkeypatch)
    before = checkpoint.read_bytes()
    draw_spot(spotted, "steel_part", "spot", 20)
    result = run_train(spotted, out, small_model, "--epochs", 2, "--lr", 0.01, "--resume")
    assert result.exit_code == 1
    line = error_line(result)
    assert "settings lr 0.001 against 0.01" in line
    assert "data images 10 against 11" in line
    assert "data fingerprint" in line
    assert "seed" not in line
    assert checkpoint.read_bytes() == before


def test_resuming_without_a_checkpoint_starts_a_training(spotted: Path, small_model: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    run_train(spotted, first, small_model, "--epochs", 1)
    result = run_train(spotted, second, small_model, "--epochs", 1, "--resume")
    assert result.exit_code == 0
    assert "no checkpoint; starting from the first epoch" in result.stderr
    assert first.read_bytes() == second.read_bytes()


def test_killed_while_the_last_files_were_written(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_run.records, "write_json", killed)
        assert run_train(spotted, out, small_model, "--epochs", 1).exit_code == 130
    written = out.read_bytes()
    assert run_train(spotted, out, small_model, "--epochs", 1, "--resume").exit_code == 0
    assert out.read_bytes() == written
    assert read_report(out)["kept_epoch"] == 1


def test_existing_files_are_never_overwritten(spotted: Path, small_model: list[str], tmp_path: Path) -> None:
    for name in ("p.safetensors", "p.safetensors.json"):
        (tmp_path / name).write_text("mine")
        for arguments in ([], ["--resume"]):
            result = run_train(spotted, tmp_path / "p.safetensors", small_model, *arguments)
            assert result.exit_code == 1
            assert f"{name}: already exists" in error_line(result)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


@pytest.mark.parametrize("what", ["step", "measure"])
def test_a_loss_that_is_not_finite_ends_the_training(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = getattr(training.ProjectorTrainer, what)

    def broken(self: training.ProjectorTrainer, batch: training.Batch) -> object:
        for weight in self.projector.parameters():
            weight.data.fill_(torch.inf)
        return real(self, batch)

    monkeypatch.setattr(training.ProjectorTrainer, what, broken)
    result = run_train(spotted, tmp_path / "p.safetensors", small_model, "--val", 0.34)
    assert result.exit_code == 2
    assert "use a lower rate" in error_line(result)
    assert list(tmp_path.glob("p.safetensors*")) == []


def test_epochs_before_a_loss_that_is_not_finite_are_kept(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, short = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    assert run_train(spotted, short, small_model, "--epochs", 1).exit_code == 0
    real, count = training.ProjectorTrainer.step, itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(
            training.ProjectorTrainer,
            "step",
            lambda self, batch: real(self, batch) if next(count) <= STEPS_PER_EPOCH else math.nan,
        )
        result = run_train(spotted, out, small_model, "--epochs", 3, "--quiet")
    assert result.exit_code == 2
    assert "the loss became nan in epoch 2/3; use a lower rate; --resume --epochs 1 keeps" in error_line(result)
    assert run_train(spotted, out, small_model, "--epochs", 1, "--resume").exit_code == 0
    assert out.read_bytes() == short.read_bytes()


def test_a_resume_may_ask_for_more_epochs_and_not_for_fewer_than_are_done(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, straight = tmp_path / "p.safetensors", tmp_path / "q.safetensors"
    assert run_train(spotted, straight, small_model, "--epochs", 3).exit_code == 0
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2 * STEPS_PER_EPOCH + 1)
        assert run_train(spotted, out, small_model, "--epochs", 4).exit_code == 130
    result = run_train(spotted, out, small_model, "--epochs", 1, "--resume")
    assert result.exit_code == 2
    assert "--epochs 1: 2 are done" in error_line(result)
    assert run_train(spotted, out, small_model, "--epochs", 3, "--resume").exit_code == 0
    assert out.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_a_failure_in_the_first_epoch_leaves_no_checkpoint(
    spotted: Path,
    small_model: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allocate: Callable[[int], object],
) -> None:
    with monkeypatch.context() as patch:
        before_each_step(patch, lambda _: allocate(2**50))
        result = run_train(spotted, tmp_path / "p.safetensors", small_model)
        assert result.exit_code == 1
        assert "not enough memory; use a smaller --batch-size" in error_line(result)
    assert run_train(spotted, tmp_path / "p.safetensors", small_model, "--epochs", 1, "--batch-size", 2).exit_code == 0


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH + 1])
def test_a_resume_overwrites_only_what_it_wrote_itself(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    out = tmp_path / "p.safetensors"
    with monkeypatch.context() as patch:
        stop_in_step(patch, step)
        assert run_train(spotted, out, small_model, "--epochs", 2).exit_code == 130
    other = tmp_path / "q.safetensors"
    assert run_train(spotted, other, small_model, "--epochs", 1).exit_code == 0
    for theirs in (b"mine", other.read_bytes()):
        out.write_bytes(theirs)
        result = run_train(spotted, out, small_model, "--epochs", 2, "--resume")
        assert result.exit_code == 1
        assert "already exists" in error_line(result)
        assert out.read_bytes() == theirs
    out.unlink()
    assert run_train(spotted, out, small_model, "--epochs", 2, "--resume").exit_code == 0


@pytest.mark.slow
def test_a_training_killed_at_any_moments_and_resumed_gives_the_same_file(
    spotted: Path, small_model: list[str], tmp_path: Path
) -> None:
    straight, killed = tmp_path / "straight.safetensors", tmp_path / "killed.safetensors"
    checkpoint = killed.with_name(killed.name + ".checkpoint")

    def start_training(out: Path, *more: str) -> ForkedProcess:
        return ForkedProcess("train", spotted, "--out", out, *small_model, "--batch-size", 4, "--epochs", 40, *more)

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


def test_the_notes_of_training_images_are_passed_on(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.png")
    options = TrainOptions(dataset=tmp_path, out=tmp_path / "p.safetensors")
    notes: list[str] = []
    assert image_reader(options, notes.append)(tmp_path / "a.png").size_hw == (20, 30)
    assert notes == [NOTE_RANGE]
    image_reader(replace(options, value_range=(0, 1023)), notes.append)(tmp_path / "a.png")
    assert notes == [NOTE_RANGE]
