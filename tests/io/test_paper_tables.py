"""The paper's tables are complete and consistent, and their values are found by name."""

import csv
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

import aprilcli.io
from aprilcli.io.paper_tables import paper_objects, paper_value, recognize

METRICS = ["auroc_segm", "f1max_segm", "ap_segm", "pro_segm", "auroc_cls", "f1max_cls", "ap_cls"]
SETTINGS = [(dataset, shots) for dataset in ("mvtec", "visa") for shots in (0, 1, 2, 4)]


def rows():
    with Path(aprilcli.io.__path__[0], "paper_tables.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_table_is_complete():
    counts = Counter(int(row["table"]) for row in rows() if row["method"] == "april-gan")
    assert counts == {3: 28, 4: 28} | dict.fromkeys(range(5, 9), 16 * 7) | dict.fromkeys(range(9, 13), 13 * 7)
    others = Counter((row["table"], row["method"]) for row in rows() if row["method"] != "april-gan")
    few_shot = {(table, method): 3 * 6 for table in "34" for method in ("spade", "padim", "patchcore")}
    assert others == few_shot | {(table, "winclip"): 4 * 6 for table in "34"}
    keys = [(row["table"], row["object"], row["metric"], row["shots"], row["method"]) for row in rows()]
    assert len(keys) == len(set(keys))
    assert all((row["deviation"] == "") == (row["shots"] == "0") for row in rows())
    assert {row["metric"] for row in rows()} == set(METRICS)


@pytest.mark.parametrize(("dataset", "shots"), SETTINGS)
@pytest.mark.parametrize("metric", METRICS)
def test_means_of_objects_are_the_stated_means(dataset, shots, metric):
    objects = [paper_value(dataset, shots, name, metric)[0] for name in paper_objects(dataset)]
    assert len(objects) == {"mvtec": 15, "visa": 12}[dataset]
    # Objects and mean are each rounded to 0.1, so they may be 0.1 apart.
    assert fmean(objects) == pytest.approx(paper_value(dataset, shots, "mean", metric)[0], abs=0.1 + 1e-9)


def test_the_comparison_tables_repeat_the_means():
    assert [row for row in rows() if row["table"] in "34"]
    for row in (row for row in rows() if row["table"] in "34" and row["method"] == "april-gan"):
        stated = [r for r in rows() if int(r["table"]) > 4 and all(r[k] == row[k] for k in row if k != "table")]
        assert len(stated) == 1, row


@pytest.mark.parametrize(
    ("dataset", "shots", "name", "metric", "value"),
    [
        ("mvtec", 0, "zipper", "pro_segm", (10.7, None)),
        ("mvtec", 1, "capsule", "f1max_segm", (37.0, 4.2)),
        ("mvtec", 2, "wood", "ap_cls", (99.6, 0.1)),
        ("mvtec", 4, "mean", "auroc_segm", (95.9, 0.0)),
        ("visa", 0, "macaroni2", "ap_segm", (6.8, None)),
        ("visa", 1, "pcb2", "ap_cls", (87.1, 7.8)),
        ("visa", 4, "pipe_fryum", "auroc_cls", (98.5, 0.4)),
        ("visa", 3, "pcb1", "auroc_cls", None),
        ("visa", 0, "pcb1", "aupro_30", None),
        ("mvtec", 0, "pcb1", "auroc_cls", None),
    ],
)
def test_values_by_name(dataset, shots, name, metric, value):
    assert paper_value(dataset, shots, name, metric) == value


@pytest.mark.parametrize(
    ("dataset", "shots", "metric", "method", "value"),
    [
        ("mvtec", 0, "auroc_cls", "winclip", (91.8, None)),
        ("mvtec", 0, "ap_segm", "winclip", None),
        ("mvtec", 1, "auroc_segm", "spade", (92.0, 0.3)),
        ("mvtec", 2, "pro_segm", "padim", (73.3, 2.0)),
        ("mvtec", 4, "f1max_cls", "patchcore", (92.6, 1.6)),
        ("visa", 0, "f1max_segm", "winclip", (14.8, None)),
        ("visa", 1, "ap_cls", "padim", (68.3, 4.0)),
        ("visa", 2, "f1max_segm", "patchcore", (41.0, 3.9)),
        ("visa", 4, "auroc_cls", "winclip", (87.3, 1.8)),
        ("visa", 4, "auroc_cls", "subspacead", None),
    ],
)
def test_means_of_other_methods(dataset, shots, metric, method, value):
    assert paper_value(dataset, shots, "mean", metric, method) == value


def test_data_sets_are_recognized_by_their_objects():
    assert recognize(paper_objects("mvtec")) == "mvtec"
    assert recognize(["pcb1", "candle"]) == "visa"
    assert recognize(["capsule"]) == "mvtec"
    assert recognize(["capsules"]) == "visa"
    assert recognize(["capsule", "capsules"]) is None
    assert recognize(["tile", "board"]) is None
    assert recognize([]) is None
    assert paper_objects("other") == ()
