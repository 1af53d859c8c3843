"""The numbers of the paper's tables 3–12 (Chen, Han, Zhang 2023, arXiv 2305.17382), for comparison.

``paper_tables.csv`` has a row per table, object, metric and number of shots: tables 5–8 (MVTec AD) and 9–12 (VisA) per
object for 0, 1, 2 and 4 shots with their means, and tables 3 and 4, which repeat the means beside those of other methods
(without AP-segm). Values are in percent; standard deviations, over five seeds, are missing for 0 shots.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from aprilcli.defaults import APRIL_GAN

MEAN = "mean"  # the object name in the rows of means


def paper_value(
    dataset: str, shots: int, object_name: str, metric: str, method: str = APRIL_GAN
) -> tuple[float, float | None] | None:
    """Return (mean, deviation) in percent, or None if the paper has no value.

    ``dataset``: ``mvtec`` or ``visa``; ``shots``: 0, 1, 2 or 4; ``object_name``: a folder name of the data set, or
    ``mean``; ``metric``: a name in ``aprilcli.core.metrics``, except ``aupro_30`` and ``vand``; ``method``: the paper's
    own, or one of those that its tables 3 and 4 compare with, of which they only have means.
    The deviation is None for 0 shots. ``pro_segm`` is the paper's own PRO.
    """
    return _values().get((dataset, shots, object_name, metric, method))


def paper_objects(dataset: str) -> tuple[str, ...]:
    """Return the objects of ``mvtec`` or ``visa``, in the order of the paper's tables; none for another name."""
    names = dict.fromkeys(name for known, _, name, *_ in _values() if known == dataset and name != MEAN)
    return tuple(names)


def recognize(object_names: Iterable[str]) -> str | None:
    """Return ``mvtec`` or ``visa`` if all objects (at least one) belong to it, else None.

    The paper's means cover all objects of a data set: compare them only with a mean over all ``paper_objects``.
    """
    names = set(object_names)
    return next((dataset for dataset in ("mvtec", "visa") if names and names <= set(paper_objects(dataset))), None)


@cache
def _values() -> dict[tuple[str, int, str, str, str], tuple[float, float | None]]:
    text = files("aprilcli.io").joinpath("paper_tables.csv").read_text(encoding="utf-8")
    return {
        (row["dataset"], int(row["shots"]), row["object"], row["metric"], row["method"]): (
            float(row["mean"]),
            float(row["deviation"]) if row["deviation"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    }
