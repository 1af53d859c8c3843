"""Warnings where a model is evaluated on images that it knows: training data, or copies of reference images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aprilcli.core.projector import Projector
from aprilcli.io import paper_tables
from aprilcli.io.datasets import LabeledDataset


def leakage(
    dataset: LabeledDataset, projector: Projector | None, fingerprint: str, copies: Mapping[str, Sequence[str]]
) -> str | None:
    """Return a warning if a model is measured on data it knows; ``copies``: see ``copies_leakage``."""
    warnings = (projector_leakage(dataset, projector, fingerprint), copies_leakage(dataset, copies))
    return "; ".join(warning for warning in warnings if warning) or None


def copies_leakage(dataset: LabeledDataset, copies: Mapping[str, Sequence[str]]) -> str | None:
    """Return a warning if test images are copies of training images; ``copies``: their names, per object."""
    tested = {item.name: len(item.test) for item in dataset.objects}
    listed = [f"{name} {len(found)} of {tested[name]} (first {found[0]})" for name, found in copies.items() if found]
    if not listed:
        return None
    return (
        f"LEAKAGE: test images are copies of reference or calibration images: {', '.join(listed)}; "
        "numbers with shots say nothing about unseen images"
    )


def projector_leakage(dataset: LabeledDataset, projector: Projector | None, fingerprint: str) -> str | None:
    """Return a warning if the projector was trained on the data it is measured on."""
    if projector is None:
        return None
    names = {dataset.root.resolve().name.casefold()}
    if [item.name for item in dataset.objects] == [dataset.root.resolve().name]:  # one object of a set
        names.add(dataset.root.resolve().parent.name.casefold())
    public_set = paper_tables.recognize(item.category for item in dataset.objects)
    data = projector.fields.get("data")
    same_content = isinstance(data, dict) and data.get("fingerprint") == fingerprint
    trained_on = projector.trained_on
    if same_content or (trained_on and (trained_on == public_set or trained_on.casefold() in names)):
        return (
            f"LEAKAGE: the projector was trained on this data set ({trained_on or 'the same images'}); "
            "these numbers say nothing about unseen objects"
        )
    return None
