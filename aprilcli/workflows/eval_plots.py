"""The plots of an evaluation: ROC and PRO curves, and histograms of image scores. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aprilcli.core.metrics import FPR_LIMIT, Curve
from aprilcli.io.atomic import written_aside


@dataclass(frozen=True)
class Curves:
    """The curves of a setting.

    ``name``: for the legend; ``metrics``: its measures, in [0, 1]; curves as (x, y); ``labels`` (1 is anomalous) and
    ``scores`` of the images.
    """

    name: str
    metrics: Mapping[str, float]
    image_roc: Curve
    pixel_roc: Curve
    pro: Curve
    labels: Sequence[int]
    scores: Sequence[float]


def plot_object(path: Path, object_name: str, settings: Sequence[Curves]) -> None:
    """Draw the curves of all settings, and the histograms of the last, as a PNG. Raises OutputError."""
    from matplotlib.figure import Figure  # optional; without pyplot: no window, no global state

    figure = Figure(figsize=(11, 9), layout="constrained")
    ((image_roc, pixel_roc), (pro, histogram)) = figure.subplots(2, 2)
    for curves in settings:
        for axes, curve, metric in (
            (image_roc, curves.image_roc, "auroc_cls"),
            (pixel_roc, curves.pixel_roc, "auroc_segm"),
            (pro, curves.pro, "aupro_30"),
        ):
            if not math.isnan(curves.metrics[metric]):
                axes.plot(*curve, label=f"{curves.name}: {metric} {100 * curves.metrics[metric]:.1f} %")
    image_roc.set(title="ROC of the images", ylabel="true positive rate")
    pixel_roc.set(title="ROC of the pixels", ylabel="true positive rate")
    pro.set(title="PRO of the pixels", ylabel="mean overlap with the regions")
    pro.axvline(FPR_LIMIT, color="gray", linestyle=":")
    for axes, has_curves in ((axes, len(axes.get_legend_handles_labels()[0])) for axes in (image_roc, pixel_roc, pro)):
        axes.set(xlabel="false positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        if has_curves:
            axes.legend(loc="lower right")
        else:
            axes.text(0.5, 0.5, "undefined", ha="center")
    last = settings[-1]
    by_label = [[s for s, label in zip(last.scores, last.labels, strict=True) if label == wanted] for wanted in (0, 1)]
    histogram.set(title=f"Scores of the images, {last.name}", xlabel="score", ylabel="images")
    if last.scores:
        histogram.hist(by_label, bins=30, label=["good", "anomalous"])
        histogram.legend()
    figure.suptitle(object_name, parse_math=False)
    with written_aside(path) as temporary:
        figure.savefig(temporary, dpi=110)
