"""Fingerprints of model weights: a projector or a bank fits only the model it was made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from aprilcli.io.tensor_files import open_tensors


def fingerprint(weights: Mapping[str, torch.Tensor], description: str = "") -> str:
    """Return the SHA-256 over names, shapes and float32 values, and ``description``, in hexadecimal."""
    return digest(sorted(weights.items()), description)


def digest(weights: Iterable[tuple[str, torch.Tensor]], description: str = "") -> str:
    """Return the fingerprint of tensors that come one by one, sorted by name."""
    sha256 = hashlib.sha256(description.encode())
    for name, tensor in weights:
        sha256.update(f"{name} {tuple(tensor.shape)}\n".encode())
        sha256.update(tensor.detach().float().cpu().flatten().numpy().data)
    return sha256.hexdigest()


def model_fingerprint(model: torch.nn.Module, config: Mapping[str, Any], weights_file: Path | None) -> str:
    """Return the fingerprint of a loaded CLIP and its configuration, the same at any image size.

    The image tower's position embeddings are resized on loading. They are therefore taken from ``weights_file``, or
    left out if it is None.
    """
    weights = {name: tensor for name, tensor in model.state_dict().items() if not is_position(name)}
    if weights_file is not None:
        with open_tensors(weights_file) as file:
            weights |= {name: file.get_tensor(name) for name in file.keys() if is_position(name)}  # noqa: SIM118
    return fingerprint(weights, architecture(config))


def is_position(name: str) -> bool:
    """Return whether this weight depends on the image size."""
    return name.startswith("visual.") and name.endswith(("positional_embedding", "pos_embed"))


def architecture(config: Mapping[str, Any]) -> str:
    """Describe what the weights do not show, such as heads and activations, whatever the image size."""
    vision = {name: value for name, value in config["vision_cfg"].items() if name != "image_size"}
    return json.dumps({**config, "vision_cfg": vision}, sort_keys=True, default=str)
