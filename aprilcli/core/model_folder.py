"""A model folder in the local-dir form: what its configuration says, read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from aprilcli.errors import ArtifactError
from aprilcli.text import first_line
from aprilcli.types import MAX_IMAGE_SIZE

FOLDER_CONFIG, FOLDER_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# What json, open_clip and PyTorch raise for configurations that make no sense and weights that do not fit them.
BROKEN_MODEL = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError, SafetensorError,
)  # fmt: skip
MAX_CONFIG_BYTES = 1024**2
MAX_CONTEXT = 4096  # tokens; open_clip's own models have 77 or less
# Settings of the text tower that name files and models elsewhere, or run code that comes with them.
ELSEWHERE = ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs")


def read_configuration(
    folder: Path, defaults: Mapping[str, Sequence[float]]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return open_clip's model configuration, and mean and std of the preprocessing, ``defaults`` where they lack.

    What would run foreign code, or open files elsewhere, is refused. Raises ArtifactError, one line.
    """
    path = folder / FOLDER_CONFIG
    with as_artifact_errors(folder):
        for needed in (path, folder / FOLDER_WEIGHTS):
            if not needed.is_file():
                raise ArtifactError(f"{folder}: {needed.name} is missing; a model folder holds it and its companion")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES:,} bytes")
        fields = json.loads(path.read_text(encoding="utf-8"))
        if "trust_remote_code" in json.dumps(fields, allow_nan=False):  # written anew: escapes hide nothing
            raise ValueError("it asks to run foreign code")
        config, preprocessing = dict(fields["model_cfg"]), dict(fields.get("preprocess_cfg", {}))
        config["vision_cfg"], config["text_cfg"] = dict(config["vision_cfg"]), dict(config["text_cfg"])
        chosen = {key: [float(value) for value in preprocessing.get(key, defaults[key])] for key in defaults}
        if any(len(values) != 3 for values in chosen.values()):
            raise ValueError("mean and std need three values")
        if not all(abs(value) <= 255 for value in chosen["mean"]) or not all(1e-3 < v <= 255 for v in chosen["std"]):
            raise ValueError("mean and std must be numbers of pixel values in 0 to 1")
        if not 0 < native_size(config) <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be from 1 to {MAX_IMAGE_SIZE}")
        if not isinstance(config["vision_cfg"].get("patch_size") or 0, int):
            raise ValueError("patch_size must be one whole number")
        if named := [key for key in ELSEWHERE if key in config["text_cfg"]]:
            raise ValueError(f"{named[0]} asks for a text tower or tokenizer other than open_clip's own")
        if not 0 < int(config["text_cfg"].get("context_length", 77)) <= MAX_CONTEXT:
            raise ValueError(f"context_length must be from 1 to {MAX_CONTEXT}")
        return config, chosen


@contextmanager
def as_artifact_errors(folder: Path) -> Iterator[None]:
    """Turn what a foreign folder's files make libraries raise into an ArtifactError of one line."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    except BROKEN_MODEL as error:
        path, reason = folder / FOLDER_CONFIG, first_line(error)
        raise ArtifactError(f"{path}: not an open_clip configuration ({reason}); copy the model folder anew") from error


def native_size(config: dict[str, Any]) -> int:
    """Return the side of the picture that a configuration is for, in pixels."""
    size = config["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, list | tuple) else size)
