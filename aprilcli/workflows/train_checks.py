"""What `train` refuses before the model is loaded. Imports no torch, so a refusal takes no seconds."""

from __future__ import annotations

import os
from pathlib import Path

from aprilcli.errors import OptionError, OutputError
from aprilcli.io.atomic import check_writable, output_errors
from aprilcli.io.datasets import LabeledDataset, read_dataset
from aprilcli.options import TrainOptions

SUFFIX = ".safetensors"


def check(options: TrainOptions) -> LabeledDataset:
    """Check options and outputs, and return the data set, read but not its images.

    Raises OptionError, OutputError for files that exist or cannot be written, InputError for a data set that cannot be
    read.
    """
    _check_options(options)
    check_writable(options.out.parent)
    with output_errors(options.out):
        if not options.checkpoint.exists():  # it may be that of a training that runs: see ``check_outputs``
            refuse_existing(options)
    # Unlike Path.resolve, this accepts circular links, which are then not a folder.
    return read_dataset(Path(os.path.realpath(options.dataset)), options.layout, follow=options.follow)


def _check_options(options: TrainOptions) -> None:
    if options.out.suffix != SUFFIX:
        raise OptionError(f"--out {options.out}: not a {SUFFIX} file; give a name with this suffix")
    for option, share in (("--mosaic", options.mosaic), ("--val", options.validation)):
        if share is not None and not 0 <= share < 1:
            raise OptionError(f"{option} {share}: give a share of at least 0 and below 1")
    if not 0 < options.learning_rate <= 1:
        raise OptionError(
            f"--lr {options.learning_rate}: give a number above 0 and up to 1, such as {TrainOptions.learning_rate}"
        )


def check_outputs(options: TrainOptions) -> None:
    """Refuse existing files; for a resumed training the checkpoint decides later. The output must be locked."""
    with output_errors(options.out):
        if not options.checkpoint.exists():
            refuse_existing(options)
        elif not options.resume:
            raise OutputError(
                f"{options.checkpoint}: from an interrupted training; continue with --resume, or delete this file"
            )


def refuse_existing(options: TrainOptions) -> None:
    """Raise OutputError if the files to write exist."""
    for path in (options.out, options.report):
        if path.exists():
            raise OutputError(f"{path}: already exists; choose another --out, or move the file")
