"""Model names: where a model's configuration and weights come from, and which models are supported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from aprilcli.core.model_folder import FOLDER_CONFIG, FOLDER_WEIGHTS, read_configuration
from aprilcli.defaults import PAPER, TINY
from aprilcli.errors import BackboneError
from aprilcli.io.hub import WEIGHT_FILES, fetch_clip_weights
from aprilcli.text import printable
from aprilcli.types import CONTROL

# The authors build the 518-pixel tower from the plain configuration, so OpenAI's QuickGELU weights run with GELU.
# All numbers of the paper and both published projectors depend on that.
PAPER_BACKBONE, PAPER_PRETRAINED = "ViT-L-14-336", "openai"
PAPER_IMAGE_SIZE = 518  # pixels
PAPER_STAGES = (6, 12, 18, 24)
TINY_SIZES = (256, 384)  # pixels; chosen by measurement, see its card


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: open_clip's name and tag, or a folder; with its own sizes and stages, if it has any.

    ``fusion``: how distances to a bank are summed by default (see ``memory_bank.Recipe``).
    """

    name: str
    pretrained: str = ""
    folder: Path | None = None
    image_sizes: tuple[int, ...] = ()
    stages: tuple[int, ...] | None = None
    fusion: str = "sum"

    @property
    def label(self) -> str:
        """The name for messages: ``ViT-L-14-336:openai``, or the folder's path."""
        return str(self.folder or f"{self.name}:{self.pretrained}")


@dataclass(frozen=True)
class Configuration:
    """``model``: open_clip's model configuration. ``mean``, ``std``: per RGB channel, of pixel values in [0, 1]."""

    model: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def tiny_folder() -> Path:
    """Return the embedded model's folder: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "weights" / TINY
    return inside if inside.is_dir() else package.parent / "weights" / TINY


def find_source(model: str) -> ModelSource:
    """Return the source of ``tiny``, ``paper``, ``NAME`` or ``NAME:TAG`` of open_clip, or a folder.

    Raises BackboneError for an unknown name.
    """
    if model == TINY:
        return ModelSource(TINY, folder=tiny_folder(), image_sizes=TINY_SIZES, fusion="balanced")
    if model == PAPER:
        return ModelSource(PAPER_BACKBONE, PAPER_PRETRAINED, image_sizes=(PAPER_IMAGE_SIZE,), stages=PAPER_STAGES)
    if path_exists(model) and Path(model).is_dir():
        folder = Path(model).resolve()
        if CONTROL.search(str(folder)):  # banks and projectors store it
            raise BackboneError(f"{printable(folder)}: a model folder's path needs printable UTF-8; rename it")
        return ModelSource(folder.name, folder=Path(model))
    name, _, tag = model.partition(":")
    if name not in open_clip.list_models():
        raise BackboneError(
            f"unknown model {printable(model)[:80]}: neither a folder nor an open_clip name; use tiny, paper, a folder "
            f"with {FOLDER_CONFIG} and {FOLDER_WEIGHTS}, or a name such as ViT-B-16:laion2b_s34b_b88k"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        available = ", ".join(tags) or "none"
        raise BackboneError(f"{name} has no pretrained weights {printable(tag)[:80]}; there are: {available}")
    if not tags:
        raise BackboneError(f"open_clip has no pretrained weights for {name}; choose another name or give a folder")
    return ModelSource(name, tag or _matching_tag(name, tags))


def path_exists(name: str) -> bool:
    """Return whether a model's or projector's name is a path that exists; never raises."""
    try:
        return Path(name).exists()
    except OSError:  # too long, or below a folder that cannot be read
        return False


def read_source(source: ModelSource) -> Configuration:
    """Read the configuration of a model. Raises ArtifactError for a broken folder, BackboneError if unsupported."""
    if source.folder is not None:
        config, mean, std = read_configuration(
            source.folder, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        )
    else:
        config, tag = open_clip.get_model_config(source.name), _tag_config(source.name, source.pretrained)
        mean = tuple(tag.get("mean", open_clip.OPENAI_DATASET_MEAN))
        std = tuple(tag.get("std", open_clip.OPENAI_DATASET_STD))
    _check_supported(source, config)
    return Configuration(config, mean, std)


def weights_file(source: ModelSource) -> Path:
    """Return the file of the model's weights, downloading it if necessary. Raises BackboneError."""
    if source.folder is not None:
        return source.folder / FOLDER_WEIGHTS
    owner, name, *file = str(_tag_config(source.name, source.pretrained).get("hf_hub", "")).strip("/").split("/")
    return fetch_clip_weights(source.label, f"{owner}/{name}", tuple(file) or WEIGHT_FILES)


def activation_notes(source: ModelSource, activation: str) -> tuple[str, ...]:
    """Return what the user should know about the model: it is the small model, or runs with another activation."""
    if source.folder == tiny_folder():
        return (f"model: {TINY} (small, included); the model {PAPER} is more accurate",)
    is_paper = (source.name, source.pretrained) == (PAPER_BACKBONE, PAPER_PRETRAINED)
    if is_paper or not source.pretrained:
        return ()
    trained = "quickgelu" if _tag_config(source.name, source.pretrained).get("quick_gelu", False) else "gelu"
    if trained == activation:
        return ()
    return (f"{source.label} was trained with {trained} but runs with {activation} here",)


def _check_supported(source: ModelSource, config: dict[str, Any]) -> None:
    parts = {name for name, value in config.items() if name.endswith("_cfg") and value is not None}
    if parts != {"vision_cfg", "text_cfg"}:  # CoCa, and from open_clip 4 on captioning and audio models
        raise BackboneError(
            f"{source.label}: the model is not a pair of an image and a text tower ({', '.join(sorted(parts))}); "
            "choose another model"
        )
    if text_model := config["text_cfg"].get("hf_model_name"):
        raise BackboneError(
            f"{source.label}: its text tower {printable(text_model)[:80]} is built by files of another repository; "
            "choose a model whose text tower is open_clip's own"
        )


def _matching_tag(name: str, tags: list[str]) -> str:
    """Choose the first weights that were trained with the activation of the configuration they run in."""
    quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    return next((t for t in tags if _tag_config(name, t).get("quick_gelu", False) == quick), tags[0])


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    return dict(open_clip.get_pretrained_cfg(name, tag))
