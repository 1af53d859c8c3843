"""A warning where a projector is evaluated on the data it was trained on."""

from __future__ import annotations

from aprilcli.core.projector import Projector
from aprilcli.io import paper_tables
from aprilcli.io.datasets import LabeledDataset


def leakage(dataset: LabeledDataset, projector: Projector | None, fingerprint: str) -> str | None:
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
