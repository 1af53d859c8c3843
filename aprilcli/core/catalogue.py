"""From a model's name to its source and configuration, checked before anything is downloaded or built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors import safe_open

from aprilcli.core.model_folder import (
    FOLDER_CONFIG,
    FOLDER_WEIGHTS,
    as_artifact_errors,
    native_size,
    read_configuration,
)
from aprilcli.core.towers import Tower, tower_class
from aprilcli.errors import BackboneError, OptionError
from aprilcli.text import printable
from aprilcli.types import CONTROL, MAX_IMAGE_SIZE

TINY = "tiny"
PAPER = "paper"
# The authors build the 518-pixel tower from the plain configuration, so OpenAI's QuickGELU weights run with GELU.
# Every number of the paper and both published projectors depend on that.
PAPER_BACKBONE, PAPER_PRETRAINED = "ViT-L-14-336", "openai"
PAPER_IMAGE_SIZE = 518  # pixels
PAPER_STAGES = (6, 12, 18, 24)

STAGE_COUNT = 4
EXTRA_WEIGHTS = 10_000_000  # position embeddings that a configuration may declare beyond its weights file


def tiny_folder() -> Path:
    """Return the folder of the embedded model: inside the installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "weights" / TINY
    return inside if inside.is_dir() else package.parent / "weights" / TINY


@dataclass(frozen=True)
class Source:
    """Where a model comes from: open_clip's name and tag, or a folder; and what replaces the model's defaults."""

    name: str
    pretrained: str = ""
    folder: Path | None = None
    image_size: int | None = None
    stages: tuple[int, ...] | None = None

    @property
    def tag(self) -> dict[str, Any]:
        """open_clip's record of the pretrained weights; empty for a folder."""
        return dict(open_clip.get_pretrained_cfg(self.name, self.pretrained)) if self.pretrained else {}


@dataclass(frozen=True)
class Model:
    """A source whose configuration has been checked.

    ``config``: open_clip's. ``mean`` and ``std``: of RGB values in [0, 1]. ``tower``: the kind of its image tower.
    """

    source: Source
    config: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tower: type[Tower]

    def image_size(self, wanted: int | None) -> int:
        """Return S: ``wanted``, or the default. Raises OptionError for a size that the tower cannot take."""
        size = wanted or self.source.image_size or native_size(self.config)
        step = self.tower.size_step(self.config["vision_cfg"])
        if size > MAX_IMAGE_SIZE:
            raise OptionError(f"image size {size}: the largest is {MAX_IMAGE_SIZE}")
        if size < step or size % step:
            nearest = max(step, round(size / step) * step)
            raise OptionError(
                f"image size {size}: {self.source.name} needs a multiple of {step}, for example {nearest}"
            )
        return size

    def stages(self, wanted: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
        """Return the stages: ``wanted``, or the default, four equal parts of ``depth``. Raises OptionError."""
        default = tuple(max(1, depth * part // STAGE_COUNT) for part in range(1, STAGE_COUNT + 1))
        stages = wanted or self.source.stages or tuple(dict.fromkeys(default))
        given = ",".join(map(str, stages))
        if list(stages) != sorted(set(stages)) or stages[0] < 1:
            example = ",".join(map(str, default))
            raise OptionError(f"stages {given}: list stages in ascending order, from 1, for example {example}")
        if stages[-1] > depth:
            raise OptionError(f"stages {given}: {self.source.name} has {depth} stages; list stages from 1 to {depth}")
        return tuple(stages)

    def notes(self, activation: str) -> tuple[str, ...]:
        """Return what the user should know of the model, running with ``activation``."""
        source = self.source
        if source.folder == tiny_folder():
            return (f"model: {TINY}, the small embedded model; --model {PAPER} is the accurate one",)
        is_paper = (source.name, source.pretrained) == (PAPER_BACKBONE, PAPER_PRETRAINED)
        trained = "quickgelu" if source.tag.get("quick_gelu", False) else "gelu"
        if is_paper or not source.pretrained or trained == activation:
            return ()
        return (f"{source.name}:{source.pretrained} was trained with {trained} but runs with {activation} here",)


def find_model(name: str) -> Model:
    """Find a model by the name that users give: ``tiny``, ``paper``, ``NAME[:TAG]`` of open_clip, or a folder.

    Nothing is downloaded or built. Raises BackboneError, or ArtifactError for a folder that cannot be used.
    """
    source = _find_source(name)
    defaults = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if source.folder is None:
        config = open_clip.get_model_config(source.name)
        preprocessing = {key: source.tag.get(key) or values for key, values in defaults.items()}
    else:
        config, preprocessing = read_configuration(source.folder, defaults)
    tower = tower_class(config["vision_cfg"])
    if "multimodal_cfg" in config:
        raise BackboneError(f"{source.name}: a CoCa model cannot be used; choose a CLIP or SigLIP model")
    if source.folder is not None:
        with as_artifact_errors(source.folder):
            tower.check_config(config["vision_cfg"])
            _check_declared_size(config, source.folder / FOLDER_WEIGHTS)
    else:
        try:
            tower.check_config(config["vision_cfg"])
        except ValueError as error:
            raise BackboneError(f"{source.name}: {error}") from error
    mean, std = (tuple(map(float, preprocessing[key])) for key in ("mean", "std"))
    return Model(source, config, mean, std, tower)  # type: ignore[arg-type]  # three channels


def _find_source(model: str) -> Source:
    if model == TINY:
        return Source(TINY, folder=tiny_folder())
    if model == PAPER:
        return Source(PAPER_BACKBONE, PAPER_PRETRAINED, image_size=PAPER_IMAGE_SIZE, stages=PAPER_STAGES)
    if path_exists(model) and Path(model).is_dir():
        folder = Path(model).resolve()
        if CONTROL.search(str(folder)):  # banks and projectors record it
            raise BackboneError(f"{printable(folder)}: the path of a model folder needs printable UTF-8; rename it")
        return Source(folder.name, folder=Path(model))
    name, _, tag = model.partition(":")
    if name not in open_clip.list_models():
        raise BackboneError(
            f"unknown model {printable(model)[:80]}: neither a folder nor an open_clip name; use tiny, paper, a folder "
            f"with {FOLDER_CONFIG} and {FOLDER_WEIGHTS}, or a name such as ViT-B-16:laion2b_s34b_b88k"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        known = ", ".join(tags) or "none"
        raise BackboneError(f"{name} has no pretrained weights {printable(tag)[:80]}; choose from: {known}")
    if not tags:
        raise BackboneError(f"open_clip has no pretrained weights for {name}; choose another name or give a folder")
    return Source(name, tag or _matching_tag(name, tags))


def path_exists(name: str) -> bool:
    """Return whether the name of a model or projector is an existing path, however odd the name."""
    try:
        return Path(name).exists()
    except OSError:  # too long, or in a folder that cannot be read
        return False


def _matching_tag(name: str, tags: list[str]) -> str:
    """Choose the first weights that were trained with the activation of the configuration they run in."""
    quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    return next((tag for tag in tags if Source(name, tag).tag.get("quick_gelu", False) == quick), tags[0])


def _check_declared_size(config: dict[str, Any], weights: Path) -> None:
    """Refuse, before memory is allocated, a configuration of more weights than its file holds. Raises ValueError."""
    with safe_open(weights, framework="pt") as file:
        held = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118  # not a dict
    layers = [config["text_cfg"].get("layers", 0), config["vision_cfg"].get("layers", 0)]
    count = sum(sum(map(int, one)) if isinstance(one, list) else int(one) for one in layers)
    if count > len(held):
        raise ValueError(f"it declares {count:,} layers, its weights file holds {len(held):,} tensors")
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    settings["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}  # nothing is downloaded here
    build = CustomTextCLIP if config.get("custom_text") else CLIP
    with torch.device("meta"):
        declared = sum(weight.numel() for weight in build(**settings).parameters())
    if declared > 2 * sum(held) + EXTRA_WEIGHTS:
        raise ValueError(f"it declares {declared:,} weights, its weights file holds {sum(held):,}")
