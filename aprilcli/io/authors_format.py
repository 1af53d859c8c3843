"""Projector files as the authors' program saves them, read without running code in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import IO

import torch

from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import as_read_errors
from aprilcli.io.files import size_of_file


def read_authors_projector(path: Path) -> dict[str, torch.Tensor]:
    """Read a projector file in the authors' PyTorch format without running code pickled in it.

    Returns ``fc.{i}.weight`` [C, Cv] and ``fc.{i}.bias`` [C], float32. Raises ArtifactError.
    """
    with as_read_errors(path):
        size = size_of_file(path)
        with path.open("rb") as file:
            return read_authors_file(file, size, str(path))


def read_authors_file(file: IO[bytes], size: int, source: str) -> dict[str, torch.Tensor]:
    """Read ``{"trainable_linearlayer": {"fc.0.weight": …}}``; ``size``: the file's bytes, a limit for its tensors."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("compressed: PyTorch never does this, and it could expand to any size")
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):  # about file contents that are refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # malformed bytes make torch.load raise almost any type
        raise _invalid(source, "it is damaged or contains more than weights") from error
    layers = content.get("trainable_linearlayer") if isinstance(content, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise _invalid(source, "it has no trainable_linearlayer")
    if set(layers) != {f"fc.{i}.{part}" for i in range(len(layers) // 2) for part in ("weight", "bias")}:
        raise _invalid(source, "its layers are not fc.0, fc.1 … each with weight and bias")
    # A tensor can declare more elements than are stored (stride 0, meta device): check before reading any values.
    tensors = {key: value for key, value in layers.items() if isinstance(value, torch.Tensor) and _is_dense(value)}
    if len(tensors) < len(layers) or sum(value.numel() * value.element_size() for value in tensors.values()) > size:
        raise _invalid(source, "its layers are not dense floating-point tensors or exceed the file size")
    joint_width = tensors["fc.0.bias"].numel()
    for key, value in tensors.items():
        shape = tuple(value.shape)
        if 0 in shape or shape[0] != joint_width or len(shape) != (2 if key.endswith("weight") else 1):
            raise _invalid(source, f"{key} of shape {shape} does not fit a joint width of {joint_width}")
        if not bool(torch.isfinite(value).all()):
            raise _invalid(source, f"{key} contains NaN or infinite values")
    return {key: value.detach().float().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _is_dense(tensor: torch.Tensor) -> bool:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return tensor.dtype in dtypes and tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.ndim > 0


def _invalid(source: str, reason: str) -> ArtifactError:
    return ArtifactError(f"{source}: not a projector file of APRIL-GAN's authors ({reason}); use another file")
