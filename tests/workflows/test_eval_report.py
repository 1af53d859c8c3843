"""The report of `eval`: its table and CSV files, and the paper's values beside them."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from helpers import EVAL_SETTINGS, GoldenCase, draw_object, read_csv, read_record, run_eval

from aprilcli.core.metrics import METRICS
from aprilcli.io.paper_tables import paper_objects, paper_value
from aprilcli.workflows import eval_report, eval_table
from aprilcli.workflows.eval_results import Report, Result
from aprilcli.workflows.eval_settings import Setting


def test_scores_csv_has_a_row_per_image_and_setting(
    parts: Path, model: list[str], golden_vit: GoldenCase, tmp_path: Path
) -> None:
    run_eval(parts, tmp_path / "out", *model, *EVAL_SETTINGS)
    header = (tmp_path / "out" / "scores.csv").read_bytes().split(b"\r\n")[0].decode()
    assert header == "object,defect,path,label,shots,seed,text_score,map_max,score,status,error,method"
    rows = read_csv(tmp_path / "out" / "scores.csv")
    assert len(rows) == 2 * 6 * 5
    assert {row["status"] for row in rows} == {"ok"}
    first = rows[0]
    assert (first["object"], first["defect"], first["label"], first["shots"], first["seed"]) == (
        *("bolt", "good", "0", "0"),
        "",
    )
    detector = golden_vit.detector(golden_vit.projector, None, "bolt")
    detection = detector.detect_file(parts / first["path"])
    assert (float(first["text_score"]), float(first["map_max"])) == pytest.approx(
        (detection.text_score, detection.map_max), abs=1e-6
    )
    assert first["score"] == first["text_score"]
    for row in rows:
        if row["shots"] != "0":
            assert np.float32(row["score"]) == np.float32(row["text_score"]) + np.float32(row["map_max"])
            assert (row["label"] == "1") == (row["defect"] == "scratch") == ("/scratch/" in row["path"])


def test_metrics_csv_has_means_over_objects_and_seeds(parts: Path, model: list[str], tmp_path: Path) -> None:
    run_eval(parts, tmp_path / "out", *model, *EVAL_SETTINGS)
    rows = {(row["object"], row["shots"], row["seed"]): row for row in read_csv(tmp_path / "out" / "metrics.csv")}
    assert list(next(iter(rows.values()))) == ["object", "shots", "seed", *METRICS, "method"]
    assert set(rows) == {
        (name, shots, seed)
        for name in ("bolt", "metal_nut", "mean")
        for shots, seeds in (("0", ("", "mean")), *((k, ("0", "1", "mean", "deviation")) for k in "12"))
        for seed in seeds
    }
    results = {(row["object"], row["shots"], row["seed"]): row for row in read_record(tmp_path / "out")["results"]}
    for metric in METRICS:
        bolt = [results["bolt", 2, seed]["metrics"][metric] for seed in (0, 1)]
        nut = [results["metal_nut", 2, seed]["metrics"][metric] for seed in (0, 1)]
        means = [(a + b) / 2 for a, b in zip(bolt, nut, strict=True)]
        expected = {
            ("bolt", "2", "0"): bolt[0],
            ("bolt", "2", "mean"): statistics.mean(bolt),
            ("bolt", "2", "deviation"): statistics.stdev(bolt),
            ("mean", "2", "1"): means[1],
            ("mean", "2", "mean"): statistics.mean(means),
            ("mean", "2", "deviation"): statistics.stdev(means),
        }
        assert {key: float(rows[key][metric]) for key in expected} == pytest.approx(expected, abs=1e-12)
        assert rows["bolt", "0", ""][metric] == rows["bolt", "0", "mean"][metric]


def test_the_table_is_on_stdout_uncut_and_notes_are_on_stderr(parts: Path, model: list[str], tmp_path: Path) -> None:
    result = run_eval(parts, tmp_path / "out", *model, *EVAL_SETTINGS)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["shots", "object", *METRICS]
    assert [tuple(line.split()[:2]) for line in lines[2:11]] == [
        (shots, name) for shots in "012" for name in ("bolt", "metal_nut", "mean")
    ]
    summary = read_record(tmp_path / "out")["summaries"][4]
    assert (summary["object"], summary["shots"]) == ("metal_nut", 1)
    cells = [f"{100 * summary['mean'][m]:.1f} ± {100 * summary['deviation'][m]:.1f}" for m in METRICS]
    assert lines[6].split() == ["1", "metal_nut", *" ".join(cells).split()]
    assert "70 x 70" in result.stdout
    assert "layout mvtec, 2 objects" in result.stderr
    assert "bolt: 5 good for training; test: 3 good, 3 anomalous (scratch 3), 3 masks" in result.stderr
    assert "shots" not in result.stderr
    quiet = run_eval(parts, tmp_path / "quiet", *model, *EVAL_SETTINGS, "--quiet")
    assert quiet.stderr == ""
    assert quiet.stdout == result.stdout


def test_an_object_with_test_images_of_one_kind_is_not_in_the_means(
    parts: Path, model: list[str], tmp_path: Path
) -> None:
    shutil.rmtree(parts / "metal_nut" / "test" / "good")
    result = run_eval(parts, tmp_path / "out", *model, "--shots", 0)
    bolt, nut = (row["metrics"] for row in read_record(tmp_path / "out")["results"])
    assert [name for name in METRICS if nut[name] is None] == [*METRICS[5:]]
    mean = read_record(tmp_path / "out")["summaries"][-1]["mean"]
    assert [mean[name] for name in METRICS[5:]] == [bolt[name] for name in METRICS[5:]]
    assert "undefined and not in the means: image measures of metal_nut (no good test images)" in result.stdout
    assert "so the numbers are rough: bolt (3 good, 3 anomalous)" in result.stdout


@pytest.mark.parametrize("whole", [True, False])
def test_the_papers_values_are_shown_beside_those_of_the_paper_model(whole: bool) -> None:
    names = paper_objects("mvtec") if whole else ("bottle", "metal_nut")
    results = [
        Result(name, name, Setting(1, seed), (), dict.fromkeys(METRICS, 0.5 + seed / 10), ())
        for name in names
        for seed in (0, 1)
    ]
    lines = eval_table.draw_table(Report(tuple(results), (), paper="mvtec")).splitlines()
    bottle = next(number for number, line in enumerate(lines) if line.split()[:2] == ["1", "bottle"])
    value, deviation = paper_value("mvtec", 1, "bottle", "auroc_segm")
    assert lines[bottle + 1].split()[1:5] == ["paper", f"{value:.1f}", "±", f"{deviation:.1f}"]
    assert lines[bottle + 2].split()[1:3] == ["difference", f"{55 - value:+.1f}"]
    assert lines[bottle + 1].split()[-1] == lines[bottle + 2].split()[-1] == "-"  # the paper has no vand
    mean = next(number for number, line in enumerate(lines) if line.split()[:2] == ["1", "mean"])
    assert (mean + 1 < len(lines) and "paper" in lines[mean + 1]) == whole
    described = eval_report.describe_report(Report(tuple(results), (), paper="mvtec"))["summaries"]
    described_bottle = next(item for item in described if item["object"] == "bottle")
    assert described_bottle["paper"]["auroc_segm"] == pytest.approx(value / 100)
    assert ("paper" in described[-1]) == whole
    assert "paper" not in eval_table.draw_table(Report(tuple(results), ()))


def test_names_that_look_like_markup_are_literal_in_the_table(parts: Path, model: list[str], tmp_path: Path) -> None:
    for name, odd in (("bolt", "[red]bolt"), ("metal_nut", "\x1b[31mnut[")):
        (parts / name).rename(parts / odd)
    draw_object(parts / "x[" / "y]", 300)  # "[/" would close a style that is not open
    result = run_eval(parts, tmp_path / "out", *model, "--shots", 0)
    assert result.exit_code == 0, result.output
    assert "[red]bolt" in result.stdout
    assert "\\x1b[31mnut[" in result.stdout
    assert "\x1b" not in result.stdout
