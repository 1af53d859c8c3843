"""What can go wrong, and the exit code it ends with.

::

    AprilError
    ├── OptionError     wrong usage: an option's value cannot be used        (exit 2)
    ├── InputError      a folder, picture or data set cannot be used         (exit 1)
    ├── ArtifactError   a projector, bank or model file cannot be trusted    (exit 1)
    ├── BackboneError   the CLIP model cannot be had or does not fit         (exit 1)
    └── OutputError     results cannot be written                            (exit 1)

Each message is one line: what, where, and what to do. Anything else that is raised is a bug and keeps its traceback.
"""


class AprilError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class OptionError(AprilError):
    """An option's value cannot be used."""

    exit_code = 2


class InputError(AprilError):
    """A folder, picture or data set cannot be used."""


class ArtifactError(AprilError):
    """A projector, bank or model file is damaged, foreign or made for something else."""


class BackboneError(AprilError):
    """The CLIP model cannot be had, or cannot do what is asked of it."""


class OutputError(AprilError):
    """Results cannot be written where they were asked to go."""
