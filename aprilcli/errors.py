"""The errors of this package, and the exit code of each.

::

    AprilError
    ├── OptionError     the value of an option cannot be used                (exit 2)
    ├── InputError      a folder, image or data set cannot be used           (exit 1)
    ├── ArtifactError   a projector, bank or model file cannot be used       (exit 1)
    ├── BackboneError   the CLIP model is not available or not suitable      (exit 1)
    └── OutputError     results cannot be written                            (exit 1)

Each message is one line: what is wrong, where, and what to do. Any other exception is a bug and keeps its traceback.
"""


class AprilError(Exception):
    """Base of the errors that this package raises on purpose."""

    exit_code = 1


class OptionError(AprilError):
    """The value of an option cannot be used."""

    exit_code = 2


class InputError(AprilError):
    """A folder, image or data set cannot be used."""


class ArtifactError(AprilError):
    """A projector, bank or model file is damaged, foreign or made for something else."""


class BackboneError(AprilError):
    """The CLIP model is not available, or not suitable."""


class OutputError(AprilError):
    """Results cannot be written."""
