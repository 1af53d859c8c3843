"""What commands load before their work: a model, or a detector with the bank of a part."""

from __future__ import annotations

from aprilcli.core.backbone import Backbone
from aprilcli.core.detector import Detector
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.model_loading import load_backbone
from aprilcli.errors import ArtifactError, BackboneError, OptionError
from aprilcli.options import DatasetOptions, EnrollOptions, ScanOptions
from aprilcli.workflows.console import Console


def load_model(options: DatasetOptions, console: Console) -> Backbone:
    """Load the model without a projector, and print its notes."""
    backbone = load_backbone(
        options.model,
        image_size=options.image_size,
        stages=options.stages,
        device=options.device,
        precision=options.precision,
    )
    for note in backbone.notes:
        console.note_once(note)
    return backbone


def load_detector(options: ScanOptions | EnrollOptions, bank: MemoryBank | None, console: Console) -> Detector:
    """Load the detector, with the bank's own settings where the options are silent, and print its notes."""
    try:
        detector = Detector.load(
            options.model,
            projector=options.projector,
            bank=bank,
            object_name=options.object_name,
            image_size=options.image_size,
            stages=options.stages,
            device=options.device,
            precision=options.precision,
            progress=console.is_interactive,
        )
    except (ArtifactError, BackboneError) as error:
        if bank is None or options.model is not None:
            raise
        raise type(error)(f"part {options.part}: {error}") from error
    for note in detector.notes:
        console.note_once(note)
    return detector


def range_of(bank: MemoryBank | None, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the bank's range; without a bank, ``value_range``. Raises OptionError if both are given and differ."""
    if bank is None:
        return value_range
    if value_range not in (None, bank.recipe.value_range):
        enrolled = "no range" if bank.recipe.value_range is None else "{:g},{:g}".format(*bank.recipe.value_range)
        raise OptionError(f"--range: the references of this part were read with {enrolled}; omit the option")
    return bank.recipe.value_range
