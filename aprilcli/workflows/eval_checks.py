"""What `eval` refuses before the model is loaded. Imports no torch, so a refusal takes no seconds."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from aprilcli.core.calibration import check_rate
from aprilcli.core.mutual_subsets import LEAST
from aprilcli.defaults import WITHOUT_REFERENCES
from aprilcli.errors import InputError, OptionError
from aprilcli.io.atomic import check_writable
from aprilcli.io.datasets import LabeledDataset, read_dataset
from aprilcli.io.label_names import same_form
from aprilcli.io.labels_csv import labeled_dataset
from aprilcli.options import EvalFusion, EvalOptions
from aprilcli.workflows.eval_output import planned_outputs, refuse_outputs
from aprilcli.workflows.parts import find_bank


def check(options: EvalOptions) -> LabeledDataset:
    """Check options and output folder, and return the objects to measure, read but not their images.

    Raises OptionError, OutputError for an output folder that cannot be written or holds results, InputError for a data
    set that cannot be read.
    """
    _check_options(options)
    check_writable(options.out)
    if options.part is not None:
        find_bank(options.part, options.banks)
    dataset = _choose_objects(_read_dataset(options), options.objects)
    if options.mutual:
        _check_mutual(dataset)
    refuse_outputs(options.out, options.overwrite, planned_outputs(options, dataset))  # and again once locked
    return dataset


def _check_options(options: EvalOptions) -> None:
    if options.shots is not None and (not options.shots or min(options.shots) < 0):
        raise OptionError("--shots: give numbers of references from 0, such as 0,1,2,4")
    if options.shots is not None and not any(options.shots) and not set(options.method_names) & set(WITHOUT_REFERENCES):
        raise OptionError(f"--method {','.join(options.method_names)}: needs references; give --shots of 1 or more")
    if options.calibrate and options.fusion == EvalFusion.authors:
        raise OptionError("--calibrate: scores with --fusion authors depend on all test images; use --fusion sum")
    if options.mutual and options.tile is not None:
        raise OptionError("--mutual compares whole images, without tiles; omit --tile")
    if options.labels is not None and options.layout != EvalOptions.layout:
        raise OptionError("--labels: the labels come from this file, not from a layout; omit --layout")
    if options.part is not None:
        _refuse_beside_part(options)
    check_rate(options.false_alarm_rate)
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        raise OptionError("--plots needs matplotlib; install it: pip install 'aprilcli[plots]'")


def _refuse_beside_part(options: EvalOptions) -> None:
    """Raise OptionError for options that a part's bank has decided; other settings are compared with the bank's."""
    given = {
        "--shots": options.shots is not None,
        "--seeds": options.seeds != EvalOptions.seeds,
        "--seed": options.seed != EvalOptions.seed,
        "--method": options.methods is not None,
        "--mutual": options.mutual,
        "--fusion": options.fusion is not None,
        "--calibrate": options.calibrate,
    }
    if any(given.values()):
        omitted = " and ".join(name for name, is_given in given.items() if is_given)
        raise OptionError(f"--part: the bank's own references, method and threshold are measured; omit {omitted}")


def _read_dataset(options: EvalOptions) -> LabeledDataset:
    if options.labels is not None:
        return labeled_dataset(options.labels, options.dataset, follow=options.follow)
    return read_dataset(options.dataset, options.layout, follow=options.follow)


def _choose_objects(dataset: LabeledDataset, names: tuple[str, ...] | None) -> LabeledDataset:
    """Keep the objects with the given names or categories."""
    if names is not None:
        names = tuple(map(same_form, names))
        known = {same_form(name) for item in dataset.objects for name in (item.name, item.category)}
        if unknown := [name for name in names if name not in known]:
            present = ", ".join(item.name for item in dataset.objects)
            raise OptionError(f"--objects {','.join(unknown)}: not in {dataset.root}; its objects are {present}")
        chosen = tuple(item for item in dataset.objects if {same_form(item.name), item.category} & set(names))
        dataset = replace(dataset, objects=chosen)
    if not any(item.test for item in dataset.objects):
        raise InputError(f"{dataset.root}: no test images in layout {dataset.layout}; check the path")
    return dataset


def _check_mutual(dataset: LabeledDataset) -> None:
    for item in dataset.objects:
        if len(item.test) < LEAST:
            raise InputError(
                f"{item.name}: {len(item.test)} test images, but --mutual needs at least {LEAST}, which are compared "
                "with each other; omit it, or choose with --objects"
            )
