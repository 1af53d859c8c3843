"""Which references an evaluation draws: by the seed alone, and only those that can be read."""

from __future__ import annotations

from pathlib import Path

from helpers import read_record, run_eval

from aprilcli.workflows.eval_references import draw_order


def test_references_are_drawn_by_seed_alone(parts: Path, model: list[str], tmp_path: Path) -> None:
    def references(out: str, dataset: Path, *arguments: object) -> dict[tuple[str, int, int], list[str]]:
        assert run_eval(dataset, tmp_path / out, *model, *arguments).exit_code == 0
        results = read_record(tmp_path / out)["results"]
        return {
            (result["object"], result["shots"], result["seed"]): [Path(path).name for path in result["references"]]
            for result in results
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
