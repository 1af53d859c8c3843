"""The output folder of `eval`: it replaces only what an evaluation wrote there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import read_record, run_eval

from aprilcli.errors import OutputError
from aprilcli.workflows.eval_output import check_output, remove_outputs

OWN = {"versions": {"aprilcli": "1"}, "outputs": ["metrics.csv", "scores.csv", "plots/a.png", "metrics.json"]}


def write(out: Path, *names: str, record: object = None) -> Path:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    if record is not None:
        out.mkdir(exist_ok=True)
        (out / "metrics.json").write_text(json.dumps(record))
    return out


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_only_recorded_files_are_removed(tmp_path: Path) -> None:
    out = write(tmp_path, "metrics.csv", "plots/a.png", "plots/mine.svg", "anomaly_maps/x.tiff", record=OWN)
    owned = check_output(out, True, ["metrics.csv", "metrics.json", "plots/a.png"])
    remove_outputs(out, owned)
    assert files(out) == {"plots/mine.svg", "anomaly_maps/x.tiff"}


@pytest.mark.parametrize(
    ("present", "record", "named"),
    [
        (["scores.csv", "run.json"], None, r"scores\.csv would be replaced.*a scan \(run\.json\)"),
        (["metrics.csv"], None, r"metrics\.csv would be replaced.*another program"),
        (["plots/mine.svg"], None, "plots would be replaced"),
        (["plots/b.png"], OWN, r"plots/b\.png would be replaced"),
        (["metrics.json"], None, r"metrics\.json would be replaced"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_evaluation_wrote_is_refused_by_name(
    tmp_path: Path, present: list[str], record: object, named: str, overwrite: bool
) -> None:
    out = write(tmp_path, *present, record=record)
    before = files(out)
    with pytest.raises(OutputError, match=named):
        check_output(out, overwrite, ["metrics.csv", "scores.csv", "metrics.json", "plots/b.png"])
    assert files(out) == before


def test_a_record_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    out = write(tmp_path / "out", record={**OWN, "outputs": ["../mine", "/mine", 3, "metrics.json"]})
    (tmp_path / "mine").write_text("x")
    remove_outputs(out, check_output(out, True, []))
    assert files(tmp_path) == {"mine"}


def test_folders_that_eval_does_not_write_are_left(parts: Path, model: list[str], tmp_path: Path) -> None:
    out = write(tmp_path / "out", "plots/figure.svg", "anomaly_images/sorted.txt", "notes.txt")
    mine = files(out)
    assert run_eval(parts / "bolt", out, *model, "--shots", 0).exit_code == 0
    assert run_eval(parts / "bolt", out, *model, "--shots", 0, "--maps", "--overwrite").exit_code == 0
    assert mine < files(out)
    outputs = read_record(out)["outputs"]
    assert files(out) - mine - {".lock"} == set(outputs)
    assert next(iter(read_record(out))) == "versions"
    assert run_eval(parts / "bolt", out, *model, "--shots", 0, "--overwrite").exit_code == 0
    assert not (out / "anomaly_maps").exists()
    assert mine < files(out)
    write(out, "scores.csv", "run.json")
    (out / "metrics.json").unlink()
    refused = run_eval(parts / "bolt", out, *model, "--shots", 0, "--overwrite")
    assert refused.exit_code == 1
    assert "scores.csv" in refused.stderr
    assert (out / "scores.csv").read_text() == "scores.csv"
