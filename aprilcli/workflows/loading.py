"""What commands load before their work: a model, or a detector with the bank of a part."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from aprilcli.core.backbone import Backbone
from aprilcli.core.bank_file import load_bank
from aprilcli.core.bank_path import bank_path
from aprilcli.core.catalogue import find_source, path_exists
from aprilcli.core.detector import Detector
from aprilcli.core.device import TORCH, is_interchangeable
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.memory_bank import MemoryBank, Recipe
from aprilcli.core.model_loading import load_backbone
from aprilcli.defaults import TINY, WINCLIP
from aprilcli.errors import ArtifactError, BackboneError, InputError, OptionError
from aprilcli.io.files import sha256_of_file
from aprilcli.io.images import SourceImage, read_image
from aprilcli.io.published import PUBLISHED
from aprilcli.io.walk import FoundImage
from aprilcli.options import DatasetOptions, EnrollOptions, EvalOptions, Precision, ReadOptions, ScanOptions
from aprilcli.text import printable
from aprilcli.workflows.console import Console
from aprilcli.workflows.parts import find_bank

BankUser = ScanOptions | EnrollOptions | EvalOptions  # options of the commands that use a bank


def load_model(options: DatasetOptions, console: Console, images: Iterable[Path] = ()) -> Backbone:
    """Load the model without a projector, and print its notes. ``images``: to quantize an int8 model with."""
    backbone = load_backbone(
        options.model_name,
        image_size=options.image_size,
        tile=options.tile if isinstance(options, EvalOptions) else None,
        stages=options.stages,
        device=options.device,
        precision=options.precision,
        engine=(options.engine if isinstance(options, EvalOptions) else None) or TORCH,
        quantize_on=_readable(images, options),
    )
    for note in backbone.notes:
        console.note_once(note)
    return backbone


def _readable(paths: Iterable[Path], options: ReadOptions) -> Iterator[SourceImage]:
    """Read images when they are needed, and pass over those that cannot be read."""
    for path in paths:
        with suppress(InputError):
            yield read_image(path, value_range=options.value_range, max_pixels=options.max_pixels)


def check_windows(encoder: ImageEncoder, methods: Iterable[str]) -> None:
    """Refuse a method that needs the features of windows with a model that has none. Raises OptionError."""
    if WINCLIP in methods and not encoder.has_windows:
        raise OptionError(
            f"--method {WINCLIP}: {encoder.spec.label} with engine {encoder.engine} cannot encode windows of an image; "
            "use open_clip's own ViT or ResNet with engine torch, or another method"
        )


def load_part(part: str, banks: Path) -> MemoryBank:
    """Read the bank of a part. For a missing bank, the InputError lists the parts that its folder has."""
    return load_bank(find_bank(part, banks))


def describe_bank(bank: MemoryBank, part: str, banks: Path) -> dict[str, str]:
    """Return the file of a part's ``bank`` for a JSON record. Raises InputError if it cannot be read."""
    path = bank_path(part, banks)
    chosen = {} if bank.choice is None else {"score": bank.score}
    return {"path": str(path), "sha256": sha256_of_file(path), "method": bank.recipe.method, **chosen}


def note_old_bank(bank: MemoryBank, console: Console) -> None:
    """Tell if images of other parts cannot be recognized with this bank."""
    if bank.appearances is None:
        console.note("the part was enrolled by an earlier version, so images of other parts are not recognized")


def load_detector(
    options: BankUser, bank: MemoryBank | None, console: Console, images: Iterable[FoundImage] = ()
) -> Detector:
    """Load the detector, with the bank's own settings where the options are silent, and print its notes.

    ``images``: to quantize an int8 model with, unless the bank keeps its own.
    Raises the package's errors; what the options alone show to differ from the bank is refused before loading.
    """
    if bank is not None:
        _check_settings(options, bank)
    try:
        detector = Detector.load(
            options.model,
            projector=options.projector,
            bank=bank,
            object_name=_object_name(options),
            image_size=options.image_size,
            tile=options.tile,
            stages=options.stages,
            device=options.device,
            precision=options.precision,
            engine=options.engine,
            quantize_on=_readable((image.path for image in images if image.error is None), options),
            progress=console.is_interactive,
        )
    except (ArtifactError, BackboneError) as error:
        if bank is None:
            raise
        if options.model is None:
            raise type(error)(f"part {options.part}: {error}") from error
        if isinstance(error.__cause__, OptionError):  # the bank's image size or stages, with another model
            raise _other_settings(bank, [("--model", "model", bank.recipe.model, options.model)]) from error
        raise
    for note in detector.notes:
        console.note_once(note)
    return detector


def _object_name(options: BankUser) -> str | None:
    """Return the name that was given for the prompts; `eval` takes the bank's."""
    return None if isinstance(options, EvalOptions) else options.object_name


def _check_settings(options: BankUser, bank: MemoryBank) -> None:
    """Refuse options that differ from the bank's settings; a model or projector at a path may still be the same."""
    own, given = bank.recipe, options
    settings: list[tuple[str, str, Any, Any, Callable[[Any, Any], bool]]] = [
        ("--model", "model", own.model, given.model, _is_other_model),
        ("--projector", "projector", own.projector, given.projector, _is_other_projector),
        ("--image-size", "image size", _listed(bank.views.sizes), _listed(given.image_size), operator.ne),
        ("--tile", "tile", bank.tile, given.tile, operator.ne),
        ("--stages", "stages", _listed(bank.spec.stages), _listed(given.stages), operator.ne),
        ("--object", "object name", bank.object_name, _object_name(given), operator.ne),
        *_engine_settings(own, given),
        *(_reference_settings(own, given) if isinstance(given, EnrollOptions) else []),
    ]
    other = [setting[:4] for setting in settings if setting[3] is not None and setting[2] != setting[3]]
    if any(differs(mine, theirs) for *_, mine, theirs, differs in settings if theirs is not None):
        raise _other_settings(bank, other)


def _engine_settings(own: Recipe, given: BankUser) -> list[tuple[str, str, Any, Any, Callable[[Any, Any], bool]]]:
    mine = (own.engine, own.precision)
    precision = None if given.precision == Precision.auto else given.precision
    return [
        ("--engine", "engine", own.engine, given.engine, lambda _, engine: _differ(mine, engine, own.precision)),
        ("--precision", "precision", own.precision or "unknown", precision, lambda _, p: _differ(mine, own.engine, p)),
    ]


def _differ(own: tuple[str, str | None], engine: str, precision: str | None) -> bool:
    return not is_interchangeable(own, (str(engine), str(precision or "fp32")))


def _reference_settings(
    own: Recipe, given: EnrollOptions
) -> list[tuple[str, str, Any, Any, Callable[[Any, Any], bool]]]:
    return [
        ("--method", "method", own.method, given.method, operator.ne),
        ("--fusion", "fusion", own.fusion, given.fusion, operator.ne),
        ("--rotations", "rotations", own.rotations, given.rotations, operator.ne),
    ]


def _other_settings(bank: MemoryBank, settings: list[tuple[str, str, Any, Any]]) -> ArtifactError:
    """Return the error that names each setting: its option, name, value in the bank and given value."""
    sides = "; ".join(f"{what} {_named(own)}, not {_named(given)}" for _, what, own, given in settings)
    omitted = " and ".join(option for option, *_ in settings)
    return ArtifactError(
        f"the bank of {bank.object_name!r} was made with {sides}: omit {omitted}, or enroll the part again"
    )


def _named(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else printable(str(value))


def _listed(numbers: tuple[int, ...] | None) -> str | None:
    return None if numbers is None else ",".join(map(str, numbers))


def _is_other_model(own: str, given: str) -> bool:
    """Return whether two names are certainly of different models: a folder may hold the weights of any model."""
    if any(name != TINY and path_exists(name) for name in (own, given)):
        return False
    try:
        sources = [find_source(name) for name in (own, given)]
    except BackboneError:  # an unknown name, or a folder that has moved
        return False
    return len({(source.name, source.pretrained) for source in sources}) > 1


def _is_other_projector(own: str | None, given: str) -> bool:
    return own != given and {own, given} <= PUBLISHED.keys()


def range_of(bank: MemoryBank | None, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the bank's range; without a bank, ``value_range``. Raises OptionError if both are given and differ."""
    if bank is None:
        return value_range
    if value_range not in (None, bank.recipe.value_range):
        enrolled = "no range" if bank.recipe.value_range is None else "{:g},{:g}".format(*bank.recipe.value_range)
        raise OptionError(f"--range: the references of this part were read with {enrolled}; omit the option")
    return bank.recipe.value_range
