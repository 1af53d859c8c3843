"""Encoding for `eval`: which references are drawn, and one encoder pass per image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers import CountingEncoder, GoldenCase, read_record, run_eval

from aprilcli.core.detector import Detector
from aprilcli.core.prompts import encode_prompts
from aprilcli.io.datasets import read_dataset
from aprilcli.options import EvalOptions
from aprilcli.workflows.eval_encoding import ObjectEncoder
from aprilcli.workflows.eval_references import Setting, draw_order


def test_each_image_is_encoded_once_for_all_settings(parts: Path, golden_vit: GoldenCase) -> None:
    encoder = CountingEncoder(golden_vit.encoder)
    (bolt,) = (one for one in read_dataset(parts).objects if one.name == "bolt")
    detector = Detector(encoder, encode_prompts(golden_vit.backbone.text, "bolt"), golden_vit.projector)
    settings = [Setting(0), *(Setting(shots, seed) for shots in (1, 2, 4) for seed in range(5))]
    options = EvalOptions(dataset=parts, batch_size=2)
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoded = ObjectEncoder(parts, settings, pool, options).encode(bolt, detector, lambda: None)
    drawn = {reference for references in encoded.references for reference in references}
    assert len(drawn) == 5
    assert encoder.count == 6 + len(drawn)


def test_references_are_drawn_by_seed_alone(parts: Path, model: list[str], tmp_path: Path) -> None:
    def references(out: str, dataset: Path, *arguments: object) -> dict[tuple[str, int, int], list[str]]:
        assert run_eval(dataset, tmp_path / out, *model, *arguments).exit_code == 0
        results = read_record(tmp_path / out)["results"]
        return {
            (one["object"], one["shots"], one["seed"]): [Path(path).name for path in one["references"]]
            for one in results
        }

    all_seeds = references("all", parts, "--shots", "1,2,4", "--seeds", 3)
    assert references("later", parts, "--shots", "2", "--seeds", 1, "--seed", 2, "--objects", "bolt") == {
        ("bolt", 2, 2): all_seeds["bolt", 2, 2]
    }
    assert references("alone", parts / "bolt", "--shots", "4", "--seeds", 1)["bolt", 4, 0] == all_seeds["bolt", 4, 0]
    for (name, shots, seed), drawn in all_seeds.items():
        assert drawn == all_seeds[name, 4, seed][:shots]
    assert len({tuple(drawn) for key, drawn in all_seeds.items() if key[1] == 4}) > 1
    order = draw_order("bolt", 5, 0)
    assert all_seeds["bolt", 4, 0] == [f"{index:03}.png" for index in order[:4]]
    assert (order, draw_order("metal_nut", 8, 3)) == ([2, 1, 4, 0, 3], [2, 5, 7, 3, 4, 6, 1, 0])  # on every machine


def test_an_unreadable_reference_is_replaced_by_the_next_drawn(parts: Path, model: list[str], tmp_path: Path) -> None:
    order = draw_order("bolt", 5, 0)
    (parts / "bolt" / "train" / "good" / f"{order[0]:03}.png").write_bytes(b"")
    result = run_eval(parts / "bolt", tmp_path / "out", *model, "--shots", 2, "--seeds", 1)
    assert result.exit_code == 0
    expected = [f"train/good/{index:03}.png" for index in order[1:3]]
    assert read_record(tmp_path / "out")["results"][0]["references"] == expected
    assert "another reference is drawn" in read_record(tmp_path / "out")["problems"][0]
    refused = run_eval(parts / "bolt", tmp_path / "five", *model, "--shots", 5, "--seeds", 1)
    assert refused.exit_code == 1
    assert "only 4 can be read" in refused.stderr
