"""Encoding for `eval`: one encoder pass per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import CountingEncoder, GoldenCase, draw_object, run_eval

from aprilcli.core.detector import Detector
from aprilcli.core.prompts import encode_prompts
from aprilcli.io.datasets import read_dataset
from aprilcli.options import EvalOptions
from aprilcli.workflows.console import Console
from aprilcli.workflows.eval_encoding import ObjectEncoder
from aprilcli.workflows.eval_references import draw_order
from aprilcli.workflows.eval_settings import Setting


def test_each_image_is_encoded_once_for_all_settings(parts: Path, golden_vit: GoldenCase) -> None:
    encoder = CountingEncoder(golden_vit.encoder)
    (bolt,) = (item for item in read_dataset(parts).objects if item.name == "bolt")
    detector = Detector(encoder, encode_prompts(golden_vit.backbone.text, "bolt"), golden_vit.projector)
    settings = [Setting(0), *(Setting(shots, seed) for shots in (1, 2, 4) for seed in range(5))]
    options = EvalOptions(dataset=parts, batch_size=2)
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoded = ObjectEncoder(parts, settings, pool, options).encode(bolt, detector, lambda *_: None)
    drawn = {reference for references in encoded.references for reference in references}
    assert len(drawn) == 5
    assert encoder.count == 6 + len(drawn)


@pytest.mark.parametrize("unreadable", [0, 1])
def test_progress_ends_at_its_total(
    tmp_path: Path, model: list[str], monkeypatch: pytest.MonkeyPatch, unreadable: int
) -> None:
    counts = {}

    @contextmanager
    def progress(_: Console, total: int, task: str) -> Iterator[Callable[..., None]]:
        counts.update(total=total, done=0)

        def advance(count: int = 1, task: str | None = None) -> None:
            counts["done"] += count
            assert counts["done"] <= total

        yield advance

    monkeypatch.setattr(Console, "progress", progress)
    for seed, name in ((100, "bolt"), (200, "metal_nut")):
        folder = draw_object(tmp_path / "parts" / name, seed, train=10)
        for number in draw_order(name, 10, 0)[:unreadable]:
            (folder / "train" / "good" / f"{number:03}.png").write_bytes(b"")
    arguments = ("--shots", "0,1,2", "--seeds", 2, "--calibrate")
    assert run_eval(tmp_path / "parts", tmp_path / "out", *model, *arguments).exit_code == 0
    assert counts["done"] == counts["total"] == 2 * (6 + 10)
