"""A model folder in open_clip's local-dir form: its configuration, checked before anything is built from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError

from aprilcli.errors import ArtifactError
from aprilcli.text import first_line, printable
from aprilcli.types import MAX_IMAGE_SIZE

FOLDER_CONFIG, FOLDER_WEIGHTS, FOLDER_TOKENIZER = (
    "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json",
)  # fmt: skip
# What json, open_clip, timm and PyTorch raise for invalid configurations and for weights that do not fit them.
BROKEN_MODEL = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, SafetensorError,
)  # fmt: skip
MAX_CONFIG_BYTES = 1024**2
MAX_CONTEXT = 4096  # tokens; open_clip's own models have 77 or fewer

_Size = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
_Count = Annotated[int, Field(ge=1)]


class _Schema(BaseModel):
    """A part of the file, without conversions. Fields that are not listed reach open_clip, which checks its own."""

    model_config = ConfigDict(strict=True)


class _Vision(_Schema):
    image_size: _Size | Annotated[list[_Size], Field(min_length=1, max_length=2)] = 224
    patch_size: _Count | None = None
    layers: _Count | list[_Count] = 12
    width: _Count = 768
    head_width: Annotated[int, Field(ge=1, le=1024)] = 64
    timm_model_name: str | None = None
    timm_model_kwargs: None = None  # of open_clip 4; could name other files

    @field_validator("timm_model_name")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and not timm.is_model(name):  # also refuses names of repositories and files
            raise ValueError(f"timm has no model {printable(name)[:80]}")
        return name


class _TokenizerOptions(_Schema):
    model_config = ConfigDict(extra="forbid")

    clean: Literal["canonicalize", "lower", "whitespace"] = "whitespace"
    strip_sep_token: bool = False


class _Text(_Schema):
    context_length: Annotated[int, Field(ge=1, le=MAX_CONTEXT)] = 77
    layers: _Count = 12
    hf_model_name: None = None  # a text tower that is built by files of another repository
    hf_tokenizer_name: str | None = None
    tokenizer_mode: None = None
    tokenizer_kwargs: _TokenizerOptions = _TokenizerOptions()


class _Model(_Schema):
    embed_dim: _Count
    vision_cfg: _Vision
    text_cfg: _Text


_Mean = Annotated[float, Field(ge=-255, le=255)]
_Std = Annotated[float, Field(gt=1e-3, le=255)]


class _Preprocessing(_Schema):
    mean: Annotated[list[_Mean], Field(min_length=3, max_length=3)] | None = None
    std: Annotated[list[_Std], Field(min_length=3, max_length=3)] | None = None


class _File(_Schema):
    model_cfg: _Model
    preprocess_cfg: _Preprocessing = _Preprocessing()


def read_configuration(
    folder: Path, mean: Sequence[float], std: Sequence[float]
) -> tuple[dict[str, Any], tuple[float, float, float], tuple[float, float, float]]:
    """Return open_clip's model configuration, and mean and std of the preprocessing, by default those given.

    Refuses what would run code of others or read files elsewhere. Raises ArtifactError, one line.
    """
    path = folder / FOLDER_CONFIG
    with as_artifact_errors(folder):
        for needed in (path, folder / FOLDER_WEIGHTS):
            if not needed.is_file():
                raise ArtifactError(
                    f"{folder}: {needed.name} is missing; a model folder holds {FOLDER_CONFIG} and {FOLDER_WEIGHTS}"
                )
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES:,} bytes")
        fields = json.loads(path.read_text(encoding="utf-8"))
        if "trust_remote_code" in json.dumps(fields, allow_nan=False):  # serialised again: escapes hide nothing
            raise ValueError("it asks to run foreign code")
        checked = _File.model_validate(fields)
        if checked.model_cfg.text_cfg.hf_tokenizer_name and not (folder / FOLDER_TOKENIZER).is_file():
            raise ArtifactError(
                f"{folder}: {FOLDER_TOKENIZER} is missing, but {FOLDER_CONFIG} names the tokenizer "
                f"{printable(checked.model_cfg.text_cfg.hf_tokenizer_name)[:80]}; copy that tokenizer's files here"
            )
        chosen = checked.preprocess_cfg
        return fields["model_cfg"], _three(chosen.mean or mean), _three(chosen.std or std)


@contextmanager
def as_artifact_errors(folder: Path) -> Iterator[None]:
    """Turn the errors that libraries raise for a folder's files into an ArtifactError of one line."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    except BROKEN_MODEL as error:
        reason = _first_problem(error) if isinstance(error, ValidationError) else first_line(error)
        raise ArtifactError(
            f"{folder / FOLDER_CONFIG}: not an open_clip configuration ({reason}); copy the model folder again"
        ) from error


def native_size(config: dict[str, Any]) -> int:
    """Return the side of the images that a configuration is for, in pixels."""
    size = config["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, list | tuple) else size)


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return printable(f"{where}: {first['msg'].removeprefix('Value error, ')}")[:200]


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = map(float, values)
    return first, second, third
